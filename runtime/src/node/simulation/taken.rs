//! What a worker has taken is handled once and in its place, whatever happens before it comes to that.

use super::broker::Row;
use super::handler::{Kind, PLAIN, POISON};
use super::named::Scene;

/// A record of the one partition, with a command to the handler.
fn put(scene: &Scene, command: u8, sequence: usize) {
    let value = [&[command], sequence.to_string().as_bytes()].concat();
    let row = Row { key: b"p0k0".to_vec(), value: Some(value), timestamp_ms: 0 };
    scene.world.lock().broker.inputs[0].append(row);
}

/// A commit is refused for a record while the overlay after it is full, and more has been taken.
#[test]
fn what_was_taken_before_its_input_began_anew_is_not_handled() {
    let scene = Scene::with(Kind::Chain, |case| case.overlay_records = 2);
    scene.world.start(0);
    scene.until_running(0);
    put(&scene, POISON, 0);
    (1..40).for_each(|sequence| put(&scene, PLAIN, sequence));
    scene.step_workers_until_a_commit_is_ready();
    // Nothing else moves, until the worker has to wait for that commit, with a batch in its hands.
    (0..20).for_each(|_| scene.world.step_a_worker());
    scene.until_committed();
    scene.check();
}

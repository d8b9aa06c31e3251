//! What a worker has taken is handled once and in its place, whatever happens before it comes to that; and what it says of
//! itself when nothing comes.

use std::sync::Arc;

use super::broker::Row;
use super::handler::{Kind, PLAIN, POISON};
use super::named::{Scene, committed, is_committed};
use crate::record::Offset;

/// A record of the one partition, with a command to the handler.
pub(super) fn put(scene: &Scene, command: u8, sequence: usize) {
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

/// Between two calls of the handler so much time passes that the group has to be heard.
#[test]
fn what_a_slow_handler_has_not_come_to_is_kept_and_no_input_begins_anew() {
    let scene = Scene::new(Kind::Chain);
    scene.world.start(0);
    scene.until_running(0);
    let starts = scene.world.lock().starts;
    (0..200).for_each(|sequence| put(&scene, PLAIN, sequence));
    scene.until("everything is committed", |world| {
        // A transaction has to end in time.
        if !world.is_committing() {
            world.lock().broker.now_ms += 1_100;
        }
        is_committed(world)
    });
    assert_eq!(scene.world.lock().starts, starts);
    scene.check();
}

/// Somebody else keeps a rebalance going, and until its end no commit is taken.
#[test]
fn who_cannot_commit_takes_what_there_is_room_for_and_drops_nothing() {
    let scene = Scene::with(Kind::Chain, |case| case.overlay_records = 3);
    scene.world.start(0);
    scene.until_running(0);
    let (starts, handed) = {
        let mut state = scene.world.lock();
        state.broker.group.is_closed = true;
        (state.starts, state.handed)
    };
    (0..100).for_each(|sequence| put(&scene, PLAIN, sequence));
    (0..3_000).for_each(|_| scene.world.turn());
    {
        let mut state = scene.world.lock();
        // The overlay of the commit that is refused, the next one, and a take; each of these brings up to six.
        let taken = state.handed - handed;
        assert!((3..=24).contains(&taken), "{taken} records");
        state.broker.group.is_closed = false;
        state.broker.group.shake();
    }
    scene.until_committed();
    assert_eq!(scene.world.lock().starts, starts);
    scene.check();
}

/// What comes before it waits for another turn, or for room, as often as not.
#[test]
fn what_came_before_a_record_that_cannot_be_read_is_handled_before_its_task_halts() {
    for at in 30..42 {
        let scene = Scene::with(Kind::Chain, |case| case.overlay_records = 3);
        scene.world.start(0);
        scene.until_running(0);
        scene.world.lock().unreadable = Some(Offset(at));
        (0..50).for_each(|sequence| put(&scene, PLAIN, sequence));
        assert_eq!(scene.until_halted(0), "it cannot be read");
        scene.until("all of it is committed", |world| committed(world) == Some(Offset(at)));
    }
}

#[test]
fn what_keeps_records_from_coming_is_said_as_long_as_it_does_and_ends_nothing() {
    let scene = Scene::new(Kind::Chain);
    scene.world.start(0);
    scene.until_running(0);
    let board = Arc::clone(&scene.world.process(0).unwrap().board);
    let starts = scene.world.lock().starts;
    scene.world.lock().obstacle = Some("the password is wrong".into());
    scene.until("it is said", |_| board.trouble().is_some_and(|reason| reason.contains("password is wrong")));
    put(&scene, PLAIN, 0);
    scene.until_committed();
    assert!(board.trouble().is_some());
    scene.world.lock().obstacle = None;
    scene.until("it is not said any more", |_| board.trouble().is_none());
    assert_eq!(scene.world.lock().starts, starts);
    scene.check();
}

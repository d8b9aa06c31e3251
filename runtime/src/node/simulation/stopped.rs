//! Which restores a worker ends, scripted: those of partitions that are gone for a while, and no others.

use super::handler::{Kind, PLAIN};
use super::named::Scene;
use super::taken::put;
use crate::ports::Stop;

/// Turns of a worker and its client that a condition may take to come about.
const PATIENCE: usize = 1_000;

/// A node and its restore, which has not had its turn yet.
fn restoring() -> (Scene, Stop) {
    let scene = Scene::new(Kind::Chain);
    scene.world.start(0);
    let stop = until_some(&scene, |scene| scene.world.stops().pop());
    assert!(!stop.is_raised());
    (scene, stop)
}

/// Workers and their clients go on, and nothing else, until there is something.
fn until_some<T>(scene: &Scene, find: impl Fn(&Scene) -> Option<T>) -> T {
    for _ in 0..PATIENCE {
        if let Some(found) = find(scene) {
            return found;
        }
        scene.world.step_a_worker();
        scene.world.step_a_half();
        let mut state = scene.world.lock();
        state.exchange_any();
        state.step_broker();
    }
    panic!("it never came about");
}

fn handles_what_comes(scene: &Scene) {
    put(scene, PLAIN, 0);
    scene.until_committed();
    scene.check();
}

/// The group has nobody any more.
fn end_sessions(scene: &Scene) {
    let state = &mut *scene.world.lock();
    let members: Vec<String> = state.broker.group.members().map(str::to_owned).collect();
    members.iter().for_each(|id| state.broker.group.remove(id, &mut state.random));
}

#[test]
fn a_restore_outlasts_another_revision_and_a_membership_that_gives_its_partition_back() {
    let (scene, stop) = restoring();
    scene.world.lock().deploy();
    scene.world.swap(0);
    (0..20).for_each(|_| scene.world.step_a_worker());
    assert!(!stop.is_raised(), "the next revision goes on with what it reads");
    let restores = scene.world.stops().len();
    end_sessions(&scene);
    until_some(&scene, |scene| (scene.world.stops().len() > restores).then_some(()));
    assert!(!stop.is_raised(), "and so does the next membership");
    scene.until_running(0);
    handles_what_comes(&scene);
}

#[test]
fn a_restore_ends_when_its_partition_stays_away() {
    let (scene, stop) = restoring();
    end_sessions(&scene);
    until_some(&scene, |scene| {
        scene.world.lock().broker.now_ms += 5_000;
        stop.is_raised().then_some(())
    });
    scene.until_running(0);
    handles_what_comes(&scene);
}

#[test]
fn a_restore_ends_with_its_worker() {
    let (scene, stop) = restoring();
    scene.world.stop(0, true);
    assert!(stop.is_raised());
    scene.world.start(1);
    handles_what_comes(&scene);
}

//! The three interleavings that a reading of the protocol finds first. Each fails without its
//! defence: `make mutants` runs it with the bug that takes the defence away.

use std::sync::Arc;

use super::broker::{Call, Place, Request, Row};
use super::case::Case;
use super::check::check;
use super::handler::Kind;
use super::world::World;
use crate::ports::CommittedOffset;
use crate::record::{InputPartition, Offset};
use crate::store::{BudgetConfig, StoreBudget};
use crate::telemetry::TaskState;

const INPUT: InputPartition = InputPartition { input: 0, partition: 0 };
/// Turns that a condition may take to come about.
const PATIENCE_TURNS: usize = 20_000;

/// Two nodes that are down, one partition, and nothing that breaks by itself.
pub(super) struct Scene {
    pub world: Arc<World>,
    _root: tempfile::TempDir,
}

impl Scene {
    pub fn new(kind: Kind) -> Scene {
        Scene::with(kind, |_| {})
    }

    pub fn with(kind: Kind, change: impl FnOnce(&mut Case)) -> Scene {
        let root = super::directory();
        let budget = StoreBudget::in_memory(BudgetConfig::default()).unwrap();
        let (mut case, random) = Case::quiet(kind);
        change(&mut case);
        let world = World::new((case, random), budget, root.path().to_owned());
        Scene { world, _root: root }
    }

    fn produce(&self, records: usize) {
        let mut state = self.world.lock();
        (0..records).for_each(|_| state.produce(&self.world.case, 0));
    }

    pub fn until(&self, what: &str, condition: impl Fn(&Arc<World>) -> bool) {
        for _ in 0..PATIENCE_TURNS {
            if condition(&self.world) {
                return;
            }
            self.world.turn();
        }
        panic!("violation: it never came about that {what}");
    }

    pub fn until_running(&self, node: usize) {
        self.until("the node runs the task", |world| {
            let task = world.process(node).and_then(|process| process.board.task(0));
            task.is_some_and(|task| task.state == TaskState::Running)
        });
    }

    /// The commit is requested, and none of its steps is done.
    pub fn step_workers_until_a_commit_is_ready(&self) {
        for _ in 0..PATIENCE_TURNS {
            if self.world.is_committing() {
                return;
            }
            self.world.step_a_worker();
            self.world.lock().step_broker();
        }
        panic!("the worker does not commit");
    }

    pub fn until_committed(&self) {
        self.until("everything is committed", |world| is_committed(world));
    }

    pub fn until_halted(&self, node: usize) -> String {
        let task = |world: &World| world.process(node).and_then(|process| process.board.task(0));
        self.until("the task halts", |world| task(world).is_some_and(|task| task.state == TaskState::Halted));
        task(&self.world).map(|task| task.reason).unwrap_or_default()
    }

    fn emitted(&self) -> usize {
        self.world.lock().broker.outputs.iter().map(|log| log.committed().count()).sum()
    }

    /// What an operator's tool does, while no node runs.
    fn set_offset(&self, committed: Option<CommittedOffset>) -> Option<CommittedOffset> {
        let mut state = self.world.lock();
        let before = state.broker.group.committed(INPUT).cloned();
        state.broker.group.set(INPUT, committed);
        before
    }

    pub fn check(&self) {
        check(&self.world).unwrap_or_else(|violation| panic!("violation: {violation}"));
    }
}

/// Where the one partition continues, by the group's offset.
pub(super) fn committed(world: &World) -> Option<Offset> {
    world.lock().broker.group.committed(INPUT).map(|committed| committed.offset)
}

/// The one partition, to its end.
pub(super) fn is_committed(world: &World) -> bool {
    let committed = committed(world);
    let state = world.lock();
    committed == Some(state.input_end(0)) && state.broker.is_at_rest()
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.world.end();
    }
}

/// A commit of an owner that died is still open in the changelog, so the last stable offset stays
/// below what the next owner commits, when the task moves again.
#[test]
fn an_open_transaction_of_a_dead_owner_hides_no_later_commit_from_a_restore() {
    let scene = Scene::new(Kind::Chain);
    scene.produce(5);
    scene.world.start(1);
    scene.until_committed();
    {
        let broker = &mut scene.world.lock().broker;
        let from = broker.init("dead owner").unwrap();
        let row = Row { key: b"never".to_vec(), value: Some(b"committed".to_vec()), timestamp_ms: 0 };
        let place = Place::Changelog(0);
        for call in [Call::Add(vec![place]), Call::Produce(place, vec![row])] {
            broker.handle(&Request { from: from.clone(), call }).unwrap();
        }
    }
    scene.produce(5);
    scene.until("the next owner has committed above it", |world| {
        let state = world.lock();
        let committed = state.broker.group.committed(INPUT).map(|committed| committed.offset);
        committed == Some(state.input_end(0)) && state.broker.group.is_stable(INPUT)
    });
    {
        let log = &scene.world.lock().broker.changelogs[0];
        assert!(log.stable() < log.end(), "the transaction is still open");
    }
    scene.world.kill(1);
    scene.world.wipe(1);
    scene.world.start(0);
    scene.check();
}

/// Its work was taken, not committed; meanwhile another owner has done it. When the zombie goes on
/// there is nothing new to read, so nothing tells it but the group.
fn a_zombie_with_a_finished_commit(is_frozen: bool) {
    let scene = Scene::new(Kind::Chain);
    scene.world.start(0);
    scene.until_running(0);
    scene.produce(3);
    let paused = scene.world.process(0).unwrap();
    scene.step_workers_until_a_commit_is_ready();
    paused.pause(u64::MAX, is_frozen);
    {
        // Its session ends.
        let state = &mut *scene.world.lock();
        let members: Vec<String> = state.broker.group.members().map(str::to_owned).collect();
        members.iter().for_each(|id| state.broker.group.remove(id, &mut state.random));
    }
    scene.world.start(1);
    scene.until_committed();
    paused.pause(0, false);
    // Its commit goes on before its worker has heard anything.
    while scene.world.is_committing() {
        scene.world.step_a_half();
    }
    scene.check();
}

#[test]
fn a_zombie_that_resumes_with_a_finished_commit_and_no_new_input_is_fenced() {
    a_zombie_with_a_finished_commit(true);
}

/// Its client has joined again by itself, so the membership that it would answer now is valid.
#[test]
fn a_zombie_whose_client_is_a_member_again_is_fenced_all_the_same() {
    a_zombie_with_a_finished_commit(false);
}

/// The group's offset is gone (expired, deleted) or was moved by an operator's tool.
#[test]
fn a_missing_or_reset_offset_halts_a_task_with_state_and_counts_nothing_again() {
    let scene = Scene::new(Kind::Chain);
    scene.produce(6);
    scene.world.start(0);
    scene.until_committed();
    let emitted = scene.emitted();
    let behind = CommittedOffset { offset: Offset(2), metadata: String::new() };
    for (offset, reason) in [(None, "has no offset"), (Some(behind), "is behind the position record")] {
        scene.world.stop(0, true);
        let before = scene.set_offset(offset);
        scene.world.start(0);
        let halted = scene.until_halted(0);
        assert!(halted.contains(reason), "{halted}");
        assert_eq!(scene.emitted(), emitted, "violation: something was counted again");
        scene.world.stop(0, true);
        scene.set_offset(before);
    }
    scene.check();
}

/// Without state the group's offset is all there is: a missing one halts, a reset one is followed.
#[test]
fn a_task_without_state_halts_at_a_missing_offset_and_follows_a_reset_one() {
    let scene = Scene::new(Kind::Copy);
    scene.produce(6);
    scene.world.start(0);
    scene.until_committed();
    let emitted = scene.emitted();
    scene.world.stop(0, true);
    let before = scene.set_offset(None);
    scene.world.start(0);
    let halted = scene.until_halted(0);
    assert!(halted.contains("has no offset"), "{halted}");
    assert_eq!(scene.emitted(), emitted, "violation: something was copied again");
    scene.world.stop(0, true);
    let metadata = before.map(|before| before.metadata).unwrap_or_default();
    scene.set_offset(Some(CommittedOffset { offset: Offset(0), metadata }));
    scene.world.start(0);
    scene.until_committed();
    assert_eq!(scene.emitted(), 2 * emitted, "violation: the reset was not followed");
}

//! What breaks, and how the world heals.

use std::sync::Arc;

use tidemill_proto::v1::ParkedFilter;

use super::handler::Kind;
use super::letters;
use super::world::{DEPLOYMENT, World};
use crate::node::unpark::UnparkRequest;
use crate::task::unpark::Unpark;

impl World {
    /// New input, an operator's hand, or one more fault.
    pub fn disturb(self: &Arc<World>) {
        self.produce_some();
        self.restart_a_node();
        self.adopt_a_revision();
        self.edit_something();
        self.redrive_something();
        self.release_something();
        let mut state = self.lock();
        if state.calm {
            // Sessions of members that nobody stands for end, and so does a round that waits for one.
            let orphans = state.orphans();
            let state = &mut *state;
            for id in orphans {
                state.broker.group.remove(&id, &mut state.random);
            }
            if state.random.one_in(10) {
                state.broker.group.end_round(&mut state.random);
            }
            if state.random.one_in(30) {
                state.broker.group.round_for_strays();
            }
            return;
        }
        if state.unlucky(|rates| rates.missing) {
            let lies = state.random.within(0..=5) as u32;
            let lies = lies.min(state.missing_left);
            state.missing += lies;
            state.missing_left -= lies;
        }
        if state.unlucky(|rates| rates.deploy) {
            state.deploy();
        }
        if state.unlucky(|rates| rates.shake) {
            state.broker.group.shake();
        }
        if state.unlucky(|rates| rates.expire) {
            let members: Vec<String> = state.broker.group.members().map(str::to_owned).collect();
            let index = state.random.below(members.len());
            let state = &mut *state;
            if let Some(id) = members.get(index) {
                state.broker.group.remove(id, &mut state.random);
            }
        }
        if state.broker.group.is_preparing() && state.random.one_in(10) {
            let state = &mut *state;
            state.broker.group.end_round(&mut state.random);
        }
        if state.unlucky(|rates| rates.compact) {
            let partition = state.random.below(self.case.partitions as usize);
            let end = state.broker.changelogs[partition].end();
            let to = crate::record::Offset(state.random.below(end.0 as usize + 1) as u64);
            state.broker.changelogs[partition].compact(to);
        }
        let node = state.random.below(self.case.nodes);
        let (kill, restart, pause, flush) = (
            state.unlucky(|rates| rates.kill),
            state.unlucky(|rates| rates.restart),
            state.unlucky(|rates| rates.pause),
            state.unlucky(|rates| rates.flush),
        );
        let (pause_turns, leave) = (state.random.within(20..=300) as u64, state.random.one_in(2));
        let frozen = state.random.one_in(2);
        let until = state.turns + pause_turns;
        drop(state);
        if let Some(process) = self.process(node).filter(|_| pause) {
            process.pause(until, frozen);
        }
        if flush {
            self.flush(node);
        }
        if kill {
            self.lock().note(|| format!("kill node {node}"));
            self.kill(node);
        } else if restart && self.is_idle(node) {
            self.lock().note(|| format!("stop node {node}, leave: {leave}"));
            self.stop(node, leave);
        }
    }

    fn produce_some(&self) {
        let mut state = self.lock();
        for partition in 0..self.case.partitions {
            if state.has_more(&self.case, partition) && state.random.one_in(2) {
                state.produce(&self.case, partition);
            }
        }
    }

    fn restart_a_node(self: &Arc<World>) {
        let (node, now) = {
            let mut state = self.lock();
            (state.random.below(self.case.nodes), state.calm || state.unlucky(|rates| rates.revive))
        };
        if now && self.is_down(node) {
            if self.lock().unlucky(|rates| rates.wipe) {
                self.wipe(node);
            }
            self.start(node);
        }
    }

    /// Whoever edits asks the owner, or a node that was it a moment ago.
    fn edit_something(&self) {
        let mut state = self.lock();
        if self.case.kind != Kind::Chain || !state.unlucky(|rates| rates.edit) {
            return;
        }
        let node = state.random.below(self.case.nodes);
        let partition = state.random.below(self.case.partitions as usize) as i32;
        if let Some(process) = self.process(node) {
            state.note(|| format!("edit partition {partition} on node {node}"));
            state.edits.send(&process, partition);
        }
    }

    /// A release changes when a parked record is tried, and nothing else.
    fn release_something(&self) {
        let mut state = self.lock();
        if !self.case.parks || !state.unlucky(|rates| rates.redrive) {
            return;
        }
        let node = state.random.below(self.case.nodes);
        let partition = state.random.below(self.case.partitions as usize) as i32;
        if let Some(process) = self.process(node) {
            state.note(|| format!("release what is parked of partition {partition} on node {node}"));
            let (reply, _) = crossbeam_channel::bounded(1);
            let what = Unpark::Release { filter: ParkedFilter::default() };
            process.board.unpark(UnparkRequest { partition, what, reply });
        }
    }

    fn redrive_something(&self) {
        let mut state = self.lock();
        if !self.case.parks || !state.unlucky(|rates| rates.redrive) {
            return;
        }
        if state.random.one_in(6) {
            letters::cancel(&mut state);
        } else {
            let discard = state.random.one_in(6);
            state.note(|| format!("redrive, discard: {discard}"));
            letters::order(&mut state, discard);
        }
    }

    /// A node that runs an older revision goes on in the new one, or stops and starts again, as it does when
    /// the workers are others.
    fn adopt_a_revision(self: &Arc<World>) {
        let (node, revision, now) = {
            let mut state = self.lock();
            let node = state.random.below(self.case.nodes);
            (node, state.registry.revision(DEPLOYMENT), state.calm || state.random.one_in(4))
        };
        let is_old = self.process(node).is_some_and(|process| process.config().revision != revision);
        if !now || !is_old {
            return;
        }
        if self.lock().random.below(4) > 0 {
            self.lock().note(|| format!("swap node {node} to {revision}"));
            self.swap(node);
        } else if self.is_idle(node) {
            self.stop(node, false);
            self.start(node);
        }
    }

    /// RocksDB writes a memtable to disk whenever it likes.
    fn flush(&self, node: usize) {
        let Some(process) = self.process(node) else { return };
        for task in process.board.tasks().into_values() {
            if let Some(reader) = task.reader {
                // Closed meanwhile: there is nothing to flush.
                let _ = reader.flush();
            }
        }
    }

    /// All input arrives, every node runs, and nothing breaks any more.
    pub fn heal(self: &Arc<World>) {
        let mut state = self.lock();
        state.calm = true;
        state.missing = 0;
        for partition in 0..self.case.partitions {
            while state.has_more(&self.case, partition) {
                state.produce(&self.case, partition);
            }
        }
    }
}

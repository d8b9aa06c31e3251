//! A new revision in place: other instances, the same members, the same partitions.
//!
//! ```text
//!   commit everything -> other producer, if it writes elsewhere -> each task adopts -> commit that -> go on
//!         |                                                             |
//!   not possible now: the old revision goes on, tried again       cannot, or is not running: recovers
//!                                                                 under the new revision, store kept open
//! ```
//!
//! Nothing is taken from the consumer meanwhile, so no record is handed over between the last commit of
//! the old revision and the first of the new one. If that one is refused, or its outcome is unknown, the
//! inputs of the tasks stop until one has succeeded.

use std::sync::Arc;

use super::{Consumer, ConsumerFactory, Pace, SlotState, Standing, Worker, running};
use crate::config::deployment::CommitSpec;
use crate::node::commit::SinkFactory;
use crate::node::redrive::Letters;
use crate::node::restore::Restorer;
use crate::node::retries::Retries;
use crate::node::trial::Trial;
use crate::ports::{Handler, Relay};
use crate::task::TaskConfig;

/// Makes a fresh instance for a partition, or says why there can be none.
pub type HandlerFactory = Box<dyn FnMut(i32) -> Result<Box<dyn Handler>, String> + Send>;

/// What a worker needs to go on in another revision of its deployment: one with the same inputs.
pub struct Swap<C> {
    pub revision: u64,
    pub commit: CommitSpec,
    /// Of the revision's version.
    pub trial: Arc<Trial>,
    /// Which of the halted tasks are tried again.
    pub retries: Retries,
    pub config: Arc<TaskConfig>,
    pub handlers: HandlerFactory,
    /// For when the consumer must be made anew.
    pub consumers: ConsumerFactory<C>,
    pub restorer: Box<dyn Restorer>,
    pub relay: Box<dyn Relay>,
    pub letters: Box<dyn Letters>,
    /// If it writes to other topics.
    pub sinks: Option<SinkFactory>,
}

impl<C: Consumer> Worker<C> {
    /// Adopts the revision that waits, if everything of the present one can be committed now.
    pub(super) fn swap_if_clean(&mut self) {
        if self.swap.is_none() {
            return;
        }
        self.commit_now();
        let is_dirty = running(&mut self.slots).any(|(_, task)| !task.is_clean());
        if self.refused.is_some() || self.committer.is_busy() || is_dirty {
            return;
        }
        let Some(swap) = self.swap.take() else { return };
        let Swap {
            revision,
            commit,
            trial,
            retries,
            config,
            handlers,
            consumers,
            restorer,
            relay,
            letters,
            sinks,
        } = *swap;
        tracing::info!(deployment = %self.deployment, worker = self.index, revision, "adopting a revision");
        let former = std::mem::replace(&mut self.revision, revision);
        self.trial = trial;
        self.pace = Pace::new(commit, self.clock.monotonic());
        self.consumers = consumers;
        self.restorer = restorer;
        self.desk.replace(relay);
        self.redrives.replace(letters);
        self.write_elsewhere(sinks);
        self.adopt(&config, handlers, |partition| retries.include(partition, former, revision));
        self.commit_adoption();
    }

    /// Replaces the producer. Nothing of the old one is under way.
    fn write_elsewhere(&mut self, sinks: Option<SinkFactory>) {
        let Some(sinks) = sinks else { return };
        self.committer.replace(sinks, self.clock.monotonic());
        self.producer = Standing::Pending;
        if let Some(done) = self.committer.wait() {
            self.serve_outcome(done);
        }
    }

    fn adopt(
        &mut self,
        config: &Arc<TaskConfig>,
        mut handlers: HandlerFactory,
        is_retried: impl Fn(i32) -> bool,
    ) {
        let mut recover = Vec::new();
        for (&partition, slot) in &mut self.slots {
            match &mut slot.state {
                SlotState::Running(task) => {
                    let adopted = task.can_adopt(config)
                        && handlers(partition)
                            .is_ok_and(|handler| task.adopt(Arc::clone(config), handler).is_ok());
                    if !adopted {
                        recover.push(partition);
                    }
                }
                // Of the old revision: its verdict comes too late, its store in time.
                SlotState::Restoring { .. } => slot.state = SlotState::Waiting { store: None },
                // What halted it may be what the new revision mends.
                SlotState::Halted { store } if is_retried(partition) => {
                    slot.state = SlotState::Waiting { store: store.take() };
                }
                SlotState::Halted { .. } | SlotState::Waiting { .. } => {}
            }
        }
        for partition in recover {
            self.park(partition, None);
        }
    }

    fn commit_adoption(&mut self) {
        if self.producer == Standing::Ready && !self.committer.is_busy() {
            self.start_commit();
            if let Some(done) = self.committer.wait() {
                self.serve_outcome(done);
            }
        }
        let waiting: Vec<(i32, Vec<u16>)> = self
            .slots
            .iter()
            .filter(|(_, slot)| matches!(&slot.state, SlotState::Running(task) if task.is_adopting()))
            .map(|(&partition, slot)| (partition, slot.held.iter().copied().collect()))
            .collect();
        for (partition, inputs) in waiting {
            self.stop_inputs(partition, &inputs);
        }
    }

    /// The revision of a task is committed: its inputs flow, unless they never stopped.
    pub(super) fn begin_to_flow(&mut self, partition: i32) {
        let Some(slot) = self.slots.get(&partition) else { return };
        if let SlotState::Running(task) = &slot.state
            && !slot.flowing
        {
            let positions = super::positions(task);
            self.start_inputs(partition, &positions);
        }
    }
}

//! The registry's home: `_<fleet>.control`, read by one thread, written by whoever proposes.
//!
//! The topic has one partition, is never compacted and is kept for ever. An entry counts when it
//! has been read back: its writer waits for that, so that an unknown produce outcome is resolved by
//! finding (or not finding) one's own proposal in the log.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message;
use tidemill_proto::v1::{ControlEntry, control_entry::Entry};

use super::registry::{Outcome, Registry};
use crate::config::document::SpecDefaults;
use crate::config::failures::TIMEOUT_ERROR;
use crate::kafka::topic_log::{AppendError, TopicLog};
use crate::ports::{LogRecord, SourceError};
use crate::record::Offset;
use crate::telemetry::Telemetry;

/// What has become of a proposal that has not come back after this long is reported as unknown.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the reader may be behind what somebody waits for.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// One read of the log waits this long for news.
const READ_WAIT: Duration = Duration::from_millis(200);
/// Outcomes kept for their proposers.
const OUTCOMES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// It is not in the log and never will be.
    #[error("the fleet's control topic did not take the change: {0}")]
    Unavailable(String),
    /// It may be in the log, or come there yet.
    #[error(
        "it is not known whether the fleet's control topic took the change ({0}): see what `tidemill deployments` and \
         `tidemill history NAME` say before it is asked for again"
    )]
    Unknown(String),
}

struct State {
    registry: Arc<Registry>,
    outcomes: HashMap<String, Outcome>,
    /// Proposal ids in the order they came, to forget the oldest.
    order: VecDeque<String>,
    /// Why reading fails at the moment.
    trouble: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
    telemetry: Arc<Telemetry>,
}

impl Shared {
    fn new(defaults: SpecDefaults, telemetry: Arc<Telemetry>) -> Shared {
        Shared {
            state: Mutex::new(State {
                registry: Arc::new(Registry::new(defaults)),
                outcomes: HashMap::new(),
                order: VecDeque::new(),
                trouble: None,
            }),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            telemetry,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long until a proposal is read back. `doubt`: why it may not have been written.
    fn outcome(
        &self,
        proposal_id: &str,
        doubt: Option<String>,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(outcome) = state.outcomes.get(proposal_id) {
                return Ok(outcome.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = doubt.or_else(|| state.trouble.clone());
                let reason = reason.unwrap_or_else(|| "it was written but not read back".into());
                return Err(ProposeError::Unknown(reason));
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A handle on the registry: a view of it, and a way to propose. Cheap to clone.
#[derive(Clone)]
pub struct ControlLog {
    node: Arc<str>,
    shared: Arc<Shared>,
    log: Arc<TopicLog>,
}

/// The reading thread; ends when this is dropped.
pub struct ControlReader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Reads the log to its end, then keeps reading on a thread.
pub fn open(
    node: &str,
    log: TopicLog,
    defaults: SpecDefaults,
    telemetry: Arc<Telemetry>,
) -> Result<(ControlLog, ControlReader), SourceError> {
    let shared = Arc::new(Shared::new(defaults, telemetry));
    let mut tail = log.tail(Offset(0))?;
    let mut records = Vec::new();
    tail.read_to_end(&mut |record| records.push(record))?;
    is_whole(log.topic(), records.len(), tail.position())?;
    apply(records, &shared);
    let for_thread = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("control-log".into())
        .spawn(move || {
            while !for_thread.stopping.load(Ordering::Relaxed) {
                let read = read(&for_thread, |apply| tail.next(READ_WAIT, apply));
                let trouble = read.err().map(|error| error.to_string());
                let mut state = for_thread.lock();
                if trouble != state.trouble {
                    if let Some(reason) = &trouble {
                        tracing::warn!(reason, "cannot read the control topic");
                    }
                    state.trouble = trouble;
                }
            }
        })
        .map_err(|error| SourceError::Unavailable(format!("no thread for the control topic: {error}")))?;
    let log = ControlLog { node: node.into(), shared: Arc::clone(&shared), log: Arc::new(log) };
    Ok((log, ControlReader { shared, thread: Some(thread) }))
}

/// Refuses a log of which a part is gone. Whoever folds the rest takes names that are deployed for free ones, and accepts
/// what every other node refuses. Nothing in the log is a transaction, so that each offset below its end is an entry's.
fn is_whole(topic: &str, entries: usize, next: Offset) -> Result<(), SourceError> {
    let gone = next.0.saturating_sub(entries as u64);
    if gone == 0 {
        return Ok(());
    }
    Err(SourceError::Refused(format!(
        "{gone} of the {next} entries of topic {topic} are gone (by retention, compaction or kafka-delete-records), and without \
         them it is not known what is deployed; nodes that are up know it still: restore the topic from a copy that has all \
         of them, at the same offsets, or begin anew with another `fleet` and `group`"
    )))
}

/// Refuses a log that ends before what was read of it. What is written there from now on lies below the reader, which
/// would hear of none of it and pass for one that has heard everything.
fn reaches(end: Offset, read: Offset) -> Result<(), SourceError> {
    if end >= read {
        return Ok(());
    }
    Err(SourceError::Unavailable(format!(
        "the control topic ends at {end}, and this node has read it to {read}: its leader does not know its end yet, or what lay \
         there is lost; if it stays so, start this node again"
    )))
}

/// Takes in what comes, also of a read that fails after that: the next one goes on behind it.
fn read(
    shared: &Shared,
    next: impl FnOnce(&mut dyn FnMut(LogRecord)) -> Result<usize, SourceError>,
) -> Result<(), SourceError> {
    let mut records = Vec::new();
    let outcome = next(&mut |record| records.push(record));
    apply(records, shared);
    outcome.map(drop)
}

fn apply(records: Vec<LogRecord>, shared: &Shared) {
    if records.is_empty() {
        return;
    }
    let mut state = shared.lock();
    let mut registry = Registry::clone(&state.registry);
    for record in records {
        let entry = record.value.as_deref().map(ControlEntry::decode);
        let Some(Ok(entry)) = entry else {
            tracing::warn!(
                offset = record.offset.0,
                "an entry of the control topic cannot be decoded; passed over"
            );
            shared.telemetry.node.registry_errors.add(1);
            registry.skip(record.offset);
            continue;
        };
        // Of a kind that only a newer node knows.
        shared.telemetry.node.registry_errors.add(u64::from(entry.entry.is_none()));
        let outcome = registry.apply(record.offset, record.timestamp_ms, &entry);
        state.outcomes.insert(entry.proposal_id.clone(), outcome);
        state.order.push_back(entry.proposal_id);
        if state.order.len() > OUTCOMES_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.outcomes.remove(&oldest);
        }
    }
    state.registry = Arc::new(registry);
    drop(state);
    shared.changed.notify_all();
}

impl ControlLog {
    /// The registry as far as it has been read.
    pub fn view(&self) -> Arc<Registry> {
        Arc::clone(&self.shared.lock().registry)
    }

    /// The registry with everything that was in the log when this was called.
    pub fn catch_up(&self) -> Result<Arc<Registry>, SourceError> {
        let read = self.view().next;
        let end = self.log.end()?;
        reaches(end, read)?;
        let view = match end.0.checked_sub(1) {
            Some(last) => self.wait_beyond(Offset(last), CATCH_UP_TIMEOUT),
            None => self.view(),
        };
        match view.next >= end {
            true => Ok(view),
            false => Err(SourceError::Unavailable(format!(
                "{TIMEOUT_ERROR}: the control topic has been read to {} of {end} only",
                view.next
            ))),
        }
    }

    /// Waits until the view is beyond `seen` or `timeout` has passed.
    pub fn wait_beyond(&self, seen: Offset, timeout: Duration) -> Arc<Registry> {
        let state = self.shared.lock();
        let waited =
            self.shared.changed.wait_timeout_while(state, timeout, |state| state.registry.next <= seen);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.registry)
    }

    /// Writes a proposal and waits for what the log decides about it.
    pub fn propose(&self, entry: Entry) -> Result<Outcome, ProposeError> {
        let proposal_id = uuid::Uuid::new_v4().to_string();
        let message = ControlEntry {
            proposal_id: proposal_id.clone(),
            node: self.node.to_string(),
            entry: Some(entry),
        };
        let doubt = match self.log.append(None, Some(&message.encode_to_vec())) {
            Err(AppendError::Refused(reason)) => return Err(ProposeError::Unavailable(reason)),
            // Reading the log tells whether it is there.
            Err(AppendError::Unknown(reason)) => Some(reason),
            Ok(_) => None,
        };
        self.shared.outcome(&proposal_id, doubt, PROPOSAL_TIMEOUT)
    }
}

impl Drop for ControlReader {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control-log thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::ControlError;

    fn shared() -> Shared {
        Shared::new(SpecDefaults::default(), Telemetry::new())
    }

    #[test]
    fn what_came_before_a_read_failed_is_in_the_registry() {
        let shared = shared();
        let entry = ControlEntry { proposal_id: "a".into(), ..ControlEntry::default() };
        let record = LogRecord {
            offset: Offset(0),
            timestamp_ms: 1,
            key: Vec::new(),
            value: Some(entry.encode_to_vec()),
            stamp: None,
        };
        let failed = read(&shared, |apply| {
            apply(record);
            Err(SourceError::Refused("not authorised any more".into()))
        });
        assert!(failed.is_err());
        assert_eq!(shared.lock().registry.next, Offset(1));
        assert!(shared.outcome("a", None, Duration::ZERO).is_ok(), "its proposer is told");
    }

    #[test]
    fn a_proposal_that_is_not_read_back_may_have_been_accepted_all_the_same() {
        for doubt in [None, Some("no acknowledgement in time".to_owned())] {
            let error = shared().outcome("a", doubt, Duration::ZERO).expect_err("nothing was read");
            let error = ControlError::from(error);
            assert!(matches!(error, ControlError::Unknown(_)), "{error:?}");
        }
    }

    #[test]
    fn a_log_of_which_a_part_is_gone_is_refused_with_how_much() {
        assert!(is_whole("_f.control", 0, Offset(0)).is_ok());
        assert!(is_whole("_f.control", 7, Offset(7)).is_ok());
        let said = is_whole("_f.control", 4, Offset(7)).expect_err("three are gone").to_string();
        assert!(said.starts_with("3 of the 7 entries of topic _f.control are gone"), "{said}");
        assert!(is_whole("_f.control", 0, Offset(7)).is_err(), "all are gone");
    }

    #[test]
    fn a_log_that_has_lost_its_end_is_not_taken_for_one_that_was_read_to_its_end() {
        assert!(reaches(Offset(7), Offset(7)).is_ok() && reaches(Offset(9), Offset(7)).is_ok());
        let said = reaches(Offset(5), Offset(7)).expect_err("two are lost").to_string();
        assert!(said.contains("ends at 5") && said.contains("start this node again"), "{said}");
    }
}

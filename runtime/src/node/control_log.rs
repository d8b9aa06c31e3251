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
use crate::kafka::topic_log::{AppendError, Tail, TopicLog};
use crate::ports::{LogRecord, SourceError};
use crate::record::Offset;
use crate::telemetry::Telemetry;

/// A proposal that has not come back after this long is reported as unavailable.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the reader may be behind what somebody waits for.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// One read of the log waits this long for news.
const READ_WAIT: Duration = Duration::from_millis(200);
/// Outcomes kept for their proposers.
const OUTCOMES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    #[error("the fleet's control topic did not take the change: {0}")]
    Unavailable(String),
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            registry: Arc::new(Registry::new(defaults)),
            outcomes: HashMap::new(),
            order: VecDeque::new(),
            trouble: None,
        }),
        changed: Condvar::new(),
        stopping: AtomicBool::new(false),
        telemetry,
    });
    let mut tail = log.tail(Offset(0))?;
    let mut records = Vec::new();
    tail.read_to_end(&mut |record| records.push(record))?;
    apply(records, &shared);
    let for_thread = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("control-log".into())
        .spawn(move || {
            while !for_thread.stopping.load(Ordering::Relaxed) {
                let trouble = read(&mut tail, &for_thread).err().map(|error| error.to_string());
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

fn read(tail: &mut Tail, shared: &Shared) -> Result<(), SourceError> {
    let mut records = Vec::new();
    tail.next(READ_WAIT, &mut |record| records.push(record))?;
    apply(records, shared);
    Ok(())
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
        let end = self.log.end()?;
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
        let written = match self.log.append(None, Some(&message.encode_to_vec())) {
            Err(AppendError::Refused(reason)) => return Err(ProposeError::Unavailable(reason)),
            // Reading the log tells whether it is there.
            Err(AppendError::Unknown(reason)) => Err(reason),
            Ok(offset) => Ok(offset),
        };
        let deadline = Instant::now() + PROPOSAL_TIMEOUT;
        let mut state = self.shared.lock();
        loop {
            if let Some(outcome) = state.outcomes.get(&proposal_id) {
                return Ok(outcome.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = match &written {
                    Err(reason) => reason.clone(),
                    Ok(_) => {
                        state.trouble.clone().unwrap_or_else(|| "it was written but not read back".into())
                    }
                };
                return Err(ProposeError::Unavailable(reason));
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
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

//! The node's own heartbeats, and reading everybody's; one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message;
use tidemill_proto::v1::{Heartbeat, HeartbeatTask};

use super::deployment::wall_ms;
use super::fleet::HEARTBEAT;
use super::handle::task_state;
use super::runtime::NodeRuntime;
use crate::kafka::topic_log::TopicLog;
use crate::ports::SourceError;
use crate::record::Offset;

const READ_WAIT: Duration = Duration::from_millis(200);

/// Ends the thread when stopped; the last thing it writes says that the node has gone.
pub struct Heart {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    pub fn start(node: Arc<NodeRuntime>, address: String, log: TopicLog) -> Result<Heart, SourceError> {
        let mut tail = log.tail(Offset(0))?;
        // What is behind it comes while this node listens.
        let found = log.end()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let mut last: Option<(Instant, Heartbeat)> = None;
            while !flag.load(Ordering::Relaxed) {
                let beat = beat(&node, &address);
                // What changed is told at once: others route queries by it.
                if last.as_ref().is_none_or(|(at, told)| at.elapsed() >= HEARTBEAT || *told != beat) {
                    let sent = Instant::now();
                    let written = log.append(Some(node.id.as_bytes()), Some(&beat.encode_to_vec()));
                    last = Some((sent, beat));
                    node.kafka_answers.store(written.is_ok(), Ordering::Relaxed);
                    match written {
                        Ok(_) => node.telemetry.node.broker_latency.observe(sent.elapsed()),
                        Err(error) => tracing::warn!(%error, "cannot write a heartbeat"),
                    }
                }
                let read = tail.next(READ_WAIT, &mut |record| {
                    let (key, value) = (&record.key, record.value.as_deref());
                    match record.offset < found {
                        true => node.fleet.found(key, value, record.timestamp_ms, wall_ms()),
                        false => node.fleet.heard(key, value),
                    }
                });
                if let Err(error) = read {
                    tracing::debug!(%error, "cannot read heartbeats");
                }
            }
            if let Err(error) = log.append(Some(node.id.as_bytes()), None) {
                tracing::warn!(%error, "cannot say goodbye to the fleet");
            }
        });
        let thread =
            thread.map_err(|error| SourceError::Unavailable(format!("no thread for heartbeats: {error}")))?;
        Ok(Heart { stopping, thread: Some(thread) })
    }

    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat thread panicked");
        }
    }
}

fn beat(node: &NodeRuntime, address: &str) -> Heartbeat {
    let drain = node.drain.state().into();
    let tasks = node
        .boards()
        .into_iter()
        .flat_map(|(name, board)| {
            board.tasks().into_iter().map(move |(partition, task)| HeartbeatTask {
                deployment: name.clone(),
                partition,
                worker: task.worker,
                state: task_state(task.state).into(),
                revision: task.revision,
                first: task.first.iter().flatten().map(|first| first.0).collect(),
            })
        })
        .collect();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Heartbeat { address: address.to_owned(), version, tasks, drain }
}

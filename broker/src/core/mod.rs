//! The broker's state and what requests do to it. Synchronous: no socket, no thread, no clock.
//!
//! ```text
//!   connection --handle(request, call)--> Core --+--> Answer(response)        at once
//!   timer thread --tick(now)------------> Core   +--> Later, then take_replies()
//!                                                +--> Silent                  (acks = 0)
//! ```
//! One value behind one lock. A request never blocks in here: one that has to wait is parked and
//! answered by a later request or tick.

mod commits;
mod configs;
mod fetch;
mod group_admin;
mod groups;
mod list_offsets;
mod maintenance;
mod markers;
mod metadata;
mod produce;
mod recovery;
#[cfg(test)]
mod tests;
mod time;
mod topics;
mod transactions;
pub mod versions;

use std::collections::HashMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{RequestKind, ResponseKind};
use kafka_protocol::protocol::StrBytes;

use crate::config::Config;
use crate::group::{Group, ReplyTo};
use crate::journal::{Entry, Journal};
use crate::txn::Transaction;
use fetch::Waiting;
use markers::Remaining;
use time::{Timer, Timers};
use topics::Topics;

pub use time::Now;

/// Id of the only node.
const NODE_ID: i32 = 1;

/// What is known about a request besides its body.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Where a late answer goes.
    pub reply_to: ReplyTo,
    /// API version; the answer is in the same.
    pub version: i16,
    /// The client's name for itself.
    pub client_id: &'a str,
    /// Where it connects from.
    pub client_host: &'a str,
    /// When it came.
    pub now: Now,
}

/// What becomes of a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack of its connection")]
pub enum Outcome {
    /// Answer now.
    Answer(ResponseKind),
    /// The answer will be among [`Core::take_replies`].
    Later,
    /// The client expects no answer.
    Silent,
    /// The request is not served; close the connection.
    Refused,
}

/// How clients reach this broker.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Host that clients are told.
    pub host: String,
    /// Port that clients are told.
    pub port: u16,
    /// Id of the cluster that this broker is.
    pub cluster_id: String,
}

/// Everything the broker knows.
#[derive(Debug)]
pub struct Core {
    config: Config,
    identity: Identity,
    topics: Topics,
    groups: HashMap<String, Group>,
    transactions: HashMap<String, Transaction>,
    /// Markers still to be written, by transactional id.
    remaining: HashMap<String, Remaining>,
    next_producer_id: i64,
    /// Producer ids below this are in the journal: `next_producer_id <= reserved_producer_ids`.
    reserved_producer_ids: i64,
    /// Bytes of all logs, brought up to date by every background pass.
    memory_bytes: u64,
    journal: Option<Journal>,
    waiting: Waiting,
    timers: Timers,
    replies: Vec<(ReplyTo, ResponseKind)>,
}

impl Core {
    /// Handles one request.
    pub fn handle(&mut self, request: RequestKind, call: &Call<'_>) -> Outcome {
        use RequestKind as Q;
        use ResponseKind as A;
        let answer = match request {
            Q::Produce(request) => return self.produce(request, call),
            Q::Fetch(request) => return self.fetch(request, call),
            Q::JoinGroup(request) => return self.join_group(request, call),
            Q::SyncGroup(request) => return self.sync_group(request, call),
            Q::ApiVersions(request) => versions::answer(&request),
            Q::Metadata(request) => A::Metadata(self.metadata(request, call)),
            Q::DescribeCluster(_) => A::DescribeCluster(self.describe_cluster()),
            Q::FindCoordinator(request) => A::FindCoordinator(self.find_coordinator(request, call)),
            Q::CreateTopics(request) => A::CreateTopics(self.create_topics(request)),
            Q::DeleteTopics(request) => A::DeleteTopics(self.delete_topics(request)),
            Q::CreatePartitions(request) => A::CreatePartitions(self.create_partitions(request)),
            Q::DescribeConfigs(request) => A::DescribeConfigs(self.describe_configs(request)),
            Q::AlterConfigs(request) => A::AlterConfigs(self.alter_configs(request)),
            Q::IncrementalAlterConfigs(request) => {
                A::IncrementalAlterConfigs(self.incremental_alter_configs(request))
            }
            Q::DescribeLogDirs(request) => A::DescribeLogDirs(self.describe_log_dirs(request)),
            Q::ListOffsets(request) => A::ListOffsets(self.list_offsets(request)),
            Q::OffsetForLeaderEpoch(r) => A::OffsetForLeaderEpoch(self.offset_for_leader_epoch(r)),
            Q::DeleteRecords(request) => A::DeleteRecords(self.delete_records(request)),
            Q::Heartbeat(request) => A::Heartbeat(self.heartbeat(request, call)),
            Q::LeaveGroup(request) => A::LeaveGroup(self.leave_group(request, call)),
            Q::OffsetCommit(request) => A::OffsetCommit(self.offset_commit(request, call)),
            Q::OffsetFetch(request) => A::OffsetFetch(self.offset_fetch(request, call)),
            Q::OffsetDelete(request) => A::OffsetDelete(self.offset_delete(request)),
            Q::ListGroups(request) => A::ListGroups(self.list_groups(request)),
            Q::DescribeGroups(request) => A::DescribeGroups(self.describe_groups(request, call)),
            Q::DeleteGroups(request) => A::DeleteGroups(self.delete_groups(request)),
            Q::InitProducerId(request) => A::InitProducerId(self.init_producer_id(request, call)),
            Q::AddPartitionsToTxn(r) => A::AddPartitionsToTxn(self.add_partitions_to_txn(r, call)),
            Q::AddOffsetsToTxn(r) => A::AddOffsetsToTxn(self.add_offsets_to_txn(r, call)),
            Q::TxnOffsetCommit(r) => A::TxnOffsetCommit(self.txn_offset_commit(r, call)),
            Q::EndTxn(request) => A::EndTxn(self.end_txn(request, call)),
            Q::DescribeTransactions(r) => A::DescribeTransactions(self.describe_transactions(r)),
            Q::ListTransactions(r) => A::ListTransactions(self.list_transactions(r, call)),
            Q::DescribeProducers(r) => A::DescribeProducers(self.describe_producers(r)),
            _ => return Outcome::Refused,
        };
        Outcome::Answer(answer)
    }

    /// Does what has become due.
    pub fn tick(&mut self, now: Now) {
        while let Some(timer) = self.timers.take_due(now.mono) {
            match timer {
                Timer::Fetch(reply_to) => self.answer_fetch(reply_to),
                Timer::Group(group, timer) => self.on_group_timer(&group, timer, now),
                Timer::Markers(id) => self.write_markers(&id, now),
                Timer::AbortScan => self.abort_timed_out(now),
                Timer::Maintenance => self.maintain(now),
            }
        }
    }

    /// When [`Core::tick`] is next needed.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.next()
    }

    /// Answers to parked requests, to be delivered by the caller.
    pub fn take_replies(&mut self) -> Vec<(ReplyTo, ResponseKind)> {
        std::mem::take(&mut self.replies)
    }

    /// Forgets a client that is gone, so that nothing is prepared for it.
    pub fn disconnected(&mut self, reply_to: ReplyTo) {
        self.forget_fetch(reply_to);
    }

    /// Writes to the journal before the change is made in memory, so that nothing is ever
    /// answered that a restart would not know.
    fn record(&mut self, entry: &Entry) -> Result<(), ResponseError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        journal.append(entry).map_err(|error| {
            tracing::error!(%error, "cannot write the metadata journal");
            ResponseError::KafkaStorageError
        })
    }
}

/// Text for the wire.
fn text(value: impl Into<String>) -> StrBytes {
    StrBytes::from_string(value.into())
}

/// 0 or the code of the error.
fn code(result: &Result<(), ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, ResponseError::code)
}

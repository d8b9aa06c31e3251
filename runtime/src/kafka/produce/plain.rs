//! A commit without a transaction: records that are acknowledged, and behind them those that close it.
//!
//! A position record says that its commit is whole, so it is held back until nothing before it is in doubt, the emissions
//! of every task included. What was written of a commit that came to nothing stays in the log, and readers of the changelog
//! pass it over, because nothing closes it (docs/formats/topics.md).

use std::time::Duration;

use kafka_protocol::messages::InitProducerIdRequest;

use super::answers::{self, Reply, Trouble, describe};
use super::cluster::Cluster;
use super::partition::Identity;
use super::patience::{Deadline, Pauses};
use crate::kafka::sink;
use crate::kafka::wire::INIT_PRODUCER_ID_VERSION;
use crate::ports::ChangelogRows;

/// Between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// What is asked for, with the setting that makes the node ask.
const ID: &str = "a producer id (InitProducerId, by kafka.enable_idempotence)";

pub(super) struct Plain {
    /// As Kafka says it: 1 = a batch is in the leader's log, -1 = in those of all that are in sync.
    pub acks: i16,
    /// Batches have sequence numbers, so that one which is sent again is not written twice.
    is_idempotent: bool,
    /// Of the open commit, one row each.
    positions: Vec<ChangelogRows>,
}

impl Plain {
    pub fn new(acks: i16, is_idempotent: bool) -> Plain {
        Plain { acks, is_idempotent, positions: Vec::new() }
    }

    /// Another producer id, of which any broker may give one.
    pub fn renew(&self, cluster: &mut Cluster, until: Deadline) -> Result<Identity, Trouble> {
        if !self.is_idempotent {
            return Ok(Identity::NOBODY);
        }
        let request = InitProducerIdRequest::default().with_transactional_id(None);
        let mut pauses = Pauses::new(PAUSES);
        loop {
            let why = match cluster.ask(&request, INIT_PRODUCER_ID_VERSION, until) {
                Ok(response) => match answers::of_transaction(response.error_code) {
                    Reply::Done => return answers::identity(&response, false),
                    Reply::Refused(error) => {
                        return Err(Trouble::Refused(error, format!("{ID}: {}", describe(error.code()))));
                    }
                    // The last is said of groups alone.
                    Reply::Again | Reply::Elsewhere | Reply::Generation => describe(response.error_code),
                },
                Err(why) => why,
            };
            if !pauses.wait(until) {
                return Err(Trouble::Unknown(format!("{ID} was not given in time: {why}")));
            }
        }
    }

    /// Keeps the last of a task's rows, its position record. Answers how many go ahead of it.
    pub fn hold(&mut self, rows: &ChangelogRows) -> usize {
        let Some((ahead, position)) = sink::closing(rows) else { return 0 };
        self.positions.push(position);
        ahead
    }

    /// What was held back.
    pub fn take(&mut self) -> Vec<ChangelogRows> {
        std::mem::take(&mut self.positions)
    }
}

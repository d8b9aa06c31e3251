//! With a transaction or without: all in which the two forms of the producer differ beside what they send.

use std::time::Duration;

use kafka_protocol::messages::TransactionalId;

use super::REACH_WAIT;
use super::answers::Trouble;
use super::cluster::Cluster;
use super::partition::Identity;
use super::patience::Deadline;
use super::plain::Plain;
use super::settings::ACKS_ALL;
use super::transaction::Transaction;
use crate::ports::ChangelogRows;

/// A predecessor's transaction is being ended meanwhile, by a coordinator that is there, which can take its whole time-out.
const INIT_WAIT: Duration = Duration::from_secs(30);

pub(super) enum Form {
    Transaction(Box<Transaction>),
    Plain(Plain),
}

impl Form {
    /// What cannot be done if brokers do not let it begin.
    pub fn beginning(&self) -> String {
        match self {
            Form::Transaction(transaction) => {
                format!("cannot initialise `{}`", transaction.coordinator.id().as_str())
            }
            Form::Plain(_) => "cannot begin to write".to_owned(),
        }
    }

    /// Has whoever lets it begin in reach. Without a transaction that is any broker.
    pub fn reach(&mut self, cluster: &mut Cluster, until: Deadline) -> Result<(), Trouble> {
        match self {
            Form::Transaction(transaction) => transaction.coordinator.reach(cluster, until),
            Form::Plain(_) => Ok(()),
        }
    }

    /// How long they may take to let it begin.
    pub fn first_wait(&self, patience: Duration) -> Duration {
        match self {
            Form::Transaction(_) => INIT_WAIT.max(patience),
            Form::Plain(_) => REACH_WAIT,
        }
    }

    pub fn transactional_id(&self) -> Option<TransactionalId> {
        match self {
            Form::Transaction(transaction) => Some(transaction.coordinator.id().clone()),
            Form::Plain(_) => None,
        }
    }

    pub fn acks(&self) -> i16 {
        match self {
            Form::Transaction(_) => ACKS_ALL,
            Form::Plain(plain) => plain.acks,
        }
    }

    /// A commit begins, in which all before its end has that long if it is a transaction.
    pub fn begin(&mut self, until: Deadline) {
        match self {
            Form::Transaction(transaction) => transaction.until = until,
            Form::Plain(plain) => drop(plain.take()),
        }
    }

    /// Of a call in the open commit. Without a transaction nobody but the caller waits for the whole.
    pub fn until(&self, patience: Duration) -> Deadline {
        match self {
            Form::Transaction(transaction) => transaction.until,
            Form::Plain(_) => Deadline::after(patience),
        }
    }

    /// A request to a coordinator may still arrive: no other commit must begin with the same id and epoch.
    pub fn has_unanswered(&self) -> bool {
        match self {
            Form::Transaction(transaction) => transaction.coordinator.has_unanswered(),
            Form::Plain(_) => false,
        }
    }

    /// Another epoch, which ends by an abort what is open; or another producer id.
    pub fn renew(&mut self, cluster: &mut Cluster, until: Deadline) -> Result<Identity, Trouble> {
        match self {
            Form::Transaction(transaction) => transaction.coordinator.renew(cluster, until),
            Form::Plain(plain) => plain.renew(cluster, until),
        }
    }

    /// How many of a task's rows go to its changelog as they come. Without a transaction the last one is kept.
    pub fn ahead(&mut self, rows: &ChangelogRows) -> usize {
        match self {
            Form::Transaction(_) => rows.keys.len(),
            Form::Plain(plain) => plain.hold(rows),
        }
    }

    /// The rows that were kept.
    pub fn kept(&mut self) -> Vec<ChangelogRows> {
        match self {
            Form::Transaction(_) => Vec::new(),
            Form::Plain(plain) => plain.take(),
        }
    }
}

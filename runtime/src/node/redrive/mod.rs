//! Redrives: dead letters that are given back to their deployment, or discarded.
//!
//! ```text
//!   operator -> registry: an order {filter, rate, range of each partition} -> every worker of the deployment
//!                                                                                 |
//!   dead-letter topic, partition n -> feed (a thread, outside any group) -> task n: parked, marked, counted: one commit
//! ```
//!
//! The ranges are fixed when the order is accepted, so that what fails again, which is a new letter beyond
//! them, is not given back again by the same order. How far an order is, is a row of each task; it goes on from
//! there after a crash, a move or a rebuild. An order that is cancelled is left where it is, and another order
//! takes up the rest: a letter is marked when it is given back, and a marked one is never given back again.
//!
//! | file | subject |
//! |---|---|
//! | here | an order, and the seam between a worker and the letters |
//! | `feed` | the order in which letters come |
//! | `source` | reading them from Kafka |
//! | `ask` | what the control plane asks: give back, discard, cancel, how far |
//! | `look` | what it asks about letters: list, show, count |

mod ask;
pub mod feed;
mod look;
mod source;

use std::sync::Arc;

pub use ask::check_filter;
pub use source::KafkaLetters;
use tidemill_proto::v1::RedriveEntry;

use crate::record::Offset;
use crate::store::StoreReader;
use crate::task::redrive::{LetterPage, Redrive};

/// Letters that came back this often are left, unless an order says otherwise.
pub const RETRIES_MAX: u32 = 5;
/// Orders that one life of a deployment remembers.
pub const ORDERS_MAX: usize = 32;

/// A redrive or discard, as the registry has accepted it.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The number that the log gave it.
    pub id: u64,
    pub entry: RedriveEntry,
    /// Milliseconds since the epoch.
    pub asked_at_ms: i64,
    pub cancelled: bool,
    /// A later order says that every task had come to its end.
    pub ended: bool,
}

impl Order {
    /// Tasks have to do with it.
    pub fn is_open(&self) -> bool {
        !self.cancelled && !self.ended
    }

    /// From its first letter to the first beyond it.
    pub fn range(&self, partition: i32) -> Option<(Offset, Offset)> {
        let range = self.entry.ranges.iter().find(|range| range.partition == partition)?;
        Some((Offset(range.from), Offset(range.to)))
    }

    /// This partition's part of the rate, in letters a second: by its part of the letters, so that all
    /// partitions end at about the same time. None = as fast as they are taken.
    pub fn rate(&self, partition: i32) -> Option<f64> {
        let span = |from: u64, to: u64| to.saturating_sub(from) as f64;
        let all: f64 = self.entry.ranges.iter().map(|range| span(range.from, range.to)).sum();
        let (from, to) = self.range(partition)?;
        (self.entry.rate > 0.0 && all > 0.0).then(|| self.entry.rate * span(from.0, to.0) / all)
    }

    /// What the task of a partition is told.
    pub fn redrive(&self, partition: i32) -> Option<Redrive> {
        Some(Redrive {
            id: self.id,
            discard: self.entry.discard,
            filter: self.entry.filter.clone().unwrap_or_default(),
            retries_max: self.entry.retries_max,
            topic_id: self.entry.topic_id.clone(),
            end: self.range(partition)?.1,
            asked_at_ms: self.asked_at_ms,
        })
    }
}

/// Orders of one life of a deployment, the oldest first. Shared, because every copy of the registry has them.
pub type Orders = Arc<Vec<Arc<Order>>>;

/// Where letters are to be read.
pub struct Reading {
    pub order: Arc<Order>,
    pub partition: i32,
    /// Not below this letter.
    pub from: Offset,
    /// Knows the letters that are marked, as far as that is committed.
    pub marks: StoreReader,
}

/// What a worker is told of redrives, and where it gets the letters.
pub trait Letters: Send {
    /// The deployment's orders as known now. Cheap: asked often.
    fn orders(&mut self) -> Orders;

    /// Begins to read in the background; dropping the feed ends that.
    fn open(&mut self, reading: Reading) -> Box<dyn Feed>;
}

/// The letters of one partition, for one order.
pub trait Feed: Send {
    /// The next page if there is one already; never waits. The last page reaches the order's end. An error is
    /// a person's to read: nothing more comes.
    fn next(&mut self) -> Option<Result<LetterPage, String>>;
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::RedriveRange;

    use super::*;

    #[test]
    fn a_rate_is_shared_by_the_letters_of_each_partition() {
        let range = |partition, from, to| RedriveRange { partition, from, to };
        let entry = RedriveEntry {
            rate: 500.0,
            ranges: vec![range(0, 0, 300), range(1, 50, 150), range(2, 7, 7)],
            ..RedriveEntry::default()
        };
        let mut order = Order { id: 1, entry, asked_at_ms: 0, cancelled: false, ended: false };
        let rates = |order: &Order| [0, 1, 2, 3].map(|partition| order.rate(partition));
        assert_eq!(rates(&order), [Some(375.0), Some(125.0), Some(0.0), None]);
        order.entry.rate = 0.0;
        assert_eq!(rates(&order), [None; 4]);
        assert_eq!(order.redrive(1).map(|redrive| redrive.end), Some(Offset(150)));
        assert_eq!(order.redrive(3), None);
    }
}

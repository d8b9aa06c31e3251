//! One partition: the batch that is being filled, those that are sealed, and what became of each.
//!
//! Pure: knows no broker and sends nothing.
//!
//! ```text
//!   open --seal, with the next sequence number--> waiting --take--> sent --answered--> taken, and gone
//!                                                    ^               |
//!                                                    +--- again -----+
//! ```
//! Invariants:
//! - Records are in the order in which they came: in a batch, and from batch to batch.
//! - Sequence numbers follow on without a gap for as long as the producer has its id and epoch. A batch that was sealed keeps
//!   its number, whatever happens to it, and is never taken apart.
//! - No batch is sent before those ahead of it were, and none to another broker while one is on its way. The first of a
//!   commit, and the first after one that was refused for now, go alone: a leader that knows nothing of a producer
//!   takes any number from it, so that a second one could come in ahead of the first.
//! - Without a producer id there are no sequence numbers for a leader to go by, and every batch goes alone. The numbers
//!   still tell batches apart here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_batches::{NO_PRODUCER_ID, NO_SEQUENCE, Producer, Writer};

use super::answers::Verdict;
use super::settings::Format;
use crate::config::jitter::spread;

/// What a record costs beside its bytes at most: lengths, deltas, attributes, a count of headers.
const RECORD_OVERHEAD: usize = 36;

/// How long a batch that was refused for now is held back, before chance: doubled from the first to the second.
pub(super) const HOLD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// One record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Kafka's own encoding.
    pub headers: Option<&'a [u8]>,
}

impl Row<'_> {
    /// At most what it takes in a batch.
    pub fn bytes(&self) -> usize {
        let bytes = |field: Option<&[u8]>| field.map_or(0, <[u8]>::len);
        RECORD_OVERHEAD + bytes(self.key) + bytes(self.value) + bytes(self.headers)
    }
}

/// Who produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// As a broker gave it, or -1.
    pub id: i64,
    /// The same.
    pub epoch: i16,
    pub is_transactional: bool,
}

impl Identity {
    /// Brokers cannot tell a batch of this one that comes again from a new one.
    pub const NOBODY: Identity = Identity { id: NO_PRODUCER_ID, epoch: -1, is_transactional: false };

    pub fn is_sequenced(self) -> bool {
        self.id != NO_PRODUCER_ID
    }

    /// As the header of a batch has it, whose first record has this number.
    fn of_batch(self, sequence: i32) -> Producer {
        let base_sequence = if self.is_sequenced() { sequence } else { NO_SEQUENCE };
        let Identity { id, epoch, is_transactional } = self;
        Producer { id, epoch, base_sequence, is_transactional }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting,
    Sent,
    Taken,
}

struct Sealed {
    sequence: i32,
    bytes: Bytes,
    status: Status,
}

/// The flags are of the present commit.
pub(super) struct Partition {
    open: Writer,
    open_bytes: usize,
    next_sequence: i32,
    /// In the order of their sequence numbers; the first is not taken.
    sealed: VecDeque<Sealed>,
    in_flight: usize,
    /// The broker that has, or had, what is in flight.
    sent_to: i32,
    /// Has, or had, something.
    pub is_active: bool,
    /// It may be written to: in a transaction, because the coordinator knows that it is part of it.
    pub is_added: bool,
    /// Its batches have numbers that a leader puts them in order by.
    is_sequenced: bool,
    /// The first batch was taken, and nothing went wrong since: the leader knows the producer.
    is_proven: bool,
    /// Something has to be sent again, once nothing is in flight.
    is_troubled: bool,
    pub not_before: Option<Instant>,
    /// Since the last batch was taken.
    refusals: u32,
}

/// What sealing has done: bytes that were open, and of the batch that they became.
pub(super) struct Closed {
    pub open_bytes: usize,
    pub bytes: usize,
}

/// What an answer has done.
pub(super) struct Answered {
    /// What it means for the commit.
    pub verdict: Verdict,
    /// Of the batch.
    pub bytes: usize,
    /// Batches that need no further thought: this one, or this one and those behind it that were taken before.
    pub gone: usize,
}

impl Partition {
    pub fn new() -> Partition {
        Partition {
            open: Writer::new(),
            open_bytes: 0,
            next_sequence: 0,
            sealed: VecDeque::new(),
            in_flight: 0,
            sent_to: -1,
            is_active: false,
            is_added: false,
            is_sequenced: false,
            is_proven: false,
            is_troubled: false,
            not_before: None,
            refusals: 0,
        }
    }

    /// False = it does not fit into the open batch; nothing has changed then.
    pub fn append(&mut self, row: &Row<'_>, bytes_max: usize) -> bool {
        let headers = row.headers.unwrap_or_default();
        let fits =
            matches!(self.open.push(row.timestamp_ms, row.key, row.value, headers, bytes_max), Ok(true));
        if fits {
            self.open_bytes += row.bytes();
        }
        fits
    }

    /// Closes the open batch; nothing if it is empty.
    pub fn seal(&mut self, identity: Identity, format: &Format) -> Option<Closed> {
        if self.open.is_empty() {
            return None;
        }
        let records = i32::try_from(self.open.len()).unwrap_or(i32::MAX);
        let sequence = self.next_sequence;
        let bytes = self.open.finish(identity.of_batch(sequence), format.codec, format.level);
        self.is_sequenced = identity.is_sequenced();
        self.next_sequence = sequence_after(sequence, records);
        let closed = Closed { open_bytes: std::mem::take(&mut self.open_bytes), bytes: bytes.len() };
        self.sealed.push_back(Sealed { sequence, bytes, status: Status::Waiting });
        Some(closed)
    }

    /// The batch that may be sent now: its size.
    pub fn due(&self, now: Instant) -> Option<usize> {
        let goes_alone = self.is_troubled || !self.is_proven || !self.is_sequenced;
        let must_wait = self.in_flight > 0 && goes_alone;
        let is_held = self.not_before.is_some_and(|at| at > now);
        if must_wait || is_held || !self.is_added {
            return None;
        }
        self.sealed.iter().find(|batch| batch.status == Status::Waiting).map(|batch| batch.bytes.len())
    }

    /// A broker that leads it now may have what is due: nothing is on its way to another.
    pub fn may_go_to(&self, broker: i32) -> bool {
        self.in_flight == 0 || self.sent_to == broker
    }

    /// The batch that is [`due`](Partition::due), which counts as sent from now on.
    pub fn take(&mut self, broker: i32) -> Option<(i32, Bytes)> {
        let batch = self.sealed.iter_mut().find(|batch| batch.status == Status::Waiting)?;
        batch.status = Status::Sent;
        self.in_flight += 1;
        self.sent_to = broker;
        Some((batch.sequence, batch.bytes.clone()))
    }

    /// What a leader has said of a batch that was sent; nothing if it was not. `seed` as [`Partition::hold`] has it.
    pub fn answered(&mut self, sequence: i32, verdict: Verdict, now: Instant, seed: u64) -> Option<Answered> {
        let is_it = |batch: &Sealed| batch.sequence == sequence && batch.status == Status::Sent;
        let index = self.sealed.iter().position(is_it)?;
        let verdict = match verdict {
            // It came after one that has to be sent again.
            Verdict::OutOfOrder if index > 0 => Verdict::Again { moved: false },
            Verdict::OutOfOrder => Verdict::Unknown,
            other => other,
        };
        let is_taken = verdict == Verdict::Taken;
        let batch = &mut self.sealed[index];
        let bytes = batch.bytes.len();
        batch.status = if is_taken { Status::Taken } else { Status::Waiting };
        self.in_flight -= 1;
        if !is_taken {
            self.is_troubled = true;
            self.hold(now, seed);
        } else if index == 0 {
            (self.is_proven, self.not_before, self.refusals) = (true, None, 0);
        }
        if self.in_flight == 0 && std::mem::take(&mut self.is_troubled) {
            self.is_proven = false;
        }
        let before = self.sealed.len();
        while self.sealed.front().is_some_and(|batch| batch.status == Status::Taken) {
            self.sealed.pop_front();
        }
        Some(Answered { verdict, bytes, gone: before - self.sealed.len() })
    }

    /// Nothing of it is sent for a while. `seed` is the producer's: its partitions that were refused together go together
    /// again, in one request, and those of another producer do not go with them.
    pub fn hold(&mut self, now: Instant, seed: u64) {
        let pause = (HOLD.0 * 2_u32.pow(self.refusals)).min(HOLD.1);
        self.not_before = Some(now + spread(pause, seed ^ u64::from(self.refusals)));
        self.refusals = (self.refusals + 1).min(8);
    }

    /// Something waits for nothing but the end of a pause.
    pub fn is_paused(&self) -> bool {
        !self.sealed.is_empty() && self.in_flight == 0
    }

    /// Drops what it has, and its part in the commit.
    pub fn clear(&mut self) {
        // The next commit's batch will be about as large.
        let mut open = std::mem::take(&mut self.open);
        open.clear();
        *self = Partition { open, next_sequence: self.next_sequence, ..Partition::new() };
    }

    /// The same where nothing was sent: the sequence numbers are free again.
    pub fn forget(&mut self) {
        if let Some(first) = self.sealed.front() {
            self.next_sequence = first.sequence;
        }
        self.clear();
    }

    /// The same, and sequence numbers begin anew.
    pub fn renew(&mut self) {
        self.clear();
        self.next_sequence = 0;
    }
}

/// The sequence number after so many records; past `i32::MAX` they go on at 0.
fn sequence_after(first: i32, records: i32) -> i32 {
    match first.checked_add(records) {
        Some(next) => next,
        None => records - (i32::MAX - first) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_go_on_at_zero() {
        assert_eq!(sequence_after(5, 3), 8);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 3), 1);
        assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
    }

    /// How long a partition of this producer is held back, time after time.
    fn pauses(seed: u64) -> Vec<Duration> {
        let (mut partition, now) = (Partition::new(), Instant::now());
        let pause = |_| {
            partition.hold(now, seed);
            partition.not_before.map_or(Duration::ZERO, |at| at - now)
        };
        (0..20).map(pause).collect()
    }

    #[test]
    fn producers_that_are_refused_together_do_not_come_back_together_but_partitions_of_one_do() {
        let (one, other) = (pauses(1), pauses(2));
        assert!(one.iter().zip(&other).all(|(one, other)| one != other), "{one:?} {other:?}");
        assert_eq!(one, pauses(1));
        for (pause, doubled) in one.iter().zip([1, 2, 4, 8, 16, 32, 64, 128]) {
            let whole = (HOLD.0 * doubled).min(HOLD.1);
            assert!((whole / 2..=whole).contains(pause), "{pause:?} of {whole:?}");
        }
        assert!(one.iter().skip(8).all(|pause| (HOLD.1 / 2..=HOLD.1).contains(pause)), "{one:?}");
    }
}

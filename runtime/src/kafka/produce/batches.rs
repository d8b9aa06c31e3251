//! What waits to be produced and acknowledged, of all partitions, and how many bytes that is.
//!
//! Pure, as [`partition`](super::partition) is.
//!
//! `bytes = open_bytes + waiting_bytes + sent_bytes`

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::answers::Verdict;
use super::partition::{Identity, Partition, Row};
use super::settings::Format;

/// What a batch costs beside its records, and to spare.
const BATCH_OVERHEAD: usize = 128;

/// A partition of one of the producer's topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub topic: usize,
    pub partition: usize,
}

/// A batch by its place and its first sequence number.
pub(super) type BatchId = (Place, i32);

/// A batch on its way.
pub(super) struct Due {
    pub place: Place,
    pub sequence: i32,
    pub bytes: Bytes,
}

/// A record is larger than any may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowTooLarge {
    pub bytes: usize,
    pub bytes_max: usize,
}

/// All partitions of a producer.
pub(super) struct Batches {
    format: Format,
    identity: Identity,
    /// As [`Partition::hold`] has it.
    seed: u64,
    topics: Vec<Vec<Partition>>,
    /// Those with something in them, in the order in which they came up in the present commit.
    active: Vec<Place>,
    /// Batches that are sealed and not taken.
    sealed: usize,
    open_bytes: usize,
    waiting_bytes: usize,
    sent_bytes: usize,
}

impl Batches {
    /// `seed` is another one for each producer.
    pub fn new(topics: usize, format: Format, identity: Identity, seed: u64) -> Batches {
        Batches {
            format,
            identity,
            seed,
            topics: (0..topics).map(|_| Vec::new()).collect(),
            active: Vec::new(),
            sealed: 0,
            open_bytes: 0,
            waiting_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// A leader knows a batch that comes again.
    pub fn are_sequenced(&self) -> bool {
        self.identity.is_sequenced()
    }

    /// Produced and not acknowledged.
    pub fn bytes(&self) -> usize {
        self.open_bytes + self.sealed_bytes()
    }

    /// The same of sealed batches.
    pub fn sealed_bytes(&self) -> usize {
        self.waiting_bytes + self.sent_bytes
    }

    /// The same of those that are not on their way.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Every sealed batch is taken.
    pub fn is_settled(&self) -> bool {
        self.sealed == 0
    }

    fn partition(&mut self, place: Place) -> &mut Partition {
        let partitions = &mut self.topics[place.topic];
        if place.partition >= partitions.len() {
            partitions.resize_with(place.partition + 1, Partition::new);
        }
        &mut partitions[place.partition]
    }

    /// Appends a row to its partition, which must exist. True when a batch was full and is sealed.
    pub fn push(&mut self, place: Place, row: &Row<'_>) -> Result<bool, RowTooLarge> {
        let (bytes, bytes_max, batch_bytes) =
            (row.bytes(), self.format.record_bytes, self.format.batch_bytes);
        if bytes > bytes_max {
            return Err(RowTooLarge { bytes, bytes_max });
        }
        let partition = self.partition(place);
        let is_new = !std::mem::replace(&mut partition.is_active, true);
        let fits = partition.append(row, batch_bytes);
        if is_new {
            self.active.push(place);
        }
        if !fits {
            // Full, or the row is larger than a batch that is shared: it begins the next, and may have it alone.
            self.seal(place);
            let alone = batch_bytes.max(bytes_max.saturating_add(BATCH_OVERHEAD));
            if !self.partition(place).append(row, alone) {
                return Err(RowTooLarge { bytes, bytes_max });
            }
        }
        self.open_bytes += bytes;
        Ok(!fits)
    }

    fn seal(&mut self, place: Place) {
        let partition = &mut self.topics[place.topic][place.partition];
        if let Some(closed) = partition.seal(self.identity, &self.format) {
            self.open_bytes -= closed.open_bytes;
            self.waiting_bytes += closed.bytes;
            self.sealed += 1;
        }
    }

    pub fn seal_all(&mut self) {
        for index in 0..self.active.len() {
            self.seal(self.active[index]);
        }
    }

    /// Partitions with something in them that may not be written to yet.
    pub fn unadded(&self) -> Vec<Place> {
        let is_new = |place: &Place| !self.topics[place.topic][place.partition].is_added;
        self.active.iter().copied().filter(is_new).collect()
    }

    /// These may be written to: in a transaction, because the coordinator knows of them.
    pub fn added(&mut self, places: &[Place]) {
        for &place in places {
            self.partition(place).is_added = true;
        }
    }

    /// Partitions of which a batch may be sent now.
    pub fn due(&self) -> Vec<Place> {
        let now = Instant::now();
        let is_due = |place: &Place| self.topics[place.topic][place.partition].due(now).is_some();
        self.active.iter().copied().filter(is_due).collect()
    }

    /// What may be sent to a broker now, which leads the partitions that `leads` picks: one batch of each, as long as they
    /// are at most `bytes_max` together or it is the only one. They count as sent.
    pub fn take_due(&mut self, broker: i32, leads: impl Fn(Place) -> bool, bytes_max: usize) -> Vec<Due> {
        let now = Instant::now();
        let (mut taken, mut total) = (Vec::new(), 0);
        for &place in &self.active {
            let partition = &mut self.topics[place.topic][place.partition];
            let Some(size) = partition.due(now) else { continue };
            if !partition.may_go_to(broker) || !leads(place) {
                continue;
            }
            if !taken.is_empty() && total + size > bytes_max {
                break;
            }
            if let Some((sequence, bytes)) = partition.take(broker) {
                total += size;
                taken.push(Due { place, sequence, bytes });
            }
        }
        self.waiting_bytes -= total;
        self.sent_bytes += total;
        taken
    }

    /// What a leader has said of a batch that was sent; answers what that means for the commit.
    pub fn answered(&mut self, (place, sequence): BatchId, verdict: Verdict) -> Verdict {
        let (now, seed) = (Instant::now(), self.seed);
        let Some(answered) = self.partition(place).answered(sequence, verdict, now, seed) else {
            return verdict;
        };
        self.sealed -= answered.gone;
        self.sent_bytes -= answered.bytes;
        self.waiting_bytes += if answered.verdict == Verdict::Taken { 0 } else { answered.bytes };
        answered.verdict
    }

    /// Nobody leads this partition now, or who does cannot be reached.
    pub fn hold(&mut self, place: Place) {
        let seed = self.seed;
        self.partition(place).hold(Instant::now(), seed);
    }

    /// Until the first batch that is held back is due.
    pub fn next_due(&self) -> Option<Duration> {
        let partitions = self.active.iter().map(|place| &self.topics[place.topic][place.partition]);
        let paused = partitions.filter(|partition| partition.is_paused());
        let first = paused.filter_map(|partition| partition.not_before).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// A commit begins. Everything of the last one is taken.
    pub fn begin(&mut self) {
        self.end(Partition::clear);
    }

    /// Forgets a commit of which nothing was sent, so that its sequence numbers are free again.
    pub fn forget(&mut self) {
        self.end(Partition::forget);
    }

    /// Forgets everything: the producer has another id or epoch, in which sequence numbers begin at 0.
    pub fn renew(&mut self, identity: Identity) {
        self.end(Partition::clear);
        self.topics.iter_mut().flatten().for_each(Partition::renew);
        self.identity = identity;
    }

    fn end(&mut self, how: fn(&mut Partition)) {
        for place in std::mem::take(&mut self.active) {
            how(self.partition(place));
        }
        (self.sealed, self.open_bytes, self.waiting_bytes, self.sent_bytes) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use tidemill_batches::{Codec, Header, NO_PRODUCER_ID, NO_SEQUENCE};

    use super::super::partition::HOLD;
    use super::*;

    const A: Place = Place { topic: 0, partition: 0 };
    const B: Place = Place { topic: 1, partition: 2 };
    const AGAIN: Verdict = Verdict::Again { moved: false };

    fn of_epoch(epoch: i16) -> Identity {
        Identity { id: 7, epoch, is_transactional: true }
    }

    fn batches_of(identity: Identity) -> Batches {
        let format = Format { codec: Codec::None, level: None, batch_bytes: 1024, record_bytes: 4000 };
        Batches::new(2, format, identity, 7)
    }

    fn batches() -> Batches {
        batches_of(of_epoch(0))
    }

    fn row(value: &[u8]) -> Row<'_> {
        Row { timestamp_ms: 1, key: Some(b"k"), value: Some(value), headers: None }
    }

    /// So many records of a partition that no two fit one batch, all sealed and known to the coordinator.
    fn filled(batches: &mut Batches, place: Place, records: usize) {
        for _ in 0..records {
            batches.push(place, &row(&[7; 600])).unwrap();
        }
        batches.seal_all();
        batches.added(&[place]);
    }

    /// Lets the time pass for which batches are held back.
    fn released(batches: &mut Batches) {
        batches.topics.iter_mut().flatten().for_each(|partition| partition.not_before = None);
    }

    fn sent(batches: &mut Batches) -> Vec<i32> {
        batches.take_due(1, |_| true, usize::MAX).iter().map(|due| due.sequence).collect()
    }

    #[test]
    fn the_first_batch_goes_alone_and_others_follow_without_waiting() {
        let mut batches = batches();
        filled(&mut batches, A, 4);
        assert_eq!(sent(&mut batches), [0]);
        assert!(sent(&mut batches).is_empty(), "it has no answer yet");
        assert_eq!(batches.answered((A, 0), Verdict::Taken), Verdict::Taken);
        assert_eq!([sent(&mut batches), sent(&mut batches)], [[1], [2]]);
        for sequence in [1, 2] {
            batches.answered((A, sequence), Verdict::Taken);
        }
        assert!(!batches.is_settled());
        assert_eq!(sent(&mut batches), [3]);
        batches.answered((A, 3), Verdict::Taken);
        assert!(batches.is_settled());
        assert_eq!(batches.bytes(), 0);
    }

    #[test]
    fn without_sequence_numbers_every_batch_of_a_partition_goes_alone() {
        let mut batches = batches_of(Identity::NOBODY);
        filled(&mut batches, A, 3);
        for sequence in 0..3 {
            assert_eq!(sent(&mut batches), [sequence]);
            assert!(sent(&mut batches).is_empty(), "the one before it has no answer yet");
            batches.answered((A, sequence), Verdict::Taken);
        }
        assert!(batches.is_settled());
    }

    #[test]
    fn a_batch_says_whose_it_is_and_which() {
        let plain = Identity { is_transactional: false, ..of_epoch(3) };
        for (identity, expected) in [
            (of_epoch(3), (7, 3, 1, true)),
            (plain, (7, 3, 1, false)),
            (Identity::NOBODY, (NO_PRODUCER_ID, -1, NO_SEQUENCE, false)),
        ] {
            let mut batches = batches_of(identity);
            filled(&mut batches, A, 2);
            sent(&mut batches);
            batches.answered((A, 0), Verdict::Taken);
            let due = batches.take_due(1, |_| true, usize::MAX);
            let header = Header::check(&due[0].bytes).unwrap();
            let found =
                (header.producer_id, header.producer_epoch, header.base_sequence, header.transactional());
            assert_eq!(found, expected, "the second one of {identity:?}");
        }
    }

    #[test]
    fn a_batch_that_is_refused_for_now_goes_again_before_those_behind_it() {
        let mut batches = batches();
        filled(&mut batches, A, 4);
        sent(&mut batches);
        batches.answered((A, 0), Verdict::Taken);
        assert_eq!([sent(&mut batches), sent(&mut batches), sent(&mut batches)], [[1], [2], [3]]);
        batches.answered((A, 1), AGAIN);
        released(&mut batches);
        assert!(sent(&mut batches).is_empty(), "two are still on their way");
        assert_eq!(batches.answered((A, 2), Verdict::OutOfOrder), AGAIN, "the one before it is missing");
        assert_eq!(batches.answered((A, 3), Verdict::Taken), Verdict::Taken);
        assert!(sent(&mut batches).is_empty(), "held back");
        released(&mut batches);
        assert_eq!(sent(&mut batches), [1]);
        assert!(sent(&mut batches).is_empty(), "alone, as the first of a commit");
        batches.answered((A, 1), Verdict::Taken);
        assert_eq!(sent(&mut batches), [2]);
        batches.answered((A, 2), Verdict::Taken);
        assert!(batches.is_settled(), "what was taken out of turn is not sent again");
    }

    #[test]
    fn a_new_leader_gets_nothing_while_the_old_one_has_something() {
        let mut batches = batches();
        filled(&mut batches, A, 3);
        sent(&mut batches);
        batches.answered((A, 0), Verdict::Taken);
        assert_eq!(sent(&mut batches), [1]);
        assert!(batches.take_due(2, |_| true, usize::MAX).is_empty());
        batches.answered((A, 1), Verdict::Again { moved: true });
        released(&mut batches);
        let sequences: Vec<i32> =
            batches.take_due(2, |_| true, usize::MAX).iter().map(|due| due.sequence).collect();
        assert_eq!(sequences, [1]);
    }

    #[test]
    fn a_gap_that_nothing_explains_has_no_known_outcome() {
        let mut batches = batches();
        filled(&mut batches, A, 2);
        sent(&mut batches);
        assert_eq!(batches.answered((A, 0), Verdict::OutOfOrder), Verdict::Unknown);
    }

    #[test]
    fn a_request_has_one_batch_of_a_partition_and_keeps_to_its_size() {
        let mut batches = batches();
        filled(&mut batches, A, 2);
        filled(&mut batches, B, 2);
        let places = |due: Vec<Due>| due.iter().map(|due| due.place).collect::<Vec<_>>();
        assert_eq!(places(batches.take_due(1, |place| place == B, usize::MAX)), [B]);
        batches.answered((B, 0), AGAIN);
        released(&mut batches);
        assert_eq!(places(batches.take_due(1, |_| true, 1)), [A], "at least one, and no more than fits");
        assert_eq!(batches.due(), [B]);
    }

    #[test]
    fn a_partition_that_the_coordinator_does_not_know_is_not_written_to() {
        let mut batches = batches();
        batches.push(A, &row(b"v")).unwrap();
        batches.seal_all();
        assert_eq!(batches.unadded(), [A]);
        assert!(sent(&mut batches).is_empty());
        batches.added(&[A]);
        assert!(batches.unadded().is_empty());
        assert_eq!(sent(&mut batches), [0]);
    }

    #[test]
    fn a_large_record_has_a_batch_of_its_own_up_to_the_limit() {
        let mut batches = batches();
        assert_eq!(batches.push(A, &row(b"small")), Ok(false));
        assert_eq!(batches.push(A, &row(&[7; 3000])), Ok(true));
        assert_eq!(batches.push(A, &row(b"small")), Ok(true));
        let refused = batches.push(A, &row(&[7; 4000]));
        assert!(refused.is_err_and(|error| error.bytes > 4000 && error.bytes_max == 4000));
        batches.seal_all();
        batches.added(&[A]);
        for sequence in 0..3 {
            assert_eq!(sent(&mut batches), [sequence]);
            batches.answered((A, sequence), Verdict::Taken);
        }
        assert!(batches.is_settled());
    }

    #[test]
    fn a_commit_of_which_nothing_was_sent_gives_its_numbers_back() {
        let mut batches = batches();
        filled(&mut batches, A, 1);
        sent(&mut batches);
        batches.answered((A, 0), Verdict::Taken);
        batches.begin();
        filled(&mut batches, A, 3);
        batches.push(A, &row(b"open")).unwrap();
        batches.forget();
        assert_eq!(batches.bytes(), 0);
        filled(&mut batches, A, 1);
        assert_eq!(sent(&mut batches), [1]);
    }

    #[test]
    fn a_new_epoch_begins_at_zero_everywhere() {
        let mut batches = batches();
        for place in [A, B] {
            filled(&mut batches, place, 1);
            sent(&mut batches);
            batches.answered((place, 0), Verdict::Taken);
        }
        batches.begin();
        filled(&mut batches, A, 2);
        batches.renew(of_epoch(1));
        assert!(batches.is_settled() && batches.bytes() == 0);
        for place in [A, B] {
            filled(&mut batches, place, 1);
            assert_eq!(sent(&mut batches), [0]);
        }
    }

    #[test]
    fn what_is_held_back_says_for_how_long() {
        let mut batches = batches();
        filled(&mut batches, A, 1);
        assert_eq!(batches.next_due(), None);
        sent(&mut batches);
        batches.answered((A, 0), AGAIN);
        assert!(batches.next_due().is_some_and(|wait| wait <= HOLD.0));
        (0..20).for_each(|_| batches.hold(A));
        assert!(batches.next_due().is_some_and(|wait| wait <= HOLD.1 && wait > HOLD.0));
    }
}

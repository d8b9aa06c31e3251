//! What a partition knows about its producers: sequences, open transactions, aborted ranges.
//!
//! Rebuilt from the log at start, like in Kafka, so it needs no file of its own.
//!
//! `last stable offset = first offset of the oldest open transaction, or the end of the log`

use std::collections::{BTreeMap, HashMap, VecDeque};

use tidemill_batches::{Header, NO_PRODUCER_ID};

/// Batches remembered per producer to recognise a retry; the limit of requests in flight that
/// clients with idempotence keep to, and Kafka's own constant.
const BATCHES_KEPT: usize = 5;

/// Why an append is refused on behalf of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceError {
    /// A newer producer with the same id has been seen.
    StaleEpoch,
    /// A batch is missing before this one.
    OutOfOrder,
}

/// What an append by an idempotent producer amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The batch is the next one.
    New,
    /// The batch is in the log already, at this offset and append time.
    Duplicate {
        /// Offset of its first record.
        base_offset: i64,
        /// Largest timestamp of the stored batch, ms.
        timestamp_ms: i64,
    },
}

/// A transaction of which readers of committed data must see nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted {
    /// Producer of the transaction.
    pub producer_id: i64,
    /// Its first offset in this partition.
    pub first_offset: i64,
    /// Offset of its marker.
    pub last_offset: i64,
}

#[derive(Debug, Clone, Copy)]
struct Appended {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
    timestamp_ms: i64,
}

/// State of one producer id.
#[derive(Debug, Clone)]
pub struct Producer {
    /// Highest epoch seen.
    pub epoch: i16,
    /// First offset of its open transaction.
    pub open_since: Option<i64>,
    /// Time of its last batch as that says it, ms since 1970.
    pub last_timestamp_ms: i64,
    /// When its last batch was appended, or read again at a start, ms since 1970; for expiry. What a client writes of
    /// times long past is as young as anything.
    heard_ms: i64,
    batches: VecDeque<Appended>,
}

impl Producer {
    /// Sequence of its last record, or -1.
    pub fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(-1, |batch| batch.last_sequence)
    }
}

/// All producers of one partition.
#[derive(Debug, Default)]
pub struct Producers {
    by_id: HashMap<i64, Producer>,
    /// First offset -> producer, for the last stable offset.
    open: BTreeMap<i64, i64>,
    /// In the order of their markers.
    aborted: Vec<Aborted>,
}

impl Producers {
    /// Judges a batch with a sequence number. Changes nothing.
    ///
    /// An unknown producer may start anywhere: its former batches may have been deleted.
    pub fn judge(&self, header: &Header) -> Result<Verdict, SequenceError> {
        let Some(producer) = self.by_id.get(&header.producer_id) else {
            return Ok(Verdict::New);
        };
        if header.producer_epoch < producer.epoch {
            return Err(SequenceError::StaleEpoch);
        }
        if header.producer_epoch > producer.epoch {
            let starts = header.base_sequence == 0;
            return if starts { Ok(Verdict::New) } else { Err(SequenceError::OutOfOrder) };
        }
        let same = |batch: &&Appended| {
            batch.first_sequence == header.base_sequence && batch.last_sequence == header.last_sequence()
        };
        if let Some(stored) = producer.batches.iter().find(same) {
            let Appended { base_offset, timestamp_ms, .. } = *stored;
            return Ok(Verdict::Duplicate { base_offset, timestamp_ms });
        }
        let expected = match producer.last_sequence() {
            i32::MAX => 0,
            last => last + 1,
        };
        if header.base_sequence == expected { Ok(Verdict::New) } else { Err(SequenceError::OutOfOrder) }
    }

    /// Takes note of a data batch that is now in the log.
    pub fn appended(&mut self, header: &Header, now_ms: i64) {
        if header.producer_id == NO_PRODUCER_ID {
            return;
        }
        let producer = self.entry(header, now_ms);
        producer.batches.push_back(Appended {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
            timestamp_ms: header.max_timestamp,
        });
        if producer.batches.len() > BATCHES_KEPT {
            producer.batches.pop_front();
        }
        if header.transactional() && producer.open_since.is_none() {
            producer.open_since = Some(header.base_offset);
            self.open.insert(header.base_offset, header.producer_id);
        }
    }

    /// Takes note of a marker that is now in the log. A marker without data is legal.
    pub fn ended(&mut self, header: &Header, commit: bool, now_ms: i64) {
        let producer = self.entry(header, now_ms);
        let Some(first_offset) = producer.open_since.take() else { return };
        self.open.remove(&first_offset);
        if !commit {
            let (producer_id, last_offset) = (header.producer_id, header.base_offset);
            self.aborted.push(Aborted { producer_id, first_offset, last_offset });
        }
    }

    fn entry(&mut self, header: &Header, now_ms: i64) -> &mut Producer {
        let producer = self.by_id.entry(header.producer_id).or_insert_with(|| Producer {
            epoch: header.producer_epoch,
            open_since: None,
            last_timestamp_ms: header.max_timestamp,
            heard_ms: now_ms,
            batches: VecDeque::new(),
        });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.last_timestamp_ms = header.max_timestamp;
        producer.heard_ms = now_ms;
        producer
    }

    /// First offset of a producer's open transaction.
    pub fn open_since(&self, producer_id: i64) -> Option<i64> {
        self.by_id.get(&producer_id).and_then(|producer| producer.open_since)
    }

    /// First offset of the oldest open transaction.
    pub fn first_open(&self) -> Option<i64> {
        self.open.keys().next().copied()
    }

    /// Aborted transactions that overlap `[from, to)`, as a fetch has to list them.
    pub fn aborted_between(&self, from: i64, to: i64) -> Vec<Aborted> {
        // Markers are in log order, so everything before the first that ends late is irrelevant.
        let start = self.aborted.partition_point(|aborted| aborted.last_offset < from);
        let overlaps = |aborted: &&Aborted| aborted.first_offset < to;
        self.aborted[start..].iter().filter(overlaps).copied().collect()
    }

    /// Forgets aborted transactions that end below `offset`, where none of their records are.
    pub fn trim(&mut self, offset: i64) {
        self.aborted.retain(|aborted| aborted.last_offset >= offset);
    }

    /// Forgets producers that have been idle since `before_ms` and have no open transaction.
    pub fn expire(&mut self, before_ms: i64) {
        self.by_id.retain(|_, p| p.open_since.is_some() || p.heard_ms >= before_ms);
    }

    /// All producers, for `DescribeProducers`.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &Producer)> {
        self.by_id.iter().map(|(id, producer)| (*id, producer))
    }
}

//! Reads the logs of a restore through the node's own fetcher (`fetch`), one partition after the other.
//!
//! ```text
//!   fetcher --a chunk--> columns, as much as a cache holds --record by record--> whoever restores
//!      |
//!      +-- fetches on as soon as the chunk is taken, while its records are applied
//! ```
//! What it does not do: find out where a log ends, and what of it counts (`task::recovery`).
//!
//! Invariants:
//! - What comes out rises, lies in the range that was asked for, and is committed.
//! - The position is behind everything that was read, be it a record, a marker, aborted or compacted away. It is what
//!   reaches the end of the range: the last record may lie far before that.
//! - What is fetched, waits or is applied stays within what a restore may hold ([`KafkaConfig::restoring`]).
//! - Whoever waits looks ten times a second whether there is any use in it, and has an end. That nobody wants what is read
//!   any more ends a wait at once, and is looked for each time that something is copied.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};

use super::PATIENCE;
use crate::kafka::KNOWN_WAIT;
use crate::kafka::config::KafkaConfig;
use crate::kafka::fetch::{Chunk, Fetcher, Refusal, Room, Run, Silence, What};
use crate::kafka::reader::damaged;
use crate::kafka::sink::{STAMP_HEADER, read_stamp};
use crate::ports::{LogView, SourceError, Stop};
use crate::record::{Batch, InputPartition, Offset, headers};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What is copied into columns at a time: it stays in a core's cache until it is applied.
const ROOM: Room = Room { rows: 4_096, bytes: 256 << 10 };

/// Reads a deployment's logs.
pub(super) struct FetchedLogs {
    fetcher: Fetcher,
    /// Something may have arrived.
    woken: Receiver<()>,
    topics: Vec<String>,
    /// How long a read goes on to which nothing comes.
    patience: Duration,
    /// Kept for its memory.
    batch: Batch,
}

/// What is read.
pub(super) struct Part<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub from: Offset,
    pub to: Offset,
    /// Asked while no broker leads the partition: what has become of it, if waiting is of no use.
    pub lost: &'a dyn Fn() -> Option<SourceError>,
    /// Ends the read.
    pub stop: &'a Stop,
}

/// A read that is under way.
struct Reading<'a> {
    part: &'a Part<'a>,
    id: InputPartition,
    run: Run,
    /// Next offset that is wanted.
    position: i64,
    /// Nothing has come since then.
    quiet_since: Instant,
    /// When it was asked last what has become of the partition.
    looked: Instant,
}

impl FetchedLogs {
    /// Connects when something is read.
    pub fn new(
        config: &KafkaConfig,
        topics: Vec<String>,
        committed_only: bool,
    ) -> Result<FetchedLogs, SourceError> {
        let (wake, woken) = bounded(1);
        let wake = Box::new(move || {
            // If it is full, that says the same.
            let _ = wake.try_send(());
        });
        let fetcher = Fetcher::new(config, config.restoring(committed_only), topics.clone(), &[], wake)
            .map_err(SourceError::Refused)?;
        Ok(FetchedLogs { fetcher, woken, topics, patience: PATIENCE, batch: Batch::default() })
    }

    /// Hands out the records of a part of a log until the position has reached its end, waiting for transactions that are
    /// not decided; `apply` answers false to stop early.
    pub fn read(
        &mut self,
        part: &Part<'_>,
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError> {
        let Some(input) = self.topics.iter().position(|topic| topic == part.topic) else {
            return Err(SourceError::Refused(format!("{} is no log of the deployment", part.topic)));
        };
        let id = InputPartition { input: input as u16, partition: part.partition };
        let position = part.from.0 as i64;
        let run = self.fetcher.start(id, position, -1);
        let now = Instant::now();
        let result = self.follow(Reading { part, id, run, position, quiet_since: now, looked: now }, apply);
        self.fetcher.stop(id);
        result
    }

    fn follow(
        &mut self,
        mut reading: Reading<'_>,
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError> {
        while !reading.has_ended() {
            if reading.part.stop.is_raised() {
                return Err(SourceError::Stopped);
            }
            self.fetcher.tend();
            let refusal = match self.arrived(reading.run) {
                None => {
                    self.wait(&mut reading)?;
                    continue;
                }
                Some(What::Failed(refusal)) => Some(refusal),
                Some(What::Chunk(mut chunk)) => match self.hand_out(&mut chunk, &mut reading, apply) {
                    Ok(true) => None,
                    Ok(false) => return Ok(()),
                    Err(refusal) => Some(refusal),
                },
            };
            if let Some(refusal) = refusal {
                return Err(reading.refused(&refusal));
            }
            reading.quiet_since = Instant::now();
            reading.looked = reading.quiet_since;
        }
        Ok(())
    }

    /// The oldest that has come of a run.
    fn arrived(&mut self, run: Run) -> Option<What> {
        loop {
            self.fetcher.front()?;
            let arrival = self.fetcher.pop()?;
            if arrival.run == run {
                return Some(arrival.what);
            }
        }
    }

    /// Applies what a chunk has of the range, or what it comes to before the stop; false = told to end it.
    fn hand_out(
        &mut self,
        chunk: &mut Chunk,
        reading: &mut Reading<'_>,
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<bool, Refusal> {
        let to = reading.part.to.0 as i64;
        while !chunk.is_empty() && !reading.has_ended() && !reading.part.stop.is_raised() {
            let batch = &mut self.batch;
            clear(batch);
            let mut room = ROOM;
            let taken = chunk.take(reading.position, &mut room, true, batch, &mut |_, _| {});
            let numbers = batch.offsets.iter().zip(&batch.timestamps);
            let bytes = batch.keys.iter().zip(batch.values.iter()).zip(batch.headers.iter());
            for ((&offset, &timestamp_ms), ((key, value), headers)) in numbers.zip(bytes) {
                if offset >= to {
                    reading.position = to;
                    return Ok(true);
                }
                reading.position = offset + 1;
                let record = LogView {
                    offset: Offset(offset as u64),
                    timestamp_ms,
                    key: key.unwrap_or_default(),
                    value,
                    stamp: headers.and_then(stamp),
                };
                if !apply(record) {
                    return Ok(false);
                }
            }
            taken.map_err(|damage| Refusal::damaged(&damage))?;
        }
        if chunk.is_empty() {
            reading.position = reading.position.max(chunk.next);
        }
        Ok(true)
    }

    /// Waits for more, unless something says that none will come.
    fn wait(&self, reading: &mut Reading<'_>) -> Result<(), SourceError> {
        let place = reading.place();
        if self.fetcher.has_panicked() {
            return Err(SourceError::Fatal(format!("{place}: a thread that fetches panicked")));
        }
        // It is tried again all the same, and so is the restore: what is in the way may be mended at the brokers.
        if let Some(obstacle) = self.fetcher.obstacle() {
            return Err(SourceError::Unavailable(format!("{place} cannot be read: {obstacle}")));
        }
        let silence = self.fetcher.silence(reading.id);
        if silence == Silence::Unled && reading.looked.elapsed() >= KNOWN_WAIT {
            if let Some(error) = (reading.part.lost)() {
                return Err(error);
            }
            reading.looked = Instant::now();
        }
        if reading.quiet_since.elapsed() >= self.patience {
            return Err(SourceError::Unavailable(format!(
                "{place}: no progress at offset {} of {} for {} s: {}",
                reading.position,
                reading.part.to,
                self.patience.as_secs(),
                reading.why_quiet(silence),
            )));
        }
        // That it comes to nothing is the next look's to say.
        select! {
            recv(self.woken) -> _ => {}
            recv(reading.part.stop.raised()) -> _ => {}
            default(LOOK_EVERY) => {}
        }
        Ok(())
    }
}

impl Reading<'_> {
    fn has_ended(&self) -> bool {
        self.position >= self.part.to.0 as i64
    }

    fn place(&self) -> String {
        format!("{} [{}]", self.part.topic, self.part.partition)
    }

    /// What it waits for in vain.
    fn why_quiet(&self, silence: Silence) -> String {
        match silence {
            Silence::Unled => "no broker that leads it is reached, or its topic was made again".to_owned(),
            Silence::Unanswered => "the broker that leads it does not answer".to_owned(),
            Silence::Refused => "the broker that leads it refuses; the node's log says with what".to_owned(),
            Silence::Empty { end, .. } if end <= self.position => {
                format!("it ends at offset {end} now, and its end is lost or its replicas do not follow")
            }
            Silence::Empty { stable, .. } => format!("a transaction is still open at offset {stable}"),
        }
    }

    /// Why it cannot be read on, and what to do where only a person can tell.
    fn refused(&self, refusal: &Refusal) -> SourceError {
        let (place, partition, position) = (self.place(), self.part.partition, self.position);
        match refusal {
            Refusal::Damaged(why) => damaged(self.part.topic, partition, position, why),
            Refusal::OutOfRange(why) => SourceError::Refused(format!(
                "{place} does not hold offset {position}, which is next: records have been deleted since the restore began, or the \
                 brokers have lost the end of the log (an unclean election), whatever was written in its place; what is there \
                 now is looked at anew by `tidemill restart NAME --partition {partition}`. Kafka's client says: {why}"
            )),
            Refusal::Other(why) => SourceError::Refused(format!("{place} cannot be read: {why}")),
        }
    }
}

/// Takes the rows out, and leaves the memory.
fn clear(batch: &mut Batch) {
    batch.offsets.clear();
    batch.timestamps.clear();
    batch.keys.clear();
    batch.values.clear();
    batch.headers.clear();
}

/// Writer and commit number, if the headers of a record say them.
fn stamp(encoded: &[u8]) -> Option<(u64, u64)> {
    headers::find(encoded, STAMP_HEADER).ok().flatten().and_then(read_stamp)
}

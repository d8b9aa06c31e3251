//! Dead letters that are given back while everything breaks, and what must be left of them.
//!
//! A doomed record fails whenever it is tried, so each time it comes back it is a letter again, with a
//! `retry_count` that is one higher. So the letters of a record must be numbered 0, 1, 2 and so on, each once:
//! a letter that came back twice, or an effect that was lost or repeated, breaks the row.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use prost::Message;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::{CancelRedriveEntry, LetterFilter, RedriveEntry, RedriveRange};

use super::broker::{Log, Met, Row};
use super::check::Violation;
use super::state::State;
use super::world::{DEPLOYMENT, INCARNATION, World};
use crate::node::redrive::feed::{self, Scan};
use crate::node::redrive::{Feed, Letters, Orders, Reading};
use crate::ports::{SourceError, TopicRecord};
use crate::record::Offset;
use crate::store::{ParkedRecord, RedriveProgress};
use crate::task::TaskConfig;
use crate::task::letter::Letter;
use crate::task::redrive::{LetterPage, progress_of};

/// A letter as a row of the model's log, which knows no headers: all of it is the row's value.
pub fn row(key: Option<&[u8]>, value: Option<&[u8]>, headers: Option<&[u8]>) -> Row {
    let bytes = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let whole = ParkedRecord {
        key: bytes(key),
        value: bytes(value),
        headers: bytes(headers),
        ..ParkedRecord::default()
    };
    Row { key: key.unwrap_or_default().to_vec(), value: Some(whole.encode_to_vec()), timestamp_ms: 0 }
}

fn record(offset: Offset, row: &Row) -> TopicRecord {
    let whole = ParkedRecord::decode(row.value.as_deref().unwrap_or_default()).expect("a letter");
    let ParkedRecord { key, value, headers, .. } = whole;
    TopicRecord { offset, timestamp_ms: row.timestamp_ms, key, value, headers }
}

/// True for the first letter of a record.
pub fn is_first(key: Option<&[u8]>, value: Option<&[u8]>, headers: Option<&[u8]>) -> bool {
    let row = row(key, value, headers);
    Letter::read(&record(Offset(0), &row)).is_some_and(|letter| letter.retry_count == 0)
}

/// An operator gives back, or sometimes discards, all letters that are there.
pub fn order(state: &mut State, discard: bool) {
    let ranges = (0..).zip(&state.broker.letters).map(|(partition, log)| RedriveRange {
        partition,
        from: 0,
        to: log.end().0,
    });
    let entry = RedriveEntry {
        deployment: DEPLOYMENT.into(),
        incarnation: INCARNATION.into(),
        discard,
        filter: Some(LetterFilter::default()),
        rate: if state.random.one_in(2) { 0.0 } else { 100.0 },
        retries_max: 5,
        topic_id: "letters-id".into(),
        ranges: ranges.collect(),
        ..RedriveEntry::default()
    };
    state.propose(Entry::Redrive(entry));
}

/// And cancels one.
pub fn cancel(state: &mut State) {
    let orders = state.registry.redrives(INCARNATION);
    let index = state.random.below(orders.len());
    if let Some(order) = orders.get(index) {
        let incarnation = INCARNATION.into();
        let entry = CancelRedriveEntry { incarnation, id: order.id, ..CancelRedriveEntry::default() };
        state.propose(Entry::CancelRedrive(entry));
    }
}

pub struct ModelLetters {
    pub world: Arc<World>,
    pub config: Arc<TaskConfig>,
}

impl Letters for ModelLetters {
    fn orders(&mut self) -> Orders {
        self.world.lock().registry.redrives(INCARNATION)
    }

    fn open(&mut self, reading: Reading) -> Box<dyn Feed> {
        let (world, config) = (Arc::clone(&self.world), Arc::clone(&self.config));
        Box::new(ModelFeed { world, config, reading, pages: None })
    }
}

struct ModelFeed {
    world: Arc<World>,
    config: Arc<TaskConfig>,
    reading: Reading,
    /// None until everything in the range is decided.
    pages: Option<VecDeque<LetterPage>>,
}

impl Feed for ModelFeed {
    fn next(&mut self) -> Option<Result<LetterPage, String>> {
        if self.pages.is_none() {
            let (_, end) = self.reading.order.range(self.reading.partition)?;
            let log = |state: &State| state.broker.letters[self.reading.partition as usize].stable();
            if log(&self.world.lock()) < end {
                return None;
            }
            let mut pages = VecDeque::new();
            let mut scan = ModelScan { world: &self.world, partition: self.reading.partition };
            let split = self.world.lock().random.one_in(2);
            let run = feed::run(&self.reading, &self.config, &mut scan, &mut |page| {
                pages.extend(if split { single(page) } else { vec![page] });
                true
            });
            // A store that was closed: its task is on its way elsewhere.
            if run.is_err() {
                return None;
            }
            self.pages = Some(pages);
        }
        let late = self.world.lock().random.one_in(3);
        if late { None } else { self.pages.as_mut()?.pop_front().map(Ok) }
    }
}

/// Pages of one letter each, so that anything may happen between two.
fn single(page: LetterPage) -> Vec<LetterPage> {
    let LetterPage { records, next, log_start } = page;
    let mut pages: Vec<LetterPage> = records
        .into_iter()
        .map(|record| {
            let next = next.map(|_| Offset(record.offset.0 + 1));
            LetterPage { records: [record].into(), next, log_start }
        })
        .collect();
    pages.push(LetterPage { records: VecDeque::new(), next, log_start });
    pages
}

struct ModelScan<'a> {
    world: &'a World,
    partition: i32,
}

impl Scan for ModelScan<'_> {
    fn start(&mut self) -> Result<Offset, SourceError> {
        Ok(Offset(0))
    }

    fn scan(
        &mut self,
        (from, to): (Offset, Offset),
        apply: &mut dyn FnMut(TopicRecord) -> bool,
    ) -> Result<(), SourceError> {
        let records = committed(&self.world.lock().broker.letters[self.partition as usize], (from, to));
        for record in records {
            if !apply(record) {
                break;
            }
        }
        Ok(())
    }
}

fn committed(log: &Log, (from, to): (Offset, Offset)) -> Vec<TopicRecord> {
    let row = |at: u64| match log.meet(Offset(at)) {
        Met::Row(row) => Some(record(Offset(at), row)),
        Met::Nothing | Met::Wait => None,
    };
    (from.0..to.0).filter_map(row).collect()
}

/// What whoever runs a task has committed of its redrives.
fn progress(world: &World, partition: i32) -> Option<Vec<(u64, RedriveProgress)>> {
    let processes = (0..world.case.nodes).filter_map(|node| world.process(node));
    let reader = processes.filter_map(|process| process.board.task(partition)?.reader).next()?;
    progress_of(&reader).ok()
}

/// Why letters are not at rest.
pub fn unrest(world: &World) -> Option<String> {
    let orders = world.lock().registry.redrives(INCARNATION);
    for partition in 0..world.case.partitions {
        let known = progress(world, partition).unwrap_or_default();
        for order in orders.iter().filter(|order| order.is_open()) {
            let has_ended = known.iter().any(|(id, progress)| *id == order.id && progress.ended);
            if !has_ended {
                return Some(format!(
                    "partition {partition} has not come to the end of redrive {}",
                    order.id
                ));
            }
        }
    }
    None
}

/// Every letter came back at most once, and what came of it is counted.
pub fn check(world: &World) -> Result<(), Violation> {
    let orders = world.lock().registry.redrives(INCARNATION);
    for partition in 0..world.case.partitions {
        let letters: Vec<Letter> = {
            let state = world.lock();
            let log = &state.broker.letters[partition as usize];
            let records = committed(log, (Offset(0), log.end()));
            records.iter().filter_map(Letter::read).collect()
        };
        let mut rows: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for letter in &letters {
            rows.entry(letter.original_offset).or_default().push(letter.retry_count);
        }
        for (offset, counts) in &rows {
            if !counts.iter().copied().eq(0..counts.len() as u32) {
                return Err(format!(
                    "letters: record {partition}@{offset} is a letter as often as {counts:?}"
                ));
            }
        }
        let back = letters.iter().filter(|letter| letter.retry_count > 0).count() as u64;
        let known = progress(world, partition).unwrap_or_default();
        let discards = |id: u64| orders.iter().any(|order| order.id == id && order.entry.discard);
        let of_redrives = || known.iter().filter(|(id, _)| !discards(*id)).map(|(_, progress)| progress);
        let (given, again): (u64, u64) =
            (of_redrives().map(|at| at.given).sum(), of_redrives().map(|at| at.again).sum());
        if given != again || given != back {
            return Err(format!(
                "letters: partition {partition}: {given} were given back, {again} counted as failed again, {back} are there"
            ));
        }
    }
    Ok(())
}

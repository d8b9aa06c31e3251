//! A worker's transactional producer, and a network that loses, holds and drops.

use std::sync::Arc;

use super::broker::{Call, Place, Producer, Refusal, Request, Row};
use super::handler::LETTER;
use super::letters;
use super::process::Process;
use super::world::World;
use crate::effects::{Emitted, EmittedRow};
use crate::node::commit::SinkFactory;
use crate::ports::{CommitError, End, Membership, Produce, Sink, SourceError, TaskOffset};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    /// It arrives, its answer does not.
    AnswerLost,
    /// It arrives later, when nobody waits any more.
    Late,
    Dropped,
}

pub struct ModelSink {
    world: Arc<World>,
    process: Arc<Process>,
    producer: Producer,
}

/// Makes sinks of one transactional id.
pub fn factory(world: &Arc<World>, process: &Arc<Process>, transactional_id: String) -> SinkFactory {
    let (world, process) = (Arc::clone(world), Arc::clone(process));
    Box::new(move || {
        loop {
            if process.is_dead() || world.lock().unlucky(|rates| rates.request_fails) {
                return Err(SourceError::Unavailable("no coordinator".into()));
            }
            let answer = world.lock().broker.init(&transactional_id);
            match answer {
                Ok(producer) => {
                    let (world, process) = (Arc::clone(&world), Arc::clone(&process));
                    return Ok(Box::new(ModelSink { world, process, producer }) as Box<dyn Sink>);
                }
                Err(_) => world.lock().step_broker(),
            }
        }
    })
}

/// Partitions of the output topic.
pub const OUTPUTS: i32 = 2;

fn partition_of(key: Option<&[u8]>) -> i32 {
    key.and_then(<[u8]>::last).map_or(0, |&byte| i32::from(byte) % OUTPUTS)
}

fn row(key: Option<&[u8]>, value: Option<&[u8]>) -> Row {
    Row { key: key.unwrap_or_default().to_vec(), value: value.map(<[u8]>::to_vec), timestamp_ms: 0 }
}

/// What is emitted; the first letter of each record as well, under keys of their own and with the revision
/// that they lack.
fn emitted(emissions: &Emitted) -> impl Iterator<Item = Row> {
    emissions.rows().filter_map(|EmittedRow { output, key, value, headers, .. }| match output {
        0 => Some(row(key, value)),
        _ => letters::is_first(key, value, headers).then(|| {
            let key = [LETTER, key.unwrap_or_default()].concat();
            row(Some(&key), Some(&[value.unwrap_or_default(), &[0; 8]].concat()))
        }),
    })
}

/// Letters, and the partition that each goes to.
fn letters_of(emissions: &Emitted) -> impl Iterator<Item = (i32, Row)> {
    let rows = emissions.rows().filter(|row| row.output != 0);
    rows.map(|row| (row.partition, letters::row(row.key, row.value, row.headers)))
}

impl ModelSink {
    fn rows(&self, place: Place, rows: Vec<Row>) -> Result<(), CommitError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.call(Call::Add(vec![place]))?;
        self.call(Call::Produce(place, rows))
    }

    fn call(&self, call: Call) -> Result<(), CommitError> {
        let unknown = |why: &str| Err(CommitError::Indefinite(why.into()));
        let request = Request { from: self.producer.clone(), call };
        loop {
            if self.process.is_dead() {
                return unknown("dead");
            }
            let mut state = self.world.lock();
            let fate = state.fate();
            match fate {
                Fate::Late => {
                    // To begin a transaction late is no more than to begin one.
                    if !matches!(request.call, Call::Add(_)) {
                        state.broker.hold(request);
                    }
                    return unknown("no answer in time");
                }
                Fate::Dropped => return unknown("the connection broke"),
                Fate::Arrives | Fate::AnswerLost => {}
            }
            let answer = state.broker.handle(&request);
            state.note(|| format!("{:?} {:?}: {answer:?}, {fate:?}", self.producer, request.call));
            match answer {
                Err(Refusal::Concurrent) => {
                    state.step_broker();
                    continue;
                }
                _ if fate == Fate::AnswerLost => return unknown("the answer was lost"),
                Ok(()) => return Ok(()),
                Err(Refusal::Generation(code)) => return Err(CommitError::Generation(code.into())),
                Err(Refusal::Record) => {
                    return Err(CommitError::Record { topic: "out".into(), reason: "too toxic".into() });
                }
                Err(Refusal::Fenced) => return unknown("fenced"),
                Err(Refusal::State) => return unknown("invalid transaction state"),
            }
        }
    }
}

impl ModelSink {
    /// How the node's own producer aborts: a new epoch, asked for until there is an answer. librdkafka's sends an end.
    fn renew(&mut self) -> Result<(), CommitError> {
        loop {
            if self.process.is_dead() {
                return Err(CommitError::Indefinite("dead".into()));
            }
            let mut state = self.world.lock();
            let fate = state.fate();
            // One that arrives late fences as a time-out does, which there is as well.
            let answer = match fate {
                Fate::Arrives | Fate::AnswerLost => state.broker.init(&self.producer.transactional_id).ok(),
                Fate::Late | Fate::Dropped => None,
            };
            state.note(|| format!("{:?} renews: {answer:?}, {fate:?}", self.producer));
            match answer {
                Some(producer) if fate == Fate::Arrives => {
                    self.producer = producer;
                    return Ok(());
                }
                _ => state.step_broker(),
            }
        }
    }
}

impl Sink for ModelSink {
    fn begin(&mut self) -> Result<(), CommitError> {
        Ok(())
    }

    fn produce(&mut self, rows: Produce<'_>) -> Result<(), CommitError> {
        match rows {
            Produce::Changelog(rows) => {
                let columns = rows.keys.iter().zip(rows.values.iter());
                self.rows(
                    Place::Changelog(rows.partition),
                    columns.map(|(key, value)| row(key, value)).collect(),
                )
            }
            Produce::Inbox(rows) => {
                let columns = rows.keys.iter().zip(rows.values.iter());
                self.rows(Place::Inbox(rows.partition), columns.map(|(key, value)| row(key, value)).collect())
            }
            Produce::Emissions(emissions) => {
                for (partition, row) in letters_of(emissions) {
                    self.rows(Place::Letters(partition), vec![row])?;
                }
                (0..OUTPUTS).try_for_each(|output| {
                    let rows = emitted(emissions).filter(|row| partition_of(Some(&row.key)) == output);
                    self.rows(Place::Output(output), rows.collect())
                })
            }
        }
    }

    fn send_offsets(&mut self, offsets: &[TaskOffset], membership: &Membership) -> Result<(), CommitError> {
        if offsets.is_empty() {
            return Err(CommitError::Indefinite("a commit without offsets would not be fenced".into()));
        }
        self.call(Call::Add(vec![Place::Offsets]))?;
        self.call(Call::Offsets(offsets.to_vec(), membership.clone()))
    }

    fn end(&mut self, end: End) -> Result<(), CommitError> {
        match end {
            End::Commit => self.call(Call::End { commit: true }),
            End::Abort if self.world.lock().random.one_in(2) => self.call(Call::End { commit: false }),
            End::Abort => self.renew(),
        }
    }
}

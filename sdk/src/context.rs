//! What a handler can do besides returning: emit records, keep state (through its stores), log.

use std::fmt::{self, Write};

use crate::bindings::tidemill::handler::types::{Effects, Emissions, Prefetched};
use crate::column::{Column, ColumnMark};
use crate::failure::Kind;
use crate::guest::Host;
use crate::payload::Payload;
use crate::record::{write_header, write_varint};
use crate::state::State;
use crate::{Failure, Record};

/// Least to most detailed. A node shows `info` and above unless told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// One record's way to the world. Everything asked for here is kept only if the record succeeds.
pub struct Context {
    host: Box<dyn Host>,
    outputs: &'static [&'static str],
    state: State,
    emit: Emissions,
    /// Emissions when the record in progress began.
    record: EmissionMark,
    /// Index of the record in progress in its batch.
    source: u32,
    timestamp: i64,
    /// A failure of a call that returns nothing; it ends the record when the handler returns.
    later: Option<Failure>,
    /// Headers of the emission in progress.
    headers: Vec<u8>,
    /// Log lines are written here.
    text: String,
}

#[derive(Clone, Copy, Default)]
struct EmissionMark {
    rows: usize,
    keys: ColumnMark,
    values: ColumnMark,
    headers: ColumnMark,
}

impl Context {
    pub(crate) fn new(host: Box<dyn Host>, outputs: &'static [&'static str]) -> Context {
        Context {
            host,
            outputs,
            state: State::new(),
            emit: no_emissions(),
            record: EmissionMark::default(),
            source: 0,
            timestamp: -1,
            later: None,
            headers: Vec::new(),
            text: String::new(),
        }
    }

    /// Emits a record with the timestamp of the one in progress; Kafka's own hash of the key chooses
    /// the partition. For more, see [`Context::to`].
    #[inline]
    pub fn emit(&mut self, output: &str, key: impl Payload, value: impl Payload) -> Result<(), Failure> {
        self.to(output).key(key).value(value).send()
    }

    /// Begins an emission: `ctx.to("alerts").key(k).value(v).header("source", b"x").send()?`. Key and
    /// value are null until set. Nothing is emitted without `send`.
    #[inline]
    pub fn to(&mut self, output: &str) -> Emission<'_> {
        let found = self.outputs.iter().position(|name| *name == output);
        let failure = match found {
            Some(_) => None,
            None => Some(Failure::permanent(format!(
                "the handler declares no output `{output}`, only {:?}",
                self.outputs
            ))),
        };
        self.headers.clear();
        Emission {
            mark: self.mark(),
            output: found.unwrap_or_default() as u16,
            partition: -1,
            timestamp: -1,
            keyed: false,
            valued: false,
            header_count: 0,
            failure,
            ctx: self,
        }
    }

    /// The time of the record in progress, in milliseconds since the epoch. There is no other clock:
    /// a handler that runs again, after a crash or in a test, sees the same time again.
    pub fn timestamp(&self) -> Option<i64> {
        (self.timestamp >= 0).then_some(self.timestamp)
    }

    /// Writes a line to the node's log, with the deployment and the partition. See also [`crate::info!`].
    pub fn log(&mut self, level: Level, text: impl fmt::Display) {
        self.text.clear();
        // Writing to a string fails only if `text` itself does; what it wrote until then is the line.
        let _ = write!(self.text, "{text}");
        self.host.log(level, &self.text);
    }

    pub(crate) fn state_and_host(&mut self) -> (&mut State, &mut dyn Host) {
        (&mut self.state, &mut *self.host)
    }

    pub(crate) fn fail_later(&mut self, failure: Failure) {
        self.later.get_or_insert(failure);
    }

    pub(crate) fn begin(&mut self, prefetched: Prefetched) {
        self.state.begin(prefetched);
        self.emit = no_emissions();
    }

    pub(crate) fn begin_record(&mut self, source: u32, record: &Record<'_>) {
        self.source = source;
        self.timestamp = record.timestamp;
        self.later = None;
        self.record = self.mark();
        self.state.begin_record(source);
    }

    /// Ends the record in progress: keeps its effects, or takes them back and says why.
    pub(crate) fn end_record(&mut self, result: Result<(), Failure>) -> Result<(), (Kind, Failure)> {
        let failure = match (result, self.later.take()) {
            (Ok(()), None) => return Ok(()),
            (Err(failure), _) | (Ok(()), Some(failure)) => failure,
        };
        self.truncate(self.record);
        self.state.rollback(&mut *self.host);
        Err((failure.kind(), failure))
    }

    pub(crate) fn finish(&mut self, status: Vec<u8>, reason: Column) -> Effects {
        let emit = std::mem::replace(&mut self.emit, no_emissions());
        Effects { emit, write: self.state.finish(), status, reason }
    }

    fn mark(&self) -> EmissionMark {
        EmissionMark {
            rows: self.emit.source.len(),
            keys: self.emit.key.mark(),
            values: self.emit.value.mark(),
            headers: self.emit.headers.mark(),
        }
    }

    fn truncate(&mut self, mark: EmissionMark) {
        self.emit.source.truncate(mark.rows);
        self.emit.output.truncate(mark.rows);
        self.emit.partition.truncate(mark.rows);
        self.emit.timestamp.truncate(mark.rows);
        self.emit.key.truncate(mark.keys);
        self.emit.value.truncate(mark.values);
        self.emit.headers.truncate(mark.headers);
    }
}

fn no_emissions() -> Emissions {
    Emissions {
        source: Vec::new(),
        output: Vec::new(),
        partition: Vec::new(),
        timestamp: Vec::new(),
        key: Column::new(),
        value: Column::new(),
        headers: Column::new(),
    }
}

/// An emission in the making. Its bytes go straight into the columns that return to the node.
#[must_use = "nothing is emitted without `send`"]
pub struct Emission<'c> {
    ctx: &'c mut Context,
    mark: EmissionMark,
    output: u16,
    partition: i32,
    timestamp: i64,
    keyed: bool,
    valued: bool,
    header_count: i64,
    failure: Option<Failure>,
}

impl Emission<'_> {
    #[inline]
    pub fn key(mut self, key: impl Payload) -> Self {
        self.ctx.emit.key.truncate(self.mark.keys);
        match key.write(&mut self.ctx.emit.key.bytes) {
            Ok(present) => self.ctx.emit.key.close_row(self.mark.keys.bytes, present),
            Err(failure) => self.failure = Some(failure),
        }
        self.keyed = true;
        self
    }

    #[inline]
    pub fn value(mut self, value: impl Payload) -> Self {
        self.ctx.emit.value.truncate(self.mark.values);
        match value.write(&mut self.ctx.emit.value.bytes) {
            Ok(present) => self.ctx.emit.value.close_row(self.mark.values.bytes, present),
            Err(failure) => self.failure = Some(failure),
        }
        self.valued = true;
        self
    }

    /// Adds a header; a name may repeat.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        write_header(name.as_bytes(), Some(value.as_ref()), &mut self.ctx.headers);
        self.header_count += 1;
        self
    }

    /// Passes on the headers of a record, which a handler sees only if it is exported with
    /// `wants_headers: true`.
    pub fn headers_of(mut self, record: &Record<'_>) -> Self {
        let (count, encoded) = record.headers().encoded();
        self.ctx.headers.extend_from_slice(encoded);
        self.header_count += count;
        self
    }

    /// The partition to write to, instead of the one that the key's hash gives.
    pub fn partition(mut self, partition: u16) -> Self {
        self.partition = i32::from(partition);
        self
    }

    /// Milliseconds since the epoch, instead of the time of the record in progress.
    pub fn timestamp(mut self, timestamp_ms: i64) -> Self {
        if timestamp_ms < 0 {
            self.failure =
                Some(Failure::permanent(format!("a timestamp of {timestamp_ms} ms is before 1970")));
        }
        self.timestamp = timestamp_ms;
        self
    }

    /// Emits the record. Fails as permanent if the output is not declared or a part of it cannot be written.
    #[inline]
    pub fn send(mut self) -> Result<(), Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let emit = &mut self.ctx.emit;
        if !self.keyed {
            emit.key.push(None);
        }
        if !self.valued {
            emit.value.push(None);
        }
        if self.header_count == 0 {
            emit.headers.push(None);
        } else {
            let start = emit.headers.bytes.len();
            write_varint(self.header_count, &mut emit.headers.bytes);
            emit.headers.bytes.extend_from_slice(&self.ctx.headers);
            emit.headers.close_row(start, true);
        }
        emit.source.push(self.ctx.source);
        emit.output.push(self.output);
        emit.partition.push(self.partition);
        emit.timestamp.push(self.timestamp);
        Ok(())
    }
}

impl Drop for Emission<'_> {
    #[inline]
    fn drop(&mut self) {
        // Sent emissions have their row; of all others nothing may stay.
        if self.ctx.emit.source.len() == self.mark.rows {
            self.ctx.emit.key.truncate(self.mark.keys);
            self.ctx.emit.value.truncate(self.mark.values);
        }
    }
}

/// Writes an error to the node's log: `error!(ctx, "no rate for {currency}")`.
#[macro_export]
macro_rules! error {
    ($ctx:expr, $($text:tt)+) => { $ctx.log($crate::Level::Error, ::core::format_args!($($text)+)) };
}

/// Writes a warning to the node's log.
#[macro_export]
macro_rules! warn {
    ($ctx:expr, $($text:tt)+) => { $ctx.log($crate::Level::Warn, ::core::format_args!($($text)+)) };
}

/// Writes a line to the node's log.
#[macro_export]
macro_rules! info {
    ($ctx:expr, $($text:tt)+) => { $ctx.log($crate::Level::Info, ::core::format_args!($($text)+)) };
}

/// Writes a line to the node's log for those who look closely.
#[macro_export]
macro_rules! debug {
    ($ctx:expr, $($text:tt)+) => { $ctx.log($crate::Level::Debug, ::core::format_args!($($text)+)) };
}

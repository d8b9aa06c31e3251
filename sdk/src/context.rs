//! What a handler can do besides returning: emit records, keep state (through its stores), log.

use std::fmt::{self, Write};

use crate::bindings::tidemill::handler::types::{Effects, Prefetched};
use crate::column::Column;
use crate::emit::{Emission, Out};
use crate::failure::Kind;
use crate::guest::Host;
use crate::payload::Payload;
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
    out: Out,
    timestamp: i64,
    /// A failure of a call that returns nothing; it ends the record when the handler returns.
    later: Option<Failure>,
    /// Log lines are written here.
    text: String,
}

impl Context {
    pub(crate) fn new(host: Box<dyn Host>, outputs: &'static [&'static str]) -> Context {
        Context {
            host,
            outputs,
            state: State::new(),
            out: Out::default(),
            timestamp: -1,
            later: None,
            text: String::new(),
        }
    }

    /// Emits a record with the timestamp of the one in progress; Kafka's own hash of the key chooses
    /// the partition. For more, see [`Context::to`].
    #[inline]
    pub fn emit(&mut self, output: &str, key: impl Payload, value: impl Payload) -> Result<(), Failure> {
        let output = self.output(output)?;
        self.out.emit(output, key, value)
    }

    /// Begins an emission: `ctx.to("alerts").key(k).value(v).header("source", b"x").send()?`. Key and
    /// value are null until set. Nothing is emitted without `send`.
    #[inline]
    pub fn to(&mut self, output: &str) -> Emission<'_> {
        let output = self.output(output);
        Emission::begin(&mut self.out, output)
    }

    /// The index of an output.
    #[inline]
    fn output(&self, output: &str) -> Result<u16, Failure> {
        match self.outputs.iter().position(|name| *name == output) {
            Some(index) => Ok(index as u16),
            None => Err(Failure::permanent(format!(
                "the handler declares no output `{output}`, only {:?}",
                self.outputs
            ))),
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
        self.out.begin();
    }

    #[inline]
    pub(crate) fn begin_record(&mut self, source: u32, record: &Record<'_>) {
        self.timestamp = record.timestamp;
        self.out.begin_record(source);
        self.state.begin_record(source);
    }

    /// Ends the record in progress: keeps its effects, or takes them back and says why.
    #[inline]
    pub(crate) fn end_record(&mut self, result: Result<(), Failure>) -> Result<(), (Kind, Failure)> {
        let failure = match (result, self.later.take()) {
            (Ok(()), None) => return Ok(()),
            (Err(failure), _) | (Ok(()), Some(failure)) => failure,
        };
        self.out.rollback();
        self.state.rollback(&mut *self.host);
        Err((failure.kind(), failure))
    }

    pub(crate) fn finish(&mut self, status: Vec<u8>, reason: Column) -> Effects {
        Effects { emit: self.out.finish(), write: self.state.finish(), status, reason }
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

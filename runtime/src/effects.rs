//! What a handler asks for: emissions and state writes, as values. Nothing here has happened yet.

mod emitted;

pub use emitted::{Emitted, EmittedRow};

use crate::record::Column;

/// What became of one record of a batch. The numbers are the handler ABI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    /// May succeed when tried again.
    Transient = 1,
    /// Fails every time.
    Permanent = 2,
    /// An earlier record of its key failed; this one was not run.
    Blocked = 3,
    /// Cannot be read: not what the handler expects.
    Decode = 4,
    /// Can be read, and is not what its schema says.
    Schema = 5,
}

impl Status {
    pub fn from_abi(byte: u8) -> Option<Status> {
        match byte {
            0 => Some(Status::Ok),
            1 => Some(Status::Transient),
            2 => Some(Status::Permanent),
            3 => Some(Status::Blocked),
            4 => Some(Status::Decode),
            5 => Some(Status::Schema),
            _ => None,
        }
    }
}

/// What to hold back after a record of a batch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Key,
    All,
    None,
}

/// Records to emit, as columns. Every column has one row per emission. What of them waits for the commit is
/// [`Emitted`].
#[derive(Debug, Clone, Default)]
pub struct Emissions {
    /// Index of the record of the batch that caused the row; rises.
    pub sources: Vec<u32>,
    /// Index into the manifest's outputs.
    pub outputs: Vec<u16>,
    /// -1 = by the key's hash.
    pub partitions: Vec<i32>,
    /// Milliseconds since the epoch; resolved by the host, never -1 unless the input record has none.
    pub timestamps: Vec<i64>,
    pub keys: Column,
    pub values: Column,
    /// Kafka's header encoding; null = none.
    pub headers: Column,
}

/// One row of [`Emissions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emission<'a> {
    pub source: u32,
    pub output: u16,
    pub partition: i32,
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Option<&'a [u8]>,
}

impl Emissions {
    /// What a row costs beside its bytes: source, output, partition, timestamp, lengths.
    pub const ROW_BYTES: usize = 32;

    pub fn len(&self) -> usize {
        self.sources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.keys.bytes().len() + self.values.bytes().len() + self.headers.bytes().len()
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = Emission<'_>> {
        let places = self.outputs.iter().zip(&self.partitions);
        let numbers = self.sources.iter().zip(places).zip(&self.timestamps);
        let columns = self.keys.iter().zip(self.values.iter()).zip(self.headers.iter());
        numbers.zip(columns).map(|(numbers, columns)| {
            let ((&source, (&output, &partition)), &timestamp) = numbers;
            let ((key, value), headers) = columns;
            Emission { source, output, partition, timestamp, key, value, headers }
        })
    }

    /// Appends a row.
    pub fn push(&mut self, row: Emission<'_>) {
        self.sources.push(row.source);
        self.outputs.push(row.output);
        self.partitions.push(row.partition);
        self.timestamps.push(row.timestamp);
        self.keys.push(row.key);
        self.values.push(row.value);
        self.headers.push(row.headers);
    }

    /// Forgets the rows and keeps their memory.
    pub fn clear(&mut self) {
        self.sources.clear();
        self.outputs.clear();
        self.partitions.clear();
        self.timestamps.clear();
        self.keys.clear();
        self.values.clear();
        self.headers.clear();
    }
}

/// State changes in the order they were made; a null value deletes.
#[derive(Debug, Clone, Default)]
pub struct Writes {
    /// Index of the record of the batch that caused the row.
    pub sources: Vec<u32>,
    /// Index into the manifest's stores.
    pub stores: Vec<u16>,
    pub keys: Column,
    pub values: Column,
}

impl Writes {
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}

/// Everything one `handle` call returned, already checked: indices in range, columns consistent,
/// sizes within the deployment's limits. Rows of records that are not `Ok` are still in it; the
/// task leaves them out.
#[derive(Debug, Clone, Default)]
pub struct Effects {
    pub emissions: Emissions,
    pub writes: Writes,
    /// One row per record of the batch.
    pub statuses: Vec<Status>,
    /// Why a record failed; one row per record of the batch.
    pub reasons: Column,
}

/// Committed state handed to a call beforehand; a null value says that the store has no such key.
#[derive(Debug, Clone, Default)]
pub struct Prefetched {
    pub stores: Vec<u16>,
    pub keys: Column,
    pub values: Column,
}

/// `30 seconds`, `1500 ms`.
fn spelled_out(ms: u64) -> String {
    match (ms / 1000, ms % 1000) {
        (1, 0) => "1 second".to_owned(),
        (seconds @ 2.., 0) => format!("{seconds} seconds"),
        _ => format!("{ms} ms"),
    }
}

/// Why a call failed as a whole. Which record is at fault is known only after a replay one by one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The guest trapped, or what it returned breaks the ABI.
    #[error("trap: {0}")]
    Trap(String),
    /// The first words are the operations handbook's.
    #[error("Handler timeout after {} of CPU time for one record", spelled_out(*.limit_ms))]
    Timeout { limit_ms: u64 },
    /// A limit of the deployment: memory, table, output bytes, output records.
    #[error("limit: {0}")]
    Limit(String),
    /// The state behind the call could not be read; the guest is not to blame.
    #[error("store: {0}")]
    Store(String),
    /// No instance could be started; no record is at fault.
    #[error("{0}")]
    Start(String),
    /// The deployment stops; no record is at fault.
    #[error("interrupted: the deployment stops")]
    Interrupted,
}

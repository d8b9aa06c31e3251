//! One assigned partition of a consumer, and the batch that a `take` fills for it.

use std::cell::Cell;

use crate::kafka::fetch::Run;
use crate::kafka::ffi::Message;
use crate::ports::Taken;
use crate::record::{Batch, Column, InputPartition};

/// A partition of the assignment, whoever fetches it.
///
/// ```text
/// assign -> Stopped --start--> Running --stop | error | revoke--> Stopped
///                                |  ^                               ^
///                           hold |  | go on                         |
///                                v  |                               |
///                                Held ----------stop | revoke-------+
/// ```
/// Only what librdkafka fetches is ever held.
pub(super) struct Slot {
    pub id: InputPartition,
    state: State,
    /// Next record to hand out: at first the start, then after the last one.
    pub next: i64,
    /// Leader epoch that was told last of this partition; -1 = none yet.
    pub epoch: Cell<i32>,
    /// Of what the node fetches by itself: which run of the partition this is, and the offset after what was taken of it
    /// last, transaction markers and aborted records included.
    pub run: Option<Run>,
    pub position: Option<i64>,
    /// The batch of the `take` in progress.
    pub batch: Batch,
    /// Rows and bytes of the last batch, as the size of the next.
    hint: (usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Stopped,
    Running,
    Held,
}

impl Slot {
    /// An assigned partition, stopped.
    pub fn new(id: InputPartition, next: i64) -> Slot {
        Slot {
            id,
            state: State::Stopped,
            next,
            epoch: Cell::new(-1),
            run: None,
            position: None,
            batch: Batch::default(),
            hint: (0, 0),
        }
    }

    /// `run` = the node fetches it by itself.
    pub fn run(&mut self, from: i64, run: Option<Run>) {
        self.next = from;
        self.epoch.set(-1);
        self.run = run;
        self.position = None;
        self.state = State::Running;
    }

    pub fn stop(&mut self) {
        self.state = State::Stopped;
        self.run = None;
        self.batch = Batch::default();
    }

    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub fn hold(&mut self) {
        if self.is_running() {
            self.state = State::Held;
        }
    }

    pub fn is_held(&self) -> bool {
        self.state == State::Held
    }

    pub fn go_on(&mut self) {
        self.state = State::Running;
    }

    /// Starts a batch about as large as the last one.
    pub fn open(&mut self) {
        let (rows, bytes) = self.hint;
        self.batch = Batch {
            input: self.id.input,
            partition: self.id.partition,
            offsets: Vec::with_capacity(rows),
            timestamps: Vec::with_capacity(rows),
            keys: Column::with_capacity(rows, bytes / 4),
            values: Column::with_capacity(rows, bytes),
            headers: Column::default(),
            ids: Column::default(),
            numbers: Vec::new(),
        };
    }

    /// Appends a record and answers the bytes of its headers.
    pub fn push(&mut self, message: &Message, wants_headers: bool) -> usize {
        let batch = &mut self.batch;
        batch.offsets.push(message.offset());
        batch.timestamps.push(message.timestamp());
        batch.keys.push(message.key());
        batch.values.push(message.value());
        self.next = message.offset() + 1;
        if !wants_headers {
            return 0;
        }
        let mut headers = Vec::new();
        message.headers(&mut headers);
        batch.headers.push((!headers.is_empty()).then_some(&headers[..]));
        headers.len()
    }
}

/// Hands the batch of a slot out, if it holds anything.
pub(super) fn flush(slot: &mut Slot, out: &mut Vec<Taken>) {
    if slot.batch.is_empty() {
        return;
    }
    let batch = std::mem::take(&mut slot.batch);
    slot.hint = (batch.len(), batch.bytes());
    out.push(Taken::Batch(batch));
}

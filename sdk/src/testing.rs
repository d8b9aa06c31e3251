//! A driver for tests of handlers: feeds records, keeps state and emissions in memory, natively, in
//! an ordinary `#[test]`. No broker and no Wasm; the loop over a batch is the very one that runs in a node.
//!
//! ```
//! # use tidemill_sdk::{Context, Failure, Handler, Record, Store};
//! # struct Upper {}
//! # impl Handler for Upper {
//! #     fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
//! #         ctx.emit("out", record.key_or_null(), record.text()?.to_uppercase())
//! #     }
//! # }
//! # tidemill_sdk::export!(Upper { inputs: ["in"], outputs: ["out"] });
//! use tidemill_sdk::testing::{Driver, Outcome, record};
//!
//! let mut driver = Driver::<Upper>::new();
//! let outcomes = driver.feed([record("in").key("k").value("a"), record("in").key("k")]);
//! assert_eq!(outcomes, [Outcome::Ok, Outcome::Decode("the record has no value".into())]);
//! assert_eq!(driver.emitted("out"), ["k=A"]);
//! ```

mod node;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::bindings::tidemill::handler::types::{Effects, Prefetched, Records};
use crate::column::Column;
use crate::guest::{Declaration, Definition, Guest, status};
use crate::record::{write_header, write_varint};
use crate::{Header, Headers, Level, Value};
use node::{Node, WriteEntry, rows};

/// What to hold back after a record of a batch failed; `Key` unless the deployment says otherwise.
pub use crate::bindings::tidemill::handler::types::Order;

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// The reason that the handler gave.
    Transient(String),
    Permanent(String),
    Decode(String),
    Schema(String),
    /// Not run, because an earlier record of its key failed.
    Blocked,
}

/// A record to feed: `record("words").key("a").value("b")`. Key and value are null until set.
pub fn record(input: &str) -> Input {
    Input { input: input.into(), key: None, value: None, headers: Vec::new(), timestamp: None }
}

#[derive(Debug, Clone)]
pub struct Input {
    input: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    timestamp: Option<i64>,
}

impl Input {
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Input {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    pub fn value(mut self, value: impl AsRef<[u8]>) -> Input {
        self.value = Some(value.as_ref().to_vec());
        self
    }

    /// Seen by handlers exported with `wants_headers: true`.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Input {
        self.headers.push((name.into(), value.as_ref().to_vec()));
        self
    }

    /// Milliseconds since the epoch. Without it the record has none.
    pub fn timestamp(mut self, timestamp_ms: i64) -> Input {
        self.timestamp = Some(timestamp_ms);
        self
    }

    fn encoded_headers(&self) -> Option<Vec<u8>> {
        if self.headers.is_empty() {
            return None;
        }
        let mut out = Vec::new();
        write_varint(self.headers.len() as i64, &mut out);
        for (name, value) in &self.headers {
            write_header(name.as_bytes(), Some(value), &mut out);
        }
        Some(out)
    }
}

/// A record that the handler emitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    pub output: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// Name and value, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// None = by the key's hash.
    pub partition: Option<u16>,
    /// Milliseconds since the epoch.
    pub timestamp: Option<i64>,
}

/// One instance of the handler `H` and the part of a node that it needs.
pub struct Driver<H> {
    guest: Guest<H>,
    node: Rc<RefCell<Node>>,
    declaration: Declaration,
    config: Vec<u8>,
    order: Order,
    partition: i32,
    next_offset: i64,
    emitted: Vec<Emitted>,
}

impl<H: Definition> Default for Driver<H> {
    fn default() -> Driver<H> {
        Driver::new()
    }
}

impl<H: Definition> Driver<H> {
    /// A handler without configuration. Panics if it refuses, because a test has nothing else to do then.
    pub fn new() -> Driver<H> {
        Driver::with_config("{}")
    }

    /// A handler with the deployment's `config:` as JSON. Panics if the handler refuses it.
    pub fn with_config(json: &str) -> Driver<H> {
        match Driver::try_with_config(json) {
            Ok(driver) => driver,
            Err(reason) => panic!("the handler refuses its configuration: {reason}"),
        }
    }

    /// As [`Driver::with_config`], for tests of the refusal.
    pub fn try_with_config(json: &str) -> Result<Driver<H>, String> {
        let declaration = H::declaration();
        let node = Rc::new(RefCell::new(Node::new(declaration.stores.len())));
        Ok(Driver {
            guest: Guest::create(json.as_bytes(), Box::new(node.clone()))?,
            node,
            declaration,
            config: json.into(),
            order: Order::Key,
            partition: 0,
            next_offset: 0,
            emitted: Vec::new(),
        })
    }

    pub fn set_order(&mut self, order: Order) {
        self.order = order;
    }

    /// The partition that records are said to come from; 0 unless set.
    pub fn set_partition(&mut self, partition: i32) {
        self.partition = partition;
    }

    /// Drops the instance and makes a new one, as a node may between any two batches.
    pub fn restart(&mut self) {
        self.guest = match Guest::create(&self.config, Box::new(self.node.clone())) {
            Ok(guest) => guest,
            Err(reason) => panic!("the handler refuses its configuration: {reason}"),
        };
    }

    /// Hands over the records as one batch and keeps the effects of those that end well.
    pub fn feed(&mut self, records: impl IntoIterator<Item = Input>) -> Vec<Outcome> {
        let batch = self.batch(records.into_iter().collect());
        let prefetched = self.prefetch(&batch);
        let effects = self.guest.handle(&batch, prefetched);
        self.apply(&batch, effects)
    }

    fn batch(&mut self, records: Vec<Input>) -> Records {
        let mut batch = Records {
            input: Vec::new(),
            partition: self.partition,
            offset: Vec::new(),
            timestamp: Vec::new(),
            key: Column::new(),
            value: Column::new(),
            headers: Column::new(),
            order: self.order,
        };
        for record in records {
            let input = self.declaration.inputs.iter().position(|name| *name == record.input);
            let Some(input) = input else {
                panic!(
                    "the handler declares no input `{}`, only {:?}",
                    record.input, self.declaration.inputs
                );
            };
            batch.input.push(input as u16);
            batch.offset.push(self.next_offset);
            batch.timestamp.push(record.timestamp.unwrap_or(-1));
            batch.key.push(record.key.as_deref());
            batch.value.push(record.value.as_deref());
            if self.declaration.wants_headers {
                batch.headers.push(record.encoded_headers().as_deref());
            }
            self.next_offset += 1;
        }
        batch
    }

    /// The values of the records' keys in the stores declared `prefetch`, as a node hands them over.
    fn prefetch(&self, batch: &Records) -> Prefetched {
        let node = self.node.borrow();
        let mut rows = Prefetched { store: Vec::new(), key: Column::new(), value: Column::new() };
        let keys: BTreeSet<&[u8]> = batch.key.rows().flatten().collect();
        for (index, store) in self.declaration.stores.iter().enumerate() {
            for key in keys.iter().filter(|_| store.prefetch) {
                rows.store.push(index as u16);
                rows.key.push(Some(key));
                rows.value.push(node.stores[index].get(*key).map(Vec::as_slice));
            }
        }
        rows
    }

    fn apply(&mut self, batch: &Records, effects: Effects) -> Vec<Outcome> {
        let Effects { emit, write, status, reason } = effects;
        let mut node = self.node.borrow_mut();
        // What `put-many` handed over came before what is returned.
        let handed = std::mem::take(&mut node.handed);
        for writes in handed.iter().chain([&write]) {
            for row in rows(writes).filter(|row| status[row.source] == status::OK) {
                node.stores[row.store].write(row.key, row.value);
            }
        }
        node.scratch.clear();

        let (mut keys, mut values, mut headers) = (emit.key.rows(), emit.value.rows(), emit.headers.rows());
        for (row, &source) in emit.source.iter().enumerate() {
            let source = source as usize;
            let (key, value) = (keys.next().flatten(), values.next().flatten());
            let headers = headers.next().flatten().unwrap_or_default();
            if status[source] != status::OK {
                continue;
            }
            let timestamp =
                if emit.timestamp[row] < 0 { batch.timestamp[source] } else { emit.timestamp[row] };
            self.emitted.push(Emitted {
                output: self.declaration.outputs[usize::from(emit.output[row])].into(),
                key: key.map(<[u8]>::to_vec),
                value: value.map(<[u8]>::to_vec),
                headers: Headers::of(headers).map(owned).collect(),
                partition: u16::try_from(emit.partition[row]).ok(),
                timestamp: (timestamp >= 0).then_some(timestamp),
            });
        }
        let outcome = |(status, reason): (u8, Option<&[u8]>)| {
            let reason = String::from_utf8_lossy(reason.unwrap_or_default()).into_owned();
            match status {
                status::OK => Outcome::Ok,
                status::TRANSIENT => Outcome::Transient(reason),
                status::PERMANENT => Outcome::Permanent(reason),
                status::DECODE => Outcome::Decode(reason),
                status::SCHEMA => Outcome::Schema(reason),
                _ => Outcome::Blocked,
            }
        };
        status.into_iter().zip(reason.rows()).map(outcome).collect()
    }

    /// Everything emitted so far, in order.
    pub fn emissions(&self) -> &[Emitted] {
        &self.emitted
    }

    /// What went to one output so far, each as `key=value`; null is shown as `null`.
    pub fn emitted(&self, output: &str) -> Vec<String> {
        let show = |bytes: &Option<Vec<u8>>| match bytes {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => "null".into(),
        };
        let of_output = self.emitted.iter().filter(|emitted| emitted.output == output);
        of_output.map(|emitted| format!("{}={}", show(&emitted.key), show(&emitted.value))).collect()
    }

    /// The value of a key. Panics if there is no such store or the value is no `V`.
    pub fn state<V: Value>(&self, store: &str, key: impl AsRef<[u8]>) -> Option<V::Owned> {
        let node = self.node.borrow();
        let bytes = node.stores[self.store(store)].get(key.as_ref())?;
        match V::decode(bytes) {
            Ok(value) => Some(value),
            Err(failure) => panic!("store `{store}`: {failure}"),
        }
    }

    /// The keys of a store, in byte order.
    pub fn keys(&self, store: &str) -> Vec<Vec<u8>> {
        self.node.borrow().stores[self.store(store)].keys().cloned().collect()
    }

    /// Sets a value before or between batches.
    pub fn set_state<V: Value>(&mut self, store: &str, key: impl AsRef<[u8]>, value: &V::Given) {
        let mut bytes = Vec::new();
        if let Err(failure) = V::encode(value, &mut bytes) {
            panic!("store `{store}`: {failure}");
        }
        let store = self.store(store);
        self.node.borrow_mut().stores[store].write(key.as_ref(), Some(&bytes));
    }

    /// Lines logged so far.
    pub fn logs(&self) -> Vec<(Level, String)> {
        self.node.borrow().logs.clone()
    }

    /// Reads that had to ask the node so far: zero as long as prefetched values suffice.
    pub fn state_reads(&self) -> u64 {
        self.node.borrow().reads
    }

    fn store(&self, name: &str) -> usize {
        match self.declaration.stores.iter().position(|store| store.name == name) {
            Some(index) => index,
            None => panic!("the handler declares no store `{name}`"),
        }
    }
}

fn owned(header: Header<'_>) -> (String, Option<Vec<u8>>) {
    (String::from_utf8_lossy(header.name).into_owned(), header.value.map(<[u8]>::to_vec))
}

//! The handler of `bench/pass` as a part of the node: what the Wasm tax is measured against. It goes through the same loop
//! of the SDK as in Wasm, and is called with the same batches, one column of inputs and CPU times included.
//!
//! What it is spared: the copies of a batch into a linear memory and of effects out of it, the call through the
//! component with its limits of memory, output and CPU time (the epoch), and the checks of what came back. Two things
//! are left of those: timestamps are filled in, as they are for a guest, and lengths are summed up, without which there
//! is no column.

use std::cell::RefCell;
use std::time::Duration;

use bench_pass::Pass;
use tidemill::config::manifest::Manifest;
use tidemill::effects::{Effects, Emissions, Fault, Order, Prefetched, Status, Writes};
use tidemill::ports::Handler;
use tidemill::record::{Batch, Column, first_wrong};
use tidemill::store::View;
use tidemill::wasm::thread_cpu_time;
use tidemill_sdk::bindings::tidemill::handler::types;
use tidemill_sdk::guest::{Definition, Guest, Lent, NoNode};

use crate::boundary::no_state;

/// Stands for the timestamp of the record that an emission is of.
const OF_RECORD: i64 = -1;

thread_local! {
    /// One for all tasks of a worker: between two calls it remembers no more than how large the last one was. It
    /// cannot move to another thread.
    static GUEST: RefCell<Guest<Pass>> = RefCell::new(guest());
}

fn guest() -> Guest<Pass> {
    Guest::create(b"{}", Box::new(NoNode)).expect("the handler takes no configuration")
}

/// The handler of a task of `bench/pass`; refused to modules that do not look like it.
pub fn handler(manifest: &Manifest) -> Result<Box<dyn Handler>, String> {
    let mine: Manifest =
        serde_json::from_slice(&Pass::declaration().manifest()).map_err(|error| error.to_string())?;
    if *manifest != mine {
        return Err("this node has the handler of bench/pass, and no other".into());
    }
    Ok(Box::new(Native::default()))
}

#[derive(Default)]
struct Native {
    /// The batch's input, once per record, as the ABI wants it.
    inputs: Vec<u16>,
    /// CPU time of the last call.
    used: Duration,
}

impl Handler for Native {
    fn handle(&mut self, batch: &Batch, order: Order, _: Prefetched, _: &mut View) -> Result<Effects, Fault> {
        let began = thread_cpu_time();
        let result = self.run(batch, order);
        self.used = thread_cpu_time().saturating_sub(began);
        result
    }

    fn renew(&mut self) -> Result<(), Fault> {
        GUEST.set(guest());
        self.used = Duration::ZERO;
        Ok(())
    }

    fn used(&self) -> Duration {
        self.used
    }
}

impl Native {
    fn run(&mut self, batch: &Batch, order: Order) -> Result<Effects, Fault> {
        self.inputs.clear();
        self.inputs.resize(batch.len(), batch.input);
        let lent = Lent {
            input: &self.inputs,
            partition: batch.partition,
            offset: &batch.offsets,
            timestamp: &batch.timestamps,
            key: (batch.keys.bytes(), batch.keys.lengths()),
            value: (batch.values.bytes(), batch.values.lengths()),
            headers: (&[], &[]),
            order: match order {
                Order::Key => types::Order::Key,
                Order::All => types::Order::All,
                Order::None => types::Order::None,
            },
        };
        let raw = GUEST.with_borrow_mut(|guest| guest.handle_lent(&lent, no_state()));
        effects(raw, batch)
    }
}

/// As the node has them. A handler that passes everything on writes nothing, and no record of it fails.
fn effects(raw: types::Effects, batch: &Batch) -> Result<Effects, Fault> {
    let types::Effects { emit, status, reason, .. } = raw;
    if first_wrong(&status, |status| status != Status::Ok as u8).is_some() {
        return Err(Fault::Trap("a record failed that was only to be passed on".into()));
    }
    let mut timestamps = emit.timestamp;
    for (timestamp, &source) in timestamps.iter_mut().zip(&emit.source) {
        if *timestamp == OF_RECORD {
            *timestamp = batch.timestamps[source as usize];
        }
    }
    let emissions = Emissions {
        sources: emit.source,
        outputs: emit.output,
        partitions: emit.partition,
        timestamps,
        keys: column(emit.key)?,
        values: column(emit.value)?,
        headers: column(emit.headers)?,
    };
    let statuses = vec![Status::Ok; status.len()];
    Ok(Effects { emissions, writes: Writes::default(), statuses, reasons: column(reason)? })
}

fn column(raw: types::Column) -> Result<Column, Fault> {
    Column::from_parts(raw.bytes, raw.lengths).map_err(|error| Fault::Trap(error.to_string()))
}

#[cfg(test)]
mod tests {
    use tidemill::effects::Emission;

    use super::*;
    use crate::boundary;

    #[test]
    fn it_answers_what_the_same_handler_answers_in_wasm() {
        let mut batch = Batch {
            partition: 3,
            offsets: vec![4, 6, 7],
            timestamps: vec![1_700_000_000_000, -1, 5],
            ..Batch::default()
        };
        [Some("k"), None, Some("gone")].iter().for_each(|key| batch.keys.push(key.map(str::as_bytes)));
        [Some("value"), Some(""), None].iter().for_each(|value| batch.values.push(value.map(str::as_bytes)));
        let linked = boundary::link("bench/pass").expect("a handler");
        let in_wasm: Box<dyn Handler> = Box::new(linked.instantiate(3).expect("it starts"));
        let natively = handler(linked.manifest()).expect("the same handler");
        let [in_wasm, natively] = [in_wasm, natively].map(|mut handler| {
            let (prefetched, mut state) = (Prefetched::default(), View::default());
            handler.handle(&batch, Order::Key, prefetched, &mut state).expect("no fault")
        });
        let rows: Vec<Emission<'_>> = natively.emissions.rows().collect();
        assert_eq!(rows, in_wasm.emissions.rows().collect::<Vec<_>>());
        assert_eq!(rows.len(), 3);
        assert_eq!((natively.statuses, natively.reasons), (in_wasm.statuses, in_wasm.reasons));
        assert!(natively.writes.is_empty() && in_wasm.writes.is_empty());
    }

    #[test]
    fn another_module_is_refused() {
        let manifest = boundary::link("plugins/count").expect("a handler").manifest().clone();
        let Err(refusal) = handler(&manifest) else { panic!("a module with a store got this handler") };
        assert!(refusal.contains("bench/pass"), "{refusal}");
    }
}

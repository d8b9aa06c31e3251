//! What the boundary between node and handler costs: nanoseconds per record through Wasm, beside the
//! same handler, through the same loop of the SDK, compiled natively.
//!
//! The handler passes records through, so all that is measured is getting a batch in and its effects
//! out, checked. Measured is this thread's CPU time, in short alternating rounds, of which the fastest
//! is printed: whatever else the machine does meanwhile can only add to it.

use std::time::Duration;

use anyhow::{Result, ensure};
use bench_pass::Pass;
use tidemill::config::deployment::Limits;
use tidemill::effects::{Order, Prefetched};
use tidemill::ports::Handler;
use tidemill::record::{Batch, Column};
use tidemill::store::View;
use tidemill::wasm::{Linked, Module, WasmHandler, thread_cpu_time};
use tidemill_sdk::bindings::tidemill::handler::types;
use tidemill_sdk::guest::{Guest, NoNode};
use tidemill_test_support::build_guest;

const RECORDS: usize = 500;
const KEY_BYTES: usize = 16;
const VALUE_BYTES: usize = 84;

const ROUNDS: usize = 200;

/// Calls in a round.
const CALLS: usize = 100;

/// What a record may cost through Wasm.
const NANOS_MAX: f64 = 120.0;

fn main() -> Result<()> {
    let batch = batch();
    let mut wasm = handler()?;
    let mut native = Guest::<Pass>::create(b"{}", Box::new(NoNode)).map_err(anyhow::Error::msg)?;
    let mut state = View::default();
    let mut through_wasm = || -> Result<()> {
        let effects = wasm.handle(&batch, Order::Key, Prefetched::default(), &mut state)?;
        ensure!(effects.emissions.len() == RECORDS, "the handler passes everything through");
        Ok(())
    };
    let records = native_batch(&batch);
    let mut natively = || -> Result<()> {
        let effects = native.handle(&records, no_state());
        ensure!(effects.emit.source.len() == RECORDS, "the handler passes everything through");
        Ok(())
    };
    let (mut wasm, mut native) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        wasm = wasm.min(round(&mut through_wasm)?);
        native = native.min(round(&mut natively)?);
    }
    let bytes = KEY_BYTES + VALUE_BYTES;
    println!("abi: {wasm:.0} ns per record ({bytes} B, batch {RECORDS}), native {native:.0} ns");
    ensure!(wasm <= NANOS_MAX, "more than {NANOS_MAX} ns per record");
    Ok(())
}

/// Nanoseconds of CPU time per record over one round.
fn round(call: &mut impl FnMut() -> Result<()>) -> Result<f64> {
    let start = thread_cpu_time();
    for _ in 0..CALLS {
        call()?;
    }
    Ok((thread_cpu_time() - start).as_nanos() as f64 / (CALLS * RECORDS) as f64)
}

fn handler() -> Result<WasmHandler> {
    let limits = Limits {
        memory_bytes: 64 << 20,
        batch_time: Duration::from_secs(5),
        emit_bytes: 4 << 20,
        emit_records: 10_000,
        table_elements: 10_000,
        batch_records: RECORDS as u32,
        ..Limits::default()
    };
    let module = Module::load(&build_guest("bench/pass"))?;
    Ok(Linked::new(&module, "bench", &serde_json::Value::Null, &limits)?.instantiate(0)?)
}

fn batch() -> Batch {
    let mut batch = Batch::default();
    for record in 0..RECORDS as i64 {
        batch.offsets.push(record);
        batch.timestamps.push(1_700_000_000_000 + record);
        batch.keys.push(Some(format!("{record:0KEY_BYTES$}").as_bytes()));
        batch.values.push(Some(&[b'v'; VALUE_BYTES]));
    }
    batch
}

fn native_batch(batch: &Batch) -> types::Records {
    types::Records {
        input: vec![batch.input; batch.len()],
        partition: batch.partition,
        offset: batch.offsets.clone(),
        timestamp: batch.timestamps.clone(),
        key: column(&batch.keys),
        value: column(&batch.values),
        headers: column(&batch.headers),
        order: types::Order::Key,
    }
}

fn column(column: &Column) -> types::Column {
    types::Column { bytes: column.bytes().to_vec(), lengths: column.lengths().to_vec() }
}

fn no_state() -> types::Prefetched {
    let none = || column(&Column::default());
    types::Prefetched { store: Vec::new(), key: none(), value: none() }
}

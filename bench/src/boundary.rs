//! What the boundary between node and handler costs: nanoseconds per record through Wasm, beside the
//! same handler, through the same loop of the SDK, compiled natively.
//!
//! The handler passes records through, so all that is measured is getting a batch in and its effects
//! out, checked. Measured is this thread's CPU time, in short alternating rounds, of which the fastest
//! is printed: whatever else the machine does meanwhile can only add to it. It explains the Wasm tax and is not the tax,
//! which is that of whole nodes (see [`crate::linked`]).

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use bench_pass::Pass;
use serde::Serialize;
use tidemill::config::deployment::Limits;
use tidemill::effects::{Order, Prefetched};
use tidemill::ports::Handler;
use tidemill::record::{Batch, Column};
use tidemill::store::View;
use tidemill::wasm::{Linked, Module, thread_cpu_time};
use tidemill_sdk::bindings::tidemill::handler::types;
use tidemill_sdk::guest::{Guest, NoNode};
use tidemill_test_support::build_guest;

use crate::load::{KEY_BYTES, VALUE_BYTES};

/// Of a call; they are as large as those of the workloads.
pub const RECORDS: usize = 500;

const ROUNDS: usize = 200;

/// Calls in a round.
const CALLS: usize = 100;

/// Nanoseconds of CPU time per record.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Boundary {
    pub through_wasm_ns: f64,
    pub natively_ns: f64,
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "boundary: {:.0} ns per record through Wasm ({} B, {RECORDS} a call), {:.0} ns natively",
            self.through_wasm_ns,
            KEY_BYTES + VALUE_BYTES,
            self.natively_ns
        )
    }
}

impl Boundary {
    /// Builds the handler and measures it both ways.
    pub fn measure() -> Result<Boundary> {
        let (mut through_wasm, mut natively) = (through_wasm()?, natively()?);
        let mut boundary = Boundary { through_wasm_ns: f64::MAX, natively_ns: f64::MAX };
        for _ in 0..ROUNDS {
            boundary.through_wasm_ns = boundary.through_wasm_ns.min(round(&mut through_wasm)?);
            boundary.natively_ns = boundary.natively_ns.min(round(&mut natively)?);
        }
        Ok(boundary)
    }
}

/// A call with a batch, through Wasm.
pub fn through_wasm() -> Result<impl FnMut() -> Result<()>> {
    let (batch, mut state) = (batch(), View::default());
    let mut handler = link("bench/pass")?.instantiate(0)?;
    Ok(move || {
        let effects = handler.handle(&batch, Order::Key, Prefetched::default(), &mut state)?;
        ensure!(effects.emissions.len() == RECORDS, "the handler passes everything through");
        Ok(())
    })
}

/// The same natively.
pub fn natively() -> Result<impl FnMut() -> Result<()>> {
    let records = native_batch(&batch());
    let mut handler = Guest::<Pass>::create(b"{}", Box::new(NoNode)).map_err(anyhow::Error::msg)?;
    Ok(move || {
        let effects = handler.handle(&records, no_state());
        ensure!(effects.emit.source.len() == RECORDS, "the handler passes everything through");
        Ok(())
    })
}

/// Nanoseconds of CPU time per record over one round.
fn round(call: &mut impl FnMut() -> Result<()>) -> Result<f64> {
    let start = thread_cpu_time();
    for _ in 0..CALLS {
        call()?;
    }
    Ok((thread_cpu_time() - start).as_nanos() as f64 / (CALLS * RECORDS) as f64)
}

/// A guest of the workspace, by its directory.
pub fn link(guest: &str) -> Result<Linked> {
    let limits = Limits {
        memory_bytes: 64 << 20,
        batch_time: Duration::from_secs(5),
        emit_bytes: 4 << 20,
        emit_records: 10_000,
        table_elements: 10_000,
        batch_records: RECORDS as u32,
        ..Limits::default()
    };
    let module = Module::load(&build_guest(guest))?;
    Ok(Linked::new(&module, "bench", &serde_json::Value::Null, &limits)?)
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

/// As the same handler gets it natively.
pub fn native_batch(batch: &Batch) -> types::Records {
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

/// Of a handler without stores.
pub fn no_state() -> types::Prefetched {
    native_state(&Prefetched::default())
}

/// As the same handler gets it natively.
pub fn native_state(state: &Prefetched) -> types::Prefetched {
    types::Prefetched { store: state.stores.clone(), key: column(&state.keys), value: column(&state.values) }
}

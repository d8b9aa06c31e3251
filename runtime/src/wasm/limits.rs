//! What one instance may take: memory, tables, CPU time, output. Enforced while the guest runs;
//! what it returns is judged afterwards, in `check`.

use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::config::deployment::Limits;

/// Core instances, memories and tables of one component. `wit-component` makes three instances and
/// two tables around a guest's own; only the guest has a memory.
const INSTANCES_MAX: usize = 16;
const MEMORIES_MAX: usize = 1;
const TABLES_MAX: usize = 8;

/// Bytes of a row of emissions beside its key, value and headers: five numbers and three lengths.
const EMISSION_ROW_BYTES: u64 = 30;

/// What a call may return beside effects: statuses, reasons, list headers.
const RESULT_BASE_BYTES: u64 = 64 << 10;

/// Bytes of status, reason and reason length that one record may return.
const STATUS_ROW_BYTES: u64 = 2 << 10;

/// Limits before a module has a deployment: for `describe`.
pub fn describing() -> Limits {
    Limits {
        memory_bytes: 64 << 20,
        batch_time: Duration::from_secs(1),
        emit_bytes: 64 << 10,
        emit_records: 0,
        table_elements: 100_000,
        batch_records: 1,
        ..Limits::default()
    }
}

/// Most bytes that a call with so many records may copy out of the guest. An honest result lies in
/// the guest's memory once; a result whose lists overlap to multiply it is refused before it is copied.
pub fn result_bytes_max(limits: &Limits, records: usize) -> usize {
    let per_record =
        limits.emit_bytes + u64::from(limits.emit_records) * EMISSION_ROW_BYTES + STATUS_ROW_BYTES;
    let bytes = per_record.saturating_mul(records as u64).min(limits.memory_bytes) + RESULT_BASE_BYTES;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The largest batch, in bytes, that is handed to a guest at all: an eighth of its memory, because
/// it holds the batch, what it makes of it, and the columns it returns.
pub fn batch_bytes_max(limits: &Limits) -> usize {
    usize::try_from(limits.memory_bytes / 8).unwrap_or(usize::MAX)
}

/// Counts what an instance takes. A refusal is remembered: a guest that dies of it died of the limit.
#[derive(Debug)]
pub struct Limiter {
    memory_bytes_max: usize,
    table_elements_left: usize,
    table_elements_max: usize,
    refused: Option<String>,
}

impl Limiter {
    pub fn new(limits: &Limits) -> Limiter {
        Limiter {
            memory_bytes_max: usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX),
            table_elements_left: limits.table_elements as usize,
            table_elements_max: limits.table_elements as usize,
            refused: None,
        }
    }

    pub fn begin_call(&mut self) {
        self.refused = None;
    }

    /// What the guest asked for in this call and did not get, if anything.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= self.memory_bytes_max;
        if !fits {
            let max = self.memory_bytes_max;
            self.refused = Some(format!("memory: {desired} bytes wanted, {max} allowed"));
        }
        Ok(fits)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let fits = more <= self.table_elements_left;
        if fits {
            self.table_elements_left -= more;
        } else {
            let max = self.table_elements_max;
            self.refused = Some(format!("tables: {desired} elements wanted, {max} allowed in all"));
        }
        Ok(fits)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }
}

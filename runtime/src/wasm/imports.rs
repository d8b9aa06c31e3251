//! What a guest may call: state and log. Arguments are hostile; an error ends the guest's call.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmList, WasmStr};

use super::abi::{Level, PACKAGE, RawPage, RawWrites, VERSION};
use super::check;
use super::clock::{Allowance, Interrupt};
use super::guest_log::GuestLog;
use super::limits::Limiter;
use crate::config::deployment::Limits;
use crate::store::{Page, StoreError, View};

/// Rows of a page at most, whatever a guest asks for. The store ends a page at 1 MiB as well.
const PAGE_ROWS_MAX: u32 = 10_000;

/// Longest key that may be asked for. None that was written is longer, by the bounds of `limits.emit_bytes`; and
/// lengths of keys have 32 bits, here and in RocksDB, which a guest with 4 GiB of memory could overflow.
const KEY_BYTES_MAX: usize = 1 << 30;

/// Bytes of a log call that are taken out of the guest.
const LOG_BYTES_MAX: usize = 64 << 10;

/// What the host keeps with an instance.
pub struct HostState {
    /// The task's state, lent for one call.
    pub view: View,
    pub limiter: Limiter,
    pub limits: Limits,
    pub allowance: Allowance,
    pub interrupt: Interrupt,
    pub log: GuestLog,
    /// Stores of the manifest.
    pub stores: u16,
    /// Bytes that `put-many` handed over in this call, by record. Empty before the first `handle`.
    pub handed_bytes: Vec<u64>,
}

/// Why a host function ended the guest's call.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("out of CPU time")]
    Time,
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Refused(#[from] check::Refusal),
}

impl HostState {
    /// For an instance whose manifest has so many stores, and that logs there.
    pub fn new(limits: &Limits, stores: u16, log: GuestLog) -> HostState {
        HostState {
            view: View::default(),
            limiter: Limiter::new(limits),
            limits: limits.clone(),
            allowance: Allowance::default(),
            interrupt: Interrupt::default(),
            log,
            stores,
            handed_bytes: Vec::new(),
        }
    }

    fn store(&self, index: u16) -> Result<u16, HostError> {
        if index < self.stores { Ok(index) } else { Err(check::Refusal::Store(index).into()) }
    }

    fn get(&self, store: u16, key: &[u8]) -> Result<Option<Vec<u8>>, HostError> {
        Ok(self.view.get(self.store(store)?, bounded(key)?)?)
    }

    fn scan(&self, store: u16, start: &[u8], end: Option<&[u8]>, limit: u32) -> Result<Page, HostError> {
        let (start, end) = (bounded(start)?, end.map(bounded).transpose()?);
        Ok(self.view.scan(self.store(store)?, start, end, limit.min(PAGE_ROWS_MAX))?)
    }

    fn put_many(&mut self, writes: RawWrites) -> Result<(), HostError> {
        // The view of a start is no task's, so nobody would ever empty it.
        if self.handed_bytes.is_empty() {
            return Err(check::Refusal::NoRecords.into());
        }
        let writes = check::writes(writes, self.stores, &mut self.handed_bytes, self.limits.emit_bytes)?;
        Ok(self.view.put_many(writes)?)
    }
}

fn bounded(key: &[u8]) -> Result<&[u8], HostError> {
    match key.len() {
        ..=KEY_BYTES_MAX => Ok(key),
        bytes => {
            let reason = format!("a key of {bytes} bytes; {KEY_BYTES_MAX} are allowed");
            Err(StoreError::Refused(reason).into())
        }
    }
}

type Context<'a> = StoreContextMut<'a, HostState>;

pub fn interface(name: &str) -> String {
    format!("{PACKAGE}/{name}@{VERSION}")
}

pub fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);

    let mut state = linker.instance(&interface("state"))?;
    state.func_wrap("get", |ctx: Context<'_>, (store, key): (u16, WasmList<u8>)| {
        Ok((ctx.data().get(store, key.as_le_slice(&ctx))?,))
    })?;
    state.func_wrap(
        "scan",
        |ctx: Context<'_>, (store, start, end, limit): (u16, Vec<u8>, Option<Vec<u8>>, u32)| {
            let Page { keys, values, more } = ctx.data().scan(store, &start, end.as_deref(), limit)?;
            Ok((RawPage { key: keys.into(), value: values.into(), more },))
        },
    )?;
    state.func_wrap("put-many", |mut ctx: Context<'_>, (writes,): (RawWrites,)| {
        Ok(ctx.data_mut().put_many(writes)?)
    })?;

    let mut log = linker.instance(&interface("log"))?;
    log.func_wrap("write", |mut ctx: Context<'_>, (level, text): (Level, WasmStr)| {
        let text = text.to_str(&ctx)?;
        let text = text[..text.floor_char_boundary(LOG_BYTES_MAX)].to_owned();
        ctx.data_mut().log.write(level, &text);
        Ok(())
    })?;
    Ok(linker)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::wasm::guest_log::LogRate;

    #[test]
    fn a_key_longer_than_any_that_was_written_is_not_looked_for() {
        let log = GuestLog::new("d".into(), 0, Arc::new(LogRate::new(0)), None);
        let host = HostState::new(&Limits::default(), 1, log);
        // Zeros that nobody reads take no memory.
        let key = vec![0u8; KEY_BYTES_MAX + 1];
        for outcome in [
            host.get(0, &key).map(drop),
            host.scan(0, &key, None, 1).map(drop),
            host.scan(0, b"", Some(&key), 1).map(drop),
        ] {
            assert!(matches!(outcome, Err(HostError::Store(StoreError::Refused(_)))), "{outcome:?}");
        }
    }
}

//! The one wasmtime engine of the process, and the ticker that lets time limits fire.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::{Config, Strategy};

/// How often a running guest is interrupted to look at its CPU time. Bounds how far a guest can
/// overrun its limit.
const TICK: Duration = Duration::from_millis(1);

/// Native stack of a guest. wasmtime's default, named because a worker's own stack must hold it.
const STACK_BYTES_MAX: usize = 512 << 10;

/// Compiles and runs every guest of the process.
pub struct Engine {
    pub wasmtime: wasmtime::Engine,
    /// Guests running now; the ticker sleeps while there are none.
    running: Arc<AtomicUsize>,
    ticker: Thread,
}

/// A guest is running as long as this lives.
pub struct Running<'e>(&'e Engine);

impl Engine {
    /// The process's engine, made on first use. An error says that this machine cannot run guests.
    pub fn shared() -> Result<&'static Engine, String> {
        static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
        ENGINE.get_or_init(Engine::new).as_ref().map_err(String::clone)
    }

    fn new() -> Result<Engine, String> {
        let mut config = Config::new();
        config
            .strategy(Strategy::Cranelift)
            .epoch_interruption(true)
            .max_wasm_stack(STACK_BYTES_MAX)
            .wasm_component_model(true)
            // A trap names functions, no places in them: the tables for those would be made, kept and never read.
            .generate_address_map(false)
            // A handler must compute the same on every machine, or a replay is no replay.
            .cranelift_nan_canonicalization(true)
            .wasm_relaxed_simd(false)
            .wasm_memory64(false)
            .wasm_multi_memory(false);
        let wasmtime = wasmtime::Engine::new(&config).map_err(|error| format!("wasmtime: {error:#}"))?;
        let running = Arc::new(AtomicUsize::new(0));
        let ticker = {
            let (engine, running) = (wasmtime.clone(), running.clone());
            thread::Builder::new().name("wasm-ticker".into()).spawn(move || tick(&engine, &running))
        };
        let ticker = ticker.map_err(|error| format!("cannot start the Wasm ticker: {error}"))?;
        Ok(Engine { wasmtime, running, ticker: ticker.thread().clone() })
    }

    /// Announces a guest's run, so that its time limit can fire.
    pub fn run(&self) -> Running<'_> {
        if self.running.fetch_add(1, Ordering::SeqCst) == 0 {
            // Free unless the ticker is parked: otherwise it only leaves a token.
            self.ticker.unpark();
        }
        Running(self)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &wasmtime::Engine, running: &AtomicUsize) {
    loop {
        if running.load(Ordering::SeqCst) == 0 {
            thread::park();
        } else {
            thread::sleep(TICK);
            engine.increment_epoch();
        }
    }
}

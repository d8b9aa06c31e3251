//! From a module's bytes to native code.
//!
//! Compiling other people's code is the one place where a small input may cost any amount of time and
//! memory, so a node has it done by a process of its own, under limits, and keeps what comes out:
//!
//! ```text
//! bytes --> cache hit? --yes--------------------------> Component
//!              no --> child process: componentise, --> cache
//!                     compile, under rlimits
//! ```
//!
//! Modules that are loaded are not loaded again: [`super::loaded`].
//!
//! Native code is executed, not checked, so it is never taken from anywhere but that child and the
//! cache, whose files carry a MAC under a key of this node.

mod cache;
mod child;

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::process::{Pid, Signal, kill_process};
use wasmtime::component::Component;

use self::cache::Cache;
use super::engine::Engine;
use super::loaded::Loaded;
use super::module::ModuleError;
use crate::telemetry::Telemetry;

pub use child::{COMMAND, serve};

/// Native code of the largest module that is accepted would have a fraction of this.
const CODE_BYTES_MAX: u64 = 512 << 20;

/// Of the machine's clock, whatever the child was given of the CPU: others wait for their turn, and
/// whoever asked should hear of it before his own time is over.
const TIME_MAX: Duration = Duration::from_secs(45);

/// Of the child, for functions are compiled side by side: half as long for whoever waits for a deploy. Not one
/// a core: each may take memory for itself, of which the child has little.
const THREADS: &str = "2";

/// How modules are compiled.
pub struct Compiler {
    /// `None` = in this process, without limits.
    apart: Option<Apart>,
    /// What it has compiled, or found compiled.
    pub(super) loaded: Loaded,
}

struct Apart {
    program: PathBuf,
    cache: Cache,
    telemetry: Arc<Telemetry>,
    /// One child at a time: it may take two cores and a GiB, and records are worth more.
    turn: Mutex<()>,
    /// When the last of them was begun.
    begun: Mutex<Option<Instant>>,
    /// Dropped when the node stops, which every child's watch hears.
    open: Mutex<Option<Sender<()>>>,
    stopped: Receiver<()>,
}

impl Compiler {
    /// Compiles in this process: for modules that are trusted, in tests and benchmarks.
    pub fn here() -> Compiler {
        Compiler { apart: None, loaded: Loaded::default() }
    }

    /// Compiles in a child process, `program` called with [`COMMAND`] alone, and keeps the code in
    /// `cache_dir`, which is made and closed to everyone else.
    pub fn apart(program: PathBuf, cache_dir: &Path, telemetry: Arc<Telemetry>) -> io::Result<Compiler> {
        let cache = Cache::open(cache_dir)?;
        let (open, stopped) = bounded(0);
        let (turn, begun, open) = (Mutex::default(), Mutex::default(), Mutex::new(Some(open)));
        let apart = Apart { program, cache, telemetry, turn, begun, open, stopped };
        Ok(Compiler { apart: Some(apart), loaded: Loaded::default() })
    }

    /// Ends the child that compiles, and lets no other begin: a node that stops waits for none.
    pub fn stop(&self) {
        if let Some(apart) = &self.apart {
            drop(apart.open.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// When it began to compile the last module. It has one at a time, each for a limited time: whoever waits for a
    /// turn waits for others, and comes nearer to it with each that is begun.
    pub fn last_begun(&self) -> Option<Instant> {
        let apart = self.apart.as_ref()?;
        *apart.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `digest` names the bytes.
    pub(super) fn component(
        &self,
        engine: &Engine,
        bytes: &[u8],
        digest: &str,
    ) -> Result<Component, ModuleError> {
        match &self.apart {
            None => load(engine, &child::compile(engine, bytes)?),
            Some(apart) => apart.component(engine, bytes, digest),
        }
    }
}

impl Apart {
    fn component(&self, engine: &Engine, bytes: &[u8], digest: &str) -> Result<Component, ModuleError> {
        if let Some(component) = self.cached(engine, digest) {
            return Ok(component);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have compiled the same module meanwhile.
        if let Some(component) = self.cached(engine, digest) {
            return Ok(component);
        }
        let start = Instant::now();
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(start);
        let code = self.compile(bytes)?;
        self.telemetry.node.modules_compiled.add(1);
        self.telemetry.node.compile_time.add(start.elapsed());
        if let Err(error) = self.cache.put(digest, &engine.wasmtime, &code) {
            tracing::warn!(%error, "compiled code cannot be kept; it is compiled again at the next start");
        }
        load(engine, &code)
    }

    fn cached(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let code = self.cache.get(digest, &engine.wasmtime)?;
        load(engine, &code).inspect_err(|error| tracing::warn!(%error, digest, "cached code")).ok()
    }

    fn compile(&self, bytes: &[u8]) -> Result<Vec<u8>, ModuleError> {
        let failed = |error: io::Error| ModuleError::Engine(format!("cannot run the compiler: {error}"));
        let mut child = Command::new(&self.program)
            .arg(COMMAND)
            .env_clear()
            .env("RAYON_NUM_THREADS", THREADS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let patience = match Patience::with(&child, self.stopped.clone()) {
            Ok(patience) => patience,
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(failed(error));
            }
        };
        // The child reads everything before it answers, so the pipes cannot block each other. One that
        // dies early breaks the pipe, and its status says why.
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(bytes);
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(CODE_BYTES_MAX).read_to_end(&mut answer).map_err(failed)?;
        }
        // Before the child is waited for: until then its number is nobody else's.
        let ended = patience.end();
        let status = child.wait().map_err(failed)?;
        match (status.signal(), ended) {
            (None, _) => child::understand(answer),
            (Some(_), None) => Err(ModuleError::TooExpensive),
            (Some(_), Some(reason)) => Err(reason),
        }
    }
}

/// Ends a child that is not done in time, or when the node stops, on a thread of its own.
struct Patience {
    done: Sender<()>,
    thread: JoinHandle<Option<ModuleError>>,
}

impl Patience {
    fn with(child: &Child, stopped: Receiver<()>) -> io::Result<Patience> {
        let pid = Pid::from_child(child);
        let (done, waiting) = bounded::<()>(1);
        let thread = std::thread::Builder::new().name("compile-time".into()).spawn(move || {
            let reason = select! {
                recv(waiting) -> _ => return None,
                recv(stopped) -> _ => ModuleError::Stopping,
                default(TIME_MAX) => ModuleError::TooSlow,
            };
            // Fails only if the child has ended just now.
            kill_process(pid, Signal::KILL).is_ok().then_some(reason)
        })?;
        Ok(Patience { done, thread })
    }

    /// Why the child had to be ended, if it had to.
    fn end(self) -> Option<ModuleError> {
        drop(self.done);
        self.thread.join().ok().flatten()
    }
}

/// Makes native code callable.
fn load(engine: &Engine, code: &[u8]) -> Result<Component, ModuleError> {
    // SAFETY: the code was made by this process or its child, and came back by a pipe of ours or from a
    // file whose MAC only this node could have made; wasmtime checks that it is of its own version.
    let component = unsafe { Component::deserialize(&engine.wasmtime, code) };
    component.map_err(|error| ModuleError::Engine(format!("compiled code: {error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_stops_waits_for_no_compilation() {
        let directory = tempfile::tempdir().expect("a directory");
        let (program, began) = (directory.path().join("slow"), directory.path().join("began"));
        // Written by another process: a child that another test starts just now would hold it open, and then
        // it could not be run.
        let write = r#"printf '#!/bin/sh\n: > "%s"\nexec sleep 600\n' "$1" > "$0" && chmod 700 "$0""#;
        let written = Command::new("sh").arg("-c").arg(write).args([&program, &began]).status();
        assert!(written.is_ok_and(|status| status.success()));
        let cache = directory.path().join("cache");
        let compiler = Compiler::apart(program, &cache, Telemetry::new()).expect("a compiler");
        let compile = || compiler.component(Engine::shared().expect("an engine"), b"module", "digest");
        std::thread::scope(|scope| {
            let compiling = scope.spawn(compile);
            while !began.exists() {
                assert!(!compiling.is_finished(), "the program runs");
                std::thread::yield_now();
            }
            compiler.stop();
            let outcome = compiling.join().expect("no panic");
            assert!(matches!(outcome, Err(ModuleError::Stopping)));
        });
        assert!(matches!(compile(), Err(ModuleError::Stopping)), "and no other begins");
    }
}

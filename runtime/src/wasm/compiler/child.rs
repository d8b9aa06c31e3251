//! The child's half of a compilation, and the answer that crosses the pipe.
//!
//! The answer is one byte and then the rest: 0 = native code, another = the text of an error.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, nice, setrlimit};

use super::super::build;
use super::super::engine::Engine;
use super::super::module::{Kind, MODULE_BYTES_MAX, ModuleError};

/// The child's only argument. Not a command for people.
pub const COMMAND: &str = "compile-module";

/// A module of 16 MiB that is not made to be slow takes about half of either.
const CPU_SECONDS_MAX: u64 = 10;
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Records go first: the child runs when the data plane leaves the CPU to it.
const NICENESS: i32 = 10;

const CODE: u8 = 0;
const NOT_A_HANDLER: u8 = 1;
const INVALID: u8 = 2;
const ENGINE: u8 = 3;

/// Reads a module from standard input, compiles it under limits, answers on standard output.
pub fn serve() -> ExitCode {
    let outcome = confine().and_then(|()| {
        let mut bytes = Vec::new();
        io::stdin().lock().take(MODULE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let outcome = match outcome {
        Ok(bytes) => Engine::shared().map_err(ModuleError::Engine).and_then(|engine| compile(engine, &bytes)),
        Err(error) => Err(ModuleError::Engine(error.to_string())),
    };
    let (tag, rest) = match outcome {
        Ok(code) => (CODE, code),
        Err(ModuleError::NotAHandler(text)) => (NOT_A_HANDLER, text.into_bytes()),
        Err(ModuleError::Invalid(text)) => (INVALID, text.into_bytes()),
        Err(error) => (ENGINE, error.to_string().into_bytes()),
    };
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&[tag]).and_then(|()| stdout.write_all(&rest)).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Takes the limits on; from here on exceeding one ends the process.
fn confine() -> io::Result<()> {
    let limits = [
        (Resource::As, MEMORY_BYTES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
    ];
    for (resource, limit) in limits {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    nice(NICENESS)?;
    Ok(())
}

/// Native code of a component, or of a core module that can be made one.
pub(super) fn compile(engine: &Engine, bytes: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let invalid = |error: wasmtime::Error| ModuleError::Invalid(format!("{error:#}"));
    match Kind::of(bytes) {
        Kind::Component => engine.wasmtime.precompile_component(bytes).map_err(invalid),
        Kind::Core => {
            let encoded =
                build::componentise(bytes).map_err(|error| ModuleError::NotAHandler(error.to_string()))?;
            engine.wasmtime.precompile_component(&encoded).map_err(invalid)
        }
        Kind::Other => Err(ModuleError::NotWasm),
    }
}

/// The parent's reading of an answer.
pub(super) fn understand(mut answer: Vec<u8>) -> Result<Vec<u8>, ModuleError> {
    let Some(&tag) = answer.first() else {
        return Err(ModuleError::Engine("the compiler ended without an answer".into()));
    };
    answer.remove(0);
    let text = |answer: Vec<u8>| String::from_utf8_lossy(&answer).into_owned();
    Err(match tag {
        CODE => return Ok(answer),
        NOT_A_HANDLER => ModuleError::NotAHandler(text(answer)),
        INVALID => ModuleError::Invalid(text(answer)),
        _ => ModuleError::Engine(text(answer)),
    })
}

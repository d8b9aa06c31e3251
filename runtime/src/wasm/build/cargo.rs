//! Runs cargo for a handler's crate and finds what it built.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{ComponentiseError, componentise};

const TARGET: &str = "wasm32-unknown-unknown";

/// Profile settings that suit a guest, whatever workspace its crate is in: small and fast code, and
/// names kept so that a trap can say where it happened.
const PROFILE: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
];

/// The target has no source of randomness; crates that want one find the SDK's.
const RANDOM: &str = "--cfg getrandom_backend=\"custom\"";

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{0} is no crate: it has no Cargo.toml")]
    NoCrate(PathBuf),
    #[error("cannot run cargo: {0}; install Rust from https://rustup.rs")]
    NoCargo(io::Error),
    #[error("cargo failed (see above); if `core` cannot be found, run `rustup target add {TARGET}`")]
    Cargo,
    #[error("cargo made no Wasm module of the crate, and did not say why")]
    NoModule,
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("not a handler: {0}; does it call tidemill_sdk::export!?")]
    Componentise(#[from] ComponentiseError),
}

/// What a build made.
#[derive(Debug, Clone)]
pub struct Built {
    /// The crate's name, with underscores.
    pub name: String,
    /// Ready to deploy.
    pub component: Vec<u8>,
}

/// Builds the crate in `dir` for Wasm and makes it a component. cargo's own messages go to standard
/// error. `target_dir` replaces the directory that cargo would choose.
pub fn cargo_build(dir: &Path, target_dir: Option<&Path>) -> Result<Built, BuildError> {
    let manifest = dir.join("Cargo.toml");
    let manifest = manifest.canonicalize().map_err(|_| BuildError::NoCrate(dir.into()))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        // A handler's crate is an rlib too, for its tests, and cargo optimises no crate across others
        // (`lto`) that is to be one: then every small function of the SDK is a call, with the checks
        // that wasmtime makes at each.
        .args(["rustc", "--release", "--lib", "--crate-type", "cdylib", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics", "--manifest-path"])
        .arg(&manifest)
        .envs(PROFILE)
        // Meant for the host's own build, if one of its programs runs this.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", RANDOM)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if let Some(target_dir) = target_dir {
        command.env("CARGO_TARGET_DIR", target_dir);
    }
    let output = command.output().map_err(BuildError::NoCargo)?;
    if !output.status.success() {
        return Err(BuildError::Cargo);
    }
    let (name, path) = artifact(&output.stdout, &manifest).ok_or(BuildError::NoModule)?;
    let core = std::fs::read(&path).map_err(|error| BuildError::Read { path, error })?;
    Ok(Built { name, component: componentise(&core)? })
}

/// Name and path of the module that cargo reports for this crate.
fn artifact(messages: &[u8], manifest: &Path) -> Option<(String, PathBuf)> {
    let lines = messages.split(|&byte| byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    messages.filter(|message| message["reason"] == "compiler-artifact").find_map(|message| {
        if Path::new(message["manifest_path"].as_str()?) != manifest {
            return None;
        }
        let files = message["filenames"].as_array()?;
        let wasm = files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".wasm"))?;
        Some((message["target"]["name"].as_str()?.replace('-', "_"), wasm.into()))
    })
}

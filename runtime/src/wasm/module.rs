//! A module: one handler binary, checked, compiled and described. What it is bound to is not known
//! here; that is `Linked`.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::component::InstancePre;

use super::abi::{PACKAGE, VERSION};
use super::engine::Engine;
use super::guest_log::{GuestLog, LogRate};
use super::imports::{self, HostState};
use super::instance::Instance;
use super::{Compiler, inspect, limits};
use crate::config::manifest::Manifest;
use crate::config::units::show_hex;

/// Largest module that is accepted, in bytes.
pub const MODULE_BYTES_MAX: usize = 16 << 20;

/// Longest manifest, in bytes, and most names in each of its lists.
const MANIFEST_BYTES_MAX: usize = 64 << 10;
const NAMES_MAX: usize = 1_000;
/// Versions that a store's `reads` may name.
const FORMS_MAX: usize = 100;

/// Why bytes are not a usable module. Each message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    #[error(
        "this is not WebAssembly: a module begins with the bytes `\\0asm`; build one with `tidemill build`"
    )]
    NotWasm,
    #[error(
        "the module has {bytes} bytes, {MODULE_BYTES_MAX} are allowed; build it with `tidemill build`, which strips it"
    )]
    TooLarge { bytes: usize },
    #[error(
        "the module cannot be made a component: {0}; build it for wasm32-unknown-unknown with tidemill-sdk"
    )]
    NotAHandler(String),
    #[error(
        "the module is not valid WebAssembly for this node (no threads, memory64 or garbage collection): {0}"
    )]
    Invalid(String),
    #[error(
        "the module wants `{0}`, which handlers are not given: they may import only tidemill:handler/state and /log (no WASI)"
    )]
    ForbiddenImport(String),
    #[error(
        "the module is built for `{found}`, this node speaks {PACKAGE}@{VERSION}; build it with the tidemill-sdk of this release"
    )]
    WrongVersion { found: String },
    #[error("the module does not export `{0}`; does it call tidemill_sdk::export!?")]
    MissingExport(&'static str),
    #[error(
        "the module has {count} functions, {} are allowed; leave out what it does not need, or make two handlers of it",
        inspect::FUNCTIONS_MAX
    )]
    TooManyFunctions { count: u64 },
    #[error(
        "a function of the module has {bytes} bytes of code, {} are allowed; divide it",
        inspect::FUNCTION_BYTES_MAX
    )]
    FunctionTooLarge { bytes: usize },
    #[error("the module has {count} {what}, {} are allowed", inspect::NAMES_MAX)]
    TooManyNames { what: &'static str, count: u64 },
    #[error("an import or export does not have the type that {PACKAGE}@{VERSION} gives it: {0}")]
    WrongType(String),
    #[error("the module's manifest is unusable: {0}")]
    Manifest(String),
    #[error("the handler refused its configuration: {0}")]
    Config(String),
    #[error("the module cannot be started: {0}")]
    Start(String),
    #[error(
        "compiling the module takes more than 10 s of CPU time or 1 GiB of memory; make its functions smaller"
    )]
    TooExpensive,
    #[error(
        "compiling the module has not ended within 45 s, because this machine is too busy; try again later or on another node"
    )]
    TooSlow,
    #[error("this node is stopping, and compiles nothing more; ask another one")]
    Stopping,
    #[error("this machine cannot run WebAssembly: {0}")]
    Engine(String),
    /// At least two, none of them this.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<ModuleError>),
}

impl ModuleError {
    /// One error for all of these, if there are any.
    pub(super) fn all(mut problems: Vec<ModuleError>) -> Result<(), ModuleError> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(ModuleError::Several(problems)),
        }
    }

    /// True if the module may be good all the same: this machine, or this moment, is at fault.
    pub fn is_of_the_machine(&self) -> bool {
        matches!(self, ModuleError::TooSlow | ModuleError::Stopping | ModuleError::Engine(_))
    }

    /// Each problem by itself.
    pub fn into_problems(self) -> Vec<ModuleError> {
        match self {
            ModuleError::Several(problems) => problems,
            one => vec![one],
        }
    }
}

/// One handler binary. Cheap to clone: clones share its code.
#[derive(Clone)]
pub struct Module(pub(super) Arc<Contents>);

pub(super) struct Contents {
    engine: &'static Engine,
    pre: InstancePre<HostState>,
    manifest: Manifest,
    digest: String,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

impl Module {
    /// As [`Module::load_with`], compiled in this process.
    pub fn load(bytes: &[u8]) -> Result<Module, ModuleError> {
        Module::load_with(&Compiler::here(), bytes)
    }

    /// The module of that digest, if somebody has it, or had it a moment ago.
    pub fn loaded(compiler: &Compiler, digest: &str) -> Option<Module> {
        compiler.loaded.get(digest)
    }

    /// Checks and compiles a component, or a core module that can be made one, and asks it for its
    /// manifest. Takes time in proportion to the code: not for a thread that others wait for.
    pub fn load_with(compiler: &Compiler, bytes: &[u8]) -> Result<Module, ModuleError> {
        if bytes.len() > MODULE_BYTES_MAX {
            return Err(ModuleError::TooLarge { bytes: bytes.len() });
        }
        let engine = Engine::shared().map_err(ModuleError::Engine)?;
        if matches!(Kind::of(bytes), Kind::Other) {
            return Err(ModuleError::NotWasm);
        }
        let digest = show_hex(&Sha256::digest(bytes));
        // It has been through all of what follows.
        if let Some(module) = Module::loaded(compiler, &digest) {
            return Ok(module);
        }
        inspect::inspect(bytes)?;
        let component = compiler.component(engine, bytes, &digest)?;
        let pre = imports::linker(&engine.wasmtime)
            .and_then(|linker| linker.instantiate_pre(&component))
            .map_err(|error| ModuleError::WrongType(format!("{error:#}")))?;
        let manifest = describe(engine, &pre)?;
        let module = Module(Arc::new(Contents { engine, pre, manifest, digest }));
        Ok(compiler.loaded.keep(module))
    }

    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// SHA-256 of the bytes that were loaded, in lower-case hexadecimal: the module's name.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    pub(super) fn engine(&self) -> &'static Engine {
        self.0.engine
    }

    pub(super) fn pre(&self) -> &InstancePre<HostState> {
        &self.0.pre
    }

    /// Of its native code, with the data that lies beside it.
    pub(super) fn code_bytes(&self) -> usize {
        let image = self.pre().component().image_range();
        image.end.addr() - image.start.addr()
    }
}

/// What bytes claim to be.
pub(super) enum Kind {
    Core,
    Component,
    Other,
}

impl Kind {
    /// By the eight bytes of the preamble.
    pub(super) fn of(bytes: &[u8]) -> Kind {
        match bytes {
            [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Kind::Core,
            [0, b'a', b's', b'm', _, 0, 1, 0, ..] => Kind::Component,
            _ => Kind::Other,
        }
    }
}

fn describe(engine: &'static Engine, pre: &InstancePre<HostState>) -> Result<Manifest, ModuleError> {
    let limits = limits::describing();
    let log = GuestLog::new("describe".into(), 0, Arc::new(LogRate::new(limits.log_lines)), None);
    let mut instance = Instance::start(engine, pre, HostState::new(&limits, 0, log))?;
    let json = instance.describe().map_err(|fault| ModuleError::Start(fault.to_string()))?;
    if json.len() > MANIFEST_BYTES_MAX {
        let bytes = json.len();
        return Err(ModuleError::Manifest(format!("{bytes} bytes, {MANIFEST_BYTES_MAX} are allowed")));
    }
    let manifest: Manifest =
        serde_json::from_slice(&json).map_err(|error| ModuleError::Manifest(error.to_string()))?;
    let problems = check_manifest(&manifest).into_iter().map(ModuleError::Manifest).collect();
    ModuleError::all(problems)?;
    Ok(manifest)
}

/// Everything that is wrong with a manifest.
fn check_manifest(manifest: &Manifest) -> Vec<String> {
    let mut problems = Vec::new();
    if manifest.inputs.is_empty() {
        problems.push("it names no input".into());
    }
    let stores: Vec<String> = manifest.stores.iter().map(|store| store.name.clone()).collect();
    for (what, names) in [("input", &manifest.inputs), ("output", &manifest.outputs), ("store", &stores)] {
        if names.len() > NAMES_MAX {
            problems.push(format!("{} {what}s, {NAMES_MAX} are allowed", names.len()));
            continue;
        }
        for (index, name) in names.iter().enumerate() {
            let plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
            if name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
                problems.push(format!(
                    "the {what} name {name:?} is not 1 to 100 letters, digits, `-`, `_` or `.`"
                ));
            }
            if names[..index].contains(name) {
                problems.push(format!("the {what} `{name}` is named twice"));
            }
        }
    }
    for store in &manifest.stores {
        if store.schema == 0 || store.reads.contains(&0) {
            problems.push(format!("store `{}`: schema versions are counted from 1", store.name));
        }
        if store.reads.len() > FORMS_MAX {
            let count = store.reads.len();
            problems.push(format!("store `{}`: reads {count} versions, {FORMS_MAX} are allowed", store.name));
        }
    }
    problems
}

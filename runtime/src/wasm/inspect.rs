//! What can be said of a module's bytes without compiling them: its size in functions, what it imports
//! and exports, features that this node does not have. All of it at once, and cheaply, so that a module
//! that cannot run costs no compilation and is mended in one pass.
//!
//! Not a validation: whether the code is well-formed is wasmtime's to say, when it compiles it.

use std::collections::BTreeSet;

use wasmparser::{ComponentTypeRef, Parser, Payload, TypeRef};

use super::abi::{PACKAGE, VERSION};
use super::module::ModuleError;

/// Functions of all core modules together. Compiling that many takes most of a minute of CPU time at worst, of
/// which the compiler is given ten seconds.
pub const FUNCTIONS_MAX: u64 = 20_000;
/// Code of one function, in bytes: a compiler's time may grow faster than its input.
pub const FUNCTION_BYTES_MAX: usize = 1 << 20;
/// Imports, and exports, of one module or component. A handler needs a dozen.
pub const NAMES_MAX: u64 = 500;

/// Interfaces that a handler may import.
const INTERFACES: [&str; 3] = ["state", "log", "types"];
/// What every handler exports.
const EXPORTS: [&str; 3] = ["describe", "init", "handle"];

/// Forbidden imports that are named one by one.
const NAMED_MAX: usize = 50;

#[derive(Default)]
struct Findings {
    problems: Vec<ModuleError>,
    functions: u64,
    /// Bytes of the largest function's code.
    largest: usize,
    forbidden: BTreeSet<String>,
    other_versions: BTreeSet<String>,
    exports: BTreeSet<String>,
    has_memory64: bool,
    has_shared_memory: bool,
}

/// Everything that is wrong with a module or component.
pub fn inspect(bytes: &[u8]) -> Result<(), ModuleError> {
    let mut findings = Findings::default();
    // Modules and components that have begun and not ended.
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(bytes) {
        let read = payload.and_then(|payload| {
            match &payload {
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                _ => findings.read(payload, depth == 1)?,
            }
            Ok(())
        });
        if let Err(error) = read {
            // What follows cannot be read; what was found so far is worth knowing.
            findings.problems.push(ModuleError::Invalid(error.to_string()));
            break;
        }
    }
    findings.conclude()
}

impl Findings {
    /// `outermost` is the module or component itself, whose names are the node's business; what it has
    /// inside is its own.
    fn read(&mut self, payload: Payload<'_>, outermost: bool) -> wasmparser::Result<()> {
        match payload {
            Payload::FunctionSection(functions) => self.functions += u64::from(functions.count()),
            Payload::CodeSectionEntry(body) => self.largest = self.largest.max(body.range().len()),
            Payload::MemorySection(memories) => {
                for memory in memories {
                    self.memory(memory?);
                }
            }
            Payload::ImportSection(imports) => {
                let mut count = 0;
                for import in imports.into_imports() {
                    let import = import?;
                    count += 1;
                    if let TypeRef::Memory(memory) = import.ty {
                        self.memory(memory);
                    }
                    if outermost {
                        self.import(import.module, Some(import.name));
                    }
                }
                self.names("imports", count);
            }
            Payload::ExportSection(exports) => {
                self.names("exports", exports.count().into());
                for export in exports {
                    self.export(export?.name, outermost);
                }
            }
            Payload::ComponentImportSection(imports) => {
                self.names("imports", imports.count().into());
                for import in imports.into_iter().filter(|_| outermost) {
                    let import = import?;
                    // A type is a name for something, not a way to it.
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        self.import(import.name.name, None);
                    }
                }
            }
            Payload::ComponentExportSection(exports) => {
                self.names("exports", exports.count().into());
                for export in exports {
                    self.export(export?.name.name, outermost);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn memory(&mut self, memory: wasmparser::MemoryType) {
        self.has_memory64 |= memory.memory64;
        self.has_shared_memory |= memory.shared;
    }

    fn names(&mut self, what: &'static str, count: u64) {
        if count > NAMES_MAX {
            self.problems.push(ModuleError::TooManyNames { what, count });
        }
    }

    /// A component imports interfaces, a core module their functions.
    fn import(&mut self, interface: &str, function: Option<&str>) {
        let (package, rest) = interface.split_once('/').unwrap_or((interface, ""));
        let (name, version) = rest.split_once('@').unwrap_or((rest, ""));
        if package != PACKAGE || !INTERFACES.contains(&name) {
            let shown = function.map_or(interface.to_owned(), |function| format!("{interface}.{function}"));
            self.forbidden.insert(shown);
        } else if version != VERSION {
            self.other_versions.insert(interface.to_owned());
        }
    }

    fn export(&mut self, name: &str, outermost: bool) {
        if outermost {
            self.exports.insert(name.to_owned());
        }
    }

    fn conclude(self) -> Result<(), ModuleError> {
        let mut problems = self.problems;
        if self.functions > FUNCTIONS_MAX {
            problems.push(ModuleError::TooManyFunctions { count: self.functions });
        }
        if self.largest > FUNCTION_BYTES_MAX {
            problems.push(ModuleError::FunctionTooLarge { bytes: self.largest });
        }
        let features = [
            (self.has_memory64, "it has a memory with 64-bit addresses (memory64)"),
            (self.has_shared_memory, "it has a shared memory (threads)"),
        ];
        let absent = features.into_iter().filter(|(has, _)| *has);
        problems.extend(absent.map(|(_, what)| ModuleError::Invalid(what.to_owned())));
        let unnamed = self.forbidden.len().saturating_sub(NAMED_MAX);
        problems.extend(self.forbidden.into_iter().take(NAMED_MAX).map(ModuleError::ForbiddenImport));
        if unnamed > 0 {
            problems.push(ModuleError::ForbiddenImport(format!("and {unnamed} more")));
        }
        let others = self.other_versions.into_iter();
        problems.extend(others.map(|found| ModuleError::WrongVersion { found }));
        let missing = EXPORTS.into_iter().filter(|name| !self.exports.contains(*name));
        problems.extend(missing.map(ModuleError::MissingExport));
        ModuleError::all(problems)
    }
}

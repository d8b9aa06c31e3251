//! Holds `runtime/src` to the table of DESIGN section 2: which module may import which other, and
//! the one module that may name a foreign crate.
//!
//! The checker reads tokens, not `use` lines, so that a fully qualified path, a path inside a macro
//! call and an attribute count as well. It is not a compiler: a crate renamed in `Cargo.toml` or a
//! glob import of the crate root would escape it, so both are refused outright.

use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// Which of our modules a module may name. `proto`, `broker` and `batches` are the crates of those names.
/// Everybody may name itself, `telemetry`, `config` and `faults`.
const OURS: &[(&str, &[&str])] = &[
    ("record", &[]),
    ("effects", &["record"]),
    ("store", &["record", "effects", "proto"]),
    ("ports", &["record", "effects", "store"]),
    ("task", &["record", "effects", "ports", "store", "proto"]),
    ("wasm", &["record", "effects", "ports", "store"]),
    ("kafka", &["record", "effects", "ports", "batches", "tls"]),
    ("relay", &["record", "ports", "kafka", "tls"]),
    ("telemetry", &[]),
    ("config", &[]),
    ("faults", &[]),
    ("node", &["record", "effects", "store", "ports", "task", "wasm", "kafka", "relay", "proto"]),
    ("control", &["record", "node", "proto", "tls"]),
    ("tls", &[]),
    ("cli", &["proto", "broker", "kafka", "wasm", "node", "control", "tls"]),
    ("main", &["cli"]),
];

/// Foreign crates that only some modules may name, by the start of their name.
const FOREIGN: &[(&str, &[&str])] = &[
    ("rdkafka", &["kafka"]),
    ("kafka_protocol", &["kafka"]),
    ("wasmtime", &["wasm"]),
    ("wasmparser", &["wasm"]),
    ("wit_", &["wasm"]),
    ("rocksdb", &["store"]),
    ("tonic", &["control", "cli"]),
    ("axum", &["control"]),
    ("hyper", &["control", "relay", "tls"]),
    ("tower", &["tls"]),
    ("tokio", &["control", "cli", "relay", "tls"]),
    ("tokio_rustls", &["relay", "tls"]),
    ("rustls", &["relay", "tls"]),
    ("webpki", &["tls"]),
    ("http_body_util", &["relay"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("prometheus_client", &["telemetry"]),
    ("serde_saphyr", &["config"]),
    ("anyhow", &["cli", "main"]),
];

/// What stands before a path that starts with `::`; anything else continues a path.
const LEADS: &[&str] = &[
    "", "use", "return", "in", "as", "dyn", "impl", "for", "mut", ",", ";", "=", "<", "(", "&", ":", "-",
    "+", "!", "|",
];

/// Modules that everyone may import.
const COMMON: &[&str] = &["telemetry", "config", "faults"];

#[test]
fn every_import_of_the_runtime_is_allowed_by_the_table() {
    let source = workspace().join("runtime/src");
    let mut violations = Vec::new();
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    assert!(files.len() > 5, "found only {} files", files.len());
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is readable");
        let path = file.strip_prefix(&source).expect("is below the source");
        for violation in check(path, &text) {
            violations.push(format!("runtime/src/{}: {violation}", path.display()));
        }
    }
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn no_dependency_is_renamed_so_that_names_can_be_trusted() {
    let manifest = workspace().join("runtime/Cargo.toml");
    let text = fs::read_to_string(manifest).expect("the manifest is readable");
    assert!(!text.contains("package ="), "{text}");
}

/// Cargo switches a feature on for everybody whom it builds at the same time, so nobody may ask for one in passing.
#[test]
fn crash_points_and_native_handlers_are_in_no_program_that_is_built_without_their_features() {
    for manifest in ["Cargo.toml", "runtime/Cargo.toml", "bench/Cargo.toml", "tests/Cargo.toml"] {
        let text = fs::read_to_string(workspace().join(manifest)).expect("the manifest is readable");
        for line in text.lines() {
            let is_of_the_runtime = line.starts_with("tidemill = ") || line.starts_with("tidemill.");
            assert!(!is_of_the_runtime || !line.contains("features"), "{manifest}: {line}");
            assert!(!line.starts_with("default"), "{manifest}: {line}");
        }
    }
}

#[test]
fn a_forbidden_import_is_found_however_it_is_written() {
    // (file, source, what the complaint must name)
    let planted = [
        ("task/run.rs", "use rdkafka::ClientConfig;", "rdkafka"),
        ("task/run.rs", "use crate::wasm::Engine;", "wasm"),
        ("task/run.rs", "use crate::{record, kafka::Reader};", "kafka"),
        ("task.rs", "use super::node::Handle;", "node"),
        ("task/deep/run.rs", "use super::super::super::node;", "node"),
        ("task/run.rs", "fn f() { crate::control::serve() }", "control"),
        ("node/worker.rs", "fn f() -> rocksdb::DB { loop {} }", "rocksdb"),
        ("node/worker.rs", "use ::wasmtime::Engine;", "wasmtime"),
        ("store/mod.rs", "extern crate rdkafka_sys;", "rdkafka_sys"),
        ("store/mod.rs", "use rdkafka_sys as sys;", "rdkafka_sys"),
        ("node/mod.rs", "fn f() { vec![tonic::Status::ok(\"\")]; }", "tonic"),
        ("config/node.rs", "#[derive(clap::Parser)] struct S;", "clap"),
        ("record.rs", "use tidemill_proto::v1::Position;", "proto"),
        ("task/run.rs", "use tidemill_batches::Header;", "batches"),
        ("wasm/mod.rs", "use crate::*;", "glob"),
        ("ports.rs", "mod tests { use super::super::task; }", "task"),
        // Tests may build on more of ours, never on another module's foreign crate.
        ("task/run.rs", "#[cfg(test)] mod tests { use rocksdb::DB; }", "rocksdb"),
    ];
    for (file, source, names) in planted {
        let found = check(Path::new(file), source);
        assert_eq!(found.len(), 1, "{file}: {source}: {found:?}");
        assert!(found[0].contains(names), "{found:?} does not name {names}");
    }
}

#[test]
fn allowed_imports_pass() {
    let allowed = [
        ("task/run.rs", "use crate::{record::{Batch, Column}, store::View};"),
        ("task/run.rs", "use super::overlay::Overlay; use std::store::x;"),
        ("task/run.rs", "#[cfg(test)] mod tests { use super::super::fakes; use crate::node; }"),
        ("kafka/raw.rs", "use rdkafka_sys as sys; use crate::config::Tls;"),
        ("kafka/fetch/chunk.rs", "use tidemill_batches::{BatchError, Header};"),
        ("node/worker.rs", "// rocksdb::DB\n/// [`rocksdb::DB`]\nconst S: &str = \"rocksdb::DB\";"),
        ("cli/apply.rs", "use tonic::transport::Channel; use tidemill_proto::v1;"),
        ("lib.rs", "pub mod task; pub mod node;"),
        ("main.rs", "fn main() -> anyhow::Result<()> { tidemill::cli::run() }"),
    ];
    for (file, source) in allowed {
        assert_eq!(check(Path::new(file), source), Vec::<String>::new(), "{source}");
    }
}

/// What a file must not name, one sentence each. `path` is relative to `runtime/src`.
fn check(path: &Path, text: &str) -> Vec<String> {
    let module = module_path(path);
    let Some(top) = module.first().cloned() else {
        return Vec::new(); // lib.rs declares every module and holds no code.
    };
    let tokens = match TokenStream::from_str(text) {
        Ok(tokens) => tokens,
        Err(error) => return vec![format!("is not Rust: {error}")],
    };
    let mut checker = Checker { top, found: Vec::new() };
    checker.walk(tokens, module.len(), false);
    checker.found.dedup();
    checker.found
}

/// `task/run.rs` is `[task, run]`, `task/mod.rs` and `task.rs` are `[task]`, `lib.rs` is `[]`.
fn module_path(path: &Path) -> Vec<String> {
    let mut segments: Vec<String> =
        path.with_extension("").iter().map(|segment| segment.to_string_lossy().into_owned()).collect();
    if segments.last().is_some_and(|last| last == "mod" || last == "lib") {
        segments.pop();
    }
    segments
}

struct Checker {
    /// The top-level module that the file belongs to.
    top: String,
    found: Vec<String>,
}

impl Checker {
    /// Walks one level of tokens. `depth` is how many `super` lead to the crate root; `in_test`
    /// says that the tokens are inside a `#[cfg(test)]` module.
    fn walk(&mut self, tokens: TokenStream, depth: usize, in_test: bool) {
        let mut tokens = tokens.into_iter().peekable();
        // What came before the current token: decides whether an identifier heads a path.
        let mut previous = String::new();
        let mut test_attribute = false;
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => {
                    let attribute = group.stream().to_string().replace(' ', "");
                    if group.delimiter() == Delimiter::Bracket && previous == "#" {
                        test_attribute |= attribute == "cfg(test)";
                    }
                    let named_module = previous.starts_with("mod ");
                    let test = in_test || (named_module && test_attribute);
                    // A group after `::` is the rest of a path whose head has been judged.
                    if previous != "::" {
                        self.walk(group.stream(), depth + usize::from(named_module), test);
                    }
                    test_attribute &= !named_module;
                    previous = String::from("group");
                }
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    let heads = previous != "::" && !LEADS.contains(&name.as_str());
                    if heads && matches!(previous.as_str(), "use" | "crate_extern") {
                        self.bare(&name, &mut tokens, in_test);
                    }
                    if heads && follows_colons(&mut tokens) {
                        self.path(&name, &mut tokens, depth, in_test);
                        previous = String::from("::");
                        continue;
                    }
                    previous = match (previous.as_str(), name.as_str()) {
                        ("mod", name) => format!("mod {name}"),
                        ("extern", "crate") => String::from("crate_extern"),
                        _ => name,
                    };
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    let double = punct.spacing() == Spacing::Joint && follows_colon(&mut tokens);
                    // A leading `::` names a crate, as no `::` at all does.
                    let leading = LEADS.contains(&previous.as_str());
                    previous = String::from(if double && !leading { "::" } else { ":" });
                }
                TokenTree::Punct(punct) => previous = punct.as_char().to_string(),
                TokenTree::Literal(_) => previous = String::from("literal"),
            }
        }
    }

    /// `use name;`, `use name as other;`, `extern crate name;`: a crate without a path.
    fn bare(&mut self, name: &str, tokens: &mut Peekable<impl Iterator<Item = TokenTree>>, in_test: bool) {
        let ends = match tokens.peek() {
            Some(TokenTree::Punct(punct)) => punct.as_char() == ';',
            Some(TokenTree::Ident(ident)) => ident == "as",
            _ => false,
        };
        if ends {
            self.head(name, in_test);
        }
    }

    /// A path that starts with `name ::`; the colons have been taken.
    fn path(
        &mut self,
        name: &str,
        tokens: &mut Peekable<impl Iterator<Item = TokenTree>>,
        depth: usize,
        in_test: bool,
    ) {
        if name == "crate" || (name == "tidemill" && self.top == "main") {
            return self.module_of_root(tokens, in_test);
        }
        let mut supers = usize::from(name == "super");
        if supers == 0 {
            return self.head(name, in_test);
        }
        // `super :: super :: x`: only what is named from the crate root is a module of ours.
        while let Some(TokenTree::Ident(ident)) = tokens.peek() {
            if ident != "super" {
                break;
            }
            tokens.next();
            supers += 1;
            if !follows_colons(tokens) {
                return;
            }
        }
        if supers == depth {
            self.module_of_root(tokens, in_test);
        }
    }

    /// What follows `crate ::`: a module, a group of modules, or a glob.
    fn module_of_root(&mut self, tokens: &mut Peekable<impl Iterator<Item = TokenTree>>, in_test: bool) {
        match tokens.peek() {
            Some(TokenTree::Ident(ident)) => self.ours(&ident.to_string(), in_test),
            Some(TokenTree::Group(group)) => {
                let mut starts = true;
                for token in group.stream() {
                    match token {
                        TokenTree::Ident(ident) if starts => {
                            self.ours(&ident.to_string(), in_test);
                            starts = false;
                        }
                        TokenTree::Punct(punct) => starts = punct.as_char() == ',',
                        _ => starts = false,
                    }
                }
            }
            Some(TokenTree::Punct(_)) => {
                self.found.push("a glob of the crate root hides what is used".into())
            }
            _ => {}
        }
    }

    /// The first segment of a path that is neither `crate` nor `super`.
    fn head(&mut self, name: &str, in_test: bool) {
        if let Some(own) = name.strip_prefix("tidemill_") {
            return self.ours(own, in_test);
        }
        for (prefix, modules) in FOREIGN {
            if name.starts_with(prefix) && !modules.contains(&self.top.as_str()) {
                let only = modules.join(" and ");
                self.found.push(format!("names the crate `{name}`, which only {only} may"));
            }
        }
    }

    fn ours(&mut self, module: &str, in_test: bool) {
        let known =
            OURS.iter().any(|(name, _)| *name == module) || matches!(module, "proto" | "broker" | "batches");
        if in_test || !known || module == self.top || COMMON.contains(&module) {
            return;
        }
        let allowed = OURS.iter().find(|(name, _)| *name == self.top);
        match allowed {
            Some((_, modules)) if modules.contains(&module) => {}
            Some((top, _)) => self.found.push(format!("`{top}` must not import `{module}`")),
            None => self.found.push(format!("the module `{}` is not in the table", self.top)),
        }
    }
}

/// Takes `::` if it is next.
fn follows_colons(tokens: &mut Peekable<impl Iterator<Item = TokenTree>>) -> bool {
    match tokens.peek() {
        Some(TokenTree::Punct(punct)) if punct.as_char() == ':' && punct.spacing() == Spacing::Joint => {
            tokens.next();
            follows_colon(tokens)
        }
        _ => false,
    }
}

/// Takes `:` if it is next.
fn follows_colon(tokens: &mut Peekable<impl Iterator<Item = TokenTree>>) -> bool {
    let next = matches!(tokens.peek(), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    if next {
        tokens.next();
    }
    next
}

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the source directory is readable") {
        let path = entry.expect("an entry is readable").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

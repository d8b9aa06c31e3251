//! The wire contracts as documents: every element is documented and named by one rule, `docs/api.md` is
//! what they say, and nothing that was released has changed its meaning.
//!
//! After a change of a `.proto` file `TIDEMILL_WRITE=1` writes `docs/api.md` anew, and appends what is new
//! to `proto/released.txt`, which only ever grows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

const PACKAGE: &str = "tidemill.v1";
/// What tidemill writes for itself into Kafka; its document is `docs/formats/topics.md`.
const LOG: &str = "tidemill/v1/log.proto";

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(tidemill_proto::v1::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    set.file.into_iter().filter(|file| file.package() == PACKAGE).collect()
}

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn is_writing() -> bool {
    std::env::var_os("TIDEMILL_WRITE").is_some()
}

/// Comments by the path of what they stand above.
struct Comments(BTreeMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptorProto) -> Comments {
        let info = file.source_code_info.as_ref().expect("compiled with comments");
        let comment = |location: &prost_types::source_code_info::Location| {
            let lines =
                location.leading_comments().lines().map(|line| line.strip_prefix(' ').unwrap_or(line));
            let text = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
            (location.path.clone(), text)
        };
        Comments(info.location.iter().map(comment).collect())
    }

    fn at(&self, path: &[i32]) -> &str {
        self.0.get(path).map_or("", String::as_str)
    }
}

/// Everything of a file that has a name, with its comment.
fn elements(file: &FileDescriptorProto) -> Vec<(String, String)> {
    let comments = Comments::of(file);
    let mut found = Vec::new();
    let mut add = |name: String, path: &[i32]| found.push((name, comments.at(path).to_owned()));
    for (index, message) in (0..).zip(&file.message_type) {
        add(message.name().to_owned(), &[4, index]);
        for (number, field) in (0..).zip(&message.field) {
            add(format!("{}.{}", message.name(), field.name()), &[4, index, 2, number]);
        }
    }
    for (index, kind) in (0..).zip(&file.enum_type) {
        add(kind.name().to_owned(), &[5, index]);
        for (number, value) in (0..).zip(&kind.value).skip(1) {
            add(value.name().to_owned(), &[5, index, 2, number]);
        }
    }
    for (index, service) in (0..).zip(&file.service) {
        add(service.name().to_owned(), &[6, index]);
        for (number, method) in (0..).zip(&service.method) {
            add(format!("{}.{}", service.name(), method.name()), &[6, index, 2, number]);
        }
    }
    found
}

#[test]
fn every_element_is_documented() {
    let mut bare = Vec::new();
    for file in files() {
        let elements = elements(&file).into_iter().filter(|(_, comment)| comment.is_empty());
        bare.extend(elements.map(|(name, _)| format!("{}: {name}", file.name())));
    }
    assert!(bare.is_empty(), "without a comment above them:\n{}", bare.join("\n"));
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn is_snake(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.contains("__")
        && !name.ends_with('_')
}

/// `TaskState` is `TASK_STATE`.
fn upper_snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

fn wrong_enum(kind: &EnumDescriptorProto) -> Vec<String> {
    let prefix = format!("{}_", upper_snake(kind.name()));
    let mut wrong = Vec::new();
    if kind
        .value
        .first()
        .is_none_or(|value| value.name() != format!("{prefix}UNSPECIFIED") || value.number() != 0)
    {
        wrong.push(format!("{} begins with {prefix}UNSPECIFIED = 0", kind.name()));
    }
    let is_upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let is_one = |name: &str| name.starts_with(&prefix) && name.chars().all(is_upper);
    let strange = kind.value.iter().filter(|value| !is_one(value.name()));
    wrong.extend(strange.map(|value| format!("{} is UPPER_SNAKE_CASE after {prefix}", value.name())));
    if !is_pascal(kind.name()) {
        wrong.push(format!("{} is PascalCase", kind.name()));
    }
    if kind.options.as_ref().is_some_and(|options| options.allow_alias()) {
        wrong.push(format!("{} has two names for one number", kind.name()));
    }
    wrong
}

/// Imports that nothing of a file needs, or that it hands on to whoever imports it.
fn wrong_imports(file: &FileDescriptorProto, all: &[FileDescriptorProto]) -> Vec<String> {
    let fields = file.message_type.iter().flat_map(|message| &message.field);
    let methods = file.service.iter().flat_map(|service| &service.method);
    let calls = methods.flat_map(|method| [method.input_type(), method.output_type()]);
    let named: BTreeSet<&str> = fields.map(FieldDescriptorProto::type_name).chain(calls).collect();
    let is_needed = |imported: &FileDescriptorProto| {
        let messages = imported.message_type.iter().map(DescriptorProto::name);
        let mut types = messages.chain(imported.enum_type.iter().map(EnumDescriptorProto::name));
        types.any(|name| named.contains(format!(".{PACKAGE}.{name}").as_str()))
    };
    let imported = all.iter().filter(|other| file.dependency.iter().any(|path| path == other.name()));
    let mut wrong: Vec<String> = imported
        .filter(|imported| !is_needed(imported))
        .map(|imported| format!("{} does not need {}", file.name(), imported.name()))
        .collect();
    if !file.public_dependency.is_empty() || !file.weak_dependency.is_empty() {
        wrong.push(format!("{} has an import that is public or weak", file.name()));
    }
    wrong
}

fn wrong_service(service: &ServiceDescriptorProto, used: &mut BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    if !is_pascal(service.name()) {
        wrong.push(format!("{} is PascalCase", service.name()));
    }
    for method in &service.method {
        let name = format!("{}.{}", service.name(), method.name());
        for (what, message) in [("Request", method.input_type()), ("Response", method.output_type())] {
            if !message.ends_with(what) {
                wrong.push(format!("{name}: {message} ends in {what}"));
            }
            if !used.insert(message.to_owned()) {
                wrong.push(format!("{name}: {message} is another call's as well"));
            }
        }
        if !is_pascal(method.name()) {
            wrong.push(format!("{name} is PascalCase"));
        }
    }
    wrong
}

/// The rules of `buf lint` (STANDARD) but those for the names of services, which are nouns without a suffix, and of
/// requests and responses, which say as well what they are about.
#[test]
fn names_follow_one_rule() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let files = files();
    for file in &files {
        let path = Path::new(file.name());
        if path.parent() != Some(Path::new("tidemill/v1")) || file.syntax() != "proto3" {
            wrong.push(format!("{} lies in the directory of its package and is proto3", file.name()));
        }
        if !path.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_snake) {
            wrong.push(format!("{} is lower_snake_case", file.name()));
        }
        wrong.extend(wrong_imports(file, &files));
        for message in &file.message_type {
            if !is_pascal(message.name()) {
                wrong.push(format!("{} is PascalCase", message.name()));
            }
            let fields = message.field.iter().map(FieldDescriptorProto::name);
            let oneofs = message.oneof_decl.iter().map(|oneof| oneof.name());
            // An optional field is a oneof of its own, by a name that protobuf makes.
            let strange = fields.chain(oneofs).filter(|name| !is_snake(name.trim_start_matches('_')));
            wrong.extend(strange.map(|name| format!("{}.{name} is lower_snake_case", message.name())));
        }
        wrong.extend(file.enum_type.iter().flat_map(wrong_enum));
        wrong.extend(file.service.iter().flat_map(|service| wrong_service(service, &mut used)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn type_of(field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().rsplit('.').next().unwrap_or_default().to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let label = match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => "repeated ",
        (_, true) => "optional ",
        _ => "",
    };
    format!("{label}{name}")
}

/// For a cell of a table.
fn cell(comment: &str) -> String {
    comment.replace('\n', " ").replace('|', "\\|")
}

fn linked(name: &str) -> String {
    let short = name.rsplit('.').next().unwrap_or_default();
    format!("[{short}](#{})", short.to_lowercase())
}

fn write_message(
    text: &mut String,
    message: &DescriptorProto,
    comments: &Comments,
    at: i32,
) -> std::fmt::Result {
    write!(text, "\n### {}\n\n{}\n", message.name(), comments.at(&[4, at]))?;
    if message.field.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n| field | type | |\n|---|---|---|")?;
    for (number, field) in (0..).zip(&message.field) {
        let comment = cell(comments.at(&[4, at, 2, number]));
        let one_of = match (field.oneof_index, field.proto3_optional()) {
            (Some(index), false) => format!(" (one of `{}`)", message.oneof_decl[index as usize].name()),
            _ => String::new(),
        };
        let kind = type_of(field);
        let kind = match field.r#type() {
            Type::Message | Type::Enum => {
                let name = linked(field.type_name());
                format!(
                    "{}{name}",
                    kind.strip_suffix(kind.rsplit(' ').next().unwrap_or_default()).unwrap_or_default()
                )
            }
            _ => kind,
        };
        writeln!(text, "| `{}` = {} | {kind} | {comment}{one_of} |", field.name(), field.number())?;
    }
    Ok(())
}

/// `docs/api.md`.
fn api() -> Result<String, std::fmt::Error> {
    let mut text = String::from(
        "# The control plane's gRPC API\n\n\
         Generated from `proto/tidemill/v1/*.proto` (`make api`); a test holds it to them. Every node of a fleet takes every call, on \
         `listen.grpc`; whether a caller needs a certificate and a role is the node's configuration ([security.md](security.md)). Reflection is on, so `grpcurl -plaintext 127.0.0.1:7600 list` works without these files, and \
         `grpc.health.v1.Health` answers for each service.\n\n\
         Limits: a message of a client has at most 1 MiB, a connection 64 streams, a call 60 seconds; `grpc-timeout` is honoured below that. \
         Errors carry `google.rpc.Status` with details.\n\n\
         Required in a request are the names that it is about (a deployment, its store, a node), documents, and what the call is for: the \
         key of a read, the change of an edit, where a reset goes. Any other field may be left out; where its comment does not say what \
         that means, it means 0, false or nothing.\n",
    );
    let files: Vec<_> = files().into_iter().filter(|file| file.name() != LOG).collect();
    for file in &files {
        let comments = Comments::of(file);
        for (index, service) in (0..).zip(&file.service) {
            write!(text, "\n## {PACKAGE}.{}\n\n{}\n", service.name(), comments.at(&[6, index]))?;
            writeln!(text, "\n| call | asks | answers | |\n|---|---|---|---|")?;
            for (number, method) in (0..).zip(&service.method) {
                let stream = |is: bool| if is { "stream of " } else { "" };
                writeln!(
                    text,
                    "| `{}` | {}{} | {}{} | {} |",
                    method.name(),
                    stream(method.client_streaming()),
                    linked(method.input_type()),
                    stream(method.server_streaming()),
                    linked(method.output_type()),
                    cell(comments.at(&[6, index, 2, number]))
                )?;
            }
        }
    }
    text.push_str("\n## Messages\n");
    for file in &files {
        let comments = Comments::of(file);
        for (index, message) in (0..).zip(&file.message_type) {
            write_message(&mut text, message, &comments, index)?;
        }
    }
    text.push_str("\n## Enumerations\n");
    for file in &files {
        let comments = Comments::of(file);
        for (index, kind) in (0..).zip(&file.enum_type) {
            write!(text, "\n### {}\n\n{}\n", kind.name(), comments.at(&[5, index]))?;
            writeln!(text, "\n| value | |\n|---|---|")?;
            for (number, value) in (0..).zip(&kind.value) {
                let comment = cell(comments.at(&[5, index, 2, number]));
                writeln!(text, "| `{}` = {} | {comment} |", value.name(), value.number())?;
            }
        }
    }
    Ok(text)
}

#[test]
fn the_document_of_the_api_is_up_to_date() {
    let (path, text) = (workspace("docs/api.md"), api().expect("text"));
    if is_writing() {
        std::fs::write(&path, &text).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/api.md is not what the contracts say; `make api` writes it");
}

/// What a peer of another version relies on, one line for each.
fn promises() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in files() {
        for message in &file.message_type {
            let fields = message.field.iter();
            lines.extend(fields.map(|field| {
                let (name, number, kind) = (field.name(), field.number(), type_of(field));
                format!("message {} {number} {name} {kind}", message.name())
            }));
        }
        for kind in &file.enum_type {
            let value = |value: &prost_types::EnumValueDescriptorProto| {
                format!("enum {} {} {}", kind.name(), value.number(), value.name())
            };
            lines.extend(kind.value.iter().map(value));
        }
        for service in &file.service {
            lines.extend(service.method.iter().map(|method| {
                let stream = |is: bool| if is { "stream " } else { "" };
                format!(
                    "call {}.{} {}{} -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type().trim_start_matches(".tidemill.v1."),
                    stream(method.server_streaming()),
                    method.output_type().trim_start_matches(".tidemill.v1.")
                )
            }));
        }
    }
    lines
}

#[test]
fn nothing_that_was_released_has_changed_its_meaning() {
    let path = workspace("proto/released.txt");
    let mut released: BTreeSet<String> =
        std::fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
    let promises = promises();
    let broken: Vec<&String> = released.difference(&promises).collect();
    assert!(
        broken.is_empty(),
        "gone or changed, though peers and records of an earlier version rely on it:\n{}\n\
         Add a field with a new number instead.",
        broken.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("\n")
    );
    if is_writing() {
        released.extend(promises.iter().cloned());
        let lines: Vec<&str> = released.iter().map(String::as_str).collect();
        std::fs::write(&path, lines.join("\n") + "\n").expect("written");
    }
    let new: Vec<&str> = promises.difference(&released).map(String::as_str).collect();
    assert!(new.is_empty(), "not in proto/released.txt yet; `make api` adds it:\n{}", new.join("\n"));
}

//! The wire contracts as documents: everything is documented and named by the rules of buf, `docs/api.md` is
//! what they say, and nothing that was released has changed its meaning.
//!
//! | file | what |
//! |---|---|
//! | `descriptors` | what the compiler has read |
//! | `rules`, `lint` | buf's rules, and those of them that proto/buf.yaml names |
//! | here | the document of the API, and what was released |
//!
//! After a change of a `.proto` file `TIDEMILL_WRITE=1` writes `docs/api.md` anew, and appends what is new
//! to `proto/released.txt`, which only ever grows.

mod descriptors;
mod lint;
mod rules;

use std::collections::BTreeSet;
use std::fmt::Write;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};

use descriptors::{Comments, PACKAGE, files, is_map_entry, workspace};

/// What tidemill writes for itself into Kafka; its document is `docs/formats/topics.md`.
const LOG: &str = "tidemill/v1/log.proto";

fn is_writing() -> bool {
    std::env::var_os("TIDEMILL_WRITE").is_some()
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

/// As a `.proto` file writes it: descriptors have a map as a repeated message of its own. `None` of any other field.
fn map_of(message: &DescriptorProto, field: &FieldDescriptorProto) -> Option<String> {
    let name = field.type_name().rsplit('.').next()?;
    let is_its = |nested: &&DescriptorProto| nested.name() == name && is_map_entry(nested);
    let entry = message.nested_type.iter().find(is_its)?;
    let [key, value] = entry.field.as_slice() else { return None };
    Some(format!("`map<{}, {}>`", type_of(key), type_of(value)))
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
        let kind = match (map_of(message, field), field.r#type()) {
            (Some(map), _) => map,
            (None, Type::Message | Type::Enum) => {
                let name = linked(field.type_name());
                format!(
                    "{}{name}",
                    kind.strip_suffix(kind.rsplit(' ').next().unwrap_or_default()).unwrap_or_default()
                )
            }
            (None, _) => kind,
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

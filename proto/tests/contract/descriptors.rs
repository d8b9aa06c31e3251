//! The contracts as the compiler has read them, with their comments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

pub const PACKAGE: &str = "tidemill.v1";

/// Every file, imported ones included.
pub fn compiled() -> Vec<FileDescriptorProto> {
    FileDescriptorSet::decode(tidemill_proto::v1::FILE_DESCRIPTOR_SET).expect("a descriptor set").file
}

/// Those of our package.
pub fn files() -> Vec<FileDescriptorProto> {
    compiled().into_iter().filter(|file| file.package() == PACKAGE).collect()
}

pub fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Comments by the path of what they stand above.
pub struct Comments(BTreeMap<Vec<i32>, String>);

impl Comments {
    pub fn of(file: &FileDescriptorProto) -> Comments {
        let info = file.source_code_info.as_ref().expect("compiled with comments");
        let comment = |location: &prost_types::source_code_info::Location| {
            let lines =
                location.leading_comments().lines().map(|line| line.strip_prefix(' ').unwrap_or(line));
            let text = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
            (location.path.clone(), text)
        };
        Comments(info.location.iter().map(comment).collect())
    }

    pub fn at(&self, path: &[i32]) -> &str {
        self.0.get(path).map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Message,
    Field,
    Oneof,
    Enum,
    EnumValue,
    Service,
    Rpc,
}

/// Something of a file that has a name.
#[derive(Debug)]
pub struct Element {
    pub kind: Kind,
    /// Below its package: `Outer.Inner.field`.
    pub name: String,
    /// Where its comment is.
    pub path: Vec<i32>,
}

impl Element {
    /// Without what it stands in.
    pub fn own_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// Everything of a file that has a name which its author gave it.
pub fn elements(file: &FileDescriptorProto) -> Vec<Element> {
    let mut found = Vec::new();
    for (index, message) in (0..).zip(&file.message_type) {
        add_message(&mut found, "", &[4, index], message);
    }
    for (index, kind) in (0..).zip(&file.enum_type) {
        add_enum(&mut found, "", &[5, index], kind);
    }
    for (index, service) in (0..).zip(&file.service) {
        add(&mut found, Kind::Service, service.name().to_owned(), &[6, index]);
        for (number, method) in (0..).zip(&service.method) {
            let name = format!("{}.{}", service.name(), method.name());
            add(&mut found, Kind::Rpc, name, &[6, index, 2, number]);
        }
    }
    found
}

fn add(found: &mut Vec<Element>, kind: Kind, name: String, path: &[i32]) {
    found.push(Element { kind, name, path: path.to_vec() });
}

fn add_message(found: &mut Vec<Element>, outer: &str, path: &[i32], message: &DescriptorProto) {
    if is_map_entry(message) {
        return;
    }
    let name = within(outer, message.name());
    add(found, Kind::Message, name.clone(), path);
    let inner = |what: i32, index: i32| [path, &[what, index][..]].concat();
    for (index, field) in (0..).zip(&message.field) {
        add(found, Kind::Field, within(&name, field.name()), &inner(2, index));
    }
    for (index, oneof) in (0..).zip(&message.oneof_decl) {
        // An optional field is a oneof of its own, by a name that protobuf makes.
        let is_made = |field: &prost_types::FieldDescriptorProto| {
            field.oneof_index == Some(index) && field.proto3_optional()
        };
        if !message.field.iter().any(is_made) {
            add(found, Kind::Oneof, within(&name, oneof.name()), &inner(8, index));
        }
    }
    for (index, nested) in (0..).zip(&message.nested_type) {
        add_message(found, &name, &inner(3, index), nested);
    }
    for (index, kind) in (0..).zip(&message.enum_type) {
        add_enum(found, &name, &inner(4, index), kind);
    }
}

fn add_enum(found: &mut Vec<Element>, outer: &str, path: &[i32], kind: &EnumDescriptorProto) {
    let name = within(outer, kind.name());
    add(found, Kind::Enum, name.clone(), path);
    for (index, value) in (0..).zip(&kind.value) {
        add(found, Kind::EnumValue, within(&name, value.name()), &[path, &[2, index][..]].concat());
    }
}

fn within(outer: &str, name: &str) -> String {
    if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") }
}

/// What a map's keys and values are kept in; its author wrote `map<...>`.
pub fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

/// Every message of a file, nested ones and entries of maps included.
pub fn messages(file: &FileDescriptorProto) -> Vec<&DescriptorProto> {
    let mut found: Vec<&DescriptorProto> = file.message_type.iter().collect();
    let mut next = 0;
    while let Some(message) = found.get(next).copied() {
        found.extend(&message.nested_type);
        next += 1;
    }
    found
}

/// Every enumeration of a file, nested ones included.
pub fn enums(file: &FileDescriptorProto) -> Vec<&EnumDescriptorProto> {
    let nested = messages(file).into_iter().flat_map(|message| &message.enum_type);
    file.enum_type.iter().chain(nested).collect()
}

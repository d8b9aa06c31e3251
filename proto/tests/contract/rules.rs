//! The rules of `buf lint` that proto/buf.yaml takes up, by buf's names. Each answers with the names of what
//! breaks it. Where one asks for more than buf does, it says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost_types::field_descriptor_proto::Label;
use prost_types::{
    EnumDescriptorProto, EnumValueDescriptorProto, FileDescriptorProto, FileOptions, MethodDescriptorProto,
    ServiceDescriptorProto,
};

use crate::descriptors::{Comments, Element, Kind, compiled, elements, enums, messages};

type Files = [FileDescriptorProto];
pub type Rule = fn(&Files) -> Vec<String>;

/// By category; STANDARD as version 2 of buf's configuration has it.
pub const CATEGORIES: &[(&str, &[(&str, Rule)])] = &[("STANDARD", STANDARD), ("COMMENTS", COMMENTS)];

const STANDARD: &[(&str, Rule)] = &[
    ("DIRECTORY_SAME_PACKAGE", |files| divided(files, directory, |file| file.package().to_owned())),
    ("ENUM_FIRST_VALUE_ZERO", enum_first_value_zero),
    ("ENUM_NO_ALLOW_ALIAS", enum_no_allow_alias),
    ("ENUM_PASCAL_CASE", |files| misnamed(files, Kind::Enum, is_pascal)),
    ("ENUM_VALUE_PREFIX", |files| enum_values(files, |kind, value| value.name().starts_with(&prefix(kind)))),
    ("ENUM_VALUE_UPPER_SNAKE_CASE", |files| misnamed(files, Kind::EnumValue, is_upper_snake)),
    ("ENUM_ZERO_VALUE_SUFFIX", |files| {
        enum_values(files, |_, value| value.number() != 0 || value.name().ends_with("_UNSPECIFIED"))
    }),
    ("FIELD_LOWER_SNAKE_CASE", |files| misnamed(files, Kind::Field, is_lower_snake)),
    ("FIELD_NOT_REQUIRED", field_not_required),
    ("FILE_LOWER_SNAKE_CASE", |files| wrong(files, |file| is_lower_snake(stem(file)))),
    ("IMPORT_NO_PUBLIC", |files| wrong(files, |file| file.public_dependency.is_empty())),
    ("IMPORT_USED", import_used),
    ("MESSAGE_PASCAL_CASE", |files| misnamed(files, Kind::Message, is_pascal)),
    ("ONEOF_LOWER_SNAKE_CASE", |files| misnamed(files, Kind::Oneof, is_lower_snake)),
    ("PACKAGE_DEFINED", |files| wrong(files, |file| !file.package().is_empty())),
    ("PACKAGE_DIRECTORY_MATCH", |files| {
        wrong(files, |file| directory(file) == file.package().replace('.', "/"))
    }),
    ("PACKAGE_LOWER_SNAKE_CASE", |files| {
        wrong(files, |file| file.package().is_empty() || file.package().split('.').all(is_lower_snake))
    }),
    ("PACKAGE_NO_IMPORT_CYCLE", package_no_import_cycle),
    ("PACKAGE_SAME_CSHARP_NAMESPACE", |files| option(files, |options| options.csharp_namespace.clone())),
    ("PACKAGE_SAME_DIRECTORY", |files| divided(files, |file| file.package().to_owned(), directory)),
    ("PACKAGE_SAME_GO_PACKAGE", |files| option(files, |options| options.go_package.clone())),
    ("PACKAGE_SAME_JAVA_MULTIPLE_FILES", |files| {
        option(files, |options| options.java_multiple_files.map(|several| several.to_string()))
    }),
    ("PACKAGE_SAME_JAVA_PACKAGE", |files| option(files, |options| options.java_package.clone())),
    ("PACKAGE_SAME_PHP_NAMESPACE", |files| option(files, |options| options.php_namespace.clone())),
    ("PACKAGE_SAME_RUBY_PACKAGE", |files| option(files, |options| options.ruby_package.clone())),
    ("PACKAGE_SAME_SWIFT_PREFIX", |files| option(files, |options| options.swift_prefix.clone())),
    // Without versions that are not finished, v1beta1 and such, which buf lets pass.
    ("PACKAGE_VERSION_SUFFIX", |files| wrong(files, |file| is_version(last(file.package())))),
    // Nothing is said in the words of protovalidate, so that nothing of it can be wrong.
    ("PROTOVALIDATE", |files| {
        wrong(files, |file| !file.dependency.iter().any(|path| path.starts_with("buf/validate/")))
    }),
    ("RPC_PASCAL_CASE", |files| misnamed(files, Kind::Rpc, is_pascal)),
    ("RPC_REQUEST_RESPONSE_UNIQUE", rpc_request_response_unique),
    ("RPC_REQUEST_STANDARD_NAME", |files| unlike(files, MethodDescriptorProto::input_type, "Request")),
    ("RPC_RESPONSE_STANDARD_NAME", |files| unlike(files, MethodDescriptorProto::output_type, "Response")),
    ("SERVICE_PASCAL_CASE", |files| misnamed(files, Kind::Service, is_pascal)),
    ("SERVICE_SUFFIX", |files| misnamed(files, Kind::Service, |name| name.ends_with("Service"))),
    // And it is this one: a descriptor does not tell proto2 from nothing.
    ("SYNTAX_SPECIFIED", |files| wrong(files, |file| file.syntax() == "proto3")),
];

const COMMENTS: &[(&str, Rule)] = &[
    ("COMMENT_ENUM", |files| bare(files, Kind::Enum)),
    ("COMMENT_ENUM_VALUE", |files| bare(files, Kind::EnumValue)),
    ("COMMENT_FIELD", |files| bare(files, Kind::Field)),
    ("COMMENT_MESSAGE", |files| bare(files, Kind::Message)),
    ("COMMENT_ONEOF", |files| bare(files, Kind::Oneof)),
    ("COMMENT_RPC", |files| bare(files, Kind::Rpc)),
    ("COMMENT_SERVICE", |files| bare(files, Kind::Service)),
];

/// Files that are not as they should be.
fn wrong(files: &Files, is_right: impl Fn(&FileDescriptorProto) -> bool) -> Vec<String> {
    files.iter().filter(|file| !is_right(file)).map(|file| file.name().to_owned()).collect()
}

fn misnamed(files: &Files, kind: Kind, is_right: fn(&str) -> bool) -> Vec<String> {
    let elements = files.iter().flat_map(elements).filter(|element| element.kind == kind);
    elements.filter(|element| !is_right(element.own_name())).map(|element| element.name).collect()
}

/// Without a comment.
fn bare(files: &Files, kind: Kind) -> Vec<String> {
    let bare = |file: &FileDescriptorProto| {
        let comments = Comments::of(file);
        let is_bare = |element: &Element| element.kind == kind && comments.at(&element.path).is_empty();
        elements(file).into_iter().filter(is_bare).map(|element| element.name).collect::<Vec<_>>()
    };
    files.iter().flat_map(bare).collect()
}

/// What the files with one `whole` have several `part`s of.
fn divided(
    files: &Files,
    whole: impl Fn(&FileDescriptorProto) -> String,
    part: impl Fn(&FileDescriptorProto) -> String,
) -> Vec<String> {
    let mut parts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        parts.entry(whole(file)).or_default().insert(part(file));
    }
    parts.into_iter().filter(|(_, parts)| parts.len() > 1).map(|(whole, _)| whole).collect()
}

/// Packages whose files have several values of an option; none is one.
fn option(files: &Files, value: impl Fn(&FileOptions) -> Option<String>) -> Vec<String> {
    let value = |file: &FileDescriptorProto| file.options.as_ref().and_then(&value).unwrap_or_default();
    divided(files, |file| file.package().to_owned(), value)
}

fn enum_values(
    files: &Files,
    is_right: impl Fn(&EnumDescriptorProto, &EnumValueDescriptorProto) -> bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for kind in files.iter().flat_map(enums) {
        let values = kind.value.iter().filter(|value| !is_right(kind, value));
        wrong.extend(values.map(|value| value.name().to_owned()));
    }
    wrong
}

fn enum_first_value_zero(files: &Files) -> Vec<String> {
    let kinds = files.iter().flat_map(enums);
    let wrong = kinds.filter(|kind| kind.value.first().is_none_or(|value| value.number() != 0));
    wrong.map(|kind| kind.name().to_owned()).collect()
}

fn enum_no_allow_alias(files: &Files) -> Vec<String> {
    let kinds = files.iter().flat_map(enums);
    let wrong = kinds.filter(|kind| kind.options.as_ref().is_some_and(|options| options.allow_alias()));
    wrong.map(|kind| kind.name().to_owned()).collect()
}

fn field_not_required(files: &Files) -> Vec<String> {
    let fields = files.iter().flat_map(messages).flat_map(|message| &message.field);
    fields.filter(|field| field.label() == Label::Required).map(|field| field.name().to_owned()).collect()
}

/// Every type that a file names.
fn named(file: &FileDescriptorProto) -> BTreeSet<String> {
    let fields = messages(file).into_iter().flat_map(|message| &message.field);
    let methods = file.service.iter().flat_map(|service| &service.method);
    let calls = methods.flat_map(|method| [method.input_type(), method.output_type()]);
    fields.map(|field| field.type_name()).chain(calls).map(str::to_owned).collect()
}

fn import_used(files: &Files) -> Vec<String> {
    let compiled = compiled();
    let mut unused = Vec::new();
    for file in files {
        let named = named(file);
        let is_named = |imported: &FileDescriptorProto| {
            let types = elements(imported).into_iter();
            let mut types = types.filter(|element| matches!(element.kind, Kind::Message | Kind::Enum));
            types.any(|element| named.contains(&format!(".{}.{}", imported.package(), element.name)))
        };
        for path in &file.dependency {
            let imported = files.iter().chain(&compiled).find(|imported| imported.name() == path);
            if !imported.is_some_and(is_named) {
                unused.push(format!("{}: {path}", file.name()));
            }
        }
    }
    unused
}

/// Packages in a cycle, or that import one.
fn package_no_import_cycle(files: &Files) -> Vec<String> {
    let package = |path: &str| files.iter().find(|file| file.name() == path).map(|file| file.package());
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in files {
        let others = file.dependency.iter().filter_map(|path| package(path));
        imports.entry(file.package()).or_default().extend(others.filter(|other| *other != file.package()));
    }
    // Again and again without those that import nothing which is left.
    loop {
        let left: BTreeSet<&str> = imports.keys().copied().collect();
        imports.retain(|_, others| others.iter().any(|other| left.contains(other)));
        if imports.len() == left.len() {
            return left.into_iter().map(str::to_owned).collect();
        }
    }
}

/// Every call, with its service.
pub fn calls(files: &Files) -> Vec<(&ServiceDescriptorProto, &MethodDescriptorProto)> {
    let services = files.iter().flat_map(|file| &file.service);
    services.flat_map(|service| service.method.iter().map(move |method| (service, method))).collect()
}

fn rpc_request_response_unique(files: &Files) -> Vec<String> {
    let mut used = BTreeSet::new();
    let calls = calls(files).into_iter();
    let messages = calls.flat_map(|(_, method)| [method.input_type(), method.output_type()]);
    messages.filter(|message| !used.insert(*message)).map(str::to_owned).collect()
}

/// Messages of calls that are not named for the call, nor for the call and its service.
fn unlike(files: &Files, message: fn(&MethodDescriptorProto) -> &str, ending: &str) -> Vec<String> {
    let is_unlike = |&(service, method): &(&ServiceDescriptorProto, &MethodDescriptorProto)| {
        let (name, expected) = (last(message(method)), format!("{}{ending}", method.name()));
        name != expected && name != format!("{}{expected}", service.name())
    };
    let unlike = calls(files).into_iter().filter(is_unlike);
    unlike.map(|(service, method)| format!("{}.{}", service.name(), method.name())).collect()
}

fn directory(file: &FileDescriptorProto) -> String {
    Path::new(file.name()).parent().and_then(Path::to_str).unwrap_or_default().to_owned()
}

fn stem(file: &FileDescriptorProto) -> &str {
    Path::new(file.name()).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

fn is_version(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok_and(|number| number > 0))
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn is_lower_snake(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.contains("__")
        && !name.ends_with('_')
}

fn is_upper_snake(name: &str) -> bool {
    !name.contains(|c: char| c.is_ascii_lowercase()) && is_lower_snake(&name.to_ascii_lowercase())
}

/// `TASK_STATE_` of `TaskState`.
fn prefix(kind: &EnumDescriptorProto) -> String {
    let mut text = String::new();
    for c in kind.name().chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text + "_"
}

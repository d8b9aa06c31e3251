//! `buf lint` without buf: proto/buf.yaml names rules, and the contracts are held to these and to no others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost_types::field_descriptor_proto::Label;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumOptions, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileOptions, MethodDescriptorProto, OneofDescriptorProto, ServiceDescriptorProto,
    SourceCodeInfo,
};

use crate::descriptors::{compiled, files, workspace};
use crate::rules::{CATEGORIES, calls};

/// What buf.yaml says, list by list.
struct Config(BTreeMap<String, Vec<String>>);

impl Config {
    /// Refuses what nothing here would check.
    fn read() -> Config {
        let text = std::fs::read_to_string(workspace("proto/buf.yaml")).expect("proto/buf.yaml");
        let (mut lists, mut list) = (BTreeMap::<String, Vec<String>>::new(), "");
        let says = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        for line in text.lines().filter(says) {
            match (line, line.strip_prefix("    - ")) {
                (_, Some(item)) => lists.entry(list.to_owned()).or_default().push(item.to_owned()),
                ("version: v2" | "lint:", None) => {}
                ("  use:", None) => list = "use",
                ("  except:", None) => list = "except",
                ("  ignore:", None) => list = "ignore",
                (other, None) => panic!("proto/buf.yaml says `{other}`, which nothing checks"),
            }
        }
        Config(lists)
    }

    fn list(&self, name: &str) -> &[String] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The files that buf would look at.
    fn files(&self) -> Vec<FileDescriptorProto> {
        let compiled = compiled();
        let mut paths = Vec::new();
        contracts(&workspace("proto"), Path::new(""), &mut paths);
        paths.retain(|path| !self.list("ignore").iter().any(|ignored| path.starts_with(ignored)));
        let file = |path: &PathBuf| {
            let file = compiled.iter().find(|file| Path::new(file.name()) == path);
            file.unwrap_or_else(|| panic!("{} is not in proto/build.rs", path.display())).clone()
        };
        paths.iter().map(file).collect()
    }
}

/// Every `.proto` file below `root`, relative to it.
fn contracts(root: &Path, below: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root.join(below)).expect("a directory") {
        let path = below.join(entry.expect("an entry").file_name());
        if root.join(&path).is_dir() {
            contracts(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found.sort();
}

#[test]
fn the_contracts_keep_every_rule_that_buf_yaml_names_and_break_every_one_that_it_excepts() {
    let config = Config::read();
    let files = config.files();
    assert!(files.len() > 5, "found only {} files", files.len());
    let (mut wrong, mut excepted) = (Vec::new(), config.list("except").to_vec());
    for name in config.list("use") {
        let category = CATEGORIES.iter().find(|(category, _)| category == name);
        let (_, rules) = category.unwrap_or_else(|| panic!("buf.yaml uses {name}, which nothing checks"));
        for (rule, broken) in rules.iter().map(|(rule, check)| (*rule, check(&files))) {
            let known = excepted.iter().position(|name| name == rule).map(|at| excepted.remove(at));
            match known {
                None => wrong.extend(broken.into_iter().map(|name| format!("{rule}: {name}"))),
                Some(_) if broken.is_empty() => {
                    wrong.push(format!("{rule} is excepted, and nothing breaks it"));
                }
                Some(_) => {}
            }
        }
    }
    wrong.extend(excepted.into_iter().map(|rule| format!("{rule} is excepted, and not used")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// In place of buf's rules for these names.
#[test]
fn a_call_takes_a_request_and_answers_with_a_response() {
    let files = files();
    let mut wrong = Vec::new();
    for (service, method) in calls(&files) {
        let (input, output) = (method.input_type(), method.output_type());
        if !input.ends_with("Request") || !output.ends_with("Response") {
            wrong.push(format!("{}.{}: {input}, {output}", service.name(), method.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Files in which nothing is as it should be.
fn ugly() -> Vec<FileDescriptorProto> {
    let name = |name: &str| Some(name.to_owned());
    let value = |text: &str, number| EnumValueDescriptorProto {
        name: name(text),
        number: Some(number),
        ..EnumValueDescriptorProto::default()
    };
    let field = FieldDescriptorProto {
        name: name("Required"),
        label: Some(Label::Required.into()),
        oneof_index: Some(0),
        ..FieldDescriptorProto::default()
    };
    let message = DescriptorProto {
        name: name("a_message"),
        field: vec![field],
        oneof_decl: vec![OneofDescriptorProto { name: name("One"), ..OneofDescriptorProto::default() }],
        ..DescriptorProto::default()
    };
    let kind = EnumDescriptorProto {
        name: name("a_kind"),
        value: vec![value("One", 1), value("Null", 0)],
        options: Some(EnumOptions { allow_alias: Some(true), ..EnumOptions::default() }),
        ..EnumDescriptorProto::default()
    };
    let method = MethodDescriptorProto {
        name: name("a_call"),
        input_type: name(".Bad.a_message"),
        output_type: name(".Bad.a_message"),
        ..MethodDescriptorProto::default()
    };
    let service = ServiceDescriptorProto {
        name: name("a_desk"),
        method: vec![method],
        ..ServiceDescriptorProto::default()
    };
    let options = FileOptions {
        csharp_namespace: name("a"),
        go_package: name("a"),
        java_multiple_files: Some(true),
        java_package: name("a"),
        php_namespace: name("a"),
        ruby_package: name("a"),
        swift_prefix: name("a"),
        ..FileOptions::default()
    };
    let file = |path: &str, package: &str, imports: &[&str]| FileDescriptorProto {
        name: name(path),
        package: Some(package.to_owned()).filter(|package| !package.is_empty()),
        dependency: imports.iter().map(ToString::to_string).collect(),
        source_code_info: Some(SourceCodeInfo::default()),
        ..FileDescriptorProto::default()
    };
    let first = FileDescriptorProto {
        public_dependency: vec![0],
        message_type: vec![message],
        enum_type: vec![kind],
        service: vec![service],
        options: Some(options),
        ..file("a/First.proto", "Bad", &["a/second.proto", "buf/validate/validate.proto"])
    };
    let second = file("a/second.proto", "other", &["a/First.proto"]);
    vec![first, second, file("b/third.proto", "Bad", &[]), file("nowhere.proto", "", &[])]
}

#[test]
fn every_rule_finds_what_breaks_it() {
    let ugly = ugly();
    let rules = CATEGORIES.iter().flat_map(|(_, rules)| rules.iter());
    let blind: Vec<&str> =
        rules.filter(|(_, check)| check(&ugly).is_empty()).map(|(rule, _)| *rule).collect();
    assert!(blind.is_empty(), "{blind:?}");
}

//! YAML as a tree whose every key and value knows its line. The only file that names serde-saphyr.
//!
//! Not a typed reader: [`super::section`] reads fields out of the tree, so that one pass can report
//! every problem of a document where a derived `Deserialize` would stop at the first.
//! Bounded: the parser's default budget limits depth, nodes and alias expansion, and a document is
//! at most [`DOCUMENT_BYTES_MAX`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::problem::{PATH_BYTES_MAX, Problem, Problems, Report};

/// A configuration file beyond this is not one.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Of keys that are made paths of. YAML's own limit, 1,024 characters, is for those that are not introduced by a question
/// mark.
const KEY_BYTES_MAX: usize = 4 << 10;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// 1-based.
    pub line: u32,
    pub value: Yaml,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Yaml {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the document; keys are distinct.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub line: u32,
    pub name: String,
}

impl Yaml {
    /// What a person would call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Yaml::Null => "nothing",
            Yaml::Bool(_) => "a boolean",
            Yaml::Int(_) | Yaml::Float(_) => "a number",
            Yaml::Text(_) => "a text",
            Yaml::List(_) => "a list",
            Yaml::Map(_) => "a mapping",
        }
    }

    /// A scalar as it would be written; `None` for lists, mappings and null.
    pub fn scalar(&self) -> Option<String> {
        match self {
            Yaml::Bool(value) => Some(value.to_string()),
            Yaml::Int(value) => Some(value.to_string()),
            Yaml::Float(value) => Some(value.to_string()),
            Yaml::Text(value) => Some(value.clone()),
            Yaml::Null | Yaml::List(_) | Yaml::Map(_) => None,
        }
    }

    /// The same value as JSON. Numbers that JSON cannot hold become their text.
    pub fn json(&self) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Yaml::Null => Value::Null,
            Yaml::Bool(value) => Value::Bool(*value),
            Yaml::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => Value::from(value),
                (_, Ok(value)) => Value::from(value),
                _ => Value::String(value.to_string()),
            },
            Yaml::Float(value) => serde_json::Number::from_f64(*value)
                .map_or_else(|| Value::String(value.to_string()), Value::Number),
            Yaml::Text(value) => Value::String(value.clone()),
            Yaml::List(items) => items.iter().map(|item| item.value.json()).collect(),
            Yaml::Map(entries) => {
                entries.iter().map(|(key, node)| (key.name.clone(), node.value.json())).collect()
            }
        }
    }
}

/// The line of the first key that is too long, and what to say of it. For whoever makes paths of a mapping's keys, which
/// are said again for each thing below; a handler's own configuration may have any.
pub(super) fn long_key(entries: &[(Key, Node)]) -> Option<(u32, String)> {
    let (key, _) = entries.iter().find(|(key, _)| key.name.len() > KEY_BYTES_MAX)?;
    Some((key.line, format!("a key has {} bytes; at most {KEY_BYTES_MAX} are read", key.name.len())))
}

/// Reads every document of a file; empty ones are left out. A key that a mapping has twice is reported, and what it has
/// first stands, so that the rest can be checked as well.
pub(super) fn documents(text: &str, report: &Report) -> Result<Vec<Node>, Problems> {
    if text.len() > DOCUMENT_BYTES_MAX {
        let message = format!("is {} bytes; at most {DOCUMENT_BYTES_MAX} are read", text.len());
        return Err(Problems::one("document", message));
    }
    let (mut nodes, stopped) = match parse(text, DuplicateKeyPolicy::Error) {
        Ok(nodes) => (nodes, None),
        // The library has stopped, at such a key or at something else; only the former can be gone beyond.
        Err(first) => match parse(text, DuplicateKeyPolicy::LastWins) {
            Ok(nodes) => (nodes, Some(first)),
            Err(other) if other == first => return Err(Problems(vec![first])),
            Err(other) => return Err(Problems(vec![first, other])),
        },
    };
    let mut doubled = Vec::new();
    for node in &mut nodes {
        keep_first(node, &mut String::new(), report, &mut doubled);
    }
    // Of a mapping with a number among its keys the library hands over the last of each only.
    let is_told = |problem: &Problem| problem.line.is_some_and(|line| doubled.contains(&line));
    if let Some(problem) = stopped.filter(|problem| !is_told(problem)) {
        report.add(problem.line, &problem.key, problem.message);
    }
    Ok(nodes)
}

fn parse(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Vec<Node>, Problem> {
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        // `yes`, `no`, `on` and `off` are words, as in YAML 1.2.
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let line = error.location().map(|location| location.line() as u32).filter(|&line| line > 0);
        let error = error.without_snippet();
        if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error {
            let message = "is given twice: keep one".to_owned();
            return Problem { line, key: key.clone().unwrap_or_default(), message };
        }
        let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        // The location is in `line` already.
        let message = message.split(" at line ").next().unwrap_or_default().trim().to_owned();
        Problem { line, key: String::new(), message: format!("not valid YAML: {message}") }
    })
}

/// Takes out what a mapping has under a key that it has had already. Reports it, and notes its line. `path` is the
/// node's own.
fn keep_first(node: &mut Node, path: &mut String, report: &Report, lines: &mut Vec<u32>) {
    let length = path.len();
    match &mut node.value {
        Yaml::Map(entries) => {
            let dot = if path.is_empty() { "" } else { "." };
            // A document may have as many keys twice as fit into it, each of them as deep.
            let shown = &path[..path.floor_char_boundary(PATH_BYTES_MAX)];
            let mut first: HashMap<String, u32> = HashMap::with_capacity(entries.len());
            entries.retain(|(key, _)| match first.entry(key.name.clone()) {
                Entry::Vacant(free) => {
                    free.insert(key.line);
                    true
                }
                Entry::Occupied(first) => {
                    let message = format!("is given twice, first on line {}: keep one", first.get());
                    report.add(Some(key.line), &format!("{shown}{dot}{}", key.name), message);
                    lines.push(key.line);
                    false
                }
            });
            for (key, node) in entries {
                path.push_str(dot);
                path.push_str(&key.name);
                keep_first(node, path, report, lines);
                path.truncate(length);
            }
        }
        Yaml::List(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{at}]"));
                keep_first(item, path, report, lines);
                path.truncate(length);
            }
        }
        Yaml::Null | Yaml::Bool(_) | Yaml::Int(_) | Yaml::Float(_) | Yaml::Text(_) => {}
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let spanned = Spanned::<Yaml>::deserialize(deserializer)?;
        Ok(Node { line: spanned.referenced.line() as u32, value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Key { line: spanned.referenced.line() as u32, name: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Yaml, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
        Yaml::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(Yaml::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Yaml, E> {
        Ok(Yaml::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Yaml, E> {
        Ok(i128::try_from(value).map_or_else(|_| Yaml::Text(value.to_string()), Yaml::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        Ok(Yaml::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Yaml::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Yaml::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Vec<Node>, String), Problems> {
        let report = Report::default();
        let nodes = documents(text, &report)?;
        let told = report.finish(Some(())).err().map_or_else(String::new, |problems| problems.to_string());
        Ok((nodes, told))
    }

    #[test]
    fn keys_and_values_know_their_lines_across_documents() {
        let (nodes, told) = read("a: 1\nb:\n  c: [x, 64MiB]\n---\nd: no\n").expect("valid");
        assert_eq!(told, "");
        let Yaml::Map(entries) = &nodes[0].value else { panic!("{:?}", nodes[0]) };
        assert_eq!((entries[1].0.name.as_str(), entries[1].0.line), ("b", 2));
        let Yaml::Map(inner) = &entries[1].1.value else { panic!("{:?}", entries[1]) };
        assert_eq!(inner[0].0, Key { line: 3, name: "c".to_owned() });
        let Yaml::Map(second) = &nodes[1].value else { panic!("{:?}", nodes[1]) };
        assert_eq!(second[0].1, Node { line: 5, value: Yaml::Text("no".to_owned()) });
    }

    #[test]
    fn what_is_not_yaml_is_refused_with_its_line() {
        for (text, line) in [("a: [1,\n", 2), ("a: 1\n b: 2\n", 2)] {
            let problems = read(text).expect_err(text);
            assert_eq!(problems.0.len(), 1);
            assert!(problems.0[0].line.is_some_and(|at| at >= line - 1), "{text:?}: {problems}");
        }
        let problems = read("a: 1\na: 2\nb: [1,\n").expect_err("both are told");
        assert_eq!(problems.0.len(), 2, "{problems}");
        assert_eq!(problems.0[0].to_string(), "line 2: a: is given twice: keep one");
    }

    #[test]
    fn every_key_that_is_there_twice_is_told_and_what_it_has_first_stands() {
        let text = "a:\n  b: 1\n  b: 2\nc: [{ d: 3, d: 4 }]\na: 5\n";
        let (nodes, told) = read(text).expect("it can be read");
        assert_eq!(
            told,
            "line 3: a.b: is given twice, first on line 2: keep one\n\
             line 4: c[0].d: is given twice, first on line 4: keep one\n\
             line 5: a: is given twice, first on line 1: keep one"
        );
        let expected = serde_json::json!({ "a": { "b": 1 }, "c": [{ "d": 3 }] });
        assert_eq!(nodes[0].value.json(), expected);
        let told = |text| read(text).expect(text).1;
        assert_eq!(told("1: x\n1: y\n"), "line 2: 1: is given twice: keep one");
        assert_eq!(told("1: x\n\"1\": y\n"), "line 2: 1: is given twice, first on line 1: keep one");
    }
}

//! What two versions of a deployment differ in, field by field, for people who review a change.

use std::collections::BTreeMap;

use serde_json::Value;

use super::problem::Report;
use super::yaml;

/// A path below which fields are told apart. A document may have more than a hundred thousand of them below the same one,
/// and each says it again.
const PATH_BYTES_MAX: usize = 128;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Dotted path; of the manifest below `manifest.`, and `module` for the binary's digest.
    pub field: String,
    /// Empty = it was not there.
    pub before: String,
    /// Empty = it is not there any more.
    pub after: String,
}

/// What a version is made of.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// SHA-256 of the module.
    pub module: &'a str,
    pub document: &'a str,
    /// JSON.
    pub manifest: &'a str,
}

/// Every difference, in the order of the fields. Documents that differ in comments and layout only
/// have none.
pub fn changes(before: Contents<'_>, after: Contents<'_>) -> Vec<Change> {
    let (mut before, mut after) = (fields(before), fields(after));
    // The path is the author's machine's; the digest says whether the module is another one.
    before.remove("module.path");
    after.remove("module.path");
    let mut changes = Vec::new();
    for (field, was) in &before {
        let is = after.get(field).cloned().unwrap_or_default();
        if *was != is {
            changes.push(Change { field: field.clone(), before: was.clone(), after: is });
        }
    }
    let added = after.into_iter().filter(|(field, _)| !before.contains_key(field));
    changes.extend(added.map(|(field, after)| Change { field, before: String::new(), after }));
    changes.sort_by(|one, other| one.field.cmp(&other.field));
    changes
}

fn fields(contents: Contents<'_>) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut document = yaml::documents(contents.document, &Report::default())
        .ok()
        .and_then(|nodes| nodes.first().map(|node| node.value.json()))
        // Not readable by this version: compared as a whole.
        .unwrap_or_else(|| Value::String(contents.document.to_owned()));
    if let Some(path) = document.as_object_mut().and_then(|document| document.remove("module")) {
        flatten("module.path", &path, &mut fields);
    }
    flatten("", &document, &mut fields);
    fields.insert("module".to_owned(), contents.module.to_owned());
    let manifest = serde_json::from_str(contents.manifest).unwrap_or(Value::Null);
    flatten("manifest", &manifest, &mut fields);
    fields
}

/// A list's items are told apart by their `name`, if they have one, so that one that is added in front
/// does not change all the others. What lies below a long path is compared as a whole: the path would be said again for
/// each of its fields.
fn flatten(path: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let is_short = path.len() <= PATH_BYTES_MAX;
    let is_named = |item: &Value| item.get("name").is_some_and(Value::is_string);
    match value {
        Value::Object(entries) if is_short => {
            entries.iter().for_each(|(key, value)| flatten(&below(key), value, fields));
        }
        Value::Array(items) if is_short && items.iter().all(is_named) => {
            for item in items {
                flatten(&below(item["name"].as_str().unwrap_or_default()), item, fields);
            }
        }
        Value::Null => {}
        Value::String(text) => drop(fields.insert(path.to_owned(), text.clone())),
        other => drop(fields.insert(path.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_changed_and_removed_is_named_and_layout_is_not() {
        let before = Contents {
            module: "aa",
            document: "name: a\nmodule: a.wasm\nlimits: { memory: 1MiB }\nworkers: 2\n",
            manifest: r#"{"inputs":["in"],"stores":[{"name":"counts","schema":1}]}"#,
        };
        let after = Contents {
            module: "bb",
            document: "# larger\nmodule: b.wasm\nname: a\nlimits:\n  memory: 2MiB\nfailures: skip\n",
            manifest: r#"{"inputs":["in"],"stores":[{"name":"early","schema":1},{"name":"counts","schema":1}]}"#,
        };
        let shown: Vec<String> = changes(before, after)
            .iter()
            .map(|change| format!("{} {}>{}", change.field, change.before, change.after))
            .collect();
        assert_eq!(
            shown,
            [
                "failures >skip",
                "limits.memory 1MiB>2MiB",
                "manifest.stores.early.name >early",
                "manifest.stores.early.schema >1",
                "module aa>bb",
                "workers 2>",
            ]
        );
        assert_eq!(changes(before, before), []);
    }

    #[test]
    fn what_lies_below_a_long_path_is_compared_as_a_whole() {
        let key = "k".repeat(PATH_BYTES_MAX - 4);
        let text =
            |value: u32| format!("config:\n  {key}: {{ a: {value}, b: {{ c: 3 }} }}\n  d: {{ e: 4 }}\n");
        let (before, after) = (text(1), text(2));
        let of = |document| Contents { module: "", document, manifest: "{}" };
        let changes = changes(of(&before), of(&after));
        let [change] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(change.field, format!("config.{key}"));
        assert_eq!(change.after, r#"{"a":2,"b":{"c":3}}"#);
    }

    #[test]
    fn a_document_that_cannot_be_read_is_compared_as_a_whole() {
        let of = |document| Contents { module: "", document, manifest: "{}" };
        assert_eq!(changes(of("a: ["), of("a: {")).len(), 1);
    }
}

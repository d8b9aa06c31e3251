//! Reads one mapping of a document field by field, reporting what does not fit and going on.
//!
//! A key that no `take` asked for is unknown; [`Section::finish`] reports it with the nearest key
//! that was asked for. So the list of valid keys is the code that reads them.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::problem::{Report, nearest, suggestion};
use super::units;
use super::yaml::{Key, Node, Yaml, long_key};

pub(super) struct Section<'a> {
    /// Dotted path, empty for the document itself.
    path: String,
    line: u32,
    entries: &'a [(Key, Node)],
    asked: Vec<&'static str>,
    /// Required keys that are not there, with what to write; reported by `finish`.
    missing: Vec<(&'static str, &'static str)>,
    report: &'a Report,
}

/// A quantity with a unit, both ways.
struct Measure<T> {
    parse: fn(&str) -> Result<T, String>,
    show: fn(T) -> String,
}

/// One value with its place.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub path: String,
    pub line: u32,
    pub node: &'a Node,
    report: &'a Report,
}

impl<'a> Section<'a> {
    /// `None`, reported, when the node is not a mapping, or has a key that is too long for one.
    pub fn open(node: &'a Node, path: &str, line: u32, report: &'a Report) -> Option<Section<'a>> {
        match &node.value {
            Yaml::Map(entries) => {
                if let Some((line, message)) = long_key(entries) {
                    report.add(Some(line), path, message);
                    return None;
                }
                let path = path.to_owned();
                Some(Section { path, line, entries, asked: Vec::new(), missing: Vec::new(), report })
            }
            other => {
                report.add(Some(line), path, format!("expected a mapping, found {}", other.kind()));
                None
            }
        }
    }

    /// The field, if it is there and not null.
    pub fn take(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.asked.push(name);
        let (key, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        (node.value != Yaml::Null).then(|| self.field(key, node))
    }

    fn field(&self, key: &Key, node: &'a Node) -> Field<'a> {
        Field { path: self.sub_path(&key.name), line: key.line, node, report: self.report }
    }

    /// Every field, for mappings whose keys are the author's own names.
    pub fn all(&mut self) -> Vec<(&'a str, Field<'a>)> {
        let entries = self.entries;
        entries.iter().map(|(key, node)| (key.name.as_str(), self.field(key, node))).collect()
    }

    pub fn sub_path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub fn section(&mut self, name: &'static str) -> Option<Section<'a>> {
        self.take(name)?.section()
    }

    /// A required key is not there. Said by `finish`, unless it turns out to be misspelt.
    pub fn missing(&mut self, name: &'static str, hint: &'static str) {
        self.missing.push((name, hint));
    }

    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.take(name)?.text()
    }

    pub fn flag(&mut self, name: &'static str) -> bool {
        let Some(field) = self.take(name) else { return false };
        match field.node.value {
            Yaml::Bool(value) => return value,
            ref other => field.refuse(format!("expected true or false, found {}", other.kind())),
        }
        false
    }

    pub fn integer(&mut self, name: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(field) = self.take(name) else {
            return default;
        };
        match &field.node.value {
            Yaml::Int(value) => match u64::try_from(*value) {
                Ok(value) if range.contains(&value) => return value,
                _ => field.refuse(format!("{value} is outside {} to {}", range.start(), range.end())),
            },
            other => field.refuse(format!("expected a whole number, found {}", other.kind())),
        }
        default
    }

    pub fn duration(
        &mut self,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let measure = Measure { parse: units::parse_duration, show: units::show_duration };
        self.measured(name, default, range, &measure)
    }

    /// Millionths, written in percent.
    pub fn share(&mut self, name: &'static str, default: u32) -> u32 {
        let measure = Measure { parse: units::parse_share, show: units::show_share };
        self.measured(name, default, 0..=1_000_000, &measure)
    }

    /// True or false, with a default that may be either.
    pub fn flag_or(&mut self, name: &'static str, default: bool) -> bool {
        let Some(field) = self.take(name) else { return default };
        match field.node.value {
            Yaml::Bool(value) => value,
            ref other => {
                field.refuse(format!("expected true or false, found {}", other.kind()));
                default
            }
        }
    }

    pub fn bytes(&mut self, name: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let measure = Measure { parse: units::parse_bytes, show: units::show_bytes };
        self.measured(name, default, range, &measure)
    }

    fn measured<T: Copy + PartialOrd>(
        &mut self,
        name: &'static str,
        default: T,
        range: RangeInclusive<T>,
        measure: &Measure<T>,
    ) -> T {
        let Some(field) = self.take(name) else { return default };
        match field.scalar().map(|text| (measure.parse)(&text)) {
            Some(Ok(value)) if range.contains(&value) => return value,
            Some(Ok(value)) => {
                let [value, low, high] = [value, *range.start(), *range.end()].map(measure.show);
                field.refuse(format!("{value} is outside {low} to {high}"));
            }
            Some(Err(message)) => field.refuse(message),
            None => {}
        }
        default
    }

    pub fn choice<T: Copy>(&mut self, name: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let Some(field) = self.take(name) else {
            return default;
        };
        let Some(text) = field.text() else {
            return default;
        };
        if let Some((_, value)) = choices.iter().find(|(choice, _)| *choice == text) {
            return *value;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        field.refuse(format!("unknown value `{text}`, {}", suggestion(&text, &names)));
        default
    }

    /// Reports the line of a key of this section; for combinations that do not go together.
    pub fn line_of(&self, name: &str) -> Option<u32> {
        let found = self.entries.iter().find(|(key, _)| key.name == name);
        Some(found.map_or(self.line, |(key, _)| key.line))
    }

    /// Call last: what nobody asked for is unknown, what was required and not there is missing. A
    /// required key that is only misspelt is one problem, not two.
    pub fn finish(mut self) {
        for (key, _) in self.entries {
            if self.asked.contains(&key.name.as_str()) {
                continue;
            }
            let meant = nearest(&key.name, self.asked.iter().copied());
            self.missing.retain(|(name, _)| Some(*name) != meant);
            let hint = suggestion(&key.name, &self.asked);
            self.report.add(Some(key.line), &self.sub_path(&key.name), format!("unknown key, {hint}"));
        }
        for (name, hint) in &self.missing {
            self.report.add(Some(self.line), &self.sub_path(name), format!("is missing: {hint}"));
        }
    }
}

impl<'a> Field<'a> {
    pub fn refuse(&self, message: impl Into<String>) {
        self.report.add(Some(self.line), &self.path, message);
    }

    pub fn section(&self) -> Option<Section<'a>> {
        Section::open(self.node, &self.path, self.line, self.report)
    }

    /// The values of a list, each with its place; `None` when it is no list.
    pub fn items(&self) -> Option<Vec<Field<'a>>> {
        let Yaml::List(items) = &self.node.value else { return None };
        let item = |(at, node): (usize, &'a Node)| Field {
            path: format!("{}[{at}]", self.path),
            line: node.line,
            node,
            report: self.report,
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A text. A number is refused rather than guessed at: `010` or `1.10` would not survive.
    pub fn text(&self) -> Option<String> {
        match &self.node.value {
            Yaml::Text(text) => return Some(text.clone()),
            value => match value.scalar() {
                Some(scalar) => self.refuse(format!(
                    "expected a text, found {}: put it in quotes, \"{scalar}\"",
                    value.kind()
                )),
                None => self.refuse(format!("expected a text, found {}", value.kind())),
            },
        }
        None
    }

    /// Any scalar, as text.
    pub fn scalar(&self) -> Option<String> {
        let scalar = self.node.value.scalar();
        if scalar.is_none() {
            self.refuse(format!("expected a single value, found {}", self.node.value.kind()));
        }
        scalar
    }
}

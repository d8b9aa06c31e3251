//! From file, environment and flags to one checked [`NodeConfig`], with the source of every value.
//!
//! Later sources win: built-in default, file, `KAFKA_*`, `TIDEMILL_*`, flag. Everything is gathered
//! as text first and checked by one table ([`super::settings`]), so that a value means the same
//! wherever it comes from. All problems are reported at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::build;
use super::files;
use super::kafka_properties::{Fate, is_credential, is_secret, judge};
use super::node::NodeConfig;
use super::problem::{Problems, Report, nearest};
use super::profiles;
use super::roles::{self, Grant};
use super::settings::{self, Kind, PROPERTIES, SETTINGS, Setting, Value};
use super::yaml::{self, Node, Yaml, long_key};

/// Where a node's configuration is read from. The caller reads files and variables, so that tests
/// need neither.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Name for messages, and text.
    pub file: Option<(String, String)>,
    /// All variables of the process; those that are not ours are left alone.
    pub variables: Vec<(String, String)>,
    pub flags: Vec<Flag>,
}

/// One setting from the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// As typed, for messages: `--listen-grpc`.
    pub name: String,
    pub key: String,
    pub value: String,
}

/// A configuration with the story of each of its values.
#[derive(Debug, Clone)]
pub struct Effective {
    pub config: NodeConfig,
    /// In the order of the table, then the client properties.
    pub shown: Vec<Shown>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub key: String,
    /// Secrets are hidden; empty = not set.
    pub value: String,
    pub source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    Profile(&'static str),
    File { name: String, line: u32 },
    Variable(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::Profile(key) => f.write_str(key),
            Source::File { name, line } => write!(f, "{name}:{line}"),
            Source::Variable(name) => write!(f, "${name}"),
            Source::Flag(name) => f.write_str(name),
        }
    }
}

/// A value as given, before its check.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    text: String,
    source: Source,
    /// A bare number is seconds, as the documented names have it.
    seconds: bool,
}

/// Checked values with their sources, by key.
pub(super) struct Values<'a> {
    values: BTreeMap<&'static str, (Value, Source)>,
    pub properties: BTreeMap<String, (String, Source)>,
    pub report: &'a Report,
}

impl NodeConfig {
    /// Reads and checks everything; the sources are not touched again afterwards.
    pub fn load(sources: &Sources) -> Result<Effective, Problems> {
        let report = Report::default();
        let mut raw: BTreeMap<&'static str, Raw> = BTreeMap::new();
        let mut properties: BTreeMap<String, (String, Source)> = BTreeMap::new();
        let mut granted = None;
        if let Some((name, text)) = &sources.file {
            let nodes = yaml::documents(text, &report)?;
            if nodes.len() > 1 {
                report.add(Some(nodes[1].line), "", "a node's configuration is a single document");
            }
            if let Some(node) = nodes.first() {
                let mut file = FileReader {
                    name,
                    raw: &mut raw,
                    properties: &mut properties,
                    granted: &mut granted,
                    report: &report,
                };
                file.walk("", node);
            }
        }
        read_variables(&sources.variables, &mut raw, &report);
        read_flags(&sources.flags, &mut raw, &mut properties, &report);

        let mut notes = Vec::new();
        let properties = judge_properties(properties, &mut raw, &mut notes, &report);
        let mut values = check(raw, properties, &report);
        let grants = match granted {
            None => Vec::new(),
            Some((source, grants)) => {
                // Given, as far as other settings ask; what it holds is beside the table.
                values.values.insert("roles", (Value::Unset, source));
                grants
            }
        };
        notes.extend(values.notes());
        let mut shown = values.shown();
        shown.extend(grants.iter().enumerate().map(|(at, (source, grant))| Shown {
            key: format!("roles[{at}]"),
            value: grant.to_string(),
            source: source.clone(),
        }));
        let grants = grants.into_iter().map(|(_, grant)| grant).collect();
        let config = build::node_config(&values, grants, notes);
        report.finish(config.map(|config| Effective { config, shown }))
    }
}

impl Default for NodeConfig {
    /// What an empty file, no variables and no flags give.
    fn default() -> NodeConfig {
        match NodeConfig::load(&Sources::default()) {
            Ok(effective) => effective.config,
            Err(problems) => unreachable!("the defaults are checked by a test: {problems}"),
        }
    }
}

struct FileReader<'a> {
    name: &'a str,
    raw: &'a mut BTreeMap<&'static str, Raw>,
    properties: &'a mut BTreeMap<String, (String, Source)>,
    /// The source of the list and of each of its entries; `None` = there is no list.
    granted: &'a mut Option<(Source, Vec<(Source, Grant)>)>,
    report: &'a Report,
}

impl FileReader<'_> {
    fn walk(&mut self, path: &str, node: &Node) {
        let Yaml::Map(entries) = &node.value else {
            let message = format!("expected a mapping, found {}", node.value.kind());
            return self.report.add(Some(node.line), path, message);
        };
        if let Some((line, message)) = long_key(entries) {
            return self.report.add(Some(line), path, message);
        }
        for (key, node) in entries {
            let path = if path.is_empty() { key.name.clone() } else { format!("{path}.{}", key.name) };
            match &node.value {
                Yaml::Null => self.check_known(&path, key.line),
                _ if path == "roles" => self.roles(key.line, node),
                Yaml::Map(_) => self.walk(&path, node),
                _ => self.scalar(&path, key.line, node),
            }
        }
    }

    fn roles(&mut self, line: u32, node: &Node) {
        let source = |line| Source::File { name: self.name.to_owned(), line };
        let grants = roles::read(node, line, self.report).into_iter();
        *self.granted = Some((source(line), grants.map(|(line, grant)| (source(line), grant)).collect()));
    }

    /// `key:` with nothing after it: nothing is set, but a misspelling is still one.
    fn check_known(&self, path: &str, line: u32) {
        let section = format!("{path}.");
        let known = find(path).is_some() || SETTINGS.iter().any(|s| s.key.starts_with(&section));
        if !known && !path.starts_with(PROPERTIES) {
            self.report.add(Some(line), path, unknown(path));
        }
    }

    fn scalar(&mut self, path: &str, line: u32, node: &Node) {
        let text = match &node.value {
            Yaml::List(items) => {
                let items: Option<Vec<String>> = items.iter().map(|item| item.value.scalar()).collect();
                items.map(|items| items.join(","))
            }
            value => value.scalar(),
        };
        let Some(text) = text else {
            return self.report.add(Some(line), path, "expected a single value or a list of values");
        };
        let source = Source::File { name: self.name.to_owned(), line };
        if let Some(property) = path.strip_prefix(PROPERTIES).and_then(|rest| rest.strip_prefix('.')) {
            self.properties.insert(property.to_owned(), (text, source));
            return;
        }
        let Some((setting, seconds)) = find(path) else {
            return self.report.add(Some(line), path, unknown(path));
        };
        if let Kind::Secret = setting.kind {
            let message =
                format!("secrets do not belong in this file: set {} or {}_file", setting.variable(), path);
            return self.report.add(Some(line), path, message);
        }
        if self.raw.insert(setting.key, Raw { text, source, seconds }).is_some() {
            self.report.add(
                Some(line),
                path,
                format!("is given twice, also as `{}`", other_name(setting, path)),
            );
        }
    }
}

/// A setting by its key or its documented name; true when the latter was meant.
fn find(path: &str) -> Option<(&'static Setting, bool)> {
    let by_alias = || SETTINGS.iter().find(|setting| setting.alias == Some(path));
    match settings::find(path) {
        Some(setting) => Some((setting, false)),
        None => by_alias().map(|setting| (setting, true)),
    }
}

fn other_name<'a>(setting: &'a Setting, path: &str) -> &'a str {
    if setting.key == path { setting.alias.unwrap_or(setting.key) } else { setting.key }
}

fn unknown(path: &str) -> String {
    let names = SETTINGS.iter().flat_map(|setting| [Some(setting.key), setting.alias]).flatten();
    match nearest(path, names.chain([PROPERTIES])) {
        Some(near) => format!("unknown key, did you mean `{near}`?"),
        None => "unknown key: `tidemill config explain` lists them".to_owned(),
    }
}

/// Variables of the program that are no settings of the node, and the prefixes of its test tools.
const OTHER_VARIABLES: &[&str] = &[
    "TIDEMILL_ADDRESS",
    "TIDEMILL_AUTHOR",
    "TIDEMILL_CONFIG",
    "TIDEMILL_OUTPUT",
    "TIDEMILL_KAFKA",
    "TIDEMILL_KAFKA_LIBS",
    "TIDEMILL_CA",
    "TIDEMILL_CERT",
    "TIDEMILL_CERT_KEY",
];
const OTHER_PREFIXES: &[&str] = &["TIDEMILL_TEST_", "TIDEMILL_BENCH_", "TIDEMILL_BUILD_"];

fn read_variables(variables: &[(String, String)], raw: &mut BTreeMap<&'static str, Raw>, report: &Report) {
    let given = |name: &String| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value);
    for setting in SETTINGS {
        // The documented name first, so that our own overrides it.
        let names = [setting.kafka_variable().map(|name| (name, true)), Some((setting.variable(), false))];
        for (name, seconds) in names.into_iter().flatten() {
            // An empty variable is how a shell says "not set".
            if let Some(text) = given(&name).filter(|text| !text.trim().is_empty()) {
                let raw_value = Raw { text: text.clone(), source: Source::Variable(name), seconds };
                raw.insert(setting.key, raw_value);
            }
        }
    }
    for (name, _) in variables.iter().filter(|(name, _)| name.starts_with("TIDEMILL_")) {
        let other = OTHER_VARIABLES.contains(&name.as_str())
            || crate::faults::VARIABLES.contains(&name.as_str())
            || OTHER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || SETTINGS.iter().any(|setting| setting.variable() == *name);
        if !other {
            let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
            let hint = match nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => "`tidemill config explain` lists them".to_owned(),
            };
            report.add(None, name, format!("unknown variable, {hint}"));
        }
    }
    // Other programs have variables that start with KAFKA_ too, so only a near miss is a mistake.
    let documented: Vec<String> = SETTINGS.iter().filter_map(Setting::kafka_variable).collect();
    for (name, _) in variables.iter().filter(|(name, _)| name.starts_with("KAFKA_")) {
        if documented.contains(name) {
            continue;
        }
        if let Some(near) = nearest(name, documented.iter().map(String::as_str)) {
            report.add(None, name, format!("unknown variable, did you mean {near}?"));
        }
    }
}

fn read_flags(
    flags: &[Flag],
    raw: &mut BTreeMap<&'static str, Raw>,
    properties: &mut BTreeMap<String, (String, Source)>,
    report: &Report,
) {
    for flag in flags {
        let source = Source::Flag(flag.name.clone());
        if let Some(property) = flag.key.strip_prefix(PROPERTIES).and_then(|rest| rest.strip_prefix('.')) {
            properties.insert(property.to_owned(), (flag.value.clone(), source));
            continue;
        }
        let Some((setting, seconds)) = find(&flag.key) else {
            report.add(None, &flag.name, unknown(&flag.key));
            continue;
        };
        if let Kind::Secret = setting.kind {
            let message = format!("other users can read command lines: set {} instead", setting.variable());
            report.add(None, &flag.name, message);
            continue;
        }
        raw.insert(setting.key, Raw { text: flag.value.clone(), source, seconds });
    }
}

/// What the profiles stand for, of which none is given by the same name.
fn of_profiles(
    raw: &BTreeMap<&'static str, Raw>,
    given: &BTreeMap<String, (String, Source)>,
) -> Vec<(String, (String, Source))> {
    let chosen = profiles::KINDS.iter().filter_map(|(key, profiles)| Some((*key, profiles, raw.get(key)?)));
    let properties = chosen.flat_map(|(key, profiles, name)| {
        let properties = profiles::properties(profiles, &name.text);
        properties.map(move |(name, value)| (name.to_owned(), (value.to_owned(), Source::Profile(key))))
    });
    properties.filter(|(name, _)| !given.contains_key(name)).collect()
}

fn judge_properties(
    properties: BTreeMap<String, (String, Source)>,
    raw: &mut BTreeMap<&'static str, Raw>,
    notes: &mut Vec<String>,
    report: &Report,
) -> BTreeMap<String, (String, Source)> {
    let mut passed: BTreeMap<String, (String, Source)> = BTreeMap::new();
    // How each of those was called, for most have several names.
    let mut given_as: BTreeMap<String, String> = BTreeMap::new();
    // Profiles last: whatever is given, by another name or as a setting, stays as it is.
    let of_profiles = of_profiles(raw, &properties);
    for (given, (value, source)) in properties.into_iter().chain(of_profiles) {
        let key = format!("{PROPERTIES}.{given}");
        let is_profile = matches!(source, Source::Profile(_));
        let (given, value) = match with_credential(given, value, &source) {
            Ok(property) => property,
            Err(message) => {
                report.add(line(&source), &key, message);
                continue;
            }
        };
        match judge(&given, &value) {
            Fate::Pass { name, .. } if is_profile && passed.contains_key(&name) => {}
            Fate::Pass { name, value } => {
                if let Some(other) = given_as.insert(name.clone(), given.clone())
                    && other != given
                {
                    let message = format!("means the same as {PROPERTIES}.{other}, which is given too");
                    report.add(line(&source), &key, message);
                }
                passed.insert(name, (value, source));
            }
            Fate::Setting { key: own, value } => match raw.get(own) {
                // A variable or flag may override what the file passes through; twice in the same
                // kind of place is a contradiction waiting to happen.
                Some(Raw { source: Source::File { .. }, .. }) if !is_profile => {
                    report.add(line(&source), &key, format!("is given twice, also as `{own}`"));
                }
                Some(_) => {}
                None => {
                    let text = if is_profile { fitted(own, value, notes) } else { value };
                    raw.insert(own, Raw { text, source, seconds: false });
                }
            },
            Fate::Implied(note) => notes.push(format!("{key}: {note}")),
            Fate::Refuse(message) => report.add(line(&source), &key, message),
        }
    }
    passed
}

/// What a profile, which is written for any client, says of a setting; or the most that the setting may be.
fn fitted(own: &str, value: String, notes: &mut Vec<String>) -> String {
    match (settings::find(own).map(|setting| setting.kind), value.parse::<u64>()) {
        (Some(Kind::Integer(_, most)), Ok(wanted)) if wanted > most => {
            notes.push(format!("{own}: {most}, which is the most, and not {wanted} as the profile says"));
            most.to_string()
        }
        _ => value,
    }
}

/// A property as librdkafka is to have it: what signs somebody in is what a file holds, which `NAME_file` names.
fn with_credential(given: String, value: String, source: &Source) -> Result<(String, String), String> {
    if let Some(name) = given.strip_suffix("_file").filter(|name| is_credential(name)) {
        return Ok((name.to_owned(), files::secret(Path::new(&value))?));
    }
    if is_credential(&given) && matches!(judge(&given, &value), Fate::Pass { .. }) {
        let why = match source {
            Source::Flag(_) => "other users can read command lines",
            _ => "secrets do not belong in this file",
        };
        return Err(format!("{why}: name a file that holds it with {PROPERTIES}.{given}_file"));
    }
    Ok((given, value))
}

fn line(source: &Source) -> Option<u32> {
    match source {
        Source::File { line, .. } => Some(*line),
        Source::Default | Source::Profile(_) | Source::Variable(_) | Source::Flag(_) => None,
    }
}

fn check<'a>(
    raw: BTreeMap<&'static str, Raw>,
    properties: BTreeMap<String, (String, Source)>,
    report: &'a Report,
) -> Values<'a> {
    let mut values = BTreeMap::new();
    for setting in SETTINGS {
        let (value, source) = match raw.get(setting.key) {
            None => (setting.read(setting.default, false), Source::Default),
            Some(raw) => (setting.read(&raw.text, raw.seconds), raw.source.clone()),
        };
        let value = value.unwrap_or_else(|message| {
            let name = match &source {
                Source::Variable(name) | Source::Flag(name) => name,
                Source::Default | Source::Profile(_) | Source::File { .. } => setting.key,
            };
            report.add(line(&source), name, message);
            // Reading goes on with the default, so that one pass finds every problem.
            setting.read(setting.default, false).unwrap_or(Value::Unset)
        });
        values.insert(setting.key, (value, source));
    }
    Values { values, properties, report }
}

impl Values<'_> {
    pub fn get(&self, key: &str) -> &Value {
        self.values.get(key).map_or(&Value::Unset, |(value, _)| value)
    }

    pub fn is_given(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|(_, source)| *source != Source::Default)
    }

    /// How the reader of a message knows this value: its key, variable or flag.
    pub fn name(&self, key: &str) -> String {
        match self.values.get(key) {
            Some((_, Source::Variable(name) | Source::Flag(name))) => name.clone(),
            _ => key.to_owned(),
        }
    }

    pub fn refuse(&self, key: &str, message: impl Into<String>) {
        let at = self.values.get(key).and_then(|(_, source)| line(source));
        self.report.add(at, &self.name(key), message);
    }

    fn shown(&self) -> Vec<Shown> {
        // Roles have a line each.
        let settings = SETTINGS.iter().filter(|setting| !matches!(setting.kind, Kind::Roles));
        let settings = settings.filter_map(|setting| {
            let (value, source) = self.values.get(setting.key)?;
            let hidden = matches!(setting.kind, Kind::Secret) && *value != Value::Unset;
            let value = if hidden { "(hidden)".to_owned() } else { value.show(setting.kind) };
            Some(Shown { key: setting.key.to_owned(), value, source: source.clone() })
        });
        let properties = self.properties.iter().map(|(name, (value, source))| Shown {
            key: format!("{PROPERTIES}.{name}"),
            value: if is_secret(name) { "(hidden)".to_owned() } else { value.clone() },
            source: source.clone(),
        });
        settings.chain(properties).collect()
    }

    /// The file that a setting is in, if it is in one.
    pub fn file_of(&self, key: &str) -> Option<PathBuf> {
        match self.values.get(key) {
            Some((_, Source::File { name, .. })) => Some(name.into()),
            _ => None,
        }
    }

    /// One line for every setting that was given and does nothing.
    fn notes(&self) -> Vec<String> {
        let given = settings::WITHOUT_EFFECT.iter().filter(|key| self.is_given(key));
        let mut notes: Vec<String> = given
            .filter_map(|key| Some(format!("{}: {}", self.name(key), settings::find(key)?.doc)))
            .collect();
        if *self.get("kafka.enable_auto_commit") == Value::Bool(true) {
            let name = self.name("kafka.enable_auto_commit");
            notes.push(format!(
                "{name}: the node commits offsets itself, with their effects; auto-commit stays off"
            ));
        }
        notes
    }
}

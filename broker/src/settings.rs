//! Per-topic configuration: Kafka's names, defaults and checks, and the typed form the log uses.
//!
//! Settings without a meaning on a single node (such as `min.insync.replicas`) are taken, checked
//! and shown, so that clients written for a cluster work unchanged; they have no effect.

use std::collections::BTreeMap;

/// What a value must look like; also tells clients the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Any of these words, separated by commas.
    ListOf(&'static [&'static str]),
    /// Any text.
    Text,
    /// 32-bit integer of at least this.
    Int(i64),
    /// 64-bit integer of at least this.
    Long(i64),
    /// Fraction from 0 to 1.
    Ratio,
}

/// One setting of the table.
#[derive(Debug)]
pub struct Entry {
    /// Kafka's name.
    pub name: &'static str,
    /// Value of a topic that does not say otherwise.
    pub default: &'static str,
    /// What it must look like.
    pub kind: Kind,
}

const fn entry(name: &'static str, default: &'static str, kind: Kind) -> Entry {
    Entry { name, default, kind }
}

const CODECS: Kind = Kind::OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]);

/// All topic settings of Apache Kafka 4.3, sorted by name.
pub static TABLE: [Entry; 30] = [
    entry("cleanup.policy", "delete", Kind::ListOf(&["compact", "delete"])),
    entry("compression.gzip.level", "-1", Kind::Int(-1)),
    entry("compression.lz4.level", "9", Kind::Int(1)),
    entry("compression.type", "producer", CODECS),
    entry("compression.zstd.level", "3", Kind::Int(-131072)),
    entry("delete.retention.ms", "86400000", Kind::Long(0)),
    entry("file.delete.delay.ms", "60000", Kind::Long(0)),
    entry("flush.messages", "9223372036854775807", Kind::Long(1)),
    entry("flush.ms", "9223372036854775807", Kind::Long(0)),
    entry("follower.replication.throttled.replicas", "", Kind::Text),
    entry("index.interval.bytes", "4096", Kind::Int(0)),
    entry("leader.replication.throttled.replicas", "", Kind::Text),
    entry("local.retention.bytes", "-2", Kind::Long(-2)),
    entry("local.retention.ms", "-2", Kind::Long(-2)),
    entry("max.compaction.lag.ms", "9223372036854775807", Kind::Long(1)),
    entry("max.message.bytes", "1048588", Kind::Int(0)),
    entry("message.timestamp.after.max.ms", "3600000", Kind::Long(0)),
    entry("message.timestamp.before.max.ms", "9223372036854775807", Kind::Long(0)),
    entry("message.timestamp.type", "CreateTime", Kind::OneOf(&["CreateTime", "LogAppendTime"])),
    entry("min.cleanable.dirty.ratio", "0.5", Kind::Ratio),
    entry("min.compaction.lag.ms", "0", Kind::Long(0)),
    entry("min.insync.replicas", "1", Kind::Int(1)),
    entry("preallocate", "false", Kind::Boolean),
    entry("remote.storage.enable", "false", Kind::Boolean),
    entry("retention.bytes", "-1", Kind::Long(i64::MIN)),
    entry("retention.ms", "604800000", Kind::Long(-1)),
    entry("segment.bytes", "1073741824", Kind::Int(1024 * 1024)),
    entry("segment.index.bytes", "10485760", Kind::Int(4)),
    entry("segment.jitter.ms", "0", Kind::Long(0)),
    entry("segment.ms", "604800000", Kind::Long(1)),
];

/// Looks a setting up by name.
pub fn find(name: &str) -> Option<&'static Entry> {
    TABLE.binary_search_by(|entry| entry.name.cmp(name)).ok().map(|at| &TABLE[at])
}

impl Entry {
    /// Whether `value` may be set.
    pub fn accepts(&self, value: &str) -> bool {
        let number = || value.trim().parse::<i64>().ok();
        match self.kind {
            Kind::Boolean => matches!(value, "true" | "false"),
            Kind::OneOf(words) => words.contains(&value),
            Kind::ListOf(words) => value.split(',').all(|word| words.contains(&word.trim())),
            Kind::Text => true,
            Kind::Int(min) => number().is_some_and(|n| (min..=i64::from(i32::MAX)).contains(&n)),
            Kind::Long(min) => number().is_some_and(|n| n >= min),
            Kind::Ratio => value.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio)),
        }
    }

    /// The type number of `DescribeConfigs`.
    pub fn wire_type(&self) -> i8 {
        match self.kind {
            Kind::Boolean => 1,
            Kind::OneOf(_) | Kind::Text => 2,
            Kind::Int(_) => 3,
            Kind::Long(_) => 5,
            Kind::Ratio => 6,
            Kind::ListOf(_) => 7,
        }
    }
}

/// The settings that the broker acts on, in their own types.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Compaction applies.
    pub compact: bool,
    /// Retention by time and size applies.
    pub delete: bool,
    /// The broker sets the time of records.
    pub log_append_time: bool,
    /// -1 for ever.
    pub retention_ms: i64,
    /// -1 without limit.
    pub retention_bytes: i64,
    /// How long tombstones stay after they were first gone over.
    pub delete_retention_ms: i64,
    /// Records younger than this are not compacted.
    pub min_compaction_lag_ms: i64,
    /// Share of new bytes that makes a background pass worth it.
    pub min_cleanable_dirty_ratio: f64,
    /// Largest batch, as sent.
    pub message_bytes_max: usize,
    /// How far a record's time may lie behind the broker's.
    pub timestamp_before_max_ms: i64,
    /// How far a record's time may lie ahead of the broker's.
    pub timestamp_after_max_ms: i64,
    /// A segment is closed before it grows beyond this.
    pub segment_bytes: u64,
    /// A segment is closed when its first batch is this old.
    pub segment_ms: i64,
}

impl Settings {
    /// Defaults with what a topic overrides. Values must have passed [`Entry::accepts`]; one that
    /// has not counts as the default.
    pub fn new(overrides: &BTreeMap<String, String>) -> Settings {
        let text = |name: &str| {
            let default = || find(name).map_or("", |entry| entry.default);
            overrides.get(name).map_or_else(default, String::as_str)
        };
        let number = |name: &str| text(name).trim().parse::<i64>().unwrap_or(-1);
        let policy = text("cleanup.policy");
        let has = |wanted: &str| policy.split(',').any(|word| word.trim() == wanted);
        Settings {
            compact: has("compact"),
            delete: has("delete"),
            log_append_time: text("message.timestamp.type") == "LogAppendTime",
            retention_ms: number("retention.ms"),
            retention_bytes: number("retention.bytes"),
            delete_retention_ms: number("delete.retention.ms"),
            min_compaction_lag_ms: number("min.compaction.lag.ms"),
            min_cleanable_dirty_ratio: text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
            message_bytes_max: usize::try_from(number("max.message.bytes")).unwrap_or(0),
            timestamp_before_max_ms: number("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: number("message.timestamp.after.max.ms"),
            segment_bytes: number("segment.bytes").unsigned_abs(),
            segment_ms: number("segment.ms"),
        }
    }
}

/// Checks one override; the message is for the client.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    let entry = find(name).ok_or_else(|| format!("Unknown topic config name: {name}"))?;
    if entry.accepts(value) {
        return Ok(());
    }
    Err(format!("Invalid value {value} for configuration {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_defaults_are_valid() {
        assert!(TABLE.is_sorted_by_key(|entry| entry.name));
        for entry in &TABLE {
            assert!(entry.accepts(entry.default), "{}", entry.name);
        }
    }

    #[test]
    fn a_policy_may_name_both_ways() {
        let both = BTreeMap::from([("cleanup.policy".to_owned(), "compact, delete".to_owned())]);
        let settings = Settings::new(&both);
        assert!(settings.compact && settings.delete);
        assert!(check("cleanup.policy", "compost").is_err());
        assert!(check("retention.ms", "a week").is_err());
        assert!(check("retntion.ms", "1").is_err());
    }
}

//! A record of a dead-letter topic, read back: the record that it was, and what became of it.

use super::envelope::Envelope;
use super::{FORMAT_ENVELOPE, HEADERS, MARK_HEADER};
use crate::config::units;
use crate::ports::TopicRecord;
use crate::record::headers::{self, Header};
use crate::task::relay::ID_HEADER;
use crate::task::undelivered;

/// A dead letter. What its headers do not say is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Letter {
    /// Of the dead-letter topic.
    pub offset: u64,
    pub key: Option<Vec<u8>>,
    /// The record's own, whatever the format of the letter.
    pub value: Option<Vec<u8>>,
    /// The record's own, in Kafka's encoding; none = it had none.
    pub headers: Option<Vec<u8>>,
    pub topic: String,
    pub partition: i32,
    /// Of the record in its input.
    pub original_offset: u64,
    /// The record's own time, milliseconds since the epoch; -1 = none.
    pub timestamp_ms: i64,
    pub reason: String,
    /// Milliseconds since the epoch.
    pub failed_at_ms: i64,
    pub error_type: String,
    pub error_class: String,
    pub attempts: u32,
    pub retry_count: u32,
    pub correlation_id: String,
    pub deployment: String,
    pub revision: u64,
    pub incarnation: String,
    /// As the record's own headers name it.
    pub schema_version: String,
    /// None for a record of an input.
    pub undelivered: Option<Undelivered>,
}

/// What could not be delivered: its number in the outbox is the letter's `original_offset`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undelivered {
    /// Name of the output.
    pub destination: String,
    /// Its `tidemill-id`.
    pub id: String,
}

impl Letter {
    /// None for a record that tidemill has not written as a letter.
    pub fn read(record: &TopicRecord) -> Option<Letter> {
        let all = headers::decode_raw(record.headers.as_deref()?).ok()?;
        let (&(mark, count), before) = all.split_last()?;
        let count: usize = text(count?)?.parse().ok()?;
        if mark != MARK_HEADER.as_bytes() || count > before.len() {
            return None;
        }
        let (own, added) = before.split_at(before.len() - count);
        let added: Vec<Header<'_>> = added.iter().copied().filter_map(headers::text).collect();
        let added = Added(&added);
        let value = match added.text("format") {
            FORMAT_ENVELOPE => {
                let envelope: Envelope = serde_json::from_slice(record.value.as_deref()?).ok()?;
                envelope.original_message.into_value()?
            }
            _ => record.value.clone(),
        };
        let undelivered = match added.text("outbox_destination") {
            "" => None,
            destination => Some(Undelivered {
                destination: destination.to_owned(),
                id: added.text(ID_HEADER).to_owned(),
            }),
        };
        let number = if undelivered.is_some() { "outbox_sequence" } else { "original_offset" };
        Some(Letter {
            undelivered,
            offset: record.offset.0,
            key: record.key.clone(),
            value,
            headers: (!own.is_empty()).then(|| headers::encode(own.iter().copied())),
            topic: added.text("original_topic").to_owned(),
            partition: added.number("original_partition")?,
            original_offset: added.number(number)?,
            timestamp_ms: added.number("original_timestamp").unwrap_or(-1),
            reason: added.text("failure_reason").to_owned(),
            failed_at_ms: units::parse_time_ms(added.text("failure_timestamp"))
                .unwrap_or(record.timestamp_ms),
            error_type: added.text("error_type").to_owned(),
            error_class: added.text("error_class").to_owned(),
            attempts: added.number("attempts").unwrap_or_default(),
            retry_count: added.number("retry_count").unwrap_or_default(),
            correlation_id: added.text("correlation_id").to_owned(),
            deployment: added.text("deployment").to_owned(),
            revision: added.number("deployment_version").unwrap_or_default(),
            incarnation: added.text("deployment_incarnation").to_owned(),
            schema_version: added.text("schema_version").to_owned(),
        })
    }

    /// Written by this life of this deployment, about a record of this partition.
    pub fn is_of(&self, deployment: &str, incarnation: &str, partition: i32) -> bool {
        (self.deployment.as_str(), self.incarnation.as_str(), self.partition)
            == (deployment, incarnation, partition)
    }
}

/// The headers that a letter adds.
struct Added<'a>(&'a [Header<'a>]);

impl<'a> Added<'a> {
    fn text(&self, name: &str) -> &'a str {
        let is_known = HEADERS.contains(&name) || undelivered::HEADERS.contains(&name);
        debug_assert!(is_known, "{name} is no header of a letter");
        let found = self.0.iter().find(|(found, _)| *found == name);
        found.and_then(|(_, value)| text((*value)?)).unwrap_or_default()
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name).parse().ok()
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

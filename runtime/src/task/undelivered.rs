//! The dead letter of an outbox row that can never be delivered.
//!
//! Key, value and headers are the row's own, untouched; behind the headers stand the ones below, and last the
//! mark that every letter ends with.

use super::correlation;
use super::letter::{MARK_HEADER, Sender, schema_version};
use super::outbox::Letter;
use crate::config::units;
use crate::record::headers::{self, Header};
use crate::store::OutboxRow;

/// What its failure is called; stable names, as those of records that fail.
pub const ERROR_TYPE: &str = "OutboxDeliveryError";
pub const ERROR_CLASS: &str = "delivery";

/// Every header that it adds, in their order. In Kafka since 0.2: add before the mark, never rename.
pub const HEADERS: [&str; 18] = [
    "outbox_destination",
    "outbox_sequence",
    "tidemill-id",
    "original_partition",
    "original_timestamp",
    "failure_reason",
    "failure_timestamp",
    "error_type",
    "error_class",
    "attempts",
    "deployment",
    "deployment_version",
    "deployment_incarnation",
    "retry_count",
    "schema_version",
    "correlation_id",
    "original_topic",
    "original_offset",
];

/// The headers of the letter of an outbox row, in Kafka's encoding. `(topic, offset)` are those of the record that
/// caused the row: the letter itself is no record of an input, and is given back to the outbox.
pub fn encode_headers(
    row: &OutboxRow,
    (partition, sequence): (i32, u64),
    (topic, offset): (&str, &str),
    letter: &Letter,
    sender: &Sender<'_>,
) -> Vec<u8> {
    let mut all = match row.headers.is_empty() {
        true => Vec::new(),
        false => headers::decode_raw(&row.headers).unwrap_or_default(),
    };
    let own: Vec<Header<'_>> = all.iter().copied().filter_map(headers::text).collect();
    let correlation = correlation::correlation_id(&own, sender.place);
    let texts = [
        row.output.clone(),
        sequence.to_string(),
        row.id.clone(),
        partition.to_string(),
        row.timestamp_ms.to_string(),
        letter.reason.clone(),
        units::show_time_ms(sender.now_ms),
        ERROR_TYPE.to_owned(),
        ERROR_CLASS.to_owned(),
        letter.attempts.to_string(),
        sender.deployment.to_owned(),
        sender.revision.to_string(),
        sender.incarnation.to_owned(),
        row.retry_count.to_string(),
        schema_version(&own).to_owned(),
        String::from_utf8_lossy(&correlation).into_owned(),
        topic.to_owned(),
        offset.to_owned(),
    ];
    let count = HEADERS.len().to_string();
    let added = HEADERS.into_iter().zip(&texts);
    all.extend(added.map(|(name, text)| (name.as_bytes(), Some(text.as_bytes()))));
    all.push((MARK_HEADER.as_bytes(), Some(count.as_bytes())));
    headers::encode(all.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_names_every_header() {
        let text = include_str!("../../../docs/outbox.md");
        for name in HEADERS.into_iter().chain([MARK_HEADER]) {
            assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/outbox.md");
        }
    }
}

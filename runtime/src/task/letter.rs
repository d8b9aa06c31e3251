//! Dead letters: a record that failed for good, as a record of the dead-letter topic.
//!
//! Key and value are the record's own bytes. Its headers come first, untouched; behind them stand the
//! ones below, and last [`MARK_HEADER`], whose value says how many those are, so that the record can be
//! given back exactly as it was. In Kafka since 0.2: add before the mark, never rename.

use super::Failure;
use crate::config::units;
use crate::record::headers;
use crate::store::ParkedRecord;

/// Closes what is added to a record's own headers: the number of headers before it that are the letter's.
pub const MARK_HEADER: &str = "tidemill-dead-letter";

/// Every header that a letter adds, in their order.
pub const HEADERS: [&str; 13] = [
    "original_topic",
    "original_partition",
    "original_offset",
    "original_timestamp",
    "failure_reason",
    "failure_timestamp",
    "error_type",
    "error_class",
    "attempts",
    "retry_count",
    "correlation_id",
    "deployment",
    "deployment_version",
];

/// Names of the header that a correlation id comes in, by preference.
const CORRELATION_HEADERS: [&str; 3] = ["correlation-id", "correlation_id", "ce-correlationid"];

/// Who failed the record.
pub struct Sender<'a> {
    pub deployment: &'a str,
    pub revision: u64,
    /// Milliseconds since the epoch.
    pub now_ms: i64,
}

/// The headers of a letter, in Kafka's encoding.
pub fn encode_headers(record: &ParkedRecord, failure: &Failure, sender: &Sender<'_>) -> Vec<u8> {
    let original = record.headers.as_deref().unwrap_or_default();
    // Bytes that are no headers cannot come from Kafka; a letter without them is better than none.
    let own = if original.is_empty() { Vec::new() } else { headers::decode(original).unwrap_or_default() };
    let value_of =
        |name: &str| own.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).and_then(|(_, v)| *v);
    let correlation = CORRELATION_HEADERS.iter().find_map(|name| value_of(name)).unwrap_or_default();
    let texts = [
        failure.topic.clone(),
        failure.partition.to_string(),
        failure.offset.to_string(),
        record.timestamp_ms.to_string(),
        failure.reason.clone(),
        units::show_time_ms(sender.now_ms),
        failure.kind.error_type().to_owned(),
        failure.kind.as_str().to_owned(),
        record.attempts.to_string(),
        record.retry_count.to_string(),
        String::from_utf8_lossy(correlation).into_owned(),
        sender.deployment.to_owned(),
        sender.revision.to_string(),
    ];
    let count = HEADERS.len().to_string();
    let mut all = own.clone();
    all.extend(HEADERS.iter().copied().zip(texts.iter().map(|text| Some(text.as_bytes()))));
    all.push((MARK_HEADER, Some(count.as_bytes())));
    headers::encode(all.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::failures::FailureKind;
    use crate::record::Offset;

    #[test]
    fn the_documentation_names_every_header_of_a_letter() {
        let text = include_str!("../../../docs/failures.md");
        for name in HEADERS.into_iter().chain([MARK_HEADER]) {
            assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/failures.md");
        }
    }

    #[test]
    fn a_letter_keeps_the_records_own_headers_and_says_what_happened() {
        let own = [("ce-id", Some(&b"\xff\x00"[..])), ("correlation-id", Some(b"c-7")), ("none", None)];
        let record = ParkedRecord {
            headers: Some(headers::encode(own.into_iter())),
            timestamp_ms: 5,
            attempts: 3,
            ..ParkedRecord::default()
        };
        let failure = Failure {
            kind: FailureKind::Timeout,
            topic: "orders".into(),
            partition: 2,
            offset: Offset(12_345),
            reason: "Handler timeout".into(),
        };
        let sender = Sender { deployment: "pay", revision: 7, now_ms: 1_736_937_000_000 };
        let bytes = encode_headers(&record, &failure, &sender);
        let all = headers::decode(&bytes).unwrap();
        let (first, rest) = all.split_at(own.len());
        assert_eq!(first, own);
        let names: Vec<&str> = rest.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, HEADERS.iter().copied().chain([MARK_HEADER]).collect::<Vec<_>>());
        let text = |name: &str| {
            let value = rest.iter().find(|(found, _)| *found == name).unwrap().1.unwrap();
            std::str::from_utf8(value).unwrap()
        };
        assert_eq!((text("original_topic"), text("original_partition")), ("orders", "2"));
        assert_eq!((text("original_offset"), text("failure_reason")), ("12345", "Handler timeout"));
        assert_eq!(text("failure_timestamp"), "2025-01-15T10:30:00.000Z");
        assert_eq!((text("error_type"), text("error_class")), ("InfraTimeoutError", "timeout"));
        assert_eq!((text("correlation_id"), text("deployment_version")), ("c-7", "7"));
        assert_eq!(text(MARK_HEADER), "13");
    }
}

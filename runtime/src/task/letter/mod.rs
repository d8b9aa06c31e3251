//! Dead letters: a record that failed for good, as a record of the dead-letter topic.
//!
//! The key is the record's own bytes, and so is the value, unless the deployment wants an
//! [`envelope`]. The record's headers come first, untouched; behind them stand the ones below, and last
//! [`MARK_HEADER`], whose value says how many those are, so that the record can be given back exactly as it
//! was ([`read`]). In Kafka since 0.2: add before the mark, never rename.

pub mod envelope;
mod read;

use envelope::{Envelope, Message};
pub use read::{Letter, Undelivered};

use super::{Failure, correlation};
use crate::config::failures::LetterFormat;
use crate::config::units;
use crate::record::headers::{self, Header};
use crate::store::ParkedRecord;

/// Closes what is added to a record's own headers: the number of headers before it that are the letter's.
pub const MARK_HEADER: &str = "tidemill-dead-letter";

/// Every header that a letter adds, in their order.
pub const HEADERS: [&str; 16] = [
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
    "deployment_incarnation",
    "format",
    "schema_version",
];

/// What `format` says of the value.
const FORMAT_RAW: &str = "raw";
const FORMAT_ENVELOPE: &str = "envelope";

/// Names of the header that the version of a record's schema comes in, by preference. The last two are the
/// `dataschema` of a CloudEvent, whose URI names the version.
const SCHEMA_NAMES: [&str; 4] = ["schema-version", "schema_version", "ce-dataschema", "ce_dataschema"];

/// Who failed the record.
pub struct Sender<'a> {
    pub deployment: &'a str,
    pub incarnation: &'a str,
    pub revision: u64,
    pub format: LetterFormat,
    /// The record's place, see [`correlation`].
    pub place: &'a str,
    /// Milliseconds since the epoch.
    pub now_ms: i64,
}

/// What a letter says in place of the record's own value and headers.
#[derive(Debug)]
pub struct Written {
    pub value: Option<Vec<u8>>,
    /// In Kafka's encoding.
    pub headers: Vec<u8>,
}

/// The schema version that a record's own headers name, as they name it; empty = none.
pub fn schema_version<'a>(own: &[Header<'a>]) -> &'a str {
    let named = correlation::first_of(own, &SCHEMA_NAMES);
    named.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
}

/// The letter of a record.
pub fn write(record: &ParkedRecord, failure: &Failure, sender: &Sender<'_>) -> Written {
    let original = record.headers.as_deref().unwrap_or_default();
    // Bytes that are no headers cannot come from Kafka; a letter without them is better than none.
    let mut all =
        if original.is_empty() { Vec::new() } else { headers::decode_raw(original).unwrap_or_default() };
    let own: Vec<Header<'_>> = all.iter().copied().filter_map(headers::text).collect();
    let correlation = correlation::correlation_id(&own, sender.place);
    let correlation = String::from_utf8_lossy(&correlation).into_owned();
    let failed_at = units::show_time_ms(sender.now_ms);
    let (value, format) = match sender.format {
        LetterFormat::Raw => (record.value.clone(), FORMAT_RAW),
        LetterFormat::Envelope => {
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            let envelope = Envelope {
                original_topic: failure.topic.clone(),
                original_message: Message::new(key, value, failure.offset.0, failure.partition),
                failure_reason: failure.reason.clone(),
                failure_timestamp: failed_at.clone(),
                correlation_id: correlation.clone(),
                retry_count: record.retry_count,
                error_type: failure.kind.error_type().to_owned(),
            };
            (serde_json::to_vec(&envelope).ok(), FORMAT_ENVELOPE)
        }
    };
    let texts = [
        failure.topic.clone(),
        failure.partition.to_string(),
        failure.offset.to_string(),
        record.timestamp_ms.to_string(),
        failure.reason.clone(),
        failed_at,
        failure.kind.error_type().to_owned(),
        failure.kind.as_str().to_owned(),
        record.attempts.to_string(),
        record.retry_count.to_string(),
        correlation,
        sender.deployment.to_owned(),
        sender.revision.to_string(),
        sender.incarnation.to_owned(),
        format.to_owned(),
        schema_version(&own).to_owned(),
    ];
    let count = HEADERS.len().to_string();
    let added = HEADERS.into_iter().zip(&texts);
    all.extend(added.map(|(name, text)| (name.as_bytes(), Some(text.as_bytes()))));
    all.push((MARK_HEADER.as_bytes(), Some(count.as_bytes())));
    Written { value, headers: headers::encode(all.into_iter()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::failures::FailureKind;
    use crate::ports::TopicRecord;
    use crate::record::Offset;

    #[test]
    fn the_documentation_names_every_header_of_a_letter() {
        let text = include_str!("../../../../docs/failures.md");
        for name in HEADERS.into_iter().chain([MARK_HEADER]) {
            assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/failures.md");
        }
    }

    fn sender(format: LetterFormat) -> Sender<'static> {
        Sender {
            deployment: "pay",
            incarnation: "life",
            revision: 7,
            format,
            place: "life/id/2/12345",
            now_ms: 1_736_937_000_000,
        }
    }

    fn failure() -> Failure {
        Failure {
            kind: FailureKind::Timeout,
            topic: "orders".into(),
            partition: 2,
            offset: Offset(12_345),
            reason: "Handler timeout".into(),
        }
    }

    #[test]
    fn a_letter_in_either_form_gives_back_the_record_byte_for_byte() {
        let own = [(&b"ce-id"[..], Some(&b"\xff"[..])), (&b"na\xffme"[..], Some(b"v")), (&b"none"[..], None)];
        let own = headers::encode(own.into_iter());
        let values = [None, Some(b"".to_vec()), Some(b"{\"a\": 1}".to_vec()), Some(vec![0xff, 0, b'"'])];
        for format in [LetterFormat::Raw, LetterFormat::Envelope] {
            for (value, headers) in values.iter().zip([None, Some(own.clone()), None, Some(own.clone())]) {
                let (value, key) = (value.clone(), Some(b"k\xfe".to_vec()));
                let record = ParkedRecord {
                    headers: headers.clone(),
                    timestamp_ms: 5,
                    retry_count: 3,
                    key: key.clone(),
                    value: value.clone(),
                    ..ParkedRecord::default()
                };
                let written = write(&record, &failure(), &sender(format));
                let read = TopicRecord {
                    offset: Offset(9),
                    timestamp_ms: 1,
                    key: key.clone(),
                    value: written.value,
                    headers: Some(written.headers),
                };
                let letter = Letter::read(&read).unwrap();
                assert_eq!((&letter.key, &letter.value, &letter.headers), (&key, &value, &headers));
                assert_eq!((letter.offset, letter.original_offset, letter.partition), (9, 12_345, 2));
                assert_eq!((letter.timestamp_ms, letter.failed_at_ms), (5, 1_736_937_000_000));
                assert_eq!((letter.retry_count, letter.revision, letter.topic.as_str()), (3, 7, "orders"));
                assert!(letter.is_of("pay", "life", 2) && !letter.is_of("pay", "other", 2));
            }
        }
    }

    #[test]
    fn what_is_no_letter_is_not_taken_for_one() {
        let record = |headers: Option<Vec<u8>>| TopicRecord {
            offset: Offset(0),
            timestamp_ms: 0,
            key: None,
            value: Some(b"{}".to_vec()),
            headers,
        };
        let lying = headers::encode([(MARK_HEADER, Some(&b"9"[..]))].into_iter());
        for headers in [None, Some(Vec::new()), Some(lying), Some(b"\xff".to_vec())] {
            assert_eq!(Letter::read(&record(headers)), None);
        }
    }

    #[test]
    fn a_letter_keeps_the_records_own_headers_and_says_what_happened() {
        let own = [
            ("ce-id", Some(&b"\xff\x00"[..])),
            ("correlation-id", Some(b"c-7")),
            ("Schema-Version", Some(b"orders.v3")),
            ("none", None),
        ];
        let record = ParkedRecord {
            headers: Some(headers::encode(own.into_iter())),
            timestamp_ms: 5,
            attempts: 3,
            ..ParkedRecord::default()
        };
        let failure = failure();
        let written = write(&record, &failure, &sender(LetterFormat::Raw));
        let all = headers::decode(&written.headers).unwrap();
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
        assert_eq!((text("deployment_incarnation"), text("format")), ("life", "raw"));
        assert_eq!((text("schema_version"), text(MARK_HEADER)), ("orders.v3", "16"));
    }

    #[test]
    fn a_schema_version_is_the_first_that_a_record_names_and_empty_without_one() {
        let uri = ("ce-dataschema", Some(&b"https://example.com/orders/2"[..]));
        assert_eq!(schema_version(&[uri, ("schema_version", Some(&b"3"[..]))]), "3");
        assert_eq!(
            schema_version(&[("schema-version", Some(&b""[..])), uri]),
            "https://example.com/orders/2"
        );
        assert_eq!(schema_version(&[]), "");
        assert_eq!(schema_version(&[("schema_version", Some(&b"\xff"[..]))]), "", "no text");
    }
}

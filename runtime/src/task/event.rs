//! Failure events: what becomes of each record that fails, told as it happens.
//!
//! ```text
//!   a record fails --> reaction --+--> what it leads to: parked, a dead letter, ...   (failing)
//!                                 +--> its event                                      one commit for both
//! ```
//!
//! An event is a CloudEvent 1.0 in structured form. Its data has the names that the headers of a dead letter have,
//! and a verdict; it never has the record's value, which may be secret. An event whose commit was refused is
//! written again when the record fails again, with the same id. In Kafka since 0.2: add, never rename.

use serde::Serialize;

use super::failing::{REASON_BYTES_MAX, RECORD_OVERHEAD_BYTES};
use super::letter::Sender;
use super::letter::envelope::split;
use super::relay::one;
use super::{Failure, TakenAt, Task, correlation};
use crate::config::units;
use crate::effects::Emissions;
use crate::record::headers;
use crate::store::ParkedRecord;

/// Longest key, and longest value of a header that is handed on, in bytes: an event without is better than none.
const HANDED_ON_BYTES_MAX: usize = 1024;
/// Headers of the record that are attributes of its events, and what they are called there.
const PASSED_ON: [(&str, &str); 4] = [
    (correlation::CORRELATION, "correlationid"),
    (correlation::CAUSATION, "causationid"),
    ("traceparent", "traceparent"),
    ("tracestate", "tracestate"),
];
const CONTENT_TYPE: &[u8] = b"application/cloudevents+json; charset=UTF-8";

/// What a failure has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The record is parked, and tried again at `next_attempt`.
    RetryScheduled,
    /// It is parked until somebody does something about it.
    Parked,
    DeadLettered,
    /// By the policy: its effects are dropped.
    Skipped,
    /// By hand: it was parked, and is gone.
    Discarded,
    /// The task stands before it.
    Halted,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::RetryScheduled => "retry_scheduled",
            Verdict::Parked => "parked",
            Verdict::DeadLettered => "dead_lettered",
            Verdict::Skipped => "skipped",
            Verdict::Discarded => "discarded",
            Verdict::Halted => "halted",
        }
    }
}

#[derive(Serialize)]
struct Data<'a> {
    verdict: &'static str,
    deployment: &'a str,
    deployment_version: u64,
    deployment_incarnation: &'a str,
    original_topic: &'a str,
    original_partition: i32,
    /// A text, because not every reader of JSON has 64 bits.
    original_offset: String,
    original_timestamp: i64,
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    error_class: &'static str,
    error_type: &'static str,
    failure_reason: &'a str,
    failure_timestamp: String,
    attempts: u32,
    retry_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt: Option<String>,
}

/// Value and headers, the latter in Kafka's encoding.
fn write(
    record: &ParkedRecord,
    failure: &Failure,
    verdict: Verdict,
    (sender, source): (&Sender<'_>, &str),
) -> (Vec<u8>, Vec<u8>) {
    let original = record.headers.as_deref().unwrap_or_default();
    let own = if original.is_empty() { Vec::new() } else { headers::decode(original).unwrap_or_default() };
    let mut inherited = correlation::inherited(&own, sender.place);
    inherited.retain(|(name, value)| {
        value.len() <= HANDED_ON_BYTES_MAX && PASSED_ON.iter().any(|(passed, _)| passed == name)
    });
    let reason = &failure.reason[..failure.reason.floor_char_boundary(REASON_BYTES_MAX)];
    let key = record.key.as_deref().filter(|key| key.len() <= HANDED_ON_BYTES_MAX);
    let (key, key_base64) = split(key);
    let failed_at = units::show_time_ms(sender.now_ms);
    let data = Data {
        verdict: verdict.as_str(),
        deployment: sender.deployment,
        deployment_version: sender.revision,
        deployment_incarnation: sender.incarnation,
        original_topic: &failure.topic,
        original_partition: failure.partition,
        original_offset: failure.offset.to_string(),
        original_timestamp: record.timestamp_ms,
        key,
        key_base64,
        error_class: failure.kind.as_str(),
        error_type: failure.kind.error_type(),
        failure_reason: reason,
        failure_timestamp: failed_at.clone(),
        attempts: record.attempts,
        retry_count: record.retry_count,
        next_attempt: (verdict == Verdict::RetryScheduled)
            .then(|| units::show_time_ms(record.next_attempt_ms)),
    };
    let (place, revision) = (sender.place, sender.revision);
    // Each release counts attempts from the first one on.
    let attempt = match record.releases {
        0 => record.attempts.to_string(),
        releases => format!("{releases}.{}", record.attempts),
    };
    let times = record.retry_count;
    let mut event = serde_json::json!({
        "specversion": "1.0",
        // The same for the same attempt of the same version, so that a repetition is known.
        "id": format!("{place}/{revision}/{times}/{attempt}/{}", verdict.as_str()),
        "source": source,
        "type": format!("tidemill.failure.{}", verdict.as_str()),
        "subject": format!("{}/{}/{}", failure.topic, failure.partition, failure.offset),
        "time": failed_at,
        "datacontenttype": "application/json",
        "data": data,
    });
    for (name, attribute) in PASSED_ON {
        let value = inherited.iter().find(|(found, _)| *found == name).map(|(_, value)| value);
        if let Some(text) = value.and_then(|value| std::str::from_utf8(value).ok()) {
            event[attribute] = text.into();
        }
    }
    let set = headers::encode([("content-type", Some(CONTENT_TYPE))].into_iter());
    (event.to_string().into_bytes(), correlation::join(Some(&set), &inherited))
}

impl Task {
    /// Adds the event of a failure to what the next commit emits, if failures are told.
    pub(super) fn tell(
        &mut self,
        record: &ParkedRecord,
        failure: &Failure,
        verdict: Verdict,
        taken: TakenAt,
    ) {
        let Some(events) = &self.config.events else { return };
        let (output, rule) = (events.output, self.config.outputs.get(usize::from(events.output)));
        let Some(rule) = rule else { return };
        let input = self.numbers.input(record.input);
        let suspect = input.and_then(|input| self.suspected(input, record.offset as i64));
        if suspect.is_some_and(|suspect| suspect.refused.is_some()) {
            return; // It may be the event that the broker refuses, and would refuse for ever.
        }
        let place = self.place_of(record);
        let sender = self.config.sender(&place, taken.wall_ms);
        let (value, headers) = write(record, failure, verdict, (&sender, &events.source));
        // The record's own key, so that the events of a key are in the order in which they happened.
        let key = record.key.as_deref().filter(|key| key.len() <= HANDED_ON_BYTES_MAX);
        let bytes = value.len() + headers.len() + key.map_or(0, <[u8]>::len);
        if bytes + RECORD_OVERHEAD_BYTES > rule.record_bytes_max {
            tracing::warn!(
                deployment = self.config.deployment,
                topic = rule.topic,
                bytes,
                "a failure event is above the max.message.bytes of its topic, {}: raise it; the event is left out",
                rule.record_bytes_max
            );
            return;
        }
        self.emit(Emissions {
            sources: vec![0],
            outputs: vec![output],
            partitions: vec![-1],
            timestamps: vec![taken.wall_ms],
            keys: one(key),
            values: one(Some(&value)),
            headers: one(Some(&headers)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::failures::{FailureKind, LetterFormat};
    use crate::record::Offset;

    #[test]
    fn an_event_says_what_happened_to_which_record_and_nothing_of_its_value() {
        let own =
            [("correlation-id", Some(&b"c-7"[..])), ("ce-id", Some(b"e-1")), ("other", Some(b"secret"))];
        let record = ParkedRecord {
            key: Some(b"k\xfe".to_vec()),
            value: Some(b"secret".to_vec()),
            headers: Some(headers::encode(own.into_iter())),
            timestamp_ms: 5,
            attempts: 2,
            next_attempt_ms: 1_736_937_001_000,
            ..ParkedRecord::default()
        };
        let failure = Failure {
            kind: FailureKind::Transient,
            topic: "orders".into(),
            partition: 2,
            offset: Offset(12_345),
            reason: "away".repeat(1000),
        };
        let sender = Sender {
            deployment: "pay",
            incarnation: "life",
            revision: 7,
            format: LetterFormat::Raw,
            place: "life/id/2/12345",
            now_ms: 1_736_937_000_000,
        };
        let (value, bytes) =
            write(&record, &failure, Verdict::RetryScheduled, (&sender, "/tidemill/dev/pay"));
        let event: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let expected = serde_json::json!({
            "specversion": "1.0", "id": "life/id/2/12345/7/0/2/retry_scheduled", "source": "/tidemill/dev/pay",
            "type": "tidemill.failure.retry_scheduled", "subject": "orders/2/12345", "time": "2025-01-15T10:30:00.000Z",
            "datacontenttype": "application/json", "correlationid": "c-7", "causationid": "e-1",
            "data": {
                "verdict": "retry_scheduled", "deployment": "pay", "deployment_version": 7,
                "deployment_incarnation": "life", "original_topic": "orders", "original_partition": 2,
                "original_offset": "12345", "original_timestamp": 5, "key": null, "key_base64": "a/4=",
                "error_class": "transient", "error_type": "InfraUnavailableError",
                "failure_reason": "away".repeat(256), "failure_timestamp": "2025-01-15T10:30:00.000Z",
                "attempts": 2, "retry_count": 0, "next_attempt": "2025-01-15T10:30:01.000Z",
            },
        });
        assert_eq!(event, expected);
        let all = headers::decode(&bytes).unwrap();
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["content-type", "correlation-id", "causation-id"]);
        let text = include_str!("../../../docs/failures.md");
        for name in expected["data"].as_object().unwrap().keys() {
            assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/failures.md");
        }
    }

    #[test]
    fn the_documentation_names_every_verdict() {
        use Verdict::*;
        let text = include_str!("../../../docs/failures.md");
        for verdict in [RetryScheduled, Parked, DeadLettered, Skipped, Discarded, Halted] {
            assert!(text.contains(&format!("| `{}` |", verdict.as_str())), "{verdict:?}");
        }
    }
}

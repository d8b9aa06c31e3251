//! `failures.dead_letters.format: envelope`: the letter's value is a JSON document, with exactly the fields
//! that the readers of such documents know. In Kafka since 0.2: names and types are promises.
//!
//! ```json
//! { "original_topic": "orders", "original_message": { "key": "k", "value": "v", "offset": "12345", "partition": 2 },
//!   "failure_reason": "...", "failure_timestamp": "2025-01-15T10:30:00.000Z", "correlation_id": "c-7",
//!   "retry_count": 0, "error_type": "InfraTimeoutError" }
//! ```
//!
//! Key and value are texts, or null. Bytes that are no UTF-8 leave the text null and stand in base64 beside
//! it, as `key_base64` and `value_base64`, so that both forms give the record back byte for byte.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub original_topic: String,
    pub original_message: Message,
    pub failure_reason: String,
    pub failure_timestamp: String,
    pub correlation_id: String,
    pub retry_count: u32,
    pub error_type: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// A text, because not every reader of JSON has 64 bits.
    pub offset: String,
    pub partition: i32,
}

impl Message {
    pub fn new(key: Option<&[u8]>, value: Option<&[u8]>, offset: u64, partition: i32) -> Message {
        let (key, key_base64) = split(key);
        let (value, value_base64) = split(value);
        Message { key, key_base64, value, value_base64, offset: offset.to_string(), partition }
    }

    /// The record's value; `None` when it cannot be told.
    pub fn into_value(self) -> Option<Option<Vec<u8>>> {
        match (self.value, self.value_base64) {
            (Some(text), _) => Some(Some(text.into_bytes())),
            (None, Some(base64)) => STANDARD.decode(base64).ok().map(Some),
            (None, None) => Some(None),
        }
    }
}

/// As text, or in base64.
pub fn split(bytes: Option<&[u8]>) -> (Option<String>, Option<String>) {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => (None, None),
        Some((Ok(text), _)) => (Some(text.to_owned()), None),
        Some((Err(_), bytes)) => (None, Some(STANDARD.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_exactly_the_fields_and_types_that_its_readers_know() {
        let envelope = Envelope {
            original_topic: "orders".into(),
            original_message: Message::new(Some(b"k"), Some(b"{\"a\":1}"), 12_345, 2),
            failure_reason: "Handler timeout after 30 seconds".into(),
            failure_timestamp: "2025-01-15T10:30:00.000Z".into(),
            correlation_id: "c-7".into(),
            retry_count: 0,
            error_type: "InfraTimeoutError".into(),
        };
        assert_eq!(
            serde_json::to_value(&envelope).unwrap(),
            serde_json::json!({
                "original_topic": "orders",
                "original_message": { "key": "k", "value": "{\"a\":1}", "offset": "12345", "partition": 2 },
                "failure_reason": "Handler timeout after 30 seconds",
                "failure_timestamp": "2025-01-15T10:30:00.000Z",
                "correlation_id": "c-7",
                "retry_count": 0,
                "error_type": "InfraTimeoutError",
            })
        );
    }

    #[test]
    fn any_bytes_come_back_as_they_were() {
        for value in [None, Some(&b""[..]), Some(b"text"), Some(b"\xff\x00"), Some("ü\"\n".as_bytes())] {
            let text = serde_json::to_string(&Message::new(None, value, 0, 0)).unwrap();
            let message: Message = serde_json::from_str(&text).unwrap();
            assert_eq!(message.into_value(), Some(value.map(<[u8]>::to_vec)), "{text}");
        }
    }
}

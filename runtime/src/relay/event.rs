//! A delivery as a CloudEvent 1.0, structured or binary.
//!
//! | attribute | value |
//! |---|---|
//! | `id` | the `tidemill-id` |
//! | `source` | `/tidemill/FLEET/DEPLOYMENT` |
//! | `type` | the row's header `ce-type`, or the destination's: its `type`, or `DEPLOYMENT.OUTPUT` |
//! | `subject` | the row's header `ce-subject`, or its key |
//! | `time` | the emission's |
//! | `sequence`, `partitionkey` | of the extensions of these names: the row's number, 20 digits, and its key |
//! | `traceparent`, `tracestate`, `correlationid`, `causationid` | the row's headers of these names |
//!
//! What is no text, or has control characters, is no value of an attribute, and left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::units;
use crate::ports::Delivery;
use crate::record::headers::{self, Header};

/// What a delivery becomes. Names of attributes are without `ce-`.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub attributes: Vec<(&'static str, String)>,
    /// Of the value; none when there is no value.
    pub content_type: Option<String>,
    pub value: Option<Vec<u8>>,
}

/// Headers of a row that go along, and their names as attributes, which have no dashes.
const PASSED: [(&str, &str); 4] = [
    ("traceparent", "traceparent"),
    ("tracestate", "tracestate"),
    ("correlation-id", "correlationid"),
    ("causation-id", "causationid"),
];

impl Event {
    /// `event_type` is the destination's.
    pub fn of(delivery: &Delivery, source: &str, event_type: &str) -> Event {
        let own = match delivery.headers.is_empty() {
            true => Vec::new(),
            false => headers::decode(&delivery.headers).unwrap_or_default(),
        };
        let key = delivery.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()).filter(is_sayable);
        let mut attributes = vec![
            ("id", delivery.id.clone()),
            ("source", source.to_owned()),
            ("type", type_of(&own, event_type).to_owned()),
            ("sequence", format!("{:020}", delivery.sequence)),
        ];
        if let Some(subject) = text(&own, "ce-subject").filter(is_sayable).or(key) {
            attributes.push(("subject", subject.to_owned()));
        }
        if let Some(key) = key {
            attributes.push(("partitionkey", key.to_owned()));
        }
        if delivery.timestamp_ms >= 0 {
            attributes.push(("time", units::show_time_ms(delivery.timestamp_ms)));
        }
        for (header, attribute) in PASSED {
            let value = text(&own, header).filter(is_sayable);
            attributes.extend(value.map(|value| (attribute, value.to_owned())));
        }
        let given = text(&own, "content-type").filter(is_sayable);
        let content_type = delivery.value.as_deref().map(|value| match given {
            Some(given) => given.to_owned(),
            None if is_json(value) => "application/json".to_owned(),
            None => "application/octet-stream".to_owned(),
        });
        Event { attributes, content_type, value: delivery.value.clone() }
    }

    /// Attributes and data as one JSON document. JSON data is taken over byte for byte.
    pub fn structured(&self) -> Vec<u8> {
        let mut json = b"{\"specversion\":\"1.0\"".to_vec();
        let mut member = |name: &str, value: &[u8]| {
            json.extend_from_slice(format!(",\"{name}\":").as_bytes());
            json.extend_from_slice(value);
        };
        let quoted = |text: &str| serde_json::Value::from(text).to_string().into_bytes();
        for (name, value) in &self.attributes {
            member(name, &quoted(value));
        }
        if let (Some(content_type), Some(value)) = (&self.content_type, &self.value) {
            member("datacontenttype", &quoted(content_type));
            let is_text = content_type.starts_with("text/");
            match std::str::from_utf8(value) {
                _ if is_json_type(content_type) && is_json(value) => member("data", value),
                Ok(text) if is_text => member("data", &quoted(text)),
                _ => member("data_base64", &quoted(&STANDARD.encode(value))),
            }
        }
        json.push(b'}');
        json
    }

    /// Attributes as headers; the body is the value.
    pub fn binary_headers(&self) -> Vec<(String, String)> {
        let mut all = vec![("ce-specversion".to_owned(), "1.0".to_owned())];
        all.extend(self.attributes.iter().map(|(name, value)| (format!("ce-{name}"), escape(value))));
        all
    }
}

/// What a row with these headers is, where `event_type` is the destination's.
pub fn type_of<'a>(own: &[Header<'a>], event_type: &'a str) -> &'a str {
    text(own, "ce-type").filter(is_sayable).unwrap_or(event_type)
}

fn text<'a>(own: &[Header<'a>], name: &str) -> Option<&'a str> {
    let found = own.iter().find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.1?).ok().filter(|text| !text.is_empty())
}

/// As an attribute of an event can say it.
fn is_sayable(text: &&str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

fn is_json(value: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok()
}

fn is_json_type(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence == "application/json" || essence.ends_with("+json")
}

/// As the HTTP binding of CloudEvents asks for: whatever is no printable ASCII, and `"` and `%`, as percent signs
/// and the bytes of its UTF-8.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b' ' | b'"' | b'%' | 0..=0x1f | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
            printable => out.push(char::from(printable)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(value: &[u8], own: &[(&str, &str)]) -> Delivery {
        let own: Vec<_> = own.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
        Delivery {
            partition: 2,
            sequence: 7,
            destination: "hook".into(),
            id: "life/topic/2/5/0".into(),
            key: Some("käse".into()),
            value: Some(value.to_vec()),
            headers: headers::encode(own.into_iter()),
            timestamp_ms: 1_736_937_000_000,
        }
    }

    #[test]
    fn a_structured_event_is_one_document_with_the_values_own_json() {
        let value = br#"{"amount": 12345678901234567890.10}"#;
        let event = Event::of(&delivery(value, &[("correlation-id", "c-1"), ("ce-type", "paid")]), "/s", "k");
        let json = String::from_utf8(event.structured()).unwrap();
        assert!(json.contains(r#""data":{"amount": 12345678901234567890.10}"#), "{json}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for (name, expected) in [
            ("specversion", "1.0"),
            ("id", "life/topic/2/5/0"),
            ("source", "/s"),
            ("type", "paid"),
            ("subject", "käse"),
            ("partitionkey", "käse"),
            ("sequence", "00000000000000000007"),
            ("time", "2025-01-15T10:30:00.000Z"),
            ("datacontenttype", "application/json"),
            ("correlationid", "c-1"),
        ] {
            assert_eq!(json[name], expected, "{name}");
        }
    }

    #[test]
    fn what_no_attribute_can_say_is_left_out() {
        let own = [
            ("ce-type", "a\nkind"),
            ("ce-subject", ""),
            ("correlation-id", "c\u{85}"),
            ("content-type", "text/plain\n"),
        ];
        for key in [&b"\0\0\0\x07"[..], b"\xff", b""] {
            let delivery = Delivery { key: Some(key.to_vec()), ..delivery(b"1", &own) };
            let event = Event::of(&delivery, "/s", "k");
            let names: Vec<&str> = event.attributes.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["id", "source", "type", "sequence", "time"], "{key:?}");
            assert_eq!(event.attributes[2].1, "k");
            assert_eq!(event.content_type.as_deref(), Some("application/json"), "as if nothing were said");
        }
    }

    #[test]
    fn what_is_no_json_is_text_if_it_says_so_and_base64_otherwise() {
        let data = |value: &[u8], own: &[(&str, &str)]| -> (serde_json::Value, serde_json::Value) {
            let event = Event::of(&delivery(value, own), "/s", "k").structured();
            let json: serde_json::Value = serde_json::from_slice(&event).unwrap();
            (json["data"].clone(), json["data_base64"].clone())
        };
        assert_eq!(data(b"\xff\x00", &[]), (serde_json::Value::Null, "/wA=".into()));
        assert_eq!(
            data(b"a\"b", &[("content-type", "text/plain")]),
            ("a\"b".into(), serde_json::Value::Null)
        );
        assert_eq!(data(b"{", &[("content-type", "application/json")]).1, "ew==");
    }

    #[test]
    fn a_binary_event_has_its_attributes_in_headers_that_http_can_carry() {
        let event = Event::of(&delivery(b"x", &[]), "/s", "a kind");
        let headers = event.binary_headers();
        let value =
            |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert_eq!(value("ce-subject"), Some("k%C3%A4se"));
        assert_eq!((value("ce-type"), value("ce-specversion")), (Some("a%20kind"), Some("1.0")));
        assert_eq!(event.content_type.as_deref(), Some("application/octet-stream"));
    }
}

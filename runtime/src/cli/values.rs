//! Bytes as people and programs want to see them, by the type that the store declares.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// For a table: one line.
pub fn show(bytes: &[u8], kind: &str) -> String {
    match number(bytes, kind) {
        Some(number) => number,
        None => show_text(bytes),
    }
}

/// For one value by itself: JSON over several lines.
pub fn show_pretty(bytes: &[u8], kind: &str) -> String {
    if kind == "json"
        && let Ok(value) = serde_json::from_slice::<Value>(bytes)
    {
        return format!("{value:#}");
    }
    show(bytes, kind)
}

/// Text as it is, anything else as base64 with a mark that cannot be mistaken for text.
pub fn show_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

/// For programs: a number, a document, a text, or `{"base64": ...}`.
pub fn to_json(bytes: &[u8], kind: &str) -> Value {
    let typed = match (kind, <[u8; 8]>::try_from(bytes)) {
        ("u64", Ok(bytes)) => Some(json!(u64::from_le_bytes(bytes))),
        ("i64", Ok(bytes)) => Some(json!(i64::from_le_bytes(bytes))),
        ("f64", Ok(bytes)) => Some(json!(f64::from_le_bytes(bytes))),
        ("json", _) => serde_json::from_slice(bytes).ok(),
        _ => None,
    };
    typed.unwrap_or_else(|| text_json(bytes))
}

/// A text when it is one.
pub fn text_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// `None` when the bytes are not of that type; they are then shown as they are.
fn number(bytes: &[u8], kind: &str) -> Option<String> {
    let bytes: [u8; 8] = bytes.try_into().ok()?;
    match kind {
        "u64" => Some(u64::from_le_bytes(bytes).to_string()),
        "i64" => Some(i64::from_le_bytes(bytes).to_string()),
        "f64" => Some(f64::from_le_bytes(bytes).to_string()),
        _ => None,
    }
}

/// How a key is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyFormat {
    /// As it stands
    Text,
    /// Two digits a byte
    Hex,
    Base64,
    /// A number as 8 bytes, little endian
    U64,
    I64,
}

impl KeyFormat {
    pub fn read(self, text: &str) -> Result<Vec<u8>, String> {
        let wrong = |what: &str| format!("`{text}` is not {what}");
        match self {
            KeyFormat::Text => Ok(text.as_bytes().to_vec()),
            KeyFormat::Base64 => STANDARD.decode(text).map_err(|_| wrong("base64")),
            KeyFormat::U64 => {
                Ok(text.parse::<u64>().map_err(|_| wrong("a number of 0 or above"))?.to_le_bytes().into())
            }
            KeyFormat::I64 => {
                Ok(text.parse::<i64>().map_err(|_| wrong("a whole number"))?.to_le_bytes().into())
            }
            KeyFormat::Hex => {
                let digits = text.as_bytes();
                if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(wrong("hexadecimal, two digits a byte"));
                }
                let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
                Ok(digits.chunks(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_by_their_declared_type_and_never_hidden() {
        let seven = 7u64.to_le_bytes();
        assert_eq!(show(&seven, "u64"), "7");
        assert_eq!(show(&(-1i64).to_le_bytes(), "i64"), "-1");
        assert_eq!(show(&1.5f64.to_le_bytes(), "f64"), "1.5");
        assert_eq!(show(b"plain", "utf8"), "plain");
        assert_eq!(show(&[0xff, 0], "bytes"), "base64:/wA=");
        // Bytes that are not of the declared type are shown as they are.
        assert_eq!(show(b"short", "u64"), "short");
        assert_eq!(to_json(&seven, "u64"), json!(7));
        assert_eq!(to_json(br#"{"a":1}"#, "json"), json!({ "a": 1 }));
        assert_eq!(to_json(&[0xff], "utf8"), json!({ "base64": "/w==" }));
        assert_eq!(show_pretty(br#"{"a":1}"#, "json"), "{\n  \"a\": 1\n}");
    }

    #[test]
    fn keys_are_read_as_the_caller_says() {
        assert_eq!(KeyFormat::Hex.read("00fF"), Ok(vec![0, 255]));
        assert_eq!(KeyFormat::Text.read("00fF"), Ok(b"00fF".to_vec()));
        assert_eq!(KeyFormat::U64.read("1"), Ok(vec![1, 0, 0, 0, 0, 0, 0, 0]));
        for (format, text) in
            [(KeyFormat::Hex, "0"), (KeyFormat::Hex, "zz"), (KeyFormat::Base64, "*"), (KeyFormat::U64, "-1")]
        {
            assert!(format.read(text).is_err(), "{format:?} {text}");
        }
    }
}

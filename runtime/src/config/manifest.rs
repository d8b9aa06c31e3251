//! What a module says about itself (`describe`), as JSON. The SDK writes it, the node reads it.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Logical input names; a record's `input` is an index into them.
    pub inputs: Vec<String>,
    /// Logical output names; an emission's `output` is an index into them.
    #[serde(default)]
    pub outputs: Vec<String>,
    #[serde(default)]
    pub stores: Vec<StoreManifest>,
    /// True when the handler reads headers; they are not materialised otherwise.
    #[serde(default)]
    pub wants_headers: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreManifest {
    pub name: String,
    /// How its values are encoded, for people who look at them.
    #[serde(rename = "type", default)]
    pub kind: StoreKind,
    /// Version of the form in which values are written.
    #[serde(default = "one")]
    pub schema: u32,
    /// Further versions of it that the handler reads. Left out when there are none, for nodes that do
    /// not know of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<u32>,
    /// Its entries are keyed by the record's own key, so the host hands them over with the batch.
    #[serde(default)]
    pub prefetch: bool,
    /// Scans are wanted: the overlay is kept in key order.
    #[serde(default)]
    pub ordered: bool,
}

fn one() -> u32 {
    1
}

impl StoreManifest {
    /// True if the handler can make sense of values of that form.
    pub fn can_read(&self, schema: u32) -> bool {
        schema == self.schema || self.reads.contains(&schema)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    #[default]
    Bytes,
    /// 8 bytes, little endian.
    U64,
    I64,
    F64,
    Utf8,
    Json,
}

impl StoreKind {
    pub fn as_str(self) -> &'static str {
        match self {
            StoreKind::Bytes => "bytes",
            StoreKind::U64 => "u64",
            StoreKind::I64 => "i64",
            StoreKind::F64 => "f64",
            StoreKind::Utf8 => "utf8",
            StoreKind::Json => "json",
        }
    }

    /// The value that a text stands for; the reverse of [`StoreKind::text`]. For `bytes`, the text's own.
    pub fn parse(self, text: &str) -> Result<Vec<u8>, String> {
        let wrong = |what: &str| format!("`{text}` is not {what}, which the store holds");
        match self {
            StoreKind::Bytes | StoreKind::Utf8 => Ok(text.into()),
            StoreKind::U64 => {
                Ok(text.parse::<u64>().map_err(|_| wrong("a number of 0 or above"))?.to_le_bytes().into())
            }
            StoreKind::I64 => {
                Ok(text.parse::<i64>().map_err(|_| wrong("a whole number"))?.to_le_bytes().into())
            }
            StoreKind::F64 => Ok(text.parse::<f64>().map_err(|_| wrong("a number"))?.to_le_bytes().into()),
            StoreKind::Json => match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => Ok(text.into()),
                Err(error) => Err(format!("{} ({error})", wrong("a JSON document"))),
            },
        }
    }

    /// A value as text: a number in decimal, UTF-8, or a JSON document as it was written. None for
    /// `bytes`, and for bytes that are not of the type.
    pub fn text(self, value: &[u8]) -> Option<String> {
        let number = <[u8; 8]>::try_from(value).ok();
        match self {
            StoreKind::Bytes => None,
            StoreKind::U64 => Some(u64::from_le_bytes(number?).to_string()),
            StoreKind::I64 => Some(i64::from_le_bytes(number?).to_string()),
            StoreKind::F64 => Some(f64::from_le_bytes(number?).to_string()),
            StoreKind::Utf8 => String::from_utf8(value.to_vec()).ok(),
            StoreKind::Json => {
                serde_json::from_slice::<serde::de::IgnoredAny>(value).ok()?;
                String::from_utf8(value.to_vec()).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_text_by_its_stores_type_or_not_at_all() {
        let seven = 7u64.to_le_bytes();
        let cases: [(StoreKind, &[u8], Option<&str>); 8] = [
            (StoreKind::U64, &seven, Some("7")),
            (StoreKind::I64, &(-1i64).to_le_bytes(), Some("-1")),
            (StoreKind::F64, &1.5f64.to_le_bytes(), Some("1.5")),
            (StoreKind::Utf8, "é".as_bytes(), Some("é")),
            (StoreKind::Json, b"{\"a\": 1}", Some("{\"a\": 1}")),
            (StoreKind::Json, b"{", None),
            (StoreKind::U64, b"short", None),
            (StoreKind::Bytes, b"text", None),
        ];
        for (kind, value, text) in cases {
            assert_eq!(kind.text(value).as_deref(), text, "{kind:?} {value:?}");
            if let Some(text) = text {
                assert_eq!(kind.parse(text).as_deref(), Ok(value), "{kind:?} {text}");
            }
        }
    }
}

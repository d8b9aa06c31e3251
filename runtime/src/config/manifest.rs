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
    /// Version of the values' form.
    #[serde(default = "one")]
    pub schema: u32,
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

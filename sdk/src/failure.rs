//! Why a record failed, in the kinds that a node reacts to differently.

use std::borrow::Cow;
use std::fmt;

/// Ends a record: its effects are dropped, and the deployment's `failures:` block decides what
/// happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    kind: Kind,
    reason: Cow<'static, str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Transient,
    Permanent,
    Decode,
    Schema,
}

/// Longest reason that crosses to the node, in bytes.
const REASON_BYTES_MAX: usize = 1024;

impl Failure {
    /// The same record may succeed when it is tried again: something it needs is not there yet.
    pub fn transient(reason: impl Into<Cow<'static, str>>) -> Failure {
        Failure { kind: Kind::Transient, reason: reason.into() }
    }

    /// The same record fails every time: it can be read, and breaks a rule.
    pub fn permanent(reason: impl Into<Cow<'static, str>>) -> Failure {
        Failure { kind: Kind::Permanent, reason: reason.into() }
    }

    /// The record cannot be read: it has no key or no value, or not the format that is expected. Fails
    /// every time, until a version that can read it is deployed.
    pub fn decode(reason: impl Into<Cow<'static, str>>) -> Failure {
        Failure { kind: Kind::Decode, reason: reason.into() }
    }

    /// The record can be read and is not what its schema says: a field is missing, or of another type.
    /// Fails every time, until a version that takes it is deployed.
    pub fn schema(reason: impl Into<Cow<'static, str>>) -> Failure {
        Failure { kind: Kind::Schema, reason: reason.into() }
    }

    pub fn is_decode(&self) -> bool {
        self.kind == Kind::Decode
    }

    pub fn is_schema(&self) -> bool {
        self.kind == Kind::Schema
    }

    pub fn is_transient(&self) -> bool {
        self.kind == Kind::Transient
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The reason, cut at a character boundary.
    pub(crate) fn short_reason(&self) -> &str {
        &self.reason[..self.reason.floor_char_boundary(REASON_BYTES_MAX)]
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Failure {}

//! One record, as a view into the batch that the node handed over. Nothing is copied or decoded
//! until it is asked for.

use serde::Deserialize;

use crate::Failure;

/// A record of one of the handler's inputs.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [u8],
    pub(crate) input: &'static str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
}

impl<'a> Record<'a> {
    /// The key. A record without one fails as `decode`, because a handler that asks has no use for it.
    #[inline]
    pub fn key(&self) -> Result<&'a [u8], Failure> {
        self.key.ok_or_else(|| Failure::decode("the record has no key"))
    }

    /// The key, none when it is null.
    #[inline]
    pub fn key_or_null(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The value. A tombstone fails as `decode`.
    #[inline]
    pub fn value(&self) -> Result<&'a [u8], Failure> {
        self.value.ok_or_else(|| Failure::decode("the record has no value"))
    }

    /// The value, none when it is null (a tombstone).
    #[inline]
    pub fn value_or_null(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// The value as text; a value that is not UTF-8 fails as `decode`.
    pub fn text(&self) -> Result<&'a str, Failure> {
        std::str::from_utf8(self.value()?)
            .map_err(|error| Failure::decode(format!("the value is not UTF-8: {error}")))
    }

    /// The value decoded from JSON; `T` may borrow from the record. What is no JSON fails as `decode`, and
    /// JSON that is no `T` as `schema`.
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T, Failure> {
        serde_json::from_slice(self.value()?).map_err(|error| {
            let reason = format!("the value is not the JSON expected: {error}");
            if error.is_data() { Failure::schema(reason) } else { Failure::decode(reason) }
        })
    }

    /// The headers in their order. Empty unless the handler is exported with `wants_headers: true`.
    pub fn headers(&self) -> Headers<'a> {
        Headers::of(self.headers)
    }

    /// The last header of that name, as Kafka's own `lastHeader` does; none when there is none or
    /// its value is null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().filter(|header| header.name == name.as_bytes()).last()?.value
    }

    /// The handler's name for the input that the record came from.
    pub fn input(&self) -> &'static str {
        self.input
    }

    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Where the record stands in its partition.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Milliseconds since the epoch; none when the record carries no timestamp.
    pub fn timestamp(&self) -> Option<i64> {
        (self.timestamp >= 0).then_some(self.timestamp)
    }
}

/// One header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// UTF-8 in practice; Kafka does not insist.
    pub name: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// The headers of a record, in order.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: i64,
}

impl<'a> Headers<'a> {
    /// The headers in Kafka's encoding; no bytes are no headers.
    pub(crate) fn of(mut bytes: &'a [u8]) -> Headers<'a> {
        let left = varint(&mut bytes).unwrap_or(0).max(0);
        Headers { rest: bytes, left }
    }

    /// How many there are, and their encoding without the count.
    pub(crate) fn encoded(&self) -> (i64, &'a [u8]) {
        (self.left, self.rest)
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let name = counted(&mut self.rest)??;
        let value = counted(&mut self.rest)?;
        Some(Header { name, value })
    }
}

/// Reads a length and as many bytes; -1 is null.
fn counted<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let Ok(length) = usize::try_from(varint(rest)?) else { return Some(None) };
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Some(bytes))
}

/// Kafka's signed varint: zigzag, seven bits a byte, least significant first.
fn varint(rest: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..35).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// Writes what [`varint`] reads.
pub(crate) fn write_varint(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Writes one header; the count in front of all of them is written apart.
pub(crate) fn write_header(name: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    write_varint(name.len() as i64, out);
    out.extend_from_slice(name);
    write_varint(value.map_or(-1, |value| value.len() as i64), out);
    out.extend_from_slice(value.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_those_of_kafka() {
        for (value, bytes) in [(0, &[0u8][..]), (-1, &[1]), (1, &[2]), (63, &[126]), (64, &[128, 1])] {
            let mut out = Vec::new();
            write_varint(value, &mut out);
            assert_eq!(out, bytes);
            assert_eq!(varint(&mut &out[..]), Some(value));
        }
        assert_eq!(varint(&mut &[0x80u8; 9][..]), None);
    }
}

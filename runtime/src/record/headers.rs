//! Kafka's own encoding of a record's headers, as record format v2 lays them out: a varint count,
//! then per header a varint-length name and a varint-length value, -1 for a null value.

/// Why bytes are not headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the headers are not in Kafka's encoding")]
pub struct MalformedHeaders;

/// Encodes headers in order; a null value stays null.
pub fn encode<'a, N: AsRef<[u8]>>(headers: impl ExactSizeIterator<Item = (N, Option<&'a [u8]>)>) -> Vec<u8> {
    let mut out = Vec::new();
    write_count(&mut out, headers.len());
    for (name, value) in headers {
        write_one(&mut out, name.as_ref(), value);
    }
    out
}

/// Name and value.
pub type Header<'a> = (&'a str, Option<&'a [u8]>);

/// The same as it is in Kafka, which takes any bytes for a name.
pub type RawHeader<'a> = (&'a [u8], Option<&'a [u8]>);

/// Decodes headers in order, to be looked at: those whose names are text. Nothing may follow the last value.
pub fn decode(bytes: &[u8]) -> Result<Vec<Header<'_>>, MalformedHeaders> {
    let mut headers = Vec::new();
    each(bytes, |header| headers.extend(text(header)))?;
    Ok(headers)
}

/// Decodes headers in order, to be written again as they are.
pub fn decode_raw(bytes: &[u8]) -> Result<Vec<RawHeader<'_>>, MalformedHeaders> {
    let mut headers = Vec::new();
    each(bytes, |header| headers.push(header))?;
    Ok(headers)
}

/// Whether bytes are headers, as [`decode_raw`] has it, without a list of them.
pub fn check(bytes: &[u8]) -> Result<(), MalformedHeaders> {
    each(bytes, |_| ())
}

/// A header whose name is text.
pub fn text((name, value): RawHeader<'_>) -> Option<Header<'_>> {
    Some((std::str::from_utf8(name).ok()?, value))
}

fn each<'a>(bytes: &'a [u8], mut take: impl FnMut(RawHeader<'a>)) -> Result<(), MalformedHeaders> {
    let mut rest = bytes;
    let count = usize::try_from(read_varint(&mut rest)?).map_err(|_| MalformedHeaders)?;
    // A count that lies reserves nothing, and ends with the bytes.
    for _ in 0..count {
        take(read_one(&mut rest)?);
    }
    if rest.is_empty() { Ok(()) } else { Err(MalformedHeaders) }
}

/// The value of the first header of that name. Looks no further, so what follows may be malformed.
pub fn find<'a>(bytes: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, MalformedHeaders> {
    let mut rest = bytes;
    for _ in 0..read_varint(&mut rest)? {
        let (found, value) = read_one(&mut rest)?;
        if found == name.as_bytes() {
            return Ok(value);
        }
    }
    Ok(None)
}

pub fn write_count(out: &mut Vec<u8>, count: usize) {
    write_varint(out, count as i64);
}

pub fn write_one(out: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
    write_varint(out, name.len() as i64);
    out.extend_from_slice(name);
    match value {
        None => write_varint(out, -1),
        Some(value) => {
            write_varint(out, value.len() as i64);
            out.extend_from_slice(value);
        }
    }
}

/// What [`write_one`] wrote, from the front of `rest`.
pub fn read_one<'a>(rest: &mut &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), MalformedHeaders> {
    let name = read_bytes(rest)?.ok_or(MalformedHeaders)?;
    Ok((name, read_bytes(rest)?))
}

/// Zigzag varint.
fn write_varint(out: &mut Vec<u8>, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

fn read_varint(rest: &mut &[u8]) -> Result<i64, MalformedHeaders> {
    let mut bits = 0u64;
    for shift in (0..=28).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(MalformedHeaders)?;
        *rest = tail;
        bits |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((bits >> 1) as i64 ^ -((bits & 1) as i64));
        }
    }
    Err(MalformedHeaders)
}

fn read_bytes<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, MalformedHeaders> {
    let length = read_varint(rest)?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| MalformedHeaders)?;
    let (bytes, tail) = rest.split_at_checked(length).ok_or(MalformedHeaders)?;
    *rest = tail;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_way_there_and_back() {
        let long = vec![7u8; 300];
        let headers = [("a", Some(&b"1"[..])), ("empty", Some(b"")), ("null", None), ("a", Some(&long))];
        let bytes = encode(headers.into_iter());
        assert_eq!(decode(&bytes).unwrap(), headers);
        assert_eq!(check(&bytes), Ok(()));
        for (name, value) in [("a", Some(&b"1"[..])), ("empty", Some(b"")), ("null", None), ("none", None)] {
            assert_eq!(find(&bytes, name), Ok(value), "{name}");
        }
    }

    #[test]
    fn no_prefix_and_no_tail_of_headers_is_taken_for_headers() {
        let bytes = encode([("name", Some(&b"value"[..])), ("other", None)].into_iter());
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), Err(MalformedHeaders), "prefix of {end} bytes");
            assert_eq!(check(&bytes[..end]), Err(MalformedHeaders), "prefix of {end} bytes");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(decode(&longer), Err(MalformedHeaders));
        assert_eq!(check(&longer), Err(MalformedHeaders));
    }

    #[test]
    fn a_count_that_lies_reserves_nothing() {
        assert_eq!(decode(&[0xfe, 0xff, 0xff, 0xff, 0x0f]), Err(MalformedHeaders));
        assert_eq!(check(&[0xfe, 0xff, 0xff, 0xff, 0x0f]), Err(MalformedHeaders));
    }

    #[test]
    fn a_name_that_is_no_text_stays_as_it_is_and_hides_no_other() {
        let raw = [(&b"a"[..], Some(&b"1"[..])), (&b"\xff\0"[..], None), (&b"b"[..], None)];
        let bytes = encode(raw.into_iter());
        assert_eq!(check(&bytes), Ok(()));
        assert_eq!(decode_raw(&bytes).unwrap(), raw);
        assert_eq!(decode(&bytes).unwrap(), [("a", Some(&b"1"[..])), ("b", None)]);
        assert_eq!(find(&bytes, "a"), Ok(Some(&b"1"[..])));
    }
}

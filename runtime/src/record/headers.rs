//! Kafka's own encoding of a record's headers, as record format v2 lays them out: a varint count,
//! then per header a varint-length name and a varint-length value, -1 for a null value.

/// Why bytes are not headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the headers are not in Kafka's encoding")]
pub struct MalformedHeaders;

/// Encodes headers in order; a null value stays null.
pub fn encode<'a>(headers: impl ExactSizeIterator<Item = (&'a str, Option<&'a [u8]>)>) -> Vec<u8> {
    let mut out = Vec::new();
    write_count(&mut out, headers.len());
    for (name, value) in headers {
        write_one(&mut out, name.as_bytes(), value);
    }
    out
}

/// Name and value.
pub type Header<'a> = (&'a str, Option<&'a [u8]>);

/// Decodes headers in order. Names must be UTF-8, nothing may follow the last value.
pub fn decode(bytes: &[u8]) -> Result<Vec<Header<'_>>, MalformedHeaders> {
    let mut rest = bytes;
    let count = usize::try_from(read_varint(&mut rest)?).map_err(|_| MalformedHeaders)?;
    // A header takes at least two bytes, so a lying count cannot reserve more than the input.
    let mut headers = Vec::with_capacity(count.min(rest.len() / 2));
    for _ in 0..count {
        let (name, value) = read_one(&mut rest)?;
        headers.push((std::str::from_utf8(name).map_err(|_| MalformedHeaders)?, value));
    }
    if rest.is_empty() { Ok(headers) } else { Err(MalformedHeaders) }
}

/// Whether bytes are headers, as [`decode`] has it, without a list of them.
pub fn check(bytes: &[u8]) -> Result<(), MalformedHeaders> {
    let mut rest = bytes;
    let count = usize::try_from(read_varint(&mut rest)?).map_err(|_| MalformedHeaders)?;
    // A lying count ends with the bytes.
    for _ in 0..count {
        let (name, _) = read_one(&mut rest)?;
        std::str::from_utf8(name).map_err(|_| MalformedHeaders)?;
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
    fn a_name_that_is_no_text_is_no_header() {
        // One header, a name of one byte, a null value.
        let bytes = [2, 2, 0xff, 1];
        assert_eq!(decode(&bytes), Err(MalformedHeaders));
        assert_eq!(check(&bytes), Err(MalformedHeaders));
        assert_eq!(check(&[2, 2, b'n', 1]), Ok(()));
    }
}

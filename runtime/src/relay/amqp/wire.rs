//! AMQP 0-9-1 on the wire, as much of it as a publisher needs.
//!
//! ```text
//!   frame    type (u8), channel (u16), size (u32), payload, 0xCE
//!   method   class (u16), method (u16), arguments
//!   header   class (u16), 0 (u16), body size (u64), property flags (u16), properties
//! ```
//!
//! Numbers are big endian. What a server sends is not trusted: every length is checked.

/// What a client says first.
pub const PROTOCOL: &[u8; 8] = b"AMQP\0\0\x09\x01";

pub const METHOD: u8 = 1;
pub const HEADER: u8 = 2;
pub const BODY: u8 = 3;
pub const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
/// What is around a frame's payload.
pub const FRAME_OVERHEAD: usize = 8;

/// Class and method.
pub type Name = (u16, u16);

pub const CONNECTION_START: Name = (10, 10);
pub const CONNECTION_START_OK: Name = (10, 11);
pub const CONNECTION_TUNE: Name = (10, 30);
pub const CONNECTION_TUNE_OK: Name = (10, 31);
pub const CONNECTION_OPEN: Name = (10, 40);
pub const CONNECTION_OPEN_OK: Name = (10, 41);
pub const CONNECTION_CLOSE: Name = (10, 50);
pub const CONNECTION_CLOSE_OK: Name = (10, 51);
pub const CONNECTION_BLOCKED: Name = (10, 60);
pub const CONNECTION_UNBLOCKED: Name = (10, 61);
pub const CHANNEL_OPEN: Name = (20, 10);
pub const CHANNEL_OPEN_OK: Name = (20, 11);
pub const CHANNEL_CLOSE: Name = (20, 40);
pub const BASIC_PUBLISH: Name = (60, 40);
pub const BASIC_RETURN: Name = (60, 50);
pub const BASIC_ACK: Name = (60, 80);
pub const BASIC_NACK: Name = (60, 120);
pub const CONFIRM_SELECT: Name = (85, 10);
pub const CONFIRM_SELECT_OK: Name = (85, 11);

/// Longest short string, in bytes.
pub const SHORT_MAX: usize = 255;

/// A server that does not speak the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server does not speak AMQP 0-9-1: {0}")]
pub struct Malformed(pub &'static str);

/// One frame from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub channel: u16,
    pub payload: Vec<u8>,
}

/// Size of the payload that follows these seven bytes, and what they say.
pub fn frame_head(head: [u8; 7], frame_max: u32) -> Result<(u8, u16, usize), Malformed> {
    let [kind, c0, c1, s0, s1, s2, s3] = head;
    let size = u32::from_be_bytes([s0, s1, s2, s3]);
    if &head[..4] == b"AMQP" {
        return Err(Malformed("it wants another version"));
    }
    if size > frame_max {
        return Err(Malformed("a frame is larger than agreed"));
    }
    Ok((kind, u16::from_be_bytes([c0, c1]), size as usize))
}

pub fn is_frame_end(byte: u8) -> bool {
    byte == FRAME_END
}

pub fn write_frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    out.push(kind);
    out.extend(channel.to_be_bytes());
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out.push(FRAME_END);
}

/// A method's arguments, written in order.
pub struct Arguments(Vec<u8>);

impl Arguments {
    pub fn of((class, method): Name) -> Arguments {
        let mut bytes = class.to_be_bytes().to_vec();
        bytes.extend(method.to_be_bytes());
        Arguments(bytes)
    }

    pub fn u8(mut self, value: u8) -> Arguments {
        self.0.push(value);
        self
    }

    pub fn u16(mut self, value: u16) -> Arguments {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Arguments {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn short(mut self, text: &str) -> Arguments {
        write_short(&mut self.0, text);
        self
    }

    pub fn long(mut self, bytes: &[u8]) -> Arguments {
        write_long(&mut self.0, bytes);
        self
    }

    pub fn frame(self, channel: u16) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() + FRAME_OVERHEAD);
        write_frame(&mut out, METHOD, channel, &self.0);
        out
    }
}

/// The text fits: whatever may be longer is left out before it comes here, because a part of an id or of a name is
/// another one.
fn write_short(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() <= SHORT_MAX, "{} bytes are no short string", text.len());
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn write_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A field table under construction: its entries without their length.
#[derive(Debug, Default)]
pub struct Table(Vec<u8>);

impl Table {
    /// The name has at most [`SHORT_MAX`] bytes, as in all of these.
    pub fn text(mut self, name: &str, value: &[u8]) -> Table {
        write_short(&mut self.0, name);
        self.0.push(b'S');
        write_long(&mut self.0, value);
        self
    }

    pub fn flag(mut self, name: &str) -> Table {
        write_short(&mut self.0, name);
        self.0.extend([b't', 1]);
        self
    }

    pub fn number(mut self, name: &str, value: i64) -> Table {
        write_short(&mut self.0, name);
        self.0.push(b'l');
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn table(mut self, name: &str, value: &Table) -> Table {
        write_short(&mut self.0, name);
        self.0.push(b'F');
        write_long(&mut self.0, &value.0);
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Properties of a message that this program sets. A text above [`SHORT_MAX`] is left out: none of them can say it.
#[derive(Debug, Default)]
pub struct Properties {
    pub content_type: Option<String>,
    pub headers: Table,
    pub correlation_id: Option<String>,
    pub message_id: Option<String>,
    /// Seconds since the epoch.
    pub timestamp_s: Option<u64>,
    pub kind: Option<String>,
}

const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const TYPE: u16 = 1 << 5;
const APP_ID: u16 = 1 << 3;
const PERSISTENT: u8 = 2;

impl Properties {
    /// The payload of a header frame.
    pub fn header(&self, body_bytes: usize) -> Vec<u8> {
        let texts = [&self.content_type, &self.correlation_id, &self.message_id, &self.kind];
        let texts = texts.map(|text| text.as_deref().filter(|text| text.len() <= SHORT_MAX));
        let [content_type, correlation_id, message_id, kind] = texts;
        let mut flags = HEADERS | DELIVERY_MODE | APP_ID;
        for (flag, is_there) in [
            (CONTENT_TYPE, content_type.is_some()),
            (CORRELATION_ID, correlation_id.is_some()),
            (MESSAGE_ID, message_id.is_some()),
            (TIMESTAMP, self.timestamp_s.is_some()),
            (TYPE, kind.is_some()),
        ] {
            flags |= if is_there { flag } else { 0 };
        }
        let mut out = BASIC_PUBLISH.0.to_be_bytes().to_vec();
        out.extend(0u16.to_be_bytes());
        out.extend((body_bytes as u64).to_be_bytes());
        out.extend(flags.to_be_bytes());
        content_type.iter().for_each(|text| write_short(&mut out, text));
        write_long(&mut out, self.headers.bytes());
        out.push(PERSISTENT);
        [correlation_id, message_id].iter().flatten().for_each(|text| write_short(&mut out, text));
        if let Some(seconds) = self.timestamp_s {
            out.extend(seconds.to_be_bytes());
        }
        kind.iter().for_each(|text| write_short(&mut out, text));
        write_short(&mut out, "tidemill");
        out
    }
}

/// Size of the body that follows a header frame, and the message's id.
pub fn read_header(payload: &[u8]) -> Result<(u64, String), Malformed> {
    let mut reader = Reader(payload);
    reader.u32()?;
    let body_bytes = u64::from(reader.u32()?) << 32 | u64::from(reader.u32()?);
    let flags = reader.u16()?;
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            reader.short()?;
        }
    }
    if flags & HEADERS != 0 {
        reader.long()?;
    }
    for flag in [DELIVERY_MODE, PRIORITY] {
        if flags & flag != 0 {
            reader.take(1)?;
        }
    }
    for flag in [CORRELATION_ID, REPLY_TO, EXPIRATION] {
        if flags & flag != 0 {
            reader.short()?;
        }
    }
    let id = if flags & MESSAGE_ID != 0 { reader.short()? } else { String::new() };
    Ok((body_bytes, id))
}

/// Arguments of a server's method, read in order.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// Class and method of a payload, and its arguments.
    pub fn method(payload: &'a [u8]) -> Result<(Name, Reader<'a>), Malformed> {
        let mut reader = Reader(payload);
        Ok(((reader.u16()?, reader.u16()?), reader))
    }

    pub fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Malformed("a frame is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed("a frame is too short"))
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn short(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.u8()?);
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    pub fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_a_head_a_payload_and_an_end() {
        let frame = Arguments::of(CHANNEL_OPEN).short("").frame(1);
        assert_eq!(frame, b"\x01\0\x01\0\0\0\x05\0\x14\0\x0a\0\xce");
        let head = frame[..7].try_into().unwrap();
        assert_eq!(frame_head(head, 100), Ok((METHOD, 1, 5)));
        assert_eq!(frame_head(head, 4), Err(Malformed("a frame is larger than agreed")));
        assert!(frame_head(*b"AMQP\0\0\x09", 1 << 30).is_err(), "what a server answers to a wrong version");
    }

    #[test]
    fn a_returned_message_is_known_by_its_id() {
        let properties = Properties {
            content_type: Some("application/json".into()),
            headers: Table::default().text("k", b"v").number("n", 7),
            correlation_id: Some("c".into()),
            message_id: Some("life/topic/0/1/2".into()),
            timestamp_s: Some(5),
            kind: Some("paid".into()),
        };
        let header = properties.header(300);
        assert_eq!(read_header(&header), Ok((300, "life/topic/0/1/2".to_owned())));
        for length in 0..header.len() - 30 {
            // Cut anywhere before the id, it is an error and no panic.
            assert!(read_header(&header[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_text_that_is_no_short_string_is_left_out_and_not_cut() {
        let of = |bytes: usize| {
            let long = Some("l".repeat(bytes));
            let properties = Properties {
                content_type: long.clone(),
                correlation_id: long.clone(),
                message_id: Some("id".into()),
                kind: long,
                ..Properties::default()
            };
            properties.header(3)
        };
        let (whole, without) = (of(SHORT_MAX), of(SHORT_MAX + 1));
        assert_eq!(whole.len() - without.len(), 3 * 256);
        for header in [whole, without] {
            assert_eq!(read_header(&header), Ok((3, "id".to_owned())));
        }
    }
}

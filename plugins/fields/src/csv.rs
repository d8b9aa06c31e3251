//! Splits one CSV line (RFC 4180, without line breaks inside a field).

use std::borrow::Cow;

/// A field begins with a quote that never ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Unclosed;

/// A field as it stands in the line; what is inside quotes still has them doubled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a> {
    text: &'a [u8],
    doubled: bool,
}

impl<'a> Raw<'a> {
    pub fn text(self) -> Cow<'a, [u8]> {
        if !self.doubled {
            return Cow::Borrowed(self.text);
        }
        let mut text = Vec::with_capacity(self.text.len());
        let mut bytes = self.text.iter();
        while let Some(&byte) = bytes.next() {
            text.push(byte);
            if byte == b'"' {
                bytes.next(); // Its twin.
            }
        }
        Cow::Owned(text)
    }
}

/// The fields of a line; a line break at its end is not part of it.
pub fn fields(line: &[u8], separator: u8) -> Fields<'_> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Fields { rest: Some(line), separator }
}

pub struct Fields<'a> {
    /// None after the last field.
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Fields<'a> {
    /// The field that ends before the next separator, or with the line.
    fn plain(&mut self, rest: &'a [u8]) -> Raw<'a> {
        let end = rest.iter().position(|&byte| byte == self.separator);
        self.rest = end.map(|end| &rest[end + 1..]);
        Raw { text: &rest[..end.unwrap_or(rest.len())], doubled: false }
    }

    /// The field whose opening quote was just read.
    fn quoted(&mut self, rest: &'a [u8]) -> Result<Raw<'a>, Unclosed> {
        let mut doubled = false;
        let mut at = 0;
        loop {
            at += rest[at..].iter().position(|&byte| byte == b'"').ok_or(Unclosed)?;
            if rest.get(at + 1) != Some(&b'"') {
                break;
            }
            doubled = true;
            at += 2;
        }
        // Whatever stands between the closing quote and the separator belongs to no field.
        self.plain(&rest[at + 1..]);
        Ok(Raw { text: &rest[..at], doubled })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Raw<'a>, Unclosed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        match rest {
            [b'"', rest @ ..] => Some(self.quoted(rest)),
            _ => Some(Ok(self.plain(rest))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<Vec<String>, Unclosed> {
        let text = |field: Raw<'_>| String::from_utf8_lossy(&field.text()).into_owned();
        fields(line.as_bytes(), b',').map(|field| field.map(text)).collect()
    }

    #[test]
    fn lines_split_as_spreadsheets_do() {
        for (line, expected) in [
            ("a,b", vec!["a", "b"]),
            ("", vec![""]),
            (",", vec!["", ""]),
            ("a,\"b,c\",d\r\n", vec!["a", "b,c", "d"]),
            ("\"\",\"\"\"\",\"a\"\"b\"", vec!["", "\"", "a\"b"]),
            ("a\"b,c", vec!["a\"b", "c"]),
        ] {
            assert_eq!(split(line).expect(line), expected, "{line}");
        }
        assert_eq!(split("a,\"b"), Err(Unclosed));
        assert_eq!(split("\"a\"\""), Err(Unclosed));
    }
}

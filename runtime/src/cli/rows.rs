//! Lines of a file to records: plain lines, CSV, or JSON lines, with a key taken from a field.
//!
//! One line is one record; its value is the line as it stands.

use std::io::BufRead;

use clap::ValueEnum;
use serde_json::Value;

use crate::kafka::tools::Row;

/// A line longer than this is not a record that Kafka would take.
pub const LINE_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LineFormat {
    /// Each line is a value
    Lines,
    /// Each line is a row; --key-field names a column or counts from 0
    Csv,
    /// Each line is a JSON document; --key-field names a field or is a /pointer
    Jsonl,
}

/// Where a record's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyField {
    None,
    Column(usize),
    /// Of the first line, which is then no record.
    ColumnNamed(String),
    Pointer(String),
}

/// What every record has in common.
#[derive(Debug, Clone, Default)]
pub struct Common {
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub partition: Option<i32>,
}

/// Reads records from lines. Ends at the first error, which says its line.
pub struct Rows<R> {
    input: R,
    key: KeyField,
    common: Common,
    line: u64,
    bytes: u64,
    /// The first line is a header and has not been read yet.
    header_due: bool,
}

impl<R: BufRead> Rows<R> {
    /// `header`: the first line names columns and is no record.
    pub fn new(
        input: R,
        format: LineFormat,
        key_field: Option<&str>,
        header: bool,
        common: Common,
    ) -> Result<Rows<R>, String> {
        let key = match (format, key_field) {
            (_, None) => KeyField::None,
            (LineFormat::Lines, Some(_)) => {
                return Err("--key-field needs --format csv or jsonl".to_owned());
            }
            (LineFormat::Csv, Some(field)) => match field.parse() {
                Ok(column) => KeyField::Column(column),
                Err(_) => KeyField::ColumnNamed(field.to_owned()),
            },
            (LineFormat::Jsonl, Some(field)) if field.starts_with('/') => KeyField::Pointer(field.to_owned()),
            // The escapes of RFC 6901.
            (LineFormat::Jsonl, Some(field)) => {
                KeyField::Pointer(format!("/{}", field.replace('~', "~0").replace('/', "~1")))
            }
        };
        let header_due = header || matches!(key, KeyField::ColumnNamed(_));
        Ok(Rows { input, key, common, line: 0, bytes: 0, header_due })
    }

    /// Bytes read so far, for a progress bar.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next record; `None` at the end.
    pub fn read(&mut self) -> Result<Option<Row>, String> {
        if std::mem::take(&mut self.header_due) {
            let Some(header) = self.line()? else { return Ok(None) };
            self.find_column(&header)?;
        }
        let Some(line) = self.line()? else { return Ok(None) };
        let key = self.key_of(&line).map_err(|message| format!("line {}: {message}", self.line))?;
        Ok(Some(Row {
            key: key.or_else(|| self.common.key.clone()),
            value: Some(line),
            headers: self.common.headers.clone(),
            partition: self.common.partition,
            timestamp_ms: None,
        }))
    }

    fn find_column(&mut self, header: &[u8]) -> Result<(), String> {
        let KeyField::ColumnNamed(name) = &self.key else { return Ok(()) };
        let columns: Vec<String> =
            columns(header).map(|column| String::from_utf8_lossy(&column).into_owned()).collect();
        let found = columns.iter().position(|column| column == name);
        let found = found
            .ok_or_else(|| format!("line 1 names no column `{name}`, it names {}", columns.join(", ")))?;
        self.key = KeyField::Column(found);
        Ok(())
    }

    /// The next line that is not empty, without its end.
    fn line(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            let mut line = Vec::new();
            let mut limited = std::io::Read::take(&mut self.input, LINE_BYTES_MAX as u64 + 1);
            let read = limited.read_until(b'\n', &mut line);
            let read = read.map_err(|error| format!("line {}: {error}", self.line + 1))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            self.bytes += read as u64;
            if line.len() > LINE_BYTES_MAX {
                return Err(format!("line {} is longer than {LINE_BYTES_MAX} bytes", self.line));
            }
            while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                line.pop();
            }
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn key_of(&self, line: &[u8]) -> Result<Option<Vec<u8>>, String> {
        match &self.key {
            KeyField::None | KeyField::ColumnNamed(_) => Ok(None),
            KeyField::Column(index) => {
                let column = columns(line).nth(*index);
                column.map(Some).ok_or_else(|| format!("has no column {index} (the first is 0)"))
            }
            KeyField::Pointer(pointer) => {
                let document: Value =
                    serde_json::from_slice(line).map_err(|error| format!("no JSON: {error}"))?;
                match document.pointer(pointer) {
                    None => Err(format!("has nothing at {pointer}")),
                    Some(Value::Null) => Ok(None),
                    Some(Value::String(text)) => Ok(Some(text.clone().into_bytes())),
                    Some(other) => Ok(Some(other.to_string().into_bytes())),
                }
            }
        }
    }
}

/// The columns of a row, as RFC 4180 quotes them. A quoted line break would be two lines, and so two
/// records; such files are for another tool.
fn columns(line: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut column = Vec::new();
        let mut quoted = false;
        let mut at = 0;
        while at < text.len() {
            match (text[at], quoted) {
                (b'"', true) if text.get(at + 1) == Some(&b'"') => {
                    column.push(b'"');
                    at += 1;
                }
                (b'"', true) => quoted = false,
                (b'"', false) if column.is_empty() => quoted = true,
                (b',', false) => {
                    rest = Some(&text[at + 1..]);
                    return Some(column);
                }
                (byte, _) => column.push(byte),
            }
            at += 1;
        }
        rest = None;
        Some(column)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        text: &str,
        format: LineFormat,
        key: Option<&str>,
    ) -> Result<Vec<(Option<String>, String)>, String> {
        let mut rows = Rows::new(text.as_bytes(), format, key, false, Common::default())?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let mut out = Vec::new();
        while let Some(row) = rows.read()? {
            out.push((row.key.map(text), text(row.value.expect("a line is a value"))));
        }
        Ok(out)
    }

    #[test]
    fn lines_are_values_and_empty_ones_are_none() {
        let rows = read("a\n\nb\r\nc", LineFormat::Lines, None).expect("read");
        assert_eq!(rows, [(None, "a".into()), (None, "b".into()), (None, "c".into())]);
        assert!(read("a", LineFormat::Lines, Some("0")).is_err());
    }

    #[test]
    fn a_csv_key_is_a_column_by_number_or_by_name() {
        let rows = read("1,\"a, \"\"b\"\"\",x\n2,,y\n", LineFormat::Csv, Some("1")).expect("read");
        assert_eq!(rows[0].0.as_deref(), Some("a, \"b\""));
        assert_eq!(rows[1], (Some("".into()), "2,,y".into()));
        let rows = read("id,carrier\n1,UA\n", LineFormat::Csv, Some("carrier")).expect("read");
        assert_eq!(rows, [(Some("UA".into()), "1,UA".into())]);
        let error = read("id,carrier\n1,UA\n", LineFormat::Csv, Some("carier")).expect_err("no such column");
        assert_eq!(error, "line 1 names no column `carier`, it names id, carrier");
        assert_eq!(
            read("1,2\n1\n", LineFormat::Csv, Some("1")),
            Err("line 2: has no column 1 (the first is 0)".into())
        );
    }

    #[test]
    fn a_json_key_is_a_field_or_a_pointer() {
        let text = "{\"id\": 7, \"user\": {\"name\": \"ada\"}}\n";
        assert_eq!(read(text, LineFormat::Jsonl, Some("id")).expect("read")[0].0.as_deref(), Some("7"));
        assert_eq!(
            read(text, LineFormat::Jsonl, Some("/user/name")).expect("read")[0].0.as_deref(),
            Some("ada")
        );
        let error = read("{}\n{", LineFormat::Jsonl, Some("id")).expect_err("no such field");
        assert_eq!(error, "line 1: has nothing at /id");
    }
}

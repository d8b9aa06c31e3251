//! Fields of a record's value, as the configurations of the ready-made handlers name them.
//!
//! ```yaml
//! format: csv                       # or json; csv unless said otherwise
//! columns: [year, month, carrier]   # csv: names for the columns, in order
//! separator: ";"                    # csv: one ASCII character, a comma unless said otherwise
//! ```
//!
//! A field is then a column's name or its number, counted from 1 as `cut` and `awk` do, or a JSON
//! pointer (`/flight/carrier`). A [`Picker`] finds all fields that a handler needs in one pass over
//! the value, without an allocation unless a CSV field is quoted and holds quotes, or the value is JSON.

mod csv;

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use tidemill_sdk::Failure;

/// Fields that one handler can name.
pub const FIELDS_MAX: usize = 16;

/// Columns of a line that can be named; bounds how far a line is split.
const COLUMNS_MAX: usize = 10_000;

/// How a value is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Csv,
    Json,
}

/// A field as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a column's number or name, or a JSON pointer")]
pub enum FieldName {
    /// A CSV column, counted from 1.
    Number(usize),
    /// A CSV column of `columns`, or a JSON pointer.
    Name(String),
}

/// Finds fields in values.
#[derive(Debug)]
pub struct Picker {
    format: Format,
    columns: Vec<String>,
    separator: u8,
    wanted: Vec<Wanted>,
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// Counted from 0.
    Column(usize),
    Pointer(String),
}

/// A field that a [`Picker`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field(usize);

/// The fields of one value.
#[derive(Debug)]
pub struct Picked<'a>([Option<Cow<'a, [u8]>>; FIELDS_MAX]);

impl Picked<'_> {
    /// Of a value that is not there.
    pub fn none() -> Self {
        Picked([const { None }; FIELDS_MAX])
    }

    /// A field's text: none if the value has no such field or it is empty. A JSON string is its text,
    /// anything else its JSON; null is none.
    pub fn get(&self, field: Field) -> Option<&[u8]> {
        self.0[field.0].as_deref().filter(|text| !text.is_empty())
    }
}

impl Picker {
    /// The layout, as `format`, `columns` and `separator` of a configuration give it.
    pub fn new(format: Format, columns: Vec<String>, separator: Option<&str>) -> Result<Picker, String> {
        if format == Format::Json && (!columns.is_empty() || separator.is_some()) {
            return Err("`columns` and `separator` are for `format: csv`".into());
        }
        let separator = match separator.unwrap_or(",").as_bytes() {
            [separator @ (b' '..=b'~' | b'\t')] if *separator != b'"' => *separator,
            _ => return Err("`separator` is one ASCII character, and no quote".into()),
        };
        Ok(Picker { format, columns, separator, wanted: Vec::new() })
    }

    /// Adds a field to find.
    pub fn want(&mut self, name: &FieldName) -> Result<Field, String> {
        let wanted = match (self.format, name) {
            (Format::Csv, FieldName::Number(number @ 1..=COLUMNS_MAX)) => Wanted::Column(number - 1),
            (Format::Csv, FieldName::Number(number)) => {
                return Err(format!("column {number}: columns are counted from 1 to {COLUMNS_MAX}"));
            }
            (Format::Csv, FieldName::Name(name)) => {
                let column = self.columns.iter().position(|column| column == name);
                let missing = || format!("`columns` names no `{name}`, only {:?}", self.columns);
                Wanted::Column(column.ok_or_else(missing)?)
            }
            (Format::Json, FieldName::Name(pointer)) if pointer.is_empty() || pointer.starts_with('/') => {
                Wanted::Pointer(pointer.clone())
            }
            (Format::Json, name) => {
                return Err(format!(
                    "{name:?} is no JSON pointer; one begins with `/`, as in `/flight/carrier`"
                ));
            }
        };
        if let Some(index) = self.wanted.iter().position(|known| *known == wanted) {
            return Ok(Field(index));
        }
        if self.wanted.len() == FIELDS_MAX {
            return Err(format!("more than {FIELDS_MAX} different fields are named"));
        }
        self.wanted.push(wanted);
        Ok(Field(self.wanted.len() - 1))
    }

    /// Finds the wanted fields. Fails as permanent if the value is not of the format.
    pub fn pick<'a>(&self, value: &'a [u8]) -> Result<Picked<'a>, Failure> {
        let mut picked = Picked::none();
        match self.format {
            _ if self.wanted.is_empty() => {}
            Format::Csv => self.pick_columns(value, &mut picked)?,
            Format::Json => self.pick_pointers(value, &mut picked)?,
        }
        Ok(picked)
    }

    fn pick_columns<'a>(&self, line: &'a [u8], picked: &mut Picked<'a>) -> Result<(), Failure> {
        let mut left = self.wanted.len();
        for (column, field) in csv::fields(line, self.separator).enumerate() {
            let slot = self.wanted.iter().position(|wanted| *wanted == Wanted::Column(column));
            let field = field.map_err(|csv::Unclosed| {
                Failure::decode(format!("column {} begins with a quote that never ends", column + 1))
            })?;
            if let Some(slot) = slot {
                picked.0[slot] = Some(field.text());
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    fn pick_pointers(&self, value: &[u8], picked: &mut Picked<'_>) -> Result<(), Failure> {
        let value: Value = serde_json::from_slice(value)
            .map_err(|error| Failure::decode(format!("the value is not JSON: {error}")))?;
        for (slot, wanted) in picked.0.iter_mut().zip(&self.wanted) {
            let Wanted::Pointer(pointer) = wanted else { continue };
            *slot = match value.pointer(pointer) {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(Cow::Owned(text.clone().into_bytes())),
                Some(other) => Some(Cow::Owned(other.to_string().into_bytes())),
            };
        }
        Ok(())
    }
}

/// A number in decimal: exact while it is whole, so that sums can be checked to the last digit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Whole(i64),
    Real(f64),
}

impl Number {
    /// None if the text is no number, or no finite one.
    pub fn parse(text: &[u8]) -> Option<Number> {
        let text = std::str::from_utf8(text).ok()?.trim();
        if let Ok(whole) = text.parse() {
            return Some(Number::Whole(whole));
        }
        text.parse().ok().filter(|real: &f64| real.is_finite()).map(Number::Real)
    }

    pub fn as_f64(self) -> f64 {
        match self {
            Number::Whole(whole) => whole as f64,
            Number::Real(real) => real,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> FieldName {
        FieldName::Name(name.into())
    }

    #[test]
    fn columns_are_found_by_name_and_by_number_in_one_pass() {
        let columns = ["a", "b", "c"].map(String::from).to_vec();
        let mut picker = Picker::new(Format::Csv, columns, None).expect("a layout");
        let [c, b, beyond] = [name("c"), FieldName::Number(2), FieldName::Number(9)]
            .map(|name| picker.want(&name).expect("a field"));
        assert_eq!(picker.want(&name("b")), Ok(b), "the same field is found once");
        let picked = picker.pick(b"1,,\"x,\"\"y\"\"\"\r\n").expect("a line");
        assert_eq!(picked.get(c), Some(&b"x,\"y\""[..]));
        assert_eq!(picked.get(b), None, "an empty field is none");
        assert_eq!(picked.get(beyond), None);
        assert!(picker.pick(b"\"1,2,3").is_err());
    }

    #[test]
    fn pointers_give_text_numbers_and_nothing_for_null() {
        let mut picker = Picker::new(Format::Json, Vec::new(), None).expect("a layout");
        let [a, b, n] = ["/a", "/o/b", "/n"].map(|pointer| picker.want(&name(pointer)).expect("a field"));
        let picked = picker.pick(br#"{"a":"text","o":{"b":1.50},"n":null}"#).expect("JSON");
        assert_eq!(picked.get(a), Some(&b"text"[..]));
        assert_eq!(picked.get(b), Some(&b"1.5"[..]));
        assert_eq!(picked.get(n), None);
        assert!(picker.pick(b"no JSON").is_err());
    }

    #[test]
    fn names_that_cannot_be_fields_are_refused() {
        let mut csv = Picker::new(Format::Csv, vec!["a".into()], None).expect("a layout");
        assert!(csv.want(&name("b")).is_err());
        assert!(csv.want(&FieldName::Number(0)).is_err());
        let mut json = Picker::new(Format::Json, Vec::new(), None).expect("a layout");
        assert!(json.want(&name("a")).is_err());
        assert!(Picker::new(Format::Json, vec!["a".into()], None).is_err());
        assert!(Picker::new(Format::Csv, Vec::new(), Some("ab")).is_err());
    }

    #[test]
    fn whole_numbers_stay_whole() {
        assert_eq!(Number::parse(b" -7 "), Some(Number::Whole(-7)));
        assert_eq!(Number::parse(b"7.5"), Some(Number::Real(7.5)));
        for text in ["", "NA", "NaN", "inf", "1e999"] {
            assert_eq!(Number::parse(text.as_bytes()), None, "{text}");
        }
    }
}

//! Count, sum, minimum, maximum and mean of a number, per key and per finer groups of it.
//!
//! Input `in`; a record without a key fails as `decode`. Output `out`: with every record, the new
//! numbers of each of its groups, keyed by group, as JSON. Store `groups`: the same JSON by group.
//!
//! ```json
//! {"count":830,"missing":12,"sum":10432,"min":-16,"max":225,"mean":12.568674698795181}
//! ```
//!
//! `count` are the records with a number and `missing` those without; the rest is over the records
//! with a number, and null if there are none. Sums of whole numbers are exact.
//!
//! | key | meaning |
//! |---|---|
//! | `value` | the field that holds the number: a column's name or number (from 1), or a JSON pointer |
//! | `group_by` | a list of groupings, each a list of fields; `[[]]`, per key alone, unless said otherwise |
//! | `empty` | texts that mean "no number", beside an absent or empty field; `[NA]` unless said otherwise |
//! | `format`, `columns`, `separator` | the value's layout, see `tidemill-fields` |
//!
//! A group is the record's key and then the grouping's fields, with a `/` before each: under
//! `group_by: [[], [year, month]]` a record with the key `UA` counts for `UA` and for `UA/2013/1`.
//!
//! ```yaml
//! name: delays
//! module: aggregate.wasm
//! inputs:  { in: { topic: flights-by-carrier } }
//! outputs: { out: { topic: delays } }
//! config:
//!   columns: [year, month, carrier, delay]
//!   value: delay
//!   group_by: [[], [year, month]]
//! ```

mod statistics;

use std::cell::RefCell;

use serde::Deserialize;
use tidemill_fields::{Field, FieldName, Format, Number, Picker};
use tidemill_sdk::{Context, Failure, Handler, Json, Record, Store};

use statistics::Statistics;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    value: FieldName,
    #[serde(default = "per_key")]
    group_by: Vec<Vec<FieldName>>,
    #[serde(default = "not_available")]
    empty: Vec<String>,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    columns: Vec<String>,
    separator: Option<String>,
}

fn per_key() -> Vec<Vec<FieldName>> {
    vec![Vec::new()]
}

fn not_available() -> Vec<String> {
    vec!["NA".into()]
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
struct Rules {
    picker: Picker,
    value: Field,
    group_by: Vec<Vec<Field>>,
    empty: Vec<Vec<u8>>,
    /// The group in hand, so that naming it costs no allocation.
    group: RefCell<Vec<u8>>,
}

impl TryFrom<Config> for Rules {
    type Error = String;

    fn try_from(config: Config) -> Result<Rules, String> {
        if config.group_by.is_empty() {
            return Err("`group_by` has no grouping; `[[]]` is one aggregate per key".into());
        }
        let mut picker = Picker::new(config.format, config.columns, config.separator.as_deref())?;
        let value = picker.want(&config.value)?;
        let mut fields = |names: &Vec<FieldName>| names.iter().map(|name| picker.want(name)).collect();
        let group_by = config.group_by.iter().map(&mut fields).collect::<Result<_, String>>()?;
        let empty = config.empty.into_iter().map(String::into_bytes).collect();
        Ok(Rules { picker, value, group_by, empty, group: RefCell::default() })
    }
}

impl Rules {
    /// The record's number; none if it says that there is none.
    fn number(&self, text: Option<&[u8]>) -> Result<Option<Number>, Failure> {
        let Some(text) = text.filter(|text| !self.empty.iter().any(|empty| empty == text)) else {
            return Ok(None);
        };
        let refuse = || Failure::permanent(format!("{:?} is no number", String::from_utf8_lossy(text)));
        Number::parse(text).ok_or_else(refuse).map(Some)
    }
}

pub struct Aggregate {
    rules: Rules,
    groups: Store<Json<Statistics>>,
}

impl Handler for Aggregate {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let key = record.key()?;
        let picked = self.rules.picker.pick(record.value()?)?;
        let number = self.rules.number(picked.get(self.rules.value))?;
        let mut group = self.rules.group.borrow_mut();
        for fields in &self.rules.group_by {
            group.clear();
            group.extend_from_slice(key);
            for &field in fields {
                group.push(b'/');
                group.extend_from_slice(picked.get(field).unwrap_or_default());
            }
            let mut statistics = self.groups.get(ctx, &*group)?.unwrap_or_default();
            statistics.add(number);
            self.groups.put(ctx, &*group, &statistics);
            ctx.emit("out", &*group, Json(&statistics))?;
        }
        Ok(())
    }
}

tidemill_sdk::export!(Aggregate {
    inputs: ["in"],
    outputs: ["out"],
    stores: ["groups" { prefetch }],
    config: rules,
});

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, Outcome, record};

    const CONFIG: &str = r#"{"columns": ["day", "delay"], "value": "delay", "group_by": [[], ["day"]]}"#;

    fn feed(config: &str, values: &[&str]) -> (Driver<Aggregate>, Vec<Outcome>) {
        let mut driver = Driver::with_config(config);
        let outcomes = driver.feed(values.iter().map(|value| record("in").key("UA").value(value)));
        (driver, outcomes)
    }

    fn group(driver: &Driver<Aggregate>, group: &str) -> Option<String> {
        driver.state::<String>("groups", group)
    }

    #[test]
    fn numbers_are_kept_per_key_and_per_finer_group() {
        let (driver, _) = feed(CONFIG, &["1,10", "1,-4", "2,3", "2,NA", "3,"]);
        let expected = r#"{"count":3,"missing":2,"sum":9,"min":-4,"max":10,"mean":3.0}"#;
        assert_eq!(group(&driver, "UA").as_deref(), Some(expected));
        let expected = r#"{"count":2,"missing":0,"sum":6,"min":-4,"max":10,"mean":3.0}"#;
        assert_eq!(group(&driver, "UA/1").as_deref(), Some(expected));
        let expected = r#"{"count":0,"missing":1,"sum":0,"min":null,"max":null,"mean":null}"#;
        assert_eq!(group(&driver, "UA/3").as_deref(), Some(expected));
        assert_eq!(driver.emissions().len(), 10, "every record emits each of its groups");
        assert_eq!(driver.emitted("out").last(), Some(&format!("UA/3={expected}")));
    }

    #[test]
    fn sums_of_whole_numbers_are_exact_and_fractions_are_summed_as_such() {
        let (driver, _) = feed(r#"{"value": 1}"#, &["9007199254740993", "1", "-1"]);
        assert!(group(&driver, "UA").is_some_and(|json| json.contains(r#""sum":9007199254740993,"#)));
        let (driver, _) = feed(r#"{"value": 1}"#, &["0.5", "1"]);
        let expected = r#"{"count":2,"missing":0,"sum":1.5,"min":0.5,"max":1,"mean":0.75}"#;
        assert_eq!(group(&driver, "UA").as_deref(), Some(expected));
    }

    #[test]
    fn what_is_no_number_fails_and_changes_nothing() {
        let (driver, outcomes) = feed(r#"{"value": 1}"#, &["dep_delay"]);
        assert_eq!(outcomes, [Outcome::Permanent("\"dep_delay\" is no number".into())]);
        assert_eq!(group(&driver, "UA"), None);
    }

    #[test]
    fn json_values_are_aggregated_too() {
        let (driver, _) = feed(
            r#"{"format": "json", "value": "/ms", "group_by": [["/host"]]}"#,
            &[r#"{"host":"a","ms":2}"#],
        );
        assert!(group(&driver, "UA/a").is_some() && group(&driver, "UA").is_none());
    }
}

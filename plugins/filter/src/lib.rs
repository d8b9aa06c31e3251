//! Keeps the records that meet its conditions and drops the others; nothing of a kept record changes.
//!
//! Input `in`, output `out`. Configuration:
//!
//! | key | meaning |
//! |---|---|
//! | `keep` | a list of conditions |
//! | `match` | `all` (default) or `any`: how many of them a record must meet |
//! | `format`, `columns`, `separator` | the value's layout, see `tidemill-fields` |
//!
//! A condition names a `field` (a column's name or number, or a JSON pointer; without it, the
//! record's key is meant) and one comparison: `equals`, `not_equals`, `one_of`, `starts_with`,
//! `contains` compare text; `above`, `at_least`, `below`, `at_most` compare numbers, and what is no
//! number does not meet them; `exists: true` or `false` asks only whether there is something.
//!
//! ```yaml
//! name: late-flights
//! module: filter.wasm
//! inputs:  { in: { topic: flights } }
//! outputs: { out: { topic: late-flights } }
//! config:
//!   columns: [date, carrier, delay]
//!   keep:
//!     - { field: carrier, one_of: [UA, AA] }
//!     - { field: delay, above: 60 }
//! ```

use serde::Deserialize;
use tidemill_fields::{Field, FieldName, Format, Number, Picked, Picker};
use tidemill_sdk::{Context, Failure, Handler, Record};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    keep: Vec<ConditionConfig>,
    #[serde(default, rename = "match")]
    matching: Matching,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    columns: Vec<String>,
    separator: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Matching {
    #[default]
    All,
    Any,
}

#[derive(Debug, Deserialize)]
struct ConditionConfig {
    field: Option<FieldName>,
    #[serde(flatten)]
    comparison: Comparison,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Comparison {
    Equals(Text),
    NotEquals(Text),
    OneOf(Vec<Text>),
    StartsWith(Text),
    Contains(Text),
    Above(f64),
    AtLeast(f64),
    Below(f64),
    AtMost(f64),
    Exists(bool),
}

/// Text to compare with; YAML makes `equals: 7` a number, which means its text.
#[derive(Debug, Deserialize)]
#[serde(from = "Scalar")]
struct Text(Vec<u8>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Whole(i64),
    Real(f64),
    Truth(bool),
}

impl From<Scalar> for Text {
    fn from(scalar: Scalar) -> Text {
        Text(match scalar {
            Scalar::Text(text) => text.into_bytes(),
            Scalar::Whole(whole) => whole.to_string().into_bytes(),
            Scalar::Real(real) => real.to_string().into_bytes(),
            Scalar::Truth(truth) => truth.to_string().into_bytes(),
        })
    }
}

impl Comparison {
    fn holds(&self, found: Option<&[u8]>) -> bool {
        let number = |compare: fn(&f64, &f64) -> bool, bound: &f64| {
            found.and_then(Number::parse).is_some_and(|number| compare(&number.as_f64(), bound))
        };
        match self {
            Comparison::Equals(text) => found == Some(&text.0),
            Comparison::NotEquals(text) => found != Some(&text.0),
            Comparison::OneOf(texts) => texts.iter().any(|text| found == Some(&text.0)),
            Comparison::StartsWith(text) => found.is_some_and(|found| found.starts_with(&text.0)),
            Comparison::Contains(text) => found.is_some_and(|found| contains(found, &text.0)),
            Comparison::Above(bound) => number(f64::gt, bound),
            Comparison::AtLeast(bound) => number(f64::ge, bound),
            Comparison::Below(bound) => number(f64::lt, bound),
            Comparison::AtMost(bound) => number(f64::le, bound),
            Comparison::Exists(expected) => found.is_some() == *expected,
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

#[derive(Debug)]
struct Condition {
    /// None = the key.
    field: Option<Field>,
    comparison: Comparison,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
struct Rules {
    picker: Picker,
    conditions: Vec<Condition>,
    matching: Matching,
}

impl TryFrom<Config> for Rules {
    type Error = String;

    fn try_from(config: Config) -> Result<Rules, String> {
        if config.keep.is_empty() {
            return Err("`keep` has no condition; a filter needs one".into());
        }
        let mut picker = Picker::new(config.format, config.columns, config.separator.as_deref())?;
        let mut conditions = Vec::new();
        for ConditionConfig { field, comparison } in config.keep {
            let field = field.map(|name| picker.want(&name)).transpose()?;
            conditions.push(Condition { field, comparison });
        }
        Ok(Rules { picker, conditions, matching: config.matching })
    }
}

impl Rules {
    fn keeps(&self, record: &Record<'_>, picked: &Picked<'_>) -> bool {
        let holds = |condition: &Condition| {
            let found = match condition.field {
                Some(field) => picked.get(field),
                None => record.key_or_null(),
            };
            condition.comparison.holds(found)
        };
        match self.matching {
            Matching::All => self.conditions.iter().all(holds),
            Matching::Any => self.conditions.iter().any(holds),
        }
    }
}

pub struct Filter {
    rules: Rules,
}

impl Handler for Filter {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        // A tombstone has no fields; conditions on its key, or on their absence, still apply.
        let picked = match record.value_or_null() {
            Some(value) => self.rules.picker.pick(value)?,
            None => Picked::none(),
        };
        if !self.rules.keeps(record, &picked) {
            return Ok(());
        }
        let emission = ctx.to("out").key(record.key_or_null()).value(record.value_or_null());
        emission.headers_of(record).send()
    }
}

tidemill_sdk::export!(Filter { inputs: ["in"], outputs: ["out"], config: rules, wants_headers: true });

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    fn kept(config: &str, records: &[(&str, &str)]) -> Vec<String> {
        let mut driver = Driver::<Filter>::with_config(config);
        driver.feed(records.iter().map(|(key, value)| record("in").key(key).value(value)));
        driver.emitted("out")
    }

    const FLIGHTS: [(&str, &str); 4] = [("a", "UA,70"), ("b", "UA,5"), ("c", "DL,90"), ("d", "UA,NA")];

    #[test]
    fn a_record_must_meet_every_condition() {
        let config = r#"{"columns": ["carrier", "delay"], "keep": [
            {"field": "carrier", "one_of": ["UA", "AA"]}, {"field": "delay", "above": 60}]}"#;
        assert_eq!(kept(config, &FLIGHTS), ["a=UA,70"]);
    }

    #[test]
    fn or_any_of_them() {
        let config = r#"{"match": "any", "keep": [{"field": 1, "equals": "DL"}, {"field": 2, "equals": 5}]}"#;
        assert_eq!(kept(config, &FLIGHTS), ["b=UA,5", "c=DL,90"]);
    }

    #[test]
    fn a_condition_without_a_field_is_about_the_key() {
        assert_eq!(kept(r#"{"keep": [{"starts_with": "c"}]}"#, &FLIGHTS), ["c=DL,90"]);
    }

    #[test]
    fn json_fields_compare_too_and_may_be_absent() {
        let records = [("a", r#"{"n": 1}"#), ("b", r#"{"n": 2.5}"#), ("c", "{}")];
        let kept = |keep: &str| kept(&format!(r#"{{"format": "json", "keep": [{keep}]}}"#), &records);
        assert_eq!(kept(r#"{"field": "/n", "at_most": 2}"#), [r#"a={"n": 1}"#]);
        assert_eq!(kept(r#"{"field": "/n", "exists": false}"#), ["c={}"]);
    }

    #[test]
    fn a_tombstone_is_kept_by_its_key_and_passes_as_one() {
        let mut driver = Driver::<Filter>::with_config(r#"{"keep": [{"equals": "k"}]}"#);
        driver.feed([record("in").key("k").header("h", "x")]);
        assert_eq!(driver.emitted("out"), ["k=null"]);
        assert_eq!(driver.emissions()[0].headers.len(), 1);
    }

    #[test]
    fn a_configuration_with_a_mistake_is_refused() {
        for config in
            [r#"{"keep": []}"#, r#"{"keep": [{"field": "x", "equals": "y"}]}"#, r#"{"keep": [{"is": 1}]}"#]
        {
            assert!(Driver::<Filter>::try_with_config(config).is_err(), "{config}");
        }
    }
}

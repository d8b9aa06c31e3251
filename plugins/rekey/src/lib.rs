//! Gives every record a new key, taken from its value; value, headers and time stay.
//!
//! Input `in`, output `out`. Configuration:
//!
//! | key | meaning |
//! |---|---|
//! | `key` | the field that becomes the key: a column's name or number (from 1), or a JSON pointer |
//! | `missing` | a record whose field is absent or empty: `fail` (default), `skip` drops it, `null` emits it without a key |
//! | `format`, `columns`, `separator` | the value's layout, see `tidemill-fields` |
//!
//! ```yaml
//! name: by-carrier
//! module: rekey.wasm
//! inputs:  { in: { topic: flights } }
//! outputs: { out: { topic: flights-by-carrier } }
//! config:
//!   columns: [date, carrier, delay]
//!   key: carrier
//! ```
//!
//! A skipped record is seen as the difference between the deployment's records in and out.

use serde::Deserialize;
use tidemill_fields::{Field, FieldName, Format, Picker};
use tidemill_sdk::{Context, Failure, Handler, Record};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    key: FieldName,
    #[serde(default)]
    missing: Missing,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    columns: Vec<String>,
    separator: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Missing {
    #[default]
    Fail,
    Skip,
    Null,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
struct Rules {
    picker: Picker,
    key: Field,
    missing: Missing,
}

impl TryFrom<Config> for Rules {
    type Error = String;

    fn try_from(config: Config) -> Result<Rules, String> {
        let mut picker = Picker::new(config.format, config.columns, config.separator.as_deref())?;
        let key = picker.want(&config.key)?;
        Ok(Rules { picker, key, missing: config.missing })
    }
}

pub struct Rekey {
    rules: Rules,
}

impl Handler for Rekey {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let value = record.value()?;
        let picked = self.rules.picker.pick(value)?;
        let key = picked.get(self.rules.key);
        match (key, self.rules.missing) {
            (None, Missing::Fail) => return Err(Failure::permanent("the value has no field for the key")),
            (None, Missing::Skip) => return Ok(()),
            (None, Missing::Null) | (Some(_), _) => {}
        }
        ctx.to("out").key(key).value(value).headers_of(record).send()
    }
}

tidemill_sdk::export!(Rekey { inputs: ["in"], outputs: ["out"], config: rules, wants_headers: true });

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, Outcome, record};

    fn driver(config: &str) -> Driver<Rekey> {
        Driver::with_config(config)
    }

    #[test]
    fn a_column_becomes_the_key_and_all_else_stays() {
        for config in [r#"{"key": 2}"#, r#"{"columns": ["date", "carrier"], "key": "carrier"}"#] {
            let mut driver = driver(config);
            driver.feed([record("in").key("old").value("1,UA").header("h", "x").timestamp(7)]);
            let emitted = &driver.emissions()[0];
            assert_eq!(driver.emitted("out"), ["UA=1,UA"]);
            assert_eq!((emitted.timestamp, emitted.headers.len()), (Some(7), 1));
        }
    }

    #[test]
    fn a_json_pointer_becomes_the_key() {
        let mut driver = driver(r#"{"format": "json", "key": "/user/id"}"#);
        driver.feed([record("in").value(r#"{"user":{"id":7}}"#)]);
        assert_eq!(driver.emitted("out"), [r#"7={"user":{"id":7}}"#]);
    }

    #[test]
    fn a_record_without_the_field_fails_is_skipped_or_loses_its_key() {
        let outcomes = |missing: &str| {
            let mut driver = driver(&format!(r#"{{"key": 2, "missing": "{missing}"}}"#));
            let outcomes = driver.feed([record("in").value("1,"), record("in").value("2")]);
            (outcomes[0] == Outcome::Ok, driver.emitted("out"))
        };
        assert_eq!(outcomes("fail"), (false, vec![]));
        assert_eq!(outcomes("skip"), (true, vec![]));
        assert_eq!(outcomes("null"), (true, vec!["null=1,".into(), "null=2".into()]));
    }

    #[test]
    fn a_configuration_with_a_mistake_is_refused() {
        for config in ["{}", r#"{"key": "carrier"}"#, r#"{"key": 1, "mising": "skip"}"#] {
            assert!(Driver::<Rekey>::try_with_config(config).is_err(), "{config}");
        }
    }
}

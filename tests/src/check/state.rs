//! W5: what the stores hold is what the changelog says and what the model says.

use std::collections::BTreeMap;

use anyhow::Result;
use prost::Message;
use tidemill_proto::v1::Position;

use super::Verdict;
use crate::evidence::{Evidence, Row};

/// Partition and key to value.
pub type Model = BTreeMap<(i32, Vec<u8>), Vec<u8>>;

/// The type byte of a state key in a changelog; length and name of the store follow it
/// (`docs/formats/store.md`).
const STATE: u8 = 0x01;
/// The key of a commit's last record.
const POSITION: &[u8] = b"\0position";

pub fn check(
    evidence: &Evidence,
    deployment: &str,
    store: &str,
    model: &Model,
    verdict: &mut Verdict,
) -> Result<()> {
    let changelog = evidence.topic(&format!("{deployment}.changelog"), true)?;
    verdict.violations("W10", backward(deployment, &changelog));
    let folded = fold(&changelog, store);
    compare(verdict, &format!("the changelog of {deployment}"), &folded, model);
    let dumps = evidence.states(&format!("{deployment}.{store}"))?;
    if dumps.is_empty() {
        verdict.invalid.push(format!("nobody looked at the store of {deployment}"));
    }
    for (label, rows) in dumps {
        let mut held = Model::new();
        for row in rows {
            let key = (row.partition, row.key.unwrap_or_default());
            if held.insert(key, row.value.unwrap_or_default()).is_some() {
                verdict.violation("W5", format!("the store of {deployment} ({label}) shows a key twice"));
            }
        }
        compare(verdict, &format!("the store of {deployment} ({label})"), &held, model);
    }
    Ok(())
}

/// The last value of every key of a store.
fn fold(changelog: &[Row], store: &str) -> Model {
    let mut prefix = vec![STATE, store.len() as u8];
    prefix.extend_from_slice(store.as_bytes());
    let mut state = Model::new();
    for row in changelog {
        let Some(key) = row.key.as_deref().and_then(|key| key.strip_prefix(&prefix[..])) else { continue };
        match &row.value {
            Some(value) => state.insert((row.partition, key.to_vec()), value.clone()),
            None => state.remove(&(row.partition, key.to_vec())),
        };
    }
    state
}

/// Commits of a revision behind those of a newer one, in the same partition.
fn backward(deployment: &str, changelog: &[Row]) -> Vec<String> {
    let mut newest: BTreeMap<i32, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in changelog.iter().filter(|row| row.key.as_deref() == Some(POSITION)) {
        let Some(Ok(position)) = row.value.as_deref().map(Position::decode) else {
            wrong.push(format!("the changelog of {deployment} has no position at offset {}", row.offset));
            continue;
        };
        let newest = newest.entry(row.partition).or_default();
        if position.revision < *newest {
            let (partition, revision) = (row.partition, position.revision);
            wrong.push(format!(
                "{deployment} went back from revision {newest} to {revision} in partition {partition}"
            ));
        }
        *newest = (*newest).max(position.revision);
    }
    wrong
}

fn compare(verdict: &mut Verdict, what: &str, found: &Model, model: &Model) {
    let show = |value: Option<&Vec<u8>>| match value {
        None => "nothing".to_owned(),
        // Balances are eight bytes, heads are text.
        Some(value) => match <[u8; 8]>::try_from(value.as_slice()) {
            Ok(number) if !value.contains(&b',') => i64::from_le_bytes(number).to_string(),
            _ => String::from_utf8_lossy(value).into_owned(),
        },
    };
    let keys = found.keys().chain(model.keys().filter(|key| !found.contains_key(*key)));
    let wrong = keys.filter(|key| found.get(*key) != model.get(*key)).map(|key| {
        let (name, partition) = (String::from_utf8_lossy(&key.1), key.0);
        let (has, must) = (show(found.get(key)), show(model.get(key)));
        format!("{what} has {name} of partition {partition} as {has}, and it must be {must}")
    });
    verdict.violations("W5", wrong.collect());
}

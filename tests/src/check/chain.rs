//! W2: per key no gap, no repetition, no disorder, and every link upon the link before it.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::Verdict;
use super::state::Model;
use crate::evidence::{Evidence, Row};

/// The model's own arithmetic: FNV-1a over the last link and the text. Written again here, because a
/// checker that shared the handler's code would share its mistakes.
pub fn link(before: u64, text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in before.to_le_bytes().iter().copied().chain(text.bytes()) {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(1 << 40 | 0x1b3);
    }
    hash
}

/// Holds `chain-out` against the model over the input; answers what the store must hold.
pub fn check(evidence: &Evidence, input: &[Row], verdict: &mut Verdict) -> Result<Model> {
    Ok(check_rows(input, &evidence.topic("chain-out", true)?, verdict))
}

/// The same for an output that was read already.
pub fn check_rows(input: &[Row], output: &[Row], verdict: &mut Verdict) -> Model {
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut heads: HashMap<String, (i32, u64, u64)> = HashMap::new();
    for row in input {
        let (key, text) = (row.key_text(), row.value_text());
        let head = heads.entry(key.clone()).or_insert((row.partition, 0, 0));
        *head = (row.partition, head.1 + 1, link(head.2, &text));
        expected.entry(key).or_default().push(format!("{text},{},{}", head.1, head.2));
    }
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut partitions: HashMap<String, i32> = HashMap::new();
    let mut wrong = Vec::new();
    for row in output {
        let key = row.key_text();
        let home = *partitions.entry(key.clone()).or_insert(row.partition);
        if home != row.partition {
            wrong.push(format!("{key} is in chain-out/{home} and in chain-out/{}", row.partition));
        }
        found.entry(key).or_default().push(row.value_text());
    }
    let nothing = Vec::new();
    for (key, expected) in &expected {
        let found = found.remove(key).unwrap_or_default();
        wrong.extend(first_difference(key, expected, &found));
    }
    for (key, found) in &found {
        wrong.extend(first_difference(key, &nothing, found));
    }
    verdict.violations("W2", wrong);
    verdict.notes.push(format!("W2: {} records of {} keys", input.len(), heads.len()));
    let model = heads.into_iter().map(|(key, (partition, count, link))| {
        ((partition, key.into_bytes()), format!("{count},{link}").into_bytes())
    });
    model.collect()
}

/// Says what happened to a key at the place where it first goes wrong.
fn first_difference(key: &str, expected: &[String], found: &[String]) -> Option<String> {
    let at = (0..expected.len().max(found.len())).find(|&at| expected.get(at) != found.get(at))?;
    let none = "nothing".to_owned();
    let (wanted, got) = (expected.get(at).unwrap_or(&none), found.get(at).unwrap_or(&none));
    // The text, KEY,SEQUENCE,TOKEN, is unique; what stands behind it is the handler's.
    let text = |value: &str| value.split(',').take(3).collect::<Vec<_>>().join(",");
    let known = |value: &String| expected.iter().position(|other| text(other) == text(value));
    let story = match found.get(at).map(known) {
        None => "lost",
        Some(None) => "never sent",
        Some(Some(place)) if place == at => "handled upon wrong state",
        Some(Some(place)) if place < at => "handled again",
        Some(Some(_)) => "handled before its turn, or what was before it is lost",
    };
    Some(format!(
        "{key}, record {at} of {} ({} found): {story}; expected {wanted}, found {got}",
        expected.len(),
        found.len()
    ))
}

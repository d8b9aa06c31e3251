//! The input topics: what is in them must be what producers say they wrote.

use std::collections::{HashMap, HashSet};

use anyhow::Result;

use super::Verdict;
use crate::evidence::{Ack, Evidence, Outcome, Row};

/// The records of an input topic in order, after holding them against the acknowledgements. A topic
/// that disagrees says nothing about the node, so it makes the run invalid.
pub fn of(evidence: &Evidence, topic: &str, acks: &[Ack], verdict: &mut Verdict) -> Result<Vec<Row>> {
    let rows = evidence.topic(topic, true)?;
    let sent: Vec<&Ack> = acks.iter().filter(|ack| ack.topic == topic).collect();
    let perhaps: HashSet<(&[u8], &[u8])> =
        sent.iter().filter(|ack| ack.outcome == Outcome::Unknown).map(|ack| pair(ack)).collect();
    let mut acknowledged: HashMap<(i32, i64), &Ack> = HashMap::new();
    for ack in sent.iter().filter(|ack| ack.outcome == Outcome::Ok) {
        acknowledged.insert((ack.partition, ack.offset), ack);
    }
    let mut seen: HashSet<(&[u8], &[u8])> = HashSet::new();
    for row in &rows {
        let record = (row.key.as_deref().unwrap_or_default(), row.value.as_deref().unwrap_or_default());
        let known = match acknowledged.remove(&(row.partition, row.offset)) {
            Some(ack) => pair(ack) == record,
            None => perhaps.contains(&record),
        };
        if !known || !seen.insert(record) {
            let (key, value) = (row.key_text(), row.value_text());
            let at = format!("{topic}/{}@{}", row.partition, row.offset);
            verdict.invalid.push(format!("{at} holds {key}={value}, which was not sent there, or twice"));
            return Ok(rows);
        }
    }
    if let Some(ack) = acknowledged.values().next() {
        let at = format!("{topic}/{}@{}", ack.partition, ack.offset);
        verdict.invalid.push(format!("{} acknowledged records are gone, such as {at}", acknowledged.len()));
    }
    Ok(rows)
}

fn pair(ack: &Ack) -> (&[u8], &[u8]) {
    (&ack.key, &ack.value)
}

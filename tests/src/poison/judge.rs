//! What must hold when everything has come to rest:
//!
//! - each record that was sent has come out once, or not at all if it is to lie in the dead letters;
//! - the records of a key that were handled in their turn came out in their order, and so did those that came back
//!   from the dead letters;
//! - the handler's own counts of a key rise by one from record to record, so nothing was counted twice or lost.

use std::collections::{BTreeMap, BTreeSet};

use super::feed::Sent;
use super::read::Out;

/// Longest list of violations of one kind.
const TOLD_MAX: usize = 5;

/// How a record is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It comes out in its turn.
    InTurn,
    /// It comes back from the dead letters.
    Back,
    /// It lies in the dead letters.
    Buried,
}

/// Everything that is wrong.
pub fn judge(scene: &str, sent: &[Sent], out: &[Out], fate: impl Fn(&Sent) -> Fate) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut of_key: BTreeMap<u32, Vec<&Out>> = BTreeMap::new();
    out.iter().for_each(|one| of_key.entry(one.key).or_default().push(one));
    let mut fates: BTreeMap<u32, BTreeMap<u64, Fate>> = BTreeMap::new();
    for one in sent {
        fates.entry(one.key).or_default().insert(one.sequence, fate(one));
    }
    for (key, fates) in &fates {
        let out = of_key.remove(key).unwrap_or_default();
        wrong.extend(of_one(*key, fates, &out));
    }
    wrong.extend(of_key.keys().map(|key| format!("k{key} came out and was never sent")));
    if wrong.len() > TOLD_MAX {
        let more = wrong.len() - TOLD_MAX;
        wrong.truncate(TOLD_MAX);
        wrong.push(format!("and {more} more"));
    }
    wrong.into_iter().map(|line| format!("{scene}: {line}")).collect()
}

fn of_one(key: u32, fates: &BTreeMap<u64, Fate>, out: &[&Out]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<bool, u64> = BTreeMap::new();
    for (number, one) in (1..).zip(out) {
        if one.count != number {
            wrong.push(format!(
                "k{key}: record {} counts as {}, it is number {number}",
                one.sequence, one.count
            ));
        }
        if !seen.insert(one.sequence) {
            wrong.push(format!("k{key}: record {} came out twice", one.sequence));
            continue;
        }
        let is_back = match fates.get(&one.sequence) {
            Some(Fate::InTurn) => false,
            Some(Fate::Back) => true,
            Some(Fate::Buried) => {
                wrong.push(format!("k{key}: record {} came out and is a dead letter", one.sequence));
                continue;
            }
            None => {
                wrong.push(format!("k{key}: record {} was never sent", one.sequence));
                continue;
            }
        };
        let before = last.insert(is_back, one.sequence);
        if before.is_some_and(|before| before > one.sequence) {
            wrong.push(format!("k{key}: record {} came out after {before:?}", one.sequence));
        }
    }
    let missing = fates.iter().filter(|(sequence, fate)| **fate != Fate::Buried && !seen.contains(sequence));
    wrong.extend(missing.map(|(sequence, _)| format!("k{key}: record {sequence} never came out")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poison::feed::Kind;

    fn sent(kinds: &[Kind]) -> Vec<Sent> {
        (0..).zip(kinds).map(|(sequence, kind)| Sent { key: 1, sequence, kind: *kind }).collect()
    }

    fn out(sequences: &[u64]) -> Vec<Out> {
        let one = |(count, sequence): (u64, &u64)| Out {
            key: 1,
            sequence: *sequence,
            count,
            due_ms: 0,
            seen_ms: 0,
        };
        (1..).zip(sequences).map(one).collect()
    }

    fn found(sequences: &[u64], bad: Fate) -> usize {
        let sent = sent(&[Kind::Ok, Kind::Bad, Kind::Ok, Kind::Bad]);
        let fate = |one: &Sent| if one.kind == Kind::Bad { bad } else { Fate::InTurn };
        judge("test", &sent, &out(sequences), fate).len()
    }

    #[test]
    fn what_came_back_may_come_late_but_not_twice_in_disorder_or_never() {
        assert_eq!(found(&[0, 2, 1, 3], Fate::Back), 0);
        assert_eq!(found(&[0, 2], Fate::Buried), 0);
        assert_eq!(found(&[0, 2, 1], Fate::Back), 1, "one is missing");
        assert_eq!(found(&[0, 2, 3, 1], Fate::Back), 1, "in disorder");
        assert_eq!(found(&[0, 2, 1, 3, 3], Fate::Back), 1, "twice");
        assert_eq!(found(&[0, 2, 1, 3], Fate::InTurn), 1, "late although nothing buried it");
        assert_eq!(found(&[0, 2, 1], Fate::Buried), 1, "not a letter");
        let mut counted_twice = out(&[0, 2, 1, 3]);
        counted_twice[3].count = 5;
        let fate = |one: &Sent| if one.kind == Kind::Bad { Fate::Back } else { Fate::InTurn };
        assert_eq!(
            judge("test", &sent(&[Kind::Ok, Kind::Bad, Kind::Ok, Kind::Bad]), &counted_twice, fate).len(),
            1
        );
    }
}

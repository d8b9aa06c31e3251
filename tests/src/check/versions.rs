//! W10: each record was handled by one version, the one that its offset belongs to, and versions never
//! go back.
//!
//! A record of the chain's output ends in the version that handled it. Which version that must be is known
//! from where each one began, as the node said when it was deployed.

use std::collections::{BTreeMap, HashMap};

use super::Verdict;
use crate::evidence::{Began, Row};

/// Takes the version off the end of every value.
pub fn split(output: Vec<Row>, verdict: &mut Verdict) -> (Vec<Row>, Vec<u64>) {
    let mut versions = Vec::new();
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for mut row in output {
        let value = row.value_text();
        match value.rsplit_once(',').and_then(|(rest, version)| Some((rest, version.parse().ok()?))) {
            Some((rest, version)) => {
                row.value = Some(rest.as_bytes().to_vec());
                versions.push(version);
                rows.push(row);
            }
            None => wrong.push(format!("{}={value} does not say its version", row.key_text())),
        }
    }
    verdict.violations("W10", wrong);
    (rows, versions)
}

/// Holds every record of the output, without its version, against where the versions began.
pub fn check(input: &[Row], output: &[Row], versions: &[u64], began: &[Began], verdict: &mut Verdict) {
    // By partition: offset and the version that begins there, in the order of their deploys.
    let mut begins: HashMap<i32, Vec<(i64, u64)>> = HashMap::new();
    let mut wrong = Vec::new();
    for version in began {
        for &(partition, offset) in &version.first {
            let before = begins.entry(partition).or_default();
            if before.last().is_some_and(|(last, _)| *last > offset) {
                wrong.push(format!(
                    "version {} of partition {partition} begins at {offset}, before its predecessor",
                    version.version
                ));
            }
            before.push((offset, version.version));
        }
    }
    let places: HashMap<String, (i32, i64)> =
        input.iter().map(|row| (row.value_text(), (row.partition, row.offset))).collect();
    let mut handled: BTreeMap<u64, u64> = BTreeMap::new();
    for (row, &version) in output.iter().zip(versions) {
        *handled.entry(version).or_default() += 1;
        let text = row.value_text().split(',').take(3).collect::<Vec<_>>().join(",");
        // What was never sent is told by W2.
        let Some(&(partition, offset)) = places.get(&text) else { continue };
        let begins = begins.get(&partition).map(Vec::as_slice).unwrap_or_default();
        let due = begins.iter().rev().find(|(first, _)| *first <= offset).map(|(_, version)| *version);
        if due != Some(version) {
            let due = due.map_or("none".to_owned(), |due| due.to_string());
            wrong
                .push(format!("{partition}@{offset} ({text}) is of version {due}, and {version} handled it"));
        }
    }
    verdict.violations("W10", wrong);
    let idle: Vec<u64> =
        began.iter().map(|began| began.version).filter(|version| !handled.contains_key(version)).collect();
    if !idle.is_empty() {
        verdict.invalid.push(format!("versions {idle:?} handled no record, so their swaps prove nothing"));
    }
    verdict.notes.push(format!("W10: {} records by {} versions", output.len(), handled.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(offset: i64, value: &str) -> Row {
        Row { partition: 0, offset, key: Some(b"k".to_vec()), value: Some(value.as_bytes().to_vec()) }
    }

    /// Four records, of which the second version begins at the third; `by` handled each.
    fn judge(by: [u64; 4]) -> Verdict {
        let input: Vec<Row> = (0..4).map(|offset| row(offset, &format!("k,{offset},x"))).collect();
        let output = (0..).zip(by).map(|(offset, by)| row(offset, &format!("k,{offset},x,1,link,{by}")));
        let mut verdict = Verdict::default();
        let (output, versions) = split(output.collect(), &mut verdict);
        let began = [(1, 0), (2, 2)].map(|(version, offset)| Began { version, first: vec![(0, offset)] });
        check(&input, &output, &versions, &began, &mut verdict);
        verdict
    }

    #[test]
    fn every_record_belongs_to_the_version_that_begins_at_or_before_it() {
        assert!(judge([1, 1, 2, 2]).is_good());
        for wrong in [[1, 2, 2, 2], [1, 1, 1, 2], [1, 1, 2, 1], [1, 1, 2, 3]] {
            let verdict = judge(wrong);
            assert_eq!(verdict.violations.len(), 1, "{wrong:?}: {:?}", verdict.violations);
            assert_eq!(verdict.violations[0].rule, "W10");
        }
        let idle = judge([1, 1, 1, 1]);
        assert_eq!((idle.violations.len(), idle.invalid.len()), (2, 1), "the second handled nothing");
    }

    #[test]
    fn an_output_without_a_version_is_a_violation() {
        let mut verdict = Verdict::default();
        assert!(split(vec![row(0, "k"), row(1, "k,x")], &mut verdict).0.is_empty());
        assert_eq!(verdict.violations.len(), 2);
    }
}

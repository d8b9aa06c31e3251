//! W3: the output of a stateless map is its input, partition by partition, in order, and no more.

use anyhow::Result;

use super::Verdict;
use crate::evidence::{Evidence, Row};

pub fn check(evidence: &Evidence, input: &[Row], verdict: &mut Verdict) -> Result<()> {
    let output = evidence.topic("copy-out", true)?;
    let mut wrong = Vec::new();
    let partitions = input.iter().chain(&output).map(|row| row.partition).max().map_or(0, |last| last + 1);
    for partition in 0..partitions {
        let of = |rows: &[Row]| -> Vec<String> {
            let rows = rows.iter().filter(|row| row.partition == partition);
            rows.map(|row| format!("{}={}", row.key_text(), row.value_text())).collect()
        };
        let (expected, found) = (of(input), of(&output));
        let differs = (0..expected.len().max(found.len())).find(|&at| expected.get(at) != found.get(at));
        if let Some(at) = differs {
            let show = |rows: &[String]| rows.get(at).map_or("nothing".to_owned(), String::clone);
            wrong.push(format!(
                "copy-out/{partition}, record {at} of {} ({} found): expected {}, found {}",
                expected.len(),
                found.len(),
                show(&expected),
                show(&found)
            ));
        }
    }
    verdict.violations("W3", wrong);
    Ok(())
}

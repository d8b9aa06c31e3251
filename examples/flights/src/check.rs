//! Compares what the node found with what `flights-expected` computes from the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::statistics::Statistics;

/// Every group by the key it has in the store, from the separate program beside this one.
pub fn expected(program: &Path, flights: &Path) -> Result<BTreeMap<String, Statistics>> {
    let output =
        Command::new(program).arg(flights).output().with_context(|| program.display().to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.lines().map(group).collect()
}

fn group(line: &str) -> Result<(String, Statistics)> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [carrier, date, count, missing, sum, min, max, mean] = fields[..] else {
        anyhow::bail!("not eight fields: {line}");
    };
    let optional = |text: &str| text.parse::<f64>().ok();
    let statistics = Statistics {
        count: count.parse()?,
        missing: missing.parse()?,
        sum: sum.parse()?,
        min: optional(min),
        max: optional(max),
        mean: optional(mean),
    };
    let key =
        if date.is_empty() { carrier.to_owned() } else { format!("{carrier}/{}", date.replace('-', "/")) };
    Ok((key, statistics))
}

/// Names every group that is missing, wrong or too much; at most ten of them.
pub fn compare(
    found: &BTreeMap<String, Statistics>,
    expected: &BTreeMap<String, Statistics>,
) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (key, expected) in expected {
        match found.get(key) {
            None => wrong.push(format!("{key}: missing")),
            Some(found) if !found.agrees_with(expected) => {
                wrong.push(format!("{key}: found {found:?}, expected {expected:?}"));
            }
            Some(_) => {}
        }
    }
    let unknown = found.keys().filter(|key| !expected.contains_key(*key));
    wrong.extend(unknown.map(|key| format!("{key}: not in the file")));
    if wrong.is_empty() {
        return Ok(());
    }
    let more = wrong.len().saturating_sub(10);
    wrong.truncate(10);
    Err(format!("{}\nand {more} more", wrong.join("\n")))
}

//! The ratios of a result file of which something is asked, with the machines and commands, as the README shows them:
//! `tidemill-bench table`. Figures by themselves are [`absolute`]'s. Both, and the list of charts, are put into their
//! documents by `--write`, and the charts drawn, so that nobody copies figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::absolute;
use crate::charts;
use crate::report::full_name;
use crate::rounds::Spread;

#[derive(Args)]
pub struct Arguments {
    #[arg(long, default_value = "bench/results/latest.json")]
    results: PathBuf,
    /// Instead of ratios the figures by themselves, as docs/performance.md shows them
    #[arg(long)]
    absolute: bool,
    /// Instead of both the list of charts, as docs/performance.md shows them
    #[arg(long, conflicts_with = "absolute")]
    charts: bool,
    /// Draws every chart anew, and puts all into README.md and docs/performance.md of the working directory, in the
    /// place of what they print
    #[arg(long)]
    write: bool,
}

/// A document, and the command whose output stands in it.
const DOCUMENTS: [(&str, &str); 3] = [
    ("README.md", "tidemill-bench table"),
    ("docs/performance.md", "tidemill-bench table --absolute"),
    ("docs/performance.md", "tidemill-bench table --charts"),
];
/// Of the working directory.
const CHARTS: &str = "docs/charts";

pub fn run(arguments: &Arguments) -> Result<()> {
    let path = &arguments.results;
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    let results: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let no_result = || format!("{} is no result", path.display());
    let ratios = table(&results).with_context(no_result)?;
    let figures = absolute::tables(&results).with_context(no_result)?;
    if !arguments.write {
        let output = match (arguments.charts, arguments.absolute) {
            (true, _) => charts::links(Path::new(CHARTS)).context(CHARTS)?,
            (false, true) => figures,
            (false, false) => ratios,
        };
        println!("{output}");
        return Ok(());
    }
    charts::draw(&results, Path::new(CHARTS)).context(CHARTS)?;
    let links = charts::links(Path::new(CHARTS)).context(CHARTS)?;
    for ((document, command), output) in DOCUMENTS.into_iter().zip([ratios, figures, links]) {
        let text = fs::read_to_string(document).context(document)?;
        let no_place = || format!("{document} has no place for what `{command}` prints");
        fs::write(document, put(&text, command, &output).with_context(no_place)?).context(document)?;
    }
    Ok(())
}

/// A document with another output of a command, which stands between two comments; `None` if they are not there.
fn put(document: &str, command: &str, output: &str) -> Option<String> {
    let begin = format!("<!-- {command} -->\n");
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once("<!-- end -->\n")?;
    Some(format!("{before}{begin}\n{output}\n\n<!-- end -->\n{after}"))
}

/// `None` of what is no result.
fn table(results: &Value) -> Option<String> {
    let asked = results["ratios"].as_array()?.iter().filter(|ratio| ratio["bar"].is_string());
    let mut ratios: Vec<&Value> = asked.collect();
    ratios.sort_by(|one, other| one["workload"].as_str().cmp(&other["workload"].as_str()));
    let head = ["| what | bar | stretch | median (min..max) | rounds |", "|---|---|---|---|---|"];
    let mut lines: Vec<String> = head.map(str::to_owned).into();
    for ratio in &ratios {
        lines.push(row(ratio)?);
    }
    lines.push(String::new());
    let is_shown = |workload: &str| ratios.iter().any(|ratio| ratio["workload"] == workload);
    let mut workloads: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (workload, measured) in results["measured"].as_object()? {
        if is_shown(workload) {
            workloads.entry(origin(measured)?).or_default().push(workload);
        }
    }
    lines.extend(workloads.iter().map(|(origin, names)| format!("- {}: {origin}", names.join(", "))));
    Some(lines.join("\n"))
}

/// Bold if it misses its bar.
fn row(ratio: &Value) -> Option<String> {
    let text = |name: &str| ratio[name].as_str();
    let number = |name: &str| ratio[name].as_f64();
    let spread = Spread { median: number("median")?, min: number("min")?, max: number("max")? }.to_string();
    let (median, range) = spread.split_once(' ')?;
    let median = if ratio["met"].as_bool()? { median.to_owned() } else { format!("**{median}**") };
    let (workload, name, metric, bar) = (text("workload")?, text("name")?, text("metric")?, text("bar")?);
    // A file of before names were full has them by themselves.
    let name = full_name(workload, name, metric);
    // The noise is what it is.
    let stretch = if bar.starts_with("noise") { None } else { number("stretch") };
    let stretch = stretch.map(|stretch| stretch.to_string()).unwrap_or_default();
    Some(format!("| {name} | {bar} | {stretch} | {median} {range} | {} |", ratio["rounds"].as_u64()?))
}

/// The machine, the versions, and the command that measures it again.
fn origin(measured: &Value) -> Option<String> {
    let machine = &measured["machine"];
    let text = |name: &str| machine[name].as_str();
    // Results of before these were kept have none.
    let librdkafka = text("librdkafka").map(|version| format!(", librdkafka {version}")).unwrap_or_default();
    let commit = text("commit").map(|commit| format!(", tidemill at {commit}")).unwrap_or_default();
    Some(format!(
        "{} cores of {}, {} GiB, Linux {}, Apache Kafka {}{librdkafka}, {}{commit}, `{}`",
        machine["cores"].as_u64()?,
        text("cpu")?,
        machine["memory_gib"].as_f64()?,
        text("kernel")?,
        text("kafka")?,
        text("java")?.replace('"', ""),
        measured["command"].as_str()?,
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_document_has_a_place_for_its_table() {
        for (document, command) in DOCUMENTS {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
            let text = fs::read_to_string(path).expect(document);
            let once = put(&text, command, "| a |").expect(document);
            assert!(once.contains(&format!("<!-- {command} -->\n\n| a |\n\n<!-- end -->\n")), "{once}");
            assert_eq!(put(&once, command, "| a |"), Some(once));
        }
    }

    #[test]
    fn a_ratio_that_misses_its_bar_is_bold_and_one_of_which_nothing_is_asked_is_left_out() {
        let ratio = |workload: &str, bar: Option<&str>, met: bool| {
            json!({
                "workload": workload, "name": "a / b, p50", "metric": "p50", "bar": bar, "stretch": 1.15,
                "median": 1.5, "min": 1.0, "max": 2.0, "rounds": 5, "met": met,
            })
        };
        let machine = json!({
            "cpu": "X", "cores": 2, "memory_gib": 23.5, "kernel": "6.1", "java": "17", "kafka": "4.3.1",
            "librdkafka": "2.12.1", "commit": "abc",
        });
        let mut full = ratio("c", Some("at least 1"), true);
        full["name"] = "c: a / b, p50".into();
        let results = json!({
            "ratios": [
                full,
                ratio("z", Some("at most 1.35"), false),
                ratio("b", Some("noise bar 13 %"), true),
                ratio("d", None, true),
            ],
            "measured": {
                "b": { "machine": machine, "command": "make bench" },
                "c": { "machine": machine, "command": "make bench" },
                "d": { "machine": machine, "command": "make bench" },
                "z": { "machine": machine, "command": "make bench" },
            },
        });
        let table = table(&results).expect("a result");
        let lines: Vec<&str> = table.lines().skip(2).collect();
        let wanted = [
            "| b: a / b, p50 | noise bar 13 % |  | 1.50 (1.00..2.00) | 5 |",
            "| c: a / b, p50 | at least 1 | 1.15 | 1.50 (1.00..2.00) | 5 |",
            "| z: a / b, p50 | at most 1.35 | 1.15 | **1.50** (1.00..2.00) | 5 |",
            "",
            "- b, c, z: 2 cores of X, 23.5 GiB, Linux 6.1, Apache Kafka 4.3.1, librdkafka 2.12.1, 17, tidemill at abc, `make bench`",
        ];
        assert_eq!(lines, wanted);
        assert_eq!(super::table(&json!({})), None);
    }
}

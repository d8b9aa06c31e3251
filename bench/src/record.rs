//! Figures that another program of the workspace has measured, judged by the table and kept beside those of `make
//! bench`: `make swap` and `make soak` run this.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::machine::Machine;
use crate::report::{FoundReport, Report, judged};
use crate::table::ELSEWHERE;

#[derive(Args)]
pub struct Arguments {
    /// The workload that they are kept as
    workload: String,
    /// What measures them again
    #[arg(long)]
    command: String,
    #[arg(long, value_delimiter = ',', required = true)]
    figures: Vec<f64>,
    /// What was measured beside them and is kept, such as `threads=3.5`
    #[arg(long, value_parser = named)]
    beside: Vec<(String, f64)>,
    #[arg(long, default_value = "bench/results/latest.json")]
    out: PathBuf,
    /// Where the charts of that file go, as SVG
    #[arg(long, default_value = "docs/charts")]
    charts: PathBuf,
}

/// A figure with its name, as an argument.
fn named(text: &str) -> Result<(String, f64)> {
    let (name, figure) = text.split_once('=').context("is to be NAME=FIGURE")?;
    Ok((name.to_owned(), figure.parse().context("is no figure")?))
}

/// True if the bar is met; the figures are kept in any case.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let Arguments { workload, command, figures, beside, out, charts } = arguments;
    let asked = ELSEWHERE.iter().find(|(name, ..)| name == workload);
    let &(workload, figure, ratio) = asked.with_context(|| format!("the table has no {workload}"))?;
    let mut report = Report::new(Machine::look()?, command.clone(), None);
    report.ratios.extend(judged(workload, &ratio, figures.clone()));
    report.found.push(FoundReport {
        workload,
        name: ratio.over,
        runs: figures.iter().map(|&found| BTreeMap::from([(figure, found)])).collect(),
        beside: beside.iter().cloned().collect(),
    });
    let is_met = report.summarize();
    report.write(out, charts)?;
    Ok(is_met)
}

//! Figures that another program of the workspace has measured, judged by the table and kept beside those of `make
//! bench`: `make swap` and `make soak` run this.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::machine::Machine;
use crate::report::{Report, judged};
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
    #[arg(long, default_value = "bench/results/latest.json")]
    out: PathBuf,
}

/// True if the bar is met; the figures are kept in any case.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let Arguments { workload, command, figures, out } = arguments;
    let asked = ELSEWHERE.iter().find(|(name, _)| name == workload);
    let &(workload, ratio) = asked.with_context(|| format!("the table has no {workload}"))?;
    let mut report = Report::new(Machine::look()?, command.clone(), None);
    report.ratios.extend(judged(workload, &ratio, figures.clone()));
    let is_met = report.summarize();
    report.write(out)?;
    Ok(is_met)
}

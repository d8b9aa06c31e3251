//! The budget of a workload: where the CPU time of a record goes, by thread, in rows that sum up to the whole, with the
//! steps that are measured by themselves beneath the thread that takes them.

use crate::steps::Step;
use crate::suite::{Outcome, Shown};
use crate::terms::Kind;
use crate::threads::{ByThread, ROWS};

/// Prints it for each contender whose threads were told apart.
pub fn print(outcome: &Outcome, steps: &[Step]) {
    for shown in &outcome.shown {
        if let Some(mean) = ByThread::mean(shown.runs.iter().filter_map(|figures| figures.threads_ns)) {
            print_one(outcome, shown, &mean, steps);
        }
    }
}

fn print_one(outcome: &Outcome, shown: &Shown, mean: &ByThread, steps: &[Step]) {
    let name = shown.contender.name;
    println!("\n{}, {name}: nanoseconds of CPU time per record, mean of the rounds", outcome.workload.name);
    for (row, (title, [user, kernel])) in ROWS.into_iter().zip(mean.rows).enumerate() {
        if user + kernel == 0.0 {
            continue;
        }
        println!("{title:<40}{:>8.0}   of them {kernel:.0} in the kernel", user + kernel);
        // The loop takes them as well, but otherwise.
        let is_node = matches!(shown.contender.kind, Kind::Tidemill | Kind::AtCommit);
        let is_of = |step: &&Step| step.row == row && is_node;
        let measured = || steps.iter().filter(is_of);
        for step in measured() {
            println!("  {:<38}{:>8.0}", step.name, step.ns);
        }
        if measured().next().is_some() {
            let rest = user + kernel - measured().map(|step| step.ns).sum::<f64>();
            println!("  {:<38}{rest:>8.0}", "not measured by itself");
        }
    }
    println!("{:<40}{:>8.0}", "other threads, ended ones, rounding", mean.others);
    println!("{:<40}{:>8.0}", "in all", mean.whole());
}

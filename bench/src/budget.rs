//! The budget of a workload: where the CPU time of a record goes, by thread, in rows that sum up to the whole, with the
//! steps that are measured by themselves beneath the thread that takes them.

use crate::steps::Step;
use crate::suite::Outcome;
use crate::terms::{Guarantee, Kind};
use crate::threads::{ByThread, ROWS};

/// Prints it for each contender whose threads were told apart.
pub fn print(outcome: &Outcome, steps: &[Step]) {
    for shown in &outcome.shown {
        if let Some(mean) = ByThread::mean(shown.runs.iter().filter_map(|figures| figures.threads_ns)) {
            let is_taken = |step: &&Step| match (shown.contender.kind, shown.contender.guarantee) {
                (Kind::Tidemill, Guarantee::ExactlyOnce) => true,
                // It ends without a transaction.
                (Kind::Tidemill, Guarantee::AtLeastOnce) => step.name != "end",
                // It produces fewer, and so sends fewer in the end.
                (Kind::AtCommit, _) => !["produce", "end"].contains(&step.name),
                // The loop takes them as well, but otherwise.
                (Kind::Loop | Kind::Doing(_) | Kind::Outbox | Kind::Streams(_), _) => false,
            };
            let taken: Vec<Step> = steps.iter().filter(is_taken).copied().collect();
            print_one(&format!("{}, {}", outcome.workload.name, shown.contender.name), &mean, &taken);
        }
    }
    tell_if_uncounted(steps);
}

/// Prints it for one, with the steps that it takes.
pub fn print_one(name: &str, mean: &ByThread, steps: &[Step]) {
    println!("\n{name}: nanoseconds of CPU time per record, mean of the rounds");
    for (row, (title, [user, kernel])) in ROWS.into_iter().zip(mean.rows).enumerate() {
        if user + kernel == 0.0 {
            continue;
        }
        println!("{title:<40}{:>8.0}   of them {kernel:.0} in the kernel", user + kernel);
        let measured = || steps.iter().filter(move |step| step.row == row);
        measured().for_each(print_step);
        if measured().next().is_some() {
            let rest = user + kernel - measured().map(|step| step.ns).sum::<f64>();
            println!("  {:<38}{rest:>8.0}", "not measured by itself");
        }
    }
    println!("{:<40}{:>8.0}", "other threads, ended ones, rounding", mean.others);
    println!("{:<40}{:>8.0}", "in all", mean.whole());
}

/// Prints steps by themselves.
pub fn print_steps(name: &str, steps: &[Step]) {
    println!("\n{name}: steps by themselves, nanoseconds of CPU time per record");
    steps.iter().for_each(print_step);
    tell_if_uncounted(steps);
}

fn tell_if_uncounted(steps: &[Step]) {
    if !steps.is_empty() && steps.iter().all(|step| step.instructions.is_none()) {
        println!("(this machine does not count instructions, or not for us)");
    }
}

fn print_step(step: &Step) {
    let counted = step.instructions.map(|count| format!("   {count:.0} instructions")).unwrap_or_default();
    println!("  {:<38}{:>8.0}{counted}", step.name, step.ns);
}

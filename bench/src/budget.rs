//! The budget of a workload: where the CPU time of a record goes, by thread, with the steps that are measured by themselves
//! beneath the thread that takes them.
//!
//! ```text
//! in all = threads + what is in none of them
//! thread = its steps + what is in no step, which is below 0 if by themselves they take more than the thread does
//! ```
//!
//! Threads come from the process, so that they sum up to the whole. Every figure is a whole number of nanoseconds, and
//! sums are those of what is shown: what rounding leaves is in the last of each sum.

use crate::steps::{BOUNDARY, Step};
use crate::suite::Outcome;
use crate::table::WORKLOADS;
use crate::terms::{Contender, Guarantee, Kind};
use crate::threads::{ByThread, ROWS};

/// What is left of a thread without its steps.
pub const IN_NO_STEP: &str = "in no step";
/// The same where steps by themselves take more than the thread that has them in it.
pub const EXCESS: &str = "less: steps by themselves take more";
pub const OTHERS: &str = "other threads, ended ones, rounding";
pub const WHOLE: &str = "in all";
const SUM: &str = "their sum";

/// A step, measured just now or read from a result file.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    pub name: &'a str,
    /// Of [`ROWS`].
    pub row: usize,
    pub ns: f64,
}

impl From<&Step> for Part<'static> {
    fn from(step: &Step) -> Part<'static> {
        Part { name: step.name, row: step.row, ns: step.ns }
    }
}

/// A line of a budget, in nanoseconds per record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Of [`ROWS`], or beyond them of no thread.
    pub row: usize,
    pub name: &'a str,
    /// It is a part of the thread above.
    pub is_beneath: bool,
    pub ns: i64,
    /// What of a thread's was in the kernel.
    pub kernel_ns: Option<i64>,
}

impl<'a> Line<'a> {
    fn thread(row: usize, ns: i64, kernel_ns: Option<i64>) -> Line<'a> {
        Line { row, name: ROWS[row], is_beneath: false, ns, kernel_ns }
    }

    fn beneath(row: usize, name: &'a str, ns: i64) -> Line<'a> {
        Line { row, name, is_beneath: true, ns, kernel_ns: None }
    }

    fn of_no_thread(name: &'a str, ns: i64) -> Line<'a> {
        Line { row: ROWS.len(), name, is_beneath: false, ns, kernel_ns: None }
    }
}

/// Every thread that used anything, beneath it its steps and what is left of it, and the whole.
pub fn lines<'a>(mean: &ByThread, steps: &[Part<'a>]) -> Vec<Line<'a>> {
    let whole = rounded(mean.whole());
    let (mut lines, mut others) = (Vec::new(), whole);
    for (row, [user, kernel]) in mean.rows.into_iter().enumerate() {
        if user + kernel == 0.0 {
            continue;
        }
        let ns = rounded(user + kernel);
        others -= ns;
        lines.push(Line::thread(row, ns, Some(rounded(kernel))));
        let taken = beneath(row, steps);
        if !taken.is_empty() {
            let rest = ns - sum(&taken);
            lines.extend(taken);
            lines.push(Line::beneath(row, if rest < 0 { EXCESS } else { IN_NO_STEP }, rest));
        }
    }
    lines.extend([Line::of_no_thread(OTHERS, others), Line::of_no_thread(WHOLE, whole)]);
    lines
}

/// Steps by themselves beneath the sum of those of their thread, and the sum of all.
fn sums<'a>(steps: &[Part<'a>]) -> Vec<Line<'a>> {
    let (mut lines, mut whole) = (Vec::new(), 0);
    for row in 0..ROWS.len() {
        let taken = beneath(row, steps);
        if !taken.is_empty() {
            whole += sum(&taken);
            lines.push(Line::thread(row, sum(&taken), None));
            lines.extend(taken);
        }
    }
    lines.push(Line::of_no_thread(SUM, whole));
    lines
}

/// The steps of a thread.
fn beneath<'a>(row: usize, steps: &[Part<'a>]) -> Vec<Line<'a>> {
    let of_it = steps.iter().filter(|step| step.row == row);
    of_it.map(|step| Line::beneath(row, step.name, rounded(step.ns))).collect()
}

fn sum(lines: &[Line<'_>]) -> i64 {
    lines.iter().map(|line| line.ns).sum()
}

fn rounded(ns: f64) -> i64 {
    ns.round() as i64
}

/// Whether the contender of that name takes a step in that workload.
pub fn takes(workload: &str, contender: &str, step: &str) -> bool {
    let contenders = WORKLOADS.iter().filter(|known| known.name == workload);
    let mut named = contenders.flat_map(|known| known.contenders).filter(|known| known.name == contender);
    named.any(|contender| is_taken(contender, step))
}

fn is_taken(contender: &Contender, step: &str) -> bool {
    match (contender.kind, contender.guarantee) {
        (Kind::Tidemill, Guarantee::ExactlyOnce) => true,
        // It has nothing between it and the node.
        (Kind::NativeHandler, _) => step != BOUNDARY.0,
        // It ends without a transaction.
        (Kind::Tidemill, Guarantee::AtLeastOnce) => step != "end",
        // It produces fewer, and so sends fewer in the end.
        (Kind::AtCommit, _) => !["produce", "end"].contains(&step),
        // The loop takes them as well, but otherwise.
        (Kind::Loop | Kind::Doing(_) | Kind::Outbox | Kind::Streams(_), _) => false,
    }
}

/// Prints it for each contender whose threads were told apart.
pub fn print(outcome: &Outcome, steps: &[Step]) {
    for shown in &outcome.shown {
        if let Some(mean) = ByThread::mean(shown.runs.iter().filter_map(|figures| figures.threads_ns)) {
            let taken: Vec<Step> =
                steps.iter().filter(|step| is_taken(&shown.contender, step.name)).copied().collect();
            print_one(&format!("{}, {}", outcome.workload.name, shown.contender.name), &mean, &taken);
        }
    }
    tell_if_uncounted(steps);
}

/// Prints it for one, with the steps that it takes.
pub fn print_one(name: &str, mean: &ByThread, steps: &[Step]) {
    println!("\n{name}: nanoseconds of CPU time per record, mean of the rounds");
    let parts: Vec<Part<'_>> = steps.iter().map(Part::from).collect();
    lines(mean, &parts).iter().for_each(|line| print_line(line, steps));
}

/// Prints steps by themselves, with their sums.
pub fn print_steps(name: &str, steps: &[Step]) {
    println!("\n{name}: steps by themselves, nanoseconds of CPU time per record");
    let parts: Vec<Part<'_>> = steps.iter().map(Part::from).collect();
    sums(&parts).iter().for_each(|line| print_line(line, steps));
    tell_if_uncounted(steps);
}

fn tell_if_uncounted(steps: &[Step]) {
    if !steps.is_empty() && steps.iter().all(|step| step.instructions.is_none()) {
        println!("(this machine does not count instructions, or not for us)");
    }
}

fn print_line(line: &Line<'_>, steps: &[Step]) {
    let indent = if line.is_beneath { "  " } else { "" };
    let kernel = line.kernel_ns.map(|ns| format!("   of them {ns} in the kernel"));
    let step = steps.iter().find(|step| line.is_beneath && step.name == line.name);
    let counted = step.and_then(|step| step.instructions).map(|count| format!("   {count:.0} instructions"));
    let name = format!("{indent}{}", line.name);
    println!("{name:<40}{:>8}{}", line.ns, kernel.or(counted).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::{COMMIT, WORKER};

    fn mean(worker: [f64; 2], commit: [f64; 2], others: f64) -> ByThread {
        let mut mean = ByThread { others, ..ByThread::default() };
        (mean.rows[WORKER], mean.rows[COMMIT]) = (worker, commit);
        mean
    }

    fn part(name: &str, row: usize, ns: f64) -> Part<'_> {
        Part { name, row, ns }
    }

    fn shown<'a>(lines: &[Line<'a>]) -> Vec<(&'a str, i64)> {
        lines.iter().map(|line| (line.name, line.ns)).collect()
    }

    #[test]
    fn threads_sum_up_to_the_whole_and_steps_to_their_thread_in_the_figures_that_are_shown() {
        // Rounded one by one, threads and others would be 1 above the whole, and the worker's steps and rest 1 above it.
        let mean = mean([130.6, 8.0], [142.6, 0.0], 0.7);
        let steps = [
            part("take", WORKER, 60.5),
            part("produce", COMMIT, 100.0),
            part("handle", WORKER, 66.5),
            part("end", COMMIT, 65.6),
        ];
        let lines = lines(&mean, &steps);
        let wanted = [
            ("worker", 139),
            ("take", 61),
            ("handle", 67),
            (IN_NO_STEP, 11),
            ("commit", 143),
            ("produce", 100),
            ("end", 66),
            (EXCESS, -23),
            (OTHERS, 0),
            (WHOLE, 282),
        ];
        assert_eq!(shown(&lines), wanted);
        assert_eq!(lines[0].kernel_ns, Some(8));
        for row in [WORKER, COMMIT] {
            let (taken, of_thread): (Vec<_>, Vec<_>) =
                lines.iter().copied().filter(|line| line.row == row).partition(|line| line.is_beneath);
            assert_eq!(sum(&taken), sum(&of_thread), "{row}");
        }
        let (whole, rows) = lines.split_last().expect("lines");
        let rows: Vec<_> = rows.iter().copied().filter(|line| !line.is_beneath).collect();
        assert_eq!(sum(&rows), whole.ns);
    }

    #[test]
    fn a_thread_without_steps_has_nothing_beneath_it_and_one_that_did_nothing_is_left_out() {
        let lines = lines(&mean([0.0, 0.0], [100.0, 20.0], -3.0), &[part("take", WORKER, 60.0)]);
        assert_eq!(shown(&lines), [("commit", 120), (OTHERS, -3), (WHOLE, 117)]);
    }

    #[test]
    fn steps_by_themselves_have_a_sum_by_thread_and_one_of_a_record() {
        let steps = [part("end", COMMIT, 65.5), part("take", WORKER, 60.4), part("handle", WORKER, 66.4)];
        let wanted = [("worker", 126), ("take", 60), ("handle", 66), ("commit", 66), ("end", 66), (SUM, 192)];
        assert_eq!(shown(&sums(&steps)), wanted);
    }

    #[test]
    fn beneath_a_contender_stand_only_steps_that_it_takes() {
        let takes = |contender, step| takes("b1-100", contender, step);
        assert!(takes("tidemill", "end") && takes("tidemill, at least once", "produce"));
        assert!(!takes("tidemill, at least once", "end"), "which has no transaction");
        assert!(!takes("loop", "produce"), "which it does otherwise");
        assert!(!takes("nobody", "produce"));
    }
}

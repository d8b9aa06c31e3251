//! W4, W8, W9 and the question whether the run proves anything at all.

use std::collections::HashMap;

use anyhow::Result;

use super::Verdict;
use crate::evidence::{Ack, Committed, Evidence, Outcome, Run};

/// Enough was done.
pub fn proofs(run: &Run, acks: &[Ack], verdict: &mut Verdict) {
    let of = |outcome| acks.iter().filter(|ack| ack.outcome == outcome).count() as u64;
    let (ok, failed, unknown) = (of(Outcome::Ok), of(Outcome::Failed), of(Outcome::Unknown));
    verdict.notes.push(format!("input: {ok} records ok, {failed} failed, {unknown} unknown"));
    if ok < run.records_min {
        verdict
            .invalid
            .push(format!("{ok} records are acknowledged, at least {} are needed", run.records_min));
    }
}

/// Every fault is proven to have happened, and nothing that nobody asked for.
pub fn happened(run: &Run, verdict: &mut Verdict) {
    for fault in &run.faults {
        if fault.proven < fault.wanted || fault.proven == 0 {
            let (name, proven, wanted) = (&fault.name, fault.proven, fault.wanted);
            verdict.invalid.push(format!("{name} is proven {proven} times of {wanted}"));
        }
    }
    if run.faults.is_empty() {
        verdict.invalid.push("there was no fault".to_owned());
    }
    verdict.violations("W9", run.unexpected.clone());
    if !run.settled {
        verdict.violation("W8", "not everything was handled in time after the last fault");
    }
    let slow = run.stall_ms.iter().filter(|(_, ms)| **ms > run.stall_ms_max);
    let slow = slow.map(|(partition, ms)| format!("partition {partition} stood still for {ms} ms"));
    verdict.violations("W8", slow.collect());
}

/// W4: no transaction is left open, whoever began it.
pub fn ends(evidence: &Evidence, verdict: &mut Verdict) -> Result<()> {
    let ends = evidence.ends()?;
    if ends.is_empty() {
        verdict.invalid.push("nobody looked at the ends of the topics".to_owned());
    }
    let open = ends.iter().filter(|end| end.stable != end.high);
    let open = open
        .map(|end| format!("{}/{} is stable up to {} of {}", end.topic, end.partition, end.stable, end.high));
    verdict.violations("W4", open.collect());
    Ok(())
}

/// W8: every group has passed the end of its input.
pub fn offsets(evidence: &Evidence, run: &Run, verdict: &mut Verdict) -> Result<()> {
    let high: HashMap<(String, i32), i64> =
        evidence.ends()?.into_iter().map(|end| ((end.topic, end.partition), end.high)).collect();
    let offsets = evidence.offsets()?;
    for deployment in of(run, ["chain", "copy"], ["split", "book"]) {
        let seen = offsets.iter().filter(|at| at.deployment == deployment).count();
        if seen as i32 != run.partitions {
            verdict.invalid.push(format!("{seen} offsets of {deployment}, not {}", run.partitions));
        }
    }
    // A partition that never had a record may never have had an offset.
    let end = |at: &Committed| high.get(&(at.topic.clone(), at.partition));
    let behind = offsets.iter().filter(|at| end(at) != Some(&at.offset.max(0)));
    let behind = behind.map(|at| {
        let end = high.get(&(at.topic.clone(), at.partition));
        format!(
            "{} is at {} of {}/{}, which ends at {end:?}",
            at.deployment, at.offset, at.topic, at.partition
        )
    });
    verdict.violations("W8", behind.collect());
    Ok(())
}

/// What is committed is in the log; the difference is what was aborted.
pub fn aborted(evidence: &Evidence, run: &Run, verdict: &mut Verdict) -> Result<()> {
    let mut aborted = 0;
    for topic in of(run, ["chain-out", "copy-out"], ["entries", "ledger"]) {
        let (committed, all) = (evidence.topic(topic, true)?.len(), evidence.topic(topic, false)?.len());
        match all.checked_sub(committed) {
            Some(difference) => aborted += difference,
            None => {
                verdict.invalid.push(format!("{topic} shows {committed} committed records and {all} in all"))
            }
        }
    }
    verdict.notes.push(format!("{aborted} emissions were aborted"));
    Ok(())
}

/// Names that belong to the workloads that ran.
fn of(run: &Run, chain: [&'static str; 2], bank: [&'static str; 2]) -> Vec<&'static str> {
    let (chain, bank) = (run.chain.then_some(chain), run.bank.then_some(bank));
    chain.into_iter().chain(bank).flatten().collect()
}

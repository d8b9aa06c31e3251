//! The checker: judges what a fault run left behind ([`crate::evidence`]) and knows nothing else.
//!
//! | | workload | what must hold |
//! |---|---|---|
//! | W1 | bank | every transfer has one debit and one credit, each booked once; balances add up |
//! | W2 | chain | per key every record once, in order, and upon the state that it must meet |
//! | W3 | copy | the output is the input, partition by partition |
//! | W4 | hang | read_committed ends where read_uncommitted does |
//! | W5 | state | stores == the changelog's fold == the model, each time they were looked at |
//! | W6 | repeats | exactly one effect of an id within its window, and an inbox that does not grow |
//! | W8 | live | everything was handled in time, and no partition stood still |
//! | W9 | host | no program ended or panicked by itself |
//! | W10 | control | the revision that a partition is handled by never goes back |
//!
//! A run that did too little, or that cannot prove its faults, is invalid, which is no pass.

mod bank;
mod chain;
mod copy;
mod input;
mod live;
mod repeats;
mod state;
mod versions;

use std::fmt;

use anyhow::Result;

use crate::evidence::{Began, Evidence};

/// Violations of one kind that are told in full; the rest is counted.
const TOLD_MAX: usize = 10;

/// What the checker found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    /// Why the run proves nothing.
    pub invalid: Vec<String>,
    /// What was counted, for people.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// W1 to W10.
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.invalid.is_empty()
    }

    /// W9: what nobody asked for.
    pub fn unexpected(&mut self, what: String) {
        self.violation("W9", what);
    }

    fn violation(&mut self, rule: &'static str, what: impl Into<String>) {
        self.violations.push(Violation { rule, what: what.into() });
    }

    /// Adds the violations of one check: the first few in full, the rest as a number.
    fn violations(&mut self, rule: &'static str, found: Vec<String>) {
        let more = found.len().saturating_sub(TOLD_MAX);
        for what in found.into_iter().take(TOLD_MAX) {
            self.violation(rule, what);
        }
        if more > 0 {
            self.violation(rule, format!("and {more} more"));
        }
    }
}

/// Judges one run. Evidence that cannot be read is an error, not a verdict.
pub fn check(evidence: &Evidence) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let run = evidence.run()?;
    let acks = evidence.acks()?;
    live::happened(&run, &mut verdict);
    if let Some(ttl_ms) = run.inbox_ttl_ms {
        live::ends(evidence, &mut verdict)?;
        live::offsets(evidence, &run, &mut verdict)?;
        repeats::check(evidence.directory(), &run, ttl_ms, &mut verdict)?;
        return Ok(verdict);
    }
    live::proofs(&run, &acks, &mut verdict);
    live::ends(evidence, &mut verdict)?;
    live::offsets(evidence, &run, &mut verdict)?;
    live::aborted(evidence, &run, &mut verdict)?;
    if run.chain {
        let records = input::of(evidence, "chain-in", &acks, &mut verdict)?;
        let heads = chain::check(evidence, &records, &mut verdict)?;
        copy::check(evidence, &records, &mut verdict)?;
        state::check(evidence, "chain", "heads", &heads, &mut verdict)?;
    }
    if run.bank {
        let transfers = input::of(evidence, "transfers", &acks, &mut verdict)?;
        let balances = bank::check(evidence, &transfers, &mut verdict)?;
        state::check(evidence, "book", "balances", &balances, &mut verdict)?;
    }
    Ok(verdict)
}

/// Judges a run in which versions of the chain followed each other under load: W2, W4 and W10.
pub fn check_swaps(evidence: &Evidence, began: &[Began]) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let acks = evidence.acks()?;
    live::ends(evidence, &mut verdict)?;
    let input = input::of(evidence, "chain-in", &acks, &mut verdict)?;
    let (output, versions) = versions::split(evidence.topic("chain-out", true)?, &mut verdict);
    chain::check_rows(&input, &output, &mut verdict);
    versions::check(&input, &output, &versions, began, &mut verdict);
    Ok(verdict)
}

#[cfg(test)]
mod tests;

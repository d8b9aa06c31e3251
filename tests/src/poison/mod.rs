//! Poison: what fails is tried again, parked, buried and given back, and everything else does not notice.
//!
//! | file | what |
//! |---|---|
//! | [`feed`] | records of many keys at a rate, some of them planted to fail |
//! | [`read`] | what comes out, and when |
//! | [`stage`] | a broker, nodes, the deployment, what the nodes tell of it |
//! | [`scenes`] | failures under load beside a clean run; a redrive that is interrupted |
//! | [`parked`] | a park through kills, moves and lost disks, and one that is full |
//! | [`judge`] | what must hold at the end |
//!
//! The handler (`tests/guests/poison`) counts the records of each key, so that a loss, a repetition or a wrong
//! order of what failed shows in the counts.

pub mod feed;
pub mod judge;
pub mod parked;
pub mod read;
pub mod scenes;
pub mod stage;

use std::fmt;

use crate::cluster::Cluster;
use crate::play::Findings;
use crate::rig::fleet::build_module;

/// The shortest form of `make poison`: letters of a handler that fails, given back to one that does not.
pub fn every_letter_comes_back_once() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_module("poison", "tests/guests/poison", modules.path());
    let found = scenes::failures(Cluster::embedded(), &scenes::Length::TEST, &module, seed);
    assert!(found.is_good(), "{found:#?}");
}

/// What a run has found.
#[derive(Debug, Default)]
pub struct Summary {
    pub records: u64,
    /// Dead letters that were written and given back.
    pub letters: u64,
    /// Of the keys that nothing fails of, in milliseconds: while others fail, and while none do.
    pub p99_ms: Option<(f64, f64)>,
    pub violations: Vec<String>,
    pub notes: Vec<String>,
}

impl Findings for Summary {
    fn of_early_end(scene: &str) -> Summary {
        Summary { violations: vec![format!("{scene}: it ended early")], ..Summary::default() }
    }

    fn add(&mut self, other: Summary) {
        self.records += other.records;
        self.letters += other.letters;
        self.p99_ms = self.p99_ms.or(other.p99_ms);
        self.violations.extend(other.violations);
        self.notes.extend(other.notes);
    }

    fn is_good(&self) -> bool {
        self.violations.is_empty()
    }

    fn lines(&self) -> Vec<String> {
        let violations = self.violations.iter().map(|line| format!("violation {line}"));
        self.notes.iter().cloned().chain(violations).collect()
    }
}

impl Summary {
    /// A violation unless it holds.
    pub fn hold(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(otherwise());
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records, {} letters, ", self.records, self.letters)?;
        if let Some((poison, clean)) = self.p99_ms {
            write!(f, "p99 {poison:.0} ms beside {clean:.0} ms, ")?;
        }
        write!(f, "{} violations", self.violations.len())
    }
}

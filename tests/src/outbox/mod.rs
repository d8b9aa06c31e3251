//! W7: what was committed for the outside is delivered, whatever the receivers and the nodes do (F43).
//!
//! | file | what |
//! |---|---|
//! | [`receiver`] | what a scene delivers to: started, told to misbehave, asked for what has arrived |
//! | [`webhook`], [`queue`], [`mirror`] | its kinds: HTTP, RabbitMQ, another Kafka cluster; [`rabbit`] is a real RabbitMQ |
//! | [`stage`] | a broker, nodes, the deployment, a feed at a rate, what `/metrics` has shown |
//! | [`scenes`] | receivers that misbehave, nodes that are killed at each step, tasks that move, a planted bug |
//! | [`chapters`] | what has arrived in which life of a node, and what may come twice in it |
//! | [`judge`] | what must hold at the end, from the topics and from what has arrived |
//!
//! The handler (`tests/guests/courier`) links each record of a key to the one before it and sends the link both to
//! a topic and out of Kafka, so a loss, a repetition or a wrong order shows.

pub mod chapters;
pub mod judge;
pub mod mirror;
pub mod queue;
pub mod rabbit;
pub mod receiver;
pub mod scenes;
pub mod stage;
pub mod webhook;

use std::fmt;

use crate::play::Findings;

/// What a run has found.
#[derive(Debug, Default)]
pub struct Summary {
    /// Rows that were committed.
    pub rows: u64,
    /// Deliveries that were applied, repetitions included.
    pub deliveries: u64,
    pub violations: Vec<String>,
    /// Why the run proves less than it should.
    pub invalid: Vec<String>,
    pub notes: Vec<String>,
}

impl Summary {
    /// Of a scene that cannot be played here; `why` names what is missing.
    pub fn left_out(scene: &str, why: &str, may_be: bool) -> Summary {
        let what = format!("{scene} is left out: {why}");
        match may_be {
            true => Summary { notes: vec![what], ..Summary::default() },
            false => Summary { invalid: vec![format!("INVALID {what}")], ..Summary::default() },
        }
    }
}

impl Findings for Summary {
    fn of_early_end(scene: &str) -> Summary {
        // It proves nothing then.
        Summary { invalid: vec![format!("INVALID {scene}: it ended early")], ..Summary::default() }
    }

    fn add(&mut self, other: Summary) {
        self.rows += other.rows;
        self.deliveries += other.deliveries;
        self.violations.extend(other.violations);
        self.invalid.extend(other.invalid);
        self.notes.extend(other.notes);
    }

    fn is_good(&self) -> bool {
        self.violations.is_empty() && self.invalid.is_empty()
    }

    fn lines(&self) -> Vec<String> {
        let violations = self.violations.iter().map(|line| format!("violation {line}"));
        self.notes.iter().chain(&self.invalid).cloned().chain(violations).collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} deliveries, {} violations", self.rows, self.deliveries, self.violations.len())
    }
}

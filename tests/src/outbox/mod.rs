//! W7: what was committed for the outside is delivered, whatever the receivers and the nodes do (F43).
//!
//! | file | what |
//! |---|---|
//! | [`stage`] | a broker, a node, the deployment, a feed at a rate, what `/metrics` has shown |
//! | [`scenes`] | receivers that misbehave, nodes that are killed at each step, tasks that move, a planted bug |
//! | [`others`], [`rabbit`] | the same for RabbitMQ and another Kafka cluster; a real RabbitMQ |
//! | [`judge`] | what must hold at the end, from the topics and the receiver's own log |
//!
//! The handler (`tests/guests/courier`) links each record of a key to the one before it and sends the link both to
//! a topic and out of Kafka, so a loss, a repetition or a wrong order shows.

pub mod judge;
pub mod others;
pub mod rabbit;
pub mod scenes;
pub mod stage;

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

//! What a node allows its deployments: caps on their `limits:`, from `policy:` in the node's file.
//!
//! A document that asks for more is refused, with both numbers. One that does not say gets the default,
//! or the cap if that is lower.

use std::time::Duration;

use super::deployment::Limits;
use super::problem::Problem;
use super::units::{show_bytes, show_duration};

/// A cap for each limit; none = the node does not care.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    pub memory_bytes: Option<u64>,
    pub batch_time: Option<Duration>,
    pub emit_bytes: Option<u64>,
    pub emit_records: Option<u64>,
    pub table_elements: Option<u64>,
    pub batch_records: Option<u64>,
    pub store_bytes: Option<u64>,
    pub log_lines: Option<u64>,
}

impl Policy {
    /// Limits that are nobody's wish, lowered to what the node allows.
    pub fn cap(&self, limits: Limits) -> Limits {
        let count = |limit: u32, cap: Option<u64>| lower(limit.into(), cap) as u32;
        Limits {
            memory_bytes: lower(limits.memory_bytes, self.memory_bytes),
            batch_time: lower(limits.batch_time, self.batch_time),
            emit_bytes: lower(limits.emit_bytes, self.emit_bytes),
            emit_records: count(limits.emit_records, self.emit_records),
            table_elements: count(limits.table_elements, self.table_elements),
            batch_records: count(limits.batch_records, self.batch_records),
            store_bytes: match limits.store_bytes {
                Some(limit) => Some(lower(limit, self.store_bytes)),
                None => self.store_bytes,
            },
            log_lines: count(limits.log_lines, self.log_lines),
        }
    }

    /// Every limit that is above its cap.
    pub fn exceeded(&self, limits: &Limits) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut compare = |name: &str, limit: String, cap: Option<String>, is_above: bool| {
            let Some(cap) = cap.filter(|_| is_above) else { return };
            let message = format!(
                "{limit} is above what this node allows (policy.{name}: {cap}); lower it, or have the policy of every node raised"
            );
            problems.push(Problem::at(format!("limits.{name}"), message));
        };
        let bytes = [
            ("memory", Some(limits.memory_bytes), self.memory_bytes),
            ("emit_bytes", Some(limits.emit_bytes), self.emit_bytes),
            ("store_bytes", limits.store_bytes, self.store_bytes),
        ];
        for (name, limit, cap) in bytes {
            let shown = limit.map_or("no bound".to_owned(), show_bytes);
            compare(name, shown, cap.map(show_bytes), is_above(limit, cap));
        }
        let counts = [
            ("emit_records", limits.emit_records, self.emit_records),
            ("table_elements", limits.table_elements, self.table_elements),
            ("batch_records", limits.batch_records, self.batch_records),
            ("log_lines", limits.log_lines, self.log_lines),
        ];
        for (name, limit, cap) in counts {
            let is_above = is_above(Some(limit.into()), cap);
            compare(name, limit.to_string(), cap.map(|cap| cap.to_string()), is_above);
        }
        let is_above = self.batch_time.is_some_and(|cap| limits.batch_time > cap);
        compare("batch_time", show_duration(limits.batch_time), self.batch_time.map(show_duration), is_above);
        problems
    }
}

fn lower<T: Ord>(limit: T, cap: Option<T>) -> T {
    match cap {
        Some(cap) => limit.min(cap),
        None => limit,
    }
}

/// Without a limit everything is above.
fn is_above(limit: Option<u64>, cap: Option<u64>) -> bool {
    cap.is_some_and(|cap| limit.is_none_or(|limit| limit > cap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_refused_above_the_cap_and_what_is_not_is_lowered_to_it() {
        let policy = Policy {
            memory_bytes: Some(32 << 20),
            batch_time: Some(Duration::from_secs(1)),
            log_lines: Some(10),
            store_bytes: Some(1 << 30),
            ..Policy::default()
        };
        let standard = policy.cap(Limits::default());
        assert_eq!((standard.memory_bytes, standard.store_bytes), (32 << 20, Some(1 << 30)));
        assert_eq!(standard.emit_bytes, Limits::default().emit_bytes, "nothing is said of it");
        assert_eq!(policy.exceeded(&standard), []);
        let said = policy.exceeded(&Limits::default());
        let said: Vec<String> = said.iter().map(Problem::to_string).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(
            said[0].starts_with("limits.memory: 64MiB is above") && said[0].contains("policy.memory: 32MiB")
        );
        assert!(said[1].starts_with("limits.store_bytes: no bound"), "{said:?}");
    }
}

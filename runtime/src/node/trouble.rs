//! Why a revision of a deployment does not run on this node, for whoever asks.

use std::sync::Arc;

/// Deployments that one reason names; of the others it says how many they are.
const NAMES_MAX: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// It is no other revision's.
    pub revision: u64,
    reason: String,
    /// Other deployments, whose starts it is about.
    others: Arc<[String]>,
}

impl Trouble {
    pub fn new(revision: u64, reason: impl Into<String>) -> Trouble {
        Trouble { revision, reason: reason.into(), others: Arc::default() }
    }

    /// A reason that is about starts of others.
    pub fn with_others(revision: u64, reason: impl Into<String>, others: Arc<[String]>) -> Trouble {
        Trouble { others, ..Trouble::new(revision, reason) }
    }

    /// In words, for somebody who may know of some deployments: others are not named.
    pub fn told(&self, may_know: impl Fn(&str) -> bool) -> String {
        let known = self.others.iter().map(String::as_str).filter(|name| may_know(name));
        let named: Vec<&str> = known.take(NAMES_MAX).collect();
        let more = self.others.len() - named.len();
        match (named.join(", "), more) {
            (names, _) if names.is_empty() => self.reason.clone(),
            (names, 0) => format!("{} (of {names})", self.reason),
            (names, more) => format!("{} (of {names} and {more} more)", self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_named_to_who_may_know_of_them_and_only_some_of_many() {
        fn told(count: u32, may_know: fn(&str) -> bool) -> String {
            let others = (0..count).map(|number| format!("n{number}"));
            Trouble::with_others(3, "no", others.collect()).told(may_know)
        }
        assert_eq!(told(2, |_| true), "no (of n0, n1)");
        assert_eq!(told(2, |name| name == "n1"), "no (of n1 and 1 more)");
        assert_eq!(told(2, |_| false), "no");
        assert_eq!(told(70, |_| true), "no (of n0, n1, n2, n3, n4, n5, n6, n7 and 62 more)");
        assert_eq!(Trouble::new(3, "no").told(|_| true), "no");
    }
}

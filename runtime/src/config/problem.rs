//! What is wrong with a document: every problem at once, each with its line and its key.
//!
//! Not an error type per field: a person mends a document in one pass, so a reader collects
//! problems in [`Report`] and goes on with a default until the document is through.

use std::cell::{Cell, RefCell};
use std::fmt;

/// Problems of one document that are kept; more are counted. A document may have as many as it has bytes.
const PROBLEMS_MAX: usize = 1_000;
/// What of a key's path is kept.
pub(super) const PATH_BYTES_MAX: usize = 1_024;

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// 1-based line of the document; `None` when the problem is not in a file (a flag, a variable)
    /// or concerns the document as a whole.
    pub line: Option<u32>,
    /// Dotted path of the key, or the variable or flag. Empty = the document as a whole.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Of a request as a whole.
impl From<String> for Problem {
    fn from(message: String) -> Problem {
        Problem { line: None, key: String::new(), message }
    }
}

impl From<&str> for Problem {
    fn from(message: &str) -> Problem {
        Problem::from(message.to_owned())
    }
}

impl Problem {
    /// Of one key of a document.
    pub fn at(key: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { line: None, key: key.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All problems of one document, in the order of its lines; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct Problems(pub Vec<Problem>);

/// One problem a line.
pub fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

impl Problems {
    pub fn one(key: &str, message: impl Into<String>) -> Problems {
        Problems(vec![Problem { line: None, key: key.to_owned(), message: message.into() }])
    }
}

/// Collects problems while a document is read.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    /// That are not kept.
    more: Cell<usize>,
}

impl Report {
    pub fn add(&self, line: Option<u32>, key: &str, message: impl Into<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() == PROBLEMS_MAX {
            return self.more.set(self.more.get() + 1);
        }
        let key = key[..key.floor_char_boundary(PATH_BYTES_MAX)].to_owned();
        problems.push(Problem { line, key, message: message.into() });
    }

    /// The value, unless anything was reported.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        let (mut problems, more) = (self.problems.into_inner(), self.more.get());
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => {
                // Stable, so that problems of one line stay in the order they were found.
                problems.sort_by_key(|problem| problem.line.unwrap_or(u32::MAX));
                if more > 0 {
                    problems.push(Problem::from(format!("and {more} more")));
                }
                if problems.is_empty() {
                    return Err(Problems::one("", "the document could not be read"));
                }
                Err(Problems(problems))
            }
        }
    }
}

/// The candidate that `given` is probably a misspelling of; `None` when nothing is close.
pub fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = given.chars().count();
    if letters < 2 {
        return None;
    }
    let allowed = (letters / 3).clamp(1, 4);
    candidates
        .into_iter()
        .map(|candidate| (distance(given, candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap neighbours) that turn one word into the other. Words beyond
/// 200 characters are not compared: they are no misspelling, and the cost is quadratic.
fn distance(a: &str, b: &str) -> usize {
    let fold = |text: &str| -> Vec<char> {
        text.chars().take(201).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
    };
    let (a, b) = (fold(a), fold(b));
    if a.len() > 200 || b.len() > 200 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(above[j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// `did you mean "x"?` or, when nothing is close, the names there are.
pub(super) fn suggestion(given: &str, candidates: &[&str]) -> String {
    match nearest(given, candidates.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known are {}", candidates.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_its_neighbour() {
        let keys = ["topic", "start", "guarantee", "workers"];
        for (given, expected) in [
            ("tpoic", Some("topic")),
            ("Topic", Some("topic")),
            ("garantee", Some("guarantee")),
            ("worker", Some("workers")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, keys), expected, "{given}");
        }
    }

    #[test]
    fn problems_come_in_the_order_of_lines() {
        let report = Report::default();
        report.add(Some(9), "b", "second");
        report.add(None, "--flag", "last");
        report.add(Some(2), "a", "first");
        let problems = report.finish(Some(())).expect_err("three problems");
        assert_eq!(problems.to_string(), "line 2: a: first\nline 9: b: second\n--flag: last");
    }

    #[test]
    fn a_document_that_is_nothing_but_problems_has_the_first_ones_and_a_count() {
        let report = Report::default();
        (0..PROBLEMS_MAX + 7).for_each(|_| report.add(Some(1), &"ä".repeat(PATH_BYTES_MAX), "no"));
        let problems = report.finish(Some(())).expect_err("many").0;
        assert_eq!(problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(problems[0].key.len(), PATH_BYTES_MAX);
        assert_eq!(problems[PROBLEMS_MAX].to_string(), "and 7 more");
    }
}

//! The parts of a record's way from end to end, as a node counts them itself: what it has said in `/metrics` by the end
//! of a run, warm-up included.
//!
//! ```text
//!   due ... written, fetched, handled, waits ... | commit ............... | ... read
//!           |<---------------- what is left of the whole --------------- >|
//! ```

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::node::samples;

/// Of calls of the handler, so many end within what is told of them.
const CALLS: f64 = 0.95;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Segments {
    /// Of the commits that were tried, the share that succeeded.
    pub committed: f64,
    /// Milliseconds that a commit takes on average: what is produced, the end of the transaction, and the stores.
    pub commit_ms: f64,
    /// Milliseconds on average of all that is no commit: writing, fetching, the handler, waiting for a commit to begin,
    /// and reading.
    pub others_ms: f64,
    /// Milliseconds within which nineteen calls of the handler in twenty end; a bound of the metric's buckets.
    pub call_p95_ms: f64,
    /// Of the records that were handed to the handler, the share of which it did not fail; one that fails again counts
    /// again.
    pub handled: f64,
    /// Of the same, the share that went to the dead letters.
    pub dead_letters: f64,
}

impl Segments {
    /// Of what a node says, and of what records have taken on average from end to end.
    pub fn of(scrape: &str, mean_ms: f64) -> Result<Segments> {
        let sum = |name: &str| -> Result<f64> {
            Ok(samples(scrape, name)?.into_iter().map(|(_, value)| value).sum())
        };
        let commits = sum("tidemill_commits_total")?;
        ensure!(commits > 0.0, "nothing was committed");
        let tried = commits + sum("tidemill_commit_failures_total")?;
        let commit_ms =
            sum("tidemill_commit_latency_seconds_sum")? * 1e3 / sum("tidemill_commit_latency_seconds_count")?;
        let calls = within("tidemill_handler_duration_seconds", scrape)?;
        let records = sum("tidemill_records_in_total")?;
        ensure!(records > 0.0, "no record was handed to the handler");
        Ok(Segments {
            committed: commits / tried,
            commit_ms,
            others_ms: mean_ms - commit_ms,
            call_p95_ms: calls.context("the handler was not called")? * 1e3,
            handled: 1.0 - sum("tidemill_records_failed_total")? / records,
            dead_letters: sum("tidemill_dead_letters_total")? / records,
        })
    }
}

/// The least bound of a histogram's buckets that [`CALLS`] of all tasks' stay within; `None` without any.
fn within(histogram: &str, scrape: &str) -> Result<Option<f64>> {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (labels, count) in samples(scrape, &format!("{histogram}_bucket"))? {
        let bound = labels.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'));
        let bound: f64 = bound.context("a bucket without a bound")?.parse()?;
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, all)) => *all += count,
            None => buckets.push((bound, count)),
        }
    }
    // What a bucket counts is all that is below its bound.
    buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    let found = buckets.into_iter().find(|(_, count)| *count > 0.0 && *count >= all * CALLS);
    Ok(found.map(|(bound, _)| bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_is_told_of_all_its_tasks_and_of_what_records_have_waited() {
        let scrape = "\
            # TYPE tidemill_commits counter\n\
            tidemill_commits_total{deployment=\"d\",worker=\"0\"} 998\n\
            tidemill_commit_failures_total{deployment=\"d\",worker=\"0\",outcome=\"refused\"} 1\n\
            tidemill_commit_failures_total{deployment=\"d\",worker=\"0\",outcome=\"unknown\"} 1\n\
            tidemill_commit_latency_seconds_sum{deployment=\"d\",worker=\"0\"} 3.992\n\
            tidemill_commit_latency_seconds_count{deployment=\"d\",worker=\"0\"} 998\n\
            tidemill_handler_duration_seconds_bucket{le=\"0.0005\",deployment=\"d\",partition=\"0\"} 90\n\
            tidemill_handler_duration_seconds_bucket{le=\"0.001\",deployment=\"d\",partition=\"0\"} 95\n\
            tidemill_handler_duration_seconds_bucket{le=\"+Inf\",deployment=\"d\",partition=\"0\"} 100\n\
            tidemill_handler_duration_seconds_bucket{le=\"0.0005\",deployment=\"d\",partition=\"1\"} 80\n\
            tidemill_handler_duration_seconds_bucket{le=\"0.001\",deployment=\"d\",partition=\"1\"} 100\n\
            tidemill_handler_duration_seconds_bucket{le=\"+Inf\",deployment=\"d\",partition=\"1\"} 100\n\
            tidemill_records_in_total{deployment=\"d\",partition=\"0\"} 600\n\
            tidemill_records_in_total{deployment=\"d\",partition=\"1\"} 400\n\
            tidemill_records_failed_total{deployment=\"d\",partition=\"0\",class=\"decode\"} 150\n\
            tidemill_records_failed_total{deployment=\"d\",partition=\"1\",class=\"trap\"} 100\n\
            tidemill_dead_letters_total{deployment=\"d\",partition=\"1\"} 125\n";
        let segments = Segments::of(scrape, 20.0).expect("sound");
        assert_eq!([segments.committed, segments.call_p95_ms], [0.998, 1.0]);
        assert_eq!([segments.handled, segments.dead_letters], [0.75, 0.125]);
        assert!((segments.commit_ms - 4.0).abs() < 1e-9, "{segments:?}");
        assert!((segments.others_ms - 16.0).abs() < 1e-9, "{segments:?}");
        assert!(Segments::of("", 20.0).is_err(), "of a node that has done nothing");
        let without_records = scrape.replace("tidemill_records_in_total", "another_total");
        assert!(Segments::of(&without_records, 20.0).is_err(), "of a node that has handled nothing");
    }
}

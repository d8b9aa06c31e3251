//! The audit log of calls: one line ([`crate::telemetry::audit`]) for each that changes something, and for each one
//! that is refused.

use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use tonic::{Code, Status};

use super::details::is_unknown;

use crate::telemetry::audit::Line;

/// A call that does not get to its service.
pub fn refused(line: &Line, status: &Status) {
    line.write(0, &name(status), status.message());
}

/// `PermissionDenied`: a status as the log has it, where `Unknown` is what may have happened or not. Its caller hears
/// UNAVAILABLE, as of what was not done.
pub(super) fn name(status: &Status) -> String {
    let code = if is_unknown(status) { Code::Unknown } else { status.code() };
    format!("{code:?}")
}

/// A change under way, in the hands of the guard and, beside the request, of its service. Whoever knows first what has
/// come of it says so. Dropped by all of them before, the node has ended.
#[derive(Clone)]
pub struct Pending(Arc<Open>);

struct Open(Mutex<Option<Line>>);

impl Pending {
    pub fn new(line: Line) -> Pending {
        Pending(Arc::new(Open(Mutex::new(Some(line)))))
    }

    /// What has come of it: the revision that the registry has given it (0 = none), or why it was not done. Whatever else
    /// its caller waits for changes nothing about that.
    pub fn ended(&self, outcome: Result<u64, &Status>) {
        let Some(line) = self.0.take() else { return };
        match outcome {
            Ok(revision) => line.write(revision, "Ok", ""),
            Err(status) => line.write(0, &name(status), status.message()),
        }
    }

    /// By the answer of a service.
    pub fn answered(&self, response: &Response) {
        let status = Status::from_header_map(response.headers());
        self.ended(status.as_ref().map_or(Ok(0), Err));
    }
}

impl Open {
    fn take(&self) -> Option<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(line) = self.take() {
            let reason = "the node ended before that was known; it may have happened or not";
            line.write(0, "Unknown", reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn a_change_is_told_once_with_what_has_come_of_it_whether_its_caller_is_there_still_or_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let log = tracing_subscriber::fmt().with_ansi(false);
        let log = log.with_writer(file.reopen().expect("the same file")).finish();
        tracing::subscriber::with_default(log, || {
            let pending = |name| Pending::new(Line::by_itself("n1", "Deployments.Deploy", name));
            // Of one whose caller has gone, and the guard with it, only its service knows.
            let left = |name| {
                let guard = pending(name);
                guard.clone()
            };
            let answered = pending("answered");
            answered.clone().ended(Ok(7));
            answered.answered(&Response::new(Body::empty()));
            pending("by its answer").answered(&Response::new(Body::empty()));
            left("left").ended(Ok(8));
            left("failed").ended(Err(&Status::failed_precondition("its group is still there")));
            drop(left("gone"));
        });
        let text = std::fs::read_to_string(file.path()).expect("the log");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        for (line, words) in lines.iter().zip([
            ["name=\"answered\"", "revision=7", "outcome=Ok"],
            ["name=\"by its answer\"", "revision=0", "outcome=Ok"],
            ["name=\"left\"", "revision=8", "outcome=Ok"],
            ["name=\"failed\"", "outcome=FailedPrecondition", "reason=\"its group is still there\""],
            ["name=\"gone\"", "revision=0", "outcome=Unknown"],
        ]) {
            assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
        }
    }
}

//! The audit log of calls: one line ([`crate::telemetry::audit`]) for each that changes something, and for each one
//! that is refused.

use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use tonic::{Code, Status};

use crate::telemetry::audit::Line;

/// A call that does not get to its service.
pub fn refused(line: &Line, status: &Status) {
    line.write(0, &name(status.code()), status.message());
}

/// `PermissionDenied`: a status as the log has it.
fn name(code: Code) -> String {
    format!("{code:?}")
}

/// A change under way, in the hands of the guard and, beside the request, of its service. Whoever knows first what has
/// come of it says so. Dropped by all of them before, its caller has gone away.
#[derive(Clone)]
pub struct Pending(Arc<Open>);

struct Open(Mutex<Option<Line>>);

impl Pending {
    pub fn new(line: Line) -> Pending {
        Pending(Arc::new(Open(Mutex::new(Some(line)))))
    }

    /// The registry has given it this revision: whatever else its caller waits for changes nothing about that.
    pub fn accepted(&self, revision: u64) {
        if let Some(line) = self.0.take() {
            line.write(revision, &name(Code::Ok), "");
        }
    }

    /// By the answer of a service.
    pub fn answered(&self, response: &Response) {
        let Some(line) = self.0.take() else { return };
        match Status::from_header_map(response.headers()) {
            None => line.write(0, &name(Code::Ok), ""),
            Some(status) => line.write(0, &name(status.code()), status.message()),
        }
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
            let reason = "the caller did not wait for the answer; it may have happened or not";
            line.write(0, &name(Code::Unknown), reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn a_change_is_told_once_with_its_revision_whether_its_caller_is_there_still_or_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let log = tracing_subscriber::fmt().with_ansi(false);
        let log = log.with_writer(file.reopen().expect("the same file")).finish();
        tracing::subscriber::with_default(log, || {
            let pending = |name| Pending::new(Line::by_itself("n1", "Deployments.Deploy", name));
            let answered = pending("answered");
            answered.clone().accepted(7);
            answered.answered(&Response::new(Body::empty()));
            let guard = pending("left");
            let service = guard.clone();
            drop(guard);
            service.accepted(8);
            drop(pending("gone"));
        });
        let text = std::fs::read_to_string(file.path()).expect("the log");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        for (line, words) in lines.iter().zip([
            ["name=\"answered\"", "revision=7", "outcome=Ok"],
            ["name=\"left\"", "revision=8", "outcome=Ok"],
            ["name=\"gone\"", "revision=0", "outcome=Unknown"],
        ]) {
            assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
        }
    }
}

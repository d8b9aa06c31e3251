//! The audit log of calls: one line ([`crate::telemetry::audit`]) for each that changes something, and for each one
//! that is refused.

use axum::response::Response;
use tonic::{Code, Status};

use crate::telemetry::audit::Line;

/// The revision that a change got, beside the answer of a service.
#[derive(Debug, Clone, Copy)]
pub struct Revision(pub u64);

/// A call that does not get to its service.
pub fn refused(line: &Line, status: &Status) {
    line.write(0, &name(status.code()), status.message());
}

/// `PermissionDenied`: a status as the log has it.
fn name(code: Code) -> String {
    format!("{code:?}")
}

/// A change under way. Dropped without an answer, its caller has gone away.
pub struct Pending(Option<Line>);

impl Pending {
    pub fn new(line: Line) -> Pending {
        Pending(Some(line))
    }

    /// By the answer of a service.
    pub fn answered(mut self, response: &Response) {
        let Some(line) = self.0.take() else { return };
        let revision = response.extensions().get::<Revision>().map_or(0, |revision| revision.0);
        match Status::from_header_map(response.headers()) {
            None => line.write(revision, &name(Code::Ok), ""),
            Some(status) => line.write(revision, &name(status.code()), status.message()),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            let reason = "the caller did not wait for the answer; it may have happened or not";
            line.write(0, &name(Code::Unknown), reason);
        }
    }
}

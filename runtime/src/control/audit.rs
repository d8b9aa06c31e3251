//! The audit log: one line for each call that changes something, and for each one that is refused, with
//! the target `audit`. It is logged whatever `log.filter` says of other lines, unless that names `audit`.
//!
//! | field | what |
//! |---|---|
//! | `who` | the caller's name from the certificate, or what the caller says |
//! | `authenticated` | false when it is only said |
//! | `via` | the node that passed the call on; empty for none |
//! | `from` | address of the connection |
//! | `action`, `name` | what was asked, and of which deployment, node or topics; empty = of none |
//! | `dry_run`, `expected_revision` | as asked; 0 = any |
//! | `revision` | that the registry gave it; 0 = none |
//! | `outcome`, `reason` | `Ok`, or a status of gRPC with its message |

use std::net::SocketAddr;

use axum::response::Response;
use tonic::{Code, Status};

/// Beyond this a reason is cut: the caller has all of it.
const REASON_BYTES_MAX: usize = 500;

/// The revision that a change got, beside the answer of a service.
#[derive(Debug, Clone, Copy)]
pub struct Revision(pub u64);

/// What is known of a call before its outcome.
#[derive(Debug)]
pub struct Line {
    pub who: String,
    pub authenticated: bool,
    pub via: String,
    pub from: SocketAddr,
    pub action: String,
    pub name: String,
    pub dry_run: bool,
    pub expected_revision: u64,
}

impl Line {
    pub fn refused(&self, status: &Status) {
        self.write(0, status.code(), status.message());
    }

    fn write(&self, revision: u64, outcome: Code, reason: &str) {
        tracing::info!(
            target: "audit",
            who = self.who,
            authenticated = self.authenticated,
            via = self.via,
            from = %self.from,
            action = self.action,
            name = self.name,
            dry_run = self.dry_run,
            expected_revision = self.expected_revision,
            revision,
            outcome = ?outcome,
            reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)],
            "audit"
        );
    }
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
            None => line.write(revision, Code::Ok, ""),
            Some(status) => line.write(revision, status.code(), status.message()),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(line) = self.0.take() {
            line.write(
                0,
                Code::Unknown,
                "the caller did not wait for the answer; it may have happened or not",
            );
        }
    }
}

//! The lines of the audit log, with the target `audit`. They are logged whatever `log.filter` says of other lines,
//! unless that names `audit`.
//!
//! | field | what |
//! |---|---|
//! | `who` | the caller's name from the certificate, or what the caller says; the node's id for what it does by itself |
//! | `authenticated` | false when it is only said |
//! | `via` | the node that passed the call on; empty for none |
//! | `from` | address of the connection; empty for what a node does by itself |
//! | `action`, `name` | what is done, and to which deployment, node, topics, module or file; empty = to none |
//! | `dry_run`, `expected_revision` | as asked; 0 = any |
//! | `revision` | that the registry gave it; 0 = none |
//! | `outcome`, `reason` | `Ok`, or a status of gRPC with its message; why, of what a node does by itself |

use std::net::SocketAddr;

/// Beyond this a reason is cut: whoever has to act on it has all of it elsewhere.
const REASON_BYTES_MAX: usize = 500;
/// Beyond these so is what a caller says before anybody has looked at it: no call fills the log. A name in a certificate
/// is as long as the one at most, and a call may name a hundred topics.
const WHO_BYTES_MAX: usize = 512;
const NAME_BYTES_MAX: usize = 32 << 10;

/// What is known of a change before its outcome.
#[derive(Debug)]
pub struct Line {
    pub who: String,
    pub authenticated: bool,
    pub via: String,
    /// None = nobody called.
    pub from: Option<SocketAddr>,
    pub action: String,
    pub name: String,
    pub dry_run: bool,
    pub expected_revision: u64,
}

impl Line {
    /// Of a change that a node makes without being asked. Its action is that of the call that would ask for it, if
    /// there is one.
    pub fn by_itself(node: &str, action: &str, name: &str) -> Line {
        Line {
            who: node.to_owned(),
            authenticated: true,
            via: String::new(),
            from: None,
            action: action.to_owned(),
            name: name.to_owned(),
            dry_run: false,
            expected_revision: 0,
        }
    }

    /// `outcome`: the name of a status of gRPC.
    pub fn write(&self, revision: u64, outcome: &str, reason: &str) {
        let from = self.from.map(|from| from.to_string()).unwrap_or_default();
        tracing::info!(
            target: "audit",
            who = cut(&self.who, WHO_BYTES_MAX),
            authenticated = self.authenticated,
            via = cut(&self.via, WHO_BYTES_MAX),
            from = %from,
            action = cut(&self.action, WHO_BYTES_MAX),
            name = cut(&self.name, NAME_BYTES_MAX),
            dry_run = self.dry_run,
            expected_revision = self.expected_revision,
            revision,
            outcome = %outcome,
            reason = cut(reason, REASON_BYTES_MAX),
            "audit"
        );
    }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_a_node_does_by_itself_is_told_in_the_form_of_a_call() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let log = tracing_subscriber::fmt().json().flatten_event(true);
        let log = log.with_writer(file.reopen().expect("the same file")).finish();
        tracing::subscriber::with_default(log, || {
            let own = Line::by_itself("n1", "Deployments.Rollback", "count");
            own.write(7, "Ok", "10 of 100 records failed");
            let from = Some(SocketAddr::from(([127, 0, 0, 1], 7)));
            let long = "n".repeat(1 << 20);
            Line { who: "ci".into(), from, ..own }.write(0, "Aborted", &"ä".repeat(400));
            Line { who: long.clone(), ..Line::by_itself("n1", &long, &long) }.write(0, "NotFound", "");
        });
        let text = std::fs::read_to_string(file.path()).expect("the log");
        let parse = |line| serde_json::from_str::<Value>(line).expect("JSON");
        let lines: Vec<Value> = text.lines().map(parse).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[2].to_string().len() < 40 << 10, "whatever somebody says of himself");
        let both = |field: &str| -> Value { lines[..2].iter().map(|line| line[field].clone()).collect() };
        assert_eq!(both("target"), json!(["audit", "audit"]));
        assert_eq!(both("who"), json!(["n1", "ci"]));
        assert_eq!(both("from"), json!(["", "127.0.0.1:7"]));
        assert_eq!(both("name"), json!(["count", "count"]));
        assert_eq!(both("revision"), json!([7, 0]));
        assert_eq!(both("outcome"), json!(["Ok", "Aborted"]));
        assert_eq!(both("reason"), json!(["10 of 100 records failed", "ä".repeat(250)]));
    }
}

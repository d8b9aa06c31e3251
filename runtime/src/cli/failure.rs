//! How a command fails: one error that names what, where and how to fix it, and an exit code that
//! says what kind of failure it was.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use super::table::printable_lines;
use crate::config::problem::{Problem, Problems};

/// What a caller can do about it. The numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Failed = 1,
    Usage = 2,
    /// The node or Kafka did not answer; trying again may help.
    Unreachable = 3,
    /// Understood and refused; trying again will not help.
    Refused = 4,
    NotFound = 5,
}

#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into() }
    }

    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Failed, message)
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, message)
    }

    pub fn refused(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Refused, message)
    }

    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(Kind::NotFound, message)
    }

    pub fn unreachable(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Unreachable, message)
    }

    /// Says what it was about: `pipeline.yaml: ...`.
    pub fn at(self, what: impl fmt::Display) -> Failure {
        let lines: Vec<_> = self.message.lines().collect();
        let message = match lines.as_slice() {
            [] | [_] => format!("{what}: {}", self.message),
            lines => format!("{what}: {} problems\n  {}", lines.len(), lines.join("\n  ")),
        };
        Failure { kind: self.kind, message }
    }

    /// Several as one, of the first one's kind; none for none.
    pub fn all(failures: Vec<Failure>) -> Option<Failure> {
        let kind = failures.first()?.kind;
        let message = failures.into_iter().map(|failure| failure.message).collect::<Vec<_>>().join("\n");
        Some(Failure { kind, message })
    }

    /// Prints the error and answers the process's exit code.
    pub fn report(self) -> ExitCode {
        let stderr = std::io::stderr();
        let colours = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let (on, off) = if colours { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        // A closed standard error leaves only the exit code to speak.
        let _ = writeln!(stderr.lock(), "{on}error{off}: {self}");
        ExitCode::from(self.kind as u8)
    }
}

/// For a terminal: what a node says of a failed record is the handler's own words, and must not move the cursor.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable_lines(&self.message))
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Failure {
        list(problems.0.iter().map(Problem::to_string).collect())
    }
}

/// Problems of a file, each with its place: `node.yaml:3: kafka.ack: unknown key, ...`.
pub fn in_file(problems: &Problems, file: impl fmt::Display) -> Failure {
    let place = |problem: &Problem| match problem.line {
        Some(line) => {
            let without_line = Problem { line: None, ..problem.clone() };
            format!("{file}:{line}: {without_line}")
        }
        None => problem.to_string(),
    };
    list(problems.0.iter().map(place).collect())
}

fn list(lines: Vec<String>) -> Failure {
    match lines.as_slice() {
        [one] => Failure::refused(one),
        lines => Failure::refused(format!("{} problems\n  {}", lines.len(), lines.join("\n  "))),
    }
}

/// The innermost cause: "Connection refused" says more than "transport error".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// It was waited for as long as this side wants to wait.
fn has_timed_out(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        use tonic::Code;
        let kind = match status.code() {
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::Unimplemented => Kind::Refused,
            Code::NotFound => Kind::NotFound,
            Code::Unavailable | Code::DeadlineExceeded => Kind::Unreachable,
            _ => Kind::Failed,
        };
        // Only what this side makes of a broken connection has a cause; what a node says has none.
        if let Some(cause) = std::error::Error::source(&status) {
            if has_timed_out(cause) {
                return Failure::unreachable(
                    "the node has not answered in time: it may be busy, or stopped; a change that was asked for may have \
                     been made, or be made yet",
                );
            }
            return Failure::unreachable(format!(
                "the connection broke off ({}): a change that was asked for may have been made or not, so look before you \
                 ask again; a node that demands certificates needs --ca, --cert and --cert-key",
                root_cause(cause)
            ));
        }
        let message = match (status.code(), status.message()) {
            (Code::Unimplemented, "") => {
                "the node does not know this call: it is of another version than this command \
                                          (`tidemill nodes` shows which, `tidemill --version` this one)"
                    .to_owned()
            }
            (code, "") => format!("the node answered {code}"),
            (_, message) => message.to_owned(),
        };
        Failure { kind, message }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_a_file_name_file_and_line_and_come_as_one_error() {
        let problem = |line, key: &str| Problem { line, key: key.into(), message: "unknown key".into() };
        let one = Problems(vec![problem(Some(3), "kafka.ack")]);
        assert_eq!(in_file(&one, "node.yaml").message, "node.yaml:3: kafka.ack: unknown key");
        let two = Problems(vec![problem(Some(3), "kafka.ack"), problem(None, "KAFKA_ACK")]);
        let failure = in_file(&two, "node.yaml");
        assert_eq!(
            failure.message,
            "2 problems\n  node.yaml:3: kafka.ack: unknown key\n  KAFKA_ACK: unknown key"
        );
        assert_eq!(failure.kind, Kind::Refused);
    }

    #[test]
    fn what_a_node_answers_decides_the_exit_code() {
        for (status, kind) in [
            (tonic::Status::invalid_argument("x"), Kind::Refused),
            (tonic::Status::failed_precondition("x"), Kind::Refused),
            (tonic::Status::not_found("x"), Kind::NotFound),
            (tonic::Status::unavailable("x"), Kind::Unreachable),
            (tonic::Status::internal("x"), Kind::Failed),
            (tonic::Status::unimplemented(""), Kind::Refused),
        ] {
            assert_eq!(Failure::from(status).kind, kind);
        }
        let older = Failure::from(tonic::Status::unimplemented(""));
        assert!(older.message.contains("another version"), "{older}");
    }

    #[test]
    fn what_a_handler_says_of_a_failure_stays_in_its_lines_and_does_not_reach_the_terminal() {
        let failure = Failure::failed("task 0 is halted: \x1b]0;owned\x07\nsee `tidemill history`");
        let shown = "task 0 is halted: \\u{1b}]0;owned\\u{7}\nsee `tidemill history`";
        assert_eq!(failure.to_string(), shown);
    }

    #[test]
    fn a_node_that_does_not_answer_in_time_is_not_taken_for_one_that_wants_certificates() {
        let status = tonic::Status::from_error(Box::new(tonic::TimeoutExpired(())));
        let failure = Failure::from(status);
        assert_eq!(failure.kind, Kind::Unreachable);
        assert!(failure.message.contains("in time") && !failure.message.contains("--ca"), "{failure}");
        assert!(failure.message.contains("may have been made"), "{failure}");
    }
}

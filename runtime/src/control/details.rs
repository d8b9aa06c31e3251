//! Errors as gRPC statuses: the code says what kind it is, the message what a person should read, the
//! details the same for programs.

use std::collections::HashMap;

use axum::http::HeaderMap;
use prost::Message;
use tidemill_proto::rpc::bad_request::FieldViolation;
use tidemill_proto::rpc::precondition_failure::Violation;
use tidemill_proto::rpc::{self, Any, BadRequest, ErrorInfo, PreconditionFailure};
use tonic::{Code, Status};

use crate::config::problem::{Problem, lines};
use crate::node::ControlError;

/// What of an error goes out at most, text and details together, as HTTP/2 counts it. Both travel in trailers,
/// of which clients take 16 KiB, and whoever gets more of them than it takes gets neither.
const TRAILERS_BYTES_MAX: usize = 14 << 10;
/// Beside its name and its value, each of them counts so much.
const TRAILER_BYTES: usize = 32;
/// More problems than that are never listed, however short they are.
const PROBLEMS_MAX: usize = 100;

/// Of UNAVAILABLE, where what was asked may have been done or not.
const UNKNOWN: &str = "OUTCOME_UNKNOWN";

/// Of a change that failed at one of several partitions after it was made in others, unless that is OUTCOME_UNKNOWN.
const PARTLY: &str = "PARTLY_DONE";
/// Partitions that such an error names; of the others it says how many they are.
const PARTITIONS_MAX: usize = 100;

/// The one place where a reaction becomes a gRPC status.
pub fn status(error: ControlError) -> Status {
    match error {
        ControlError::Invalid(problems) => listed(Code::InvalidArgument, &problems, bad),
        ControlError::Unmet(problems) => listed(Code::FailedPrecondition, &problems, precondition),
        ControlError::Denied(problems) => listed(Code::PermissionDenied, &problems, bad),
        ControlError::Precondition(reason) => {
            listed(Code::FailedPrecondition, &[Problem::from(reason)], precondition)
        }
        ControlError::Conflict { ref name, expected, current } => {
            let metadata = [
                ("deployment".to_owned(), name.clone()),
                ("expected".to_owned(), expected.to_string()),
                ("current".to_owned(), current.to_string()),
            ];
            informed(Code::Aborted, error.to_string(), "REVISION_CONFLICT", metadata.into())
        }
        // The reason says no more than the code, its domain does: it was a node that said so, and nothing
        // on the way to it.
        ControlError::NotFound(what) => informed(Code::NotFound, what, "NOT_FOUND", HashMap::new()),
        ControlError::Unavailable(reason) => {
            informed(Code::Unavailable, reason, "UNAVAILABLE", HashMap::new())
        }
        ControlError::Deadline(reason) => {
            informed(Code::DeadlineExceeded, reason, "DEADLINE_EXCEEDED", HashMap::new())
        }
        ControlError::Unknown(reason) => informed(Code::Unavailable, reason, UNKNOWN, HashMap::new()),
        ControlError::Exhausted(reason) => Status::resource_exhausted(reason),
        ControlError::Internal(reason) => Status::internal(reason),
    }
}

/// One problem of a request, wherever it is found.
pub fn invalid(problem: Problem) -> Status {
    status(ControlError::Invalid(vec![problem]))
}

/// What was asked may have been done or not, so whoever asked has to look before they ask again.
pub fn is_unknown(status: &Status) -> bool {
    let of_unknown = |detail: &Any| {
        detail.type_url == type_url("ErrorInfo")
            && ErrorInfo::decode(detail.value.as_slice()).is_ok_and(|info| info.reason == UNKNOWN)
    };
    status.code() == Code::Unavailable
        && rpc::Status::decode(status.details()).is_ok_and(|told| told.details.iter().any(of_unknown))
}

/// The failure of a change that goes from partition to partition, with how much it had `done` in each before, which stays
/// so. The code is the failure's: it says whether the same may be asked once more.
pub fn partly(failed: Status, done: &str, changed: &[(i32, u64)]) -> Status {
    let changed: Vec<(i32, u64)> = changed.iter().copied().filter(|(_, count)| *count > 0).collect();
    if changed.is_empty() {
        return failed;
    }
    let total: u64 = changed.iter().map(|(_, count)| count).sum();
    let named = &changed[..changed.len().min(PARTITIONS_MAX)];
    let list = |separator: &str, one: fn(&(i32, u64)) -> String| {
        named.iter().map(one).collect::<Vec<String>>().join(separator)
    };
    let mut each = list(", ", |(partition, count)| format!("{count} of partition {partition}"));
    if changed.len() > named.len() {
        each += &format!(", the others of {} more partitions", changed.len() - named.len());
    }
    // Before the failure, which may be long: what does not fit is cut off at the end.
    let text = format!("{total} {done} before this failed ({each})\n{}", failed.message());
    let metadata = [
        ("changed".to_owned(), total.to_string()),
        ("partitions".to_owned(), list(",", |(partition, count)| format!("{partition}={count}"))),
    ];
    let reason = if is_unknown(&failed) { UNKNOWN } else { PARTLY };
    informed(failed.code(), text, reason, metadata.into())
}

/// As many problems as fit, from the first one on: in the text, which is for people and comes first, and then
/// in the details. Whichever does not have all of them says how many more there are.
fn listed(code: Code, problems: &[Problem], detail: fn(&[Problem]) -> Any) -> Status {
    let list = |told: usize, detailed: usize| {
        let detail = (detailed > 0).then(|| detail(&first(problems, detailed)));
        with(code, lines(&first(problems, told)), detail)
    };
    let counts = || (1..=problems.len().min(PROBLEMS_MAX)).rev();
    let Some(told) = counts().find(|&told| fits(&list(told, 0))) else {
        return cut(code, lines(problems), None);
    };
    let detailed = counts().find(|&detailed| fits(&list(told, detailed)));
    list(told, detailed.unwrap_or(0))
}

fn first(problems: &[Problem], count: usize) -> Vec<Problem> {
    let mut first: Vec<Problem> = problems.iter().take(count).cloned().collect();
    let more = problems.len() - first.len();
    if more > 0 {
        first.push(Problem::from(format!("and {more} more")));
    }
    first
}

fn bad(problems: &[Problem]) -> Any {
    let violation = |problem: &Problem| FieldViolation {
        field: problem.key.clone(),
        description: Problem { key: String::new(), ..problem.clone() }.to_string(),
    };
    any("BadRequest", &BadRequest { field_violations: problems.iter().map(violation).collect() })
}

fn precondition(problems: &[Problem]) -> Any {
    let violation = |problem: &Problem| Violation {
        r#type: "STATE".into(),
        subject: problem.key.clone(),
        description: problem.message.clone(),
    };
    any("PreconditionFailure", &PreconditionFailure { violations: problems.iter().map(violation).collect() })
}

fn informed(code: Code, text: String, reason: &str, metadata: HashMap<String, String>) -> Status {
    let info = ErrorInfo { reason: reason.into(), domain: "tidemill".into(), metadata };
    cut(code, text, Some(any("ErrorInfo", &info)))
}

/// A text that is no list, cut until it fits.
fn cut(code: Code, mut text: String, detail: Option<Any>) -> Status {
    let mut status = with(code, text.clone(), detail.clone());
    while !fits(&status) && !text.is_empty() {
        text.truncate(text.floor_char_boundary(text.len() / 4 * 3));
        status = with(code, format!("{text}\n..."), detail.clone());
    }
    status
}

fn fits(status: &Status) -> bool {
    let mut trailers = HeaderMap::new();
    let bytes = |trailers: &HeaderMap| -> usize {
        trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + TRAILER_BYTES).sum()
    };
    status.add_header(&mut trailers).is_ok() && bytes(&trailers) <= TRAILERS_BYTES_MAX
}

fn with(code: Code, message: String, detail: Option<Any>) -> Status {
    let details =
        rpc::Status { code: code as i32, message: message.clone(), details: Vec::from_iter(detail) };
    Status::with_details(code, message, details.encode_to_vec().into())
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: type_url(name), value: message.encode_to_vec() }
}

fn type_url(name: &str) -> String {
    format!("type.googleapis.com/google.rpc.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::audit;

    fn details(status: &Status) -> rpc::Status {
        rpc::Status::decode(status.details()).expect("google.rpc.Status")
    }

    #[test]
    fn every_problem_is_in_the_message_and_in_the_details() {
        let problems = vec![Problem::at("inputs.in", "no such topic"), Problem::from("empty")];
        let status = status(ControlError::Invalid(problems));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "inputs.in: no such topic\nempty");
        let detail = &details(&status).details[0];
        assert_eq!(detail.type_url, "type.googleapis.com/google.rpc.BadRequest");
        let bad = BadRequest::decode(detail.value.as_slice()).expect("BadRequest");
        let fields: Vec<_> = bad.field_violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["inputs.in", ""]);
    }

    #[test]
    fn a_node_names_its_errors_as_the_audit_log_names_what_their_callers_hear() {
        let problems = || vec![Problem::from("a")];
        let text = || "a".to_owned();
        for error in [
            ControlError::Invalid(problems()),
            ControlError::Precondition(text()),
            ControlError::Unmet(problems()),
            ControlError::Denied(problems()),
            ControlError::NotFound(text()),
            ControlError::Conflict { name: text(), expected: 3, current: 5 },
            ControlError::Unavailable(text()),
            ControlError::Deadline(text()),
            ControlError::Unknown(text()),
            ControlError::Exhausted(text()),
            ControlError::Internal(text()),
        ] {
            let named = error.code();
            assert_eq!(audit::name(&status(error)), named);
        }
    }

    #[test]
    fn who_was_too_late_is_told_the_revision_that_was_first() {
        let status = status(ControlError::Conflict { name: "a".into(), expected: 3, current: 5 });
        assert_eq!(status.code(), Code::Aborted);
        let info = ErrorInfo::decode(details(&status).details[0].value.as_slice()).expect("ErrorInfo");
        assert_eq!((info.reason.as_str(), info.metadata["current"].as_str()), ("REVISION_CONFLICT", "5"));
        assert!(status.message().contains("revision 5, not 3"), "{}", status.message());
    }

    #[test]
    fn who_asks_can_tell_that_it_was_a_node_that_answered() {
        for (error, code, reason) in [
            (ControlError::NotFound("a".into()), Code::NotFound, "NOT_FOUND"),
            (ControlError::Unavailable("a".into()), Code::Unavailable, "UNAVAILABLE"),
            (ControlError::Deadline("a".into()), Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            (ControlError::Unknown("a".into()), Code::Unavailable, "OUTCOME_UNKNOWN"),
        ] {
            let status = status(error);
            assert_eq!(is_unknown(&status), reason == "OUTCOME_UNKNOWN", "{status}");
            let info = ErrorInfo::decode(details(&status).details[0].value.as_slice()).expect("ErrorInfo");
            assert_eq!((status.code(), status.message()), (code, "a"));
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "tidemill"));
        }
    }

    #[test]
    fn a_change_that_failed_at_a_later_partition_says_what_it_had_done_in_the_earlier_ones() {
        let changed: Vec<(i32, u64)> =
            (0..5_000).map(|partition| (partition, 1 + partition as u64 % 2)).collect();
        let halted = || status(ControlError::Precondition("partition 2 is halted".into()));
        let told = partly(halted(), "rows were discarded", &[(0, 12), (1, 0), (3, 4)]);
        assert_eq!(told.code(), Code::FailedPrecondition);
        let text = "16 rows were discarded before this failed (12 of partition 0, 4 of partition 3)\npartition 2 is halted";
        assert_eq!(told.message(), text);
        let info = ErrorInfo::decode(details(&told).details[0].value.as_slice()).expect("ErrorInfo");
        let says = |name: &str| info.metadata[name].clone();
        assert_eq!(
            (info.reason.as_str(), says("changed"), says("partitions")),
            ("PARTLY_DONE", "16".into(), "0=12,3=4".into())
        );
        let unknown = partly(status(ControlError::Unknown("a".into())), "rows were tried", &changed);
        assert!(is_unknown(&unknown) && fits(&unknown), "nobody asks again by itself: {unknown}");
        assert!(
            unknown.message().starts_with("7500 rows were tried before this failed (1 of partition 0, 2 of "),
            "{unknown}"
        );
        assert!(unknown.message().ends_with(", the others of 4900 more partitions)\na"), "{unknown}");
        assert_eq!(partly(halted(), "rows were tried", &[(0, 0)]).message(), halted().message());
    }

    #[test]
    fn a_deploy_that_lacks_thirteen_grants_names_them_all() {
        let grant = |n: usize| {
            let message = format!(
                "internal topic tidemill.orders-{n}.changelog: Kafka does not permit User:orders to Read, Write, \
                 DescribeConfigs; grant it with kafka-acls --bootstrap-server kafka-1:9092,kafka-2:9092 --add \
                 --allow-principal User:orders --operation Read --operation Write --operation DescribeConfigs \
                 --topic tidemill.orders-{n}.changelog"
            );
            Problem::at("name", message)
        };
        let problems: Vec<Problem> = (0..13).map(grant).collect();
        let status = status(ControlError::Unmet(problems.clone()));
        assert_eq!(status.message(), lines(&problems));
        let unmet = PreconditionFailure::decode(details(&status).details[0].value.as_slice());
        let violations = unmet.expect("PreconditionFailure").violations;
        let (last, listed) = violations.split_last().expect("as many as fit");
        assert_eq!(last.description, format!("and {} more", 13 - listed.len()));
        assert!(!listed.is_empty());
        assert!(listed.iter().zip(&problems).all(|(listed, problem)| listed.description == problem.message));
        assert!(fits(&status));
    }

    #[test]
    fn what_is_too_long_is_cut_so_that_it_arrives() {
        let problems = (0..1000).map(|n| Problem::at(format!("inputs.{n}"), "ä".repeat(100))).collect();
        let many = status(ControlError::Invalid(problems));
        let (listed, last) = many.message().rsplit_once('\n').expect("lines");
        assert_eq!(last, format!("and {} more", 1000 - listed.lines().count()));
        let one = status(ControlError::Precondition("ä".repeat(100_000)));
        let text = status(ControlError::NotFound("ä".repeat(100_000)));
        for status in [many, one, text] {
            assert!(fits(&status) && status.message().len() > 1000, "{status:?}");
        }
    }
}

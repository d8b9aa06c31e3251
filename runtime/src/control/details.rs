//! Errors as gRPC statuses: the code says what kind it is, the message what a person should read, the
//! details the same for programs.

use prost::Message;
use tidemill_proto::rpc::bad_request::FieldViolation;
use tidemill_proto::rpc::precondition_failure::Violation;
use tidemill_proto::rpc::{self, Any, BadRequest, ErrorInfo, PreconditionFailure};
use tonic::{Code, Status};

use crate::config::problem::{Problem, lines};
use crate::node::ControlError;

/// What of an error's text and details goes out at most. Both travel in trailers, which clients bound.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
const PROBLEMS_MAX: usize = 20;

/// The one place where a reaction becomes a gRPC status.
pub fn status(error: ControlError) -> Status {
    match error {
        ControlError::Invalid(problems) => with(Code::InvalidArgument, lines(&problems), &bad(&problems)),
        ControlError::Unmet(problems) => {
            with(Code::FailedPrecondition, lines(&problems), &precondition(&problems))
        }
        ControlError::Denied(problems) => with(Code::PermissionDenied, lines(&problems), &bad(&problems)),
        ControlError::Precondition(reason) => {
            let problem = Problem::from(reason.as_str());
            with(Code::FailedPrecondition, reason, &precondition(&[problem]))
        }
        ControlError::Conflict { ref name, expected, current } => {
            let info = ErrorInfo {
                reason: "REVISION_CONFLICT".into(),
                domain: "tidemill".into(),
                metadata: [
                    ("deployment".to_owned(), name.clone()),
                    ("expected".to_owned(), expected.to_string()),
                    ("current".to_owned(), current.to_string()),
                ]
                .into(),
            };
            with(Code::Aborted, error.to_string(), &Detail::new("ErrorInfo", &info))
        }
        ControlError::NotFound(what) => Status::not_found(what),
        ControlError::Unavailable(reason) => Status::unavailable(reason),
        ControlError::Deadline(reason) => Status::deadline_exceeded(reason),
        ControlError::Unknown(reason) => Status::unknown(reason),
        ControlError::Exhausted(reason) => Status::resource_exhausted(reason),
        ControlError::Internal(reason) => Status::internal(reason),
    }
}

/// One detail, encoded.
struct Detail {
    type_url: String,
    value: Vec<u8>,
}

impl Detail {
    fn new(name: &str, message: &impl Message) -> Detail {
        Detail { type_url: format!("type.googleapis.com/google.rpc.{name}"), value: message.encode_to_vec() }
    }
}

fn bad(problems: &[Problem]) -> Detail {
    let violation = |problem: &Problem| FieldViolation {
        field: problem.key.clone(),
        description: Problem { key: String::new(), ..problem.clone() }.to_string(),
    };
    let field_violations = problems.iter().take(PROBLEMS_MAX).map(violation).collect();
    Detail::new("BadRequest", &BadRequest { field_violations })
}

fn precondition(problems: &[Problem]) -> Detail {
    let violation = |problem: &Problem| Violation {
        r#type: "STATE".into(),
        subject: problem.key.clone(),
        description: problem.message.clone(),
    };
    let violations = problems.iter().take(PROBLEMS_MAX).map(violation).collect();
    Detail::new("PreconditionFailure", &PreconditionFailure { violations })
}

fn with(code: Code, mut message: String, detail: &Detail) -> Status {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        message.truncate(end);
        message.push_str("\n...");
    }
    let detail = Any { type_url: detail.type_url.clone(), value: detail.value.clone() };
    let mut details = rpc::Status { code: code as i32, message: message.clone(), details: vec![detail] };
    // Beyond that the trailer itself would be refused, and with it the message.
    if details.encoded_len() > 2 * MESSAGE_BYTES_MAX {
        details.details.clear();
    }
    Status::with_details(code, message, details.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn who_was_too_late_is_told_the_revision_that_was_first() {
        let status = status(ControlError::Conflict { name: "a".into(), expected: 3, current: 5 });
        assert_eq!(status.code(), Code::Aborted);
        let info = ErrorInfo::decode(details(&status).details[0].value.as_slice()).expect("ErrorInfo");
        assert_eq!((info.reason.as_str(), info.metadata["current"].as_str()), ("REVISION_CONFLICT", "5"));
        assert!(status.message().contains("revision 5, not 3"), "{}", status.message());
    }

    #[test]
    fn a_long_list_is_cut_so_that_it_arrives() {
        let problems = (0..1000).map(|n| Problem::at(format!("inputs.{n}"), "ä".repeat(100))).collect();
        let status = status(ControlError::Invalid(problems));
        assert!(status.message().len() < 5000 && status.details().len() < 10_000);
    }
}

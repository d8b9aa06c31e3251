//! What a change over several partitions had done when it failed at one of them.

use prost::Message;
use serde_json::{Map, Value, json};
use tidemill_proto::rpc::{self, ErrorInfo};
use tonic::Status;

use super::failure::Failure;
use super::output::{Format, View};

/// The failure of such a change. Its text says what was done; programs get that on standard output, where they get what a
/// change without a failure has done, with the `unit` that it is counted in.
pub fn failed(status: Status, unit: &str, output: Format) -> Failure {
    if output == Format::Json
        && let Some(json) = done(&status, unit)
    {
        // Whatever becomes of this, the failure is told.
        let _ = View { blocks: Vec::new(), json }.print(output);
    }
    Failure::from(status)
}

/// None if it had done nothing.
fn done(status: &Status, unit: &str) -> Option<Value> {
    let told = rpc::Status::decode(status.details()).ok()?;
    let infos = told.details.iter().filter(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"));
    let mut infos = infos.filter_map(|detail| ErrorInfo::decode(detail.value.as_slice()).ok());
    let metadata = infos.find(|info| info.metadata.contains_key("changed"))?.metadata;
    let changed: u64 = metadata.get("changed")?.parse().ok()?;
    let count = |one: &str| {
        let (partition, count) = one.split_once('=')?;
        Some((partition.to_owned(), Value::from(count.parse::<u64>().ok()?)))
    };
    let partitions: Map<String, Value> = metadata.get("partitions")?.split(',').filter_map(count).collect();
    Some(json!({ unit: changed, "partitions": partitions }))
}

#[cfg(test)]
mod tests {
    use tidemill_proto::rpc::Any;
    use tonic::Code;

    use super::*;

    #[test]
    fn a_program_reads_which_partitions_were_changed_before_the_failure() {
        let failed = |metadata: &[(&str, &str)]| {
            let owned = metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let info = ErrorInfo {
                reason: "PARTLY_DONE".into(),
                domain: "tidemill".into(),
                metadata: owned.collect(),
            };
            let type_url = "type.googleapis.com/google.rpc.ErrorInfo".to_owned();
            let details = vec![Any { type_url, value: info.encode_to_vec() }];
            let told = rpc::Status { code: Code::Unavailable as i32, message: "a".into(), details };
            Status::with_details(Code::Unavailable, "a", told.encode_to_vec().into())
        };
        let some = failed(&[("changed", "16"), ("partitions", "0=12,3=4")]);
        assert_eq!(done(&some, "rows"), Some(json!({ "rows": 16, "partitions": { "0": 12, "3": 4 } })));
        assert_eq!(done(&failed(&[]), "rows"), None);
        assert_eq!(done(&Status::unavailable("a"), "rows"), None);
    }
}

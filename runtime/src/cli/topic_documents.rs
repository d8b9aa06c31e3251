//! The topics of `apply`: sent to a node ahead of what is deployed, and shown beside it.

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::topics_client::TopicsClient;
use tonic::transport::Channel;

use super::client;
use super::failure::Failure;
use super::history::changes_json;
use super::table::Table;

/// Topics as they go out.
#[derive(Debug, Clone, Default)]
pub struct Topics {
    /// As their authors wrote them.
    pub documents: Vec<String>,
    /// They may be given more partitions.
    pub raise_partitions: bool,
}

impl Topics {
    /// Has a node make them what their documents say, or say what that would take. Nobody is asked for none.
    pub async fn send(&self, channel: &Channel, dry_run: bool) -> Result<Vec<proto::AppliedTopic>, Failure> {
        if self.documents.is_empty() {
            return Ok(Vec::new());
        }
        let request = proto::ApplyTopicsRequest {
            documents: self.documents.clone(),
            dry_run,
            raise_partitions: self.raise_partitions,
            author: client::author(),
        };
        let answer = TopicsClient::new(channel.clone()).apply(request).await;
        Ok(answer.map_err(|status| Failure::from(status).at("topics"))?.into_inner().topics)
    }
}

/// What is to be done about a topic.
pub fn planned(result: proto::TopicResult) -> &'static str {
    match result {
        proto::TopicResult::Created => "create",
        proto::TopicResult::Changed => "change",
        proto::TopicResult::Unchanged => "unchanged",
        proto::TopicResult::Unspecified => "unknown",
    }
}

/// What was done about topics, or is to be, for people and programs.
pub fn rows(topics: &[proto::AppliedTopic], dry_run: bool) -> (Table, Value) {
    let mut table = Table::new(&["TOPIC", "RESULT"], "no topic was asked for");
    let mut rows = Vec::new();
    for topic in topics {
        let result = match (topic.result(), dry_run) {
            (proto::TopicResult::Created, false) => "created",
            (proto::TopicResult::Changed, false) => "changed",
            (result, _) => planned(result),
        };
        table.row([topic.name.clone().into(), result.into()]);
        rows.push(json!({
            "name": topic.name, "result": result, "changes": changes_json(&topic.changes), "unnamed": topic.unnamed,
        }));
    }
    (table, rows.into())
}

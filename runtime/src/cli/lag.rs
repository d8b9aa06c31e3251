//! `tidemill lag`: how far deployments are behind their inputs, in records and in time.

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::lag_client::LagClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::deployments::{task_state_cell, task_state_name};
use super::failure::Failure;
use super::output::{Block, View};
use super::table::{Cell, Table, Tone, grouped};
use super::watch::Watch;
use super::{Global, Outcome, client, positions};

const EXAMPLES: &str = "\
Examples:
  tidemill lag
  tidemill lag word-count --watch
  tidemill lag -o json | jq '.total'";

/// Show how far deployments are behind
///
/// COMMITTED is the next record to read, as Kafka's own tools show it; SECONDS is the age of the
/// oldest record that is not committed yet.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Lag {
    /// One deployment; every one if left out
    name: Option<String>,
    #[command(flatten)]
    watch: Watch,
}

impl Lag {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            self.watch
                .show(global.output, || async {
                    look(client::connect(global).await?, self.name.as_deref().unwrap_or_default()).await
                })
                .await
        })
    }
}

async fn look(channel: Channel, name: &str) -> Result<View, Failure> {
    Ok(view(&of(channel, name).await?))
}

/// Every partition of a deployment, or of all of them if the name is empty.
pub async fn of(channel: Channel, name: &str) -> Result<Vec<proto::PartitionLag>, Failure> {
    let mut client = LagClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let request = proto::GetLagRequest { deployment: name.to_owned() };
    Ok(client.get(request).await?.into_inner().partitions)
}

fn view(partitions: &[proto::PartitionLag]) -> View {
    let mut table = Table::new(
        &[
            "DEPLOYMENT",
            "TOPIC",
            ">PART",
            ">COMMITTED",
            ">END",
            ">LAG",
            ">SECONDS",
            "STATE",
            "NODE",
            "REASON",
        ],
        "nothing is deployed",
    );
    for lag in partitions {
        let tone = if lag.records == 0 { Tone::Good } else { Tone::Warning };
        table.row([
            lag.deployment.clone().into(),
            lag.topic.clone().into(),
            lag.partition.to_string().into(),
            lag.committed.map_or_else(|| "-".to_owned(), grouped).into(),
            grouped(lag.end).into(),
            Cell::toned(grouped(lag.records), tone),
            lag.seconds.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds:.1}")).into(),
            task_state_cell(lag.state()),
            lag.node.clone().into(),
            lag.reason.clone().into(),
        ]);
    }
    let total: u64 = partitions.iter().map(|lag| lag.records).sum();
    let mut blocks = vec![Block::Table(table)];
    if !partitions.is_empty() {
        blocks.push(Block::Line(format!("total {} records behind", grouped(total))));
    }
    let rows: Vec<Value> = partitions.iter().map(row).collect();
    View { blocks, json: json!({ "total": total, "partitions": rows }) }
}

/// The committed position, as `tidemill state get --at-least` takes it.
fn position(lag: &proto::PartitionLag) -> Option<String> {
    let (topic, partition, offset) = (lag.topic.clone(), lag.partition, lag.committed?);
    Some(positions::show(&proto::InputPosition { topic, partition, offset }))
}

fn row(lag: &proto::PartitionLag) -> Value {
    json!({
        "deployment": lag.deployment, "topic": lag.topic, "partition": lag.partition,
        "committed": lag.committed, "position": position(lag), "end": lag.end, "records": lag.records, "seconds": lag.seconds,
        "state": task_state_name(lag.state()), "node": lag.node, "reason": lag.reason,
        "revision": lag.revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_fits_eighty_columns_and_tells_unknown_from_none() {
        let mut behind = proto::PartitionLag {
            deployment: "word-count".into(),
            topic: "words".into(),
            committed: Some(12_345_678),
            end: 12_345_978,
            records: 300,
            node: "node-0a1b2c3d".into(),
            ..proto::PartitionLag::default()
        };
        behind.set_state(proto::TaskState::Running);
        let new = proto::PartitionLag { partition: 1, committed: None, seconds: Some(0.0), ..behind.clone() };
        let view = view(&[behind, new]);
        let text = view.render(Some(80), false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("12,345,678") && text.contains(" ? ") && text.contains(" - "), "{text}");
        assert_eq!(view.json["total"], 600);
        assert_eq!(view.json["partitions"][0]["seconds"], Value::Null);
    }
}

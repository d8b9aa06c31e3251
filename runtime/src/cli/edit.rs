//! `tidemill state edit`: puts or deletes one key by hand, through the task that owns it.

use clap::{Args, Subcommand};
use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::edit_state_request::Change;
use tidemill_proto::v1::state_client::StateClient;
use tonic::transport::Channel;

use super::client::{ANSWER_BYTES_MAX, author};
use super::failure::Failure;
use super::output::{View, confirm};
use super::state::Options;
use super::values::KeyFormat;
use super::{Global, Outcome, positions};

const PUT_EXAMPLES: &str = "\
Examples:
  tidemill state edit put word-count counts hello 7
  tidemill state edit put orders totals 42 '{\"open\": 3}' --partition 2
  tidemill state edit put raw blobs k 00ff --value-format hex --partition 0 --yes";

const DELETE_EXAMPLES: &str = "\
Examples:
  tidemill state edit delete word-count counts hello
  tidemill state edit delete word-count counts hello --partition 0 --yes";

/// Put or delete one key by hand
///
/// The change goes through the task that owns the partition and through the changelog, like any write,
/// and is recorded in the control topic with its author. The handler sees it from its next batch on.
#[derive(Debug, Args)]
pub struct Edit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Put(Put),
    Delete(Delete),
}

/// Put a value
#[derive(Debug, Args)]
#[command(after_help = PUT_EXAMPLES)]
struct Put {
    deployment: String,
    store: String,
    key: String,
    value: String,
    /// How the value is written; without it, by the store's type
    #[arg(long, value_enum)]
    value_format: Option<KeyFormat>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    options: Options,
}

/// Delete a key
#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
struct Delete {
    deployment: String,
    store: String,
    key: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    options: Options,
}

impl Edit {
    pub async fn run(self, channel: Channel, global: &Global) -> Outcome {
        let (deployment, store, key, yes, options, change) = match self.command {
            Command::Put(put) => {
                let change = match put.value_format {
                    None => Change::Text(put.value),
                    Some(format) => Change::Value(format.read(&put.value).map_err(Failure::usage)?),
                };
                (put.deployment, put.store, put.key, put.yes, put.options, change)
            }
            Command::Delete(delete) => {
                let Delete { deployment, store, key, yes, options } = delete;
                (deployment, store, key, yes, options, Change::Delete(true))
            }
        };
        let bytes = options.key(&key)?;
        let mut client = StateClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let partition = match options.partition {
            Some(partition) => {
                // A store that is not there is nothing to ask about.
                if !yes {
                    look(&mut client, &options, (&deployment, &store), &bytes).await?;
                }
                partition
            }
            None => holder(&mut client, &options, (&deployment, &store), &bytes).await?,
        };
        confirm(&format!("Change key {key} of {deployment}/{store}, partition {partition}, by hand?"), yes)?;
        let request = proto::EditStateRequest {
            deployment,
            store,
            key: bytes,
            partition,
            change: Some(change),
            author: author(),
            local: false,
        };
        let answer = client.edit(options.timed(request)).await?.into_inner();
        let at = answer.edited_at.unwrap_or_default();
        let line = format!("changed {key}, committed at {}", positions::show_all(&at.positions));
        let json = json!({
            "key": key, "partition": at.partition, "node": at.node,
            "positions": positions::to_json(&at.positions),
        });
        View::line(line, json).print(global.output)
    }
}

/// What a key holds in the partition that is named, or in all of them.
async fn look(
    client: &mut StateClient<Channel>,
    options: &Options,
    (deployment, store): (&str, &str),
    key: &[u8],
) -> Result<proto::GetStateResponse, Failure> {
    let request = proto::GetStateRequest {
        deployment: deployment.to_owned(),
        store: store.to_owned(),
        key: key.to_vec(),
        partition: options.partition,
        ..proto::GetStateRequest::default()
    };
    Ok(client.get(options.timed(request)).await?.into_inner())
}

/// The partition that holds a key; a key that is nowhere, or in several, needs to be told.
async fn holder(
    client: &mut StateClient<Channel>,
    options: &Options,
    place: (&str, &str),
    key: &[u8],
) -> Result<i32, Failure> {
    let answer = look(client, options, place, key).await?;
    match (answer.entries.as_slice(), answer.read_at.as_slice()) {
        ([entry], _) => Ok(entry.partition),
        ([], [only]) => Ok(only.partition),
        ([], _) => Err(Failure::usage(
            "no partition holds the key yet: --partition says whose task is to have it, which is the partition of the \
             records that the handler reads it for",
        )),
        (several, _) => {
            let numbers: Vec<String> = several.iter().map(|entry| entry.partition.to_string()).collect();
            Err(Failure::usage(format!(
                "partitions {} hold the key: --partition says which one is meant",
                numbers.join(", ")
            )))
        }
    }
}

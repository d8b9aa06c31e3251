//! `tidemill lag`: how far deployments are behind their inputs, in records and in time.

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::lag_client::LagClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::deployments::{task_state_cell, task_state_name};
use super::failure::Failure;
use super::output::{Block, View};
use super::table::{Cell, Table, Tone, grouped, printable};
use super::watch::Watch;
use super::{Global, Outcome, client, positions};

const EXAMPLES: &str = "\
Examples:
  tidemill lag
  tidemill lag word-count --watch
  tidemill lag word-count --explain
  tidemill lag -o json | jq '.total'";

/// Show how far deployments are behind
///
/// COMMITTED is the next record to read, as Kafka's own tools show it; SECONDS is the age of the
/// oldest record that is not committed yet. Of one deployment the committed positions follow in the form
/// that `tidemill state get --at-least` takes. With --explain, where the time of each task went over the
/// last half minute: waiting for records, in the handler, reading state, committing, waiting for another
/// task of the same worker, or stopped (restoring, halted, or paused). A deployment that could not be asked
/// about is a row with its reason, and in no total: the exit code is 1 then, but for --watch.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Lag {
    /// One deployment; every one if left out
    name: Option<String>,
    /// Show where the time goes
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    watch: Watch,
}

impl Lag {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            if self.watch.goes_on() {
                let look = || async { Ok(self.shown(&self.ask(global).await?)) };
                return self.watch.show(global.output, look).await;
            }
            let partitions = self.ask(global).await?;
            self.shown(&partitions).print(global.output)?;
            whole(&partitions)
        })
    }

    async fn ask(&self, global: &Global) -> Result<Vec<proto::PartitionLag>, Failure> {
        let name = self.name.as_deref().unwrap_or_default();
        of(client::connect(global).await?, name).await
    }

    fn shown(&self, partitions: &[proto::PartitionLag]) -> View {
        if self.explain { explained(partitions) } else { view(partitions) }
    }
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
        let of_partition = |text: String| if is_unknown(lag) { "-".to_owned() } else { text };
        table.row([
            lag.deployment.clone().into(),
            of_partition(lag.topic.clone()).into(),
            of_partition(lag.partition.to_string()).into(),
            lag.committed.map_or_else(|| "-".to_owned(), grouped).into(),
            of_partition(grouped(lag.end)).into(),
            records(lag),
            seconds(lag).into(),
            task_state_cell(lag.state()),
            lag.node.clone().into(),
            lag.reason.clone().into(),
        ]);
    }
    let mut blocks = vec![Block::Table(table)];
    blocks.extend(total_line(partitions));
    blocks.extend(committed_line(partitions));
    View { blocks, json: to_json(partitions) }
}

/// To be copied; of several deployments nobody could say whose they are.
fn committed_line(partitions: &[proto::PartitionLag]) -> Option<Block> {
    let first = partitions.first()?;
    let is_one = partitions.iter().all(|lag| lag.deployment == first.deployment);
    let positions: Vec<String> = partitions.iter().filter_map(position).collect();
    (is_one && !positions.is_empty()).then(|| Block::Line(format!("committed {}", positions.join(","))))
}

/// Of a whole deployment, which could not be asked about among all of them.
fn is_unknown(lag: &proto::PartitionLag) -> bool {
    lag.topic.is_empty()
}

/// Deployments that are in no total.
fn unknown(partitions: &[proto::PartitionLag]) -> Vec<&str> {
    partitions.iter().filter(|lag| is_unknown(lag)).map(|lag| lag.deployment.as_str()).collect()
}

/// Whoever adds up what was printed must know that some of it is missing.
fn whole(partitions: &[proto::PartitionLag]) -> Outcome {
    match unknown(partitions).as_slice() {
        [] => Ok(()),
        unknown => Err(Failure::failed(format!(
            "{} could not be asked about: see the reason in its row, and try again",
            unknown.join(", ")
        ))),
    }
}

fn records(lag: &proto::PartitionLag) -> Cell {
    match lag.records {
        _ if is_unknown(lag) => Cell::toned("?", Tone::Bad),
        0 => Cell::toned("0", Tone::Good),
        records => Cell::toned(grouped(records), Tone::Warning),
    }
}

fn total(partitions: &[proto::PartitionLag]) -> u64 {
    partitions.iter().map(|lag| lag.records).sum()
}

fn total_line(partitions: &[proto::PartitionLag]) -> Option<Block> {
    let without = match unknown(partitions).as_slice() {
        [] => String::new(),
        unknown => format!(", without {}", unknown.join(", ")),
    };
    let line = || Block::Line(format!("total {} records behind{without}", grouped(total(partitions))));
    (!partitions.is_empty()).then(line)
}

fn to_json(partitions: &[proto::PartitionLag]) -> Value {
    let rows: Vec<Value> = partitions.iter().map(row).collect();
    json!({ "total": total(partitions), "unknown": unknown(partitions), "partitions": rows })
}

/// Where the time goes, in hundredths, and below it what a person should know of single partitions.
fn explained(partitions: &[proto::PartitionLag]) -> View {
    let several = partitions.iter().any(|lag| lag.deployment != partitions[0].deployment);
    let name = |lag: &proto::PartitionLag| match several {
        _ if is_unknown(lag) => lag.deployment.clone(),
        true => format!("{} {}/{}", lag.deployment, lag.topic, lag.partition),
        false => format!("{}/{}", lag.topic, lag.partition),
    };
    let mut table = Table::new(
        &["PARTITION", ">LAG", ">SECONDS", ">FETCH", ">HANDLER", ">STATE", ">COMMIT", ">OTHERS", ">STOPPED"],
        "nothing is deployed",
    );
    let mut notes = Vec::new();
    for lag in partitions {
        let (parts, stopped) = shares(lag);
        let cell = |share: &Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.0}%")).into();
        let mut row = vec![name(lag).into(), records(lag), seconds(lag).into()];
        row.extend(parts.iter().map(cell));
        row.push(match stopped {
            Some(share) if share >= 1.0 => Cell::toned(format!("{share:.0}%"), Tone::Bad),
            stopped => cell(&stopped),
        });
        table.row(row);
        notes.extend(note(lag).map(|note| Block::Line(format!("{}: {}", name(lag), printable(&note)))));
    }
    let mut blocks = vec![Block::Table(table)];
    blocks.extend(total_line(partitions));
    blocks.extend(notes);
    View { blocks, json: to_json(partitions) }
}

/// Of the window: the shares of what a running task does, and of what stops it; none while unknown.
fn shares(lag: &proto::PartitionLag) -> ([Option<f64>; 5], Option<f64>) {
    let Some(spent) = lag.spent.filter(|spent| spent.window_seconds > 0.0) else { return ([None; 5], None) };
    let share = |seconds: f64| Some(100.0 * seconds / spent.window_seconds);
    let parts = [
        spent.fetch_seconds,
        spent.handler_seconds,
        spent.state_seconds,
        spent.commit_seconds,
        spent.others_seconds,
    ];
    (parts.map(share), share(spent.restore_seconds + spent.halted_seconds + spent.paused_seconds))
}

/// What the columns do not say of a partition.
fn note(lag: &proto::PartitionLag) -> Option<String> {
    let parked = match lag.parked_records {
        0 => None,
        parked => Some(format!("{} records are parked", grouped(parked))),
    };
    let state = match lag.state() {
        proto::TaskState::Running if lag.reason.is_empty() => None,
        proto::TaskState::Unspecified if lag.reason.is_empty() => Some("no node has it".to_owned()),
        proto::TaskState::Running | proto::TaskState::Unspecified => Some(lag.reason.clone()),
        state if lag.reason.is_empty() => Some(task_state_name(state).to_owned()),
        state => Some(format!("{}: {}", task_state_name(state), lag.reason)),
    };
    let notes: Vec<String> = state.into_iter().chain(parked).collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

fn seconds(lag: &proto::PartitionLag) -> String {
    lag.seconds.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds:.1}"))
}

/// The committed position, as `tidemill state get --at-least` takes it.
fn position(lag: &proto::PartitionLag) -> Option<String> {
    let (topic, partition, offset) = (lag.topic.clone(), lag.partition, lag.committed?);
    Some(positions::show(&proto::InputPosition { topic, partition, offset }))
}

/// Of a whole deployment nothing but the reason is known.
fn row(lag: &proto::PartitionLag) -> Value {
    let told = (!is_unknown(lag)).then_some(lag);
    json!({
        "deployment": lag.deployment, "topic": told.map(|lag| &lag.topic), "partition": told.map(|lag| lag.partition),
        "committed": lag.committed, "position": position(lag), "end": told.map(|lag| lag.end),
        "records": told.map(|lag| lag.records), "seconds": lag.seconds,
        "state": task_state_name(lag.state()), "node": lag.node, "reason": lag.reason,
        "revision": lag.revision, "parked_records": lag.parked_records,
        "spent": lag.spent.as_ref().map(spent),
    })
}

fn spent(spent: &proto::TimeSpent) -> Value {
    json!({
        "window_seconds": spent.window_seconds, "fetch_seconds": spent.fetch_seconds,
        "handler_seconds": spent.handler_seconds, "state_seconds": spent.state_seconds,
        "commit_seconds": spent.commit_seconds, "others_seconds": spent.others_seconds,
        "restore_seconds": spent.restore_seconds, "halted_seconds": spent.halted_seconds,
        "paused_seconds": spent.paused_seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::super::failure::Kind;
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
        let other = proto::PartitionLag { deployment: "other".into(), ..behind.clone() };
        assert!(!view(&[behind.clone(), other]).render(Some(80), false).contains("words/0@"), "whose?");
        let view = view(&[behind, new]);
        let text = view.render(Some(80), false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("12,345,678") && text.contains(" ? ") && text.contains(" - "), "{text}");
        assert!(text.ends_with("\ncommitted words/0@12345678\n"), "{text}");
        assert_eq!(view.json["total"], 600);
        assert_eq!(view.json["partitions"][0]["seconds"], Value::Null);
    }

    #[test]
    fn a_deployment_that_could_not_be_asked_about_is_unknown_with_its_reason_and_in_no_total() {
        let known = proto::PartitionLag {
            deployment: "known".into(),
            topic: "words".into(),
            committed: Some(1),
            end: 8,
            records: 7,
            ..proto::PartitionLag::default()
        };
        let lost = proto::PartitionLag {
            deployment: "lost".into(),
            reason: "nobody leads it".into(),
            ..proto::PartitionLag::default()
        };
        let lags = [known, lost];
        let view = view(&lags);
        for text in [view.render(None, false), explained(&lags).render(None, false)] {
            let row = text.lines().find(|line| line.starts_with("lost")).unwrap_or_default();
            assert!(row.contains(" ? ") && !row.contains('0'), "{text}");
            assert!(text.contains("nobody leads it"), "{text}");
            assert!(text.contains("total 7 records behind, without lost\n"), "{text}");
        }
        assert_eq!((&view.json["total"], &view.json["unknown"]), (&json!(7), &json!(["lost"])));
        let row = &view.json["partitions"][1];
        assert_eq!((&row["records"], &row["topic"], &row["end"]), (&Value::Null, &Value::Null, &Value::Null));
        assert_eq!(row["reason"], "nobody leads it");
        // A script sees by the exit code that there is more than it was told.
        let failure = whole(&lags).expect_err("one is missing");
        assert_eq!(failure.kind, Kind::Failed);
        assert!(failure.message.starts_with("lost could not be asked about"), "{failure}");
        assert!(whole(&lags[..1]).is_ok(), "all is told");
    }

    #[test]
    fn an_explanation_fits_eighty_columns_and_names_what_stops_a_partition() {
        let spent = proto::TimeSpent {
            window_seconds: 20.0,
            fetch_seconds: 1.0,
            handler_seconds: 15.0,
            state_seconds: 4.0,
            ..proto::TimeSpent::default()
        };
        let mut slow = proto::PartitionLag {
            deployment: "word-count".into(),
            topic: "some-words-of-a-book".into(),
            records: 12_345_978,
            seconds: Some(12_345.6),
            spent: Some(spent),
            ..proto::PartitionLag::default()
        };
        slow.set_state(proto::TaskState::Running);
        let mut halted = proto::PartitionLag {
            partition: 1,
            spent: Some(proto::TimeSpent { halted_seconds: 20.0, handler_seconds: 0.0, ..spent }),
            reason: "record some-words/1 at offset 3 failed".into(),
            parked_records: 2,
            ..slow.clone()
        };
        halted.set_state(proto::TaskState::Halted);
        let nobody = proto::PartitionLag { partition: 2, state: 0, spent: None, ..slow.clone() };
        let view = explained(&[slow, halted, nobody]);
        let text = view.render(Some(80), false);
        assert!(text.lines().take(4).all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("75%") && text.contains("20%"), "{text}");
        assert!(text.contains("some-words-of-a-book/1: halted: record some-words/1"), "{text}");
        assert!(text.contains("2 records are parked") && text.contains("/2: no node has it"), "{text}");
        assert_eq!(view.json["partitions"][0]["spent"]["handler_seconds"], 15.0);
    }
}

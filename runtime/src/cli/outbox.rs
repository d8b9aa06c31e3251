//! `tidemill outbox`: what waits to be delivered outside Kafka, and a hand in it.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::outbox_client::OutboxClient;
use tonic::Code;
use tonic::transport::Channel;

use super::client::{ANSWER_BYTES_MAX, author};
use super::failure::Failure;
use super::output::{Block, View, confirm};
use super::table::{Cell, Table, Tone, grouped};
use super::values::{show as show_bytes, to_json as bytes_to_json};
use super::watch::Watch;
use super::{Global, Outcome, client, partly};
use crate::config::units;
use crate::node::outbox::holding;

const LIST_EXAMPLES: &str = "\
Examples:
  tidemill outbox list orders
  tidemill outbox list orders --watch
  tidemill outbox list orders -o json | jq '.outboxes[].rows'";

const SHOW_EXAMPLES: &str = "\
Examples:
  tidemill outbox show orders
  tidemill outbox show orders confirmations --partition 2 --after 17
  tidemill outbox show orders confirmations --partition 2 --limit 5 -o json";

const RETRY_EXAMPLES: &str = "\
Examples:
  tidemill outbox retry orders
  tidemill outbox retry orders confirmations
  tidemill outbox retry orders confirmations --partition 2 --sequence 17 --sequence 18";

const DISCARD_EXAMPLES: &str = "\
Examples:
  tidemill outbox discard orders confirmations --partition 2 --sequence 17
  tidemill outbox discard orders confirmations --all --yes";

const PAUSE_EXAMPLES: &str = "\
Examples:
  tidemill outbox pause orders confirmations
  tidemill outbox pause orders";

const RESUME_EXAMPLES: &str = "\
Examples:
  tidemill outbox resume orders confirmations
  tidemill outbox resume orders";

/// Keys and values are shown as text where they are.
const TEXT: &str = "utf8";

/// Rows of one answer of the node.
const PAGE_ROWS: u32 = 1_000;

/// How long an answer of all owners may take.
const WAIT: Duration = Duration::from_secs(20);

/// Look at what waits to be delivered outside Kafka, and deal with what does not go
///
/// Any node answers; it asks the nodes that own the partitions. Of a deployment without an outbox, and without rows that
/// an earlier version left, everything but a list is refused.
#[derive(Debug, Args)]
pub struct Outbox {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Show(Show),
    Retry(Retry),
    Discard(Discard),
    Pause(Pause),
    Resume(Resume),
}

/// Show what waits for each destination, and how the destinations are
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
struct List {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    #[command(flatten)]
    watch: Watch,
}

/// Show rows that wait, the oldest first
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct Show {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    /// Name of the output; every one if left out
    destination: Option<String>,
    /// This partition; every one if left out
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// At most this many rows of each partition
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Rows beyond this sequence number
    #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
    after: u64,
}

/// Try rows now, however often they have failed
///
/// A circuit breaker that is open lets one delivery through, which decides.
#[derive(Debug, Args)]
#[command(after_help = RETRY_EXAMPLES)]
struct Retry {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    /// Name of the output; every one if left out
    destination: Option<String>,
    #[command(flatten)]
    rows: Rows,
}

/// Delete rows that will not be delivered
///
/// They are gone when the command says so. Rows that are under way, and those whose commit is not known yet, are left alone.
#[derive(Debug, Args)]
#[command(after_help = DISCARD_EXAMPLES)]
struct Discard {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    /// Name of the output
    destination: String,
    #[command(flatten)]
    rows: Rows,
    /// Every row of the destination
    #[arg(long, conflicts_with = "sequence", required_unless_present = "sequence")]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Args)]
struct Rows {
    /// Only this partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Only the row with this number, as `outbox show` has it; may be given several times
    #[arg(long, value_name = "SEQUENCE", requires = "partition")]
    sequence: Vec<u64>,
}

/// Send nothing more to a destination until it is resumed
///
/// On every node, and over restarts. Rows go on being written, up to the bound; then the input pauses.
#[derive(Debug, Args)]
#[command(after_help = PAUSE_EXAMPLES)]
struct Pause {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    /// Name of the output; every one if left out
    destination: Option<String>,
}

/// Send to a paused destination again
#[derive(Debug, Args)]
#[command(after_help = RESUME_EXAMPLES)]
struct Resume {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    /// Name of the output; every one if left out
    destination: Option<String>,
}

impl Outbox {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            match self.command {
                Command::List(list) => list.run(global).await,
                Command::Show(show) => show.run(global).await,
                Command::Retry(retry) => retry.run(global).await,
                Command::Discard(discard) => discard.run(global).await,
                Command::Pause(pause) => pause.run(global).await,
                Command::Resume(resume) => resume.run(global).await,
            }
        })
    }
}

async fn connect(global: &Global) -> Result<OutboxClient<Channel>, Failure> {
    Ok(OutboxClient::new(client::connect(global).await?).max_decoding_message_size(ANSWER_BYTES_MAX))
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(WAIT);
    request
}

impl List {
    async fn run(self, global: &Global) -> Outcome {
        let look = || async { Ok(list_view(&of(global, &self.name).await?)) };
        self.watch.show(global.output, look).await
    }
}

async fn of(global: &Global, name: &str) -> Result<Vec<proto::OutboxState>, Failure> {
    let request = proto::ListOutboxRequest { deployment: name.to_owned(), ..Default::default() };
    Ok(connect(global).await?.list(timed(request)).await?.into_inner().outboxes)
}

fn list_view(outboxes: &[proto::OutboxState]) -> View {
    let columns = ["DESTINATION", ">PART", "STATE", ">ROWS", ">OLDEST", ">DELIVERED", ">FAILED", ">REFUSED"];
    let mut table = Table::new(&columns, "no output has an outbox");
    for state in outboxes {
        let (text, tone) = state_of(state);
        table.row([
            state.destination.clone().into(),
            state.partition.to_string().into(),
            Cell::toned(text, tone),
            grouped(state.rows).into(),
            state.oldest_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}s")).into(),
            grouped(state.delivered).into(),
            grouped(state.failed).into(),
            grouped(state.refused).into(),
        ]);
    }
    let total: u64 = outboxes.iter().map(|state| state.rows).sum();
    let mut blocks = vec![Block::Table(table)];
    if !outboxes.is_empty() {
        blocks.push(Block::Line(format!("total {} rows wait", grouped(total))));
    }
    let rows: Vec<Value> = outboxes.iter().map(list_row).collect();
    View { blocks, json: json!({ "total": total, "outboxes": rows }) }
}

/// What of a destination's state matters most.
fn state_of(state: &proto::OutboxState) -> (String, Tone) {
    let opens = Duration::from_millis(state.breaker_opens_ms);
    match (state.way.as_str(), state.breaker()) {
        ("", _) => ("no output".to_owned(), Tone::Warning),
        _ if state.paused => ("paused".to_owned(), Tone::Warning),
        (_, proto::BreakerState::Open) if opens.is_zero() => ("open".to_owned(), Tone::Bad),
        (_, proto::BreakerState::Open) => (format!("open {}", units::show_duration(opens)), Tone::Bad),
        (_, proto::BreakerState::HalfOpen) => ("half_open".to_owned(), Tone::Warning),
        _ if state.full => ("full".to_owned(), Tone::Bad),
        _ => ("closed".to_owned(), Tone::Good),
    }
}

fn list_row(state: &proto::OutboxState) -> Value {
    let breaker = match state.breaker() {
        proto::BreakerState::Unspecified => Value::Null,
        proto::BreakerState::Closed => "closed".into(),
        proto::BreakerState::Open => "open".into(),
        proto::BreakerState::HalfOpen => "half_open".into(),
    };
    json!({
        "destination": state.destination, "partition": state.partition, "node": state.node, "way": state.way,
        "rows": state.rows, "bytes": state.bytes, "in_flight": state.in_flight,
        "oldest_seconds": state.oldest_seconds, "full": state.full, "paused": state.paused, "breaker": breaker,
        "breaker_opens_ms": state.breaker_opens_ms, "delivered": state.delivered, "failed": state.failed,
        "refused": state.refused,
    })
}

impl Show {
    async fn run(self, global: &Global) -> Outcome {
        let destination = self.destination.unwrap_or_default();
        let mut partitions = match self.partition {
            Some(partition) => BTreeSet::from([partition]),
            None => holding(&of(global, &self.name).await?, &destination),
        };
        if partitions.is_empty() {
            // There may be no such outbox: the answer for any partition says so.
            partitions.insert(0);
        }
        let mut client = connect(global).await?;
        let (mut rows, mut more) = (Vec::new(), Vec::new());
        let limit = self.limit as usize;
        for partition in partitions {
            let mut request = proto::ShowOutboxRequest {
                deployment: self.name.clone(),
                partition,
                destination: destination.clone(),
                after: self.after,
                limit: 0,
                local: false,
            };
            let mut found = Vec::new();
            // An answer has fewer where they are large. One beyond the limit says that there are more.
            while found.len() <= limit {
                request.limit = PAGE_ROWS.min((limit + 1 - found.len()) as u32);
                let page = client.show(timed(request.clone())).await?.into_inner().rows;
                let Some(last) = page.last() else { break };
                request.after = last.sequence;
                found.extend(page);
            }
            let has_more = found.len() > limit;
            found.truncate(limit);
            more.extend(found.last().filter(|_| has_more).map(|last| (partition, last.sequence)));
            rows.extend(found.into_iter().map(|row| (partition, row)));
        }
        show_view(&rows, &more).print(global.output)
    }
}

/// `more` has the last rows that are shown of partitions that have others behind them.
fn show_view(rows: &[(i32, proto::ShownOutboxRow)], more: &[(i32, u64)]) -> View {
    let columns = [">PART", ">SEQUENCE", "DESTINATION", "KEY", "TYPE", ">ATTEMPTS", "NEXT", "REASON"];
    let mut table = Table::new(&columns, "nothing waits");
    for (partition, row) in rows {
        table.row([
            partition.to_string().into(),
            row.sequence.to_string().into(),
            row.destination.clone().into(),
            row.key.as_deref().map_or_else(|| "-".to_owned(), |key| show_bytes(key, TEXT)).into(),
            row.r#type.clone().into(),
            row.attempts.to_string().into(),
            next(row).into(),
            row.reason.clone().into(),
        ]);
    }
    let json: Vec<Value> = rows.iter().map(|(partition, row)| show_row(*partition, row)).collect();
    let next: Vec<Value> =
        more.iter().map(|(partition, after)| json!({ "partition": partition, "after": after })).collect();
    let mut view = View::table(table, json!({ "rows": json, "more": next }));
    if let [(partition, after), others @ ..] = more {
        let others = match others.len() {
            0 => String::new(),
            count => format!(", and in {count} more"),
        };
        view.blocks.push(Block::Line(format!(
            "more wait in partition {partition}{others}; --limit N gives more, --partition {partition} --after {after} the next"
        )));
    }
    view
}

fn next(row: &proto::ShownOutboxRow) -> String {
    match row.due_ms {
        _ if row.in_flight => "under way".to_owned(),
        _ if row.held => "held".to_owned(),
        0 => "now".to_owned(),
        ms => units::show_duration(Duration::from_millis(ms)),
    }
}

fn show_row(partition: i32, row: &proto::ShownOutboxRow) -> Value {
    let headers: serde_json::Map<String, Value> =
        row.headers.iter().map(|header| (header.name.clone(), header.value.clone().into())).collect();
    let json_of = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(|bytes| bytes_to_json(bytes, TEXT));
    let (key, value) = (json_of(&row.key), json_of(&row.value));
    json!({
        "partition": partition, "sequence": row.sequence, "destination": row.destination, "id": row.id,
        "type": row.r#type, "key": key, "value": value, "headers": headers,
        "timestamp_ms": row.timestamp_ms, "created_ms": row.created_ms, "attempts": row.attempts,
        "reason": row.reason, "in_flight": row.in_flight, "held": row.held, "due_ms": row.due_ms,
        // As outbox tables of databases call the same, for whatever reads those.
        "aggregate_id": key, "payload": value, "created_at": units::show_time_ms(row.created_ms),
        "delivered": false,
    })
}

impl Retry {
    async fn run(self, global: &Global) -> Outcome {
        let destination = self.destination.unwrap_or_default();
        let rows = proto::OutboxRows { destination, sequences: self.rows.sequence };
        let request = proto::RetryOutboxRequest {
            deployment: self.name,
            partition: self.rows.partition,
            rows: Some(rows),
            local: false,
            author: author(),
        };
        let answer = connect(global).await?.retry(timed(request)).await;
        let rows = answer.map_err(|status| partly::failed(status, "rows", global.output))?.into_inner().rows;
        View::line(format!("{} rows are tried", grouped(rows)), json!({ "rows": rows })).print(global.output)
    }
}

impl Discard {
    async fn run(self, global: &Global) -> Outcome {
        let mut client = connect(global).await?;
        let rows = proto::OutboxRows {
            destination: self.destination.clone(),
            sequences: self.rows.sequence.clone(),
        };
        if !self.yes {
            let request = proto::CountDiscardRequest {
                deployment: self.name.clone(),
                partition: self.rows.partition,
                rows: Some(rows.clone()),
                local: false,
            };
            // What would be refused is refused here.
            let found = match client.count_discard(timed(request)).await {
                Ok(answer) => Some(answer.into_inner().rows),
                // By a node of before there was this.
                Err(status) if status.code() == Code::Unimplemented => None,
                Err(status) => return Err(status.into()),
            };
            if found == Some(0) {
                return discarded(0).print(global.output);
            }
            confirm(&self.question(found), self.yes)?;
        }
        let request = proto::DiscardOutboxRequest {
            deployment: self.name,
            partition: self.rows.partition,
            rows: Some(rows),
            local: false,
            author: author(),
        };
        let answer = client.discard(timed(request)).await;
        let rows = answer.map_err(|status| partly::failed(status, "rows", global.output))?.into_inner().rows;
        discarded(rows).print(global.output)
    }

    /// With how many rows there are, if that is known.
    fn question(&self, found: Option<u64>) -> String {
        let what = match self.rows.sequence.len() {
            0 => "every row".to_owned(),
            count => format!("{count} rows"),
        };
        let partition =
            self.rows.partition.map_or_else(String::new, |number| format!(", partition {number}"));
        let now = found.map_or_else(String::new, |rows| format!(" ({} now)", grouped(rows)));
        format!(
            "Discard {what} of {}/{}{partition}{now}? They are never delivered.",
            self.name, self.destination
        )
    }
}

fn discarded(rows: u64) -> View {
    View::line(format!("{} rows are discarded", grouped(rows)), json!({ "rows": rows }))
}

impl Pause {
    async fn run(self, global: &Global) -> Outcome {
        let request = proto::PauseOutboxRequest {
            deployment: self.name.clone(),
            destination: self.destination.unwrap_or_default(),
            author: author(),
        };
        let paused = connect(global).await?.pause(timed(request)).await?.into_inner().paused;
        paused_view(&self.name, paused).print(global.output)
    }
}

impl Resume {
    async fn run(self, global: &Global) -> Outcome {
        let request = proto::ResumeOutboxRequest {
            deployment: self.name.clone(),
            destination: self.destination.unwrap_or_default(),
            author: author(),
        };
        let paused = connect(global).await?.resume(timed(request)).await?.into_inner().paused;
        paused_view(&self.name, paused).print(global.output)
    }
}

fn paused_view(name: &str, paused: Vec<String>) -> View {
    let line = match paused.as_slice() {
        [] => format!("{name}: no destination is paused"),
        some => format!("{name}: paused are {}", some.join(", ")),
    };
    View::line(line, json!({ "name": name, "paused": paused }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_eighty_columns_and_says_what_matters_most() {
        let mut open = proto::OutboxState {
            destination: "confirmations".into(),
            partition: 12,
            node: "node-0a1b2c3d".into(),
            way: "http".into(),
            rows: 10_000,
            oldest_seconds: Some(12.3),
            delivered: 1_234_567,
            failed: 12,
            full: true,
            breaker_opens_ms: 7_000,
            ..proto::OutboxState::default()
        };
        open.set_breaker(proto::BreakerState::Open);
        let mut probed = proto::OutboxState { rows: 1, ..open.clone() };
        probed.set_breaker(proto::BreakerState::HalfOpen);
        let gone = proto::OutboxState { way: String::new(), oldest_seconds: None, ..open.clone() };
        let paused = proto::OutboxState { paused: true, ..open.clone() };
        let view = list_view(&[open, gone, paused, probed]);
        let text = view.render(Some(80), false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "confirmations",
            "1,234,567",
            "open 7s",
            "half_open",
            "no output",
            "paused",
            "total 30,001 rows wait",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(view.json["outboxes"][0]["breaker"], "open");
        assert_eq!(view.json["outboxes"][3]["breaker"], "half_open");
    }

    #[test]
    fn the_question_before_a_discard_says_how_many_rows_there_are() {
        let discard = Discard {
            name: "orders".into(),
            destination: "confirmations".into(),
            rows: Rows { partition: Some(2), sequence: Vec::new() },
            all: true,
            yes: false,
        };
        let asked = discard.question(Some(1_234));
        assert_eq!(
            asked,
            "Discard every row of orders/confirmations, partition 2 (1,234 now)? They are never delivered."
        );
        assert!(discard.question(None).contains("partition 2? "), "a node that cannot say so");
    }

    #[test]
    fn a_row_says_what_it_is_for_whom_and_since_when() {
        let row = proto::ShownOutboxRow {
            sequence: 17,
            destination: "confirmations".into(),
            id: "life/topic/2/5/0".into(),
            r#type: "order.paid".into(),
            key: Some(b"order-3".to_vec()),
            value: Some(b"{}".to_vec()),
            created_ms: 1_736_937_000_000,
            ..proto::ShownOutboxRow::default()
        };
        let view = show_view(&[(2, row)], &[(2, 17), (5, 3)]);
        let text = view.render(None, false);
        assert!(text.contains("TYPE") && text.contains("order.paid"), "{text}");
        let more = "more wait in partition 2, and in 1 more; --limit N gives more, --partition 2 --after 17 the next\n";
        assert!(text.ends_with(more), "{text}");
        assert_eq!(view.json["more"][1], json!({ "partition": 5, "after": 3 }));
        for (name, expected) in [
            ("id", json!("life/topic/2/5/0")),
            ("key", json!("order-3")),
            ("type", json!("order.paid")),
            ("value", json!("{}")),
            ("created_ms", json!(1_736_937_000_000_i64)),
            ("aggregate_id", json!("order-3")),
            ("payload", json!("{}")),
            ("created_at", json!("2025-01-15T10:30:00.000Z")),
            ("delivered", json!(false)),
        ] {
            assert_eq!(view.json["rows"][0][name], expected, "{name}");
        }
    }
}

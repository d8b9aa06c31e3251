//! `tidemill dlq`: dead letters are listed, shown, counted, given back and discarded.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::dead_letters_client::DeadLettersClient;
use tonic::transport::Channel;

use super::client::{ANSWER_BYTES_MAX, author};
use super::failure::Failure;
use super::letters::{COUNT_WAIT, Which, counted, sum};
use super::output::{Block, View, confirm};
use super::redrive::{Redrive, Redrives};
use super::table::{Table, grouped, printable};
use super::values::{show_text, text_json};
use super::{Global, Outcome, client};
use crate::config::units;

/// Letters of one answer of the node.
const PAGE_LETTERS: u32 = 1_000;
const WAIT: Duration = Duration::from_secs(30);

const LIST_EXAMPLES: &str = "\
Examples:
  tidemill dlq list orders
  tidemill dlq list orders --error-type DecodeError --since 2h
  tidemill dlq list orders --version 2
  tidemill dlq list orders --key customer-7 --max-messages 10 -o json
  tidemill dlq list orders --all --partition 0 --offsets 100..200";

const SHOW_EXAMPLES: &str = "\
Examples:
  tidemill dlq show orders 0/17
  tidemill dlq show orders 3/120 -o json";

const COUNT_EXAMPLES: &str = "\
Examples:
  tidemill dlq count orders
  tidemill dlq count orders --error-type decode --since 1h -o json";

const DISCARD_EXAMPLES: &str = "\
Examples:
  tidemill dlq discard orders --error-type DecodeError --dry-run
  tidemill dlq discard orders --key customer-7 --yes";

/// Look at dead letters, give them back, or discard them
///
/// A letter waits until it is given back or discarded, and then never comes back again. The record goes to
/// its deployment alone: no other reader of the input sees it.
#[derive(Debug, Args)]
pub struct Dlq {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Show(Show),
    Count(Count),
    Redrive(Redrive),
    Redrives(Redrives),
    Discard(Discard),
}

/// List the letters that wait
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES, disable_version_flag = true)]
struct List {
    deployment: String,
    #[command(flatten)]
    which: Which,
    /// At most this many letters
    #[arg(long, visible_alias = "limit", short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    max_messages: u64,
    /// Also those that were given back or discarded
    #[arg(long)]
    all: bool,
    /// Where an earlier list stopped
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<String>,
}

/// Show one letter whole
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct Show {
    deployment: String,
    /// Where it lies in the dead-letter topic
    #[arg(value_parser = place, value_name = "PARTITION/OFFSET")]
    letter: (i32, u64),
}

/// Count the letters that wait, by error type
#[derive(Debug, Args)]
#[command(after_help = COUNT_EXAMPLES, disable_version_flag = true)]
struct Count {
    deployment: String,
    #[command(flatten)]
    which: Which,
}

/// Let letters wait no more
///
/// They stay in the dead-letter topic for as long as it keeps them, but are not listed or given back any
/// more. Who discarded what is kept in the control topic.
#[derive(Debug, Args)]
#[command(after_help = DISCARD_EXAMPLES, disable_version_flag = true)]
struct Discard {
    deployment: String,
    #[command(flatten)]
    which: Which,
    /// Count the letters and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

fn place(text: &str) -> Result<(i32, u64), String> {
    let place = text
        .split_once('/')
        .and_then(|(partition, offset)| Some((partition.parse::<u16>().ok()?.into(), offset.parse().ok()?)));
    place.ok_or_else(|| format!("`{text}` is no place: write PARTITION/OFFSET, as `dlq list` shows them"))
}

pub fn letters(channel: Channel) -> DeadLettersClient<Channel> {
    DeadLettersClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub fn timed<T>(message: T, wait: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(wait);
    request
}

/// Counts the letters that are meant.
pub async fn count(
    client: &mut DeadLettersClient<Channel>,
    deployment: &str,
    which: &Which,
    retries_max: u32,
) -> Result<proto::CountLettersResponse, Failure> {
    let request = proto::CountLettersRequest {
        deployment: deployment.to_owned(),
        filter: Some(which.filter()?),
        retries_max,
        ..proto::CountLettersRequest::default()
    };
    Ok(client.count(timed(request, COUNT_WAIT)).await?.into_inner())
}

impl Command {
    /// The deployment, and which of its letters, of a command that is about some.
    fn meant(&mut self) -> Option<(&str, &mut Which)> {
        match self {
            Command::List(List { deployment, which, .. })
            | Command::Count(Count { deployment, which })
            | Command::Discard(Discard { deployment, which, .. }) => Some((deployment.as_str(), which)),
            Command::Redrive(redrive) => Some(redrive.meant()),
            Command::Show(_) | Command::Redrives(_) => None,
        }
    }
}

impl Dlq {
    pub fn run(mut self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            if let Some((deployment, which)) = self.command.meant() {
                which.find_versions(deployment, &channel).await?;
            }
            let client = letters(channel);
            match self.command {
                Command::List(list) => list.run(client, global).await,
                Command::Show(show) => show.run(client, global).await,
                Command::Count(count) => count.run(client, global).await,
                Command::Redrive(redrive) => redrive.run(client, global).await,
                Command::Redrives(redrives) => redrives.run(client, global).await,
                Command::Discard(discard) => discard.run(client, global).await,
            }
        })
    }
}

impl List {
    async fn run(self, mut client: DeadLettersClient<Channel>, global: &Global) -> Outcome {
        let wrong = |_| Failure::usage("--page-token: take it from the page before, as it is");
        let token =
            self.page_token.as_ref().map(|token| STANDARD.decode(token).map_err(wrong)).transpose()?;
        let mut request = proto::ListLettersRequest {
            deployment: self.deployment.clone(),
            filter: Some(self.which.filter()?),
            marked: self.all,
            page_token: token.unwrap_or_default(),
            ..proto::ListLettersRequest::default()
        };
        let mut found: Vec<proto::Letter> = Vec::new();
        loop {
            request.limit = (self.max_messages - found.len() as u64).min(PAGE_LETTERS.into()) as u32;
            let page = client.list(timed(request.clone(), WAIT)).await?.into_inner();
            found.extend(page.letters);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || found.len() as u64 >= self.max_messages {
                break;
            }
        }
        let mut view = list(&found);
        view.note_more(found.len(), "--max-messages N", &request.page_token);
        view.print(global.output)
    }
}

fn key(letter: &proto::Letter) -> String {
    letter.key.as_deref().map_or("null".to_owned(), show_text)
}

fn list(letters: &[proto::Letter]) -> View {
    let header = ["LETTER", "KEY", "FROM", "FAILED", "ERROR TYPE", ">BACK", "REASON"];
    let mut table = Table::new(&header, "no letter waits");
    for letter in letters {
        let marked = if letter.state() == proto::LetterState::Marked { " done" } else { "" };
        table.row([
            format!("{}/{}{marked}", letter.partition, letter.offset).into(),
            key(letter).into(),
            from(letter).into(),
            units::show_time_ms(letter.failure_timestamp_ms).into(),
            letter.error_type.clone().into(),
            letter.retry_count.to_string().into(),
            letter.failure_reason.clone().into(),
        ]);
    }
    let rows: Vec<Value> = letters.iter().map(to_json).collect();
    View::table(table, json!({ "letters": rows }))
}

/// Where it was before: a record of an input, or a row of an outbox.
fn from(letter: &proto::Letter) -> String {
    match letter.destination.as_str() {
        "" => format!("{}/{}@{}", letter.original_topic, letter.partition, letter.original_offset),
        destination => format!("outbox {destination}/{}#{}", letter.partition, letter.original_offset),
    }
}

fn to_json(letter: &proto::Letter) -> Value {
    json!({
        "partition": letter.partition, "offset": letter.offset,
        "key": letter.key.as_deref().map(text_json),
        "destination": (!letter.destination.is_empty()).then_some(&letter.destination),
        "original_topic": letter.original_topic, "original_partition": letter.partition,
        "original_offset": letter.original_offset, "original_timestamp_ms": letter.original_timestamp_ms,
        "failure_reason": letter.failure_reason,
        "failure_timestamp": units::show_time_ms(letter.failure_timestamp_ms),
        "error_type": letter.error_type, "error_class": letter.error_class, "attempts": letter.attempts,
        "retry_count": letter.retry_count, "correlation_id": letter.correlation_id,
        "deployment_version": letter.version, "revision": letter.version,
        "version": (letter.version_number > 0).then_some(letter.version_number),
        "schema_version": letter.schema_version,
        "state": if letter.state() == proto::LetterState::Marked { "marked" } else { "waiting" },
    })
}

impl Show {
    async fn run(self, mut client: DeadLettersClient<Channel>, global: &Global) -> Outcome {
        let (partition, offset) = self.letter;
        let request =
            proto::ShowLetterRequest { deployment: self.deployment, partition, offset, local: false };
        let letter = client.show(timed(request, WAIT)).await?.into_inner().letter.unwrap_or_default();
        whole(&letter).print(global.output)
    }
}

fn whole(letter: &proto::Letter) -> View {
    let text = |bytes: &Option<Vec<u8>>| bytes.as_deref().map_or("null".to_owned(), show_text);
    let by = match letter.version_number {
        0 => format!("revision {}", letter.version),
        number => format!("version {number}, revision {}", letter.version),
    };
    let mut lines = vec![
        format!("letter          {}/{}", letter.partition, letter.offset),
        format!("record          {} of {}", from(letter), units::show_time_ms(letter.original_timestamp_ms)),
        format!("failed          {}", units::show_time_ms(letter.failure_timestamp_ms)),
        format!("reason          {}", letter.failure_reason),
        format!("error           {} ({})", letter.error_type, letter.error_class),
        format!("tried           {} times, back {} times", letter.attempts, letter.retry_count),
        format!("given up by     {by}"),
        format!("correlation id  {}", letter.correlation_id),
    ];
    if !letter.schema_version.is_empty() {
        lines.push(format!("schema version  {}", letter.schema_version));
    }
    let headers = letter.headers.iter();
    lines.extend(headers.map(|header| format!("header          {}={}", header.name, text(&header.value))));
    lines.push(format!("key             {}", key(letter)));
    lines.push(format!("value           {}", text(&letter.value)));
    let mut json = to_json(letter);
    json["value"] = letter.value.as_deref().map_or(Value::Null, text_json);
    json["headers"] = letter
        .headers
        .iter()
        .map(|header| json!({ "name": header.name, "value": header.value.as_deref().map(text_json) }))
        .collect();
    // Whoever wrote the record must not move the cursor.
    View { blocks: lines.iter().map(|line| Block::Line(printable(line))).collect(), json }
}

impl Count {
    async fn run(self, mut client: DeadLettersClient<Channel>, global: &Global) -> Outcome {
        let answer = count(&mut client, &self.deployment, &self.which, 0).await?;
        counted(&answer, "wait").print(global.output)
    }
}

impl Discard {
    async fn run(self, mut client: DeadLettersClient<Channel>, global: &Global) -> Outcome {
        let found = count(&mut client, &self.deployment, &self.which, u32::MAX).await?;
        let all = sum(&found);
        let letters = all.waiting + all.over_limit + all.unbound;
        // None are nothing to ask about.
        if self.dry_run || (letters == 0 && !self.yes) {
            return counted(&found, "would be discarded").print(global.output);
        }
        confirm(
            &format!(
                "Discard {} letters of {}? They will NOT be given back.",
                grouped(letters),
                self.deployment
            ),
            self.yes,
        )?;
        let request = proto::DiscardLettersRequest {
            deployment: self.deployment.clone(),
            filter: Some(self.which.filter()?),
            author: author(),
        };
        let id = client.discard(timed(request, WAIT)).await?.into_inner().id;
        super::redrive::follow(client, &self.deployment, id, global).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_says_which_version_gave_it_up_and_its_text_is_shown_and_not_obeyed() {
        let letter = proto::Letter {
            version: 21,
            version_number: 2,
            failure_reason: "no\nrecord".into(),
            value: Some(b"\x1b[2Jcleared".to_vec()),
            ..proto::Letter::default()
        };
        let view = whole(&letter);
        let text = view.render(None, false);
        for line in [
            "given up by     version 2, revision 21",
            "reason          no\\nrecord",
            "value           \\u{1b}[2Jcleared",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!((&view.json["version"], &view.json["revision"]), (&json!(2), &json!(21)));
        assert_eq!(view.json["value"], "\u{1b}[2Jcleared", "as it is, for programs");
        let forgotten = whole(&proto::Letter { version_number: 0, ..letter });
        assert_eq!(forgotten.json["version"], Value::Null);
        assert!(forgotten.render(None, false).contains("given up by     revision 21"));
    }

    #[test]
    fn a_letter_is_named_by_its_place() {
        assert_eq!(place("3/120"), Ok((3, 120)));
        for wrong in ["", "3", "3/", "-1/0", "a/b", "3/x"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}

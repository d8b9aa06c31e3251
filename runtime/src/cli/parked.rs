//! `tidemill parked`: keys whose records have failed and are kept, and a hand in them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::parked_client::ParkedClient;
use tonic::Code;
use tonic::transport::Channel;

use super::client::{ANSWER_BYTES_MAX, author};
use super::failure::Failure;
use super::output::{View, confirm};
use super::table::{Cell, Table, Tone, grouped};
use super::values::{KeyFormat, show_text, text_json};
use super::{Global, Outcome, client, partly};
use crate::config::units;

const LIST_EXAMPLES: &str = "\
Examples:
  tidemill parked list orders
  tidemill parked list orders --held --kind transient
  tidemill parked list orders --key customer-7 -o json";

const RELEASE_EXAMPLES: &str = "\
Examples:
  tidemill parked release orders --key customer-7
  tidemill parked release orders --partition 2 --offset 120
  tidemill parked release orders --held";

const DROP_EXAMPLES: &str = "\
Examples:
  tidemill parked drop orders --key customer-7
  tidemill parked drop orders --partition 2 --offset 120 --yes
  tidemill parked drop orders --kind decode --discard
  tidemill parked drop orders --topic returns
  tidemill parked drop orders --key customer-7 --waiting";

/// Keys of one answer of the node.
const PAGE_KEYS: u32 = 1_000;
/// How long an answer of all owners may take.
const WAIT: Duration = Duration::from_secs(30);

/// Look at parked records, have them tried now, or give them up
///
/// A parked record has failed and is kept, and the later ones of its key wait behind it. Any node answers; it
/// asks the nodes that own the partitions.
#[derive(Debug, Args)]
pub struct Parked {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Release(Release),
    Drop(Drop),
}

/// Which keys are meant: those whose first record matches everything that is given.
#[derive(Debug, Clone, Args)]
struct Which {
    /// Only this key; may be given several times
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// How the keys are written
    #[arg(long, default_value = "text", value_enum, requires = "key")]
    key_format: KeyFormat,
    /// Only what failed as this kind, like transient; may be given several times
    #[arg(long)]
    kind: Vec<String>,
    /// Only what came from this topic, whether or not that is an input of the version; may be given several times
    #[arg(long)]
    topic: Vec<String>,
    /// Only what is held: its attempts are used up, and it stays for a person
    #[arg(long)]
    held: bool,
    /// Only this partition
    #[arg(long, short, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Only what is at this offset of its input
    #[arg(long, requires = "partition")]
    offset: Option<u64>,
}

impl Which {
    fn filter(&self) -> Result<proto::ParkedFilter, Failure> {
        let keys = self.key.iter().map(|key| self.key_format.read(key).map_err(Failure::usage));
        Ok(proto::ParkedFilter {
            keys: keys.collect::<Result<_, _>>()?,
            kinds: self.kind.clone(),
            topics: self.topic.clone(),
            held: self.held,
            offset: self.offset,
        })
    }

    fn is_everything(&self) -> bool {
        let lists = [&self.key, &self.kind, &self.topic];
        lists.iter().all(|list| list.is_empty()) && !self.held && self.partition.is_none()
    }
}

/// List keys with parked records, those parked first before the others
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
struct List {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    #[command(flatten)]
    which: Which,
    /// At most this many keys
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Where an earlier list stopped
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<String>,
}

/// Have keys tried now
///
/// Also what is held. Attempts count anew, and the order of a key stays: its first record is tried, then those
/// behind it one after the other, then later records of the key. What fails again follows the policy.
#[derive(Debug, Args)]
#[command(after_help = RELEASE_EXAMPLES)]
struct Release {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    #[command(flatten)]
    which: Which,
    /// Every key
    #[arg(long)]
    all: bool,
}

/// Give the first record of keys up, so that the next one has its turn
///
/// It becomes a dead letter, which `tidemill dlq` lists and gives back; with --discard it is gone. Of a topic that
/// is no input of the version any more, the records directly behind it go as well: none of them is ever tried.
#[derive(Debug, Args)]
#[command(after_help = DROP_EXAMPLES)]
struct Drop {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    #[command(flatten)]
    which: Which,
    /// Every key
    #[arg(long)]
    all: bool,
    /// Also the records that wait behind it
    #[arg(long)]
    waiting: bool,
    /// Without a dead letter: the records are gone
    #[arg(long)]
    discard: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl Parked {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let client = ParkedClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            match self.command {
                Command::List(list) => list.run(client, global).await,
                Command::Release(release) => release.run(client, global).await,
                Command::Drop(drop) => drop.run(client, global).await,
            }
        })
    }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(WAIT);
    request
}

/// Changes of everything are asked for in a word.
fn chosen(which: &Which, all: bool) -> Result<(), Failure> {
    match (which.is_everything(), all) {
        (true, false) => Err(Failure::usage(
            "which keys are meant? Give --key, --kind, --topic, --held or --partition, or --all for every key",
        )),
        (false, true) => {
            Err(Failure::usage("--all is every key: leave it out, or what else says which keys are meant"))
        }
        _ => Ok(()),
    }
}

impl List {
    async fn run(self, mut client: ParkedClient<Channel>, global: &Global) -> Outcome {
        let wrong = |_| Failure::usage("--page-token: take it from the page before, as it is");
        let token =
            self.page_token.as_ref().map(|token| STANDARD.decode(token).map_err(wrong)).transpose()?;
        let mut request = proto::ListParkedRequest {
            deployment: self.name,
            filter: Some(self.which.filter()?),
            partition: self.which.partition,
            limit: 0,
            page_token: token.unwrap_or_default(),
            local: false,
        };
        let mut found: Vec<proto::ParkedKey> = Vec::new();
        loop {
            request.limit = (self.limit - found.len() as u64).min(PAGE_KEYS.into()) as u32;
            let page = client.list(timed(request.clone())).await?.into_inner();
            found.extend(page.keys);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || found.len() as u64 >= self.limit {
                break;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut view = list_view(&found, now.as_millis() as i64);
        view.note_more(found.len(), "--limit N", &request.page_token);
        view.print(global.output)
    }
}

fn list_view(keys: &[proto::ParkedKey], now_ms: i64) -> View {
    let columns = [">PART", "KEY", ">RECORDS", "FIRST", "KIND", ">FAILED", "NEXT", "REASON"];
    let mut table = Table::new(&columns, "nothing is parked");
    for parked in keys {
        let (next, tone) = next(parked, now_ms);
        table.row([
            parked.partition.to_string().into(),
            if parked.keyless { "-".to_owned() } else { show_text(&parked.key) }.into(),
            grouped(parked.records).into(),
            format!("{}@{}", parked.topic, parked.offset).into(),
            parked.kind.clone().into(),
            parked.attempts.to_string().into(),
            Cell::toned(next, tone),
            parked.reason.clone().into(),
        ]);
    }
    let rows: Vec<Value> = keys.iter().map(to_json).collect();
    View::table(table, json!({ "keys": rows }))
}

/// When the first record is tried.
fn next(parked: &proto::ParkedKey, now_ms: i64) -> (String, Tone) {
    match parked.next_attempt_ms - now_ms {
        _ if parked.held => ("held".to_owned(), Tone::Bad),
        ms if ms <= 0 => ("now".to_owned(), Tone::Plain),
        ms => (units::show_duration(Duration::from_millis(ms.unsigned_abs())), Tone::Warning),
    }
}

fn to_json(parked: &proto::ParkedKey) -> Value {
    json!({
        "partition": parked.partition,
        "key": if parked.keyless { Value::Null } else { text_json(&parked.key) },
        "records": parked.records, "topic": parked.topic, "offset": parked.offset, "kind": parked.kind,
        "reason": parked.reason, "attempts": parked.attempts, "next_attempt_ms": parked.next_attempt_ms,
        "held": parked.held,
    })
}

impl Release {
    async fn run(self, mut client: ParkedClient<Channel>, global: &Global) -> Outcome {
        chosen(&self.which, self.all)?;
        let request = proto::ReleaseParkedRequest {
            deployment: self.name,
            filter: Some(self.which.filter()?),
            partition: self.which.partition,
            author: author(),
            local: false,
        };
        let answer = client.release(timed(request)).await;
        let answer = answer.map_err(|status| partly::failed(status, "records", global.output))?;
        let proto::ReleaseParkedResponse { keys, records } = answer.into_inner();
        let line = format!("{} keys are tried now, {} records of them", grouped(keys), grouped(records));
        View::line(line, json!({ "keys": keys, "records": records })).print(global.output)
    }
}

impl Drop {
    async fn run(self, mut client: ParkedClient<Channel>, global: &Global) -> Outcome {
        chosen(&self.which, self.all)?;
        let filter = self.which.filter()?;
        if !self.yes {
            let request = proto::CountDropRequest {
                deployment: self.name.clone(),
                filter: Some(filter.clone()),
                partition: self.which.partition,
                discard: self.discard,
            };
            // What would be refused is refused here.
            match client.count_drop(timed(request)).await {
                Ok(answer) if answer.get_ref().keys == 0 => {
                    return self.dropped(&proto::DropParkedResponse::default()).print(global.output);
                }
                Ok(_) => {}
                // By a node of before there was this.
                Err(status) if status.code() == Code::Unimplemented => {}
                Err(status) => return Err(status.into()),
            }
            confirm(&self.question(), self.yes)?;
        }
        let request = proto::DropParkedRequest {
            deployment: self.name.clone(),
            filter: Some(filter),
            partition: self.which.partition,
            waiting: self.waiting,
            discard: self.discard,
            author: author(),
            local: false,
        };
        let answer = client.drop(timed(request)).await;
        let answer = answer.map_err(|status| partly::failed(status, "records", global.output))?.into_inner();
        self.dropped(&answer).print(global.output)?;
        if answer.left > 0 {
            return Err(Failure::failed(format!(
                "{} records stay parked, because they cannot become dead letters: {}",
                grouped(answer.left),
                answer.reason
            )));
        }
        Ok(())
    }

    fn dropped(&self, answer: &proto::DropParkedResponse) -> View {
        let proto::DropParkedResponse { keys, records, left, reason } = answer;
        let became = if self.discard { "are gone" } else { "are dead letters now" };
        let line = format!("{} records of {} keys {became}", grouped(*records), grouped(*keys));
        View::line(line, json!({ "keys": keys, "records": records, "left": left, "reason": reason }))
    }

    fn question(&self) -> String {
        let what = if self.waiting { "every parked record" } else { "the first parked record" };
        let whose = match self.which.key.as_slice() {
            [] if self.all => "of every key".to_owned(),
            [] => "of each key that is meant".to_owned(),
            keys => format!("of {}", keys.join(", ")),
        };
        let becomes = match self.discard {
            true => "They are gone for good.",
            false => "They become dead letters.",
        };
        format!("Drop {what} {whose} in {}? {becomes}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_eighty_columns_and_says_when_a_key_is_tried() {
        let held = proto::ParkedKey {
            partition: 12,
            key: b"customer-7".to_vec(),
            records: 1_234,
            kind: "transient".into(),
            reason: "the payment service does not answer, and has not answered for a while".into(),
            attempts: 6,
            held: true,
            topic: "orders".into(),
            offset: 1_234_567,
            ..proto::ParkedKey::default()
        };
        let later = proto::ParkedKey { held: false, next_attempt_ms: 8_000, ..held.clone() };
        let keyless =
            proto::ParkedKey { keyless: true, key: Vec::new(), next_attempt_ms: 0, ..later.clone() };
        let view = list_view(&[held, later, keyless], 1_000);
        let text = view.render(Some(80), false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in ["custom", "1,234", "held", "7s", "now"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(view.json["keys"][2]["key"], Value::Null);
    }
}

//! What several commands say about letters: which ones are meant, and how many there are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::failure::Failure;
use super::output::{Block, View};
use super::table::{Table, grouped};
use super::values::KeyFormat;
use crate::config::units;

/// Which letters are meant; everything that is given must match.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// Only records of this key; may be given several times
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// How the keys are written
    #[arg(long, default_value = "text", value_enum, requires = "key")]
    key_format: KeyFormat,
    /// Only failures of this error type or kind, like DecodeError or decode; may be given several times
    #[arg(long, value_name = "TYPE")]
    error_type: Vec<String>,
    /// Only what failed at or after this: a time (UTC unless it names its zone), or how long ago, like 2h
    #[arg(long, value_parser = moment, value_name = "TIME|DURATION")]
    since: Option<i64>,
    /// Only what failed before this
    #[arg(long, value_parser = moment, value_name = "TIME|DURATION")]
    until: Option<i64>,
    /// Only what this version of the deployment gave up, by its number in `tidemill history`; may be given several times
    #[arg(long = "version", value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    versions: Vec<u64>,
    /// The revisions that these versions are, once somebody has asked.
    #[arg(skip)]
    stretches: Vec<proto::OffsetRange>,
    /// Only what this revision of the deployment gave up; may be given several times
    #[arg(long, value_name = "REVISION")]
    revision: Vec<u64>,
    /// Only this partition; may be given several times
    #[arg(long, short, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Vec<i32>,
    /// Only letters at these offsets of the dead-letter topic: one, or FROM..TO without TO
    #[arg(long, value_parser = offsets, value_name = "OFFSET|FROM..TO")]
    offsets: Vec<proto::OffsetRange>,
}

/// A time, or one that long ago.
fn moment(text: &str) -> Result<i64, String> {
    if let Ok(ago) = units::parse_duration(text) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(now.saturating_sub(ago).as_millis() as i64);
    }
    units::parse_time_ms(text).map_err(|_| {
        format!("`{text}` is neither a time such as 2025-01-15T00:00:00Z nor a duration such as 2h")
    })
}

fn offsets(text: &str) -> Result<proto::OffsetRange, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no offset"));
    match text.split_once("..") {
        Some((from, to)) => {
            let range = proto::OffsetRange { from: number(from)?, to: number(to)? };
            (range.from < range.to).then_some(range).ok_or_else(|| format!("{text} holds no offset"))
        }
        None => number(text).map(|from| proto::OffsetRange { from, to: from.saturating_add(1) }),
    }
}

impl Which {
    /// Of every field above, for a command that takes none of them.
    pub const ARGUMENTS: [&str; 9] =
        ["key", "key_format", "error_type", "since", "until", "versions", "revision", "partition", "offsets"];

    /// Asks which revisions the versions are that are meant, if any is named.
    pub async fn find_versions(&mut self, deployment: &str, channel: &Channel) -> Result<(), Failure> {
        if self.versions.is_empty() {
            return Ok(());
        }
        let client = DeploymentsClient::new(channel.clone());
        let request = proto::HistoryRequest { name: deployment.to_owned() };
        let history = client.max_decoding_message_size(ANSWER_BYTES_MAX).history(request).await?;
        self.stretches = stretches(&history.into_inner().versions, &self.versions)?;
        Ok(())
    }

    pub fn filter(&self) -> Result<proto::LetterFilter, Failure> {
        let keys = self.key.iter().map(|key| self.key_format.read(key).map_err(Failure::usage));
        Ok(proto::LetterFilter {
            keys: keys.collect::<Result<_, _>>()?,
            error_types: self.error_type.clone(),
            from_ms: self.since,
            to_ms: self.until,
            // A node that does not know stretches yet does a part of what is meant, and nothing else.
            versions: self.revision.iter().copied().chain(self.stretches.iter().map(|at| at.from)).collect(),
            revisions: self.stretches.clone(),
            partitions: self.partition.clone(),
            offsets: self.offsets.clone(),
        })
    }
}

/// The revisions of each version: from its own up to that of the next, because pauses and restarts have some too.
fn stretches(history: &[proto::Version], versions: &[u64]) -> Result<Vec<proto::OffsetRange>, Failure> {
    let revision = |number: u64| Some(history.iter().find(|one| one.version == number)?.revision);
    let stretch = |&number: &u64| {
        let from = revision(number);
        let stretch =
            from.map(|from| proto::OffsetRange { from, to: revision(number + 1).unwrap_or(u64::MAX) });
        stretch.ok_or_else(|| {
            Failure::not_found(format!(
                "there is no version {number}, or it is forgotten: `tidemill history` lists them"
            ))
        })
    };
    versions.iter().map(stretch).collect()
}

/// Counting reads every letter, so it may take a while.
pub const COUNT_WAIT: Duration = Duration::from_secs(50);

/// The sum over all partitions.
pub fn sum(answer: &proto::CountLettersResponse) -> proto::LetterCounts {
    let mut all = proto::LetterCounts::default();
    for part in &answer.partitions {
        all.waiting += part.waiting;
        all.over_limit += part.over_limit;
        all.unbound += part.unbound;
        all.marked += part.marked;
        all.forgotten += part.forgotten;
        for (kind, count) in &part.by_error_type {
            *all.by_error_type.entry(kind.clone()).or_default() += count;
        }
    }
    all
}

/// What a count found; `what` says what would become of the letters.
pub fn counted(answer: &proto::CountLettersResponse, what: &str) -> View {
    let all = sum(answer);
    let mut kinds: Vec<(&String, &u64)> = all.by_error_type.iter().collect();
    kinds.sort();
    let mut table = Table::new(&["ERROR TYPE", ">LETTERS"], "no letter waits");
    for (kind, count) in &kinds {
        table.row([(*kind).clone().into(), grouped(**count).into()]);
    }
    let mut line = format!("{} letters {what}", grouped(all.waiting));
    for (count, why) in [
        (all.over_limit, "came back too often"),
        (all.unbound, "are of no input or destination any more"),
        (all.marked, "were given back or discarded before"),
    ] {
        if count > 0 {
            line.push_str(&format!("; {} {why}", grouped(count)));
        }
    }
    let partitions: Vec<Value> = answer.partitions.iter().map(to_json).collect();
    let json = json!({
        "waiting": all.waiting, "over_limit": all.over_limit, "unbound": all.unbound, "marked": all.marked,
        "forgotten": all.forgotten, "by_error_type": all.by_error_type, "partitions": partitions,
    });
    View { blocks: vec![Block::Table(table), Block::Line(line)], json }
}

/// For whoever gives letters back to a deployment whose inbox is younger than they are.
pub fn forgotten(letters: u64) -> String {
    format!(
        "warning: {} of the letters are older than inbox.ttl: if their records were sent again and handled meanwhile, they have \
         their effect twice",
        grouped(letters)
    )
}

fn to_json(part: &proto::LetterCounts) -> Value {
    json!({
        "partition": part.partition, "waiting": part.waiting, "over_limit": part.over_limit,
        "unbound": part.unbound, "marked": part.marked, "forgotten": part.forgotten, "by_error_type": part.by_error_type,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_one_or_a_range_that_holds_some() {
        let range = |from, to| Ok(proto::OffsetRange { from, to });
        assert_eq!(offsets("7"), range(7, 8));
        assert_eq!(offsets("7..9"), range(7, 9));
        for wrong in ["", "9..7", "7..7", "a", "1..", "-1"] {
            assert!(offsets(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_version_is_all_revisions_up_to_the_next_one() {
        let version = |version, revision| proto::Version { version, revision, ..proto::Version::default() };
        let history = [version(3, 40), version(2, 21), version(1, 7)];
        let of = |versions: &[u64]| stretches(&history, versions).ok();
        let range = |from, to| proto::OffsetRange { from, to };
        assert_eq!(of(&[2, 3]), Some(vec![range(21, 40), range(40, u64::MAX)]));
        assert_eq!(of(&[1, 4]), None);
        assert_eq!(of(&[u64::MAX]), None);
    }

    #[test]
    fn a_moment_is_a_time_or_lies_that_long_back() {
        assert_eq!(moment("2025-01-15T00:00:00Z"), Ok(1_736_899_200_000));
        assert_eq!(moment("2025-01-15T00:00:00.000"), Ok(1_736_899_200_000));
        let (before, now) = (moment("1h").unwrap(), moment("0s").unwrap());
        assert!((3_600_000..3_601_000).contains(&(now - before)), "{before} {now}");
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn counts_say_what_is_left_out_and_why() {
        let part = |partition, waiting, over_limit| proto::LetterCounts {
            partition,
            waiting,
            over_limit,
            by_error_type: [("DecodeError".to_owned(), waiting)].into(),
            ..proto::LetterCounts::default()
        };
        let answer = proto::CountLettersResponse { partitions: vec![part(0, 1_000, 0), part(1, 234, 2)] };
        let view = counted(&answer, "would be given back");
        let text = view.render(None, false);
        assert!(text.contains("1,234 letters would be given back; 2 came back too often"), "{text}");
        assert_eq!(view.json["by_error_type"]["DecodeError"], 1_234);
    }
}

//! `tidemill dlq redrive`: letters go back to their deployment, and how far that is.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::dead_letters_client::DeadLettersClient;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Channel;

use super::client::author;
use super::dlq::{count, timed};
use super::failure::{Failure, Kind};
use super::letters::{Which, counted, forgotten, sum};
use super::output::{Block, View};
use super::table::{Table, grouped};
use super::{Global, Outcome};
use crate::config::units;

const WAIT: Duration = Duration::from_secs(30);
/// Between two looks at how far a redrive is.
const LOOK: Duration = Duration::from_millis(250);
/// Looks without news after which records that have not ended are left: they are tried again later, or held.
const QUIET_LOOKS: u32 = 8;
/// Looks without any change after which a redrive that is not at its end seems to stand.
const STANDS_LOOKS: u32 = 40;
/// Looks between two lines about progress.
const SAY_EVERY: u32 = 8;

/// Beside the filter, what nobody can say of a redrive that is there.
const OF_A_NEW_ONE: [&str; 4] = ["rate", "retry_limit", "dry_run", "detach"];

const EXAMPLES: &str = "\
Examples:
  tidemill dlq redrive orders --dry-run
  tidemill dlq redrive orders --rate 500
  tidemill dlq redrive orders --error-type InfraTimeoutError --since 1h --rate 50
  tidemill dlq redrive orders --partition 0 --offsets 17
  tidemill dlq redrive orders --cancel 41
  tidemill dlq redrive orders --follow 41";

const LIST_EXAMPLES: &str = "\
Examples:
  tidemill dlq redrives orders
  tidemill dlq redrives orders -o json";

/// Give letters back to their deployment
///
/// Those that are in the topic now; what fails again is a new letter. The fleet does it: Ctrl-C and the end of
/// this command, of a node or of Kafka leave it running, `--follow ID` shows it again and `--cancel ID` ends it.
/// A letter is given back once, so another redrive goes on where a cancelled one ended.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, disable_version_flag = true)]
pub struct Redrive {
    deployment: String,
    #[command(flatten)]
    which: Which,
    /// Letters a second, in the whole fleet [default: as fast as they are taken]
    #[arg(long, value_name = "N", value_parser = rate, conflicts_with = "dry_run")]
    rate: Option<f64>,
    /// Leave letters that came back this often
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    retry_limit: u32,
    /// Count the letters and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Return at once
    #[arg(long, short, conflicts_with = "dry_run")]
    detach: bool,
    /// End a redrive or discard where it is, for all its letters
    #[arg(long, value_name = "ID", conflicts_with_all = Which::ARGUMENTS, conflicts_with_all = OF_A_NEW_ONE)]
    #[arg(conflicts_with = "follow")]
    cancel: Option<u64>,
    /// Show how far a redrive or discard is with all its letters, until it ends
    #[arg(long, value_name = "ID", conflicts_with_all = Which::ARGUMENTS, conflicts_with_all = OF_A_NEW_ONE)]
    follow: Option<u64>,
}

/// List redrives and discards, and how far they are
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct Redrives {
    deployment: String,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    (rate > 0.0 && rate <= 1e6).then_some(rate).ok_or_else(|| "above 0, at most 1000000 a second".to_owned())
}

impl Redrive {
    /// The deployment, and which of its letters.
    pub fn meant(&mut self) -> (&str, &mut Which) {
        (&self.deployment, &mut self.which)
    }

    pub async fn run(self, mut client: DeadLettersClient<Channel>, global: &Global) -> Outcome {
        if let Some(id) = self.cancel {
            let deployment = self.deployment.clone();
            let request = proto::CancelRedriveRequest { deployment, id, author: author() };
            client.cancel(timed(request, WAIT)).await?;
            let json = json!({ "deployment": self.deployment, "id": id, "cancelled": true });
            return View::line(format!("redrive {id} is cancelled"), json).print(global.output);
        }
        if let Some(id) = self.follow {
            return follow(client, &self.deployment, id, global).await;
        }
        if self.dry_run {
            let answer = count(&mut client, &self.deployment, &self.which, self.retry_limit).await?;
            let found = sum(&answer).forgotten;
            if found > 0 {
                eprintln!("{}", forgotten(found));
            }
            return counted(&answer, "would be given back").print(global.output);
        }
        let request = proto::RedriveRequest {
            deployment: self.deployment.clone(),
            filter: Some(self.which.filter()?),
            rate: self.rate.unwrap_or_default(),
            retries_max: self.retry_limit,
            author: author(),
        };
        let id = client.redrive(timed(request, WAIT)).await?.into_inner().id;
        if self.detach {
            let json = json!({ "deployment": self.deployment, "id": id });
            return View::line(format!("redrive {id} is accepted"), json).print(global.output);
        }
        follow(client, &self.deployment, id, global).await
    }
}

impl Redrives {
    pub async fn run(self, mut client: DeadLettersClient<Channel>, global: &Global) -> Outcome {
        let request = proto::RedrivesRequest { deployment: self.deployment, ..Default::default() };
        let found = client.redrives(timed(request, WAIT)).await?.into_inner().redrives;
        let header = [">ID", "WHAT", "ASKED", "BY", "STATE", ">GIVEN", ">OK", ">AGAIN", ">LEFT"];
        let mut table = Table::new(&header, "nothing was given back or discarded");
        for redrive in &found {
            let sums = Sums::of(redrive);
            table.row([
                redrive.id.to_string().into(),
                what(redrive).into(),
                units::show_time_ms(redrive.asked_at_ms).into(),
                redrive.author.clone().into(),
                sums.state(redrive).into(),
                grouped(sums.given).into(),
                grouped(sums.ok).into(),
                grouped(sums.again).into(),
                grouped(sums.over_limit + sums.unbound).into(),
            ]);
        }
        let json: Vec<Value> = found.iter().map(|redrive| Sums::of(redrive).to_json(redrive)).collect();
        let mut view = View::table(table, json!({ "redrives": json }));
        let standing = found.iter().flat_map(|redrive| {
            reasons(redrive).into_iter().map(|reason| format!("{} {}: {reason}", what(redrive), redrive.id))
        });
        view.blocks.extend(standing.map(Block::Line));
        view.print(global.output)
    }
}

fn what(redrive: &proto::RedriveStatus) -> &'static str {
    if redrive.discard { "discard" } else { "redrive" }
}

/// Why nothing comes of a redrive for now, each reason with its partitions.
fn reasons(redrive: &proto::RedriveStatus) -> Vec<String> {
    let mut partitions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for at in redrive.partitions.iter().filter(|at| !at.reason.is_empty()) {
        partitions.entry(&at.reason).or_default().push(at.partition.to_string());
    }
    let told = partitions.into_iter();
    told.map(|(reason, partitions)| format!("partition {}: {reason}", partitions.join(", "))).collect()
}

/// A redrive over all its partitions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    given: u64,
    ok: u64,
    again: u64,
    dropped: u64,
    over_limit: u64,
    unbound: u64,
    marked: u64,
    forgotten: u64,
    /// Partitions that have come to the end, whose owner does not answer, and that have neither.
    ended: usize,
    unknown: usize,
    open: usize,
    troubles: Vec<String>,
}

impl Sums {
    fn of(redrive: &proto::RedriveStatus) -> Sums {
        let mut sums = Sums::default();
        for at in &redrive.partitions {
            let Some(progress) = &at.progress else {
                sums.unknown += 1;
                continue;
            };
            sums.given += progress.given;
            sums.ok += progress.ok;
            sums.again += progress.again;
            sums.dropped += progress.dropped;
            sums.over_limit += progress.over_limit;
            sums.unbound += progress.unbound;
            sums.marked += progress.marked;
            sums.forgotten += progress.forgotten;
            if progress.ended {
                sums.ended += 1
            } else {
                sums.open += 1
            }
            if !progress.trouble.is_empty() {
                sums.troubles.push(format!("partition {}: {}", at.partition, progress.trouble));
            }
        }
        sums
    }

    /// Given back, and neither done nor a letter again.
    fn pending(&self, redrive: &proto::RedriveStatus) -> u64 {
        if redrive.discard { 0 } else { self.given.saturating_sub(self.ok + self.again + self.dropped) }
    }

    fn state(&self, redrive: &proto::RedriveStatus) -> &'static str {
        match (redrive.cancelled, self.open + self.unknown) {
            (true, _) => "cancelled",
            (false, 0) if !self.troubles.is_empty() => "failed",
            (false, 0) => "done",
            (false, _) => "running",
        }
    }

    fn line(&self, redrive: &proto::RedriveStatus) -> String {
        let what = if redrive.discard { "discarded" } else { "given back" };
        let mut line = format!("{} {} letters {what}", self.state(redrive), grouped(self.given));
        for (count, why) in [
            (self.ok, "ok"),
            (self.again, "failed again"),
            (self.dropped, "dropped"),
            (self.pending(redrive), "parked"),
            (self.over_limit, "left: came back too often"),
            (self.unbound, "left: of no input or destination"),
            (self.marked, "decided before"),
        ] {
            if count > 0 {
                line.push_str(&format!(", {} {why}", grouped(count)));
            }
        }
        line
    }

    fn to_json(&self, redrive: &proto::RedriveStatus) -> Value {
        json!({
            "id": redrive.id, "what": what(redrive), "state": self.state(redrive),
            "asked_at": units::show_time_ms(redrive.asked_at_ms), "author": redrive.author, "rate": redrive.rate,
            "given": self.given, "ok": self.ok, "again": self.again, "dropped": self.dropped,
            "parked": self.pending(redrive), "forgotten": self.forgotten, "over_limit": self.over_limit, "unbound": self.unbound,
            "marked": self.marked, "troubles": self.troubles, "reasons": reasons(redrive),
        })
    }
}

/// Shows how far a redrive is until it ends. Ctrl-C leaves it running.
pub async fn follow(
    mut client: DeadLettersClient<Channel>,
    deployment: &str,
    id: u64,
    global: &Global,
) -> Outcome {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (mut before, mut quiet, mut looks) = (Sums::default(), 0, 0u32);
    loop {
        let looked = tokio::select! {
            looked = status(&mut client, deployment, id) => looked,
            _ = interrupt.recv() => return left(deployment, id),
        };
        match looked {
            Ok(redrive) => {
                let sums = Sums::of(&redrive);
                quiet = if sums == before { quiet + 1 } else { 0 };
                let has_ended = redrive.cancelled || sums.open + sums.unknown == 0;
                if has_ended && (sums.pending(&redrive) == 0 || quiet >= QUIET_LOOKS) {
                    return done(&redrive, &sums, global);
                }
                if quiet == STANDS_LOOKS && !has_ended {
                    stands(deployment, &redrive);
                }
                if looks.is_multiple_of(SAY_EVERY) && sums != Sums::default() {
                    eprintln!("redrive {id}: {}", sums.line(&redrive));
                }
                before = sums;
            }
            // A node that comes back goes on.
            Err(failure) if failure.kind == Kind::Unreachable && looks > 0 => {}
            Err(failure) => return Err(failure),
        }
        looks += 1;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = interrupt.recv() => return left(deployment, id),
        }
    }
}

/// Says why, or, of a task that takes records, what it may be.
fn stands(deployment: &str, redrive: &proto::RedriveStatus) {
    let (id, seconds) = (redrive.id, (LOOK * STANDS_LOOKS).as_secs());
    let reasons = reasons(redrive);
    for reason in &reasons {
        eprintln!("redrive {id}: nothing has changed for {seconds} s. {reason}");
    }
    if reasons.is_empty() {
        eprintln!(
            "redrive {id}: nothing has changed for {seconds} s. The rate is low, the handler takes its time (see `tidemill lag \
             {deployment}`), or the letters cannot be read, which the nodes' logs say"
        );
    }
}

fn left(deployment: &str, id: u64) -> Outcome {
    eprintln!(
        "redrive {id} goes on; `tidemill dlq redrive {deployment} --follow {id}` shows it again, --cancel {id} ends it"
    );
    Ok(())
}

async fn status(
    client: &mut DeadLettersClient<Channel>,
    deployment: &str,
    id: u64,
) -> Result<proto::RedriveStatus, Failure> {
    let request = proto::RedrivesRequest {
        deployment: deployment.to_owned(),
        id: Some(id),
        ..proto::RedrivesRequest::default()
    };
    let found = client.redrives(timed(request, WAIT)).await?.into_inner().redrives;
    found.into_iter().next().ok_or_else(|| Failure::not_found(format!("{deployment} has no redrive {id}")))
}

fn done(redrive: &proto::RedriveStatus, sums: &Sums, global: &Global) -> Outcome {
    let mut view = View::line(
        format!("{} {}: {}", what(redrive), redrive.id, sums.line(redrive)),
        sums.to_json(redrive),
    );
    view.blocks.extend(sums.troubles.iter().cloned().map(Block::Line));
    if sums.forgotten > 0 {
        eprintln!("{}", forgotten(sums.forgotten));
    }
    view.print(global.output)?;
    match sums.troubles.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "{} {} ended before its last letter: {}",
            what(redrive),
            redrive.id,
            sums.troubles.join("; ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        redrive: Redrive,
    }

    #[test]
    fn a_redrive_is_cancelled_or_followed_with_all_its_letters_or_the_command_is_refused() {
        let parse = |words: &str| {
            let parsed = Command::try_parse_from(words.split(' '));
            parsed
                .map(|command| (command.redrive.cancel, command.redrive.follow))
                .map_err(|error| error.kind())
        };
        assert_eq!(parse("redrive orders --cancel 41"), Ok((Some(41), None)));
        assert_eq!(parse("redrive orders --follow 41"), Ok((None, Some(41))));
        for some in ["--key k", "--version 2", "--offsets 7..9", "--retry-limit 5", "--rate 5", "--detach"] {
            for all in ["--cancel 41", "--follow 41"] {
                let words = format!("redrive orders {all} {some}");
                assert_eq!(parse(&words), Err(ErrorKind::ArgumentConflict), "{words}");
            }
        }
        // A filter that is new here must be refused, too.
        let command = Command::command();
        let is_of_some = |id: &str| !["deployment", "cancel", "follow"].contains(&id);
        for all in ["cancel", "follow"] {
            let argument = command.get_arguments().find(|argument| argument.get_id().as_str() == all);
            let refused = command.get_arg_conflicts_with(argument.expect("it is there"));
            for other in command.get_arguments().filter(|argument| is_of_some(argument.get_id().as_str())) {
                assert!(refused.contains(&other), "--{all} ignores {}", other.get_id());
            }
        }
    }

    #[test]
    fn progress_adds_up_over_partitions_and_says_what_is_left() {
        let at = |partition, given, ok, again, ended| proto::RedrivePartition {
            partition,
            end: 100,
            progress: Some(proto::RedriveProgress {
                given,
                ok,
                again,
                ended,
                over_limit: 1,
                ..proto::RedriveProgress::default()
            }),
            ..proto::RedrivePartition::default()
        };
        let mut redrive = proto::RedriveStatus {
            partitions: vec![at(0, 1_000, 990, 4, true), at(1, 500, 500, 0, false)],
            ..proto::RedriveStatus::default()
        };
        let line = |redrive: &proto::RedriveStatus| Sums::of(redrive).line(redrive);
        assert_eq!(
            line(&redrive),
            "running 1,500 letters given back, 1,490 ok, 4 failed again, 6 parked, 2 left: came back too often"
        );
        redrive.partitions[1] = at(1, 500, 500, 0, true);
        assert!(line(&redrive).starts_with("done "));
        redrive.partitions[1].progress = None;
        assert!(line(&redrive).starts_with("running "), "an owner that does not answer may have more");
        redrive.cancelled = true;
        assert!(line(&redrive).starts_with("cancelled "));
    }

    #[test]
    fn a_redrive_that_stands_says_why_once_for_all_its_partitions() {
        let at = |partition, reason: &str| proto::RedrivePartition {
            partition,
            reason: reason.into(),
            ..proto::RedrivePartition::default()
        };
        let redrive = proto::RedriveStatus {
            partitions: vec![at(0, "it is paused"), at(1, ""), at(2, "it is paused"), at(3, "halted")],
            ..proto::RedriveStatus::default()
        };
        let expected = ["partition 3: halted", "partition 0, 2: it is paused"];
        assert_eq!(reasons(&redrive), expected);
        assert_eq!(Sums::of(&redrive).to_json(&redrive)["reasons"], json!(expected));
    }

    #[test]
    fn a_rate_is_above_zero() {
        assert_eq!(rate("500"), Ok(500.0));
        for wrong in ["0", "-1", "x", "inf", "nan", "2000000"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}

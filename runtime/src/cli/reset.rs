//! `tidemill reset`: a stopped deployment begins again, somewhere else in its inputs.

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tidemill_proto::v1::reset_request::To;

use super::failure::Failure;
use super::output::{Block, View, confirm};
use super::table::{Table, grouped};
use super::{Global, Outcome, client, positions};
use crate::config::units;

const EXAMPLES: &str = "\
Examples:
  tidemill reset word-count --to earliest
  tidemill reset copy --to 1000 --dry-run
  tidemill reset copy --to 2025-01-15T00:00:00.000
  tidemill reset copy --to latest --accept-loss --yes";

/// Of a plan and of what was done.
const COMPLETES: &str = "the reset before, which was interrupted, is completed first";

/// Let a stopped deployment begin again at other offsets
///
/// Refused while it runs: pause it first. A deployment with state only goes back to `earliest`, and its
/// state is wiped: a compacted changelog cannot give back the state of another position. To keep the state
/// that is there, deploy under a fresh name instead. Records that were not handled are only passed over with
/// --accept-loss, and how many they are is said in any case.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Reset {
    name: String,
    /// earliest, latest (skips what is there), an offset, or a time, which is UTC unless it names its zone
    #[arg(long, value_parser = to, value_name = "earliest|latest|OFFSET|TIME")]
    to: To,
    /// Pass over records that were not handled: they never will be
    #[arg(long)]
    accept_loss: bool,
    /// Reset only if the registry still holds this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// Say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

fn to(text: &str) -> Result<To, String> {
    match text {
        "earliest" => Ok(To::Earliest(true)),
        "latest" => Ok(To::Latest(true)),
        text if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map(To::Offset).map_err(|_| format!("{text} is no offset"))
        }
        text => units::parse_time_ms(text).map(To::TimestampMs).map_err(|_| {
            format!("`{text}` is neither earliest, latest, an offset nor a time such as 2025-01-15T00:00:00Z")
        }),
    }
}

impl Reset {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let mut client = DeploymentsClient::new(client::connect(global).await?);
            let request = proto::ResetRequest {
                name: self.name.clone(),
                to: Some(self.to),
                dry_run: true,
                expected_revision: self.if_revision,
                author: client::author(),
                accept_loss: self.accept_loss,
            };
            let plan = client.reset(request.clone()).await?.into_inner();
            match loss(&self.name, &plan) {
                Some(loss) if !self.dry_run && !self.accept_loss => {
                    let message = format!("{loss}: --accept-loss says that they may be lost");
                    return Err(Failure::refused(message));
                }
                Some(loss) => eprintln!("warning: {loss}"),
                None => {}
            }
            if self.dry_run {
                return view(&self.name, &plan, "would begin").print(global.output);
            }
            confirm(&question(&self.name, &plan), self.yes)?;
            let done = client.reset(proto::ResetRequest { dry_run: false, ..request }).await?.into_inner();
            view(&self.name, &done, "begins").print(global.output)
        })
    }
}

/// Said before anything is done, asked or not.
fn loss(name: &str, plan: &proto::ResetResponse) -> Option<String> {
    let records = grouped(plan.skipped);
    (plan.skipped > 0).then(|| format!("{records} records will NEVER be handled by {name}"))
}

/// Says what is lost.
fn question(name: &str, plan: &proto::ResetResponse) -> String {
    let mut again = 0u64;
    for at in &plan.to {
        let same = |from: &&proto::InputPosition| from.topic == at.topic && from.partition == at.partition;
        let from = plan.from.iter().find(same).map_or(0, |from| from.offset);
        again += from.saturating_sub(at.offset);
    }
    let state = if plan.wipes_state { " and WIPE its state" } else { "" };
    let loss = match plan.skipped {
        0 if again > 0 => {
            format!("; {} offsets are handled again, and what they emit is emitted again", grouped(again))
        }
        0 => String::new(),
        skipped => format!("; {} records will NEVER be handled", grouped(skipped)),
    };
    let completes = if plan.completes { format!("; {COMPLETES}") } else { String::new() };
    format!("Reset {name}{state}{loss}{completes}. Continue?")
}

fn view(name: &str, plan: &proto::ResetResponse, what: &str) -> View {
    let mut table = Table::new(&["FROM", "TO"], "no partition");
    for at in &plan.to {
        let same = |from: &&proto::InputPosition| from.topic == at.topic && from.partition == at.partition;
        let from = plan.from.iter().find(same).map_or_else(|| "-".to_owned(), positions::show);
        table.row([from.into(), positions::show(at).into()]);
    }
    let state = if plan.wipes_state { ", its state wiped" } else { "" };
    let json = json!({
        "name": name, "wipes_state": plan.wipes_state, "skipped": plan.skipped, "completes": plan.completes,
        "from": positions::to_json(&plan.from), "to": positions::to_json(&plan.to),
    });
    let mut blocks =
        vec![Block::Table(table), Block::Line(format!("{name} {what} there when it is resumed{state}"))];
    blocks.extend(plan.completes.then(|| Block::Line(COMPLETES.to_owned())));
    View { blocks, json }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_word_an_offset_or_a_time() {
        assert_eq!(to("earliest"), Ok(To::Earliest(true)));
        assert_eq!(to("1000"), Ok(To::Offset(1000)));
        for time in ["2025-01-15T00:00:00Z", "2025-01-15T00:00:00.000", "2025-01-15T01:00:00+01:00"] {
            assert_eq!(to(time), Ok(To::TimestampMs(1_736_899_200_000)), "{time}");
        }
        for wrong in ["", "newest", "-1", "99999999999999999999999"] {
            assert!(to(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_question_names_what_is_skipped_wiped_or_done_again() {
        let at = |offset| vec![proto::InputPosition { topic: "in".into(), partition: 0, offset }];
        let plan = |from, to| proto::ResetResponse { from: at(from), to: at(to), ..Default::default() };
        let latest = proto::ResetResponse { skipped: 1_400, ..plan(100, 1_500) };
        let lost = "1,400 records will NEVER be handled";
        assert!(question("copy", &latest).contains(lost), "{}", question("copy", &latest));
        assert!(loss("copy", &latest).is_some_and(|loss| loss.contains(lost)));
        let earliest = proto::ResetResponse { wipes_state: true, ..plan(100, 0) };
        assert_eq!(loss("count", &earliest), None);
        let earliest = question("count", &earliest);
        assert!(earliest.contains("WIPE its state") && earliest.contains("100 offsets"), "{earliest}");
        let interrupted = proto::ResetResponse { completes: true, ..plan(0, 0) };
        assert_eq!(question("copy", &interrupted), format!("Reset copy; {COMPLETES}. Continue?"));
        let shown = view("copy", &interrupted, "would begin");
        assert!(
            shown.render(None, false).ends_with(&format!("{COMPLETES}\n")),
            "{}",
            shown.render(None, false)
        );
        assert_eq!(shown.json["completes"], true);
    }
}

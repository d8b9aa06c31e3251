//! `tidemill groups`: consumer groups, their lag and their members, of any Kafka client.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::failure::Failure;
use super::kafka::{Kafka, connect};
use super::output::{Block, View, confirm};
use super::settings::SettingArgs;
use super::table::{Cell, Table, Tone, grouped};
use super::{Global, Outcome};
use crate::kafka::admin::At;

const LIST_EXAMPLES: &str = "\
Examples:
  tidemill groups list
  tidemill groups list -o json";

const DESCRIBE_EXAMPLES: &str = "\
Examples:
  tidemill groups describe local.default.word-count
  tidemill groups describe --all
  tidemill groups describe --all --top 5";

const MEMBERS_EXAMPLES: &str = "\
Examples:
  tidemill groups members local.default.word-count";

const DELETE_EXAMPLES: &str = "\
Examples:
  tidemill groups delete local.default.word-count";

/// List, describe and delete consumer groups
#[derive(Debug, Args)]
pub struct Groups {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Describe(Describe),
    Members(Members),
    Delete(Delete),
}

/// List groups, their state and member count
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
struct List {
    #[command(flatten)]
    settings: SettingArgs,
}

/// Show a group's lag and assignment; with --all every group, highest lag first
#[derive(Debug, Args)]
#[command(after_help = DESCRIBE_EXAMPLES)]
struct Describe {
    #[arg(required_unless_present = "all")]
    group: Option<String>,
    /// Every group, highest lag first
    #[arg(long, visible_alias = "all-groups", conflicts_with = "group")]
    all: bool,
    /// Rows to show of all groups
    #[arg(long, default_value_t = 20, requires = "all")]
    top: usize,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Show a group's members with their partitions
#[derive(Debug, Args)]
#[command(after_help = MEMBERS_EXAMPLES)]
struct Members {
    group: String,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Delete a group that has no members, with its offsets
///
/// At the brokers, as the principal of this configuration: no node is asked, and none has it in its audit log.
#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
struct Delete {
    group: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

impl Groups {
    pub fn run(self, global: &Global) -> Outcome {
        match self.command {
            Command::List(list) => list.run()?,
            Command::Describe(describe) => describe.run()?,
            Command::Members(members) => members.run()?,
            Command::Delete(delete) => delete.run()?,
        }
        .print(global.output)
    }
}

/// One partition of one group.
struct Row {
    group: String,
    topic: String,
    partition: i32,
    /// Next record to read; `None` = nothing committed.
    committed: Option<u64>,
    end: u64,
    /// Client of the member that has it.
    owner: Option<String>,
}

impl Row {
    /// A partition without a committed offset has everything before it, or nothing: unknown.
    fn lag(&self) -> Option<u64> {
        self.committed.map(|committed| self.end.saturating_sub(committed))
    }
}

fn rows(kafka: &Kafka, group: &str) -> Result<Vec<Row>, Failure> {
    let members = kafka.admin.describe_group(group)?.members;
    let mut offsets = kafka.admin.group_offsets(group, None)?;
    // A partition that is assigned but has no committed offset belongs in the picture.
    for (topic, partition) in members.iter().flat_map(|member| &member.partitions) {
        if !offsets.iter().any(|row| row.topic == *topic && row.partition == *partition) {
            offsets.push(crate::kafka::admin::GroupOffset {
                topic: topic.clone(),
                partition: *partition,
                offset: None,
                metadata: String::new(),
            });
        }
    }
    let topics = kafka.admin.topics()?;
    // Offsets outlive their topics; without a topic there is no end to compare with.
    offsets.retain(|row| topics.get(&row.topic).is_some_and(|count| row.partition < *count));
    offsets.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    let partitions: Vec<(String, i32)> =
        offsets.iter().map(|row| (row.topic.clone(), row.partition)).collect();
    let ends = kafka.admin.offsets(&partitions, At::End)?;
    let owner = |topic: &str, partition: i32| {
        let has = |(name, number): &(String, i32)| name == topic && *number == partition;
        let member = members.iter().find(|member| member.partitions.iter().any(has))?;
        Some(member.instance_id.clone().unwrap_or_else(|| member.client_id.clone()))
    };
    Ok(offsets
        .into_iter()
        .zip(ends)
        .map(|(row, end)| Row {
            group: group.to_owned(),
            owner: owner(&row.topic, row.partition),
            topic: row.topic,
            partition: row.partition,
            committed: row.offset.map(|offset| offset.0),
            end: end.0,
        })
        .collect())
}

/// `empty` is said of no rows.
fn view(rows: &[Row], empty: &str) -> View {
    let mut table = Table::new(&["GROUP", "TOPIC", ">PART", ">COMMITTED", ">END", ">LAG", "MEMBER"], empty);
    for row in rows {
        let shown = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), grouped);
        let tone = if row.lag() == Some(0) { Tone::Good } else { Tone::Warning };
        table.row([
            row.group.clone().into(),
            row.topic.clone().into(),
            row.partition.to_string().into(),
            shown(row.committed).into(),
            grouped(row.end).into(),
            Cell::toned(shown(row.lag()), tone),
            row.owner.clone().unwrap_or_else(|| "-".to_owned()).into(),
        ]);
    }
    let json: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "group": row.group, "topic": row.topic, "partition": row.partition,
                "committed": row.committed, "end": row.end, "lag": row.lag(), "member": row.owner,
            })
        })
        .collect();
    View::table(table, json!({ "partitions": json }))
}

impl List {
    fn run(self) -> Result<View, Failure> {
        let kafka = connect(&self.settings)?;
        let mut groups = kafka.admin.groups()?;
        groups.sort();
        let mut table = Table::new(&["GROUP", "STATE", ">MEMBERS"], "no group");
        let mut rows = Vec::new();
        for group in groups {
            let description = kafka.admin.describe_group(&group)?;
            let members = description.members.len();
            table.row([group.clone().into(), description.state.clone().into(), members.to_string().into()]);
            rows.push(json!({ "group": group, "state": description.state, "members": members }));
        }
        Ok(View::table(table, json!({ "groups": rows })))
    }
}

impl Describe {
    fn run(self) -> Result<View, Failure> {
        let kafka = connect(&self.settings)?;
        if let Some(group) = &self.group {
            kafka.require_group(group)?;
            let empty = format!("group {group} has committed nothing, and its members have no partition");
            return Ok(view(&rows(&kafka, group)?, &empty));
        }
        let mut all = Vec::new();
        for group in kafka.admin.groups()? {
            all.extend(rows(&kafka, &group)?);
        }
        Ok(furthest_behind(all, self.top))
    }
}

/// Of all groups; programs are told as well that there are more.
fn furthest_behind(mut all: Vec<Row>, top: usize) -> View {
    all.sort_by_key(|row| std::cmp::Reverse(row.lag()));
    let hidden = all.len().saturating_sub(top);
    all.truncate(top);
    let mut view = view(&all, "no group has committed anything");
    view.json["more"] = hidden.into();
    if hidden > 0 {
        view.blocks.push(Block::Line(format!("{hidden} more with less lag; --top N shows them")));
    }
    view
}

impl Members {
    fn run(self) -> Result<View, Failure> {
        let kafka = connect(&self.settings)?;
        kafka.require_group(&self.group)?;
        let mut table = Table::new(
            &["CLIENT", "INSTANCE", "HOST", ">PARTITIONS", "ASSIGNED"],
            "the group has no members",
        );
        let mut rows = Vec::new();
        for member in kafka.admin.describe_group(&self.group)?.members {
            let assigned: Vec<String> =
                member.partitions.iter().map(|(topic, partition)| format!("{topic}/{partition}")).collect();
            table.row([
                member.client_id.clone().into(),
                member.instance_id.clone().unwrap_or_default().into(),
                member.host.clone().into(),
                assigned.len().to_string().into(),
                assigned.join(" ").into(),
            ]);
            rows.push(json!({
                "member": member.member_id, "client": member.client_id, "instance": member.instance_id,
                "host": member.host, "partitions": assigned,
            }));
        }
        Ok(View::table(table, json!({ "group": self.group, "members": rows })))
    }
}

impl Delete {
    fn run(self) -> Result<View, Failure> {
        let kafka = connect(&self.settings)?;
        kafka.require_group(&self.group)?;
        let members = kafka.admin.describe_group(&self.group)?.members.len();
        if members > 0 {
            let message = format!("group `{}` has {members} members: stop them first", self.group);
            return Err(Failure::refused(message));
        }
        confirm(&format!("Delete group {} and its offsets?", self.group), self.yes)?;
        kafka.admin.delete_group(&self.group)?;
        Ok(View::line(format!("deleted {}", self.group), json!({ "deleted": self.group })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_groups_those_furthest_behind_are_shown_and_how_many_more_there_are() {
        let row = |partition: i32, committed: Option<u64>| Row {
            group: "g".into(),
            topic: "words".into(),
            partition,
            committed,
            end: 100,
            owner: None,
        };
        let view = furthest_behind(vec![row(0, Some(90)), row(1, None), row(2, Some(10))], 2);
        let shown: Vec<&Value> = (0..2usize).map(|at| &view.json["partitions"][at]["partition"]).collect();
        assert_eq!((shown, &view.json["more"]), (vec![&json!(2), &json!(0)], &json!(1)));
        assert!(view.render(None, false).ends_with("1 more with less lag; --top N shows them\n"));
        assert_eq!(furthest_behind(Vec::new(), 2).json, json!({ "partitions": [], "more": 0 }));
    }
}

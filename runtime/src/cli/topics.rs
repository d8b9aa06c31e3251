//! `tidemill topics`: lists, describes, makes and deletes topics.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::failure::Failure;
use super::kafka::{Kafka, connect};
use super::output::{Block, View, confirm};
use super::settings::SettingArgs;
use super::table::{Table, grouped};
use super::{Global, Outcome};
use crate::config::document::check_topic;
use crate::kafka::admin::{AdminError, At, NewTopic};

const LIST_EXAMPLES: &str = "\
Examples:
  tidemill topics list
  tidemill topics list --all
  tidemill topics list --bootstrap-servers broker-1:9092 -o json";

const DESCRIBE_EXAMPLES: &str = "\
Examples:
  tidemill topics describe words
  tidemill topics describe words --configs";

const CREATE_EXAMPLES: &str = "\
Examples:
  tidemill topics create words --partitions 6
  tidemill topics create words counts --partitions 6 --replication-factor 3 --if-not-exists
  tidemill topics create events.test --partitions 6 --config retention.ms=604800000";

const DELETE_EXAMPLES: &str = "\
Examples:
  tidemill topics delete words
  tidemill topics delete words counts --yes";

/// List, describe, create and delete topics
#[derive(Debug, Args)]
pub struct Topics {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Describe(Describe),
    Create(Create),
    Delete(Delete),
}

/// List topics and their partition counts
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
struct List {
    /// Internal topics too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Show a topic's partitions with their offsets
#[derive(Debug, Args)]
#[command(after_help = DESCRIBE_EXAMPLES)]
struct Describe {
    topic: String,
    /// Its settings, too
    #[arg(long)]
    configs: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Create topics
///
/// At the brokers, as the principal of this configuration: no node is asked, and none has it in its audit log.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
struct Create {
    #[arg(required = true)]
    topic: Vec<String>,
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    partitions: i32,
    /// Copies of each partition [default: what the brokers say]
    #[arg(long, value_parser = clap::value_parser!(i16).range(1..=100))]
    replication_factor: Option<i16>,
    /// A topic setting, for example retention.ms=604800000
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    config: Vec<(String, String)>,
    /// A topic that is there already is no error
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Delete topics and every record in them
///
/// At the brokers, as the principal of this configuration: no node is asked, and none has it in its audit log.
#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
struct Delete {
    #[arg(required = true)]
    topic: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, for example retention.ms=604800000")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Topics {
    pub fn run(self, global: &Global) -> Outcome {
        match self.command {
            Command::List(list) => list.run()?,
            Command::Describe(describe) => describe.run()?,
            Command::Create(create) => create.run()?,
            Command::Delete(delete) => delete.run()?,
        }
        .print(global.output)
    }
}

impl List {
    fn run(self) -> Result<View, Failure> {
        let kafka = connect(&self.settings)?;
        let mut table =
            Table::new(&["TOPIC", ">PARTITIONS"], "no topic: `tidemill topics create NAME` makes one");
        let mut rows = Vec::new();
        for (name, partitions) in kafka.admin.topics()? {
            if self.all || !kafka.effective.config.is_internal(&name) {
                table.row([name.clone().into(), partitions.to_string().into()]);
                rows.push(json!({ "topic": name, "partitions": partitions }));
            }
        }
        Ok(View::table(table, json!({ "topics": rows })))
    }
}

impl Describe {
    fn run(self) -> Result<View, Failure> {
        let kafka = connect(&self.settings)?;
        let count = kafka.partitions(&self.topic)?;
        let topic = kafka.admin.topic(&self.topic)?;
        let partitions: Vec<(String, i32)> = (0..count).map(|number| (self.topic.clone(), number)).collect();
        let starts = kafka.admin.offsets(&partitions, At::Start)?;
        let stable = kafka.admin.offsets(&partitions, At::StableEnd)?;
        let ends = kafka.admin.offsets(&partitions, At::End)?;
        let mut table = Table::new(&[">PARTITION", ">START", ">STABLE END", ">END"], "no partition");
        let mut rows = Vec::new();
        for (number, ((start, stable), end)) in starts.iter().zip(&stable).zip(&ends).enumerate() {
            let cells = [number as u64, start.0, stable.0, end.0];
            table.row(cells.map(|number| grouped(number).into()));
            rows.push(json!({ "partition": number, "start": start.0, "stable_end": stable.0, "end": end.0 }));
        }
        let mut json = json!({ "topic": topic.name, "id": topic.id.to_string(), "partitions": rows });
        let head = Block::Line(format!("{}  id {}", topic.name, topic.id));
        let mut view = View { blocks: vec![head, Block::Table(table)], json: Value::Null };
        if self.configs {
            let configs = kafka.admin.topic_configs(&self.topic)?;
            let mut table = Table::new(&["SETTING", "VALUE"], "no setting");
            configs.iter().for_each(|(name, value)| table.row([name.clone().into(), value.clone().into()]));
            view.blocks.push(Block::Line(String::new()));
            view.blocks.push(Block::Table(table));
            json["configs"] = json!(configs);
        }
        view.json = json;
        Ok(view)
    }
}

impl Create {
    fn run(self) -> Result<View, Failure> {
        self.topic.iter().try_for_each(|topic| check_topic(topic)).map_err(Failure::usage)?;
        let kafka = connect(&self.settings)?;
        let mut view = View::default();
        let (mut rows, mut made) = (Vec::new(), Vec::new());
        for name in &self.topic {
            let created = self.make(&kafka, name).map_err(|failure| after(failure, &made))?;
            if created {
                made.push(name.clone());
            }
            let said = if created { "created" } else { "is there already" };
            view.blocks.push(Block::Line(format!("{name} {said} with {} partitions", self.partitions)));
            rows.push(json!({ "topic": name, "partitions": self.partitions, "created": created }));
        }
        view.json = json!({ "topics": rows });
        Ok(view)
    }

    /// False if it is there already, as it is to be.
    fn make(&self, kafka: &Kafka, name: &str) -> Result<bool, Failure> {
        let topic = NewTopic {
            replication: self.replication_factor,
            configs: self.config.clone(),
            ..NewTopic::new(name.to_owned(), self.partitions)
        };
        match kafka.admin.create_topic(&topic) {
            Ok(()) => Ok(true),
            Err(AdminError::Exists { .. }) if self.if_not_exists => {
                self.check_existing(kafka, name)?;
                Ok(false)
            }
            Err(error @ AdminError::Exists { .. }) => {
                Err(Failure::refused(format!("{error}; --if-not-exists accepts that")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// "If it does not exist" still means "as I say".
    fn check_existing(&self, kafka: &Kafka, name: &str) -> Result<(), Failure> {
        let found = kafka.admin.topic(name)?.partitions;
        if found == self.partitions {
            return Ok(());
        }
        let message =
            format!("topic `{name}` is there already with {found} partitions, not {}", self.partitions);
        Err(Failure::refused(message))
    }
}

/// What failed, and which topics were made before it and stay.
fn after(failure: Failure, made: &[String]) -> Failure {
    match made {
        [] => failure,
        made => Failure {
            message: format!("{}; made before it: {}", failure.message, made.join(", ")),
            ..failure
        },
    }
}

impl Delete {
    fn run(self) -> Result<View, Failure> {
        let kafka = connect(&self.settings)?;
        for name in &self.topic {
            kafka.partitions(name)?;
        }
        confirm(&format!("Delete {} and every record in it?", self.topic.join(", ")), self.yes)?;
        kafka.admin.delete_topics(&self.topic).map_err(|error| {
            let failure = Failure::from(error);
            let others = match self.topic.len() {
                1 => "",
                _ => "; others that were named may be deleted: `tidemill topics list` shows what is left",
            };
            Failure { message: format!("{}{others}", failure.message), ..failure }
        })?;
        // Brokers delete later than they answer; a script that goes on must find it done.
        let deadline = Instant::now() + Duration::from_secs(10);
        while kafka.admin.topics()?.keys().any(|name| self.topic.contains(name)) && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(View::line(format!("deleted {}", self.topic.join(", ")), json!({ "deleted": self.topic })))
    }
}

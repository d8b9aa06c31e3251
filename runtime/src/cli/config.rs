//! `tidemill config`: check a configuration, show what is in effect and why, explain a setting.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::failure::{Failure, in_file};
use super::output::{Block, View};
use super::settings::{NodeArgs, SettingArgs};
use super::table::{Cell, Table, Tone};
use super::{Global, Outcome};
use crate::config::documents::Document;
use crate::config::load::Source;
use crate::config::problem::nearest;
use crate::config::settings::{PROPERTIES, SETTINGS, Setting, find};

const CHECK_EXAMPLES: &str = "\
Examples:
  tidemill config check
  tidemill config check --config staging.yaml
  tidemill config check --deployment pipeline.yaml";

const SHOW_EXAMPLES: &str = "\
Examples:
  tidemill config show
  tidemill config show --changed
  KAFKA_GROUP=my-service tidemill config show -o json";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  tidemill config explain
  tidemill config explain kafka.acks
  tidemill config explain kafka";

/// What says nothing of a document. The file of a node is not among it: a variable may name it for every command.
const OF_A_NODE: [&str; 10] = [
    "bootstrap_servers",
    "set",
    "fleet",
    "node_id",
    "state_dir",
    "listen_grpc",
    "listen_http",
    "insecure",
    "log_format",
    "log_filter",
];

/// Check, show or explain a node's configuration
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Check),
    Show(Show),
    Explain(Explain),
}

/// Say everything that is wrong with a configuration or a deployment document
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
struct Check {
    /// Files of deployments and topics to check instead
    #[arg(long, short, value_name = "FILE", conflicts_with_all = OF_A_NODE)]
    deployment: Vec<PathBuf>,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// Show the configuration in effect and where each value comes from; secrets stay hidden
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct Show {
    /// Only what differs from the defaults
    #[arg(long)]
    changed: bool,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// Explain one setting, those below a key, or all
#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_EXAMPLES)]
struct Explain {
    key: Option<String>,
}

impl Config {
    pub fn run(self, global: &Global) -> Outcome {
        match self.command {
            Command::Check(check) => check.run(global),
            Command::Show(show) => show.run(global),
            Command::Explain(explain) => explain.run(global),
        }
    }
}

impl Check {
    fn run(self, global: &Global) -> Outcome {
        let (mut deployments, mut topics) = (Vec::new(), Vec::new());
        for file in &self.deployment {
            let shown = file.display();
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::usage(format!("{shown} cannot be read: {error}")))?;
            for (_, document) in Document::split(&text).map_err(|problems| in_file(&problems, shown))? {
                match document {
                    Document::Deployment(spec) => deployments.push(spec.name),
                    Document::Topic(topic) => topics.push(topic.name),
                }
            }
        }
        if !self.deployment.is_empty() {
            let line = format!("valid: {}", [topics.as_slice(), deployments.as_slice()].concat().join(", "));
            let json = json!({ "valid": true, "deployments": deployments, "topics": topics });
            return View::line(line, json).print(global.output);
        }
        let effective = self.settings.load_with(self.node.flags())?;
        let mut view = View::line("the configuration is valid", json!({ "valid": true }));
        view.json["notes"] = effective.config.notes.clone().into();
        view.blocks
            .extend(effective.config.notes.into_iter().map(|note| Block::Line(format!("note: {note}"))));
        view.print(global.output)
    }
}

impl Show {
    fn run(self, global: &Global) -> Outcome {
        let effective = self.settings.load_with(self.node.flags())?;
        let mut table = Table::new(&["SETTING", "VALUE", "FROM"], "everything is as it is by default");
        let mut rows = Vec::new();
        for shown in effective.shown {
            let is_default = shown.source == Source::Default;
            if self.changed && is_default {
                continue;
            }
            let tone = if is_default { Tone::Quiet } else { Tone::Plain };
            table.row([
                shown.key.clone().into(),
                shown.value.clone().into(),
                Cell::toned(shown.source.to_string(), tone),
            ]);
            rows.push(json!({ "key": shown.key, "value": shown.value, "from": shown.source.to_string() }));
        }
        View::table(table, Value::Array(rows)).print(global.output)
    }
}

impl Explain {
    fn run(self, global: &Global) -> Outcome {
        let wanted = self.key.unwrap_or_default();
        if let Some(setting) = find(&wanted) {
            return explanation(setting).print(global.output);
        }
        let below = format!("{wanted}.");
        let found: Vec<&Setting> =
            SETTINGS.iter().filter(|setting| wanted.is_empty() || setting.key.starts_with(&below)).collect();
        if found.is_empty() {
            let hint = match nearest(&wanted, SETTINGS.iter().map(|setting| setting.key)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "`tidemill config explain` lists them".to_owned(),
            };
            return Err(Failure::not_found(format!("there is no setting `{wanted}`, {hint}")));
        }
        let mut table = Table::new(&["SETTING", "DEFAULT", "VALUES", "MEANING"], "");
        for setting in &found {
            let cells: [Cell; 4] =
                [setting.key.into(), setting.default.into(), setting.range().into(), setting.doc.into()];
            table.row(cells);
        }
        let json = found.iter().map(|setting| to_json(setting)).collect();
        let mut view = View::table(table, json);
        let pass = format!("Client properties of librdkafka go below `{PROPERTIES}`.");
        view.blocks.push(Block::Line(pass));
        view.print(global.output)
    }
}

fn explanation(setting: &Setting) -> View {
    let default = if setting.default.is_empty() { "not set" } else { setting.default };
    let variables = [Some(setting.variable()), setting.kafka_variable()];
    let variables: Vec<String> = variables.into_iter().flatten().collect();
    let lines = [
        setting.key.to_owned(),
        format!("  {}", setting.doc),
        format!("  values    {}", setting.range()),
        format!("  default   {default}"),
        format!("  variable  {}", variables.join(", ")),
    ];
    View { blocks: lines.into_iter().map(Block::Line).collect(), json: to_json(setting) }
}

fn to_json(setting: &Setting) -> Value {
    json!({
        "key": setting.key, "meaning": setting.doc, "values": setting.range(), "default": setting.default,
        "variable": setting.variable(), "kafka_variable": setting.kafka_variable(),
    })
}

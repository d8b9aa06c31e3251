//! The command line: a gRPC client like any other, and the two commands that are a node.
//!
//! # Layout
//!
//! | file | what |
//! |---|---|
//! | one file a command | its arguments and what it does |
//! | [`failure`] | how a command fails: one clear error and an exit code |
//! | `partly` | what a change over several partitions had done when it failed at one |
//! | `client`, `kafka` | the connections to a node and to Kafka |
//! | `settings` | a node's configuration from flags, variables and file |
//! | `output`, `table`, `values` | what people and programs see |
//! | `positions` | `words/0@12` |
//! | `upload`, `plan`, `rows` | modules and records on their way out; what is about to change |
//! | `signals` | Ctrl-C and SIGTERM |
//! | `rollout` | waiting for a revision |
//! | `watch` | showing something again and again |
//!
//! Everything a command prints for programs goes to standard output; progress, notes and errors go
//! to standard error.

mod apply;
mod broker;
mod build;
mod check;
mod client;
mod completion;
mod config;
mod consume;
mod delete;
mod deploy;
mod deployments;
mod dev;
mod dlq;
mod doctor;
mod drain;
mod edit;
pub mod failure;
mod groups;
mod history;
mod inbox;
mod kafka;
mod lag;
mod letters;
mod logs;
mod malloc;
mod new;
mod node;
mod nodes;
mod outbox;
mod output;
mod parked;
mod partly;
mod pause;
mod plan;
mod positions;
mod produce;
mod redrive;
mod reset;
mod restart;
mod rollback;
mod rollout;
mod rows;
mod settings;
mod signals;
mod state;
mod stores;
mod table;
mod test;
mod topic_documents;
mod topics;
mod upload;
mod values;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;
use output::Format;

use crate::wasm::compiler;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the node or Kafka cannot be reached or has not answered \
(the error says if a change may have been made all the same, or was in part), 4 refused as it is (invalid document, \
wrong state), 5 there is no such thing.

Start with:
  tidemill dev                                    a node with a broker inside, for trying things out
  tidemill new my-handler                         a handler to change
  tidemill topics create words counts             the topics that its deployment.yaml names
  tidemill apply -f my-handler/deployment.yaml    build and deploy it";

/// Run WebAssembly handlers over Kafka, with state, exactly once.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, propagate_version = true, after_help = AFTER_HELP)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Node to talk to; any node of the fleet will do
    #[arg(
        long,
        global = true,
        env = "TIDEMILL_ADDRESS",
        default_value = "127.0.0.1:7600",
        value_name = "HOST:PORT"
    )]
    address: String,
    /// CA (PEM) that the node's certificate comes from, or that certificate itself; without it the connection is not encrypted
    #[arg(long, global = true, env = "TIDEMILL_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate (PEM) that says who you are; needs --ca
    #[arg(long, global = true, env = "TIDEMILL_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Private key (PEM) of --cert, if it is not in the same file
    #[arg(long, global = true, env = "TIDEMILL_CERT_KEY", value_name = "FILE")]
    cert_key: Option<PathBuf>,
    /// How to print results
    #[arg(long, short = 'o', global = true, env = "TIDEMILL_OUTPUT", default_value = "table", value_enum)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Dev),
    Node(node::Node),
    Broker(broker::Broker),
    New(new::New),
    Build(build::Build),
    Test(test::Test),
    Apply(apply::Apply),
    Deploy(deploy::Deploy),
    Deployments(deployments::Deployments),
    History(history::History),
    Diff(history::Diff),
    Rollback(rollback::Rollback),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Delete(delete::Delete),
    Reset(reset::Reset),
    Restart(restart::Restart),
    Lag(lag::Lag),
    Logs(logs::Logs),
    State(state::State),
    Inbox(inbox::Inbox),
    Outbox(outbox::Outbox),
    Parked(parked::Parked),
    Dlq(dlq::Dlq),
    Nodes(nodes::Nodes),
    Stores(stores::Stores),
    Drain(drain::Drain),
    Produce(produce::Produce),
    Consume(consume::Consume),
    Topics(topics::Topics),
    Groups(groups::Groups),
    Config(config::Config),
    Check(check::Checklist),
    Doctor(doctor::Doctor),
    Completion(completion::Completion),
}

/// Reads the command line, runs it, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    // A node calls itself with this to compile a module; not for people, so no command of the tree.
    if std::env::args_os().nth(1).is_some_and(|word| word == compiler::COMMAND) {
        return compiler::serve();
    }
    let cli = Cli::parse();
    let global = cli.global;
    let outcome = match cli.command {
        Command::Dev(command) => command.run(&global),
        Command::Node(command) => command.run(&global),
        Command::Broker(command) => command.run(&global),
        Command::New(command) => command.run(&global),
        Command::Build(command) => command.run(&global),
        Command::Test(command) => command.run(&global),
        Command::Apply(command) => command.run(&global),
        Command::Deploy(command) => command.run(&global),
        Command::Deployments(command) => command.run(&global),
        Command::History(command) => command.run(&global),
        Command::Diff(command) => command.run(&global),
        Command::Rollback(command) => command.run(&global),
        Command::Pause(command) => command.run(&global),
        Command::Resume(command) => command.run(&global),
        Command::Delete(command) => command.run(&global),
        Command::Reset(command) => command.run(&global),
        Command::Restart(command) => command.run(&global),
        Command::Lag(command) => command.run(&global),
        Command::Logs(command) => command.run(&global),
        Command::State(command) => command.run(&global),
        Command::Inbox(command) => command.run(&global),
        Command::Outbox(command) => command.run(&global),
        Command::Parked(command) => command.run(&global),
        Command::Dlq(command) => command.run(&global),
        Command::Nodes(command) => command.run(&global),
        Command::Stores(command) => command.run(&global),
        Command::Drain(command) => command.run(&global),
        Command::Produce(command) => command.run(&global),
        Command::Consume(command) => command.run(&global),
        Command::Topics(command) => command.run(&global),
        Command::Groups(command) => command.run(&global),
        Command::Config(command) => command.run(&global),
        Command::Check(command) => command.run(&global),
        Command::Doctor(command) => command.run(&global),
        Command::Completion(command) => command.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What every command's `run` answers.
pub type Outcome = Result<(), Failure>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_summary_and_examples_that_it_understands() {
        fn walk(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no summary");
                if sub.has_subcommands() {
                    walk(sub, &path);
                    continue;
                }
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                let examples: Vec<_> = help.lines().filter_map(|line| example(line, &path)).collect();
                assert!(!examples.is_empty(), "{path} shows no example of itself:\n{help}");
                for words in examples {
                    let parsed = Cli::try_parse_from(&words);
                    assert!(
                        parsed.is_ok(),
                        "{words:?}: {}",
                        parsed.err().map(|e| e.to_string()).unwrap_or_default()
                    );
                }
            }
        }
        walk(&Cli::command(), "tidemill");
    }

    #[test]
    fn what_would_have_no_effect_beside_another_flag_is_refused() {
        for (command, flags) in [
            ("dlq redrive orders --dry-run", "--rate 5|--detach"),
            ("rollback orders --dry-run", "--wait|--wait 5s"),
            ("apply -f pipeline.yaml --dry-run", "--wait"),
            ("lag", "--interval 5s"),
            ("check", "--poll 5s"),
            ("check -f pipeline.yaml", "--poll 5s"),
            ("dlq list orders", "--key-format hex"),
            ("parked list orders", "--key-format hex"),
            ("state edit put orders totals k 1", "--at-least orders/0@12"),
            ("produce words hello", "--rate 5|--format csv|--key-field word|--header-line"),
            ("produce words --key k --tombstone", "--rate 5|--header-line"),
            ("drain n1 --undo", "--wait 5s"),
            ("config check --deployment pipeline.yaml", "--fleet mine|--set kafka.acks=all"),
        ] {
            let parse = |words: &str| Cli::try_parse_from(format!("tidemill {words}").split(' ')).is_ok();
            assert!(parse(command), "{command}");
            for flag in flags.split('|') {
                assert!(!parse(&format!("{command} {flag}")), "{command} {flag}");
            }
        }
        for words in ["lag --watch --interval 5s", "check --wait --poll 5s", "check --for 1m --poll 5s"] {
            assert!(Cli::try_parse_from(format!("tidemill {words}").split(' ')).is_ok(), "{words}");
        }
    }

    #[test]
    fn a_partition_below_zero_is_refused_before_anybody_is_asked() {
        for command in [
            "logs a",
            "outbox show a",
            "outbox retry a",
            "parked list a",
            "dlq list a",
            "state get a s k",
            "state edit delete a s k",
            "inbox get a i",
            "restart a",
            "consume a",
        ] {
            let parse = |partition: &str| {
                let words = format!("tidemill {command} --partition={partition}");
                Cli::try_parse_from(words.split(' ')).is_ok()
            };
            assert!(parse("0") && !parse("-1"), "{command}");
        }
    }

    /// The words of an example of the command `path`, as a shell would split them.
    fn example(line: &str, path: &str) -> Option<Vec<String>> {
        let line = &line[line.find(path)?..];
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in line.chars() {
            match (quote, c) {
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), c) if c == open => quote = None,
                // What follows is for another program.
                (None, '|' | '>') => break,
                (None, ' ') => words.push(String::new()),
                (_, c) => words.last_mut()?.push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        Some(words)
    }

    #[test]
    fn a_wrong_address_is_found_before_anything_is_asked() {
        for address in ["localhost", "http://localhost:7600"] {
            let global = Global {
                address: address.to_owned(),
                ca: None,
                cert: None,
                cert_key: None,
                output: Format::Table,
            };
            let failure = client::block_on(async { client::connect(&global).await.map(|_| ()) });
            let failure = failure.expect_err("no address of a node");
            assert_eq!(failure.kind, failure::Kind::Usage, "{failure}");
        }
    }
}

//! `tidemill deploy`: one deployment from flags, for trying something without a file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::failure::Failure;
use super::plan::show_plan;
use super::topic_documents::Topics;
use super::upload::{Options, Upload, Work, carry_out, load_module};
use super::{Global, Outcome, client};
use crate::config::deployment::DeploymentSpec;

const EXAMPLES: &str = "\
Examples:
  tidemill deploy word-count --module target/count.wasm --in words=words --out counts=counts
  tidemill deploy filter --module ./my-handler --in in=orders --out out=large --config '{\"above\": 100}'
  tidemill deploy word-count --module count.wasm --in words=words --start latest --wait";

/// Deploy one module, described by flags
///
/// Makes the same document that `apply` reads from a file.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Deploy {
    /// Name of the deployment
    name: String,
    /// A .wasm file, or the directory of a handler's crate, which is built first
    #[arg(long, short, value_name = "PATH")]
    module: PathBuf,
    /// Binds a logical input of the handler to a topic
    #[arg(long = "in", short, required = true, value_parser = binding, value_name = "NAME=TOPIC")]
    input: Vec<(String, String)>,
    /// Binds a logical output of the handler to a topic
    #[arg(long = "out", value_parser = binding, value_name = "NAME=TOPIC")]
    bound_output: Vec<(String, String)>,
    /// Where inputs begin that were never read: earliest, latest or a time, which is UTC unless it names its zone
    /// [default: as the node says, otherwise earliest]
    #[arg(long, value_name = "WHERE")]
    start: Option<String>,
    /// exactly_once or at_least_once [default: exactly_once]
    #[arg(long)]
    guarantee: Option<String>,
    /// Threads on each node [default: as the node says, otherwise 1]
    #[arg(long)]
    workers: Option<u32>,
    /// What a failed record does: halt or skip; a file says more (docs/failures.md) [default: halt]
    #[arg(long)]
    failures: Option<String>,
    /// Configuration for the handler, as JSON
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    #[command(flatten)]
    options: Options,
}

fn binding(text: &str) -> Result<(String, String), String> {
    let (name, topic) = text.split_once('=').ok_or("write NAME=TOPIC, for example words=words")?;
    Ok((name.to_owned(), topic.to_owned()))
}

impl Deploy {
    pub fn run(self, global: &Global) -> Outcome {
        let document = self.document()?;
        // The same check as for a file, before anything is built or sent.
        DeploymentSpec::parse(&document)?;
        let upload = Upload { name: self.name.clone(), document, module: load_module(&self.module)? };
        let work = Work { topics: Topics::default(), uploads: vec![upload] };
        client::block_on(async {
            let channel = client::connect(global).await?;
            carry_out(&channel, work, &self.options, show_plan).await?.print(global.output)
        })
    }

    /// JSON, which is YAML too, laid out one key a line so that problems have lines.
    fn document(&self) -> Result<String, Failure> {
        let inputs: BTreeMap<&str, Value> = self
            .input
            .iter()
            .map(|(name, topic)| match &self.start {
                Some(start) => (name.as_str(), json!({ "topic": topic, "start": start })),
                None => (name.as_str(), json!({ "topic": topic })),
            })
            .collect();
        let outputs: BTreeMap<&str, Value> = self
            .bound_output
            .iter()
            .map(|(name, topic)| (name.as_str(), json!({ "topic": topic })))
            .collect();
        let mut lines = vec![
            format!("name: {}", json!(self.name)),
            format!("module: {}", json!(self.module.to_string_lossy())),
            format!("inputs: {}", json!(inputs)),
        ];
        if !outputs.is_empty() {
            lines.push(format!("outputs: {}", json!(outputs)));
        }
        let texts = [("guarantee", &self.guarantee), ("failures", &self.failures)];
        lines.extend(
            texts.iter().filter_map(|(key, value)| Some(format!("{key}: {}", json!(value.as_ref()?)))),
        );
        lines.extend(self.workers.map(|workers| format!("workers: {workers}")));
        if let Some(config) = &self.config {
            let config: Value = serde_json::from_str(config)
                .map_err(|error| Failure::usage(format!("--config is not JSON: {error}")))?;
            lines.push(format!("config: {config}"));
        }
        lines.push(String::new());
        Ok(lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        deploy: Deploy,
    }

    #[test]
    fn flags_make_the_document_that_a_file_would_hold() {
        let only = Only::parse_from([
            "deploy",
            "count",
            "--module",
            "a \"b\".wasm",
            "--in",
            "words=w",
            "--out",
            "counts=c",
            "--start",
            "latest",
            "--config",
            "{\"above\": 1}",
            "--failures",
            "skip",
        ]);
        let document = only.deploy.document().expect("valid");
        let spec = DeploymentSpec::parse(&document).expect("a document that can be read");
        assert_eq!((spec.name.as_str(), spec.module.as_str()), ("count", "a \"b\".wasm"));
        assert_eq!(spec.inputs["words"].start, crate::config::deployment::Start::Latest);
        assert_eq!(spec.outputs["counts"].topic(), Some("c"));
        assert_eq!(spec.config, json!({ "above": 1 }));
    }
}

//! What `make recovery` kills: a node or Kafka Streams that counts per key, and comes back on the same
//! state directory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::node::{Deployment, Modules, Node, Output};
use crate::process::Running;
use crate::streams::{Job, Streams};
use crate::table::KILLED;
use crate::terms::{Guarantee, Work};

/// Where it reads and writes.
#[derive(Debug, Clone)]
pub struct Topics {
    pub bootstrap: String,
    /// Of the deployment or the application.
    pub name: String,
    pub input: String,
    pub output: String,
}

pub enum Survivor<'a> {
    Node { node: Node, deployment: String },
    Streams { streams: &'a Streams, topics: Topics, running: Running, directory: TempDir },
}

impl Survivor<'_> {
    pub fn node(modules: &Modules, topics: &Topics) -> Result<Survivor<'static>> {
        let node = Node::start(&topics.bootstrap, &topics.name)?;
        let deployment = Deployment {
            module: &modules.count,
            input: &topics.input,
            output: Output::Topic(&topics.output),
            guarantee: "exactly_once",
            more: "",
        };
        node.deploy(&topics.name, &deployment)?;
        Ok(Survivor::Node { node, deployment: topics.name.clone() })
    }

    pub fn streams<'a>(streams: &'a Streams, topics: &Topics) -> Result<Survivor<'a>> {
        let directory = tempfile::tempdir()?;
        let running = start(streams, topics, &directory)?;
        Ok(Survivor::Streams { streams, topics: topics.clone(), running, directory })
    }

    /// As the table's ratios call it.
    pub fn name(&self) -> &'static str {
        match self {
            Survivor::Node { .. } => "tidemill",
            Survivor::Streams { .. } => "streams",
        }
    }

    /// The consumer group that it commits its progress to.
    pub fn group(&self) -> String {
        match self {
            Survivor::Node { node, deployment } => node.group(deployment),
            Survivor::Streams { topics, .. } => topics.name.clone(),
        }
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self {
            Survivor::Node { node, .. } => node.check(),
            Survivor::Streams { running, .. } => running.check(),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        match self {
            Survivor::Node { node, .. } => node.kill(),
            Survivor::Streams { running, .. } => running.kill(),
        }
    }

    /// Of a killed one.
    pub fn delete_stores(&self) -> Result<()> {
        match self {
            Survivor::Node { node, .. } => node.delete_stores(),
            Survivor::Streams { directory, .. } => Ok(fs::remove_dir_all(state(directory))?),
        }
    }

    /// Of a killed one.
    pub fn start_again(&mut self) -> Result<()> {
        match self {
            Survivor::Node { node, .. } => node.start_again()?,
            Survivor::Streams { streams, topics, running, directory } => {
                *running = start(streams, topics, directory)?;
            }
        }
        Ok(())
    }

    /// Seconds that its restores have taken since it was started, once all are done. They run side by side:
    /// a node tells how long each task's took, and they begin together; Kafka Streams, the time from the
    /// first one's start to the last one's end.
    pub fn restoring_seconds(&self) -> Result<f64> {
        let seconds: Vec<f64> = match self {
            Survivor::Node { node, .. } => node.metric("tidemill_restore_seconds_total")?,
            Survivor::Streams { directory, .. } => {
                let said = fs::read_to_string(log(directory))?;
                said.lines().map(str::parse).collect::<Result<_, _>>()?
            }
        };
        seconds.into_iter().reduce(f64::max).context("nothing was restored")
    }

    /// Keys and values of the changelog that were read for them. `None` of Kafka Streams, which does not say it.
    pub fn restored_bytes(&self) -> Result<Option<f64>> {
        match self {
            Survivor::Node { node, .. } => {
                Ok(Some(node.metric("tidemill_restored_bytes_total")?.into_iter().sum()))
            }
            Survivor::Streams { .. } => Ok(None),
        }
    }
}

fn start(streams: &Streams, topics: &Topics, directory: &TempDir) -> Result<Running> {
    let job = Job {
        bootstrap: &topics.bootstrap,
        application: &topics.name,
        input: &topics.input,
        output: &topics.output,
        work: Work::Count,
        guarantee: Guarantee::ExactlyOnce,
        // Large fetches serve a restore as well.
        is_tuned: true,
        jvm: KILLED,
        state: &state(directory),
    };
    Ok(Running(streams.start(&job, Stdio::from(File::create(log(directory))?))?))
}

fn state(directory: &TempDir) -> PathBuf {
    directory.path().join("state")
}

fn log(directory: &TempDir) -> PathBuf {
    directory.path().join("restores")
}

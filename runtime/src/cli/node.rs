//! `tidemill node`: a node on brokers that run already.

use std::time::Duration;

use tokio::sync::watch;

use super::failure::Failure;
use super::settings::{NodeArgs, SettingArgs};
use super::signals::Signals;
use super::{Global, Outcome, malloc};
use crate::config::NodeConfig;
use crate::config::node::KafkaClient;
use crate::config::state_dir;
use crate::config::units::show_duration;
use crate::control::run::{Addresses, RunError, run};
use crate::kafka::config::KafkaConfig;
use crate::kafka::probe::{ProbeError, probe, probe_own_client};
use crate::node::NodeError;
use crate::telemetry::logging;

/// How long a start may wait for a trial of the node's own connections; a broker that is slower may get through later.
const TRIAL_MAX: Duration = Duration::from_secs(3);

/// This very program, even after an upgrade has replaced its file.
const SELF: &str = "/proc/self/exe";

const EXAMPLES: &str = "\
Examples:
  tidemill node --config tidemill.yaml
  tidemill node --bootstrap-servers broker-1:9092,broker-2:9092 --state-dir /var/lib/tidemill
  KAFKA_BOOTSTRAP_SERVERS=broker-1:9092 KAFKA_ENVIRONMENT=prod tidemill node";

/// Run a node
///
/// Ctrl-C or SIGTERM drains it: what is in flight is committed, stores are closed, its tasks move to
/// other nodes. A second one ends it at once, which is safe, too.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Node {
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl Node {
    pub fn run(self, _global: &Global) -> Outcome {
        let effective = self.settings.load_with(self.node.flags())?;
        logging::init(&effective.config.log)?;
        serve(effective.config, |_| {})
    }
}

/// Runs a node until it is told to stop. `ready` is called once it answers.
pub fn serve(config: NodeConfig, ready: impl FnOnce(Addresses)) -> Outcome {
    malloc::bound_arenas();
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    if let Some(why) = config.kafka.why_librdkafka() {
        tracing::info!("{why}");
    }
    state_dir::check(&config.state_dir, config.state_free_min_bytes)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(until_stopped(config, ready));
    // Calls that still block must not hold the process beyond its limit.
    runtime.shutdown_background();
    if outcome.is_ok() {
        tracing::info!("Event bus shutdown complete");
    }
    outcome
}

async fn until_stopped(mut config: NodeConfig, ready: impl FnOnce(Addresses)) -> Outcome {
    let limit = config.shutdown_timeout;
    let signals = Signals::install()?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        signals.stop_requested().await;
        tracing::info!("Initiating graceful shutdown...");
        // Nobody listens any more only if the node has ended by itself.
        let _ = stop.send(true);
    });
    let told = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|&stop| stop).await;
    };
    tokio::select! {
        reached = reach(&mut config) => reached?,
        () = told(stopped.clone()) => return Ok(()),
    }
    let late = async {
        told(stopped.clone()).await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        outcome = run(config, SELF.into(), ready, told(stopped.clone())) => Ok(outcome?),
        () = late => {
            let waited = show_duration(limit);
            Err(Failure::failed(format!("the node did not stop within shutdown_timeout ({waited}) and was ended")))
        }
    }
}

/// Says within seconds why Kafka cannot be reached, instead of trying for ever. Where the node's own connections do not
/// get through and librdkafka's do, it is left to librdkafka, unless the operator has said otherwise.
async fn reach(config: &mut NodeConfig) -> Result<(), Failure> {
    let kafka = KafkaConfig::from_node(&config.kafka, "tidemill");
    let problems = kafka.problems();
    if !problems.is_empty() {
        return Err(Failure::refused(problems.join("\n  ")));
    }
    let limit = config.kafka.connect_timeout;
    let outcome = tokio::task::spawn_blocking(move || {
        probe(&kafka, limit)?;
        let is_own = kafka.client() == KafkaClient::Own;
        Ok::<_, ProbeError>(if is_own { probe_own_client(&kafka, limit.min(TRIAL_MAX)).err() } else { None })
    });
    let Ok(outcome) = outcome.await else {
        return Err(Failure::failed("the connection check panicked"));
    };
    let Some(why) = outcome? else { return Ok(()) };
    if config.kafka.client == Some(KafkaClient::Own) {
        return Err(Failure::refused(format!(
            "kafka.client is own, and the node itself does not get through to Kafka, which librdkafka does: {why}. Leave \
             it to librdkafka (kafka.client: librdkafka), or mend that"
        )));
    }
    tracing::warn!(
        why,
        "librdkafka reads and writes records, which takes more CPU than if the node does, because only it gets through to Kafka \
         (kafka.client: librdkafka says that this is meant)"
    );
    config.kafka.client = Some(KafkaClient::Librdkafka);
    Ok(())
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Failure {
        let message = error.to_string();
        match error {
            RunError::Node(NodeError::Admin(error)) => error.into(),
            RunError::Node(NodeError::Kafka(_)) => Failure::unreachable(message),
            RunError::Node(
                NodeError::Identity(_)
                | NodeError::State(_)
                | NodeError::Modules(_)
                | NodeError::Compiled { .. }
                | NodeError::Record { .. },
            )
            | RunError::Tls(_) => Failure::refused(message),
            RunError::Node(NodeError::Thread(_)) | RunError::Panicked => Failure::failed(message),
            RunError::Grpc(_) | RunError::Http(_) => Failure::failed(message),
        }
    }
}

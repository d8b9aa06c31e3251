//! From a registered revision to one that can run.

use std::sync::Arc;

use super::topics::FoundTopic;
use super::{ChangelogTopic, Found, InternalTopics, PrepareError, Revision, check, compile, link, outgrown};
use crate::config::deployment::DeploymentSpec;
use crate::config::problem::Problem;
use crate::kafka::admin::NewTopic;
use crate::node::registered::Registered;
use crate::node::runtime::NodeRuntime;
use crate::store::Stores;
use crate::task::{EventsRule, OutputRule};
use crate::wasm::Module;

/// Makes a registered revision ready to run: fetches and compiles its module, checks it, makes the
/// internal topics.
pub fn prepare(node: &NodeRuntime, registered: &Registered) -> Result<Revision, PrepareError> {
    let spec = registered.parsed.spec.clone().map_err(PrepareError::Invalid)?;
    // Where it was deployed it has just been loaded.
    let module = match Module::loaded(&node.compiler, &registered.module) {
        Some(module) => module,
        None => compile(node, &node.module(&registered.module)?)?,
    };
    let manifest = module.manifest().clone();
    let checked = check(node, &spec, Some(&manifest), Some(&registered.incarnation), Found::default())?;
    let checked = checked.ok_or_else(|| PrepareError::Unavailable("a module has its manifest".into()))?;
    let changelog = changelog(node, &spec, &checked.internal)?;
    let inbox = checked.internal.inbox.as_ref().map(|topic| node.ensure_topic(topic)).transpose()?;
    let mut outputs = checked.outputs.clone();
    let mut add = |wanted: Option<&NewTopic>| -> Result<Option<u16>, PrepareError> {
        let Some(wanted) = wanted else { return Ok(None) };
        outputs.push(own_output(node, &checked.internal, wanted)?);
        Ok(Some((outputs.len() - 1) as u16))
    };
    let dead_letters = add(checked.internal.dead_letters.as_ref())?;
    let events = add(checked.internal.events.as_ref())?;
    let origin = node.origin(&registered.name);
    let events = events.map(|output| EventsRule { output, source: origin.source().into() });
    let ledger = &registered.ledger;
    let generation = |store: &str| ledger.generation(store);
    let stores = Stores::with_generations(&manifest.stores, generation, ledger.dropped())
        .map_err(|error| PrepareError::Invalid(vec![Problem::at("module", error.to_string())]))?;
    let stores = Arc::new(stores);
    let linked = link(&module, &spec)
        .map_err(|problem| PrepareError::Invalid(vec![problem]))?
        .counting(&node.telemetry)
        .logging_to(node.handler_logs.ring(&registered.name));
    let stations = node.relays.open(&origin, spec.destinations());
    let stations = stations.map_err(PrepareError::Precondition)?;
    Ok(Revision {
        group: node.group(&registered.name),
        registered: registered.clone(),
        spec,
        manifest,
        inputs: checked.inputs,
        outputs,
        dead_letters,
        events,
        changelog,
        inbox: inbox.map(|topic| topic.name),
        partitions: checked.partitions,
        linked,
        stores,
        stations,
        trial: node.trials.of(registered),
        cache: Arc::clone(&node.value_cache),
    })
}

/// Finds the topic of dead letters or events, or makes it.
fn own_output(
    node: &NodeRuntime,
    internal: &InternalTopics,
    wanted: &NewTopic,
) -> Result<OutputRule, PrepareError> {
    let found = node.admin.describe_topics(std::slice::from_ref(&wanted.name))?;
    let topic = match found.into_iter().flatten().next() {
        Some(found) => node.ensure_topic(&internal.as_it_may_be(wanted, &found))?,
        None => node.ensure_topic(wanted)?,
    };
    let configs = node.admin.topic_configs(&topic.name)?;
    Ok(FoundTopic { topic, configs }.as_output())
}

/// Finds the changelog, or makes it. One that does not fit its deployment any more is refused.
fn changelog(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    internal: &InternalTopics,
) -> Result<Option<ChangelogTopic>, PrepareError> {
    let Some(wanted) = &internal.changelog else { return Ok(None) };
    let found = node.admin.describe_topics(std::slice::from_ref(&wanted.name))?;
    if let Some(found) = found.into_iter().flatten().find(|found| found.partitions < internal.partitions) {
        let reason = outgrown(&internal.input, internal.partitions, &found.name, found.partitions);
        return Err(PrepareError::Precondition(vec![reason.into()]));
    }
    let topic = node.ensure_topic(wanted)?;
    Ok(Some(ChangelogTopic {
        topic: topic.name,
        topic_id: topic.id.to_string(),
        record_bytes_max: internal.record_bytes_max,
        delete_retention: spec.changelog.delete_retention,
    }))
}

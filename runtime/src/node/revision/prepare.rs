//! From a registered revision to one that can run.

use std::sync::Arc;

use super::topics::FoundTopic;
use super::{
    ChangelogTopic, Found, InternalTopics, PrepareError, Revision, check, compile, link, lost, outgrown,
};
use crate::config::deployment::DeploymentSpec;
use crate::config::problem::Problem;
use crate::kafka::admin::{NewTopic, Topic};
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
    let changelog = changelog(node, registered, &spec, &checked.internal)?;
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

/// Finds the changelog, or makes it. One that does not fit its deployment any more is refused, and so is one that is not
/// the one that this life of it began with: what tasks have committed to another since would pass for all of their state.
fn changelog(
    node: &NodeRuntime,
    registered: &Registered,
    spec: &DeploymentSpec,
    internal: &InternalTopics,
) -> Result<Option<ChangelogTopic>, PrepareError> {
    let Some(wanted) = &internal.changelog else { return Ok(None) };
    let refused = |reason: String| Err(PrepareError::Precondition(vec![reason.into()]));
    let found = node.admin.describe_topics(std::slice::from_ref(&wanted.name))?.into_iter().flatten().next();
    let view = node.control_log.view();
    if is_lost(view.began_with(&registered.incarnation, &wanted.name), found.as_ref()) {
        return refused(lost(&wanted.name, &registered.name, found.is_some()));
    }
    if let Some(found) = found.filter(|found| found.partitions < internal.partitions) {
        return refused(outgrown(&internal.input, internal.partitions, &found.name, found.partitions));
    }
    let topic = node.ensure_topic(wanted)?;
    Ok(Some(ChangelogTopic {
        topic: topic.name,
        topic_id: topic.id.to_string(),
        record_bytes_max: internal.record_bytes_max,
        delete_retention: spec.changelog.delete_retention,
    }))
}

/// The changelog is gone, or another topic than the one that it began as. Brokers without ids of topics do not tell.
fn is_lost(began: Option<&str>, found: Option<&Topic>) -> bool {
    let Some(began) = began else { return false };
    found.is_none_or(|found| !found.id.is_nil() && found.id.to_string() != began)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_changelog_that_is_gone_or_made_again_is_not_the_one_that_the_deployment_began_with() {
        let topic = |id| Topic { name: "log".into(), id: Uuid::from_u128(id), partitions: 1, replication: 1 };
        let began = Uuid::from_u128(7).to_string();
        assert!(!is_lost(None, None) && !is_lost(None, Some(&topic(8))), "nobody knows it yet");
        assert!(!is_lost(Some(&began), Some(&topic(7))));
        assert!(is_lost(Some(&began), Some(&topic(8))) && is_lost(Some(&began), None));
        assert!(!is_lost(Some(&began), Some(&topic(0))), "a broker that has no ids");
    }
}

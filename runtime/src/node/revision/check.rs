//! Document, module and cluster, checked against each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::topics::{FoundTopic, find_topics, look};
use super::{InputTopic, InternalTopics, PrepareError};
use crate::config::deployment::{DeploymentSpec, Guarantee, InboxSpec, OutputSpec};
use crate::config::manifest::Manifest;
use crate::config::outbox::Way;
use crate::config::problem::Problem;
use crate::config::topic::TopicDocument;
use crate::config::units::show_duration;
use crate::kafka::admin::Topic;
use crate::kafka::permissions::Looked;
use crate::node::permissions;
use crate::node::runtime::NodeRuntime;
use crate::task::{OutboxRule, OutputRule, recovery};

/// What a document and a module need of the cluster, found there.
pub struct Checked {
    pub inputs: Vec<InputTopic>,
    pub outputs: Vec<OutputRule>,
    pub partitions: i32,
    /// As [`warnings`] has them; none unless it is for a deploy.
    pub warnings: Vec<String>,
    pub(super) internal: InternalTopics,
}

/// What is known to be wrong, so far.
#[derive(Debug, Default)]
pub struct Found {
    /// With the document or the module.
    pub problems: Vec<Problem>,
    /// With what the cluster, or the life that the deployment is in, has.
    pub unmet: Vec<Problem>,
    /// Group, internal topics and transactions are asked about as well: a start finds out by using them.
    pub deploys: bool,
    /// Topics that are to be as these say by the time that the deployment is.
    pub topics: Vec<TopicDocument>,
}

/// Checks a document against a module and both against the cluster. Changes nothing. `incarnation` is
/// the life of the deployment that this revision belongs to; none for the first. A module that cannot
/// be used has no manifest; `found` then says why, and the rest is checked all the same.
pub fn check(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    manifest: Option<&Manifest>,
    incarnation: Option<&str>,
    found: Found,
) -> Result<Option<Checked>, PrepareError> {
    let Found { mut problems, mut unmet, deploys, topics } = found;
    problems.extend(manifest.map(|manifest| bind(spec, manifest)).unwrap_or_default());
    problems.extend(not_for_handlers(node, spec));
    if deploys {
        problems.extend(own_topics(spec, &node.letters_of(spec), node.events_of(spec).as_deref()));
    }
    problems.extend(node.relays.check(&node.origin(&spec.name), spec.destinations()));
    let looked = look(node, spec)?;
    let found = find_topics(node, &looked, &topics)?;
    let view = node.control_log.view();
    let began_with = |topic: &str| incarnation.and_then(|life| view.began_with(life, topic));
    unmet.extend(missing(spec, &looked, &found, began_with));
    unmet.extend(permissions::of_topics(node, spec, &looked));
    unmet.extend(made_again(spec, &found, began_with));
    unmet.extend(unequal(spec, &found));
    unmet.extend(node.config.defaults.policy.exceeded(&spec.limits));
    unmet.extend(too_slow(spec, node.kafka.limits.poll_interval));
    let internal = manifest.map(|manifest| InternalTopics::of(node, spec, manifest, &found)).transpose()?;
    if let Some(internal) = internal.as_ref().filter(|_| deploys) {
        let is_bounded = looked.values().any(Looked::is_bounded);
        unmet.extend(permissions::of_the_rest(node, spec, internal, is_bounded)?);
    }
    if !problems.is_empty() {
        // The world's problems are shown along with the document's.
        problems.extend(unmet);
        return Err(PrepareError::Invalid(problems));
    }
    if !unmet.is_empty() {
        return Err(PrepareError::Precondition(unmet));
    }
    let warnings = if deploys { doubtful(spec, &found) } else { Vec::new() };
    let (Some(manifest), Some(internal)) = (manifest, internal) else { return Ok(None) };
    let inputs: Vec<&FoundTopic> =
        manifest.inputs.iter().filter_map(|name| found.get(&spec.inputs.get(name)?.topic)).collect();
    let outputs = manifest.outputs.iter().filter_map(|name| Some((name, spec.outputs.get(name)?)));
    Ok(Some(Checked {
        inputs: manifest
            .inputs
            .iter()
            .zip(&inputs)
            .filter_map(|(name, input)| {
                Some(InputTopic {
                    topic: input.topic.name.clone(),
                    topic_id: input.topic.id.to_string(),
                    start: spec.inputs.get(name)?.start,
                })
            })
            .collect(),
        outputs: outputs
            .filter_map(|(name, output)| rule(name, output, &found, internal.record_bytes_max))
            .collect(),
        partitions: internal.partitions,
        warnings,
        internal,
    }))
}

/// What of a document is allowed and may not be meant, with the cluster as it is once these topics are as their
/// documents say. Each begins with the key that it is about. That nothing can be said is one as well: who asks has
/// nothing left to do that could fail.
pub fn warnings(node: &NodeRuntime, spec: &DeploymentSpec, topics: &[TopicDocument]) -> Vec<String> {
    if inbox_of_ids(spec).is_none() {
        return returning(spec); // Nobody needs to be asked.
    }
    match look(node, spec).and_then(|looked| find_topics(node, &looked, topics)) {
        Ok(found) => doubtful(spec, &found),
        Err(error) => {
            let unknown = format!(
                "inbox.ttl: not compared with what the inputs keep, for Kafka does not say how long that is: {error}"
            );
            returning(spec).into_iter().chain([unknown]).collect()
        }
    }
}

/// Everything of it that may not be meant.
fn doubtful(spec: &DeploymentSpec, found: &BTreeMap<String, FoundTopic>) -> Vec<String> {
    returning(spec).into_iter().chain(outliving(spec, found)).collect()
}

/// Outputs whose topic is an input as well. A handler may count on that; one that emits for every record never comes to
/// an end.
fn returning(spec: &DeploymentSpec) -> Vec<String> {
    let reader = |topic: &str| spec.inputs.iter().find(|(_, input)| input.topic == topic);
    let outputs = spec.outputs.iter().filter_map(|(name, output)| Some((name, output.topic()?)));
    let back = outputs.filter_map(|(name, topic)| Some((name, topic, reader(topic)?.0)));
    back.map(|(name, topic, input)| {
        format!(
            "outputs.{name}.topic: {topic} is what inputs.{input} reads, so what is emitted comes back, without end if every record \
             emits another; bind another topic unless that is meant"
        )
    })
    .collect()
}

fn inbox_of_ids(spec: &DeploymentSpec) -> Option<&InboxSpec> {
    spec.inbox.as_ref().filter(|inbox| inbox.id.is_some())
}

/// What a row of an outbox has beside the emission's own bytes: its id, names, numbers.
const OUTBOX_ROW_BYTES: usize = 512;

/// What tasks are told of an output.
fn rule(
    name: &str,
    output: &OutputSpec,
    found: &BTreeMap<String, FoundTopic>,
    changelog_bytes_max: usize,
) -> Option<OutputRule> {
    let destination = match output {
        OutputSpec::Topic(topic) => {
            let rule = found.get(&topic.topic)?.as_output();
            return Some(OutputRule { ids: topic.ids, emit: topic.emit, ..rule });
        }
        OutputSpec::Destination(destination) => destination,
    };
    let outbox = OutboxRule {
        name: name.into(),
        rows: destination.rows,
        bytes: destination.bytes,
        in_flight: destination.in_flight as usize,
        retry: destination.retry,
        attempts: destination.attempts,
    };
    Some(OutputRule {
        topic: format!("the outbox of {name}"),
        // Rows are kept in the changelog.
        record_bytes_max: changelog_bytes_max.saturating_sub(OUTBOX_ROW_BYTES),
        outbox: Some(Arc::new(outbox)),
        ..OutputRule::default()
    })
}

/// A worker that handles a record for as long as it may must not be thrown out of its group meanwhile.
fn too_slow(spec: &DeploymentSpec, poll_interval: Duration) -> Option<Problem> {
    let longest = spec.limits.batch_time;
    let message = || {
        format!(
            "a record may take {}, and a worker that does not poll for kafka.properties.max.poll.interval.ms ({}) is thrown out of \
             its group: lower limits.batch_time, or raise max.poll.interval.ms on every node",
            show_duration(longest),
            poll_interval.as_millis()
        )
    };
    (longest >= poll_interval).then(|| Problem::at("limits.batch_time", message()))
}

/// Inputs that keep records for longer than the inbox keeps their ids. What repeats them that late (a replay, a
/// redrive) has their effects again: nothing is wrong yet, and somebody should know.
fn outliving(spec: &DeploymentSpec, found: &BTreeMap<String, FoundTopic>) -> Vec<String> {
    let Some(inbox) = inbox_of_ids(spec) else { return Vec::new() };
    let outlives = |topic: &FoundTopic| {
        let kept = topic.kept_for()?;
        (kept > inbox.ttl).then(|| {
            let kept = if kept == Duration::MAX { "without end".to_owned() } else { show_duration(kept) };
            format!(
                "inbox.ttl: {} keeps records {kept}, the inbox their ids {}: a repetition that comes later has its \
                 effects again; raise inbox.ttl, or lower the topic's retention.ms",
                topic.topic.name,
                show_duration(inbox.ttl)
            )
        })
    };
    spec.inputs.values().filter_map(|input| outlives(found.get(&input.topic)?)).collect()
}

/// Inputs are read together, partition by partition.
fn unequal(spec: &DeploymentSpec, found: &BTreeMap<String, FoundTopic>) -> Option<Problem> {
    let inputs: Vec<&Topic> =
        spec.inputs.values().filter_map(|input| Some(&found.get(&input.topic)?.topic)).collect();
    let first = inputs.first()?;
    if inputs.iter().all(|input| input.partitions == first.partitions) {
        return None;
    }
    let shown: Vec<_> =
        inputs.iter().map(|input| format!("{} has {}", input.name, input.partitions)).collect();
    let message = format!(
        "they have different numbers of partitions ({}), so equal keys would not meet; give them the same number",
        shown.join(", ")
    );
    Some(Problem::at("inputs", message))
}

/// Topics that brokers or nodes keep something of their own in. Whoever wrote to the registry would deploy what he likes,
/// in anybody's name; whoever wrote to a changelog, what another deployment takes for its state. That one may be read,
/// as any topic; but each commit of a deployment that reads its own makes another record of it.
fn not_for_handlers(node: &NodeRuntime, spec: &DeploymentSpec) -> Vec<Problem> {
    // An outbox may lead to the same cluster.
    let sent = spec.destinations().filter_map(|(name, destination)| match &destination.way {
        Way::Kafka(kafka) => Some((format!("outputs.{name}.kafka.topic"), kafka.topic.as_str())),
        Way::Http(_) | Way::Amqp(_) => None,
    });
    let written = spec.written_topics().chain(sent).filter(|(_, topic)| node.config.is_internal(topic));
    let own = [node.changelog_topic(&spec.name), node.inbox_topic(&spec.name)];
    let is_readable = |topic: &str| !node.config.is_reserved(topic) && own.iter().all(|own| own != topic);
    let read = spec.input_topics().filter(|(_, topic)| !is_readable(topic));
    let problem = |(key, topic): (String, &str)| {
        let why = "brokers or nodes keep something of their own in it";
        Problem::at(key, format!("topic {topic} is not for handlers: {why}; bind another"))
    };
    read.chain(written).map(problem).collect()
}

/// Dead letters and failure events that the deployment reads again, or that readers of an output would meet; events among
/// letters. The document has been judged by itself, with the topics that it names; this is about those that it does not.
fn own_topics(spec: &DeploymentSpec, letters: &str, events: Option<&str>) -> Vec<Problem> {
    let letters = Some(letters).filter(|_| spec.writes_letters());
    let mut problems = Vec::new();
    for (own, what, topic) in [
        ("failures.dead_letters.topic", "dead letters", letters),
        ("failures.events.topic", "failure events", events),
    ] {
        let met = spec.topics().filter(|(key, bound)| key != own && Some(*bound) == topic);
        problems.extend(met.map(|(key, bound)| {
            let message = format!(
                "`{bound}` takes the {what} of this deployment, which need a topic of their own: bind another, or name one \
                 for them with {own}"
            );
            Problem::at(key, message)
        }));
    }
    problems
}

/// Every way in which a document does not fit a module.
fn bind(spec: &DeploymentSpec, manifest: &Manifest) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut compare = |what: &str, bound: Vec<&String>, declared: &[String]| {
        for name in declared.iter().filter(|name| !bound.contains(name)) {
            let message = format!(
                "the module has {what} {name}, which is bound to no topic; add `{name}: {{ topic: ... }}`"
            );
            problems.push(Problem::at(format!("{what}s"), message));
        }
        for name in bound.iter().filter(|name| !declared.contains(name)) {
            let known = if declared.is_empty() { "none".to_owned() } else { declared.join(", ") };
            let message = format!("the module has no such {what}; it has {known}");
            problems.push(Problem::at(format!("{what}s.{name}"), message));
        }
    };
    compare("input", spec.inputs.keys().collect(), &manifest.inputs);
    compare("output", spec.outputs.keys().collect(), &manifest.outputs);
    if spec.guarantee == Guarantee::AtLeastOnce && spec.commit.min_interval > spec.commit.interval {
        problems.push(Problem::at("commit.min_interval", "is above commit.interval"));
    }
    problems
}

/// Why a deployment with state stops when its inputs have been given more partitions.
pub fn outgrown(input: &str, partitions: i32, changelog: &str, has: i32) -> String {
    format!(
        "topic {input} has {partitions} partitions, changelog {changelog} has {has}: a key whose partition has changed would not \
         find its state; deploy under another name to begin anew, or, if the keys stayed where they were, add partitions to the \
         changelog as well: kafka-topics --alter --topic {changelog} --partitions {partitions}"
    )
}

/// Why a deployment stops whose input is no more.
pub fn deleted(topic: &str, deployment: &str) -> String {
    format!(
        "topic {topic} has been deleted, and the offsets that deployment {deployment} had in it with it; bind another topic, or make \
         the topic anew, delete the deployment and deploy it again"
    )
}

/// Why a deployment stops whose changelog is gone, or is another topic than this life of it began with.
pub fn lost(changelog: &str, deployment: &str, is_made_again: bool) -> String {
    let what = if is_made_again { "deleted and made again" } else { "deleted" };
    format!(
        "changelog {changelog} has been {what}, and the state of deployment {deployment} with it; delete the deployment and deploy \
         it again to begin anew"
    )
}

/// Inputs whose topic is not the one that this life of the deployment began to read.
fn made_again<'a>(
    spec: &DeploymentSpec,
    found: &BTreeMap<String, FoundTopic>,
    began_with: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Problem> {
    let other = |(name, topic): (&String, &String)| {
        let (began, id) = (began_with(topic)?, found.get(topic)?.topic.id.to_string());
        let message = || recovery::made_again(&spec.name, topic, began, &id);
        (began != id).then(|| Problem::at(format!("inputs.{name}"), message()))
    };
    spec.inputs.iter().filter_map(|(name, input)| other((name, &input.topic))).collect()
}

fn missing<'a>(
    spec: &DeploymentSpec,
    looked: &BTreeMap<String, Looked>,
    found: &BTreeMap<String, FoundTopic>,
    began_with: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Problem> {
    let inputs = spec.inputs.iter().map(|(name, input)| ("input", name, input.topic.as_str()));
    let outputs = spec.outputs.iter().filter_map(|(name, output)| Some(("output", name, output.topic()?)));
    inputs
        .chain(outputs)
        .filter(|(_, _, topic)| {
            let is_missing = looked.get(*topic).is_none_or(|looked| *looked == Looked::Missing);
            is_missing && !found.contains_key(*topic)
        })
        .map(|(what, name, topic)| {
            let message = match began_with(topic).filter(|_| what == "input") {
                Some(_) => deleted(topic, &spec.name),
                None => format!(
                    "topic {topic} does not exist; create it first: tidemill topics create {topic} --partitions N"
                ),
            };
            Problem::at(format!("{what}s.{name}"), message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_inbox_that_forgets_before_its_input_does_is_told() {
        let kept = |retention: &str| {
            let topic = Topic { name: "words".into(), id: Uuid::nil(), partitions: 1, replication: 1 };
            let configs = BTreeMap::from([("retention.ms".to_owned(), retention.to_owned())]);
            BTreeMap::from([("words".to_owned(), FoundTopic { topic, configs })])
        };
        let parse = |more: &str| {
            let text = format!("name: n\nmodule: m.wasm\ninputs: {{ in: {{ topic: words }} }}\n{more}");
            DeploymentSpec::parse(&text).expect("valid")
        };
        let spec = parse("inbox: { id: key, ttl: 24h }");
        assert!(outliving(&spec, &kept("86400000")).is_empty(), "as long as the input");
        for (retention, said) in
            [("604800000", "words keeps records 168h"), ("-1", "words keeps records without end")]
        {
            let warnings = outliving(&spec, &kept(retention)).join("; ");
            let expected = format!("inbox.ttl: {said}, the inbox their ids 24h: ");
            assert!(warnings.starts_with(&expected), "{warnings}");
        }
        assert!(outliving(&parse(""), &kept("-1")).is_empty(), "no inbox");
    }

    #[test]
    fn an_output_that_is_an_input_as_well_is_told() {
        let told = |output: &str| {
            let inputs = "inputs: { left: { topic: words }, right: { topic: names } }";
            let outputs = format!("outputs: {{ out: {{ topic: {output} }} }}");
            let text = format!("name: n\nmodule: m.wasm\n{inputs}\n{outputs}\n");
            returning(&DeploymentSpec::parse(&text).expect("valid")).join("; ")
        };
        assert_eq!(told("counts"), "");
        let said = told("names");
        assert!(said.starts_with("outputs.out.topic: names is what inputs.right reads"), "{said}");
    }

    #[test]
    fn what_the_node_calls_the_letters_and_events_of_a_deployment_is_no_topic_that_it_binds() {
        let refused = |document: &str| -> Vec<String> {
            let text = format!("name: n\nmodule: m.wasm\n{document}\n");
            let spec = DeploymentSpec::parse(&text).expect("valid");
            let problems = own_topics(&spec, "f.n.dead-letters", Some("f.n.failures"));
            problems.into_iter().map(|problem| problem.key).collect()
        };
        let buries = "failures: { then: dead_letter }";
        let reads = |topic: &str| format!("inputs: {{ in: {{ topic: {topic} }} }}");
        assert_eq!(refused(&format!("{}\n{buries}", reads("f.n.dead-letters"))), ["inputs.in.topic"]);
        assert_eq!(refused(&reads("f.n.failures")), ["inputs.in.topic"]);
        let writes = "outputs: { out: { topic: f.n.dead-letters } }";
        assert_eq!(refused(&format!("{}\n{writes}\n{buries}", reads("in"))), ["outputs.out.topic"]);
        let tells = "failures: { then: dead_letter, events: { topic: f.n.dead-letters } }";
        assert_eq!(refused(&format!("{}\n{tells}", reads("in"))), ["failures.events.topic"]);
        // What earlier versions left may be read by one that makes no letters.
        assert!(refused(&reads("f.n.dead-letters")).is_empty());
    }
}

//! What a deployment needs of the cluster beside its topics' existence: permissions, and internal topics
//! that can be made or are as they must be. Asked at the deploy, so that nothing is found out by failing.
//!
//! A cluster without an authorizer permits everything and says so in the descriptions that are asked for
//! anyway. Every problem names the command that mends it.

use std::collections::BTreeMap;

use super::revision::{InternalTopics, PrepareError, outgrown};
use super::runtime::NodeRuntime;
use crate::config::Problem;
use crate::config::deployment::{DeploymentSpec, Guarantee};
use crate::kafka::admin::{AdminError, NewTopic};
use crate::kafka::permissions::{Creation, Looked, Operation, Permitted, may_transact};

/// What the node may not do with the topics of a document.
pub fn of_topics(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    looked: &BTreeMap<String, Looked>,
) -> Vec<Problem> {
    let inputs =
        spec.inputs.iter().map(|(name, input)| ("inputs", name, input.topic.as_str(), Operation::Read));
    let outputs = spec
        .outputs
        .iter()
        .filter_map(|(name, output)| Some(("outputs", name, output.topic()?, Operation::Write)));
    let mut problems = Vec::new();
    for (what, name, topic, operation) in inputs.chain(outputs) {
        let lacking = lacking(looked.get(topic), &[operation, Operation::DescribeConfigs]);
        if !lacking.is_empty() {
            let grant = not_permitted(node, &lacking, &format!("--topic {topic}"));
            problems.push(Problem::at(format!("{what}.{name}"), format!("topic {topic}: {grant}")));
        }
    }
    problems
}

/// What a deployment could not do that was let loose now: with its group, its internal topics, and its
/// transactions.
pub fn of_the_rest(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    internal: &InternalTopics,
    is_bounded: bool,
) -> Result<Vec<Problem>, PrepareError> {
    let mut problems = Vec::new();
    let group = node.group(&spec.name);
    if !node.admin.group_permissions(&group)?.allows(Operation::Read) {
        let grant = not_permitted(node, &[Operation::Read], &format!("--group {group}"));
        problems.push(Problem::at("name", format!("consumer group {group}: {grant}")));
    }
    for wanted in internal.all() {
        problems.extend(internal_topic(node, internal, wanted)?);
    }
    if spec.guarantee == Guarantee::ExactlyOnce && is_bounded {
        // One id more than the workers have, so that none of them is fenced by the question.
        let prefix = format!("{}.{}.", node.config.fleet, spec.name);
        if !may_transact(&node.kafka, &format!("{prefix}{}.check", node.id)) {
            let resource = format!("--transactional-id {prefix} --resource-pattern-type prefixed");
            let grant = not_permitted(node, &[Operation::Write], &resource);
            problems.push(Problem::at("guarantee", format!("transactional ids {prefix}*: {grant}")));
        }
    }
    Ok(problems)
}

fn internal_topic(
    node: &NodeRuntime,
    internal: &InternalTopics,
    wanted: &NewTopic,
) -> Result<Vec<Problem>, PrepareError> {
    let name = &wanted.name;
    let topic = format!("--topic {name}");
    let say = |message: String| Problem::at("name", format!("internal topic {name}: {message}"));
    let looked = node.admin.look(std::slice::from_ref(name))?.remove(name).unwrap_or(Looked::Missing);
    let needed = internal.operations(wanted);
    // Whoever may not see it, or not make it, would not be let near it either, as far as one can tell.
    let all = [&[Operation::Create], needed.as_slice()].concat();
    let lacking = if looked == Looked::Denied { all.clone() } else { lacking(Some(&looked), &needed) };
    let mut problems = Vec::new();
    if !lacking.is_empty() {
        problems.push(say(not_permitted(node, &lacking, &topic)));
    }
    match looked {
        Looked::Denied => {}
        Looked::There(found, permitted) => {
            if internal.is_changelog(wanted) && found.partitions < wanted.partitions {
                let reason = outgrown(&internal.input, wanted.partitions, name, found.partitions);
                problems.push(Problem::at("name", reason));
            } else if wanted.partitions > 0 && permitted.allows(Operation::DescribeConfigs) {
                match node.admin.fits(&found, &internal.as_it_may_be(wanted, &found)) {
                    Ok(()) => {}
                    Err(AdminError::Refused { reason, .. }) => problems.push(say(reason)),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Looked::Missing => match node.admin.could_create(&NewTopic {
            // Of inputs that may not be seen nobody knows how many; one will do for the question.
            partitions: wanted.partitions.max(1),
            ..wanted.clone()
        })? {
            Creation::Possible => {}
            Creation::Denied => problems.push(say(not_permitted(node, &all, &topic))),
            Creation::Refused(reason) => problems.push(say(format!("it could not be made: {reason}"))),
        },
    }
    Ok(problems)
}

/// The operations that are not permitted, of those that are needed. What is not there lacks nothing.
fn lacking(looked: Option<&Looked>, needed: &[Operation]) -> Vec<Operation> {
    let lacks = |permitted: &Permitted| {
        needed.iter().copied().filter(|&operation| !permitted.allows(operation)).collect()
    };
    match looked {
        Some(Looked::There(_, permitted)) => lacks(permitted),
        Some(Looked::Denied) => needed.to_vec(),
        Some(Looked::Missing) | None => Vec::new(),
    }
}

/// What is missing, and the command that grants it.
pub fn not_permitted(node: &NodeRuntime, operations: &[Operation], resource: &str) -> String {
    let names: Vec<&str> = operations.iter().map(|operation| operation.name()).collect();
    let servers = node.config.kafka.bootstrap_servers.join(",");
    let principal = principal(node);
    format!(
        "Kafka does not permit {principal} to {}; grant it with kafka-acls --bootstrap-server {servers} --add --allow-principal \
         {principal} --operation {} {resource}",
        names.join(", "),
        names.join(" --operation "),
    )
}

/// Whom the brokers see, as far as the node can tell.
fn principal(node: &NodeRuntime) -> String {
    let kafka = &node.config.kafka;
    match &kafka.sasl {
        Some(sasl) => format!("User:{}", sasl.username.as_deref().unwrap_or("PRINCIPAL")),
        None if kafka.ssl.certificate.is_some() => "User:SUBJECT-OF-THE-CERTIFICATE".to_owned(),
        None => "User:ANONYMOUS".to_owned(),
    }
}

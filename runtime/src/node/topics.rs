//! Topics as documents: compared with what the brokers have, then made and changed until they are as written.
//!
//! ```text
//!   read the documents -> may the caller? -> look at each topic, ask the brokers -> carry out, one by one
//!                                                         |
//!                                               every problem at once
//! ```
//!
//! There is no registry of topics: what the brokers have is what counts. So whoever asks again, or somewhere else at
//! the same time, finds what is done and does the rest. Nothing is deleted, and no partition is taken away.

use tidemill_proto::v1 as proto;

use super::change::{AUTHOR_BYTES_MAX, refuse, too_long};
use super::handle::{ControlError, Handle};
use super::permissions::not_permitted;
use super::runtime::NodeRuntime;
use crate::config::document::{in_file, name_of};
use crate::config::problem::Problem;
use crate::config::topic::TopicDocument;
use crate::kafka::admin::{Admin, AdminError, NewTopic, Topic};
use crate::kafka::permissions::{Creation, Looked, Operation};
use crate::kafka::topic_settings::{SettingChange, TopicSetting};

/// Of one call: each topic is looked at, and asked about, by itself.
pub const TOPICS_MAX: usize = 100;

/// What it takes for a topic to be as its document says.
struct Step<'a> {
    wanted: &'a TopicDocument,
    /// None = it does not exist.
    found: Option<Topic>,
    settings: Vec<Difference>,
    /// Settings of its own that the document does not name.
    unnamed: Vec<String>,
}

/// A setting that is not as the document says.
struct Difference {
    name: String,
    /// Empty = it is not set.
    before: String,
    /// None = not the topic's own any more.
    after: Option<String>,
}

impl Handle {
    /// Makes and changes topics until they are as their documents say, or says what that would take.
    pub fn apply_topics(
        &self,
        request: &proto::ApplyTopicsRequest,
    ) -> Result<proto::ApplyTopicsResponse, ControlError> {
        let mut problems = Vec::from_iter(too_long("author", &request.author, AUTHOR_BYTES_MAX));
        let wanted = documents(&request.documents).unwrap_or_else(|wrong| {
            problems.extend(wrong);
            Vec::new()
        });
        refuse(problems)?;
        self.may_change(&wanted)?;
        let mut topics = Vec::with_capacity(wanted.len());
        for step in plan(&self.node, &wanted, request.raise_partitions)? {
            if request.dry_run {
                topics.push(step.shown());
                continue;
            }
            let done = carry_out(&self.node.admin, step, request.raise_partitions)?.shown();
            if done.result() != proto::TopicResult::Unchanged {
                let change = |change: &proto::Change| {
                    format!("{}: {} -> {}", change.field, change.before, change.after)
                };
                let changes = done.changes.iter().map(change).collect::<Vec<_>>().join(", ");
                tracing::info!(
                    topic = done.name,
                    author = request.author,
                    changes,
                    "a topic was made or changed"
                );
            }
            topics.push(done);
        }
        Ok(proto::ApplyTopicsResponse { topics })
    }

    /// Refuses topics that are not the caller's to change, before anything is said about them, and those that are
    /// nobody's.
    fn may_change(&self, wanted: &[TopicDocument]) -> Result<(), ControlError> {
        let foreign = wanted.iter().filter(|topic| !self.scope.changes(&topic.name));
        let why = "the node's `roles` do not let you change it: have it added to `topics` there";
        let denied: Vec<Problem> = foreign.map(|topic| problem(topic, why)).collect();
        if !denied.is_empty() {
            return Err(ControlError::Denied(denied));
        }
        let internal = wanted.iter().filter(|topic| self.node.config.is_internal(&topic.name));
        let why = "brokers or nodes keep something of their own in it, and they alone make and change it";
        refuse(internal.map(|topic| problem(topic, why)))
    }
}

/// Reads documents, each of another topic.
pub(super) fn documents(texts: &[String]) -> Result<Vec<TopicDocument>, Vec<Problem>> {
    if texts.len() > TOPICS_MAX {
        let message = format!("has {} topics; at most {TOPICS_MAX} are taken at once", texts.len());
        return Err(vec![Problem::at("documents", message)]);
    }
    let mut problems = Vec::new();
    let mut read: Vec<TopicDocument> = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        match TopicDocument::parse(text) {
            Ok(topic) if read.iter().any(|earlier| earlier.name == topic.name) => {
                problems.push(problem(&topic, "two documents describe it; keep one of them"));
            }
            Ok(topic) => read.push(topic),
            Err(found) => {
                let whose = name_of(text).unwrap_or_else(|| format!("documents[{at}]"));
                problems.extend(in_file(found, &whose).0);
            }
        }
    }
    if problems.is_empty() { Ok(read) } else { Err(problems) }
}

fn problem(topic: &TopicDocument, message: impl Into<String>) -> Problem {
    Problem::at(format!("topic {}", topic.name), message)
}

fn plan<'a>(
    node: &NodeRuntime,
    wanted: &'a [TopicDocument],
    may_raise: bool,
) -> Result<Vec<Step<'a>>, ControlError> {
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    let mut looked = node.admin.look(&names)?;
    let (mut steps, mut problems) = (Vec::with_capacity(wanted.len()), Vec::new());
    for topic in wanted {
        let looked = looked.remove(&topic.name).unwrap_or(Looked::Missing);
        match step(node, topic, looked, may_raise)? {
            Ok(step) => steps.push(step),
            Err(reasons) => problems.extend(reasons.into_iter().map(|reason| problem(topic, reason))),
        }
    }
    if problems.is_empty() { Ok(steps) } else { Err(ControlError::Unmet(problems)) }
}

/// What one topic takes, or everything that stands in its way.
fn step<'a>(
    node: &NodeRuntime,
    wanted: &'a TopicDocument,
    looked: Looked,
    may_raise: bool,
) -> Result<Result<Step<'a>, Vec<String>>, AdminError> {
    let lacks = |operation| not_permitted(node, &[operation], &format!("--topic {}", wanted.name));
    let (found, permitted) = match looked {
        Looked::There(found, permitted) => (found, permitted),
        Looked::Denied => return Ok(Err(vec![lacks(Operation::Describe)])),
        Looked::Missing => {
            return Ok(match node.admin.could_create(&as_new(wanted))? {
                Creation::Possible => Ok(Step::create(wanted)),
                Creation::Denied => Err(vec![lacks(Operation::Create)]),
                Creation::Refused(reason) => Err(vec![format!("it could not be made: {reason}")]),
            });
        }
    };
    if !permitted.allows(Operation::DescribeConfigs) {
        return Ok(Err(vec![lacks(Operation::DescribeConfigs)]));
    }
    let step = Step::compare(wanted, found, &node.admin.known_settings(&wanted.name)?);
    let mut reasons = step.refusals(may_raise);
    if let Some(total) = step.raise() {
        let refused = |reason: String| format!("it could not be given {total} partitions: {reason}");
        match permitted.allows(Operation::Alter) {
            true => reasons.extend(node.admin.could_add_partitions(&wanted.name, total)?.map(refused)),
            false => reasons.push(lacks(Operation::Alter)),
        }
    }
    if !step.settings.is_empty() {
        match permitted.allows(Operation::AlterConfigs) {
            true => reasons.extend(node.admin.could_alter(&wanted.name, &step.setting_changes())?),
            false => reasons.push(lacks(Operation::AlterConfigs)),
        }
    }
    Ok(if reasons.is_empty() { Ok(step) } else { Err(reasons) })
}

/// Answers what was done: a topic that somebody else has made meanwhile is compared, and changed, like any.
fn carry_out<'a>(admin: &Admin, step: Step<'a>, may_raise: bool) -> Result<Step<'a>, ControlError> {
    let wanted = step.wanted;
    let step = match step.found {
        Some(_) => step,
        None => match admin.create_topic(&as_new(wanted)) {
            Ok(()) => return Ok(step),
            Err(AdminError::Exists { .. }) => {
                let found = admin.made_topic(&wanted.name)?;
                Step::compare(wanted, found, &admin.known_settings(&wanted.name)?)
            }
            Err(error) => return Err(error.into()),
        },
    };
    let refusals = step.refusals(may_raise);
    if !refusals.is_empty() {
        let problems = refusals.into_iter().map(|reason| problem(wanted, reason)).collect();
        return Err(ControlError::Unmet(problems));
    }
    if let Some(total) = step.raise() {
        match admin.add_partitions(&wanted.name, total) {
            // Somebody else was faster.
            Err(AdminError::Refused { .. }) if admin.topic(&wanted.name)?.partitions == total => {}
            answer => answer?,
        }
    }
    if !step.settings.is_empty() {
        admin.alter_settings(&wanted.name, &step.setting_changes())?;
    }
    Ok(step)
}

fn as_new(wanted: &TopicDocument) -> NewTopic {
    let set = wanted.config.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
    NewTopic {
        replication: wanted.replication_factor,
        configs: set.collect(),
        ..NewTopic::new(wanted.name.clone(), wanted.partitions)
    }
}

impl<'a> Step<'a> {
    /// Of a topic that does not exist.
    fn create(wanted: &'a TopicDocument) -> Step<'a> {
        let settings = as_new(wanted).configs.into_iter().map(|(name, value)| Difference {
            name,
            before: String::new(),
            after: Some(value),
        });
        Step { wanted, found: None, settings: settings.collect(), unnamed: Vec::new() }
    }

    /// Of a topic that is there.
    fn compare(wanted: &'a TopicDocument, found: Topic, settings: &[TopicSetting]) -> Step<'a> {
        let differs = |(name, after): (&String, &Option<String>)| {
            let now = settings.iter().find(|setting| setting.name == *name);
            let is_so = match (now, after) {
                (Some(now), Some(after)) => now.is(after),
                (Some(now), None) => !now.own,
                (None, after) => after.is_none(),
            };
            (!is_so).then(|| Difference {
                name: name.clone(),
                before: now.map(|now| now.value.clone()).unwrap_or_default(),
                after: after.clone(),
            })
        };
        let unnamed =
            settings.iter().filter(|setting| setting.own && !wanted.config.contains_key(&setting.name));
        Step {
            wanted,
            found: Some(found),
            settings: wanted.config.iter().filter_map(differs).collect(),
            unnamed: unnamed.map(|setting| format!("{}={}", setting.name, setting.value)).collect(),
        }
    }

    /// How many partitions it is to have, if that is more than it has.
    fn raise(&self) -> Option<i32> {
        let found = self.found.as_ref()?;
        (found.partitions < self.wanted.partitions).then_some(self.wanted.partitions)
    }

    /// Why a topic that is there is not made what its document says.
    fn refusals(&self, may_raise: bool) -> Vec<String> {
        let Some(found) = &self.found else { return Vec::new() };
        let (has, wanted) = (found.partitions, self.wanted.partitions);
        let mut refusals = Vec::new();
        if has > wanted {
            refusals.push(format!(
                "it has {has} partitions, the document says {wanted}, and none can be taken away: write {has}, or give \
                 the topic another name"
            ));
        }
        if has < wanted && !may_raise {
            refusals.push(format!(
                "it has {has} partitions, the document says {wanted}: keys would be in other partitions than their earlier \
                 records, and a deployment that keeps state of them stops; --raise-partitions adds them all the same"
            ));
        }
        if let Some(wanted) = self.wanted.replication_factor.filter(|&wanted| wanted != found.replication) {
            let has = found.replication;
            refusals.push(format!(
                "its replication factor is {has}, the document says {wanted}: kafka-reassign-partitions changes that; \
                 write {has} until then"
            ));
        }
        refusals
    }

    fn setting_changes(&self) -> Vec<SettingChange> {
        self.settings.iter().map(|differs| (differs.name.clone(), differs.after.clone())).collect()
    }

    fn shown(&self) -> proto::AppliedTopic {
        let number = |field: &str, before: Option<i32>, after: i32| proto::Change {
            field: field.to_owned(),
            before: before.map(|before| before.to_string()).unwrap_or_default(),
            after: after.to_string(),
        };
        let mut changes = Vec::new();
        match &self.found {
            Some(found) => {
                changes.extend(self.raise().map(|total| number("partitions", Some(found.partitions), total)))
            }
            None => {
                changes.push(number("partitions", None, self.wanted.partitions));
                let factor = self.wanted.replication_factor;
                changes.extend(factor.map(|factor| number("replication_factor", None, factor.into())));
            }
        }
        changes.extend(self.settings.iter().map(|differs| proto::Change {
            field: format!("config.{}", differs.name),
            before: differs.before.clone(),
            after: differs.after.clone().unwrap_or_default(),
        }));
        let result = match &self.found {
            None => proto::TopicResult::Created,
            Some(_) if changes.is_empty() => proto::TopicResult::Unchanged,
            Some(_) => proto::TopicResult::Changed,
        };
        proto::AppliedTopic {
            name: self.wanted.name.clone(),
            result: result.into(),
            changes,
            unnamed: self.unnamed.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn wanted(more: &str) -> TopicDocument {
        TopicDocument::parse(&format!("kind: topic\nname: words\n{more}")).expect("valid")
    }

    fn found(partitions: i32) -> Topic {
        Topic { name: "words".into(), id: Uuid::nil(), partitions, replication: 1 }
    }

    fn setting(name: &str, value: &str, own: bool) -> TopicSetting {
        TopicSetting { name: name.into(), value: value.into(), own }
    }

    /// The result, and each change in a line.
    fn shown(step: &Step<'_>) -> (proto::TopicResult, Vec<String>) {
        let shown = step.shown();
        let line = |change: &proto::Change| format!("{} {}>{}", change.field, change.before, change.after);
        (shown.result(), shown.changes.iter().map(line).collect())
    }

    #[test]
    fn what_differs_is_changed_and_what_the_document_does_not_name_is_left_and_told() {
        let settings = [
            setting("cleanup.policy", "compact,delete", true),
            setting("min.insync.replicas", "1", false),
            setting("retention.ms", "1000", true),
            setting("segment.ms", "5000", true),
            setting("flush.ms", "7", true),
        ];
        let document = wanted(
            "partitions: 3\nconfig: { cleanup.policy: [compact, delete], retention.ms: 2000, segment.ms: null, \
             min.insync.replicas: null, max.message.bytes: 5 }",
        );
        let step = Step::compare(&document, found(3), &settings);
        let expected =
            ["config.max.message.bytes >5", "config.retention.ms 1000>2000", "config.segment.ms 5000>"];
        assert_eq!(shown(&step), (proto::TopicResult::Changed, expected.map(str::to_owned).to_vec()));
        assert_eq!(step.unnamed, ["flush.ms=7"]);
        assert!(step.refusals(false).is_empty());

        let same = wanted("partitions: 3\nreplication_factor: 1");
        let step = Step::compare(&same, found(3), &settings);
        assert_eq!(shown(&step), (proto::TopicResult::Unchanged, Vec::new()));
        assert_eq!(step.unnamed.len(), 4);
    }

    #[test]
    fn a_new_topic_shows_all_that_it_is_made_with() {
        let document =
            wanted("partitions: 3\nreplication_factor: 2\nconfig: { retention.ms: 1, segment.ms: null }");
        let expected = ["partitions >3", "replication_factor >2", "config.retention.ms >1"];
        let step = Step::create(&document);
        assert_eq!(shown(&step), (proto::TopicResult::Created, expected.map(str::to_owned).to_vec()));
        assert_eq!(as_new(&document).configs, [("retention.ms".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn partitions_are_added_only_for_who_says_so_and_never_taken_away() {
        let more = wanted("partitions: 6");
        let step = Step::compare(&more, found(3), &[]);
        assert!(step.refusals(true).is_empty());
        let refusals = step.refusals(false).join("\n");
        assert!(refusals.contains("--raise-partitions") && refusals.contains("it has 3"), "{refusals}");
        assert_eq!(shown(&step), (proto::TopicResult::Changed, vec!["partitions 3>6".to_owned()]));

        let fewer = wanted("partitions: 2\nreplication_factor: 3");
        let refusals = Step::compare(&fewer, found(3), &[]).refusals(true);
        assert_eq!(refusals.len(), 2, "{refusals:?}");
        assert!(refusals[0].contains("none can be taken away: write 3"), "{refusals:?}");
        assert!(refusals[1].contains("kafka-reassign-partitions"), "{refusals:?}");
    }

    #[test]
    fn documents_are_read_together_and_each_problem_names_its_topic() {
        let texts =
            ["kind: topic\nname: a\n", "kind: topic\nname: b\npartitions: 1\n", "[]"].map(str::to_owned);
        let twice = [texts[1].clone(), texts[1].clone()];
        let said = |texts: &[String]| match documents(texts) {
            Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            Ok(read) => panic!("{read:?}"),
        };
        assert_eq!(
            said(&texts),
            "line 1: a: partitions: is missing: write how many the topic has\n\
             line 1: documents[2]: expected a mapping, found a list"
        );
        assert_eq!(said(&twice), "topic b: two documents describe it; keep one of them");
        assert!(said(&vec![texts[1].clone(); TOPICS_MAX + 1]).contains("at most 100"));
    }
}

//! Are the inputs of what runs here still those it began with? Asked at every metadata refresh, on a
//! thread of its own, so that a slow broker holds nothing up; the supervisor acts on the answers.
//!
//! | found | reaction |
//! |---|---|
//! | an input deleted, or made again under its name | stop, with the reason |
//! | more partitions, no state | none: the group hands them out, and they begin at earliest |
//! | more partitions, and the changelog has grown with them | start again, with clients that know them |
//! | more partitions than the changelog | stop, with the fix |
//! | the changelog deleted, or made again under its name | stop, with the reason |
//! | a partition that the group has given to nobody for two refreshes, or for ten seconds after a rebalance | make the group look again |
//!
//! The last happens in two ways, both of static members, which take their assignment up again after a restart
//! without a rebalance. A restarted leader has not computed it, so it does not watch for new partitions; and a
//! member that died while it was giving partitions back never asks for the rebalance that gives them away.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::revision::{self, ChangelogTopic, InputTopic, Revision};
use super::runtime::NodeRuntime;
use crate::kafka::admin::{AdminError, GroupDescription, Topic};
use crate::task::recovery::made_again;

/// Time between two looks, however often clients refresh their metadata.
const LOOK_MIN: Duration = Duration::from_millis(200);
/// A look must find the same this many times in a row before it counts: brokers learn of a change one
/// after the other, and a group needs a moment to react.
const SIGHTINGS: u32 = 2;
/// After a rebalance, for this long, groups are looked at this often; a partition that is nobody's this many
/// times in a row has been forgotten. Members that give partitions up take less than those ten seconds.
const RESTLESS: Duration = Duration::from_secs(30);
const RESTLESS_LOOK: Duration = Duration::from_secs(2);
const RESTLESS_SIGHTINGS: u32 = 5;

/// What is to be done about a running deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    /// Only a person can help.
    Stop(String),
    /// Stop and start again, with the topics as they are now.
    Restart,
    /// Leave the group and join it, so that it looks at its topics again.
    Rejoin,
}

/// An answer about one revision of a deployment.
#[derive(Debug)]
pub struct Finding {
    pub deployment: String,
    pub revision: u64,
    pub reaction: Reaction,
}

/// Ends the thread when stopped.
pub struct Watch {
    stopping: Arc<AtomicBool>,
    running: Arc<Mutex<Vec<Arc<Revision>>>>,
    findings: Receiver<Finding>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn start(node: Arc<NodeRuntime>) -> std::io::Result<Watch> {
        let stopping = Arc::new(AtomicBool::new(false));
        let running = Arc::new(Mutex::new(Vec::new()));
        let (sender, findings) = unbounded();
        let look = Look { node, stopping: Arc::clone(&stopping), running: Arc::clone(&running), sender };
        let thread = std::thread::Builder::new().name("inputs".into()).spawn(move || look.run())?;
        Ok(Watch { stopping, running, findings, thread })
    }

    /// What to look at from now on.
    pub fn set(&self, running: Vec<Arc<Revision>>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// What was found since the last call.
    pub fn findings(&self) -> impl Iterator<Item = Finding> {
        self.findings.try_iter()
    }

    pub fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the thread that watches inputs panicked");
        }
    }
}

struct Look {
    node: Arc<NodeRuntime>,
    stopping: Arc<AtomicBool>,
    running: Arc<Mutex<Vec<Arc<Revision>>>>,
    sender: Sender<Finding>,
}

impl Look {
    fn run(self) {
        let interval = self.node.kafka.limits.metadata_refresh.max(LOOK_MIN);
        // By deployment: what is to be done, and how often in a row that was found.
        let mut seen = HashMap::new();
        let mut forgotten = HashMap::new();
        let mut due = Instant::now() + interval;
        loop {
            std::thread::park_timeout(interval.min(RESTLESS_LOOK));
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.look_at_groups(&running, &mut forgotten);
            if Instant::now() >= due {
                due = Instant::now() + interval;
                self.look_at_topics(&running, &mut seen);
            }
        }
    }

    /// Groups that were rebalanced a moment ago.
    fn look_at_groups(&self, running: &[Arc<Revision>], forgotten: &mut HashMap<String, u32>) {
        let mut before = std::mem::take(forgotten);
        for revision in running {
            let name = &revision.registered.name;
            let is_restless =
                self.node.board(name).is_some_and(|board| board.was_rebalanced_within(RESTLESS));
            if !is_restless || self.holds_all(revision) {
                continue;
            }
            let topics = revision.inputs.iter().map(|input| (input.topic.as_str(), revision.partitions));
            match self.node.admin.describe_group(&revision.group) {
                Ok(group) if is_incomplete(&group, topics) => {
                    let times = before.remove(name).unwrap_or_default() + 1;
                    if times < RESTLESS_SIGHTINGS {
                        forgotten.insert(name.clone(), times);
                    } else {
                        self.report(revision, Reaction::Rejoin);
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(deployment = name, %error, "cannot look at the group"),
            }
        }
    }

    fn look_at_topics(&self, running: &[Arc<Revision>], seen: &mut HashMap<String, (Reaction, u32)>) {
        let mut before = std::mem::take(seen);
        for revision in running {
            let name = &revision.registered.name;
            let found = match self.look(revision) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(deployment = name, %error, "cannot look at the inputs");
                    continue;
                }
            };
            let times = before.remove(name).filter(|(last, _)| *last == found).map_or(0, |(_, n)| n) + 1;
            if times < SIGHTINGS {
                seen.insert(name.clone(), (found, times));
            } else {
                self.report(revision, found);
            }
        }
    }

    fn report(&self, revision: &Revision, reaction: Reaction) {
        let (deployment, revision) = (revision.registered.name.clone(), revision.registered.revision);
        // Fails only while the supervisor is ending.
        let _ = self.sender.send(Finding { deployment, revision, reaction });
    }

    fn look(&self, revision: &Revision) -> Result<Option<Reaction>, AdminError> {
        let began = Began {
            deployment: &revision.registered.name,
            inputs: &revision.inputs,
            changelog: revision.changelog.as_ref(),
            partitions: revision.partitions,
        };
        let names: Vec<String> = began.topics().map(str::to_owned).collect();
        let mut found = self.node.admin.describe_topics(&names)?;
        let changelog = found.split_off(revision.inputs.len()).into_iter().flatten().next();
        if let Some(reaction) = began.judge(&found, changelog.as_ref()) {
            return Ok(Some(reaction));
        }
        let topics = || found.iter().flatten().map(|topic| (topic.name.as_str(), topic.partitions));
        if topics().all(|(_, partitions)| partitions == revision.partitions) && self.holds_all(revision) {
            return Ok(None);
        }
        let group = self.node.admin.describe_group(&revision.group)?;
        let is_ours = looks_after(&group, &self.node.id);
        Ok((is_ours && is_incomplete(&group, topics())).then_some(Reaction::Rejoin))
    }

    /// Nothing of it is nobody's, as far as this revision knows.
    fn holds_all(&self, revision: &Revision) -> bool {
        let tasks = self.node.tasks(&revision.registered.name).len();
        i32::try_from(tasks).is_ok_and(|tasks| tasks >= revision.partitions)
    }
}

/// One node looks after a group: the one with the first of its static members. Of a group of dynamic ones
/// the broker does.
fn looks_after(group: &GroupDescription, node: &str) -> bool {
    let first = group.members.iter().filter_map(|member| member.instance_id.as_deref()).min();
    first.and_then(|instance| instance.rsplit_once('-')).is_some_and(|(id, _)| id == node)
}

/// What a revision found when it started.
struct Began<'a> {
    deployment: &'a str,
    inputs: &'a [InputTopic],
    /// None without state.
    changelog: Option<&'a ChangelogTopic>,
    partitions: i32,
}

impl Began<'_> {
    /// The inputs, then the changelog.
    fn topics(&self) -> impl Iterator<Item = &str> {
        let inputs = self.inputs.iter().map(|input| input.topic.as_str());
        inputs.chain(self.changelog.map(|changelog| changelog.topic.as_str()))
    }

    /// The table above, but for its last row.
    fn judge(&self, inputs: &[Option<Topic>], changelog: Option<&Topic>) -> Option<Reaction> {
        let mut partitions = None;
        for (began, found) in self.inputs.iter().zip(inputs) {
            let Some(found) = found else {
                return Some(Reaction::Stop(revision::deleted(&began.topic, self.deployment)));
            };
            let id = found.id.to_string();
            if id != began.topic_id {
                let reason = made_again(self.deployment, &began.topic, &began.topic_id, &id);
                return Some(Reaction::Stop(reason));
            }
            match partitions {
                None => partitions = Some(found.partitions),
                Some(first) if first == found.partitions => {}
                // The start knows how to say it, and starts again once they are equal.
                Some(_) => return Some(Reaction::Restart),
            }
        }
        let (began, partitions) = (self.changelog?, partitions?);
        let Some(changelog) = changelog else {
            return Some(Reaction::Stop(revision::lost(&began.topic, self.deployment, false)));
        };
        if changelog.id.to_string() != began.topic_id {
            return Some(Reaction::Stop(revision::lost(&began.topic, self.deployment, true)));
        }
        if changelog.partitions < partitions {
            let input = self.inputs.first().map_or("", |input| &input.topic);
            let reason = revision::outgrown(input, partitions, &changelog.name, changelog.partitions);
            return Some(Reaction::Stop(reason));
        }
        (partitions > self.partitions).then_some(Reaction::Restart)
    }
}

/// True if the group is at rest and some partition of these topics, of so many partitions, is nobody's.
fn is_incomplete<'a>(group: &GroupDescription, mut topics: impl Iterator<Item = (&'a str, i32)>) -> bool {
    let members = group.members.iter();
    let given: BTreeSet<(&str, i32)> = members
        .flat_map(|member| member.partitions.iter().map(|(topic, partition)| (topic.as_str(), *partition)))
        .collect();
    group.state == "Stable"
        && topics
            .any(|(topic, partitions)| (0..partitions).any(|partition| !given.contains(&(topic, partition))))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::config::deployment::Start;
    use crate::kafka::admin::GroupMember;

    fn topic(name: &str, id: u128, partitions: i32) -> Topic {
        Topic { name: name.into(), id: Uuid::from_u128(id), partitions, replication: 1 }
    }

    fn inputs(names: &[&str]) -> Vec<InputTopic> {
        let input = |name: &&str| InputTopic {
            topic: (*name).into(),
            topic_id: Uuid::from_u128(1).to_string(),
            start: Start::Earliest,
        };
        names.iter().map(input).collect()
    }

    fn reason(reaction: Option<Reaction>) -> String {
        match reaction {
            Some(Reaction::Stop(reason)) => reason,
            other => panic!("{other:?} is no stop"),
        }
    }

    #[test]
    fn an_input_that_is_gone_or_made_again_stops_its_deployment() {
        let inputs = inputs(&["a"]);
        let began = Began { deployment: "d", inputs: &inputs, changelog: None, partitions: 2 };
        assert_eq!(began.judge(&[Some(topic("a", 1, 2))], None), None);
        assert!(reason(began.judge(&[None], None)).contains("topic a has been deleted"));
        assert!(reason(began.judge(&[Some(topic("a", 2, 2))], None)).contains("made again"));
        assert_eq!(began.judge(&[Some(topic("a", 1, 4))], None), None, "without state the group does it all");
    }

    #[test]
    fn a_deployment_with_state_grows_only_with_its_changelog() {
        let inputs = inputs(&["a", "b"]);
        let changelog = ChangelogTopic {
            topic: "log".into(),
            topic_id: Uuid::from_u128(9).to_string(),
            record_bytes_max: 0,
            delete_retention: Duration::ZERO,
        };
        let began = Began { deployment: "d", inputs: &inputs, changelog: Some(&changelog), partitions: 2 };
        let both = |a, b| [Some(topic("a", 1, a)), Some(topic("b", 1, b))];
        let log = |partitions| topic("log", 9, partitions);
        assert_eq!(began.judge(&both(2, 2), Some(&log(2))), None);
        let fix = "kafka-topics --alter --topic log --partitions 4";
        assert!(reason(began.judge(&both(4, 4), Some(&log(2)))).contains(fix));
        assert_eq!(began.judge(&both(4, 4), Some(&log(4))), Some(Reaction::Restart));
        assert_eq!(
            began.judge(&both(4, 2), Some(&log(2))),
            Some(Reaction::Restart),
            "the start says why not"
        );
        assert!(reason(began.judge(&both(2, 2), None)).contains("changelog log has been deleted, and"));
        let said = reason(began.judge(&both(2, 2), Some(&topic("log", 8, 2))));
        assert!(said.contains("changelog log has been deleted and made again"), "{said}");
    }

    #[test]
    fn only_a_group_at_rest_can_have_forgotten_a_partition() {
        let member = |instance: &str, partitions: &[i32]| GroupMember {
            member_id: String::new(),
            instance_id: Some(instance.to_owned()),
            client_id: String::new(),
            host: String::new(),
            partitions: partitions.iter().map(|&partition| ("a".to_owned(), partition)).collect(),
        };
        let members = vec![member("node-b-0", &[0]), member("node-a-1", &[1])];
        let mut group = GroupDescription { state: "Stable".into(), members };
        let incomplete =
            |group: &GroupDescription, partitions| is_incomplete(group, [("a", partitions)].into_iter());
        assert!(!incomplete(&group, 2));
        assert!(incomplete(&group, 3));
        assert!(
            looks_after(&group, "node-a") && !looks_after(&group, "node-b") && !looks_after(&group, "node")
        );
        group.state = "PreparingRebalance".into();
        assert!(!incomplete(&group, 3));
    }
}

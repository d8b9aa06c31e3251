//! What the fleet has agreed on: deployments and where their partitions began.
//!
//! The control topic is the truth. Entries are proposals; each is accepted or refused by what stands
//! before it in the log, and by nothing else, so that every node that has read to the same offset
//! holds the same view. This file is the pure fold of that log; reading and writing it is
//! [`super::control_log`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tidemill_proto::v1::{
    CancelRedriveEntry, ControlEntry, DeleteEntry, DeployEntry, PauseEntry, RedriveEntry, ResetEntry,
    RestartEntry, RetiredEntry, StartedEntry, control_entry::Entry,
};

use super::history::{History, Version};
use super::ledger::Ledger;
use super::redrive::{ORDERS_MAX, Order, Orders};
use super::registered::{Parsed, Registered};
use super::retries::Retries;
use crate::config::document::SpecDefaults;
use crate::config::problem::lines;
use crate::faults::{Bug, planted};
use crate::record::Offset;

/// What the log decided about one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Holds the revision that the entry made, 0 where an entry makes none.
    Accepted(u64),
    /// The name is not at the revision that the proposer saw: somebody else was first.
    Stale {
        expected: u64,
        current: u64,
    },
    Refused(String),
}

/// A life that ended with its state kept, for the next deployment of its name to go on.
#[derive(Debug, Clone)]
struct Kept {
    incarnation: String,
    first_partitions: i32,
    history: History,
    ledger: Arc<Ledger>,
}

/// A life that is over, whose group and internal topics are not known to be gone.
#[derive(Debug, Clone)]
struct Retiring {
    incarnation: String,
    /// The inbox is the next life's.
    ids_stay: bool,
}

/// Input partition of one life of a deployment: incarnation, topic, partition.
type Beginning = (String, String, i32);

/// Where an input partition began, and in which topic of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Began {
    /// A topic deleted and made again has another one.
    pub topic_id: String,
    pub offset: Offset,
}

/// The fold of the control topic up to `next`.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    pub deployments: BTreeMap<String, Registered>,
    kept: BTreeMap<String, Kept>,
    /// By name.
    retiring: BTreeMap<String, Retiring>,
    started: HashMap<Beginning, Began>,
    first_commits: HashSet<Beginning>,
    /// Destinations of outboxes that are left alone: incarnation and name.
    outbox_pauses: BTreeSet<(String, String)>,
    /// By incarnation.
    redrives: HashMap<String, Orders>,
    /// Of this node, for what documents leave open.
    defaults: SpecDefaults,
    /// Next entry to apply.
    pub next: Offset,
}

impl Registry {
    pub fn new(defaults: SpecDefaults) -> Registry {
        Registry { defaults, ..Registry::default() }
    }

    /// Applies the entry at `offset`. Total: every entry has an outcome, and none is an error.
    pub fn apply(&mut self, offset: Offset, timestamp_ms: i64, entry: &ControlEntry) -> Outcome {
        self.next = Offset(offset.0 + 1);
        match &entry.entry {
            Some(Entry::Deploy(deploy)) => self.deploy(deploy, timestamp_ms),
            Some(Entry::Delete(delete)) => self.delete(delete),
            Some(Entry::Pause(pause)) => self.pause(pause),
            Some(Entry::Retired(retired)) => self.retired(retired),
            Some(Entry::Started(started)) => self.start(started),
            Some(Entry::FirstCommit(first)) => {
                let beginning = |topic: &String| (first.incarnation.clone(), topic.clone(), first.partition);
                self.first_commits.extend(first.topics.iter().map(beginning));
                Outcome::Accepted(0)
            }
            Some(Entry::Reset(reset)) => self.reset(reset),
            Some(Entry::OutboxPause(pause)) => {
                let place = (pause.incarnation.clone(), pause.destination.clone());
                match pause.paused {
                    true => drop(self.outbox_pauses.insert(place)),
                    false => drop(self.outbox_pauses.remove(&place)),
                }
                Outcome::Accepted(0)
            }
            Some(Entry::Restart(restart)) => self.restart(restart),
            // Kept for who reads the log: what became of it is in the changelog.
            Some(Entry::Edit(_) | Entry::Unpark(_)) => Outcome::Accepted(0),
            Some(Entry::Redrive(redrive)) => self.redrive(redrive, timestamp_ms),
            Some(Entry::CancelRedrive(cancel)) => self.cancel_redrive(cancel),
            // Written by a newer node: what it means is not ours to guess.
            None => Outcome::Refused("unknown kind of entry".into()),
        }
    }

    /// Passes an entry that cannot be decoded; it changes nothing on any node.
    pub fn skip(&mut self, offset: Offset) {
        self.next = Offset(offset.0 + 1);
    }

    /// 0 = the name is not deployed.
    pub fn revision(&self, name: &str) -> u64 {
        self.deployments.get(name).map_or(0, |registered| registered.revision)
    }

    /// True for the life that a deployment of this name is in, or would take up again.
    pub fn is_alive(&self, name: &str, incarnation: &str) -> bool {
        self.life(name) == Some(incarnation)
    }

    /// What [`Registry::life`] answers, of every name.
    pub fn lives(&self) -> BTreeMap<String, String> {
        let names = self.deployments.keys().chain(self.kept.keys());
        names.filter_map(|name| Some((name.clone(), self.life(name)?.to_owned()))).collect()
    }

    /// The incarnation that a deployment of this name has, or would go on with.
    pub fn life(&self, name: &str) -> Option<&str> {
        let current = self.deployments.get(name).map(|registered| registered.incarnation.as_str());
        current.or_else(|| self.kept.get(name).map(|kept| kept.incarnation.as_str()))
    }

    /// Digests of the modules that a version names which is remembered, of a life that was kept as well.
    pub fn modules(&self) -> HashSet<&str> {
        let current = self.deployments.values().map(|registered| &registered.history);
        let histories = current.chain(self.kept.values().map(|kept| &kept.history));
        histories.flat_map(History::iter).map(|version| version.module.as_str()).collect()
    }

    /// What the stores of that life hold; nothing, of a name that has none.
    pub fn ledger(&self, name: &str) -> Arc<Ledger> {
        let current = self.deployments.get(name).map(|registered| &registered.ledger);
        let ledger = current.or_else(|| self.kept.get(name).map(|kept| &kept.ledger));
        ledger.map(Arc::clone).unwrap_or_default()
    }

    /// The deleted life of this name that has not left Kafka yet.
    pub fn retiring(&self, name: &str) -> Option<&str> {
        self.retiring.get(name).map(|retiring| retiring.incarnation.as_str())
    }

    /// Why a name is not to be used yet, and what ends that: a life of it is over and has not left Kafka. What is left
    /// would be taken for the next life's, or be deleted under it.
    pub fn unfinished(&self, name: &str) -> Option<String> {
        self.retiring.get(name)?;
        Some(match self.deployments.contains_key(name) {
            true => {
                format!("{name} has not been reset to the end: `tidemill reset` it again, which completes it")
            }
            false => format!(
                "{name} is still being deleted: members of its group have not left yet, or its topics are not gone; try again in a \
                 moment; `tidemill delete {name}` completes a delete that was interrupted"
            ),
        })
    }

    /// The life of this name that has not left Kafka yet leaves its inbox to the next one.
    pub fn leaves_ids(&self, name: &str) -> bool {
        self.retiring.get(name).is_some_and(|retiring| retiring.ids_stay)
    }

    /// Where this input partition begins, if that was resolved. Asked by the topic's name, so that a
    /// topic made again under it is not taken for one that was never read.
    pub fn started(&self, incarnation: &str, topic: &str, partition: i32) -> Option<&Began> {
        self.started.get(&(incarnation.into(), topic.into(), partition))
    }

    /// Destinations of a deployment's outboxes that are left alone.
    pub fn outbox_paused(&self, name: &str) -> BTreeSet<String> {
        let life = self.life(name);
        let of_life = self.outbox_pauses.iter().filter(|(incarnation, _)| Some(incarnation.as_str()) == life);
        of_life.map(|(_, destination)| destination.clone()).collect()
    }

    /// The id of the topic that this life of a deployment began to read under that name.
    pub fn began_with(&self, incarnation: &str, topic: &str) -> Option<&str> {
        let of_topic = |(life, name, _): &Beginning| life == incarnation && name == topic;
        self.started.iter().find(|(key, _)| of_topic(key)).map(|(_, began)| began.topic_id.as_str())
    }

    /// True once a commit of this input partition is known; from then on a missing committed offset
    /// is a fault.
    pub fn has_committed(&self, incarnation: &str, topic: &str, partition: i32) -> bool {
        self.first_commits.contains(&(incarnation.into(), topic.into(), partition))
    }

    /// Redrives of a life of a deployment, the oldest first.
    pub fn redrives(&self, incarnation: &str) -> Orders {
        self.redrives.get(incarnation).cloned().unwrap_or_default()
    }

    fn deploy(&mut self, deploy: &DeployEntry, timestamp_ms: i64) -> Outcome {
        if let Err(refusal) = self.expect(&deploy.name, deploy.expected_revision) {
            return refusal;
        }
        if let Some(reason) = self.unfinished(&deploy.name) {
            return Outcome::Refused(reason);
        }
        let parsed = Parsed::read(&deploy.document, &deploy.manifest, &self.defaults);
        let manifest = parsed.manifest.as_ref().ok();
        let mut ledger = self.ledger(&deploy.name);
        if let Some(manifest) = manifest.filter(|_| deploy.keeps_stores) {
            let conflicts = ledger.conflicts(manifest, &deploy.drop_stores);
            if !conflicts.is_empty() {
                return Outcome::Refused(lines(&conflicts));
            }
        }
        let accepting = Arc::make_mut(&mut ledger);
        accepting.accept(manifest, &deploy.drop_stores);
        accepting.accept_rows(parsed.leaves_rows());
        let (incarnation, first_partitions, mut history) =
            match (self.deployments.get(&deploy.name), self.kept.get(&deploy.name)) {
                (Some(current), _) => {
                    (current.incarnation.clone(), current.first_partitions, current.history.clone())
                }
                (None, Some(kept)) => (kept.incarnation.clone(), kept.first_partitions, kept.history.clone()),
                (None, None) if deploy.incarnation.is_empty() => {
                    return Outcome::Refused(format!(
                        "{}: a first deploy names its incarnation",
                        deploy.name
                    ));
                }
                (None, None) => (deploy.incarnation.clone(), deploy.partitions, History::default()),
            };
        self.kept.remove(&deploy.name);
        let revision = self.next.0;
        history.push(Version {
            number: history.next_number(),
            revision,
            module: deploy.module.clone(),
            document: deploy.document.clone(),
            manifest: deploy.manifest.clone(),
            author: deploy.author.clone(),
            deployed_at_ms: timestamp_ms,
            rollback_to: Some(deploy.rollback_to).filter(|&number| number != 0),
            automatic: deploy.automatic,
            reason: deploy.reason.clone(),
            dropped: deploy.drop_stores.clone(),
        });
        self.deployments.insert(
            deploy.name.clone(),
            Registered {
                name: deploy.name.clone(),
                revision,
                module: deploy.module.clone(),
                document: deploy.document.clone(),
                parsed: Arc::new(parsed),
                ledger,
                incarnation,
                deployed_at_ms: timestamp_ms,
                first_partitions,
                paused: self.deployments.get(&deploy.name).is_some_and(|current| current.paused),
                retries: Retries::default(),
                history,
            },
        );
        Outcome::Accepted(revision)
    }

    fn delete(&mut self, delete: &DeleteEntry) -> Outcome {
        if let Err(refusal) = self.expect(&delete.name, delete.expected_revision) {
            return refusal;
        }
        let Some(gone) = self.deployments.remove(&delete.name) else {
            return Outcome::Refused(format!("{} is not deployed", delete.name));
        };
        if delete.keep_state {
            let kept = Kept {
                incarnation: gone.incarnation,
                first_partitions: gone.first_partitions,
                history: gone.history,
                ledger: gone.ledger,
            };
            self.kept.insert(delete.name.clone(), kept);
            return Outcome::Accepted(0);
        }
        self.end(&gone.incarnation);
        if delete.retires {
            let retiring = Retiring { incarnation: gone.incarnation, ids_stay: false };
            self.retiring.insert(delete.name.clone(), retiring);
        }
        Outcome::Accepted(0)
    }

    /// A deployment that is paused already, or not, takes no new revision.
    fn pause(&mut self, pause: &PauseEntry) -> Outcome {
        if let Err(refusal) = self.expect(&pause.name, pause.expected_revision) {
            return refusal;
        }
        if let Some(reason) = self.unfinished(&pause.name).filter(|_| !pause.paused) {
            return Outcome::Refused(reason);
        }
        let revision = self.next.0;
        let Some(registered) = self.deployments.get_mut(&pause.name) else {
            return Outcome::Refused(format!("{} is not deployed", pause.name));
        };
        if registered.paused != pause.paused {
            registered.paused = pause.paused;
            registered.revision = revision;
        }
        Outcome::Accepted(registered.revision)
    }

    /// The same version, once more.
    fn restart(&mut self, restart: &RestartEntry) -> Outcome {
        if let Err(refusal) = self.expect(&restart.name, restart.expected_revision) {
            return refusal;
        }
        let revision = self.next.0;
        match self.deployments.get_mut(&restart.name) {
            None => Outcome::Refused(format!("{} is not deployed", restart.name)),
            Some(registered) if registered.paused => Outcome::Refused(format!(
                "{0} is paused: `tidemill resume {0}` starts it again",
                restart.name
            )),
            Some(registered) => {
                if let Some(partition) = restart.partition {
                    registered.retries.add(registered.revision, revision, partition);
                }
                registered.revision = revision;
                Outcome::Accepted(revision)
            }
        }
    }

    /// The deployment goes on under its name and with its versions, in a new life.
    fn reset(&mut self, reset: &ResetEntry) -> Outcome {
        if let Err(refusal) = self.expect(&reset.name, reset.expected_revision) {
            return refusal;
        }
        if let Some(reason) = self.unfinished(&reset.name) {
            return Outcome::Refused(reason);
        }
        let revision = self.next.0;
        let registered = self.deployments.get_mut(&reset.name).filter(|registered| registered.paused);
        let Some(registered) = registered.filter(|_| !reset.incarnation.is_empty()) else {
            return Outcome::Refused(format!("{} is not paused", reset.name));
        };
        let ids_stay = registered.keeps_only_ids();
        registered.revision = revision;
        registered.first_partitions = reset.partitions;
        // Its changelog goes, and with it everything that the stores of the old life held, and rows that it left.
        let mut ledger = Ledger::default();
        ledger.accept(registered.manifest(), &[]);
        ledger.accept_rows(registered.parsed.leaves_rows());
        registered.ledger = Arc::new(ledger);
        let old = std::mem::replace(&mut registered.incarnation, reset.incarnation.clone());
        self.end(&old);
        for at in &reset.beginnings {
            let beginning = (reset.incarnation.clone(), at.topic.clone(), at.partition);
            let began = Began { topic_id: at.topic_id.clone(), offset: Offset(at.offset) };
            self.started.insert(beginning, began);
        }
        self.retiring.insert(reset.name.clone(), Retiring { incarnation: old, ids_stay });
        Outcome::Accepted(revision)
    }

    /// Forgets what belongs to a life that is over.
    fn end(&mut self, life: &str) {
        self.started.retain(|(incarnation, _, _), _| incarnation != life);
        self.first_commits.retain(|(incarnation, _, _)| incarnation != life);
        self.outbox_pauses.retain(|(incarnation, _)| incarnation != life);
        self.redrives.remove(life);
    }

    fn retired(&mut self, retired: &RetiredEntry) -> Outcome {
        if self.retiring(&retired.name) == Some(retired.incarnation.as_str()) {
            self.retiring.remove(&retired.name);
        }
        Outcome::Accepted(0)
    }

    /// The first entry in log order wins; a later one is refused and its proposer takes the first.
    fn start(&mut self, started: &StartedEntry) -> Outcome {
        let beginning = (started.incarnation.clone(), started.topic.clone(), started.partition);
        if let Some(first) = self.started.get(&beginning)
            && !planted(Bug::StartAgain)
        {
            return Outcome::Refused(format!("began at {} already", first.offset));
        }
        let began = Began { topic_id: started.topic_id.clone(), offset: Offset(started.offset) };
        self.started.insert(beginning, began);
        Outcome::Accepted(0)
    }

    /// A life remembers so many redrives; the oldest is forgotten once it has come to its end.
    fn redrive(&mut self, redrive: &RedriveEntry, timestamp_ms: i64) -> Outcome {
        let name = &redrive.deployment;
        if self.deployments.get(name).is_none_or(|now| now.incarnation != redrive.incarnation) {
            return Outcome::Refused(format!("{name} has been deleted or reset meanwhile"));
        }
        let id = self.next.0;
        let orders = self.redrives.entry(redrive.incarnation.clone()).or_default();
        let mut next: Vec<Arc<Order>> = orders.to_vec();
        for order in &mut next {
            if !order.ended && redrive.ended.contains(&order.id) {
                *order = Arc::new(Order { ended: true, ..Order::clone(order) });
            }
        }
        if next.len() >= ORDERS_MAX {
            match next.iter().position(|order| !order.is_open()) {
                Some(oldest) => drop(next.remove(oldest)),
                None => {
                    return Outcome::Refused(format!(
                        "{ORDERS_MAX} redrives of {name} are under way: wait for one, or cancel one"
                    ));
                }
            }
        }
        next.push(Arc::new(Order {
            id,
            entry: redrive.clone(),
            asked_at_ms: timestamp_ms,
            cancelled: false,
            ended: false,
        }));
        *orders = Arc::new(next);
        Outcome::Accepted(id)
    }

    fn cancel_redrive(&mut self, cancel: &CancelRedriveEntry) -> Outcome {
        let orders = self.redrives.get_mut(&cancel.incarnation);
        let Some((orders, at)) = orders.and_then(|orders| {
            let at = orders.iter().position(|order| order.id == cancel.id)?;
            Some((orders, at))
        }) else {
            return Outcome::Refused(format!("{} has no redrive {}", cancel.deployment, cancel.id));
        };
        let mut next = orders.to_vec();
        next[at] = Arc::new(Order { cancelled: true, ..Order::clone(&next[at]) });
        *orders = Arc::new(next);
        Outcome::Accepted(cancel.id)
    }

    fn expect(&self, name: &str, expected: u64) -> Result<(), Outcome> {
        let current = self.revision(name);
        if current == expected {
            return Ok(());
        }
        Err(Outcome::Stale { expected, current })
    }
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::{Beginning, OutboxPauseEntry};

    use super::*;
    use crate::node::proposal::proposal;

    fn deploy(name: &str, expected_revision: u64, incarnation: &str) -> ControlEntry {
        let entry = DeployEntry {
            name: name.into(),
            expected_revision,
            module: "m".into(),
            incarnation: incarnation.into(),
            ..DeployEntry::default()
        };
        proposal(Entry::Deploy(entry))
    }

    fn pause(expected_revision: u64, paused: bool) -> ControlEntry {
        let entry = PauseEntry { name: "a".into(), expected_revision, paused, ..PauseEntry::default() };
        proposal(Entry::Pause(entry))
    }

    fn retired(incarnation: &str) -> ControlEntry {
        let entry = RetiredEntry { name: "a".into(), incarnation: incarnation.into() };
        proposal(Entry::Retired(entry))
    }

    fn delete(name: &str, expected_revision: u64, keep_state: bool) -> ControlEntry {
        let entry =
            DeleteEntry { name: name.into(), expected_revision, keep_state, ..DeleteEntry::default() };
        proposal(Entry::Delete(entry))
    }

    fn started(incarnation: &str, topic_id: &str, offset: u64) -> ControlEntry {
        let entry = StartedEntry {
            incarnation: incarnation.into(),
            topic: "t".into(),
            topic_id: topic_id.into(),
            offset,
            ..StartedEntry::default()
        };
        proposal(Entry::Started(entry))
    }

    #[test]
    fn of_two_deploys_that_expect_the_same_revision_the_first_in_the_log_wins() {
        let mut registry = Registry::default();
        assert_eq!(registry.apply(Offset(0), 1, &deploy("a", 0, "i1")), Outcome::Accepted(1));
        let stale = Outcome::Stale { expected: 0, current: 1 };
        assert_eq!(registry.apply(Offset(1), 2, &deploy("a", 0, "i2")), stale);
        assert_eq!(registry.apply(Offset(2), 3, &deploy("a", 1, "")), Outcome::Accepted(3));
        assert_eq!(registry.deployments["a"].incarnation, "i1");
    }

    fn with_store(name: &str, expected_revision: u64, schema: u32, drops: &[&str]) -> ControlEntry {
        let entry = DeployEntry {
            name: name.into(),
            expected_revision,
            incarnation: "i1".into(),
            manifest: format!(r#"{{"inputs":["in"],"stores":[{{"name":"s","schema":{schema}}}]}}"#),
            drop_stores: drops.iter().map(ToString::to_string).collect(),
            keeps_stores: true,
            ..DeployEntry::default()
        };
        proposal(Entry::Deploy(entry))
    }

    #[test]
    fn the_log_itself_refuses_a_version_that_would_misread_a_store_also_of_a_life_that_was_kept() {
        let mut registry = Registry::default();
        assert_eq!(registry.apply(Offset(0), 1, &with_store("a", 0, 1, &[])), Outcome::Accepted(1));
        assert!(matches!(registry.apply(Offset(1), 1, &with_store("a", 1, 2, &[])), Outcome::Refused(_)));
        assert_eq!(registry.apply(Offset(2), 1, &with_store("a", 1, 2, &["s"])), Outcome::Accepted(3));
        registry.apply(Offset(3), 1, &delete("a", 3, true));
        // Back to what was dropped, over a delete: it is gone, and what was written since is not read.
        assert!(matches!(registry.apply(Offset(4), 1, &with_store("a", 0, 1, &[])), Outcome::Refused(_)));
        assert_eq!(registry.apply(Offset(5), 1, &with_store("a", 0, 1, &["s"])), Outcome::Accepted(6));
        let registered = &registry.deployments["a"];
        assert_eq!((registered.ledger.generation("s"), registered.ledger.holds("s")), (2, vec![1]));
        let dropped: Vec<_> = registered.history.iter().map(|version| version.dropped.len()).collect();
        assert_eq!(dropped, [0, 1, 1]);
        // For good: another life, which begins with nothing.
        registry.apply(Offset(6), 1, &delete("a", 6, false));
        assert_eq!(registry.apply(Offset(7), 1, &with_store("a", 0, 2, &[])), Outcome::Accepted(8));
        assert_eq!(registry.deployments["a"].ledger.generation("s"), 0);
    }

    #[test]
    fn an_entry_of_before_stores_were_kept_is_accepted_as_it_always_was() {
        let mut registry = Registry::default();
        let mut older = with_store("a", 1, 2, &[]);
        if let Some(Entry::Deploy(entry)) = &mut older.entry {
            entry.keeps_stores = false;
        }
        registry.apply(Offset(0), 1, &with_store("a", 0, 1, &[]));
        assert_eq!(registry.apply(Offset(1), 1, &older), Outcome::Accepted(2));
        assert_eq!(registry.deployments["a"].ledger.holds("s"), [1, 2]);
    }

    #[test]
    fn a_reset_begins_a_new_life_of_a_paused_name_that_waits_for_the_old_one_to_be_gone() {
        let mut registry = Registry::default();
        let reset = |expected_revision| {
            let beginning = Beginning { topic: "t".into(), topic_id: "id".into(), partition: 0, offset: 7 };
            let entry = ResetEntry {
                name: "a".into(),
                expected_revision,
                incarnation: "i2".into(),
                beginnings: vec![beginning],
                partitions: 1,
                ..ResetEntry::default()
            };
            proposal(Entry::Reset(entry))
        };
        registry.apply(Offset(0), 1, &deploy("a", 0, "i1"));
        registry.apply(Offset(1), 1, &started("i1", "id", 0));
        assert!(matches!(registry.apply(Offset(2), 1, &reset(1)), Outcome::Refused(_)), "it runs");
        registry.apply(Offset(3), 1, &pause(1, true));
        assert_eq!(registry.apply(Offset(4), 1, &reset(4)), Outcome::Accepted(5));
        assert!(registry.is_alive("a", "i2") && !registry.is_alive("a", "i1"));
        assert_eq!(registry.started("i1", "t", 0), None);
        assert_eq!(registry.started("i2", "t", 0).map(|began| began.offset), Some(Offset(7)));
        assert_eq!(registry.deployments["a"].history.next_number(), 2, "its versions stay");
        assert!(matches!(registry.apply(Offset(5), 1, &pause(5, false)), Outcome::Refused(_)), "not yet");
        assert!(matches!(registry.apply(Offset(6), 1, &reset(5)), Outcome::Refused(_)), "complete the first");
        // A delete would complete it as well, and take the deployment with it.
        match registry.apply(Offset(7), 1, &deploy("a", 5, "")) {
            Outcome::Refused(reason) => {
                assert!(reason.contains("tidemill reset") && !reason.contains("delete"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
        registry.apply(Offset(8), 1, &retired("i1"));
        assert_eq!(registry.apply(Offset(9), 1, &pause(5, false)), Outcome::Accepted(10));
    }

    #[test]
    fn rows_that_a_version_left_are_remembered_until_its_life_ends_and_its_ids_go_with_them() {
        let mut registry = Registry::default();
        let deploy = |expected_revision, more: &str| {
            let entry = DeployEntry {
                name: "a".into(),
                expected_revision,
                incarnation: "i1".into(),
                document: format!("name: a\nmodule: a.wasm\ninputs: {{ in: {{ topic: in }} }}\n{more}"),
                manifest: r#"{"inputs":["in"]}"#.into(),
                ..DeployEntry::default()
            };
            proposal(Entry::Deploy(entry))
        };
        let reset = |expected_revision, incarnation: &str| {
            let entry = ResetEntry {
                name: "a".into(),
                expected_revision,
                incarnation: incarnation.into(),
                ..ResetEntry::default()
            };
            proposal(Entry::Reset(entry))
        };
        let inbox = "inbox: { id: key, ttl: 1h }\n";
        let hook = format!("outputs: {{ hook: {{ http: {{ url: 'http://h/' }} }} }}\n{inbox}");
        registry.apply(Offset(0), 1, &deploy(0, &hook));
        assert_eq!(registry.apply(Offset(1), 1, &deploy(1, inbox)), Outcome::Accepted(2));
        assert!(registry.deployments["a"].keeps_only_left_rows(), "whatever runs now");
        // Kept over a delete, as its changelog is.
        registry.apply(Offset(2), 1, &delete("a", 2, true));
        registry.apply(Offset(3), 1, &deploy(0, inbox));
        assert!(registry.deployments["a"].keeps_only_left_rows());
        registry.apply(Offset(4), 1, &pause(4, true));
        assert_eq!(registry.apply(Offset(5), 1, &reset(5, "i2")), Outcome::Accepted(6));
        assert!(
            !registry.leaves_ids("a"),
            "they would keep the records of its rows from being handled again"
        );
        assert!(registry.deployments["a"].keeps_only_ids(), "the changelog has gone with its life");
        registry.apply(Offset(6), 1, &retired("i1"));
        assert_eq!(registry.apply(Offset(7), 1, &reset(6, "i3")), Outcome::Accepted(8));
        assert!(registry.leaves_ids("a"));
        registry.apply(Offset(8), 1, &retired("i2"));
        assert!(!registry.leaves_ids("a"));
    }

    #[test]
    fn redrives_belong_to_a_life_and_the_oldest_that_ended_are_forgotten() {
        let mut registry = Registry::default();
        registry.apply(Offset(0), 1, &deploy("a", 0, "i1"));
        let redrive = |incarnation: &str, ended: Vec<u64>| {
            let entry = RedriveEntry {
                deployment: "a".into(),
                incarnation: incarnation.into(),
                ended,
                ..RedriveEntry::default()
            };
            proposal(Entry::Redrive(entry))
        };
        let cancel = |id| {
            let entry = CancelRedriveEntry { incarnation: "i1".into(), id, ..CancelRedriveEntry::default() };
            proposal(Entry::CancelRedrive(entry))
        };
        let open = |registry: &Registry| -> Vec<u64> {
            registry.redrives("i1").iter().filter(|order| order.is_open()).map(|order| order.id).collect()
        };
        assert!(matches!(registry.apply(Offset(1), 1, &redrive("i0", vec![])), Outcome::Refused(_)));
        assert_eq!(registry.apply(Offset(2), 1, &redrive("i1", vec![])), Outcome::Accepted(3));
        assert_eq!(registry.apply(Offset(3), 1, &redrive("i1", vec![3])), Outcome::Accepted(4));
        assert_eq!(open(&registry), [4]);
        assert!(matches!(registry.apply(Offset(4), 1, &cancel(9)), Outcome::Refused(_)));
        assert_eq!(registry.apply(Offset(5), 1, &cancel(4)), Outcome::Accepted(4));
        assert_eq!((open(&registry), registry.redrives("i1").len()), (vec![], 2));
        for at in 6..36 {
            assert!(matches!(registry.apply(Offset(at), 1, &redrive("i1", vec![])), Outcome::Accepted(_)));
        }
        assert_eq!(registry.redrives("i1").len(), ORDERS_MAX);
        assert!(matches!(registry.apply(Offset(36), 1, &redrive("i1", vec![])), Outcome::Accepted(_)));
        assert!(matches!(registry.apply(Offset(37), 1, &redrive("i1", vec![])), Outcome::Accepted(_)));
        assert!(matches!(registry.apply(Offset(38), 1, &redrive("i1", vec![])), Outcome::Refused(_)));
        assert!(matches!(registry.apply(Offset(39), 1, &redrive("i1", vec![7])), Outcome::Accepted(_)));
        registry.apply(Offset(40), 1, &delete("a", 1, false));
        assert!(registry.redrives("i1").is_empty());
    }

    #[test]
    fn every_deploy_makes_a_version_and_a_pause_none() {
        let mut registry = Registry::default();
        registry.apply(Offset(0), 10, &deploy("a", 0, "i1"));
        assert_eq!(registry.apply(Offset(1), 11, &pause(1, true)), Outcome::Accepted(2));
        assert_eq!(registry.apply(Offset(2), 12, &pause(2, true)), Outcome::Accepted(2), "it is paused");
        // A version that is deployed meanwhile waits as well.
        assert_eq!(registry.apply(Offset(3), 13, &deploy("a", 2, "")), Outcome::Accepted(4));
        assert!(registry.deployments["a"].paused);
        assert_eq!(registry.apply(Offset(4), 14, &pause(4, false)), Outcome::Accepted(5));
        assert!(!registry.deployments["a"].paused);
        let versions: Vec<_> = registry.deployments["a"].history.iter().cloned().collect();
        let seen = |version: &Version| (version.number, version.revision, version.deployed_at_ms);
        assert_eq!(versions.iter().map(|v| seen(v)).collect::<Vec<_>>(), [(1, 1, 10), (2, 4, 13)]);
        registry.apply(Offset(5), 15, &delete("a", 5, true));
        registry.apply(Offset(6), 16, &deploy("a", 0, "i2"));
        assert_eq!(registry.deployments["a"].history.next_number(), 4, "the life goes on");
    }

    #[test]
    fn a_restart_makes_a_revision_of_the_version_that_is_there() {
        let mut registry = Registry::default();
        let restart = |expected_revision| {
            let entry = RestartEntry { name: "a".into(), expected_revision, ..RestartEntry::default() };
            proposal(Entry::Restart(entry))
        };
        assert!(matches!(registry.apply(Offset(0), 1, &restart(0)), Outcome::Refused(_)), "nothing there");
        registry.apply(Offset(1), 1, &deploy("a", 0, "i1"));
        assert_eq!(registry.apply(Offset(2), 1, &restart(2)), Outcome::Accepted(3));
        assert_eq!(registry.apply(Offset(3), 1, &restart(2)), Outcome::Stale { expected: 2, current: 3 });
        assert_eq!((registry.deployments["a"].version(), registry.revision("a")), (1, 3));
        registry.apply(Offset(4), 1, &pause(3, true));
        assert!(matches!(registry.apply(Offset(5), 1, &restart(5)), Outcome::Refused(_)), "it is paused");
    }

    #[test]
    fn a_restart_may_be_about_one_partition() {
        let mut registry = Registry::default();
        registry.apply(Offset(1), 1, &deploy("a", 0, "i1"));
        let entry = RestartEntry {
            name: "a".into(),
            expected_revision: 2,
            partition: Some(3),
            ..RestartEntry::default()
        };
        let entry = proposal(Entry::Restart(entry));
        assert_eq!(registry.apply(Offset(2), 1, &entry), Outcome::Accepted(3));
        let retries = &registry.deployments["a"].retries;
        assert!(retries.include(3, 2, 3) && !retries.include(0, 2, 3));
    }

    #[test]
    fn a_name_is_not_free_before_its_former_life_has_left_kafka() {
        let mut registry = Registry::default();
        registry.apply(Offset(0), 1, &deploy("a", 0, "i1"));
        let entry =
            DeleteEntry { name: "a".into(), expected_revision: 1, retires: true, ..DeleteEntry::default() };
        let entry = proposal(Entry::Delete(entry));
        registry.apply(Offset(1), 1, &entry);
        assert!(matches!(registry.apply(Offset(2), 1, &deploy("a", 0, "i2")), Outcome::Refused(_)));
        registry.apply(Offset(3), 1, &retired("i0"));
        assert_eq!(registry.retiring("a"), Some("i1"));
        registry.apply(Offset(4), 1, &retired("i1"));
        assert_eq!(registry.apply(Offset(5), 1, &deploy("a", 0, "i2")), Outcome::Accepted(6));
    }

    #[test]
    fn a_name_deployed_again_after_a_delete_has_a_new_life_and_a_higher_revision() {
        let mut registry = Registry::default();
        registry.apply(Offset(0), 1, &deploy("a", 0, "i1"));
        registry.apply(Offset(1), 1, &started("i1", "id", 7));
        assert_eq!(registry.apply(Offset(2), 1, &delete("a", 1, false)), Outcome::Accepted(0));
        assert_eq!(registry.started("i1", "t", 0), None);
        assert!(!registry.is_alive("a", "i1"));
        assert_eq!(registry.apply(Offset(3), 1, &deploy("a", 0, "i2")), Outcome::Accepted(4));
    }

    #[test]
    fn a_name_whose_state_was_kept_goes_on_with_its_life() {
        let mut registry = Registry::default();
        registry.apply(Offset(0), 1, &deploy("a", 0, "i1"));
        registry.apply(Offset(1), 1, &started("i1", "id", 7));
        registry.apply(Offset(2), 1, &delete("a", 1, true));
        assert!(registry.deployments.is_empty() && registry.is_alive("a", "i1"));
        assert_eq!(registry.apply(Offset(3), 1, &deploy("a", 0, "i2")), Outcome::Accepted(4));
        assert_eq!(registry.deployments["a"].incarnation, "i1");
        assert!(registry.started("i1", "t", 0).is_some());
        // Deleted for good, the life is over.
        registry.apply(Offset(4), 1, &delete("a", 4, false));
        registry.apply(Offset(5), 1, &deploy("a", 0, "i3"));
        assert_eq!(registry.deployments["a"].incarnation, "i3");
    }

    fn outbox_pause(incarnation: &str) -> ControlEntry {
        let entry = OutboxPauseEntry {
            incarnation: incarnation.into(),
            destination: "hook".into(),
            paused: true,
            ..OutboxPauseEntry::default()
        };
        proposal(Entry::OutboxPause(entry))
    }

    #[test]
    fn the_pause_of_a_destination_ends_with_the_life_that_it_is_of() {
        let mut registry = Registry::default();
        registry.apply(Offset(0), 1, &deploy("a", 0, "i1"));
        registry.apply(Offset(1), 1, &outbox_pause("i1"));
        registry.apply(Offset(2), 1, &delete("a", 1, true));
        registry.apply(Offset(3), 1, &deploy("a", 0, ""));
        assert_eq!(registry.outbox_paused("a").len(), 1, "it was kept");
        registry.apply(Offset(4), 1, &pause(4, true));
        let entry = ResetEntry {
            name: "a".into(),
            expected_revision: 5,
            incarnation: "i2".into(),
            ..ResetEntry::default()
        };
        let reset = proposal(Entry::Reset(entry));
        assert_eq!(registry.apply(Offset(5), 1, &reset), Outcome::Accepted(6));
        assert!(registry.outbox_pauses.is_empty());
        registry.apply(Offset(6), 1, &outbox_pause("i2"));
        registry.apply(Offset(7), 1, &delete("a", 6, false));
        assert!(registry.outbox_pauses.is_empty());
        registry.apply(Offset(8), 1, &deploy("a", 0, "i3"));
        assert!(registry.outbox_paused("a").is_empty());
    }

    #[test]
    fn modules_of_every_version_that_can_come_back_are_named() {
        let mut registry = Registry::default();
        let with_module = |mut entry: ControlEntry, module: &str| {
            if let Some(Entry::Deploy(deploy)) = &mut entry.entry {
                deploy.module = module.into();
            }
            entry
        };
        registry.apply(Offset(0), 1, &with_module(deploy("a", 0, "i1"), "m1"));
        registry.apply(Offset(1), 1, &with_module(deploy("a", 1, ""), "m2"));
        registry.apply(Offset(2), 1, &with_module(deploy("b", 0, "i2"), "m3"));
        assert_eq!(registry.modules(), HashSet::from(["m1", "m2", "m3"]));
        registry.apply(Offset(3), 1, &delete("a", 2, true));
        registry.apply(Offset(4), 1, &delete("b", 3, false));
        assert_eq!(registry.modules(), HashSet::from(["m1", "m2"]));
    }

    #[test]
    fn the_first_resolution_of_a_start_wins_even_over_one_of_a_topic_made_again() {
        let mut registry = Registry::default();
        registry.apply(Offset(0), 1, &started("i1", "id", 7));
        assert!(matches!(registry.apply(Offset(1), 1, &started("i1", "id", 9)), Outcome::Refused(_)));
        assert!(matches!(registry.apply(Offset(2), 1, &started("i1", "other", 0)), Outcome::Refused(_)));
        let began = Began { topic_id: "id".into(), offset: Offset(7) };
        assert_eq!(registry.started("i1", "t", 0), Some(&began));
        assert_eq!(registry.began_with("i1", "t"), Some("id"));
    }
}

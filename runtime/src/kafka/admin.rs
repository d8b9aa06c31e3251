//! Questions and changes that concern the cluster rather than a record: topics, groups, offsets.
//!
//! Every call blocks for at most its request's time-out. Calls from a tokio thread belong on
//! `spawn_blocking`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::config::KafkaConfig;
use super::ffi::admin::{Coordinator, TopicSpec};
use super::ffi::partitions::Partitions;
use super::ffi::{Client, Code, KafkaError, Kind};
use super::topic_settings::by_name;
use crate::record::Offset;

pub(super) const REQUEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    #[error("{what} does not exist")]
    Missing { what: String },
    #[error("{what} exists already")]
    Exists { what: String },
    /// The broker understood and said no.
    #[error("{what}: {reason}")]
    Refused { what: String, reason: String },
    /// No answer, or none that says anything about the request.
    #[error("{what}: {reason}")]
    Unavailable { what: String, reason: String },
}

/// A topic as the cluster describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    /// Another one after the topic was deleted and made again.
    pub id: Uuid,
    pub partitions: i32,
    /// Copies of the first partition; of the others, unless they are being moved.
    pub replication: i16,
}

/// A topic to be made, with every setting that matters to us explicit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    pub name: String,
    pub partitions: i32,
    /// `None` = the broker's default.
    pub replication: Option<i16>,
    pub configs: Vec<(String, String)>,
}

impl NewTopic {
    pub fn new(name: impl Into<String>, partitions: i32) -> NewTopic {
        NewTopic { name: name.into(), partitions, replication: None, configs: Vec::new() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> NewTopic {
        self.configs.push((name.to_owned(), value.to_string()));
        self
    }
}

/// One end of a partition, or the first record at or after a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Start,
    /// The high watermark.
    End,
    /// The last stable offset: where a read_committed reader stops.
    StableEnd,
    /// Milliseconds since the epoch.
    Time(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// Kafka's word: `Stable`, `Empty`, `PreparingRebalance`, ...
    pub state: String,
    pub members: Vec<GroupMember>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub host: String,
    pub partitions: Vec<(String, i32)>,
}

/// The committed offset of one partition of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    pub topic: String,
    pub partition: i32,
    /// `None` = the group has committed nothing for it.
    pub offset: Option<Offset>,
    pub metadata: String,
}

pub struct Admin {
    config: KafkaConfig,
    client: Client,
    /// What coordinators are asked with; none before the first is.
    asker: Mutex<Option<Arc<Client>>>,
}

impl Admin {
    pub fn new(config: &KafkaConfig) -> Result<Admin, AdminError> {
        let client = Client::new(Kind::Producer, &config.admin(), "admin")
            .map_err(|error| refused("the configuration", &error))?;
        Ok(Admin { config: config.clone(), client, asker: Mutex::default() })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Asks a group's coordinator; if it is that no longer, the next one.
    pub(super) fn ask_coordinator<T>(
        &self,
        group: &str,
        ask: impl Fn(Coordinator<'_>) -> Result<T, KafkaError>,
    ) -> Result<T, KafkaError> {
        match self.ask_once(group, &ask) {
            Err(error) if error.is_any(NO_COORDINATOR) => self.ask_once(group, &ask),
            answer => answer,
        }
    }

    /// The handle is given up, once whoever else uses it has ended, together with a request that has no answer
    /// ([`Coordinator`] says why); with whom it takes for a coordinator, which librdkafka does not forget; and if the
    /// group that it was made with may be one that it may not ask about, which librdkafka never stops to do.
    fn ask_once<T>(
        &self,
        group: &str,
        ask: impl Fn(Coordinator<'_>) -> Result<T, KafkaError>,
    ) -> Result<T, KafkaError> {
        let client = self.asker(group)?;
        let answer = ask(Coordinator(&client));
        let is_over = |error: &KafkaError| {
            error.is_any(NO_COORDINATOR)
                || error.is(Code::RD_KAFKA_RESP_ERR__TIMED_OUT)
                || error.is(Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED)
        };
        if answer.as_ref().is_err_and(is_over) {
            let mut current = self.lock_asker();
            if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &client)) {
                // Not the last one: it ends below, without the lock.
                *current = None;
            }
        }
        answer
    }

    /// The handle of now; nobody keeps it beyond one request.
    fn asker(&self, group: &str) -> Result<Arc<Client>, KafkaError> {
        let mut asker = self.lock_asker();
        if let Some(client) = asker.as_ref() {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::new(Kind::Asker, &self.config.asker(group), "coordinators")?);
        *asker = Some(Arc::clone(&client));
        Ok(client)
    }

    fn lock_asker(&self) -> MutexGuard<'_, Option<Arc<Client>>> {
        self.asker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster's id; survives restarts, differs between clusters.
    pub fn cluster_id(&self) -> Result<String, AdminError> {
        self.client().cluster_id(REQUEST_WAIT).ok_or_else(|| AdminError::Unavailable {
            what: "the cluster id".to_owned(),
            reason: "no broker answered".to_owned(),
        })
    }

    /// Names and partition counts of all topics.
    pub fn topics(&self) -> Result<BTreeMap<String, i32>, AdminError> {
        let all =
            self.client().metadata(REQUEST_WAIT).map_err(|error| sorted("the list of topics", &error))?;
        Ok(all.into_iter().collect())
    }

    /// Describes topics in the order asked; one that is missing is `None`, any other error fails all.
    pub fn describe_topics(&self, names: &[String]) -> Result<Vec<Option<Topic>>, AdminError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let answers =
            self.client().describe_topics(names, REQUEST_WAIT).map_err(|error| sorted("topics", &error))?;
        let mut found = BTreeMap::new();
        for answer in answers {
            match answer {
                Ok(info) => {
                    let topic = Topic::from(info);
                    found.insert(topic.name.clone(), topic);
                }
                Err((_, error)) if is_missing(&error) => {}
                Err((name, error)) => return Err(sorted(&name, &error)),
            }
        }
        Ok(names.iter().map(|name| found.get(name).cloned()).collect())
    }

    /// Describes one topic that has to exist.
    pub fn topic(&self, name: &str) -> Result<Topic, AdminError> {
        let found = self.describe_topics(&[name.to_owned()])?;
        found.into_iter().next().flatten().ok_or_else(|| missing(&topic_text(name)))
    }

    /// Makes a topic and waits until brokers other than the one asked know it.
    pub fn create_topic(&self, topic: &NewTopic) -> Result<(), AdminError> {
        let spec = TopicSpec {
            name: &topic.name,
            partitions: topic.partitions,
            replication: topic.replication.map_or(-1, i32::from),
            configs: &topic.configs,
        };
        self.client()
            .create_topic(&spec, REQUEST_WAIT)
            .map_err(|error| sorted(&topic_text(&topic.name), &error))?;
        self.made_topic(&topic.name).map(drop)
    }

    /// Describes a topic that was made a moment ago.
    pub fn made_topic(&self, name: &str) -> Result<Topic, AdminError> {
        once_known(name, || Ok(self.describe_topics(&[name.to_owned()])?.remove(0)))
    }

    /// Makes a topic unless it is there; then checks that it is as asked. Answers the topic, and whether it was made
    /// by this call.
    pub fn ensure_topic(&self, topic: &NewTopic) -> Result<(Topic, bool), AdminError> {
        let (found, is_made) = match self.describe_topics(std::slice::from_ref(&topic.name))?.remove(0) {
            Some(found) => (found, false),
            None => match self.create_topic(topic) {
                Ok(()) => (self.made_topic(&topic.name)?, true),
                // Another node was faster: check what it made.
                Err(AdminError::Exists { .. }) => (self.made_topic(&topic.name)?, false),
                Err(error) => return Err(error),
            },
        };
        self.fits(&found, topic)?;
        Ok((found, is_made))
    }

    /// Checks that a topic that is there is as it is wanted.
    pub fn fits(&self, found: &Topic, topic: &NewTopic) -> Result<(), AdminError> {
        let mismatch = |reason: String| AdminError::Refused { what: topic_text(&topic.name), reason };
        if found.partitions != topic.partitions {
            return Err(mismatch(format!(
                "it has {} partitions, but {} are needed; a topic with state cannot be repartitioned: \
                 restore the count of the inputs or deploy under another name",
                found.partitions, topic.partitions,
            )));
        }
        let configs = by_name(self.known_settings(&topic.name)?);
        for (name, wanted) in &topic.configs {
            match configs.get(name) {
                Some(is) if is == wanted => {}
                is => {
                    let is = is.map_or("nothing", String::as_str);
                    return Err(mismatch(format!(
                        "`{name}` is {is}, but {wanted} is needed: set it with kafka-configs --alter",
                    )));
                }
            }
        }
        Ok(())
    }

    pub fn delete_topics(&self, names: &[String]) -> Result<(), AdminError> {
        if names.is_empty() {
            return Ok(());
        }
        let outcomes =
            self.client().delete_topics(names, REQUEST_WAIT).map_err(|error| sorted("topics", &error))?;
        for (name, outcome) in outcomes {
            outcome.map_err(|error| sorted(&topic_text(&name), &error))?;
        }
        Ok(())
    }

    /// Raises the number of partitions, and waits until brokers other than the one asked know it.
    pub fn add_partitions(&self, topic: &str, total: i32) -> Result<(), AdminError> {
        self.grow(topic, total, false)?;
        once_known(topic, || {
            let found = self.describe_topics(&[topic.to_owned()])?.remove(0);
            Ok(found.filter(|found| found.partitions >= total).map(drop))
        })
    }

    /// Asks whether a topic could have so many partitions, without adding any: why not, if it could not.
    pub fn could_add_partitions(&self, topic: &str, total: i32) -> Result<Option<String>, AdminError> {
        match self.grow(topic, total, true) {
            Ok(()) => Ok(None),
            Err(AdminError::Refused { reason, .. }) => {
                // Somebody else may have been faster, which shows that it could.
                let has_them = self.topic(topic)?.partitions == total;
                Ok((!has_them).then_some(reason))
            }
            Err(error) => Err(error),
        }
    }

    fn grow(&self, topic: &str, total: i32, validate_only: bool) -> Result<(), AdminError> {
        let total = usize::try_from(total).unwrap_or(0);
        let answer = self.client().create_partitions(topic, total, validate_only, REQUEST_WAIT);
        answer.map_err(|error| sorted(&topic_text(topic), &error))
    }

    /// Deletes the records of a partition below an offset.
    pub fn delete_records(&self, topic: &str, partition: i32, before: Offset) -> Result<(), AdminError> {
        let list = Partitions::one(topic, partition, before.0 as i64);
        let what = format!("records of `{topic}` [{partition}]");
        let rows =
            self.client().delete_records(&list, REQUEST_WAIT).map_err(|error| sorted(&what, &error))?;
        match rows.into_iter().find_map(|row| row.error) {
            None => Ok(()),
            Some(error) => Err(sorted(&what, &error)),
        }
    }

    /// Offsets of partitions, in the order asked. A time after the last record gives the end.
    pub fn offsets(&self, partitions: &[(String, i32)], at: At) -> Result<Vec<Offset>, AdminError> {
        self.offsets_within(partitions, at, REQUEST_WAIT)
    }

    /// The same, for whoever has no use for a late answer.
    pub fn offsets_within(
        &self,
        partitions: &[(String, i32)],
        at: At,
        wait: Duration,
    ) -> Result<Vec<Offset>, AdminError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let (spec, committed) = match at {
            At::Start => (-2, false),
            At::End => (-1, false),
            At::StableEnd => (-1, true),
            At::Time(ms) => (ms.max(0), false),
        };
        let mut list = Partitions::with_capacity(partitions.len());
        partitions.iter().for_each(|(topic, partition)| list.add(topic, *partition, spec, ""));
        let rows =
            self.client().list_offsets(&list, committed, wait).map_err(|error| sorted("offsets", &error))?;
        let mut offsets = Vec::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            let what = format!("`{topic}` [{partition}]");
            let row = rows.iter().find(|row| row.topic == *topic && row.partition == *partition);
            let row = row.ok_or_else(|| missing(&what))?;
            if let Some(error) = &row.error {
                return Err(sorted(&what, error));
            }
            offsets.push(u64::try_from(row.offset).ok().map(Offset));
        }
        if offsets.iter().all(Option::is_some) {
            return Ok(offsets.into_iter().flatten().collect());
        }
        // Nothing is that young: the next record will be.
        let ends = self.offsets_within(partitions, At::End, wait)?;
        Ok(offsets.into_iter().zip(ends).map(|(offset, end)| offset.unwrap_or(end)).collect())
    }

    pub fn groups(&self) -> Result<Vec<String>, AdminError> {
        self.client().list_groups(REQUEST_WAIT).map_err(|error| sorted("the list of groups", &error))
    }

    pub fn describe_group(&self, group: &str) -> Result<GroupDescription, AdminError> {
        let found = self
            .ask_coordinator(group, |coordinator| coordinator.describe_group(group, REQUEST_WAIT))
            .map_err(|error| sorted(&format!("group `{group}`"), &error))?;
        let members = found
            .members
            .into_iter()
            .map(|member| GroupMember {
                member_id: member.member_id,
                instance_id: member.instance_id,
                client_id: member.client_id,
                host: member.host,
                partitions: member.partitions,
            })
            .collect();
        Ok(GroupDescription { state: found.state, members })
    }

    /// Committed offsets of a group: of these partitions, or of every one it has.
    pub fn group_offsets(
        &self,
        group: &str,
        partitions: Option<&[(String, i32)]>,
    ) -> Result<Vec<GroupOffset>, AdminError> {
        self.offsets_of_group(group, partitions, false, REQUEST_WAIT)
    }

    /// The same of these partitions, for whoever has no use for a late answer.
    pub fn group_offsets_within(
        &self,
        group: &str,
        partitions: &[(String, i32)],
        wait: Duration,
    ) -> Result<Vec<GroupOffset>, AdminError> {
        self.offsets_of_group(group, Some(partitions), false, wait)
    }

    /// The same of these partitions, but an offset that a transaction has not decided on yet is an error.
    pub fn stable_group_offsets(
        &self,
        group: &str,
        partitions: &[(String, i32)],
    ) -> Result<Vec<GroupOffset>, AdminError> {
        self.offsets_of_group(group, Some(partitions), true, REQUEST_WAIT)
    }

    fn offsets_of_group(
        &self,
        group: &str,
        partitions: Option<&[(String, i32)]>,
        stable: bool,
        wait: Duration,
    ) -> Result<Vec<GroupOffset>, AdminError> {
        let what = format!("offsets of group `{group}`");
        let list = partitions.map(|rows| {
            let mut list = Partitions::with_capacity(rows.len());
            rows.iter().for_each(|(topic, partition)| list.add(topic, *partition, -1001, ""));
            list
        });
        let rows = self
            .ask_coordinator(group, |coordinator| {
                coordinator.group_offsets(group, list.as_ref(), stable, wait)
            })
            .map_err(|error| sorted(&what, &error))?;
        rows.into_iter()
            .map(|row| match row.error {
                Some(error) => Err(sorted(&what, &error)),
                None => Ok(GroupOffset {
                    topic: row.topic,
                    partition: row.partition,
                    offset: u64::try_from(row.offset).ok().map(Offset),
                    metadata: row.metadata,
                }),
            })
            .collect()
    }

    /// Deletes a group that has no members, with its offsets.
    pub fn delete_group(&self, group: &str) -> Result<(), AdminError> {
        self.ask_coordinator(group, |coordinator| coordinator.delete_group(group, REQUEST_WAIT))
            .map_err(|error| sorted(&format!("group `{group}`"), &error))
    }
}

pub(super) fn topic_text(name: &str) -> String {
    format!("topic `{name}`")
}

fn missing(what: &str) -> AdminError {
    AdminError::Missing { what: what.to_owned() }
}

fn refused(what: &str, error: &KafkaError) -> AdminError {
    AdminError::Refused { what: what.to_owned(), reason: error.to_string() }
}

/// Asks about a topic until the broker asked knows it: brokers learn of a new one one after the other,
/// and later than the answer to whoever made it, or tried to.
pub(super) fn once_known<T>(
    name: &str,
    mut ask: impl FnMut() -> Result<Option<T>, AdminError>,
) -> Result<T, AdminError> {
    let deadline = Instant::now() + REQUEST_WAIT;
    while Instant::now() < deadline {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(AdminError::Unavailable { what: topic_text(name), reason: "done, but not to be seen".to_owned() })
}

pub(super) fn is_missing(error: &KafkaError) -> bool {
    error.is_any(&[
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
        Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID,
        Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND,
    ])
}

/// The broker asked is not the group's coordinator, or not yet.
const NO_COORDINATOR: &[Code] =
    &[Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE];

/// Answers of brokers that say nothing about what they were asked.
const PASSING: &[Code] =
    &[Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS];

/// Sorts an error by what it says about the thing asked for. Negative codes are the client's own:
/// time-outs and lost connections.
pub(super) fn sorted(what: &str, error: &KafkaError) -> AdminError {
    if is_missing(error) {
        missing(what)
    } else if error.is(Code::RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS) {
        AdminError::Exists { what: what.to_owned() }
    } else if error.code > 0 && !error.is_any(NO_COORDINATOR) && !error.is_any(PASSING) {
        refused(what, error)
    } else {
        AdminError::Unavailable { what: what.to_owned(), reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An api key.
    const OFFSET_FETCH: i16 = 9;

    #[test]
    fn offsets_of_a_group_without_a_coordinator_are_waited_for_no_longer_than_was_asked() {
        let admin = Admin::new(&KafkaConfig::new("127.0.0.1:1")).expect("a client");
        let begun = Instant::now();
        let answer = admin.group_offsets_within("g", &[("in".to_owned(), 0)], Duration::from_millis(100));
        assert!(matches!(answer, Err(AdminError::Unavailable { .. })), "{answer:?}");
        assert!(begun.elapsed() < REQUEST_WAIT / 2, "{:?}", begun.elapsed());
    }

    /// librdkafka takes this answer for a member's: in a client without a group it ends the process.
    #[test]
    fn a_coordinator_that_is_one_no_longer_is_looked_up_anew() {
        let mut config = KafkaConfig::new("localhost:9092");
        // A cluster that librdkafka plays, another for each client.
        config.properties.insert("test.mock.num.brokers".to_owned(), "1".to_owned());
        let admin = Admin::new(&config).expect("a client");
        let first = admin.asker("g").expect("a client");
        first.answer_next(OFFSET_FETCH, Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
        assert_eq!(admin.group_offsets("g", None), Ok(Vec::new()));
        let next = admin.asker("g").expect("a client");
        assert!(!Arc::ptr_eq(&first, &next), "the first would ask the same broker again");
        assert_eq!(admin.group_offsets("g", None), Ok(Vec::new()));
        assert!(Arc::ptr_eq(&next, &admin.asker("g").expect("a client")), "it stays");
    }
}

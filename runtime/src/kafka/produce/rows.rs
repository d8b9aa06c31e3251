//! Where each record goes: into the batch of its partition, by topic, number or key. And when what waits is sent.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka_protocol::ResponseError;

use super::Producer;
use super::answers::{Trouble, describe};
use super::batches::{Place, RowTooLarge};
use super::partition::Row;
use super::patience::{Deadline, Pauses};
use crate::effects::{Emitted, EmittedRow};
use crate::kafka::sink::{STAMP_HEADER, SinkSpec, stamp_bytes};
use crate::ports::ChangelogRows;
use crate::record::headers;

/// Sealed batches are sent ahead when there are that many bytes of them.
pub(super) const AHEAD_BYTES: usize = 512 << 10;

/// Between two questions about a topic that is not known.
const TOPIC_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The topics of a deployment by their index in the list of names, which has each once: two outputs may be one topic, whose
/// partitions have one sequence of numbers.
pub(super) struct Topics {
    pub outputs: Vec<Option<usize>>,
    pub changelog: Option<usize>,
    pub inbox: Option<usize>,
    pub names: Vec<String>,
}

impl Topics {
    pub fn new(spec: &SinkSpec) -> Topics {
        let mut names: Vec<String> = Vec::new();
        let mut index = |name: &String| match names.iter().position(|known| known == name) {
            Some(index) => index,
            None => {
                names.push(name.clone());
                names.len() - 1
            }
        };
        let outputs = spec.outputs.iter().map(|name| name.as_ref().map(&mut index)).collect();
        let changelog = spec.changelog.as_ref().map(&mut index);
        let inbox = spec.inbox.as_ref().map(&mut index);
        Topics { outputs, changelog, inbox, names }
    }
}

impl Producer {
    pub(super) fn emissions(&mut self, rows: &Emitted, until: Deadline) -> Result<(), Trouble> {
        let now = now_ms();
        for EmittedRow { output, partition, timestamp, key, value, headers } in rows.rows() {
            let Some(&Some(topic)) = self.topics.outputs.get(usize::from(output)) else {
                let reason = "the deployment has no such topic".to_owned();
                return Err(Trouble::Record { topic: format!("output {output}"), reason });
            };
            if let Some(Err(malformed)) = headers.map(headers::check) {
                return Err(self.refused(topic, malformed.to_string()));
            }
            let timestamp_ms = match timestamp {
                ..0 => now,
                given => given,
            };
            self.push(topic, partition, &Row { timestamp_ms, key, value, headers }, until)?;
        }
        Ok(())
    }

    /// The first `count` of these rows.
    pub(super) fn changelog(
        &mut self,
        rows: &ChangelogRows,
        count: usize,
        until: Deadline,
    ) -> Result<(), Trouble> {
        match self.topics.changelog {
            Some(topic) => self.log(topic, rows, count, until),
            None => Err(Trouble::Unknown("this producer has no changelog topic".to_owned())),
        }
    }

    pub(super) fn inbox(&mut self, rows: &ChangelogRows, until: Deadline) -> Result<(), Trouble> {
        match self.topics.inbox {
            Some(topic) => self.log(topic, rows, rows.keys.len(), until),
            None => Err(Trouble::Unknown("this producer has no inbox topic".to_owned())),
        }
    }

    /// Rows of a log of the node's own, whose time is the broker's to set.
    fn log(
        &mut self,
        topic: usize,
        rows: &ChangelogRows,
        count: usize,
        until: Deadline,
    ) -> Result<(), Trouble> {
        let stamp = rows.stamp.map(|stamp| {
            let bytes = stamp_bytes(stamp);
            headers::encode([(STAMP_HEADER, Some(&bytes[..]))].into_iter())
        });
        let timestamp_ms = now_ms();
        for (key, value) in rows.keys.iter().zip(rows.values.iter()).take(count) {
            let row = Row { timestamp_ms, key, value, headers: stamp.as_deref() };
            self.push(topic, rows.partition, &row, until)?;
        }
        Ok(())
    }

    /// Puts a record into its batch, and sees to it that what waits stays within bounds.
    fn push(&mut self, topic: usize, partition: i32, row: &Row<'_>, until: Deadline) -> Result<(), Trouble> {
        let place = self.place(topic, partition, row.key, until)?;
        match self.batches.push(place, row) {
            Ok(false) => {}
            Ok(true) => self.sticky = self.sticky.wrapping_add(1),
            Err(RowTooLarge { bytes, bytes_max }) => {
                return Err(
                    self.refused(topic, format!("it has {bytes} bytes; at most {bytes_max} are sent"))
                );
            }
        }
        if self.batches.waiting_bytes() >= self.ahead || self.batches.bytes() > self.limits.queue_bytes {
            self.relieve(until)?;
        }
        Ok(())
    }

    /// Where a record goes. `partition` is -1 for one that says nothing of it.
    fn place(
        &mut self,
        topic: usize,
        partition: i32,
        key: Option<&[u8]>,
        until: Deadline,
    ) -> Result<Place, Trouble> {
        let mut count = self.cluster.leaders.partitions(topic);
        if count == 0 {
            count = self.partitions(topic, until)?;
        }
        let chosen = match (partition, i32::try_from(count)) {
            (-1, Ok(count)) => self.partitioner.partition(key, count, self.sticky.rem_euclid(count)),
            (given, _) => given,
        };
        let chosen_index = usize::try_from(chosen).ok();
        if !self.has_looked && chosen_index.is_some_and(|index| index >= count) {
            // It may be new.
            self.has_looked = true;
            self.cluster.look(until).map_err(Trouble::Unknown)?;
            count = self.cluster.leaders.partitions(topic);
        }
        match chosen_index.filter(|&index| index < count) {
            Some(partition) => Ok(Place { topic, partition }),
            None => {
                Err(self.refused(topic, format!("the topic has no partition {chosen}, but {count} of them")))
            }
        }
    }

    /// How many partitions a topic has that was not heard of yet.
    fn partitions(&mut self, topic: usize, until: Deadline) -> Result<usize, Trouble> {
        let mut pauses = Pauses::new(TOPIC_PAUSES);
        loop {
            let looked = self.cluster.look(until);
            let count = self.cluster.leaders.partitions(topic);
            if count > 0 {
                return Ok(count);
            }
            let problem = self.cluster.leaders.problem(topic);
            let text = match (looked, problem) {
                (Err(error), _) => error,
                (Ok(()), Some(error)) => describe(error.code()),
                (Ok(()), None) => "the broker says nothing of it".to_owned(),
            };
            let text = format!("{} cannot be written to: {text}", self.topics.names[topic]);
            match problem {
                Some(
                    error @ (ResponseError::TopicAuthorizationFailed | ResponseError::InvalidTopicException),
                ) => {
                    return Err(Trouble::Refused(error, text));
                }
                _ if pauses.wait(until) => {}
                _ => return Err(Trouble::Unknown(text)),
            }
        }
    }

    /// Sends what waits ahead; waits for it as well if it is more than may wait.
    fn relieve(&mut self, until: Deadline) -> Result<(), Trouble> {
        let most = self.limits.queue_bytes;
        let is_full = self.batches.bytes() > most;
        if is_full {
            self.batches.seal_all();
        }
        self.add_partitions(until)?;
        let (batches, cluster) = (&mut self.batches, &mut self.cluster);
        if is_full {
            self.delivery.deliver(batches, cluster, most / 2, until.within(self.limits.delivery))?;
        } else {
            self.delivery.send_ahead(batches, cluster, AHEAD_BYTES, until)?;
        }
        self.ahead = self.batches.waiting_bytes() + AHEAD_BYTES;
        Ok(())
    }

    fn refused(&self, topic: usize, reason: String) -> Trouble {
        Trouble::Record { topic: self.topics.names[topic].clone(), reason }
    }
}

/// Milliseconds since the epoch.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_of_one_topic_share_its_partitions() {
        let name = |name: &str| Some(name.to_owned());
        let topics = Topics::new(&SinkSpec {
            outputs: vec![name("a"), None, name("b"), name("a")],
            changelog: name("log"),
            inbox: name("inbox"),
            inputs: Vec::new(),
            batch_bytes: 1_000_000,
        });
        assert_eq!(topics.outputs, [Some(0), None, Some(1), Some(0)]);
        assert_eq!((topics.changelog, topics.inbox), (Some(2), Some(3)));
        assert_eq!(topics.names, ["a", "b", "log", "inbox"]);
    }
}

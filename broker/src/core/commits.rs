//! Committed offsets: plain, within a transaction, and read back.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName,
    TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};

use super::{Call, Core, text};
use crate::group::{Committed, Group};
use crate::journal::Entry;
use crate::txn;

/// From this version of OffsetFetch on, several groups are asked for at once.
const FETCH_BATCHED: i16 = 8;

/// One partition's offset from a request of either kind.
struct Wanted {
    committed: Committed,
    error: i16,
}

/// Who commits.
struct Committer<'a> {
    group: &'a str,
    member_id: &'a str,
    instance: Option<&'a str>,
    generation: i32,
}

/// What is told about one partition.
struct Answer {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
    error: i16,
}

/// One partition of a request as its client sent it.
struct Offered<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: Option<&'a str>,
}

/// What a request offers. Both kinds have the same fields, in types of their own.
macro_rules! offered {
    ($request:expr) => {
        $request.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|partition| Offered {
                topic: &topic.name,
                partition: partition.partition_index,
                offset: partition.committed_offset,
                leader_epoch: partition.committed_leader_epoch,
                metadata: partition.committed_metadata.as_deref(),
            })
        })
    };
}

/// The answer's topics, of either kind.
macro_rules! answered {
    ($topic:ty, $partition:ty, $errors:expr) => {
        $errors
            .into_iter()
            .map(|(name, errors)| {
                let partition = |(index, error)| {
                    <$partition>::default().with_partition_index(index).with_error_code(error)
                };
                <$topic>::default()
                    .with_name(name)
                    .with_partitions(errors.into_iter().map(partition).collect())
            })
            .collect()
    };
}

impl Core {
    pub(super) fn offset_commit(
        &mut self,
        request: OffsetCommitRequest,
        call: &Call<'_>,
    ) -> OffsetCommitResponse {
        let wanted = self.wanted(offered!(request), call);
        let committer = Committer {
            group: &request.group_id,
            member_id: &request.member_id,
            instance: request.group_instance_id.as_deref(),
            generation: request.generation_id_or_member_epoch,
        };
        let offsets = accepted(&wanted);
        let result = self.admit_commit(&committer, false, call).and_then(|()| {
            let entry = Entry::Offsets { group: committer.group.to_owned(), offsets };
            self.record(&entry).map_err(|_| ResponseError::CoordinatorNotAvailable)?;
            let Entry::Offsets { offsets, .. } = entry else { return Ok(()) };
            if let Some(group) = self.groups.get_mut(committer.group) {
                group.touch(committer.member_id, call.now.mono);
                offsets.into_iter().for_each(|committed| group.offsets.commit(committed));
            }
            Ok(())
        });
        OffsetCommitResponse::default().with_topics(answered!(
            OffsetCommitResponseTopic,
            OffsetCommitResponsePartition,
            errors_by_topic(&wanted, &result)
        ))
    }

    pub(super) fn txn_offset_commit(
        &mut self,
        request: TxnOffsetCommitRequest,
        call: &Call<'_>,
    ) -> TxnOffsetCommitResponse {
        let wanted = self.wanted(offered!(request), call);
        let committer = Committer {
            group: &request.group_id,
            member_id: &request.member_id,
            instance: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        let producer_id = request.producer_id.0;
        let offsets = accepted(&wanted);
        let result = self
            .check_offsets_transaction(&request)
            .and_then(|()| self.admit_commit(&committer, true, call))
            .and_then(|()| {
                let group = committer.group.to_owned();
                let entry = Entry::PendingOffsets { group, producer_id, offsets };
                self.record(&entry).map_err(|_| ResponseError::CoordinatorNotAvailable)?;
                let Entry::PendingOffsets { offsets, .. } = entry else { return Ok(()) };
                if let Some(group) = self.groups.get_mut(committer.group) {
                    offsets.into_iter().for_each(|c| group.offsets.commit_pending(producer_id, c));
                }
                Ok(())
            });
        TxnOffsetCommitResponse::default().with_topics(answered!(
            TxnOffsetCommitResponseTopic,
            TxnOffsetCommitResponsePartition,
            errors_by_topic(&wanted, &result)
        ))
    }

    /// The transaction must be open and include the group, or its offsets would never be decided.
    fn check_offsets_transaction(&self, request: &TxnOffsetCommitRequest) -> Result<(), ResponseError> {
        let transaction = self.transactions.get(request.transactional_id.as_str());
        let transaction = transaction.ok_or(ResponseError::InvalidProducerIdMapping)?;
        let owner = transaction.check_owner(request.producer_id.0, request.producer_epoch);
        owner.map_err(|error| match error {
            ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
            other => other,
        })?;
        if transaction.state.preparing().is_some() {
            return Err(ResponseError::ConcurrentTransactions);
        }
        let open = transaction.state == txn::State::Ongoing;
        let included = transaction.groups.contains(request.group_id.as_str());
        if open && included { Ok(()) } else { Err(ResponseError::InvalidTxnState) }
    }

    /// Judges each offset by itself.
    fn wanted<'a>(&self, offered: impl Iterator<Item = Offered<'a>>, call: &Call<'_>) -> Vec<Wanted> {
        offered
            .map(|offered| {
                let metadata = offered.metadata.unwrap_or_default();
                let error = if self.topics.find(offered.topic, offered.partition).is_none() {
                    ResponseError::UnknownTopicOrPartition.code()
                } else if metadata.len() > self.config.offset_metadata_bytes_max {
                    ResponseError::OffsetMetadataTooLarge.code()
                } else {
                    0
                };
                let committed = Committed {
                    topic: offered.topic.to_owned(),
                    partition: offered.partition,
                    offset: offered.offset,
                    leader_epoch: offered.leader_epoch,
                    metadata: metadata.to_owned(),
                    at_ms: call.now.wall,
                };
                Wanted { committed, error }
            })
            .collect()
    }

    /// Whether this client may commit; creates the group for one that manages itself.
    fn admit_commit(
        &mut self,
        committer: &Committer<'_>,
        transactional: bool,
        call: &Call<'_>,
    ) -> Result<(), ResponseError> {
        if committer.group.is_empty() {
            return Err(ResponseError::InvalidGroupId);
        }
        if let Some(group) = self.groups.get(committer.group) {
            let Committer { member_id, instance, generation, .. } = *committer;
            return group.validate_commit(member_id, instance, generation, transactional);
        }
        if committer.generation >= 0 {
            return Err(ResponseError::IllegalGeneration);
        }
        if self.groups.len() >= self.config.groups_max {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        self.groups.insert(committer.group.to_owned(), Group::new(call.now.wall));
        Ok(())
    }

    pub(super) fn offset_fetch(&self, request: OffsetFetchRequest, call: &Call<'_>) -> OffsetFetchResponse {
        let stable = request.require_stable;
        if call.version < FETCH_BATCHED {
            let topics = request.topics.map(|topics| {
                topics.into_iter().map(|topic| (topic.name, topic.partition_indexes)).collect()
            });
            let answers = self.committed(&request.group_id, topics, stable);
            let topics = answers.into_iter().map(|(name, answers)| {
                OffsetFetchResponseTopic::default()
                    .with_name(name)
                    .with_partitions(answers.into_iter().map(answer_single).collect())
            });
            return OffsetFetchResponse::default().with_topics(topics.collect());
        }
        let mut groups = Vec::with_capacity(request.groups.len());
        for group in request.groups {
            let topics = group.topics.map(|topics| {
                topics.into_iter().map(|topic| (topic.name, topic.partition_indexes)).collect()
            });
            let answers = self.committed(&group.group_id, topics, stable);
            let topics = answers.into_iter().map(|(name, answers)| {
                OffsetFetchResponseTopics::default()
                    .with_name(name)
                    .with_partitions(answers.into_iter().map(answer_batched).collect())
            });
            groups.push(
                OffsetFetchResponseGroup::default()
                    .with_topics(topics.collect())
                    .with_group_id(group.group_id),
            );
        }
        OffsetFetchResponse::default().with_groups(groups)
    }

    /// Committed offsets of a group, of these partitions or of all it has.
    fn committed(
        &self,
        group_id: &str,
        topics: Option<Vec<(TopicName, Vec<i32>)>>,
        require_stable: bool,
    ) -> Vec<(TopicName, Vec<Answer>)> {
        let group = self.groups.get(group_id);
        let topics = topics.unwrap_or_else(|| group.map(all_partitions).unwrap_or_default());
        let answer = |name: &TopicName, partition: i32| {
            let found = group.and_then(|group| group.offsets.get(name, partition));
            let unstable = require_stable && group.is_some_and(|g| g.offsets.unstable(name, partition));
            let found = found.filter(|_| !unstable);
            Answer {
                partition,
                offset: found.map_or(-1, |committed| committed.offset),
                leader_epoch: found.map_or(-1, |committed| committed.leader_epoch),
                metadata: found.map(|committed| committed.metadata.clone()).unwrap_or_default(),
                error: if unstable { ResponseError::UnstableOffsetCommit.code() } else { 0 },
            }
        };
        let topic = |(name, partitions): (TopicName, Vec<i32>)| {
            let answers = partitions.into_iter().map(|partition| answer(&name, partition)).collect();
            (name, answers)
        };
        topics.into_iter().map(topic).collect()
    }
}

fn all_partitions(group: &Group) -> Vec<(TopicName, Vec<i32>)> {
    let mut topics: Vec<(TopicName, Vec<i32>)> = Vec::new();
    for committed in group.offsets.iter() {
        match topics.last_mut() {
            Some((name, partitions)) if name.as_str() == committed.topic => {
                partitions.push(committed.partition);
            }
            _ => topics.push((TopicName(text(committed.topic.clone())), vec![committed.partition])),
        }
    }
    topics
}

fn accepted(wanted: &[Wanted]) -> Vec<Committed> {
    wanted.iter().filter(|wanted| wanted.error == 0).map(|wanted| wanted.committed.clone()).collect()
}

/// Errors per partition: its own, or that of the whole request.
fn errors_by_topic(
    wanted: &[Wanted],
    result: &Result<(), ResponseError>,
) -> Vec<(TopicName, Vec<(i32, i16)>)> {
    let mut topics: Vec<(TopicName, Vec<(i32, i16)>)> = Vec::new();
    for Wanted { committed, error } in wanted {
        let error = if result.is_err() { super::code(result) } else { *error };
        match topics.last_mut() {
            Some((name, partitions)) if name.as_str() == committed.topic => {
                partitions.push((committed.partition, error));
            }
            _ => {
                let name = TopicName(text(committed.topic.clone()));
                topics.push((name, vec![(committed.partition, error)]));
            }
        }
    }
    topics
}

fn answer_single(answer: Answer) -> OffsetFetchResponsePartition {
    OffsetFetchResponsePartition::default()
        .with_partition_index(answer.partition)
        .with_committed_offset(answer.offset)
        .with_committed_leader_epoch(answer.leader_epoch)
        .with_metadata(Some(text(answer.metadata)))
        .with_error_code(answer.error)
}

fn answer_batched(answer: Answer) -> OffsetFetchResponsePartitions {
    OffsetFetchResponsePartitions::default()
        .with_partition_index(answer.partition)
        .with_committed_offset(answer.offset)
        .with_committed_leader_epoch(answer.leader_epoch)
        .with_metadata(Some(text(answer.metadata)))
        .with_error_code(answer.error)
}

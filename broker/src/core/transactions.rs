//! The transaction coordinator's requests.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest,
    DescribeTransactionsResponse, EndTxnRequest, EndTxnResponse, InitProducerIdRequest,
    InitProducerIdResponse, ListTransactionsRequest, ListTransactionsResponse, ProducerId, TopicName,
    TransactionalId, list_transactions_response,
};
use uuid::Uuid;

use super::{Call, Core, text};
use crate::journal::Entry;
use crate::txn::{Init, Transaction};

/// Ids taken from the journal at a time, so that not each one costs an entry.
const PRODUCER_ID_BLOCK: i64 = 1000;

/// Groups whose offsets a transaction may commit; clients have one. They are named in every journal entry of it.
pub(super) const GROUPS_MAX: usize = 100;

impl Core {
    pub(super) fn init_producer_id(
        &mut self,
        request: InitProducerIdRequest,
        call: &Call<'_>,
    ) -> InitProducerIdResponse {
        let result = match &request.transactional_id {
            None => self.fresh_producer_id().map(|id| (id, 0)),
            Some(id) if id.is_empty() => Err(ResponseError::InvalidRequest),
            Some(id) => self.init_transactional(&id.to_string(), &request, call),
        };
        match result {
            Ok((id, epoch)) => {
                InitProducerIdResponse::default().with_producer_id(ProducerId(id)).with_producer_epoch(epoch)
            }
            Err(error) => InitProducerIdResponse::default()
                .with_error_code(fenced_for(call.version, 4, error).code())
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1),
        }
    }

    fn init_transactional(
        &mut self,
        id: &str,
        request: &InitProducerIdRequest,
        call: &Call<'_>,
    ) -> Result<(i64, i16), ResponseError> {
        let timeout_ms = i64::from(request.transaction_timeout_ms);
        let max = self.config.transaction_timeout_max.as_millis() as i64;
        if timeout_ms <= 0 || timeout_ms > max {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let expected =
            (request.producer_id.0 != -1).then_some((request.producer_id.0, request.producer_epoch));
        let fresh_id = self.fresh_producer_id()?;
        let current = match self.transactions.get(id) {
            Some(transaction) => transaction.clone(),
            None => {
                self.make_room_for_transaction()?;
                Transaction::new(fresh_id, timeout_ms, call.now.wall)
            }
        };
        match current.init(timeout_ms, expected, fresh_id, call.now.wall)? {
            Init::Ready(next) => {
                let granted = (next.producer_id, next.epoch);
                self.store_transaction(id, next)?;
                Ok(granted)
            }
            Init::AbortFirst(fenced) => {
                self.decide(id, fenced.prepared(false, call.now.wall), call.now)?;
                // The client tries again and finds the transaction completed.
                Err(ResponseError::ConcurrentTransactions)
            }
        }
    }

    fn store_transaction(&mut self, id: &str, next: Transaction) -> Result<(), ResponseError> {
        let entry = Entry::Transaction { id: id.to_owned(), state: next };
        self.record(&entry).map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        if let Entry::Transaction { id, state } = entry {
            self.transactions.insert(id, state);
        }
        Ok(())
    }

    /// Forgets the transactional id that has been idle longest if there are too many.
    fn make_room_for_transaction(&mut self) -> Result<(), ResponseError> {
        if self.transactions.len() < self.config.transactional_ids_max {
            return Ok(());
        }
        let idle = self.transactions.iter().filter(|(_, transaction)| transaction.idle());
        let oldest = idle.min_by_key(|(_, transaction)| transaction.touched_ms).map(|(id, _)| id.clone());
        let oldest = oldest.ok_or(ResponseError::CoordinatorNotAvailable)?;
        self.transactions.remove(&oldest);
        Ok(())
    }

    fn fresh_producer_id(&mut self) -> Result<i64, ResponseError> {
        let id = self.next_producer_id;
        if id >= self.reserved_producer_ids {
            let next = id + PRODUCER_ID_BLOCK;
            self.record(&Entry::ProducerIds { next }).map_err(|_| ResponseError::CoordinatorNotAvailable)?;
            self.reserved_producer_ids = next;
        }
        self.next_producer_id += 1;
        Ok(id)
    }

    fn transaction(&self, id: &str, producer_id: i64, epoch: i16) -> Result<&Transaction, ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let transaction = self.transactions.get(id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        transaction.check_owner(producer_id, epoch)?;
        Ok(transaction)
    }

    pub(super) fn add_partitions_to_txn(
        &mut self,
        request: AddPartitionsToTxnRequest,
        call: &Call<'_>,
    ) -> AddPartitionsToTxnResponse {
        let id = request.v3_and_below_transactional_id.to_string();
        let producer_id = request.v3_and_below_producer_id.0;
        let epoch = request.v3_and_below_producer_epoch;
        let topics = request.v3_and_below_topics;
        let found: Option<Vec<(Uuid, i32)>> = wanted(&topics)
            .map(|(name, partition)| self.topics.find(name, partition).map(|(id, _)| (id, partition)))
            .collect();
        let result = match &found {
            None => Ok(()),
            Some(partitions) => self.extend(&id, (producer_id, epoch), partitions, None, call),
        };
        let result = result.map_err(|error| fenced_for(call.version, 2, error));
        let error_of = |name: &str, partition: i32| match (&found, &result) {
            (Some(_), result) => super::code(result),
            // One unknown partition keeps all others out too.
            (None, _) if self.topics.find(name, partition).is_none() => {
                ResponseError::UnknownTopicOrPartition.code()
            }
            (None, _) => ResponseError::OperationNotAttempted.code(),
        };
        let answer = |topic: &AddPartitionsToTxnTopic| {
            let partition = |index: &i32| {
                AddPartitionsToTxnPartitionResult::default()
                    .with_partition_index(*index)
                    .with_partition_error_code(error_of(&topic.name, *index))
            };
            AddPartitionsToTxnTopicResult::default()
                .with_name(topic.name.clone())
                .with_results_by_partition(topic.partitions.iter().map(partition).collect())
        };
        let results = topics.iter().map(answer).collect();
        AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results)
    }

    fn extend(
        &mut self,
        id: &str,
        (producer_id, epoch): (i64, i16),
        partitions: &[(Uuid, i32)],
        group: Option<&str>,
        call: &Call<'_>,
    ) -> Result<(), ResponseError> {
        let transaction = self.transaction(id, producer_id, epoch)?;
        let is_new = |group: &str| !transaction.groups.contains(group);
        if group.is_some_and(is_new) && transaction.groups.len() >= GROUPS_MAX {
            return Err(ResponseError::PolicyViolation);
        }
        match transaction.add(partitions, group, call.now.wall)? {
            Some(next) => self.store_transaction(id, next),
            None => Ok(()),
        }
    }

    pub(super) fn add_offsets_to_txn(
        &mut self,
        request: AddOffsetsToTxnRequest,
        call: &Call<'_>,
    ) -> AddOffsetsToTxnResponse {
        let producer = (request.producer_id.0, request.producer_epoch);
        let result = match request.group_id.is_empty() {
            true => Err(ResponseError::InvalidGroupId),
            false => self.extend(&request.transactional_id, producer, &[], Some(&request.group_id), call),
        };
        let result = result.map_err(|error| fenced_for(call.version, 2, error));
        AddOffsetsToTxnResponse::default().with_error_code(super::code(&result))
    }

    pub(super) fn end_txn(&mut self, request: EndTxnRequest, call: &Call<'_>) -> EndTxnResponse {
        let id = request.transactional_id.to_string();
        let result = self
            .transaction(&id, request.producer_id.0, request.producer_epoch)
            .and_then(|transaction| transaction.end(request.committed, call.now.wall))
            .and_then(|decided| match decided {
                Some(decided) => self.decide(&id, decided, call.now),
                None => Ok(()),
            });
        let result = result.map_err(|error| fenced_for(call.version, 2, error));
        EndTxnResponse::default().with_error_code(super::code(&result))
    }

    pub(super) fn describe_transactions(
        &self,
        request: DescribeTransactionsRequest,
    ) -> DescribeTransactionsResponse {
        let mut states = Vec::with_capacity(request.transactional_ids.len());
        for id in request.transactional_ids {
            let state = TransactionState::default();
            states.push(
                match self.transactions.get(id.as_str()) {
                    None => state.with_error_code(ResponseError::TransactionalIdNotFound.code()),
                    Some(transaction) => state
                        .with_transaction_state(text(transaction.state.name()))
                        .with_transaction_timeout_ms(transaction.timeout_ms as i32)
                        .with_transaction_start_time_ms(transaction.started_ms)
                        .with_producer_id(ProducerId(transaction.producer_id))
                        .with_producer_epoch(transaction.epoch)
                        .with_topics(self.partitions_by_topic(transaction)),
                }
                .with_transactional_id(id),
            );
        }
        DescribeTransactionsResponse::default().with_transaction_states(states)
    }

    fn partitions_by_topic(&self, transaction: &Transaction) -> Vec<TopicData> {
        let mut topics: Vec<TopicData> = Vec::new();
        for (id, partition) in &transaction.partitions {
            let Some(topic) = self.topics.get(*id) else { continue };
            match topics.iter_mut().find(|data| data.topic.as_str() == topic.name) {
                Some(data) => data.partitions.push(*partition),
                None => {
                    let data = TopicData::default().with_topic(TopicName(text(topic.name.clone())));
                    topics.push(data.with_partitions(vec![*partition]));
                }
            }
        }
        topics
    }

    pub(super) fn list_transactions(
        &self,
        request: ListTransactionsRequest,
        call: &Call<'_>,
    ) -> ListTransactionsResponse {
        let wanted = |transaction: &Transaction| {
            let states = &request.state_filters;
            let producers = &request.producer_id_filters;
            let open_ms = call.now.wall - transaction.started_ms;
            (states.is_empty() || states.iter().any(|state| state.as_str() == transaction.state.name()))
                && (producers.is_empty() || producers.contains(&ProducerId(transaction.producer_id)))
                && (request.duration_filter < 0
                    || (transaction.started_ms >= 0 && open_ms > request.duration_filter))
        };
        let describe = |(id, transaction): (&String, &Transaction)| {
            list_transactions_response::TransactionState::default()
                .with_transactional_id(TransactionalId(text(id.clone())))
                .with_producer_id(ProducerId(transaction.producer_id))
                .with_transaction_state(text(transaction.state.name()))
        };
        let states = self.transactions.iter().filter(|(_, t)| wanted(t)).map(describe).collect();
        ListTransactionsResponse::default().with_transaction_states(states)
    }

    pub(super) fn describe_producers(&self, request: DescribeProducersRequest) -> DescribeProducersResponse {
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in request.topics {
            let describe = |index: &i32| {
                let response = PartitionResponse::default().with_partition_index(*index);
                let Some((_, log)) = self.topics.find(&topic.name, *index) else {
                    return response.with_error_code(ResponseError::UnknownTopicOrPartition.code());
                };
                let producers = log.producers.iter().map(|(id, producer)| {
                    ProducerState::default()
                        .with_producer_id(ProducerId(id))
                        .with_producer_epoch(i32::from(producer.epoch))
                        .with_last_sequence(producer.last_sequence())
                        .with_last_timestamp(producer.last_timestamp_ms)
                        .with_coordinator_epoch(0)
                        .with_current_txn_start_offset(producer.open_since.unwrap_or(-1))
                });
                response.with_active_producers(producers.collect())
            };
            let partitions = topic.partition_indexes.iter().map(describe).collect();
            topics.push(TopicResponse::default().with_name(topic.name).with_partitions(partitions));
        }
        DescribeProducersResponse::default().with_topics(topics)
    }
}

fn wanted(topics: &[AddPartitionsToTxnTopic]) -> impl Iterator<Item = (&str, i32)> {
    topics.iter().flat_map(|topic| topic.partitions.iter().map(|index| (topic.name.as_str(), *index)))
}

/// Clients before `since` know only the older of the two codes for being fenced.
fn fenced_for(version: i16, since: i16, error: ResponseError) -> ResponseError {
    match error {
        ResponseError::ProducerFenced if version < since => ResponseError::InvalidProducerEpoch,
        other => other,
    }
}

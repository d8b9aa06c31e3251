//! The requests that make a transaction: to its coordinator, and to that of the group whose offsets it commits.
//!
//! Brokers speak the first version of the transaction protocol with this producer: partitions are added to a transaction
//! before they are written to, and the epoch stays until the producer asks for another. Kafka 3.6 knows every version of a
//! request that is used here, and Kafka 4 still does.
//!
//! A request is sent again if its answer says that this is all the same; see [`answers`]. One that has no answer may still
//! arrive, at any time, beside the same one again or after it:
//!
//! | it arrives | in its transaction | after its end, before the next epoch | later |
//! |---|---|---|---|
//! | AddPartitionsToTxn, AddOffsetsToTxn | added already | opens a transaction in which nothing is ever written | refused |
//! | TxnOffsetCommit | written again | brokers that do not ask the coordinator keep it, and have **offsets in doubt for ever** | refused |
//! | EndTxn | | ends **the next transaction**, if that has the same epoch | refused |
//!
//! So the first two are sent again, and the epoch is raised before the next transaction begins ([`has_unanswered`]): each try
//! has a share of the time that is left, so that a coordinator which hangs is looked for anew, and asked on another connection.
//! After one of the others there is nothing more to be done with the epoch but to have it ended (rule P1), so they are waited
//! for as long as there is time. InitProducerId that
//! arrives late fences this producer as any other would: no harm, but a commit whose outcome is not known.
//!
//! [`has_unanswered`]: Coordinator::has_unanswered

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::txn_offset_commit_response::TxnOffsetCommitResponseTopic;
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, GroupId, InitProducerIdRequest, InitProducerIdResponse, ProducerId,
    TopicName, TransactionalId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use kafka_protocol::protocol::{Request, StrBytes};

use super::answers::{self, Reply, Trouble, describe};
use super::cluster::{Cluster, Failure, Kind, REACH_PAUSES};
use super::partition::Identity;
use super::patience::{Deadline, Pauses};
use crate::kafka::wire::{Address, INIT_PRODUCER_ID_VERSION, TRANSACTION_VERSION};
use crate::ports::Membership;

/// Between two tries. The first ones are for CONCURRENT_TRANSACTIONS, which a coordinator answers for the few
/// milliseconds in which it writes the markers of the transaction before; the last ones for one that is gone, when every
/// worker of the fleet asks.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));

/// A request to a coordinator.
trait Coordinated: Request {
    const NAME: &'static str;
    const VERSION: i16;
    /// It is sent again even if it has no answer: see the module.
    const IS_REPEATABLE: bool = false;

    /// One code for the whole answer.
    fn code(&self, response: &Self::Response) -> i16;

    /// What it is that the answer says this of, as a person names it; `None` = the producer.
    fn subject(&self, _response: &Self::Response, _code: i16) -> Option<String> {
        None
    }

    fn reply(code: i16) -> Reply {
        answers::of_transaction(code)
    }
}

impl Coordinated for InitProducerIdRequest {
    const NAME: &'static str = "InitProducerId";
    const VERSION: i16 = INIT_PRODUCER_ID_VERSION;
    const IS_REPEATABLE: bool = true;

    fn code(&self, response: &InitProducerIdResponse) -> i16 {
        response.error_code
    }
}

impl Coordinated for AddPartitionsToTxnRequest {
    const NAME: &'static str = "AddPartitionsToTxn";
    const VERSION: i16 = TRANSACTION_VERSION;
    const IS_REPEATABLE: bool = true;

    fn code(&self, response: &AddPartitionsToTxnResponse) -> i16 {
        let asked = self.v3_and_below_topics.iter().map(|topic| topic.partitions.len()).sum();
        let results = response.results_by_topic_v3_and_below.iter();
        let results = results.flat_map(|topic| &topic.results_by_partition);
        answers::worst(results.map(|result| result.partition_error_code), asked)
    }

    fn subject(&self, response: &AddPartitionsToTxnResponse, code: i16) -> Option<String> {
        let topic = response.results_by_topic_v3_and_below.iter().find(|topic| {
            topic.results_by_partition.iter().any(|result| result.partition_error_code == code)
        });
        topic.map(|topic| topic.name.as_str().to_owned())
    }

    fn reply(code: i16) -> Reply {
        answers::of_partitions(code)
    }
}

impl Coordinated for AddOffsetsToTxnRequest {
    const NAME: &'static str = "AddOffsetsToTxn";
    const VERSION: i16 = TRANSACTION_VERSION;
    const IS_REPEATABLE: bool = true;

    fn code(&self, response: &AddOffsetsToTxnResponse) -> i16 {
        response.error_code
    }

    fn subject(&self, _: &AddOffsetsToTxnResponse, _: i16) -> Option<String> {
        Some(format!("group `{}`", self.group_id.as_str()))
    }
}

impl Coordinated for TxnOffsetCommitRequest {
    const NAME: &'static str = "TxnOffsetCommit";
    const VERSION: i16 = TRANSACTION_VERSION;

    fn code(&self, response: &TxnOffsetCommitResponse) -> i16 {
        let asked = self.topics.iter().map(|topic| topic.partitions.len()).sum();
        let results = response.topics.iter().flat_map(|topic| &topic.partitions);
        answers::worst(results.map(|result| result.error_code), asked)
    }

    fn subject(&self, response: &TxnOffsetCommitResponse, code: i16) -> Option<String> {
        let is_of = |topic: &&TxnOffsetCommitResponseTopic| {
            topic.partitions.iter().any(|partition| partition.error_code == code)
        };
        let topic = response.topics.iter().find(is_of).map(|topic| format!("{} for ", topic.name.as_str()));
        Some(format!("{}group `{}`", topic.unwrap_or_default(), self.group_id.as_str()))
    }

    fn reply(code: i16) -> Reply {
        answers::of_offsets(code)
    }
}

impl Coordinated for EndTxnRequest {
    const NAME: &'static str = "EndTxn";
    const VERSION: i16 = TRANSACTION_VERSION;

    fn code(&self, response: &EndTxnResponse) -> i16 {
        response.error_code
    }
}

/// One try.
enum Try<T> {
    Done(T),
    /// Why not; it can be tried again.
    Again(String),
}

/// An offset to be committed with the transaction.
pub(super) struct Offset<'a> {
    pub topic: &'a str,
    pub partition: i32,
    /// The next record to read.
    pub offset: i64,
    /// Of the record before; -1 = not known.
    pub leader_epoch: i32,
    pub metadata: &'a str,
}

/// Where the coordinator of something is, as far as is known.
struct Seat {
    key: StrBytes,
    address: Option<Address>,
}

pub(super) struct Coordinator {
    id: TransactionalId,
    transaction_timeout: Duration,
    identity: Identity,
    /// Who coordinates the transaction.
    transaction: Seat,
    /// Who coordinates the group.
    group: Seat,
    /// A request that opens the transaction was sent, or may have been.
    has_begun: bool,
    /// One was left without an answer and may still arrive.
    has_unanswered: bool,
}

impl Coordinator {
    /// Of no use before [`Coordinator::renew`].
    pub fn new(id: &str, transaction_timeout: Duration) -> Coordinator {
        let id = StrBytes::from_string(id.to_owned());
        Coordinator {
            id: TransactionalId(id.clone()),
            transaction_timeout,
            identity: Identity::NOBODY,
            transaction: Seat { key: id, address: None },
            group: Seat { key: StrBytes::new(), address: None },
            has_begun: false,
            has_unanswered: false,
        }
    }

    pub fn id(&self) -> &TransactionalId {
        &self.id
    }

    /// Brokers may have heard of the present transaction.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// A request of this epoch may still arrive: no other transaction must begin in it.
    pub fn has_unanswered(&self) -> bool {
        self.has_unanswered
    }

    /// Has a connection to the transaction's coordinator, which may be away, or not known yet.
    pub fn reach(&mut self, cluster: &mut Cluster, until: Deadline) -> Result<(), Trouble> {
        let mut pauses = Pauses::new(REACH_PAUSES);
        loop {
            let why = match self.find(cluster, Kind::Transaction, until)? {
                Try::Again(why) => why,
                Try::Done(address) => match cluster.connect(&address, until) {
                    Ok(()) => return Ok(()),
                    Err(why) => {
                        // Another one may be it by now.
                        self.transaction.address = None;
                        why
                    }
                },
            };
            if !pauses.wait(until) {
                return Err(Trouble::Unknown(format!("its coordinator is not reached: {why}")));
            }
        }
    }

    /// Takes a new epoch, in which every producer of the transactional id before this is fenced, this one's former self
    /// included, and what they left open is aborted: the answer comes only after that. Answers who produces from then on.
    pub fn renew(&mut self, cluster: &mut Cluster, until: Deadline) -> Result<Identity, Trouble> {
        let timeout = i32::try_from(self.transaction_timeout.as_millis()).unwrap_or(i32::MAX);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.id.clone()))
            .with_transaction_timeout_ms(timeout);
        let response = self.repeat(cluster, Kind::Transaction, &request, until)?;
        self.identity = answers::identity(&response, true)?;
        (self.has_begun, self.has_unanswered) = (false, false);
        Ok(self.identity)
    }

    /// Makes partitions part of the transaction, and opens it if they are the first.
    pub fn add_partitions(
        &mut self,
        cluster: &mut Cluster,
        topics: Vec<(TopicName, Vec<i32>)>,
        until: Deadline,
    ) -> Result<(), Trouble> {
        let topic = |(name, partitions)| {
            AddPartitionsToTxnTopic::default().with_name(name).with_partitions(partitions)
        };
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.id.clone())
            .with_v3_and_below_producer_id(ProducerId(self.identity.id))
            .with_v3_and_below_producer_epoch(self.identity.epoch)
            .with_v3_and_below_topics(topics.into_iter().map(topic).collect());
        self.has_begun = true;
        self.repeat(cluster, Kind::Transaction, &request, until).map(drop)
    }

    /// Makes a group's offsets part of the transaction, and opens it if nothing did.
    pub fn add_offsets(
        &mut self,
        cluster: &mut Cluster,
        group: &str,
        until: Deadline,
    ) -> Result<(), Trouble> {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(self.id.clone())
            .with_producer_id(ProducerId(self.identity.id))
            .with_producer_epoch(self.identity.epoch)
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())));
        self.has_begun = true;
        self.repeat(cluster, Kind::Transaction, &request, until).map(drop)
    }

    /// Commits offsets with the transaction, which the group's are a part of.
    pub fn commit_offsets(
        &mut self,
        cluster: &mut Cluster,
        membership: &Membership,
        offsets: &[Offset<'_>],
        until: Deadline,
    ) -> Result<(), Trouble> {
        let group = GroupId(StrBytes::from_string(membership.group.clone()));
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(self.id.clone())
            .with_group_id(group.clone())
            .with_producer_id(ProducerId(self.identity.id))
            .with_producer_epoch(self.identity.epoch)
            .with_generation_id(membership.generation)
            .with_member_id(StrBytes::from_string(membership.member_id.clone()))
            .with_group_instance_id(membership.instance_id.clone().map(StrBytes::from_string))
            .with_topics(by_topic(offsets));
        if self.group.key != group.0 {
            self.group = Seat { key: group.0, address: None };
        }
        self.repeat(cluster, Kind::Group, &request, until).map(drop)
    }

    /// Commits the transaction. After an error nobody knows whether it is: not even one that was not sent, because a try
    /// before it may have been.
    pub fn commit(&mut self, cluster: &mut Cluster, until: Deadline) -> Result<(), Trouble> {
        let request = EndTxnRequest::default()
            .with_transactional_id(self.id.clone())
            .with_producer_id(ProducerId(self.identity.id))
            .with_producer_epoch(self.identity.epoch)
            .with_committed(true);
        self.repeat(cluster, Kind::Transaction, &request, until)?;
        self.has_begun = false;
        Ok(())
    }

    /// Sends a request until it is done, or will not be.
    fn repeat<R: Coordinated>(
        &mut self,
        cluster: &mut Cluster,
        kind: Kind,
        request: &R,
        until: Deadline,
    ) -> Result<R::Response, Trouble> {
        let mut pauses = Pauses::new(PAUSES);
        loop {
            match self.once(cluster, kind, request, until)? {
                Try::Done(response) => return Ok(response),
                Try::Again(_) if pauses.wait(until) => {}
                Try::Again(why) => return Err(Trouble::Unknown(format!("{} took too long: {why}", R::NAME))),
            }
        }
    }

    fn once<R: Coordinated>(
        &mut self,
        cluster: &mut Cluster,
        kind: Kind,
        request: &R,
        until: Deadline,
    ) -> Result<Try<R::Response>, Trouble> {
        let address = match self.find(cluster, kind, until)? {
            Try::Done(address) => address,
            Try::Again(why) => return Ok(Try::Again(why)),
        };
        let of_try = if R::IS_REPEATABLE { until.share() } else { until };
        let response = match cluster.call(&address, request, R::VERSION, of_try) {
            Ok(response) => response,
            Err(failure) => {
                self.seat(kind).address = None;
                self.has_unanswered |= matches!(failure, Failure::Unanswered(_));
                return match failure {
                    Failure::Unanswered(why) if !R::IS_REPEATABLE => {
                        Err(Trouble::Unknown(format!("{} has no answer: {why}", R::NAME)))
                    }
                    failure => Ok(Try::Again(failure.text())),
                };
            }
        };
        let code = request.code(&response);
        let text = || {
            let subject = request.subject(&response, code).map(|subject| format!(" of {subject}"));
            format!("{}{}: {}", R::NAME, subject.unwrap_or_default(), describe(code))
        };
        match R::reply(code) {
            Reply::Done => Ok(Try::Done(response)),
            Reply::Again => Ok(Try::Again(text())),
            Reply::Elsewhere => {
                self.seat(kind).address = None;
                Ok(Try::Again(text()))
            }
            Reply::Generation => Err(Trouble::Generation(text())),
            Reply::Refused(error) => Err(Trouble::Refused(error, text())),
        }
    }

    /// Where a coordinator is.
    fn find(&mut self, cluster: &mut Cluster, kind: Kind, until: Deadline) -> Result<Try<Address>, Trouble> {
        let seat = self.seat(kind);
        if let Some(address) = &seat.address {
            return Ok(Try::Done(address.clone()));
        }
        match cluster.coordinator(kind, &seat.key, until)? {
            Ok(address) => {
                seat.address = Some(address.clone());
                Ok(Try::Done(address))
            }
            Err(why) => Ok(Try::Again(format!("no coordinator is known: {why}"))),
        }
    }

    fn seat(&mut self, kind: Kind) -> &mut Seat {
        match kind {
            Kind::Transaction => &mut self.transaction,
            Kind::Group => &mut self.group,
        }
    }
}

fn by_topic(offsets: &[Offset<'_>]) -> Vec<TxnOffsetCommitRequestTopic> {
    let mut topics: BTreeMap<&str, Vec<TxnOffsetCommitRequestPartition>> = BTreeMap::new();
    for offset in offsets {
        topics.entry(offset.topic).or_default().push(
            TxnOffsetCommitRequestPartition::default()
                .with_partition_index(offset.partition)
                .with_committed_offset(offset.offset)
                .with_committed_leader_epoch(offset.leader_epoch)
                .with_committed_metadata(Some(StrBytes::from_string(offset.metadata.to_owned()))),
        );
    }
    let topic = |(name, partitions): (&str, _)| {
        let name = TopicName(StrBytes::from_string(name.to_owned()));
        TxnOffsetCommitRequestTopic::default().with_name(name).with_partitions(partitions)
    };
    topics.into_iter().map(topic).collect()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::ResponseError;
    use kafka_protocol::messages::add_partitions_to_txn_response::{
        AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
    };

    use super::*;
    use crate::kafka::fetch::stage;
    use crate::kafka::wire::Access;

    fn named(name: &str) -> TopicName {
        TopicName(StrBytes::from_string(name.to_owned()))
    }

    #[test]
    fn a_coordinator_that_is_away_is_looked_for_until_it_is_back_or_the_time_is_up() {
        let brokers = stage::Cluster::new(|_, _| stage::Reply::Nothing);
        let reach = |misses: usize, patience: Duration| {
            *brokers.stage.misses.lock().unwrap() = misses;
            let mut cluster = Cluster::new(Access::new(&brokers.config()).unwrap(), Vec::new());
            let until = Deadline::after(patience);
            Coordinator::new("id", patience).reach(&mut cluster, until)
        };
        assert_eq!(reach(3, Duration::from_secs(60)), Ok(()));
        assert_eq!(*brokers.stage.misses.lock().unwrap(), 0);
        let given_up = reach(usize::MAX, Duration::from_millis(50));
        assert!(
            matches!(&given_up, Err(Trouble::Unknown(why)) if why.starts_with("its coordinator is not reached")),
            "{given_up:?}"
        );
    }

    #[test]
    fn a_coordinator_that_hangs_has_a_share_of_the_time_and_is_asked_again_on_another_connection() {
        let brokers = stage::Cluster::new(|_, _| stage::Reply::Nothing);
        *brokers.stage.hangs.lock().unwrap() = 1;
        let mut cluster = Cluster::new(Access::new(&brokers.config()).unwrap(), Vec::new());
        let patience = Duration::from_secs(10);
        let mut coordinator = Coordinator::new("id", patience);
        assert_eq!(coordinator.add_offsets(&mut cluster, "group", Deadline::after(patience)), Ok(()));
        assert!(coordinator.has_unanswered(), "the first one may still arrive");
    }

    #[test]
    fn partitions_that_an_answer_leaves_out_are_not_taken_for_added() {
        let asked = AddPartitionsToTxnTopic::default().with_name(named("out")).with_partitions(vec![0, 1]);
        let request = AddPartitionsToTxnRequest::default().with_v3_and_below_topics(vec![asked]);
        let answer = |codes: &[i16]| {
            let result =
                |&code: &i16| AddPartitionsToTxnPartitionResult::default().with_partition_error_code(code);
            let topic = AddPartitionsToTxnTopicResult::default()
                .with_name(named("out"))
                .with_results_by_partition(codes.iter().map(result).collect());
            let response = AddPartitionsToTxnResponse::default();
            AddPartitionsToTxnRequest::reply(
                request.code(&response.with_results_by_topic_v3_and_below(vec![topic])),
            )
        };
        assert_eq!(answer(&[0, 0]), Reply::Done);
        assert_eq!(answer(&[0]), Reply::Refused(ResponseError::UnknownServerError));
        let (unknown, denied) =
            (ResponseError::UnknownTopicOrPartition.code(), ResponseError::TopicAuthorizationFailed);
        let not_attempted = ResponseError::OperationNotAttempted.code();
        assert_eq!(answer(&[unknown, not_attempted]), Reply::Again, "the topic may be new");
        assert_eq!(answer(&[not_attempted, denied.code()]), Reply::Refused(denied));
    }

    #[test]
    fn a_refusal_names_what_is_refused() {
        let denied = ResponseError::TopicAuthorizationFailed.code();
        let topic = |name: &str, code: i16| {
            let result = AddPartitionsToTxnPartitionResult::default().with_partition_error_code(code);
            AddPartitionsToTxnTopicResult::default()
                .with_name(named(name))
                .with_results_by_partition(vec![result])
        };
        let not_attempted = ResponseError::OperationNotAttempted.code();
        let response = AddPartitionsToTxnResponse::default()
            .with_results_by_topic_v3_and_below(vec![topic("log", not_attempted), topic("out", denied)]);
        let subject = AddPartitionsToTxnRequest::default().subject(&response, denied);
        assert_eq!(subject.as_deref(), Some("out"));
        let group = GroupId(StrBytes::from_static_str("fleet.words"));
        let offsets = TxnOffsetCommitRequest::default().with_group_id(group);
        let subject = offsets.subject(&TxnOffsetCommitResponse::default(), denied);
        assert_eq!(subject.as_deref(), Some("group `fleet.words`"));
    }

    #[test]
    fn what_would_do_harm_if_it_arrived_late_is_not_sent_again_without_an_answer() {
        let repeatable = [
            InitProducerIdRequest::IS_REPEATABLE,
            AddPartitionsToTxnRequest::IS_REPEATABLE,
            AddOffsetsToTxnRequest::IS_REPEATABLE,
            TxnOffsetCommitRequest::IS_REPEATABLE,
            EndTxnRequest::IS_REPEATABLE,
        ];
        assert_eq!(repeatable, [true, true, true, false, false]);
    }

    #[test]
    fn offsets_are_grouped_by_their_topic_with_all_that_belongs_to_them() {
        let offset = |topic, partition| Offset {
            topic,
            partition,
            offset: 7,
            leader_epoch: 2,
            metadata: "revision=3",
        };
        let topics = by_topic(&[offset("b", 1), offset("a", 0), offset("b", 0)]);
        let shape: Vec<_> =
            topics.iter().map(|topic| (topic.name.as_str(), topic.partitions.len())).collect();
        assert_eq!(shape, [("a", 1), ("b", 2)]);
        let first = &topics[0].partitions[0];
        assert_eq!((first.committed_offset, first.committed_leader_epoch), (7, 2));
        assert_eq!(first.committed_metadata.as_deref(), Some("revision=3"));
    }
}

//! A check of an answer before it is decoded.
//!
//! The decoder reserves memory for as many elements as an array says it has, so an answer of a few bytes could
//! ask for gigabytes and end the process. This walk over the bytes follows the same schema, reserves nothing, and
//! lets only those pass whose elements are really there. It knows the answers that the fetcher and the producer ask for,
//! and no others. What newer brokers may add to them are tagged fields, which pass, wherever they are.

use kafka_protocol::messages::ApiKey;

/// Elements of all arrays of one answer together. A decoded element takes up to a hundred times its bytes on the wire,
/// so the size of an answer alone does not bound its memory.
const ELEMENTS_MAX: usize = 1_000_000;

/// Why an answer is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it does not hold what it says")]
    Short,
    #[error("it holds more than {most} elements, which are not decoded", most = ELEMENTS_MAX)]
    Many,
    #[error("what it holds in this version is not known here")]
    Unknown,
}

/// Checks that an answer with its header holds what its schema says.
pub(super) fn check(key: ApiKey, version: i16, answer: &[u8]) -> Result<(), Malformed> {
    let is_flexible = key.response_header_version(version) > 0;
    let mut walk = Walk { left: answer, is_flexible, elements: 0 };
    walk.header().ok_or(Malformed::Short)?;
    let walked = match (key, version) {
        (ApiKey::ApiVersions, 0) => walk.api_versions(),
        (ApiKey::SaslHandshake, 1) => walk.sasl_handshake(),
        (ApiKey::SaslAuthenticate, 2) => walk.sasl_authenticate(),
        (ApiKey::Metadata, 9..=12) => walk.metadata(version),
        (ApiKey::Fetch, 12..=13) => walk.fetch(version),
        (ApiKey::ListOffsets, 6..=8) => walk.list_offsets(),
        (ApiKey::OffsetForLeaderEpoch, 4) => walk.epoch_ends(),
        (ApiKey::Produce, 9) => walk.produced(),
        (ApiKey::FindCoordinator, 4) => walk.coordinators(),
        (ApiKey::InitProducerId, 4) => walk.fixed(4 + 2 + 8 + 2),
        (ApiKey::AddOffsetsToTxn | ApiKey::EndTxn, 3) => walk.fixed(4 + 2),
        (ApiKey::AddPartitionsToTxn | ApiKey::TxnOffsetCommit, 3) => walk.errors_by_topic(),
        _ => return Err(Malformed::Unknown),
    };
    let cut = if walk.elements > ELEMENTS_MAX { Malformed::Many } else { Malformed::Short };
    walked.ok_or(cut)
}

/// Each step is `None` if there is less than there should be.
struct Walk<'a> {
    left: &'a [u8],
    /// Lengths are of variable length, and every struct ends in tagged fields.
    is_flexible: bool,
    elements: usize,
}

impl Walk<'_> {
    fn header(&mut self) -> Option<()> {
        self.skip(4)?;
        self.tags()
    }

    fn api_versions(&mut self) -> Option<()> {
        self.skip(2)?;
        self.array(|api| api.skip(2 + 2 + 2))
    }

    fn sasl_handshake(&mut self) -> Option<()> {
        self.skip(2)?;
        self.array(Walk::text)
    }

    fn sasl_authenticate(&mut self) -> Option<()> {
        self.skip(2)?;
        self.text()?;
        self.bytes()?;
        self.skip(8)?;
        self.tags()
    }

    fn metadata(&mut self, version: i16) -> Option<()> {
        self.skip(4)?;
        self.array(|broker| {
            broker.skip(4)?;
            broker.text()?;
            broker.skip(4)?;
            broker.text()?;
            broker.tags()
        })?;
        self.text()?;
        self.skip(4)?;
        self.array(|topic| {
            topic.skip(2)?;
            topic.text()?;
            topic.skip(if version >= 10 { 16 + 1 } else { 1 })?;
            topic.array(|partition| {
                partition.skip(2 + 4 + 4 + 4)?;
                for _replicas_in_sync_and_offline in 0..3 {
                    partition.array(|node| node.skip(4))?;
                }
                partition.tags()
            })?;
            topic.skip(4)?;
            topic.tags()
        })?;
        self.skip(if version <= 10 { 4 } else { 0 })?;
        self.tags()
    }

    fn fetch(&mut self, version: i16) -> Option<()> {
        self.skip(4 + 2 + 4)?;
        self.array(|topic| {
            if version >= 13 {
                topic.skip(16)?
            } else {
                topic.text()?
            }
            topic.array(|partition| {
                partition.skip(4 + 2 + 8 + 8 + 8)?;
                partition.array(|aborted| {
                    aborted.skip(8 + 8)?;
                    aborted.tags()
                })?;
                partition.skip(4)?;
                partition.bytes()?;
                // Where another leader's log parts, the leader, and a snapshot: the decoder does not look at what
                // a tag says of its size.
                partition.tags_with(|tag| match tag {
                    0 | 2 => Some(4 + 8),
                    1 => Some(4 + 4),
                    _ => None,
                })
            })?;
            topic.tags()
        })?;
        self.tags()
    }

    fn list_offsets(&mut self) -> Option<()> {
        self.skip(4)?;
        self.by_topic(4 + 2 + 8 + 8 + 4)
    }

    fn epoch_ends(&mut self) -> Option<()> {
        self.skip(4)?;
        self.by_topic(2 + 4 + 4 + 8)
    }

    fn produced(&mut self) -> Option<()> {
        self.array(|topic| {
            topic.text()?;
            topic.array(|partition| {
                partition.skip(4 + 2 + 8 + 8 + 8)?;
                partition.array(|record| {
                    record.skip(4)?;
                    record.text()?;
                    record.tags()
                })?;
                partition.text()?;
                partition.tags()
            })?;
            topic.tags()
        })?;
        self.fixed(4)
    }

    fn coordinators(&mut self) -> Option<()> {
        self.skip(4)?;
        self.array(|coordinator| {
            coordinator.text()?;
            coordinator.skip(4)?;
            coordinator.text()?;
            coordinator.skip(4 + 2)?;
            coordinator.text()?;
            coordinator.tags()
        })?;
        self.tags()
    }

    fn errors_by_topic(&mut self) -> Option<()> {
        self.skip(4)?;
        self.by_topic(4 + 2)
    }

    /// So many bytes, and the end.
    fn fixed(&mut self, bytes: usize) -> Option<()> {
        self.skip(bytes)?;
        self.tags()
    }

    /// Topics with partitions of so many bytes each, and the end.
    fn by_topic(&mut self, partition_bytes: usize) -> Option<()> {
        self.array(|topic| {
            topic.text()?;
            topic.array(|partition| {
                partition.skip(partition_bytes)?;
                partition.tags()
            })?;
            topic.tags()
        })?;
        self.tags()
    }

    fn text(&mut self) -> Option<()> {
        let length = self.length(2)?;
        self.skip(length)
    }

    fn bytes(&mut self) -> Option<()> {
        let length = self.length(4)?;
        self.skip(length)
    }

    fn array(&mut self, mut element: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        let count = self.length(4)?;
        self.count(count)?;
        (0..count).try_for_each(|_| element(self))
    }

    /// Every element takes at least a byte, so more elements than bytes cannot be there.
    fn count(&mut self, elements: usize) -> Option<()> {
        if elements > self.left.len() {
            return None;
        }
        self.elements = self.elements.saturating_add(elements);
        (self.elements <= ELEMENTS_MAX).then_some(())
    }

    /// A length of `width` bytes, or of variable length; null counts as 0.
    fn length(&mut self, width: usize) -> Option<usize> {
        if self.is_flexible {
            return Some((self.varint()? as usize).saturating_sub(1));
        }
        let (bytes, rest) = self.left.split_at_checked(width)?;
        self.left = rest;
        let number = match *bytes {
            [a, b] => i32::from(i16::from_be_bytes([a, b])),
            [a, b, c, d] => i32::from_be_bytes([a, b, c, d]),
            _ => return None,
        };
        if number == -1 { Some(0) } else { usize::try_from(number).ok() }
    }

    fn tags(&mut self) -> Option<()> {
        self.tags_with(|_| None)
    }

    /// Tagged fields, of which `known` are structs with so many bytes before tagged fields of their own.
    fn tags_with(&mut self, known: impl Fn(u32) -> Option<usize>) -> Option<()> {
        if !self.is_flexible {
            return Some(());
        }
        let count = self.varint()? as usize;
        self.count(count)?;
        for _ in 0..count {
            let tag = self.varint()?;
            let size = self.varint()? as usize;
            let Some(bytes) = known(tag) else {
                self.skip(size)?;
                continue;
            };
            let before = self.left.len();
            self.skip(bytes)?;
            self.tags()?;
            if before - self.left.len() != size {
                return None;
            }
        }
        Some(())
    }

    fn varint(&mut self) -> Option<u32> {
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let (byte, rest) = self.left.split_first()?;
            self.left = rest;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.left = self.left.get(bytes..)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::messages::add_partitions_to_txn_response::{
        AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
    };
    use kafka_protocol::messages::fetch_response::{
        AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
        SnapshotId,
    };
    use kafka_protocol::messages::find_coordinator_response::Coordinator;
    use kafka_protocol::messages::list_offsets_response::{
        ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
    };
    use kafka_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };
    use kafka_protocol::messages::offset_for_leader_epoch_response::{
        EpochEndOffset as EpochEnd, OffsetForLeaderTopicResult,
    };
    use kafka_protocol::messages::produce_response::{
        BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
    };
    use kafka_protocol::messages::txn_offset_commit_response::{
        TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
    };
    use kafka_protocol::messages::*;
    use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

    use super::*;

    fn text(text: &'static str) -> StrBytes {
        StrBytes::from_static_str(text)
    }

    fn encoded<R: Encodable + HeaderVersion>(response: &R, version: i16) -> Bytes {
        let mut answer = BytesMut::new();
        ResponseHeader::default().encode(&mut answer, R::header_version(version)).expect("a header");
        response.encode(&mut answer, version).expect("every field is of this version");
        answer.freeze()
    }

    /// The tag of what a later broker adds to a struct, and this program knows nothing of.
    const LATER: i32 = 99;

    fn later() -> Bytes {
        Bytes::from_static(b"of later")
    }

    fn decoded<R: Decodable + HeaderVersion>(mut answer: Bytes, version: i16) -> Option<R> {
        ResponseHeader::decode(&mut answer, R::header_version(version)).ok()?;
        R::decode(&mut answer, version).ok()
    }

    /// Checks the answer whole, cut short, and with every byte of it changed.
    fn follows<R>(key: ApiKey, version: i16, response: &R)
    where
        R: Encodable + Decodable + HeaderVersion + PartialEq + std::fmt::Debug,
    {
        let answer = encoded(response, version);
        assert_eq!(check(key, version, &answer), Ok(()), "{key:?} {version}");
        // The walk and the decoder read the same.
        assert_eq!(decoded::<R>(answer.clone(), version).as_ref(), Some(response), "{key:?} {version}");
        for length in 0..answer.len() {
            assert_eq!(
                check(key, version, &answer[..length]),
                Err(Malformed::Short),
                "{key:?} {version} cut"
            );
        }
        // A lie anywhere: what passes has to be decoded, or refused, without a panic and without more memory than is there.
        for (at, &true_byte) in answer.iter().enumerate() {
            let near = [true_byte.wrapping_add(1), true_byte.wrapping_sub(1)];
            for byte in [0x00, 0x01, 0x7f, 0x80, 0xff].into_iter().chain(near) {
                let mut lie = answer.to_vec();
                lie[at] = byte;
                if check(key, version, &lie).is_ok() {
                    let _ = decoded::<R>(lie.into(), version);
                }
            }
        }
    }

    fn fetched(version: i16) -> FetchResponse {
        let partition = PartitionData::default()
            .with_partition_index(3)
            .with_aborted_transactions(Some(vec![AbortedTransaction::default(); 2]))
            .with_records(Some(Bytes::from_static(b"a batch of records")))
            .with_diverging_epoch(EpochEndOffset::default().with_epoch(1).with_end_offset(7))
            .with_current_leader(LeaderIdAndEpoch::default().with_leader_id(BrokerId(2)).with_leader_epoch(5))
            .with_snapshot_id(SnapshotId::default().with_end_offset(4).with_epoch(1))
            .with_unknown_tagged_field(9, Bytes::from_static(b"of later"));
        let empty = PartitionData::default().with_aborted_transactions(None).with_records(None);
        let topic = FetchableTopicResponse::default().with_partitions(vec![partition, empty]);
        let topic = match version {
            ..13 => topic.with_topic(TopicName(text("words"))),
            13.. => topic.with_topic_id(uuid::Uuid::from_u128(7)),
        };
        FetchResponse::default().with_session_id(1).with_responses(vec![topic.clone(), topic])
    }

    #[test]
    fn every_answer_that_the_fetcher_asks_for_passes_whole_and_not_cut() {
        let api = api_versions_response::ApiVersion::default();
        let versions = ApiVersionsResponse::default().with_api_keys(vec![api; 3]);
        follows(ApiKey::ApiVersions, 0, &versions);
        let handshake = SaslHandshakeResponse::default().with_mechanisms(vec![text("PLAIN"), text("GSSAPI")]);
        follows(ApiKey::SaslHandshake, 1, &handshake);
        let signed_in = SaslAuthenticateResponse::default()
            .with_error_message(Some(text("no")))
            .with_auth_bytes(Bytes::from_static(b"v=abc"))
            .with_session_lifetime_ms(1);
        follows(ApiKey::SaslAuthenticate, 2, &signed_in);
        let partition = MetadataResponsePartition::default()
            .with_replica_nodes(vec![BrokerId(1), BrokerId(2)])
            .with_isr_nodes(vec![BrokerId(1)]);
        let topic = MetadataResponseTopic::default()
            .with_name(Some(TopicName(text("words"))))
            .with_partitions(vec![partition.clone(), partition]);
        let broker =
            MetadataResponseBroker::default().with_host(text("localhost")).with_rack(Some(text("a")));
        let metadata = MetadataResponse::default()
            .with_brokers(vec![broker.clone(), broker])
            .with_cluster_id(Some(text("cluster")))
            .with_topics(vec![topic.clone(), topic]);
        for version in 9..=12 {
            follows(ApiKey::Metadata, version, &metadata);
        }
        for version in 12..=13 {
            follows(ApiKey::Fetch, version, &fetched(version));
            follows(ApiKey::Fetch, version, &FetchResponse::default());
        }
        let topic = ListOffsetsTopicResponse::default()
            .with_name(TopicName(text("words")))
            .with_partitions(vec![ListOffsetsPartitionResponse::default(); 2]);
        let offsets = ListOffsetsResponse::default().with_topics(vec![topic]);
        for version in 6..=8 {
            follows(ApiKey::ListOffsets, version, &offsets);
        }
        let topic = OffsetForLeaderTopicResult::default()
            .with_topic(TopicName(text("words")))
            .with_partitions(vec![EpochEnd::default(); 2]);
        let ends = OffsetForLeaderEpochResponse::default().with_topics(vec![topic]);
        follows(ApiKey::OffsetForLeaderEpoch, 4, &ends);
    }

    #[test]
    fn every_answer_that_the_producer_asks_for_passes_whole_and_not_cut() {
        let record = BatchIndexAndErrorMessage::default()
            .with_batch_index_error_message(Some(text("too old")))
            .with_unknown_tagged_field(LATER, later());
        let partition = PartitionProduceResponse::default()
            .with_index(3)
            .with_base_offset(70)
            .with_record_errors(vec![record.clone(), record])
            .with_error_message(Some(text("no")))
            .with_unknown_tagged_field(LATER, later());
        let topic = TopicProduceResponse::default()
            .with_name(TopicName(text("words")))
            .with_partition_responses(vec![partition, PartitionProduceResponse::default()])
            .with_unknown_tagged_field(LATER, later());
        let produced = ProduceResponse::default()
            .with_responses(vec![topic.clone(), topic])
            .with_unknown_tagged_field(LATER, later());
        follows(ApiKey::Produce, 9, &produced);
        follows(ApiKey::Produce, 9, &ProduceResponse::default());
        let coordinator = Coordinator::default()
            .with_key(text("id"))
            .with_host(text("localhost"))
            .with_error_message(None)
            .with_unknown_tagged_field(LATER, later());
        let found = FindCoordinatorResponse::default()
            .with_coordinators(vec![coordinator.clone(), coordinator])
            .with_unknown_tagged_field(LATER, later());
        follows(ApiKey::FindCoordinator, 4, &found);
        let begun = InitProducerIdResponse::default()
            .with_producer_id(ProducerId(7))
            .with_unknown_tagged_field(LATER, later());
        follows(ApiKey::InitProducerId, 4, &begun);
        let joined = AddOffsetsToTxnResponse::default().with_unknown_tagged_field(LATER, later());
        follows(ApiKey::AddOffsetsToTxn, 3, &joined);
        let ended = EndTxnResponse::default().with_unknown_tagged_field(LATER, later());
        follows(ApiKey::EndTxn, 3, &ended);
        let partition =
            AddPartitionsToTxnPartitionResult::default().with_unknown_tagged_field(LATER, later());
        let topic = AddPartitionsToTxnTopicResult::default()
            .with_name(TopicName(text("words")))
            .with_results_by_partition(vec![partition.clone(), partition])
            .with_unknown_tagged_field(LATER, later());
        let added = AddPartitionsToTxnResponse::default()
            .with_results_by_topic_v3_and_below(vec![topic])
            .with_unknown_tagged_field(LATER, later());
        follows(ApiKey::AddPartitionsToTxn, 3, &added);
        let partition = TxnOffsetCommitResponsePartition::default().with_unknown_tagged_field(LATER, later());
        let topic = TxnOffsetCommitResponseTopic::default()
            .with_name(TopicName(text("words")))
            .with_partitions(vec![partition.clone(), partition])
            .with_unknown_tagged_field(LATER, later());
        let committed = TxnOffsetCommitResponse::default()
            .with_topics(vec![topic])
            .with_unknown_tagged_field(LATER, later());
        follows(ApiKey::TxnOffsetCommit, 3, &committed);
    }

    #[test]
    fn what_a_later_broker_adds_to_any_struct_passes() {
        let partition = MetadataResponsePartition::default().with_unknown_tagged_field(LATER, later());
        let topic = MetadataResponseTopic::default()
            .with_name(Some(TopicName(text("words"))))
            .with_partitions(vec![partition])
            .with_unknown_tagged_field(LATER, later());
        let broker = MetadataResponseBroker::default().with_unknown_tagged_field(LATER, later());
        let metadata = MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_topics(vec![topic])
            .with_unknown_tagged_field(LATER, later());
        follows(ApiKey::Metadata, 9, &metadata);
        let aborted = AbortedTransaction::default().with_unknown_tagged_field(LATER, later());
        let end = EpochEndOffset::default().with_epoch(1).with_unknown_tagged_field(LATER, later());
        let partition = PartitionData::default()
            .with_aborted_transactions(Some(vec![aborted]))
            .with_records(Some(Bytes::from_static(b"a batch of records")))
            .with_diverging_epoch(end)
            .with_unknown_tagged_field(LATER, later());
        let topic = FetchableTopicResponse::default()
            .with_partitions(vec![partition])
            .with_unknown_tagged_field(LATER, later());
        let fetched =
            FetchResponse::default().with_responses(vec![topic]).with_unknown_tagged_field(LATER, later());
        follows(ApiKey::Fetch, 12, &fetched);
        let signed_in = SaslAuthenticateResponse::default().with_unknown_tagged_field(LATER, later());
        follows(ApiKey::SaslAuthenticate, 2, &signed_in);
        // One of the header, too.
        let mut answer = BytesMut::new();
        let header = ResponseHeader::default().with_unknown_tagged_field(LATER, later());
        header.encode(&mut answer, FetchResponse::header_version(12)).expect("a header");
        fetched.encode(&mut answer, 12).expect("every field is of this version");
        assert_eq!(check(ApiKey::Fetch, 12, &answer), Ok(()));
    }

    #[test]
    fn more_elements_than_are_decoded_are_said_to_be_too_many() {
        // A correlation id, no tagged fields, no throttle time.
        let mut answer = vec![0, 0, 0, 1, 0, 0, 0, 0, 0];
        // Two million brokers: a number of variable length, and one more than there are.
        answer.extend([0x81, 0x89, 0x7a]);
        answer.resize(answer.len() + 3_000_000, 0);
        assert_eq!(check(ApiKey::Metadata, 9, &answer), Err(Malformed::Many));
    }

    #[test]
    fn an_array_that_promises_too_much_is_found_and_so_is_a_tag_that_lies_of_its_size() {
        let lies: [(ApiKey, i16, &[u8]); 3] = [
            (ApiKey::ApiVersions, 0, &[0, 0, 0, 1, 0, 0, 0x7f, 0xff, 0xff, 0xff]),
            (ApiKey::Metadata, 9, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            // Tagged fields of the header.
            (ApiKey::Fetch, 12, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ];
        for (key, version, answer) in lies {
            assert_eq!(check(key, version, answer), Err(Malformed::Short), "{key:?}");
        }
        let answer = encoded(&fetched(12), 12);
        let leader = [1, 9, 0, 0, 0, 2, 0, 0, 0, 5, 0];
        let at = answer.windows(leader.len()).position(|window| window == leader).expect("the leader's tag");
        for size in [0, 8, 10] {
            let mut answer = answer.to_vec();
            answer[at + 1] = size;
            assert_eq!(check(ApiKey::Fetch, 12, &answer), Err(Malformed::Short), "{size}");
        }
    }

    #[test]
    fn an_answer_that_nobody_asks_for_is_not_decoded() {
        let answer = encoded(&MetadataResponse::default(), 1);
        assert_eq!(check(ApiKey::Metadata, 1, &answer), Err(Malformed::Unknown));
    }

    #[test]
    fn records_are_decoded_as_a_part_of_the_answer_and_not_as_a_copy() {
        let answer = encoded(&fetched(12), 12);
        let mut left = answer.clone();
        ResponseHeader::decode(&mut left, FetchResponse::header_version(12)).expect("a header");
        let decoded = FetchResponse::decode(&mut left, 12).expect("valid");
        let records = decoded.responses[0].partitions[0].records.as_ref().expect("records");
        assert_eq!(&records[..], b"a batch of records");
        assert!(answer.as_ptr_range().contains(&records.as_ptr()));
    }
}

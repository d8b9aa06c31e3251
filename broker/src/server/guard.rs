//! A check of a request's body before it is decoded.
//!
//! The decoder reserves memory for as many elements as an array says it has, so a request of a few
//! bytes could ask for gigabytes and end the process. This walk over the bytes follows the same
//! schema, reserves nothing, and lets only those pass whose elements are really there.
//!
//! # Shapes
//!
//! | letter | field |
//! |---|---|
//! | `1` `2` `4` `8` `16` | so many bytes |
//! | `s` `b` | string, bytes; nullable |
//! | `(x)` | array of a primitive; nullable |
//! | `[x y]` | array of a struct; nullable |
//! | `@3` `@3-5` | the field exists from version 3 on; from 3 to 5 |
//!
//! In flexible versions lengths are variable-length and every struct ends in tagged fields.

use kafka_protocol::messages::ApiKey;

/// Elements of all arrays of one request together. A decoded element takes up to a hundred times
/// its bytes on the wire, so the size of a request alone does not bound its memory.
const ELEMENTS_MAX: usize = 1_000_000;

/// The body of every request that is served, in the versions that are served.
static SHAPES: [(ApiKey, &str); 34] = [
    (ApiKey::Produce, "s 2 4 [s [4 b]]"),
    (ApiKey::Fetch, "4@4-14 4 4 4 1 4@7 4@7 [s@4-12 16@13 [4 4@9 8 4@12 8@5 4]] [s@7-12 16@13 (4)]@7 s@11"),
    (ApiKey::ListOffsets, "4 1@2 [s [4 4@4 8]]"),
    (ApiKey::Metadata, "[16@10 s] 1@4 1@8-10 1@8"),
    (ApiKey::OffsetCommit, "s 4 s s@7 8@2-4 [s [4 8 4@6 s]]"),
    (ApiKey::OffsetFetch, "s@1-7 [s (4)]@1-7 [s s@9 4@9 [s (4)]]@8 1@7"),
    (ApiKey::FindCoordinator, "s@0-3 1@1 (s)@4"),
    (ApiKey::JoinGroup, "s 4 4@1 s s@5 s [s b] s@8"),
    (ApiKey::Heartbeat, "s 4 s s@3"),
    (ApiKey::LeaveGroup, "s s@0-2 [s s s@5]@3"),
    (ApiKey::SyncGroup, "s 4 s s@3 s@5 s@5 [s b]"),
    (ApiKey::DescribeGroups, "(s) 1@3"),
    (ApiKey::ListGroups, "(s)@4 (s)@5"),
    (ApiKey::ApiVersions, "s@3 s@3"),
    (ApiKey::CreateTopics, "[s 4 2 [4 (4)] [s s]] 4 1"),
    (ApiKey::DeleteTopics, "[s 16]@6 (s)@1-5 4"),
    (ApiKey::DeleteRecords, "[s [4 8]] 4"),
    (ApiKey::InitProducerId, "s 4 8@3 2@3"),
    (ApiKey::OffsetForLeaderEpoch, "4@3 [s [4 4 4]]"),
    (ApiKey::AddPartitionsToTxn, "s 8 2 [s (4)]"),
    (ApiKey::AddOffsetsToTxn, "s 8 2 s"),
    (ApiKey::EndTxn, "s 8 2 1"),
    (ApiKey::TxnOffsetCommit, "s s 8 2 4@3 s@3 s@3 [s [4 8 4@2 s]]"),
    (ApiKey::DescribeConfigs, "[1 s (s)] 1 1@3"),
    (ApiKey::AlterConfigs, "[1 s [s s]] 1"),
    (ApiKey::DescribeLogDirs, "[s (4)]"),
    (ApiKey::CreatePartitions, "[s 4 [(4)]] 4 1"),
    (ApiKey::DeleteGroups, "(s)"),
    (ApiKey::IncrementalAlterConfigs, "[1 s [s 1 s]] 1"),
    (ApiKey::OffsetDelete, "s [s [4]]"),
    (ApiKey::DescribeCluster, "1 1@1"),
    (ApiKey::DescribeProducers, "[s (4)]"),
    (ApiKey::DescribeTransactions, "(s)"),
    (ApiKey::ListTransactions, "(s) (8) 8@1"),
];

/// The body does not follow its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

struct Walk<'a> {
    left: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

/// Checks that `body` holds what its schema says.
pub fn check(key: ApiKey, version: i16, body: &[u8]) -> Result<(), Malformed> {
    let (_, shape) = SHAPES.iter().find(|(k, _)| *k == key).ok_or(Malformed)?;
    let flexible = key.request_header_version(version) >= 2;
    Walk { left: body, version, flexible, elements: 0 }.structure(shape).ok_or(Malformed)
}

impl Walk<'_> {
    /// All fields of a struct, and its tagged fields.
    fn structure(&mut self, shape: &str) -> Option<()> {
        let mut rest = shape;
        while !rest.is_empty() {
            let field = Field::take(&mut rest)?;
            if (field.from..=field.to).contains(&self.version) {
                self.field(field.kind)?;
            }
        }
        if self.flexible { self.tagged() } else { Some(()) }
    }

    fn field(&mut self, kind: &str) -> Option<()> {
        if let Some(inner) = kind.strip_prefix('[') {
            let inner = inner.strip_suffix(']')?;
            return self.array(|walk| walk.structure(inner));
        }
        if let Some(inner) = kind.strip_prefix('(') {
            let inner = inner.strip_suffix(')')?;
            return self.array(|walk| walk.field(inner));
        }
        match kind {
            "s" => {
                let length = self.length(2)?;
                self.skip(length)
            }
            "b" => {
                let length = self.length(4)?;
                self.skip(length)
            }
            bytes => self.skip(bytes.parse().ok()?),
        }
    }

    fn array(&mut self, mut element: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        let count = self.length(4)?;
        self.elements += count;
        // Every element takes at least a byte, so more elements than bytes cannot be there.
        if count > self.left.len() || self.elements > ELEMENTS_MAX {
            return None;
        }
        (0..count).try_for_each(|_| element(self))
    }

    /// A length of `width` bytes, or in flexible versions of variable length; null counts as 0.
    fn length(&mut self, width: usize) -> Option<usize> {
        if self.flexible {
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

    fn tagged(&mut self) -> Option<()> {
        let count = self.varint()? as usize;
        self.elements += count;
        if count > self.left.len() || self.elements > ELEMENTS_MAX {
            return None;
        }
        for _ in 0..count {
            let _tag = self.varint()?;
            let size = self.varint()? as usize;
            self.skip(size)?;
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

/// One field of a shape.
struct Field<'a> {
    kind: &'a str,
    from: i16,
    to: i16,
}

impl<'a> Field<'a> {
    /// Takes the first field off a shape.
    fn take(shape: &mut &'a str) -> Option<Field<'a>> {
        let mut depth = 0;
        let ends = |c: char| {
            match c {
                '[' | '(' => depth += 1,
                ']' | ')' => depth -= 1,
                _ => {}
            }
            c == ' ' && depth == 0
        };
        let (field, rest) = match shape.find(ends) {
            Some(at) => (&shape[..at], &shape[at + 1..]),
            None => (*shape, ""),
        };
        *shape = rest;
        // The versions of a field follow its last bracket; those inside belong to other fields.
        let closed = field.rfind([']', ')']).map_or(0, |at| at + 1);
        let Some(at) = field[closed..].find('@').map(|at| at + closed) else {
            return Some(Field { kind: field, from: 0, to: i16::MAX });
        };
        let (from, to) = match field[at + 1..].split_once('-') {
            Some((from, to)) => (from.parse().ok()?, to.parse().ok()?),
            None => (field[at + 1..].parse().ok()?, i16::MAX),
        };
        Some(Field { kind: &field[..at], from, to })
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
    use kafka_protocol::messages::offset_fetch_request::{
        OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
    };
    use kafka_protocol::messages::*;
    use kafka_protocol::protocol::{Encodable, Request};

    use super::*;
    use crate::core::versions;

    /// Encodes a request in every version in which its fields may be encoded, and checks it whole
    /// and cut short.
    fn follows<R: Request + Encodable>(request: &R) {
        let key = ApiKey::try_from(R::KEY).expect("known");
        let mut seen = 0;
        for version in (0..20).filter(|version| versions::supported(key, *version)) {
            let mut body = bytes::BytesMut::new();
            if request.encode(&mut body, version).is_err() {
                continue; // A field is set that this version does not have.
            }
            seen += 1;
            assert_eq!(check(key, version, &body), Ok(()), "{key:?} version {version}");
            for length in 0..body.len() {
                assert_eq!(check(key, version, &body[..length]), Err(Malformed), "{key:?} {version} cut");
            }
        }
        assert!(seen > 0, "{key:?}");
    }

    #[test]
    fn every_api_that_is_served_has_a_shape_that_its_empty_request_follows() {
        follows(&ProduceRequest::default());
        follows(&FetchRequest::default());
        follows(&ListOffsetsRequest::default());
        follows(&MetadataRequest::default());
        follows(&OffsetCommitRequest::default());
        follows(&OffsetFetchRequest::default());
        follows(&FindCoordinatorRequest::default());
        follows(&JoinGroupRequest::default());
        follows(&HeartbeatRequest::default());
        follows(&LeaveGroupRequest::default());
        follows(&SyncGroupRequest::default());
        follows(&DescribeGroupsRequest::default());
        follows(&ListGroupsRequest::default());
        follows(&CreateTopicsRequest::default());
        follows(&DeleteTopicsRequest::default());
        follows(&DeleteRecordsRequest::default());
        follows(&InitProducerIdRequest::default());
        follows(&OffsetForLeaderEpochRequest::default());
        follows(&AddPartitionsToTxnRequest::default());
        follows(&AddOffsetsToTxnRequest::default());
        follows(&EndTxnRequest::default());
        follows(&TxnOffsetCommitRequest::default());
        follows(&DescribeConfigsRequest::default());
        follows(&AlterConfigsRequest::default());
        follows(&DescribeLogDirsRequest::default());
        follows(&CreatePartitionsRequest::default());
        follows(&DeleteGroupsRequest::default());
        follows(&IncrementalAlterConfigsRequest::default());
        follows(&OffsetDeleteRequest::default());
        follows(&DescribeClusterRequest::default());
        follows(&DescribeProducersRequest::default());
        follows(&DescribeTransactionsRequest::default());
        follows(&ListTransactionsRequest::default());
    }

    #[test]
    fn nested_arrays_follow_their_shapes() {
        let partition = FetchPartition::default();
        let topic = FetchTopic::default().with_partitions(vec![partition.clone(), partition]);
        let forgotten = ForgottenTopic::default().with_partitions(vec![1, 2, 3]);
        follows(&FetchRequest::default().with_topics(vec![topic.clone(), topic]));
        follows(&FetchRequest::default().with_forgotten_topics_data(vec![forgotten]));
        let topic = OffsetFetchRequestTopic::default().with_partition_indexes(vec![1, 2]);
        follows(&OffsetFetchRequest::default().with_topics(Some(vec![topic])));
        let topic = OffsetFetchRequestTopics::default().with_partition_indexes(vec![1, 2]);
        let group = OffsetFetchRequestGroup::default().with_topics(Some(vec![topic]));
        follows(&OffsetFetchRequest::default().with_groups(vec![group]));
    }

    #[test]
    fn an_array_that_promises_too_much_is_found() {
        assert_eq!(check(ApiKey::Metadata, 1, &[0x7f, 0xff, 0xff, 0xff]), Err(Malformed));
        assert_eq!(check(ApiKey::DeleteGroups, 2, &[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Malformed));
    }
}

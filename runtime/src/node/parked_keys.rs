//! Which keys are parked, for answers about state and about what is parked: whoever reads a value has to know
//! that records are waiting which it does not show yet.
//!
//! Read under the same snapshot as the values, so that both are true at one position. There are at most as
//! many rows as `failures.parked` allows, and none at all in the ordinary case.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use prost::Message;
use tidemill_proto::v1 as proto;

use crate::config::failures::ParkOrder;
use crate::store::{Position, Snapshot, StoreError, Table};
use crate::task::topic_at;
use crate::task::unpark::{First, accepts};

/// Rows read at once.
const PAGE_ROWS: u32 = 1_000;
/// What an answer tells of a reason.
const REASON_BYTES_MAX: usize = 200;

/// A `ParkedRecord` without what it carries: skipped bytes are not copied.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, tag = "1")]
    input: u32,
    #[prost(uint64, tag = "2")]
    offset: u64,
    #[prost(bytes = "vec", optional, tag = "4")]
    key: Option<Vec<u8>>,
    #[prost(uint32, tag = "7")]
    attempts: u32,
    #[prost(int64, tag = "8")]
    next_attempt_ms: i64,
    #[prost(string, tag = "9")]
    kind: String,
    #[prost(string, tag = "10")]
    reason: String,
    #[prost(bool, tag = "11")]
    held: bool,
    #[prost(uint64, tag = "12")]
    revision: u64,
}

/// What a list of parked keys is about.
pub struct Wanted<'a> {
    pub filter: proto::ParkedFilter,
    /// Of the deployment: whether later records wait behind the first of their key.
    pub order: ParkOrder,
    /// That the task runs: what another one gave up is tried again.
    pub revision: u64,
    /// Behind this row; empty = from the first.
    pub after: &'a [u8],
    pub limit: usize,
}

/// Where the rows are, and what they call their inputs by.
struct At<'a> {
    partition: i32,
    position: Option<Position>,
    /// Of a task that has no position yet.
    inputs: &'a [String],
}

impl At<'_> {
    /// Of a row: the topic of its record, and whether a task may try it, because that is an input.
    fn topic(&self, head: &Head) -> (&str, bool) {
        topic_at(self.position.as_ref(), self.inputs, head.input).unwrap_or_default()
    }
}

/// By key, what is parked of the keys that are wanted in this partition. `inputs` are the topics.
pub fn of(
    snapshot: &Snapshot<'_>,
    (partition, inputs): (i32, &[String]),
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<BTreeMap<Vec<u8>, proto::ParkedKey>, StoreError> {
    let at = At { partition, position: snapshot.position()?, inputs };
    let mut parked = BTreeMap::new();
    each(snapshot, |_, head| {
        let Some(key) = head.key.clone().filter(|key| wanted(key)) else { return };
        match parked.entry(key) {
            // Rows of a key are in the order in which they are tried: this is its first.
            Entry::Vacant(place) => {
                place.insert(first(head, &at));
            }
            Entry::Occupied(mut known) => known.get_mut().records += 1,
        }
    })?;
    Ok(parked)
}

/// One page of keys, in the order of their first rows, and the last of those rows if there are more keys.
pub fn page(
    snapshot: &Snapshot<'_>,
    (partition, inputs): (i32, &[String]),
    wanted: &Wanted<'_>,
) -> Result<(Vec<proto::ParkedKey>, Option<Vec<u8>>), StoreError> {
    let at = At { partition, position: snapshot.position()?, inputs };
    let mut page: Vec<proto::ParkedKey> = Vec::new();
    let (mut last, mut more) = (Vec::new(), false);
    // Every key that has been met, and where on the page it is.
    let mut met: HashMap<Vec<u8>, Option<usize>> = HashMap::new();
    each(snapshot, |row, mut head| {
        let waits = head.key.clone().filter(|_| wanted.order == ParkOrder::ParkKey);
        if let Some(place) = waits.as_ref().and_then(|key| met.get(key)) {
            if let Some(first) = place.and_then(|place| page.get_mut(place)) {
                first.records += 1;
            }
            return;
        }
        let (topic, is_input) = at.topic(&head);
        head.held = (head.held && head.revision == wanted.revision) || !is_input;
        let Head { offset, held, .. } = head;
        let seen = First { key: head.key.as_deref(), topic, offset, kind: &head.kind, held };
        let is_meant = row > wanted.after && accepts(&wanted.filter, &seen);
        let fits = is_meant && page.len() < wanted.limit;
        more |= is_meant && !fits;
        if let Some(key) = waits {
            met.insert(key, fits.then_some(page.len()));
        }
        if fits {
            last = row.to_vec();
            page.push(first(head, &at));
        }
    })?;
    Ok((page, more.then_some(last)))
}

/// Every parked row of a task, in the order of the rows.
fn each(snapshot: &Snapshot<'_>, mut take: impl FnMut(&[u8], Head)) -> Result<(), StoreError> {
    let mut start = Vec::new();
    loop {
        let page = snapshot.rows(Table::Parked, &start, PAGE_ROWS)?;
        for (row, value) in page.keys.iter().zip(page.values.iter()) {
            let row = row.unwrap_or_default();
            start = [row, b"\0"].concat();
            let head = Head::decode(value.unwrap_or_default())
                .map_err(|error| StoreError::Corrupt(format!("parked record: {error}")))?;
            take(row, head);
        }
        if !page.more {
            return Ok(());
        }
    }
}

fn first(mut head: Head, at: &At<'_>) -> proto::ParkedKey {
    head.reason.truncate(head.reason.floor_char_boundary(REASON_BYTES_MAX));
    let (topic, is_input) = at.topic(&head);
    if !is_input {
        head.held = true;
        let name = if topic.is_empty() { "its topic" } else { topic };
        let why =
            format!("{name} is no input of this version, so it stays until one has that, or it is dropped");
        let reason = std::mem::take(&mut head.reason);
        head.reason = if reason.is_empty() { why } else { format!("{why}: {reason}") };
    }
    proto::ParkedKey {
        partition: at.partition,
        topic: topic.to_owned(),
        keyless: head.key.is_none(),
        key: head.key.unwrap_or_default(),
        records: 1,
        kind: head.kind,
        reason: head.reason,
        attempts: head.attempts,
        next_attempt_ms: head.next_attempt_ms,
        held: head.held,
        offset: head.offset,
    }
}

#[cfg(test)]
mod tests {
    use crate::store::{ParkedRecord, PositionInput};

    use super::*;

    #[test]
    fn a_head_reads_what_a_parked_record_says_and_skips_what_it_carries() {
        let record = ParkedRecord {
            input: 1,
            offset: 7,
            key: Some(b"k".to_vec()),
            value: Some(vec![0; 1000]),
            headers: Some(vec![0; 100]),
            attempts: 3,
            next_attempt_ms: 9,
            kind: "transient".into(),
            reason: "é".repeat(200),
            held: true,
            ..ParkedRecord::default()
        };
        let head = Head::decode(record.encode_to_vec().as_slice()).expect("decodes");
        let at = At { partition: 4, position: None, inputs: &["a".into(), "b".into()] };
        let parked = first(head, &at);
        assert_eq!((parked.topic.as_str(), parked.offset, parked.partition), ("b", 7, 4));
        assert_eq!((parked.attempts, parked.next_attempt_ms, parked.held), (3, 9, true));
        assert_eq!((parked.kind.as_str(), parked.reason.len()), ("transient", REASON_BYTES_MAX));
    }

    #[test]
    fn what_is_of_no_input_of_the_version_is_held_and_says_of_which_topic_it_is() {
        let input = |topic: &str, number, unbound| PositionInput {
            topic: topic.into(),
            number: Some(number),
            unbound,
            ..PositionInput::default()
        };
        let inputs = vec![input("b", 1, false), input("a", 0, true)];
        let position = Some(Position { inputs, ..Position::default() });
        let at = At { partition: 4, position, inputs: &["b".into()] };
        let parked = |input, reason: &str| {
            let head = Head { input, reason: reason.into(), ..Head::default() };
            let parked = first(head, &at);
            (parked.topic, parked.held, parked.reason)
        };
        assert_eq!(parked(1, "why"), ("b".into(), false, "why".into()));
        let stays = "a is no input of this version, so it stays until one has that, or it is dropped";
        assert_eq!(parked(0, "why"), ("a".into(), true, format!("{stays}: why")));
        assert_eq!(parked(0, ""), ("a".into(), true, stays.into()));
    }
}

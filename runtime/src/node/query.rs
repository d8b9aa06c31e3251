//! Reads of committed state: one partition, one snapshot, one position.
//!
//! Runs on threads of the control plane; never sees an overlay, and never answers empty for state
//! that it does not have. A read that asks for a position waits for it on the deployment's board, and
//! then holds the snapshot itself to it: the board is told of a commit after the store has it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use tidemill_proto::v1 as proto;

use super::board::TaskEntry;
use super::handle::{ControlError, task_state};
use super::owners::{self, Owner};
use super::registered::Registered;
use super::runtime::NodeRuntime;
use crate::config::manifest::{Manifest, StoreKind};
use crate::record::Offset;
use crate::store::{Page, Position, PositionInput, Snapshot, StoreError, StoreReader, key_name};
use crate::telemetry::TaskState;

/// Keys of one request.
pub const KEYS_MAX: usize = 1000;
/// Values of one answer to several keys.
pub const VALUES_BYTES_MAX: usize = 8 << 20;

pub fn get_many(
    node: &NodeRuntime,
    request: &proto::GetManyStateRequest,
    until: Instant,
) -> Result<proto::GetManyStateResponse, ControlError> {
    if request.keys.is_empty() || request.keys.len() > KEYS_MAX {
        let asked = request.keys.len();
        return Err(ControlError::Invalid(vec![
            format!("a request names 1 to {KEYS_MAX} keys, not {asked}").into(),
        ]));
    }
    let target = Target::find(node, &request.deployment, &request.store, request.partition)?;
    let task = target.wait(node, &request.at_least, until)?;
    let store = target.key_name(&task)?;
    let asked: HashSet<&[u8]> = request.keys.iter().map(Vec::as_slice).collect();
    let ((values, parked), read_at) = target.read(node, &task, &request.at_least, |snapshot| {
        let parked = target.parked(snapshot, |key| asked.contains(key))?;
        let mut bytes = 0;
        let mut values = Vec::with_capacity(request.keys.len());
        for key in &request.keys {
            let value = snapshot.get(store, key)?;
            bytes += value.as_ref().map_or(0, Vec::len);
            if bytes > VALUES_BYTES_MAX {
                return Ok((None, parked));
            }
            values.push(value);
        }
        Ok((Some(values), parked))
    })?;
    let values = values.ok_or_else(|| {
        ControlError::Exhausted(format!(
            "the values are more than {} MiB together: ask for fewer keys",
            VALUES_BYTES_MAX >> 20
        ))
    })?;
    let mut answer = proto::GetManyStateResponse {
        read_at: vec![read_at],
        r#type: target.kind.as_str().into(),
        ..proto::GetManyStateResponse::default()
    };
    for (key, value) in request.keys.iter().zip(values) {
        // A key may be asked for twice.
        let parked = parked.get(key).cloned();
        match value {
            Some(value) => {
                let entry = target.entry(key.clone(), value, request.text);
                answer.entries.push(proto::StateEntry { parked, ..entry });
            }
            None => {
                answer.missing.push(key.clone());
                answer.parked.extend(parked);
            }
        }
    }
    Ok(answer)
}

/// `page_token` is of the last key of the page before; `next_page_token` of the answer likewise.
pub fn scan(
    node: &NodeRuntime,
    request: &proto::ScanStateRequest,
    until: Instant,
) -> Result<proto::ScanStateResponse, ControlError> {
    let target = Target::find(node, &request.deployment, &request.store, request.partition)?;
    let task = target.wait(node, &request.at_least, until)?;
    let (start, end) = bounds(request);
    let mut answer = proto::ScanStateResponse {
        r#type: target.kind.as_str().into(),
        ..proto::ScanStateResponse::default()
    };
    let is_empty = end.as_ref().is_some_and(|end| *end <= start);
    let store = target.key_name(&task)?;
    let in_range = |key: &[u8]| key >= start.as_slice() && end.as_deref().is_none_or(|end| key < end);
    let ((page, parked), read_at) =
        target.read(node, &task, &request.at_least, |snapshot| match is_empty {
            true => Ok((Page::default(), BTreeMap::new())),
            false => Ok((
                snapshot.scan(store, &start, end.as_deref(), request.limit)?,
                target.parked(snapshot, in_range)?,
            )),
        })?;
    answer.read_at.push(read_at);
    let entries = page.keys.iter().zip(page.values.iter()).map(|(key, value)| {
        let (key, value) = (key.unwrap_or_default().to_vec(), value.unwrap_or_default().to_vec());
        target.entry(key, value, request.text)
    });
    (answer.entries, answer.parked, answer.next_page_token) =
        marked(entries.collect(), page.more, parked, request.limit as usize);
    Ok(answer)
}

/// Marks the entries of a page that are parked, and puts the parked keys without a value among them as far
/// as the page goes. Answers the token of the last key as well if there is more; empty if not.
fn marked(
    mut entries: Vec<proto::StateEntry>,
    mut more: bool,
    mut parked: BTreeMap<Vec<u8>, proto::ParkedKey>,
    limit: usize,
) -> (Vec<proto::StateEntry>, Vec<proto::ParkedKey>, Vec<u8>) {
    for entry in &mut entries {
        entry.parked = parked.remove(&entry.key);
    }
    let last_key = entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
    let mut bare: Vec<_> = parked.into_values().filter(|parked| !more || parked.key <= last_key).collect();
    let mut keys: Vec<&[u8]> = entries.iter().map(|entry| entry.key.as_slice()).collect();
    keys.extend(bare.iter().map(|parked| parked.key.as_slice()));
    keys.sort_unstable();
    more |= keys.len() > limit;
    let last = keys.get(keys.len().min(limit).saturating_sub(1)).map(|key| key.to_vec()).unwrap_or_default();
    entries.retain(|entry| entry.key <= last);
    bare.retain(|parked| parked.key <= last);
    (entries, bare, if more { token(last) } else { Vec::new() })
}

/// The token of a page's last key, which is the key itself but for one that consists of zero bytes, or of
/// nothing: that has one zero byte more, because an empty token says that there is no more.
fn token(mut last: Vec<u8>) -> Vec<u8> {
    if last.iter().all(|&byte| byte == 0) {
        last.push(0);
    }
    last
}

/// The least key above the one that a token is of.
fn behind(token: &[u8]) -> Vec<u8> {
    match token.iter().all(|&byte| byte == 0) {
        true => token.to_vec(),
        false => [token, &[0]].concat(),
    }
}

/// The first key of a page, and the first one beyond all of them; none = there is no such.
fn bounds(request: &proto::ScanStateRequest) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut start = request.prefix.clone().max(request.from.clone());
    if !request.page_token.is_empty() {
        start = start.max(behind(&request.page_token));
    }
    let ends = [prefix_end(&request.prefix), Some(request.to.clone()).filter(|to| !to.is_empty())];
    (start, ends.into_iter().flatten().min())
}

/// Positions in the form in which every answer shows them.
pub fn positions(
    positions: &[(u16, Offset)],
    inputs: &[String],
    partition: i32,
) -> Vec<proto::InputPosition> {
    positions
        .iter()
        .map(|(input, offset)| proto::InputPosition {
            topic: inputs.get(usize::from(*input)).cloned().unwrap_or_default(),
            partition,
            offset: offset.0,
        })
        .collect()
}

/// `words/0@12 numbers/0@7`, as the command line takes it.
fn shown(positions: &[proto::InputPosition]) -> String {
    let one = |at: &proto::InputPosition| format!("{}/{}@{}", at.topic, at.partition, at.offset);
    match positions {
        [] => "no position yet".to_owned(),
        positions => positions.iter().map(one).collect::<Vec<_>>().join(" "),
    }
}

/// True if `positions` are at or beyond each of `wanted` that is of this partition.
fn reached(positions: &[proto::InputPosition], wanted: &[proto::InputPosition], partition: i32) -> bool {
    let at = |topic: &str| positions.iter().find(|at| at.topic == topic).map_or(0, |at| at.offset);
    wanted
        .iter()
        .filter(|wanted| wanted.partition == partition)
        .all(|wanted| at(&wanted.topic) >= wanted.offset)
}

pub(super) struct Target {
    deployment: String,
    /// Empty for rows that are in no store.
    store: String,
    /// As the store's keys name it in its current generation.
    key_name: String,
    partition: i32,
    pub kind: StoreKind,
    pub inputs: Vec<String>,
}

impl Target {
    pub fn find(
        node: &NodeRuntime,
        name: &str,
        store: &str,
        partition: Option<i32>,
    ) -> Result<Target, ControlError> {
        let view = node.control_log.view();
        let registered = view
            .deployments
            .get(name)
            .ok_or_else(|| ControlError::NotFound(format!("{name} is not deployed")))?;
        let manifest = manifest(registered)?;
        let Some(store) = manifest.stores.iter().find(|known| known.name == store) else {
            let names: Vec<_> = manifest.stores.iter().map(|store| store.name.as_str()).collect();
            return Err(ControlError::NotFound(match names.as_slice() {
                [] => format!("{name} has no stores"),
                names => format!("{name} has no store {store}; it has {}", names.join(", ")),
            }));
        };
        let key_name = key_name(&store.name, registered.ledger.generation(&store.name));
        let target = Target::of(registered, store.kind, partition)?;
        Ok(Target { store: store.name.clone(), key_name, ..target })
    }

    /// One task of a deployment, of which rows of this kind are read.
    pub fn of(
        registered: &Registered,
        kind: StoreKind,
        partition: Option<i32>,
    ) -> Result<Target, ControlError> {
        let Some(partition) = partition else {
            return Err(ControlError::Invalid(vec!["a local read names its partition".into()]));
        };
        Ok(Target {
            deployment: registered.name.clone(),
            store: String::new(),
            key_name: String::new(),
            partition,
            kind,
            inputs: registered.topics(),
        })
    }

    /// How the store's keys are named in the task's database. While the revision that the task runs has
    /// another generation of it, or does not have it, there is nothing to be read of the registry's.
    fn key_name(&self, task: &TaskEntry) -> Result<&str, ControlError> {
        self.reader(task)?;
        if task.stores.key_name(&self.store) == Some(&self.key_name) {
            return Ok(&self.key_name);
        }
        Err(ControlError::Unavailable(format!(
            "partition {} of {} has not taken up the version yet that store {} is of; try again",
            self.partition, self.deployment, self.store
        )))
    }

    /// The task, once it can be read and is at the positions wanted.
    pub fn wait(
        &self,
        node: &NodeRuntime,
        wanted: &[proto::InputPosition],
        until: Instant,
    ) -> Result<TaskEntry, ControlError> {
        let unknown: BTreeSet<_> =
            wanted.iter().map(|at| &at.topic).filter(|topic| !self.inputs.contains(topic)).collect();
        if !unknown.is_empty() {
            let say = |topic| {
                let (name, inputs) = (&self.deployment, self.inputs.join(", "));
                format!("at_least: {topic} is no input of {name}; it reads {inputs}")
            };
            return Err(ControlError::Invalid(unknown.into_iter().map(say).map(Into::into).collect()));
        }
        let Some(board) = node.board(&self.deployment) else { return Err(self.absent(node)) };
        let waits = wanted.iter().any(|wanted| wanted.partition == self.partition);
        let task = board.wait_for(self.partition, until, |task| match task {
            None => true,
            Some(task) => {
                !waits
                    || task.state == TaskState::Halted
                    || (task.state == TaskState::Running && self.is_at(task, wanted))
            }
        });
        let Some(task) = task else { return Err(self.absent(node)) };
        match task.state {
            _ if !waits => Ok(task),
            TaskState::Running | TaskState::Halted if self.is_at(&task, wanted) => Ok(task),
            TaskState::Halted => Err(ControlError::Precondition(format!(
                "partition {} of {} is halted at {}, before the position asked for: {}",
                self.partition,
                self.deployment,
                shown(&self.positions(&task)),
                task.reason
            ))),
            TaskState::Running => Err(self.too_late(&self.positions(&task), wanted)),
            TaskState::Restoring | TaskState::Absent => Err(self.restoring(&task)),
        }
    }

    fn positions(&self, task: &TaskEntry) -> Vec<proto::InputPosition> {
        positions(&task.positions, &self.inputs, self.partition)
    }

    fn is_at(&self, task: &TaskEntry, wanted: &[proto::InputPosition]) -> bool {
        reached(&self.positions(task), wanted, self.partition)
    }

    /// Values and position under one snapshot.
    pub fn read<T>(
        &self,
        node: &NodeRuntime,
        task: &TaskEntry,
        wanted: &[proto::InputPosition],
        read: impl FnOnce(&Snapshot<'_>) -> Result<T, StoreError>,
    ) -> Result<(T, proto::StatePosition), ControlError> {
        let answer = self.reader(task)?.snapshot(|snapshot| Ok((read(snapshot)?, snapshot.position()?)));
        let (value, position) = answer.map_err(|error| match error {
            StoreError::Closed => ControlError::Unavailable(format!(
                "partition {} of {} is moving; try again",
                self.partition, self.deployment
            )),
            error => ControlError::Internal(error.to_string()),
        })?;
        let read_at = self.true_at(node, task, position);
        if !reached(&read_at.positions, wanted, self.partition) {
            return Err(self.too_late(&read_at.positions, wanted));
        }
        Ok((value, read_at))
    }

    fn parked(
        &self,
        snapshot: &Snapshot<'_>,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<BTreeMap<Vec<u8>, proto::ParkedKey>, StoreError> {
        super::parked_keys::of(snapshot, (self.partition, &self.inputs), wanted)
    }

    fn reader<'a>(&self, task: &'a TaskEntry) -> Result<&'a StoreReader, ControlError> {
        match (task.state, &task.reader) {
            (TaskState::Running | TaskState::Halted, Some(reader)) => Ok(reader),
            (TaskState::Halted, None) => Err(ControlError::Precondition(format!(
                "partition {} of {} is halted and its state cannot be read: {}",
                self.partition, self.deployment, task.reason
            ))),
            _ => Err(self.restoring(task)),
        }
    }

    fn true_at(
        &self,
        node: &NodeRuntime,
        task: &TaskEntry,
        position: Option<Position>,
    ) -> proto::StatePosition {
        let bound = |input: &PositionInput| self.inputs.contains(&input.topic);
        let shown = |input: PositionInput| proto::InputPosition {
            topic: input.topic,
            partition: self.partition,
            offset: input.offset,
        };
        let positions = match position {
            Some(position) => position.inputs.into_iter().filter(bound).map(shown).collect(),
            // Before the first commit nothing is in the store, which is true where the task began.
            None => self.positions(task),
        };
        self.read_at(node, task, positions)
    }

    pub fn read_at(
        &self,
        node: &NodeRuntime,
        task: &TaskEntry,
        positions: Vec<proto::InputPosition>,
    ) -> proto::StatePosition {
        proto::StatePosition {
            partition: self.partition,
            positions,
            node: node.id.clone(),
            cluster: node.cluster_id.clone(),
            state: task_state(task.state).into(),
            reason: task.reason.clone(),
        }
    }

    fn entry(&self, key: Vec<u8>, value: Vec<u8>, text: bool) -> proto::StateEntry {
        let text = if text { self.kind.text(&value) } else { None };
        proto::StateEntry { partition: self.partition, key, value, text, parked: None }
    }

    pub fn absent(&self, node: &NodeRuntime) -> ControlError {
        let (name, partition) = (&self.deployment, self.partition);
        let elsewhere = match owners::elsewhere(node, name, partition) {
            Some(Owner::At { node, address }) => format!("it is on {node} at {address}"),
            Some(Owner::Here) | None => "it is on no other node either; try again".to_owned(),
        };
        ControlError::Unavailable(format!(
            "partition {partition} of {name} is not on {}: {elsewhere}",
            node.id
        ))
    }

    pub fn restoring(&self, task: &TaskEntry) -> ControlError {
        ControlError::Unavailable(format!(
            "partition {} of {} is restoring, {} changelog records to go; try again",
            self.partition,
            self.deployment,
            task.metrics.restore_remaining.get()
        ))
    }

    fn too_late(&self, is: &[proto::InputPosition], wanted: &[proto::InputPosition]) -> ControlError {
        let wanted: Vec<_> = wanted.iter().filter(|at| at.partition == self.partition).cloned().collect();
        ControlError::Deadline(format!(
            "partition {} of {} is at {}, not yet at {}; ask again or with a later deadline",
            self.partition,
            self.deployment,
            shown(is),
            shown(&wanted)
        ))
    }
}

fn manifest(registered: &Registered) -> Result<&Manifest, ControlError> {
    let manifest = registered.parsed.manifest.as_ref();
    manifest.map_err(|error| ControlError::Internal(format!("manifest of {}: {error}", registered.name)))
}

/// The least byte string above everything that starts with `prefix`; none when there is no such.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::super::board::Board;
    use super::*;
    use crate::telemetry::Telemetry;

    #[test]
    fn a_partition_that_restores_says_how_far_it_is_and_one_without_a_store_why() {
        let board = Board::new("count", Telemetry::new());
        board.assigned(0, 0, 7);
        let target = Target {
            deployment: "count".into(),
            store: "counts".into(),
            key_name: "counts".into(),
            partition: 0,
            kind: StoreKind::U64,
            inputs: vec!["words".into()],
        };
        let refused = || target.reader(&board.task(0).expect("it is there")).err();
        board.metrics(0).restore_remaining.set(1_200);
        let Some(ControlError::Unavailable(said)) = refused() else { panic!("it restores") };
        assert!(said.contains("is restoring, 1200 changelog records to go"), "{said}");
        board.task_state(0, 0, TaskState::Halted, "its changelog has lost records");
        let Some(ControlError::Precondition(said)) = refused() else { panic!("it is halted") };
        assert!(said.contains("its changelog has lost records"), "{said}");
    }

    #[test]
    fn the_end_of_a_prefix_is_above_all_that_starts_with_it() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(&[1, 0xff]), Some(vec![2]));
        assert_eq!(prefix_end(&[0xff]), None);
        assert_eq!(prefix_end(b""), None);
    }

    #[test]
    fn a_page_begins_behind_the_last_one_and_stays_within_prefix_and_range() {
        let of = |prefix: &str, from: &str, to: &str, last: &str| {
            bounds(&proto::ScanStateRequest {
                prefix: prefix.into(),
                from: from.into(),
                to: to.into(),
                page_token: last.into(),
                ..proto::ScanStateRequest::default()
            })
        };
        assert_eq!(of("", "", "", ""), (b"".to_vec(), None));
        assert_eq!(of("b", "", "", ""), (b"b".to_vec(), Some(b"c".to_vec())));
        assert_eq!(of("b", "ba", "bc", ""), (b"ba".to_vec(), Some(b"bc".to_vec())));
        assert_eq!(of("b", "a", "z", "bb"), (b"bb\0".to_vec(), Some(b"c".to_vec())));
        assert_eq!(of("", "", "", "\0"), (b"\0".to_vec(), None), "behind the empty key");
        assert_eq!(of("b", "", "", "\0"), (b"b".to_vec(), Some(b"c".to_vec())));
    }

    #[test]
    fn a_token_says_that_there_is_more_and_what_is_next_whatever_the_last_key_is() {
        for key in [&b""[..], b"\0", b"\0\0", b"\0a", b"a", b"a\0", b"\xff"] {
            let token = token(key.to_vec());
            assert!(!token.is_empty());
            assert_eq!(behind(&token), [key, b"\0"].concat(), "{key:?}");
        }
    }

    #[test]
    fn a_page_has_parked_keys_in_their_place_and_goes_on_behind_the_last_of_either() {
        let entry = |key: &str| proto::StateEntry { key: key.into(), ..proto::StateEntry::default() };
        let page = |entries: &[&str], more, keys: &[&str], limit| {
            let key = |key: &&str| {
                let parked = proto::ParkedKey { key: (*key).into(), ..proto::ParkedKey::default() };
                (key.as_bytes().to_vec(), parked)
            };
            let entries = entries.iter().copied().map(entry).collect();
            let (entries, bare, last) = marked(entries, more, keys.iter().map(key).collect(), limit);
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
            let shown =
                |entry: proto::StateEntry| text(entry.key) + if entry.parked.is_some() { "!" } else { "" };
            let entries: Vec<_> = entries.into_iter().map(shown).collect();
            let bare: Vec<_> = bare.into_iter().map(|parked| text(parked.key)).collect();
            (entries.join(" "), bare.join(" "), text(last))
        };
        let row =
            |entries: &str, bare: &str, last: &str| (entries.to_owned(), bare.to_owned(), last.to_owned());
        assert_eq!(page(&["b", "d"], false, &["b", "c"], 9), row("b! d", "c", ""));
        // What is behind the last entry belongs to the next page.
        assert_eq!(page(&["b", "d"], true, &["a", "e"], 9), row("b d", "a", "d"));
        assert_eq!(page(&["b", "d"], false, &["a", "c", "e"], 3), row("b", "a c", "c"));
        assert_eq!(page(&[], false, &["a", "b"], 1), row("", "a", "a"));
        assert_eq!(page(&[], false, &[], 1), row("", "", ""));
        assert_eq!(page(&["a", "b"], true, &[], 2), row("a b", "", "b"));
        // A page that ends at the empty key is not the last one for that.
        assert_eq!(page(&[""], true, &[], 1), row("", "", "\0"));
        assert_eq!(page(&["b"], false, &[""], 1), row("", "", "\0"));
    }

    #[test]
    fn a_position_is_reached_when_every_input_of_the_partition_is_there() {
        let at =
            |topic: &str, partition, offset| proto::InputPosition { topic: topic.into(), partition, offset };
        let is = [at("a", 1, 5), at("b", 1, 7)];
        assert!(reached(&is, &[], 1));
        assert!(reached(&is, &[at("a", 1, 5), at("b", 1, 6)], 1));
        assert!(!reached(&is, &[at("a", 1, 5), at("b", 1, 8)], 1));
        // Of a partition that this read is not about.
        assert!(reached(&is, &[at("a", 0, 99)], 1));
        // Nothing committed yet is the beginning, not the end.
        assert!(!reached(&[], &[at("a", 1, 1)], 1));
        assert!(reached(&[], &[at("a", 1, 0)], 1));
    }
}

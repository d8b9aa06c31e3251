//! The invariants, once the world has healed: W2 and W3 (output), W4 and W8 (it comes to rest), W5
//! (state), W10 (versions).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;

use super::handler::{Kind, LETTER, Truth};
use super::letters;
use super::restore::Restore;
use super::state::State;
use super::world::{DEPLOYMENT, World};
use crate::node::restore::Outcome;
use crate::record::{InputPartition, Offset};
use crate::store::{POSITION, Position, StoreReader, unpack};
use crate::telemetry::TaskState;

/// Turns that a healed world may take to come to rest.
const TURNS_TO_REST: u64 = 30_000;

/// The first byte of a parked record's key, and of an outbox row's.
const PARKED: u8 = 0x04;
const OUTBOX: u8 = 0x03;
/// And of a row about dead letters.
const LETTERS: u8 = 0x06;

pub type Violation = String;

/// Lets the healed world come to rest, and looks at all it has left behind.
pub fn check(world: &Arc<World>) -> Result<(), Violation> {
    world.heal();
    come_to_rest(world)?;
    if world.case.parks {
        letters::order(&mut world.lock(), false);
        come_to_rest(world)?;
        letters::check(world)?;
    }
    let truths: Vec<Truth> = (0..world.case.partitions).map(|partition| truth(world, partition)).collect();
    let revisions = check_output(world, &truths)?;
    check_outbox(world, &truths)?;
    for (partition, truth) in (0..).zip(&truths) {
        check_log(world, partition)?;
        check_inbox(world, partition, truth)?;
        if world.case.kind == Kind::Chain {
            check_state(world, partition, truth)?;
            let began = check_revisions(world, partition)?;
            check_versions(truth, world.case.parks, &revisions, &began)?;
        }
    }
    check_cold(world, &truths)
}

fn come_to_rest(world: &Arc<World>) -> Result<(), Violation> {
    let limit = world.lock().turns + TURNS_TO_REST;
    let mut why = None;
    while world.lock().turns < limit {
        (0..50).for_each(|_| world.turn());
        why = unrest(world);
        if why.is_none() {
            return Ok(());
        }
    }
    Err(format!("W8 progress: {}", why.unwrap_or_default()))
}

/// Why the world is not at rest.
fn unrest(world: &World) -> Option<String> {
    let mut running = BTreeSet::new();
    for process in (0..world.case.nodes).filter_map(|node| world.process(node)) {
        // Its board still shows what it ran.
        if process.is_dead() {
            return Some(format!("node {} is down", process.node));
        }
        if process.config().revision != world.lock().registry.revision(DEPLOYMENT) {
            return Some(format!("node {} runs an older revision", process.node));
        }
        for (partition, task) in process.board.tasks() {
            match task.state {
                TaskState::Halted => return Some(format!("partition {partition} halted: {}", task.reason)),
                TaskState::Running if task.revision != world.lock().registry.revision(DEPLOYMENT) => {
                    return Some(format!("partition {partition} runs revision {}", task.revision));
                }
                TaskState::Running if running.insert(partition) => {}
                TaskState::Running => return Some(format!("partition {partition} runs twice")),
                _ => return Some(format!("partition {partition} is {:?}", task.state)),
            }
        }
    }
    if let Some(partition) = (0..world.case.partitions).find(|partition| !running.contains(partition)) {
        return Some(format!("partition {partition} runs nowhere"));
    }
    let mut state = world.lock();
    let open = state.edits.open();
    if open > 0 {
        return Some(format!("{open} edits have no answer"));
    }
    for partition in 0..world.case.partitions {
        let id = InputPartition { input: 0, partition };
        let committed = state.broker.group.committed(id).map(|committed| committed.offset);
        let end = state.input_end(partition);
        if committed.unwrap_or(began(&state, partition)) != end {
            return Some(format!("partition {partition} is committed to {committed:?} of {end}"));
        }
    }
    for partition in 0..world.case.partitions {
        let kept = fold(&state, partition);
        let of = |table: u8| kept.keys().filter(|key| key.first() == Some(&table)).count();
        let (parked, undelivered) = (of(PARKED), of(OUTBOX));
        if parked + undelivered > 0 {
            return Some(format!(
                "partition {partition} has {parked} parked records, {undelivered} outbox rows"
            ));
        }
    }
    if world.is_committing() {
        return Some("a commit has not come to its end".into());
    }
    if !state.broker.is_at_rest() {
        return Some("something is under way".into());
    }
    drop(state);
    letters::unrest(world)
}

fn began(state: &State, partition: i32) -> Offset {
    state.began.get(&partition).copied().unwrap_or_default()
}

/// A fold of the input from where it began.
fn truth(world: &World, partition: i32) -> Truth {
    let state = world.lock();
    let mut truth = Truth::default();
    let log = &state.broker.inputs[partition as usize];
    let mut at = began(&state, partition);
    while at < log.end() {
        if let super::broker::Met::Row(row) = log.meet(at) {
            truth.add(
                (world.case.kind, world.case.inbox.then_some(world.case.ttl_ms as i64)),
                (at.0, row.timestamp_ms),
                &row.key,
                row.value.as_deref().unwrap_or_default(),
            );
        }
        at.0 += 1;
    }
    truth
}

/// Revisions of a key's emissions, in order.
type Revisions = BTreeMap<Vec<u8>, Vec<u64>>;

/// W2, W3: per key everything once and in order, and nothing else.
fn check_output(world: &World, truths: &[Truth]) -> Result<Revisions, Violation> {
    let state = world.lock();
    let mut emitted: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let mut newest: BTreeMap<&[u8], u64> = BTreeMap::new();
    let mut revisions = Revisions::new();
    for row in state.broker.outputs.iter().flat_map(|log| log.committed()) {
        let value = row.value.as_deref().unwrap_or_default();
        let (value, revision) = value.split_at(value.len() - size_of::<u64>());
        emitted.entry(row.key.clone()).or_default().push(value.to_vec());
        let revision = u64::from_be_bytes(revision.try_into().map_err(|_| "no revision")?);
        let newest = newest.entry(&row.key).or_default();
        if revision < *newest {
            let key = String::from_utf8_lossy(&row.key);
            return Err(format!("W10 versions: key {key}: revision {revision} after revision {newest}"));
        }
        *newest = revision;
        revisions.entry(row.key.clone()).or_default().push(revision);
    }
    let mut expected: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    truths.iter().for_each(|truth| expected.extend(truth.emitted.clone()));
    if world.case.at_commit {
        for (key, wanted) in expected.iter().filter(|(key, _)| !key.starts_with(LETTER)) {
            if let (Some(sent), Some(by)) = (emitted.get_mut(key), revisions.get_mut(key)) {
                put_back(sent, by, wanted);
            }
        }
    }
    if emitted == expected {
        return Ok(revisions);
    }
    let none = Vec::new();
    for key in emitted.keys().chain(expected.keys()) {
        let (found, wanted) = (emitted.get(key).unwrap_or(&none), expected.get(key).unwrap_or(&none));
        if let Some(at) = (0..found.len().max(wanted.len())).find(|&at| found.get(at) != wanted.get(at)) {
            return Err(format!(
                "W2 output: key {}: {} records, {} expected; the first that differs is number {at}: {:?}, not {:?}",
                String::from_utf8_lossy(key),
                found.len(),
                wanted.len(),
                found.get(at).map(|value| String::from_utf8_lossy(value).into_owned()),
                wanted.get(at).map(|value| String::from_utf8_lossy(value).into_owned()),
            ));
        }
    }
    Ok(revisions)
}

/// Puts what was not sent, because its commit had a later record of the key, where it belongs: before that record,
/// and by the same revision. What is missing, repeated or out of order otherwise stays so.
fn put_back(sent: &mut Vec<Vec<u8>>, by: &mut Vec<u64>, wanted: &[Vec<u8>]) {
    let mut rest = wanted;
    for (value, revision) in std::mem::take(sent).into_iter().zip(std::mem::take(by)) {
        if let Some(at) = rest.iter().position(|wanted| *wanted == value) {
            sent.extend_from_slice(&rest[..at]);
            by.extend(std::iter::repeat_n(revision, at));
            rest = &rest[at + 1..];
        }
        sent.push(value);
        by.push(revision);
    }
}

/// W7: what was committed for the outbox has been delivered, once per id and in order per key.
fn check_outbox(world: &World, truths: &[Truth]) -> Result<(), Violation> {
    let mut expected = BTreeMap::new();
    if world.case.outbox {
        truths.iter().for_each(|truth| expected.extend(truth.hooked.clone()));
    }
    world.lock().receiver.check(&expected)
}

/// W4: nothing holds readers back.
fn check_log(world: &World, partition: i32) -> Result<(), Violation> {
    let state = world.lock();
    let log = &state.broker.changelogs[partition as usize];
    if log.stable() == log.end() && state.broker.outputs.iter().all(|log| log.stable() == log.end()) {
        return Ok(());
    }
    Err(format!("W4 hang: partition {partition}: stable {}, end {}", log.stable(), log.end()))
}

/// W10: a revision begins by a commit that holds no record, it begins where the one before ended, and what
/// its commits say of its beginning never changes. Answers the revisions and where they began.
fn check_revisions(world: &World, partition: i32) -> Result<Vec<(u64, u64)>, Violation> {
    let state = world.lock();
    let mut all = Vec::new();
    let mut last: Option<(u64, u64, u64)> = None;
    for row in state.broker.changelogs[partition as usize].all_committed() {
        let Some(value) = row.value.as_deref().filter(|_| row.key == POSITION) else { continue };
        let position = Position::decode(value).map_err(|error| format!("W10 versions: {error}"))?;
        let input = position.inputs.first().ok_or("W10 versions: a position of no input")?;
        let first = input.first.ok_or("W10 versions: a position does not say where its revision began")?;
        let (revision, offset) = (position.revision, input.offset);
        let is_right = match last {
            Some((former, began, _)) if former == revision => began == first,
            Some((former, _, ended)) => former < revision && first == offset && first == ended,
            None => first == offset,
        };
        if !is_right {
            return Err(format!(
                "W10 versions: partition {partition}: revision {revision} at {offset}, from {first}, after {last:?}"
            ));
        }
        if last.is_none_or(|(former, _, _)| former != revision) {
            all.push((revision, first));
        }
        last = Some((revision, first, offset));
    }
    Ok(all)
}

/// W10: each record was handled by the revision that its offset belongs to; one that was parked perhaps by
/// a later one.
fn check_versions(
    truth: &Truth,
    parks: bool,
    revisions: &Revisions,
    began: &[(u64, u64)],
) -> Result<(), Violation> {
    for (key, offsets) in &truth.sources {
        let handled = revisions.get(key).map(Vec::as_slice).unwrap_or_default();
        for (&offset, &by) in offsets.iter().zip(handled) {
            let due = began.iter().rev().find(|(_, first)| *first <= offset).map(|(revision, _)| *revision);
            if due != Some(by) && !(parks && due < Some(by)) {
                let key = String::from_utf8_lossy(key);
                return Err(format!(
                    "W10 versions: key {key}: offset {offset} by revision {by}, not {due:?}"
                ));
            }
        }
    }
    Ok(())
}

/// What a changelog says.
fn fold(state: &State, partition: i32) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut folded = BTreeMap::new();
    for row in state.broker.changelogs[partition as usize].committed() {
        match &row.value {
            Some(value) => drop(folded.insert(row.key.clone(), value.clone())),
            None => drop(folded.remove(&row.key)),
        }
    }
    folded
}

/// W6: the inbox's topic holds exactly the ids of the records that have had their effects.
fn check_inbox(world: &World, partition: i32, truth: &Truth) -> Result<(), Violation> {
    let state = world.lock();
    let records = state.broker.inboxes[partition as usize].committed();
    // What cannot be read is missed.
    let rows = records.filter_map(|record| unpack(&record.key, record.value.as_deref()).ok()).flatten();
    let found: BTreeSet<Vec<u8>> = rows.map(|(key, _)| key[1..].to_vec()).collect();
    let seen: BTreeSet<Vec<u8>> = truth.seen.keys().cloned().collect();
    if found == seen {
        return Ok(());
    }
    let differ = found.symmetric_difference(&seen).next().map(|id| String::from_utf8_lossy(id).into_owned());
    Err(format!("W6 inbox: partition {partition} is wrong about id {}", differ.unwrap_or_default()))
}

/// W5: the store of whoever runs the task, the changelog and the truth are one.
fn check_state(world: &World, partition: i32, truth: &Truth) -> Result<(), Violation> {
    let mut folded = fold(&world.lock(), partition);
    folded.remove(POSITION);
    folded.retain(|key, _| key.first() != Some(&LETTERS));
    // A changelog key is its store's name and the key.
    let mut folded: BTreeMap<_, _> =
        folded.into_iter().map(|(key, value)| (key[key.len() - 4..].to_vec(), value)).collect();
    world.lock().edits.judge("changelog", partition, &mut folded)?;
    compare("changelog", partition, &folded, &truth.state)?;
    let processes = (0..world.case.nodes).filter_map(|node| world.process(node));
    let owners: Vec<StoreReader> =
        processes.filter_map(|process| process.board.task(partition)?.reader).collect();
    let [owner] = owners.as_slice() else {
        return Err(format!("W5 state: partition {partition} has {} owners", owners.len()));
    };
    let mut stored = dump(owner)?;
    world.lock().edits.judge("store", partition, &mut stored)?;
    compare("store", partition, &stored, &truth.state)
}

fn compare(
    what: &str,
    partition: i32,
    found: &BTreeMap<Vec<u8>, Vec<u8>>,
    expected: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> Result<(), Violation> {
    if found == expected {
        return Ok(());
    }
    let differ = found.keys().chain(expected.keys()).find(|key| found.get(*key) != expected.get(*key));
    let key = differ.map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
    Err(format!("W5 state: the {what} of partition {partition} is wrong at key {key}"))
}

fn dump(reader: &StoreReader) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Violation> {
    let page = reader.snapshot(|snapshot| snapshot.scan("links", b"", None, 1000));
    let page = page.map_err(|error| format!("W5 state: {error}"))?;
    let rows = page.keys.iter().zip(page.values.iter());
    Ok(rows.map(|(key, value)| (key.unwrap_or_default().into(), value.unwrap_or_default().into())).collect())
}

/// Everything dies; a node with an empty disk restores every task to the input's end.
fn check_cold(world: &Arc<World>, truths: &[Truth]) -> Result<(), Violation> {
    world.end();
    let process = world.new_process(world.case.nodes, "cold");
    for (partition, truth) in (0..).zip(truths) {
        let task = match Restore::cold(&process, partition).outcome(world) {
            Outcome::Start(task) => task,
            Outcome::Halt { reason, .. } => {
                return Err(format!("cold restore of {partition} halted: {reason}"));
            }
            Outcome::Again { .. } => return Err(format!("cold restore of {partition} does not end")),
        };
        let end = world.lock().input_end(partition);
        if task.next(0) != Some(end) {
            return Err(format!("cold restore of {partition} begins at {:?}, not {end}", task.next(0)));
        }
        if let Some(reader) = task.reader() {
            let mut restored = dump(reader)?;
            world.lock().edits.judge("restored store", partition, &mut restored)?;
            compare("restored store", partition, &restored, &truth.state)?;
        }
    }
    Ok(())
}

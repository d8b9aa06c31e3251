//! A park through kills, moves and lost disks; one that is full; and an operator's hand in it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Summary;
use super::feed::{Feed, Kind, Sent};
use super::judge::{Fate, judge};
use super::read::{Reader, now_ms};
use super::stage::{DEPLOYMENT, PARTITIONS, Stage};
use crate::cluster::Cluster;
use crate::outbox::stage::get;
use crate::wait::until;

/// What fails for good waits for a person, who may drop it into the dead letters.
const PARKS: &str = "{ permanent: { then: park }, parked: { records: 100 }, dead_letters: {} }";
const ROOM: u64 = 100;
/// Keys with a parked record and others behind it.
const HELD: u32 = 20;
/// One that is dropped by hand, later on.
const DROPPED: u32 = 7;
const SHOWN_MAX: Duration = Duration::from_secs(60);

/// Kills, moves and loses the stores of two nodes under one park, then fills it, then mends the handler.
pub fn parked(cluster: Cluster, module: &Path) -> Summary {
    let mut found = Summary::default();
    let mut stage = Stage::begin(cluster, 2, PARKS, module);
    let reader = Reader::start(stage.cluster.bootstrap());
    let mut feed = Feed::new(stage.cluster.bootstrap());
    let held: Vec<u32> = (0..HELD).collect();
    for kind in [Kind::Ok, Kind::Bad, Kind::Ok, Kind::Ok] {
        feed.plant(kind, &held, HELD.into());
    }
    until_out(&reader, HELD.into());
    let as_told = until_parked(&stage, 0, 3);
    survive(&mut stage, &as_told, &mut found);

    // Later records of the keys wait behind what is parked.
    feed.plant(Kind::Ok, &held, HELD.into());
    until_parked(&stage, 1, 4);
    full(&stage, &mut feed, &reader, &mut found);
    by_hand(&stage, &mut found);

    stage.deploy(1, true);
    let sent = feed.sent().len() as u64;
    stage.until_settled(1, &reader, sent - 1);
    let redrive = stage.until_done(1, stage.begin_redrive(1, &[]));
    found.hold(redrive["ok"] == 1, || format!("the dropped record did not come back: {redrive}"));
    stage.until_settled(1, &reader, sent);
    let is_dropped = |sent: &Sent| sent.key == DROPPED && sent.kind == Kind::Bad;
    found.violations.extend(judge("parked", feed.sent(), &reader.all(), |sent| {
        if is_dropped(sent) { Fate::Back } else { Fate::InTurn }
    }));
    (found.records, found.letters) = (sent, 1);
    found.notes.push(format!("parked: {HELD} keys through a kill -9, a move and a lost disk; one full park"));
    found
}

fn until_out(reader: &Reader, count: u64) {
    until("records come out", SHOWN_MAX, || match reader.count() {
        seen if seen >= count => Ok(()),
        seen => Err(seen),
    });
}

/// Every parked key as a node lists it, once each has so many records.
#[track_caller]
fn until_parked(stage: &Stage, node: usize, records: u64) -> Vec<Value> {
    until("the keys are parked", SHOWN_MAX, || {
        let keys = listed(stage, node);
        let is_all = keys.len() == HELD as usize && keys.iter().all(|key| key["records"] == records);
        if is_all { Ok(keys) } else { Err(keys) }
    })
}

/// By key.
fn listed(stage: &Stage, node: usize) -> Vec<Value> {
    let list = stage.ask(node, &["parked", "list", DEPLOYMENT, "--limit", "1000"]);
    let mut keys = list["keys"].as_array().cloned().unwrap_or_default();
    keys.sort_by_key(|key| key["key"].to_string());
    keys
}

/// The first node is killed; the other takes over; it loses its stores. What is parked is the same all the time.
fn survive(stage: &mut Stage, as_told: &[Value], found: &mut Summary) {
    stage.nodes[0].kill();
    stage.start(0);
    let killed = until_parked(stage, 0, 3);
    found.hold(killed == as_told, || format!("a kill -9 changed what is parked: {killed:?}"));
    stage.start(1);
    found.hold(stage.nodes[0].stop().success(), || "the first node did not drain".to_owned());
    let moved = until_parked(stage, 1, 3);
    found.hold(moved == as_told, || format!("a move changed what is parked: {moved:?}"));
    found.hold(stage.nodes[1].stop().success(), || "the second node did not drain".to_owned());
    std::fs::remove_dir_all(stage.nodes[1].stores().join(DEPLOYMENT)).expect("its stores can be deleted");
    stage.start(1);
    let rebuilt = until_parked(stage, 1, 3);
    found.hold(rebuilt == as_told, || format!("a rebuild changed what is parked: {rebuilt:?}"));
}

/// One partition's park is full: its input pauses, and lag, metrics and the log say why. The others go on.
fn full(stage: &Stage, feed: &mut Feed, reader: &Reader, found: &mut Summary) {
    let before = reader.count();
    // Keys of their own, in a partition of their own choice.
    for number in 0..2 * ROOM as u32 {
        feed.send(100_000 + number, Kind::Bad, Some(0), now_ms());
    }
    for partition in 0..PARTITIONS {
        feed.send(200_000 + partition as u32, Kind::Ok, Some(partition), now_ms());
    }
    feed.flush();
    let row = |partition: i32| {
        let lag = stage.ask(1, &["lag", DEPLOYMENT]);
        let rows = lag["partitions"].as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["partition"] == partition).unwrap_or(Value::Null)
    };
    until("lag says why", SHOWN_MAX, || {
        let paused = row(0);
        let says = paused["reason"].as_str().is_some_and(|reason| reason.starts_with("paused: 100 records"));
        if says { Ok(()) } else { Err(paused) }
    });
    until_out(reader, before + PARTITIONS as u64 - 1);
    for partition in 1..PARTITIONS {
        let other = row(partition);
        found.hold(other["records"] == 0 && other["reason"] == "", || format!("it was to go on: {other}"));
    }
    let metrics = get(&stage.nodes[1].http, "/metrics").unwrap_or_default();
    let is_full = |partition: i32| {
        let (name, part) = (format!("deployment=\"{DEPLOYMENT}\""), format!("partition=\"{partition}\""));
        let mut lines = metrics.lines().filter(|line| line.starts_with("tidemill_parked_full{"));
        let is_one =
            |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()) == Some(1.0);
        lines.any(|line| line.contains(&name) && line.contains(&part) && is_one(line))
    };
    let full: Vec<i32> = (0..PARTITIONS).filter(|partition| is_full(*partition)).collect();
    found.hold(full == [0], || format!("tidemill_parked_full is 1 for {full:?}, of which only 0 is"));
    let log = stage.nodes[1].log();
    let said = log.lines().any(|line| line.contains("the input is paused") && line.contains("partition=0"));
    found.hold(said, || "the log does not say that the input is paused".to_owned());
}

/// A release that mends nothing, and one record that is dropped.
fn by_hand(stage: &Stage, found: &mut Summary) {
    let released = stage.told(1, &["parked", "release", DEPLOYMENT, "--key", "k3"]);
    found.hold(released["keys"] == 1 && released["records"] == 4, || format!("released: {released}"));
    until("it is held again", SHOWN_MAX, || {
        let list = stage.ask(1, &["parked", "list", DEPLOYMENT, "--key", "k3", "--held"]);
        let is_held = list["keys"].as_array().is_some_and(|keys| keys.len() == 1 && keys[0]["records"] == 4);
        if is_held { Ok(()) } else { Err(list) }
    });
    let key = format!("k{DROPPED}");
    let dropped = stage.told(1, &["parked", "drop", DEPLOYMENT, "--key", &key, "--yes"]);
    found.hold(dropped["keys"] == 1 && dropped["records"] == 1, || format!("dropped: {dropped}"));
    until("the key is free", SHOWN_MAX, || {
        let list = stage.ask(1, &["parked", "list", DEPLOYMENT, "--key", &key]);
        if list["keys"] == Value::Array(Vec::new()) { Ok(()) } else { Err(list) }
    });
    let (waiting, _) = stage.letters(1, &["--key", &key]);
    found.hold(waiting == 1, || format!("{waiting} letters of the dropped record"));
}

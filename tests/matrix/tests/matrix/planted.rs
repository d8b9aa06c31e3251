//! Planted bugs (`tidemill::faults`) that the simulation only mirrors at edges of its own: here the
//! node's own edges have them. Each scenario is played twice: without its bug everything comes out
//! right, and with it the checker finds a violation.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tidemill_kafka_harness::Options;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::kfault::{Action, Direction, Handle, Kfault, Rule, api};
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::{Case, Special};
use tidemill_tests::rig::moves::held;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{
    SOON, detoured, judge, open, raise, said, until_commits, until_each_commits,
};
use tidemill_tests::wait::{until, within};

/// For so long a node that waits for what it must wait for is left waiting.
const TEMPTED: Duration = Duration::from_secs(8);

/// Whether a node does what it would have to wait with. With the bug it does, however slow the machine is.
fn tempted(bug: Option<&str>, mut does: impl FnMut() -> bool) -> bool {
    let most = if bug.is_some() { SOON } else { TEMPTED };
    within(most, || does().then_some(())).is_some()
}

/// Two nodes or one, with a bug or without.
fn case(nodes: usize, bug: Option<&'static str>) -> Case {
    let special = Special { bug, crashes: true, ..Special::default() };
    Case { special, ..Case::plain(nodes, 8_000) }
}

/// What the checker says at the end must be good exactly if there is no bug.
#[track_caller]
fn conclude(name: &str, bug: Option<&str>, stage: Stage, directory: &std::path::Path) {
    let summary = judge(name, stage);
    let found = summary.violations.first();
    match bug {
        None => assert!(summary.is_good(), "{:#?}\n{:#?}", summary.violations, summary.invalid),
        Some(bug) => {
            let found = found.unwrap_or_else(|| panic!("{bug} was not found: {:#?}", summary.invalid));
            println!("{bug} found: {found:.200}");
        }
    }
    fs::remove_dir_all(directory).expect("a directory can be deleted");
}

/// A node dies with records in an open transaction, which its restart aborts and must not restore.
fn dies_in_a_transaction(bug: Option<&'static str>) {
    let _alone = alone();
    let case = case(1, bug);
    let (mut stage, directory) = open("aborted records", &case, Cluster::apache());
    stage.watch.fault();
    assert!(stage.fleet.kill(0), "the node ended by itself");
    stage.fleet.restart_to_die(0, "after-flush:3@chain");
    assert!(stage.fleet.died_as_told(0), "{}", stage.fleet.log(0));
    stage.fleet.restart(0, None);
    stage.watch.healed();
    conclude("aborted records", bug, stage, &directory);
}

#[test]
fn aborted_records_are_not_restored() {
    dies_in_a_transaction(None);
}

#[test]
fn planted_restore_uncommitted_is_found() {
    dies_in_a_transaction(Some("restore-uncommitted"));
}

/// A dead owner's open transaction pins the changelog's last stable offset. Who takes its tasks over
/// must wait; who does not commits above the pin, and is followed by one that restores up to it only.
fn open_transaction_of_a_dead_owner(bug: Option<&'static str>) {
    let _alone = alone();
    let case = case(2, bug);
    // Only the owner's return ends its transaction.
    let scan = "transaction.abort.timed.out.transaction.cleanup.interval.ms";
    let properties = vec![(scan.to_owned(), "600000".to_owned())];
    let cluster = Cluster::apache_with(&Options { properties, ..Options::default() });
    let (mut stage, directory) = open("pinned", &case, cluster);
    stage.watch.fault();
    assert!(stage.fleet.kill(0), "the node ended by itself");
    stage.fleet.restart_to_die(0, "after-flush:3@chain");
    assert!(stage.fleet.died_as_told(0), "{}", stage.fleet.log(0));
    let assigned = said(&stage, 1, "assigned deployment=chain");
    until("its tasks are another node's", SOON, || {
        if said(&stage, 1, "assigned deployment=chain") > assigned { Ok(()) } else { Err("not yet") }
    });
    let all = case.partitions as usize;
    if tempted(bug, || held(&stage.fleet.log(1)).len() == all) {
        until_each_commits(&stage, &(0..case.partitions).collect());
    }
    assert!(stage.fleet.kill(1), "the node ended by itself");
    assert!(stage.fleet.wipe(1) > 0, "there were no stores");
    stage.fleet.restart(1, None);
    tempted(bug, || held(&stage.fleet.log(1)).len() == all);
    stage.fleet.restart(0, None);
    stage.watch.healed();
    conclude("pinned", bug, stage, &directory);
}

#[test]
fn a_restore_waits_for_a_dead_owners_transaction() {
    open_transaction_of_a_dead_owner(None);
}

#[test]
fn planted_restore_to_stable_is_found() {
    open_transaction_of_a_dead_owner(Some("restore-to-stable"));
}

/// The first commit of a deployment that starts at the latest record never happens. Its start stays
/// what it was when it began, or the records of that commit are passed over.
fn dies_before_the_first_commit(bug: Option<&'static str>) {
    let _alone = alone();
    let mut case = case(1, bug);
    case.special = Special { start: Some("latest"), dies_at: Some("before-flush:1@chain"), ..case.special };
    let (mut stage, directory) = raise("latest", &case, Cluster::apache());
    stage.watch.fault();
    assert!(stage.fleet.died_as_told(0), "{}", stage.fleet.log(0));
    stage.fleet.restart(0, None);
    until_commits(&stage);
    stage.watch.healed();
    conclude("latest", bug, stage, &directory);
}

#[test]
fn a_start_is_resolved_once() {
    dies_before_the_first_commit(None);
}

#[test]
fn planted_start_again_is_found() {
    dies_before_the_first_commit(Some("start-again"));
}

/// A node that cannot read the control topic does not know of a new revision, and is given tasks that
/// another has run by it. It must not run them by the old one.
fn a_stale_node_is_given_tasks(bug: Option<&'static str>) {
    let _alone = alone();
    let mut case = case(2, bug);
    let (kfault, cluster) = detoured(&mut case);
    let (mut stage, directory) = open("stale", &case, cluster);
    stage.watch.fault();
    let control = hold_fetches(&kfault, &mut stage, "_tidemill.control");
    until("the other node has its tasks", SOON, || match held(&stage.fleet.log(1)).len() {
        2.. => Ok(()),
        few => Err(few),
    });
    let theirs = held(&stage.fleet.log(1));
    stage.fleet.deploy(1, &Case { remember: !case.remember, ..case.clone() }, &[]);
    until("the other node runs the new revision", SOON, || {
        match said(&stage, 1, "adopting a revision deployment=chain") {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    });
    until_each_commits(&stage, &theirs);
    assert!(stage.fleet.kill(1), "the node ended by itself");
    let assigned = said(&stage, 0, "assigned deployment=chain");
    until("its tasks are the stale node's", SOON, || {
        if said(&stage, 0, "assigned deployment=chain") > assigned { Ok(()) } else { Err("not yet") }
    });
    if tempted(bug, || theirs.is_subset(&held(&stage.fleet.log(0)))) {
        until_each_commits(&stage, &theirs);
    }
    control.end();
    control.release(Duration::ZERO);
    stage.fleet.restart(1, None);
    stage.watch.healed();
    conclude("stale", bug, stage, &directory);
}

/// Holds every fetch of a topic on its way from the first node.
fn hold_fetches(kfault: &Kfault, stage: &mut Stage, topic: &str) -> Handle {
    let described = stage.fleet.node(1).tidemill(&["topics", "describe", topic, "--output", "json"]).ok();
    let described: Value = serde_json::from_str(&described).expect("JSON");
    let id = described["id"].as_str().expect("an id").replace('-', "");
    let byte = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).expect("hexadecimal");
    let held = kfault.add(Rule {
        api: api::FETCH,
        direction: Direction::Request,
        about: (0..id.len()).step_by(2).map(byte).collect(),
        after: 0,
        times: u32::MAX,
        action: Action::Hold { hang_up: false },
    });
    until("the topic is out of reach", SOON, || if held.hits() > 0 { Ok(()) } else { Err("not yet") });
    held
}

#[test]
fn a_stale_node_runs_no_older_revision() {
    a_stale_node_is_given_tasks(None);
}

#[test]
fn planted_revision_old_is_found() {
    a_stale_node_is_given_tasks(Some("revision-old"));
}

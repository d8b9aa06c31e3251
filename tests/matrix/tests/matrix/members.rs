//! Faults of a node as a member of its groups: it stands still, stops, comes late, or is not alone.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rustix::process::Signal;
use tidemill_tests::kfault::{Action, Direction, api};
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::{Case, Special};
use tidemill_tests::rig::moves::{Pauses, held, moving};
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{
    SOON, behind_kfault, cluster_of, drain, play, said, until_commits, until_said,
};
use tidemill_tests::wait::until;

use crate::network::{once, until_hit};
use crate::{SESSION, case};

/// What a zombie says when it notices.
const NOTICED: [&str; 3] = ["lost", "commit waits for the rebalance", "outcome of a commit unknown"];

/// F03: a node stands still for longer than its session, another takes its tasks over, then it goes
/// on where it stood, with a commit in its hands.
#[test]
fn f03_a_zombie_commits_nothing() {
    let _alone = alone();
    let case = case(2, 10_000);
    play("F03", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        let before = stage.fleet.log(0).len();
        let mut pauses = moving(stage, "n0 stands still", |stage| {
            stage.fleet.node(0).signal(Signal::STOP);
            until_holds_all(stage, 1);
        });
        stage.watch.healed();
        let moves = moving(stage, "n0 goes on", |stage| {
            stage.fleet.node(0).signal(Signal::CONT);
            until("the zombie notices", SOON, || {
                let log = stage.fleet.log(0);
                let since = log.get(before..).unwrap_or_default();
                NOTICED.iter().find(|words| since.contains(**words)).ok_or("not yet")
            });
        });
        pauses.pauses.add(moves.pauses);
    });
}

/// F04: a node stands still again and again, each time for less than its session. Nothing moves.
#[test]
fn f04_short_pauses_move_nothing() {
    let _alone = alone();
    let case = case(2, 8_000);
    play("F04", &case, cluster_of(&case), |stage| {
        let moves = moving(stage, "n0 stands still for a fifth of its session, five times", |stage| {
            for _ in 0..5 {
                stage.fleet.node(0).signal(Signal::STOP);
                // The fault itself.
                std::thread::sleep(SESSION / 5);
                stage.fleet.node(0).signal(Signal::CONT);
                until_commits(stage);
            }
        });
        assert_eq!(moves.pauses.moved(), 0, "{}", moves.pauses);
    });
}

/// F05: a stranger takes the node's transactional id, opens a transaction in its name and goes away.
/// The node recovers with a new epoch, which also ends what the stranger left open.
#[test]
fn f05_a_hijacked_transactional_id_is_taken_back() {
    let _alone = alone();
    let case = case(1, 8_000);
    play("F05", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        for hijack in 1..=3 {
            hijack_chain(stage);
            until("the node notices that it is fenced", SOON, || {
                let noticed = said(stage, 0, "outcome of a commit unknown");
                if noticed >= hijack { Ok(()) } else { Err(noticed) }
            });
            until_commits(stage);
        }
        stage.watch.healed();
    });
}

/// Fences the chain's producer, and leaves a transaction open in its name.
fn hijack_chain(stage: &Stage) {
    let stranger: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", stage.cluster.bootstrap())
        .set("transactional.id", "tidemill.chain.n0.0")
        .create()
        .expect("a producer");
    stranger.init_transactions(SOON).expect("the id is free for anyone");
    stranger.begin_transaction().expect("a transaction");
    stranger.send(BaseRecord::to("chain-out").key("stranger").payload("nothing")).expect("queued");
    // Fails if the node has taken its id back already.
    let _ = stranger.flush(SESSION);
}

/// F06: three nodes are told to stop, one after the other, and come back. Each drains: it commits,
/// leaves its groups and ends well, and what is on the others does not stop.
#[test]
fn f06_a_rolling_restart_is_three_drains() {
    let _alone = alone();
    let case = case(3, 10_000);
    play("F06", &case, cluster_of(&case), |stage| {
        let mut pauses = Pauses::default();
        for node in 0..3 {
            pauses.add(moving(stage, "a node drains", |stage| drain(stage, node)).pauses);
            pauses.add(moving(stage, "it comes back", |stage| comes_back(stage, node)).pauses);
        }
        println!("F06: {pauses}");
    });
}

/// Two nodes, one of which is killed: its partitions wait for its session, the other's do not.
#[test]
fn f01_partitions_of_a_living_node_do_not_wait_for_a_dead_one() {
    let _alone = alone();
    let case = case(2, 10_000);
    play("F01 of two", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        let moves = moving(stage, "n0 is killed", |stage| {
            assert!(stage.fleet.kill(0), "the node ended by itself");
            until_holds_all(stage, 1);
        });
        // Half a session, which is what the others wait for: no measure of the machine.
        let still = moves.stayed.iter().max().copied().unwrap_or_default();
        assert!(still < SESSION / 2, "a partition that stayed had no output for {still:?}");
        moving(stage, "n0 comes back", |stage| comes_back(stage, 0));
        stage.watch.healed();
    });
}

/// F01: a node dies in the very moment in which it gives partitions back to its group, and is there again before
/// anybody misses it. It takes up what it had kept, without a rebalance, so nobody would ask for the one in
/// which the group gives away what it had let go.
#[test]
fn f01_partitions_that_were_on_their_way_when_a_node_died_are_not_forgotten() {
    let _alone = alone();
    let special = Special { crashes: true, ..Special::default() };
    let case = Case { special, ..case(2, 10_000) };
    play("F01 in a rebalance", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        drain(stage, 1);
        drain(stage, 0);
        stage.fleet.restart_to_die(0, "in-revocation:1@chain");
        until_holds_all(stage, 0);
        stage.fleet.restart(1, None);
        assert!(stage.fleet.died_as_told(0), "it was to die giving partitions back");
        stage.fleet.restart(0, None);
        let all = stage.case.partitions as usize;
        until("every task of the chain is somewhere", SOON, || {
            let [first, second] = [0, 1].map(|node| held(&stage.fleet.log(node)));
            if first.union(&second).count() == all { Ok(()) } else { Err((first, second)) }
        });
        stage.watch.healed();
    });
}

/// F16: the broker ends a transaction that has stood still for longer than it may, while the member's
/// session goes on: the commit fails, and nothing of it is visible.
#[test]
fn f16_a_transaction_that_outlasts_its_time_is_recovered_from() {
    let _alone = alone();
    let scan = ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000");
    let (kfault, cluster) = tidemill_tests::rig::scenario::behind_kfault_with(&[scan]);
    // Standing still must not cost the session.
    let special = Special { properties: "session.timeout.ms: 45000", ..Special::default() };
    let case = Case { special, ..Case::plain(1, 8_000) };
    play("F16", &case, cluster, |stage| {
        let hold = Action::Hold { hang_up: false };
        let open = kfault.add(once(api::ADD_OFFSETS_TO_TXN, Direction::Request, hold));
        until_hit("a transaction has its records and not yet its offsets", &open);
        stage.watch.fault();
        stage.fleet.node(0).signal(Signal::STOP);
        let dump = tidemill_tests::rig::dump::Dump::of(stage.cluster.bootstrap());
        until("the broker has ended the transaction", SOON, || {
            let ends = dump.ends("chain-out").map_err(|error| format!("{error:#}"))?;
            if ends.iter().all(|end| end.stable == end.high) { Ok(()) } else { Err(format!("{ends:?}")) }
        });
        stage.fleet.node(0).signal(Signal::CONT);
        open.release(Duration::ZERO);
        until_said(stage, 0, "outcome of a commit unknown");
        until_commits(stage);
        assert_eq!(said(stage, 0, " lost "), 0, "the session ended as well");
        stage.watch.healed();
    });
}

/// F17: a third node joins and leaves again and again, five times and for as long as is asked for. What it
/// does not take never stops.
#[test]
fn f17_a_rebalance_storm_stops_only_what_moves() {
    let _alone = alone();
    let minutes =
        std::env::var("TIDEMILL_STORM_MINUTES").map_or(0, |minutes| minutes.parse().expect("minutes"));
    let case = Case { partitions: 6, ..case(3, 15_000) };
    play("F17", &case, cluster_of(&case), |stage| {
        let started = Instant::now();
        let mut pauses = Pauses::default();
        let mut rounds = 0;
        while rounds < 5 || started.elapsed() < Duration::from_secs(60 * minutes) {
            pauses.add(moving(stage, "n2 leaves", |stage| drain(stage, 2)).pauses);
            pauses.add(moving(stage, "n2 joins", |stage| comes_back(stage, 2)).pauses);
            rounds += 1;
        }
        println!("F17: {rounds} times, {pauses}");
        assert!(pauses.moved() >= 10, "{pauses}");
    });
}

/// F18: the end of a transaction takes longer than the member may go without polling, and its overlay
/// is full, so that its thread waits. The group takes its partitions away; it comes back by itself.
#[test]
fn f18_a_member_that_polls_too_late_joins_again() {
    let _alone = alone();
    let (kfault, cluster) = behind_kfault();
    let properties = "session.timeout.ms: 6000, max.poll.interval.ms: 6000";
    let special = Special { properties, ..Special::default() };
    let case = Case { special, overlay_kib: 64, rate: 2_000, ..Case::plain(1, 15_000) };
    play("F18", &case, cluster, |stage| {
        stage.watch.fault();
        let late = kfault.add(once(api::END_TXN, Direction::Request, Action::Hold { hang_up: false }));
        until_hit("the end of a transaction is held", &late);
        until_said(stage, 0, " lost ");
        late.release(SOON);
        until_commits(stage);
        stage.watch.healed();
    });
}

/// Starts a node and waits until it has a task of the chain.
fn comes_back(stage: &mut Stage, node: usize) {
    stage.fleet.restart(node, None);
    until("it has a task", SOON, || {
        let log = stage.fleet.log(node);
        if held(&log).is_empty() { Err(log.lines().last().unwrap_or_default().to_owned()) } else { Ok(()) }
    });
}

/// Waits until a node runs every task of the chain.
pub fn until_holds_all(stage: &mut Stage, node: usize) {
    let all = stage.case.partitions as usize;
    until("one node has every task", SOON, || {
        let held = held(&stage.fleet.log(node));
        if held.len() == all { Ok(()) } else { Err(held) }
    });
}

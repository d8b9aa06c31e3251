//! Faults of the way between a node and its brokers: requests and answers held, dropped and repeated.

use std::time::Duration;

use tidemill_tests::kfault::{Action, Direction, Handle, Rule, api};
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::Case;
use tidemill_tests::rig::moves::{held, moving};
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{SOON, behind_kfault, detoured, play, said, until_commits, until_said};
use tidemill_tests::wait::until;

use crate::members::until_holds_all;

/// A transaction of the chain.
const CHAIN: &[u8] = b"tidemill.chain.";

/// The one rule of a test: applied once, after so many transactions of the chain.
pub fn once(api: i16, direction: Direction, action: Action) -> Rule {
    Rule { api, direction, about: CHAIN.to_vec(), after: 20, times: 1, action }
}

pub fn until_hit(what: &str, rule: &Handle) {
    until(what, SOON, || if rule.hits() > 0 { Ok(()) } else { Err("not yet") });
}

/// Kafka's error code in an EndTxn response, which begins with the throttle time.
fn error_code(answer: &[u8]) -> i16 {
    i16::from_be_bytes([answer[4], answer[5]])
}

/// What a node asks its coordinators.
const COORDINATION: [i16; 9] = [
    api::OFFSET_FETCH,
    api::JOIN_GROUP,
    api::HEARTBEAT,
    api::SYNC_GROUP,
    api::INIT_PRODUCER_ID,
    api::ADD_PARTITIONS_TO_TXN,
    api::ADD_OFFSETS_TO_TXN,
    api::END_TXN,
    api::TXN_OFFSET_COMMIT,
];

/// F10: a node reaches the leaders of its partitions and not its coordinators, for longer than a
/// session. Another node takes over; what was on its way to the coordinators arrives in the end.
#[test]
fn f10_a_node_that_is_cut_off_from_its_coordinators_commits_nothing() {
    let _alone = alone();
    let mut case = Case::plain(2, 10_000);
    let (kfault, cluster) = detoured(&mut case);
    play("F10", &case, cluster, |stage| {
        stage.watch.fault();
        let held_up = |api| Rule {
            api,
            direction: Direction::Request,
            about: Vec::new(),
            after: 0,
            times: u32::MAX,
            action: Action::Hold { hang_up: false },
        };
        let rules = COORDINATION.map(|api| kfault.add(held_up(api)));
        moving(stage, "n0 loses its coordinators", |stage| until_holds_all(stage, 1));
        for rule in &rules {
            rule.end();
            rule.release(Duration::ZERO);
        }
        moving(stage, "n0 has them back", |stage| until_has_tasks(stage, 0));
        stage.watch.healed();
        assert!(rules.iter().any(|rule| rule.hits() > 0), "nothing was held up");
    });
}

/// F11: nothing passes between a node and the brokers, for longer than a session, and nobody is told;
/// then the network comes and goes every second.
#[test]
fn f11_a_node_without_a_network_comes_back_as_a_member() {
    let _alone = alone();
    let mut case = Case::plain(2, 12_000);
    let (kfault, cluster) = detoured(&mut case);
    play("F11", &case, cluster, |stage| {
        stage.watch.fault();
        kfault.stall(true);
        moving(stage, "n0 hears nothing", |stage| until_holds_all(stage, 1));
        kfault.stall(false);
        moving(stage, "n0 hears again", |stage| until_has_tasks(stage, 0));
        for _ in 0..5 {
            for cut in [true, false] {
                kfault.cut(cut);
                // The fault itself.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        until_commits(stage);
        until_has_tasks(stage, 0);
        stage.watch.healed();
    });
}

/// F15: the markers of every transaction come late, so that the next one is told to wait
/// (CONCURRENT_TRANSACTIONS), and a commit is due every 5 ms. It goes slower; nothing fails.
#[test]
fn f15_late_markers_slow_the_commits_down_and_fail_none() {
    let _alone = alone();
    let (kfault, cluster) = behind_kfault();
    let case = Case { commit_ms: 5, ..Case::plain(1, 8_000) };
    play("F15", &case, cluster, |stage| {
        let late = kfault.add(Rule {
            about: Vec::new(),
            times: MARKERS,
            ..once(api::WRITE_TXN_MARKERS, Direction::Request, Action::Delay(Duration::from_millis(50)))
        });
        until("markers are late", SOON, || if late.hits() >= MARKERS { Ok(()) } else { Err(late.hits()) });
        for words in ["outcome of a commit unknown", "no producer", "commit refused"] {
            assert_eq!(said(stage, 0, words), 0, "{}", stage.fleet.log(0));
        }
    });
}

/// Requests of markers that come late in F15.
const MARKERS: u32 = 200;

/// Waits until a node runs a task of the chain.
fn until_has_tasks(stage: &mut Stage, node: usize) {
    until("the node has tasks again", SOON, || {
        if held(&stage.fleet.log(node)).is_empty() { Err("none") } else { Ok(()) }
    });
}

/// F12: the request that ends a transaction is held by the network until the node has given the
/// commit up (rule P1) and others have followed. It must not end one of those.
#[test]
fn f12_a_late_end_of_a_transaction_ends_no_later_one() {
    let _alone = alone();
    let (kfault, cluster) = behind_kfault();
    play("F12", &Case::plain(1, 10_000), cluster, |stage| {
        let hold = Action::Hold { hang_up: false };
        let late = kfault.add(once(api::END_TXN, Direction::Request, hold));
        until_hit("the end of a transaction is held", &late);
        stage.watch.fault();
        until_said(stage, 0, "outcome of a commit unknown");
        until_commits(stage);
        stage.watch.healed();
        let answer = late.release(SOON).expect("the broker answers the late request");
        assert_ne!(error_code(&answer), 0, "the late end of a transaction was taken");
        println!("the late request is refused with code {}", error_code(&answer));
    });
}

/// F12 with a connection that breaks: the node hears at once that there will be no answer, goes on with a
/// new epoch (librdkafka, where it writes, sends the end again by itself and reports a commit that
/// succeeded), and the first request arrives in the middle of the next transaction.
#[test]
fn f12_a_late_end_of_a_transaction_that_was_sent_again_ends_no_later_one() {
    let _alone = alone();
    let (kfault, cluster) = behind_kfault();
    play("F12 again", &Case::plain(1, 10_000), cluster, |stage| {
        let hang_up = Action::Hold { hang_up: true };
        let late = kfault.add(once(api::END_TXN, Direction::Request, hang_up));
        until_hit("the end of a transaction is held", &late);
        let open = kfault.add(Rule {
            after: 0,
            ..once(api::ADD_OFFSETS_TO_TXN, Direction::Request, Action::Hold { hang_up: false })
        });
        until_hit("the next transaction has its records and not yet its offsets", &open);
        let answer = late.release(SOON).expect("the broker answers the late request");
        println!("the late request is answered with code {}", error_code(&answer));
        // What the late request would have committed has no offsets, so that a restart repeats it.
        stage.watch.fault();
        assert!(stage.fleet.kill(0), "the node ended by itself");
        open.release(SOON);
        stage.fleet.restart(0, None);
        stage.watch.healed();
        assert_ne!(error_code(&answer), 0, "the late end of a transaction was taken");
    });
}

/// F13: the transaction is committed and the response is lost. The node cannot know; it asks Kafka.
#[test]
fn f13_a_lost_answer_to_the_end_of_a_transaction_repeats_nothing() {
    let _alone = alone();
    let (kfault, cluster) = behind_kfault();
    play("F13", &Case::plain(1, 10_000), cluster, |stage| {
        let lost = kfault.add(once(api::END_TXN, Direction::Response, Action::Drop));
        until_hit("an answer is lost", &lost);
        stage.watch.fault();
        until_said(stage, 0, "outcome of a commit unknown");
        until_commits(stage);
        stage.watch.healed();
    });
}

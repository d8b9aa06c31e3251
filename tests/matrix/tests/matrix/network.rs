//! Faults of the way between a node and its brokers: requests and answers held, dropped and repeated.

use tidemill_tests::kfault::{Action, Direction, Handle, Rule, api};
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::Case;
use tidemill_tests::rig::scenario::{SOON, behind_kfault, play, until_commits, until_said};
use tidemill_tests::wait::until;

/// A transaction of the chain.
const CHAIN: &str = "tidemill.chain.";

/// The one rule of a test: applied once, after so many transactions of the chain.
fn once(api: i16, direction: Direction, action: Action) -> Rule {
    Rule { api, direction, about: CHAIN, after: 20, times: 1, action }
}

fn until_hit(what: &str, rule: &Handle) {
    until(what, SOON, || if rule.hits() > 0 { Ok(()) } else { Err("not yet") });
}

/// Kafka's error code in an EndTxn response, which begins with the throttle time.
fn error_code(answer: &[u8]) -> i16 {
    i16::from_be_bytes([answer[4], answer[5]])
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

/// F12 with a connection that breaks: librdkafka sends the end again by itself, so that the node sees
/// a commit that succeeded, and the first request arrives in the middle of the next transaction.
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

//! The fault matrix: each test is one row of it, on nodes under load, judged by the checker.
//!
//! Whatever the fault, the workloads must come out right: nothing lost, nothing twice, no store with a
//! wrong value, no transaction left open, no partition that stands still (W1 to W5, W8, W9). What a
//! test asserts beside that is that its fault really happened, and what the node said about it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use tidemill_kafka_harness::ApacheKafka;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::kfault::{Action, Direction, Handle, Rule, api};
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::Case;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{
    SOON, behind_kfault, cluster_of, drain, play, until_commits, until_said,
};
use tidemill_tests::wait::{until, within};

/// A transaction of the chain.
const CHAIN: &str = "tidemill.chain.";
/// The session of a group's member.
const SESSION: Duration = Duration::from_secs(10);

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

/// F03: a node stands still for longer than its session, another takes its tasks over, then it goes
/// on where it stood, with a commit in its hands.
#[test]
fn f03_a_zombie_commits_nothing() {
    let _alone = alone();
    let case = Case::plain(2, 10_000);
    play("F03", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        stage.fleet.node(0).signal(Signal::STOP);
        // Everything moves again only when the tasks have moved.
        std::thread::sleep(SESSION);
        stage.catch_up();
        stage.watch.healed();
        stage.fleet.node(0).signal(Signal::CONT);
        let noticed = ["lost", "commit waits for the rebalance", "outcome of a commit unknown"];
        until("the zombie notices", SOON, || {
            let log = stage.fleet.node(0).log();
            let said = noticed.iter().find(|words| log.contains(*words));
            said.map(|words| println!("the zombie says: {words}")).ok_or("not yet")
        });
    });
}

/// F06: three nodes are told to stop, one after the other, and come back. Each drains: it commits,
/// leaves its groups and ends well.
#[test]
fn f06_a_rolling_restart_is_three_drains() {
    let _alone = alone();
    let case = Case::plain(3, 10_000);
    play("F06", &case, cluster_of(&case), |stage| {
        for node in 0..3 {
            drain(stage, node);
            stage.fleet.restart(node, None);
            stage.catch_up();
        }
    });
}

/// F09: all brokers die under a running node, which stays up, says that it is not ready, and goes on
/// when they are back. A node that is started meanwhile ends and says why, for its supervisor to try
/// again.
#[test]
fn f09_a_node_outlives_its_brokers_and_does_not_start_without_them() {
    let _alone = alone();
    let case = Case::plain(1, 10_000);
    play("F09", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        broker(stage).kill();
        until("the node is not ready", SOON, || match ready(stage) {
            Some(200) => Err("ready"),
            _ => Ok(()),
        });
        // Longer than a session and than a transaction may last.
        std::thread::sleep(2 * SESSION);
        assert!(stage.fleet.node(0).ended().is_none(), "the node ended: {}", stage.fleet.node(0).log());
        broker(stage).restart().expect("the broker comes back");
        until("the node is ready again", SOON, || match ready(stage) {
            Some(200) => Ok(()),
            other => Err(other),
        });
        until_commits(stage);

        broker(stage).kill();
        assert!(stage.fleet.kill(0), "the node ended by itself");
        stage.fleet.restart(0, None);
        let refused = within(SOON, || stage.fleet.node(0).ended()).expect("the node ends");
        let log = stage.fleet.node(0).log();
        assert!(refused.code() == Some(3) && log.contains("Failed to connect to Kafka"), "{refused}: {log}");
        broker(stage).restart().expect("the broker comes back");
        stage.fleet.restart(0, None);
        until_commits(stage);
        stage.watch.healed();
    });
}

fn broker(stage: &mut Stage) -> &mut ApacheKafka {
    match &mut stage.cluster {
        Cluster::Apache(kafka) => kafka,
        Cluster::Embedded { .. } => unreachable!("the case asks for Apache Kafka"),
    }
}

/// The status of `/health/ready`; none without an answer.
fn ready(stage: &mut Stage) -> Option<u16> {
    let address = stage.fleet.node(0).http.clone();
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SESSION)).ok()?;
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_ascii_whitespace().nth(1)?.parse().ok()
}

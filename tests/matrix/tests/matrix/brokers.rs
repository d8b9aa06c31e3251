//! Faults of the brokers: they restart, die, and are gone.

use std::io::{Read, Write};
use std::net::TcpStream;

use tidemill_kafka_harness::ApacheKafka;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::Case;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{SOON, cluster_of, play, until_commits};
use tidemill_tests::wait::{until, within};

use crate::SESSION;

/// F07: the broker, which leads every partition and coordinates every group and transaction, is
/// restarted in order, twice. Nobody's handler hears of it.
#[test]
fn f07_a_restarted_broker_is_waited_for() {
    let _alone = alone();
    let case = Case::plain(1, 10_000);
    play("F07", &case, cluster_of(&case), |stage| {
        for _ in 0..2 {
            stage.watch.fault();
            broker(stage).stop();
            broker(stage).restart().expect("the broker comes back");
            until_commits(stage);
            stage.watch.healed();
        }
    });
}

/// F08: the broker is killed in full flight, twice, and comes back with what it had.
#[test]
fn f08_a_killed_broker_is_waited_for() {
    let _alone = alone();
    let case = Case::plain(2, 10_000);
    play("F08", &case, cluster_of(&case), |stage| {
        for _ in 0..2 {
            stage.watch.fault();
            broker(stage).kill();
            broker(stage).restart().expect("the broker comes back");
            until_commits(stage);
            stage.watch.healed();
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
        _ => unreachable!("the case asks for one broker of Apache Kafka"),
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

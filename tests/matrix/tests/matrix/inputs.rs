//! Faults of the topics that are read: records that go before they were read, and topics that go.

use std::fs;

use tidemill_tests::evidence::{Committed, Ends};
use tidemill_tests::programs::alone;
use tidemill_tests::rig::dump::Dump;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{SOON, cluster_of, drain, open, until_said};
use tidemill_tests::wait::until;

use crate::case;
use crate::stores::delete_records;

/// F19: retention passes the committed offset while the node is down. Who reads that topic halts and
/// says what to do, and skips nothing by itself; everybody else goes on.
#[test]
fn f19_records_that_went_unread_halt_their_readers() {
    let _alone = alone();
    let case = case(1, 8_000);
    let (mut stage, directory) = open("F19 retention", &case, cluster_of(&case));
    drain(&mut stage, 0);
    let dump = Dump::of(stage.cluster.bootstrap());
    let committed = dump.committed("chain", "chain-in").expect("offsets");
    until("there is more than was read, in every partition", SOON, || {
        let ends = dump.ends("chain-in").map_err(|error| format!("{error:#}"))?;
        let more =
            |at: &Committed| ends.iter().any(|end| end.partition == at.partition && end.high > at.offset + 1);
        if committed.iter().all(more) { Ok(()) } else { Err(format!("{ends:?}")) }
    });
    delete_records(&stage, "chain-in", |end| end.high);
    stage.fleet.restart(0, None);
    until_said(&mut stage, 0, "have been deleted before they were read");
    until("every reader of the topic is halted", SOON, || {
        let deployments = stage.fleet.node(0).tidemill(&["deployments"]).stdout;
        let halted = deployments.lines().filter(|line| line.contains("halted")).count();
        if halted == 2 { Ok(()) } else { Err(deployments) }
    });
    assert_eq!(dump.committed("chain", "chain-in").expect("offsets"), committed, "somebody skipped records");
    until_settles(&stage, "book", "entries");
    drop(stage);
    fs::remove_dir_all(directory).expect("a directory can be deleted");
}

/// F19: a topic is deleted under its reader, which halts and says so; everybody else goes on.
#[test]
fn f19_a_deleted_topic_halts_its_reader() {
    let _alone = alone();
    let case = case(1, 8_000);
    let (mut stage, directory) = open("F19 deleted", &case, cluster_of(&case));
    stage.fleet.node(0).tidemill(&["topics", "delete", "transfers", "--yes"]).ok();
    until_said(&mut stage, 0, "topic transfers has been deleted");
    // The feeder ends with the topic, so that nothing else comes.
    until("what was sent is handled", SOON, || {
        lag_of_chain(&mut stage).filter(|lag| *lag == 0).ok_or("not yet")
    });
    stage.fleet.node(0).tidemill(&["produce", "chain-in", "one more", "--key", "k"]).ok();
    until("the others go on", SOON, || {
        let found = stage.fleet.node(0).tidemill(&["state", "get", "chain", "heads", "k"]);
        if found.status.success() { Ok(()) } else { Err(found.stderr) }
    });
    drop(stage);
    fs::remove_dir_all(directory).expect("a directory can be deleted");
}

/// Records of the chain's input that are not committed; none without an answer.
fn lag_of_chain(stage: &mut Stage) -> Option<u64> {
    let lag = stage.fleet.node(0).tidemill(&["lag", "chain", "--output", "json"]);
    let lag: serde_json::Value = serde_json::from_str(&lag.stdout).ok()?;
    lag["total"].as_u64()
}

/// Waits until a deployment has committed the end of its input.
fn until_settles(stage: &Stage, deployment: &str, topic: &str) {
    let dump = Dump::of(stage.cluster.bootstrap());
    until("the other deployments go on", SOON, || {
        let ends = dump.ends(topic).map_err(|error| format!("{error:#}"))?;
        let committed = dump.committed(deployment, topic).map_err(|error| format!("{error:#}"))?;
        let behind = |end: &Ends| {
            committed.iter().any(|at| at.partition == end.partition && at.offset + 200 < end.high)
        };
        if ends.iter().any(behind) { Err(format!("{committed:?} of {ends:?}")) } else { Ok(()) }
    });
}

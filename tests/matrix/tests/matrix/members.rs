//! Faults of a node as a member of its groups: it stands still, stops, or is not alone.

use rustix::process::Signal;
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::Case;
use tidemill_tests::rig::scenario::{SOON, cluster_of, drain, play};
use tidemill_tests::wait::until;

use crate::SESSION;

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

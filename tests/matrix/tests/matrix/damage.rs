//! Faults of a broker's disk: record batches that do not read as they were written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tidemill_tests::cluster::Cluster;
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::Case;
use tidemill_tests::rig::dump::Dump;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{SOON, cluster_of, drain, judge, open, until_each_commits, until_said};
use tidemill_tests::wait::until;

/// What the node says of it, in an input and in a changelog.
const CRC: &str = "the checksum does not match";

/// One byte of a record batch, flipped where the broker keeps it. The broker sends what its file holds, so
/// that readers see it at once.
struct Damage {
    segment: File,
    at: u64,
}

impl Damage {
    /// Damages the last byte of the batch with this offset.
    fn at(stage: &Stage, topic: &str, partition: i32, offset: i64) -> Damage {
        let path = segment(stage, topic, partition);
        let bytes = fs::read(&path).expect("a segment can be read");
        let end = end_of_batch(&bytes, offset).unwrap_or_else(|| panic!("{path:?} has no offset {offset}"));
        let segment = OpenOptions::new().read(true).write(true).open(path).expect("it can be written");
        let damage = Damage { segment, at: end as u64 - 1 };
        damage.flip();
        damage
    }

    fn flip(&self) {
        let mut byte = [0];
        self.segment.read_exact_at(&mut byte, self.at).expect("it is there");
        self.segment.write_all_at(&[byte[0] ^ 1], self.at).expect("it can be written");
    }
}

/// The first segment of a partition; those of the tests have no other.
fn segment(stage: &Stage, topic: &str, partition: i32) -> PathBuf {
    let Cluster::Apache(kafka) = &stage.cluster else { panic!("the broker is Apache's") };
    kafka.data().join(format!("{topic}-{partition}")).join("00000000000000000000.log")
}

/// Batches lie one behind the other: base offset (i64), length of what follows (i32), and at byte 23 the last
/// offset, from the base (i32).
fn end_of_batch(segment: &[u8], offset: i64) -> Option<usize> {
    let mut at = 0;
    loop {
        let header = segment.get(at..at + 27)?;
        let base = i64::from_be_bytes(header[..8].try_into().ok()?);
        let length = i32::from_be_bytes(header[8..12].try_into().ok()?);
        let last = base + i64::from(i32::from_be_bytes(header[23..27].try_into().ok()?));
        at += 12 + usize::try_from(length).ok()?;
        if last >= offset {
            return (base <= offset && at <= segment.len()).then_some(at);
        }
    }
}

/// F31: a bit of an input flips on the broker's disk. The task that reads it halts and names the offset,
/// handles nothing of the batch and nothing behind it; its neighbours go on. Once the bit is back, a restart of
/// the task loses and repeats nothing.
#[test]
fn f31_a_damaged_batch_halts_its_task_until_it_is_whole_again() {
    let _alone = alone();
    let case = Case::plain(1, 10_000);
    let (mut stage, directory) = open("F31 input", &case, cluster_of(&case));
    stage.fleet.ask_for(CRC);
    drain(&mut stage, 0);
    let dump = Dump::of(stage.cluster.bootstrap());
    let committed = dump.committed("chain", "chain-in").expect("offsets");
    let victim = committed.first().expect("a partition is read").clone();
    until("there is more than was read", SOON, || {
        let ends = dump.ends("chain-in").map_err(|error| format!("{error:#}"))?;
        let end = ends.iter().find(|end| end.partition == victim.partition).ok_or("no end")?;
        if end.high > victim.offset + 1 { Ok(()) } else { Err(format!("{end:?}")) }
    });
    stage.watch.fault();
    let damage = Damage::at(&stage, "chain-in", victim.partition, victim.offset);
    stage.fleet.restart(0, None);
    let told = format!("chain-in/{} cannot be read at offset {}", victim.partition, victim.offset);
    until_said(&mut stage, 0, &told);
    let others = committed.iter().map(|at| at.partition).filter(|&other| other != victim.partition).collect();
    until_each_commits(&stage, &others);
    let now = dump.committed("chain", "chain-in").expect("offsets");
    assert!(now.contains(&victim), "something of it was handled: {now:?}");
    damage.flip();
    let partition = victim.partition.to_string();
    for reader in ["chain", "copy"] {
        let restart = ["restart", reader, "--partition", partition.as_str(), "--wait"];
        stage.fleet.node(0).tidemill(&restart).ok();
    }
    until_each_commits(&stage, &[victim.partition].into());
    stage.watch.healed();
    let summary = judge("F31 input", stage);
    assert!(summary.is_good(), "{:#?}\n{:#?}", summary.violations, summary.invalid);
    fs::remove_dir_all(directory).expect("a directory can be deleted");
}

/// F31: the same in a changelog whose store is gone. Values are not left out in silence: the task halts until
/// the batch is whole again.
#[test]
fn f31_a_damaged_changelog_is_not_restored_from() {
    let _alone = alone();
    let case = Case::plain(1, 10_000);
    let (mut stage, directory) = open("F31 changelog", &case, cluster_of(&case));
    stage.fleet.ask_for(CRC);
    drain(&mut stage, 0);
    let stores = stage.fleet.node(0).stores().join("chain");
    fs::remove_dir_all(stores).expect("stores can be deleted");
    let changelog = Dump::of(stage.cluster.bootstrap()).ends("tidemill.chain.changelog").expect("ends");
    let victim = changelog.iter().find(|end| end.high > 10).expect("something was written").partition;
    stage.watch.fault();
    let damage = Damage::at(&stage, "tidemill.chain.changelog", victim, 5);
    stage.fleet.restart(0, None);
    until_said(&mut stage, 0, CRC);
    damage.flip();
    stage.fleet.node(0).tidemill(&["restart", "chain", "--wait"]).ok();
    stage.watch.healed();
    let summary = judge("F31 changelog", stage);
    assert!(summary.is_good(), "{:#?}\n{:#?}", summary.violations, summary.invalid);
    fs::remove_dir_all(directory).expect("a directory can be deleted");
}

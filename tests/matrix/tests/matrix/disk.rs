//! Faults of a node's disk: full, read-only, failing. A task whose store cannot be written halts with
//! the reason and the fix, nothing of a commit is half-applied, and it goes on by itself once the disk
//! takes writes. They need a user who may mount; another one is told that nothing was tried.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tidemill_tests::programs::{alone, run};
use tidemill_tests::rig::case::Case;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{SOON, cluster_of, drain, play, said, until_commits, until_said};
use tidemill_tests::wait::until;

use crate::case;

const FULL: &str = "No space left";
const READ_ONLY: &str = "Read-only file system";

/// F32: the disk is full at each phase in turn: when stores are opened, when commits are written, when
/// the node drains, when stores are restored.
#[test]
fn f32_a_full_disk_halts_tasks_until_there_is_space() {
    let _alone = alone();
    let case = Case { write_buffers_mib: 4, ..case(1, 10_000) };
    play("F32", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        stage.fleet.ask_for(FULL);
        drain(stage, 0);
        let Some(disk) = Disk::tmpfs(&stage.fleet.node(0).stores(), 32) else { return skip(stage) };

        let filler = disk.fill(0);
        stage.fleet.restart(0, None);
        until_said(stage, 0, FULL);
        assert_eq!(
            said(stage, 0, "task starts deployment=\"chain\""),
            0,
            "a store was opened on a full disk"
        );
        fs::remove_file(&filler).expect("space again");
        until_commits(stage);

        disk.fill(0);
        let before = said(stage, 0, FULL);
        until("what is in memory cannot be written", SOON, || {
            let now = said(stage, 0, FULL);
            if now > before { Ok(()) } else { Err(now) }
        });
        drain(stage, 0);

        fs::remove_file(&filler).expect("space again");
        assert!(stage.fleet.wipe(0) > 0, "there were no stores");
        // Some stores have room, others not.
        disk.fill(256 << 10);
        stage.fleet.restart(0, None);
        until_said(stage, 0, FULL);
        fs::remove_file(&filler).expect("space again");
        until_commits(stage);
        leave(stage, disk);
        stage.watch.healed();
    });
}

/// F33: the disk is read-only when the node starts, until it is mounted again for writing.
#[test]
fn f33_a_read_only_disk_halts_tasks_until_it_takes_writes() {
    let _alone = alone();
    let case = case(1, 8_000);
    play("F33", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        stage.fleet.ask_for(READ_ONLY);
        drain(stage, 0);
        let Some(disk) = Disk::ext4(&stage.fleet.node(0).stores()) else { return skip(stage) };
        stage.fleet.restart(0, None);
        until_commits(stage);
        drain(stage, 0);
        disk.remount("ro");
        stage.fleet.restart(0, None);
        until_said(stage, 0, READ_ONLY);
        disk.remount("rw");
        until_commits(stage);
        leave(stage, disk);
        stage.watch.healed();
    });
}

/// F33: the file system fails under a running node, and takes no writes any more. Its stores are put
/// right by the node's next start on a disk that has been seen to.
#[test]
fn f33_a_disk_that_fails_in_mid_run_leaves_stores_to_start_from() {
    let _alone = alone();
    let case = case(1, 10_000);
    play("F33 failing", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        stage.fleet.ask_for(READ_ONLY);
        stage.fleet.ask_for("Input/output error");
        drain(stage, 0);
        let Some(disk) = Disk::ext4(&stage.fleet.node(0).stores()) else { return skip(stage) };
        stage.fleet.restart(0, None);
        until_commits(stage);
        disk.fail();
        until_said(stage, 0, READ_ONLY);
        assert!(stage.fleet.kill(0), "the node ended by itself");
        disk.repair();
        stage.fleet.restart(0, None);
        until_commits(stage);
        leave(stage, disk);
        stage.watch.healed();
    });
}

fn skip(stage: &mut Stage) {
    println!("  not run: this user may not mount");
    stage.fleet.restart(0, None);
    stage.watch.healed();
}

/// Takes the disk away from a node, which finds older stores where it was mounted.
fn leave(stage: &mut Stage, disk: Disk) {
    drain(stage, 0);
    disk.unmount();
    stage.fleet.restart(0, None);
    until_commits(stage);
}

/// A small disk of its own.
struct Disk {
    at: PathBuf,
    /// Of an ext4; a tmpfs has none.
    image: Option<PathBuf>,
}

impl Disk {
    /// None where mounting is not allowed.
    fn tmpfs(at: &Path, mib: u32) -> Option<Disk> {
        let size = format!("size={mib}m");
        let disk = Disk { at: at.into(), image: None };
        succeeds(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at)).then_some(disk)
    }

    fn ext4(at: &Path) -> Option<Disk> {
        let image = at.with_file_name("disk.img");
        // Sparse. RocksDB allocates 4 MiB for the manifest of every store.
        File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("an image");
        if !succeeds(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)) {
            return None;
        }
        let disk = Disk { at: at.into(), image: Some(image) };
        disk.mount().then_some(disk)
    }

    fn mount(&self) -> bool {
        let image = self.image.as_ref().expect("an ext4");
        succeeds(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(image).arg(&self.at))
    }

    fn remount(&self, how: &str) {
        let how = format!("remount,{how}");
        let done = run(Command::new("mount").args(["-o", &how]).arg(&self.at));
        assert!(done.status.success(), "{done:#?}");
    }

    /// Leaves so many bytes; answers the file that holds the others.
    fn fill(&self, left: usize) -> PathBuf {
        let filler = self.at.join("filler");
        let room = self.at.join("room");
        fs::write(&room, vec![1; left]).expect("room");
        let mut file = File::create(&filler).expect("a file");
        let written = io::copy(&mut io::repeat(1), &mut file);
        assert_eq!(written.expect_err("the disk is full").kind(), io::ErrorKind::StorageFull);
        fs::remove_file(room).expect("room");
        filler
    }

    /// Has the kernel find an error in the file system, as it would in a damaged one.
    fn fail(&self) {
        let found =
            run(Command::new("findmnt").args(["--noheadings", "--output", "SOURCE"]).arg(&self.at)).ok();
        let device = found.trim().rsplit('/').next().expect("a device").to_owned();
        let switch = PathBuf::from(format!("/sys/fs/ext4/{device}/trigger_fs_error"));
        let written = File::options().write(true).open(&switch).and_then(|mut file| file.write_all(b"1\n"));
        written.unwrap_or_else(|error| panic!("{}: {error}", switch.display()));
    }

    /// What an administrator does with a disk that has failed.
    fn repair(&self) {
        let image = self.image.as_ref().expect("an ext4");
        assert!(succeeds(Command::new("umount").arg(&self.at)), "somebody still uses the disk");
        // Answers 1 for what it has mended.
        let checked = run(Command::new("e2fsck").args(["-f", "-y"]).arg(image));
        assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:#?}");
        assert!(self.mount(), "the disk can be mounted again");
    }

    fn unmount(self) {
        assert!(succeeds(Command::new("umount").arg(&self.at)), "somebody still uses the disk");
        std::mem::forget(self);
    }
}

impl Drop for Disk {
    /// After a failed assertion, when the node may still have files open.
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg("-l").arg(&self.at));
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

//! F32: the disk is full in mid-run.

use std::path::Path;
use std::process::Command;

use tidemill_proto::v1::DeploymentState;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually, status};
use crate::{WORD_COUNT, count};

/// A small disk of its own; unmounted when dropped.
struct Tmpfs<'a>(&'a Path);

impl Tmpfs<'_> {
    /// None where mounting is not allowed.
    fn mount(path: &Path, mib: u32) -> Option<Tmpfs<'_>> {
        std::fs::create_dir_all(path).expect("a directory");
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status();
        mounted.is_ok_and(|status| status.success()).then_some(Tmpfs(path))
    }

    /// Leaves no byte; the file that holds them.
    fn fill(&self) -> std::path::PathBuf {
        let filler = self.0.join("filler");
        let mut file = std::fs::File::create(&filler).expect("a file");
        let written = std::io::copy(&mut std::io::repeat(1), &mut file);
        assert_eq!(written.expect_err("the disk is full").kind(), std::io::ErrorKind::StorageFull);
        filler
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        // Lazily: after a failed assertion the node may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_halts_tasks_with_state_until_there_is_space_and_nobody_else() {
    let world = World::new(&[("words", 1), ("counts", 1), ("lines", 1), ("kept", 1)]);
    let path = world.dir.path().join("node-n");
    let Some(disk) = Tmpfs::mount(&path, 24) else {
        println!("not run: this user may not mount a tmpfs");
        return;
    };
    // Memtables this small are flushed within the test.
    let node = world.node_with("state_free_min: 0\nmemory: { write_buffers: 4MiB }\n");
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));
    let filter = "name: keep\nmodule: filter.wasm\ninputs: { in: { topic: lines } }\noutputs: { out: { topic: kept } }\n\
                  config: { keep: [{ exists: true }] }\n";
    deploy(&node, filter, &build_guest("plugins/filter"));
    world.produce("words", &["a", "a"]);
    eventually("a is counted", || count(&node, "a") == Some(2));

    let filler = disk.fill();
    let mut keys = 0;
    eventually("it halts, and says why and what to do", || {
        let more: Vec<String> = (keys..keys + 2_000).map(|key| format!("{key:0>500}")).collect();
        keys += 2_000;
        world.produce_to("words", 0, &more.iter().map(String::as_str).collect::<Vec<_>>());
        let (state, reason) = status(&node, "word-count");
        state == DeploymentState::Halted
            && reason.contains("No space left")
            && reason.contains("free some space")
    });
    world.produce("lines", &["still here"]);
    eventually("the other goes on", || world.latest("kept").contains_key("still here"));

    std::fs::remove_file(filler).expect("space again");
    world.produce("words", &["a"]);
    eventually("it resumes by itself", || count(&node, "a") == Some(3));
    let last = format!("{:0>500}", keys - 1);
    eventually("every key was counted once", || count(&node, &last) == Some(1));
    node.stop();
    let counts = world.latest("counts");
    assert_eq!(counts.len(), keys + 1);
    assert!(counts.iter().all(|(key, count)| key == "a" || count == "1"));
    drop(disk);
}

//! The two topics as logs in memory, and everybody who reads and writes them, step by step. A module is there if it
//! is once everything is compacted.

use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::{ControlEntry, DeleteEntry, DeployEntry};

use super::*;
use crate::node::history::VERSIONS_MAX;
use crate::node::registry::Outcome;
use crate::node::simulation::random::Random;

const HOUR: Duration = Duration::from_secs(3600);
/// Of every module.
const CHUNKS: usize = 2;

struct World {
    began: Instant,
    now: Duration,
    modules: Vec<LogRecord>,
    registry: Registry,
    uploads: usize,
}

/// A deploy under way.
struct Deploy {
    name: &'static str,
    digest: &'static str,
    expected_revision: u64,
    began: Duration,
    upload: usize,
    /// That are written.
    chunks: usize,
}

/// A rollback under way.
struct Rollback {
    name: &'static str,
    digest: String,
    expected_revision: u64,
}

/// A node that looks now and then, how far its look is, and what is still to be nulled after it.
#[derive(Default)]
struct Collector {
    uploads: Uploads,
    began: Option<Duration>,
    read: Option<Duration>,
    keys: Vec<String>,
}

impl World {
    fn new() -> World {
        World {
            began: Instant::now(),
            now: Duration::ZERO,
            modules: Vec::new(),
            registry: Registry::default(),
            uploads: 0,
        }
    }

    fn write(&mut self, key: &str, value: Option<&[u8]>) {
        self.modules.push(LogRecord {
            offset: Offset(self.modules.len() as u64),
            timestamp_ms: 0,
            key: key.as_bytes().to_vec(),
            value: value.map(<[u8]>::to_vec),
            stamp: None,
        });
    }

    fn write_chunk(&mut self, digest: &str, upload: usize, index: usize) {
        let key = ChunkKey { digest, index, chunks: CHUNKS, upload: &upload.to_string() }.to_string();
        self.write(&key, Some(b"chunk"));
    }

    fn new_upload(&mut self) -> usize {
        self.uploads += 1;
        self.uploads
    }

    fn upload(&mut self, digest: &str) {
        let upload = self.new_upload();
        (0..CHUNKS).for_each(|index| self.write_chunk(digest, upload, index));
    }

    fn begin_deploy(&mut self, name: &'static str, digest: &'static str) -> Deploy {
        let (expected_revision, began) = (self.registry.revision(name), self.now);
        Deploy { name, digest, expected_revision, began, upload: self.new_upload(), chunks: 0 }
    }

    /// A deploy whose module is uploaded, and that is not proposed yet.
    fn uploaded(&mut self, name: &'static str, digest: &'static str) -> Deploy {
        let mut deploy = self.begin_deploy(name, digest);
        while self.go_on(&mut deploy) {}
        deploy
    }

    /// False when the upload was whole already.
    fn go_on(&mut self, deploy: &mut Deploy) -> bool {
        if deploy.chunks == CHUNKS {
            return false;
        }
        self.write_chunk(deploy.digest, deploy.upload, deploy.chunks);
        deploy.chunks += 1;
        true
    }

    /// What a deploy does once its module is uploaded. True if its version is accepted.
    fn propose(&mut self, deploy: &Deploy) -> bool {
        let is_accepted = self.name(deploy.name, deploy.digest, deploy.expected_revision);
        if is_accepted && is_late(ms(deploy.began), ms(self.now)) {
            self.upload(deploy.digest);
        }
        is_accepted
    }

    fn deploy(&mut self, name: &'static str, digest: &'static str) {
        let deploy = self.uploaded(name, digest);
        assert!(self.propose(&deploy));
    }

    /// Proposes a version; true if it is accepted.
    fn name(&mut self, name: &str, digest: &str, expected_revision: u64) -> bool {
        let entry = DeployEntry {
            name: name.into(),
            expected_revision,
            module: digest.into(),
            incarnation: "i".into(),
            ..DeployEntry::default()
        };
        self.apply(Entry::Deploy(entry))
    }

    fn delete(&mut self, name: &str, keep_state: bool) {
        let entry = DeleteEntry {
            name: name.into(),
            expected_revision: self.registry.revision(name),
            keep_state,
            ..DeleteEntry::default()
        };
        self.apply(Entry::Delete(entry));
    }

    fn apply(&mut self, entry: Entry) -> bool {
        let entry = ControlEntry { entry: Some(entry), ..ControlEntry::default() };
        let outcome = self.registry.apply(self.registry.next, ms(self.now), &entry);
        matches!(outcome, Outcome::Accepted(_))
    }

    /// Reads the modules' topic to its end: as it was written, or what compaction leaves of it and of its nulls.
    fn read(&self, node: &mut Collector, is_compacted: bool) {
        let from = node.uploads.next.0 as usize;
        for (at, record) in self.modules.iter().enumerate().skip(from) {
            let is_last = !self.modules[at + 1..].iter().any(|later| later.key == record.key);
            if !is_compacted || (is_last && record.value.is_some()) {
                node.uploads.read(record);
            }
        }
        node.uploads.next = Offset(self.modules.len() as u64);
        node.read = Some(self.now);
    }

    /// Reads the registry to its end, and decides.
    fn decide(&self, node: &mut Collector) {
        let at = |time: Option<Duration>| self.began + time.expect("a step of the look before this one");
        let (began, read) = (at(node.began.take()), at(node.read.take()));
        let unneeded = node.uploads.unneeded(&self.registry, began, read);
        node.keys = unneeded.into_iter().flat_map(|upload| upload.keys).collect();
    }

    /// A look without its nulls; how many they will be.
    fn look(&self, node: &mut Collector) -> usize {
        node.began = Some(self.now);
        self.read(node, false);
        self.decide(node);
        node.keys.len()
    }

    /// Writes what a look has decided.
    fn collect(&mut self, node: &mut Collector) {
        std::mem::take(&mut node.keys).iter().for_each(|key| self.write(key, None));
    }

    /// Looks twice, a day apart.
    fn pass_a_day(&mut self, node: &mut Collector) -> usize {
        self.look(node);
        self.now += KEEP;
        self.look(node)
    }

    /// Modules that can be read when everything is compacted.
    fn loadable(&self) -> BTreeSet<&str> {
        let latest: BTreeMap<&[u8], bool> =
            self.modules.iter().map(|record| (record.key.as_slice(), record.value.is_some())).collect();
        let mut chunks: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for (key, _) in latest.into_iter().filter(|(_, is_there)| *is_there) {
            let key = ChunkKey::parse(key).expect("a key");
            chunks.entry(key.digest).or_default().insert(key.index);
        }
        chunks.into_iter().filter(|(_, chunks)| chunks.len() == CHUNKS).map(|(digest, _)| digest).collect()
    }
}

fn ms(time: Duration) -> i64 {
    time.as_millis() as i64
}

#[test]
fn a_module_goes_a_day_after_its_last_version_and_not_before() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.deploy("a", "m");
    assert_eq!(world.pass_a_day(&mut node), 0, "it is named");
    world.delete("a", false);
    assert_eq!(world.look(&mut node), 0);
    world.now += KEEP - HOUR;
    assert_eq!(world.look(&mut node), 0);
    world.now += HOUR;
    assert_eq!(world.look(&mut node), CHUNKS);
    world.collect(&mut node);
    assert!(world.loadable().is_empty());
    assert_eq!(world.pass_a_day(&mut node), 0, "it is gone");
}

#[test]
fn the_day_begins_anew_with_a_version_and_with_the_process() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.deploy("a", "m");
    world.delete("a", true);
    world.deploy("a", "n");
    assert_eq!(world.pass_a_day(&mut node), 0, "the life that was kept names m");
    world.delete("a", false);
    world.look(&mut node);
    world.now += KEEP;
    assert_eq!(world.look(&mut Collector::default()), 0);
    assert_eq!(world.look(&mut node), 2 * CHUNKS);
}

#[test]
fn an_upload_that_waits_for_its_version_stays() {
    let (mut world, mut node) = (World::new(), Collector::default());
    let deploy = world.uploaded("a", "m");
    world.look(&mut node);
    world.now += LATE;
    assert_eq!(world.look(&mut node), 0);
    assert!(world.propose(&deploy));
    assert_eq!(world.pass_a_day(&mut node), CHUNKS, "the first; it came late, and was repeated");
    world.collect(&mut node);
    assert_eq!(world.loadable(), ["m"].into());
}

/// The gap this aims at: a node has decided, and its nulls come after the next upload of the same module.
#[test]
fn nulls_that_come_late_take_nothing_of_a_later_upload() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.deploy("a", "m");
    world.delete("a", false);
    assert_eq!(world.pass_a_day(&mut node), CHUNKS);
    let deploy = world.uploaded("a", "m");
    world.collect(&mut node);
    assert!(world.propose(&deploy));
    assert_eq!(world.loadable(), ["m"].into());
}

/// The gap this aims at: between the end of one topic and the end of the other.
#[test]
fn a_version_between_the_two_reads_of_a_look_is_seen_by_it_or_has_an_upload_that_is_not() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.deploy("a", "m");
    world.delete("a", false);
    world.look(&mut node);
    world.now += KEEP;
    node.began = Some(world.now);
    world.read(&mut node, false);
    world.deploy("a", "m");
    world.decide(&mut node);
    assert!(node.keys.is_empty(), "for all that this node knows, the first upload is the last");
    assert_eq!(world.pass_a_day(&mut node), CHUNKS);
    world.collect(&mut node);
    assert_eq!(world.loadable(), ["m"].into());
}

#[test]
fn a_deploy_that_slept_for_days_before_it_proposed_uploads_again() {
    let (mut world, mut node) = (World::new(), Collector::default());
    let deploy = world.uploaded("a", "m");
    assert_eq!(world.pass_a_day(&mut node), CHUNKS);
    world.collect(&mut node);
    assert!(world.loadable().is_empty());
    assert!(world.propose(&deploy));
    assert_eq!(world.loadable(), ["m"].into());
}

#[test]
fn a_clock_that_is_wrong_costs_an_upload_and_no_module() {
    let hour = ms(HOUR);
    for (uploaded_ms, named_ms, is_expected) in [
        (10 * hour, 10 * hour + 1, false),
        (10 * hour, 10 * hour - 1, false),
        (10 * hour, 11 * hour, true),
        (10 * hour, 9 * hour, true),
        (0, i64::MAX, true),
        (i64::MIN, i64::MAX, true),
    ] {
        assert_eq!(is_late(uploaded_ms, named_ms), is_expected, "{uploaded_ms} {named_ms}");
    }
}

#[test]
fn two_nodes_that_see_different_registries_delete_nothing_that_is_needed() {
    let (mut world, mut one, mut other) = (World::new(), Collector::default(), Collector::default());
    world.deploy("a", "m");
    world.delete("a", false);
    world.look(&mut other);
    assert_eq!(world.pass_a_day(&mut one), CHUNKS);
    world.deploy("b", "m");
    // One nulls it because nothing named it, this one because there is a later one.
    assert_eq!(world.look(&mut other), CHUNKS);
    world.collect(&mut other);
    world.collect(&mut one);
    assert_eq!(world.loadable(), ["m"].into());
    assert_eq!((world.pass_a_day(&mut one), world.pass_a_day(&mut other)), (0, 0));
}

#[test]
fn what_a_crash_leaves_of_an_upload_goes_with_the_next_day_of_any_node() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.deploy("a", "m");
    world.delete("a", false);
    assert_eq!(world.pass_a_day(&mut node), CHUNKS);
    node.keys.truncate(1);
    world.collect(&mut node);
    world.deploy("a", "m");
    let mut next = Collector::default();
    world.read(&mut next, true);
    assert_eq!(world.pass_a_day(&mut next), 1);
    world.collect(&mut next);
    assert_eq!(world.loadable(), ["m"].into());
}

/// The gap this aims at: a deploy sleeps in its upload, which is nulled in part and then goes on; a node that has
/// missed the nulls, because they are compacted, would take it for whole and the one before it for superseded.
#[test]
fn an_upload_of_a_named_module_that_is_not_whole_stays_until_a_whole_one_began_after_it() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.deploy("a", "m");
    let mut sleeps = world.begin_deploy("b", "m");
    world.go_on(&mut sleeps);
    assert_eq!(world.pass_a_day(&mut node), 0);
    world.go_on(&mut sleeps);
    assert_eq!(world.pass_a_day(&mut node), CHUNKS, "now it is whole, and the first one goes");
    world.collect(&mut node);
    let mut dies = world.begin_deploy("b", "m");
    world.go_on(&mut dies);
    world.deploy("a", "m");
    assert_eq!(world.pass_a_day(&mut node), CHUNKS + 1);
    world.collect(&mut node);
    assert_eq!(world.loadable(), ["m"].into());
}

/// The gap this aims at: the process sleeps within a look, before or after it has read the topic.
#[test]
fn a_node_that_sleeps_in_a_look_makes_no_upload_older_than_it_is() {
    let (mut world, mut node) = (World::new(), Collector::default());
    node.began = Some(world.now);
    world.now += KEEP;
    world.upload("m");
    world.read(&mut node, false);
    world.decide(&mut node);
    assert_eq!(world.look(&mut node), 0, "it was read a moment ago");

    let mut node = Collector::default();
    world.look(&mut node);
    node.began = Some(world.now);
    world.read(&mut node, false);
    world.now += KEEP;
    world.decide(&mut node);
    assert!(node.keys.is_empty(), "what was uploaded since is not known to it");
}

#[test]
fn only_the_last_whole_upload_of_a_module_stays_however_often_it_was_deployed() {
    let (mut world, mut node) = (World::new(), Collector::default());
    for name in ["a", "b", "c"] {
        world.deploy(name, "m");
    }
    assert_eq!(world.pass_a_day(&mut node), 2 * CHUNKS);
    world.collect(&mut node);
    for name in ["c", "b"] {
        world.delete(name, false);
    }
    assert_eq!(world.pass_a_day(&mut node), 0, "the last is of a deployment that is gone, and needed");
    assert_eq!(world.loadable(), ["m"].into());
}

#[test]
fn a_version_that_can_be_rolled_back_to_keeps_its_module_until_it_is_forgotten() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.deploy("a", "m");
    for _ in 0..VERSIONS_MAX - 1 {
        world.deploy("a", "n");
    }
    assert!(world.pass_a_day(&mut node) > 0);
    world.collect(&mut node);
    assert_eq!(world.loadable(), ["m", "n"].into());

    // Somebody sees that it is there, and somebody else deploys the version that makes it forgotten.
    let seen = world.registry.revision("a");
    world.deploy("a", "n");
    assert!(world.pass_a_day(&mut node) >= CHUNKS);
    world.collect(&mut node);
    assert_eq!(world.loadable(), ["n"].into());
    assert!(!world.name("a", "m", seen), "the rollback that was begun before is refused");
}

#[test]
fn keys_without_an_upload_are_left_alone() {
    let (mut world, mut node) = (World::new(), Collector::default());
    world.write("m/0/1", Some(b"chunk"));
    world.write("no key of ours", Some(b""));
    assert_eq!(world.pass_a_day(&mut node), 0);
}

/// A failed one is printed and can be put here alone.
const SEEDS: std::ops::Range<u64> = 0..200;
const STEPS: usize = 300;
const NAMES: [&str; 2] = ["a", "b"];
const DIGESTS: [&str; 3] = ["m", "n", "o"];

/// Whatever happens in whatever order: each step is one of a deploy, a rollback, a delete or a look, or time.
struct Steps {
    random: Random,
    world: World,
    deploys: Vec<Deploy>,
    rollbacks: Vec<Rollback>,
    nodes: [Collector; 2],
    slept: usize,
}

impl Steps {
    fn new(seed: u64) -> Steps {
        Steps {
            random: Random::new(seed),
            world: World::new(),
            deploys: Vec::new(),
            rollbacks: Vec::new(),
            nodes: Default::default(),
            slept: 0,
        }
    }

    fn step(&mut self) {
        let name = NAMES[self.random.below(NAMES.len())];
        match self.random.below(16) {
            0 => self.world.now += HOUR * self.random.below(40) as u32,
            1 => {
                let digest = DIGESTS[self.random.below(DIGESTS.len())];
                self.deploys.push(self.world.begin_deploy(name, digest));
            }
            2..6 => self.go_on(),
            6 => self.begin_rollback(name),
            7 => {
                if let Some(Rollback { name, digest, expected_revision }) = self.rollbacks.pop() {
                    self.world.name(name, &digest, expected_revision);
                }
            }
            8 => self.world.delete(name, self.random.one_in(4)),
            _ => self.look(),
        }
    }

    fn go_on(&mut self) {
        if self.deploys.is_empty() {
            return;
        }
        let at = self.random.below(self.deploys.len());
        if !self.world.go_on(&mut self.deploys[at]) {
            let deploy = self.deploys.swap_remove(at);
            let has_slept = self.world.now - deploy.began >= KEEP;
            self.slept += usize::from(self.world.propose(&deploy) && has_slept);
        }
    }

    fn begin_rollback(&mut self, name: &'static str) {
        let Some(registered) = self.world.registry.deployments.get(name) else { return };
        let versions: Vec<_> = registered.history.iter().collect();
        let digest = versions[self.random.below(versions.len())].module.clone();
        self.rollbacks.push(Rollback { name, digest, expected_revision: registered.revision });
    }

    fn look(&mut self) {
        let node = &mut self.nodes[self.random.below(2)];
        if self.random.one_in(20) {
            *node = Collector::default();
        } else if let Some(key) = node.keys.pop() {
            self.world.write(&key, None);
        } else if node.began.is_none() {
            node.began = Some(self.world.now);
        } else if node.read.is_none() {
            self.world.read(node, self.random.one_in(2));
        } else {
            self.world.decide(node);
        }
    }
}

#[test]
fn whatever_happens_every_named_module_can_be_loaded() {
    let (mut nulls, mut slept) = (0, 0);
    for seed in SEEDS {
        let mut steps = Steps::new(seed);
        for step in 0..STEPS {
            steps.step();
            let (named, loadable) = (steps.world.registry.modules(), steps.world.loadable());
            let lost: Vec<_> = named.iter().filter(|digest| !loadable.contains(*digest)).collect();
            assert!(lost.is_empty(), "seed {seed}, step {step}: {lost:?} named and lost");
        }
        nulls += steps.world.modules.iter().filter(|record| record.value.is_none()).count();
        slept += steps.slept;
    }
    assert!(nulls > 1000 && slept > 100, "the seeds reach what they are for: {nulls} nulls, {slept} slept");
}

//! Random work against a model: batches, scans, seals, commits, drops, crashes with stores reopened
//! unflushed, outcomes that nobody learns, stores lost, logs compacted. Whatever happens, what is
//! committed equals a fold of the input up to the committed offset; and so do the numbers that were heard.

use std::collections::{BTreeMap, BTreeSet};

use super::super::recovery::*;
use super::super::sequence::Heard;
use super::sequences::sequences;
use super::*;
use crate::config::deployment::Gaps;
use crate::store::Table;

/// Seeds of one run; a failed one is printed and can be put here alone.
const SEEDS_IN_MEMORY: std::ops::Range<u64> = 0..100;
const SEEDS_ON_DISK: std::ops::Range<u64> = 100..106;
const STEPS: usize = 120;

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

const COMMANDS: [&str; 16] = [
    "", "", "", "", "", "mark", "mark", "unmark", "scan", "counts", "mark", "fail", "trap", "huge", "big",
    "retry",
];

fn fails(command: &str) -> bool {
    matches!(command, "fail" | "trap" | "huge" | "big" | "retry")
}

/// The truth: a fold of the input, with `skip`.
#[derive(Default)]
struct Model {
    counts: BTreeMap<String, u64>,
    marks: BTreeMap<String, ()>,
    emitted: Vec<String>,
}

impl Model {
    fn of(input: &[(String, &str)]) -> Model {
        let mut model = Model::default();
        for (key, command) in input {
            if fails(command) {
                continue;
            }
            let count = model.counts.entry(key.clone()).or_default();
            *count += 1;
            let mut value = count.to_string();
            match *command {
                "mark" => drop(model.marks.insert(key.clone(), ())),
                "unmark" => drop(model.marks.remove(key)),
                "scan" => {
                    value = model.marks.keys().map(|key| format!("{key}:x")).collect::<Vec<_>>().join(",")
                }
                "counts" => {
                    let counts = model.counts.iter().map(|(key, count)| format!("{key}:{count}"));
                    value = counts.collect::<Vec<_>>().join(",");
                }
                _ => {}
            }
            model.emitted.push(format!("{key}={value}"));
        }
        model
    }

    fn check(&self, store: &StoreReader, at: Offset) {
        store
            .snapshot(|snapshot| {
                let position = snapshot.position()?;
                let offset = position.as_ref().map_or(0, |position| position.inputs[0].offset);
                assert_eq!(offset, at.0, "position and values are one snapshot");
                let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
                let page = snapshot.scan("counts", b"", None, 1000)?;
                let counts: Vec<_> = page.keys.iter().map(text).zip(page.values.iter().map(text)).collect();
                let expected: Vec<_> =
                    self.counts.iter().map(|(key, count)| (key.clone(), count.to_string())).collect();
                assert_eq!(counts, expected);
                let page = snapshot.scan("sorted", b"", None, 1000)?;
                assert_eq!(
                    page.keys.iter().map(text).collect::<Vec<_>>(),
                    self.marks.keys().cloned().collect::<Vec<_>>()
                );
                let counts: usize = expected.iter().map(|(key, count)| key.len() + count.len()).sum();
                let marks: usize = self.marks.keys().map(|key| key.len() + 1).sum();
                let counted: Vec<_> =
                    position.iter().flat_map(|position| &position.stores).map(|size| size.bytes).collect();
                assert!(position.is_none() || counted == [counts as u64, marks as u64], "{counted:?}");
                Ok(())
            })
            .unwrap();
    }
}

/// The numbers of each key that have come, whatever has become of their records.
fn check_heard(store: &StoreReader, input: &[(String, &str)], numbers: &[u64]) {
    let mut come: BTreeMap<&str, (BTreeSet<u64>, u64)> = BTreeMap::new();
    for (offset, ((key, _), &number)) in input.iter().zip(numbers).enumerate() {
        let (come, last) = come.entry(key.as_str()).or_default();
        come.insert(number);
        *last = offset as u64;
    }
    for (key, (come, offset)) in come {
        let name = [&[0u8, 0][..], key.as_bytes()].concat();
        let row = store.snapshot(|snapshot| snapshot.row(Table::Sequences, &name)).unwrap().unwrap();
        let heard = Heard::decode(&row).unwrap();
        let highest = *come.last().unwrap();
        let is_in = |bit: &u64| highest.checked_sub(bit + 1).is_some_and(|number| come.contains(&number));
        let below = (0..64).filter(is_in).map(|bit| 1u64 << bit).sum::<u64>();
        assert_eq!((heard.highest, heard.below, heard.offset), (highest, below, offset), "{key}");
    }
}

struct Simulation<'a> {
    random: Random,
    bench: &'a Bench,
    dir: std::path::PathBuf,
    config: TaskConfig,
    input: Vec<(String, &'static str)>,
    /// Of each record in the sequence of its key; empty = there are no sequences.
    numbers: Vec<u64>,
    kafka: FakeKafka,
    task: Option<Task>,
    sealed: Option<Sealed>,
    /// Input up to here is committed, as the world outside sees it.
    committed: Offset,
    /// The changelog up to here has nothing uncommitted that is a key's last: `min.compaction.lag.ms` sees to it.
    settled: usize,
}

impl<'a> Simulation<'a> {
    fn new(seed: u64, bench: &'a Bench) -> Simulation<'a> {
        let mut random = Random(seed.wrapping_mul(2_654_435_761).wrapping_add(0x9E37_79B9));
        let mut config = config(Failures::skip());
        config.guarantee =
            if seed.is_multiple_of(3) { Guarantee::AtLeastOnce } else { Guarantee::ExactlyOnce };
        config.changelog.record_bytes_max = 1500;
        config.outputs[0].record_bytes_max = 1500;
        // Small enough to be turned over in every run; without one no size is known beforehand.
        config.cache = CacheBudget::new(if seed.is_multiple_of(2) { 4096 } else { 0 });
        config.store_bytes_max = Some(1 << 40);
        config.prefetch_bytes_max = if random.one_in(2) { 20 } else { 1 << 20 };
        let keys = 1 + random.below(20);
        let input = (0..4000).map(|_| {
            let key = format!("k{}", random.below(keys));
            (key, COMMANDS[random.below(COMMANDS.len())])
        });
        let input: Vec<(String, &str)> = input.collect();
        let mut numbers = Vec::new();
        if config.guarantee == Guarantee::ExactlyOnce && random.one_in(2) {
            config.inbox = Some(sequences(Gaps::Report));
            let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
            for (key, _) in &input {
                let highest = highest.entry(key).or_insert(10);
                // Mostly the next one, sometimes one that is late or repeated, sometimes one beyond a gap.
                let number = match random.below(8) {
                    0 => *highest - random.below(6) as u64,
                    1 => *highest + 1 + random.below(4) as u64,
                    _ => *highest + 1,
                };
                *highest = number.max(*highest);
                numbers.push(number);
            }
        }
        let dir = bench.dir.path().join(seed.to_string());
        let kafka = FakeKafka::default();
        Simulation {
            random,
            bench,
            dir,
            config,
            input,
            numbers,
            kafka,
            task: None,
            sealed: None,
            committed: Offset(0),
            settled: 0,
        }
    }

    fn recover(&mut self) {
        let started = vec![Some(Started { topic_id: "words-id".into(), offset: Offset(0) })];
        let job = Job {
            config: &self.config,
            partition: PARTITION,
            known: Known {
                started,
                first_commit: vec![
                    self.committed > Offset(0) && self.config.guarantee == Guarantee::ExactlyOnce,
                ],
            },
            cluster_id: "cluster",
            disk: Disk { budget: &self.bench.budget, dir: &self.dir, open: None },
            rules: Rules {
                delete_retention: Duration::from_secs(86_400),
                min_compaction_lag: Duration::from_secs(86_400),
                old_tail: OldTail::Halt,
                wall_ms: 0,
            },
        };
        let mut hooks = Hooks { progress: &mut |_| true, pause: &mut |_| true };
        let Outcome::Start(start, _) = recover(job, &mut self.kafka, &mut hooks).unwrap() else {
            panic!("no start")
        };
        assert_eq!(start.next[0], self.committed);
        let config = Arc::new(self.config.clone());
        let task = Task::new(config, PARTITION, Box::new(Counter::default()), adopted(start)).unwrap();
        self.task = Some(task);
        self.check();
    }

    fn check(&self) {
        let model = Model::of(&self.input[..self.committed.0 as usize]);
        let task = self.task.as_ref().unwrap();
        model.check(task.reader().unwrap(), self.committed);
        let committed = self.committed.0 as usize;
        if let Some(numbers) = self.numbers.get(..committed) {
            check_heard(task.reader().unwrap(), &self.input[..committed], numbers);
        }
        if self.config.guarantee == Guarantee::ExactlyOnce {
            assert_eq!(self.kafka.emitted, model.emitted);
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..5 => self.batch(),
            5..8 => self.seal_or_commit(),
            8 => self.drop_uncommitted(),
            9 => self.crash(),
            10 => self.task.as_ref().unwrap().reader().unwrap().flush().unwrap(),
            _ => {
                let end = match self.config.guarantee {
                    Guarantee::ExactlyOnce => self.kafka.log.len(),
                    Guarantee::AtLeastOnce => self.settled,
                };
                let end = self.random.below(end + 1);
                self.kafka.compact(end);
            }
        }
    }

    fn batch(&mut self) {
        if self.task.as_ref().is_some_and(Task::is_adopting) {
            return self.seal_or_commit();
        }
        let task = self.task.as_mut().unwrap();
        let next = task.next(0).unwrap().0 as usize;
        // Sometimes from below the position: a seek that fetched again.
        let from = next - self.random.below(3).min(next);
        let to = (next + 1 + self.random.below(30)).min(self.input.len());
        let keys: Vec<String> =
            self.input[from..to].iter().map(|(key, command)| format!("{key}!{command}")).collect();
        let mut batch = records(from as i64, keys.iter().map(String::as_str));
        if let Some(numbers) = self.numbers.get(from..to) {
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            batch = with_header(batch, "number", numbers.iter().map(|number| Some(number.as_str())));
        }
        let applied = task.apply(batch, TakenAt::default()).unwrap();
        assert_eq!(applied.ok + applied.failed + applied.ignored, to - from);
        assert_eq!(task.next(0), Some(Offset(to as u64)));
    }

    fn seal_or_commit(&mut self) {
        let task = self.task.as_mut().unwrap();
        let Some(mut sealed) = self.sealed.take() else {
            self.sealed = task.seal(0).unwrap();
            return;
        };
        self.kafka.commit(&sealed);
        sealed.apply_to_store().unwrap();
        self.committed = sealed.offsets[0].offset;
        task.committed(sealed).unwrap();
        self.settled = self.kafka.log.len();
        self.check();
    }

    /// A definite refusal. Under `at_least_once` some rows are in the log all the same.
    fn drop_uncommitted(&mut self) {
        let sealed = self.sealed.take();
        self.half_written(sealed.as_ref());
        let seek = self.task.as_mut().unwrap().drop_uncommitted(sealed).unwrap();
        assert_eq!(seek[0].1, self.committed);
        self.check();
    }

    fn half_written(&mut self, sealed: Option<&Sealed>) {
        let Some(sealed) = sealed else { return };
        let rows = sealed.changelog.as_ref().unwrap().keys.len();
        match self.config.guarantee {
            Guarantee::AtLeastOnce => self.kafka.rows(sealed, self.random.below(rows)),
            // Aborted records take offsets and are never read.
            Guarantee::ExactlyOnce => (0..self.random.below(rows + 1)).for_each(|_| self.kafka.gap()),
        }
    }

    /// Whatever has happened before, where nothing else happens records are committed.
    fn go_on(&mut self) {
        let before = self.committed;
        for _ in 0..STEPS {
            self.batch();
            self.seal_or_commit();
            self.seal_or_commit();
            if self.committed > before {
                return;
            }
        }
        panic!("nothing is committed any more");
    }

    /// The process dies. If a commit was under way, Kafka may have it whole, in part or not at all.
    fn crash(&mut self) {
        if let Some(mut sealed) = self.sealed.take() {
            if self.random.one_in(2) {
                self.kafka.commit(&sealed);
                self.committed = sealed.offsets[0].offset;
                if self.random.one_in(2) {
                    sealed.apply_to_store().unwrap();
                }
            } else {
                self.half_written(Some(&sealed));
            }
            drop(sealed);
        }
        drop(self.task.take());
        if self.random.one_in(6) {
            Store::destroy(&self.bench.budget, &self.dir).unwrap();
        }
        self.recover();
    }
}

fn simulate(bench: &Bench, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut simulation = Simulation::new(seed, bench);
            simulation.recover();
            for _ in 0..STEPS {
                simulation.step();
            }
            simulation.crash();
            simulation.go_on();
        }));
        if let Err(panic) = outcome {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn whatever_happens_committed_state_is_a_fold_of_the_committed_input() {
    simulate(&Bench::in_memory(), SEEDS_IN_MEMORY);
}

#[test]
fn and_so_it_is_on_a_real_disk() {
    simulate(&Bench::new(), SEEDS_ON_DISK);
}

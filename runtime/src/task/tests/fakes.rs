//! A handler that counts, in Rust; a bench with a temporary directory; small helpers.

use super::*;
use crate::record::InputPartition;
use crate::store::StoreDef;

pub const PARTITION: i32 = 3;

/// Counts records per key and emits `key=count`. Values command it to misbehave, once each:
/// `fail`, `retry`, `trap`, `slow`, `huge` (an emission above the limit), `big` (a state entry above it),
/// `old` (a timestamp out of range), `lie` (reports the first record failed and the rest ok).
#[derive(Debug, Default)]
pub struct Counter {
    /// Counts in instance memory since the last renewal, to prove that it is dropped.
    pub calls: usize,
}

impl Handler for Counter {
    fn handle(
        &mut self,
        batch: &Batch,
        order: Order,
        prefetched: Prefetched,
        state: &mut View,
    ) -> Result<Effects, Fault> {
        self.calls += 1;
        let mut seen: std::collections::HashMap<Vec<u8>, Option<Vec<u8>>> = prefetched
            .keys
            .iter()
            .zip(prefetched.values.iter())
            .map(|(key, value)| (key.unwrap().to_vec(), value.map(<[u8]>::to_vec)))
            .collect();
        let mut effects = Effects::default();
        let mut blocked = false;
        for (row, (key, value)) in batch.keys.iter().zip(batch.values.iter()).enumerate() {
            let command = value.unwrap_or_default();
            let (status, reason) = match command {
                _ if blocked => (Status::Blocked, None),
                b"fail" => (Status::Permanent, Some(&b"told to fail"[..])),
                b"retry" => (Status::Transient, Some(&b"told to retry"[..])),
                b"trap" => return Err(Fault::Trap("unreachable".into())),
                b"slow" => return Err(Fault::Timeout { limit_ms: 5 }),
                b"lie" => (Status::Permanent, None),
                _ => (Status::Ok, None),
            };
            blocked |= status != Status::Ok && order == Order::All && command != b"lie";
            effects.statuses.push(status);
            effects.reasons.push(reason);
            if status == Status::Blocked {
                continue;
            }
            let key = key.unwrap_or_default();
            let before = match seen.get(key) {
                Some(known) => known.clone(),
                None => state.get(0, key).map_err(|error| Fault::Store(error.to_string()))?,
            };
            let count = before.map_or(0, |text| String::from_utf8(text).unwrap().parse::<u64>().unwrap()) + 1;
            let count = count.to_string().into_bytes();
            if status == Status::Ok {
                seen.insert(key.to_vec(), Some(count.clone()));
            }
            // Effects of failed records are returned too: leaving them out is the task's work.
            effects.writes.sources.push(row as u32);
            effects.writes.stores.push(0);
            effects.writes.keys.push(Some(key));
            let big = [7; 2000];
            effects.writes.values.push(Some(if command == b"big" { &big } else { &count }));
            effects.emissions.sources.push(row as u32);
            effects.emissions.outputs.push(0);
            effects.emissions.partitions.push(-1);
            effects.emissions.timestamps.push(if command == b"old" { -5 } else { batch.timestamps[row] });
            effects.emissions.keys.push(Some(key));
            effects.emissions.values.push(Some(if command == b"huge" { &big } else { &count }));
            effects.emissions.headers.push(None);
        }
        Ok(effects)
    }

    fn renew(&mut self) -> Result<(), Fault> {
        self.calls = 0;
        Ok(())
    }
}

/// A state directory and what is needed to make tasks over it.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub budget: StoreBudget,
}

pub fn manifest() -> Vec<StoreManifest> {
    vec![
        StoreManifest {
            name: "counts".into(),
            kind: StoreKind::Utf8,
            schema: 1,
            prefetch: true,
            ordered: false,
        },
        StoreManifest {
            name: "sorted".into(),
            kind: StoreKind::Bytes,
            schema: 1,
            prefetch: false,
            ordered: true,
        },
    ]
}

pub fn identity() -> Identity {
    Identity {
        cluster_id: "cluster".into(),
        incarnation: "life".into(),
        changelog_topic_id: "changelog-id".into(),
    }
}

pub fn config(failures: Failures) -> TaskConfig {
    TaskConfig {
        deployment: "count".into(),
        group: "dev.group.count".into(),
        revision: 1,
        incarnation: "life".into(),
        guarantee: Guarantee::ExactlyOnce,
        failures,
        inputs: vec![TaskInput { topic: "words".into(), topic_id: "words-id".into() }],
        outputs: vec![OutputRule {
            topic: "counts".into(),
            record_bytes_max: 1000,
            compacted: false,
            timestamps: None,
        }],
        stores: Arc::new(Stores::new(&manifest()).unwrap()),
        changelog: ChangelogConfig {
            topic: "fleet.count.changelog".into(),
            topic_id: "changelog-id".into(),
            record_bytes_max: 1000,
        },
        call_records_max: 500,
        call_bytes_max: 1 << 20,
        overlay_bytes_max: 16 << 20,
        cache_bytes: 1 << 20,
        prefetch_bytes_max: 1 << 20,
    }
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
        Bench { dir, budget }
    }

    pub fn store(&self) -> Store {
        Store::create(&self.budget, &self.dir.path().join("0"), &identity()).unwrap()
    }

    pub fn task(&mut self, failures: Failures) -> Task {
        self.task_with(config(failures))
    }

    pub fn task_with(&mut self, config: TaskConfig) -> Task {
        let store = (!config.stores.is_empty()).then(|| self.store());
        let next = vec![Offset(0); config.inputs.len()];
        let start = Start { store, next, writer: 1, unbound: Vec::new() };
        Task::new(Arc::new(config), PARTITION, Box::new(Counter::default()), start).unwrap()
    }
}

/// Records `from..` with these keys; a key `k!command` carries a command as its value.
pub fn records<'a>(from: i64, keys: impl IntoIterator<Item = &'a str>) -> Batch {
    let mut batch = Batch { partition: PARTITION, ..Batch::default() };
    for (row, key) in keys.into_iter().enumerate() {
        let (key, command) = key.split_once('!').unwrap_or((key, ""));
        batch.offsets.push(from + row as i64);
        batch.timestamps.push(1_000);
        batch.keys.push(Some(key.as_bytes()));
        batch.values.push(Some(command.as_bytes()));
    }
    batch
}

pub fn emitted(sealed: &Sealed) -> Vec<String> {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    let rows =
        sealed.emissions.iter().flat_map(|emissions| emissions.keys.iter().zip(emissions.values.iter()));
    rows.map(|(key, value)| format!("{}={}", text(key), text(value))).collect()
}

pub fn commit(task: &mut Task, mut sealed: Sealed) {
    sealed.apply_to_store().unwrap();
    task.committed(sealed).unwrap();
}

/// Committed value of the first store.
pub fn read(task: &Task, key: &str) -> Option<String> {
    let value = task.reader().unwrap().snapshot(|snapshot| snapshot.get("counts", key.as_bytes())).unwrap();
    value.map(|bytes| String::from_utf8(bytes).unwrap())
}

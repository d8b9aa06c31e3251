//! A handler that counts, in Rust; a changelog and a group in memory; a bench with a temporary
//! directory; small helpers.

use std::collections::HashMap;

use super::*;
use crate::effects::Writes;
use crate::ports::{CommittedOffset, Log, LogRecord, LogView, Recovery, SourceError};
use crate::record::{InputPartition, headers};
use crate::store::unpack;

pub const PARTITION: i32 = 3;

/// Counts records per key and emits `key=count`. A record's value commands it:
///
/// | command | effect beside the count |
/// |---|---|
/// | `mark`, `unmark` | puts or deletes the key in the ordered store |
/// | `scan`, `counts` | emits what a scan of the ordered store, or of the counts, sees |
/// | `fail`, `retry`, `trap`, `slow`, `store`, `start`, `stop` | fails in that way |
/// | `huge`, `old` | emits a record above the output's limit, or with a time out of range |
/// | `big` | writes a state entry above the changelog's limit |
/// | `lie` | fails, and runs the records behind it nevertheless |
/// | `flaky` | fails as transient until it is healed |
/// | `garbled`, `odd` | fails as decode, or as schema |
///
/// It returns the effects of failed records too: leaving them out is the task's work.
#[derive(Debug, Default)]
pub struct Counter {
    /// Calls since the last renewal, shared so that a test can look.
    pub calls: Arc<std::sync::Mutex<Vec<usize>>>,
    /// What was `flaky` succeeds from now on.
    pub healed: Arc<std::sync::atomic::AtomicBool>,
    /// As if the last call or renewal had taken it.
    pub used: Duration,
    /// As if every renewal took it.
    pub renewal: Duration,
}

/// A record `tired` takes so long.
const TIRED: Duration = Duration::from_millis(40);

pub fn put(writes: &mut Writes, row: usize, store: u16, key: &[u8], value: Option<&[u8]>) {
    writes.sources.push(row as u32);
    writes.stores.push(store);
    writes.keys.push(Some(key));
    writes.values.push(value);
}

fn emit(effects: &mut Effects, row: usize, timestamp: i64, key: &[u8], value: &[u8]) {
    let emissions = &mut effects.emissions;
    emissions.sources.push(row as u32);
    emissions.outputs.push(0);
    emissions.partitions.push(-1);
    emissions.timestamps.push(timestamp);
    emissions.keys.push(Some(key));
    emissions.values.push(Some(value));
    emissions.headers.push(None);
}

fn judge(command: &[u8]) -> Result<(Status, Option<&'static [u8]>), Fault> {
    Ok(match command {
        b"fail" => (Status::Permanent, Some(b"told to fail")),
        b"retry" => (Status::Transient, Some(b"told to retry")),
        b"garbled" => (Status::Decode, Some(b"told to be garbled")),
        b"odd" => (Status::Schema, Some(b"told to be odd")),
        b"lie" => (Status::Permanent, None),
        b"trap" => return Err(Fault::Trap("unreachable".into())),
        b"slow" => return Err(Fault::Timeout { limit_ms: 5 }),
        b"store" => return Err(Fault::Store("disk on fire".into())),
        b"start" => return Err(Fault::Start("out of memory".into())),
        b"stop" => return Err(Fault::Interrupted),
        _ => (Status::Ok, None),
    })
}

/// A scan as text, page by page.
fn scan(state: &View, store: u16) -> Result<String, Fault> {
    let mut seen = Vec::new();
    let mut start = Vec::new();
    loop {
        let page = state.scan(store, &start, None, 3).map_err(|error| Fault::Store(error.to_string()))?;
        for (key, value) in page.keys.iter().zip(page.values.iter()) {
            let (key, value) = (key.unwrap(), value.unwrap());
            seen.push(format!("{}:{}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)));
            start = [key, b"\0"].concat();
        }
        if !page.more {
            return Ok(seen.join(","));
        }
    }
}

impl Handler for Counter {
    fn handle(
        &mut self,
        batch: &Batch,
        order: Order,
        prefetched: Prefetched,
        state: &mut View,
    ) -> Result<Effects, Fault> {
        self.calls.lock().unwrap().push(batch.len());
        self.used = TIRED * batch.values.iter().filter(|value| *value == Some(b"tired")).count() as u32;
        let values = prefetched.values.iter().map(|value| value.map(<[u8]>::to_vec));
        let mut seen: HashMap<Vec<u8>, Option<Vec<u8>>> =
            prefetched.keys.iter().map(|key| key.unwrap().to_vec()).zip(values).collect();
        let mut effects = Effects::default();
        let mut blocked = false;
        let mut failed_keys: Vec<&[u8]> = Vec::new();
        let healed = self.healed.load(std::sync::atomic::Ordering::Relaxed);
        // Never handed over early: a scan must not see them. Still returned, for the task to leave out.
        let mut of_failed = Writes::default();
        for (row, (key, command)) in batch.keys.iter().zip(batch.values.iter()).enumerate() {
            let (key, command) = (key.unwrap_or_default(), command.unwrap_or_default());
            let held_back = blocked || failed_keys.contains(&key);
            let (status, reason) = match command {
                _ if held_back => (Status::Blocked, None),
                b"flaky" if !healed => (Status::Transient, Some(&b"not healed"[..])),
                _ => judge(command)?,
            };
            blocked |= status != Status::Ok && order == Order::All && command != b"lie";
            if status != Status::Ok && order == Order::Key {
                failed_keys.push(key);
            }
            effects.statuses.push(status);
            effects.reasons.push(reason);
            if status == Status::Blocked {
                continue;
            }
            let before = match seen.get(key) {
                Some(known) => known.clone(),
                None => state.get(0, key).map_err(|error| Fault::Store(error.to_string()))?,
            };
            let count = before.map_or(0, |text| String::from_utf8(text).unwrap().parse::<u64>().unwrap()) + 1;
            let count = count.to_string().into_bytes();
            let large = [7; 2000];
            let writes = if status == Status::Ok { &mut effects.writes } else { &mut of_failed };
            put(writes, row, 0, key, Some(if command == b"big" { &large } else { &count }));
            let mut emission = count.clone();
            match command {
                b"mark" => put(&mut effects.writes, row, 1, key, Some(b"x")),
                b"unmark" => put(&mut effects.writes, row, 1, key, None),
                b"scan" | b"counts" => {
                    state
                        .put_many(std::mem::take(&mut effects.writes))
                        .map_err(|error| Fault::Limit(error.to_string()))?;
                    emission = scan(state, u16::from(command == b"scan"))?.into_bytes();
                }
                b"huge" => emission = large.to_vec(),
                _ => {}
            }
            if status == Status::Ok {
                seen.insert(key.to_vec(), Some(count));
            }
            let timestamp = if command == b"old" { -5 } else { batch.timestamps[row] };
            emit(&mut effects, row, timestamp, key, &emission);
        }
        let failed = of_failed.keys.iter().zip(of_failed.values.iter());
        for (&row, (key, value)) in of_failed.sources.iter().zip(failed) {
            put(&mut effects.writes, row as usize, 0, key.unwrap(), value);
        }
        Ok(effects)
    }

    fn renew(&mut self) -> Result<(), Fault> {
        self.calls.lock().unwrap().clear();
        self.used = self.renewal;
        Ok(())
    }

    fn used(&self) -> Duration {
        self.used
    }
}

/// What Kafka keeps of one task: its changelog partition and its group's offsets.
#[derive(Debug, Default)]
pub struct FakeKafka {
    /// By offset; none = a marker, an aborted record, or one that compaction took.
    pub log: Vec<Option<LogRecord>>,
    pub log_start: u64,
    pub offsets: HashMap<u16, CommittedOffset>,
    /// Broker's clock, ms.
    pub now_ms: i64,
    /// Fetches of offsets so far.
    pub fetches: usize,
    /// How often the coordinator was looked up anew.
    pub look_ups: usize,
    /// What the group's offsets become once they have been fetched that often.
    pub appears: Option<(usize, HashMap<u16, CommittedOffset>)>,
    pub emitted: Vec<String>,
    /// Looks at the changelog's end that do not see its last entry yet, a marker.
    pub late_marker: usize,
    /// The inbox's topic, and where it begins.
    pub ids: Vec<Option<LogRecord>>,
    pub ids_start: u64,
    /// Once so many of its records have been read, it begins there.
    pub late_trim: Option<(usize, u64)>,
    /// Whoever reads is told to stop after so many answers and records; none = never.
    pub stops_after: Option<usize>,
}

/// Another answer, or record, for whoever reads, unless he is to stop.
fn goes_on(left: &mut Option<usize>) -> Result<(), SourceError> {
    match left {
        Some(0) => Err(SourceError::Stopped),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl FakeKafka {
    pub fn append(&mut self, key: &[u8], value: Option<&[u8]>, stamp: Option<(u64, u64)>) {
        let offset = Offset(self.log.len() as u64);
        let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
        self.log.push(Some(LogRecord { offset, timestamp_ms: self.now_ms, key, value, stamp }));
    }

    pub fn gap(&mut self) {
        self.log.push(None);
    }

    /// Appends the first `rows` changelog rows of a seal.
    pub fn rows(&mut self, sealed: &Sealed, rows: usize) {
        let Some(changelog) = &sealed.changelog else { return };
        for (key, value) in changelog.keys.iter().zip(changelog.values.iter()).take(rows) {
            self.append(key.unwrap(), value, changelog.stamp);
        }
    }

    /// The whole commit succeeds: emissions, changelog, marker, offsets.
    pub fn commit(&mut self, sealed: &Sealed) {
        self.emitted.extend(emitted(sealed));
        self.rows(sealed, usize::MAX);
        if sealed.changelog.as_ref().is_some_and(|changelog| changelog.stamp.is_none()) {
            self.gap();
        }
        for (key, value) in sealed.inbox.iter().flat_map(|rows| rows.keys.iter().zip(rows.values.iter())) {
            let offset = Offset(self.ids.len() as u64);
            let (key, value) = (key.unwrap().to_vec(), value.map(<[u8]>::to_vec));
            self.ids.push(Some(LogRecord { offset, timestamp_ms: self.now_ms, key, value, stamp: None }));
        }
        if sealed.inbox.is_some() {
            self.ids.push(None);
        }
        self.offsets(sealed);
    }

    pub fn offsets(&mut self, sealed: &Sealed) {
        for offset in &sealed.offsets {
            let committed = CommittedOffset { offset: offset.offset, metadata: offset.metadata.clone() };
            self.offsets.insert(offset.partition.input, committed);
        }
    }

    /// Below `end`, only the last record of each key stays.
    pub fn compact(&mut self, end: usize) {
        let end = end.min(self.log.len());
        let mut last: HashMap<Vec<u8>, usize> = HashMap::new();
        for (offset, record) in self.log[..end].iter().enumerate() {
            if let Some(record) = record {
                last.insert(record.key.clone(), offset);
            }
        }
        for (offset, record) in self.log[..end].iter_mut().enumerate() {
            if record.as_ref().is_some_and(|record| last[&record.key] != offset) {
                *record = None;
            }
        }
    }
}

impl Recovery for FakeKafka {
    fn committed(&mut self, inputs: &[InputPartition]) -> Result<Vec<Option<CommittedOffset>>, SourceError> {
        goes_on(&mut self.stops_after)?;
        self.fetches += 1;
        if let Some((_, offsets)) = self.appears.take_if(|(after, _)| *after < self.fetches) {
            self.offsets = offsets;
        }
        Ok(inputs.iter().map(|input| self.offsets.get(&input.input).cloned()).collect())
    }

    fn look_up_again(&mut self) -> Result<(), SourceError> {
        goes_on(&mut self.stops_after)?;
        self.look_ups += 1;
        Ok(())
    }

    fn log_bounds(&mut self, log: Log, _: i32) -> Result<(Offset, Offset), SourceError> {
        goes_on(&mut self.stops_after)?;
        if log == Log::Inbox {
            return Ok((Offset(self.ids_start), Offset(self.ids.len() as u64)));
        }
        let late = usize::from(self.late_marker > 0);
        self.late_marker = self.late_marker.saturating_sub(1);
        Ok((Offset(self.log_start), Offset((self.log.len() - late) as u64)))
    }

    fn read_log(
        &mut self,
        log: Log,
        _: i32,
        (from, to): (Offset, Offset),
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError> {
        let trim = self.late_trim.take_if(|_| log == Log::Inbox);
        let (log, log_start) = match log {
            Log::Changelog => (&self.log, self.log_start),
            Log::Inbox => (&self.ids, self.ids_start),
        };
        assert!(from.0 >= log_start, "the broker would answer out of range");
        for (read, record) in log[from.0 as usize..to.0 as usize].iter().flatten().enumerate() {
            if let Some((_, start)) = trim.filter(|(after, _)| *after == read) {
                self.ids_start = start;
                return Err(SourceError::Refused("the offset is out of range".into()));
            }
            goes_on(&mut self.stops_after)?;
            if !apply(record.view()) {
                break;
            }
        }
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
            reads: Vec::new(),
            prefetch: true,
            ordered: false,
        },
        StoreManifest {
            name: "sorted".into(),
            kind: StoreKind::Bytes,
            schema: 1,
            reads: Vec::new(),
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

/// As [`config`], with a dead-letter topic and room for parked records in the changelog.
pub fn parking(failures: Failures) -> TaskConfig {
    let mut config = config(failures);
    let letters = OutputRule { topic: "dead".into(), record_bytes_max: 10_000, ..OutputRule::default() };
    config.outputs.push(letters);
    config.dead_letters = Some(1);
    config.keeps_rows = true;
    config.changelog.record_bytes_max = 10_000;
    config
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
        outputs: vec![OutputRule { topic: "counts".into(), record_bytes_max: 1000, ..OutputRule::default() }],
        stores: Arc::new(Stores::new(&manifest()).unwrap()),
        keeps_rows: false,
        inbox: None,
        correlation: false,
        dead_letters: None,
        events: None,
        changelog: ChangelogConfig {
            topic: "fleet.count.changelog".into(),
            topic_id: "changelog-id".into(),
            record_bytes_max: 1000,
        },
        call_records_max: 500,
        call_bytes_max: 1 << 20,
        store_bytes_max: None,
        overlay_bytes_max: 16 << 20,
        cache: CacheBudget::new(1 << 20),
        prefetch_bytes_max: 1 << 20,
    }
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
        Bench { dir, budget }
    }

    pub fn in_memory() -> Bench {
        let budget = StoreBudget::in_memory(BudgetConfig::default()).unwrap();
        Bench { budget, ..Bench::new() }
    }

    pub fn store(&self) -> Store {
        Store::create(&self.budget, &self.dir.path().join("0"), &identity()).unwrap()
    }

    pub fn task(&mut self, failures: Failures) -> Task {
        self.task_with(config(failures))
    }

    pub fn task_with(&mut self, config: TaskConfig) -> Task {
        self.task_of(config, Counter::default())
    }

    pub fn task_of(&mut self, config: TaskConfig, handler: Counter) -> Task {
        let store = (!config.stores.is_empty()).then(|| self.store());
        let next = vec![Offset(0); config.inputs.len()];
        let start = adopted(start(store, next, 1));
        Task::new(Arc::new(config), PARTITION, Box::new(handler), start).unwrap()
    }
}

/// A start with this store and nothing else to go by: no commit says that its revision begins there.
pub fn start(store: Option<Store>, next: Vec<Offset>, writer: u64) -> Start {
    Start { store, next, writer, unbound: Vec::new(), first: None, rewrites: Rewrites::default() }
}

/// A start of a task that has adopted its revision before, wherever that was.
pub fn adopted(start: Start) -> Start {
    Start { first: start.first.or(Some(start.next.clone())), ..start }
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

/// Gives each record one header.
pub fn with_header<'a>(
    mut batch: Batch,
    name: &str,
    values: impl IntoIterator<Item = Option<&'a str>>,
) -> Batch {
    for value in values {
        let own = value.map(|value| headers::encode([(name, Some(value.as_bytes()))].into_iter()));
        batch.headers.push(own.as_deref());
    }
    batch
}

pub fn emitted(sealed: &Sealed) -> Vec<String> {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    let rows = sealed.emissions.iter().flat_map(|emissions| emissions.rows());
    rows.map(|row| format!("{}={}", text(row.key), text(row.value))).collect()
}

pub fn commit(task: &mut Task, mut sealed: Sealed) {
    sealed.apply_to_store().unwrap();
    task.committed(sealed).unwrap();
}

/// Of the rows for the inbox's topic, in their order, without the one that says which inputs they name.
pub fn inbox_keys(sealed: &Sealed) -> Vec<Vec<u8>> {
    let records = sealed.inbox.iter().flat_map(|ids| ids.keys.iter().zip(ids.values.iter()));
    let rows = records.flat_map(|(key, value)| unpack(key.unwrap(), value).unwrap());
    rows.map(|(key, _)| key.to_vec()).filter(|key| key != b"\x02").collect()
}

/// Committed value of the first store.
pub fn read(task: &Task, key: &str) -> Option<String> {
    let value = task.reader().unwrap().snapshot(|snapshot| snapshot.get("counts", key.as_bytes())).unwrap();
    value.map(|bytes| String::from_utf8(bytes).unwrap())
}

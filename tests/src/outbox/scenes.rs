//! The scenes of W7.

use std::path::Path;
use std::time::{Duration, Instant};

use tidemill_sink::{HttpSink, Mode};

use super::Summary;
use super::judge::{Arrival, judge};
use super::stage::{DEPLOYMENT, Feeder, MARK, PARTITIONS, Stage, Watcher};
use crate::cluster::Cluster;
use crate::play::Findings;
use crate::wait::{until, within};

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Of each way in which a receiver misbehaves.
    pub phase: Duration,
    /// For so long the receiver is gone.
    pub gone: Duration,
    /// Kills at each step.
    pub kills: u64,
    /// Moves of the tasks from one node to another and back.
    pub moves: u64,
    /// Records a second.
    pub rate: u64,
    /// Rows that a task keeps at most.
    pub rows: u64,
}

impl Length {
    pub const SHORT: Length = Length {
        phase: Duration::from_millis(800),
        gone: Duration::from_secs(3),
        kills: 1,
        moves: 1,
        rate: 300,
        rows: 100,
    };
    pub const FULL: Length = Length {
        phase: Duration::from_secs(10),
        gone: Duration::from_secs(300),
        kills: 10,
        moves: 5,
        rate: 500,
        rows: 2_000,
    };
}

/// Where a node dies: after the commit that holds a row, before and after its delivery, after the acknowledgement
/// is in the overlay, and within the commit that deletes the row.
const STEPS: [&str; 8] = [
    "after-end",
    "after-stores",
    "before-delivery",
    "after-delivery",
    "after-acknowledgement",
    "before-flush",
    "after-flush",
    "after-send-offsets",
];
/// A node that was told to die at a step must get there.
const CRASH_MAX: Duration = Duration::from_secs(45);
/// Until a pause, a breaker's state or a reason shows.
const SHOWN_MAX: Duration = Duration::from_secs(60);
/// Looks at the lag before an outbox is full; fewer do not tell that the topic kept its pace.
const LOOKS_MIN: u64 = 3;
/// What a node's memory may grow by while its receiver is gone: caches and write buffers fill in any case.
const GROWTH_MIB_MAX: u64 = 256;

fn destination(sink: &HttpSink, length: &Length) -> String {
    format!(
        "{{ http: {{ url: '{}', format: binary }}, timeout: 500ms, retry: 20ms..200ms, breaker: {{ failures: 10, open: 300ms }}, \
         rows: {} }}",
        sink.url(),
        length.rows
    )
}

/// What a receiver of webhooks has applied, in order.
fn arrivals(sink: &HttpSink) -> Vec<Arrival> {
    let applied = sink.received().into_iter().filter(|one| one.applied);
    applied
        .map(|one| Arrival {
            id: one.id().to_owned(),
            sequence: one.sequence(),
            key: one.header("ce-partitionkey").unwrap_or_default().to_owned(),
            at_ms: Some(one.at_ms),
            correlation: String::new(),
            body: one.body,
        })
        .collect()
}

fn judged(scene: &str, stage: &Stage, fed: &super::stage::Fed, sink: &HttpSink) -> Summary {
    judge(scene, stage.cluster.bootstrap(), fed, &arrivals(sink))
}

/// A receiver that is slow, hung, flapping, out of order, answers twice, refuses for good, is restarted, and is gone
/// for long. The topic beside it must not notice before the bound, and nothing be lost beyond it.
pub fn sinks(cluster: Cluster, length: &Length, module: &Path) -> Summary {
    let sink = HttpSink::start();
    let mut stage = Stage::new(cluster, 1, &destination(&sink, length), module);
    stage.begin("tidemill", &[]);
    let watcher = Watcher::start(&stage.nodes[0].http);
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate);
    let modes = [
        Mode::Accept,
        Mode::Slow(Duration::from_millis(50)),
        Mode::Hang,
        Mode::Flap,
        Mode::Status(500),
        Mode::RetryAfter { seconds: 1 },
        Mode::Refuse(MARK),
        Mode::AcceptTwice,
    ];
    for mode in modes {
        let hangs = matches!(mode, Mode::Hang);
        sink.set(mode);
        std::thread::sleep(length.phase);
        if hangs {
            // The probe of a breaker that is half open takes as long as its time limit, so no look misses it.
            within(SHOWN_MAX, || watcher.seen().breaker.contains("half_open").then_some(()));
        }
    }
    sink.set(Mode::Accept);
    sink.close();
    std::thread::sleep(length.phase / 4);
    sink.reopen();
    // What fills the outbox from here on is what is fed from here on.
    let mut fed = feeder.finish();
    stage.until_drained(0);
    until("no metric shows a full outbox", SHOWN_MAX, || if watcher.seen().full { Err(()) } else { Ok(()) });
    sink.close();
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate);
    let mut found = gone(length, &stage, &feeder, &watcher);
    sink.reopen();
    for (key, texts) in feeder.finish() {
        fed.entry(key).or_default().extend(texts);
    }
    stage.until_drained(0);
    let seen = watcher.seen();
    for state in ["closed", "open", "half_open"] {
        if !seen.breaker.contains(state) {
            found.invalid.push(format!("INVALID sinks: no metric ever showed a breaker that is {state}"));
        }
    }
    found
        .notes
        .push(format!("sinks: breaker seen {:?}, at most {} rows at once", seen.breaker, seen.rows_max));
    found.add(judged("sinks", &stage, &fed, &sink));
    stage.nodes[0].stop();
    found
}

/// The receiver is gone for long, and nothing waited when it went: the topic keeps its pace until the bound, then the
/// input pauses and says why.
fn gone(length: &Length, stage: &Stage, feeder: &Feeder, watcher: &Watcher) -> Summary {
    let mut found = Summary::default();
    let (began, memory_before) = (Instant::now(), stage.memory_mib(0));
    let behind = |stage: &Stage| stage.ask(0, &["lag", DEPLOYMENT]).and_then(|lag| lag["total"].as_u64());
    let (mut largest_before_full, mut looks) = (0, 0);
    let full = within(SHOWN_MAX, || {
        let lag = behind(stage)?;
        if watcher.seen().full {
            return Some(());
        }
        largest_before_full = largest_before_full.max(lag);
        looks += 1;
        None
    });
    let (took, fed) = (began.elapsed(), feeder.sent());
    if full.is_none() {
        found.violations.push("sinks: the outbox never said that it is full".to_owned());
    }
    if looks < LOOKS_MIN {
        found.invalid.push(format!("INVALID sinks: only {looks} looks at the lag before the bound"));
    }
    // Every record has a row, and every partition its share of the records.
    let bound = length.rows * PARTITIONS as u64;
    if fed < bound * 4 / 5 {
        found.violations.push(format!("sinks: full after {fed} records, the bounds allow {bound}"));
    }
    // A second's worth of records under way is no lag.
    if largest_before_full > length.rate * 2 {
        let text = format!("sinks: the topic fell {largest_before_full} records behind before the bound");
        found.violations.push(text);
    }
    let reason = within(SHOWN_MAX, || {
        let lag = stage.ask(0, &["lag", DEPLOYMENT])?;
        let reasons = lag["partitions"].as_array()?.iter().filter_map(|row| row["reason"].as_str());
        reasons.into_iter().find(|why| why.starts_with("paused: the outbox of hook")).map(str::to_owned)
    });
    if reason.is_none() {
        found.violations.push("sinks: no lag says why the input is paused".to_owned());
    }
    std::thread::sleep(length.gone.saturating_sub(began.elapsed()));
    let (rows, memory) = (watcher.seen().rows_max, stage.memory_mib(0));
    if memory > memory_before + GROWTH_MIB_MAX {
        found.violations.push(format!("sinks: memory grew from {memory_before} to {memory} MiB"));
    }
    found.notes.push(format!(
        "sinks: gone for {:.0?}; {fed} records in {took:.1?} until the bound, at most {largest_before_full} behind in {looks} looks; \
         {rows} rows, {memory_before} to {memory} MiB",
        length.gone
    ));
    found
}

/// A node dies at each step between commit, delivery, acknowledgement and deletion.
pub fn kills(cluster: Cluster, length: &Length, module: &Path, seed: u64) -> Summary {
    let sink = HttpSink::start();
    let mut stage = Stage::new(cluster, 1, &destination(&sink, length), module);
    stage.begin("tidemill-faults", &[]);
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate / 3);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found = Summary::default();
    stage.nodes[0].kill();
    for round in 0..length.kills {
        for step in STEPS {
            let point = format!("{step}:{}", random.u64(1..20));
            stage.nodes[0].restart_as("tidemill-faults", &[("TIDEMILL_CRASH", &point)]);
            let node = &mut stage.nodes[0];
            let ended = within(CRASH_MAX, || node.ended());
            match ended {
                Some(_) if node.log().contains(&format!("crash point {point}")) => {}
                Some(status) => {
                    found
                        .violations
                        .push(format!("kills: the node ended by itself ({status}) before {point}"));
                }
                None => {
                    found.invalid.push(format!("INVALID kills: round {round} never got to {point}"));
                    node.kill();
                }
            }
        }
    }
    found.notes.push(format!("kills: {} at each of {} steps", length.kills, STEPS.len()));
    stage.nodes[0].restart_as("tidemill-faults", &[]);
    stage.until_it_answers(0);
    let fed = feeder.finish();
    stage.until_drained(0);
    found.add(judged("kills", &stage, &fed, &sink));
    stage.nodes[0].stop();
    found
}

/// Tasks move to a second node and back, by its start and its end, orderly or not.
pub fn moves(cluster: Cluster, length: &Length, module: &Path) -> Summary {
    let sink = HttpSink::start();
    let mut stage = Stage::new(cluster, 2, &destination(&sink, length), module);
    stage.begin("tidemill", &[]);
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate);
    let mut found = Summary::default();
    sink.set(Mode::Slow(Duration::from_millis(20)));
    for number in 0..length.moves {
        stage.nodes[1].restart();
        stage.until_it_answers(1);
        let shared = within(SHOWN_MAX, || {
            let nodes = stage.ask(0, &["outbox", "list", DEPLOYMENT])?;
            let mut owners: Vec<&str> =
                nodes["outboxes"].as_array()?.iter().filter_map(|row| row["node"].as_str()).collect();
            owners.sort_unstable();
            owners.dedup();
            (owners.len() == 2).then_some(())
        });
        if shared.is_none() {
            found.invalid.push("INVALID moves: the second node never got a task".to_owned());
        }
        std::thread::sleep(length.phase);
        match number % 2 {
            0 => drop(stage.nodes[1].stop()),
            _ => stage.nodes[1].kill(),
        }
    }
    found.notes.push(format!("moves: {} to a second node and back", length.moves));
    sink.set(Mode::Accept);
    let fed = feeder.finish();
    stage.until_drained(0);
    found.add(judged("moves", &stage, &fed, &sink));
    stage.nodes[0].stop();
    found
}

/// With delivery before the commit planted the judge must find it, or its silence elsewhere proves nothing.
pub fn planted(cluster: Cluster, length: &Length, module: &Path) -> Summary {
    let sink = HttpSink::start();
    let mut stage = Stage::new(cluster, 1, &destination(&sink, length), module);
    stage.begin("tidemill-faults", &[("TIDEMILL_BUG", "outbox-early")]);
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate);
    until("something is delivered", SHOWN_MAX, || match sink.count() {
        0..200 => Err(sink.count()),
        _ => Ok(()),
    });
    let fed = feeder.finish();
    stage.until_drained(0);
    let red = judged("planted", &stage, &fed, &sink).violations;
    stage.nodes[0].kill();
    // A row whose acknowledgement is back before its commit is not even committed.
    let kinds = ["delivered before it was committed", "delivered and never committed"];
    let seen = red.iter().any(|violation| kinds.iter().any(|kind| violation.contains(kind)));
    let mut found = Summary::default();
    match seen {
        true => found.notes.push("planted: outbox-early is found".to_owned()),
        false => found.invalid.push(format!("INVALID planted: outbox-early is not found, only {red:?}")),
    }
    found
}

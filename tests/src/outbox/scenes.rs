//! The scenes of W7, each for whatever kind of receiver it is given.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Summary;
use super::chapters::{Book, Chapter, Order};
use super::judge::{Case, judge};
use super::receiver::{Receiver, Trouble};
use super::stage::{DEPLOYMENT, Fed, Feeder, PARTITIONS, Seen, Stage, Watcher};
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
    /// It is also killed and started again at once, which takes a server many seconds.
    pub restarts: bool,
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
        restarts: false,
        kills: 1,
        // Of one alone, a rebalance that comes late may take the whole time between.
        moves: 2,
        rate: 300,
        // They last for 7 s: a busy machine takes most of a second for each look at the lag, and then rests as long.
        rows: 500,
    };
    pub const FULL: Length = Length {
        phase: Duration::from_secs(10),
        gone: Duration::from_secs(300),
        restarts: true,
        kills: 10,
        moves: 5,
        rate: 500,
        rows: 2_000,
    };
}

/// A scene, and what it is played with.
#[derive(Debug, Clone, Copy)]
pub struct Play<'a> {
    pub scene: &'a str,
    /// What the nodes run on.
    pub broker: &'a str,
    pub length: Length,
    /// The handler.
    pub module: &'a Path,
    pub seed: u64,
}

/// What is played, with a receiver that is well.
pub type Act = fn(&Play<'_>, &mut dyn Receiver) -> Summary;

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
/// Of those: a row was delivered of which no commit can know, so it is delivered again.
const REPEATS: [&str; 2] = ["after-delivery", "after-acknowledgement"];
/// A node that was told to die at a step must get there.
const CRASH_MAX: Duration = Duration::from_secs(45);
/// Until a pause, a breaker's state or a reason shows.
const SHOWN_MAX: Duration = Duration::from_secs(60);
/// Looks at the lag before an outbox is full; fewer do not tell that the topic kept its pace.
const LOOKS_MIN: u64 = 3;
/// What a node's memory may grow by while its receiver is gone: caches and write buffers fill in any case.
const GROWTH_MIB_MAX: u64 = 256;
/// Records of one call of the handler, by which an outbox may go beyond its bound.
const CALL_RECORDS_MAX: u64 = 500;
/// Deliveries that a planted bug is judged by.
const PLANTED_MIN: usize = 200;

/// Longest time of an attempt: with a receiver in trouble, and with one that answers in time on a busy machine too.
const IMPATIENT: &str = "1s";
const PATIENT: &str = "10s";

impl Play<'_> {
    /// Nodes with a deployment that delivers to the receiver.
    fn stage(&self, nodes: usize, receiver: &dyn Receiver, timeout: &str) -> Stage {
        let destination = format!(
            "{{ {}, timeout: {timeout}, retry: 20ms..200ms, breaker: {{ failures: 10, open: 300ms }}, \
             rows: {} }}",
            receiver.place(),
            self.length.rows
        );
        Stage::new(Cluster::named(self.broker), nodes, &destination, self.module)
    }

    fn judged(&self, stage: &Stage, fed: &Fed, chapters: &[Chapter], refuses_marked: bool) -> Summary {
        let bootstrap = stage.cluster.bootstrap();
        judge(&Case { scene: self.scene, bootstrap, fed, chapters, refuses_marked })
    }

    fn invalid(&self, what: impl std::fmt::Display) -> String {
        format!("INVALID {}: {what}", self.scene)
    }
}

/// A receiver that misbehaves in every way that it can, is killed, and is gone for long. The topic beside it must not
/// notice before the bound, and nothing be lost beyond it.
pub fn troubles(play: &Play<'_>, receiver: &mut dyn Receiver) -> Summary {
    let (length, keys) = (&play.length, receiver.keys());
    let mut stage = play.stage(1, receiver, IMPATIENT);
    stage.begin("tidemill", &[]);
    let watcher = Watcher::start(&stage.nodes[0].http);
    let feeder = Feeder::with_keys(stage.cluster.bootstrap(), length.rate, keys);
    std::thread::sleep(length.phase);
    for &trouble in receiver.troubles() {
        receiver.misbehave(trouble);
        std::thread::sleep(length.phase);
        if trouble == Trouble::Hung {
            // The probe of a breaker that is half open takes as long as its time limit, so no look misses it.
            within(SHOWN_MAX, || watcher.seen().breaker.contains("half_open").then_some(()));
        }
        receiver.recover();
    }
    if length.restarts {
        receiver.vanish();
        std::thread::sleep(length.phase / 4);
        receiver.come_back();
    }
    // What fills the outbox from here on is what is fed from here on.
    let mut fed = feeder.finish();
    stage.until_drained(0);
    until("no metric shows a full outbox", SHOWN_MAX, || if watcher.seen().full { Err(()) } else { Ok(()) });
    let feeder = Feeder::with_keys(stage.cluster.bootstrap(), length.rate, keys);
    let mut found = gone(play, &stage, receiver, (&feeder, &watcher));
    receiver.come_back();
    for (key, texts) in feeder.finish() {
        fed.entry(key).or_default().extend(texts);
    }
    stage.until_drained(0);
    shown(play, &watcher.seen(), &mut found);
    let chapters = [Chapter { order: receiver.order_in_trouble(), arrivals: receiver.arrived() }];
    let refuses_marked = receiver.troubles().contains(&Trouble::Refusing);
    found.add(play.judged(&stage, &fed, &chapters, refuses_marked));
    stage.nodes[0].stop();
    found
}

/// Metrics have shown every state of the breaker, and never more rows than are allowed.
fn shown(play: &Play<'_>, seen: &Seen, found: &mut Summary) {
    for state in ["closed", "open", "half_open"] {
        if !seen.breaker.contains(state) {
            let what = format!("no metric ever showed a breaker that is {state}");
            found.invalid.push(play.invalid(what));
        }
    }
    let (scene, rows) = (play.scene, seen.rows_max);
    let most = PARTITIONS as u64 * (play.length.rows + CALL_RECORDS_MAX);
    if rows > most {
        found.violations.push(format!("{scene}: {rows} rows at once, {most} are allowed"));
    }
    found.notes.push(format!("{scene}: breaker seen {:?}, at most {rows} rows at once", seen.breaker));
}

/// The receiver dies in full flight and stays away, and hardly anything waited when it went: the topic keeps its pace
/// until the bound, then the input pauses and says why.
fn gone(
    play: &Play<'_>,
    stage: &Stage,
    receiver: &mut dyn Receiver,
    (feeder, watcher): (&Feeder, &Watcher),
) -> Summary {
    let (scene, length, mut found) = (play.scene, &play.length, Summary::default());
    let before = watcher.seen().delivered;
    until("deliveries are under way", SHOWN_MAX, || match watcher.seen().delivered {
        delivered if delivered > before => Ok(()),
        delivered => Err(delivered),
    });
    receiver.vanish();
    let (began, fed_before, memory_before) = (Instant::now(), feeder.sent(), stage.memory_mib(0));
    let (full, largest_before_full, looks) = until_full(stage, watcher);
    let (took, fed) = (began.elapsed(), feeder.sent() - fed_before);
    if !full {
        found.violations.push(format!("{scene}: the outbox never said that it is full"));
    }
    if looks < LOOKS_MIN {
        found.invalid.push(play.invalid(format!("only {looks} looks at the lag before the bound")));
    }
    // Every record has a row, and every partition its share of the records.
    let bound = length.rows * PARTITIONS as u64;
    if fed < bound * 4 / 5 {
        found.violations.push(format!("{scene}: full after {fed} records, the bounds allow {bound}"));
    }
    // A second's worth of records under way is no lag.
    if largest_before_full > length.rate * 2 {
        let text = format!("{scene}: the topic fell {largest_before_full} records behind before the bound");
        found.violations.push(text);
    }
    let reason = within(SHOWN_MAX, || {
        let lag = stage.ask(0, &["lag", DEPLOYMENT])?;
        let reasons = lag["partitions"].as_array()?.iter().filter_map(|row| row["reason"].as_str());
        reasons.into_iter().find(|why| why.starts_with("paused: the outbox of hook")).map(str::to_owned)
    });
    if reason.is_none() {
        found.violations.push(format!("{scene}: no lag says why the input is paused"));
    }
    std::thread::sleep(length.gone.saturating_sub(began.elapsed()));
    let (rows, memory) = (watcher.seen().rows_max, stage.memory_mib(0));
    if memory > memory_before + GROWTH_MIB_MAX {
        found.violations.push(format!("{scene}: memory grew from {memory_before} to {memory} MiB"));
    }
    found.notes.push(format!(
        "{scene}: gone for {:.0?}; {fed} records in {took:.1?} until the bound, at most {largest_before_full} behind in {looks} looks; \
         {rows} rows, {memory_before} to {memory} MiB",
        length.gone
    ));
    found
}

/// Looks at the lag until an outbox is full: whether it ever was, the largest lag before, and how many looks.
fn until_full(stage: &Stage, watcher: &Watcher) -> (bool, u64, u64) {
    let (mut largest, mut looks) = (0, 0);
    let full = within(SHOWN_MAX, || {
        let lag = stage.ask(0, &["lag", DEPLOYMENT]).and_then(|lag| lag["total"].as_u64())?;
        if watcher.seen().full {
            return Some(());
        }
        largest = largest.max(lag);
        looks += 1;
        None
    });
    (full.is_some(), largest, looks)
}

/// A node dies at each step between commit, delivery, acknowledgement and deletion.
pub fn kills(play: &Play<'_>, receiver: &mut dyn Receiver) -> Summary {
    let (scene, length, mut found) = (play.scene, &play.length, Summary::default());
    let mut stage = play.stage(1, receiver, PATIENT);
    stage.begin("tidemill-faults", &[]);
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate / 3);
    let mut random = fastrand::Rng::with_seed(play.seed);
    let (mut book, mut repeats) = (Book::default(), Vec::new());
    stage.nodes[0].kill();
    book.end_life(&stage, receiver);
    for round in 0..length.kills {
        for step in STEPS {
            let point = format!("{step}:{}", random.u64(1..20));
            let node = &mut stage.nodes[0];
            node.restart_as("tidemill-faults", &[("TIDEMILL_CRASH", &point)]);
            match within(CRASH_MAX, || node.ended()) {
                Some(_) if node.log().contains(&format!("crash point {point}")) => {
                    repeats.extend(REPEATS.contains(&step).then_some((book.chapters.len(), point)));
                }
                Some(status) => {
                    let what = format!("{scene}: the node ended by itself ({status}) before {point}");
                    found.violations.push(what);
                }
                None => {
                    found.invalid.push(play.invalid(format!("round {round} never got to {point}")));
                    node.kill();
                }
            }
            book.end_life(&stage, receiver);
        }
    }
    stage.nodes[0].restart_as("tidemill-faults", &[]);
    stage.until_it_answers(0);
    let fed = feeder.finish();
    stage.until_drained(0);
    book.end_chapter(&stage, receiver, Some(1));
    found.add(play.judged(&stage, &fed, &book.chapters, false));
    for (_, point) in repeats.iter().filter(|(life, _)| !book.comes_again_after(*life)) {
        found.invalid.push(play.invalid(format!("nothing was delivered again after the death at {point}")));
    }
    let (lives, strict) = (book.chapters.len(), book.strict());
    if strict * 2 < lives {
        found.invalid.push(play.invalid(format!("in {strict} of {lives} lives each task started only once")));
    }
    found.notes.push(format!(
        "{scene}: {} at each of {} steps; {strict} of {lives} lives in which nothing may come twice",
        length.kills,
        STEPS.len()
    ));
    stage.nodes[0].stop();
    found
}

/// Tasks move to a second node and back, by its start and its end, orderly or not.
pub fn moves(play: &Play<'_>, receiver: &mut dyn Receiver) -> Summary {
    let (scene, length, mut found) = (play.scene, &play.length, Summary::default());
    let mut stage = play.stage(2, receiver, PATIENT);
    stage.begin("tidemill", &[]);
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate);
    let mut book = Book::default();
    receiver.dawdle();
    let mut moves = 0;
    // A rebalance that comes late may take the whole time between, and all of those: then there are more of them.
    while moves < length.moves || book.strict() == 0 && moves < 3 * length.moves {
        stage.nodes[1].restart();
        stage.until_it_answers(1);
        if within(SHOWN_MAX, || (owners(&stage)? == 2).then_some(())).is_none() {
            found.invalid.push(play.invalid("the second node never got a task"));
        }
        book.end_chapter(&stage, receiver, None);
        // Nobody joins or leaves: every key has one owner.
        std::thread::sleep(length.phase);
        book.end_chapter(&stage, receiver, Some(0));
        match moves % 2 {
            0 => drop(stage.nodes[1].stop()),
            _ => stage.nodes[1].kill(),
        }
        moves += 1;
    }
    receiver.recover();
    let fed = feeder.finish();
    stage.until_drained(0);
    book.end_chapter(&stage, receiver, None);
    found.add(play.judged(&stage, &fed, &book.chapters, false));
    let strict = book.strict();
    if strict == 0 {
        found.invalid.push(play.invalid("the tasks never stayed where they were"));
    }
    found.notes.push(format!(
        "{scene}: {moves} to a second node and back; {strict} times between in which nothing may come twice"
    ));
    stage.nodes[0].stop();
    found
}

/// Nodes that run tasks, once every task is run by one.
fn owners(stage: &Stage) -> Option<usize> {
    let list = stage.ask(0, &["outbox", "list", DEPLOYMENT])?;
    let owners: Vec<&str> =
        list["outboxes"].as_array()?.iter().filter_map(|row| row["node"].as_str()).collect();
    let nodes: BTreeSet<&str> = owners.iter().copied().collect();
    (owners.len() == PARTITIONS as usize).then_some(nodes.len())
}

/// With delivery before the commit planted the judge must find it, or its silence elsewhere proves nothing.
pub fn planted(play: &Play<'_>, receiver: &mut dyn Receiver) -> Summary {
    let mut stage = play.stage(1, receiver, PATIENT);
    stage.begin("tidemill-faults", &[("TIDEMILL_BUG", "outbox-early")]);
    let feeder = Feeder::start(stage.cluster.bootstrap(), play.length.rate);
    let mut arrivals = Vec::new();
    until("something is delivered", SHOWN_MAX, || {
        arrivals.extend(receiver.arrived());
        if arrivals.len() < PLANTED_MIN { Err(arrivals.len()) } else { Ok(()) }
    });
    let fed = feeder.finish();
    stage.until_drained(0);
    arrivals.extend(receiver.arrived());
    let red = play.judged(&stage, &fed, &[Chapter { order: Order::Any, arrivals }], false).violations;
    stage.nodes[0].kill();
    // A row whose acknowledgement is back before its commit is not even committed.
    let kinds = ["delivered before it was committed", "delivered and never committed"];
    let seen = red.iter().any(|violation| kinds.iter().any(|kind| violation.contains(kind)));
    let mut found = Summary::default();
    match seen {
        true => found.notes.push(format!("{}: outbox-early is found", play.scene)),
        false => found.invalid.push(play.invalid(format!("outbox-early is not found, only {red:?}"))),
    }
    found
}

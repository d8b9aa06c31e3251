//! Failures under load beside a clean run, and what becomes of them: dead letters that are counted, a guard
//! against those that come back for ever, and a redrive that is interrupted in every way.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Summary;
use super::feed::{Feed, Feeder, Kind, Sent, is_clean, poisoned};
use super::judge::{Fate, judge};
use super::read::{Reader, now_ms};
use super::stage::{DEPLOYMENT, LETTERS, Stage};
use crate::rig::dump::Dump;
use crate::wait::until;

/// How long and how many.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Records a second.
    pub rate: u64,
    /// Of one measurement.
    pub window: Duration,
    /// Measurements with poison and without, in turn.
    pub windows: usize,
    /// Dead letters that are given back.
    pub letters: u64,
    /// Of those a second.
    pub letter_rate: u64,
    /// The figures of latency count.
    pub measures: bool,
}

impl Length {
    /// For the test suite.
    pub const TEST: Length = Length {
        rate: 500,
        window: Duration::from_secs(1),
        windows: 1,
        letters: 200,
        letter_rate: 50,
        measures: false,
    };
    pub const SHORT: Length = Length {
        rate: 2_000,
        window: Duration::from_secs(4),
        windows: 2,
        letters: 1_000,
        letter_rate: 200,
        measures: false,
    };
    pub const FULL: Length = Length {
        rate: 10_000,
        window: Duration::from_secs(10),
        windows: 3,
        letters: 10_000,
        letter_rate: 500,
        measures: true,
    };
}

/// What fails for a while is tried again soon; what fails for good is buried.
const BURIES: &str = "{ transient: { attempts: 5, backoff: 20ms..200ms, then: dead_letter }, permanent: { then: dead_letter } }";
/// The other keys' p99 while some fail, as a part of the clean run's.
const SLOWER_MAX: f64 = 1.5;
/// Until the first records are out, and caches are warm.
const WARM_UP: Duration = Duration::from_secs(2);
const CATCH_UP_MAX: Duration = Duration::from_secs(120);
/// How much faster than asked for a redrive may be: each partition may make up for a late turn.
const FASTER_MAX: f64 = 1.25;

fn is_bad(sent: &Sent) -> bool {
    sent.kind == Kind::Bad
}

fn count_bad(feed: &Feed) -> u64 {
    feed.sent().iter().filter(|sent| is_bad(sent)).count() as u64
}

/// From the first failure to the last letter that came back.
pub fn failures(length: &Length, module: &Path, seed: u64) -> Summary {
    let mut found = Summary::default();
    let mut stage = Stage::begin(1, BURIES, module);
    let reader = Reader::start(stage.cluster.bootstrap());
    let mut feed = under_load(length, &stage, &reader, seed, &mut found);
    let planted = count_bad(&feed);
    if planted < length.letters {
        feed.plant(Kind::Bad, &poisoned(), length.letters - planted);
    }
    let letters = count_bad(&feed);
    stage.until_settled(0, &reader, feed.sent().len() as u64 - letters);
    found.violations.extend(judge("before the redrive", feed.sent(), &reader.all(), |sent| {
        if is_bad(sent) { Fate::Buried } else { Fate::InTurn }
    }));
    let (waiting, _) = stage.letters(0, &[]);
    let in_topic =
        Dump::of(stage.cluster.bootstrap()).topic(LETTERS, true).map_or(0, |rows| rows.len() as u64);
    found.hold((waiting, in_topic) == (letters, letters), || {
        format!("{letters} records were to be buried: {waiting} letters wait, {in_topic} are in the topic")
    });
    guard(&stage, &mut found);
    stage.deploy(0, true);
    given_back(length, &mut stage, letters, &mut found);
    stage.until_settled(0, &reader, feed.sent().len() as u64);
    found.violations.extend(judge("after the redrive", feed.sent(), &reader.all(), |sent| {
        if is_bad(sent) { Fate::Back } else { Fate::InTurn }
    }));
    let (waiting, over_limit) = stage.letters(0, &[]);
    found.hold((waiting, over_limit) == (0, 0), || {
        format!("{waiting} letters still wait, and {over_limit} that came back too often")
    });
    (found.records, found.letters) = (feed.sent().len() as u64, letters);
    found.hold(stage.nodes[0].stop().success(), || "the node did not stop well".to_owned());
    found
}

/// Measures with poison and without in turn, over one feed.
fn under_load(length: &Length, stage: &Stage, reader: &Reader, seed: u64, found: &mut Summary) -> Feed {
    let feeder = Feeder::start(Feed::new(stage.cluster.bootstrap()), length.rate, seed);
    until("records come out", CATCH_UP_MAX, || match reader.count() {
        0 => Err("none"),
        _ => Ok(()),
    });
    // The schedule of the run, not a wait for anything.
    std::thread::sleep(WARM_UP);
    let (mut clean, mut poison) = (Vec::new(), Vec::new());
    for window in 0..2 * length.windows {
        let poisons = window % 2 == 1;
        feeder.set_poison(poisons);
        let from_ms = now_ms();
        std::thread::sleep(length.window);
        (if poisons { &mut poison } else { &mut clean }).push((from_ms, now_ms()));
    }
    let before = feeder.count();
    let feed = feeder.finish();
    let rest = feed.sent().len() as u64 - count_bad(&feed);
    stage.until_settled(0, reader, rest);
    let median = |windows: &[(i64, i64)]| {
        let mut all: Vec<f64> = windows.iter().map(|window| reader.p99_ms(*window, is_clean)).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::INFINITY)
    };
    let (with, without) = (median(&poison), median(&clean));
    found.p99_ms = Some((with, without));
    found.notes.push(format!(
        "load: {before} records at {} a second, p99 of the keys that nothing fails of {with:.0} ms beside {without:.0} ms",
        length.rate
    ));
    if length.measures {
        found.hold(with <= SLOWER_MAX * without, || {
            format!(
                "the other keys' p99 is {with:.0} ms beside {without:.0} ms: more than {SLOWER_MAX} times"
            )
        });
    }
    feed
}

/// Letters that fail again and again are given back so often and no more.
fn guard(stage: &Stage, found: &mut Summary) {
    let one = ["--key", "k0", "--retry-limit", "2"];
    let (of_key, _) = stage.letters(0, &one[..2]);
    for round in 0..3 {
        let id = stage.begin_redrive(0, &one);
        let redrive = stage.until_done(0, id);
        let (given, again, left) = (&redrive["given"], &redrive["again"], &redrive["over_limit"]);
        let holds = if round < 2 {
            *given == of_key && *again == of_key && *left == 0
        } else {
            *given == 0 && *left == of_key
        };
        found.hold(holds && of_key > 0, || {
            format!("redrive {round} of {of_key} letters that still fail, at most twice: {redrive}")
        });
    }
}

/// A redrive through a kill -9, then cancelled; another one takes up the rest, through a kill as well.
fn given_back(length: &Length, stage: &mut Stage, letters: u64, found: &mut Summary) {
    let rate = length.letter_rate.to_string();
    let first = stage.begin_redrive(0, &["--rate", &rate]);
    stage.until_given(0, first, letters / 8);
    stage.nodes[0].kill();
    stage.start(0);
    stage.until_given(0, first, letters / 4);
    stage.told(0, &["dlq", "redrive", DEPLOYMENT, "--cancel", &first.to_string()]);
    let began = Instant::now();
    let second = stage.begin_redrive(0, &["--rate", &rate]);
    stage.until_given(0, second, letters / 4);
    stage.nodes[0].kill();
    stage.start(0);
    let redrive = stage.until_done(0, second);
    let took = began.elapsed().as_secs_f64();
    // It gave some back after the cancel, until that had come to every worker: only now do both figures stand still.
    let (given, rest) = (of_cancelled(stage, first), redrive["given"].as_u64().unwrap_or_default());
    found.hold(given + rest == letters && given < letters, || {
        format!("{letters} letters: the cancelled redrive gave {given} back, the next one {rest}")
    });
    found.hold(redrive["ok"] == redrive["given"] && redrive["again"] == 0, || {
        format!("not all ended well: {redrive}")
    });
    let fastest = rest as f64 / length.letter_rate as f64 / FASTER_MAX;
    found.hold(took >= fastest, || {
        format!("{rest} letters came back in {took:.1} s, faster than {} a second", length.letter_rate)
    });
    found.notes.push(format!(
        "redrive: {given} letters before the cancel, {rest} after it in {took:.1} s, two kills, --rate {}",
        length.letter_rate
    ));
}

/// How many letters a cancelled redrive has given back, once all of them have ended.
fn of_cancelled(stage: &Stage, id: u64) -> u64 {
    until("the cancelled redrive rests", CATCH_UP_MAX, || {
        let redrive = stage.redrive(0, id).ok_or(Value::Null)?;
        let rests = redrive["state"] == "cancelled" && redrive["parked"] == 0;
        redrive["given"].as_u64().filter(|_| rests).ok_or(redrive)
    })
}

//! Failures under load beside a clean run, and what becomes of them: dead letters that are counted, a guard
//! against those that come back for ever, and a redrive that is interrupted in every way.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Summary;
use super::feed::{Feed, Feeder, Kind, Sent, is_clean, poisoned};
use super::judge::{Fate, judge};
use super::read::{Reader, now_ms};
use super::stage::{DEPLOYMENT, INPUT, LETTERS, Stage};
use crate::cluster::Cluster;
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
        letter_rate: 100,
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
/// What a redrive may give back, as a part of its rate: more, because each partition may make up for a late turn,
/// and on a machine that does nothing else not much less.
const FASTER_MAX: f64 = 1.25;
const SLOWER_MIN: f64 = 0.5;
/// And so many seconds' worth of letters more or less, for what is committed and told a while after it is given.
const BURST: f64 = 1.0;

fn is_bad(sent: &Sent) -> bool {
    sent.kind == Kind::Bad
}

fn count_bad(feed: &Feed) -> u64 {
    feed.sent().iter().filter(|sent| is_bad(sent)).count() as u64
}

/// From the first failure to the last letter that came back.
pub fn failures(cluster: Cluster, length: &Length, module: &Path, seed: u64) -> Summary {
    let mut found = Summary::default();
    let mut stage = Stage::begin(cluster, 1, BURIES, module);
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
    let dump = Dump::of(stage.cluster.bootstrap());
    let ends = dump.ends(INPUT).ok();
    guard(&stage, &mut found);
    stage.deploy(0, true);
    given_back(length, &mut stage, letters, &mut found);
    stage.until_settled(0, &reader, feed.sent().len() as u64);
    let after = dump.ends(INPUT).ok();
    found.hold(ends.is_some() && ends == after, || {
        format!("other groups see what comes back: {INPUT} ended at {ends:?} before it and ends at {after:?}")
    });
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
    let mut lives = vec![look_at(stage, first, |given| given >= letters / 8)];
    stage.nodes[0].kill();
    stage.start(0);
    lives.push(look_at(stage, first, |given| given >= letters / 4));
    stage.told(0, &["dlq", "redrive", DEPLOYMENT, "--cancel", &first.to_string()]);
    let began = Instant::now();
    let second = stage.begin_redrive(0, &["--rate", &rate]);
    lives.push(look_at(stage, second, |given| given >= letters / 4));
    stage.nodes[0].kill();
    stage.start(0);
    let is_done = |_| stage.redrive(0, second).is_some_and(|redrive| redrive["state"] == "done");
    lives.push(look_at(stage, second, is_done));
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
    lives.iter().for_each(|looks| hold_rate(length, looks, found));
    found.notes.push(format!(
        "redrive: {given} letters before the cancel, {rest} after it in {took:.1} s, two kills, --rate {}",
        length.letter_rate
    ));
}

/// How many letters a redrive had given back: asked for and told between two moments.
struct Look {
    asked: Instant,
    told: Instant,
    given: u64,
}

/// Looks at a redrive again and again, in one life of its node.
fn look_at(stage: &Stage, id: u64, is_over: impl Fn(u64) -> bool) -> Vec<Look> {
    let mut looks = Vec::new();
    until("the redrive goes on", CATCH_UP_MAX, || {
        let asked = Instant::now();
        let Some(given) = stage.given(0, id) else { return Err(None) };
        looks.push(Look { asked, told: Instant::now(), given });
        if is_over(given) { Ok(()) } else { Err(Some(given)) }
    });
    looks
}

/// What is given back from the first look of a life to any other stays below the rate, and does not fall far behind
/// it while there is something to give.
fn hold_rate(length: &Length, looks: &[Look], found: &mut Summary) {
    let rate = length.letter_rate as f64;
    let Some(first) = looks.first() else { return };
    let more = |from: &Look, to: &Look| to.given.saturating_sub(from.given) as f64;
    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    let too_fast = looks
        .iter()
        .find(|look| more(first, look) > rate * (FASTER_MAX * seconds(first.asked, look.told) + BURST));
    if let Some(look) = too_fast {
        let (more, took) = (more(first, look), seconds(first.asked, look.told));
        found.hold(false, || {
            format!("{more} letters came back in {took:.1} s, asked for were {rate} a second")
        });
    }
    let moves = looks.iter().find(|look| look.given > first.given);
    let most = looks.iter().map(|look| look.given).max();
    let last = looks.iter().find(|look| Some(look.given) == most);
    let (Some(moves), Some(last)) = (moves.filter(|_| length.measures), last) else { return };
    let (more, took) = (more(moves, last), seconds(moves.told, last.asked));
    found.hold(more >= rate * (SLOWER_MIN * took - BURST), || {
        format!("only {more} letters came back in {took:.1} s, asked for were {rate} a second")
    });
}

/// How many letters a cancelled redrive has given back, once all of them have ended.
fn of_cancelled(stage: &Stage, id: u64) -> u64 {
    until("the cancelled redrive rests", CATCH_UP_MAX, || {
        let redrive = stage.redrive(0, id).ok_or(Value::Null)?;
        let rests = redrive["state"] == "cancelled" && redrive["parked"] == 0;
        redrive["given"].as_u64().filter(|_| rests).ok_or(redrive)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a second's letters, look after look, hold the rate of the full length, which is 500.
    fn holds(a_second: &[u64]) -> bool {
        let (began, mut given, mut found) = (Instant::now(), 1_000, Summary::default());
        let mut looks = vec![Look { asked: began, told: began, given }];
        for (second, more) in (1..).zip(a_second) {
            given += more;
            let at = began + Duration::from_secs(second);
            looks.push(Look { asked: at, told: at, given });
        }
        hold_rate(&Length::FULL, &looks, &mut found);
        found.violations.is_empty()
    }

    #[test]
    fn a_rate_is_held_from_above_and_from_below() {
        assert!(holds(&[500; 10]));
        assert!(holds(&[0, 0, 500, 500, 500, 500]), "it begins late");
        assert!(holds(&[500, 500, 0, 1_000, 500, 500]), "one commit is told with the next");
        assert!(holds(&[500, 500, 500, 0, 0, 0, 0]), "there is no more to give");
        assert!(!holds(&[1_000; 4]));
        assert!(!holds(&[100; 10]));
    }
}

//! How long a killed process stays silent, and how fast it has its stores back: tidemill beside Kafka
//! Streams, from kill -9 to the first new output, with many keys, their stores kept or deleted.
//!
//! Both count per key, exactly once, four partitions, on Apache Kafka, each from a topic of its own. While
//! one is measured, a trickle of new records keeps coming to it, so that "first new output" is the first
//! record handled after the kill; the other has nothing to do. What is killed when is [`KILLS`].
//!
//! ```text
//!  trickle ... output ... kill -9 ---(at once, or session and transaction expire)--- start
//!                           |                                                          |
//!                           `-------------- the clock starts at one of them -----------'--- first output
//!                                                                                       ... of every partition
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::bounds::{self, KEPT_ROUNDS};
use crate::group::GroupProgress;
use crate::keys::{self, Keys};
use crate::load::{self, Shape, VALUE_BYTES, Values};
use crate::machine::{Machine, Ticks};
use crate::node::Modules;
use crate::outputs::{self, Outputs};
use crate::report::{self, RECOVERY, RatioReport, Report, SurvivorReport};
use crate::rounds::{Comeback, Spread, order};
use crate::streams::Streams;
use crate::suite::Progress;
use crate::survivor::{Survivor, Topics};
use crate::table::KILLS;
use crate::terms::{Again, Kill, Metric, State};
use crate::topics::{self, ANSWER_MAX, config};

/// What is killed when has so many million keys.
pub const MILLIONS: [u64; 2] = [1, 3];
/// Who is killed, in turn.
const WHO: [&str; 2] = ["tidemill", "streams"];
const PARTITIONS: i32 = 4;
/// Each record has a key of its own.
const SHAPE: Shape = Shape { keys: Keys::New, values: Values::Text(VALUE_BYTES) };
const FILL_MAX: Duration = Duration::from_secs(600);
/// How far that is.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Rounds in which everybody came back, of those of a result: a kill that somebody did not survive is told by itself.
const BOTH_MIN: usize = 3;
/// Work between two kills, so that each meets a process in motion.
const BETWEEN: Duration = Duration::from_secs(3);
/// Kafka Streams' session ends after 45 s by default, its transaction after 10 s and the broker's next look.
const EXPIRY: Duration = Duration::from_secs(55);

#[derive(Args)]
pub struct Arguments {
    /// Only kills with so many million keys
    #[arg(long, value_delimiter = ',', default_values_t = MILLIONS, value_parser = millions)]
    pub millions: Vec<u64>,
    /// Kills of each kind; fewer than five are no result
    #[arg(long, default_value_t = KEPT_ROUNDS, value_parser = bounds::rounds())]
    pub rounds: usize,
    /// So many times the keys; small ones are for work on this program itself
    #[arg(long, default_value_t = 1.0, value_parser = bounds::scale)]
    pub scale: f64,
    /// Where the results go, beside those of `make bench`
    #[arg(long, default_value = "bench/results/latest.json")]
    pub out: PathBuf,
    /// Where the charts of that file go, as SVG
    #[arg(long, default_value = "docs/charts")]
    pub charts: PathBuf,
}

/// As an argument: others have no kills.
fn millions(text: &str) -> Result<u64, String> {
    let found = MILLIONS.into_iter().find(|millions| millions.to_string() == text);
    found.ok_or_else(|| format!("there are kills with {MILLIONS:?} million keys"))
}

/// Fills stores, and kills. True if every ratio meets its bar, everybody came back from every kill, and as many records
/// came out as were written.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let command = format!("make recovery ROUNDS={}", arguments.rounds);
    let mut report = Report::new(Machine::look()?, command, None);
    println!("building what takes part");
    let (modules, streams) = (Modules::build()?, Streams::compile()?);
    println!("starting Apache Kafka {}", tidemill_kafka_harness::VERSION);
    let kafka = ApacheKafka::start_with(&Options { for_load: true, ..Options::default() })?;
    let stage = Stage { kafka, modules, streams };
    let ticks = Ticks::now()?;
    let is_asked = |kill: &&Kill| arguments.millions.contains(&kill.millions);
    let mut progress = Progress::of(KILLS.iter().filter(is_asked).count() * arguments.rounds * WHO.len());
    let failed = failed_of(&arguments.millions, |millions| {
        stage.kill_all(millions, arguments, &mut progress, &mut report)
    });
    report.stolen.insert(RECOVERY, ticks.stolen_since()?);
    let has_all = MILLIONS.iter().all(|millions| arguments.millions.contains(millions));
    let is_whole = has_all && !report.survivors.is_empty();
    match bounds::why_not_kept(arguments.rounds, arguments.scale, is_whole) {
        Some(why) => println!("not kept, because {why}"),
        None => {
            report.write(&arguments.out, &arguments.charts)?;
            println!("written to {} and {}", arguments.out.display(), arguments.charts.display());
        }
    }
    let is_exact = report.survivors.iter().flat_map(|who| &who.runs).all(|run| run.fault().is_none());
    let held = report.summarize() && is_exact;
    if !failed.is_empty() {
        println!("did not come back from every kill: {}", failed.join(", "));
    }
    Ok(held && failed.is_empty())
}

/// Who did not come back from every kill. Keys with which nobody can be killed, such as because a store cannot be filled,
/// do not keep what others show from being measured and kept.
fn failed_of(millions: &[u64], mut kill_all: impl FnMut(u64) -> Result<Vec<String>>) -> Vec<String> {
    let mut failed = Vec::new();
    for &millions in millions {
        match kill_all(millions) {
            Ok(short) => failed.extend(short),
            Err(error) => {
                println!("{millions} M keys did not get through: {error:#}");
                failed.push(format!("everybody ({millions} M keys)"));
            }
        }
    }
    failed
}

/// What every kill needs.
struct Stage {
    kafka: ApacheKafka,
    modules: Modules,
    streams: Streams,
}

impl Stage {
    /// Has so many million keys counted, and kills in every way that the table has with them. Answers who did not come
    /// back from all of it.
    fn kill_all(
        &self,
        millions: u64,
        arguments: &Arguments,
        progress: &mut Progress,
        report: &mut Report,
    ) -> Result<Vec<String>> {
        let Stage { kafka, modules, streams } = self;
        let keys = (millions as f64 * 1e6 * arguments.scale) as u64;
        let topics = WHO.map(|who| Topics {
            bootstrap: kafka.bootstrap.clone(),
            name: format!("{who}-{millions}m"),
            input: format!("{who}-{millions}m-in"),
            output: format!("{who}-{millions}m-out"),
        });
        for topics in &topics {
            topics::create(&kafka.bootstrap, &topics.input, PARTITIONS)?;
            topics::create(&kafka.bootstrap, &topics.output, PARTITIONS)?;
            println!("writing {keys} keys to {}", topics.input);
            load::fill(&kafka.bootstrap, &topics.input, SHAPE, keys)?;
        }
        println!("counting {keys} keys");
        let survivors = [Survivor::node(modules, &topics[0])?, Survivor::streams(streams, &topics[1])?];
        let pairs = survivors.into_iter().zip(&topics);
        let mut measured: Vec<_> =
            pairs.map(|(survivor, topics)| Measured { survivor, topics, keys, is_gone: false }).collect();
        measured.iter_mut().try_for_each(Measured::until_done)?;
        let mut short = Vec::new();
        for kill in KILLS.iter().filter(|kill| kill.millions == millions) {
            let shown = kill_in_turns(kill, arguments.rounds, &mut measured, progress);
            let is_short = |who: &&Shown| who.came_back() < arguments.rounds;
            short.extend(shown.iter().filter(is_short).map(|who| format!("{} ({kill})", who.name)));
            add(kill, &shown, report)?;
        }
        Ok(short)
    }
}

/// What one has shown of a kind of kill.
struct Shown {
    name: &'static str,
    /// In each, `None` if it did not come back, so that rounds of several can be compared one by one.
    rounds: Vec<Option<Comeback>>,
}

impl Shown {
    fn came_back(&self) -> usize {
        self.rounds.iter().flatten().count()
    }

    fn figures(&self, metric: Metric) -> impl Iterator<Item = f64> {
        self.rounds.iter().flatten().filter_map(move |comeback| comeback.get(metric))
    }
}

/// Kills each in turn, so many times. The others are killed all the same if one does not come back.
fn kill_in_turns(
    kill: &Kill,
    rounds: usize,
    measured: &mut [Measured<'_>],
    progress: &mut Progress,
) -> Vec<Shown> {
    println!("\n{kill}");
    let nothing = |who: &Measured<'_>| Shown { name: who.survivor.name(), rounds: Vec::new() };
    let mut shown: Vec<Shown> = measured.iter().map(nothing).collect();
    for round in 0..rounds {
        for number in order(measured.len(), round) {
            let (outcome, name) = (measured[number].kill_once(kill), shown[number].name);
            let (place, minutes) = progress.one_more();
            let what = match &outcome {
                Ok(comeback) => format!("first new output after {:.2} s", comeback.first_output_seconds),
                Err(error) => format!("did not come back: {error:#}"),
            };
            println!("{place}  round {:<3}{name:<12}{what}  {minutes} min left", round + 1);
            let comeback = outcome.ok();
            if let Some(fault) = comeback.as_ref().and_then(Comeback::fault) {
                println!("{:<9}{name:<12}{fault}", "");
            }
            shown[number].rounds.push(comeback);
        }
    }
    shown
}

/// Prints what a kind of kill has shown, and adds it to what is reported, if there is a result in it.
fn add(kill: &Kill, shown: &[Shown], report: &mut Report) -> Result<()> {
    let metrics: &[Metric] = match kill.state {
        State::Kept => &[Metric::FirstOutput],
        State::Deleted => &[Metric::FirstOutput, Metric::RestoredKeys, Metric::RestoredMegabytes],
    };
    for &metric in metrics {
        for who in shown {
            if let Some(spread) = Spread::of(who.figures(metric)) {
                println!("{:<12}{metric}: {spread}", who.name);
            }
        }
    }
    if !has_result(shown) {
        println!("no result: everybody came back in too few of the rounds");
        return Ok(());
    }
    report.ratios.extend(compared(kill, shown)?);
    for who in shown {
        let (name, kill, runs) = (who.name, kill.to_string(), who.rounds.iter().flatten().copied().collect());
        report.survivors.push(SurvivorReport { workload: RECOVERY, name, kill, runs });
    }
    Ok(())
}

/// Whether everybody came back in all rounds, or in enough of them.
fn has_result(shown: &[Shown]) -> bool {
    let rounds = shown.iter().map(|who| who.rounds.len()).min().unwrap_or_default();
    let is_whole = |round: &usize| shown.iter().all(|who| who.rounds[*round].is_some());
    (0..rounds).filter(is_whole).count() >= rounds.min(BOTH_MIN)
}

/// The ratio of a kind of kill, of the rounds in which both came back; `None` if it has none.
fn compared(kill: &Kill, shown: &[Shown]) -> Result<Option<RatioReport>> {
    let Some(ratio) = &kill.ratio else { return Ok(None) };
    let of = |name: &str| {
        let found = shown.iter().find(|who| who.name == name);
        found.map(|who| &who.rounds).with_context(|| format!("{name} takes no part"))
    };
    let under = ratio.under.context("nobody to be compared with")?;
    let figure = |round: &Option<Comeback>| round.as_ref()?.get(ratio.metric);
    let pairs = of(ratio.over)?.iter().zip(of(under)?);
    let ratios = pairs.filter_map(|(over, under)| Some(figure(over)? / figure(under)?));
    Ok(report::judged(RECOVERY, ratio, ratios.collect()))
}

struct Measured<'a> {
    survivor: Survivor<'a>,
    topics: &'a Topics,
    keys: u64,
    /// It did not come back from a kill, nor could it be started anew.
    is_gone: bool,
}

impl Measured<'_> {
    /// Until it has handled everything that is in its input.
    fn until_done(&mut self) -> Result<()> {
        let Topics { bootstrap, input, .. } = self.topics;
        let all = topics::ends(bootstrap, input, PARTITIONS)?;
        let progress = GroupProgress::new(bootstrap, &self.survivor.group(), input, PARTITIONS)?;
        let (name, mut told) = (self.survivor.name(), Instant::now());
        progress.wait_for(&all, FILL_MAX, || {
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                // Who cannot be asked now is asked the next time.
                let committed: i64 = progress.committed().into_iter().flatten().sum();
                println!("{name} has counted {committed} of {}", all.iter().sum::<i64>());
            }
            self.survivor.check()
        })
    }

    /// Kills it, and sees to it that the next kill finds it at work, whatever this one has come to.
    fn kill_once(&mut self, kill: &Kill) -> Result<Comeback> {
        ensure!(!self.is_gone, "it is gone since an earlier kill");
        let comeback = self.kill(kill);
        if comeback.is_err()
            && let Err(error) = self.start_anew()
        {
            self.is_gone = true;
            return comeback.with_context(|| format!("it cannot be started anew either ({error:#})"));
        }
        comeback
    }

    /// Whatever state it is in.
    fn start_anew(&mut self) -> Result<()> {
        self.survivor.kill()?;
        self.survivor.start_again()?;
        self.until_done()
    }

    /// Kills it while records come, and compares what was written from before the kill on with what came out.
    fn kill(&mut self, kill: &Kill) -> Result<Comeback> {
        let Topics { bootstrap, input, output, .. } = self.topics;
        let ends = |topic: &str| topics::ends(bootstrap, topic, PARTITIONS);
        let (in_before, out_before) = (ends(input)?, ends(output)?);
        let trickle = Trickle::start(bootstrap, input, self.keys)?;
        let comeback = self.come_back(kill)?;
        drop(trickle);
        self.until_done()?;
        // The input has no transactions, so that its offsets are its records. Each is an update that is emitted.
        let written = ends(input)?.iter().sum::<i64>() - in_before.iter().sum::<i64>();
        let came_out = outputs::committed_since(bootstrap, output, &out_before)?.cast_signed();
        let records_missing = written - came_out;
        let rpo_ms = (records_missing == 0).then_some(0.0);
        Ok(Comeback { rpo_ms, records_missing, ..comeback })
    }

    /// From the kill to an output of every partition.
    fn come_back(&mut self, kill: &Kill) -> Result<Comeback> {
        let Topics { bootstrap, output, .. } = self.topics;
        std::thread::sleep(BETWEEN);
        Outputs::of(bootstrap, output, PARTITIONS)?.first()?; // In motion before the kill.
        let killed = Instant::now();
        let mut started = killed;
        self.survivor.kill()?;
        if kill.state == State::Deleted {
            self.survivor.delete_stores()?;
        }
        if kill.again == Again::AfterExpiry {
            std::thread::sleep(EXPIRY);
            started = Instant::now();
        }
        self.survivor.start_again()?;
        // What was written before the kill is not new. Nobody has written since: that takes longer than this.
        let after = Outputs::of(bootstrap, output, PARTITIONS)?;
        after.first()?;
        let first_output_seconds = started.elapsed().as_secs_f64();
        let rto_ms = killed.elapsed().as_secs_f64() * 1e3;
        after.of_every_partition()?;
        let (restored_keys_per_second, restored_megabytes_per_second) = match kill.state {
            State::Kept => (None, None),
            State::Deleted => {
                let seconds = self.survivor.restoring_seconds()?;
                let bytes = self.survivor.restored_bytes()?;
                (Some(self.keys as f64 / seconds), bytes.map(|bytes| bytes / 1e6 / seconds))
            }
        };
        Ok(Comeback {
            first_output_seconds,
            rto_ms,
            // Not known before all has been handled.
            rpo_ms: None,
            records_missing: 0,
            restored_keys_per_second,
            restored_megabytes_per_second,
        })
    }
}

/// Writes a few hundred records a second, of keys that [`crate::load::fill`] wrote, until it is dropped.
struct Trickle {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Trickle {
    const PAUSE: Duration = Duration::from_millis(5);

    fn start(bootstrap: &str, topic: &str, keys: u64) -> Result<Trickle> {
        let producer: BaseProducer = config(bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("partitioner", "murmur2_random")
            .create()?;
        let (topic, value) = (topic.to_owned(), SHAPE.values.text());
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            let numbers = (0..).map(|step| keys::visited(step, keys));
            for number in numbers.take_while(|_| !flag.load(Ordering::Relaxed)) {
                // A full queue only means that the next record follows later.
                let _ = producer.send(BaseRecord::to(&topic).key(&keys::padded(number)).payload(&value));
                producer.poll(Trickle::PAUSE);
            }
            // Whoever drops it counts what was written next.
            let _ = producer.flush(ANSWER_MAX);
        });
        Ok(Trickle { stopping, thread: Some(thread) })
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kill whose stores are kept, with a bar of what it takes to the first new output.
    const KILL: usize = 0;

    fn shown(name: &'static str, seconds: &[Option<f64>]) -> Shown {
        let comeback = |seconds: f64| Comeback {
            first_output_seconds: seconds,
            rto_ms: seconds * 1e3,
            rpo_ms: Some(0.0),
            records_missing: 0,
            restored_keys_per_second: None,
            restored_megabytes_per_second: None,
        };
        Shown { name, rounds: seconds.iter().map(|seconds| seconds.map(comeback)).collect() }
    }

    #[test]
    fn keys_whose_stores_cannot_be_filled_do_not_keep_others_from_being_killed() {
        let mut killed = Vec::new();
        let failed = failed_of(&MILLIONS, |millions| {
            ensure!(millions != MILLIONS[0], "the store cannot be filled");
            killed.push(millions);
            Ok(vec!["streams".to_owned()])
        });
        assert_eq!(killed, MILLIONS[1..]);
        assert_eq!(failed, ["everybody (1 M keys)", "streams"]);
    }

    #[test]
    fn a_round_in_which_one_did_not_come_back_leaves_the_others_compared_as_they_were() {
        let node = shown("tidemill", &[Some(1.0), None, Some(1.0), Some(1.0)]);
        let streams = shown("streams", &[Some(10.0), Some(999.0), Some(20.0), Some(30.0)]);
        let both = [node, streams];
        let ratio = compared(&KILLS[KILL], &both).expect("both take part").expect("a ratio");
        assert_eq!((ratio.rounds, ratio.min, ratio.median, ratio.max), (3, 10.0, 20.0, 30.0));
        assert!(has_result(&both));
    }

    #[test]
    fn a_kind_of_kill_has_no_result_if_both_came_back_in_too_few_rounds() {
        let of_both = |one: &[Option<f64>], other: &[Option<f64>]| {
            has_result(&[shown("tidemill", one), shown("streams", other)])
        };
        let whole = [Some(1.0); 4];
        assert!(of_both(&whole, &[Some(1.0), None, Some(1.0), Some(1.0)]));
        assert!(!of_both(&[None, Some(1.0), Some(1.0), Some(1.0)], &[Some(1.0), None, Some(1.0), Some(1.0)]));
        assert!(
            of_both(&whole[..1], &whole[..1]),
            "all that were asked for: that they are few is said of the whole"
        );
    }
}

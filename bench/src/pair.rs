//! Two or three contenders at the same time, on the same input: `make bench-pair`.
//!
//! ```text
//!  write the input     start all, in an      all      2 s                                 kill, delete
//!                      order of the round's  handle         ----|--------------------|----
//!                      own                                   marks  so many seconds  marks
//! ```
//!
//! What else happens on the machine happens to all of them, so that ratios are steady which move from run to run where
//! contenders take turns. Figures by themselves are those of a machine that they share with each other.
//!
//! Each has an output and a group of its own, and has handled what its group has committed. Who started first is ahead
//! of the others when a round begins to count, and all have work until it ends.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::bounds;
use crate::budget;
use crate::changes::Changes;
use crate::contender::{self, Place, Started, start_node};
use crate::group::GroupProgress;
use crate::load::{self, Shape};
use crate::native::Produce;
use crate::node::Output;
use crate::rounds::{Figures, Spread, order};
use crate::run::{Mark, Stage, by_thread, figures};
use crate::table::WORKLOADS;
use crate::terms::{Guarantee, Work, Workload};
use crate::threads::ByThread;
use crate::topics;

const INPUT: &str = "input";
/// Until a contender has handled something of every partition.
const UP_MAX: Duration = Duration::from_secs(120);
/// Work of all that nobody counts.
const WARM_UP: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Whoever has less than one in so many records left ends the round, before it leaves the machine to the others.
const LEFT_OF_THE_INPUT: u64 = 20;

#[derive(Args)]
pub struct Arguments {
    /// What is done with every record; the input is that of the first workload of `run` that does it
    #[arg(long, value_enum, default_value_t = Work::Map)]
    work: Work,
    #[arg(long, value_enum, default_value_t = Guarantee::ExactlyOnce)]
    guarantee: Guarantee,
    /// How long a round counts
    #[arg(long, default_value_t = 18, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    #[arg(long, default_value_t = 3, value_parser = bounds::rounds())]
    rounds: usize,
    /// In the input; a round ends early if that is not enough
    #[arg(long, default_value_t = 12_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    records: u64,
    /// `loop`, `loop:produce=batch` (by `rd_kafka_produce_batch`, without timestamps), `loop:PROPERTY=VALUE` of its
    /// producer (`loop:max.in.flight=5`), `tidemill`, or `tidemill:CHANGE,CHANGE`, where a change is of the deployment's
    /// document (`commit.max_records=10000`), of the node (`--set=kafka.client=librdkafka`), another guarantee
    /// (`guarantee=at-least-once`) or another build (`bin=PATH`); the first is compared with each of the others
    #[arg(required = true, num_args = 2..=3, value_name = "CONTENDER", value_parser = Side::parse)]
    sides: Vec<Side>,
}

/// One of those that are measured side by side.
#[derive(Debug, Clone)]
struct Side {
    /// As it was given.
    name: String,
    who: Who,
}

#[derive(Debug, Clone, PartialEq)]
enum Who {
    Loop(Produce),
    /// With this property of its producer, beside what is its own.
    LoopWith(String, String),
    Node(Changes),
}

impl Side {
    fn parse(text: &str) -> Result<Side> {
        let who = match text.split_once(':') {
            None if text == "loop" => Who::Loop(Produce::Record),
            None if text == "tidemill" => Who::Node(Changes::default()),
            Some(("loop", change)) => match change.split_once('=') {
                Some(("produce", how)) => {
                    Who::Loop(Produce::from_str(how, false).map_err(anyhow::Error::msg)?)
                }
                Some((name, value)) if name.contains('.') => Who::LoopWith(name.to_owned(), value.to_owned()),
                _ => bail!("is no change of the loop: `produce=batch`, or PROPERTY=VALUE of its producer"),
            },
            Some(("tidemill", changes)) => Who::Node(Changes::parse(changes)?),
            _ => bail!("is none of `loop`, `loop:CHANGE`, `tidemill`, and `tidemill:CHANGE,CHANGE`"),
        };
        Ok(Side { name: text.to_owned(), who })
    }
}

/// Measures, and prints what it finds.
pub fn run(arguments: &Arguments) -> Result<()> {
    let does_it = |workload: &&Workload| workload.work == arguments.work;
    let workload = WORKLOADS.iter().find(does_it).context("no workload does this work")?;
    // For no workload of the table, so that nothing is built which takes no part.
    let stage = Stage::prepare(&[], 1.0)?;
    let bootstrap = &stage.kafka.bootstrap;
    println!("writing {} records as in {}", arguments.records, workload.name);
    topics::create(bootstrap, INPUT, workload.partitions)?;
    let shape = Shape { keys: workload.keys, values: workload.values };
    load::fill(bootstrap, INPUT, shape, arguments.records)?;
    let pair = Pair { stage: &stage, workload, arguments };
    let mut runs = vec![Vec::new(); arguments.sides.len()];
    for round in 0..arguments.rounds {
        for (runs, figures) in runs.iter_mut().zip(pair.round(round)?) {
            runs.push(figures);
        }
        print_last(&arguments.sides, &runs);
    }
    print_all(&arguments.sides, &runs);
    Ok(())
}

struct Pair<'a> {
    stage: &'a Stage,
    workload: &'a Workload,
    arguments: &'a Arguments,
}

/// A contender at work.
struct Runner<'a> {
    number: usize,
    side: &'a Side,
    started: Started,
    progress: GroupProgress,
}

/// Where a contender is at one moment.
struct Moment {
    handled: u64,
    mark: Mark,
}

impl<'a> Pair<'a> {
    /// Figures in the order of the contenders.
    fn round(&self, round: usize) -> Result<Vec<Figures>> {
        let name = format!("pair-{round}-");
        let mut runners = Vec::new();
        for number in order(self.arguments.sides.len(), round) {
            runners.push(self.start(number, &format!("{name}{number}"))?);
        }
        runners.sort_by_key(|runner| runner.number);
        let something = vec![1; usize::try_from(self.workload.partitions)?];
        for Runner { side, started, progress, .. } in &mut runners {
            progress.wait_for(&something, UP_MAX, || started.check()).with_context(|| side.name.clone())?;
        }
        thread::sleep(WARM_UP);
        let before = self.moments(&runners)?;
        self.let_work(&mut runners)?;
        let after = self.moments(&runners)?;
        let mut all = Vec::new();
        for (runner, (before, after)) in runners.iter().zip(before.iter().zip(&after)) {
            all.push(runner.figures(before, after)?);
        }
        // Killed before what they write to is deleted.
        drop(runners);
        topics::delete_all_of(&self.stage.kafka.bootstrap, &name)?;
        Ok(all)
    }

    fn start_loop(
        &self,
        produce: Produce,
        property: Option<(&str, &str)>,
        place: &Place<'_>,
    ) -> Result<Started> {
        let (work, guarantee) = (self.arguments.work, self.arguments.guarantee);
        if work.is_stateful() {
            topics::create(place.bootstrap, place.changelog, place.partitions)?;
        }
        // What is set twice is what it was set to last.
        let properties: Vec<_> = self.workload.producer.iter().copied().chain(property).collect();
        contender::start_loop((work, guarantee, produce), &properties, place)
    }

    fn start(&self, number: usize, name: &str) -> Result<Runner<'a>> {
        let Pair { stage, workload, arguments } = *self;
        let (bootstrap, partitions) = (&stage.kafka.bootstrap, workload.partitions);
        let (work, guarantee) = (arguments.work, arguments.guarantee);
        let [output, changelog] = ["out", "changelog"].map(|role| format!("{name}-{role}"));
        topics::create(bootstrap, &output, partitions)?;
        let (input, output, changelog) = (INPUT, &output[..], &changelog[..]);
        let place = Place { bootstrap, name, input, output, changelog, partitions };
        let side = &arguments.sides[number];
        let started = match &side.who {
            Who::Loop(produce) => self.start_loop(*produce, None, &place),
            Who::LoopWith(name, value) => self.start_loop(Produce::Record, Some((name, value)), &place),
            Who::Node(changes) => {
                let terms = (work, guarantee, workload.batch_records);
                start_node(&stage.workshop.modules, changes, terms, Output::Topic(output), &place)
            }
        };
        let started = started.with_context(|| side.name.clone())?;
        let progress = GroupProgress::new(bootstrap, &started.group, INPUT, partitions)?;
        Ok(Runner { number, side, started, progress })
    }

    /// Of every contender, one after the other: each moment has a time of its own.
    fn moments(&self, runners: &[Runner<'_>]) -> Result<Vec<Moment>> {
        let moment = |runner: &Runner<'_>| {
            // Asked first: the answer may have to wait for the end of a transaction, and is of that moment.
            let handled = runner.handled()?;
            Ok(Moment { handled, mark: self.stage.mark(&runner.started)? })
        };
        runners.iter().map(moment).collect()
    }

    /// Waits until the time is up or a contender is nearly through the input.
    fn let_work(&self, runners: &mut [Runner<'_>]) -> Result<()> {
        let Arguments { seconds, records, .. } = *self.arguments;
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(seconds) {
            thread::sleep(LOOK_EVERY);
            for runner in runners.iter_mut() {
                runner.started.check().with_context(|| runner.side.name.clone())?;
                if runner.handled()? > records - records / LEFT_OF_THE_INPUT {
                    let after = started.elapsed();
                    println!("{} is nearly through the input: counted {after:.1?}", runner.side.name);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Runner<'_> {
    /// Records that its group has committed. The input has no markers of transactions, which would count.
    fn handled(&self) -> Result<u64> {
        Ok(self.progress.committed()?.iter().sum::<i64>().cast_unsigned())
    }

    fn figures(&self, before: &Moment, after: &Moment) -> Result<Figures> {
        let records = after.handled.saturating_sub(before.handled);
        ensure!(records > 0, "{} has handled nothing: more --records may be needed", self.side.name);
        let threads_ns = by_thread(&self.started, &before.mark, &after.mark, records);
        Ok(Figures { threads_ns, ..figures(&before.mark, &after.mark, records) })
    }
}

/// The first contender beside each of the others: both names, and by round what a record costs the first, in CPU time,
/// divided by what it costs the other.
fn ratios(sides: &[Side], runs: &[Vec<Figures>]) -> Vec<(String, Vec<f64>)> {
    let (Some((first, others)), Some((over, all_under))) = (sides.split_first(), runs.split_first()) else {
        return Vec::new();
    };
    let cpu = |figures: &Figures| figures.cpu_seconds_per_million;
    let ratio = |(other, under): (&Side, &Vec<Figures>)| {
        let ratios = over.iter().zip(under).map(|(over, under)| cpu(over) / cpu(under)).collect();
        (format!("{} / {}", first.name, other.name), ratios)
    };
    others.iter().zip(all_under).map(ratio).collect()
}

/// What the last round has shown.
fn print_last(sides: &[Side], runs: &[Vec<Figures>]) {
    for (side, runs) in sides.iter().zip(runs) {
        let Some(figures) = runs.last() else { continue };
        println!(
            "round {:<3}{:<56}{:6.2} CPU-s/M {:>6.0} k/s {:>5.0} MiB",
            runs.len(),
            side.name,
            figures.cpu_seconds_per_million,
            figures.records_per_second / 1e3,
            figures.peak_rss_mib,
        );
    }
    for (names, ratios) in ratios(sides, runs) {
        if let Some(ratio) = ratios.last() {
            println!("round {:<3}{names}: {ratio:.2}", ratios.len());
        }
    }
}

fn print_all(sides: &[Side], runs: &[Vec<Figures>]) {
    for (side, runs) in sides.iter().zip(runs) {
        if let Some(mean) = ByThread::mean(runs.iter().filter_map(|figures| figures.threads_ns)) {
            budget::print_one(&side.name, &mean, &[]);
        }
    }
    if sides.iter().any(|side| side.who == Who::Loop(Produce::Batch)) {
        println!("\nloop:produce=batch does less than the others: it keeps no timestamps");
    }
    println!("\nCPU time of a record, median (min..max) of the rounds' ratios");
    for (names, ratios) in ratios(sides, runs) {
        if let Some(spread) = Spread::of(ratios) {
            println!("{names}: {spread}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(text: &str) -> Side {
        Side::parse(text).expect(text)
    }

    #[test]
    fn a_contender_is_the_loop_or_a_node_with_its_changes() {
        assert_eq!(side("loop").who, Who::Loop(Produce::Record));
        assert_eq!(side("loop:produce=batch").who, Who::Loop(Produce::Batch));
        assert_eq!(side("tidemill").who, Who::Node(Changes::default()));
        let changed = Changes::parse("bin=/old/tidemill,workers=2").expect("sound");
        assert_eq!(side("tidemill:bin=/old/tidemill,workers=2").who, Who::Node(changed));
        let other = Who::LoopWith("max.in.flight".into(), "5".into());
        assert_eq!(side("loop:max.in.flight=5").who, other);
        for text in ["", "streams", "loop:workers=2", "loop:produce=", "tidemill:", "tidemill,workers=2"] {
            assert!(Side::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_ratio_is_of_one_round_and_of_the_first_to_each_of_the_others() {
        let run = |cpu_seconds_per_million| Figures {
            cpu_seconds_per_million,
            records_per_second: 1.0,
            peak_rss_mib: 1.0,
            broker_cpu_seconds_per_million: 1.0,
            latency_ms: None,
            segments: None,
            deployed_ms: None,
            threads_ns: None,
        };
        let runs = [[2.0, 6.0], [1.0, 4.0], [4.0, 3.0]].map(|rounds| rounds.map(run).to_vec());
        let sides = ["tidemill", "loop", "tidemill:workers=2"].map(side);
        let wanted = [("tidemill / loop", vec![2.0, 1.5]), ("tidemill / tidemill:workers=2", vec![0.5, 2.0])];
        assert_eq!(ratios(&sides, &runs), wanted.map(|(names, ratios)| (names.to_owned(), ratios)));
    }
}

//! Workloads, one after the other; in each the contenders take turns, round by round. The points of a curve are workloads
//! that take turns as well, because what is compared is one of them with another.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::contender::other_build;
use crate::rounds::{Figures, order};
use crate::run::Stage;
use crate::terms::{Contender, Jvm, Kind, Workload};

/// So many ways of running Kafka Streams, those that needed least, are tried once more.
const AGAIN: usize = 2;

/// What a contender has shown in every round.
pub struct Shown {
    pub contender: Contender,
    /// The way in which Kafka Streams was run.
    pub jvm: Option<Jvm>,
    pub runs: Vec<Figures>,
}

/// A workload's rounds.
pub struct Outcome {
    pub workload: &'static Workload,
    pub shown: Vec<Shown>,
    /// Ways of running Kafka Streams that were tried before the rounds.
    pub tried: Vec<(Contender, Jvm, Figures)>,
}

/// In the order in which they run: each by itself, but the points of a curve together.
pub fn groups<'w>(workloads: &'w [&'static Workload]) -> impl Iterator<Item = &'w [&'static Workload]> {
    workloads.chunk_by(|one, next| one.curve.is_some() && one.curve == next.curve)
}

/// Fails if one of those who take part is a build of its own that nobody has made: said before anything is measured, and
/// not in its first turn.
pub fn check_builds(workloads: &[&'static Workload], only: &[String]) -> Result<()> {
    let mut contenders = workloads.iter().flat_map(|&workload| taking_part(workload, only));
    contenders.try_for_each(|contender| other_build(contender).map(|_| ()))
}

/// Runs workloads in turns, with those of their contenders whose name has one of `only` in it; with all, if it is empty.
pub fn run(
    stage: &Stage,
    workloads: &[&'static Workload],
    rounds: usize,
    only: &[String],
) -> Result<Vec<Outcome>> {
    let mut progress = Progress::new(workloads, rounds, only);
    let mut outcomes = Vec::new();
    for &workload in workloads {
        println!("\n{}", workload.title);
        let mut outcome = Outcome { workload, shown: Vec::new(), tried: Vec::new() };
        for contender in taking_part(workload, only) {
            let jvm = choose(stage, contender, &mut outcome, &mut progress)?;
            outcome.shown.push(Shown { contender: *contender, jvm, runs: Vec::new() });
        }
        outcomes.push(outcome);
    }
    let numbers = |(at, outcome): (usize, &Outcome)| (0..outcome.shown.len()).map(move |number| (at, number));
    let all: Vec<(usize, usize)> = outcomes.iter().enumerate().flat_map(numbers).collect();
    for round in 0..rounds {
        for turn in order(all.len(), round) {
            let (at, number) = all[turn];
            let workload = outcomes[at].workload;
            let shown = &mut outcomes[at].shown[number];
            let name = run_name(workload, number, round);
            let figures = stage.run(workload, &shown.contender, shown.jvm, &name)?;
            let who = if workloads.len() > 1 { workload.name } else { shown.contender.name };
            progress.ran(&format!("round {}", round + 1), who, shown.jvm, &figures);
            shown.runs.push(figures);
        }
    }
    Ok(outcomes)
}

/// Of a contender's run in a round: its topics, groups and threads have it in their names.
pub fn run_name(workload: &Workload, contender: usize, round: usize) -> String {
    format!("{}-{contender}-{round}", workload.name)
}

fn taking_part<'a>(
    workload: &'static Workload,
    only: &'a [String],
) -> impl Iterator<Item = &'static Contender> + use<'a> {
    let is_named = |contender: &&Contender| only.iter().any(|part| contender.name.contains(part.as_str()));
    workload.contenders.iter().filter(move |contender| only.is_empty() || is_named(contender))
}

fn ways(contender: &Contender) -> &'static [Jvm] {
    if let Kind::Streams(ways) = contender.kind { ways } else { &[] }
}

/// Tries every way of running a contender, if there are several, and answers the one that needs least.
fn choose(
    stage: &Stage,
    contender: &Contender,
    outcome: &mut Outcome,
    progress: &mut Progress,
) -> Result<Option<Jvm>> {
    let ways = ways(contender);
    if ways.len() < 2 {
        return Ok(ways.first().copied());
    }
    let mut trials = Trials { stage, contender, outcome, progress };
    let mut found: Vec<(f64, Jvm)> = Vec::new();
    for (way, &jvm) in ways.iter().enumerate() {
        let needed = trials.attempt(jvm, &way.to_string())?;
        found.extend(needed.map(|needed| (needed, jvm)));
    }
    found.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    // One trial takes the wrong one of two that are close.
    for (place, (least, jvm)) in found.iter_mut().take(AGAIN).enumerate() {
        let needed = trials.attempt(*jvm, &format!("again-{place}"))?;
        *least = needed.map_or(*least, |needed| needed.min(*least));
    }
    let best = |is_meant: fn(&Jvm) -> bool| {
        let meant = found.iter().filter(|(_, jvm)| is_meant(jvm));
        meant.min_by(|(one, _), (other, _)| one.total_cmp(other)).copied()
    };
    if let (Some((tuned, _)), Some((plain, _))) =
        (best(|jvm| jvm.has_tuned_rocksdb), best(|jvm| !jvm.has_tuned_rocksdb))
    {
        println!("{}: {plain:.2} at best with RocksDB as it comes, {tuned:.2} tuned", contender.name);
    }
    let best = best(|_| true).with_context(|| format!("{} got through in none of its ways", contender.name));
    Ok(Some(best?.1))
}

/// A contender whose ways of being run are tried, before the rounds of its workload.
struct Trials<'a> {
    stage: &'a Stage,
    contender: &'a Contender,
    outcome: &'a mut Outcome,
    progress: &'a mut Progress,
}

impl Trials<'_> {
    /// Tries one way, and answers what it has needed; `None` if it does not get through.
    fn attempt(&mut self, jvm: Jvm, trial: &str) -> Result<Option<f64>> {
        let Trials { stage, contender, outcome, progress } = self;
        let name = format!("{}-try-{}-{trial}", outcome.workload.name, outcome.shown.len());
        let figures = match stage.run(outcome.workload, contender, Some(jvm), &name) {
            Ok(figures) => figures,
            // Such as one whose cache does not fit its heap. It is no way, and the others are tried.
            Err(error) => {
                progress.failed(contender, jvm, &error);
                return Ok(None);
            }
        };
        progress.ran("trying", contender.name, Some(jvm), &figures);
        outcome.tried.push((**contender, jvm, figures));
        figures.get(outcome.workload.decisive()).context("nothing to choose by").map(Some)
    }
}

/// Tells what ran, and how long the rest will take.
pub struct Progress {
    started: Instant,
    done: usize,
    all: usize,
}

impl Progress {
    fn new(workloads: &[&'static Workload], rounds: usize, only: &[String]) -> Progress {
        let tried = |contender| match ways(contender).len() {
            0 | 1 => 0,
            ways => ways + AGAIN,
        };
        let of = |&workload: &&'static Workload| -> usize {
            taking_part(workload, only).map(|contender| rounds + tried(contender)).sum()
        };
        Progress::of(workloads.iter().map(of).sum())
    }

    /// Of so many runs.
    pub fn of(all: usize) -> Progress {
        Progress { started: Instant::now(), done: 0, all }
    }

    /// One more has run: the how manieth of all it was, and the minutes that the others will take.
    pub fn one_more(&mut self) -> (String, u64) {
        self.done += 1;
        let each = self.started.elapsed() / u32::try_from(self.done).unwrap_or(u32::MAX);
        let left = each * u32::try_from(self.all.saturating_sub(self.done)).unwrap_or(u32::MAX);
        (format!("{:>3}/{}", self.done, self.all), left.as_secs().div_ceil(60))
    }

    fn failed(&mut self, contender: &Contender, jvm: Jvm, error: &anyhow::Error) {
        let (place, _) = self.one_more();
        println!("{place}  trying   {} ({jvm}) did not get through: {error:#}", contender.name);
    }

    fn ran(&mut self, what: &str, who: &str, jvm: Option<Jvm>, figures: &Figures) {
        let (place, minutes) = self.one_more();
        let way = jvm.map(|jvm| format!(" ({jvm})")).unwrap_or_default();
        println!(
            "{place}  {what:<8} {:<48} {:6.2} CPU-s/M {:>6.0} k/s {:>5.0} MiB  broker {:.2}{}{}  {minutes} min left",
            format!("{who}{way}"),
            figures.cpu_seconds_per_million,
            figures.records_per_second / 1e3,
            figures.peak_rss_mib,
            figures.broker_cpu_seconds_per_million,
            figures.latency_ms.map(|latency| format!("  {latency}")).unwrap_or_default(),
            figures.deployed_ms.map(|ms| format!("  first output after {ms:.0} ms")).unwrap_or_default(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::WORKLOADS;

    #[test]
    fn progress_tells_the_how_manieth_ran_and_nothing_is_left_after_the_last() {
        let mut progress = Progress::of(2);
        assert_eq!(progress.one_more().0, "  1/2");
        assert_eq!(progress.one_more(), ("  2/2".to_owned(), 0));
    }

    #[test]
    fn a_native_node_that_is_not_built_is_missed_before_the_first_turn() {
        // None lies beside the program of this test.
        let taxed = || WORKLOADS.iter().filter(|workload| workload.name == "b1-100").collect::<Vec<_>>();
        let error = check_builds(&taxed(), &[]).expect_err("it takes part");
        assert!(error.to_string().contains("make native-node"), "{error}");
        check_builds(&taxed(), &["loop".to_owned()]).expect("it takes no part");
    }

    #[test]
    fn the_points_of_a_curve_take_turns_and_every_other_workload_has_its_own() {
        let all: Vec<&'static Workload> = WORKLOADS.iter().collect();
        let groups: Vec<&[&'static Workload]> = groups(&all).collect();
        let points = |grows| all.iter().filter(|workload| workload.curve == Some(grows)).count();
        for group in &groups {
            let wanted = group[0].curve.map_or(1, points);
            assert_eq!(group.len(), wanted, "{}", group[0].name);
        }
        assert_eq!(groups.concat().len(), all.len());
    }
}

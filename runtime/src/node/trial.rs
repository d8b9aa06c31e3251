//! A new version on trial: what its first records come to on this node, and whether that takes it back.
//!
//! Workers count, once a batch; the rule looks at the counts now and then. What follows from a verdict
//! is [`super::retreat`]'s.
//!
//! ```text
//!   open, no record yet ---first record---> watched ---watch is over, or nothing to go back to---> closed
//!            |                                 |
//!            +-- cannot start here             +-- too many failed | a task halted | the lag grew throughout
//!            |                                 |   a circuit breaker opened
//!            |                                 |
//!            +--------------> unfit <----------+
//! ```
//!
//! A record that had halted an earlier version already does not count against this one, and what is tried
//! again after a failure was counted when it failed first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::registered::Registered;
use crate::config::rollout::RolloutSpec;
use crate::config::units;
use crate::record::Offset;
use crate::task::{Applied, Failure};
use crate::telemetry::Counter;

/// If so many are tried and every one has failed, nobody waits for more.
const ALL_FAILED: u64 = 10;
/// Looks at the lag in one watch.
const LAG_LOOKS: u32 = 10;
/// Longest reason that is kept; the registry takes 1,000 bytes.
const REASON_BYTES_MAX: usize = 800;

/// What is counted of one version on this node. Shared by its workers.
#[derive(Debug, Default)]
pub struct Trial {
    version: u64,
    /// Records given to the handler for the first time, and those of them that failed.
    tried: Counter,
    failed: Counter,
    /// Such as the first one.
    failure: OnceLock<String>,
    /// Why it is unfit whatever was counted.
    unfit: OnceLock<String>,
    /// Why a circuit breaker has opened that was closed before it.
    breaker: OnceLock<String>,
    /// A task came here that had handled records with it elsewhere, or before a restart.
    used: AtomicBool,
    /// The rule still looks.
    open: AtomicBool,
    /// Why it is unfit and stays all the same.
    kept: OnceLock<String>,
    stops: Arc<Stops>,
}

/// The records that halted tasks of a deployment, and under which version: topic and partition to offset.
#[derive(Debug, Default)]
struct Stops(Mutex<HashMap<(String, i32), (Offset, u64)>>);

impl Stops {
    /// True if an earlier version was halted by this record. The first one to be halted keeps it.
    fn is_known(&self, failure: &Failure, version: u64) -> bool {
        let mut stops = lock(&self.0);
        let place = (failure.topic.clone(), failure.partition);
        match stops.get(&place) {
            Some((offset, by)) if *offset == failure.offset => *by != version,
            _ => {
                stops.insert(place, (failure.offset, version));
                false
            }
        }
    }
}

impl Trial {
    /// A batch has been applied. `halted` is the failure that the task halted for, if it did.
    pub fn count(&self, partition: i32, applied: &Applied, halted: Option<&Failure>) {
        let known = halted.is_some_and(|failure| self.stops.is_known(failure, self.version));
        let (ok, failed) = (applied.ok as u64, applied.failed as u64);
        let failed = failed.saturating_sub(u64::from(known));
        self.tried.add(ok + failed);
        if failed > 0 {
            self.failed.add(failed);
            if let Some(failure) = &applied.failure {
                self.failure.get_or_init(|| failure.to_string());
            }
        }
        if let Some(failure) = halted.filter(|_| !known) {
            self.unfit(format!("task {partition} halted: {failure}"));
        }
    }

    /// The first reason counts.
    pub fn unfit(&self, reason: String) {
        self.unfit.get_or_init(|| reason);
    }

    /// A destination of an outbox fails again and again, and did not before. The first reason counts.
    pub fn breaker_opened(&self, reason: String) {
        self.breaker.get_or_init(|| reason);
    }

    /// A task starts here that has handled records with this version.
    pub fn was_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Tried and failed.
    pub fn counts(&self) -> (u64, u64) {
        // In this order, so that what fails in between is not above what was tried.
        let failed = self.failed.get();
        (self.tried.get(), failed)
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// Why it stays although it is unfit; the first reason counts.
    pub(super) fn keep(&self, reason: String) {
        self.kept.get_or_init(|| reason);
    }

    pub fn kept(&self) -> Option<&str> {
        self.kept.get().map(String::as_str)
    }
}

/// The trials of a node's deployments: one of each version that it has seen last.
#[derive(Debug, Default)]
pub struct Trials(Mutex<BTreeMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    incarnation: String,
    trial: Arc<Trial>,
}

impl Trials {
    /// Of the version that this is; the same one for as long as it runs, whatever else of it changes.
    pub fn of(&self, registered: &Registered) -> Arc<Trial> {
        let mut entries = lock(&self.0);
        let version = registered.version();
        let before = entries.get(&registered.name);
        let before = before.filter(|entry| entry.incarnation == registered.incarnation);
        if let Some(entry) = before
            && entry.trial.version == version
        {
            return Arc::clone(&entry.trial);
        }
        // What halted a version is known to the next one.
        let stops = before.map(|entry| Arc::clone(&entry.trial.stops)).unwrap_or_default();
        let is_late = before.is_some_and(|entry| entry.trial.version > version);
        let trial = Arc::new(Trial { version, stops, ..Trial::default() });
        if is_late {
            return trial; // Nobody looks at it any more.
        }
        let entry = Entry { incarnation: registered.incarnation.clone(), trial: Arc::clone(&trial) };
        entries.insert(registered.name.clone(), entry);
        trial
    }

    /// The same, if this node runs the version.
    pub fn find(&self, registered: &Registered) -> Option<Arc<Trial>> {
        let entries = lock(&self.0);
        let entry = entries.get(&registered.name)?;
        let is_same =
            entry.incarnation == registered.incarnation && entry.trial.version == registered.version();
        is_same.then(|| Arc::clone(&entry.trial))
    }

    pub fn forget(&self, deployment: &str) {
        lock(&self.0).remove(deployment);
    }
}

/// What takes a version back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Too many of its records failed.
    Failures,
    /// It halted a task, or cannot start.
    Halted,
    /// It does not keep up.
    Lag,
    /// A destination does not take what it sends.
    Breaker,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Open,
    /// The watch is over.
    Closed,
    Unfit(Cause, String),
}

/// The lag of a deployment's tasks on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    pub tasks: BTreeSet<i32>,
    pub records: u64,
}

/// The rule, for one version. Knows no clock.
#[derive(Debug)]
pub struct Judge {
    spec: RolloutSpec,
    /// Since when it is watched, and for how long it may have been watched by then.
    since: Option<(Duration, Duration)>,
    /// Looks at the lag so far; none once they say nothing.
    lags: Option<Vec<Lag>>,
    /// For how long it had been watched at the first of them.
    lags_since: Duration,
}

impl Judge {
    pub fn new(spec: RolloutSpec) -> Judge {
        Judge { lags: spec.lag.then(Vec::new), spec, since: None, lags_since: Duration::ZERO }
    }

    /// `age` is the version's, by the registry's clock. `lag` answers none while it is unknown.
    pub fn look(
        &mut self,
        now: Duration,
        age: Duration,
        trial: &Trial,
        lag: impl FnOnce() -> Option<Lag>,
    ) -> Verdict {
        let (tried, failed) = trial.counts();
        if self.since.is_none() && trial.used.load(Ordering::Relaxed) {
            // When its first record came elsewhere is not known; not before it was deployed.
            self.since = Some((now, age));
        } else if self.since.is_none() && tried > 0 {
            self.since = Some((now, Duration::ZERO));
        }
        let watched = self.since.map(|(since, before)| before + now.saturating_sub(since));
        if watched.is_some_and(|watched| watched > self.spec.watch) {
            return Verdict::Closed;
        }
        // One that has been idle for long is not new any more when it cannot start.
        if let Some(reason) = trial.unfit.get().filter(|_| watched.is_some() || age <= self.spec.watch) {
            return Verdict::Unfit(Cause::Halted, cut(reason.clone()));
        }
        if let Some(reason) = too_many(&self.spec, tried, failed) {
            let such = trial.failure.get().map_or("", String::as_str);
            return Verdict::Unfit(Cause::Failures, cut(format!("{reason}, such as {such}")));
        }
        if let Some(reason) = trial.breaker.get().filter(|_| self.spec.breaker && watched.is_some()) {
            return Verdict::Unfit(Cause::Breaker, cut(reason.clone()));
        }
        match watched.and_then(|watched| self.lag(watched, lag)) {
            Some(reason) => Verdict::Unfit(Cause::Lag, reason),
            None => Verdict::Open,
        }
    }

    /// Ten looks, evenly over what is left of the watch when the lag is known first, each further behind than
    /// the one before. It began with a tenth of the last one at most, so that the version before is not to blame.
    fn lag(&mut self, watched: Duration, lag: impl FnOnce() -> Option<Lag>) -> Option<String> {
        let looks = self.lags.as_mut()?;
        let left = self.spec.watch.saturating_sub(self.lags_since);
        if watched < self.lags_since + left * looks.len() as u32 / LAG_LOOKS {
            return None;
        }
        let now = lag().filter(|now| !now.tasks.is_empty());
        if looks.is_empty() {
            // A version that is not swapped in place begins with tasks that restore: that says nothing about
            // how it does.
            now.as_ref()?;
            self.lags_since = watched;
            if watched > self.spec.watch / 2 {
                // What is left is too short for a verdict about the whole.
                self.lags = None;
                return None;
            }
        }
        let grows = now.as_ref().is_some_and(|now| {
            looks.last().is_none_or(|last| last.tasks == now.tasks && last.records < now.records)
        });
        let Some(now) = now.filter(|_| grows) else {
            self.lags = None;
            return None;
        };
        looks.push(now);
        let (first, last) = (looks.first()?.records, looks.last()?.records);
        if looks.len() < LAG_LOOKS as usize {
            return None;
        }
        self.lags = None;
        let watch = units::show_duration(self.spec.watch);
        (first <= last / 10 && last >= self.spec.records).then(|| {
            format!("its lag grew throughout the {watch} that it was watched, from {first} to {last} records")
        })
    }
}

/// Why that many failed records speak against a version; none while they are allowed, or too few were tried.
pub fn too_many(spec: &RolloutSpec, tried: u64, failed: u64) -> Option<String> {
    if failed == 0 {
        return None;
    }
    if failed == tried && tried >= ALL_FAILED.min(spec.records) {
        return Some(format!("every one of the first {tried} records failed"));
    }
    let share = u128::from(failed) * 1_000_000;
    let over = share > u128::from(tried) * u128::from(spec.failures_ppm);
    (over && tried >= spec.records).then(|| {
        let percent = failed as f64 * 100.0 / tried as f64;
        let allowed = units::show_share(spec.failures_ppm);
        format!("{failed} of {tried} records failed ({percent:.1}%, allowed are {allowed})")
    })
}

fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}

/// A panic elsewhere leaves values that are still whole: every critical section here is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::FailureKind;

    const S: Duration = Duration::from_secs(1);

    fn spec() -> RolloutSpec {
        RolloutSpec { watch: S * 100, ..RolloutSpec::default() }
    }

    fn failure(offset: u64) -> Failure {
        Failure {
            kind: FailureKind::Permanent,
            topic: "in".into(),
            partition: 0,
            offset: Offset(offset),
            reason: "as told".into(),
        }
    }

    /// So many ended ok, so many failed.
    fn count(trial: &Trial, ok: usize, failed: usize) {
        let failure = (failed > 0).then(|| failure(7));
        trial.count(0, &Applied { ok, failed, failure, ..Applied::default() }, None);
    }

    fn look(judge: &mut Judge, now: Duration, trial: &Trial) -> Verdict {
        judge.look(now, now, trial, || None)
    }

    #[test]
    fn a_share_above_the_limit_counts_once_enough_records_were_tried() {
        let (mut judge, trial) = (Judge::new(spec()), Trial::default());
        count(&trial, 90, 9);
        assert_eq!(look(&mut judge, S, &trial), Verdict::Open, "99 are too few");
        count(&trial, 81, 0);
        assert_eq!(look(&mut judge, S, &trial), Verdict::Open, "9 of 180 are 5%, and that many may fail");
        count(&trial, 0, 1);
        let Verdict::Unfit(Cause::Failures, reason) = look(&mut judge, S * 2, &trial) else {
            panic!("10 of 181 are more than 5%");
        };
        assert_eq!(
            reason,
            "10 of 181 records failed (5.5%, allowed are 5%), such as record in/0 at offset 7 failed (permanent, HandlerError): as told"
        );
    }

    #[test]
    fn ten_failures_and_nothing_else_are_enough() {
        let (mut judge, trial) = (Judge::new(spec()), Trial::default());
        count(&trial, 0, 9);
        assert_eq!(look(&mut judge, S, &trial), Verdict::Open);
        count(&trial, 0, 1);
        assert!(matches!(look(&mut judge, S, &trial), Verdict::Unfit(Cause::Failures, _)));
        let one = RolloutSpec { records: 1, ..spec() };
        let (mut judge, trial) = (Judge::new(one), Trial::default());
        count(&trial, 0, 1);
        assert!(matches!(look(&mut judge, S, &trial), Verdict::Unfit(..)), "the document says so");
    }

    #[test]
    fn the_watch_begins_with_the_first_record_and_ends_for_good() {
        let (mut judge, trial) = (Judge::new(spec()), Trial::default());
        assert_eq!(look(&mut judge, S * 1_000, &trial), Verdict::Open, "nothing has come yet");
        count(&trial, 1, 0);
        assert_eq!(look(&mut judge, S * 1_001, &trial), Verdict::Open);
        assert_eq!(look(&mut judge, S * 1_101, &trial), Verdict::Open, "to the last second");
        count(&trial, 0, 500);
        assert_eq!(look(&mut judge, S * 1_102, &trial), Verdict::Closed);
    }

    #[test]
    fn a_version_that_comes_from_elsewhere_is_as_old_as_its_deploy() {
        let (mut judge, trial) = (Judge::new(spec()), Trial::default());
        trial.was_used();
        count(&trial, 0, 500);
        assert_eq!(judge.look(S * 5, S * 101, &trial, || None), Verdict::Closed);
        let mut judge = Judge::new(spec());
        assert!(matches!(judge.look(S * 5, S * 99, &trial, || None), Verdict::Unfit(..)));
    }

    #[test]
    fn one_that_cannot_start_is_unfit_while_it_is_new() {
        let trial = Trial::default();
        trial.unfit("it cannot start: no".into());
        trial.unfit("later".into());
        let verdict = Judge::new(spec()).look(S, S * 99, &trial, || None);
        assert_eq!(verdict, Verdict::Unfit(Cause::Halted, "it cannot start: no".into()));
        assert_eq!(Judge::new(spec()).look(S, S * 101, &trial, || None), Verdict::Open, "it waited too long");
    }

    #[test]
    fn a_breaker_that_opens_during_the_watch_takes_the_version_back() {
        let trial = Trial::default();
        trial.breaker_opened("the circuit breaker of output calls opened: 503".into());
        assert_eq!(look(&mut Judge::new(spec()), S, &trial), Verdict::Open, "it has sent nothing yet");
        count(&trial, 1, 0);
        let told = || "the circuit breaker of output calls opened: 503".to_owned();
        assert_eq!(look(&mut Judge::new(spec()), S, &trial), Verdict::Unfit(Cause::Breaker, told()));
        let without = RolloutSpec { breaker: false, ..spec() };
        assert_eq!(look(&mut Judge::new(without), S, &trial), Verdict::Open);
    }

    #[test]
    fn what_halted_the_version_before_does_not_count_against_the_next() {
        let stops = Arc::new(Stops::default());
        let trial = |version| Trial { version, stops: Arc::clone(&stops), ..Trial::default() };
        let halted = Applied { ok: 3, failed: 1, failure: Some(failure(5)), ..Applied::default() };
        let first = trial(1);
        first.count(0, &halted, Some(&failure(5)));
        assert_eq!((first.counts(), first.unfit.get().is_some()), ((4, 1), true));
        let second = trial(2);
        second.count(0, &halted, Some(&failure(5)));
        assert_eq!((second.counts(), second.unfit.get()), ((3, 0), None));
        second.count(0, &halted, Some(&failure(6)));
        let reason = second.unfit.get().expect("another record");
        assert!(reason.starts_with("task 0 halted: record in/0 at offset 6"), "{reason}");
        // Whether it is tried again by the same version makes no difference.
        let third = trial(3);
        third.count(0, &halted, Some(&failure(6)));
        third.count(0, &halted, Some(&failure(6)));
        assert_eq!(third.unfit.get(), None);
    }

    /// Looks once a second; answers the verdict at the end, or the first that is not open.
    fn watch(lags: impl Fn(u64) -> Option<(i32, u64)>) -> Verdict {
        let (mut judge, trial) = (Judge::new(spec()), Trial::default());
        count(&trial, 1, 0);
        for second in 1..=200 {
            let lag = || lags(second).map(|(task, records)| Lag { tasks: BTreeSet::from([task]), records });
            let verdict = judge.look(S * second as u32, S, &trial, lag);
            if verdict != Verdict::Open {
                return verdict;
            }
        }
        panic!("every watch ends");
    }

    #[test]
    fn a_lag_that_grows_throughout_the_watch_takes_the_version_back() {
        let Verdict::Unfit(Cause::Lag, reason) = watch(|second| Some((0, second * 100))) else {
            panic!("it grew throughout");
        };
        assert_eq!(reason, "its lag grew throughout the 100s that it was watched, from 100 to 9100 records");
        assert_eq!(watch(|second| Some((0, second.min(50) * 100))), Verdict::Closed, "it stood still");
        assert_eq!(watch(|second| Some((0, 1_000_000 + second))), Verdict::Closed, "it was behind before");
        assert_eq!(watch(|second| Some((0, second / 4))), Verdict::Closed, "a few records are no lag");
        assert_eq!(
            watch(|second| Some(((second / 50) as i32, second * 100))),
            Verdict::Closed,
            "other tasks"
        );
        assert_eq!(
            watch(|second| (second != 41).then_some((0, second * 100))),
            Verdict::Closed,
            "unknown once"
        );
    }

    #[test]
    fn a_lag_that_is_unknown_at_first_is_judged_from_when_it_is_known() {
        for known in [6, 11, 35] {
            let lag = |second: u64| second.checked_sub(known).map(|since| (0, 10 + since * 100));
            assert!(matches!(watch(lag), Verdict::Unfit(Cause::Lag, _)), "known after {known} s");
        }
        let late = |second: u64| second.checked_sub(60).map(|since| (0, 10 + since * 100));
        assert_eq!(watch(late), Verdict::Closed, "less than half of the watch is left");
        assert_eq!(watch(|_| None), Verdict::Closed, "never known");
        let mut judge = Judge::new(spec());
        let trial = Trial::default();
        count(&trial, 1, 0);
        let nobody = || Some(Lag { tasks: BTreeSet::new(), records: 0 });
        assert_eq!(judge.look(S, S, &trial, nobody), Verdict::Open);
        assert_eq!(judge.lags, Some(Vec::new()), "a node without tasks has no lag");
    }

    #[test]
    fn nobody_asks_for_a_lag_that_does_not_count() {
        let mut judge = Judge::new(RolloutSpec { lag: false, ..spec() });
        let trial = Trial::default();
        count(&trial, 1, 0);
        assert_eq!(judge.look(S, S, &trial, || panic!("nobody asks")), Verdict::Open);
    }
}

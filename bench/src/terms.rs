//! The words that the table is written in.

use std::fmt;

use clap::ValueEnum;

use crate::keys::Keys;
use crate::latency::Pace;
use crate::load::Values;

/// What is done with every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// It is passed on as it is.
    Map,
    /// It is passed on as it is if its key ends in the digit 0, which a tenth of them do.
    Filter,
    /// It is an order in JSON: parsed into a typed form, added up, and written again.
    Json,
    /// The records of its key are counted, and the new count is emitted.
    Count,
    /// It is passed on if its key is new.
    Dedupe,
}

impl Work {
    /// What comes out of so many records with such keys that follow so many others, by whoever emits every update of a
    /// key or, else, only what a commit finds.
    pub fn out(self, (before, records): (u64, u64), keys: Keys, is_every_update: bool) -> Out {
        match self {
            Work::Map | Work::Json => Out::Exactly(records),
            Work::Filter => Out::Exactly(keys.ending_in_0(before, records)),
            Work::Count if is_every_update => Out::Exactly(records),
            Work::Count => Out::AtLeast(keys.distinct(before, records).keys),
            Work::Dedupe => Out::Exactly(keys.distinct(before, records).new),
        }
    }

    /// Whether it keeps something for each key.
    pub fn is_stateful(self) -> bool {
        matches!(self, Work::Count | Work::Dedupe)
    }
}

/// How many records have to come out for the work to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    Exactly(u64),
    AtLeast(u64),
}

impl Out {
    pub fn is_met_by(self, records: u64) -> bool {
        match self {
            Out::Exactly(wanted) => records == wanted,
            Out::AtLeast(least) => records >= least,
        }
    }

    /// Of whoever may do some of it twice.
    pub fn or_more(self) -> Out {
        match self {
            Out::Exactly(least) | Out::AtLeast(least) => Out::AtLeast(least),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Guarantee {
    ExactlyOnce,
    AtLeastOnce,
}

impl Guarantee {
    /// As a deployment's document says it.
    pub fn name(self) -> &'static str {
        match self {
            Guarantee::ExactlyOnce => "exactly_once",
            Guarantee::AtLeastOnce => "at_least_once",
        }
    }
}

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// The native loop, on librdkafka.
    Loop,
    Tidemill,
    /// Tidemill, and what it calls is linked into it instead of the module's: only a map's.
    NativeHandler,
    /// Tidemill with other work than the workload's, which is compared with it.
    Doing(Work),
    /// Tidemill with an output that is sent the last record of each key of a commit.
    AtCommit,
    /// Tidemill with an output that is an outbox: a client outside the transaction delivers to the topic.
    Outbox,
    /// Kafka Streams in one of these ways. Each of them runs before the rounds, the two that need least once more, and the
    /// one that has needed least by then goes on.
    Streams(&'static [Jvm]),
}

/// How Kafka Streams is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jvm {
    pub collector: Collector,
    pub threads: u32,
    /// Of its stores; 0 emits every update, else only what a commit finds is emitted.
    pub cache_mib: u32,
    /// `None` leaves it to the JVM: a quarter of the machine's memory at most.
    pub heap_mib: Option<u32>,
    /// As `streams/TunedRocksDb.java` has it, else as Kafka Streams sets it up.
    pub has_tuned_rocksdb: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collector {
    G1,
    Parallel,
}

#[derive(Debug, Clone, Copy)]
pub struct Contender {
    /// Unique in its workload.
    pub name: &'static str,
    pub kind: Kind,
    pub guarantee: Guarantee,
}

impl Contender {
    /// What it does in a workload.
    pub fn work(&self, workload: &Workload) -> Work {
        if let Kind::Doing(work) = self.kind { work } else { workload.work }
    }

    /// What has to come out of so many records that follow so many others. `jvm` is how it runs, if it is Kafka Streams.
    pub fn out(&self, workload: &Workload, jvm: Option<Jvm>, records: (u64, u64)) -> Out {
        let is_every_update = self.kind != Kind::AtCommit && jvm.is_none_or(|jvm| jvm.cache_mib == 0);
        let out = self.work(workload).out(records, workload.keys, is_every_update);
        // A row of an outbox is delivered at least once.
        let is_once = self.guarantee == Guarantee::ExactlyOnce && self.kind != Kind::Outbox;
        if is_once { out } else { out.or_more() }
    }
}

/// What is read off a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// CPU-seconds of the process per million records.
    Cpu,
    /// Peak resident memory.
    PeakRss,
    /// End to end, of the median record.
    P50,
    /// End to end, of the slowest record in twenty.
    P95,
    /// End to end, of the slowest record in a hundred.
    P99,
    /// Of the commits that a node tried, the share that succeeded.
    Committed,
    /// Milliseconds of a commit, on average.
    Commit,
    /// Milliseconds of the rest of a record's way, on average.
    NoCommit,
    /// Milliseconds within which nineteen calls of a handler in twenty end.
    Call,
    /// Of the records handed to a handler, the share of which it did not fail.
    Handled,
    /// Of the same, the share that went to the dead letters.
    DeadLetters,
    /// Milliseconds from the deploy of a new module to the first record that comes out of it.
    Deployed,
    /// Milliseconds for which a partition of the output stands still.
    Gap,
    /// Kibibytes that a deployment adds beyond its linear memory and its client of librdkafka.
    OwnMemory,
    /// Seconds from a kill, or from a start long after it, to the first new output.
    FirstOutput,
    /// Keys restored in a second, by what the contender says of itself.
    RestoredKeys,
    /// The same in megabytes of the changelog's keys and values; only of those that say it.
    RestoredMegabytes,
}

/// What a ratio may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Of the null comparison: how far from 1 it is tells how much noise there is.
    Noise,
}

/// One contender's figure divided by another's, of the same round, or less the other's; or one's figure as it
/// is, where nobody else has it.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    pub name: &'static str,
    pub metric: Metric,
    pub over: &'static str,
    /// `None` of a figure as it is: only for what people wait for, and with a bar far from it.
    pub under: Option<&'static str>,
    /// Subtracted and not divided: for what something adds.
    pub is_difference: bool,
    /// `None` of a ratio that is only shown.
    pub bar: Option<Bar>,
    /// What it would be at best; as the bar, it is met from one side.
    pub stretch: Option<f64>,
}

/// How a workload is driven.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many records appear at once.
    Backlog { records: u64 },
    /// Records come at this rate, whether or not anybody keeps up.
    Open(Pace),
    /// So many records are there already, and a new module is deployed that reads them.
    Deploy { records: u64 },
}

#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub name: &'static str,
    pub title: &'static str,
    pub work: Work,
    pub keys: Keys,
    pub values: Values,
    pub load: Load,
    /// Of its topics.
    pub partitions: i32,
    /// Records that a handler is called with at most.
    pub batch_records: u32,
    /// Kafka Streams is set for throughput, with everybody's commit interval; else all are at their defaults.
    pub is_tuned: bool,
    /// Properties of the producers of nodes and loops, beside their own.
    pub producer: &'static [(&'static str, &'static str)],
    pub contenders: &'static [Contender],
    pub ratios: &'static [Ratio],
    /// It is a point of the curve of what a record costs as this grows.
    pub curve: Option<&'static str>,
    /// Whether what each thread costs is told too.
    pub has_budget: bool,
    /// Runs only if it is named, or everything is to run.
    pub is_long: bool,
}

/// A way to be killed, with so many keys, and to come back.
#[derive(Debug, Clone, Copy)]
pub struct Kill {
    pub millions: u64,
    pub again: Again,
    pub state: State,
    /// `None` of figures that are only shown.
    pub ratio: Option<Ratio>,
}

/// When a killed process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    AtOnce,
    /// The dead member's session and its transaction have ended.
    AfterExpiry,
}

/// What becomes of the stores between a kill and the restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Kept,
    Deleted,
}

impl Workload {
    /// What decides which way of running Kafka Streams is its best here.
    pub fn decisive(&self) -> Metric {
        self.ratios.last().map_or(Metric::Cpu, |ratio| ratio.metric)
    }

    /// `b4` means every workload whose name begins with `b4-`, but for long ones.
    pub fn is_meant_by(&self, name: &str) -> bool {
        let begins = || self.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
        self.name == name || !self.is_long && begins()
    }
}

impl fmt::Display for Jvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}, {} thread{}",
            self.collector,
            self.threads,
            if self.threads == 1 { "" } else { "s" }
        )?;
        match self.cache_mib {
            0 => f.write_str(", no cache")?,
            mib => write!(f, ", cache {mib} MiB")?,
        }
        match self.heap_mib {
            Some(mib) => write!(f, ", heap {mib} MiB")?,
            None => f.write_str(", heap by default")?,
        }
        f.write_str(if self.has_tuned_rocksdb { ", RocksDB tuned" } else { "" })
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = match self.again {
            Again::AtOnce => "at once",
            Again::AfterExpiry => "after expiry",
        };
        let state = match self.state {
            State::Kept => "kept",
            State::Deleted => "deleted",
        };
        write!(f, "{} M keys, started again {again}, stores {state}", self.millions)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::Cpu => "CPU-s per million records",
            Metric::PeakRss => "peak RSS",
            Metric::P50 => "p50",
            Metric::P95 => "p95",
            Metric::P99 => "p99",
            Metric::Committed => "of those that were tried",
            Metric::Commit | Metric::NoCommit => "ms on average",
            Metric::Call => "p95, ms",
            Metric::Handled | Metric::DeadLetters => "of those that were handed to it",
            Metric::Deployed | Metric::Gap => "ms",
            Metric::OwnMemory => "KiB",
            Metric::FirstOutput => "s to first new output",
            Metric::RestoredKeys => "keys/s restored",
            Metric::RestoredMegabytes => "MB/s restored",
        })
    }
}

impl fmt::Display for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Out::Exactly(records) => write!(f, "{records}"),
            Out::AtLeast(records) => write!(f, "at least {records}"),
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::AtMost(bar) => write!(f, "at most {bar}"),
            Bar::AtLeast(bar) => write!(f, "at least {bar}"),
            Bar::Noise => f.write_str("noise"),
        }
    }
}

impl Bar {
    /// Whether a ratio holds.
    pub fn is_met_by(self, ratio: f64) -> bool {
        match self {
            Bar::AtMost(bar) => ratio <= bar,
            Bar::AtLeast(bar) => ratio >= bar,
            Bar::Noise => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::WORKLOADS;

    #[test]
    fn what_has_to_come_out_depends_on_work_keys_and_who_emits_what() {
        let out = |workload: &str, name: &str, cache_mib: Option<u32>| {
            let workload = WORKLOADS.iter().find(|w| w.name == workload).expect("a workload");
            let contender = workload.contenders.iter().find(|c| c.name == name).expect("a contender");
            let jvm = cache_mib.map(|cache_mib| Jvm { cache_mib, ..crate::table::KILLED });
            contender.out(workload, jvm, (1_000_000, 20))
        };
        assert_eq!(out("b1-100", "tidemill", None), Out::Exactly(20));
        assert_eq!(out("b1-100", "tidemill, at least once", None), Out::AtLeast(20));
        assert_eq!(out("b2", "streams", Some(0)), Out::Exactly(2));
        assert_eq!(out("b4-zipf", "loop", None), Out::Exactly(20));
        assert_eq!(out("b4-zipf", "streams, every update", Some(0)), Out::Exactly(20));
        for at_commit in
            [out("b4-zipf", "streams, at commit", Some(10)), out("b4-zipf", "tidemill, at commit", None)]
        {
            assert!(matches!(at_commit, Out::AtLeast(1..=20)), "{at_commit:?}");
        }
        assert_eq!(out("inbox", "tidemill", None), Out::Exactly(20));
        assert_eq!(out("outbox", "tidemill, outbox", None), Out::AtLeast(20));
    }

    #[test]
    fn what_came_out_is_enough_or_it_is_not() {
        assert!(Out::Exactly(20).is_met_by(20) && Out::AtLeast(20).is_met_by(21));
        assert!(!Out::Exactly(20).is_met_by(21) && !Out::AtLeast(20).is_met_by(19));
    }
}

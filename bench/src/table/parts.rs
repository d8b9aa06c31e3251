//! What the rows of the table are made of: ways to run Kafka Streams, who takes part together, and the ratios that go
//! with it.

use crate::terms::Guarantee::{AtLeastOnce, ExactlyOnce};
use crate::terms::{Bar, Collector, Contender, Guarantee, Jvm, Kind, Metric, Ratio};

pub(super) const fn contender(name: &'static str, kind: Kind, guarantee: Guarantee) -> Contender {
    Contender { name, kind, guarantee }
}

const fn jvm(collector: Collector, threads: u32, cache_mib: u32) -> Jvm {
    // A large cache needs several times its size of the heap.
    let heap_mib = Some(if cache_mib > 100 { 2_048 } else { 1_024 });
    Jvm { collector, threads, cache_mib, heap_mib, has_tuned_rocksdb: false }
}

const fn tuned(way: Jvm) -> Jvm {
    Jvm { has_tuned_rocksdb: true, ..way }
}

/// At default settings but for the heap.
const fn by_default(collector: Collector, heap_mib: Option<u32>) -> Jvm {
    Jvm { collector, threads: 1, cache_mib: 10, heap_mib, has_tuned_rocksdb: false }
}

pub(super) const fn ratio(
    name: &'static str,
    metric: Metric,
    sides: [&'static str; 2],
    bar: Bar,
    stretch: f64,
) -> Ratio {
    Ratio { bar: Some(bar), stretch: Some(stretch), ..shown(name, metric, sides) }
}

/// A ratio of which nothing is asked.
pub(super) const fn shown(name: &'static str, metric: Metric, sides: [&'static str; 2]) -> Ratio {
    let [over, under] = sides;
    Ratio { name, metric, over, under: Some(under), is_difference: false, bar: None, stretch: None }
}

/// What the first adds to the second, in CPU time: microseconds a record.
pub(super) const fn added(
    name: &'static str,
    sides: [&'static str; 2],
    bar: Option<Bar>,
    stretch: Option<f64>,
) -> Ratio {
    Ratio { is_difference: true, bar, stretch, ..shown(name, Metric::Cpu, sides) }
}

/// A figure of the node's as it is.
pub(super) const fn alone(name: &'static str, metric: Metric, at_most: f64, stretch: Option<f64>) -> Ratio {
    let bar = Some(Bar::AtMost(at_most));
    Ratio { name, metric, over: "tidemill", under: None, is_difference: false, bar, stretch }
}

/// Ratios of which nothing is asked here, though it is elsewhere. The noise stays what it is.
pub(super) const fn only_shown<const N: usize>(mut ratios: [Ratio; N]) -> [Ratio; N] {
    let mut at = 0;
    while at < N {
        if !matches!(ratios[at].bar, Some(Bar::Noise)) {
            ratios[at].bar = None;
            ratios[at].stretch = None;
        }
        at += 1;
    }
    ratios
}

pub(super) const NULL: Ratio = ratio("null comparison", Metric::Cpu, ["loop", "loop again"], Bar::Noise, 1.0);

/// Every collector and number of threads, with that much of a cache.
const fn ways(cache_mib: u32) -> [Jvm; 4] {
    [
        jvm(Collector::G1, 1, cache_mib),
        jvm(Collector::Parallel, 1, cache_mib),
        jvm(Collector::G1, 2, cache_mib),
        jvm(Collector::Parallel, 2, cache_mib),
    ]
}

/// Every way that may be the best for a workload without state.
const STORELESS: &[Jvm] = &ways(0);
/// And with some, if each update is emitted.
pub(super) const EVERY_UPDATE: &[Jvm] = &{
    let [one, two, three, four] = ways(0);
    [one, two, three, four, tuned(three), tuned(four)]
};
/// Ten mebibytes are the default. What a cache keeps away from RocksDB makes its tuning matter less.
pub(super) const AT_COMMIT: &[Jvm] = &{
    let [one, two, three, four] = ways(10);
    let large = jvm(Collector::Parallel, 1, 256);
    [one, two, three, four, large, tuned(two), tuned(large)]
};
const EITHER: &[Jvm] = &{
    let mut all = [EVERY_UPDATE[0]; EVERY_UPDATE.len() + AT_COMMIT.len()];
    let mut at = 1;
    while at < all.len() {
        all[at] = match at < EVERY_UPDATE.len() {
            true => EVERY_UPDATE[at],
            false => AT_COMMIT[at - EVERY_UPDATE.len()],
        };
        at += 1;
    }
    all
};
const SMALL: &[Jvm] = &[
    by_default(Collector::G1, None),
    by_default(Collector::G1, Some(256)),
    by_default(Collector::Parallel, Some(256)),
];
/// Everybody with default settings.
pub(super) const MEMORY: &[Contender] = &[
    contender("tidemill", Kind::Tidemill, ExactlyOnce),
    contender("streams", Kind::Streams(SMALL), ExactlyOnce),
];
pub(super) const MEMORY_RATIOS: &[Ratio] = &[
    IN_BUDGET,
    ratio(
        "Kafka Streams / tidemill, peak RSS",
        Metric::PeakRss,
        ["streams", "tidemill"],
        Bar::AtLeast(3.0),
        6.0,
    ),
];
/// What a node's settings `memory.*` add up to by default. One worker has a quarter of the queues, which leaves room in it
/// for its code, its handlers and what is not committed.
pub(super) const BUDGET_MIB: f64 = 512.0;
/// However much waits, however large it is and however many keys there are.
pub(super) const IN_BUDGET: Ratio =
    alone("tidemill, MiB of its memory budgets, peak RSS", Metric::PeakRss, BUDGET_MIB, None);
const DEFAULTS: &[Jvm] = &[by_default(Collector::G1, None)];

/// Of a map, with the same node whose handler is linked natively.
pub(super) const TAXED: &[Contender] = &[
    contender("loop", Kind::Loop, ExactlyOnce),
    contender("loop again", Kind::Loop, ExactlyOnce),
    contender("tidemill", Kind::Tidemill, ExactlyOnce),
    contender("streams", Kind::Streams(STORELESS), ExactlyOnce),
    contender("loop, at least once", Kind::Loop, AtLeastOnce),
    contender("tidemill, at least once", Kind::Tidemill, AtLeastOnce),
    contender("streams, at least once", Kind::Streams(STORELESS), AtLeastOnce),
    contender("tidemill, native handler", Kind::NativeHandler, ExactlyOnce),
];

/// Of them, all that are compared with a rival.
pub(super) const MAP: &[Contender] = TAXED.split_at(7).0;

pub(super) const MAP_RATIOS: [Ratio; 7] = [
    NULL,
    ratio("tidemill / loop, exactly once", Metric::Cpu, ["tidemill", "loop"], Bar::AtMost(1.35), 1.15),
    ratio(
        "tidemill / loop, at least once",
        Metric::Cpu,
        ["tidemill, at least once", "loop, at least once"],
        Bar::AtMost(1.35),
        1.15,
    ),
    ratio(
        "Kafka Streams / tidemill, exactly once",
        Metric::Cpu,
        ["streams", "tidemill"],
        Bar::AtLeast(2.0),
        2.6,
    ),
    ratio(
        "Kafka Streams / tidemill, at least once",
        Metric::Cpu,
        ["streams, at least once", "tidemill, at least once"],
        Bar::AtLeast(2.0),
        2.6,
    ),
    // What the guarantee costs with librdkafka, beside what it costs with the node's own client.
    shown("loop, exactly once / at least once", Metric::Cpu, ["loop", "loop, at least once"]),
    ratio(
        "tidemill, exactly once / at least once",
        Metric::Cpu,
        ["tidemill", "tidemill, at least once"],
        Bar::AtMost(1.15),
        1.08,
    ),
];

/// With what it costs that the handler is in Wasm.
pub(super) const TAXED_RATIOS: [Ratio; 8] = {
    let [one, two, three, four, five, six, seven] = MAP_RATIOS;
    let tax = ratio(
        "Wasm tax: tidemill / tidemill, native handler",
        Metric::Cpu,
        ["tidemill", "tidemill, native handler"],
        Bar::AtMost(1.12),
        1.05,
    );
    [one, two, three, four, five, six, seven, tax]
};

/// One each, exactly once; Kafka Streams in the best of these ways.
const fn one_each(ways: &'static [Jvm]) -> [Contender; 4] {
    [
        contender("loop", Kind::Loop, ExactlyOnce),
        contender("loop again", Kind::Loop, ExactlyOnce),
        contender("tidemill", Kind::Tidemill, ExactlyOnce),
        contender("streams", Kind::Streams(ways), ExactlyOnce),
    ]
}

pub(super) const STATELESS: &[Contender] = &one_each(STORELESS);
pub(super) const STATELESS_RATIOS: &[Ratio] = &[
    NULL,
    shown("tidemill / loop", Metric::Cpu, ["tidemill", "loop"]),
    shown("Kafka Streams / tidemill", Metric::Cpu, ["streams", "tidemill"]),
];

/// Nobody in a JVM.
pub(super) const NATIVE: &[Contender] = &[
    contender("loop", Kind::Loop, ExactlyOnce),
    contender("loop again", Kind::Loop, ExactlyOnce),
    contender("tidemill", Kind::Tidemill, ExactlyOnce),
    contender("tidemill, at least once", Kind::Tidemill, AtLeastOnce),
];

/// Of them, exactly once only.
pub(super) const ONCE: &[Contender] = NATIVE.split_at(3).0;

/// The producer that Kafka's own tools are measured with in the handbooks that operators bring along.
pub(super) const ANCHOR: &[(&str, &str)] =
    &[("acks", "all"), ("compression.type", "lz4"), ("batch.size", "65536"), ("linger.ms", "10")];

pub(super) const STATEFUL: &[Contender] = &one_each(EITHER);

/// Of a million keys few come twice in a commit, so that emitting at commit spares little here.
pub(super) const UNIFORM: &[Contender] = &[
    contender("loop", Kind::Loop, ExactlyOnce),
    contender("loop again", Kind::Loop, ExactlyOnce),
    contender("tidemill", Kind::Tidemill, ExactlyOnce),
    contender("tidemill, at commit", Kind::AtCommit, ExactlyOnce),
    contender("streams", Kind::Streams(EITHER), ExactlyOnce),
];
pub(super) const AT_COMMIT_OR_EVERY: Ratio =
    shown("tidemill, at commit / every update", Metric::Cpu, ["tidemill, at commit", "tidemill"]);

pub(super) const LATENCY: &[Contender] = LATENCY_OF_BOTH.split_at(3).0;
/// With what the guarantee costs in time, too.
pub(super) const LATENCY_OF_BOTH: &[Contender] = &[
    contender("tidemill", Kind::Tidemill, ExactlyOnce),
    contender("tidemill again", Kind::Tidemill, ExactlyOnce),
    contender("streams", Kind::Streams(DEFAULTS), ExactlyOnce),
    contender("tidemill, at least once", Kind::Tidemill, AtLeastOnce),
];
/// Of two nodes, because no loop takes part.
const fn null_of_latency(name: &'static str, metric: Metric) -> Ratio {
    ratio(name, metric, ["tidemill", "tidemill again"], Bar::Noise, 1.0)
}

pub(super) const LATENCY_RATIOS: [Ratio; 5] = [
    null_of_latency("null comparison, p50", Metric::P50),
    null_of_latency("null comparison, p99", Metric::P99),
    // Handlers' and consumers' objectives, 200 ms and 2 s for nineteen records in twenty, are both within it.
    alone("tidemill, end to end", Metric::P95, 200.0, None),
    ratio("tidemill / Kafka Streams, p50", Metric::P50, ["tidemill", "streams"], Bar::AtMost(0.3), 0.15),
    ratio("tidemill / Kafka Streams, p99", Metric::P99, ["tidemill", "streams"], Bar::AtMost(0.4), 0.2),
];

/// What handbooks ask of the parts of that: nearly all that is produced arrives, and within 10 ms on average; what is
/// fetched comes within 50 ms on average; nineteen calls of a handler in twenty end within 200 ms; it fails of less than
/// five records in a thousand, and less than one goes to the dead letters. A commit is more than what it produces, and
/// what is no commit is more than fetching.
pub(super) const SEGMENTS: [Ratio; 6] = [
    Ratio {
        bar: Some(Bar::AtLeast(0.999)),
        ..alone("tidemill, commits that succeed", Metric::Committed, 1.0, None)
    },
    alone("tidemill, a commit", Metric::Commit, 10.0, None),
    alone("tidemill, all but the commit", Metric::NoCommit, 50.0, None),
    alone("tidemill, a call of the handler", Metric::Call, 200.0, None),
    Ratio {
        bar: Some(Bar::AtLeast(0.995)),
        ..alone("tidemill, records of which the handler does not fail", Metric::Handled, 1.0, None)
    },
    alone("tidemill, records that become dead letters", Metric::DeadLetters, 0.001, None),
];

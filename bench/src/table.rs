//! What is measured: workloads, who takes part, and the ratios that have to hold. Everything else in
//! this crate carries out what stands here.

mod parts;

use parts::{
    ANCHOR, AT_COMMIT, AT_COMMIT_OR_EVERY, EVERY_UPDATE, IN_BUDGET, LATENCY, LATENCY_OF_BOTH, LATENCY_RATIOS,
    MAP, MAP_RATIOS, MEMORY, MEMORY_RATIOS, NATIVE, NULL, ONCE, SEGMENTS, STATEFUL, STATELESS,
    STATELESS_RATIOS, TAXED, TAXED_RATIOS, UNIFORM, added, alone, contender, only_shown, ratio, shown,
};

use crate::keys::Keys;
use crate::latency::Pace;
use crate::load::{VALUE_BYTES, Values};
use crate::terms::Guarantee::ExactlyOnce;
use crate::terms::{Again, Bar, Collector, Jvm, Kill, Kind, Load, Metric, Ratio, State, Work, Workload};

/// What most workloads have in common.
const USUAL: Workload = Workload {
    name: "",
    title: "",
    work: Work::Map,
    keys: Keys::New,
    values: Values::Text(VALUE_BYTES),
    load: Load::Backlog { records: 1_000_000 },
    partitions: 4,
    batch_records: 500,
    is_tuned: true,
    producer: &[],
    contenders: &[],
    ratios: &[],
    curve: None,
    has_budget: false,
    is_long: false,
};

const fn latency(name: &'static str, title: &'static str, per_second: u64) -> Workload {
    Workload {
        name,
        title,
        work: Work::Map,
        keys: Keys::New,
        load: Load::Open(Pace { per_second, seconds: 30 }),
        is_tuned: false,
        contenders: LATENCY,
        ratios: &LATENCY_RATIOS,
        ..USUAL
    }
}

/// What a record costs the node alone, as one thing grows: a curve without a cliff is what is asked for.
const ALONE: Workload = Workload {
    title: "curve: map, 100 B, exactly once",
    load: Load::Backlog { records: 1_000_000 },
    contenders: &[contender("tidemill", Kind::Tidemill, ExactlyOnce)],
    ..USUAL
};

const fn with_partitions(name: &'static str, partitions: i32) -> Workload {
    Workload { name, partitions, curve: Some("partitions"), ..ALONE }
}

const fn with_keys(name: &'static str, keys: u32) -> Workload {
    let title = "curve: count per key, each as likely as any other, exactly once";
    Workload { name, title, work: Work::Count, keys: Keys::Uniform(keys), curve: Some("keys"), ..ALONE }
}

const fn with_batches(name: &'static str, batch_records: u32) -> Workload {
    Workload { name, batch_records, curve: Some("batches"), ..ALONE }
}

/// In the order in which they run.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "b1-100",
        title: "B1: map, 100 B",
        work: Work::Map,
        keys: Keys::New,
        load: Load::Backlog { records: 2_000_000 },
        contenders: TAXED,
        ratios: &TAXED_RATIOS,
        has_budget: true,
        ..USUAL
    },
    Workload {
        name: "b1-1k",
        title: "B1: map, 1 KB",
        work: Work::Map,
        keys: Keys::New,
        values: Values::Text(1_000),
        load: Load::Backlog { records: 500_000 },
        contenders: MAP,
        // The bars are for 100 B.
        ratios: &only_shown(MAP_RATIOS),
        ..USUAL
    },
    Workload {
        name: "b1-10k",
        title: "B1: map, 10 KB, exactly once",
        values: Values::Text(10_000),
        load: Load::Backlog { records: 60_000 },
        contenders: STATELESS,
        ratios: STATELESS_RATIOS,
        is_long: true,
        ..USUAL
    },
    Workload {
        name: "b1-100k",
        title: "B1: map, 100 KB, exactly once",
        values: Values::Text(100_000),
        load: Load::Backlog { records: 6_000 },
        contenders: STATELESS,
        ratios: STATELESS_RATIOS,
        is_long: true,
        ..USUAL
    },
    Workload {
        name: "b1-1m",
        title: "B1: map, 1 MB, exactly once",
        values: Values::Text(1_000_000),
        load: Load::Backlog { records: 600 },
        contenders: ONCE,
        ratios: &[
            NULL,
            IN_BUDGET,
            shown("tidemill / loop", Metric::Cpu, ["tidemill", "loop"]),
            shown("tidemill / loop, peak RSS", Metric::PeakRss, ["tidemill", "loop"]),
        ],
        is_long: true,
        ..USUAL
    },
    Workload {
        name: "anchor",
        title: "Anchor: map, 1,024 B of letters, acks=all, lz4, batch.size=65536, linger.ms=10",
        values: Values::Letters(1_024),
        load: Load::Backlog { records: 1_000_000 },
        producer: ANCHOR,
        contenders: NATIVE,
        ratios: &[
            NULL,
            shown("tidemill / loop, exactly once", Metric::Cpu, ["tidemill", "loop"]),
            shown(
                "tidemill, exactly once / at least once",
                Metric::Cpu,
                ["tidemill", "tidemill, at least once"],
            ),
        ],
        ..USUAL
    },
    Workload {
        name: "b2",
        title: "B2: filter that passes a tenth, 100 B, exactly once",
        work: Work::Filter,
        keys: Keys::New,
        load: Load::Backlog { records: 2_000_000 },
        contenders: STATELESS,
        ratios: STATELESS_RATIOS,
        ..USUAL
    },
    Workload {
        name: "b4-zipf",
        title: "B4: count per key, 10,000 keys by Zipf's law, exactly once",
        work: Work::Count,
        keys: Keys::Zipf(10_000),
        load: Load::Backlog { records: 1_000_000 },
        contenders: &[
            contender("loop", Kind::Loop, ExactlyOnce),
            contender("loop again", Kind::Loop, ExactlyOnce),
            contender("tidemill", Kind::Tidemill, ExactlyOnce),
            contender("tidemill, at commit", Kind::AtCommit, ExactlyOnce),
            contender("streams, every update", Kind::Streams(EVERY_UPDATE), ExactlyOnce),
            contender("streams, at commit", Kind::Streams(AT_COMMIT), ExactlyOnce),
        ],
        ratios: &[
            NULL,
            ratio(
                "Kafka Streams, every update / tidemill",
                Metric::Cpu,
                ["streams, every update", "tidemill"],
                Bar::AtLeast(4.0),
                5.5,
            ),
            ratio(
                "Kafka Streams / tidemill, at commit",
                Metric::Cpu,
                ["streams, at commit", "tidemill, at commit"],
                Bar::AtLeast(2.0),
                3.0,
            ),
        ],
        has_budget: true,
        ..USUAL
    },
    Workload {
        name: "b4-uniform",
        title: "B4: count per key, 1,000,000 keys, each as likely as any other, exactly once",
        work: Work::Count,
        keys: Keys::Uniform(1_000_000),
        load: Load::Backlog { records: 1_000_000 },
        contenders: UNIFORM,
        ratios: &[
            NULL,
            AT_COMMIT_OR_EVERY,
            IN_BUDGET,
            ratio("Kafka Streams / tidemill", Metric::Cpu, ["streams", "tidemill"], Bar::AtLeast(3.0), 5.0),
        ],
        ..USUAL
    },
    Workload {
        name: "b4-uniform-10m",
        title: "B4: count per key, 10,000,000 keys, each as likely as any other, exactly once",
        work: Work::Count,
        keys: Keys::Uniform(10_000_000),
        load: Load::Backlog { records: 5_000_000 },
        contenders: UNIFORM,
        ratios: &[
            NULL,
            AT_COMMIT_OR_EVERY,
            IN_BUDGET,
            shown("Kafka Streams / tidemill", Metric::Cpu, ["streams", "tidemill"]),
        ],
        is_long: true,
        ..USUAL
    },
    Workload {
        name: "b8",
        title: "B8: dedupe by id, two in a hundred repeated, exactly once",
        work: Work::Dedupe,
        keys: Keys::Repeating { percent: 2 },
        load: Load::Backlog { records: 1_000_000 },
        contenders: STATEFUL,
        ratios: &[
            NULL,
            ratio(
                "Kafka Streams, processor with a store / tidemill, inbox",
                Metric::Cpu,
                ["streams", "tidemill"],
                Bar::AtLeast(3.0),
                6.0,
            ),
        ],
        ..USUAL
    },
    Workload {
        name: "inbox",
        title: "Inbox: pass, 100 B, every id new, exactly once",
        work: Work::Dedupe,
        keys: Keys::New,
        load: Load::Backlog { records: 1_000_000 },
        contenders: &[
            contender("tidemill", Kind::Tidemill, ExactlyOnce),
            contender("tidemill, no inbox", Kind::Doing(Work::Map), ExactlyOnce),
            contender("tidemill, a plain store", Kind::Doing(Work::Count), ExactlyOnce),
        ],
        ratios: &[
            added(
                "a new id, above the same handler without an inbox",
                ["tidemill", "tidemill, no inbox"],
                Some(Bar::AtMost(3.0)),
                Some(1.5),
            ),
            added(
                "a new key of a plain store, above that",
                ["tidemill, a plain store", "tidemill, no inbox"],
                None,
                None,
            ),
        ],
        ..USUAL
    },
    Workload {
        name: "b10",
        title: "B10: JSON of 500 B, parsed, changed and written again, exactly once",
        work: Work::Json,
        keys: Keys::New,
        values: Values::Order,
        load: Load::Backlog { records: 500_000 },
        contenders: STATELESS,
        ratios: STATELESS_RATIOS,
        ..USUAL
    },
    Workload {
        name: "outbox",
        title: "Outbox: map, 100 B, exactly once, to a topic and through an outbox to a topic",
        work: Work::Map,
        keys: Keys::New,
        load: Load::Backlog { records: 200_000 },
        contenders: &[
            contender("tidemill", Kind::Tidemill, ExactlyOnce),
            contender("tidemill, outbox", Kind::Outbox, ExactlyOnce),
        ],
        ratios: &[shown("outbox / topic", Metric::Cpu, ["tidemill, outbox", "tidemill"])],
        ..USUAL
    },
    Workload {
        name: "memory",
        title: "Memory: count per key, 10,000 keys by Zipf's law, default settings",
        work: Work::Count,
        keys: Keys::Zipf(10_000),
        load: Load::Backlog { records: 1_000_000 },
        is_tuned: false,
        contenders: MEMORY,
        ratios: MEMORY_RATIOS,
        ..USUAL
    },
    Workload {
        name: "memory-map",
        title: "Memory: map, 100 B, default settings",
        is_tuned: false,
        contenders: MEMORY,
        ratios: MEMORY_RATIOS,
        ..USUAL
    },
    Workload {
        name: "deploy",
        title: "Deploy: a module of 200 KB that a running node has not seen, exactly once",
        work: Work::Json,
        keys: Keys::New,
        values: Values::Order,
        load: Load::Deploy { records: 1_000 },
        is_tuned: false,
        contenders: &[contender("tidemill", Kind::Tidemill, ExactlyOnce)],
        ratios: &[alone("tidemill, deploy to first output", Metric::Deployed, 500.0, Some(250.0))],
        ..USUAL
    },
    with_partitions("curve-1-partition", 1),
    with_partitions("curve-4-partitions", 4),
    with_partitions("curve-16-partitions", 16),
    with_keys("curve-10k-keys", 10_000),
    with_keys("curve-100k-keys", 100_000),
    with_keys("curve-1m-keys", 1_000_000),
    with_keys("curve-10m-keys", 10_000_000),
    with_batches("curve-batches-of-1", 1),
    with_batches("curve-batches-of-10", 10),
    with_batches("curve-batches-of-100", 100),
    with_batches("curve-batches-of-500", 500),
    latency("latency-1k", "End to end: map, exactly once, 1,000 records a second", 1_000),
    Workload {
        contenders: LATENCY_OF_BOTH,
        ratios: &[
            LATENCY_RATIOS[0],
            LATENCY_RATIOS[1],
            LATENCY_RATIOS[2],
            LATENCY_RATIOS[3],
            LATENCY_RATIOS[4],
            SEGMENTS[0],
            SEGMENTS[1],
            SEGMENTS[2],
            SEGMENTS[3],
            SEGMENTS[4],
            SEGMENTS[5],
            shown("exactly once / at least once, p50", Metric::P50, ["tidemill", "tidemill, at least once"]),
            shown("exactly once / at least once, p99", Metric::P99, ["tidemill", "tidemill, at least once"]),
        ],
        ..latency("latency-5k", "End to end: map, 5,000 records a second", 5_000)
    },
    Workload {
        // The bars are for less.
        ratios: &only_shown(LATENCY_RATIOS),
        ..latency("latency-20k", "End to end: map, exactly once, 20,000 records a second", 20_000)
    },
];

/// From one point of a curve to the next: by names of workloads, because each is one contender's.
pub const CURVES: &[Ratio] = &[
    shown("4 partitions / 1", Metric::Cpu, ["curve-4-partitions", "curve-1-partition"]),
    shown("16 partitions / 4", Metric::Cpu, ["curve-16-partitions", "curve-4-partitions"]),
    shown("100,000 keys / 10,000", Metric::Cpu, ["curve-100k-keys", "curve-10k-keys"]),
    shown("1,000,000 keys / 100,000", Metric::Cpu, ["curve-1m-keys", "curve-100k-keys"]),
    shown("10,000,000 keys / 1,000,000", Metric::Cpu, ["curve-10m-keys", "curve-1m-keys"]),
    shown("batches of 100 / 500", Metric::Cpu, ["curve-batches-of-100", "curve-batches-of-500"]),
    shown("batches of 10 / 100", Metric::Cpu, ["curve-batches-of-10", "curve-batches-of-100"]),
    shown("batches of 1 / 10", Metric::Cpu, ["curve-batches-of-1", "curve-batches-of-10"]),
];

/// What `make bench-load` raises step by step.
pub const LOADED: Workload = latency("load", "Load in steps: map", 0);

/// How Kafka Streams runs where it is killed: two threads restore side by side, into RocksDB as it comes.
pub const KILLED: Jvm =
    Jvm { collector: Collector::G1, threads: 2, cache_mib: 0, heap_mib: None, has_tuned_rocksdb: false };

const fn kill(millions: u64, again: Again, state: State, ratio: Option<Ratio>) -> Kill {
    Kill { millions, again, state, ratio }
}

const fn first_output(name: &'static str, at_least: f64, stretch: f64) -> Option<Ratio> {
    Some(ratio(name, Metric::FirstOutput, ["streams", "tidemill"], Bar::AtLeast(at_least), stretch))
}

/// Both wait for the dead member and restore together.
const fn restored(name: &'static str) -> Option<Ratio> {
    Some(ratio(name, Metric::RestoredKeys, ["tidemill", "streams"], Bar::AtLeast(1.0), 2.0))
}

/// Without a bar after expiry: what Kafka Streams' listener tells then has a rebalance in it, which what a node's
/// tasks tell has not.
const fn restored_after_expiry(name: &'static str) -> Option<Ratio> {
    Some(shown(name, Metric::RestoredKeys, ["tidemill", "streams"]))
}

/// `make recovery`, in the order in which it runs.
pub const KILLS: &[Kill] = &[
    kill(
        1,
        Again::AtOnce,
        State::Kept,
        first_output("Kafka Streams / tidemill, restarted at once, 1 M keys", 10.0, 30.0),
    ),
    kill(
        1,
        Again::AtOnce,
        State::Deleted,
        restored("tidemill / Kafka Streams, from an empty disk at once, 1 M keys"),
    ),
    kill(3, Again::AtOnce, State::Kept, None),
    kill(
        3,
        Again::AtOnce,
        State::Deleted,
        restored("tidemill / Kafka Streams, from an empty disk at once, 3 M keys"),
    ),
    kill(
        3,
        Again::AfterExpiry,
        State::Kept,
        first_output("Kafka Streams / tidemill, restarted after expiry, 3 M keys", 4.0, 8.0),
    ),
    kill(
        3,
        Again::AfterExpiry,
        State::Deleted,
        restored_after_expiry("tidemill / Kafka Streams, from an empty disk after expiry, 3 M keys"),
    ),
];

/// What `make swap` and `make soak` measure: the workload that it is kept as, what its runs call the figure, and the bar.
pub const ELSEWHERE: &[(&str, &str, Ratio)] = &[
    ("swap", "gap_ms", alone("tidemill, longest gap around a swap", Metric::Gap, 50.0, Some(10.0))),
    ("idle-100", "own_kib", IDLE),
    ("idle-500", "own_kib", IDLE),
];
const IDLE: Ratio = alone("tidemill, own memory of an idle deployment", Metric::OwnMemory, 256.0, Some(64.0));

/// What stands in the way of every change: short, and with bars beyond the noise of a busy machine.
pub const GUARDS: &[Workload] = &[
    guard(
        "guard-map",
        "guard: map, 100 B, exactly once",
        Work::Map,
        Keys::New,
        &[NULL, LEAN, at_most(MAP_MAX)],
    ),
    guard(
        "guard-count",
        "guard: count per key, 10,000 keys by Zipf's law, exactly once",
        Work::Count,
        Keys::Zipf(10_000),
        &[NULL, LEAN, at_most(COUNT_MAX)],
    ),
];
/// Rounds on machines of this kind are 0.27 to 0.42 of the loop, by the machine and by what else runs on it. A fifth more
/// than the most is a regression.
const MAP_MAX: f64 = 0.5;
/// The same: 0.48 to 0.61, and a third more, because the loop's own count varies as much as that.
const COUNT_MAX: f64 = 0.8;
/// Both have needed 79 to 93 MiB, of more records. A third more than the most is a regression, and still less than half of
/// the least that Kafka Streams has needed.
const LEAN: Ratio = alone("tidemill, MiB", Metric::PeakRss, 128.0, None);

const fn guard(
    name: &'static str,
    title: &'static str,
    work: Work,
    keys: Keys,
    ratios: &'static [Ratio],
) -> Workload {
    let load = Load::Backlog { records: 300_000 };
    Workload { name, title, work, keys, load, contenders: ONCE, ratios, ..USUAL }
}

const fn at_most(bar: f64) -> Ratio {
    Ratio { bar: Some(Bar::AtMost(bar)), ..shown("tidemill / loop", Metric::Cpu, ["tidemill", "loop"]) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tidemill::config::settings::SETTINGS;
    use tidemill::config::units::parse_bytes;

    use super::*;
    use crate::report::{RECOVERY, full_name};
    use crate::suite;
    use crate::threads::Names;

    #[test]
    fn every_ratio_names_contenders_of_its_workload() {
        for workload in WORKLOADS.iter().chain(GUARDS) {
            for ratio in workload.ratios {
                for side in [Some(ratio.over), ratio.under].into_iter().flatten() {
                    let found = workload.contenders.iter().filter(|contender| contender.name == side).count();
                    assert_eq!(found, 1, "{}: {}: {side}", workload.name, ratio.name);
                }
            }
        }
    }

    #[test]
    fn a_node_is_held_to_what_its_memory_settings_add_up_to_by_default() {
        let budgets = SETTINGS.iter().filter(|setting| setting.key.starts_with("memory."));
        let bytes: u64 = budgets.map(|setting| parse_bytes(setting.default).expect(setting.key)).sum();
        assert_eq!(parts::BUDGET_MIB, bytes as f64 / 1_048_576.0);
    }

    #[test]
    fn every_guard_has_a_bar_of_cpu_time_and_one_of_memory() {
        for guard in GUARDS {
            let has_bar = |metric: Metric| {
                let mut of_it = guard.ratios.iter().filter(|ratio| ratio.metric == metric);
                of_it.any(|ratio| matches!(ratio.bar, Some(Bar::AtMost(_))))
            };
            assert!(has_bar(Metric::Cpu) && has_bar(Metric::PeakRss), "{}", guard.name);
        }
    }

    #[test]
    fn every_ratio_of_a_curve_is_of_two_of_its_points() {
        let curve = |name: &'static str| {
            WORKLOADS.iter().find(|workload| workload.name == name).and_then(|found| found.curve)
        };
        for ratio in CURVES {
            let sides = [Some(ratio.over), ratio.under].map(|side| side.and_then(curve));
            assert!(sides[0].is_some() && sides[0] == sides[1], "{}: {sides:?}", ratio.name);
        }
    }

    #[test]
    fn no_two_ratios_have_the_same_full_name() {
        let of_table = WORKLOADS
            .iter()
            .flat_map(|workload| workload.ratios.iter().map(move |ratio| (workload.name, ratio)));
        let of_curves = CURVES.iter().map(|ratio| (ratio.over, ratio));
        let of_kills = KILLS.iter().filter_map(|kill| Some((RECOVERY, kill.ratio.as_ref()?)));
        let elsewhere = ELSEWHERE.iter().map(|(workload, _, ratio)| (*workload, ratio));
        let mut seen = BTreeSet::new();
        for (workload, ratio) in of_table.chain(of_curves).chain(of_kills).chain(elsewhere) {
            let name = full_name(workload, ratio.name, &ratio.metric.to_string());
            assert_eq!(full_name(workload, &name, ""), name);
            assert!(seen.insert(name.clone()), "twice: {name}");
        }
    }

    #[test]
    fn only_restores_that_both_begin_together_have_a_bar() {
        for kill in KILLS.iter().filter(|kill| kill.state == State::Deleted) {
            let ratio = kill.ratio.as_ref().expect("what is restored is compared");
            assert_eq!(ratio.bar.is_some(), kill.again == Again::AtOnce, "{kill}");
        }
    }

    #[test]
    fn threads_of_a_workload_with_a_budget_can_be_told_apart_by_their_names() {
        for workload in WORKLOADS.iter().filter(|workload| workload.has_budget) {
            assert!(
                Names::of_deployment(&suite::run_name(workload, 9, 9)).are_distinct(),
                "{}",
                workload.name
            );
        }
    }

    #[test]
    fn a_name_means_all_that_begin_with_it() {
        let meant =
            |name| WORKLOADS.iter().filter(|w| w.is_meant_by(name)).map(|w| w.name).collect::<Vec<_>>();
        assert_eq!(meant("b4"), ["b4-zipf", "b4-uniform"]);
        assert_eq!(meant("b1-1k"), ["b1-1k"]);
        assert_eq!(meant("b4-uniform-10m"), ["b4-uniform-10m"], "which takes too long to be meant by b4");
        assert_eq!(meant("b"), Vec::<&str>::new());
    }
}

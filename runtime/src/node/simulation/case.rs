//! What a seed decides before anything runs: the shape of the fleet, the input, and which faults
//! there are. Few kinds of fault at a time find more than all of them at once.

use std::sync::Arc;
use std::time::Duration;

use super::handler::{DELETE, DOOMED, FLAKY, Kind, PLAIN, POISON};
use super::random::Random;
use crate::config::deployment::{CommitSpec, Emit, Failures, Guarantee, IdSource, InboxSpec, Place, Start};
use crate::config::failures::{Backoff, FailureKind, Policy, Then};
use crate::config::manifest::{StoreKind, StoreManifest};
use crate::store::{CacheBudget, Stores};
use crate::task::{ChangelogConfig, OutboxRule, OutputRule, TaskConfig, TaskInput};

/// Longer than any case.
const TTL_MS: u64 = 3_600_000;

/// Each happens once in so many chances; 0 = never.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    /// Of requests: held, dropped, or their answer lost.
    pub late: usize,
    pub dropped: usize,
    pub answer_lost: usize,
    /// Of requests that only ask.
    pub request_fails: usize,
    /// Of takes: the client ends with a fatal error.
    pub consumer_fails: usize,
    /// Of turns.
    pub kill: usize,
    pub restart: usize,
    /// A node that is down comes back.
    pub revive: usize,
    pub pause: usize,
    pub expire: usize,
    pub shake: usize,
    pub flush: usize,
    pub compact: usize,
    /// The coordinator says for a while that there are no offsets.
    pub missing: usize,
    /// A killed node's disk is gone.
    pub wipe: usize,
    /// Another revision is registered.
    pub deploy: usize,
    /// State is edited by hand.
    pub edit: usize,
    /// Dead letters are given back or discarded.
    pub redrive: usize,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub kind: Kind,
    pub nodes: usize,
    pub workers: u32,
    pub partitions: i32,
    pub static_members: bool,
    pub start: Start,
    pub prefetch: bool,
    /// Records of each partition before the fleet starts, and in all.
    pub before: usize,
    pub records: usize,
    pub keys: usize,
    pub poison: bool,
    pub interval_ms: u64,
    /// Records that an overlay holds before it is full.
    pub overlay_records: u64,
    pub cache_bytes: usize,
    /// Turns with faults; then the world heals.
    pub turns: u64,
    pub rates: Rates,
    /// Some records fail for a while, some for ever; so many may be parked.
    pub parks: bool,
    pub park_room: u64,
    /// Some records are sent again, and must have no effect.
    pub inbox: bool,
    /// What is emitted also goes out of Kafka; so many rows may wait.
    pub outbox: bool,
    pub outbox_room: u64,
    /// Until they may have one again.
    pub ttl_ms: u64,
    /// Of what a commit emits for a key, the topic is sent the last.
    pub at_commit: bool,
}

impl Case {
    pub fn new(seed: u64) -> (Case, Random) {
        let mut random = Random::new(seed);
        let draw = &mut random;
        let rates = Rates {
            late: maybe(draw, 15..=120),
            dropped: maybe(draw, 20..=200),
            answer_lost: maybe(draw, 20..=200),
            request_fails: maybe(draw, 10..=60),
            consumer_fails: maybe(draw, 60..=400),
            kill: maybe(draw, 8..=60),
            restart: maybe(draw, 10..=60),
            revive: draw.within(1..=8),
            pause: maybe(draw, 4..=30),
            expire: maybe(draw, 3..=30),
            shake: maybe(draw, 3..=30),
            flush: maybe(draw, 2..=20),
            compact: maybe(draw, 3..=30),
            missing: maybe(draw, 10..=60),
            wipe: maybe(draw, 1..=5),
            deploy: if draw.one_in(4) { draw.within(10..=40) } else { 0 },
            edit: maybe(draw, 2..=20),
            redrive: maybe(draw, 3..=30),
        };
        let mut case = Case {
            kind: if draw.one_in(4) { Kind::Copy } else { Kind::Chain },
            nodes: draw.within(1..=3),
            workers: draw.within(1..=2) as u32,
            partitions: draw.within(1..=4) as i32,
            static_members: !draw.one_in(3),
            start: if draw.one_in(4) { Start::Latest } else { Start::Earliest },
            prefetch: draw.one_in(2),
            before: draw.below(6),
            records: draw.within(10..=40),
            keys: draw.within(1..=4),
            poison: draw.one_in(4),
            interval_ms: draw.within(5..=100) as u64,
            overlay_records: CommitSpec::default().max_records,
            cache_bytes: if draw.one_in(2) { 0 } else { 1 << 16 },
            turns: draw.within(300..=900) as u64,
            rates,
            parks: draw.one_in(2),
            park_room: draw.within(1..=12) as u64,
            inbox: draw.one_in(2),
            outbox: draw.one_in(2),
            outbox_room: draw.within(1..=12) as u64,
            ttl_ms: TTL_MS,
            at_commit: false,
        };
        // What is parked ends `ok` at no time that can be told beforehand, and dates its id then.
        if case.inbox && !case.parks && draw.one_in(2) {
            case.ttl_ms = draw.within(20..=400) as u64;
        }
        // A record that is never sent is not refused either; and each is to be told from every other.
        case.at_commit = !case.poison && !case.expires() && draw.one_in(4);
        if draw.one_in(4) {
            case.overlay_records = draw.within(1..=12) as u64;
        }
        (case, random)
    }

    /// A quiet world, for a test that makes its own trouble.
    pub fn quiet(kind: Kind) -> (Case, Random) {
        let (mut case, random) = Case::new(1);
        case.rates = Rates::default();
        (case.kind, case.nodes, case.workers, case.partitions) = (kind, 2, 1, 1);
        (case.start, case.static_members, case.poison) = (Start::Earliest, true, false);
        (case.parks, case.inbox, case.outbox, case.at_commit) = (false, false, false, false);
        (case.before, case.records, case.keys, case.interval_ms) = (0, 0, 2, 5);
        case.overlay_records = CommitSpec::default().max_records;
        (case, random)
    }

    /// Ids are forgotten while it lasts.
    pub fn expires(&self) -> bool {
        self.inbox && self.ttl_ms < TTL_MS
    }

    /// The next record of a partition: its key and value.
    pub fn record(&self, random: &mut Random, partition: i32, sequence: usize) -> (Vec<u8>, Vec<u8>) {
        let key = format!("p{partition}k{}", random.below(self.keys));
        let command = match random.below(20) {
            0 if self.poison => POISON,
            1 | 2 => DELETE,
            3..=5 if self.parks => FLAKY,
            6 if self.parks => DOOMED,
            _ => PLAIN,
        };
        let value = [&[command], sequence.to_string().as_bytes()].concat();
        (key.into_bytes(), value)
    }

    /// What the broker refuses is skipped; with `parks` the rest is tried again, or buried.
    fn failures(&self) -> Failures {
        if !self.parks {
            return Failures::skip();
        }
        let backoff = Backoff { min: Duration::from_millis(5), max: Duration::from_millis(40) };
        let mut failures = Failures::by_kind(|kind| match kind {
            // One in two attempts fails, so this many in a row do not.
            FailureKind::Transient => {
                Policy { attempts: 60, backoff, ..Policy::default_for(kind, Then::Halt) }
            }
            FailureKind::Limit => Policy { attempts: 0, backoff, ..Policy::default_for(kind, Then::Skip) },
            _ => Policy { attempts: 0, backoff, ..Policy::default_for(kind, Then::DeadLetter) },
        });
        failures.parked.records = self.park_room;
        failures
    }

    fn outbox_rule(&self) -> Arc<OutboxRule> {
        Arc::new(OutboxRule {
            name: "hook".into(),
            rows: self.outbox_room,
            bytes: 1 << 20,
            in_flight: 3,
            retry: Backoff { min: Duration::from_millis(5), max: Duration::from_millis(40) },
            attempts: None,
        })
    }

    pub fn task_config(&self) -> TaskConfig {
        let stores: &[StoreManifest] = match self.kind {
            Kind::Copy => &[],
            Kind::Chain => &[StoreManifest {
                name: "links".into(),
                kind: StoreKind::Bytes,
                schema: 1,
                reads: Vec::new(),
                prefetch: self.prefetch,
                ordered: false,
            }],
        };
        TaskConfig {
            deployment: "sim".into(),
            group: "group".into(),
            revision: 1,
            incarnation: super::world::INCARNATION.into(),
            guarantee: Guarantee::ExactlyOnce,
            failures: self.failures(),
            inputs: vec![TaskInput { topic: "in".into(), topic_id: "in-id".into() }],
            outputs: ["out", "dead-letters", "hook"]
                .map(|topic| OutputRule {
                    topic: topic.into(),
                    record_bytes_max: 10_000,
                    emit: if self.at_commit && topic == "out" { Emit::Commit } else { Emit::Each },
                    outbox: (topic == "hook").then(|| self.outbox_rule()),
                    ..OutputRule::default()
                })
                .into(),
            stores: Arc::new(Stores::new(stores).expect("one store is a valid manifest")),
            keeps_rows: self.parks || self.inbox || self.outbox,
            inbox: self.inbox.then(|| InboxSpec {
                id: Some(vec![IdSource::In(Place::Header("id".into()))]),
                sequence: None,
                ttl: Duration::from_millis(self.ttl_ms),
            }),
            correlation: false,
            dead_letters: Some(1),
            events: None,
            changelog: ChangelogConfig {
                topic: "changelog".into(),
                topic_id: "changelog-id".into(),
                record_bytes_max: 10_000,
            },
            call_records_max: 500,
            call_bytes_max: 1 << 20,
            store_bytes_max: None,
            overlay_bytes_max: 16 << 20,
            cache: CacheBudget::new(self.cache_bytes),
            prefetch_bytes_max: 1 << 20,
        }
    }
}

/// In every other case none of it.
fn maybe(random: &mut Random, range: std::ops::RangeInclusive<usize>) -> usize {
    if random.one_in(2) { 0 } else { random.within(range) }
}

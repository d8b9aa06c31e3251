//! Crash points and planted bugs, for the tests of the promise; nothing of it is in a program that
//! was built without the feature `faults`.
//!
//! A crash point kills the process at a named step, as `kill -9` would. A planted bug switches off
//! one defence, so that a suite can prove it would notice. Both are chosen by the environment:
//!
//! | variable | value |
//! |---|---|
//! | `TIDEMILL_CRASH` | `NAME`, `NAME:N` or `NAME:N@DEPLOYMENT`: die when a commit or revocation (of that deployment), a restore (of `restore-DEPLOYMENT`) or a delivery (of `relay`) reaches the point for the Nth time (from 1) |
//! | `TIDEMILL_BUG` | a name of [`Bug`] |

/// Where a commit can be cut in two, in the order of its steps, a restore, and a rebalance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// Everything is produced, nothing need have reached the broker.
    BeforeFlush,
    /// The broker has acknowledged every record.
    AfterFlush,
    /// The offsets are part of the transaction.
    AfterSendOffsets,
    /// Kafka has the commit; no store has heard of it.
    AfterEnd,
    /// Some stores have the commit, others not.
    BetweenStores,
    /// Every store has it; the worker has not heard of it.
    AfterStores,
    /// A restore has read a record of the changelog; it is not applied.
    DuringRestore,
    /// An outbox row is committed and about to be delivered.
    BeforeDelivery,
    /// Its destination has answered; the task has not heard of it.
    AfterDelivery,
    /// The task has, and its row is deleted in the overlay; no commit knows.
    AfterAcknowledgement,
    /// The group wants partitions back, and has not been answered.
    InRevocation,
}

/// Known ways to get the promise wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Offsets are committed outside the transaction.
    OffsetsOutside,
    /// A transaction sends no offsets for a task that it writes for.
    OffsetsForgotten,
    /// Group metadata is read at the commit instead of at the rebalance.
    MembershipLate,
    /// Group metadata is left out.
    MembershipMissing,
    /// The overlay reaches the store before the transaction has ended.
    StoreFirst,
    /// The overlay is kept after an abort.
    OverlayKept,
    /// An id is remembered apart from the commit of its effects.
    InboxOutside,
    /// The inbox's horizon is kept after an abort.
    HorizonKept,
    /// The view of the parked keys is kept after an abort.
    ParkedKept,
    /// The handler's instance, with what it remembers, is kept after an abort.
    InstanceKept,
    /// The producer is used again after an unknown outcome (rule P1 is off).
    ProducerReused,
    /// Restore reads records of transactions that were aborted or are undecided.
    RestoreUncommitted,
    /// Restore ends at the last stable offset instead of the high watermark.
    RestoreToStable,
    /// A missing committed offset is taken for a new group.
    MissingIsNew,
    /// A commit is sent before the outcome of the one before it is known.
    CommitEarly,
    /// A commit is made for partitions that are lost.
    CommitLost,
    /// The position record is not compared with the committed offset.
    PositionIgnored,
    /// No rewind after a refused commit.
    NoRewind,
    /// The store half of a commit is applied after the store was handed over.
    StoreAfterHandover,
    /// `start` is resolved again after a restart.
    StartAgain,
    /// An older revision is served after a move.
    RevisionOld,
    /// Records are handled before a commit says where their revision begins.
    AdoptionSkipped,
    /// Outbox rows are delivered before their commit is known.
    OutboxEarly,
}

impl Bug {
    pub const ALL: [(Bug, &str); 23] = [
        (Bug::OffsetsOutside, "offsets-outside"),
        (Bug::OffsetsForgotten, "offsets-forgotten"),
        (Bug::MembershipLate, "membership-late"),
        (Bug::MembershipMissing, "membership-missing"),
        (Bug::StoreFirst, "store-first"),
        (Bug::OverlayKept, "overlay-kept"),
        (Bug::InboxOutside, "inbox-outside"),
        (Bug::HorizonKept, "horizon-kept"),
        (Bug::ParkedKept, "parked-kept"),
        (Bug::InstanceKept, "instance-kept"),
        (Bug::ProducerReused, "producer-reused"),
        (Bug::RestoreUncommitted, "restore-uncommitted"),
        (Bug::RestoreToStable, "restore-to-stable"),
        (Bug::MissingIsNew, "missing-is-new"),
        (Bug::CommitEarly, "commit-early"),
        (Bug::CommitLost, "commit-lost"),
        (Bug::PositionIgnored, "position-ignored"),
        (Bug::NoRewind, "no-rewind"),
        (Bug::StoreAfterHandover, "store-after-handover"),
        (Bug::StartAgain, "start-again"),
        (Bug::RevisionOld, "revision-old"),
        (Bug::AdoptionSkipped, "adoption-skipped"),
        (Bug::OutboxEarly, "outbox-early"),
    ];
}

/// The variables above, where they mean something: a node refuses a variable that does not.
pub const VARIABLES: &[&str] =
    if cfg!(feature = "faults") { &["TIDEMILL_CRASH", "TIDEMILL_BUG"] } else { &[] };

/// Dies here if the environment asks for it.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn crash_point(_: CrashPoint) {}

/// True if this bug is switched on.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "faults")]
pub use chosen::{crash_point, planted};

#[cfg(feature = "faults")]
mod chosen {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Bug, CrashPoint};

    /// When to die.
    struct Crash {
        point: CrashPoint,
        nth: u64,
        /// Workers are named `DEPLOYMENT-WORKER`, commit threads `DEPLOYMENT-WORKER-commit`, restore threads
        /// `restore-DEPLOYMENT-PARTITION`.
        thread: String,
        /// As the environment says it, for the last words.
        text: String,
    }

    static CRASH: LazyLock<Option<Crash>> = LazyLock::new(|| read("TIDEMILL_CRASH", parse_crash));
    static BUG: LazyLock<Option<Bug>> = LazyLock::new(|| read("TIDEMILL_BUG", parse_bug));
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub fn crash_point(point: CrashPoint) {
        if let Some(crash) = &*CRASH
            && crash.point == point
            && std::thread::current().name().is_some_and(|name| name.starts_with(&crash.thread))
            && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == crash.nth
        {
            // Proof for whoever counts the crashes; then, as `kill -9` would: no destructor, no flush.
            eprintln!("crash point {}", crash.text);
            std::process::abort();
        }
    }

    pub fn planted(bug: Bug) -> bool {
        *BUG == Some(bug)
    }

    /// A misspelt name would be a test that proves nothing, so it ends the process.
    fn read<T>(variable: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = std::env::var(variable).ok()?;
        let parsed = parse(&value);
        assert!(parsed.is_some(), "{variable}={value} names nothing");
        parsed
    }

    fn parse_crash(value: &str) -> Option<Crash> {
        let (place, deployment) = match value.split_once('@') {
            Some((place, deployment)) => (place, format!("{deployment}-")),
            None => (value, String::new()),
        };
        let (name, nth) = place.split_once(':').unwrap_or((place, "1"));
        let point = match name {
            "before-flush" => CrashPoint::BeforeFlush,
            "after-flush" => CrashPoint::AfterFlush,
            "after-send-offsets" => CrashPoint::AfterSendOffsets,
            "after-end" => CrashPoint::AfterEnd,
            "between-stores" => CrashPoint::BetweenStores,
            "after-stores" => CrashPoint::AfterStores,
            "during-restore" => CrashPoint::DuringRestore,
            "before-delivery" => CrashPoint::BeforeDelivery,
            "after-delivery" => CrashPoint::AfterDelivery,
            "after-acknowledgement" => CrashPoint::AfterAcknowledgement,
            "in-revocation" => CrashPoint::InRevocation,
            _ => return None,
        };
        Some(Crash { point, nth: nth.parse().ok()?, thread: deployment, text: value.to_owned() })
    }

    fn parse_bug(value: &str) -> Option<Bug> {
        Bug::ALL.iter().find(|(_, name)| *name == value).map(|(bug, _)| *bug)
    }
}

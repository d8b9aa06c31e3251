//! The list of hostile guests, modules and clients, by the numbers of the fault matrix, with what an operator must be
//! told of each.

use super::modules;
use super::stage::TIME_MS;

/// One of them.
pub struct Case {
    /// In the fault matrix, or `GREED`.
    pub fault: &'static str,
    pub name: &'static str,
    pub act: Act,
    /// Words of the reason, all of which must be in it.
    pub says: &'static [&'static str],
    /// Part of the short form.
    pub short: bool,
}

/// What is done to the node.
pub enum Act {
    /// Records that make a guest misbehave, over and over.
    Records(Records),
    /// A good guest for which more waits than it can get through.
    Traffic,
    /// A module that must be refused when it is deployed.
    Module(fn() -> Vec<u8>),
    /// So many modules with something changed in them; those that are still sound may be accepted.
    Mutants(usize),
    /// A version that traps at every record replaces a good one, which takes its place again.
    BadVersion,
    /// Clients of the control plane.
    Clients,
}

pub struct Records {
    /// The crate of the guest.
    pub guest: &'static str,
    /// What its document configures.
    pub config: &'static str,
    /// One record: key and value.
    pub record: Record,
    /// What comes before each of those, with which nothing is wrong; none for a guest that knows no such record.
    pub good: Option<Record>,
    /// What becomes of the one, and what the guest's policy makes of it if it fails.
    pub fate: Fate,
    pub then: &'static str,
    /// What a record that does not fail leaves in the guest's only store.
    pub state: State,
    /// A second, if it does not run short of them.
    pub rate: u64,
    /// Threads, each with a partition of its own.
    pub workers: u32,
    /// Limits of the guest: its memory, and what it may keep in its stores.
    pub memory_mib: u64,
    pub store_mib: Option<u64>,
    /// And how long a call may take.
    pub time_ms: u64,
}

impl Records {
    /// Whether the record with this number in its partition is one with which nothing is wrong.
    pub fn is_good(&self, number: u64) -> bool {
        self.good.is_some() && number.is_multiple_of(2)
    }

    /// Whether a record that fails becomes a dead letter.
    pub fn has_letters(&self) -> bool {
        self.then == "dead_letter"
    }
}

/// Key and value.
pub type Record = (Option<&'static [u8]>, Value);

#[derive(Clone, Copy)]
pub enum Value {
    Null,
    Bytes(&'static [u8]),
    /// So many bytes of the same letter.
    Long(usize),
}

impl Value {
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match *self {
            Value::Null => None,
            Value::Bytes(bytes) => Some(bytes.to_vec()),
            Value::Long(bytes) => Some(vec![b'x'; bytes]),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Each of them fails.
    Fails,
    /// None does: it has effects, and the guest goes on with the next.
    Succeeds,
    /// The first ones do not.
    Either,
}

#[derive(Clone, Copy)]
pub enum State {
    /// No record of that guest succeeds.
    Nothing,
    /// A row of its own, before anything else it does, with the node by then.
    Marks,
    /// One more under this key.
    Count(&'static [u8]),
}

/// Of guests that do nothing wrong but want more than their share.
const GREED: &str = "greed";

pub const HOSTILE: &str = "tests/guests/hostile";
const LIAR: &str = "tests/guests/liar";
const COUNT: &str = "plugins/count";
/// Whatever a record of [`HOSTILE`] does, it writes and emits before it: a failure has something to take back.
pub const WRITES_FIRST: &str = "write_first: true";

fn records(guest: &'static str, record: Record, rate: u64) -> Records {
    let key: &'static [u8] = b"good";
    let (config, good, state) = match guest {
        HOSTILE => (WRITES_FIRST, Some(Value::Bytes(b"pass")), State::Marks),
        COUNT => ("", Some(Value::Bytes(b"v")), State::Count(key)),
        _ => ("", None, State::Nothing),
    };
    Records {
        guest,
        config,
        record,
        good: good.map(|value| (Some(key), value)),
        fate: Fate::Fails,
        then: "dead_letter",
        state,
        rate,
        workers: 1,
        memory_mib: 64,
        store_mib: None,
        time_ms: TIME_MS,
    }
}

fn command(guest: &'static str, value: &'static str, rate: u64) -> Records {
    records(guest, (Some(b"k"), Value::Bytes(value.as_bytes())), rate)
}

fn told(guest: &'static str, value: &'static str, rate: u64) -> Act {
    Act::Records(command(guest, value, rate))
}

fn on_many_threads(value: &'static str, rate: u64) -> Act {
    Act::Records(Records { workers: 8, ..command(HOSTILE, value, rate) })
}

fn slow() -> Act {
    // A loop of so many million steps stays below the limit of 100 ms, by not very much.
    Act::Records(Records { fate: Fate::Succeeds, good: None, ..command(HOSTILE, "spin 100", 100) })
}

fn fill() -> Act {
    // Twice, by an instruction that nothing interrupts: within the limit of 100 ms each takes at most 50 ms.
    Act::Records(Records { memory_mib: 80, ..command(HOSTILE, "fill 64", 100) })
}

fn emissions() -> Act {
    // A slow machine makes a tenth of a second of them, and it is their number that is to be too high.
    Act::Records(Records { time_ms: 1_000, ..command(HOSTILE, "emit 1000000", 50) })
}

fn too_large() -> Act {
    // A guest is handed an eighth of its memory at once, at most.
    let record = (Some(&b"k"[..]), Value::Long((1 << 20) - 200));
    Act::Records(Records { memory_mib: 4, ..records(HOSTILE, record, 5) })
}

fn bloat() -> Act {
    // 4 MiB a second.
    let hoard = command(HOSTILE, "hoard 8", 500);
    Act::Records(Records { fate: Fate::Either, good: None, store_mib: Some(16), ..hoard })
}

fn poison(guest: &'static str, key: Option<&'static [u8]>, value: Value) -> Act {
    let rate = if matches!(value, Value::Long(_)) { 5 } else { 500 };
    Act::Records(records(guest, (key, value), rate))
}

/// A record that the hostile guest cannot read, under another policy.
fn unreadable(then: &'static str) -> Act {
    Act::Records(Records { then, ..records(HOSTILE, (Some(&b"k"[..]), Value::Bytes(b"\xff")), 500) })
}

/// The records of [`Act::BadVersion`], as they end.
pub fn mended() -> Records {
    Records { fate: Fate::Succeeds, then: "halt", ..command(HOSTILE, "pass", 0) }
}

fn case(
    fault: &'static str,
    name: &'static str,
    act: Act,
    says: &'static [&'static str],
    short: bool,
) -> Case {
    Case { fault, name, act, says, short }
}

/// All of them. `mutants` is how many modules are changed.
#[rustfmt::skip]
pub fn all(mutants: usize) -> Vec<Case> {
    let key = Some(&b"k"[..]);
    vec![
        case("F20", "endless loop", told(HOSTILE, "loop", 200), &["100 ms of CPU time"], true),
        case("F20", "endless loops on 8 threads", on_many_threads("loop", 500), &["100 ms of CPU time"], false),
        case("F21", "slow, just below the limit", slow(), &[], false),
        case("F22", "memory bomb", told(HOSTILE, "bomb", 50), &["memory:", "allowed"], true),
        case("F23", "fills 64 MiB of 80", fill(), &["filled"], false),
        case("F24", "deep recursion", told(HOSTILE, "recurse", 500), &["stack"], false),
        case("F24", "deep recursion with host calls", told(HOSTILE, "dig", 100), &["stack"], false),
        case("F25", "panic", told(HOSTILE, "panic", 500), &["as told", "lib.rs"], false),
        case("F25", "division by zero", told(HOSTILE, "divide", 500), &["divide by zero"], false),
        case("F25", "pointer out of bounds", told(LIAR, "outside", 500), &["out of bounds"], true),
        case("F25", "lying lengths", told(LIAR, "lengths", 500), &["lengths sum to"], false),
        case("F25", "result that multiplies itself", told(LIAR, "multiply", 50), &["emit together"], false),
        case("F25", "store that it does not have", told(LIAR, "get", 500), &["not in the manifest"], false),
        case("F25", "a million emissions", emissions(), &["more than"], true),
        case("F25", "100 MB of output", told(HOSTILE, "big 100000000", 50), &["memory:"], false),
        case("F25", "10 MB of output", told(HOSTILE, "big 10000000", 50), &["emit together"], false),
        case("F25", "a flood of log lines", told(HOSTILE, "flood 10000", 50), &["logged"], false),
        case("F26", "5,000 functions", Act::Module(modules::many_functions), &["`describe`"], false),
        case("F26", "one huge function", Act::Module(modules::huge_function), &["function"], false),
        case("F26", "compile bomb", Act::Module(modules::bomb), &["10 s of CPU time"], false),
        case("F27", "empty", Act::Module(Vec::new), &["not WebAssembly"], false),
        case("F27", "a shell script", Act::Module(|| b"#!/bin/sh\nrm -rf /\n".to_vec()), &["not WebAssembly"], false),
        case("F27", "exports nothing", Act::Module(modules::nothing), &["`describe`"], false),
        case("F27", "WASI component", Act::Module(modules::wasi), &["wasi:cli/environment"], false),
        case("F27", "WASI module", Act::Module(modules::core_wasi), &["wasi_snapshot_preview1"], false),
        case("F27", "another ABI version", Act::Module(modules::newer_abi), &["@0.2.0"], false),
        case("F27", "64-bit memory", Act::Module(modules::memory64), &["memory64"], false),
        case("F27", "shared memory", Act::Module(modules::shared_memory), &["threads"], false),
        case("F27", "endless start function", Act::Module(modules::start_loop), &["cannot be started", "CPU time"], true),
        case("F27", "mutated modules", Act::Mutants(mutants), &["refused"], true),
        case("F28", "a version that always traps", Act::BadVersion, &["halted", "as told"], false),
        case("F29", "bad UTF-8", poison(HOSTILE, key, Value::Bytes(b"\xff\xfe\xc3")), &["UTF-8"], false),
        case("F29", "bad UTF-8, skipped", unreadable("skip"), &["records skipped"], false),
        case("F29", "bad UTF-8, halted for", unreadable("halt"), &["UTF-8", "offset 1"], false),
        case("F29", "cut off", poison(HOSTILE, key, Value::Bytes(b"emi")), &["unknown command"], false),
        case("F29", "0 bytes", poison(HOSTILE, key, Value::Bytes(b"")), &["unknown command"], false),
        case("F29", "no value (tombstone)", poison(HOSTILE, key, Value::Null), &["no value"], false),
        case("F29", "no key", poison(COUNT, None, Value::Bytes(b"v")), &["no key"], false),
        case("F29", "nothing at all", poison(COUNT, None, Value::Null), &["no key"], false),
        case("F30", "1 MiB record", poison(HOSTILE, key, Value::Long((1 << 20) - 200)), &["unknown command"], false),
        case("F30", "1 MiB record for 4 MiB of memory", too_large(), &["a call takes", "limits.memory: raise that to 8MiB"], false),
        case("F41", "hostile clients", Act::Clients, &["refused"], true),
        case(GREED, "store bloat", bloat(), &["limits.store_bytes"], true),
        case(GREED, "100 times the traffic", Act::Traffic, &["records/s"], false),
    ]
}

//! What a round is: configuration and faults, all from one seed.

use std::time::Duration;

use fastrand::Rng;

/// Steps of a commit at which a node can be told to die (`tidemill::faults`), in their order.
pub const CRASH_POINTS: [&str; 6] =
    ["before-flush", "after-flush", "after-send-offsets", "after-end", "between-stores", "after-stores"];
pub const KILL: &str = "kill";
pub const BROKER_KILL: &str = "broker kill";
/// Brokers of [`Broker::ThreeOfApache`].
pub const BROKERS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    Embedded,
    Apache,
    /// Three of them, of which one at a time may be dead.
    ThreeOfApache,
}

/// One round.
#[derive(Debug, Clone)]
pub struct Case {
    pub seed: u64,
    pub broker: Broker,
    pub partitions: i32,
    pub nodes: usize,
    pub workers: u32,
    pub commit_ms: u64,
    pub overlay_kib: u64,
    pub block_cache_mib: u64,
    pub write_buffers_mib: u64,
    pub batch_records: u32,
    /// The chain's handler trusts its own memory before its store.
    pub remember: bool,
    /// Records to be acknowledged at least.
    pub records: u64,
    /// Records a second while there are faults; the rest comes as fast as it goes.
    pub rate: u64,
    pub plan: Vec<Step>,
    pub special: Special,
}

/// What a scenario of a test's own asks for beside; a random case has none of it.
#[derive(Debug, Clone, Default)]
pub struct Special {
    /// librdkafka's, as `NAME: VALUE` pairs separated by commas.
    pub properties: &'static str,
    /// Where the deployments begin to read; earliest unless said.
    pub start: Option<&'static str>,
    /// Planted in every node, by its name in `tidemill::faults`.
    pub bug: Option<&'static str>,
    /// The step of a commit at which the first node ends its first life, as `TIDEMILL_CRASH` says it.
    pub dies_at: Option<&'static str>,
    /// Nodes have crash points in them, for the scenario to use.
    pub crashes: bool,
    /// The first node reaches the brokers by this way alone.
    pub detour: Option<String>,
    /// There are no transfers: every record is the chain's.
    pub chain_only: bool,
}

/// One fault, and what follows it.
#[derive(Debug, Clone)]
pub struct Step {
    /// Or the broker, if it is one's.
    pub node: usize,
    pub fault: Fault,
    /// It stays down this long.
    pub down: Duration,
    /// Its stores are deleted meanwhile.
    pub wipe: bool,
}

#[derive(Debug, Clone)]
pub enum Fault {
    /// The node is started anew so that it dies at a step of a commit of a deployment, the nth time
    /// it gets there.
    Crash { point: &'static str, nth: u64, deployment: &'static str },
    /// SIGKILL, this long after the last fault was over.
    Kill { after: Duration },
    /// The same, of a broker of several.
    BrokerKill { after: Duration },
}

impl Fault {
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Crash { point, .. } => point,
            Fault::Kill { .. } => KILL,
            Fault::BrokerKill { .. } => BROKER_KILL,
        }
    }
}

impl Case {
    /// The gate: one node on Apache Kafka, `each` kills at every step of the commit and `random`
    /// others, in random order.
    pub fn gate(seed: u64, each: usize, random: usize, records: u64) -> Case {
        let mut rng = Rng::with_seed(seed);
        let points = CRASH_POINTS.iter().flat_map(|point| std::iter::repeat_n(Some(*point), each));
        let mut wanted: Vec<Option<&'static str>> = points.chain(std::iter::repeat_n(None, random)).collect();
        rng.shuffle(&mut wanted);
        let longest = Duration::from_millis(300);
        let steps = wanted.into_iter().map(|point| step(&mut rng, 1, point, longest));
        Case {
            seed,
            broker: Broker::Apache,
            partitions: 4,
            nodes: 1,
            workers: 1,
            commit_ms: 20,
            overlay_kib: 64 << 10,
            block_cache_mib: 64,
            write_buffers_mib: 64,
            batch_records: 500,
            remember: true,
            records,
            rate: 800,
            plan: steps.collect(),
            special: Special::default(),
        }
    }

    /// Nodes on Apache Kafka without a plan, for a scenario of a test's own.
    pub fn plain(nodes: usize, records: u64) -> Case {
        let rate = 500;
        Case { nodes, rate, plan: Vec::new(), ..Case::gate(1, 0, 0, records) }
    }

    /// A random configuration with random faults.
    pub fn random(seed: u64, broker: Broker) -> Case {
        let mut rng = Rng::with_seed(seed);
        let nodes = rng.usize(1..=3);
        let workers = rng.u32(1..=2);
        let partitions = rng.i32(1..=16);
        // Evenly over the orders of magnitude from 5 ms to 5 s.
        let commit_ms = (5.0 * 1000f64.powf(rng.f64())).round() as u64;
        // A crash point waits for a commit of that node, so every worker must have a task or two.
        let crowded = partitions >= 2 * nodes as i32 * workers as i32;
        let plan = (0..rng.usize(3..=8)).map(|_| {
            let point = (crowded && rng.bool()).then(|| CRASH_POINTS[rng.usize(..CRASH_POINTS.len())]);
            step(&mut rng, nodes, point, Duration::from_secs(5))
        });
        let mut plan: Vec<Step> = plan.collect();
        if broker == Broker::ThreeOfApache {
            for _ in 0..rng.usize(1..=2) {
                plan.insert(rng.usize(..=plan.len()), broker_step(&mut rng));
            }
        }
        Case {
            seed,
            broker,
            partitions,
            nodes,
            workers,
            commit_ms,
            overlay_kib: 64 << rng.u64(0..=10),
            block_cache_mib: 1 << rng.u64(0..=6),
            write_buffers_mib: 4 << rng.u64(0..=4),
            batch_records: rng.u32(1..=500),
            remember: rng.bool(),
            records: 10_000,
            rate: rng.u64(200..=1_500),
            plan,
            special: Special::default(),
        }
    }
}

/// A broker dies and comes back.
fn broker_step(rng: &mut Rng) -> Step {
    let fault = Fault::BrokerKill { after: Duration::from_millis(rng.u64(0..=4_000)) };
    let down = Duration::from_millis(rng.u64(0..=5_000));
    Step { node: rng.usize(..BROKERS), fault, down, wipe: false }
}

/// A random step; `point` is the crash point, if it is to be one.
fn step(rng: &mut Rng, nodes: usize, point: Option<&'static str>, down_max: Duration) -> Step {
    let fault = match point {
        Some(point) => {
            // Only deployments with stores come to pass between two stores.
            let deployments: &[&'static str] = match point {
                "between-stores" => &["chain", "book"],
                _ => &["chain", "chain", "copy", "split", "book"],
            };
            let deployment = deployments[rng.usize(..deployments.len())];
            Fault::Crash { point, nth: rng.u64(1..=20), deployment }
        }
        // Some hit the start, some the restore, some the full flight.
        None => Fault::Kill { after: Duration::from_millis(rng.u64(0..=4_000)) },
    };
    let down = Duration::from_millis(rng.u64(0..=down_max.as_millis() as u64));
    Step { node: rng.usize(..nodes), fault, down, wipe: rng.u32(..8) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_case() {
        let show = |seed| format!("{:?}", Case::random(seed, Broker::Embedded));
        assert_eq!(show(7), show(7));
        assert_ne!(show(7), show(8));
    }

    #[test]
    fn the_gate_kills_at_every_step() {
        let case = Case::gate(1, 2, 3, 10);
        for point in CRASH_POINTS {
            assert_eq!(case.plan.iter().filter(|step| step.fault.name() == point).count(), 2);
        }
        assert_eq!(case.plan.iter().filter(|step| step.fault.name() == KILL).count(), 3);
    }
}

//! Every metric name, in one table. A name here is a promise: dashboards and alerts are built on it.
//!
//! Counters get `_total` from the encoder. Labels are `deployment` and `partition` (or `worker`),
//! bounded by the board, plus at most one label with fixed values per row.

use prometheus_client::metrics::MetricType;

use super::cells::{
    BreakerState, DestinationMetrics, Gauge, Histogram, NodeMetrics, OutboxMetrics, TaskMetrics, TaskState,
    WorkerMetrics,
};
use super::lag::PartitionLag;
use super::spent::Activity;

/// What a row reads.
pub enum Sample<'a> {
    Count(u64),
    /// A counter of seconds.
    Seconds(f64),
    Gauge(f64),
    Latency(&'a Histogram),
}

/// The row's own label, when it has one.
pub type Extra = Option<(&'static str, &'static str)>;

/// Hands each sample of a row to the encoder.
pub type Emit<'a> = dyn FnMut(Extra, Sample<'_>) + 'a;

pub struct Row<C> {
    pub name: &'static str,
    pub kind: MetricType,
    pub help: &'static str,
    pub read: fn(&C, &mut Emit<'_>),
}

const fn counter<C>(name: &'static str, help: &'static str, read: fn(&C, &mut Emit<'_>)) -> Row<C> {
    Row { name, kind: MetricType::Counter, help, read }
}

const fn gauge<C>(name: &'static str, help: &'static str, read: fn(&C, &mut Emit<'_>)) -> Row<C> {
    Row { name, kind: MetricType::Gauge, help, read }
}

const fn histogram<C>(name: &'static str, help: &'static str, read: fn(&C, &mut Emit<'_>)) -> Row<C> {
    Row { name, kind: MetricType::Histogram, help, read }
}

use Sample::{Count, Latency, Seconds};

/// Labels `deployment`, `partition`.
#[rustfmt::skip]
pub const TASK: &[Row<TaskMetrics>] = &[
    counter("tidemill_records_in", "Records handed to the handler",
        |c, emit| emit(None, Count(c.records_in.get()))),
    counter("tidemill_bytes_in", "Bytes of keys, values and headers handed to the handler",
        |c, emit| emit(None, Count(c.bytes_in.get()))),
    counter("tidemill_records_out", "Records emitted by commits that succeeded",
        |c, emit| emit(None, Count(c.records_out.get()))),
    counter("tidemill_bytes_out", "Bytes of records emitted by commits that succeeded",
        |c, emit| emit(None, Count(c.bytes_out.get()))),
    counter("tidemill_records_skipped", "Failed records whose effects were dropped (failures: skip)",
        |c, emit| emit(None, Count(c.skipped.get()))),
    counter("tidemill_records_failed", "Failures by class", |c, emit| {
        let classes = [("transient", &c.failed_transient), ("permanent", &c.failed_permanent),
            ("decode", &c.failed_decode), ("trap", &c.traps), ("timeout", &c.timeouts), ("limit", &c.limit_faults),
            ("schema", &c.failed_schema)];
        for (class, counter) in classes {
            emit(Some(("class", class)), Count(counter.get()));
        }
    }),
    counter("tidemill_duplicates", "Records that the inbox had seen, and that had no effect",
        |c, emit| emit(None, Count(c.duplicates.get()))),
    counter("tidemill_sequence_breaks", "Records whose number breaks the sequence of their key, by what it tells", |c, emit| {
        emit(Some(("kind", "loss")), Count(c.sequence_losses.get()));
        emit(Some(("kind", "reordering")), Count(c.sequence_reorderings.get()));
        emit(Some(("kind", "repetition")), Count(c.sequence_repetitions.get()));
    }),
    counter("tidemill_retries", "Records tried again after a failure",
        |c, emit| emit(None, Count(c.retries.get()))),
    counter("tidemill_dead_letters", "Records sent to the dead-letter topic",
        |c, emit| emit(None, Count(c.dead_letters.get()))),
    counter("tidemill_redriven", "Dead letters given back to their deployment",
        |c, emit| emit(None, Count(c.redriven.get()))),
    counter("tidemill_dead_letters_over_limit", "Dead letters that a redrive left because they came back too often",
        |c, emit| emit(None, Count(c.over_limit.get()))),
    gauge("tidemill_parked_records", "Records that failed and are kept, and those that wait behind them",
        |c, emit| emit(None, Sample::Gauge(c.parked_records.get() as f64))),
    gauge("tidemill_parked_bytes", "Bytes of parked records",
        |c, emit| emit(None, Sample::Gauge(c.parked_bytes.get() as f64))),
    gauge("tidemill_parked_full", "1 while a task's inputs are paused because no more may be parked",
        |c, emit| emit(None, Sample::Gauge(c.parked_full.get() as f64))),
    counter("tidemill_handler_calls", "Calls of the handler, one a batch",
        |c, emit| emit(None, Count(c.handler_calls.get()))),
    counter("tidemill_handler_seconds", "Time spent in the handler",
        |c, emit| emit(None, Seconds(c.handler_time.seconds()))),
    histogram("tidemill_handler_duration_seconds", "Time of one call of the handler",
        |c, emit| emit(None, Latency(&c.handler_duration))),
    counter("tidemill_restored_records", "Changelog records applied to stores",
        |c, emit| emit(None, Count(c.restored_records.get()))),
    counter("tidemill_restored_bytes", "Changelog bytes applied to stores",
        |c, emit| emit(None, Count(c.restored_bytes.get()))),
    counter("tidemill_restore_seconds", "Time spent restoring stores",
        |c, emit| emit(None, Seconds(c.restore_time.seconds()))),
    gauge("tidemill_restore_remaining_records", "Changelog records still to apply",
        |c, emit| emit(None, Sample::Gauge(c.restore_remaining.get() as f64))),
    counter("tidemill_store_rebuilds", "Stores thrown away and rebuilt from the changelog",
        |c, emit| emit(None, Count(c.rebuilds.get()))),
    gauge("tidemill_store_bytes", "Size of the task's database, on disk and in its write buffer",
        |c, emit| emit(None, Sample::Gauge(c.store_bytes.get() as f64))),
    counter("tidemill_log_lines_dropped", "Lines that the handler logged beyond limits.log_lines a second",
        |c, emit| emit(None, Count(c.log_lines_dropped.get()))),
    gauge("tidemill_overlay_bytes", "Uncommitted effects in memory",
        |c, emit| emit(None, Sample::Gauge(c.overlay_bytes.get() as f64))),
    counter("tidemill_task_seconds", "What a task did with its time; the activities add up to it", |c, emit| {
        for (activity, name) in Activity::ALL {
            emit(Some(("activity", name)), Seconds(c.spent.seconds(activity)));
        }
    }),
    gauge("tidemill_task_state", "1 for the state a task is in", |c, emit| {
        if c.state() == TaskState::Absent { return }
        for (state, name) in TaskState::SHOWN {
            emit(Some(("state", name)), Sample::Gauge(f64::from(u8::from(c.state() == state))));
        }
    }),
];

/// Labels `deployment`, `partition`. While a lag is unknown it has no sample: zero would read as "none".
#[rustfmt::skip]
pub const LAG: &[Row<PartitionLag>] = &[
    gauge("tidemill_lag_records", "Records between the committed offset and the end of the inputs",
        |c, emit| emit(None, Sample::Gauge(c.records() as f64))),
    gauge("tidemill_lag_seconds", "Age of the oldest record that is not committed",
        |c, emit| if let Some(age) = c.seconds() { emit(None, Sample::Gauge(age)) }),
];

/// Label `deployment`.
#[rustfmt::skip]
pub const UNASSIGNED: &[Row<Gauge>] = &[
    gauge("tidemill_unassigned_partitions", "Partitions of a deployment that no node has, told by one node for the fleet",
        |c, emit| emit(None, Sample::Gauge(c.get() as f64))),
];

/// Labels `deployment`, `worker`.
#[rustfmt::skip]
pub const WORKER: &[Row<WorkerMetrics>] = &[
    counter("tidemill_commits", "Commits that succeeded",
        |c, emit| emit(None, Count(c.commits.get()))),
    counter("tidemill_commit_records", "Input records covered by commits that succeeded",
        |c, emit| emit(None, Count(c.commit_records.get()))),
    histogram("tidemill_commit_latency_seconds", "From sealing the overlay to the last store's write",
        |c, emit| emit(None, Latency(&c.commit_latency))),
    counter("tidemill_commit_failures", "Commits that failed, by outcome", |c, emit| {
        emit(Some(("outcome", "refused")), Count(c.commits_refused.get()));
        emit(Some(("outcome", "unknown")), Count(c.commits_unknown.get()));
    }),
    counter("tidemill_rebalances", "Changes of the assignment, by kind", |c, emit| {
        emit(Some(("kind", "assigned")), Count(c.rebalances_assigned.get()));
        emit(Some(("kind", "revoked")), Count(c.rebalances_revoked.get()));
        emit(Some(("kind", "lost")), Count(c.rebalances_lost.get()));
    }),
    counter("tidemill_client_restarts", "Kafka clients that had to be made anew",
        |c, emit| emit(None, Count(c.client_restarts.get()))),
    gauge("tidemill_worker_partitions", "Partitions a worker holds",
        |c, emit| emit(None, Sample::Gauge(c.partitions.get() as f64))),
];

/// Labels `deployment`, `destination`, `partition`.
#[rustfmt::skip]
pub const OUTBOX: &[Row<OutboxMetrics>] = &[
    gauge("tidemill_outbox_rows", "Rows that are committed, or about to be, and not known to be delivered",
        |c, emit| emit(None, Sample::Gauge(c.rows.get() as f64))),
    gauge("tidemill_outbox_bytes", "Bytes of those rows",
        |c, emit| emit(None, Sample::Gauge(c.bytes.get() as f64))),
    gauge("tidemill_outbox_in_flight", "Deliveries under way",
        |c, emit| emit(None, Sample::Gauge(c.in_flight.get() as f64))),
    gauge("tidemill_outbox_oldest_seconds", "Age of the oldest row",
        |c, emit| emit(None, Sample::Gauge(c.age_s()))),
    gauge("tidemill_outbox_full", "1 while a task's inputs are paused because its outbox may hold no more",
        |c, emit| emit(None, Sample::Gauge(c.full.get() as f64))),
    counter("tidemill_outbox_dead_letters", "Rows that can never be delivered and went to the dead letters",
        |c, emit| emit(None, Count(c.buried.get()))),
];

/// Labels `deployment`, `destination`.
#[rustfmt::skip]
pub const DESTINATION: &[Row<DestinationMetrics>] = &[
    counter("tidemill_deliveries", "Attempts to deliver an outbox row, by outcome", |c, emit| {
        emit(Some(("outcome", "delivered")), Count(c.deliveries.get()));
        emit(Some(("outcome", "transient")), Count(c.failed.get()));
        emit(Some(("outcome", "permanent")), Count(c.refused.get()));
    }),
    histogram("tidemill_delivery_duration_seconds", "Time of an attempt that delivered",
        |c, emit| emit(None, Latency(&c.duration))),
    counter("tidemill_breaker_opened", "How often a destination was found out of order and left alone",
        |c, emit| emit(None, Count(c.opened.get()))),
    gauge("tidemill_breaker_state", "1 for the state a destination's circuit breaker is in", |c, emit| {
        for (state, name) in BreakerState::ALL {
            emit(Some(("state", name)), Sample::Gauge(f64::from(u8::from(c.breaker() == state))));
        }
    }),
];

/// No labels of their own.
#[rustfmt::skip]
pub const NODE: &[Row<NodeMetrics>] = &[
    gauge("tidemill_deployments", "Deployments the registry holds",
        |c, emit| emit(None, Sample::Gauge(c.deployments.get() as f64))),
    gauge("tidemill_deployments_hanging", "Deployments whose start or stop on this node has been at the same for a minute",
        |c, emit| emit(None, Sample::Gauge(c.deployments_hanging.get() as f64))),
    gauge("tidemill_nodes", "Nodes of the fleet with a fresh heartbeat",
        |c, emit| emit(None, Sample::Gauge(c.nodes.get() as f64))),
    gauge("tidemill_registry_offset", "Next record of the registry topic",
        |c, emit| emit(None, Sample::Gauge(c.registry_offset.get() as f64))),
    counter("tidemill_registry_errors", "Registry entries this node could not understand",
        |c, emit| emit(None, Count(c.registry_errors.get()))),
    counter("tidemill_modules_compiled", "Modules compiled",
        |c, emit| emit(None, Count(c.modules_compiled.get()))),
    counter("tidemill_compile_seconds", "Time spent compiling modules",
        |c, emit| emit(None, Seconds(c.compile_time.seconds()))),
    gauge("tidemill_block_cache_bytes", "Block cache in use, all stores",
        |c, emit| emit(None, Sample::Gauge(c.block_cache_bytes.get() as f64))),
    gauge("tidemill_write_buffer_bytes", "Write buffers in use, all stores",
        |c, emit| emit(None, Sample::Gauge(c.write_buffer_bytes.get() as f64))),
    gauge("tidemill_state_free_bytes", "Free space below the state directory",
        |c, emit| emit(None, Sample::Gauge(c.state_free_bytes.get() as f64))),
    gauge("tidemill_state_unused_bytes", "State of no use that waits to be deleted (state_unused_keep)",
        |c, emit| emit(None, Sample::Gauge(c.unused_state_bytes.get() as f64))),
    counter("tidemill_state_collected", "Directories of state that were deleted because they were of no use",
        |c, emit| emit(None, Count(c.collected_state.get()))),
    counter("tidemill_modules_collected", "Uploads of modules that this node deleted from the fleet's topic, because no version needs them",
        |c, emit| emit(None, Count(c.collected_uploads.get()))),
    histogram("tidemill_broker_latency_seconds", "From a heartbeat's sending to its acknowledgement by all replicas in sync",
        |c, emit| emit(None, Latency(&c.broker_latency))),
    counter("tidemill_rollbacks", "Versions that this node took back by itself, by cause", |c, emit| {
        let causes = [
            ("failures", &c.rollbacks_failures),
            ("halted", &c.rollbacks_halted),
            ("lag", &c.rollbacks_lag),
            ("breaker", &c.rollbacks_breaker),
        ];
        for (cause, counter) in causes {
            emit(Some(("cause", cause)), Count(counter.get()));
        }
    }),
    counter("tidemill_control_calls", "Calls of the control plane",
        |c, emit| emit(None, Count(c.control_calls.get()))),
    counter("tidemill_control_errors", "Calls of the control plane that failed",
        |c, emit| emit(None, Count(c.control_errors.get()))),
    counter("tidemill_control_refused", "Calls of the control plane that their caller may not make",
        |c, emit| emit(None, Count(c.control_refused.get()))),
    counter("tidemill_connections_refused", "Connections that ended in their TLS handshake",
        |c, emit| emit(None, Count(c.tls_refused.get()))),
];

/// The lag once more under the names that consumers of Kafka are known by, and what their group's label is called;
/// the others are `topic` and `partition`.
pub const KAFKA_LAG: [(&str, &str); 3] = [
    ("kafka_consumer_lag", "consumer_group"),
    ("consumer_lag", "group"),
    ("kafka_consumergroup_lag", "group"),
];
pub const KAFKA_LAG_HELP: &str = "Records between the group's committed offset and the end of the partition";

/// The same in time, with the labels `group`, `topic` and `partition`.
pub const KAFKA_LAG_SECONDS: &str = "lag_seconds";
pub const KAFKA_LAG_SECONDS_HELP: &str = "Age of the oldest record of the partition that is not committed";

/// Every exported family name, as a scrape shows it without suffixes.
pub fn names() -> impl Iterator<Item = &'static str> {
    let task = TASK.iter().map(|row| row.name);
    let worker = WORKER.iter().map(|row| row.name);
    let lag = LAG.iter().map(|row| row.name).chain(UNASSIGNED.iter().map(|row| row.name));
    let lag = lag.chain(KAFKA_LAG.iter().map(|(name, _)| *name)).chain([KAFKA_LAG_SECONDS]);
    let outbox = OUTBOX.iter().map(|row| row.name).chain(DESTINATION.iter().map(|row| row.name));
    task.chain(lag).chain(worker).chain(outbox).chain(NODE.iter().map(|row| row.name)).chain([INFO])
}

/// Version of the program, as a label.
pub const INFO: &str = "tidemill_build";

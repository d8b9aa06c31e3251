//! Who has which cells, and how a scrape reads them.
//!
//! The lock guards the list of cells only: it is taken when a task or worker starts and at a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::cells::{DestinationMetrics, Gauge, NodeMetrics, OutboxMetrics, TaskMetrics, WorkerMetrics};
use super::lag::{InputLag, PartitionLag};
use super::table::{
    DESTINATION, INFO, KAFKA_LAG, KAFKA_LAG_HELP, KAFKA_LAG_SECONDS, KAFKA_LAG_SECONDS_HELP, LAG, NODE,
    OUTBOX, Row, Sample, TASK, UNASSIGNED, WORKER,
};

/// Tasks beyond this share one set of cells with the partition `other`, so that a cluster with very
/// many partitions cannot make a scrape arbitrarily large.
pub const TASK_SERIES_MAX: usize = 4_096;
pub const WORKER_SERIES_MAX: usize = 1_024;
const DESTINATION_SERIES_MAX: usize = 1_024;

/// All metrics of a process.
#[derive(Debug, Default)]
pub struct Telemetry {
    pub node: NodeMetrics,
    tasks: Mutex<BTreeMap<(String, Place), Arc<TaskMetrics>>>,
    workers: Mutex<BTreeMap<(String, Place), Arc<WorkerMetrics>>>,
    /// By deployment, destination and partition.
    outboxes: Mutex<BTreeMap<(String, String, Place), Arc<OutboxMetrics>>>,
    /// By deployment and destination.
    destinations: Mutex<BTreeMap<(String, String), Arc<DestinationMetrics>>>,
    /// As last looked up, whoever is furthest behind first.
    lags: Mutex<Vec<Arc<PartitionLag>>>,
    /// By deployment, of the same look.
    unassigned: Mutex<BTreeMap<String, Arc<Gauge>>>,
}

/// A partition or worker number, or what is beyond the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Number(i64),
    Other,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Number(number) => number.fmt(f),
            Place::Other => f.write_str("other"),
        }
    }
}

impl Telemetry {
    pub fn new() -> Arc<Telemetry> {
        Arc::default()
    }

    /// The cells of a task; the same ones when it comes back after a revocation.
    pub fn task(&self, deployment: &str, partition: i32) -> Arc<TaskMetrics> {
        cells(&self.tasks, deployment, partition.into(), TASK_SERIES_MAX)
    }

    pub fn worker(&self, deployment: &str, worker: u32) -> Arc<WorkerMetrics> {
        cells(&self.workers, deployment, worker.into(), WORKER_SERIES_MAX)
    }

    /// The cells of one output's rows in a task.
    pub fn outbox(&self, deployment: &str, destination: &str, partition: i32) -> Arc<OutboxMetrics> {
        let mut all = lock(&self.outboxes);
        let of = |place| (deployment.to_owned(), destination.to_owned(), place);
        let key = of(Place::Number(partition.into()));
        let full = all.len() >= TASK_SERIES_MAX && !all.contains_key(&key);
        let key = if full { of(Place::Other) } else { key };
        Arc::clone(all.entry(key).or_default())
    }

    /// Those of every destination of a task that this node has had.
    pub fn outboxes(&self, deployment: &str, partition: i32) -> Vec<(String, Arc<OutboxMetrics>)> {
        let all = lock(&self.outboxes);
        let here = all
            .iter()
            .filter(|((name, _, place), _)| name == deployment && *place == Place::Number(partition.into()));
        here.map(|((_, destination, _), cells)| (destination.clone(), Arc::clone(cells))).collect()
    }

    pub fn destination(&self, deployment: &str, destination: &str) -> Arc<DestinationMetrics> {
        let mut all = lock(&self.destinations);
        let key = (deployment.to_owned(), destination.to_owned());
        let full = all.len() >= DESTINATION_SERIES_MAX && !all.contains_key(&key);
        let key = if full { (deployment.to_owned(), "other".to_owned()) } else { key };
        Arc::clone(all.entry(key).or_default())
    }

    /// What a look found: the lag, whoever is furthest behind first, and how many partitions of each deployment no
    /// node has, if this node tells of those. Of more than the bound on tasks, who is least behind has no sample.
    pub fn set_lags(&self, lags: Vec<PartitionLag>, unassigned: BTreeMap<String, u64>) {
        *lock(&self.lags) = lags.into_iter().take(TASK_SERIES_MAX).map(Arc::new).collect();
        let gauge = |(deployment, partitions): (String, u64)| {
            let gauge = Gauge::default();
            gauge.set(partitions);
            (deployment, Arc::new(gauge))
        };
        *lock(&self.unassigned) = unassigned.into_iter().take(TASK_SERIES_MAX).map(gauge).collect();
    }

    /// The lag of a deployment cannot be had now.
    pub fn forget_lag(&self, deployment: &str) {
        lock(&self.lags).retain(|lag| lag.deployment != deployment);
        lock(&self.unassigned).remove(deployment);
    }

    /// The lag that is to be seen.
    fn lags(&self) -> Lags {
        let lags = lock(&self.lags);
        let shown = lags.iter().filter(|lag| lag.is_shown());
        shown.map(|lag| ((lag.deployment.clone(), lag.partition), Arc::clone(lag))).collect()
    }

    /// Drops the series of a deleted deployment.
    pub fn forget(&self, deployment: &str) {
        lock(&self.tasks).retain(|(name, _), _| name != deployment);
        lock(&self.workers).retain(|(name, _), _| name != deployment);
        lock(&self.outboxes).retain(|(name, ..), _| name != deployment);
        lock(&self.destinations).retain(|(name, _), _| name != deployment);
        self.forget_lag(deployment);
    }

    /// Everything, in the OpenMetrics text format ([`CONTENT_TYPE`]).
    pub fn render(self: &Arc<Self>) -> String {
        let mut registry = Registry::default();
        registry.register(
            INFO,
            "Version of the running program",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_collector(Box::new(Arc::clone(self)));
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a string does not fail, and every encoder is ours.
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            tracing::error!("metrics could not be encoded");
        }
        text
    }
}

/// Of what [`Telemetry::render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Cells<C> = Mutex<BTreeMap<(String, Place), Arc<C>>>;

/// By deployment and partition.
type Lags = BTreeMap<(String, i32), Arc<PartitionLag>>;

fn cells<C: Default>(all: &Cells<C>, deployment: &str, number: i64, limit: usize) -> Arc<C> {
    let mut all = lock(all);
    let key = (deployment.to_owned(), Place::Number(number));
    let full = all.len() >= limit && !all.contains_key(&key);
    let key = if full { (deployment.to_owned(), Place::Other) } else { key };
    Arc::clone(all.entry(key).or_default())
}

/// A panic elsewhere must not take the metrics with it: the list is sound at every point.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector for Telemetry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        encode_family(&mut encoder, TASK, &lock(&self.tasks), |(deployment, place)| {
            vec![("deployment", deployment.clone()), ("partition", place.to_string())]
        })?;
        let lags = self.lags();
        encode_family(&mut encoder, LAG, &lags, |(deployment, partition)| {
            vec![("deployment", deployment.clone()), ("partition", partition.to_string())]
        })?;
        encode_lag(&mut encoder, &lags)?;
        encode_family(&mut encoder, UNASSIGNED, &lock(&self.unassigned), |deployment| {
            vec![("deployment", deployment.clone())]
        })?;
        encode_family(&mut encoder, WORKER, &lock(&self.workers), |(deployment, place)| {
            vec![("deployment", deployment.clone()), ("worker", place.to_string())]
        })?;
        encode_family(&mut encoder, OUTBOX, &lock(&self.outboxes), |(deployment, destination, place)| {
            let destination = ("destination", destination.clone());
            vec![("deployment", deployment.clone()), destination, ("partition", place.to_string())]
        })?;
        encode_family(&mut encoder, DESTINATION, &lock(&self.destinations), |(deployment, destination)| {
            vec![("deployment", deployment.clone()), ("destination", destination.clone())]
        })?;
        for row in NODE {
            let mut metric = encoder.encode_descriptor(row.name, row.help, None, row.kind)?;
            let mut result = Ok(());
            (row.read)(&self.node, &mut |extra, sample| {
                let labels: Vec<(&str, &str)> = extra.into_iter().collect();
                let outcome = if labels.is_empty() {
                    encode_sample(&mut metric, &sample)
                } else {
                    metric.encode_family(&labels).and_then(|mut metric| encode_sample(&mut metric, &sample))
                };
                result = result.and(outcome);
            });
            result?;
        }
        Ok(())
    }
}

fn encode_family<K, C>(
    encoder: &mut DescriptorEncoder<'_>,
    rows: &[Row<C>],
    all: &BTreeMap<K, Arc<C>>,
    name: impl Fn(&K) -> Vec<(&'static str, String)>,
) -> Result<(), fmt::Error> {
    for row in rows {
        let mut metric = encoder.encode_descriptor(row.name, row.help, None, row.kind)?;
        let mut result = Ok(());
        for (key, cells) in all {
            let names = name(key);
            (row.read)(cells, &mut |extra, sample| {
                let mut labels: Vec<_> =
                    names.iter().map(|(label, value)| (*label, value.as_str())).collect();
                labels.extend(extra);
                let outcome =
                    metric.encode_family(&labels).and_then(|mut metric| encode_sample(&mut metric, &sample));
                result = result.and(outcome);
            });
        }
        result?;
    }
    Ok(())
}

fn encode_lag(encoder: &mut DescriptorEncoder<'_>, lags: &Lags) -> Result<(), fmt::Error> {
    type Value = fn(&InputLag) -> Option<f64>;
    let records: Value = |lag| Some(lag.records as f64);
    let records = KAFKA_LAG.map(|(name, group_label)| (name, group_label, KAFKA_LAG_HELP, records));
    let seconds: Value = |lag| lag.seconds;
    let seconds = (KAFKA_LAG_SECONDS, "group", KAFKA_LAG_SECONDS_HELP, seconds);
    for (name, group_label, help, value) in records.into_iter().chain([seconds]) {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for ((_, partition), lag) in lags {
            let partition = partition.to_string();
            for input in &lag.inputs {
                let Some(value) = value(input) else { continue };
                let (group, topic) = (lag.group.as_str(), input.topic.as_str());
                let labels = [(group_label, group), ("topic", topic), ("partition", partition.as_str())];
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
    }
    Ok(())
}

fn encode_sample(metric: &mut MetricEncoder<'_>, sample: &Sample<'_>) -> Result<(), fmt::Error> {
    match sample {
        Sample::Count(value) => metric.encode_counter::<NoLabelSet, _, u64>(value, None),
        Sample::Seconds(value) => metric.encode_counter::<NoLabelSet, _, f64>(value, None),
        Sample::Gauge(value) => metric.encode_gauge(value),
        Sample::Latency(histogram) => {
            let (sum, count, buckets) = histogram.read();
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cells::TaskState;
    use super::super::table::names;
    use super::*;

    /// Of a partition of `count`: by topic, records and seconds.
    fn lag(
        partition: i32,
        task: Option<Arc<TaskMetrics>>,
        inputs: &[(&str, u64, Option<f64>)],
    ) -> PartitionLag {
        let input = |&(topic, records, seconds): &(&str, _, _)| {
            let topic = topic.to_owned();
            InputLag { topic, records, seconds }
        };
        let (deployment, group) = ("count".to_owned(), "a.count".to_owned());
        let inputs = inputs.iter().map(input).collect();
        PartitionLag { deployment, partition, group, task, inputs }
    }

    #[test]
    fn a_scrape_shows_every_family_with_its_labels() {
        let telemetry = Telemetry::new();
        let task = telemetry.task("count", 3);
        task.records_in.add(7);
        task.traps.add(1);
        task.handler_time.add(Duration::from_millis(1500));
        task.set_state(TaskState::Running);
        let of_the_task = lag(3, Some(task), &[("words", 12, Some(1.5)), ("others", 7, None)]);
        let nobodys = lag(4, None, &[("words", 5, Some(2.0)), ("others", 1, Some(3.5))]);
        telemetry.set_lags(vec![of_the_task, nobodys], BTreeMap::from([("count".to_owned(), 1)]));
        telemetry.worker("count", 0).commit_latency.observe(Duration::from_millis(3));
        telemetry.node.deployments.set(1);
        let text = telemetry.render();
        for line in [
            "tidemill_records_in_total{deployment=\"count\",partition=\"3\"} 7",
            "tidemill_records_failed_total{deployment=\"count\",partition=\"3\",class=\"trap\"} 1",
            "tidemill_handler_seconds_total{deployment=\"count\",partition=\"3\"} 1.5",
            "tidemill_task_state{deployment=\"count\",partition=\"3\",state=\"running\"} 1.0",
            "tidemill_lag_records{deployment=\"count\",partition=\"3\"} 19.0",
            "tidemill_lag_records{deployment=\"count\",partition=\"4\"} 6.0",
            "tidemill_lag_seconds{deployment=\"count\",partition=\"4\"} 3.5",
            "tidemill_unassigned_partitions{deployment=\"count\"} 1.0",
            "kafka_consumer_lag{consumer_group=\"a.count\",topic=\"words\",partition=\"3\"} 12.0",
            "consumer_lag{group=\"a.count\",topic=\"words\",partition=\"3\"} 12.0",
            "kafka_consumergroup_lag{group=\"a.count\",topic=\"words\",partition=\"3\"} 12.0",
            "kafka_consumergroup_lag{group=\"a.count\",topic=\"others\",partition=\"3\"} 7.0",
            "lag_seconds{group=\"a.count\",topic=\"words\",partition=\"3\"} 1.5",
            "tidemill_commit_latency_seconds_bucket{le=\"0.0025\",deployment=\"count\",worker=\"0\"} 0",
            "tidemill_commit_latency_seconds_bucket{le=\"0.005\",deployment=\"count\",worker=\"0\"} 1",
            "tidemill_commit_latency_seconds_bucket{le=\"+Inf\",deployment=\"count\",worker=\"0\"} 1",
            "tidemill_commit_latency_seconds_count{deployment=\"count\",worker=\"0\"} 1",
            "tidemill_deployments 1.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
        for unknown in [
            "lag_seconds{group=\"a.count\",topic=\"others\",partition=\"3\"}",
            "tidemill_lag_seconds{deployment=\"count\",partition=\"3\"}",
        ] {
            assert!(!text.contains(unknown), "{unknown} in\n{text}");
        }
        assert!(text.contains("tidemill_build_info{version="));
        assert!(text.ends_with("# EOF\n"));
        for name in names() {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }

    #[test]
    fn a_task_that_has_left_has_no_gauges_and_its_counters_survive_that() {
        let telemetry = Telemetry::new();
        let task = telemetry.task("count", 0);
        task.set_state(TaskState::Running);
        task.records_in.add(5);
        let unassigned = BTreeMap::from([("count".to_owned(), 1)]);
        telemetry.set_lags(vec![lag(0, Some(Arc::clone(&task)), &[("words", 1, None)])], unassigned);
        let shows_lag = || telemetry.render().contains("\nkafka_consumer_lag{");
        assert!(shows_lag());
        task.set_state(TaskState::Absent);
        assert!(!shows_lag());
        let text = telemetry.render();
        assert!(!text.contains("tidemill_lag_records{") && !text.contains("tidemill_task_state{"));
        telemetry.task("count", 0).records_in.add(1);
        assert!(
            telemetry.render().contains("tidemill_records_in_total{deployment=\"count\",partition=\"0\"} 6")
        );
        telemetry.forget("count");
        assert!(!telemetry.render().contains("count\""));
    }

    #[test]
    fn series_are_bounded() {
        let telemetry = Telemetry::new();
        for partition in 0..TASK_SERIES_MAX as i32 + 10 {
            telemetry.task("wide", partition).records_in.add(1);
        }
        let text = telemetry.render();
        assert!(text.contains("tidemill_records_in_total{deployment=\"wide\",partition=\"other\"} 10"));
        assert!(lock(&telemetry.tasks).len() <= TASK_SERIES_MAX + 1);
    }
}

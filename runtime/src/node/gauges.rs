//! Gauges that nobody writes in passing: sizes, counts and lag. Looked up now and then, so that a
//! scrape waits for nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::fleet::ALIVE;
use super::lag::{AGES_TIME_MAX, seconds};
use super::registered::Registered;
use super::runtime::NodeRuntime;
use crate::config::state_dir::free_bytes;
use crate::kafka::admin::{AdminError, At};
use crate::record::Offset;
use crate::telemetry::{InputLag, InputLags, TaskMetrics};

/// Time between two looks at the lag, which asks Kafka.
pub const LAG_EVERY: Duration = Duration::from_secs(5);

/// What this process knows without asking anybody.
pub fn local(node: &NodeRuntime) {
    let gauges = &node.telemetry.node;
    let view = node.control_log.view();
    gauges.deployments.set(view.deployments.len() as u64);
    gauges.registry_offset.set(view.next.0);
    gauges.nodes.set(node.fleet.peers().values().filter(|peer| peer.age() < ALIVE).count() as u64);
    gauges.block_cache_bytes.set(node.store_budget.block_cache_used() as u64);
    gauges.write_buffer_bytes.set(node.store_budget.write_buffers_used() as u64);
    if let Ok(free) = free_bytes(node.state_dir.path()) {
        gauges.state_free_bytes.set(free);
    }
    for (_, board) in node.boards() {
        for task in board.tasks().into_values() {
            task.metrics.spent.sample();
            // A store that is just being closed keeps its last size.
            if let Some(Ok(sizes)) = task.reader.map(|reader| reader.sizes()) {
                task.metrics.store_bytes.set(sizes.disk_bytes + sizes.memtable_bytes);
            }
        }
    }
}

/// How far the tasks of this node are behind. What cannot be had now is unknown, never an old number.
pub fn lag(node: &NodeRuntime) {
    let view = node.control_log.view();
    let mut behind = Vec::new();
    for registered in view.deployments.values() {
        let tasks = inputs_of_tasks(node, registered);
        match records_behind(node, &tasks) {
            Ok(records) => {
                behind.extend(tasks.into_iter().zip(records));
            }
            Err(error) => {
                tracing::debug!(deployment = registered.name, %error, "the lag is unknown");
                for task in tasks {
                    task.metrics.lag_records.set(None);
                    task.metrics.lag_seconds.set(None);
                }
            }
        }
    }
    // Whoever is furthest behind is looked at first.
    behind.sort_by_key(|(_, records)| std::cmp::Reverse(records.iter().sum::<u64>()));
    let deadline = Instant::now() + AGES_TIME_MAX;
    for (task, records) in behind {
        let ages = task.inputs.iter().zip(&records).map(|((topic, next), &records)| {
            let late = records > 0 && Instant::now() >= deadline;
            if late { None } else { seconds(node, topic, task.partition, *next, records) }
        });
        let ages: Vec<Option<f64>> = ages.collect();
        task.note(&records, &ages);
        task.metrics.lag_records.set(Some(records.iter().sum::<u64>() as f64));
        task.metrics.lag_seconds.set(ages.into_iter().try_fold(0.0, |oldest, age| Some(age?.max(oldest))));
    }
}

/// Records that each task of a deployment on this node is behind, as Kafka answers now.
pub fn records_now(node: &NodeRuntime, registered: &Registered) -> Result<BTreeMap<i32, u64>, AdminError> {
    let tasks = inputs_of_tasks(node, registered);
    let behind = records_behind(node, &tasks)?;
    let sums = behind.iter().map(|records| records.iter().sum::<u64>());
    Ok(tasks.iter().map(|task| task.partition).zip(sums).collect())
}

/// A task of this node that has a position.
struct TaskInputs {
    metrics: Arc<TaskMetrics>,
    group: String,
    partition: i32,
    /// Topic and committed offset.
    inputs: Vec<(String, Offset)>,
}

impl TaskInputs {
    fn note(&self, records: &[u64], ages: &[Option<f64>]) {
        let lags = self.inputs.iter().zip(records.iter().zip(ages));
        let topics = lags.map(|((topic, _), (&records, &seconds))| {
            let topic = topic.clone();
            InputLag { topic, records, seconds }
        });
        let lags = InputLags { group: self.group.clone(), topics: topics.collect() };
        *self.metrics.lag_inputs.lock().unwrap_or_else(PoisonError::into_inner) = lags;
    }
}

fn inputs_of_tasks(node: &NodeRuntime, registered: &Registered) -> Vec<TaskInputs> {
    let Some(board) = node.board(&registered.name) else { return Vec::new() };
    let topics = registered.topics();
    let of = |(input, next): &(u16, Offset)| Some((topics.get(usize::from(*input))?.clone(), *next));
    let tasks = board.tasks().into_iter().map(|(partition, task)| TaskInputs {
        metrics: task.metrics,
        group: node.group(&registered.name),
        partition,
        inputs: task.positions.iter().filter_map(of).collect(),
    });
    tasks.filter(|task| !task.inputs.is_empty()).collect()
}

/// Records behind, by task and input.
fn records_behind(node: &NodeRuntime, tasks: &[TaskInputs]) -> Result<Vec<Vec<u64>>, AdminError> {
    let inputs = tasks
        .iter()
        .flat_map(|task| task.inputs.iter().map(|(topic, next)| ((topic.clone(), task.partition), *next)));
    let (partitions, nexts): (Vec<_>, Vec<_>) = inputs.unzip();
    let ends = node.admin.offsets(&partitions, At::StableEnd)?;
    let mut behind = nexts.iter().zip(ends).map(|(next, end)| next.lag(end));
    Ok(tasks.iter().map(|task| behind.by_ref().take(task.inputs.len()).collect()).collect())
}

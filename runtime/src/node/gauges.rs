//! Gauges that nobody writes in passing: sizes and counts. Looked up now and then, so that a scrape waits for
//! nothing.

use super::fleet::ALIVE;
use super::runtime::NodeRuntime;
use crate::config::state_dir::free_bytes;

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

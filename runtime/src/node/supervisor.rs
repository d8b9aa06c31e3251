//! Makes this node run what the registry says: one thread that looks at what should be and at what is, and
//! starts, replaces and stops deployments. It waits for no start and for no stop, so that no deployment waits
//! for another.
//!
//! | file | what it is |
//! |---|---|
//! | this one | the thread, and what it tells the rest of the node |
//! | `super::places` | where all deployments stand, and what one look at the registry makes of that |
//! | `super::place` | where one deployment stands, its starts and its stops |
//! | `super::site` | what is done to it here, which the others only decide |
//!
//! ```text
//!   in the registry, not here --> Starting ---> Up (workers run)
//!                                      |           |  another revision, made ready meanwhile: swapped in place, or
//!                                      |           |  stop, start; who comes back keeps his place
//!                                      v           v
//!                              Failed, try again   deleted, paused, node drained or stopped: Ending, leaves the group
//!                                      ^           |
//!                                      +- Ending <-+  its inputs are not what they were: `super::inputs`
//!                                                     a worker has panicked: later each time
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::deployment::RunningDeployment;
use super::inputs::Watch;
use super::places::Places;
use super::registry::Registry;
use super::runtime::NodeRuntime;
use super::tidy::Burials;

/// Ends the thread, and every deployment with it, when stopped.
pub struct Supervisor {
    node: Arc<NodeRuntime>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    pub fn start(node: Arc<NodeRuntime>) -> std::io::Result<Supervisor> {
        let stopping = Arc::new(AtomicBool::new(false));
        let watch = Watch::start(Arc::clone(&node))?;
        let burials = Burials::start(Arc::clone(&node))?;
        let thread = std::thread::Builder::new().name("supervisor".into());
        let thread = thread.spawn({
            let (node, stopping) = (Arc::clone(&node), Arc::clone(&stopping));
            move || supervise(&node, &stopping, watch, burials)
        })?;
        Ok(Supervisor { node, stopping, thread: Some(thread) })
    }

    /// Commits, closes and leaves every deployment; returns when all of it is done. What is being made ready
    /// is given up.
    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.node.compiler.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the supervisor panicked");
        }
    }
}

/// Looks at what should be and at what is, and makes the one of the other, until the node stops and nothing
/// is left on it.
fn supervise(node: &Arc<NodeRuntime>, stopping: &Arc<AtomicBool>, watch: Watch, burials: Burials) {
    let mut places = Places::new(Arc::clone(node), Arc::clone(stopping));
    loop {
        let view = node.control_log.wait_beyond(places.seen(), places.patience());
        node.relays.set_paused(outbox_pauses(&view));
        let stops = stopping.load(Ordering::Relaxed);
        let is_wanted = !stops && !node.drain.is_wanted();
        for finding in watch.findings().filter(|_| is_wanted) {
            places.react(finding);
        }
        for life in places.look(view, is_wanted) {
            burials.add(life);
        }
        if places.is_given_away() {
            node.drain.gave_away();
        }
        node.telemetry.node.deployments_hanging.set(places.tell_hanging() as u64);
        watch.set(places.running(RunningDeployment::shared));
        if stops && places.is_given_away() {
            break;
        }
    }
    watch.stop();
    burials.stop();
}

/// By deployment and destination.
fn outbox_pauses(view: &Registry) -> BTreeSet<(String, String)> {
    let of = |name: &String| -> Vec<(String, String)> {
        view.outbox_paused(name).into_iter().map(|destination| (name.clone(), destination)).collect()
    };
    view.deployments.keys().flat_map(of).collect()
}

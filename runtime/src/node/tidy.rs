//! Directories of state that no task will ever take up again: found, told of, and deleted after a while. So are
//! the files of modules that no version names.
//!
//! ```text
//!   open      a task has it
//!   kept      a task that comes here takes it up
//!   unused    its life of the deployment is over, or of another cluster or fleet
//!             --> marked, on disk --> deleted when the mark is older than `state_unused_keep`
//! ```
//!
//! A task that runs elsewhere leaves its directory here: a move back then reads only what it lacks, and it
//! may be the one copy that survives a changelog which somebody has cut.
//!
//! A life that ends before this node's eyes goes at once. Any other may be missing from the registry only
//! because the node is on the wrong cluster, which somebody may notice and mend in time.
//!
//! Never deletes what is open: the directory is leased meanwhile, as by a task that would open it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use tidemill_proto::v1 as proto;

use super::deployment::wall_ms;
use super::handle::{ControlError, Handle};
use super::lease::Lease;
use super::registry::Registry;
use super::runtime::NodeRuntime;
use crate::config::units::show_duration;
use crate::ports::Stop;
use crate::store::{StoreDir, StoreError};
use crate::telemetry::audit::Line;

/// Time between two looks.
pub const EVERY: Duration = Duration::from_secs(60);

/// Age of a module's file that no version names. Longer than it takes from an upload to its version; what is fetched
/// again after that is in the topic, which keeps it while a version names it and for longer (`super::uploads`).
const MODULE_KEEP: Duration = Duration::from_secs(3600);

/// How long a task that is just ending may keep what is to be deleted.
const LET_GO_WAIT: Duration = Duration::from_secs(5);

/// Of what use a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Use {
    Open,
    Kept,
    /// With the reason.
    Unused(String),
}

/// Marks what is of no use, and deletes what has been for long enough. Only to be asked once the registry
/// has been read to its end.
pub fn look(node: &NodeRuntime) {
    let view = node.control_log.view();
    match node.state_dir.stores() {
        Ok(stores) => {
            let mut waiting_bytes = 0;
            for store in &stores {
                match tidy(node, &view, store) {
                    Ok(bytes) => waiting_bytes += bytes,
                    Err(error) => {
                        tracing::warn!(path = %store.path.display(), %error, "cannot collect unused state")
                    }
                }
            }
            node.telemetry.node.unused_state_bytes.set(waiting_bytes);
        }
        Err(error) => tracing::warn!(%error, "cannot look for unused state"),
    }
    let named = view.modules();
    if let Err(error) = node.modules.tidy(|module| named.contains(module), MODULE_KEEP) {
        tracing::warn!(%error, "cannot collect modules that no version names");
    }
}

/// Answers the bytes that wait to be collected.
fn tidy(node: &NodeRuntime, view: &Registry, store: &StoreDir) -> Result<u64, StoreError> {
    let marked_ms = node.state_dir.unused_since(store);
    let Use::Unused(reason) = use_of(node, view, store) else {
        if marked_ms.is_some() {
            tracing::info!(path = %store.path.display(), "state that was of no use is of use again");
            node.state_dir.unmark(store)?;
        }
        return Ok(0);
    };
    let (now_ms, bytes) = (wall_ms(), store.files().bytes);
    // A mark of the future is from a clock that has been set back since.
    let Some(since_ms) = marked_ms.filter(|&since_ms| since_ms <= now_ms) else {
        node.state_dir.mark_unused(store, now_ms)?;
        tracing::info!(
            path = %store.path.display(),
            bytes,
            reason,
            "state of no use; it is deleted in {}",
            show_duration(node.config.state_unused_keep)
        );
        return Ok(bytes);
    };
    if now_ms < goes_at(node, since_ms) {
        return Ok(bytes);
    }
    let removed = remove(node, store, &reason, Duration::ZERO)?;
    if removed {
        tracing::info!(path = %store.path.display(), bytes, reason, "deleted state of no use");
    }
    Ok(if removed { 0 } else { bytes })
}

fn goes_at(node: &NodeRuntime, since_ms: i64) -> i64 {
    since_ms.saturating_add(node.config.state_unused_keep.as_millis() as i64)
}

/// False when somebody has it after all.
fn remove(node: &NodeRuntime, store: &StoreDir, reason: &str, wait: Duration) -> Result<bool, StoreError> {
    match node.leases.acquire(&store.path, wait, &Stop::never()) {
        Lease::Busy => return Ok(false),
        // Nothing of it is needed any more, not even what has not been flushed.
        Lease::Open(open) => drop(open),
        Lease::Closed => {}
    }
    let removed = node.state_dir.remove(store);
    node.leases.free(&store.path);
    removed?;
    node.telemetry.node.collected_state.add(1);
    let told = format!("{}: {reason}", store.path.display());
    Line::by_itself(&node.id, "State.Collect", &store.deployment).write(0, "Ok", &told);
    Ok(true)
}

/// Deletes the state of lives that have ended, one after the other on a thread of its own: somebody may have
/// to let go of it, and nobody else waits for that.
pub struct Burials {
    /// Name and incarnation.
    lives: Sender<(String, String)>,
    thread: JoinHandle<()>,
}

impl Burials {
    pub fn start(node: Arc<NodeRuntime>) -> std::io::Result<Burials> {
        Burials::with(move |deployment, incarnation| life_ended(&node, deployment, incarnation))
    }

    fn with(bury: impl Fn(&str, &str) + Send + 'static) -> std::io::Result<Burials> {
        let (lives, ended) = unbounded::<(String, String)>();
        let thread = std::thread::Builder::new().name("burials".into()).spawn(move || {
            for (deployment, incarnation) in ended {
                bury(&deployment, &incarnation);
            }
        })?;
        Ok(Burials { lives, thread })
    }

    /// Of this life, name and incarnation, nothing runs here any more.
    pub fn add(&self, life: (String, String)) {
        // Fails only if the thread has panicked: what is left is then found at a later look.
        let _ = self.lives.send(life);
    }

    /// Returns when everything is done.
    pub fn stop(self) {
        drop(self.lives);
        if self.thread.join().is_err() {
            tracing::error!("the thread that deletes the state of lives that have ended panicked");
        }
    }
}

/// The state of a life that has just ended here, and that the registry says has ended.
fn life_ended(node: &NodeRuntime, deployment: &str, incarnation: &str) {
    let Ok(stores) = node.state_dir.stores() else { return };
    let of_life = |store: &&StoreDir| store.deployment == deployment && store.incarnation == incarnation;
    for store in stores.iter().filter(of_life) {
        match remove(node, store, "its life of the deployment has ended", LET_GO_WAIT) {
            Ok(true) => {
                tracing::info!(path = %store.path.display(), "deleted state of a deployment that is gone")
            }
            // Whoever has it lets go of it, and it is found again.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(path = %store.path.display(), %error, "cannot delete state of a deployment that is gone")
            }
        }
    }
}

fn use_of(node: &NodeRuntime, view: &Registry, store: &StoreDir) -> Use {
    if node.leases.is_held(&store.path) {
        return Use::Open;
    }
    if !view.is_alive(&store.deployment, &store.incarnation) {
        return Use::Unused(match view.life(&store.deployment) {
            Some(_) => format!(
                "{} has begun another life since, or this is of another cluster or fleet",
                store.deployment
            ),
            None => format!(
                "{} is not deployed any more, or this is of another cluster or fleet",
                store.deployment
            ),
        });
    }
    Use::Kept
}

impl Handle {
    /// The directories of state on this node.
    pub fn stores(&self) -> Result<proto::StoresResponse, ControlError> {
        let (node, view) = (&self.node, self.node.control_log.view());
        let stores = node.state_dir.stores().map_err(|error| ControlError::Internal(error.to_string()))?;
        let directories = stores
            .into_iter()
            .map(|store| {
                let (of_use, reason) = match use_of(node, &view, &store) {
                    Use::Open => (proto::StoreUse::Open, String::new()),
                    Use::Kept => (proto::StoreUse::Kept, String::new()),
                    Use::Unused(reason) => (proto::StoreUse::Unused, reason),
                };
                let since_ms = node.state_dir.unused_since(&store);
                let since_ms = since_ms.filter(|_| of_use == proto::StoreUse::Unused);
                let files = store.files();
                proto::StoreDirectory {
                    node: node.id.clone(),
                    bytes: files.bytes,
                    written_at_ms: files.written_ms,
                    deployment: store.deployment,
                    incarnation: store.incarnation,
                    partition: store.partition,
                    r#use: of_use.into(),
                    reason,
                    collected_at_ms: since_ms.map_or(0, |since_ms| goes_at(node, since_ms)),
                }
            })
            .collect();
        Ok(proto::StoresResponse { directories, silent: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_burial_but_who_stops_them_all() {
        let (release, held) = unbounded();
        let (told, done) = unbounded();
        let burials = Burials::with(move |deployment, incarnation| {
            held.recv().expect("it is released");
            told.send(format!("{deployment} {incarnation}")).expect("the test listens");
        });
        let burials = burials.expect("a thread");
        for (deployment, incarnation) in [("a", "a1"), ("b", "b1")] {
            burials.add((deployment.to_owned(), incarnation.to_owned()));
        }
        assert!(done.is_empty(), "nothing was released");
        for _ in 0..2 {
            release.send(()).expect("it is awaited");
        }
        burials.stop();
        assert_eq!(done.try_iter().collect::<Vec<_>>(), ["a a1", "b b1"]);
    }
}

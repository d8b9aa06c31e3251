//! A node's process: what of it lives in memory, and whether it still lives.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::node::board::Board;
use crate::node::lease::Leases;
use crate::node::pace::NodeBudget;
use crate::task::TaskConfig;
use crate::telemetry::Telemetry;

pub struct Process {
    pub node: usize,
    /// Its state directory; a restarted process has the same.
    pub root: PathBuf,
    /// Of the revision that it runs, or is to run next.
    config: Mutex<Arc<TaskConfig>>,
    pub leases: Leases,
    pub commits: Arc<NodeBudget>,
    pub board: Arc<Board>,
    dead: AtomicBool,
    /// Its workers stand still until the world has turned that often.
    paused_until: AtomicU64,
    /// And so do the threads of its clients, as by SIGSTOP.
    frozen: AtomicBool,
    /// Calls into it that have not returned.
    calls: AtomicUsize,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {}", self.node)
    }
}

impl Process {
    pub fn new(node: usize, root: &Path, config: TaskConfig) -> Arc<Process> {
        Arc::new(Process {
            node,
            root: root.to_owned(),
            config: Mutex::new(Arc::new(config)),
            leases: Leases::default(),
            commits: Arc::default(),
            board: Arc::new(Board::new("sim", Telemetry::new())),
            dead: AtomicBool::new(false),
            paused_until: AtomicU64::new(0),
            frozen: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        })
    }

    pub fn config(&self) -> Arc<TaskConfig> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its workers are told of another revision.
    pub fn swap(&self, config: TaskConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// A dead process does nothing any more: its calls that are still on the way back reach nobody.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub fn is_paused(&self, turn: u64) -> bool {
        turn < self.paused_until.load(Ordering::Relaxed)
    }

    pub fn is_frozen(&self, turn: u64) -> bool {
        self.is_paused(turn) && self.frozen.load(Ordering::Relaxed)
    }

    /// `frozen`: the whole process; otherwise the threads of its clients go on.
    pub fn pause(&self, until: u64, frozen: bool) {
        self.paused_until.store(until, Ordering::Relaxed);
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Runs something of this process.
    pub fn call<R>(&self, body: impl FnOnce() -> R) -> R {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let result = body();
        self.calls.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Nothing of it is on its way any more.
    pub fn is_still(&self) -> bool {
        self.calls.load(Ordering::Relaxed) == 0
    }

    pub fn dir(&self, partition: i32) -> PathBuf {
        self.root.join(partition.to_string())
    }
}

//! Workers that a deployment once had on this node and has no more: what they left open in Kafka is
//! ended before their successors start.
//!
//! The node's directory records, per deployment, how many workers there have been. A start with fewer
//! fences the transactional id of each surplus worker, whose open transaction would hold readers back
//! until it times out, and takes its member out of the group, which would keep its partitions until
//! its session ends. A worker that is stopped for good leaves by itself; this is for one that was killed.
//!
//! On disk since 0.1: `<state_dir>/workers/<deployment>` holds two decimal numbers, of members and of
//! transactional ids.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::clients;
use super::revision::{PrepareError, Revision};
use super::runtime::NodeRuntime;
use crate::config::deployment::Guarantee;
use crate::kafka::admin::AdminError;
use crate::kafka::consumer::evict;
use crate::kafka::sink::fence;

/// Numbered from 0; each is the first number that was never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Used {
    members: u32,
    transactional: u32,
}

/// The node's record of them.
pub struct FormerWorkers {
    dir: PathBuf,
}

impl FormerWorkers {
    pub fn open(state_dir: &Path) -> io::Result<FormerWorkers> {
        let dir = state_dir.join("workers");
        std::fs::create_dir_all(&dir)?;
        Ok(FormerWorkers { dir })
    }

    /// Of a deployment that is gone.
    pub fn forget(&self, deployment: &str) {
        // A record too many costs one needless fence, should the name ever come back.
        let _ = std::fs::remove_file(self.dir.join(deployment));
    }

    /// What cannot be read is taken for nothing recorded: Kafka's own time-outs then do the work.
    fn read(&self, deployment: &str) -> Used {
        let text = std::fs::read_to_string(self.dir.join(deployment)).unwrap_or_default();
        let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().unwrap_or(0));
        Used { members: numbers.next().unwrap_or(0), transactional: numbers.next().unwrap_or(0) }
    }

    /// A crash half-way leaves the old record.
    fn write(&self, deployment: &str, used: Used) -> io::Result<()> {
        let (path, partial) = (self.dir.join(deployment), self.dir.join(format!(".{deployment}")));
        std::fs::write(&partial, format!("{} {}\n", used.members, used.transactional))?;
        std::fs::rename(partial, path)
    }
}

/// Members that are being evicted, on a thread of its own. Ends soon after it is dropped.
#[derive(Default)]
pub struct Evictions {
    given_up: Arc<AtomicBool>,
}

impl Drop for Evictions {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// Ends what surplus workers left, and records those that are about to start.
pub fn settle(node: &NodeRuntime, revision: &Revision) -> Result<Evictions, PrepareError> {
    let name = &revision.registered.name;
    let workers = revision.spec.workers;
    let wanted = Used {
        members: workers,
        // Without transactions every id of a former `exactly_once` is surplus.
        transactional: if revision.spec.guarantee == Guarantee::ExactlyOnce { workers } else { 0 },
    };
    let used = node.former_workers.read(name);
    if used == wanted {
        return Ok(Evictions::default());
    }
    // Both at first: should the rest fail, the next start knows of the old ones and the new ones.
    let both = Used {
        members: used.members.max(wanted.members),
        transactional: used.transactional.max(wanted.transactional),
    };
    record(node, name, both)?;
    let evictions = match used.members > wanted.members {
        true => evict_members(node, revision)?,
        false => Evictions::default(),
    };
    for index in wanted.transactional..used.transactional {
        tracing::info!(deployment = name, worker = index, "fencing a worker that is no more");
        fence(&node.kafka, &clients::transactional_id(node, name, index))?;
    }
    record(node, name, wanted)?;
    Ok(evictions)
}

fn record(node: &NodeRuntime, deployment: &str, used: Used) -> Result<(), PrepareError> {
    node.former_workers.write(deployment, used).map_err(|error| {
        let dir = node.former_workers.dir.display();
        PrepareError::Unavailable(format!(
            "cannot write to {dir}: {error}; free some space, or check who owns it"
        ))
    })
}

/// Only members that the group still lists: an eviction joins and leaves, which disturbs the others.
///
/// On a thread of its own, while the workers start: whoever joins is let in only when every member has
/// joined again, and those that stay are these workers.
fn evict_members(node: &NodeRuntime, revision: &Revision) -> Result<Evictions, PrepareError> {
    let evictions = Evictions::default();
    let members = match node.admin.describe_group(&revision.group) {
        Ok(group) => group.members,
        Err(AdminError::Missing { .. }) => return Ok(evictions),
        Err(error) => return Err(error.into()),
    };
    let mut former = Vec::new();
    for instance in members.iter().filter_map(|member| member.instance_id.as_deref()) {
        let number = instance.strip_prefix(&node.id).and_then(|rest| rest.strip_prefix('-'));
        let Some(index) = number.and_then(|number| number.parse::<u32>().ok()) else { continue };
        if index >= revision.spec.workers {
            former.push((index, clients::consumer_spec(node, revision, index)));
        }
    }
    let (kafka, deployment) = (node.kafka.clone(), revision.registered.name.clone());
    let given_up = Arc::clone(&evictions.given_up);
    let evicting = std::thread::Builder::new().name("evict".into()).spawn(move || {
        for (worker, spec) in former {
            tracing::info!(deployment, worker, "evicting a worker that is no more");
            if let Err(error) = evict(&kafka, spec, &given_up) {
                tracing::warn!(deployment, worker, %error, "its partitions wait for its session to end");
            }
        }
    });
    evicting.map(|_| evictions).map_err(|error| PrepareError::Unavailable(format!("no thread: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_a_broken_one_is_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let former = FormerWorkers::open(dir.path()).expect("opens");
        assert_eq!(former.read("d"), Used::default());
        let used = Used { members: 3, transactional: 2 };
        former.write("d", used).expect("writes");
        assert_eq!(FormerWorkers::open(dir.path()).expect("opens").read("d"), used);
        std::fs::write(dir.path().join("workers/d"), "?").expect("writes");
        assert_eq!(former.read("d"), Used::default());
    }
}

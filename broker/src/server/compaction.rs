//! The compaction thread: finds what is worth a pass, and does the work without the lock.

use std::io;
use std::sync::{Arc, PoisonError};

use uuid::Uuid;

use super::Shared;

/// Runs passes until the broker stops.
pub fn run(shared: &Arc<Shared>) {
    while !shared.stopping() {
        let due = shared.core().compaction_due(shared.now());
        for (topic, partition) in due {
            // One partition with records that cannot be opened must not keep others from it.
            if let Err(error) = compact(shared, &[(topic, partition)]) {
                tracing::error!(%error, %topic, partition, "compaction failed");
            }
        }
        std::thread::park_timeout(shared.config.maintenance_interval);
    }
}

/// One pass over each of these partitions.
pub fn compact(shared: &Shared, partitions: &[(Uuid, i32)]) -> io::Result<()> {
    let _alone = shared.compacting.lock().unwrap_or_else(PoisonError::into_inner);
    for partition in partitions {
        let job = shared.core().plan_compaction(*partition, shared.now());
        if let Some(job) = job {
            let cleaned = job.run()?;
            shared.core().apply_compaction(*partition, cleaned)?;
        }
    }
    Ok(())
}

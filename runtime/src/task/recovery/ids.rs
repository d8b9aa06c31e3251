//! Brings the ids of the inbox into a store, after the changelog.
//!
//! The inbox's topic is not compacted: it is trimmed from its beginning. What was trimmed had expired
//! if the log begins no later than the position record's `inbox_start`; anything else halts, because an
//! id that is missing would let a repetition through.

use super::{Hooks, RecoveryError, Restore, Restored, SHORT_LOG_LOOKS, SHORT_LOG_PAUSE};
use crate::ports::{Log, LogRecord, Recovery};
use crate::record::Offset;
use crate::store::{Ages, INBOX_AGES, Progress, Store, StoreError, inbox_date_ms, is_inbox_key};
use crate::task::inbox::millis;

/// Rows written as one batch.
const CHUNK_ROWS: usize = 50_000;

impl Restore<'_> {
    /// Reads from where the store stands, or the log begins, to the high watermark.
    pub(super) fn inbox(
        &self,
        mut store: Store,
        kafka: &mut dyn Recovery,
        hooks: &mut Hooks<'_>,
    ) -> Result<Restored, RecoveryError> {
        let stored = store.progress().inbox_next;
        let mut bounds = kafka.log_bounds(Log::Inbox, self.partition)?;
        for _ in 0..SHORT_LOG_LOOKS {
            if stored <= bounds.1 {
                break;
            }
            if !(hooks.pause)(SHORT_LOG_PAUSE) {
                store.close()?;
                return Ok(Restored::Stopped);
            }
            bounds = kafka.log_bounds(Log::Inbox, self.partition)?;
        }
        // A life that no commit is known of may go on with the ids of the one before: with what is there.
        let needed = store.position().map_or(bounds.0, |position| Offset(position.inbox_start));
        if let Some(reason) = self.judge_inbox(stored, needed, bounds) {
            store.close()?;
            return Ok(Restored::Halt(reason));
        }
        let mut rows: Vec<LogRecord> = Vec::new();
        let mut ages = match store.ages() {
            Some(ages) if stored >= bounds.0 => ages.clone(),
            // What is read is all there is.
            _ => Ages::beginning(bounds.0),
        };
        let ttl_ms = self.config.inbox.as_ref().map_or(0, |inbox| millis(inbox.ttl));
        let mut newest_ms = i64::MIN;
        let mut failed = None;
        kafka.read_log(Log::Inbox, self.partition, (stored.max(bounds.0), bounds.1), &mut |record| {
            let next = Offset(record.offset.0 + 1);
            if let Some(date_ms) = record.value.as_deref().and_then(inbox_date_ms) {
                newest_ms = newest_ms.max(date_ms);
                ages.note(next, newest_ms, ttl_ms);
            }
            rows.push(record);
            if rows.len() >= CHUNK_ROWS {
                failed = write(&mut store, &mut rows, next, &ages).err();
            }
            failed.is_none()
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        write(&mut store, &mut rows, bounds.1.max(stored), &ages)?;
        Ok(Restored::Done(store))
    }

    fn judge_inbox(&self, stored: Offset, needed: Offset, (start, end): (Offset, Offset)) -> Option<String> {
        if stored > end {
            return Some(format!(
                "the store has taken ids from the inbox's topic (partition {}) up to offset {stored}, but it ends at {end}: it has \
                 lost records or was made again, so repetitions could not be told; delete the deployment and deploy it again to \
                 begin anew",
                self.partition
            ));
        }
        (start > stored && start > needed).then(|| {
            format!(
                "the inbox's topic (partition {}) begins at offset {start}, and ids from {} on had not expired: somebody deleted \
                 records of it, so repetitions could not be told; put back a copy of the store that ends at {start} or later, or \
                 delete the deployment and deploy it again to begin anew",
                self.partition,
                stored.max(needed)
            )
        })
    }
}

fn write(store: &mut Store, rows: &mut Vec<LogRecord>, next: Offset, ages: &Ages) -> Result<(), StoreError> {
    let progress = Progress { inbox_next: next, ..store.progress() };
    // In log order: of two rows of an id the later one stays.
    let ids = rows.iter().filter(|row| is_inbox_key(&row.key));
    let ages = ages.encode();
    let rest = [(INBOX_AGES, Some(ages.as_slice()))];
    store.write(ids.map(|row| (row.key.as_slice(), row.value.as_deref())).chain(rest), progress)?;
    rows.clear();
    Ok(())
}

//! Brings the ids of the inbox into a store, after the changelog.
//!
//! The inbox's topic is not compacted: it is trimmed from its beginning. What was trimmed had expired
//! if the log begins no later than the position record's `inbox_start`; anything else halts, because an
//! id that is missing would let a repetition through.

use super::replay::CHUNK_BYTES;
use super::{Hooks, RecoveryError, Restore, Restored};
use crate::ports::{Log, Recovery, SourceError};
use crate::record::Offset;
use crate::store::{
    Ages, INBOX_AGES, MalformedPack, Progress, Run, Store, StoreError, inbox_date_ms, is_inbox_key, unpack,
};
use crate::task::inbox::millis;

impl Restore<'_> {
    /// Reads from where the store stands, or the log begins, to the high watermark.
    pub(super) fn inbox(
        &self,
        mut store: Store,
        kafka: &mut dyn Recovery,
        hooks: &mut Hooks<'_>,
    ) -> Result<Restored, RecoveryError> {
        loop {
            let stored = store.progress().inbox_next;
            let Some(bounds) = self.bounds(Log::Inbox, stored, kafka, hooks)? else {
                store.close()?;
                return Ok(Restored::Stopped);
            };
            // A life that no commit is known of may go on with the ids of the one before: with what is there.
            let needed = store.position().map_or(bounds.0, |position| Offset(position.inbox_start));
            if let Some(reason) = self.judge_inbox(stored, needed, bounds) {
                store.close()?;
                return Ok(Restored::Halt(reason));
            }
            let Err(error) = self.take_ids(&mut store, kafka, bounds) else {
                store.set_inbox_begins(bounds.0);
                return Ok(Restored::Done(Box::new(store)));
            };
            // The last request of the owner before, to trim what has expired, may arrive while this reads: what is
            // there then is judged anew.
            let later = match error {
                RecoveryError::Kafka(SourceError::Refused(_)) => {
                    self.bounds(Log::Inbox, Offset(0), kafka, hooks)?
                }
                RecoveryError::Kafka(SourceError::Stopped) => None,
                error => return Err(error),
            };
            let Some((start, _)) = later else {
                store.close()?;
                return Ok(Restored::Stopped);
            };
            if start <= store.progress().inbox_next {
                return Err(error);
            }
        }
    }

    /// Takes over what lies within these bounds. If that cannot be read to its end, what came is in the store.
    fn take_ids(
        &self,
        store: &mut Store,
        kafka: &mut dyn Recovery,
        (start, end): (Offset, Offset),
    ) -> Result<(), RecoveryError> {
        let stored = store.progress().inbox_next;
        // A program that does not count them leaves offsets in their place; one that dies early, beside ages with counts,
        // which later ones would not reach for long: nothing would be known to have expired until then.
        let counted = store.ages().map_or(0, Ages::ids);
        let mut ids = store.progress().inbox_ids.max(counted);
        let mut chunk = Chunk::default();
        let mut ages = match store.ages() {
            // What the store has was trimmed from the topic since: it has expired, and is to be swept.
            ages if stored < start => Ages::all_expired(stored, ids, ages.map_or(0, |ages| ages.swept)),
            Some(ages) => ages.clone(),
            // What is read is all that is known.
            None => Ages::beginning(ids),
        };
        let ttl_ms = self.config.inbox.as_ref().map_or(0, |inbox| millis(inbox.ttl));
        // What is read again is older.
        let mut newest_ms = ages.latest_ms().unwrap_or(i64::MIN);
        let mut next = stored.max(start);
        let mut failed = None;
        let read = kafka.read_log(Log::Inbox, self.partition, (next, end), &mut |record| {
            match unpack(record.key, record.value) {
                Ok(rows) => {
                    for (key, value) in rows {
                        ids += 1;
                        let date_ms = value.filter(|_| is_inbox_key(key)).and_then(inbox_date_ms);
                        newest_ms = newest_ms.max(date_ms.unwrap_or(i64::MIN));
                    }
                }
                Err(error) => {
                    failed = Some(self.unreadable(record.offset, error));
                    return false;
                }
            }
            next = Offset(record.offset.0 + 1);
            ages.note(next, ids, newest_ms, ttl_ms);
            chunk.records.push(record.key, record.value);
            if chunk.records.bytes() >= CHUNK_BYTES {
                failed = chunk.write(store, next, ids, &ages).err();
            }
            failed.is_none()
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let reached = if read.is_ok() { end.max(stored) } else { next };
        chunk.write(store, reached, ids, &ages)?;
        read?;
        Ok(())
    }

    fn unreadable(&self, at: Offset, error: MalformedPack) -> StoreError {
        StoreError::Refused(format!(
            "the record at offset {at} of the inbox's topic (partition {}) cannot be read: {error}; it was not written by \
             this deployment, or it is damaged, so repetitions could not be told; put back a copy of the store that ends \
             behind it, or delete the deployment and deploy it again to begin anew",
            self.partition
        ))
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

/// Records that are not in the store yet; all of them can be read.
#[derive(Default)]
struct Chunk {
    records: Run,
}

impl Chunk {
    fn write(&mut self, store: &mut Store, next: Offset, ids: u64, ages: &Ages) -> Result<(), StoreError> {
        let progress = Progress { inbox_next: next, inbox_ids: ids, ..store.progress() };
        let records = self.records.iter();
        let rows = records.filter_map(|(key, value)| unpack(key, value).ok()).flatten();
        // In log order: of two rows of an id the later one stays.
        let rows = rows.filter(|(key, _)| is_inbox_key(key));
        let ages = ages.encode();
        let rest = [(INBOX_AGES, Some(ages.as_slice()))];
        store.write(rows.chain(rest), progress)?;
        self.records.clear();
        Ok(())
    }
}

//! A task's half of a commit: what there is to commit, as one value, and what happens to the task
//! once the outcome is known.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use tidemill_proto::v1::{OffsetMetadata, StoreSize};

use super::inbox::Inbox;
use super::rewrite::Again;
use super::{EditedIn, Task, TaskConfig, TaskError, numbers, rewrite};
use crate::config::deployment::Guarantee;
use crate::effects::Emitted;
use crate::ports::{ChangelogRows, TaskOffset};
use crate::record::Offset;
use crate::store::{
    INBOX_AGES, POSITION, Position, PositionGuarantee, PositionInput, Progress, Store, StoreError, Table,
    packed_rows,
};

/// Everything one task commits. The sink is given `emissions`, then `changelog`, then `offsets`; a
/// commit that the group refused may be sent again from the same value. After success
/// [`Sealed::apply_to_store`], then [`Task::committed`].
#[derive(Debug)]
pub struct Sealed {
    pub partition: i32,
    pub emissions: Vec<Emitted>,
    /// One row per distinct changed key, sorted, then those that are written once more, then the position record. None for a
    /// stateless task.
    pub changelog: Option<ChangelogRows>,
    /// Ids that were seen for the first time, packed as their topic has them; none if there are none.
    pub inbox: Option<ChangelogRows>,
    /// Every input, moved or not: the offsets are what fences a zombie.
    pub offsets: Vec<TaskOffset>,
    /// Changes of state in it that no record caused.
    pub(super) edits: u64,
    /// Records that this commit passes, or tries again.
    pub records: u64,
    /// The first of them: input and offset.
    pub(super) first: Option<(u16, i64)>,
    writer: u64,
    commit: u64,
    /// Overlays that the task had dropped by then.
    drops: u64,
    progress: Option<Progress>,
    /// Where the changelog stands at least, once it has this commit. Progress stays below while keys are to be written
    /// once more.
    changelog_next: Offset,
    /// Row of the store alone, if it changes.
    inbox_ages: Option<Vec<u8>>,
    /// Of the position record.
    inbox_horizon_ms: i64,
    inbox_start: Offset,
    applied: bool,
    store: Option<Store>,
}

impl Sealed {
    /// Numbers of the writer and of its commit, as in the position record.
    pub fn stamp(&self) -> (u64, u64) {
        (self.writer, self.commit)
    }

    /// True if an operator's change to this partition's task is part of this commit, or of one before it. One that was
    /// dropped with its overlay is not: the next commit has the number of the one that failed.
    pub fn includes(&self, partition: i32, edited: EditedIn) -> bool {
        self.partition == partition
            && (self.writer, self.drops) == (edited.writer, edited.drops)
            && edited.commit <= self.commit
    }

    /// Writes the changes to the store, as one batch. Runs on the commit thread, only after the
    /// commit is known to have succeeded. After an error the store is behind its changelog: close
    /// the task and recover.
    pub fn apply_to_store(&mut self) -> Result<(), StoreError> {
        if let (Some(store), Some(rows), Some(progress)) = (&mut self.store, &self.changelog, self.progress) {
            let ids = self.inbox.iter().flat_map(|ids| ids.values.iter()).flat_map(packed_rows);
            let ages = self.inbox_ages.as_deref().map(|ages| (INBOX_AGES, Some(ages)));
            let rows = rows.keys.iter().zip(rows.values.iter());
            let rows = rows.map(|(key, value)| (key.unwrap_or_default(), value));
            store.write(rows.chain(ids).chain(ages), progress)?;
        }
        self.applied = true;
        Ok(())
    }

    /// The store, when the task that sealed it is no more.
    pub fn into_store(mut self) -> Option<Store> {
        self.take_store()
    }

    pub(super) fn take_store(&mut self) -> Option<Store> {
        self.store.take()
    }
}

impl Task {
    /// Freezes what there is to commit. `None` while a seal is out, when nothing has happened, or when that may be
    /// a part of what a record does; after an error until everything is dropped.
    /// `wall_ms` dates the changelog rows from below.
    pub fn seal(&mut self, wall_ms: i64) -> Result<Option<Sealed>, TaskError> {
        if self.in_flight.is_some() || self.is_torn || self.pending().is_empty() {
            return Ok(None);
        }
        let prepared = self.prepare();
        // It would fail again, and whoever halts the task seals what there is first.
        self.is_torn = prepared.is_err();
        let (again, settles) = prepared?;
        self.commit += 1;
        let mut emissions = std::mem::take(&mut self.emissions);
        let latest = self.latest.standing();
        if !latest.is_empty() {
            emissions.push(Emitted::from(latest));
        }
        let mut sealed = Sealed {
            partition: self.partition,
            emissions,
            changelog: None,
            inbox: None,
            inbox_ages: None,
            inbox_horizon_ms: 0,
            inbox_start: Offset(0),
            offsets: self.task_offsets(),
            records: self.pending_records,
            edits: self.edits,
            first: self.first,
            writer: self.writer,
            commit: self.commit,
            drops: self.stats.drops,
            progress: None,
            changelog_next: Offset(0),
            applied: false,
            store: None,
        };
        if let Some(store) = self.store.take() {
            if let Some(date_ms) = self.inbox.as_mut().and_then(Inbox::named_ms) {
                self.view.set_row(Table::Inbox, numbers::ROW, Some(&self.numbers.encode(date_ms)));
            }
            let (changes, ids) = self.view.freeze().ok_or(TaskError::Misuse("the view is frozen already"))?;
            match (&mut self.inbox, store.position()) {
                (Some(inbox), _) => {
                    (sealed.inbox_horizon_ms, sealed.inbox_start) = inbox.seal();
                    sealed.inbox_ages = inbox.ages(store.swept());
                }
                // For a later revision with an inbox: what was trimmed stays trimmed.
                (None, Some(position)) => {
                    sealed.inbox_horizon_ms = position.inbox_horizon_ms;
                    sealed.inbox_start = Offset(position.inbox_start);
                }
                (None, None) => {}
            }
            let seen = (ids.keys.len(), ids.rows);
            let ids = (ids.rows > 0).then_some(ids);
            sealed.inbox = ids.map(|ids| ChangelogRows {
                partition: self.partition,
                keys: ids.keys,
                values: ids.values,
                stamp: None,
            });
            let mut rows = ChangelogRows {
                partition: self.partition,
                keys: changes.keys,
                values: changes.values,
                stamp: match self.config.guarantee {
                    Guarantee::ExactlyOnce => None,
                    Guarantee::AtLeastOnce => Some((self.writer, self.commit)),
                },
            };
            rewrite::add_missing(&mut rows, again);
            rows.keys.push(Some(POSITION));
            let position = Position {
                inbox_horizon_ms: sealed.inbox_horizon_ms,
                inbox_start: sealed.inbox_start.0,
                ..self.position()
            };
            rows.values.push(Some(&position.encode_to_vec()));
            let held = store.progress();
            let before = Progress { changelog_next: held.changelog_next.max(self.rewrites.read_to), ..held };
            let mut after = self.progress_after(before, rows.keys.len(), seen, wall_ms);
            sealed.changelog_next = after.changelog_next;
            if !settles {
                (after.changelog_next, after.closed) = (held.changelog_next, held.closed);
            }
            sealed.progress = Some(after);
            sealed.changelog = Some(rows);
            sealed.store = Some(store);
        }
        self.outbox.seal();
        self.clear_pending();
        self.in_flight = Some(self.commit);
        Ok(Some(sealed))
    }

    /// Reads what a seal has to know: what it writes once more, and whether nothing is left to be then.
    fn prepare(&mut self) -> Result<(Again, bool), TaskError> {
        self.sweep()?;
        let again = self.rewritten()?;
        self.view.settle_sizes()?;
        Ok(again)
    }

    /// The commit succeeded and is in the store: the store comes home, and what was frozen may be
    /// forgotten.
    pub fn committed(&mut self, sealed: Sealed) -> Result<(), TaskError> {
        if !sealed.applied {
            return Err(TaskError::Misuse("a commit is applied to the store before it is reported"));
        }
        let offsets: Vec<Offset> = sealed.offsets.iter().map(|offset| offset.offset).collect();
        let (horizon_ms, start) = (sealed.inbox_horizon_ms, sealed.inbox_start);
        self.wrote(sealed.changelog.as_ref(), sealed.changelog_next);
        self.take_back(sealed)?;
        self.view.committed();
        self.outbox.committed();
        if let (Some(inbox), Some(store)) = (&mut self.inbox, &self.store) {
            let progress = store.progress();
            inbox.committed(horizon_ms, progress.inbox_next, progress.inbox_ids);
            store.expire_inbox(inbox.expired_before_ms(), inbox.expired());
            self.trim = inbox.trim(start).or(self.trim);
        }
        self.committed = offsets;
        self.adopting = false;
        // What is to be written once more is as much part of it as the position.
        self.opening &= !self.rewrites.keys.is_empty();
        self.stats.commits += 1;
        let (committed, parked, numbers) = (&self.committed, &self.parked, &self.numbers);
        self.suspects.retain(|suspect| {
            let ahead = committed
                .get(usize::from(suspect.input))
                .is_none_or(|committed| suspect.offset as u64 >= committed.0);
            // One that the broker refused is not to be sent again when it is tried again.
            ahead
                || suspect.refused.is_some()
                    && parked.has(numbers.number(suspect.input), suspect.offset as u64)
        });
        Ok(())
    }

    /// To be asked after every commit: up to where the inbox's topic may be trimmed, if that is news. What
    /// is below had expired by a commit that is known.
    pub fn trim(&mut self) -> Option<Offset> {
        self.trim.take()
    }

    pub(super) fn take_back(&mut self, mut sealed: Sealed) -> Result<(), TaskError> {
        if (self.partition, self.writer, self.in_flight)
            != (sealed.partition, sealed.writer, Some(sealed.commit))
        {
            return Err(TaskError::Misuse("this seal is not the one that is out"));
        }
        self.in_flight = None;
        self.store = sealed.take_store();
        Ok(())
    }

    fn task_offsets(&self) -> Vec<TaskOffset> {
        let offsets =
            self.positions().zip(&self.config.inputs).map(|((partition, offset), input)| TaskOffset {
                partition,
                offset,
                metadata: match self.store {
                    Some(_) => String::new(),
                    None => encode_metadata(&self.config, &input.topic_id, Some(self.first(partition.input))),
                },
            });
        offsets.collect()
    }

    fn first(&self, input: u16) -> Offset {
        self.first_offsets.get(usize::from(input)).copied().unwrap_or_default()
    }

    fn position(&self) -> Position {
        let offsets = self.next.iter().zip(&self.first_offsets);
        let inputs = self.config.inputs.iter().zip(self.numbers.bound()).zip(offsets);
        let inputs = inputs.map(|((input, &number), (next, first))| PositionInput {
            topic: input.topic.clone(),
            topic_id: input.topic_id.clone(),
            offset: next.0,
            unbound: false,
            first: Some(first.0),
            number: Some(number.into()),
        });
        let guarantee = match self.config.guarantee {
            Guarantee::ExactlyOnce => PositionGuarantee::ExactlyOnce,
            Guarantee::AtLeastOnce => PositionGuarantee::AtLeastOnce,
        };
        Position {
            inputs: inputs.chain(self.unbound.iter().cloned()).collect(),
            revision: self.config.revision,
            incarnation: self.config.incarnation.clone(),
            guarantee: guarantee.into(),
            writer: self.writer,
            commit: self.commit,
            // The seal's to say.
            inbox_horizon_ms: 0,
            inbox_start: 0,
            outbox_next: self.outbox.next(),
            stores: self
                .view
                .sizes()
                .map(|(store, bytes)| StoreSize { store: store.to_owned(), bytes })
                .collect(),
        }
    }

    /// Where changelog and inbox stand at least, once this commit has succeeded: each record took an offset,
    /// and so did the transaction's marker. A lower bound, because aborted records took some too.
    fn progress_after(
        &self,
        before: Progress,
        rows: usize,
        (packed, ids): (usize, u64),
        wall_ms: i64,
    ) -> Progress {
        let marker = u64::from(self.config.guarantee == Guarantee::ExactlyOnce);
        Progress {
            changelog_next: Offset(before.changelog_next.0 + rows as u64 + marker),
            changelog_ms: before.changelog_ms.max(wall_ms),
            inbox_next: match packed {
                0 => before.inbox_next,
                packed => Offset(before.inbox_next.0 + packed as u64 + marker),
            },
            inbox_ids: before.inbox_ids + ids,
            closed: Some((self.writer, self.commit)),
        }
    }
}

/// Metadata of a stateless task's committed offset.
pub(super) fn encode_metadata(config: &TaskConfig, topic_id: &str, first: Option<Offset>) -> String {
    let metadata = OffsetMetadata {
        revision: config.revision,
        incarnation: config.incarnation.clone(),
        topic_id: topic_id.to_owned(),
        first: first.map(|first| first.0),
    };
    STANDARD.encode(metadata.encode_to_vec())
}

/// None when it is empty or not ours: an operator's tool writes offsets without it, or with its own.
pub(super) fn decode_metadata(text: &str) -> Option<OffsetMetadata> {
    if text.is_empty() {
        return None;
    }
    OffsetMetadata::decode(STANDARD.decode(text).ok()?.as_slice()).ok()
}

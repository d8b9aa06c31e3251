//! What the node fetched by itself into batches.

use super::Consumer;
use super::slot::flush;
use crate::kafka::fetch::{Refusal, Room, What};
use crate::ports::Taken;

impl Consumer {
    /// Copies records out of fetched chunks, oldest chunk first, until a limit of the batch is reached.
    pub(super) fn copy_fetched(&mut self, out: &mut Vec<Taken>) {
        let Some(mut fetcher) = self.fetcher.take() else { return };
        let mut room = Room { rows: self.spec.batch_records, bytes: self.spec.batch_bytes };
        let mut touched: Vec<usize> = Vec::new();
        while let Some(arrival) = fetcher.front() {
            let is_of_run = |index: &usize| self.slots[*index].run == Some(arrival.run);
            let Some(index) = self.slot(arrival.partition).filter(is_of_run) else {
                fetcher.pop();
                continue;
            };
            let slot = &mut self.slots[index];
            let refusal = match &mut arrival.what {
                What::Failed(refusal) => Some(refusal.clone()),
                What::Chunk(chunk) => {
                    if slot.batch.is_empty() && !chunk.is_empty() {
                        slot.open();
                        touched.push(index);
                    }
                    let topic = &self.spec.inputs[usize::from(slot.id.input)];
                    let mut saw = |offset: i64, epoch: i32| {
                        if slot.epoch.replace(epoch) != epoch {
                            self.spec.epochs.saw(topic, slot.id.partition, offset, epoch);
                        }
                    };
                    let taken =
                        chunk.take(slot.next, &mut room, self.spec.wants_headers, &mut slot.batch, &mut saw);
                    slot.next = slot.batch.offsets.last().map_or(slot.next, |last| last + 1);
                    match taken {
                        Err(damage) => Some(Refusal::damaged(&damage)),
                        Ok(()) if !chunk.is_empty() => break,
                        Ok(()) => {
                            // The last may have been a marker, or a batch that was left out.
                            if slot.epoch.replace(chunk.leader_epoch) != chunk.leader_epoch {
                                self.spec.epochs.saw(
                                    topic,
                                    slot.id.partition,
                                    chunk.next - 1,
                                    chunk.leader_epoch,
                                );
                            }
                            slot.position = Some(chunk.next);
                            None
                        }
                    }
                }
            };
            fetcher.pop();
            if let Some(refusal) = refusal {
                flush(&mut self.slots[index], out);
                let (partition, reason) =
                    (self.slots[index].id, self.refusal(self.slots[index].id, &refusal));
                self.slots[index].stop();
                fetcher.stop(partition);
                out.push(Taken::Failed { partition, reason });
            }
        }
        touched.into_iter().for_each(|index| flush(&mut self.slots[index], out));
        self.fetcher = Some(fetcher);
    }
}

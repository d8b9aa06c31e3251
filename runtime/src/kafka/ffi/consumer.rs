//! A consumer handle: batches from its queue, assignment, positions, offsets.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka_sys as rd;

use super::callbacks::{self, Change, Rebalance};
use super::partitions::Partitions;
use super::{Client, Code, KafkaError, Kind, Message, check, consume, millis};
use crate::ports::Membership;

/// How long the group may take to let a leaving member go before it is left behind.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// How long a closing group may take to end by itself before an assignment of its is answered.
const ANSWER_WAIT: Duration = Duration::from_millis(100);

/// A raw consumer. Not thread-safe in use: one thread polls it and answers its rebalances.
///
/// Field order is drop order: messages, then the queues, then the client.
pub(in crate::kafka) struct Consumer {
    pending: VecDeque<Message>,
    /// Where a consume call puts its pointers; empty between calls.
    scratch: Vec<*mut rd::rd_kafka_message_t>,
    queue: Queue,
    /// Where answers to commits of offsets come.
    answers: Queue,
    /// Ends with the last of those who have it.
    client: Arc<Client>,
}

// SAFETY: `scratch` holds no pointer between calls; the other fields are `Send` or, as the queue,
// reference-counted objects of the thread-safe client.
unsafe impl Send for Consumer {}

struct Queue(*mut rd::rd_kafka_queue_t);

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: an owned reference to the queue; the event callback is taken off first, because
        // a broker thread may still be filling the queue.
        unsafe {
            rd::rd_kafka_queue_cb_event_enable(self.0, None, std::ptr::null_mut());
            rd::rd_kafka_queue_destroy(self.0);
        }
    }
}

impl Consumer {
    pub fn new(settings: &[(String, String)], label: &str) -> Result<Consumer, KafkaError> {
        let client = Arc::new(Client::new(Kind::Consumer, settings, label)?);
        // SAFETY: the handle is live. The main queue is forwarded to the consumer queue, so that
        // one queue carries records, rebalances and errors; its event callback gets the same
        // opaque as the client's callbacks, which outlives the queue (field order).
        let queue = unsafe {
            check(rd::rd_kafka_poll_set_consumer(client.raw()) as i32)?;
            let queue = rd::rd_kafka_queue_get_consumer(client.raw());
            if queue.is_null() {
                return Err(KafkaError::new(Code::RD_KAFKA_RESP_ERR__STATE, "the consumer has no queue"));
            }
            let opaque = std::ptr::from_ref(client.shared()).cast_mut().cast();
            rd::rd_kafka_queue_cb_event_enable(queue, Some(callbacks::on_ready), opaque);
            Queue(queue)
        };
        // SAFETY: the handle is live, and outlives the queue (field order).
        let answers = Queue(unsafe { rd::rd_kafka_queue_new(client.raw()) });
        Ok(Consumer { pending: VecDeque::new(), scratch: Vec::new(), queue, answers, client })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The same, for a thread that asks something and may outlive the consumer.
    pub fn shared_client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// Takes up to `max` messages from the queue into the pending ones without waiting, and serves
    /// rebalances and errors that were queued among them. Counts as a poll (`max.poll.interval.ms`).
    pub fn fill(&mut self, max: usize) {
        self.scratch.resize(max, std::ptr::null_mut());
        // SAFETY: the queue is live and the array holds `max` pointers. The call returns how many
        // it wrote, each an owned message.
        let taken =
            unsafe { rd::rd_kafka_consume_batch_queue(self.queue.0, 0, self.scratch.as_mut_ptr(), max) };
        let taken = usize::try_from(taken).unwrap_or(0);
        for &message in &self.scratch[..taken] {
            if let Some(message) = NonNull::new(message) {
                // SAFETY: as above.
                self.pending.push_back(unsafe { Message::from_raw(message) });
            }
        }
        self.scratch.clear();
    }

    /// Takes a batch, waiting up to `deadline` for the first message or rebalance, or until `is_over` after somebody set
    /// the client ready.
    pub fn fill_wait(&mut self, max: usize, deadline: Instant, is_over: impl Fn() -> bool) {
        loop {
            self.fill(max);
            if !self.pending.is_empty() || self.client.shared.has_rebalances() || is_over() {
                return;
            }
            if !self.client.shared.wait_ready(deadline) {
                return;
            }
        }
    }

    pub fn front(&self) -> Option<&Message> {
        self.pending.front()
    }

    pub fn pop(&mut self) {
        self.pending.pop_front();
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// True when a message of the partition has been taken from the queue but not popped.
    pub fn has_pending_of(&self, topic: &str, partition: i32) -> bool {
        self.pending.iter().any(|m| m.partition() == partition && m.topic() == topic)
    }

    /// Throws away what was taken of one partition.
    pub fn discard(&mut self, topic: &str, partition: i32) {
        self.pending.retain(|m| m.partition() != partition || m.topic() != topic);
    }

    pub fn discard_all(&mut self) {
        self.pending.clear();
    }

    pub fn rebalances(&self) -> Vec<Rebalance> {
        self.client.shared.rebalances()
    }

    /// The group metadata as of now. Only KIP-848 may use it outside the rebalance callback.
    pub fn membership(&self) -> Membership {
        // SAFETY: the handle is a live consumer.
        unsafe { callbacks::membership(self.client.raw()) }
    }

    pub fn assignment_lost(&self) -> bool {
        // SAFETY: the handle is live.
        unsafe { rd::rd_kafka_assignment_lost(self.client.raw()) != 0 }
    }

    pub fn subscribe(&self, topics: &[String]) -> Result<(), KafkaError> {
        let mut list = Partitions::with_capacity(topics.len());
        topics.iter().for_each(|topic| list.add(topic, -1, i64::from(rd::RD_KAFKA_OFFSET_INVALID), ""));
        // SAFETY: live handle and list; the list is copied.
        check(unsafe { rd::rd_kafka_subscribe(self.client.raw(), list.raw()) } as i32)
    }

    /// Replaces the whole assignment; `None` takes everything away.
    pub fn assign(&self, list: Option<&Partitions>) -> Result<(), KafkaError> {
        let list = list.map_or(std::ptr::null_mut(), Partitions::raw);
        // SAFETY: live handle; the list is live or null and is copied.
        check(unsafe { rd::rd_kafka_assign(self.client.raw(), list) } as i32)
    }

    pub fn incremental_assign(&self, list: &Partitions) -> Result<(), KafkaError> {
        // SAFETY: live handle and list; the error object is ours.
        unsafe { consume(rd::rd_kafka_incremental_assign(self.client.raw(), list.raw())) }
    }

    pub fn incremental_unassign(&self, list: &Partitions) -> Result<(), KafkaError> {
        // SAFETY: live handle and list; the error object is ours.
        unsafe { consume(rd::rd_kafka_incremental_unassign(self.client.raw(), list.raw())) }
    }

    pub fn pause(&self, list: &Partitions) -> Result<(), KafkaError> {
        // SAFETY: live handle and list.
        check(unsafe { rd::rd_kafka_pause_partitions(self.client.raw(), list.raw()) } as i32)?;
        first_error(list)
    }

    pub fn resume(&self, list: &Partitions) -> Result<(), KafkaError> {
        // SAFETY: live handle and list.
        check(unsafe { rd::rd_kafka_resume_partitions(self.client.raw(), list.raw()) } as i32)?;
        first_error(list)
    }

    /// Moves a partition and waits until the fetcher has taken the new position, so that nothing
    /// fetched before can come out after.
    pub fn seek(&self, list: &Partitions, wait: Duration) -> Result<(), KafkaError> {
        // SAFETY: live handle and list; per-partition results are written into the list.
        unsafe { consume(rd::rd_kafka_seek_partitions(self.client.raw(), list.raw(), millis(wait)))? };
        first_error(list)
    }

    /// The offset after the last message or transaction marker handed to the application, and that one's
    /// leader epoch; `None` when nothing was since the last seek or assignment.
    pub fn position(&self, topic: &str, partition: i32) -> Option<(i64, i32)> {
        let list = Partitions::one(topic, partition, i64::from(rd::RD_KAFKA_OFFSET_INVALID));
        // SAFETY: live handle and list.
        check(unsafe { rd::rd_kafka_position(self.client.raw(), list.raw()) } as i32).ok()?;
        list.rows()
            .first()
            .filter(|row| row.error.is_none() && row.offset >= 0)
            .map(|row| (row.offset, row.leader_epoch))
    }

    /// Sends offsets for the group; [`Consumer::answer`] tells what became of them.
    pub fn commit(&self, list: &Partitions) -> Result<(), KafkaError> {
        // SAFETY: live handle, list and queue; the list is copied, and without a callback the answer
        // comes as an event on the queue.
        check(unsafe {
            rd::rd_kafka_commit_queue(
                self.client.raw(),
                list.raw(),
                self.answers.0,
                None,
                std::ptr::null_mut(),
            )
        } as i32)
    }

    /// The coordinator's answer to a commit; `None` when it has not come within `wait`.
    pub fn answer(&self, wait: Duration) -> Option<Result<(), KafkaError>> {
        // SAFETY: the queue is live; the event is ours, and the list read from it lives as long as
        // the event.
        unsafe {
            let event = rd::rd_kafka_queue_poll(self.answers.0, millis(wait));
            if event.is_null() {
                return None;
            }
            let rows = super::partitions::rows(rd::rd_kafka_event_topic_partition_list(event));
            let code = super::admin::event_code(event);
            rd::rd_kafka_event_destroy(event);
            Some(check(code).and_then(|()| rows.into_iter().find_map(|row| row.error).map_or(Ok(()), Err)))
        }
    }

    /// The group's committed offsets, written into the list with an error per partition.
    pub fn committed(&self, list: &Partitions, wait: Duration) -> Result<(), KafkaError> {
        // SAFETY: live handle and list.
        check(unsafe { rd::rd_kafka_committed(self.client.raw(), list.raw(), millis(wait)) } as i32)
    }

    /// Closes so that the group knows. With `leave` even a static member gives its partitions up at
    /// once: it unsubscribes first, because a static member that merely closes does not say so.
    /// Whoever does not call this just disappears. No rebalance may wait for an answer of ours.
    pub fn close(&mut self, leave: bool) {
        self.pending.clear();
        let deadline = Instant::now() + CLOSE_WAIT;
        self.client.shared.answer_in_callback(true);
        if leave {
            // SAFETY: live handle; rebalance callbacks now answer for themselves.
            let asked = check(unsafe { rd::rd_kafka_unsubscribe(self.client.raw()) } as i32);
            // The member id goes when the leave request is sent. Closing before that would make
            // librdkafka keep a static member's place.
            if asked.is_ok()
                && !self.serve_until(deadline, |consumer| consumer.membership().member_id.is_empty())
            {
                tracing::warn!("the group did not let this consumer go in time; it will expire");
            }
        }
        self.drain();
        self.client.shared.answer_in_callback(false);
        if !self.end_group(deadline) {
            tracing::warn!("a consumer did not close in time and is left behind");
            // Destroying it may then take for ever, so somebody else does.
            self.client.abandon();
        }
    }

    /// Ends the group of a closing consumer; false if that was not seen before the deadline.
    ///
    /// librdkafka 2.12 takes *any* answer, from the moment it is closing, for the one that gives all
    /// partitions back, needs one at most, and destroys without a reply what was asked before the group
    /// ended and is served after (`rd_kafka_cgrp_op_serve`). So one answer is given, to the revocation
    /// that closing brings or, if the group still waits after [`ANSWER_WAIT`], to whatever else it asked;
    /// and by a thread of its own, which alone is stuck if the group has ended meanwhile after all.
    fn end_group(&mut self, deadline: Instant) -> bool {
        // SAFETY: live handle; the queue is the consumer's own, which is what we poll.
        let asked = unsafe { consume(rd::rd_kafka_consumer_close_queue(self.client.raw(), self.queue.0)) };
        if asked.is_err() {
            return false;
        }
        let mut answer_at: Option<Instant> = None;
        let mut answer: Option<JoinHandle<()>> = None;
        let ended = self.serve_until(deadline, |consumer| {
            for event in consumer.rebalances() {
                let revokes = event.change != Change::Assign && !event.partitions.is_empty();
                let at = Instant::now() + if revokes { Duration::ZERO } else { ANSWER_WAIT };
                answer_at = Some(answer_at.map_or(at, |before| before.min(at)));
            }
            // SAFETY: live handle.
            if unsafe { rd::rd_kafka_consumer_closed(consumer.client.raw()) } != 0 {
                return true;
            }
            if answer.is_none() && answer_at.is_some_and(|at| at <= Instant::now()) {
                answer = consumer.client.give_all_back();
            }
            false
        });
        ended && answer.is_none_or(|thread| self.serve_until(deadline, |_| thread.is_finished()))
    }

    /// Serves and drops everything that is queued.
    fn drain(&mut self) {
        loop {
            self.pending.clear();
            self.fill(64);
            if self.pending.is_empty() {
                return;
            }
        }
    }

    /// Polls, dropping what comes, until the condition holds; false when the deadline came first.
    fn serve_until(&mut self, deadline: Instant, mut done: impl FnMut(&Consumer) -> bool) -> bool {
        while !done(self) {
            self.fill(64);
            self.pending.clear();
            if Instant::now() >= deadline {
                return false;
            }
            self.client.shared.wait_ready((Instant::now() + Duration::from_millis(5)).min(deadline));
        }
        true
    }
}

/// The first error of any row.
fn first_error(list: &Partitions) -> Result<(), KafkaError> {
    list.rows().into_iter().find_map(|row| row.error).map_or(Ok(()), Err)
}

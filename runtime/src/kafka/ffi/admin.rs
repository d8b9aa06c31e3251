//! Admin requests: one shape for all of them. A request is posted with a reply queue, the reply is
//! one event, and everything wanted from it is copied out before it is destroyed.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use rd::rd_kafka_admin_op_t as Op;
use rdkafka_sys as rd;

use super::partitions::{Partitions, Row, row, rows};
use super::{Client, Code, KafkaError, c_string, consume, millis, text};

// The same functions as in the bindings, with codes and states as the integers they are in C.
unsafe extern "C" {
    fn rd_kafka_event_error(event: *mut rd::rd_kafka_event_t) -> c_int;
    fn rd_kafka_topic_result_error(result: *const rd::rd_kafka_topic_result_t) -> c_int;
    fn rd_kafka_ConsumerGroupDescription_state(
        description: *const rd::rd_kafka_ConsumerGroupDescription_t,
    ) -> c_int;
    fn rd_kafka_consumer_group_state_name(state: c_int) -> *const c_char;
    fn rd_kafka_error_code(error: *const rd::rd_kafka_error_t) -> c_int;
}

/// The code of an event, as an integer.
///
/// # Safety
/// `event` is live.
pub(super) unsafe fn event_code(event: *mut rd::rd_kafka_event_t) -> i32 {
    // SAFETY: by the function's contract.
    unsafe { rd_kafka_event_error(event) }
}

/// One outcome per name (of a topic or a group) of a request.
pub(in crate::kafka) type Outcomes = Vec<(String, Result<(), KafkaError>)>;

/// A topic, or the name of one and why it cannot be described.
pub(in crate::kafka) type Described = Result<TopicInfo, (String, KafkaError)>;

#[derive(Debug, Clone)]
pub(in crate::kafka) struct TopicInfo {
    pub name: String,
    /// Kafka's topic id, most and least significant half.
    pub id: (u64, u64),
    pub partitions: i32,
    /// Copies of the first partition.
    pub replication: i16,
}

#[derive(Debug, Clone)]
pub(in crate::kafka) struct GroupInfo {
    pub state: String,
    pub members: Vec<MemberInfo>,
}

#[derive(Debug, Clone)]
pub(in crate::kafka) struct MemberInfo {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub host: String,
    pub partitions: Vec<(String, i32)>,
}

/// A topic to make.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct TopicSpec<'a> {
    pub name: &'a str,
    pub partitions: i32,
    /// -1 = the broker's default.
    pub replication: i32,
    pub configs: &'a [(String, String)],
}

/// The reply to a request, destroyed when dropped.
pub(super) struct Reply(pub(super) *mut rd::rd_kafka_event_t);

impl Drop for Reply {
    fn drop(&mut self) {
        // SAFETY: owned, dropped once.
        unsafe { rd::rd_kafka_event_destroy(self.0) }
    }
}

impl Reply {
    /// What it says of each that the request named, or that was found; read while the reply lives.
    ///
    /// # Safety
    /// Both functions are those of the kind of request that this is the reply to.
    pub(super) unsafe fn results<R, T>(
        &self,
        of_event: unsafe extern "C" fn(*mut rd::rd_kafka_event_t) -> *const R,
        all: unsafe extern "C" fn(*const R, *mut usize) -> *mut *const T,
    ) -> &[*const T] {
        let mut count = 0;
        // SAFETY: by the function's contract; the array is the event's, and lives as long.
        unsafe {
            let found = all(of_event(self.0), &mut count);
            if count == 0 { &[] } else { std::slice::from_raw_parts(found, count) }
        }
    }
}

/// What a request is posted with.
pub(super) struct Post {
    pub rk: *mut rd::rd_kafka_t,
    pub options: *mut rd::rd_kafka_AdminOptions_t,
    pub queue: *mut rd::rd_kafka_queue_t,
}

impl Post {
    /// Has the brokers say whether it could be done, and do nothing.
    pub(super) fn only_validate(&self) {
        let mut reason = [0 as c_char; 256];
        // SAFETY: the options of a request are live until it is posted; the buffer is as long as told.
        unsafe {
            rd::rd_kafka_AdminOptions_set_validate_only(self.options, 1, reason.as_mut_ptr(), reason.len());
        }
    }
}

/// The longest time-out that librdkafka takes.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// A thread that was to be woken has woken by itself by then.
const WAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// A client for requests that go to a group's coordinator. One that has had no answer in time stays under way for up
/// to [`TIMEOUT_MAX`]; by then the client must be gone. Only `Admin::ask_coordinator` makes one, and sees to that.
///
/// librdkafka uses memory of such a request after its own time-out if the coordinator comes back after that, and
/// the process ends (`rd_kafka_admin_coord_request`; librdkafka issue 3663). So it is not to time out there.
///
/// It is a [`Kind::Asker`](super::Kind::Asker), with a group: librdkafka takes an answer that says "not the coordinator"
/// for a member's, and the process of a client without a group ends (`rd_kafka_handle_OffsetFetch`; issue 5040).
pub(in crate::kafka) struct Coordinator<'a>(pub &'a Client);

impl Coordinator<'_> {
    fn request(&self, op: Op, wait: Duration, post: impl FnOnce(&Post)) -> Result<Reply, KafkaError> {
        self.0.post(op, TIMEOUT_MAX, wait, post)
    }
}

impl Client {
    pub(super) fn request(
        &self,
        op: Op,
        wait: Duration,
        post: impl FnOnce(&Post),
    ) -> Result<Reply, KafkaError> {
        self.post(op, wait, wait + Duration::from_secs(1), post)
    }

    /// Posts a request, which librdkafka gives up after `timeout`, and waits for its reply for as long as `patience`.
    fn post(
        &self,
        op: Op,
        timeout: Duration,
        patience: Duration,
        post: impl FnOnce(&Post),
    ) -> Result<Reply, KafkaError> {
        // SAFETY: queue and options are made, used and destroyed here; a reply that comes after the
        // queue is gone is freed by librdkafka. The event is owned by `Reply`.
        unsafe {
            let queue = rd::rd_kafka_queue_new(self.raw());
            let options = rd::rd_kafka_AdminOptions_new(self.raw(), op);
            let mut reason = [0 as c_char; 256];
            rd::rd_kafka_AdminOptions_set_request_timeout(
                options,
                millis(timeout),
                reason.as_mut_ptr(),
                reason.len(),
            );
            if matches!(op, Op::RD_KAFKA_ADMIN_OP_CREATETOPICS | Op::RD_KAFKA_ADMIN_OP_DELETETOPICS) {
                rd::rd_kafka_AdminOptions_set_operation_timeout(
                    options,
                    millis(timeout),
                    reason.as_mut_ptr(),
                    reason.len(),
                );
            }
            post(&Post { rk: self.raw(), options, queue });
            let event = rd::rd_kafka_queue_poll(queue, millis(patience));
            rd::rd_kafka_AdminOptions_destroy(options);
            rd::rd_kafka_queue_destroy(queue);
            if event.is_null() {
                return Err(KafkaError::new(Code::RD_KAFKA_RESP_ERR__TIMED_OUT, "no answer in time"));
            }
            let reply = Reply(event);
            match event_code(event) {
                0 => Ok(reply),
                code => Err(KafkaError {
                    text: text(rd::rd_kafka_event_error_string(event)),
                    ..KafkaError::from_code(code)
                }),
            }
        }
    }

    pub fn create_topic(&self, spec: &TopicSpec<'_>, wait: Duration) -> Result<(), KafkaError> {
        self.create(spec, false, wait)
    }

    /// Makes a topic, or with `validate_only` asks whether it could be made.
    pub(super) fn create(
        &self,
        spec: &TopicSpec<'_>,
        validate_only: bool,
        wait: Duration,
    ) -> Result<(), KafkaError> {
        let name = c_string(spec.name);
        let mut reason = [0 as c_char; 256];
        // SAFETY: the new-topic object is made, used and destroyed here.
        unsafe {
            let topic = rd::rd_kafka_NewTopic_new(
                name.as_ptr(),
                spec.partitions,
                spec.replication,
                reason.as_mut_ptr(),
                reason.len(),
            );
            if topic.is_null() {
                return Err(KafkaError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG, text(reason.as_ptr())));
            }
            for (name, value) in spec.configs {
                rd::rd_kafka_NewTopic_set_config(topic, c_string(name).as_ptr(), c_string(value).as_ptr());
            }
            let mut topics = [topic];
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_CREATETOPICS, wait, |post| {
                if validate_only {
                    post.only_validate();
                }
                rd::rd_kafka_CreateTopics(post.rk, topics.as_mut_ptr(), 1, post.options, post.queue);
            });
            rd::rd_kafka_NewTopic_destroy(topic);
            let reply = reply?;
            let results = reply
                .results(rd::rd_kafka_event_CreateTopics_result, rd::rd_kafka_CreateTopics_result_topics);
            first(topic_outcomes(results))
        }
    }

    pub fn delete_topics(&self, names: &[String], wait: Duration) -> Result<Outcomes, KafkaError> {
        // SAFETY: the objects are made, used and destroyed here; results are read while the reply lives.
        unsafe {
            let mut topics: Vec<_> =
                names.iter().map(|name| rd::rd_kafka_DeleteTopic_new(c_string(name).as_ptr())).collect();
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DELETETOPICS, wait, |post| {
                rd::rd_kafka_DeleteTopics(
                    post.rk,
                    topics.as_mut_ptr(),
                    topics.len(),
                    post.options,
                    post.queue,
                );
            });
            rd::rd_kafka_DeleteTopic_destroy_array(topics.as_mut_ptr(), topics.len());
            let reply = reply?;
            let results = reply
                .results(rd::rd_kafka_event_DeleteTopics_result, rd::rd_kafka_DeleteTopics_result_topics);
            Ok(topic_outcomes(results))
        }
    }

    /// Adds partitions, or with `validate_only` asks whether they could be added.
    pub fn create_partitions(
        &self,
        topic: &str,
        total: usize,
        validate_only: bool,
        wait: Duration,
    ) -> Result<(), KafkaError> {
        let name = c_string(topic);
        let mut reason = [0 as c_char; 256];
        // SAFETY: as for `create_topic`.
        unsafe {
            let new = rd::rd_kafka_NewPartitions_new(name.as_ptr(), total, reason.as_mut_ptr(), reason.len());
            if new.is_null() {
                return Err(KafkaError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG, text(reason.as_ptr())));
            }
            let mut list = [new];
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_CREATEPARTITIONS, wait, |post| {
                if validate_only {
                    post.only_validate();
                }
                rd::rd_kafka_CreatePartitions(post.rk, list.as_mut_ptr(), 1, post.options, post.queue);
            });
            rd::rd_kafka_NewPartitions_destroy(new);
            let reply = reply?;
            let results = reply.results(
                rd::rd_kafka_event_CreatePartitions_result,
                rd::rd_kafka_CreatePartitions_result_topics,
            );
            first(topic_outcomes(results))
        }
    }

    pub fn describe_topics(&self, names: &[String], wait: Duration) -> Result<Vec<Described>, KafkaError> {
        // SAFETY: descriptions are live while they are read; a topic id is never null in one.
        self.read_topics(names, wait, |_| {}, |topic| unsafe { topic_info(topic) })
    }

    /// Describes topics, with what `prepare` sets in the options; `read` is given each description while it lives.
    pub(super) fn read_topics<T>(
        &self,
        names: &[String],
        wait: Duration,
        prepare: impl FnOnce(&Post),
        read: impl Fn(*const rd::rd_kafka_TopicDescription_t) -> T,
    ) -> Result<Vec<T>, KafkaError> {
        let names: Vec<_> = names.iter().map(|name| c_string(name)).collect();
        let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the collection copies the names and is destroyed here; descriptions are read
        // while the reply lives.
        unsafe {
            let topics = rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait, |post| {
                prepare(post);
                rd::rd_kafka_DescribeTopics(post.rk, topics, post.options, post.queue);
            });
            rd::rd_kafka_TopicCollection_destroy(topics);
            let reply = reply?;
            let found = reply
                .results(rd::rd_kafka_event_DescribeTopics_result, rd::rd_kafka_DescribeTopics_result_topics);
            Ok(found.iter().map(|&topic| read(topic)).collect())
        }
    }

    /// Deletes records below the offset of each row.
    pub fn delete_records(&self, before: &Partitions, wait: Duration) -> Result<Vec<Row>, KafkaError> {
        // SAFETY: as for `create_topic`; the rows are copied while the reply lives.
        unsafe {
            let request = rd::rd_kafka_DeleteRecords_new(before.raw());
            let mut requests = [request];
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DELETERECORDS, wait, |post| {
                rd::rd_kafka_DeleteRecords(post.rk, requests.as_mut_ptr(), 1, post.options, post.queue);
            });
            rd::rd_kafka_DeleteRecords_destroy(request);
            let reply = reply?;
            Ok(rows(rd::rd_kafka_DeleteRecords_result_offsets(rd::rd_kafka_event_DeleteRecords_result(
                reply.0,
            ))))
        }
    }

    /// Offsets by specification: each row's offset is -2 for the log start, -1 for the end, or a
    /// time in milliseconds. `committed` sees the last stable offset as the end.
    pub fn list_offsets(
        &self,
        specs: &Partitions,
        committed: bool,
        wait: Duration,
    ) -> Result<Vec<Row>, KafkaError> {
        use rd::rd_kafka_IsolationLevel_t as Isolation;
        let isolation = match committed {
            true => Isolation::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
            false => Isolation::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
        };
        // SAFETY: infos and their rows are read while the reply lives.
        unsafe {
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_LISTOFFSETS, wait, |post| {
                let _ = consume(rd::rd_kafka_AdminOptions_set_isolation_level(post.options, isolation));
                rd::rd_kafka_ListOffsets(post.rk, specs.raw(), post.options, post.queue);
            })?;
            let infos =
                reply.results(rd::rd_kafka_event_ListOffsets_result, rd::rd_kafka_ListOffsets_result_infos);
            let infos = infos.iter();
            Ok(infos.map(|&info| row(rd::rd_kafka_ListOffsetsResultInfo_topic_partition(info))).collect())
        }
    }

    /// Wakes librdkafka's threads of the brokers that lead these partitions: asks those for the ends of the logs, and
    /// waits for no answer.
    pub fn wake_leaders<'a>(&self, partitions: impl IntoIterator<Item = (&'a str, i32)>) {
        let mut ends = Partitions::with_capacity(0);
        for (topic, partition) in partitions {
            ends.add(topic, partition, i64::from(rd::RD_KAFKA_OFFSET_END), "");
        }
        let _ = self.post(Op::RD_KAFKA_ADMIN_OP_LISTOFFSETS, WAKE_TIMEOUT, Duration::ZERO, |post| {
            // SAFETY: what a request is posted with is live; the list is copied.
            unsafe { rd::rd_kafka_ListOffsets(post.rk, ends.raw(), post.options, post.queue) }
        });
    }

    pub fn list_groups(&self, wait: Duration) -> Result<Vec<String>, KafkaError> {
        // SAFETY: listings are read while the reply lives.
        unsafe {
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPS, wait, |post| {
                rd::rd_kafka_ListConsumerGroups(post.rk, post.options, post.queue);
            })?;
            let found = reply.results(
                rd::rd_kafka_event_ListConsumerGroups_result,
                rd::rd_kafka_ListConsumerGroups_result_valid,
            );
            Ok(found.iter().map(|&group| text(rd::rd_kafka_ConsumerGroupListing_group_id(group))).collect())
        }
    }
}

impl Coordinator<'_> {
    pub fn describe_group(&self, group: &str, wait: Duration) -> Result<GroupInfo, KafkaError> {
        // SAFETY: the description is live while it is read.
        let found = self.read_group(group, wait, |_| {}, |group| unsafe { group_info(group) })?;
        found.unwrap_or_else(|| {
            Err(KafkaError::new(Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND, "no such group"))
        })
    }

    /// As [`Client::read_topics`], of one group; none if there is no description.
    pub(super) fn read_group<T>(
        &self,
        group: &str,
        wait: Duration,
        prepare: impl FnOnce(&Post),
        read: impl FnOnce(*const rd::rd_kafka_ConsumerGroupDescription_t) -> T,
    ) -> Result<Option<T>, KafkaError> {
        let name = c_string(group);
        let mut names = [name.as_ptr()];
        // SAFETY: descriptions are read while the reply lives.
        unsafe {
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, wait, |post| {
                prepare(post);
                rd::rd_kafka_DescribeConsumerGroups(post.rk, names.as_mut_ptr(), 1, post.options, post.queue);
            })?;
            let found = reply.results(
                rd::rd_kafka_event_DescribeConsumerGroups_result,
                rd::rd_kafka_DescribeConsumerGroups_result_groups,
            );
            Ok(found.first().map(|&group| read(group)))
        }
    }

    /// Committed offsets of a group: of the given partitions, or of all it has. `stable`: an offset that a transaction
    /// has not decided on is an error of its partition, and not what was before it.
    pub fn group_offsets(
        &self,
        group: &str,
        partitions: Option<&Partitions>,
        stable: bool,
        wait: Duration,
    ) -> Result<Vec<Row>, KafkaError> {
        let name = c_string(group);
        let list = partitions.map_or(std::ptr::null_mut(), Partitions::raw);
        // SAFETY: the request copies the list and is destroyed here; the error object of the option, if there is one,
        // is ours; rows are copied while the reply lives.
        unsafe {
            let request = rd::rd_kafka_ListConsumerGroupOffsets_new(name.as_ptr(), list);
            let mut requests = [request];
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS, wait, |post| {
                let stable = c_int::from(stable);
                // Refused only for a value that is neither 0 nor 1.
                let _ = consume(rd::rd_kafka_AdminOptions_set_require_stable_offsets(post.options, stable));
                rd::rd_kafka_ListConsumerGroupOffsets(
                    post.rk,
                    requests.as_mut_ptr(),
                    1,
                    post.options,
                    post.queue,
                );
            });
            rd::rd_kafka_ListConsumerGroupOffsets_destroy(request);
            let reply = reply?;
            let found = reply.results(
                rd::rd_kafka_event_ListConsumerGroupOffsets_result,
                rd::rd_kafka_ListConsumerGroupOffsets_result_groups,
            );
            let Some(&group) = found.first() else { return Ok(Vec::new()) };
            borrowed(rd::rd_kafka_group_result_error(group))?;
            Ok(rows(rd::rd_kafka_group_result_partitions(group)))
        }
    }

    pub fn delete_group(&self, group: &str, wait: Duration) -> Result<(), KafkaError> {
        let name = c_string(group);
        // SAFETY: as for `create_topic`.
        unsafe {
            let request = rd::rd_kafka_DeleteGroup_new(name.as_ptr());
            let mut requests = [request];
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DELETEGROUPS, wait, |post| {
                rd::rd_kafka_DeleteGroups(post.rk, requests.as_mut_ptr(), 1, post.options, post.queue);
            });
            rd::rd_kafka_DeleteGroup_destroy(request);
            let reply = reply?;
            let found = reply
                .results(rd::rd_kafka_event_DeleteGroups_result, rd::rd_kafka_DeleteGroups_result_groups);
            found.first().map_or(Ok(()), |&group| borrowed(rd::rd_kafka_group_result_error(group)))
        }
    }
}

fn first(outcomes: Outcomes) -> Result<(), KafkaError> {
    outcomes.into_iter().next().map_or(Ok(()), |(_, result)| result)
}

/// # Safety
/// The results are live.
unsafe fn topic_outcomes(results: &[*const rd::rd_kafka_topic_result_t]) -> Outcomes {
    results
        .iter()
        .map(|&result| {
            // SAFETY: by the function's contract.
            unsafe {
                let outcome = match rd_kafka_topic_result_error(result) {
                    0 => Ok(()),
                    code => Err(KafkaError {
                        text: text(rd::rd_kafka_topic_result_error_string(result)),
                        ..KafkaError::from_code(code)
                    }),
                };
                (text(rd::rd_kafka_topic_result_name(result)), outcome)
            }
        })
        .collect()
}

/// # Safety
/// `topic` is live.
pub(super) unsafe fn topic_info(
    topic: *const rd::rd_kafka_TopicDescription_t,
) -> Result<TopicInfo, (String, KafkaError)> {
    // SAFETY: by the function's contract; what the getters return belongs to the description.
    unsafe {
        let name = text(rd::rd_kafka_TopicDescription_name(topic));
        if let Err(error) = borrowed(rd::rd_kafka_TopicDescription_error(topic)) {
            return Err((name, error));
        }
        let id = rd::rd_kafka_TopicDescription_topic_id(topic);
        let id = (
            rd::rd_kafka_Uuid_most_significant_bits(id) as u64,
            rd::rd_kafka_Uuid_least_significant_bits(id) as u64,
        );
        let (mut partitions, mut replicas) = (0, 0);
        let described = rd::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
        if partitions > 0 {
            rd::rd_kafka_TopicPartitionInfo_replicas(*described, &mut replicas);
        }
        Ok(TopicInfo {
            name,
            id,
            partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            replication: i16::try_from(replicas).unwrap_or(i16::MAX),
        })
    }
}

/// # Safety
/// `group` is live.
unsafe fn group_info(group: *const rd::rd_kafka_ConsumerGroupDescription_t) -> Result<GroupInfo, KafkaError> {
    // SAFETY: by the function's contract; what the getters return belongs to the description.
    unsafe {
        borrowed(rd::rd_kafka_ConsumerGroupDescription_error(group))?;
        let members = (0..rd::rd_kafka_ConsumerGroupDescription_member_count(group))
            .map(|index| {
                let member = rd::rd_kafka_ConsumerGroupDescription_member(group, index);
                let assignment = rd::rd_kafka_MemberDescription_assignment(member);
                let instance = text(rd::rd_kafka_MemberDescription_group_instance_id(member));
                MemberInfo {
                    member_id: text(rd::rd_kafka_MemberDescription_consumer_id(member)),
                    instance_id: (!instance.is_empty()).then_some(instance),
                    client_id: text(rd::rd_kafka_MemberDescription_client_id(member)),
                    host: text(rd::rd_kafka_MemberDescription_host(member)),
                    partitions: match assignment.is_null() {
                        true => Vec::new(),
                        false => {
                            Partitions::borrowed_names(rd::rd_kafka_MemberAssignment_partitions(assignment))
                        }
                    },
                }
            })
            .collect();
        let state = text(rd_kafka_consumer_group_state_name(rd_kafka_ConsumerGroupDescription_state(group)));
        Ok(GroupInfo { state, members })
    }
}

/// Reads an error object that belongs to a reply; null is success.
///
/// # Safety
/// `error` is null or live.
pub(super) unsafe fn borrowed(error: *const rd::rd_kafka_error_t) -> Result<(), KafkaError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: by the function's contract.
    match unsafe { rd_kafka_error_code(error) } {
        0 => Ok(()),
        // SAFETY: as above.
        code => {
            // SAFETY: as above.
            let text = unsafe { text(rd::rd_kafka_error_string(error)) };
            Err(KafkaError { text, ..KafkaError::from_code(code) })
        }
    }
}

//! What comes in the place of a record, and what to do about it.

use super::Consumer;
use crate::kafka::fetch::Refusal;
use crate::kafka::ffi::{Code, KafkaError, Message};
use crate::kafka::{is_damage, source_error};
use crate::ports::SourceError;
use crate::record::InputPartition;

pub(super) enum Event {
    /// This partition cannot be served.
    Partition(InputPartition, String),
    /// The consumer as a whole has a problem.
    Client(SourceError),
    Nothing,
}

impl Consumer {
    /// Sorts an event that came in the place of a record.
    pub(super) fn error_event(&self, message: &Message) -> Event {
        use Code as C;
        let Some(error) = message.error() else { return Event::Nothing };
        if let Some(fatal) = self.raw.client().fatal() {
            return Event::Client(SourceError::Fatal(fatal.to_string()));
        }
        let topic = message.topic();
        // What concerns a topic as a whole comes without an offset, and with partition 0.
        let whole_topic = message.offset() < 0
            && error.is_any(&[
                C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
                C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
                C::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
            ]);
        if !topic.is_empty() && !whole_topic {
            return match self.input_partition(&topic, message.partition()) {
                Some(id) => Event::Partition(id, self.refusal(id, &sorted(&error))),
                None => Event::Nothing,
            };
        }
        // Told again by what follows: a lost assignment, or the reconnection.
        let passing = [
            C::RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED,
            C::RD_KAFKA_RESP_ERR__PARTITION_EOF,
            C::RD_KAFKA_RESP_ERR__TRANSPORT,
            C::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
            C::RD_KAFKA_RESP_ERR__RESOLVE,
        ];
        if error.is_any(&passing) {
            tracing::warn!(group = %self.spec.group, %error, "consumer");
            return Event::Nothing;
        }
        Event::Client(source_error(if topic.is_empty() { &self.spec.group } else { &topic }, &error))
    }

    /// Why a partition cannot be read on, and what to do where only a person can tell.
    pub(super) fn refusal(&self, id: InputPartition, refusal: &Refusal) -> String {
        let Some(next) = self.slot(id).map(|index| self.slots[index].next) else {
            return refusal.to_string();
        };
        let (topic, partition, group) = (self.topic(id), id.partition, &self.spec.group);
        match refusal {
            Refusal::Damaged(why) => format!(
                "{topic}/{partition} cannot be read at offset {next}: the batch of records there is damaged, on the broker's disk or on \
                 the way, and nothing of it is handled; once it is whole, `tidemill restart NAME --partition {partition}` reads it again \
                 (a replica that is whole can be made leader, or its log segment copied); if it is lost, begin anew: delete the \
                 deployment and deploy it again, or, if it keeps no state, pause it and `tidemill reset NAME --to` an offset behind \
                 it. Kafka's client says: {why}"
            ),
            Refusal::OutOfRange(why) => format!(
                "{topic}/{partition} does not hold offset {next}, which is next: records have been deleted before they were read, by \
                 retention or by kafka-delete-records, or the brokers have lost the end of the log (an unclean election), whatever was \
                 written in its place; delete the deployment and deploy it again to begin anew, or, if it keeps no state, go on without \
                 them: stop its nodes and run kafka-consumer-groups --group {group} --topic {topic}:{partition} --reset-offsets \
                 --to-earliest --execute. Kafka's client says: {why}"
            ),
            Refusal::Other(why) => format!("{topic}/{partition} cannot be read: {why}"),
        }
    }
}

/// What librdkafka's error of a partition means.
fn sorted(error: &KafkaError) -> Refusal {
    let out_of_range =
        [Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE];
    if is_damage(error) {
        Refusal::Damaged(error.to_string())
    } else if error.is_any(&out_of_range) {
        Refusal::OutOfRange(error.to_string())
    } else {
        Refusal::Other(error.to_string())
    }
}

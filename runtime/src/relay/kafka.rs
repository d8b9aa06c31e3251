//! Deliveries to a topic of another Kafka cluster, or of the same one but outside the transaction.
//!
//! The key decides the partition, as for any producer, and records of a key keep their order. What the row
//! carries as headers goes along, with `tidemill-id` and `tidemill-sequence` behind; but for names of this kind,
//! which are an outbox's own.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::{Unsent, secrets, tls};
use crate::config::outbox::KafkaSpec;
use crate::kafka::config::KafkaConfig;
use crate::kafka::mirror::{Mirror, MirrorError, MirrorRecord, headers_of};
use crate::ports::{Delivery, Landed};
use crate::record::headers::RawHeader;

/// Records that are on their way out of one destination, in memory.
const QUEUE_KIB: u32 = 16 << 10;
/// What a record is counted for beside its bytes.
const OVERHEAD_BYTES: usize = 1 << 10;

pub struct Carrier {
    config: KafkaConfig,
    topic: String,
    timeout: Duration,
    /// Replaced when it can send no more.
    mirror: RwLock<Mirror>,
    /// Room in the producer's queue, in KiB: deliveries wait for it in turn, because a queue that is full says
    /// nothing against the destination.
    room: Arc<Semaphore>,
}

impl Carrier {
    pub fn new(spec: &KafkaSpec, timeout: Duration) -> Result<Carrier, String> {
        let mut config = KafkaConfig::new(spec.bootstrap_servers.clone());
        config.client_id = "tidemill-outbox".to_owned();
        config.security_protocol = spec.security_protocol.as_str().to_owned();
        config.limits.produce_queue_kib = 2 * QUEUE_KIB;
        if let Some(sasl) = &spec.sasl {
            config.sasl_mechanism = Some(sasl.mechanism.clone());
            config.sasl_username = Some(sasl.username.clone());
            config.sasl_password = Some(secrets::read("password", &sasl.password)?.expose().to_owned());
        }
        if let Some(ca) = &spec.ca {
            tls::check(ca)?;
            config.properties.insert("ssl.ca.location".to_owned(), ca.to_string_lossy().into_owned());
        }
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let mirror = Mirror::new(&config, &spec.topic, timeout).map_err(|error| error.to_string())?;
        // The queue has twice the room, because a record still counts there while its outcome is told.
        let room = Arc::new(Semaphore::new(QUEUE_KIB as usize));
        Ok(Carrier { config, topic: spec.topic.clone(), timeout, mirror: RwLock::new(mirror), room })
    }

    /// An attempt that is given up meanwhile stays in the producer's queue, before any later record of its key.
    pub async fn deliver(&self, delivery: &Delivery) -> Result<Landed, Unsent> {
        let sequence = delivery.sequence.to_string();
        let headers = headers(delivery, &sequence);
        let record = MirrorRecord {
            key: delivery.key.as_deref(),
            value: delivery.value.as_deref(),
            headers: &headers,
            timestamp_ms: delivery.timestamp_ms,
        };
        let bytes = [delivery.key.as_deref(), delivery.value.as_deref(), Some(delivery.headers.as_slice())];
        let bytes: usize = bytes.into_iter().flatten().map(<[u8]>::len).sum();
        let share =
            u32::try_from((bytes + OVERHEAD_BYTES) >> 10).map_or(QUEUE_KIB, |share| share.min(QUEUE_KIB));
        let room = Arc::clone(&self.room).acquire_many_owned(share).await;
        let (tell, told) = oneshot::channel();
        let queued = self.queue(record, move |outcome| {
            // Not before: who gave up waiting takes nothing out of the queue.
            drop(room);
            drop(tell.send(outcome));
        });
        let outcome = match queued {
            Ok(()) => {
                told.await.unwrap_or_else(|_| Err(MirrorError::Unknown("the producer has ended".to_owned())))
            }
            // Too large for this side already.
            Err(MirrorError::Refused(reason)) => return Err(Unsent(reason)),
            Err(error) => Err(error),
        };
        Ok(match outcome {
            Ok(()) => Landed::Delivered,
            Err(MirrorError::Refused(reason)) => Landed::Permanent { reason },
            Err(MirrorError::Unknown(reason)) => Landed::Transient { reason, after: None },
        })
    }

    /// Queues a record, with a new producer if the one that was there can send no more.
    fn queue(
        &self,
        record: MirrorRecord<'_>,
        done: impl FnOnce(Result<(), MirrorError>) + Send + 'static,
    ) -> Result<(), MirrorError> {
        if self.mirror().fatal().is_some() {
            self.renew()?;
        }
        self.mirror().send(record, done)
    }

    fn mirror(&self) -> RwLockReadGuard<'_, Mirror> {
        self.mirror.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self) -> Result<(), MirrorError> {
        let mut mirror = self.mirror.write().unwrap_or_else(PoisonError::into_inner);
        // None if another delivery was first.
        let Some(reason) = mirror.fatal() else { return Ok(()) };
        let fresh = Mirror::new(&self.config, &self.topic, self.timeout);
        let fresh = fresh.map_err(|error| MirrorError::Unknown(error.to_string()))?;
        let former = std::mem::replace(&mut *mirror, fresh);
        let topic = &self.topic;
        tracing::warn!(
            topic,
            reason,
            "the producer of an outbox can send no more; a new one takes its place"
        );
        // Waits for the producer's own threads.
        tokio::task::spawn_blocking(move || drop(former));
        Ok(())
    }
}

/// The row's own, and behind them what a receiver goes by. What passes on the headers of a record that came out of
/// an outbox has that one's among its own: left in, they would be taken for this one's.
fn headers<'a>(delivery: &'a Delivery, sequence: &'a str) -> Vec<RawHeader<'a>> {
    let mut headers = headers_of(&delivery.headers);
    headers.retain(|(name, _)| !name.starts_with(b"tidemill-"));
    headers.push((b"tidemill-id".as_slice(), Some(delivery.id.as_bytes())));
    headers.push((b"tidemill-sequence".as_slice(), Some(sequence.as_bytes())));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::outbox::SecurityProtocol;
    use crate::record::headers::encode;

    /// To a cluster that is not there.
    fn carrier(timeout: Duration) -> Carrier {
        let spec = KafkaSpec {
            bootstrap_servers: "127.0.0.1:1".to_owned(),
            topic: "t".to_owned(),
            security_protocol: SecurityProtocol::default(),
            sasl: None,
            ca: None,
        };
        Carrier::new(&spec, timeout).expect("a carrier")
    }

    fn delivery(value: Vec<u8>) -> Delivery {
        Delivery {
            partition: 0,
            sequence: 1,
            destination: "mirror".into(),
            id: "life/topic/0/1/2".to_owned(),
            key: None,
            value: Some(value),
            headers: Vec::new(),
            timestamp_ms: 5,
        }
    }

    #[test]
    fn headers_of_another_outbox_are_not_passed_on_as_those_of_this_one() {
        let own =
            [("source", "cli"), ("tidemill-id", "theirs"), ("tidemill-later", "x"), ("source", "again")];
        let own = own.map(|(name, value)| (name, Some(value.as_bytes())));
        let delivery = Delivery { headers: encode(own.into_iter()), ..delivery(b"v".to_vec()) };
        let expected: [RawHeader<'_>; 4] = [
            (b"source", Some(b"cli")),
            (b"source", Some(b"again")),
            (b"tidemill-id", Some(b"life/topic/0/1/2")),
            (b"tidemill-sequence", Some(b"1")),
        ];
        assert_eq!(headers(&delivery, "1"), expected);
    }

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_producer_that_can_send_no_more_is_replaced_by_the_next_delivery() {
        let carrier = carrier(Duration::from_secs(60));
        carrier.mirror().fail();
        assert!(carrier.mirror().fatal().is_some());
        let delivery = delivery(b"v".to_vec());
        let waits = tokio::time::timeout(SOON, carrier.deliver(&delivery)).await;
        assert!(waits.is_err(), "it is in the new one's queue: {waits:?}");
        assert_eq!(carrier.mirror().fatal(), None);
    }

    #[tokio::test]
    async fn a_record_has_its_room_until_its_outcome_however_short_its_delivery_waits() {
        let carrier = carrier(Duration::from_secs(2));
        let large = delivery(vec![0; 1 << 20]);
        assert!(tokio::time::timeout(SOON, carrier.deliver(&large)).await.is_err());
        let left = carrier.room.available_permits();
        assert!(left < QUEUE_KIB as usize - 1_000, "{left} KiB are free");
        let all = tokio::time::timeout(Duration::from_secs(30), carrier.room.acquire_many(QUEUE_KIB)).await;
        assert!(all.is_ok(), "the producer gives it up");
    }

    #[tokio::test]
    async fn what_the_producer_gives_up_says_what_kind_of_trouble_it_is() {
        let carrier = carrier(Duration::from_millis(500));
        let delivery = delivery(b"v".to_vec());
        let landed = tokio::time::timeout(Duration::from_secs(30), carrier.deliver(&delivery)).await;
        let Ok(Ok(Landed::Transient { reason, .. })) = &landed else { panic!("{landed:?}") };
        assert!(reason.starts_with("t: InfraTimeoutError: Local: Message timed out"), "{reason}");
    }

    #[tokio::test]
    async fn what_the_producer_refuses_by_itself_was_not_sent() {
        let carrier = carrier(Duration::from_secs(60));
        let refused = carrier.deliver(&delivery(vec![0; 17 << 20])).await;
        assert!(matches!(&refused, Err(Unsent(reason)) if reason.contains("MSG_SIZE")), "{refused:?}");
        assert_eq!(carrier.room.available_permits(), QUEUE_KIB as usize);
    }
}

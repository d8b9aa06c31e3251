//! Deliveries to a topic of another Kafka cluster, or of the same one but outside the transaction.
//!
//! The key decides the partition, as for any producer, and records of a key keep their order. What the row
//! carries as headers goes along, with `tidemill-id` and `tidemill-sequence` behind.

use std::sync::Arc;
use std::time::Duration;

use super::secrets;
use crate::config::outbox::KafkaSpec;
use crate::kafka::config::KafkaConfig;
use crate::kafka::mirror::{Mirror, MirrorError, MirrorRecord, headers_of};
use crate::ports::{Delivery, Landed};

/// Records that are on their way out of one destination, in memory.
const QUEUE_KIB: u32 = 16 << 10;

pub struct Carrier {
    mirror: Arc<Mirror>,
}

impl Carrier {
    pub fn new(spec: &KafkaSpec, timeout: Duration) -> Result<Carrier, String> {
        let mut config = KafkaConfig::new(spec.bootstrap_servers.clone());
        config.client_id = "tidemill-outbox".to_owned();
        config.security_protocol = spec.security_protocol.as_str().to_owned();
        config.limits.produce_queue_kib = QUEUE_KIB;
        if let Some(sasl) = &spec.sasl {
            config.sasl_mechanism = Some(sasl.mechanism.clone());
            config.sasl_username = Some(sasl.username.clone());
            config.sasl_password = Some(secrets::read("password", &sasl.password)?.expose().to_owned());
        }
        if let Some(ca) = &spec.ca {
            config.properties.insert("ssl.ca.location".to_owned(), ca.to_string_lossy().into_owned());
        }
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let mirror = Mirror::new(&config, &spec.topic, timeout).map_err(|error| error.to_string())?;
        Ok(Carrier { mirror: Arc::new(mirror) })
    }

    /// The producer is asked on a thread that may wait. An attempt that is given up meanwhile goes on there, and its
    /// record stays before any later one of its key.
    pub async fn deliver(&self, delivery: &Delivery) -> Landed {
        let (mirror, delivery) = (Arc::clone(&self.mirror), delivery.clone());
        let sent = tokio::task::spawn_blocking(move || {
            let sequence = delivery.sequence.to_string();
            let mut headers = headers_of(&delivery.headers);
            headers.retain(|(name, _)| !name.starts_with("tidemill-"));
            headers.push(("tidemill-id", Some(delivery.id.as_bytes())));
            headers.push(("tidemill-sequence", Some(sequence.as_bytes())));
            mirror.send(MirrorRecord {
                key: delivery.key.as_deref(),
                value: delivery.value.as_deref(),
                headers: &headers,
                timestamp_ms: delivery.timestamp_ms,
            })
        });
        match sent.await {
            Ok(Ok(())) => Landed::Delivered,
            Ok(Err(MirrorError::Refused(reason))) => Landed::Permanent { reason },
            Ok(Err(MirrorError::Unknown(reason))) => Landed::Transient { reason, after: None },
            Err(_) => Landed::Transient {
                reason: "the attempt ended early; the log says why".to_owned(),
                after: None,
            },
        }
    }
}

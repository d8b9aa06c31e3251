//! What the configuration says of producing, with librdkafka's names and defaults.

use std::time::Duration;

use tidemill_batches::Codec;

use crate::config::kafka_client::IN_FLIGHT_MAX;
use crate::kafka::config::KafkaConfig;

/// All replicas that are in sync have a batch before it is acknowledged.
pub(super) const ACKS_ALL: i16 = -1;
const ACKS_LEADER: i16 = 1;

/// librdkafka's default of `request.timeout.ms`.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// How records become batches.
pub(super) struct Format {
    pub codec: Codec,
    /// `None` = the codec's own default.
    pub level: Option<i32>,
    /// Largest batch, before compression. A larger record has one of its own.
    pub batch_bytes: usize,
    pub record_bytes: usize,
}

/// How long things may take, and how much may be under way.
pub(super) struct Limits {
    /// For one call of the sink; in a transaction for all before its end together.
    pub patience: Duration,
    /// Until records are acknowledged, within the same.
    pub delivery: Duration,
    /// How long a leader waits for its followers.
    pub ack_timeout: Duration,
    /// Requests to one broker.
    pub in_flight: usize,
    /// Produced and not yet acknowledged.
    pub queue_bytes: usize,
    pub metadata_refresh: Duration,
}

pub(super) fn format(config: &KafkaConfig, batch_bytes: u32) -> Result<Format, String> {
    let name = said(config, &["compression.type", "compression.codec"]).unwrap_or("none");
    let codec = name.parse::<Codec>().map_err(|error| error.to_string())?;
    let level = match said(config, &["compression.level"]) {
        None => None,
        Some(text) => {
            let level = text.parse::<i32>();
            let level = level.map_err(|_| format!("compression.level `{text}` is no whole number"))?;
            // librdkafka's way to say "the codec's own".
            (level >= 0).then_some(level)
        }
    };
    Ok(Format {
        codec,
        level,
        batch_bytes: size(batch_bytes.max(1024)),
        record_bytes: size(config.limits.record_bytes.max(1000)),
    })
}

/// What a producer without a transaction waits for. Of a configuration that says anything but all or the leader's no
/// [`Access`](crate::kafka::wire::Access) is made.
pub(super) fn acks(config: &KafkaConfig) -> i16 {
    match config.acks.trim() {
        "1" => ACKS_LEADER,
        _ => ACKS_ALL,
    }
}

pub(super) fn limits(config: &KafkaConfig, patience: Duration) -> Limits {
    // 0 = for ever.
    let delivery = millis(config, &["delivery.timeout.ms", "message.timeout.ms"])
        .filter(|timeout| !timeout.is_zero())
        .map_or(patience, |timeout| timeout.min(patience));
    let in_flight = said(config, &["max.in.flight", "max.in.flight.requests.per.connection"])
        .and_then(|text| text.parse::<usize>().ok())
        .map_or(IN_FLIGHT_MAX, |most| most.clamp(1, IN_FLIGHT_MAX));
    Limits {
        patience,
        delivery,
        ack_timeout: millis(config, &["request.timeout.ms"]).unwrap_or(ACK_TIMEOUT),
        in_flight,
        queue_bytes: size(config.limits.produce_queue_kib).saturating_mul(1024),
        metadata_refresh: config.limits.metadata_refresh,
    }
}

/// The value of the first of these names that is given.
fn said<'a>(config: &'a KafkaConfig, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| config.properties.get(*name)).map(|value| value.trim())
}

fn millis(config: &KafkaConfig, names: &[&str]) -> Option<Duration> {
    said(config, names)?.parse().ok().map(Duration::from_millis)
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::wire::Access;

    fn with(properties: &[(&str, &str)]) -> KafkaConfig {
        let mut config = KafkaConfig::new("localhost:9092");
        let owned = properties.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        config.properties.extend(owned);
        config
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn without_properties_the_patience_of_a_call_bounds_everything() {
        let config = with(&[]);
        let limits = limits(&config, PATIENCE);
        assert_eq!((limits.patience, limits.delivery), (PATIENCE, PATIENCE));
        assert_eq!((limits.in_flight, limits.queue_bytes), (5, 64 << 20));
        let format = format(&config, 0).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((format.level, format.batch_bytes, format.record_bytes), (None, 1024, 16 << 20));
    }

    #[test]
    fn what_an_operator_says_counts_within_what_the_guarantee_allows() {
        let config = with(&[
            ("message.timeout.ms", "3000"),
            ("request.timeout.ms", "2000"),
            ("max.in.flight.requests.per.connection", "100"),
        ]);
        let found = limits(&config, PATIENCE);
        assert_eq!(found.delivery, Duration::from_secs(3));
        assert_eq!((found.ack_timeout, found.in_flight), (Duration::from_secs(2), 5));
        assert_eq!(limits(&with(&[("max.in.flight", "0")]), PATIENCE).in_flight, 1);
        let for_ever = with(&[("delivery.timeout.ms", "0")]);
        assert_eq!(limits(&for_ever, PATIENCE).delivery, PATIENCE);
    }

    #[test]
    fn every_value_of_acks_that_is_answered_is_known_and_no_other() {
        let with_acks = |text: &str| KafkaConfig { acks: text.to_owned(), ..with(&[]) };
        assert_eq!(["all", "ALL", "-1", "1"].map(|text| acks(&with_acks(text))), [-1, -1, -1, 1]);
        let is_taken = |text| Access::new(&with_acks(text)).is_ok();
        assert_eq!(["all", "ALL", "-1", "1", "0", "2"].map(is_taken), [true, true, true, true, false, false]);
    }

    #[test]
    fn a_compression_that_is_not_known_is_named() {
        let level = |text| format(&with(&[("compression.codec", "ZSTD"), ("compression.level", text)]), 1);
        assert_eq!(level("3").ok().and_then(|format| format.level), Some(3));
        assert_eq!(level("-1").ok().and_then(|format| format.level), None);
        assert!(level("fast").is_err_and(|error| error.contains("fast")));
        let odd = format(&with(&[("compression.type", "brotli")]), 1);
        assert!(odd.is_err_and(|error| error.contains("brotli")));
    }
}

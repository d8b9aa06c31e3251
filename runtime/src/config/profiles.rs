//! Named sets of client properties: what `kafka.producer_profile` and `kafka.consumer_profile` stand for.
//!
//! A profile is written in the names that Kafka's documentation uses, and each of its properties has the
//! fate of one that is given by hand ([`super::kafka_properties`]): some are noted as without effect,
//! because commits decide when records are sent, and what is more than a setting may be is its most. A
//! property or setting that is given stays as it is.

pub(super) const PRODUCER_KEY: &str = "kafka.producer_profile";
pub(super) const CONSUMER_KEY: &str = "kafka.consumer_profile";

/// A name, and the properties that it stands for.
pub(super) type Profile = (&'static str, &'static [(&'static str, &'static str)]);

/// By the setting that chooses one of them.
pub(super) const KINDS: [(&str, &[Profile]); 2] = [(PRODUCER_KEY, &PRODUCER), (CONSUMER_KEY, &CONSUMER)];

/// What [`super::settings`] offers for producers.
pub(super) const PRODUCER_NAMES: &[&str] = &names(&PRODUCER);
/// The same for consumers.
pub(super) const CONSUMER_NAMES: &[&str] = &names(&CONSUMER);

const fn names<const N: usize>(profiles: &[Profile; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = profiles[at].0;
        at += 1;
    }
    names
}

const PRODUCER: [Profile; 5] = [
    (
        "high_throughput",
        &[
            // One replica's acknowledgement, which idempotence excludes. Transactions use all in any case.
            ("acks", "1"),
            ("enable.idempotence", "false"),
            ("batch.size", "65536"),
            ("linger.ms", "100"),
            ("compression.type", "lz4"),
            ("max.in.flight.requests.per.connection", "10"),
        ],
    ),
    ("low_latency", &[("batch.size", "1024"), ("linger.ms", "0"), ("compression.type", "none")]),
    (
        "high_durability",
        &[
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("retries", "10"),
            ("max.in.flight.requests.per.connection", "1"),
        ],
    ),
    (
        "throughput_idempotence",
        &[
            ("enable.idempotence", "true"),
            ("batch.size", "32768"),
            ("linger.ms", "20"),
            ("compression.type", "zstd"),
            ("retries", "10"),
            ("max.in.flight.requests.per.connection", "1"),
        ],
    ),
    (
        "long_timeouts",
        &[
            ("request.timeout.ms", "60000"),
            ("delivery.timeout.ms", "180000"),
            ("max.block.ms", "120000"),
            ("retries", "3"),
        ],
    ),
];

/// Of their 1,000 records a poll a handler is called with 500, which is the most that the setting may be.
const CONSUMER: [Profile; 3] = [
    (
        "high_throughput",
        &[
            ("max.poll.records", "1000"),
            ("fetch.min.bytes", "10240"),
            ("fetch.max.wait.ms", "100"),
            ("max.partition.fetch.bytes", "2097152"),
        ],
    ),
    ("low_latency", &[("max.poll.records", "100"), ("fetch.min.bytes", "1"), ("fetch.max.wait.ms", "10")]),
    (
        "lag_recovery",
        &[
            ("max.poll.records", "1000"),
            ("fetch.min.bytes", "1048576"),
            ("fetch.max.wait.ms", "500"),
            ("fetch.max.bytes", "10485760"),
            ("session.timeout.ms", "45000"),
        ],
    ),
];

/// The properties of the profile of that name; those of an unknown one are none.
pub(super) fn properties(
    profiles: &[Profile],
    name: &str,
) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
    let found = profiles.iter().find(|(known, _)| *known == name);
    found.map_or(&[][..], |(_, properties)| properties).iter().copied()
}

#[cfg(test)]
mod tests {
    use super::super::kafka_properties::{Fate, judge};
    use super::*;

    #[test]
    fn every_profile_that_is_offered_is_there_and_none_of_its_properties_is_refused() {
        let names = |profiles: &[Profile]| profiles.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(&PRODUCER), PRODUCER_NAMES);
        assert_eq!(names(&CONSUMER), CONSUMER_NAMES);
        for (profile, properties) in PRODUCER.iter().chain(&CONSUMER) {
            for (name, value) in *properties {
                let fate = judge(name, value);
                assert!(!matches!(fate, Fate::Refuse(_)), "{profile}: {name}: {fate:?}");
            }
        }
    }
}

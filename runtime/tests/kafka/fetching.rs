//! What comes out of started partitions, and where they stand: the same whether the node fetches by itself or librdkafka
//! does.

use std::time::{Duration, Instant};

use tidemill::config::node::KafkaClient;
use tidemill::kafka::admin::{Admin, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::consumer::{Consumer, ConsumerSpec};
use tidemill::kafka::probe::probe_own_client;
use tidemill::kafka::tools::{self, Row};
use tidemill::ports::{Group, Source, Taken};
use tidemill::record::Offset;
use tidemill::record::headers;
use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::harness::{Cluster, Member, PATIENCE, at, now_ms, row, unique};
use crate::sink;

by_either!(
    batches_keep_order_timestamps_headers_and_nulls,
    a_batch_respects_its_limits_and_loses_nothing,
    a_partition_flows_only_between_start_and_stop_and_never_from_below,
    a_partition_is_read_as_soon_as_it_starts_however_long_it_was_stopped,
    the_position_passes_transaction_markers_and_aborted_records,
    an_offset_out_of_range_stops_the_partition_until_it_is_started_anew,
    records_of_every_codec_are_read,
    a_record_larger_than_any_limit_comes_alone,
    who_only_listens_gets_no_record_and_misses_none,
    who_only_listens_is_told_what_the_group_wants,
);

pub fn spec(group: &str, topics: &[&str]) -> ConsumerSpec {
    ConsumerSpec::new(group, topics.iter().map(|&topic| topic.to_owned()).collect())
}

fn config(cluster: &Cluster, by: KafkaClient) -> KafkaConfig {
    KafkaConfig { client: Some(by), ..cluster.config() }
}

fn join(cluster: &Cluster, by: KafkaClient, spec: ConsumerSpec) -> Member {
    Member::join_with(&config(cluster, by), spec)
}

fn consumer(cluster: &Cluster, by: KafkaClient, topic: &str) -> Consumer {
    Consumer::new(&config(cluster, by), spec(&unique("group"), &[topic])).unwrap()
}

fn batches_keep_order_timestamps_headers_and_nulls(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("rows", 1);
    let t = now_ms();
    let text = |value: &str| Some(value.as_bytes().to_vec());
    let rows = [
        Row { key: text("k"), value: text("v"), timestamp_ms: Some(t), ..Row::default() },
        Row { key: None, value: text(""), timestamp_ms: Some(t + 2), ..Row::default() },
        Row { key: text(""), value: None, timestamp_ms: Some(t + 1), ..Row::default() },
        Row {
            key: text("h"),
            value: text("x"),
            headers: vec![("a".into(), text("1")), ("b".into(), None), ("a".into(), text(""))],
            timestamp_ms: Some(t + 9),
            ..Row::default()
        },
    ];
    cluster.produce(&topic, rows);

    let spec = ConsumerSpec { wants_headers: true, ..spec(&unique("group"), &[&topic]) };
    let mut member = join(&cluster, by, spec);
    member.step_until("four records", |member| member.count() == 4);
    let keys: Vec<_> = member.batches.iter().flat_map(|b| b.keys.iter()).collect();
    let values: Vec<_> = member.batches.iter().flat_map(|b| b.values.iter()).collect();
    let times: Vec<_> = member.batches.iter().flat_map(|b| b.timestamps.clone()).collect();
    let lists: Vec<_> = member.batches.iter().flat_map(|b| b.headers.iter()).collect();
    assert_eq!(keys, [Some(&b"k"[..]), None, Some(b""), Some(b"h")]);
    assert_eq!(values, [Some(&b"v"[..]), Some(b""), None, Some(b"x")]);
    assert_eq!(times, [t, t + 2, t + 1, t + 9]);
    assert_eq!(lists[..3], [None; 3]);
    assert_eq!(
        headers::decode(lists[3].unwrap()).unwrap(),
        [("a", Some(&b"1"[..])), ("b", None), ("a", Some(b""))],
    );
}

fn a_batch_respects_its_limits_and_loses_nothing(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("limits", 2);
    cluster.produce_numbers(&topic, 0, 0..3_000);
    cluster.produce_numbers(&topic, 1, 0..3_000);
    let spec = ConsumerSpec { batch_records: 100, batch_bytes: 400, ..spec(&unique("group"), &[&topic]) };
    let mut member = join(&cluster, by, spec);
    member.step_until("6,000 records", |member| member.count() == 6_000);
    for partition in 0..2 {
        let expected: Vec<_> = (0..3_000).map(|n| (n, n.to_string())).collect();
        assert_eq!(member.records(at(0, partition)), expected);
    }
    assert!(member.batches.iter().all(|batch| batch.len() <= 100 && batch.bytes() <= 400));
}

fn a_partition_flows_only_between_start_and_stop_and_never_from_below(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("flow", 1);
    cluster.produce_numbers(&topic, 0, 0..100);
    let mut consumer = consumer(&cluster, by, &topic);
    let id = at(0, 0);
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(id, Offset(10))]).unwrap();

    // Assigned but not started: whatever was fetched meanwhile stays inside.
    stays_quiet(&mut consumer, Duration::from_millis(300));
    assert_eq!(consumer.position(id), None);

    for start in [40, 0, 90] {
        consumer.start(id, Offset(start)).unwrap();
        assert_eq!(consumer.position(id), None, "nothing was taken since the start");
        out.clear();
        wait_for(&mut consumer, &mut out, |out| offsets(out).last() == Some(&99));
        assert_eq!(offsets(&out), (start as i64..100).collect::<Vec<_>>());
        assert_eq!(consumer.position(id), Some(Offset(100)));
    }

    consumer.stop(id).unwrap();
    cluster.produce_numbers(&topic, 0, 100..200);
    stays_quiet(&mut consumer, Duration::from_millis(300));
    out.clear();
    consumer.start(id, Offset(150)).unwrap();
    wait_for(&mut consumer, &mut out, |out| offsets(out).last() == Some(&199));
    assert_eq!(offsets(&out), (150..200).collect::<Vec<_>>());
}

/// librdkafka's thread of a broker that has nothing to fetch looks again after a second.
fn a_partition_is_read_as_soon_as_it_starts_however_long_it_was_stopped(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("prompt", 1);
    cluster.produce_numbers(&topic, 0, 0..10);
    let mut consumer = consumer(&cluster, by, &topic);
    let id = at(0, 0);
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(id, Offset(0))]).unwrap();
    // To the log's start librdkafka seeks in another way.
    let starts = [0, 5];
    let mut waited = [vec![], vec![]];
    for nth in 0..6 {
        // The last fetch is answered after half a second; then the thread has 0.8 s of its second left.
        stays_quiet(&mut consumer, Duration::from_millis(700));
        out.clear();
        let began = Instant::now();
        consumer.start(id, Offset(starts[nth % 2])).unwrap();
        wait_for(&mut consumer, &mut out, |out| !offsets(out).is_empty());
        waited[nth % 2].push(began.elapsed());
        consumer.stop(id).unwrap();
    }
    for times in waited {
        // A busy machine makes some of them late. Who waits for that thread is always late.
        assert!(times.iter().any(|time| *time < Duration::from_millis(400)), "{times:?}");
    }
}

fn the_position_passes_transaction_markers_and_aborted_records(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("markers", 1);
    let mut member = join(&cluster, by, spec(&unique("group"), &[&topic]));
    member.step_until("the partition", |member| member.running.len() == 1);
    let id = at(0, 0);
    assert_eq!(member.consumer.position(id), None);

    // A record and its commit marker: the end is 2.
    sink::transact(&cluster, &topic, &["a"], true);
    member.step_until("the marker", |member| member.consumer.position(id) == Some(Offset(2)));
    assert_eq!(member.records(id), [(0, "a".to_owned())]);

    // Two aborted records and a marker: nothing comes out, the end is 5.
    sink::transact(&cluster, &topic, &["b", "c"], false);
    member.step_until("the abort marker", |member| member.consumer.position(id) == Some(Offset(5)));
    assert_eq!(member.records(id).len(), 1);

    let end = cluster.admin().offsets(&[(topic.clone(), 0)], tidemill::kafka::admin::At::End).unwrap();
    assert_eq!(end, [Offset(5)]);

    // Started among markers only, the position still reaches the end.
    member.consumer.start(id, Offset(1)).unwrap();
    member.step_until("the end again", |member| member.consumer.position(id) == Some(Offset(5)));
    assert_eq!(member.records(id).len(), 1);
}

fn an_offset_out_of_range_stops_the_partition_until_it_is_started_anew(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("range", 2);
    cluster.produce_numbers(&topic, 0, 0..10);
    cluster.produce_numbers(&topic, 1, 0..10);
    cluster.admin().delete_records(&topic, 0, Offset(5)).unwrap();

    let mut member = join(&cluster, by, spec(&unique("group"), &[&topic]));
    member.step_until("a failure and the other partition", |member| {
        let explained =
            |event: &String| event.starts_with("failed 0") && event.contains("offset 0, which is next");
        member.events.iter().any(explained) && member.count() == 10
    });
    assert_eq!(member.records(at(0, 0)), []);
    assert_eq!(member.consumer.position(at(0, 0)), None);

    member.consumer.start(at(0, 0), Offset(5)).unwrap();
    member.step_until("the rest", |member| member.count() == 15);
    assert_eq!(member.records(at(0, 0))[0].0, 5);
    cluster.produce(&topic, [row(1, "more")]);
    member.step_until("one more", |member| member.records(at(0, 1)).len() == 11);
}

fn records_of_every_codec_are_read(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("codecs", 1);
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for (nth, codec) in codecs.into_iter().enumerate() {
        let mut config = cluster.config();
        config.properties.insert("compression.type".to_owned(), codec.to_owned());
        let rows = (0..200).map(|n| row(0, &(nth * 200 + n).to_string()));
        tools::produce(&config, &topic, rows, None, &mut |_| {}).unwrap();
    }
    let mut member = join(&cluster, by, spec(&unique("group"), &[&topic]));
    member.step_until("all records", |member| member.count() == 1_000);
    let expected: Vec<_> = (0..1_000).map(|n| (n, n.to_string())).collect();
    assert_eq!(member.records(at(0, 0)), expected);

    // In the middle of a batch.
    member.batches.clear();
    member.consumer.start(at(0, 0), Offset(333)).unwrap();
    member.step_until("the rest", |member| member.count() == 667);
    assert_eq!(member.records(at(0, 0)), expected[333..]);
}

fn a_record_larger_than_any_limit_comes_alone(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("large", 2);
    let mut config = config(&cluster, by);
    config.limits.partition_fetch_bytes = 4_096;
    let large = "x".repeat(300_000);
    for partition in 0..2 {
        cluster.produce(&topic, ["a", &large, "b"].map(|value| row(partition, value)));
    }
    let spec = ConsumerSpec { batch_bytes: 1_000, ..spec(&unique("group"), &[&topic]) };
    let mut member = Member::join_with(&config, spec);
    member.step_until("all records", |member| member.count() == 6);
    assert_eq!(member.batches.iter().filter(|batch| batch.bytes() == 600_000 && batch.len() == 1).count(), 2);
}

fn who_only_listens_gets_no_record_and_misses_none(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("heard", 2);
    for partition in 0..2 {
        cluster.produce_numbers(&topic, partition, 0..1_000);
    }
    let spec = ConsumerSpec { batch_records: 100, ..spec(&unique("group"), &[&topic]) };
    let mut consumer = Consumer::new(&config(&cluster, by), spec).unwrap();
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    out.clear();
    consumer.assign(&[(at(0, 0), Offset(0)), (at(0, 1), Offset(0))]).unwrap();
    consumer.start(at(0, 0), Offset(0)).unwrap();
    for _ in 0..3 {
        let taken = out.len();
        wait_for(&mut consumer, &mut out, |out| out.len() > taken);
        let taken = out.len();
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            consumer.listen(Duration::from_millis(20), &mut out).unwrap();
        }
        assert_eq!(out.len(), taken);
    }
    // One that starts meanwhile waits as well.
    consumer.start(at(0, 1), Offset(0)).unwrap();
    let taken = out.len();
    consumer.listen(Duration::from_millis(200), &mut out).unwrap();
    assert_eq!(out.len(), taken);
    wait_for(&mut consumer, &mut out, |out| offsets(out).len() == 2_000);
    for partition in 0..2 {
        let is_of = |taken: &&Taken| matches!(taken, Taken::Batch(batch) if batch.partition == partition);
        let batches = out.iter().filter(is_of).flat_map(|taken| offsets(std::slice::from_ref(taken)));
        assert_eq!(batches.collect::<Vec<_>>(), (0..1_000).collect::<Vec<_>>());
    }
}

fn who_only_listens_is_told_what_the_group_wants(by: KafkaClient) {
    let cluster = Cluster::get();
    let topic = cluster.topic("asked", 2);
    for partition in 0..2 {
        cluster.produce_numbers(&topic, partition, 0..1_000);
    }
    let group = unique("group");
    let mut first = join(&cluster, by, spec(&group, &[&topic]));
    first.step_until("a record", |member| member.running.len() == 2 && member.count() > 0);
    let mut second = join(&cluster, by, spec(&group, &[&topic]));
    let revoked = first.until_revoked(&mut second, Consumer::listen, |other| panic!("{other:?}"));
    assert_eq!(revoked.len(), 1);
}

/// A fetch that has no news is kept by the broker, with the partitions it was made for.
#[test]
fn a_partition_that_starts_while_another_waits_for_news_is_read_at_once() {
    let cluster = Cluster::get();
    let topic = cluster.topic("late", 2);
    cluster.produce_numbers(&topic, 1, 0..1);
    let mut config = config(&cluster, KafkaClient::Own);
    config.properties.insert("fetch.wait.max.ms".to_owned(), "20000".to_owned());
    let mut consumer = Consumer::new(&config, spec(&unique("group"), &[&topic])).unwrap();
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(at(0, 0), Offset(0)), (at(0, 1), Offset(0))]).unwrap();
    consumer.start(at(0, 0), Offset(0)).unwrap();
    let mut waited = Duration::ZERO;
    for _ in 0..5 {
        stays_quiet(&mut consumer, Duration::from_millis(100));
        out.clear();
        let began = Instant::now();
        consumer.start(at(0, 1), Offset(0)).unwrap();
        wait_for(&mut consumer, &mut out, |out| !offsets(out).is_empty());
        waited += began.elapsed();
        consumer.stop(at(0, 1)).unwrap();
    }
    assert!(waited < Duration::from_secs(10), "{waited:?}");
}

/// Nothing is fetched meanwhile, because what was fetched ahead is not taken.
#[test]
fn a_topic_that_is_made_again_between_two_fetches_is_not_read_on_with() {
    let cluster = Cluster::get();
    let topic = cluster.topic("again", 1);
    let produce = |word: &str| {
        for nth in 0..10 {
            cluster.produce(&topic, (0..100).map(|n| row(0, &format!("{word} {}", nth * 100 + n))));
        }
    };
    produce("old");
    let mut config = config(&cluster, KafkaClient::Own);
    config.limits.partition_fetch_bytes = 1_024;
    let spec = ConsumerSpec { batch_records: 100, ..spec(&unique("group"), &[&topic]) };
    let mut consumer = Consumer::new(&config, spec).unwrap();
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(at(0, 0), Offset(0))]).unwrap();
    consumer.start(at(0, 0), Offset(0)).unwrap();
    out.clear();
    wait_for(&mut consumer, &mut out, |out| !offsets(out).is_empty());
    assert!(offsets(&out).len() < 1_000);
    // Until what the partition may hold is there; a fetch without news is over by then, too.
    std::thread::sleep(Duration::from_millis(700));

    let admin = cluster.admin();
    admin.delete_topics(std::slice::from_ref(&topic)).unwrap();
    crate::harness::eventually("it is made again", || admin.create_topic(&NewTopic::new(&topic, 1)).ok());
    produce("new");
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        // That its topic has gone may be said.
        let _ = consumer.take(Duration::from_millis(50), &mut out);
    }
    let batches = out.iter().filter_map(|taken| match taken {
        Taken::Batch(batch) => Some(batch),
        _ => None,
    });
    let values: Vec<_> = batches.flat_map(|batch| batch.values.iter().flatten()).collect();
    assert!(values.iter().all(|value| value.starts_with(b"old ")), "{} records", values.len());
}

/// The embedded broker has no listener that is encrypted and signed in at.
#[test]
fn records_come_over_tls_to_who_signs_in_and_anybody_else_is_told_why_not() {
    if std::env::var("TIDEMILL_KAFKA").as_deref() != Ok("apache") {
        return;
    }
    let user = ("tidemill".to_owned(), "correct-horse".to_owned());
    let kafka = ApacheKafka::start_with(&Options { sasl_ssl: Some(user), ..Options::default() }).unwrap();
    let secured = kafka.secured.as_ref().unwrap();
    let topic = unique("secured");
    let plain = KafkaConfig::new(kafka.bootstrap.clone());
    Admin::new(&plain).unwrap().create_topic(&NewTopic::new(&topic, 1)).unwrap();
    tools::produce(&plain, &topic, (0..100).map(|n| row(0, &n.to_string())), None, &mut |_| {}).unwrap();

    let mut config = KafkaConfig::new(secured.bootstrap.clone());
    config.client = Some(KafkaClient::Own);
    config.security_protocol = "sasl_ssl".to_owned();
    config.sasl_mechanism = Some("SCRAM-SHA-512".to_owned());
    config.sasl_username = Some("tidemill".to_owned());
    config.sasl_password = Some("correct-horse".to_owned());
    config.properties.insert("ssl.ca.location".to_owned(), secured.ca_pem.display().to_string());
    assert_eq!(probe_own_client(&config, PATIENCE), Ok(()));
    let mut member = Member::join_with(&config, spec(&unique("group"), &[&topic]));
    member.step_until("all records", |member| member.count() == 100);
    let expected: Vec<_> = (0..100).map(|n| (n, n.to_string())).collect();
    assert_eq!(member.records(at(0, 0)), expected);

    let told = |change: fn(&mut KafkaConfig)| {
        let mut config = config.clone();
        change(&mut config);
        probe_own_client(&config, PATIENCE).unwrap_err()
    };
    let wrong = told(|config| config.sasl_password = Some("wrong-horse".to_owned()));
    assert!(wrong.contains("does not let `tidemill` sign in with SCRAM-SHA-512"), "{wrong}");
    assert!(!wrong.contains("horse"), "{wrong}");
    let unknown = told(|config| config.sasl_mechanism = Some("PLAIN".to_owned()));
    assert!(unknown.contains("it knows SCRAM-SHA-512") && !unknown.contains("horse"), "{unknown}");
    // Whom this machine believes, if anybody.
    let untrusted = told(|config| config.properties.clear());
    assert!(untrusted.contains("believed") || untrusted.contains("trusts no certificate"), "{untrusted}");
}

/// A start calls a fetch back that waits without it, but not one after the other.
#[test]
fn a_partition_flows_while_another_starts_again_and_again() {
    let cluster = Cluster::get();
    let topic = cluster.topic("restless", 2);
    cluster.produce_numbers(&topic, 0, 0..20_000);
    let mut config = config(&cluster, KafkaClient::Own);
    config.limits.partition_fetch_bytes = 4_096;
    let mut consumer = Consumer::new(&config, spec(&unique("group"), &[&topic])).unwrap();
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(at(0, 0), Offset(0)), (at(0, 1), Offset(0))]).unwrap();
    consumer.start(at(0, 0), Offset(0)).unwrap();
    out.clear();
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while offsets(&out).last() != Some(&19_999) {
        assert!(Instant::now() < deadline, "only {:?}", offsets(&out).last());
        consumer.start(at(0, 1), Offset(0)).unwrap();
        consumer.take(Duration::from_millis(1), &mut out).unwrap();
    }
    assert_eq!(offsets(&out), (0..20_000).collect::<Vec<_>>());
}

/// Takes for that long, and nothing comes out.
fn stays_quiet(consumer: &mut Consumer, time: Duration) {
    let mut out = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        consumer.take(Duration::from_millis(20), &mut out).unwrap();
    }
    assert!(out.is_empty(), "{out:?}");
}

pub fn offsets(out: &[Taken]) -> Vec<i64> {
    let batches = out.iter().filter_map(|taken| match taken {
        Taken::Batch(batch) => Some(batch),
        _ => None,
    });
    batches.flat_map(|batch| batch.offsets.clone()).collect()
}

pub fn wait_for(consumer: &mut Consumer, out: &mut Vec<Taken>, done: impl Fn(&[Taken]) -> bool) {
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while !done(out) {
        assert!(Instant::now() < deadline, "not in time: {out:?}");
        consumer.take(Duration::from_millis(50), out).unwrap();
    }
}

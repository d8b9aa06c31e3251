//! Topics and their settings, groups, offsets, the probe.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill::kafka::admin::{AdminError, At, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::consumer::ConsumerSpec;
use tidemill::kafka::probe::{Cause, ProbeError, probe};
use tidemill::kafka::tools::{self, ConsumeSpec, From, Row};
use tidemill::ports::{Group, TaskOffset};
use tidemill::record::Offset;

use crate::harness::{Cluster, Member, at, eventually, now_ms, unique};

#[test]
fn a_topic_made_again_has_another_id() {
    let cluster = Cluster::get();
    let admin = cluster.admin();
    let name = cluster.topic("again", 3);
    let first = admin.topic(&name).unwrap();
    assert_eq!((first.partitions, first.id.is_nil()), (3, false));
    assert_eq!(admin.topics().unwrap().get(&name), Some(&3));
    admin.delete_topics(std::slice::from_ref(&name)).unwrap();
    eventually("the deletion", || {
        admin.describe_topics(std::slice::from_ref(&name)).unwrap()[0].is_none().then_some(())
    });
    eventually("the new topic", || admin.create_topic(&NewTopic::new(&name, 3)).ok());
    assert_ne!(admin.topic(&name).unwrap().id, first.id);
    assert_eq!(
        admin.topic("no-such-topic"),
        Err(AdminError::Missing { what: "topic `no-such-topic`".into() })
    );
}

/// Nodes that start together on an empty cluster all make the same topics.
#[test]
fn whoever_loses_the_race_to_make_a_topic_finds_it_all_the_same() {
    let cluster = Cluster::get();
    let together = std::sync::Barrier::new(4);
    for _ in 0..5 {
        let topic = NewTopic::new(unique("race"), 1).with("cleanup.policy", "compact");
        let ids: Vec<_> = std::thread::scope(|scope| {
            let making = || {
                let admin = cluster.admin();
                together.wait();
                let (topic, is_made) = admin.ensure_topic(&topic).unwrap();
                (topic.id, is_made)
            };
            let racers: Vec<_> = (0..4).map(|_| scope.spawn(making)).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|(id, _)| *id == ids[0].0), "{ids:?}");
        assert_eq!(ids.iter().filter(|(_, is_made)| *is_made).count(), 1, "{ids:?}");
    }
}

#[test]
fn an_internal_topic_is_made_once_and_checked_ever_after() {
    let cluster = Cluster::get();
    let admin = cluster.admin();
    let topic = NewTopic::new(unique("changelog"), 2)
        .with("cleanup.policy", "compact")
        .with("min.compaction.lag.ms", 0)
        .with("message.timestamp.type", "LogAppendTime")
        .with("max.message.bytes", 2_097_152);
    let (made, is_made) = admin.ensure_topic(&topic).unwrap();
    assert!(is_made);
    assert_eq!(admin.ensure_topic(&topic).unwrap(), (made, false));
    assert_eq!(
        admin.create_topic(&topic),
        Err(AdminError::Exists { what: format!("topic `{}`", topic.name) })
    );

    let more = NewTopic { partitions: 4, ..topic.clone() };
    let error = admin.ensure_topic(&more).unwrap_err().to_string();
    assert!(error.contains("has 2 partitions, but 4 are needed"), "{error}");
    let other = topic.clone().with("cleanup.policy", "delete");
    let error = admin.ensure_topic(&other).unwrap_err().to_string();
    assert!(error.contains("`cleanup.policy` is compact, but delete is needed"), "{error}");

    assert_eq!(admin.could_add_partitions(&topic.name, 5).unwrap(), None);
    assert_eq!(admin.topic(&topic.name).unwrap().partitions, 2, "asking adds none");
    assert!(admin.could_add_partitions(&topic.name, 1).unwrap().is_some());
    admin.add_partitions(&topic.name, 5).unwrap();
    eventually("the partitions", || (admin.topic(&topic.name).unwrap().partitions == 5).then_some(()));
}

#[test]
fn settings_are_changed_one_by_one_and_given_back() {
    let cluster = Cluster::get();
    let admin = cluster.admin();
    let topic = NewTopic::new(unique("settings"), 1).with("retention.ms", 1_000_000);
    admin.create_topic(&topic).unwrap();
    let name = topic.name.as_str();
    let own = || -> BTreeMap<String, String> {
        let settings = admin.known_settings(name).unwrap();
        settings.into_iter().filter(|setting| setting.own).map(|own| (own.name, own.value)).collect()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let change = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    let changes = [change("cleanup.policy", Some("compact, delete")), change("retention.ms", None)];
    assert_eq!(admin.could_alter(name, &changes).unwrap(), None);
    assert_eq!(own(), BTreeMap::from([pair("retention.ms", "1000000")]), "asking changes nothing");
    for (wrong, value) in [("retention.ms", "soon"), ("no.such", "1")] {
        let reason = admin.could_alter(name, &[change(wrong, Some(value))]).unwrap();
        assert!(reason.as_ref().is_some_and(|reason| reason.contains(wrong)), "{wrong}: {reason:?}");
        assert!(admin.alter_settings(name, &[change(wrong, Some(value))]).is_err());
    }

    admin.alter_settings(name, &changes).unwrap();
    let settings = admin.topic_settings(name).unwrap();
    let is = |name: &str, value: &str| settings.iter().any(|found| found.name == name && found.is(value));
    assert!(is("cleanup.policy", "compact,delete") && is("retention.ms", "604800000"), "{settings:?}");
    assert_eq!(own().into_keys().collect::<Vec<_>>(), ["cleanup.policy"]);
    assert_eq!(admin.topic(name).unwrap().replication, 1);
}

#[test]
fn settings_of_several_topics_are_told_apart_in_whatever_order_brokers_answer() {
    let cluster = Cluster::get();
    let admin = cluster.admin();
    let kept = ["1000001", "1000002", "1000003"];
    let topics = kept.map(|kept| NewTopic::new(unique("settings"), 1).with("retention.ms", kept));
    topics.iter().for_each(|topic| admin.create_topic(topic).unwrap());
    topics.iter().for_each(|topic| drop(admin.known_settings(&topic.name).unwrap()));
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let names = order.map(|index: usize| topics[index].name.as_str());
        let found = admin.configs_by_topic(&names).unwrap();
        assert_eq!(found.len(), topics.len());
        for topic in &topics {
            assert_eq!(found[&topic.name]["retention.ms"], topic.configs[0].1);
        }
    }
    assert_eq!(admin.configs_by_topic(&[]).unwrap(), BTreeMap::new());
    let missing = unique("missing");
    assert!(admin.configs_by_topic(&[&topics[0].name, &missing]).is_err());
}

#[test]
fn offsets_are_found_by_end_and_by_time() {
    let cluster = Cluster::get();
    let admin = cluster.admin();
    let topic = cluster.topic("times", 1);
    let t = now_ms();
    let rows = (0..10).map(|n| Row {
        value: Some(vec![b'x']),
        timestamp_ms: Some(t + n * 100),
        partition: Some(0),
        ..Row::default()
    });
    cluster.produce(&topic, rows);
    let one = [(topic.clone(), 0)];
    admin.delete_records(&topic, 0, Offset(2)).unwrap();
    for (at, expected) in [
        (At::Start, 2),
        (At::End, 10),
        (At::StableEnd, 10),
        (At::Time(t + 450), 5),
        (At::Time(t + 9_000), 10),
    ] {
        assert_eq!(admin.offsets(&one, at).unwrap(), [Offset(expected)], "{at:?}");
    }
}

#[test]
fn groups_show_members_and_offsets_and_go_when_empty() {
    let cluster = Cluster::get();
    let admin = cluster.admin();
    let topic = cluster.topic("lag", 2);
    let group = unique("group");
    let spec = ConsumerSpec {
        instance_id: Some("node-0".to_owned()),
        ..ConsumerSpec::new(&group, vec![topic.clone()])
    };
    let mut member = Member::join(&cluster, spec);
    member.step_until("the partitions", |member| member.running.len() == 2);
    let offset = TaskOffset { partition: at(0, 1), offset: Offset(4), metadata: "m".to_owned() };
    member.consumer.commit(&[offset]);

    assert!(admin.groups().unwrap().contains(&group));
    let described = admin.describe_group(&group).unwrap();
    assert_eq!((described.state.as_str(), described.members.len()), ("Stable", 1));
    assert_eq!(described.members[0].instance_id.as_deref(), Some("node-0"));
    assert_eq!(described.members[0].partitions.len(), 2);
    let all = [(topic.clone(), 0), (topic.clone(), 1)];
    let offsets = eventually("the offset", || {
        let offsets = admin.group_offsets(&group, Some(&all)).unwrap();
        offsets.iter().any(|row| row.offset.is_some()).then_some(offsets)
    });
    let of = |partition| offsets.iter().find(|row| row.partition == partition).unwrap();
    assert_eq!((of(0).offset, of(1).offset, of(1).metadata.as_str()), (None, Some(Offset(4)), "m"));

    assert!(admin.delete_group(&group).is_err(), "a group with members cannot be deleted");
    member.consumer.leave();
    eventually("the group to be empty", || admin.delete_group(&group).ok());
    assert!(!admin.groups().unwrap().contains(&group));
}

#[test]
fn the_probe_names_the_cause_within_seconds() {
    const WAIT: Duration = Duration::from_secs(30);
    let cluster = Cluster::get();
    let reached = probe(&cluster.config(), WAIT).unwrap();
    assert_eq!(reached.cluster_id, Some(cluster.admin().cluster_id().unwrap()));

    let begun = Instant::now();
    let error = probe(&KafkaConfig::new("127.0.0.1:1"), WAIT).unwrap_err();
    assert!(matches!(&error, ProbeError::Connection { cause: Cause::Connect(_), .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("InfraConnectionError: Failed to connect to Kafka"), "{text}");

    // Connected to, and never answering.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = KafkaConfig::new(silent.local_addr().unwrap().to_string());
    let text = probe(&config, Duration::from_secs(3)).unwrap_err().to_string();
    assert!(text.starts_with("InfraTimeoutError: Timeout connecting to Kafka after 3s"), "{text}");

    let error = probe(&KafkaConfig::new("no-such-host.invalid:9092"), WAIT).unwrap_err();
    assert!(matches!(&error, ProbeError::Connection { cause: Cause::Dns(_), .. }), "{error}");

    // TLS spoken to a plaintext listener, and a server that speaks no TLS at all.
    let mut config = cluster.config();
    config.security_protocol = "ssl".to_owned();
    let error = probe(&config, WAIT).unwrap_err();
    assert!(matches!(&error, ProbeError::Connection { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());

    let mut config = cluster.config();
    config.properties.insert("ssl.ca.location".to_owned(), "/no/such/file.pem".to_owned());
    config.security_protocol = "ssl".to_owned();
    let error = probe(&config, WAIT).unwrap_err();
    assert!(matches!(&error, ProbeError::Connection { cause: Cause::Configuration(_), .. }), "{error}");
}

#[test]
fn the_tools_show_what_was_produced_from_any_place() {
    let cluster = Cluster::get();
    let topic = cluster.topic("tools", 2);
    let mut heard = 0;
    let rows = (0..2_500).map(|n: i32| Row {
        key: Some(n.to_string().into_bytes()),
        value: Some(b"v".to_vec()),
        ..Row::default()
    });
    let produced = tools::produce(&cluster.config(), &topic, rows, None, &mut |n| heard = n).unwrap();
    assert_eq!((produced.count, heard), (2_500, 2_500));
    let partitions = [(topic.clone(), 0), (topic.clone(), 1)];
    let ends = cluster.admin().offsets(&partitions, At::End).unwrap();
    assert_eq!(produced.next, (0..).zip(ends.iter().map(|end| end.0)).collect());

    let spec = |from, partitions: &[i32], max| ConsumeSpec {
        topic: topic.clone(),
        partitions: partitions.to_vec(),
        from,
        max,
        committed: true,
        follow: false,
    };
    let count = |spec: &ConsumeSpec| tools::consume(&cluster.config(), spec, &mut |_| true);
    assert_eq!(count(&spec(From::Beginning, &[], None)), Ok(2_500));
    assert_eq!(count(&spec(From::Beginning, &[], Some(7))), Ok(7));
    assert_eq!(count(&spec(From::End, &[], None)), Ok(0));
    assert_eq!(count(&spec(From::Last(10), &[], None)), Ok(20));
    let mut first = None;
    let at_five = spec(From::Offset(5), &[1], Some(1));
    tools::consume(&cluster.config(), &at_five, &mut |record| {
        first = record.map(|record| (record.partition, record.offset));
        true
    })
    .unwrap();
    assert_eq!(first, Some((1, 5)));
    let error = count(&spec(From::Beginning, &[2], None)).unwrap_err().to_string();
    assert!(error.contains("has 2 partitions, no partition 2"), "{error}");
}

#[test]
fn a_topic_that_is_read_to_its_end_ends_where_it_did_when_that_began() {
    let cluster = Cluster::get();
    let topic = cluster.topic("growing", 1);
    cluster.produce_numbers(&topic, 0, 0..5);
    let spec = ConsumeSpec {
        topic: topic.clone(),
        partitions: Vec::new(),
        from: From::Beginning,
        max: None,
        committed: true,
        follow: false,
    };
    let mut seen = Vec::new();
    let count = tools::consume(&cluster.config(), &spec, &mut |record| {
        if let Some(record) = record {
            seen.push(record.offset);
            cluster.produce_numbers(&topic, 0, 5..7);
        }
        seen.len() < 100
    });
    assert_eq!((count.unwrap(), seen), (5, vec![0, 1, 2, 3, 4]));
}

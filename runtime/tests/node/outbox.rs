//! Outboxes on a whole node: webhooks, what becomes of them when their receiver misbehaves, topics outside the
//! transaction, and an operator's hand.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use tidemill::kafka::tools::{self, Consumed, Row};
use tidemill::node::{ControlError, Node};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::outbox_client::OutboxClient;
use tidemill_sink::{HttpSink, Mode};
use tidemill_test_support::build_guest;
use tokio::runtime::Runtime;
use tonic::Code;

use crate::queries::Served;
use crate::world::{World, deploy, eventually, is_adopted};

fn document(world: &World, sink: &HttpSink, more: &str) -> String {
    format!(
        "name: hook\nmodule: hostile.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs:\n  out:\n    \
         http: {{ url: '{}', format: binary, type: told, secret_file: {} }}\n    timeout: 1s\n    retry: 20ms..100ms\n    \
         breaker: {{ failures: 4, open: 300ms }}\n{more}",
        sink.url(),
        secret_file(world).display()
    )
}

const SECRET: &str = "canary-of-the-outbox";

fn secret_file(world: &World) -> std::path::PathBuf {
    let path = world.dir.path().join("secret");
    std::fs::write(&path, format!("{SECRET}\n")).expect("a secret");
    path
}

fn produce(world: &World, rows: &[(i32, &str, &str)]) {
    let rows = rows.iter().map(|(partition, key, value)| Row {
        key: Some(key.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
        partition: Some(*partition),
        ..Row::default()
    });
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");
}

/// Every committed record of a topic; none if it cannot be read.
fn read(world: &World, topic: &str) -> Vec<Consumed> {
    world.committed(topic).unwrap_or_default()
}

fn list(node: &Node, partition: i32) -> Vec<proto::OutboxState> {
    let request = proto::ListOutboxRequest {
        deployment: "hook".into(),
        partition: Some(partition),
        ..proto::ListOutboxRequest::default()
    };
    node.handle().outbox_list(&request).map(|answer| answer.outboxes).unwrap_or_default()
}

fn waiting(node: &Node) -> u64 {
    (0..2).flat_map(|partition| list(node, partition)).map(|state| state.rows).sum()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn rows_reach_a_receiver_that_fails_in_every_way_once_per_id_and_in_order_per_key() {
    let world = World::new(&[("in", 2)]);
    let sink = HttpSink::start();
    let node = world.node();
    deploy(&node, &document(&world, &sink, ""), &build_guest("tests/guests/hostile"));
    produce(&world, &[(0, "a", "ok"), (0, "b", "ok"), (1, "c", "ok")]);
    // What is answered late, on a busy machine, is delivered again.
    eventually("all are delivered", || sink.applied_once().len() == 3);
    let first =
        sink.received().into_iter().find(|one| one.header("ce-partitionkey") == Some("a")).expect("a's");
    assert_eq!((first.body.as_slice(), first.header("ce-type")), (&b"ok"[..], Some("told")));
    assert_eq!(first.header("ce-id"), Some(first.id()));
    assert!(first.header("tidemill-signature").is_some_and(|signature| signature.starts_with("t=")));
    eventually("and their rows are gone", || waiting(&node) == 0);

    for mode in
        [Mode::Status(503), Mode::Hang, Mode::RetryAfter { seconds: 0 }, Mode::Flap, Mode::AcceptTwice]
    {
        let (before, applied) = (sink.count(), sink.applied_once().len());
        sink.set(mode);
        let four = [(0, "a", "ok"), (0, "a", "ok"), (0, "b", "ok"), (1, "c", "ok")];
        produce(&world, &four);
        eventually("it has been tried", || sink.count() >= before + 3);
        if mode == Mode::Status(503) {
            eventually("the breaker opens", || {
                list(&node, 0).iter().any(|state| state.breaker() == proto::BreakerState::Open)
            });
        }
        sink.set(Mode::Accept);
        eventually("everything goes out", || waiting(&node) == 0 && sink.applied_once().len() == applied + 4);
    }
    let mut last = HashMap::new();
    for one in sink.applied_once() {
        let key = one.header("ce-partitionkey").expect("a key").to_owned();
        let before = last.insert(key, one.sequence());
        assert!(before < Some(one.sequence()), "{one:?} after {before:?}");
    }
    // What is acknowledged is deleted, so a restart delivers nothing again.
    let count = sink.count();
    node.stop();
    let node = world.node();
    produce(&world, &[(0, "d", "ok")]);
    eventually("the new one is delivered", || sink.count() > count);
    let since = sink.received_since(count);
    assert!(since.iter().all(|one| one.header("ce-partitionkey") == Some("d")), "others too: {since:?}");
    node.stop();
}

#[test]
fn what_can_never_be_delivered_is_buried_and_a_full_outbox_pauses_its_partition() {
    let world = World::new(&[("in", 2)]);
    let sink = HttpSink::start();
    let node = world.node();
    deploy(&node, &document(&world, &sink, "    rows: 3\n"), &build_guest("tests/guests/hostile"));
    sink.set(Mode::Status(410));
    produce(&world, &[(0, "a", "ok")]);
    let letters = || read(&world, "test.hook.dead-letters");
    eventually("it is buried", || letters().len() == 1);
    let letter = letters().remove(0);
    let text = |name: &str| {
        let found = letter.headers.iter().find(|(found, _)| found == name);
        found.and_then(|(_, value)| String::from_utf8(value.clone()?).ok()).unwrap_or_default()
    };
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"a"[..]), Some(&b"ok"[..])));
    assert_eq!(
        (text("outbox_destination"), text("error_type")),
        ("out".into(), "OutboxDeliveryError".into())
    );
    assert!(text("failure_reason").contains("410"));
    eventually("and gone", || waiting(&node) == 0);

    // Given back, it is the same delivery.
    let counted = || {
        let asked = proto::CountLettersRequest {
            deployment: "hook".into(),
            partition: Some(0),
            local: true,
            ..proto::CountLettersRequest::default()
        };
        node.handle().letters_count(&asked).expect("counted").partitions.remove(0)
    };
    assert_eq!((counted().waiting, counted().by_error_type["OutboxDeliveryError"]), (1, 1));
    let refused = sink.received().last().expect("it was sent").id().to_owned();
    sink.set(Mode::Accept);
    let redrive = proto::RedriveRequest { deployment: "hook".into(), ..proto::RedriveRequest::default() };
    node.handle().redrive(redrive, Vec::new()).expect("accepted");
    eventually("it is delivered", || sink.applied_once().iter().any(|one| one.id() == refused));
    eventually("and gone again", || waiting(&node) == 0 && (counted().waiting, counted().marked) == (0, 1));
    // Another one, which stays a letter for now.
    sink.set(Mode::Status(410));
    produce(&world, &[(0, "b", "ok")]);
    eventually("it is buried as well", || letters().len() == 2 && waiting(&node) == 0);
    sink.set(Mode::Accept);

    let pause = |node: &Node, destination: &str| {
        node.handle().outbox_pause(proto::PauseOutboxRequest {
            deployment: "hook".into(),
            destination: destination.into(),
            author: "me".into(),
        })
    };
    assert!(matches!(pause(&node, "uot"), Err(ControlError::NotFound(_))));
    assert_eq!(pause(&node, "out").expect("paused").paused, ["out"]);
    eventually("the pause is known", || list(&node, 0).iter().any(|state| state.paused));
    let (count, applied) = (sink.count(), sink.applied_once().len());
    let mut sent = 1;
    produce(&world, &[(1, "y", "ok")]);
    let reason = |partition: i32| {
        let lags = node.handle().lag(Some("hook")).unwrap_or_default();
        lags.into_iter().find(|lag| lag.partition == partition).map(|lag| (lag.reason, lag.records))
    };
    eventually("the full outbox says so", || {
        produce(&world, &[(0, "x", "ok")]);
        sent += 1;
        reason(0).is_some_and(|(why, _)| why.starts_with("paused: the outbox of out holds"))
    });
    // A redrive gives nothing back there meanwhile, and says why.
    let redrive = proto::RedriveRequest { deployment: "hook".into(), ..proto::RedriveRequest::default() };
    let id = node.handle().redrive(redrive, Vec::new()).expect("accepted").id;
    let asked =
        proto::RedrivesRequest { deployment: "hook".into(), id: Some(id), partition: Some(0), local: true };
    let stands = node.handle().redrives_here(&asked).expect("told").redrives.remove(0).partitions.remove(0);
    assert!(stands.reason.starts_with("paused: the outbox of out holds"), "{stands:?}");
    eventually("the other partition goes on", || reason(1).is_some_and(|(_, records)| records == 0));
    assert_eq!(sink.count(), count, "nothing is sent while it is paused");

    let show = proto::ShowOutboxRequest { deployment: "hook".into(), ..proto::ShowOutboxRequest::default() };
    let rows = node.handle().outbox_show(&show, soon()).expect("shown").rows;
    assert!(rows.len() >= 3 && rows[0].key.as_deref() == Some(b"x"), "{rows:?}");
    assert_eq!(rows[0].r#type, "told", "as its destination says");
    let one = proto::OutboxRows { destination: "out".into(), sequences: vec![rows[0].sequence] };
    let discard = proto::DiscardOutboxRequest {
        deployment: "hook".into(),
        partition: Some(0),
        rows: Some(one),
        ..proto::DiscardOutboxRequest::default()
    };
    assert_eq!(node.handle().outbox_discard(&discard, soon()).expect("discarded").rows, 1);

    // A pause is the fleet's and survives its nodes; so do the rows.
    node.stop();
    let node = world.node();
    eventually("it is still paused", || list(&node, 0).iter().any(|state| state.paused && state.rows > 0));
    assert_eq!(sink.count(), count);
    let resume = proto::ResumeOutboxRequest { deployment: "hook".into(), ..Default::default() };
    assert!(node.handle().outbox_resume(resume).expect("resumed").paused.is_empty());
    // The letter for the discarded row.
    eventually("all but the discarded one go out, and so does the letter", || {
        sink.applied_once().len() == applied + sent && waiting(&node) == 0
    });
    let pause = proto::PauseRequest { name: "hook".into(), ..proto::PauseRequest::default() };
    node.handle().pause(pause).expect("paused");
    let stands = node.handle().redrives("hook", Some(id)).expect("told").remove(0).partitions.remove(0);
    assert_eq!(stands.reason, "hook is paused");
    // It had ended before, as the stores say that its tasks have left open.
    let asked = proto::RedrivesRequest { partition: None, ..asked };
    eventually("the redrive is told as it ended", || {
        let told = node.handle().redrives_here(&asked).expect("told").redrives.remove(0).partitions;
        let ended = told.iter().filter(|at| at.reason.is_empty()).filter_map(|at| at.progress.as_ref());
        ended.map(|progress| (progress.ended, progress.given)).eq([(true, 1), (true, 0)])
    });
    node.stop();
}

#[test]
fn a_deployment_without_an_outbox_says_so_unless_an_earlier_version_left_rows() {
    let world = World::new(&[("in", 2), ("copies", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let served = Served::start(&world, &runtime, "a");
    let node = served.node();
    let module = build_guest("tests/guests/hostile");
    let document = |out: &str| {
        format!(
            "name: hook\nmodule: hostile.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs: {{ out: {out} }}\n"
        )
    };
    let show = |partition| {
        let request = proto::ShowOutboxRequest { deployment: "hook".into(), partition, ..Default::default() };
        node.handle().outbox_show(&request, soon()).map(|answer| answer.rows.len())
    };
    let is_refused = |partition| match show(partition) {
        Err(ControlError::Precondition(why)) => why.starts_with("hook has no outbox"),
        Ok(_) | Err(_) => false,
    };
    // Of the whole deployment, in whichever partitions.
    let client = || OutboxClient::new(served.channel.clone());
    let rows_of = |destination: &str| {
        Some(proto::OutboxRows { destination: destination.into(), sequences: Vec::new() })
    };
    let retry = |destination: &str| {
        let request = proto::RetryOutboxRequest {
            deployment: "hook".into(),
            rows: rows_of(destination),
            ..proto::RetryOutboxRequest::default()
        };
        runtime.block_on(client().retry(request)).map(|_| ()).map_err(|status| status.code())
    };
    let discard = || {
        let request = proto::DiscardOutboxRequest {
            deployment: "hook".into(),
            rows: rows_of("out"),
            ..proto::DiscardOutboxRequest::default()
        };
        runtime.block_on(client().discard(request)).map(|answer| answer.into_inner().rows)
    };
    let count = || {
        let request = proto::CountDiscardRequest {
            deployment: "hook".into(),
            rows: rows_of("out"),
            ..proto::CountDiscardRequest::default()
        };
        runtime.block_on(client().count_discard(request)).map(|answer| answer.into_inner().rows)
    };
    deploy(node, &document("{ http: { url: 'http://127.0.0.1:1/nobody' } }"), &module);
    produce(&world, &[(1, "a", "ok")]);
    eventually("one waits, and nothing does where nothing was", || {
        matches!((show(0), show(1)), (Ok(0), Ok(1)))
    });
    assert_eq!(retry("gone"), Err(Code::NotFound), "there is another");

    deploy(node, &document("{ topic: copies }"), &module);
    eventually("the second is adopted", || is_adopted(&node.handle(), "hook"));
    assert_eq!(show(1).expect("what is left is shown"), 1);
    assert!(is_refused(0), "nothing is left there: {:?}", show(0));
    assert_eq!((retry(""), retry("out"), retry("gone")), (Ok(()), Ok(()), Err(Code::NotFound)));
    // Not while it is under way.
    eventually("it is counted", || count().is_ok_and(|rows| rows == 1));
    eventually("which changed nothing: it is discarded", || discard().is_ok_and(|rows| rows == 1));
    eventually("nothing is left there either", || is_refused(1));
    assert_eq!((retry(""), retry("out")), (Err(Code::FailedPrecondition), Err(Code::NotFound)));
    for refused in [count(), discard()] {
        assert_eq!(refused.expect_err("no such outbox").code(), Code::NotFound);
    }
    served.stop();
}

#[test]
fn a_retry_of_all_partitions_that_fails_at_one_says_what_it_had_done_in_those_before() {
    let world = World::new(&[("in", 2)]);
    let runtime = Runtime::new().expect("a runtime");
    let served = Served::start(&world, &runtime, "a");
    let document = "name: hook\nmodule: hostile.wasm\ninputs: { in: { topic: in } }\noutputs: { out: { http: { url: \
                    'http://127.0.0.1:1/nobody' } } }\n";
    deploy(served.node(), document, &build_guest("tests/guests/hostile"));
    produce(&world, &[(0, "a", "ok"), (1, "b", "panic")]);
    let retry = || {
        let request =
            proto::RetryOutboxRequest { deployment: "hook".into(), ..proto::RetryOutboxRequest::default() };
        runtime.block_on(OutboxClient::new(served.channel.clone()).retry(request))
    };
    eventually("the first has a row, and the second is halted", || {
        let told = "1 rows were tried before this failed (1 of partition 0)\npartition 1 of hook is halted";
        retry().is_err_and(|failed| {
            failed.code() == Code::FailedPrecondition && failed.message().starts_with(told)
        })
    });
    served.stop();
}

#[test]
fn a_secret_that_is_not_there_is_a_problem_of_the_deploy_and_one_that_is_there_is_shown_nowhere() {
    let world = World::new(&[("in", 1)]);
    let sink = HttpSink::start();
    let node = world.node();
    let module = build_guest("tests/guests/hostile");
    let good = document(&world, &sink, "");
    let bad = good.replace(&secret_file(&world).display().to_string(), "/nowhere/key");
    let header = proto::DeployHeader { document: bad, ..proto::DeployHeader::default() };
    let refused = node.handle().deploy(header, module.to_vec()).expect_err("no secret").to_string();
    assert!(refused.contains("outputs.out") && refused.contains("/nowhere/key"), "{refused}");
    deploy(&node, &good, &module);
    produce(&world, &[(0, "a", "ok")]);
    eventually("delivered", || sink.count() > 0);
    let seen = sink.received().remove(0);
    assert!(!format!("{seen:?}").contains(SECRET));
    assert!(!format!("{:?}", node.handle().deployments()).contains(SECRET));
    let show = proto::ShowOutboxRequest { deployment: "hook".into(), ..proto::ShowOutboxRequest::default() };
    assert!(!format!("{:?}", node.handle().outbox_show(&show, soon())).contains(SECRET));
    // Registry, control topic, changelog and all others.
    let topics = world.admin().topics().expect("topics");
    assert!(topics.contains_key("_test.control") && topics.contains_key("test.hook.changelog"), "{topics:?}");
    for topic in topics.keys() {
        for record in read(&world, topic) {
            let bytes = [record.key, record.value].into_iter().flatten().collect::<Vec<_>>().concat();
            let holds = bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
            assert!(!holds, "{topic} holds it");
        }
    }
    node.stop();
}

/// A topic outside the transaction: here of the same cluster.
#[test]
fn a_topic_has_every_row_with_its_id_and_sequence_and_the_rows_of_a_key_in_their_order() {
    let world = World::new(&[("in", 2), ("mirrored", 3)]);
    let node = world.node();
    let document = format!(
        "name: hook\nmodule: hostile.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs:\n  out:\n    \
         kafka: {{ bootstrap_servers: '{}', topic: mirrored }}\n",
        world.kafka().bootstrap_servers
    );
    deploy(&node, &document, &build_guest("tests/guests/hostile"));
    let keys: Vec<String> = (0..10).map(|number| format!("k{number}")).collect();
    let rows: Vec<(i32, &str, &str)> = (0..10)
        .flat_map(|_| (0..).zip(&keys))
        .map(|(number, key)| (number % 2, key.as_str(), "ok"))
        .collect();
    produce(&world, &rows);
    eventually("all are delivered and their rows are gone", || {
        read(&world, "mirrored").len() >= rows.len() && waiting(&node) == 0
    });
    let records = read(&world, "mirrored");
    assert_eq!(records.len(), rows.len(), "none twice");
    let (mut ids, mut last) = (HashSet::new(), HashMap::new());
    for record in records {
        let text = |name: &str| {
            let found = record.headers.iter().find(|(found, _)| found == name);
            found.and_then(|(_, value)| String::from_utf8(value.clone()?).ok()).expect("a header of ours")
        };
        assert_eq!(record.value.as_deref(), Some(&b"ok"[..]));
        let (id, sequence) = (text("tidemill-id"), text("tidemill-sequence"));
        assert_eq!(id.split('/').count(), 5, "{id}");
        assert!(ids.insert(id), "{record:?} has the id of another");
        let sequence: u64 = sequence.parse().expect("a number");
        let before = last.insert(record.key.clone(), (record.partition, sequence));
        assert!(
            before.is_none_or(|(at, before)| at == record.partition && before < sequence),
            "{record:?} after {before:?}"
        );
    }
    assert_eq!(last.len(), keys.len());
    node.stop();
}

/// `at_least_once` may emit again; a reader that drops ids it has seen gets each effect once.
#[test]
fn ids_on_a_topic_let_an_inbox_drop_every_repeat() {
    let world = World::new(&[("in", 1), ("middle", 1), ("end", 1)]);
    let module = build_guest("tests/guests/hostile");
    let first = "name: first\nmodule: m.wasm\nguarantee: at_least_once\ninputs: { in: { topic: in } }\n\
                 outputs: { out: { topic: middle, ids: true } }\n";
    let second = "name: second\nmodule: m.wasm\ninputs: { in: { topic: middle } }\noutputs: { out: { topic: end } }\n\
                  inbox: { id: 'header:tidemill-id', ttl: 1h }\n";
    let node = world.node();
    deploy(&node, first, &module);
    deploy(&node, second, &module);
    produce(&world, &[(0, "a", "ok"), (0, "a", "ok"), (0, "b", "ok")]);
    let read = |topic: &str| read(&world, topic);
    eventually("three go through", || read("end").len() == 3);
    // What a producer's retry, or a node that dies before its offsets are committed, does: the same again.
    let again = read("middle").into_iter().map(|record| Row {
        key: record.key,
        value: record.value,
        headers: record.headers,
        ..Row::default()
    });
    let again: Vec<Row> = again.collect();
    let ids: HashSet<_> =
        again.iter().map(|row| row.headers.iter().find(|(name, _)| name == "tidemill-id").cloned()).collect();
    assert_eq!(ids.len(), 3, "each its own id: {ids:?}");
    tools::produce(&world.kafka(), "middle", again, None, &mut |_| {}).expect("produced");
    produce(&world, &[(0, "c", "ok")]);
    eventually("the new one arrives", || {
        read("end").iter().any(|record| record.key.as_deref() == Some(b"c"))
    });
    assert_eq!(read("end").len(), 4, "no repeat has an effect");
    node.stop();
}

//! State queries over gRPC: what was produced is read, whatever happens to the node meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use tidemill::control::forward::Forwarder;
use tidemill::control::grpc::Services;
use tidemill::control::guard::{Access, Guard};
use tidemill::control::incoming::{Door, Established, Side};
use tidemill::control::server;
use tidemill::kafka::tools::{self, Row};
use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::{ControlError, Node};
use tidemill::telemetry::Telemetry;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::edit_state_request::Change;
use tidemill_proto::v1::state_client::StateClient;
use tidemill_test_support::build_guest;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::WORD_COUNT;
use crate::world::{World, deploy, eventually};

/// A node with its gRPC services.
pub struct Served<'a> {
    node: Option<Node>,
    server: JoinHandle<()>,
    stop: watch::Sender<bool>,
    runtime: &'a Runtime,
    pub channel: Channel,
}

impl<'a> Served<'a> {
    pub fn start(world: &World, runtime: &'a Runtime, id: &str) -> Served<'a> {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let node = world.member(id, &address);
        let handle = node.handle();
        let (stop, stopped) = watch::channel(false);
        let server = runtime.spawn(async move {
            let telemetry = Telemetry::new();
            let door = Door { side: Side::Grpc, tls: None, telemetry: Arc::clone(&telemetry) };
            let incoming = Established::new(listener, door);
            let forwarder = Forwarder::new(handle.clone(), None);
            let services = Services::new(handle, forwarder, Arc::clone(&telemetry), stopped.clone());
            let guard = Guard::new(Access::Open, telemetry);
            server::serve(incoming, services, guard, stopped).await.expect("serves");
        });
        let _guard = runtime.enter();
        let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
        Served { node: Some(node), server, stop, runtime, channel }
    }

    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("it runs")
    }

    fn client(&self) -> StateClient<Channel> {
        StateClient::new(self.channel.clone())
    }

    pub fn stop(mut self) {
        self.stop.send(true).expect("it listens");
        drop(self.channel);
        self.runtime.block_on(&mut self.server).expect("ends");
        if let Some(node) = self.node.take() {
            node.stop();
        }
    }
}

pub fn at_least(partition: i32, offset: u64) -> Vec<proto::InputPosition> {
    vec![proto::InputPosition { topic: "words".into(), partition, offset }]
}

fn get(key: &str, at_least: Vec<proto::InputPosition>) -> tonic::Request<proto::GetStateRequest> {
    let mut request = tonic::Request::new(proto::GetStateRequest {
        deployment: "word-count".into(),
        store: "counts".into(),
        key: key.into(),
        at_least,
        text: true,
        ..proto::GetStateRequest::default()
    });
    request.set_timeout(Duration::from_secs(20));
    request
}

/// Rounds of the test below; ten thousand by `TIDEMILL_READS=10000`.
fn rounds() -> u64 {
    std::env::var("TIDEMILL_READS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(200)
}

#[test]
fn a_produced_record_is_read_at_its_position_across_swaps_restarts_and_moves() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    let runtime = Runtime::new().expect("a runtime");
    let mut nodes = vec![Served::start(&world, &runtime, "a")];
    deploy(nodes[0].node(), WORD_COUNT, &module);
    let words = TopicLog::open(&world.kafka(), "words").expect("a log");
    let rounds = rounds();
    for round in 1..=rounds {
        let next = words.append(Some(b"k"), Some(b"")).expect("appended").0 + 1;
        // In the middle of things, with the record on its way.
        match round {
            _ if round == rounds / 4 => {
                deploy(nodes[0].node(), &format!("{WORD_COUNT}workers: 2\n"), &module)
            }
            _ if round == rounds / 2 => nodes.push(Served::start(&world, &runtime, "b")),
            // Its partition goes to the other, and the next one's back.
            _ if round == rounds * 5 / 8 => nodes.remove(0).stop(),
            _ if round == rounds * 3 / 4 => nodes.insert(0, Served::start(&world, &runtime, "a")),
            _ if round == rounds * 7 / 8 => nodes.remove(1).stop(),
            _ => {}
        }
        let mut client = nodes[round as usize % nodes.len()].client();
        let answer = runtime.block_on(client.get(get("k", at_least(0, next)))).expect("answers").into_inner();
        let found: Vec<_> = answer.entries.iter().map(|entry| entry.text.as_deref()).collect();
        assert_eq!(found, [Some(next.to_string().as_str())], "round {round}: {:?}", answer.read_at);
        assert_eq!(answer.read_at[0].positions, at_least(0, next), "round {round}");
    }
    nodes.into_iter().for_each(Served::stop);
}

#[test]
fn pages_go_on_after_a_restart_and_a_swap_and_what_cannot_be_answered_is_said() {
    let world = World::new(&[("words", 2), ("counts", 1)]);
    let module = build_guest("plugins/count");
    let runtime = Runtime::new().expect("a runtime");
    let node = Served::start(&world, &runtime, "a");
    deploy(node.node(), WORD_COUNT, &module);
    let keys: Vec<String> = (0..10).map(|key| format!("k{key}")).collect();
    let (even, odd): (Vec<&str>, Vec<&str>) = (
        keys.iter().step_by(2).map(String::as_str).collect(),
        keys.iter().skip(1).step_by(2).map(String::as_str).collect(),
    );
    let wanted =
        [at_least(0, world.produce_to("words", 0, &even)), at_least(1, world.produce_to("words", 1, &odd))];
    let mut scan = proto::ScanStateRequest {
        deployment: "word-count".into(),
        store: "counts".into(),
        limit: 3,
        from: b"k1".to_vec(),
        to: b"k9".to_vec(),
        at_least: wanted.concat(),
        ..proto::ScanStateRequest::default()
    };
    let mut found = Vec::new();
    let mut page = |client: &mut StateClient<Channel>, scan: &mut proto::ScanStateRequest| {
        let page = runtime.block_on(client.scan(scan.clone())).expect("a page").into_inner();
        assert!(page.read_at.iter().all(|at| !at.positions.is_empty() && at.node == "a"));
        found.extend(page.entries.into_iter().map(|entry| String::from_utf8(entry.key).expect("text")));
        scan.page_token = page.next_page_token;
    };
    page(&mut node.client(), &mut scan);
    node.stop();
    let node = Served::start(&world, &runtime, "a");
    page(&mut node.client(), &mut scan);
    deploy(node.node(), &format!("{WORD_COUNT}limits: {{ memory: 32MiB }}\n"), &module);
    eventually("every task runs the next version", || {
        let rollout = node.node().handle().rollout("word-count").expect("a rollout");
        let runs = |task: &proto::TaskRollout| task.revision == rollout.revision && !task.first.is_empty();
        rollout.tasks.iter().all(runs)
    });
    assert!(!scan.page_token.is_empty(), "there is more");
    while !scan.page_token.is_empty() {
        page(&mut node.client(), &mut scan);
    }
    assert_eq!(found, ["k2", "k4", "k6", "k8", "k1", "k3", "k5", "k7"]);

    let mut client = node.client();
    let many = proto::GetManyStateRequest {
        deployment: "word-count".into(),
        store: "counts".into(),
        keys: vec![b"k0".to_vec(), b"nobody".to_vec(), b"k1".to_vec()],
        ..proto::GetManyStateRequest::default()
    };
    let answer = runtime.block_on(client.get_many(many.clone())).expect("answers").into_inner();
    let found: Vec<_> = answer.entries.iter().map(|entry| (entry.partition, entry.key.as_slice())).collect();
    assert_eq!((found, answer.missing), (vec![(0, &b"k0"[..]), (1, b"k1")], vec![b"nobody".to_vec()]));
    assert_eq!(answer.r#type, "u64");

    // Positions that nobody will reach, topics that are not read, tokens of another scan, wrong numbers.
    let late =
        proto::GetManyStateRequest { partition: Some(0), at_least: at_least(0, 1_000), ..many.clone() };
    let late = node.node().handle().state_get_many(&late, Instant::now()).expect_err("too late");
    assert!(matches!(late, ControlError::Deadline(_)), "{late:?}");
    assert!(late.to_string().contains("is at words/0@5, not yet at words/0@1000"), "{late}");
    let mut other = get("k0", at_least(0, 1));
    other.get_mut().at_least[0].topic = "wrods".into();
    let status = runtime.block_on(client.get(other)).expect_err("no such input");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let mut nowhere = get("k0", Vec::new());
    nowhere.get_mut().partition = Some(7);
    assert_eq!(runtime.block_on(client.get(nowhere)).expect_err("no partition").code(), Code::NotFound);
    scan.page_token = b"of another scan".to_vec();
    assert_eq!(runtime.block_on(client.scan(scan)).expect_err("no token").code(), Code::InvalidArgument);
    let none = proto::GetManyStateRequest { keys: Vec::new(), ..many };
    assert_eq!(runtime.block_on(client.get_many(none)).expect_err("no keys").code(), Code::InvalidArgument);
    node.stop();
}

const HALTS: &str = "\
name: halts
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: out } }
failures: halt
";

#[test]
fn a_halted_partition_is_read_as_it_stands_and_says_so() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let node = Served::start(&world, &runtime, "a");
    deploy(node.node(), HALTS, &build_guest("tests/guests/hostile"));
    let rows = ["put k", "permanent"].map(|value| Row {
        key: Some(b"k".to_vec()),
        value: Some(value.into()),
        ..Row::default()
    });
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");

    let at = |offset| vec![proto::InputPosition { topic: "in".into(), partition: 0, offset }];
    let asked = |at_least| {
        let request = proto::GetStateRequest {
            deployment: "halts".into(),
            store: "state".into(),
            key: b"k".to_vec(),
            at_least,
            ..proto::GetStateRequest::default()
        };
        runtime.block_on(node.client().get(request))
    };
    let read = || asked(at(1)).ok().map(tonic::Response::into_inner);
    eventually("the second record has halted the task, and the first is committed", || {
        read().is_some_and(|answer| answer.read_at[0].state() == proto::TaskState::Halted)
    });
    let answer = read().expect("it stays so");
    assert_eq!(answer.entries[0].value, b"v");
    assert_eq!(answer.read_at[0].positions, at(1));
    assert!(answer.read_at[0].reason.contains("never"), "{:?}", answer.read_at);
    let status = asked(at(2)).expect_err("nobody gets there");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("is halted at in/0@1, before the position"), "{status}");
    node.stop();
}

#[test]
fn a_partition_of_another_node_is_forwarded_or_refused_naming_its_owner() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let (a, b) = (Served::start(&world, &runtime, "a"), Served::start(&world, &runtime, "b"));
    deploy(a.node(), WORD_COUNT, &build_guest("plugins/count"));
    let next = world.produce_to("words", 0, &["k"]);
    let answer = runtime.block_on(a.client().get(get("k", at_least(0, next)))).expect("answers").into_inner();
    let owner = answer.read_at[0].node.clone();
    let other = if owner == "a" { &b } else { &a };
    eventually("the other node has heard of the owner", || {
        let mut local = get("k", Vec::new());
        (local.get_mut().partition, local.get_mut().local) = (Some(0), true);
        let status = runtime.block_on(other.client().get(local)).expect_err("not here");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        status.message().contains(&format!("it is on {owner} at "))
    });
    let answer = runtime.block_on(other.client().get(get("k", Vec::new()))).expect("forwarded").into_inner();
    assert_eq!((answer.read_at[0].node.as_str(), answer.entries.len()), (owner.as_str(), 1));
    a.stop();
    b.stop();
}

#[test]
fn an_edit_is_a_write_like_any_and_on_record() {
    let world = World::new(&[("words", 2), ("counts", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let (a, b) = (Served::start(&world, &runtime, "a"), Served::start(&world, &runtime, "b"));
    deploy(a.node(), WORD_COUNT, &build_guest("plugins/count"));
    let next = world.produce_to("words", 0, &["k", "k"]);
    runtime.block_on(a.client().get(get("k", at_least(0, next)))).expect("both are counted");

    let edit = |change| proto::EditStateRequest {
        deployment: "word-count".into(),
        store: "counts".into(),
        key: b"k".to_vec(),
        partition: 0,
        change: Some(change),
        author: "a test".into(),
        local: false,
    };
    let text = |text: &str| edit(Change::Text(text.into()));
    // Through either node: one of them has the partition.
    for (node, value) in [(&a, "40"), (&b, "41")] {
        let edited = runtime.block_on(node.client().edit(text(value))).expect("edited").into_inner();
        let at = edited.edited_at.expect("where");
        assert_eq!(at.positions, at_least(0, next));
        let answer = runtime.block_on(node.client().get(get("k", at.positions))).expect("read").into_inner();
        assert_eq!(answer.entries[0].text.as_deref(), Some(value));
    }
    let next = world.produce_to("words", 0, &["k"]);
    let answer = runtime.block_on(a.client().get(get("k", at_least(0, next)))).expect("read").into_inner();
    assert_eq!(answer.entries[0].text.as_deref(), Some("42"), "the handler goes on from the edit");
    runtime.block_on(a.client().edit(edit(Change::Delete(true)))).expect("deleted");

    for (wrong, code) in [
        (text("many"), Code::InvalidArgument),
        (edit(Change::Value(b"short".to_vec())), Code::InvalidArgument),
        (proto::EditStateRequest { change: None, ..text("") }, Code::InvalidArgument),
        (proto::EditStateRequest { store: "cuonts".into(), ..text("1") }, Code::NotFound),
        (proto::EditStateRequest { partition: 9, ..text("1") }, Code::NotFound),
    ] {
        let status = runtime.block_on(a.client().edit(wrong)).expect_err("refused");
        assert_eq!(status.code(), code, "{status}");
    }
    a.stop();
    b.stop();
    // On a disk that knows nothing: what the changelog says.
    for id in ["a", "b"] {
        std::fs::remove_dir_all(world.dir.path().join(format!("node-{id}/stores"))).expect("lost");
    }
    let a = Served::start(&world, &runtime, "a");
    let answer = runtime.block_on(a.client().get(get("k", at_least(0, next)))).expect("read").into_inner();
    assert_eq!(answer.entries, [], "the delete came back from the changelog");
    a.stop();
    let mut recorded = Vec::new();
    let control = TopicLog::open(&world.kafka(), "_test.control").expect("the control topic");
    let mut tail = control.tail(tidemill::record::Offset(0)).expect("a tail");
    tail.read_to_end(&mut |record| {
        let entry =
            proto::ControlEntry::decode(record.value.unwrap_or_default().as_slice()).expect("an entry");
        if let Some(Entry::Edit(edit)) = entry.entry {
            recorded.push((edit.author, edit.key, edit.value_digest.len()));
        }
    })
    .expect("read");
    let record = |digest| ("a test".to_owned(), b"k".to_vec(), digest);
    assert_eq!(recorded, [record(32), record(32), record(0)]);
}

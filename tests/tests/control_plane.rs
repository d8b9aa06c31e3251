//! The control plane as strangers use it: clients that know nothing but reflection, clients that keep
//! no rule, and calls that are under way when a node stops.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};
use rustix::process::Signal;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tidemill_proto::v1::state_client::StateClient;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::hostile::clients;
use tidemill_tests::hostile::process::{Peak, Usage};
use tidemill_tests::node::Node;
use tidemill_tests::outbox::stage;
use tidemill_tests::programs::{alone, run, tidemill, turn_on_embedded, workspace};
use tidemill_tests::wait::{until, until_told};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha as alpha;

/// What strangers may make a node grow.
const GROWTH_MIB_MAX: u64 = 50;

/// A node with one deployment, `counts`, that counts words on one partition.
fn counting(cluster: &Cluster, directory: &std::path::Path) -> Node {
    let mut node = Node::start(cluster, directory);
    block_on(async { node.client().await });
    node.tidemill(&["topics", "create", "words", "word-counts", "--partitions", "1"]).ok();
    let module = directory.join("count.wasm");
    run(tidemill(["build"]).arg(workspace().join("plugins/count")).arg("--out").arg(&module)).ok();
    let file = directory.join("counts.yaml");
    let document = "name: counts\nmodule: count.wasm\ninputs: { in: { topic: words } }\noutputs: { out: { topic: word-counts } }\n";
    std::fs::write(&file, document).expect("a file");
    node.tidemill(&["apply", "--wait", "-f", &file.display().to_string()]).ok();
    node
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

async fn connect(node: &Node) -> Channel {
    Endpoint::from_shared(format!("http://{}", node.grpc))
        .expect("an address")
        .connect()
        .await
        .expect("connects")
}

/// Messages as bytes: what they mean, only their descriptors know.
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// Asks the reflection service one thing.
async fn reflect(channel: &Channel, asked: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answer = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection");
    let answer = answer.into_inner().message().await.expect("an answer").expect("one answer");
    answer.message_response.expect("a response")
}

/// Descriptors of a service and everything it names.
async fn describe(channel: &Channel, service: &str) -> DescriptorPool {
    let mut pool = DescriptorPool::new();
    let asked = MessageRequest::FileContainingSymbol(service.to_owned());
    let MessageResponse::FileDescriptorResponse(found) = reflect(channel, asked).await else {
        panic!("no descriptor of {service}");
    };
    let mut files: Vec<prost_types::FileDescriptorProto> = Vec::new();
    let mut waiting: Vec<Vec<u8>> = found.file_descriptor_proto;
    while let Some(bytes) = waiting.pop() {
        let file = prost_types::FileDescriptorProto::decode(bytes.as_slice()).expect("a descriptor");
        if files.iter().any(|known| known.name == file.name) {
            continue;
        }
        for name in &file.dependency {
            let asked = MessageRequest::FileByFilename(name.clone());
            if let MessageResponse::FileDescriptorResponse(found) = reflect(channel, asked).await {
                waiting.extend(found.file_descriptor_proto);
            }
        }
        files.push(file);
    }
    pool.add_file_descriptor_protos(files).expect("a closed set of descriptors");
    pool
}

/// Calls a unary method with a message of fields by name.
async fn call(
    channel: &Channel,
    method: &MethodDescriptor,
    fields: &[(&str, Value)],
) -> Result<DynamicMessage, Status> {
    let mut request = DynamicMessage::new(method.input());
    for (name, value) in fields {
        request.set_field_by_name(name, value.clone());
    }
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::try_from(path).expect("a path");
    let answer = grpc.unary(Request::new(request.encode_to_vec()), path, Plain).await?;
    Ok(DynamicMessage::decode(method.output(), answer.into_inner().as_slice())
        .expect("the answer's own type"))
}

#[test]
fn a_client_that_knows_only_reflection_lists_deployments_and_reads_state() {
    let _turn = turn_on_embedded();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let node = counting(&cluster, directory.path());
    let produced = node.tidemill(&["produce", "words", "a-word", "--key", "a-word"]);
    produced.ok();
    block_on(async {
        let channel = connect(&node).await;
        let services = reflect(&channel, MessageRequest::ListServices(String::new())).await;
        let MessageResponse::ListServicesResponse(services) = services else { panic!("no list of services") };
        let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
        for service in proto_services() {
            assert!(names.contains(&service), "{service} is not among {names:?}");
        }

        // Clients that know reflection by the name that it had first.
        let list = alpha::server_reflection_request::MessageRequest::ListServices(String::new());
        let request = alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let mut client = alpha::server_reflection_client::ServerReflectionClient::new(channel.clone());
        let answer = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection");
        let answer = answer.into_inner().message().await.expect("an answer").expect("one answer");
        let Some(alpha::server_reflection_response::MessageResponse::ListServicesResponse(services)) =
            answer.message_response
        else {
            panic!("no list of services")
        };
        assert!(services.service.iter().any(|service| service.name == "tidemill.v1.State"), "{services:?}");

        let pool = describe(&channel, "tidemill.v1.Deployments").await;
        let deployments = pool.get_service_by_name("tidemill.v1.Deployments").expect("the service");
        let list = deployments.methods().find(|method| method.name() == "List").expect("its method");
        let answer = call(&channel, &list, &[]).await.expect("it answers");
        let found = answer.get_field_by_name("deployments").expect("a field");
        let found = found.as_list().expect("a list")[0].as_message().expect("a message").clone();
        let name = found.get_field_by_name("name").expect("a field");
        assert_eq!(name.as_str(), Some("counts"));

        let pool = describe(&channel, "tidemill.v1.State").await;
        let state = pool.get_service_by_name("tidemill.v1.State").expect("the service");
        let get = state.methods().find(|method| method.name() == "Get").expect("its method");
        let asked = [
            ("deployment", Value::String("counts".into())),
            ("store", Value::String("counts".into())),
            ("key", Value::Bytes("a-word".into())),
        ];
        let deadline = Instant::now() + Duration::from_secs(30);
        let value = loop {
            let answer = call(&channel, &get, &asked).await.expect("it answers");
            let entries = answer.get_field_by_name("entries").expect("a field");
            if let Some(entry) = entries.as_list().expect("a list").first() {
                let entry = entry.as_message().expect("a message");
                break entry.get_field_by_name("value").expect("a field").as_bytes().expect("bytes").clone();
            }
            assert!(Instant::now() < deadline, "{answer:?}");
        };
        assert_eq!(value.as_ref(), 1u64.to_le_bytes());
    });
}

/// Services of the contract.
fn proto_services() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    let of = |file: &prost_types::FileDescriptorProto| -> Vec<String> {
        file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())).collect()
    };
    let services: Vec<String> = set.file.iter().flat_map(of).collect();
    assert!(services.len() >= 4, "{services:?}");
    services
}

#[test]
fn clients_that_keep_no_rule_neither_end_the_node_nor_keep_others_out() {
    let _turn = turn_on_embedded();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = counting(&cluster, directory.path());
    let before = Usage::of(node.pid());
    let peak = Peak::watch(node.pid());
    block_on(async {
        let (address, mut rng) = (node.grpc.clone(), fastrand::Rng::with_seed(7));
        let attack = async {
            let _lorises = clients::slow_lorises(&address, 50).await?;
            let _readers = clients::slow_readers(&address, 8).await?;
            clients::broken_frames(&address, &mut rng).await?;
            clients::many_streams(&address, 10_000).await?;
            clients::rapid_resets(&address, 1_000).await?;
            clients::abrupt_ends(&address, 1_000).await?;
            clients::endless_headers(&address).await?;
            clients::gzip_bomb(&address).await
        };
        attack.await.expect("the node can be connected to");
        let channel = connect(&node).await;
        let mut client = DeploymentsClient::new(channel.clone());
        let list = client.list(proto::ListDeploymentsRequest::default());
        assert_eq!(list.await.expect("it answers").into_inner().deployments.len(), 1);
        let large = proto::GetStateRequest { key: vec![0; 5 << 20], ..Default::default() };
        let status = StateClient::new(channel).get(large).await.expect_err("5 MiB");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    });
    let grown_mib = peak.kib().saturating_sub(before.rss_kib) >> 10;
    assert!(grown_mib < GROWTH_MIB_MAX, "grew by {grown_mib} MiB");
    assert_eq!(node.ended(), None);
    assert!(node.stop().success());
}

/// Calls of the control plane that the node has begun since it started.
fn calls_begun(node: &Node) -> Option<f64> {
    let metrics = stage::get(&node.http, "/metrics")?;
    metrics.lines().find_map(|line| line.strip_prefix("tidemill_control_calls_total "))?.parse().ok()
}

/// The end of a call and the end of a node: a call in progress is answered, a new one is told where to
/// go, and health has said so.
#[test]
fn a_node_that_stops_answers_what_it_has_begun_and_takes_nothing_new() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = counting(&cluster, directory.path());
    block_on(async {
        let channel = connect(&node).await;
        // Waits for a position that is far away, as long as its deadline allows.
        let mut waits = Request::new(proto::GetStateRequest {
            deployment: "counts".into(),
            store: "counts".into(),
            key: b"k".to_vec(),
            at_least: vec![proto::InputPosition { topic: "words".into(), partition: 0, offset: 1_000 }],
            ..Default::default()
        });
        waits.set_timeout(Duration::from_secs(4));
        let mut client = StateClient::new(channel.clone());
        let before = calls_begun(&node).expect("the node tells");
        let began = Instant::now();
        let waiting = tokio::spawn(async move { client.get(waits).await });
        until_told("the call has begun", Duration::from_secs(3), async || {
            calls_begun(&node).filter(|begun| *begun > before).ok_or("it has not")
        })
        .await;
        node.signal(Signal::TERM);
        let list = || DeploymentsClient::new(channel.clone());
        let refused = loop {
            match list().list(proto::ListDeploymentsRequest::default()).await {
                Ok(_) => assert!(began.elapsed() < Duration::from_secs(4), "it takes calls as before"),
                Err(status) => break status,
            }
        };
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let status = waiting.await.expect("no panic").expect_err("the position is not reached");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        assert!(status.message().contains("1000"), "it says itself what it waited for: {status}");
    });
    // Another signal would end it without a drain.
    let ended = until("the node has ended", Duration::from_secs(30), || node.ended().ok_or("it runs"));
    assert!(ended.success(), "{ended}");
}

//! Deploys and rollbacks whose callers wait: where the version begins, or why nobody can say yet.

use std::time::{Duration, Instant};

use tidemill::config::roles::Scope;
use tidemill::control::caller::Caller;
use tidemill::control::forward::Forwarder;
use tidemill::control::grpc::Services;
use tidemill::telemetry::Telemetry;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deploy_request::Part;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tidemill_proto::v1::deployments_server::Deployments;
use tidemill_test_support::build_guest;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::{Code, Request, Status};

use crate::queries::Served;
use crate::world::{World, deploy, eventually};
use crate::{WORD_COUNT, count_in};

/// Longer than any version takes.
const LONG_MS: u32 = 60_000;

fn deployed(
    runtime: &Runtime,
    served: &Served<'_>,
    document: &str,
    wait_ms: u32,
) -> Result<proto::DeployResponse, Status> {
    let header = proto::DeployHeader { document: document.into(), wait_ms, ..proto::DeployHeader::default() };
    let module = build_guest("plugins/count");
    let chunks = module.chunks(512 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    let parts: Vec<_> = parts.map(|part| proto::DeployRequest { part: Some(part) }).collect();
    let mut client = DeploymentsClient::new(served.channel.clone());
    runtime.block_on(client.deploy(tokio_stream::iter(parts))).map(tonic::Response::into_inner)
}

/// Of an answer that says that all is done: where its revision begins, partition by partition.
#[track_caller]
fn began(deployment: Option<proto::Deployment>, adoption: Option<proto::Adoption>) -> Vec<u64> {
    let (deployment, adoption) = (deployment.expect("a deployment"), adoption.expect("it was waited for"));
    assert!(adoption.complete && adoption.reason.is_empty(), "{adoption:?}");
    assert_eq!(deployment.state(), proto::DeploymentState::Running);
    assert!(adoption.tasks.iter().all(|task| task.revision == deployment.revision), "{adoption:?}");
    adoption.tasks.iter().map(|task| task.first[0].offset).collect()
}

#[test]
fn whoever_waits_for_a_version_is_told_where_it_begins() {
    let world = World::new(&[("words", 2), ("counts", 2)]);
    let runtime = Runtime::new().expect("a runtime");
    let served = Served::start(&world, &runtime, "a");
    let ask = |document: &str, wait_ms| deployed(&runtime, &served, document, wait_ms);

    let first = ask(WORD_COUNT, LONG_MS).expect("deployed");
    assert_eq!(began(first.deployment, first.adoption), [0, 0]);
    world.produce_to("words", 0, &["a", "a"]);
    world.produce_to("words", 1, &["b"]);
    eventually("all is counted", || {
        let counted = |partition, key| count_in(served.node(), "word-count", partition, key);
        (counted(0, "a"), counted(1, "b")) == (Some(2), Some(1))
    });
    let document = format!("{WORD_COUNT}limits: {{ memory: 32MiB }}\n");
    let second = ask(&document, LONG_MS).expect("deployed");
    assert_eq!(began(second.deployment, second.adoption), [2, 1]);
    let again = ask(&document, LONG_MS).expect("unchanged");
    assert!(again.unchanged);
    assert_eq!(began(again.deployment, again.adoption), [2, 1]);
    assert_eq!(ask(&document, 0).expect("unchanged").adoption, None, "nobody waits");
    let refused = ask(&document, 60_001).expect_err("too long");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "wait_ms: is 60001; 0 to 60000 are possible");

    let back = proto::RollbackRequest {
        name: "word-count".into(),
        wait_ms: LONG_MS,
        ..proto::RollbackRequest::default()
    };
    let mut client = DeploymentsClient::new(served.channel.clone());
    let back = runtime.block_on(client.rollback(back)).expect("rolled back").into_inner();
    assert_eq!(began(back.deployment, back.adoption), [2, 1]);

    let pause = proto::PauseRequest { name: "word-count".into(), ..proto::PauseRequest::default() };
    served.node().handle().pause(pause).expect("paused");
    let paused = ask(&document, LONG_MS).expect("deployed").adoption.expect("it was waited for");
    assert_eq!((paused.complete, paused.reason.as_str()), (false, "word-count is paused"));
    drop(client);
    served.stop();
}

/// The node takes no tasks, so that no version ever runs.
#[test]
fn a_wait_that_comes_to_nothing_ends_with_its_time_with_the_calls_or_with_the_node_and_is_no_error() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    let handle = node.handle();
    handle.drain(false, "somebody").expect("it answers");
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));

    let runtime = Runtime::new().expect("a runtime");
    let (stop, stopped) = watch::channel(false);
    let forwarder = Forwarder::new(handle.clone(), None);
    let services = Services::new(handle, forwarder, Telemetry::new(), stopped);
    // To the version that is there: nothing is left to do but to wait.
    let wait = |wait_ms: u32, timeout: &str| {
        let mut request = Request::new(proto::RollbackRequest {
            name: "word-count".into(),
            to: 1,
            wait_ms,
            ..proto::RollbackRequest::default()
        });
        request.metadata_mut().insert("grpc-timeout", timeout.parse().expect("a value"));
        request.extensions_mut().insert(Caller { identity: None, scope: Scope::All });
        let answer = runtime.block_on(services.rollback(request)).expect("it is accepted").into_inner();
        assert!(answer.deployment.is_some_and(|deployment| deployment.version == 1));
        answer.adoption.expect("it was waited for")
    };
    let start = Instant::now();
    for (wait_ms, timeout) in [(300, "60S"), (LONG_MS, "300m")] {
        let adoption = wait(wait_ms, timeout);
        assert!(!adoption.complete && adoption.reason.contains("the time is over"), "{adoption:?}");
    }
    stop.send(true).expect("it listens");
    let adoption = wait(LONG_MS, "60S");
    assert!(!adoption.complete && adoption.reason.contains("stopping"), "{adoption:?}");
    assert!(start.elapsed() < Duration::from_millis(LONG_MS.into()), "none has waited for the longer time");
    node.stop();
}

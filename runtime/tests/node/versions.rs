//! Versions of a deployment: history, differences, rollback, pause, and who wins when two change it.

use tidemill::node::{ControlError, Handle};
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually};
use crate::{WORD_COUNT, count};

fn header(document: &str) -> proto::DeployHeader {
    proto::DeployHeader { document: document.into(), author: "me".into(), ..proto::DeployHeader::default() }
}

fn numbers(handle: &Handle) -> Vec<(u64, u64, bool)> {
    let history = handle.history("word-count").expect("history");
    history.versions.iter().map(|v| (v.version, v.rollback_to, v.current)).collect()
}

/// Where the problems of a bad request are, all of them.
#[track_caller]
fn wrong_keys<T: std::fmt::Debug>(answer: Result<T, ControlError>) -> Vec<String> {
    match answer {
        Err(ControlError::Invalid(problems)) => problems.into_iter().map(|problem| problem.key).collect(),
        other => panic!("{other:?}"),
    }
}

fn running(handle: &Handle) -> bool {
    handle.deployment("word-count").is_ok_and(|d| d.state() == proto::DeploymentState::Running)
}

#[test]
fn a_deployment_has_versions_that_can_be_compared_taken_up_again_and_paused() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count").to_vec();
    let node = world.node();
    let handle = node.handle();
    deploy(&node, WORD_COUNT, &module);
    let second = format!("{WORD_COUNT}limits: {{ memory: 32MiB }}\n");
    let planned = proto::DeployHeader { dry_run: true, ..header(&second) };
    let planned = handle.deploy(planned, module.clone()).expect("planned");
    let shown: Vec<_> = planned.changes.iter().map(|c| (c.field.as_str(), c.after.as_str())).collect();
    assert_eq!(shown, [("limits.memory", "32MiB")]);
    assert_eq!(numbers(&handle), [(1, 0, true)], "a plan changes nothing");

    // Of two who saw the same revision one is first; the other learns it, unless he wants the same.
    let seen = planned.deployment.expect("planned").revision;
    let from_plan = proto::DeployHeader { expected_revision: Some(seen), ..header(&second) };
    let deployed = handle.deploy(from_plan.clone(), module.clone()).expect("the first");
    assert!(!deployed.unchanged);
    assert!(handle.deploy(from_plan, module.clone()).expect("the same again").unchanged);
    let other = proto::DeployHeader {
        expected_revision: Some(seen),
        ..header(&format!("{WORD_COUNT}failures: skip\n"))
    };
    let current = deployed.deployment.expect("deployed").revision;
    match handle.deploy(other, module.clone()) {
        Err(ControlError::Conflict { expected, current: now, .. }) => {
            assert_eq!((expected, now), (seen, current))
        }
        other => panic!("{other:?}"),
    }

    let diff = handle.diff(&proto::DiffRequest { name: "word-count".into(), from: 0, to: 0 }).expect("diff");
    assert_eq!((diff.from, diff.to, diff.changes.len()), (1, 2, 1));
    let rollback = proto::RollbackRequest {
        name: "word-count".into(),
        reason: "too small".into(),
        ..proto::RollbackRequest::default()
    };
    handle.rollback(rollback.clone()).expect("rolled back");
    assert_eq!(numbers(&handle), [(3, 1, true), (2, 0, false), (1, 0, false)]);
    assert!(
        matches!(handle.rollback(rollback), Err(ControlError::Precondition(_))),
        "there is none before 1"
    );
    let versions = handle.history("word-count").expect("history").versions;
    assert_eq!((versions[0].reason.as_str(), versions[1].author.as_str()), ("too small", "me"));

    eventually("the version runs", || running(&handle));
    let pause = proto::PauseRequest { name: "word-count".into(), ..proto::PauseRequest::default() };
    assert!(!handle.pause(pause.clone()).expect("paused").unchanged);
    assert!(handle.pause(pause).expect("paused").unchanged);
    eventually("nobody is a member", || {
        world.admin().describe_group("local.default.word-count").is_ok_and(|group| group.members.is_empty())
    });
    world.produce("words", &["a"]);
    let paused = handle.deployment("word-count").expect("deployed");
    assert_eq!((paused.state(), paused.tasks.len()), (proto::DeploymentState::Paused, 0));
    let resume = proto::ResumeRequest { name: "word-count".into(), ..proto::ResumeRequest::default() };
    handle.resume(resume).expect("resumed");
    eventually("it goes on", || count(&node, "a") == Some(1));

    let misspelt = handle.deploy(header(&format!("{WORD_COUNT}config: {{ colum: 1 }}\n")), module.clone());
    assert!(misspelt.as_ref().is_err_and(|error| error.to_string().contains("this handler takes none")));
    assert_eq!(wrong_keys(misspelt), ["config"]);
    let everything = "name: word-count\nmodule: x\ninputs: { other: { topic: nowhere } }\n";
    let long = "x".repeat(1_001);
    let wrong = proto::DeployHeader { author: long.clone(), ..header(everything) };
    assert_eq!(
        wrong_keys(handle.deploy(wrong, module)),
        ["author", "inputs", "inputs.other", "outputs", "inputs.other"]
    );
    let wrong = proto::RollbackRequest {
        name: "word-count".into(),
        author: long.clone(),
        reason: long.clone(),
        ..proto::RollbackRequest::default()
    };
    assert_eq!(wrong_keys(handle.rollback(wrong)), ["author", "reason"]);
    let wrong = proto::ResetRequest { author: long.clone(), ..proto::ResetRequest::default() };
    assert_eq!(wrong_keys(handle.reset(wrong)), ["author", "to"]);
    let wrong = proto::RedriveRequest {
        deployment: "word-count".into(),
        filter: Some(proto::LetterFilter { partitions: vec![9], ..proto::LetterFilter::default() }),
        rate: -1.0,
        author: long,
        ..proto::RedriveRequest::default()
    };
    assert_eq!(wrong_keys(handle.redrive(wrong, Vec::new())), ["rate", "author", "filter.partitions"]);
    assert!(running(&handle), "what runs goes on");
    node.stop();
}

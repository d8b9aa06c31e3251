//! Topics as documents: planned, made, changed, refused, and asked for from several places at once.

use std::sync::Barrier;

use tidemill::config::roles::{Grant, Name, Pattern, Role, Scope};
use tidemill::node::{ControlError, Handle};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::TopicResult;
use tidemill_test_support::build_guest;

use crate::WORD_COUNT;
use crate::world::{World, deploy, eventually, status};

fn request(documents: &[&str]) -> proto::ApplyTopicsRequest {
    let documents = documents.iter().map(ToString::to_string).collect();
    proto::ApplyTopicsRequest { documents, author: "me".into(), ..proto::ApplyTopicsRequest::default() }
}

fn results(answer: &proto::ApplyTopicsResponse) -> Vec<TopicResult> {
    answer.topics.iter().map(proto::AppliedTopic::result).collect()
}

/// Every problem in a line.
fn unmet(handle: &Handle, request: &proto::ApplyTopicsRequest) -> Vec<String> {
    match handle.apply_topics(request) {
        Err(ControlError::Unmet(problems)) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

const WORDS: &str = "kind: topic\nname: words\npartitions: 2\nconfig: { retention.ms: 1000 }\n";
const COUNTS: &str = "kind: topic\nname: counts\npartitions: 1\nconfig: { cleanup.policy: compact }\n";

#[test]
fn topics_are_planned_made_changed_and_taken_back_by_the_former_document() {
    let world = World::new(&[]);
    let node = world.node();
    let (handle, admin) = (node.handle(), world.admin());
    let both = request(&[WORDS, COUNTS]);
    let plan = |request: &proto::ApplyTopicsRequest| {
        let plan = proto::ApplyTopicsRequest { dry_run: true, ..request.clone() };
        handle.apply_topics(&plan).expect("a plan")
    };
    let planned = plan(&both);
    assert_eq!(results(&planned), [TopicResult::Created; 2]);
    assert!(admin.topic("words").is_err(), "a plan changes nothing");
    assert_eq!(handle.apply_topics(&both).expect("made"), planned, "what was planned is done");
    assert_eq!(admin.topic("words").expect("it is there").partitions, 2);
    assert_eq!(results(&handle.apply_topics(&both).expect("again")), [TopicResult::Unchanged; 2]);

    let later = WORDS.replace("retention.ms: 1000", "retention.ms: 2000, max.message.bytes: 4096");
    let changed = handle.apply_topics(&request(&[&later, COUNTS])).expect("changed");
    assert_eq!(results(&changed), [TopicResult::Changed, TopicResult::Unchanged]);
    let configs = || admin.topic_configs("words").expect("settings");
    let now = configs();
    assert_eq!((now["retention.ms"].as_str(), now["max.message.bytes"].as_str()), ("2000", "4096"));

    let former = handle.apply_topics(&request(&[WORDS])).expect("taken back");
    assert_eq!(former.topics[0].changes[0].field, "config.retention.ms");
    assert_eq!(former.topics[0].unnamed, ["max.message.bytes=4096"]);
    let given_back = WORDS.replace("1000", "1000, max.message.bytes: null");
    let given_back = handle.apply_topics(&request(&[&given_back])).expect("given back");
    assert_eq!((results(&given_back), given_back.topics[0].unnamed.len()), (vec![TopicResult::Changed], 0));
    assert_eq!(configs()["max.message.bytes"], "1048588");
    node.stop();
}

#[test]
fn what_cannot_be_is_said_at_once_and_nothing_is_changed() {
    let world = World::new(&[("words", 2), ("counts", 2)]);
    let node = world.node();
    let (handle, admin) = (node.handle(), world.admin());
    let documents = [
        "kind: topic\nname: words\npartitions: 3\nconfig: { retention.ms: soon }\n",
        "kind: topic\nname: counts\npartitions: 1\n",
        "kind: topic\nname: copies\npartitions: 1\nreplication_factor: 3\n",
        "kind: topic\nname: misspelt\npartitions: 1\nconfig: { retntion.ms: 1 }\n",
        "kind: topic\nname: fine\npartitions: 1\n",
    ];
    let problems = unmet(&handle, &request(&documents));
    let expected = [
        ("topic words: it has 2 partitions", "--raise-partitions"),
        ("topic words: Invalid value soon", "retention.ms"),
        ("topic counts: it has 2 partitions", "none can be taken away"),
        ("topic copies: it could not be made", "3 time(s)"),
        ("topic misspelt: it could not be made", "retntion.ms"),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, (begins, says)) in problems.iter().zip(expected) {
        assert!(problem.starts_with(begins) && problem.contains(says), "{problem}");
    }
    assert!(admin.topic("fine").is_err(), "not even what could be done");

    // The embedded broker holds 10,000 partitions.
    let beyond = request(&[documents[4], "kind: topic\nname: words\npartitions: 20000\n"]);
    let beyond = proto::ApplyTopicsRequest { raise_partitions: true, ..beyond };
    let problems = unmet(&handle, &beyond);
    let begins = "topic words: it could not be given 20000 partitions: This broker holds at most";
    assert!(problems.len() == 1 && problems[0].starts_with(begins), "{problems:#?}");
    assert!(admin.topic("fine").is_err(), "nor what comes before it");

    let internal = ["test.word-count.changelog", "_test.control", "__consumer_offsets"];
    let internal = internal.map(|name| format!("kind: topic\nname: {name}\npartitions: 1\n"));
    let internal: Vec<&str> = internal.iter().map(String::as_str).collect();
    match handle.apply_topics(&request(&internal)) {
        Err(ControlError::Invalid(problems)) => assert_eq!(problems.len(), 3, "{problems:?}"),
        other => panic!("{other:?}"),
    }

    let more = request(&["kind: topic\nname: words\npartitions: 3\n"]);
    let raised = proto::ApplyTopicsRequest { raise_partitions: true, ..more };
    assert_eq!(results(&handle.apply_topics(&raised).expect("raised")), [TopicResult::Changed]);
    assert_eq!(admin.topic("words").expect("it is there").partitions, 3);
    assert_eq!(results(&handle.apply_topics(&raised).expect("again")), [TopicResult::Unchanged]);
    node.stop();
}

#[test]
fn a_deploy_is_planned_onto_topics_that_are_about_to_be_made() {
    let world = World::new(&[("counts", 1)]);
    let module = build_guest("plugins/count").to_vec();
    let node = world.node();
    let handle = node.handle();
    let header = |dry_run: bool, topics: &[&str]| proto::DeployHeader {
        document: WORD_COUNT.into(),
        dry_run,
        topics: topics.iter().map(ToString::to_string).collect(),
        ..proto::DeployHeader::default()
    };
    let said = |header: proto::DeployHeader| match handle.deploy(header, module.clone()) {
        Ok(answer) => panic!("{answer:?}"),
        Err(error) => error.to_string(),
    };
    assert!(said(header(true, &[COUNTS])).contains("topic words does not exist"));
    let planned = handle.deploy(header(true, &[WORDS]), module.clone()).expect("planned");
    assert_eq!(planned.deployment.expect("a deployment").inputs, ["words"]);
    assert!(world.admin().topic("words").is_err(), "a plan makes nothing");
    assert!(said(header(false, &[WORDS])).contains("a dry run only"));

    handle.apply_topics(&request(&[WORDS])).expect("made");
    deploy(&node, WORD_COUNT, &module);
    eventually("it runs", || status(&node, "word-count").0 == proto::DeploymentState::Running);
    let same = handle.deploy(header(true, &[WORDS]), module.clone()).expect("planned");
    assert!(same.unchanged);
    // A deployment with state stops when its input grows, and its plan says so, also if it stays as it is.
    let grown = WORDS.replace("partitions: 2", "partitions: 4");
    for document in [WORD_COUNT.to_owned(), format!("{WORD_COUNT}workers: 2\n")] {
        let refused = said(proto::DeployHeader { document, ..header(true, &[grown.as_str()]) });
        assert!(
            refused.contains("has 4 partitions") && refused.contains("word-count.changelog"),
            "{refused}"
        );
    }
    node.stop();
}

#[test]
fn topics_asked_for_from_several_places_are_made_once() {
    let world = World::new(&[]);
    let node = world.node();
    let (handle, together) = (node.handle(), Barrier::new(4));
    let grown = WORDS.replace("partitions: 2", "partitions: 4");
    for document in [WORDS, grown.as_str()] {
        let request = proto::ApplyTopicsRequest { raise_partitions: true, ..request(&[document, COUNTS]) };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let ask = || {
                together.wait();
                handle.apply_topics(&request)
            };
            let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|asking| asking.join().expect("no panic")).collect()
        });
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        let again = handle.apply_topics(&request).expect("again");
        assert_eq!(results(&again), [TopicResult::Unchanged; 2]);
    }
    assert_eq!(world.admin().topic("words").expect("it is there").partitions, 4);
    node.stop();
}

#[test]
fn no_handler_writes_what_nodes_and_brokers_keep_of_their_own_or_reads_more_of_it_than_others_state() {
    let taken = ["test.other.changelog", "test.of.others.inbox"];
    let world = World::new(&[("words", 1), ("counts", 1), (taken[0], 1), (taken[1], 1)]);
    let (node, module) = (world.node(), build_guest("plugins/count").to_vec());
    let plan = |document: String| {
        let header = proto::DeployHeader { document, dry_run: true, ..proto::DeployHeader::default() };
        node.handle().deploy(header, module.clone())
    };
    let reads = |topic: &str| WORD_COUNT.replace("topic: words", &format!("topic: {topic}"));
    let writes = |topic: &str| WORD_COUNT.replace("topic: counts", &format!("topic: {topic}"));
    let sent = "kafka: { bootstrap_servers: 'elsewhere:9092', topic: _test.control }";
    let letters = "failures: { then: dead_letter, dead_letters: { topic: _test.nodes } }";
    for (key, document) in [
        ("outputs.out.topic", writes("_test.control")),
        ("outputs.out.topic", writes(taken[0])),
        ("inputs.in.topic", reads("__consumer_offsets")),
        ("inputs.in.topic", reads("_test.control")),
        ("inputs.in.topic", reads("test.word-count.changelog")),
        ("outputs.out.kafka.topic", WORD_COUNT.replace("topic: counts", sent)),
        ("failures.dead_letters.topic", format!("{WORD_COUNT}{letters}\n")),
    ] {
        match plan(document) {
            Err(ControlError::Invalid(problems)) => {
                let said = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                assert!(said.contains(key) && said.contains("is not for handlers"), "{said}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    plan(reads(taken[0])).expect("it may follow the state of another deployment");
    plan(writes(taken[1])).expect("no deployment has a name with a dot");
    node.stop();
}

#[test]
fn a_topic_is_changed_only_by_whom_the_roles_let() {
    let world = World::new(&[]);
    let node = world.node();
    let grant = |deployments: &[&str], topics: &[&str]| {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::new(*text)).collect();
        let (deployments, topics) = (patterns(deployments), patterns(topics));
        let (san, role, secrets) = (Pattern::new("a.b"), Role::Deployer, Vec::new());
        let grants = [Grant { san, role, deployments, topics, secrets }];
        node.handle().within(Scope::of(&grants, &[Name::parse("a.b")], Role::Deployer))
    };
    let cases = [
        (grant(&["word-*"], &["words"]), false),
        (grant(&[], &["counts"]), false),
        (grant(&[], &["w*"]), true),
    ];
    for (handle, is_let) in cases {
        match handle.apply_topics(&request(&[WORDS])) {
            Ok(_) => assert!(is_let),
            Err(ControlError::Denied(problems)) => {
                assert!(!is_let && problems[0].to_string().contains("topic words"), "{problems:?}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    node.stop();
}

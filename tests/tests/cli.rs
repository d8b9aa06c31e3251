//! The commands that talk to Kafka, on the embedded broker: topics, records in and out, groups, and
//! what they say when something is wrong. And the checklist of a deploy, and what follows it, which ask a node
//! as well.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use tidemill_test_support::build_guest;

use tidemill_tests::cluster::Cluster;
use tidemill_tests::node::Node;
use tidemill_tests::programs::{Finished, alone, free_address, run, tidemill};
use tidemill_tests::wait::until;

/// A command against this cluster.
fn ask(cluster: &Cluster, arguments: &[&str]) -> Finished {
    run(tidemill(arguments).env("KAFKA_BOOTSTRAP_SERVERS", cluster.bootstrap()))
}

fn json(finished: Finished) -> Value {
    let text = finished.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The values of a topic, in the order of its only partition.
fn values(cluster: &Cluster, topic: &str, more: &[&str]) -> Vec<(Value, Value)> {
    let arguments = [&["consume", topic, "--output", "json"], more].concat();
    let text = ask(cluster, &arguments).ok();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("one object a line");
        (row["key"].clone(), row["value"].clone())
    };
    text.lines().map(row).collect()
}

#[test]
fn what_is_produced_is_consumed_with_key_headers_and_position() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    ask(&cluster, &["topics", "create", "events.test"]).ok();
    ask(
        &cluster,
        &["produce", "events.test", r#"{"test": "message"}"#, "--key", "k", "--header", "source=cli"],
    )
    .ok();
    ask(&cluster, &["produce", "events.test", "--key", "k", "--tombstone"]).ok();

    let line = ask(&cluster, &["consume", "events.test", "--from-beginning", "--headers"]).ok();
    assert_eq!(line, "0@0\tsource=cli\tk\t{\"test\": \"message\"}\n0@1\t-\tk\tnull\n");
    let last = values(&cluster, "events.test", &["--partition", "0", "--offset", "1"]);
    assert_eq!(last, [(Value::from("k"), Value::Null)]);
    assert_eq!(values(&cluster, "events.test", &["--from-beginning", "--max-messages", "1"]).len(), 1);
    assert_eq!(values(&cluster, "events.test", &["--last", "1"]), last);
}

#[test]
fn files_become_records_with_keys_from_their_fields() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    for topic in ["rows", "documents"] {
        ask(&cluster, &["topics", "create", topic]).ok();
    }
    let rows = directory.path().join("rows.csv");
    std::fs::write(&rows, "id,carrier\n1,UA\n2,\"A,A\"\n").expect("a file");
    let rows = rows.display().to_string();
    ask(&cluster, &["produce", "rows", "--file", &rows, "--key-field", "carrier"]).ok();
    let pair = |key: &str, value: &str| (Value::from(key), Value::from(value));
    assert_eq!(
        values(&cluster, "rows", &["--from-beginning"]),
        [pair("UA", "1,UA"), pair("A,A", "2,\"A,A\"")]
    );

    let documents = directory.path().join("documents.jsonl");
    std::fs::write(&documents, "{\"user\":{\"id\":7}}\n{\"user\":{}}\n").expect("a file");
    let documents = documents.display().to_string();
    let finished = ask(&cluster, &["produce", "documents", "--file", &documents, "--key-field", "/user/id"]);
    assert_eq!(finished.status.code(), Some(4), "{finished:#?}");
    assert!(finished.stderr.contains("line 2: has nothing at /user/id"), "{finished:#?}");
    assert_eq!(values(&cluster, "documents", &["--from-beginning"]), [pair("7", "{\"user\":{\"id\":7}}")]);
}

#[test]
fn topics_are_made_described_and_deleted() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    ask(&cluster, &["topics", "create", "words", "--partitions", "3", "--config", "retention.ms=604800000"])
        .ok();
    ask(&cluster, &["topics", "create", "words", "--partitions", "3", "--if-not-exists"]).ok();
    let other = ask(&cluster, &["topics", "create", "words", "--partitions", "4", "--if-not-exists"]);
    assert_eq!(other.status.code(), Some(4), "{other:#?}");

    let described = json(ask(&cluster, &["topics", "describe", "words", "--configs", "--output", "json"]));
    assert_eq!(described["partitions"].as_array().map(Vec::len), Some(3));
    assert_eq!(described["configs"]["retention.ms"], "604800000");

    let unsure = ask(&cluster, &["topics", "delete", "words"]);
    assert_eq!(unsure.status.code(), Some(2), "{unsure:#?}");
    ask(&cluster, &["topics", "delete", "words", "--yes"]).ok();
    assert_eq!(json(ask(&cluster, &["topics", "list", "--output", "json"]))["topics"], Value::Array(vec![]));
}

#[test]
fn mistakes_are_named_with_what_is_near() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    ask(&cluster, &["topics", "create", "words"]).ok();
    for (arguments, code, says) in [
        (&["consume", "wrods", "--from-beginning"][..], 5, "did you mean `words`?"),
        (&["produce", "words", "x", "--partition", "7"], 5, "partitions 0 to 0"),
        (&["produce", "words", "--file", "/nowhere.csv"], 2, "/nowhere.csv"),
        (&["groups", "describe", "nobody"], 5, "no group `nobody`"),
        (&["topics", "create", "what?"], 2, "no topic name"),
        (&["produce", "words", "x", "--set", "kafka.ack=all"], 4, "did you mean `kafka.acks`?"),
    ] {
        let finished = ask(&cluster, arguments);
        assert_eq!(finished.status.code(), Some(code), "{arguments:?}: {finished:#?}");
        assert!(finished.stderr.contains(says), "{arguments:?}: {finished:#?}");
        assert_eq!(finished.stdout, "", "{arguments:?}: {finished:#?}");
    }
    let nobody = free_address();
    let lost = run(&mut tidemill(["topics", "list", "--bootstrap-servers", &nobody]));
    assert_eq!(lost.status.code(), Some(3), "{lost:#?}");
    assert!(lost.stderr.contains("InfraConnectionError: Failed to connect to Kafka"), "{lost:#?}");
}

#[test]
fn the_doctor_finds_a_healthy_cluster_and_a_missing_node() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().display().to_string();
    let nobody = free_address();
    let arguments = ["doctor", "--state-dir", &state, "--address", &nobody, "--output", "json"];
    let checks = json(ask(&cluster, &arguments));
    let result = |name: &str| {
        let checks = checks["checks"].as_array().expect("a list");
        let found = checks.iter().find(|check| check["check"] == name);
        found.unwrap_or_else(|| panic!("{name} in {checks:?}"))["result"].clone()
    };
    assert_eq!((result("kafka"), result("state directory")), (Value::from("ok"), Value::from("ok")));
    assert_eq!(result("node"), "note");
}

/// The rows of a `check -o json`, and its exit code.
fn rows(finished: &Finished) -> (Option<i32>, BTreeMap<String, String>) {
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:#?}"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let rows = report["checks"].as_array().expect("a list");
    let rows = rows.iter().map(|row| (text(&row["check"]), text(&row["result"]))).collect();
    (finished.status.code(), rows)
}

#[test]
fn the_checklist_is_gone_through_before_and_after_a_deploy() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let node = Node::start(&cluster, &directory.path().join("n1"));
    until("the node answers", Duration::from_secs(30), || {
        let finished = node.tidemill(&["deployments"]);
        if finished.status.success() { Ok(()) } else { Err(finished) }
    });
    node.tidemill(&["topics", "create", "words", "counts", "--partitions", "1"]).ok();
    std::fs::write(directory.path().join("count.wasm"), build_guest("plugins/count")).expect("a module");
    let file = |name: &str, input: &str| {
        let path = directory.path().join(format!("{name}.yaml"));
        let text = format!(
            "name: count\nmodule: count.wasm\ninputs: {{ in: {{ topic: {input} }} }}\noutputs: {{ out: {{ topic: counts }} }}\n"
        );
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let (good, bad) = (file("good", "words"), file("bad", "wrods"));
    let before = |file: &str| node.tidemill(&["check", "-f", file, "--http", &node.http, "-o", "json"]);
    let of_document = ["environment count", "topics count", "dead letters count", "limits count"];

    let (code, found) = rows(&before(&good));
    assert_eq!((code, found.len()), (Some(0), 8), "{found:?}");
    assert!(of_document.iter().all(|row| found[*row] != "failed"), "{found:?}");
    assert_eq!((found["topics count"].as_str(), found["alerts"].as_str()), ("ok", "ok"));

    let wrong = node.tidemill(&["check", "-f", &good, "--http", "https://127.0.0.1:7601"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:#?}");
    assert!(wrong.stderr.contains("write HOST:PORT"), "{wrong:#?}");

    let refused = before(&bad);
    let (code, found) = rows(&refused);
    assert_eq!(code, Some(1), "{refused:#?}");
    assert!(refused.stdout.contains("wrods"), "{refused:#?}");
    assert!(of_document.iter().chain(&["document count"]).all(|row| found[*row] == "failed"), "{found:?}");
    assert_eq!(found["alerts"], "ok", "the fleet is looked at all the same");
    assert_eq!(node.tidemill(&["check", "count"]).status.code(), Some(5), "nothing was deployed by that");

    node.tidemill(&["apply", "--wait", "-f", &good]).ok();
    let nodes = json(node.tidemill(&["nodes", "-o", "json"]));
    let id = nodes["nodes"][0]["id"].as_str().expect("an id").to_owned();
    let (code, found) = rows(&node.tidemill(&["check", "--node", &id, "-o", "json"]));
    assert_eq!(code, Some(0), "{found:?}");
    for what in ["tasks", "state", "rollout", "failures", "errors", "lag"] {
        assert_eq!(found[&format!("{what} count")], "ok", "{found:?}");
    }
    assert_eq!((found[&format!("node {id}")].as_str(), found["cluster"].as_str()), ("ok", "ok"));

    let missing =
        ["check", "--node", &id, "--node", "n9", "--wait", "300ms", "--poll", "100ms", "-o", "json"];
    let missed = node.tidemill(&missing);
    let (code, found) = rows(&missed);
    assert_eq!((code, found["node n9"].as_str()), (Some(1), "failed"), "{missed:#?}");
    assert!(missed.took > Duration::from_millis(300) && missed.stderr.contains("node n9"), "{missed:#?}");
    let nobody = run(&mut tidemill(["check", "--address", &free_address()]));
    assert_eq!(nobody.status.code(), Some(3), "{nobody:#?}");
}

/// What was done, or is to be, about the topics and the deployments of an `apply -o json`.
fn results(finished: Finished) -> (String, String) {
    let told = json(finished);
    let of = |kind: &str| {
        let rows = told[kind].as_array().expect("rows").iter();
        rows.map(|row| row["result"].as_str().expect("a result")).collect::<Vec<_>>().join(" ")
    };
    (of("topics"), of("deployments"))
}

#[test]
fn a_file_makes_the_topics_of_what_it_deploys_and_its_former_version_takes_a_change_back() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(&cluster, &directory.path().join("n1"));
    node.until_it_answers(Duration::from_secs(30));
    std::fs::write(directory.path().join("count.wasm"), build_guest("plugins/count")).expect("a module");
    // Two topics, the first one as told, and a deployment that reads `input`.
    let file = |name: &str, words: &str, input: &str| {
        let path = directory.path().join(name);
        let text = format!(
            "kind: topic\nname: words\n{words}\n---\n\
             kind: topic\nname: counts\npartitions: 1\nconfig: {{ cleanup.policy: compact }}\n---\n\
             name: wc\nmodule: count.wasm\ninputs: {{ in: {{ topic: {input} }} }}\noutputs: {{ out: {{ topic: counts }} }}\n"
        );
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let apply = |file: &str, more: &[&str]| {
        let command = ["apply", "-f", file, "-o", "json"];
        node.tidemill(&[&command[..], more].concat())
    };
    let pair = |topics: &str, deployments: &str| (topics.to_owned(), deployments.to_owned());
    let first = file("first.yaml", "partitions: 2\nconfig: { retention.ms: 1000000 }", "words");
    let second = file("second.yaml", "partitions: 2\nconfig: { retention.ms: 2000000 }", "words");
    let bad = file("bad.yaml", "partitions: 1\nconfig: { retention.ms: soon }", "nowhere");

    let planned = apply(&first, &["--dry-run"]);
    assert!(planned.stderr.contains("+ topic words: create\n    partitions: - -> 2\n"), "{planned:#?}");
    assert_eq!(results(planned), pair("create create", "valid"));
    let words = node.tidemill(&["topics", "describe", "words"]);
    assert_eq!(words.status.code(), Some(5), "a plan makes nothing: {words:#?}");
    let (code, found) = rows(&node.tidemill(&["check", "-f", &first, "--http", &node.http, "-o", "json"]));
    assert_eq!((code, found["topic words"].as_str(), found["topics wc"].as_str()), (Some(0), "ok", "ok"));
    assert_eq!(results(apply(&first, &["--wait"])), pair("created created", "deployed"));
    assert_eq!(results(apply(&first, &[])), pair("unchanged unchanged", "unchanged"));

    let changed = apply(&second, &[]);
    let line = "~ topic words: change\n    config.retention.ms: 1000000 -> 2000000\n";
    assert!(changed.stderr.contains(line), "{changed:#?}");
    assert_eq!(results(changed), pair("changed unchanged", "unchanged"));
    assert_eq!(results(apply(&first, &[])), pair("changed unchanged", "unchanged"));
    let described = json(node.tidemill(&["topics", "describe", "words", "--configs", "-o", "json"]));
    assert_eq!(described["configs"]["retention.ms"], "1000000");

    let forgetful = std::fs::read_to_string(&first).expect("the file") + "inbox: { id: key, ttl: 10m }\n";
    std::fs::write(directory.path().join("forgetful.yaml"), forgetful).expect("a file");
    let planned = apply(&directory.path().join("forgetful.yaml").display().to_string(), &["--dry-run"]);
    assert!(planned.stderr.contains("\nwarning: wc: inbox.ttl: words keeps records "), "{planned:#?}");
    let planned = json(planned);
    let warnings = planned["deployments"][0]["warnings"].as_array().expect("warnings");
    assert_eq!(warnings.len(), 1, "{planned}");

    let refused = apply(&bad, &[]);
    assert_eq!((refused.status.code(), refused.stdout.as_str()), (Some(4), ""), "{refused:#?}");
    for said in ["none can be taken away", "Invalid value soon", "topic nowhere does not exist"] {
        assert!(refused.stderr.contains(said), "{said}: {refused:#?}");
    }
    let log = node.whole_log();
    let audited = ["action=\"Topics.Apply\"", "name=\"words, counts\"", "outcome=Ok"];
    assert!(log.lines().any(|line| audited.iter().all(|word| line.contains(word))), "{log}");
    assert!(node.stop().success());
}

#[test]
fn a_deployment_is_compared_taken_back_paused_reset_and_drained_by_commands() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(&cluster, &directory.path().join("n1"));
    node.until_it_answers(Duration::from_secs(30));
    node.tidemill(&["topics", "create", "words", "counts", "--partitions", "1"]).ok();
    std::fs::write(directory.path().join("count.wasm"), build_guest("plugins/count")).expect("a module");
    let file = directory.path().join("wc.yaml");
    let document = "name: wc\nmodule: count.wasm\ninputs: { in: { topic: words } }\noutputs: { out: { topic: counts } }\n";
    for more in ["", "limits: { memory: 32MiB }\n"] {
        std::fs::write(&file, format!("{document}{more}")).expect("a file");
        node.tidemill(&["apply", "-f", &file.display().to_string(), "--wait"]).ok();
    }
    let ask = |arguments: &[&str]| json(node.tidemill(&[arguments, &["-o", "json"]].concat()));
    let refused = |arguments: &[&str], code: i32, says: &str| {
        let finished = node.tidemill(arguments);
        assert_eq!(finished.status.code(), Some(code), "{arguments:?}: {finished:#?}");
        assert!(finished.stderr.contains(says), "{arguments:?}: {finished:#?}");
    };
    let count = || {
        let get = ["state", "get", "wc", "counts", "a", "--at-least", "words/0@1", "--timeout", "30s"];
        node.tidemill(&get).ok().trim().to_owned()
    };
    node.tidemill(&["produce", "words", "x", "--key", "a"]).ok();
    assert_eq!(count(), "1");
    let read = node.tidemill(&["state", "get", "wc", "counts", "a"]);
    assert!(read.stderr.contains("as of words/0@1 on "), "{read:#?}");
    assert!(read.stderr.contains("alone, a mirror may be ahead or behind"), "{read:#?}");
    let describe = ["groups", "describe", "local.default.wc"];
    let group = ask(&describe)["partitions"][0].clone();
    assert_eq!((group["committed"].as_u64(), group["lag"].as_u64()), (Some(1), Some(0)), "{group}");
    assert!(group["member"].is_string(), "{group}");
    let shown = node.tidemill(&describe).ok();
    assert!(shown.split_whitespace().any(|word| word == "LAG"), "{shown}");

    // What cannot be taken back is asked about first.
    refused(&["state", "edit", "put", "wc", "counts", "a", "7"], 2, "by hand? Add --yes to confirm");
    // What would be refused anyway, or is nothing, is not.
    refused(&["parked", "drop", "wc", "--all"], 4, "wc has no dead-letter topic");
    refused(&["parked", "drop", "gone", "--all"], 5, "gone");
    assert_eq!(ask(&["parked", "drop", "wc", "--all", "--discard"])["records"], 0);
    refused(&["outbox", "discard", "wc", "out", "--all"], 5, "wc has no destination out; it has none");
    refused(&["delete", "gone"], 5, "gone");
    refused(&["state", "edit", "put", "wc", "gone", "a", "7", "--partition", "0"], 5, "no store gone");
    refused(&["topics", "create", "fresh", "words"], 4, "made before it: fresh");
    refused(&["groups", "delete", "local.default.wc", "--yes"], 4, "stop them first");

    for command in ["show", "retry", "pause", "resume"] {
        refused(&["outbox", command, "wc"], 4, "wc has no outbox");
        refused(&["outbox", command, "wc", "gone"], 5, "wc has no destination gone; it has none");
    }
    let discard = ["outbox", "discard", "wc", "gone", "--all", "--yes"];
    refused(&discard, 5, "wc has no destination gone; it has none");

    let diff = ask(&["diff", "wc"]);
    assert_eq!((diff["from"].as_u64(), diff["to"].as_u64()), (Some(1), Some(2)), "{diff}");
    assert_eq!(diff["changes"][0]["field"], "limits.memory");
    let back = ask(&["rollback", "wc", "--to", "1", "--reason", "too small", "--wait"]);
    assert_eq!(back["version"], 3, "{back}");
    assert_eq!(back["first"][0]["position"], "words/0@1", "{back}");
    let newest = ask(&["history", "wc"])["versions"][0].clone();
    assert_eq!((newest["rollback_to"].as_u64(), newest["reason"].as_str()), (Some(1), Some("too small")));

    let reset = ["reset", "wc", "--to", "earliest"];
    refused(&[&reset[..], &["--yes"]].concat(), 4, "tidemill pause wc");
    for unchanged in [false, true] {
        assert_eq!(ask(&["pause", "wc"])["unchanged"], unchanged);
    }
    refused(&["state", "get", "wc", "counts", "a"], 4, "tidemill resume wc");
    refused(&reset, 2, "WIPE its state");
    until("its member has left, and it is reset", Duration::from_secs(30), || {
        let finished = node.tidemill(&[&reset[..], &["--yes"]].concat());
        if finished.status.success() { Ok(()) } else { Err(finished) }
    });
    node.tidemill(&["resume", "wc"]).ok();
    assert_eq!(count(), "1", "anew");

    let id = ask(&["nodes"])["nodes"][0]["id"].as_str().expect("an id").to_owned();
    refused(&["drain", &id], 2, "No other node takes tasks");
    assert_eq!(ask(&["drain", &id, "--yes"])["state"], "drained");
    assert_eq!(ask(&["drain", &id, "--undo"])["state"], "active");
    refused(&["delete", "wc"], 2, "Delete wc and its state?");
    assert_eq!(ask(&["delete", "wc", "--yes"])["deleted"], "wc");
    assert!(node.stop().success());
}

#[test]
fn the_log_of_a_deployment_can_be_followed() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(&cluster, &directory.path().join("n1"));
    node.until_it_answers(Duration::from_secs(30));
    node.tidemill(&["topics", "create", "in", "out", "--partitions", "1"]).ok();
    let module = directory.path().join("hostile.wasm");
    std::fs::write(&module, build_guest("tests/guests/hostile")).expect("a module");
    let module = module.display().to_string();
    let deploy = ["deploy", "talks", "--module", &module, "--in", "in=in", "--out", "out=out", "--wait"];
    node.tidemill(&deploy).ok();

    let mut following = tidemill(["logs", "talks", "-f", "--address", &node.grpc])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let output = following.stdout.take().expect("it is piped");
    let (line, lines) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).for_each(|read| drop(line.send(read)));
    });
    for record in 0..2 {
        // Lines that it logs: 0 and 1.
        node.tidemill(&["produce", "in", "log 2", "--key", "k"]).ok();
        for text in ["0", "1"] {
            let line = lines.recv_timeout(Duration::from_secs(30)).expect("a line in time");
            assert!(line.ends_with(&format!("INFO  talks/0 {text}")), "record {record}: {line}");
        }
    }
    following.kill().expect("an own child can be killed");
    following.wait().expect("an own child can be waited for");
    reading.join().expect("no panic");
    assert!(node.stop().success());
}

#[test]
fn settings_are_shown_with_their_source_and_secrets_hidden() {
    let mut command = tidemill(["config", "show", "--changed", "--output", "json", "--fleet", "mine"]);
    command.env("KAFKA_GROUP", "my-service").env("TIDEMILL_KAFKA_SASL_PASSWORD", "hunter2");
    command.env("TIDEMILL_KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT");
    command.env("TIDEMILL_KAFKA_SASL_MECHANISM", "PLAIN").env("TIDEMILL_KAFKA_SASL_USERNAME", "me");
    let shown = run(&mut command).ok();
    assert!(!shown.contains("hunter2"), "{shown}");
    for part in [r#""from":"--fleet","key":"fleet","value":"mine""#, r#""from":"$KAFKA_GROUP","key":"group""#]
    {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let explained = run(&mut tidemill(["config", "explain", "kafka.acks"])).ok();
    assert!(explained.contains("KAFKA_ACKS") && explained.contains("all, 1, 0"), "{explained}");
}

//! A mistake costs seconds, not minutes: one clear error that names the fix, and a non-zero exit code.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use tidemill_tests::cluster::Cluster;
use tidemill_tests::node::{Node, NodeFile, plain};
use tidemill_tests::programs::{Finished, alone, free_address, run, tidemill, workspace};

/// Longest time to an error; the tests shorten the connection time-out to fit.
const QUICK: Duration = Duration::from_secs(15);

/// Asserts failure in time, with one error on standard error that says each of `names`.
#[track_caller]
fn expect_error(finished: &Finished, names: &[&str]) {
    assert!(finished.took < QUICK, "took {:?}", finished.took);
    expect_refusal(finished, names);
}

/// The same, of what compiles a module first, which takes as long as it takes.
#[track_caller]
fn expect_refusal(finished: &Finished, names: &[&str]) {
    assert!(!finished.status.success(), "{finished:#?}");
    assert_eq!(finished.stdout, "", "{finished:#?}");
    let errors = finished.stderr.lines().filter(|line| line.starts_with("error")).count();
    assert_eq!(errors, 1, "{finished:#?}");
    for name in names {
        assert!(finished.stderr.contains(name), "does not say {name:?}: {finished:#?}");
    }
    assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
}

/// Starts a node that must not come up. `settings` are lines of its file.
fn node(directory: &Path, settings: &str) -> Finished {
    NodeFile::write(directory, settings).run()
}

#[test]
fn a_missing_broker_is_named() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let nobody = free_address();
    let settings = format!("kafka: {{ bootstrap_servers: '{nobody}', connect_timeout: 3s }}");
    expect_error(&node(directory.path(), &settings), &["Failed to connect to Kafka", &nobody]);
}

#[test]
fn a_port_in_use_is_named() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let settings = format!(
        "kafka: {{ bootstrap_servers: '{}' }}\nlisten: {{ grpc: '{address}', http: '{}' }}",
        cluster.bootstrap(),
        free_address()
    );
    expect_error(&node(directory.path(), &settings), &[&address, "in use"]);
}

#[test]
fn a_typo_in_the_file_is_named_with_its_line_and_the_nearest_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let finished = node(directory.path(), "environment: test\nkafka:\n  bootstrap_server: localhost:9092");
    expect_error(&finished, &["node.yaml:3", "bootstrap_server", "bootstrap_servers"]);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    // A file where the directory should be refuses even root.
    std::fs::write(directory.path().join("state"), "").expect("a file");
    let settings = format!("kafka: {{ bootstrap_servers: '{}' }}", cluster.bootstrap());
    expect_error(&node(directory.path(), &settings), &["state"]);
}

#[test]
fn no_node_to_talk_to_is_named() {
    let nobody = free_address();
    let finished = run(tidemill(["lag", "--address", &nobody]).env_remove("TIDEMILL_ADDRESS"));
    expect_error(&finished, &[&nobody, "tidemill dev"]);
}

/// What a running node refuses, and that it goes on.
#[test]
fn wrong_topics_and_modules_are_refused_by_name() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(&cluster, &directory.path().join("node"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(node.client());

    let apply = |document: &str| {
        let file = directory.path().join("deployment.yaml");
        std::fs::write(&file, document).expect("a file");
        node.tidemill(&["apply", "-f", &file.display().to_string()])
    };
    std::fs::write(directory.path().join("text.wasm"), "this is no module").expect("a file");
    let not_wasm = "name: text\nmodule: text.wasm\ninputs: { in: { topic: t } }\n";
    expect_error(&apply(not_wasm), &["text.wasm", "WebAssembly"]);

    let missing = "name: gone\nmodule: gone.wasm\ninputs: { in: { topic: t } }\n";
    expect_error(&apply(missing), &["gone.wasm", "tidemill build"]);

    let module = workspace().join("plugins/rekey");
    let topic = format!(
        "name: lost\nmodule: {}\ninputs: {{ in: {{ topic: nowhere }} }}\noutputs: {{ out: {{ topic: t }} }}\n",
        module.display()
    );
    expect_refusal(&apply(&topic), &["nowhere"]);

    let typo = "name: lost\nmodul: rekey.wasm\n";
    expect_error(&apply(typo), &["deployment.yaml:2", "modul", "module"]);
    assert!(node.stop().success());
}

/// One pass mends all of it: the document, the module, the topics, the policy, the stores.
#[test]
fn everything_that_is_wrong_with_a_deploy_is_said_at_once_and_what_runs_goes_on() {
    let _alone = alone();
    let cluster = Cluster::embedded();
    let directory = tempfile::tempdir().expect("a directory");
    let settings = format!("policy: {{ memory: 32MiB, log_lines: 10 }}\n{}", plain(&cluster));
    let mut node = Node::start_with(&cluster, &directory.path().join("node"), &settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(node.client());
    for topic in ["words", "counts"] {
        assert!(node.tidemill(&["topics", "create", topic, "--partitions", "1"]).status.success());
    }
    // Built beforehand: how long that takes is not what this is about.
    for plugin in ["count", "filter"] {
        let source = workspace().join("plugins").join(plugin).display().to_string();
        let module = directory.path().join(plugin).with_extension("wasm").display().to_string();
        let built = node.tidemill(&["build", &source, "--out", &module]);
        assert!(built.status.success(), "{built:#?}");
    }
    let file = directory.path().join("deployment.yaml").display().to_string();
    let apply = |document: &str, more: &[&str]| {
        std::fs::write(&file, document).expect("a file");
        node.tidemill(&[&["apply", "-f", &file], more].concat())
    };
    let right = "name: count\nmodule: count.wasm\nowner: team-payments\ninputs: { in: { topic: words } }\noutputs: { out: { topic: counts } }\n";
    let deployed = apply(right, &["--wait", "30s"]);
    assert!(deployed.status.success(), "{deployed:#?}");

    let wrong = right.replace("topic: words", "topic: nowhere").replace("out:", "oot:")
        + "limits: { memory: 64MiB, log_lines: 11 }\n";
    let all = [
        "the module has output out",
        "outputs.oot: the module has no such output",
        "topic nowhere does not exist",
        "limits.memory: 64MiB is above what this node allows (policy.memory: 32MiB)",
        "limits.log_lines: 11 is above what this node allows (policy.log_lines: 10)",
        "there is no store totals to drop; there are counts",
    ];
    expect_error(&apply(&wrong, &["--drop-store", "totals"]), &all);

    // Another module under the same name, which has no store.
    let stateless = right.replace("count.wasm", "filter.wasm") + "config: { keep: [{ exists: true }] }\n";
    expect_refusal(&apply(&stateless, &[]), &["stores.counts", "--drop-store counts"]);
    let whose = format!("{right}---\n{}", right.replace("name: count", "name: other"));
    expect_error(&apply(&whose, &["--drop-store", "counts"]), &["--drop-store counts", "DEPLOYMENT/counts"]);

    let shown = node.tidemill(&["deployments", "count"]);
    for part in ["running", "counts (u64, schema 1)", "team-payments"] {
        assert!(shown.stdout.contains(part), "{part}: {shown:#?}");
    }
    assert!(node.tidemill(&["history", "count"]).stdout.contains("counts:1"));
    assert!(node.stop().success());
}

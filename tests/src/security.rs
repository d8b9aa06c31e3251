//! Who may do what, seen from outside: certificates, roles and tenants on a fleet of two, the audit log,
//! and secrets that stay where they are.

use std::path::Path;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;
use serde_json::Value;
use tidemill_sink::{HttpSink, Mode};
use tidemill_test_support::build_guest;
use tidemill_test_support::certificates::{Authority, Pair};

use crate::cluster::Cluster;
use crate::node::{Node, plain};
use crate::outbox::stage::get;
use crate::programs::{Finished, free_address};
use crate::reading::{assign, reading};
use crate::rig::dump::Dump;
use crate::wait::until;

/// For a node to answer, and for two to share the work.
const READY_MAX: Duration = Duration::from_secs(60);

const ROLES: &str = "\
roles:
  - { san: spiffe://test/node, role: node }
  - { san: spiffe://test/admin, role: admin }
  - { san: '*.team-a.test', role: query, deployments: [ 'team-a-*' ] }
  - { san: '*.team-a.test', role: deployer, deployments: [ 'team-a-*' ], topics: [ words, counts ], secrets: [ '/run/secrets/team-a/*' ] }
";

/// Somebody with a certificate.
struct Person<'a> {
    ca: &'a Path,
    pair: Pair,
}

impl Person<'_> {
    fn at(&self, node: &Node, arguments: &[&str]) -> Finished {
        let shown = [self.ca, self.pair.cert.as_path(), self.pair.key.as_path()]
            .map(|path| path.display().to_string());
        let flags = ["--ca", &shown[0], "--cert", &shown[1], "--cert-key", &shown[2]];
        node.tidemill(&[arguments, &flags].concat())
    }

    fn json(&self, node: &Node, arguments: &[&str]) -> Value {
        let text = self.at(node, &[arguments, &["-o", "json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The command is refused, and says this.
    #[track_caller]
    fn refused(&self, node: &Node, arguments: &[&str], why: &str) {
        let finished = self.at(node, arguments);
        assert_eq!(finished.status.code(), Some(4), "{arguments:?}: {finished:#?}");
        assert!(finished.stderr.contains(why), "{arguments:?}: {finished:#?}");
    }
}

/// A tenant reads and changes what is his on any node, and of what is not his he does not even learn the
/// name; who changed what is in the history and in the audit log.
pub fn a_fleet_with_certificates_answers_to_roles(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let authority = Authority::new(directory.path(), "ca");
    let own = authority.issue("node", &["127.0.0.1", "spiffe://test/node"]);
    let person = |file: &str, name: &str| Person { ca: &authority.ca, pair: authority.issue(file, &[name]) };
    let admin = person("admin", "spiffe://test/admin");
    let tenant = person("tenant", "ci.team-a.test");
    let nodes = ["n1", "n2"].map(|name| {
        let tls = format!(
            "listen.tls: {{ cert: '{}', key: '{}', client_ca: '{}' }}\n",
            own.cert.display(),
            own.key.display(),
            authority.ca.display()
        );
        Node::start_with(cluster, &path(name), &format!("{}{tls}{ROLES}", plain(cluster)))
    });
    for node in &nodes {
        until("the node answers its admin", READY_MAX, || {
            let finished = admin.at(node, &["deployments"]);
            if finished.status.success() { Ok(()) } else { Err(finished) }
        });
    }
    deploy(&nodes, &admin, directory.path());
    strangers_are_told_why(&nodes[0], &authority.ca);
    a_tenant_sees_what_is_his(&nodes, &tenant);
    a_tenant_changes_what_is_his(&nodes[1], &tenant);
    a_tenant_names_topics_and_secrets_of_his_own_only(&nodes[0], &tenant, directory.path());
    until_shared(&nodes, &admin);
    let put = ["state", "edit", "put", "team-a-count", "counts", "a", "41", "--yes"];
    nodes.iter().for_each(|node| drop(admin.at(node, &put).ok()));

    a_changed_list_of_roles_counts(&nodes[1], &admin, &tenant);
    metrics_are_found_behind_tls(&nodes[0], &admin, &path("both.yaml"));

    let history = tenant.at(&nodes[1], &["history", "team-a-count"]).ok();
    assert!(history.contains("spiffe://test/admin"), "{history}");
    let logs: String = nodes.iter().map(Node::whole_log).collect();
    the_audit_log_tells(&logs);
    let key = std::fs::read_to_string(&own.key).expect("a key");
    let secret = key.lines().nth(1).expect("its first line").to_owned();
    secrets_stay_secret(cluster, &nodes[0], &[&secret]);
}

/// Two deployments of different tenants, shared by both nodes, and something counted.
fn deploy(nodes: &[Node; 2], admin: &Person<'_>, directory: &Path) {
    let node = &nodes[0];
    node.tidemill(&["topics", "create", "words", "counts", "--partitions", "4"]).ok();
    std::fs::write(directory.join("count.wasm"), build_guest("plugins/count")).expect("a module");
    let document = |name: &str| {
        format!(
            "name: {name}\nmodule: count.wasm\ninputs: {{ in: {{ topic: words }} }}\noutputs: {{ out: {{ topic: counts }} }}\n"
        )
    };
    let file = directory.join("both.yaml");
    std::fs::write(&file, format!("{}---\n{}", document("team-a-count"), document("team-b-count")))
        .expect("a file");
    let words = directory.join("words.csv");
    std::fs::write(&words, "word\na\nb\nc\nd\ne\nf\n").expect("a file");
    let words = words.display().to_string();
    node.tidemill(&["produce", "words", "--file", &words, "--header-line", "--key-field", "word"]).ok();
    admin.at(node, &["apply", "--wait", "-f", &file.display().to_string()]).ok();
    until_shared(nodes, admin);
}

/// Each node knows that both run two of the four tasks, of either deployment, and that everything is counted.
fn until_shared(nodes: &[Node; 2], admin: &Person<'_>) {
    nodes.iter().for_each(|node| until_shared_as_told_by(node, admin));
}

fn until_shared_as_told_by(node: &Node, admin: &Person<'_>) {
    until("the work is shared and done", READY_MAX, || {
        let (listed, lag) = (admin.json(node, &["nodes"]), admin.at(node, &["lag", "team-a-count"]).stdout);
        let nodes = listed["nodes"].as_array().cloned().unwrap_or_default();
        let running = |node: &Value, deployment: &str| {
            let tasks = node["tasks"].as_array().cloned().unwrap_or_default();
            tasks.iter().filter(|task| task["deployment"] == deployment && task["state"] == "running").count()
        };
        let half =
            |node: &Value| ["team-a-count", "team-b-count"].iter().all(|name| running(node, name) == 2);
        match nodes.len() == 2 && nodes.iter().all(half) && lag.contains("total 0 records") {
            true => Ok(()),
            false => Err((listed, lag)),
        }
    });
}

/// `check` asks for them as it asks for everything else.
fn metrics_are_found_behind_tls(node: &Node, admin: &Person<'_>, file: &Path) {
    let file = file.display().to_string();
    let checked = admin.at(node, &["check", "-f", &file, "--http", &node.http, "-o", "json"]);
    let report: Value = serde_json::from_str(&checked.stdout).unwrap_or_else(|_| panic!("{checked:#?}"));
    let checks = report["checks"].as_array().expect("a list");
    assert!(checks.iter().any(|row| row["check"] == "alerts" && row["result"] == "ok"), "{checked:#?}");
}

fn strangers_are_told_why(node: &Node, ca: &Path) {
    let ca = ca.display().to_string();
    let without = node.tidemill(&["deployments", "--ca", &ca]);
    assert!(without.stderr.contains("it asks for a certificate"), "{without:#?}");
    let plain = node.tidemill(&["deployments"]);
    assert!(!plain.status.success() && plain.stderr.contains("--ca"), "{plain:#?}");
}

/// On either node, although half of the partitions are on the other one.
fn a_tenant_sees_what_is_his(nodes: &[Node; 2], tenant: &Person<'_>) {
    let get = |deployment| ["state", "get", deployment, "counts", "a"];
    for node in nodes {
        assert_eq!(tenant.at(node, &get("team-a-count")).ok().trim_end().lines().next(), Some("1"));
        let scan = tenant.at(node, &["state", "scan", "team-a-count", "counts"]).ok();
        let has = |key: &str| scan.split_whitespace().any(|word| word == key);
        assert!(["a", "b", "c", "d", "e", "f"].into_iter().all(has), "{scan}");
        tenant.refused(node, &get("team-b-count"), "needs the role query for team-b-count");
        for seen in [&["deployments"][..], &["nodes"], &["lag"]] {
            let seen = tenant.json(node, seen).to_string();
            assert!(seen.contains("team-a-count") && !seen.contains("team-b"), "{seen}");
        }
        let nothing = tenant.at(node, &["history", "team-a-nothing"]);
        assert_eq!(nothing.status.code(), Some(5), "{nothing:#?}");
        assert!(
            nothing.stderr.contains("team-a-count") && !nothing.stderr.contains("team-b"),
            "{nothing:#?}"
        );
    }
}

fn a_tenant_changes_what_is_his(node: &Node, tenant: &Person<'_>) {
    tenant.refused(node, &["delete", "team-b-count", "--yes"], "needs the role");
    tenant.refused(node, &["pause", "team-b-count"], "needs the role");
    tenant.at(node, &["pause", "team-a-count"]).ok();
    tenant.at(node, &["resume", "team-a-count"]).ok();
}

/// He is not told whether the others exist.
fn a_tenant_names_topics_and_secrets_of_his_own_only(node: &Node, tenant: &Person<'_>, directory: &Path) {
    node.tidemill(&["topics", "create", "secrets", "--partitions", "4"]).ok();
    let file = directory.join("spy.yaml");
    let document = "name: team-a-spy\nmodule: count.wasm\ninputs: { in: { topic: secrets } }\noutputs: { out: { topic: nowhere } }\n";
    std::fs::write(&file, document).expect("a file");
    let apply = ["apply", "-f", &file.display().to_string()];
    for (key, topic) in [("inputs.in.topic", "secrets"), ("outputs.out.topic", "nowhere")] {
        let why = format!("{key}: the node's `roles` do not let you name the topic {topic} in team-a-spy");
        tenant.refused(node, &apply, &why);
    }
    // What a node holds is not his to send, wherever he says.
    let document = "name: team-a-spy\nmodule: count.wasm\ninputs: { in: { topic: words } }\noutputs: { out: { http: { url: 'http://spy.test/', authorization_file: /run/secrets/team-a/../node.key } } }\n";
    std::fs::write(&file, document).expect("a file");
    let why = "outputs.out.http.authorization_file: the node's `roles` do not let you name /run/secrets/team-a/../node.key in team-a-spy";
    tenant.refused(node, &apply, why);
}

/// Without a restart. What cannot be read changes nothing.
fn a_changed_list_of_roles_counts(node: &Node, admin: &Person<'_>, tenant: &Person<'_>) {
    let file = node.directory().join("node.yaml");
    let before = std::fs::read_to_string(&file).expect("the node's file");
    let write = |text: &str| std::fs::write(&file, text).expect("the node's file");
    let history = ["history", "team-b-count"];
    tenant.refused(node, &history, "needs the role");
    write(&before.replace("'team-a-*'", "'team-*'"));
    until("the tenant may more", READY_MAX, || {
        let finished = tenant.at(node, &history);
        if finished.status.success() { Ok(()) } else { Err(finished) }
    });
    write(&before.replace("role: admin", "role: root"));
    until("the node says what is wrong", READY_MAX, || {
        let log = node.log();
        if log.contains("new roles cannot be used") && log.contains("`root`") { Ok(()) } else { Err(log) }
    });
    admin.at(node, &["deployments"]).ok();
    write(&before);
    until("the tenant may less", READY_MAX, || {
        let finished = tenant.at(node, &history);
        if finished.status.success() { Err(finished) } else { Ok(()) }
    });
}

fn the_audit_log_tells(logs: &str) {
    let lines: Vec<&str> = logs.lines().filter(|line| line.contains(" audit ")).collect();
    let expected = [
        [
            "who=\"spiffe://test/admin\"",
            "action=\"Deployments.Deploy\"",
            "name=\"team-a-count\"",
            "outcome=Ok",
        ],
        ["who=\"ci.team-a.test\"", "action=\"Deployments.Pause\"", "name=\"team-a-count\"", "outcome=Ok"],
        [
            "who=\"ci.team-a.test\"",
            "action=\"Deployments.Pause\"",
            "name=\"team-b-count\"",
            "outcome=PermissionDenied",
        ],
        // What has changed in the list of roles, and what was refused.
        ["action=\"Roles.Read\"", "node.yaml", "outcome=Ok", "count for new calls"],
        ["action=\"Roles.Read\"", "node.yaml", "outcome=FailedPrecondition", "the former roles stay"],
        // By the node that was asked for a key which the other one has.
        ["who=\"spiffe://test/admin\"", "via=\"spiffe://test/node\"", "action=\"State.Edit\"", "outcome=Ok"],
    ];
    for words in expected {
        let found = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line of {words:?}:\n{}", lines.join("\n"));
    }
}

/// One destination has a signing key, an `Authorization` and a token in its URL, another a password; both fail, and one
/// then refuses for good. Nothing that is logged, shown or written about it holds one of the four.
pub fn an_outbox_keeps_its_secrets(cluster: &Cluster) {
    const SECRETS: [&str; 4] =
        ["canary-that-signs", "canary-that-authorizes", "canary-in-a-url", "canary-that-logs-in"];
    const SOON: &str = "timeout: 1s, retry: 20ms..100ms, breaker: { failures: 4, open: 300ms }";
    let [key, authorization, token, password] = SECRETS;
    let directory = tempfile::tempdir().expect("a directory");
    let kept = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("{text}\n")).expect("a file");
        path.display().to_string()
    };
    let module = directory.path().join("courier.wasm");
    std::fs::write(&module, build_guest("tests/guests/courier")).expect("a module");
    let sink = HttpSink::start();
    sink.set(Mode::Status(503));
    let document = format!(
        "name: hooks\nmodule: {}\ninputs: {{ in: {{ topic: in, start: earliest }} }}\noutputs:\n  \
         hook: {{ http: {{ url_file: {}, secret_file: {}, authorization_file: {} }}, {SOON} }}\n  \
         out: {{ amqp: {{ url_file: {}, routing_key: nobody }}, {SOON} }}\n",
        module.display(),
        kept("hook", &format!("{}?token={token}", sink.url())),
        kept("key", key),
        kept("authorization", authorization),
        kept("rabbit", &format!("amqp://me:{password}@{}", free_address())),
    );
    let file = kept("hooks.yaml", &document);
    let settings = format!("{}log: {{ filter: 'info,tidemill=debug' }}\n", plain(cluster));
    let mut node = Node::start_with(cluster, &directory.path().join("n1"), &settings);
    node.until_it_answers(READY_MAX);
    node.tidemill(&["topics", "create", "in", "--partitions", "1"]).ok();
    node.tidemill(&["apply", "--wait", "-f", &file]).ok();
    node.tidemill(&["produce", "in", "one", "--key", "k"]).ok();
    let ask = |arguments: &[&str]| -> Value {
        let told = node.tidemill(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&told.stdout).unwrap_or_else(|_| told.stderr.into())
    };
    let waiting = until("both have failed", READY_MAX, || {
        let waiting = ask(&["outbox", "show", "hooks"]);
        let rows = waiting["rows"].as_array().cloned().unwrap_or_default();
        let failed = rows.iter().filter(|row| row["reason"].as_str().is_some_and(|why| !why.is_empty()));
        if failed.count() == 2 { Ok(waiting) } else { Err(waiting) }
    });
    let request = sink.received().remove(0);
    assert_eq!(request.header("authorization"), Some(authorization), "{request:?}");
    assert!(request.header("tidemill-signature").is_some(), "{request:?}");
    sink.set(Mode::Status(410));
    let letter = until("one is a dead letter", READY_MAX, || {
        let letters = ask(&["dlq", "list", "hooks"]);
        letters["letters"].as_array().and_then(|all| all.first()).cloned().ok_or(letters)
    });
    let letter = format!("{}/{}", letter["partition"], letter["offset"]);
    let shown = [
        ("outbox show", waiting.to_string()),
        ("outbox list", ask(&["outbox", "list", "hooks"]).to_string()),
        ("dlq show", ask(&["dlq", "show", "hooks", &letter]).to_string()),
        ("deployments", ask(&["deployments"]).to_string()),
        ("/metrics", get(&node.http, "/metrics").unwrap_or_default()),
        ("the dead letters", content(cluster, "tidemill.hooks.dead-letters")),
        ("the changelog", content(cluster, "tidemill.hooks.changelog")),
    ];
    expect_without(&shown, &SECRETS);
    assert!(node.stop().success(), "{}", node.log());
    secrets_stay_secret(cluster, &node, &SECRETS);
}

/// Keys and values of a topic's records; what is no text is replaced.
fn content(cluster: &Cluster, topic: &str) -> String {
    let rows = Dump::of(cluster.bootstrap()).topic(topic, false).expect("the topic can be read");
    rows.iter().map(|row| row.key_text() + &row.value_text()).collect()
}

/// Nothing that the node logs, shows, or writes for the fleet holds one of these texts.
pub fn secrets_stay_secret(cluster: &Cluster, node: &Node, secrets: &[&str]) {
    let file = node.directory().join("node.yaml").display().to_string();
    let shown = [
        ("the log", node.whole_log()),
        ("config show", node.tidemill(&["config", "show", "--config", &file]).ok()),
        ("the registry", registry(cluster)),
    ];
    expect_without(&shown, secrets);
}

/// What was found in each of these places holds none of these texts.
fn expect_without(shown: &[(&str, String)], secrets: &[&str]) {
    for (place, text) in shown {
        assert!(!text.is_empty(), "{place} is empty, which shows nothing");
        for secret in secrets {
            assert!(!text.contains(secret), "{place} shows a secret");
        }
    }
}

/// Every byte that the registry holds; what is no text is replaced.
fn registry(cluster: &Cluster) -> String {
    let topic = "_tidemill.control";
    let consumer: BaseConsumer =
        reading(cluster.bootstrap(), "security", false).create().expect("a consumer");
    let (_, end) = consumer.fetch_watermarks(topic, 0, READY_MAX).expect("the registry is there");
    assign(&consumer, topic, [0], Offset::Beginning).expect("assigned");
    let mut text = String::new();
    until("the registry is read to its end", READY_MAX, || {
        let Some(record) = consumer.poll(Duration::from_millis(100)) else { return Err(text.len()) };
        let record = record.expect("readable");
        text.push_str(&String::from_utf8_lossy(record.payload().unwrap_or_default()));
        if record.offset() + 1 >= end { Ok(()) } else { Err(text.len()) }
    });
    text
}

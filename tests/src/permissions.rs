//! A cluster that asks who may do what: the deploy says everything that is missing, with the commands that
//! grant it.

use tidemill_kafka_harness::{Options, run_tool};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::programs::workspace;

/// Brokers with an authorizer that permits what nobody has said anything about, so that the brokers
/// themselves, and a node before its deployments, need no grants.
pub fn guarded() -> Cluster {
    let properties = [
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("allow.everyone.if.no.acl.found", "true"),
    ];
    let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Cluster::apache_with(&Options { properties, ..Options::default() })
}

fn kafka_acls(arguments: &[&str]) {
    let output = run_tool("org.apache.kafka.tools.AclCommand", arguments).expect("kafka-acls runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

pub fn a_deploy_names_every_missing_permission_and_what_grants_it(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(cluster, &directory.path().join("node"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(node.client());
    for topic in ["in", "out"] {
        let made = node.tidemill(&["topics", "create", topic, "--partitions", "1"]);
        assert!(made.status.success(), "{made:#?}");
    }
    let allow = |principal: &str, operations: &[&str], resource: &[&str]| {
        let mut arguments =
            vec!["--bootstrap-server", cluster.bootstrap(), "--add", "--allow-principal", principal];
        arguments.extend(operations.iter().flat_map(|operation| ["--operation", operation]));
        arguments.extend(resource);
        kafka_acls(&arguments);
    };
    // What somebody else is given nobody who is not named has.
    let changelog = "tidemill.guarded.changelog";
    allow(
        "User:other",
        &["Read"],
        &["--topic", "in", "--topic", changelog, "--group", "local.default.guarded"],
    );
    allow("User:ANONYMOUS", &["Describe", "DescribeConfigs"], &["--topic", "out"]);
    let ids = ["--transactional-id", "tidemill.guarded.", "--resource-pattern-type", "prefixed"];
    allow("User:other", &["Write"], &ids);
    let of_brokers =
        ["ClusterAction", "Alter", "AlterConfigs", "Describe", "DescribeConfigs", "IdempotentWrite"];
    allow("User:ANONYMOUS", &of_brokers, &["--cluster"]);

    let document = format!(
        "name: guarded\nmodule: {}\ninputs: {{ in: {{ topic: in }} }}\noutputs: {{ out: {{ topic: out }} }}\n",
        workspace().join("plugins/count").display()
    );
    let file = directory.path().join("guarded.yaml");
    std::fs::write(&file, document).expect("a file");
    let deploy = || node.tidemill(&["apply", "-f", &file.display().to_string(), "--wait", "60s"]);
    let refused = deploy();
    assert!(!refused.status.success(), "{refused:#?}");
    let commands: Vec<Vec<&str>> = refused
        .stderr
        .lines()
        .filter_map(|line| Some(line.split_once("kafka-acls ")?.1.split_whitespace().collect()))
        .collect();
    for resource in [
        "--operation Read --operation DescribeConfigs --topic in",
        "--operation Write --topic out",
        "--operation Read --group local.default.guarded",
        "--operation Create --operation Write --operation DescribeConfigs --operation Read --topic tidemill.guarded.changelog",
        "--operation Write --transactional-id tidemill.guarded. --resource-pattern-type prefixed",
    ] {
        let is_named = commands.iter().any(|command| command.join(" ").ends_with(resource));
        assert!(is_named, "does not say {resource:?}: {refused:#?}");
    }
    assert_eq!(commands.len(), 5, "{refused:#?}");

    // They are meant literally.
    commands.iter().for_each(|command| kafka_acls(command));
    let deployed = deploy();
    assert!(deployed.status.success(), "{deployed:#?}");
    assert!(node.stop().success());
}

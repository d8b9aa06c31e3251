//! The whole-node cases on Apache Kafka 4.3.1.

use tidemill_kafka_harness::Options;
use tidemill_tests::cases;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::inputs;
use tidemill_tests::node::plain;
use tidemill_tests::orders;
use tidemill_tests::permissions;
use tidemill_tests::programs::{alone, turn_on_apache};
use tidemill_tests::reads;
use tidemill_tests::taken_back;
use tidemill_tests::upgrade;

#[test]
fn the_flights_pipeline_is_right() {
    let _turn = turn_on_apache();
    cases::the_flights_pipeline_is_right(&Cluster::apache());
}

#[test]
fn a_deleted_deployment_begins_anew() {
    let _turn = turn_on_apache();
    cases::a_deleted_deployment_begins_anew(&Cluster::apache());
}

#[test]
fn a_killed_node_goes_on_where_it_was() {
    let _alone = alone();
    cases::a_killed_node_goes_on_where_it_was(&Cluster::apache());
}

#[test]
fn two_nodes_share_the_work_and_one_takes_over() {
    let _turn = turn_on_apache();
    cases::two_nodes_share_the_work_and_one_takes_over(&Cluster::apache());
}

/// KIP-848: the broker assigns, and moves the member's epoch without telling by an event.
#[test]
fn two_nodes_of_the_consumer_protocol_share_the_work_and_one_takes_over() {
    let _turn = turn_on_apache();
    let cluster = Cluster::apache();
    let kafka = plain(&cluster) + "  group_protocol: consumer\n";
    cases::configured_nodes_share_the_work(&cluster, &kafka);
}

#[test]
fn partitions_that_are_added_after_a_crash_are_read() {
    let _turn = turn_on_apache();
    inputs::partitions_that_are_added_after_a_crash_are_read(&Cluster::apache());
}

#[test]
fn an_exchanged_input_begins_and_resumes_where_it_should() {
    let _turn = turn_on_apache();
    inputs::an_exchanged_input_begins_and_resumes_where_it_should(&Cluster::apache());
}

#[test]
fn versions_are_taken_back_under_traffic() {
    let _turn = turn_on_apache();
    taken_back::versions_are_taken_back_under_traffic(&Cluster::apache());
}

#[test]
fn a_fleet_is_upgraded_one_node_at_a_time() {
    let _alone = alone();
    upgrade::a_fleet_is_upgraded_one_node_at_a_time(&Cluster::apache());
}

#[test]
fn every_write_is_seen_by_a_read_at_its_position() {
    let _turn = turn_on_apache();
    reads::every_write_is_seen(&Cluster::apache(), 200);
}

#[test]
fn every_order_has_one_outcome_and_repetitions_and_poison_change_nothing() {
    let _turn = turn_on_apache();
    orders::every_order_has_one_outcome_and_repetitions_and_poison_change_nothing(&Cluster::apache());
}

#[test]
fn kafkas_own_tools_see_the_same() {
    let _turn = turn_on_apache();
    cases::kafkas_own_tools_see_the_same(&Cluster::apache());
}

#[test]
fn a_deploy_names_every_missing_permission_and_what_grants_it() {
    let _turn = turn_on_apache();
    permissions::a_deploy_names_every_missing_permission_and_what_grants_it(&permissions::guarded());
}

/// TLS and SCRAM between node and broker, from the node's file and a password file; first with
/// what people get wrong.
#[test]
fn a_node_signs_in_over_tls_with_scram() {
    let _turn = turn_on_apache();
    let user = ("tidemill".to_owned(), "correct-horse".to_owned());
    let options = Options { sasl_ssl: Some(user), ..Options::default() };
    let cluster = Cluster::apache_with(&options);
    let Cluster::Apache(kafka) = &cluster else { unreachable!("just made") };
    let secured = kafka.secured.as_ref().expect("asked for");
    let directory = tempfile::tempdir().expect("a directory");
    let password = directory.path().join("password");
    std::fs::write(&password, "correct-horse\n").expect("a file");
    let signed_in = format!(
        "kafka:\n  bootstrap_servers: '{}'\n  security_protocol: SASL_SSL\n  sasl:\n    mechanism: SCRAM-SHA-512\n    \
         username: tidemill\n    password_file: {}\n",
        secured.bootstrap,
        password.display(),
    );
    let trusting = format!("{signed_in}  ssl:\n    ca: {}\n", secured.ca_pem.display());

    let untrusted = cases::a_configured_node_gives_up(&signed_in);
    assert!(untrusted.contains("TLS failed") && untrusted.contains("certificate"), "{untrusted}");
    let nobody = trusting.replace("username: tidemill", "username: nobody");
    let unknown = cases::a_configured_node_gives_up(&nobody);
    assert!(unknown.contains("authentication failed"), "{unknown}");

    cases::a_configured_node_is_right(&cluster, &trusting, &["correct-horse"]);
}

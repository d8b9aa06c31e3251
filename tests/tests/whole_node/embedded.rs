//! The whole-node cases on the embedded broker.

use tidemill_tests::cases;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::inputs;
use tidemill_tests::orders;
use tidemill_tests::poison;
use tidemill_tests::programs::{alone, turn_on_embedded};
use tidemill_tests::reads;
use tidemill_tests::security;
use tidemill_tests::taken_back;
use tidemill_tests::upgrade;

#[test]
fn the_flights_pipeline_is_right() {
    let _turn = turn_on_embedded();
    cases::the_flights_pipeline_is_right(&Cluster::embedded());
}

#[test]
fn a_deleted_deployment_begins_anew() {
    let _turn = turn_on_embedded();
    cases::a_deleted_deployment_begins_anew(&Cluster::embedded());
}

#[test]
fn a_killed_node_goes_on_where_it_was() {
    let _alone = alone();
    cases::a_killed_node_goes_on_where_it_was(&Cluster::embedded());
}

#[test]
fn two_nodes_share_the_work_and_one_takes_over() {
    let _turn = turn_on_embedded();
    cases::two_nodes_share_the_work_and_one_takes_over(&Cluster::embedded());
}

#[test]
fn partitions_that_are_added_after_a_crash_are_read() {
    let _turn = turn_on_embedded();
    inputs::partitions_that_are_added_after_a_crash_are_read(&Cluster::embedded());
}

#[test]
fn an_exchanged_input_begins_and_resumes_where_it_should() {
    let _turn = turn_on_embedded();
    inputs::an_exchanged_input_begins_and_resumes_where_it_should(&Cluster::embedded());
}

#[test]
fn versions_are_taken_back_under_traffic() {
    let _turn = turn_on_embedded();
    taken_back::versions_are_taken_back_under_traffic(&Cluster::embedded());
}

#[test]
fn a_fleet_is_upgraded_one_node_at_a_time() {
    let _alone = alone();
    upgrade::a_fleet_is_upgraded_one_node_at_a_time(&Cluster::embedded());
}

#[test]
fn every_write_is_seen_by_a_read_at_its_position() {
    let _turn = turn_on_embedded();
    reads::every_write_is_seen(&Cluster::embedded(), 200);
}

#[test]
fn an_outbox_keeps_its_secrets() {
    let _turn = turn_on_embedded();
    security::an_outbox_keeps_its_secrets(&Cluster::embedded());
}

#[test]
fn every_order_has_one_outcome_and_repetitions_and_poison_change_nothing() {
    let _turn = turn_on_embedded();
    orders::every_order_has_one_outcome_and_repetitions_and_poison_change_nothing(&Cluster::embedded());
}

#[test]
fn every_letter_comes_back_once_and_in_order_through_kills_and_a_redrive_that_is_cancelled() {
    let _turn = turn_on_embedded();
    poison::every_letter_comes_back_once();
}

#[test]
fn kafkas_own_tools_see_the_same() {
    let _turn = turn_on_embedded();
    cases::kafkas_own_tools_see_the_same(&Cluster::embedded());
}

#[test]
fn a_fleet_with_certificates_answers_to_roles() {
    let _turn = turn_on_embedded();
    security::a_fleet_with_certificates_answers_to_roles(&Cluster::embedded());
}

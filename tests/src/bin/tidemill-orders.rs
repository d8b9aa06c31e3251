//! The orders example from beginning to end: `make orders`. Ends in one line about what became of the orders.
//!
//! An embedded broker, a node that is killed in the middle, a receiver of webhooks that fails every other time, and a
//! RabbitMQ where `rabbitmq-server` is installed. Every number is checked.

use tidemill_tests::cluster::Cluster;
use tidemill_tests::orders::every_order_has_one_outcome_and_repetitions_and_poison_change_nothing;

fn main() {
    let shown = every_order_has_one_outcome_and_repetitions_and_poison_change_nothing(&Cluster::embedded());
    println!("orders: {shown}");
}

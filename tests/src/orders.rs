//! The orders example on a node: repeated, poisonous and cancelled orders, a kill in the middle, and what the
//! outside is told: a webhook that fails every other time, and a RabbitMQ queue where there is a RabbitMQ. All that is
//! told of an order has the correlation id that it began with.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rdkafka::message::{Message, OwnedMessage};
use serde_json::Value;
use tidemill_sink::{HttpSink, Mode};

use crate::cases::block_on;
use crate::cluster::Cluster;
use crate::node::{Node, plain};
use crate::outbox::rabbit::Rabbit;
use crate::pipeline::Reader;
use crate::programs::workspace;
use crate::reading;
use crate::rig::dump::Dump;
use crate::security::secrets_stay_secret;
use crate::wait::until;

const SETTLED_MAX: Duration = Duration::from_secs(90);
const TOPICS: [&str; 6] = ["orders", "payments", "warehouse", "commands", "outcomes", "queue"];
/// The queue that the example's routing key names.
const QUEUE: &str = "order-notifications";
/// A zero quantity, an unknown kind, a known order under a new id, and two lines that are no JSON.
const LETTERS: u64 = 5;
/// Those lines come with this correlation id.
const IMPORT: &str = "import-7";
const IMPORTED: usize = 2;
/// What the node logs in to RabbitMQ with.
const PASSWORD: &str = "canary-of-the-queue";

/// What a run has shown.
#[derive(Debug)]
pub struct Shown {
    pub orders: usize,
    pub cancelled: usize,
    pub commands: usize,
    /// Requests that the webhook got, and the orders in them.
    pub requests: usize,
    pub called: usize,
    /// In the RabbitMQ queue; none where there is no RabbitMQ.
    pub messages: Option<usize>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown { orders, cancelled, commands, requests, called, messages } = self;
        let confirmed = orders - cancelled;
        write!(f, "{orders} orders, {confirmed} confirmed, {cancelled} cancelled, {commands} commands, ")?;
        write!(f, "{called} told by webhook in {requests} requests, ")?;
        match messages {
            Some(messages) => write!(f, "{messages} in the queue, ")?,
            None => f.write_str("no RabbitMQ here, ")?,
        }
        write!(f, "{LETTERS} dead letters")
    }
}

/// Every order has the one outcome that its data calls for, each command was given once, and the outside is told
/// of every outcome.
pub fn every_order_has_one_outcome_and_repetitions_and_poison_change_nothing(cluster: &Cluster) -> Shown {
    let directory = tempfile::tempdir().expect("a directory");
    let webhook = HttpSink::start();
    webhook.set(Mode::Flap);
    let rabbit = Rabbit::is_installed().ok().map(|()| Rabbit::start());
    let (hook_url, queue_url) = (webhook.url(), rabbit.as_ref().map(signed_up).unwrap_or_default());
    let environment = [
        ("OUTBOX_ORDERS_WEBHOOK_URL", hook_url.as_str()),
        ("OUTBOX_ORDERS_RABBITMQ_URL", queue_url.as_str()),
    ];
    if let Some(rabbit) = &rabbit {
        rabbit.make_queue(QUEUE);
    }
    let mut node = Node::prepare(cluster, directory.path(), &plain(cluster));
    node.restart_as("tidemill", &environment);
    block_on(async { node.client().await });
    let partitions = crate::pipeline::PARTITIONS.to_string();
    node.tidemill(&[&["topics", "create"], &TOPICS[..], &["--partitions", &partitions]].concat()).ok();
    let example = workspace().join("examples/orders");
    let pipeline = pipeline(&example, directory.path(), rabbit.is_some());
    node.tidemill(&["apply", "--wait", "-f", &pipeline]).ok();
    let feed = |node: &Node, topic: &str, file: &str, key: &[&str]| {
        let file = example.join("data").join(file).display().to_string();
        node.tidemill(&[&["produce", topic, "--file", &file], key].concat()).ok();
    };
    feed(&node, "payments", "payments.jsonl", &["--key-field", "order"]);
    // Topics have no order between them: who pays by himself has paid before these orders come.
    until_all_is_handled(&node);
    feed(&node, "orders", "orders.jsonl", &["--key-field", "order"]);
    node.kill();
    node.restart_as("tidemill", &environment);
    block_on(async { node.client().await });
    let import = format!("correlation-id={IMPORT}");
    feed(&node, "orders", "poison.txt", &["--key", "o-1903", "--header", &import]);

    let expected = expected();
    assert_eq!(expected.len(), 40);
    let records = read(cluster, "outcomes", expected.len());
    let outcomes: Vec<Value> = records.iter().map(json).collect();
    let found: BTreeMap<String, &str> = outcomes
        .iter()
        .map(|outcome| (text(&outcome["order"]), outcome["type"].as_str().expect("a type")))
        .collect();
    assert_eq!(found, expected);
    let begun = places(cluster);
    expect_correlated("outcomes", &begun, records.iter().map(order_and_correlation));
    until_all_is_handled(&node);
    webhook.set(Mode::Accept);
    until_all_is_delivered(&node);
    assert_eq!(
        called(&webhook, &begun),
        expected.iter().map(|(order, kind)| (order.clone(), (*kind).to_owned())).collect()
    );
    let messages = rabbit.as_ref().map(|rabbit| notified(rabbit, &expected, &begun));
    if rabbit.is_none() {
        let records = read(cluster, "queue", expected.len());
        expect_correlated("the queue", &begun, records.iter().map(order_and_correlation));
    }

    // Nothing was asked twice, and what was cancelled was undone.
    let scan = node.tidemill(&["state", "scan", "orders", "orders", "--all", "--output", "json"]).ok();
    let scan: Value = serde_json::from_str(&scan).expect("JSON");
    let mut steps = 0;
    for entry in scan["entries"].as_array().expect("entries") {
        let order = &entry["value"];
        steps += order["steps"].as_u64().expect("a number");
        let is_confirmed = order["saga"]["step"] == "confirmed";
        let holds = (order["saga"]["reserved"] == true, order["saga"]["paid"] == true);
        assert_eq!(holds, (is_confirmed, is_confirmed), "{entry}");
    }
    let commands = read(cluster, "commands", steps as usize - expected.len());
    let ids: BTreeSet<String> = commands.iter().map(|command| text(&json(command)["id"])).collect();
    assert_eq!(ids.len(), commands.len(), "each command has an id of its own");
    let letters = read(cluster, "tidemill.orders.dead-letters", LETTERS as usize);
    letters.iter().for_each(expect_own_correlation);
    let is_imported = |letter: &&OwnedMessage| header(letter, "correlation_id") == IMPORT;
    assert_eq!(letters.iter().filter(is_imported).count(), IMPORTED);
    let seen = node.tidemill(&["inbox", "get", "orders", "order-evt-003", "--output", "json"]).ok();
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!((seen["seen"].as_bool(), seen["entries"][0]["topic"].as_str()), (Some(true), Some("orders")));
    assert!(node.stop().success(), "{}", node.log());
    secrets_stay_secret(cluster, &node, &[PASSWORD]);
    Shown {
        orders: expected.len(),
        cancelled: expected.values().filter(|kind| **kind == "order.cancelled").count(),
        commands: commands.len(),
        requests: webhook.count(),
        called: expected.len(),
        messages,
    }
}

/// The URL of a user with a password of his own.
fn signed_up(rabbit: &Rabbit) -> String {
    rabbit.make_user("orders", PASSWORD)
}

/// The example's file; where there is no RabbitMQ, a copy with a topic in its place.
fn pipeline(example: &Path, directory: &Path, has_rabbit: bool) -> String {
    let file = example.join("pipeline.yaml");
    if has_rabbit {
        return file.display().to_string();
    }
    let amqp = "    amqp: { url_env: OUTBOX_ORDERS_RABBITMQ_URL, routing_key: order-notifications }\n    retry: 100ms..10s\n";
    let text = fs::read_to_string(file).expect("the pipeline");
    assert!(text.contains(amqp), "the queue is another one than this test knows");
    let text = text.replace(amqp, "    topic: queue\n").replace("module: .\n", &module(example, ""));
    let text = text.replace("module: partners\n", &module(example, "partners"));
    let copy = directory.join("pipeline.yaml");
    fs::write(&copy, text).expect("a file");
    copy.display().to_string()
}

fn module(example: &Path, of: &str) -> String {
    format!("module: {}\n", example.join(of).display())
}

/// By order, what its data calls for.
fn expected() -> BTreeMap<String, &'static str> {
    let (orders, paid) = (lines("orders.jsonl"), lines("payments.jsonl"));
    let mut expected = BTreeMap::new();
    for order in orders.iter().filter(|order| order["quantity"].as_u64().is_some_and(|quantity| quantity > 0))
    {
        let is_paid = paid.iter().any(|payment| payment["order"] == order["order"]);
        let fails = order["sku"] == "moon-lamp"
            || order["country"] == "AQ"
            || !is_paid && order["cents"].as_u64() > Some(50_000);
        let outcome = if fails { "order.cancelled" } else { "order.confirmed" };
        expected.insert(text(&order["order"]), outcome);
    }
    expected
}

/// By order, how its correlation id ends: it came without one, so that is where its first record lies.
fn places(cluster: &Cluster) -> BTreeMap<String, String> {
    let rows = Dump::of(cluster.bootstrap()).topic("orders", true).expect("the orders can be read");
    let mut places = BTreeMap::new();
    for row in rows {
        places.entry(row.key_text()).or_insert_with(|| format!("/{}/{}", row.partition, row.offset));
    }
    places
}

/// Orders, and the correlation ids that they were told with, somewhere.
fn expect_correlated(
    place: &str,
    begun: &BTreeMap<String, String>,
    told: impl IntoIterator<Item = (String, String)>,
) {
    for (order, id) in told {
        let end = begun.get(&order).expect("an order has a first record");
        assert!(
            id.ends_with(end.as_str()),
            "{place}: {order} began at {end}, and its correlation id is {id:?}"
        );
    }
}

fn order_and_correlation(record: &OwnedMessage) -> (String, String) {
    let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
    (key, header(record, "correlation-id"))
}

/// A letter has the correlation id of its record; of one that has none, its place.
fn expect_own_correlation(letter: &OwnedMessage) {
    let place = || format!("/{}/{}", header(letter, "original_partition"), header(letter, "original_offset"));
    let own = Some(header(letter, "correlation-id")).filter(|own| !own.is_empty()).unwrap_or_else(place);
    let id = header(letter, "correlation_id");
    assert!(id.ends_with(&own), "a dead letter of {own} has the correlation id {id:?}");
}

/// The text of a header; empty if there is none.
fn header(record: &OwnedMessage, name: &str) -> String {
    String::from_utf8_lossy(reading::header(record, name).unwrap_or_default()).into_owned()
}

/// By order, what the webhook was told; one id each, whatever was repeated.
fn called(webhook: &HttpSink, begun: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let applied = webhook.applied_once();
    let events = applied.iter().map(|one| {
        let event: Value = serde_json::from_slice(&one.body).expect("a CloudEvent");
        let correlation = (text(&event["data"]["order"]), text(&event["correlationid"]));
        expect_correlated("the webhook", begun, [correlation]);
        assert_eq!(
            (text(&event["id"]).as_str(), text(&event["subject"])),
            (one.id(), text(&event["data"]["order"]))
        );
        (text(&event["data"]["order"]), text(&event["data"]["type"]))
    });
    let told: BTreeMap<String, String> = events.collect();
    assert_eq!(told.len(), applied.len(), "one event an order");
    told
}

/// The messages of the queue: one id an order.
fn notified(rabbit: &Rabbit, expected: &BTreeMap<String, &str>, begun: &BTreeMap<String, String>) -> usize {
    let messages = rabbit.empty(QUEUE);
    let told = messages.iter().map(|message| (message.key.clone(), message.correlation.clone()));
    expect_correlated("RabbitMQ", begun, told);
    let orders: BTreeSet<&str> = messages.iter().map(|message| message.key.as_str()).collect();
    let ids: BTreeSet<&str> = messages.iter().map(|message| message.id.as_str()).collect();
    assert_eq!(orders, expected.keys().map(String::as_str).collect());
    assert_eq!(ids.len(), expected.len(), "a repetition has the id of the first");
    messages.len()
}

fn until_all_is_delivered(node: &Node) {
    until("the outbox is empty", SETTLED_MAX, || {
        let list = node.tidemill(&["outbox", "list", "orders", "--output", "json"]);
        let list: Value = serde_json::from_str(&list.stdout).map_err(|_| list.stderr)?;
        if list["total"] == 0 { Ok(()) } else { Err(list.to_string()) }
    });
}

fn lines(file: &str) -> Vec<Value> {
    let path = workspace().join("examples/orders/data").join(file);
    let text = fs::read_to_string(path).expect("the data");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// So many records of a topic, and no more.
fn read(cluster: &Cluster, topic: &str, count: usize) -> Vec<OwnedMessage> {
    Reader::from_beginning(cluster, topic).exactly(count as u64)
}

fn json(record: &OwnedMessage) -> Value {
    serde_json::from_slice(record.payload().unwrap_or_default()).expect("JSON")
}

fn until_all_is_handled(node: &Node) {
    until("nothing is behind", SETTLED_MAX, || {
        let lag = node.tidemill(&["lag", "--output", "json"]);
        let lag: Value = serde_json::from_str(&lag.stdout).map_err(|_| lag.stderr)?;
        let rows = lag["partitions"].as_array().expect("rows");
        let behind = |row: &&Value| row["committed"].is_null() || row["records"] != 0;
        match rows.iter().find(behind) {
            None if !rows.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

//! The flights example on a cluster and its nodes: deploy, feed, watch, judge.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use flights::check;
use flights::client::Client;
use flights::feed::{self, Progress};
use flights::statistics::Statistics;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tidemill_proto::v1::PartitionLag;

use crate::cluster::Cluster;
use crate::node::Node;
use crate::programs::{program, workspace};
use crate::reading::{assign, reading};
use crate::wait::{until, until_told};

pub const FLIGHTS: u64 = 27_004;
pub const PARTITIONS: i32 = 4;
pub const TOPICS: [&str; 3] = ["flights", "flights-by-carrier", "delays"];

/// Everything counted, on two busy cores.
const COMPLETE_MAX: Duration = Duration::from_secs(90);
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Topics, handlers, deployments: what `make demo` does, through the same commands.
pub fn deploy(node: &Node) {
    let create = ["--partitions", &PARTITIONS.to_string()];
    node.tidemill(&[&["topics", "create"], &TOPICS[..], &create[..]].concat()).ok();
    apply(node);
}

/// Both deployments, on topics that are there.
pub fn apply(node: &Node) {
    let pipeline = workspace().join("examples/flights/pipeline.yaml");
    node.tidemill(&["apply", "--wait", "-f", &pipeline.display().to_string()]).ok();
}

/// Raises a topic's number of partitions.
pub fn add_partitions(cluster: &Cluster, topic: &str, total: usize) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap()).create().expect("an admin client");
    let more = [NewPartitions::new(topic, total)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = runtime.block_on(admin.create_partitions(&more, &AdminOptions::new()));
    for topic in outcome.expect("the cluster answers") {
        topic.expect("the partitions are added");
    }
}

fn data() -> PathBuf {
    workspace().join("examples/flights/data/flights-2013-01.csv.gz")
}

/// Feeds all flights on a thread of its own.
pub struct Feeder {
    pub progress: Arc<Progress>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Feeder {
    /// `rate` in flights a second, 0 = as fast as it goes.
    pub fn start(cluster: &Cluster, rate: u64) -> Feeder {
        let flights = feed::read_flights(&data()).expect("the data");
        assert_eq!(flights.len() as u64, FLIGHTS);
        let progress = Arc::new(Progress::default());
        let (shared, bootstrap) = (Arc::clone(&progress), cluster.bootstrap().to_owned());
        let thread = std::thread::spawn(move || feed::feed(&bootstrap, &flights, rate, &shared));
        Feeder { progress, thread }
    }

    pub fn finish(self) {
        self.thread.join().expect("the feeder did not panic").expect("all flights are acknowledged");
        assert_eq!(self.progress.fed.load(Ordering::Relaxed), FLIGHTS);
    }
}

/// Flights in the totals of all carriers.
pub async fn counted(client: &mut Client) -> u64 {
    // No store yet, a restoring task, an owner that has just gone: no answer is zero counted.
    let groups = client.statistics("").await.unwrap_or_default();
    let totals = groups.iter().filter(|(key, _)| !key.contains('/'));
    totals.map(|(_, group)| group.count + group.missing).sum()
}

/// Waits until at least `flights` are counted.
pub async fn until_counted(client: &mut Client, flights: u64) {
    until_told(&format!("{flights} flights are counted"), COMPLETE_MAX, async || {
        let counted = counted(client).await;
        if counted >= flights { Ok(()) } else { Err(counted) }
    })
    .await;
}

/// Waits until everything is counted and nothing lags, then compares every number.
pub async fn expect_right_numbers(client: &mut Client) {
    until_counted(client, FLIGHTS).await;
    until_no_lag(client).await;
    let found = client.statistics("").await.expect("the store answers");
    let expected: BTreeMap<String, Statistics> =
        check::expected(&program("flights-expected"), &data()).expect("the judge runs");
    if let Err(differences) = check::compare(&found, &expected) {
        panic!("{differences}");
    }
}

pub async fn until_no_lag(client: &mut Client) {
    until_told("nothing is behind", COMPLETE_MAX, async || {
        let lag = client.lag().await.expect("lag answers");
        let at_the_end = |partition: &PartitionLag| partition.committed == Some(partition.end);
        let all = lag.len() == 2 * PARTITIONS as usize;
        if all && lag.iter().all(at_the_end) { Ok(()) } else { Err(lag) }
    })
    .await;
}

/// Reads committed records of a topic, from its beginning or from its present end.
pub struct Reader {
    consumer: BaseConsumer,
}

impl Reader {
    pub fn from_beginning(cluster: &Cluster, topic: &str) -> Reader {
        Reader::new(cluster, topic, Offset::Beginning)
    }

    /// Only what is written (and committed) from now on.
    pub fn from_end(cluster: &Cluster, topic: &str) -> Reader {
        let mut reader = Reader::new(cluster, topic, Offset::Beginning);
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let (_, high) = reader
                .consumer
                .fetch_watermarks(topic, partition, ANSWER_MAX)
                .expect("the topic has watermarks");
            list.add_partition_offset(topic, partition, Offset::Offset(high)).expect("an offset");
        }
        reader.consumer.assign(&list).expect("assigned");
        // The consumer has a position only once it has looked.
        reader.next(Duration::from_millis(1));
        reader
    }

    fn new(cluster: &Cluster, topic: &str, start: Offset) -> Reader {
        let consumer: BaseConsumer =
            reading(cluster.bootstrap(), "whole-node-tests", true).create().expect("a consumer");
        assign(&consumer, topic, 0..PARTITIONS, start).expect("assigned");
        Reader { consumer }
    }

    pub fn next(&mut self, wait: Duration) -> Option<OwnedMessage> {
        self.consumer.poll(wait).map(|message| message.expect("readable").detach())
    }

    /// Reads `count` records and expects no more to follow.
    pub fn exactly(&mut self, count: u64) -> Vec<OwnedMessage> {
        let mut records = Vec::new();
        until(&format!("{count} records are read"), COMPLETE_MAX, || {
            while let Some(record) = self.next(Duration::from_millis(100)) {
                records.push(record);
            }
            if records.len() as u64 >= count { Ok(()) } else { Err(records.len()) }
        });
        while let Some(record) = self.next(Duration::from_secs(1)) {
            records.push(record);
        }
        assert_eq!(records.len() as u64, count, "the last: {:?}", records.last().map(Message::offset));
        records
    }
}

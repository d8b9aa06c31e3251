//! Topics: made for a run, and deleted after it.

use std::time::Duration;

use anyhow::{Result, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

/// Longest wait for any answer of the broker.
pub const ANSWER_MAX: Duration = Duration::from_secs(30);

pub fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// Makes a topic; one that exists is fine.
pub fn create(bootstrap: &str, name: &str, partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let created = block_on(admin.create_topics([&topic], &AdminOptions::new()))?;
    for result in created {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, error)) => bail!("{topic}: {error}"),
        }
    }
    Ok(())
}

/// Deletes every topic with this in its name: those of a run, and what a contender made beside them.
pub fn delete_all_of(bootstrap: &str, part: &str) -> Result<()> {
    let consumer: BaseConsumer = config(bootstrap).create()?;
    let metadata = consumer.fetch_metadata(None, ANSWER_MAX)?;
    let names: Vec<&str> =
        metadata.topics().iter().map(|topic| topic.name()).filter(|name| name.contains(part)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    for result in block_on(admin.delete_topics(&names, &AdminOptions::new()))? {
        result.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    Ok(())
}

/// The end of each partition, open transactions included.
pub fn ends(bootstrap: &str, topic: &str, partitions: i32) -> Result<Vec<i64>> {
    ends_of(bootstrap, topic, partitions, "read_uncommitted")
}

/// The end of what is decided in each partition: no transaction is open before it.
pub fn stable_ends(bootstrap: &str, topic: &str, partitions: i32) -> Result<Vec<i64>> {
    ends_of(bootstrap, topic, partitions, "read_committed")
}

fn ends_of(bootstrap: &str, topic: &str, partitions: i32, isolation: &str) -> Result<Vec<i64>> {
    let consumer: BaseConsumer = config(bootstrap).set("isolation.level", isolation).create()?;
    let end = |partition| Ok(consumer.fetch_watermarks(topic, partition, ANSWER_MAX)?.1);
    (0..partitions).map(end).collect()
}

/// Polls one admin future to its end; there is no runtime here and none is needed.
fn block_on<F: Future>(future: F) -> F::Output {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

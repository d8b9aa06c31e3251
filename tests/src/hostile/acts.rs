//! Acts that are more than one record over and over: what they do to the stage's node, and what it must do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::Consumer;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tidemill_proto::v1::lag_client::LagClient;
use tidemill_proto::v1::state_client::StateClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::case::{HOSTILE, WRITES_FIRST};
use super::clients;
use super::neighbour::RATE;
use super::stage::{Stage, TOLD_MAX, Told, create_topics, document, producer, reader, standard};

/// Of records that wait for a guest, as a part of the neighbour's.
const TRAFFIC: u64 = 100;
/// Their keys.
const KEYS: u64 = 1_000;
/// Calls that a node has in hand at most.
const CALLS_MAX: u32 = 256;
/// Longer than any call has, and than a connection that does not answer.
const HALF_OPEN: Duration = Duration::from_secs(35);
/// A call that is asked as it should be.
const ANSWER_MAX: Duration = Duration::from_secs(5);

impl Stage {
    /// What waits for a guest before it is there: so many times the neighbour's records that no feeder need
    /// take CPU time from either while they are measured.
    pub(super) fn fill(&self, name: &str) -> Result<()> {
        let topic = format!("{name}-in");
        create_topics(&self.node, &[&topic, &format!("{name}-out")], 1);
        let producer = producer(&self.bootstrap)?;
        for number in 0..TRAFFIC * RATE * self.spans.disturbed.as_secs() {
            let key = format!("k{}", number % KEYS);
            let record = BaseRecord::<str, str>::to(&topic).key(&key).payload("word");
            flights::feed::send(&producer, record)?;
        }
        Ok(producer.flush(TOLD_MAX)?)
    }

    /// The broker may be one that keeps records in memory.
    pub(super) fn empty(&self, name: &str) {
        self.node
            .tidemill(&["topics", "delete", &format!("{name}-in"), &format!("{name}-out"), "--yes"])
            .ok();
    }

    /// The neighbour's own handler again, which gets a hundred times its records, or as many of them as it can take.
    pub(super) fn traffic(&mut self, name: &str, until: Instant) -> Result<Told> {
        let guest = "plugins/count";
        let module = self.module(guest);
        self.deploy(&document(name, guest, "halt", &standard()), &module, false)?;
        self.until_running(name)?;
        let began = Instant::now();
        let until = until.max(began + self.spans.disturbed / 2);
        std::thread::sleep(until.saturating_duration_since(began));
        let topic = format!("{name}-out");
        let (_, out) = reader(&self.bootstrap, &topic, 1)?.fetch_watermarks(&topic, 0, ANSWER_MAX)?;
        let rate = out as f64 / began.elapsed().as_secs_f64();
        let times = rate / RATE as f64;
        ensure!(times > 1.0, "it had {rate:.0} records/s, which is less than the neighbour");
        Ok(Told { reason: format!("{rate:.0} records/s, {times:.0} times as many"), after: Duration::ZERO })
    }

    /// A version that works, then one that never does. It is taken back by itself, and what it had failed and all
    /// that waited is handled, once and in order.
    pub(super) fn bad_version(&mut self, name: &str) -> Result<Told> {
        let topics = [format!("{name}-in"), format!("{name}-out")];
        create_topics(&self.node, &[&topics[0], &topics[1]], 1);
        let module = self.module(HOSTILE);
        let version = |config: &str| {
            document(name, HOSTILE, "halt", &standard()) + &format!("config: {{ {WRITES_FIRST}{config} }}\n")
        };
        self.deploy(&version(""), &module, false)?;
        self.until_running(name)?;
        let outputs = reader(&self.bootstrap, &topics[1], 1)?;
        let producer = producer(&self.bootstrap)?;
        let (mut fed, mut out) = (0, 0);
        let mut feed = |count: u32| -> Result<()> {
            for number in fed..fed + count {
                let key = number.to_string();
                let record = BaseRecord::<str, str>::to(&topics[0]).key(&key).payload("pass");
                flights::feed::send(&producer, record)?;
            }
            fed += count;
            Ok(producer.flush(TOLD_MAX)?)
        };
        feed(100)?;
        let began = Instant::now();
        self.deploy(&version(", always: panic"), &module, false)?;
        let rollback = loop {
            ensure!(began.elapsed() < TOLD_MAX, "not rolled back after {:?}", began.elapsed());
            feed(10)?;
            let newest = self.versions(name)?.into_iter().next().context("a deployment has versions")?;
            if newest.automatic {
                break newest;
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let after = began.elapsed();
        ensure!(rollback.rollback_to == 1, "rolled back to version {}", rollback.rollback_to);
        self.until_running(name)?;
        while out < fed {
            ensure!(began.elapsed() < 2 * TOLD_MAX, "{out} of {fed} records came out");
            if let Some(output) = outputs.poll(Duration::from_millis(100)) {
                let output = output?;
                let key = String::from_utf8_lossy(output.key().unwrap_or_default());
                ensure!(key == out.to_string(), "record {key} came out as number {out}");
                out += 1;
            }
        }
        ensure!(outputs.poll(Duration::from_millis(500)).is_none(), "more than {fed} records came out");
        let (who, whose) = (format!("who={:?}", rollback.author), format!("name={name:?}"));
        let audited = [who.as_str(), "action=\"Deployments.Rollback\"", whose.as_str(), "outcome=Ok"];
        let log = self.node.log();
        let is_told = log.lines().any(|line| audited.iter().all(|word| line.contains(word)));
        ensure!(is_told, "no line of the audit log has {audited:?}");
        Ok(Told { reason: rollback.reason, after })
    }

    /// The newest first.
    fn versions(&self, name: &str) -> Result<Vec<proto::Version>> {
        let mut client = DeploymentsClient::new(self.channel.clone());
        let history = client.history(proto::HistoryRequest { name: name.to_owned() });
        Ok(self.runtime.block_on(history)?.into_inner().versions)
    }

    /// Everything that a client may do wrong, while a decent one asks now and then.
    pub(super) fn clients(&mut self) -> Result<Told> {
        let began = Instant::now();
        let (address, rng) = (self.node.grpc.clone(), &mut self.rng);
        let channel = self.channel.clone();
        self.runtime.block_on(async {
            let _lorises = clients::slow_lorises(&address, 100).await?;
            let readers = every_stream(&address, &channel).await?;
            for _ in 0..5 {
                clients::broken_frames(&address, rng).await?;
            }
            clients::many_streams(&address, 10_000).await?;
            clients::rapid_resets(&address, 1_000).await?;
            clients::abrupt_ends(&address, 1_000).await?;
            clients::endless_headers(&address).await?;
            clients::gzip_bomb(&address).await?;
            let half_open = clients::half_open_calls(&address, CALLS_MAX).await?;
            // What is held meanwhile, the slow readers too, is the attack.
            tokio::time::sleep(HALF_OPEN).await;
            stranger(&address).await.with_context(|| format!("beside {CALLS_MAX} half-open calls"))?;
            drop((half_open, readers));
            until_lag_streams(&channel).await.context("after slow readers that have gone")
        })?;
        let mut client = StateClient::new(self.channel.clone());
        let request = proto::GetStateRequest { key: vec![0; 5 << 20], ..Default::default() };
        let answer = self.runtime.block_on(client.get(request));
        let status = answer.err().context("a message of 5 MiB was taken")?;
        ensure!(status.code() == Code::ResourceExhausted, "a message of 5 MiB: {status}");
        self.runtime.block_on(stranger(&address))?;
        Ok(Told {
            reason: "all refused or cut off; the next call is answered".to_owned(),
            after: began.elapsed(),
        })
    }
}

/// Slow readers of lag until there is no stream left for anybody else: all that the node has are theirs.
async fn every_stream(address: &str, channel: &Channel) -> Result<Vec<tokio::net::TcpStream>> {
    let mut readers = clients::slow_readers(address, 16).await?;
    for _ in 0..16 {
        match first_lag(channel).await {
            Err(status) if status.code() == Code::ResourceExhausted => return Ok(readers),
            // It had a place before them; one more reader takes that.
            _ => readers.extend(clients::slow_readers(address, 1).await?),
        }
    }
    anyhow::bail!("{} slow readers do not have all streams of lag", readers.len())
}

/// Asks for a stream of lag until there is one.
async fn until_lag_streams(channel: &Channel) -> Result<()> {
    let until = Instant::now() + ANSWER_MAX;
    while let Err(status) = first_lag(channel).await {
        ensure!(Instant::now() < until, "a stream of lag: {status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Opens a stream of lag, reads its first answer, and ends it.
async fn first_lag(channel: &Channel) -> Result<(), Status> {
    let watch = async {
        let request = proto::WatchLagRequest::default();
        let mut answers = LagClient::new(channel.clone()).watch(request).await?.into_inner();
        answers.message().await?.map(drop).ok_or_else(|| Status::aborted("it ended without an answer"))
    };
    let answer = tokio::time::timeout(ANSWER_MAX, watch).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("it did not answer")))
}

/// Somebody new comes in, and is answered as always.
async fn stranger(address: &str) -> Result<()> {
    let call = async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        let list = proto::ListDeploymentsRequest::default();
        anyhow::Ok(DeploymentsClient::new(channel).list(list).await?)
    };
    let answer = tokio::time::timeout(ANSWER_MAX, call).await;
    answer.with_context(|| format!("no answer to a good call within {ANSWER_MAX:?}"))?.map(drop)
}

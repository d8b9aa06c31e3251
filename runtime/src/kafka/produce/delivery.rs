//! Batches on their way to the leaders of their partitions, and what becomes of them.
//!
//! Several requests are under way to a broker, which answers them in their order. One that is refused for now, or has no
//! answer because its connection broke, goes again as it is: its sequence number keeps a leader from taking it twice. So
//! the outcome is known in the end, though a request of which nobody knows where it is may arrive even later. It can do no
//! harm in this commit, and none in a later one either, because that has another epoch, or another producer id: see
//! [`Delivery::has_unanswered`].
//!
//! Without sequence numbers a batch that is refused for now goes again as well, and may be in the log twice, one right
//! behind the other. One without an answer does not: it might come in a second time behind others that follow it, and what
//! reads a changelog would take those for a commit that was never closed.
//!
//! A leader that hangs is like one whose connection broke, once it has had its share of the time: it is looked for anew, and
//! what it has not answered goes again on another connection. A batch that may not go again is waited for as long as there
//! is time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TransactionalId};

use super::answers::{self, Trouble, Verdict, describe};
use super::batches::{Batches, Due, Place};
use super::cluster::{Cluster, is_usable};
use super::outage::Outage;
use super::patience::Deadline;
use super::settings::Limits;
use crate::kafka::wire::{Connection, PRODUCE_VERSION};

/// A request has several batches as long as they are smaller than that together. Large ones keep brokers, and the
/// answers of small ones behind them, busy for no gain.
const REQUEST_BYTES: usize = 1 << 20;

/// Between two questions who leads what, at least.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Requests that are under way to one broker.
struct Leader {
    connection: Connection,
    sent: VecDeque<Sent>,
}

struct Sent {
    /// The first sequence number of each: a request has one batch of a partition.
    batches: BTreeMap<Place, i32>,
    at: Instant,
}

pub(super) struct Delivery {
    /// `None` = without a transaction.
    transactional_id: Option<TransactionalId>,
    /// Who has to have a batch before it is acknowledged, as Kafka says it: 1 = the leader, -1 = all that are in sync.
    acks: i16,
    ack_timeout: Duration,
    in_flight_max: usize,
    /// By the broker's id.
    leaders: BTreeMap<i32, Leader>,
    /// A leader is missing or has moved.
    must_look: bool,
    /// Why something had to be sent again, last.
    trouble: String,
    outage: Outage,
    /// A request was left without an answer and may still arrive. A producer of the same id and epoch must not begin another
    /// commit then.
    has_unanswered: bool,
}

impl Delivery {
    pub fn new(transactional_id: Option<TransactionalId>, acks: i16, limits: &Limits) -> Delivery {
        Delivery {
            transactional_id,
            acks,
            ack_timeout: limits.ack_timeout,
            in_flight_max: limits.in_flight,
            leaders: BTreeMap::new(),
            must_look: false,
            trouble: "no leader was found".to_owned(),
            outage: Outage::none(),
            has_unanswered: false,
        }
    }

    /// True once a request has been left without an answer. It may still arrive.
    pub fn has_unanswered(&self) -> bool {
        self.has_unanswered
    }

    /// The producer has another id or epoch, and nobody waits for the answers to what is under way.
    pub fn renew(&mut self) {
        self.leaders.retain(|_, leader| leader.sent.is_empty());
        self.has_unanswered = false;
    }

    /// Has sealed batches acknowledged until at most so many bytes of them are left.
    pub fn deliver(
        &mut self,
        batches: &mut Batches,
        cluster: &mut Cluster,
        bytes_left: usize,
        until: Deadline,
    ) -> Result<(), Trouble> {
        loop {
            self.look(cluster, until);
            self.send(batches, cluster, until)?;
            let is_done = match bytes_left {
                0 => batches.is_settled(),
                some => batches.sealed_bytes() <= some,
            };
            if is_done {
                if batches.is_settled()
                    && let Some(lasted) = self.outage.over(Instant::now())
                {
                    tracing::info!(seconds = lasted.as_secs(), "records are acknowledged again");
                }
                return Ok(());
            }
            if until.has_passed() {
                return Err(Trouble::Unknown(format!(
                    "records were not acknowledged in time: {}",
                    self.trouble
                )));
            }
            let of_try = of_try(batches, until);
            if !self.receive(batches, cluster, of_try)? {
                let pause = batches.next_due().unwrap_or(LOOK_EVERY);
                std::thread::sleep(until.step(pause));
            }
        }
    }

    /// Sends what can be sent, and waits for answers only while more than so many bytes cannot.
    pub fn send_ahead(
        &mut self,
        batches: &mut Batches,
        cluster: &mut Cluster,
        bytes_waiting: usize,
        until: Deadline,
    ) -> Result<(), Trouble> {
        self.look(cluster, until);
        self.send(batches, cluster, until)?;
        while batches.waiting_bytes() > bytes_waiting && !until.has_passed() {
            let of_try = of_try(batches, until);
            if !self.receive(batches, cluster, of_try)? {
                // Whatever is held back now is left to `deliver`.
                break;
            }
            self.send(batches, cluster, until)?;
        }
        Ok(())
    }

    /// Waits until nothing is under way any more, whatever the answers say; what has none in time is unanswered. Nothing is
    /// sent again, so each answer has all of the time.
    pub fn drain(&mut self, batches: &mut Batches, cluster: &Cluster, until: Deadline) {
        while !matches!(self.receive(batches, cluster, until), Ok(false)) {}
    }

    /// Looks for leaders if one is missing.
    fn look(&mut self, cluster: &mut Cluster, until: Deadline) {
        if !self.must_look || !cluster.is_older_than(LOOK_EVERY) {
            return;
        }
        match cluster.look(until) {
            Ok(()) => self.must_look = false,
            Err(error) => self.trouble = error,
        }
    }

    /// Sends what is due, and waits for no answer.
    pub fn send(&mut self, batches: &mut Batches, cluster: &Cluster, until: Deadline) -> Result<(), Trouble> {
        let mut brokers = BTreeSet::new();
        for place in batches.due() {
            match cluster.leaders.leader(place) {
                Some(broker) => {
                    brokers.insert(broker);
                }
                None => {
                    let topic = cluster.leaders.name(place.topic);
                    let problem = cluster.leaders.problem(place.topic);
                    let why = problem
                        .map_or_else(|| "it has no leader".to_owned(), |problem| describe(problem.code()));
                    self.trouble = format!("{} [{}]: {why}", topic.as_str(), place.partition);
                    self.must_look = true;
                    batches.hold(place);
                }
            }
        }
        for broker in brokers {
            if let Err(error) = self.send_to(broker, batches, cluster, until) {
                self.lose(broker, error, batches)?;
                // What it leads and was not sent is held back as well, or it would be tried again at once.
                let due = batches.due().into_iter();
                let led: Vec<_> =
                    due.filter(|&place| cluster.leaders.leader(place) == Some(broker)).collect();
                led.into_iter().for_each(|place| batches.hold(place));
            }
        }
        Ok(())
    }

    fn send_to(
        &mut self,
        broker: i32,
        batches: &mut Batches,
        cluster: &Cluster,
        until: Deadline,
    ) -> Result<(), String> {
        self.connect(broker, cluster, until)?;
        let Some(leader) = self.leaders.get_mut(&broker) else { return Ok(()) };
        // One that is signed in for too long is made anew once nothing is under way on it.
        while leader.sent.len() < self.in_flight_max && !leader.connection.is_expired() && !until.has_passed()
        {
            // Of each request: on a slow way the one before has taken some.
            let timeout = until.step(self.ack_timeout);
            let leads = |place| cluster.leaders.leader(place) == Some(broker);
            let due = batches.take_due(broker, leads, REQUEST_BYTES);
            if due.is_empty() {
                break;
            }
            // Noted before it is sent: half a request may be a whole one.
            let named = due.iter().map(|due| (due.place, due.sequence)).collect();
            leader.sent.push_back(Sent { batches: named, at: Instant::now() });
            let request = request(self.transactional_id.as_ref(), self.acks, due, timeout, cluster);
            let sent_by = Instant::now() + of_try(batches, until).step(self.ack_timeout);
            leader.connection.send(&request, PRODUCE_VERSION, sent_by).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Has a connection to that broker, which can be used if nothing is under way on it.
    fn connect(&mut self, broker: i32, cluster: &Cluster, until: Deadline) -> Result<(), String> {
        if let Some(leader) = self.leaders.get(&broker) {
            if !leader.sent.is_empty() || is_usable(&leader.connection) {
                return Ok(());
            }
            self.leaders.remove(&broker);
        }
        let address = cluster.leaders.address(broker);
        let address = address.ok_or_else(|| format!("the address of broker {broker} is not known"))?;
        let connection = cluster.open(address, until).map_err(|error| error.to_string())?;
        self.leaders.insert(broker, Leader { connection, sent: VecDeque::new() });
        Ok(())
    }

    /// The connection to a broker is of no more use: what was under way on it goes again, if the broker knows it then.
    fn lose(&mut self, broker: i32, error: String, batches: &mut Batches) -> Result<(), Trouble> {
        if let Some(failures) = self.outage.failed(Instant::now()) {
            tracing::warn!(broker, %error, failures, "records cannot be sent, or have no answer; trying again");
        }
        self.must_look = true;
        let lost = self.leaders.remove(&broker).map(|leader| leader.sent).unwrap_or_default();
        let is_lost = !lost.is_empty();
        for batch in lost.into_iter().flat_map(|sent| sent.batches) {
            batches.answered(batch, Verdict::Again { moved: true });
        }
        self.has_unanswered |= is_lost;
        if is_lost && !batches.are_sequenced() {
            return Err(Trouble::Unknown(format!(
                "records have no answer, and without sequence numbers (kafka.enable_idempotence) none is sent again: {error}"
            )));
        }
        self.trouble = error;
        Ok(())
    }

    /// Waits for the answer that has been due for longest, or until it is lost; false = nothing is under way.
    fn receive(
        &mut self,
        batches: &mut Batches,
        cluster: &Cluster,
        until: Deadline,
    ) -> Result<bool, Trouble> {
        let waiting = self.leaders.iter_mut();
        let waiting = waiting.filter_map(|(&broker, leader)| Some((leader.sent.front()?.at, broker, leader)));
        let Some((_, broker, leader)) = waiting.min_by_key(|(at, ..)| *at) else {
            return Ok(false);
        };
        let until = Instant::now() + until.step(cluster.request_timeout());
        match leader.connection.receive::<ProduceRequest>(PRODUCE_VERSION, until) {
            Ok(response) => {
                let asked = leader.sent.pop_front().map(|sent| sent.batches).unwrap_or_default();
                self.read(asked, response, batches, cluster)?;
            }
            Err(error) => self.lose(broker, error.to_string(), batches)?,
        }
        Ok(true)
    }

    /// Sorts an answer. An outcome that is not known counts for more than a refused record.
    fn read(
        &mut self,
        mut asked: BTreeMap<Place, i32>,
        response: ProduceResponse,
        batches: &mut Batches,
        cluster: &Cluster,
    ) -> Result<(), Trouble> {
        let mut outcome = Ok(());
        for topic in response.responses {
            let Some(index) = cluster.leaders.topic(&topic.name) else { continue };
            for answer in topic.partition_responses {
                let Ok(partition) = usize::try_from(answer.index) else { continue };
                let place = Place { topic: index, partition };
                let Some(sequence) = asked.remove(&place) else { continue };
                let name = topic.name.as_str();
                let text = || format!("{name} [{}]: {}", answer.index, reason(&answer));
                match batches.answered((place, sequence), answers::of_batch(answer.error_code)) {
                    Verdict::Taken => {}
                    Verdict::Again { moved } => {
                        self.trouble = text();
                        self.must_look |= moved;
                    }
                    Verdict::Refused => {
                        outcome = Err(Trouble::Record { topic: name.to_owned(), reason: reason(&answer) });
                    }
                    Verdict::OutOfOrder | Verdict::Unknown => return Err(Trouble::Unknown(text())),
                }
            }
        }
        if let Some(place) = asked.keys().next() {
            let topic = cluster.leaders.name(place.topic);
            let text = format!("the broker said nothing of {} [{}]", topic.as_str(), place.partition);
            return Err(Trouble::Unknown(text));
        }
        outcome
    }
}

/// When a request has to be sent, or answered. See the module.
fn of_try(batches: &Batches, until: Deadline) -> Deadline {
    if batches.are_sequenced() { until.share() } else { until }
}

/// What a broker says of a batch, in full.
fn reason(answer: &PartitionProduceResponse) -> String {
    let mut text = describe(answer.error_code);
    if let Some(message) = &answer.error_message {
        text += &format!(": {}", message.as_str());
    }
    if let Some(record) = answer.record_errors.first() {
        text += &format!(", of record {} of its batch", record.batch_index);
        if let Some(message) = &record.batch_index_error_message {
            text += &format!(": {}", message.as_str());
        }
    }
    text
}

fn request(
    id: Option<&TransactionalId>,
    acks: i16,
    due: Vec<Due>,
    timeout: Duration,
    cluster: &Cluster,
) -> ProduceRequest {
    let mut topics: BTreeMap<usize, Vec<PartitionProduceData>> = BTreeMap::new();
    for Due { place, bytes, .. } in due {
        let index = i32::try_from(place.partition).unwrap_or(i32::MAX);
        let data = PartitionProduceData::default().with_index(index).with_records(Some(bytes));
        topics.entry(place.topic).or_default().push(data);
    }
    let topic = |(topic, partitions)| {
        TopicProduceData::default().with_name(cluster.leaders.name(topic)).with_partition_data(partitions)
    };
    ProduceRequest::default()
        .with_transactional_id(id.cloned())
        .with_acks(acks)
        .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX))
        .with_topic_data(topics.into_iter().map(topic).collect())
}

#[cfg(test)]
mod tests {
    use tidemill_batches::Codec;

    use super::super::partition::{Identity, Row};
    use super::super::settings::{self, Format};
    use super::*;
    use crate::kafka::fetch::stage::{self, Reply, TOPIC};
    use crate::kafka::wire::Access;

    const PLACE: Place = Place { topic: 0, partition: 0 };

    /// A batch that is due, of whoever that is.
    fn sealed(identity: Identity) -> Batches {
        let format = Format { codec: Codec::None, level: None, batch_bytes: 1024, record_bytes: 4000 };
        let mut batches = Batches::new(1, format, identity, 7);
        batches.push(PLACE, &Row { timestamp_ms: 1, key: None, value: Some(b"v"), headers: None }).unwrap();
        batches.seal_all();
        batches.added(&[PLACE]);
        batches
    }

    #[test]
    fn once_the_time_is_up_nothing_more_is_sent() {
        let brokers = stage::Cluster::new(|_, _| Reply::Nothing);
        let (config, patience) = (brokers.config(), Duration::from_secs(60));
        let mut cluster = Cluster::new(Access::new(&config).unwrap(), vec![TOPIC.to_owned()]);
        cluster.look(Deadline::after(patience)).unwrap();
        let mut batches = sealed(Identity::NOBODY);
        let mut delivery = Delivery::new(None, -1, &settings::limits(&config, patience));
        delivery.connect(0, &cluster, Deadline::after(patience)).unwrap();
        assert_eq!(delivery.send_to(0, &mut batches, &cluster, Deadline::after(Duration::ZERO)), Ok(()));
        assert_eq!(batches.due(), [PLACE], "it is not under way");
        assert!(!delivery.has_unanswered());
    }

    #[test]
    fn a_leader_that_hangs_has_a_share_of_the_time_and_is_sent_the_same_again_on_another_connection() {
        let brokers = stage::Cluster::new(|_, _| Reply::Nothing);
        *brokers.stage.hangs.lock().unwrap() = 1;
        let (config, patience) = (brokers.config(), Duration::from_secs(10));
        let mut cluster = Cluster::new(Access::new(&config).unwrap(), vec![TOPIC.to_owned()]);
        cluster.look(Deadline::after(patience)).unwrap();
        let mut batches = sealed(Identity { id: 7, epoch: 0, is_transactional: false });
        let mut delivery = Delivery::new(None, -1, &settings::limits(&config, patience));
        assert_eq!(delivery.deliver(&mut batches, &mut cluster, 0, Deadline::after(patience)), Ok(()));
        let sequences = brokers.stage.sequences.lock().unwrap();
        assert_eq!(*sequences, [0, 0], "its number tells the leader that it is the same");
        assert!(delivery.has_unanswered(), "the first one may still arrive");
    }
}

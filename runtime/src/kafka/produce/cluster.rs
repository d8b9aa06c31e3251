//! The way to the brokers: connections for one request at a time, and whom to ask what.
//!
//! Produce requests, of which several are under way, have connections of their own
//! ([`delivery`](super::delivery)). A connection is looked at before it is used: a broker that stops, or finds it idle,
//! closes it, and a request that ends on a closed one has an outcome that nobody knows.

use std::io;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::FindCoordinatorRequest;
use kafka_protocol::protocol::{Request, StrBytes};

use super::answers::{Trouble, describe};
use super::leaders::Leaders;
use super::patience::{Deadline, Pauses};
use crate::config::jitter::dice;
use crate::kafka::chance;
use crate::kafka::wire::{
    Access, Address, Connection, ConnectionError, FIND_COORDINATOR_VERSION, METADATA_VERSION,
};

/// Coordinators of the transaction and of the group, and whoever is asked beside them.
const LINKS_MAX: usize = 3;

/// Any broker can answer what is asked of all: the next one is asked after that long, or a share of what is left if that is
/// less, or half of it if the first cannot be connected to.
const ASK_WAIT: Duration = Duration::from_secs(4);

/// Between two rounds while no broker answers at all, or the coordinator does not.
pub(super) const REACH_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Why a request brought no answer.
pub(super) enum Failure {
    /// It never left.
    NotSent(String),
    /// It may have arrived.
    Unanswered(String),
}

impl Failure {
    pub fn text(self) -> String {
        match self {
            Failure::NotSent(text) | Failure::Unanswered(text) => text,
        }
    }
}

/// A connection for one request at a time.
struct Link {
    address: Address,
    connection: Connection,
}

pub(super) struct Cluster {
    access: Access,
    pub leaders: Leaders,
    links: Vec<Link>,
    /// When the cluster last said who leads what.
    looked: Option<Instant>,
}

/// What coordinates: by Kafka's number for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Group = 0,
    Transaction = 1,
}

impl Cluster {
    pub fn new(mut access: Access, topics: Vec<String>) -> Cluster {
        begin_anywhere(&mut access.bootstrap, chance());
        Cluster { access, leaders: Leaders::new(topics), links: Vec::new(), looked: None }
    }

    pub fn request_timeout(&self) -> Duration {
        self.access.request_timeout
    }

    /// Takes at most half of the time that is left, so that something else can be tried if nobody is there.
    pub fn open(&self, address: &Address, until: Deadline) -> Result<Connection, ConnectionError> {
        let until = Instant::now() + until.half().step(self.access.connect_timeout);
        Connection::open_until(&self.access, address, until)
    }

    /// Asks one broker and waits for its answer.
    pub fn call<R: Request>(
        &mut self,
        address: &Address,
        request: &R,
        version: i16,
        until: Deadline,
    ) -> Result<R::Response, Failure> {
        let mut link = self.link(address, until).map_err(|error| Failure::NotSent(error.to_string()))?;
        let patience = until.step(self.access.request_timeout);
        match link.connection.call(request, version, patience) {
            Ok(response) => {
                self.keep(link);
                Ok(response)
            }
            Err(error) => Err(Failure::Unanswered(error.to_string())),
        }
    }

    /// Has a connection to that broker.
    pub fn connect(&mut self, address: &Address, until: Deadline) -> Result<(), String> {
        let link = self.link(address, until).map_err(|error| error.to_string())?;
        self.keep(link);
        Ok(())
    }

    fn keep(&mut self, link: Link) {
        self.links.insert(0, link);
        self.links.truncate(LINKS_MAX);
    }

    /// The connection to that broker, out of the list.
    fn link(&mut self, address: &Address, until: Deadline) -> Result<Link, ConnectionError> {
        if let Some(index) = self.links.iter().position(|link| link.address == *address) {
            let link = self.links.remove(index);
            if is_usable(&link.connection) {
                return Ok(link);
            }
        }
        let connection = self.open(address, until)?;
        Ok(Link { address: address.clone(), connection })
    }

    /// Asks one broker after the other until one answers: those first that are connected.
    pub fn ask<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        until: Deadline,
    ) -> Result<R::Response, String> {
        let connected = self.links.iter().map(|link| &link.address);
        let all = connected.chain(self.leaders.addresses()).chain(&self.access.bootstrap);
        let mut addresses: Vec<Address> = Vec::new();
        for address in all {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        let mut last = "no broker is known".to_owned();
        for address in &addresses {
            match self.call(address, request, version, until.share().within(ASK_WAIT)) {
                Ok(response) => return Ok(response),
                Err(failure) => last = failure.text(),
            }
            if until.has_passed() {
                break;
            }
        }
        Err(last)
    }

    /// Asks who leads what.
    pub fn look(&mut self, until: Deadline) -> Result<(), String> {
        let request = self.leaders.request();
        let response = self.ask(&request, METADATA_VERSION, until)?;
        self.leaders.read(response);
        self.looked = Some(Instant::now());
        Ok(())
    }

    /// The same, until somebody answers.
    pub fn reach(&mut self, until: Deadline) -> Result<(), String> {
        let mut pauses = Pauses::new(REACH_PAUSES);
        loop {
            match self.look(until) {
                Ok(()) => return Ok(()),
                Err(_) if pauses.wait(until) => {}
                Err(why) => return Err(format!("no broker answers: {why}")),
            }
        }
    }

    /// What is known of who leads what is that old, or nothing is.
    pub fn is_older_than(&self, age: Duration) -> bool {
        self.looked.is_none_or(|at| at.elapsed() >= age)
    }

    /// Asks for a coordinator once. The inner error is one that passes.
    pub fn coordinator(
        &mut self,
        kind: Kind,
        key: &StrBytes,
        until: Deadline,
    ) -> Result<Result<Address, String>, Trouble> {
        let request = FindCoordinatorRequest::default()
            .with_key_type(kind as i8)
            .with_coordinator_keys(vec![key.clone()]);
        let response = match self.ask(&request, FIND_COORDINATOR_VERSION, until) {
            Ok(response) => response,
            Err(text) => return Ok(Err(text)),
        };
        let Some(found) = response.coordinators.into_iter().next() else {
            return Ok(Err("the broker names no coordinator".to_owned()));
        };
        match (ResponseError::try_from_code(found.error_code), u16::try_from(found.port)) {
            (None, Ok(port)) => Ok(Ok(Address { host: found.host.to_string(), port })),
            (None, Err(_)) => Ok(Err(format!("the coordinator has port {}", found.port))),
            (Some(error), _) if passes(error) => Ok(Err(describe(found.error_code))),
            (Some(error), _) => {
                let why = describe(found.error_code);
                Err(Trouble::Refused(error, format!("FindCoordinator of `{}`: {why}", key.as_str())))
            }
        }
    }
}

/// Turns a list so that another one comes first for another producer: a broker that has lost touch with the others answers
/// on, with what is true no more, and whoever always began with it would never get further.
fn begin_anywhere<T>(list: &mut [T], seed: u64) {
    let first = (dice(seed) * list.len() as f64) as usize;
    list.rotate_left(first.min(list.len()));
}

/// An answer to the search for a coordinator that another one will follow.
fn passes(error: ResponseError) -> bool {
    use ResponseError as E;
    matches!(
        error,
        E::CoordinatorNotAvailable
            | E::CoordinatorLoadInProgress
            | E::NotCoordinator
            | E::LeaderNotAvailable
            | E::BrokerNotAvailable
            | E::RequestTimedOut
            | E::NetworkException
            // While the topic of the coordinators is being made.
            | E::UnknownTopicOrPartition
            | E::InvalidReplicationFactor
            | E::UnknownServerError
    )
}

/// False for a connection that must be made anew: signed in for too long, or closed by the broker, as far as is known.
/// Only of use while nothing is under way on it.
pub(super) fn is_usable(connection: &Connection) -> bool {
    !connection.is_expired() && is_quiet(connection)
}

/// Nothing has come in: neither the end of the connection nor anything that was not asked for.
fn is_quiet(connection: &Connection) -> bool {
    let Ok(socket) = connection.socket() else { return false };
    let looked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut [0]));
    let has_nothing = matches!(&looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    // It is one socket, whoever holds it.
    socket.set_nonblocking(false).is_ok() && has_nothing
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kafka::config::KafkaConfig;

    #[test]
    fn whoever_is_asked_first_is_another_one_for_another_producer_and_nobody_is_left_out() {
        let turned = (0..20).map(|seed| {
            let mut list = ["a", "b", "c"];
            begin_anywhere(&mut list, seed);
            list
        });
        let turns = BTreeSet::from([["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]);
        assert_eq!(turned.collect::<BTreeSet<_>>(), turns);
        begin_anywhere(&mut [""; 0], 1);
    }

    #[test]
    fn a_cluster_that_is_away_is_given_up_in_time_and_with_the_reason() {
        let address = "127.0.0.1:1";
        let access = Access::new(&KafkaConfig::new(address)).expect("plain");
        let began = Instant::now();
        let reached = Cluster::new(access, Vec::new()).reach(Deadline::after(Duration::from_millis(50)));
        let text = reached.expect_err("nobody is there");
        assert!(text.contains("no broker answers") && text.contains(address), "{text}");
        assert!(began.elapsed() < ASK_WAIT, "{:?}", began.elapsed());
    }
}

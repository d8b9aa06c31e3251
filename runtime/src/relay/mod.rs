//! Relays: what carries the rows of an outbox to destinations outside the Kafka transaction.
//!
//! ```text
//!   worker --Delivery--> Courier --spawns--> one attempt: breaker, carrier, time-out
//!     ^                                         |            http | amqp | kafka
//!     +------------------Landing----------------+
//! ```
//!
//! A relay knows nothing of rows, keys or order: a task hands over what may be sent now, and hears once how
//! it ended. It never tries twice by itself. All of it runs on a small tokio runtime of its own, so that a
//! destination that is slow holds up neither the data plane nor the control plane.
//!
//! | file | what |
//! |---|---|
//! | [`breaker`] | when a destination is left alone |
//! | `event` | a delivery as a CloudEvent |
//! | `http`, `amqp`, `kafka` | the carriers; each is the only one that names its client |
//! | `secrets`, `tls` | texts that a document only points at; who is trusted |

mod amqp;
mod breaker;
mod event;
mod http;
mod kafka;
mod secrets;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::runtime::{Handle, Runtime};

use crate::config::failures::TIMEOUT_ERROR;
use crate::config::outbox::{Destination, Way};
use crate::config::problem::Problem;
use crate::faults::{CrashPoint, crash_point};
use crate::ports::{Delivery, Landed, Landing, Relay};
use crate::telemetry::{BreakerState, DestinationMetrics, Telemetry};
use breaker::Breaker;

pub use event::type_of;

/// Attempts wait for their destinations; two threads are enough to start and end them.
const THREADS: usize = 2;

/// A deployment's output, by their names.
type Place = (String, String);

/// All relays of a node.
pub struct Hub {
    telemetry: Arc<Telemetry>,
    /// Made with the first destination.
    runtime: OnceLock<Runtime>,
    /// By an operator, fleet-wide: the registry's word, told by the node.
    paused: Arc<RwLock<BTreeSet<Place>>>,
    /// Of the revision that runs, or is about to.
    stations: Mutex<BTreeMap<String, Arc<Stations>>>,
}

impl Hub {
    pub fn new(telemetry: Arc<Telemetry>) -> Hub {
        Hub { telemetry, runtime: OnceLock::new(), paused: Arc::default(), stations: Mutex::default() }
    }

    /// Makes the destinations of a deployment ready to be sent to, or says everything that is missing. Sends
    /// nothing yet.
    pub fn open<'a>(
        &self,
        origin: &Origin,
        destinations: impl Iterator<Item = (&'a String, &'a Destination)>,
    ) -> Result<Arc<Stations>, Vec<Problem>> {
        let former = lock(&self.stations).get(&origin.deployment).cloned();
        let mut all = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, destination) in destinations {
            match self.station(origin, name, destination) {
                Ok(station) => {
                    let troubled =
                        former.as_ref().map(|former| former.troubled(name)).unwrap_or(station.troubled);
                    all.insert(name.clone(), Arc::new(Station { troubled, ..station }));
                }
                Err(message) => problems.push(Problem::at(format!("outputs.{name}"), message)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let handle = match all.is_empty() {
            true => None,
            false => Some(self.handle().map_err(|reason| vec![Problem::at("outputs", reason)])?),
        };
        let stations = Arc::new(Stations { all, handle, opened: Arc::default() });
        lock(&self.stations).insert(origin.deployment.clone(), Arc::clone(&stations));
        Ok(stations)
    }

    /// Whether [`Hub::open`] would succeed; for a node that only checks.
    pub fn check<'a>(
        &self,
        origin: &Origin,
        destinations: impl Iterator<Item = (&'a String, &'a Destination)>,
    ) -> Vec<Problem> {
        let failed = |(name, destination): (&'a String, &'a Destination)| {
            let outcome = self.station(origin, name, destination).err();
            outcome.map(|message| Problem::at(format!("outputs.{name}"), message))
        };
        destinations.filter_map(failed).collect()
    }

    fn station(&self, origin: &Origin, name: &str, destination: &Destination) -> Result<Station, String> {
        let event_type = destination.event_type(&origin.deployment, name);
        let carrier = match &destination.way {
            Way::Http(spec) => {
                let carrier = http::Carrier::new(spec, origin, &event_type, destination.timeout)?;
                Carrier::Http(Box::new(carrier))
            }
            Way::Amqp(spec) => Carrier::Amqp(Box::new(amqp::Carrier::new(spec, origin, &event_type)?)),
            Way::Kafka(spec) => Carrier::Kafka(Box::new(kafka::Carrier::new(spec, destination.timeout)?)),
        };
        Ok(Station {
            place: (origin.deployment.clone(), name.to_owned()),
            way: destination.way.as_str(),
            event_type,
            carrier,
            timeout: destination.timeout,
            breaker: Mutex::new(Breaker::new(destination.breaker, Instant::now())),
            troubled: Arc::new(AtomicBool::new(true)),
            paused: Arc::clone(&self.paused),
            metrics: self.telemetry.destination(&origin.deployment, name),
        })
    }

    /// A worker's end of it.
    pub fn courier(&self, stations: &Arc<Stations>) -> Courier {
        let (landings, arrived) = unbounded();
        Courier { stations: Arc::clone(stations), landings, arrived, told: false }
    }

    /// What is paused from now on.
    pub fn set_paused(&self, paused: BTreeSet<Place>) {
        let mut known = self.paused.write().unwrap_or_else(PoisonError::into_inner);
        if *known != paused {
            *known = paused;
        }
    }

    /// How a deployment's destinations are, as this node sees them.
    pub fn states(&self, deployment: &str) -> Vec<StationState> {
        let now = Instant::now();
        let stations = lock(&self.stations).get(deployment).cloned();
        let stations = stations.iter().flat_map(|stations| stations.all.values());
        stations
            .map(|station| {
                let breaker = station.breaker();
                StationState {
                    name: station.place.1.clone(),
                    way: station.way,
                    event_type: station.event_type.clone(),
                    breaker: breaker.state(),
                    opens_again: breaker.remaining(now),
                    paused: station.is_paused(),
                    metrics: Arc::clone(&station.metrics),
                }
            })
            .collect()
    }

    pub fn forget(&self, deployment: &str) {
        lock(&self.stations).remove(deployment);
    }

    fn handle(&self) -> Result<Handle, String> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime.handle().clone());
        }
        let made = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("relay")
            .enable_all()
            .build()
            .map_err(|error| format!("no threads for relays: {error}"))?;
        // Of two that were made at once the later is dropped.
        Ok(self.runtime.get_or_init(|| made).handle().clone())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What is under way lands as failed; its rows are delivered again.
            runtime.shutdown_background();
        }
    }
}

/// Who sends.
#[derive(Debug, Clone)]
pub struct Origin {
    pub fleet: String,
    pub deployment: String,
}

impl Origin {
    /// The `source` of its CloudEvents.
    pub fn source(&self) -> String {
        format!("/tidemill/{}/{}", self.fleet, self.deployment)
    }
}

/// How a destination is.
pub struct StationState {
    pub name: String,
    pub way: &'static str,
    /// Of what it is sent, unless a row says otherwise.
    pub event_type: String,
    pub breaker: BreakerState,
    /// Time until a delivery is let through, while it is open.
    pub opens_again: Duration,
    pub paused: bool,
    pub metrics: Arc<DestinationMetrics>,
}

/// The destinations of one revision, shared by its workers.
pub struct Stations {
    all: BTreeMap<String, Arc<Station>>,
    /// None without destinations.
    handle: Option<Handle>,
    /// Why the first breaker opened that did so under this revision.
    opened: Arc<OnceLock<String>>,
}

impl Stations {
    /// Whether a destination of the next revision is in trouble. One that is there already stays as it is known,
    /// also for what still lands of this revision; one that is new has done nothing wrong yet.
    fn troubled(&self, name: &str) -> Arc<AtomicBool> {
        self.all.get(name).map(|station| Arc::clone(&station.troubled)).unwrap_or_default()
    }
}

struct Station {
    place: Place,
    way: &'static str,
    event_type: String,
    carrier: Carrier,
    timeout: Duration,
    breaker: Mutex<Breaker>,
    /// For all that is known here it takes nothing. Revisions of a deployment share it.
    troubled: Arc<AtomicBool>,
    paused: Arc<RwLock<BTreeSet<Place>>>,
    metrics: Arc<DestinationMetrics>,
}

enum Carrier {
    Http(Box<http::Carrier>),
    Amqp(Box<amqp::Carrier>),
    Kafka(Box<kafka::Carrier>),
}

impl Carrier {
    async fn deliver(&self, delivery: &Delivery) -> Result<Landed, Unsent> {
        match self {
            Carrier::Http(http) => http.deliver(delivery).await,
            Carrier::Amqp(amqp) => amqp.deliver(delivery).await,
            Carrier::Kafka(kafka) => kafka.deliver(delivery).await,
        }
    }
}

/// Why a row can never be said to its destination. Nothing was sent, so it says nothing of the destination either.
#[derive(Debug)]
struct Unsent(String);

impl Station {
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        lock(&self.breaker)
    }

    fn is_paused(&self) -> bool {
        self.paused.read().unwrap_or_else(PoisonError::into_inner).contains(&self.place)
    }

    /// One attempt: how it ended, and whether anything was sent.
    async fn attempt(&self, delivery: &Delivery) -> (Landed, bool) {
        crash_point(CrashPoint::BeforeDelivery);
        let ended = tokio::time::timeout(self.timeout, self.carrier.deliver(delivery)).await;
        let (landed, was_sent) = match ended {
            Ok(Ok(landed)) => (landed, true),
            Ok(Err(Unsent(reason))) => (Landed::Permanent { reason }, false),
            Err(_) => {
                let reason = format!("{TIMEOUT_ERROR}: no answer within {} ms", self.timeout.as_millis());
                (Landed::Transient { reason, after: None }, true)
            }
        };
        if landed == Landed::Delivered {
            crash_point(CrashPoint::AfterDelivery);
        }
        let ((deployment, output), id) = (&self.place, &delivery.id);
        tracing::debug!(target: "tidemill::ids", deployment, output, id, outcome = ?landed, "delivery attempted");
        (landed, was_sent)
    }

    /// The breaker and the metrics hear how an attempt ended. Answers why the breaker has opened, if that is
    /// this revision's doing.
    fn note(&self, landed: &Landed, was_sent: bool, took: Duration) -> Option<String> {
        let (mut opened, now) = (None, Instant::now());
        let metrics = &self.metrics;
        let mut breaker = self.breaker();
        match landed {
            Landed::Delivered => {
                metrics.deliveries.add(1);
                metrics.duration.observe(took);
                breaker.succeeded(now);
                self.troubled.store(false, Ordering::Relaxed);
            }
            Landed::Permanent { .. } => {
                metrics.refused.add(1);
                match was_sent {
                    true => breaker.succeeded(now),
                    false => breaker.unsent(now),
                }
            }
            Landed::Transient { reason, after } => {
                metrics.failed.add(1);
                if breaker.failed(now, *after) {
                    metrics.opened.add(1);
                    let (deployment, output) = &self.place;
                    tracing::warn!(
                        deployment,
                        output,
                        reason,
                        "InfraUnavailableError: Circuit breaker is OPEN; the destination fails again and again and is left alone \
                         for a while"
                    );
                    if !self.troubled.swap(true, Ordering::Relaxed) {
                        opened = Some(format!("the circuit breaker of output {output} opened: {reason}"));
                    }
                }
            }
        }
        metrics.set_breaker(breaker.state());
        opened
    }
}

/// A delivery under way. It lands when it is dropped, whatever became of it.
struct Flight {
    station: Arc<Station>,
    landing: Option<Landing>,
    was_sent: bool,
    began: Instant,
    landings: Sender<Landing>,
    opened: Arc<OnceLock<String>>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let Some(landing) = self.landing.take() else { return };
        let took = self.began.elapsed();
        if let Some(reason) = self.station.note(&landing.landed, self.was_sent, took) {
            self.opened.get_or_init(|| reason);
        }
        // A worker that has ended needs no landing.
        let _ = self.landings.send(landing);
    }
}

/// A worker's relay.
pub struct Courier {
    stations: Arc<Stations>,
    landings: Sender<Landing>,
    arrived: Receiver<Landing>,
    told: bool,
}

impl Relay for Courier {
    fn admits(&self, destination: &str) -> bool {
        let station = self.stations.all.get(destination);
        station.is_some_and(|station| !station.is_paused() && station.breaker().admits(Instant::now()))
    }

    fn send(&mut self, delivery: Delivery) -> Result<(), Box<Delivery>> {
        let station = self.stations.all.get(&*delivery.destination);
        let (Some(station), Some(handle)) = (station, &self.stations.handle) else {
            return Err(Box::new(delivery));
        };
        let now = Instant::now();
        if station.is_paused() || !station.breaker().enter(now) {
            return Err(Box::new(delivery));
        }
        station.metrics.set_breaker(station.breaker().state());
        let landed = Landed::Transient { reason: "the attempt was given up".to_owned(), after: None };
        let mut flight = Flight {
            station: Arc::clone(station),
            landing: Some(Landing { partition: delivery.partition, sequence: delivery.sequence, landed }),
            was_sent: true,
            began: now,
            landings: self.landings.clone(),
            opened: Arc::clone(&self.stations.opened),
        };
        handle.spawn(async move {
            let (landed, was_sent) = flight.station.attempt(&delivery).await;
            flight.was_sent = was_sent;
            if let Some(landing) = &mut flight.landing {
                landing.landed = landed;
            }
        });
        Ok(())
    }

    fn land(&mut self, wait: Duration) -> Option<Landing> {
        if wait.is_zero() { self.arrived.try_recv().ok() } else { self.arrived.recv_timeout(wait).ok() }
    }

    fn opened(&mut self) -> Option<String> {
        let reason = self.stations.opened.get().filter(|_| !self.told)?;
        self.told = true;
        Some(reason.clone())
    }

    fn knock(&self, destination: &str) {
        let Some(station) = self.stations.all.get(destination) else { return };
        let was_open = station.breaker().knock(Instant::now());
        if was_open {
            let (deployment, output) = &station.place;
            tracing::warn!(deployment, output, "Circuit breaker manually reset - monitor closely");
        }
    }
}

/// A panic elsewhere leaves values that are still whole: every critical section here is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

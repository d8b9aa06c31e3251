//! The running broker: listener, connections, timer.
//!
//! ```text
//!   accept thread --> connection thread (one per client) --+
//!                                                          +--> Mutex<Core>
//!   timer thread ------------------------------------------+
//!   compaction thread (the work itself without the lock) --+
//! ```
//! A client whose request is parked sleeps on its slot; whoever finds the answer, another
//! connection's thread or the timer's, puts it there.

mod compaction;
mod connection;
mod guard;
mod slot;
mod wire;

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::core::{Core, Identity, Now};
use crate::error::Error;
use slot::{Budget, Slot};

/// How long a stop waits for requests in progress.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// A running broker. Dropping it stops it; [`Broker::shutdown`] also says whether that worked.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What all threads share.
#[derive(Debug)]
struct Shared {
    config: Config,
    core: Mutex<Core>,
    /// Wakes the timer thread when something is due earlier than it thinks.
    timer: Condvar,
    /// When the timer thread will look next, ms on the broker's clock.
    armed: AtomicU64,
    started: Instant,
    stopping: AtomicBool,
    clients: Mutex<HashMap<u64, Client>>,
    /// Signalled whenever a connection ends.
    client_gone: Condvar,
    budget: Budget,
    /// Held during a compaction pass: two at once would write the same files.
    compacting: Mutex<()>,
    /// Held as long as the broker works on its data directory.
    lock: Mutex<Option<DirectoryLock>>,
}

/// A connection as others see it.
#[derive(Debug)]
struct Client {
    stream: TcpStream,
    slot: Arc<Slot>,
}

impl Broker {
    /// Opens the state, binds the address and starts serving.
    pub fn start(config: Config) -> Result<Broker, Error> {
        let lock = config.data_dir.as_deref().map(claim_directory).transpose()?;
        let listener = bind(&config.listen)?;
        let address = listener.local_addr().map_err(Error::Thread)?;
        let identity = Identity {
            host: advertised_host(&config, address),
            port: address.port(),
            cluster_id: String::new(),
        };
        let started = Instant::now();
        let core = Core::open(config.clone(), identity, now_at(started))?;
        let shared = Arc::new(Shared {
            budget: Budget::new(config.requests_bytes_max),
            config,
            core: Mutex::new(core),
            timer: Condvar::new(),
            armed: AtomicU64::new(0),
            started,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            client_gone: Condvar::new(),
            compacting: Mutex::new(()),
            lock: Mutex::new(lock),
        });
        let mut broker = Broker { address, shared, threads: Vec::new() };
        broker.spawn("broker-timer", run_timer)?;
        broker.spawn("broker-compaction", compaction::run)?;
        broker.spawn("broker-accept", move |shared| accept(&listener, shared))?;
        tracing::info!(%address, "broker listens");
        Ok(broker)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&Arc<Shared>) + Send + 'static) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(move || run(&shared)).map_err(Error::Thread)?);
        Ok(())
    }

    /// The address listened on, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Compacts all compacted topics at once, the newest records included. For tests.
    pub fn compact_now(&self) -> io::Result<()> {
        let partitions = self.shared.core().close_compacted()?;
        compaction::compact(&self.shared, &partitions)
    }

    /// Stops serving: requests in progress are answered, everything is forced to the disk.
    pub fn shutdown(mut self) -> io::Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> io::Result<()> {
        if self.shared.stopping.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.shared.timer.notify_all();
        self.threads.iter().for_each(|thread| thread.thread().unpark());
        // The accept thread sits in `accept`; a connection of our own wakes it.
        drop(TcpStream::connect_timeout(&reachable(self.address), Duration::from_secs(1)));
        self.shared.drain();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to tell.
            let _ = thread.join();
        }
        let synced = self.shared.core().sync();
        // The thread of a connection that has gone holds what is shared for a moment yet, and does nothing with it.
        if self.shared.clients().is_empty() {
            drop(self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        synced
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "cannot force the logs to the disk");
        }
    }
}

impl Shared {
    /// The state. A panic in another thread would be a bug; the state is still the best there is,
    /// and stopping must stay possible, so a poisoned lock is taken all the same.
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        now_at(self.started)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// After a change of the state: hands out late answers, and wakes the timer if it would look
    /// too late. Called with the lock held, so that the timer cannot fall asleep in between.
    fn settle(&self, core: &mut Core) {
        let replies = core.take_replies();
        if !replies.is_empty() {
            let clients = self.clients();
            for (reply_to, response) in replies {
                if let Some(client) = clients.get(&reply_to) {
                    client.slot.put(response);
                }
            }
        }
        let due = core.next_deadline().unwrap_or(u64::MAX);
        if due < self.armed.load(Ordering::SeqCst) {
            self.timer.notify_one();
        }
    }

    /// Lets every connection finish what it is doing, then closes it.
    fn drain(&self) {
        let deadline = Instant::now() + DRAIN_MAX;
        let mut clients = self.clients();
        for client in clients.values() {
            // No further request is read; an answer can still be written.
            let _ = client.stream.shutdown(Shutdown::Read);
            client.slot.close();
        }
        while !clients.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.client_gone.wait_timeout(clients, left);
            clients = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        for client in clients.values() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
}

fn now_at(started: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: started.elapsed().as_millis() as u64, wall: wall.as_millis() as i64 }
}

/// The data directory is this broker's until this is dropped.
#[derive(Debug)]
struct DirectoryLock(File);

impl Drop for DirectoryLock {
    /// Explicitly, not by closing the file: a child process that is being started has copies of all
    /// our descriptors until it runs its own program, and the lock would stay with its copy so long.
    fn drop(&mut self) {
        // It fails only for a descriptor that is none.
        let _ = self.0.unlock();
    }
}

/// Takes the data directory for this process.
fn claim_directory(path: &Path) -> Result<DirectoryLock, Error> {
    let failed = |path: PathBuf| move |source| Error::Directory { path, source };
    std::fs::create_dir_all(path.join("topics")).map_err(failed(path.to_owned()))?;
    let lock_path = path.join("lock");
    let lock = File::create(&lock_path).map_err(failed(lock_path.clone()))?;
    match lock.try_lock() {
        Ok(()) => Ok(DirectoryLock(lock)),
        Err(TryLockError::WouldBlock) => Err(Error::DirectoryInUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(Error::Directory { path: lock_path, source }),
    }
}

fn bind(listen: &str) -> Result<TcpListener, Error> {
    let address_error = |source| Error::Address { listen: listen.to_owned(), source };
    let addresses: Vec<SocketAddr> = listen.to_socket_addrs().map_err(address_error)?.collect();
    TcpListener::bind(&addresses[..]).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::PortInUse { listen: listen.to_owned() },
        _ => Error::Address { listen: listen.to_owned(), source },
    })
}

fn advertised_host(config: &Config, address: SocketAddr) -> String {
    let own = || reachable(address).ip().to_string();
    config.advertised_host.clone().unwrap_or_else(own)
}

/// An address that a client on this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => ([127, 0, 0, 1], v6.port()).into(),
        other => other,
    }
}

/// Takes connections until the broker stops.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut next_id = 0;
    while !shared.stopping() {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: do not spin.
                tracing::warn!(%error, "cannot accept a connection");
                std::thread::park_timeout(Duration::from_millis(50));
                continue;
            }
        };
        if shared.stopping() || shared.clients().len() >= shared.config.connections_max {
            drop(stream);
            continue;
        }
        next_id += 1;
        if let Err(error) = connection::start(next_id, stream, shared) {
            tracing::warn!(%error, "cannot serve a connection");
        }
    }
}

/// Does what is due, when it is due, until the broker stops.
fn run_timer(shared: &Arc<Shared>) {
    let mut core = shared.core();
    while !shared.stopping() {
        core.tick(shared.now());
        shared.settle(&mut core);
        let due = core.next_deadline().unwrap_or(u64::MAX);
        shared.armed.store(due, Ordering::SeqCst);
        let wait = Duration::from_millis(due.saturating_sub(shared.now().mono).min(60_000));
        let waited = shared.timer.wait_timeout(core, wait);
        core = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

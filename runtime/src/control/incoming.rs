//! Connections on their way in: accepted, and with TLS shaken hands with, before a server sees them.
//!
//! A handshake takes several round trips with somebody who may never answer, so that each has a task of its
//! own and a limit; only what has passed it comes out here. How many there may be at once is `connections`'.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use super::connections::{self, Incoming};
use crate::telemetry::Telemetry;
use crate::tls::connection::{Connection, Peer};
use crate::tls::own::{Current, Own};

/// Somebody who has not shaken hands by then does not want to.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are ready and not yet served.
const READY_MAX: usize = 16;
/// Between two lines about handshakes that failed; what comes in between is counted.
const REFUSALS_EVERY: Duration = Duration::from_secs(1);

/// Which of the node's listeners it is.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    Grpc,
    Http,
}

/// Established connections, in the order in which they are ready. Dropping it closes the listener.
pub struct Established {
    ready: mpsc::Receiver<Connection>,
}

/// What a listener demands of who comes in.
#[derive(Clone)]
pub struct Door {
    pub side: Side,
    /// `None` = connections are not encrypted.
    pub tls: Option<Arc<Own>>,
    pub telemetry: Arc<Telemetry>,
}

impl Established {
    pub fn new(listener: TcpListener, door: Door) -> Established {
        let (send, ready) = mpsc::channel(READY_MAX);
        tokio::spawn(accept(listener, send, door));
        Established { ready }
    }

    /// The next one.
    pub async fn next(&mut self) -> Connection {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The acceptor ends only with its receiver, or with the whole program.
            None => std::future::pending().await,
        }
    }

    /// As a gRPC server wants it.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        ReceiverStream::new(self.ready).map(Ok)
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer().clone()
    }
}

async fn accept(listener: TcpListener, ready: mpsc::Sender<Connection>, door: Door) {
    let (failed, failures) = mpsc::channel(READY_MAX);
    tokio::spawn(tell(failures, door.side));
    let mut incoming = Incoming::new(listener);
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = ready.closed() => return,
        };
        let Some(Ok(accepted)) = accepted else { return };
        let (ready, failed) = (ready.clone(), failed.clone());
        let current = door.tls.as_ref().map(|tls| tls.current());
        let (side, telemetry) = (door.side, Arc::clone(&door.telemetry));
        tokio::spawn(async move {
            let address = accepted.peer();
            match establish(current, side, accepted).await {
                // The server may have stopped meanwhile.
                Ok(connection) => drop(ready.send(connection).await),
                Err(error) => {
                    telemetry.node.tls_refused.add(1);
                    // When many fail, a count says as much.
                    let _ = failed.try_send((address, error));
                }
            }
        });
    }
}

async fn establish(
    tls: Option<Arc<Current>>,
    side: Side,
    accepted: connections::Connection,
) -> io::Result<Connection> {
    let address = accepted.peer();
    let Some(current) = tls else { return Ok(Connection::plain(accepted, address)) };
    let config = match side {
        Side::Grpc => Arc::clone(&current.grpc),
        Side::Http => Arc::clone(&current.http),
    };
    let shake = Connection::encrypted(config, accepted, address);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it did not shake hands in time")),
    }
}

/// Says why handshakes fail, without letting a stranger fill the log.
async fn tell(mut failures: mpsc::Receiver<(SocketAddr, io::Error)>, side: Side) {
    let mut last: Option<Instant> = None;
    let mut unsaid = 0u64;
    while let Some((address, error)) = failures.recv().await {
        if last.is_some_and(|last| last.elapsed() < REFUSALS_EVERY) {
            unsaid += 1;
            continue;
        }
        last = Some(Instant::now());
        tracing::warn!(from = %address, %error, ?side, unsaid, "a connection was refused");
        unsaid = 0;
    }
}

//! Connections on their way in: so many at once, and none that says nothing.
//!
//! Below TLS and HTTP/2, because a client that never finishes its first words is in neither yet. What
//! a client does later is bounded there: by keepalive, by streams a connection, by the size of headers.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;

/// At once; one more is closed. A fleet's nodes and its operators' tools need one each.
pub const CONNECTIONS_MAX: usize = 256;
/// A client's first words, an HTTP/2 preface or the begin of a TLS handshake, have at least this many
/// bytes.
const FIRST_BYTES: usize = 24;
/// Within which they must be there.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(10);
/// After a failed accept: usually there is no file descriptor left, and the next try would find none
/// either.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts for as long as it lives.
pub struct Incoming {
    listener: TcpListener,
    places: Arc<Semaphore>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub fn new(listener: TcpListener) -> Incoming {
        Incoming { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), pause: None }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, peer)) => match Arc::clone(&self.places).try_acquire_owned() {
                    Ok(place) => return Poll::Ready(Some(Ok(Connection::new(stream, peer, place)))),
                    Err(_) => tracing::debug!(%peer, CONNECTIONS_MAX, "too many connections; closed one"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One of them, counted until it is closed.
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    /// While its first words are incomplete: when they are too late, and how many bytes are missing.
    opening: Option<(Pin<Box<Sleep>>, usize)>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) -> Connection {
        // Costs latency, not correctness.
        let _ = stream.set_nodelay(true);
        let opening = Some((Box::pin(sleep(FIRST_BYTES_WAIT)), FIRST_BYTES));
        Connection { stream, peer, opening, _place: place }
    }

    /// The address of the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let Some((too_late, missing)) = &mut self.opening else { return read };
        *missing = missing.saturating_sub(buffer.filled().len() - before);
        if *missing == 0 {
            self.opening = None;
        } else if too_late.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

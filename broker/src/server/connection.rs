//! One client: reads a request, has it handled, writes the answer, again and again.
//!
//! Requests of a connection are handled strictly one after the other, as Kafka does, so answers
//! are in order without any queue. Reading blocks; so does waiting for a late answer.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::ResponseKind;

use super::slot::{Share, Slot, Waited};
use super::wire::{self, Envelope, Received};
use super::{Client, Shared};
use crate::core::{Call, Outcome, versions};

/// A connection without a request for this long is closed, as Kafka does.
const IDLE_MAX: Duration = Duration::from_secs(10 * 60);
/// A client that does not take its answer for this long is gone.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// How often a client that waits for a late answer is checked for still being there.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(1);
/// Requests up to this size do not count against the budget of large ones.
const SMALL_REQUEST_BYTES: usize = 64 * 1024;
/// A connection needs little stack: requests are decoded into the heap.
const STACK_BYTES: usize = 512 * 1024;

/// Why a connection ends, besides the client closing it.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    #[error("a request of {0} bytes is larger than the limit")]
    Oversized(i64),
    #[error("a request of {0} bytes did not come in time")]
    Slow(usize),
    #[error("the request is not served")]
    Refused,
    #[error("the broker stops")]
    Stopping,
}

struct Connection<'a> {
    id: u64,
    stream: TcpStream,
    host: String,
    slot: Arc<Slot>,
    shared: &'a Shared,
}

/// Starts the thread of a new connection.
pub fn start(id: u64, stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(WRITE_MAX))?;
    let slot = Arc::new(Slot::default());
    let client = Client { stream: stream.try_clone()?, slot: Arc::clone(&slot) };
    let host = format!("/{}", stream.peer_addr()?.ip());
    shared.clients().insert(id, client);
    let for_thread = Arc::clone(shared);
    let run = move || {
        let _gone = Gone { id, shared: &for_thread };
        let connection = Connection { id, stream, host, slot, shared: &for_thread };
        let ended = connection.serve();
        connection.report(ended);
    };
    let thread = std::thread::Builder::new().name("broker-client".to_owned()).stack_size(STACK_BYTES);
    match thread.spawn(run) {
        Ok(_) => Ok(()),
        Err(error) => {
            shared.clients().remove(&id);
            Err(error)
        }
    }
}

/// Takes the connection off the books, whatever way its thread ends.
struct Gone<'a> {
    id: u64,
    shared: &'a Shared,
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.shared.core().disconnected(self.id);
        self.shared.clients().remove(&self.id);
        self.shared.client_gone.notify_all();
    }
}

/// Nothing is wrong with the connection: the read's time is up, or it was interrupted.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

impl Connection<'_> {
    /// Serves requests until the client closes the connection.
    fn serve(&self) -> Result<(), Ended> {
        while let Some((frame, share)) = self.read_frame()? {
            let Received { envelope, client_id, request } = wire::decode(frame)?;
            let outcome = match request {
                None => Outcome::Answer(versions::fallback()),
                Some(request) => {
                    let mut core = self.shared.core();
                    let call = Call {
                        reply_to: self.id,
                        version: envelope.version,
                        client_id: &client_id,
                        client_host: &self.host,
                        now: self.shared.now(),
                    };
                    let outcome = core.handle(request, &call);
                    self.shared.settle(&mut core);
                    outcome
                }
            };
            // A parked request keeps next to nothing of its frame.
            drop(share);
            match outcome {
                Outcome::Answer(response) => self.write(&envelope, &response)?,
                Outcome::Silent => {}
                Outcome::Refused => return Err(Ended::Refused),
                Outcome::Later => {
                    let Some(response) = self.wait()? else { return Ok(()) };
                    self.write(&envelope, &response)?;
                }
            }
            if self.shared.stopping() {
                return Err(Ended::Stopping);
            }
        }
        Ok(())
    }

    /// Reads one frame; none if the client has closed the connection between two frames.
    ///
    /// Memory grows with what arrives, never with what a length field promises.
    fn read_frame(&self) -> Result<Option<(Bytes, Option<Share<'_>>)>, Ended> {
        let mut length = [0; 4];
        match (&self.stream).read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let length = i64::from(i32::from_be_bytes(length));
        let max = self.shared.config.request_bytes_max;
        let size = usize::try_from(length).ok().filter(|size| *size <= max);
        let size = size.ok_or(Ended::Oversized(length))?;
        let share = (size > SMALL_REQUEST_BYTES).then(|| self.shared.budget.take(size));
        let frame = if share.is_some() { self.read_large(size)? } else { self.read_small(size)? };
        Ok(Some((frame.into(), share)))
    }

    fn read_small(&self, size: usize) -> Result<Vec<u8>, Ended> {
        let mut frame = Vec::with_capacity(size);
        (&self.stream).take(size as u64).read_to_end(&mut frame)?;
        if frame.len() < size { Err(wire::WireError::Short.into()) } else { Ok(frame) }
    }

    /// Within a time: others may wait for the room that it has.
    fn read_large(&self, size: usize) -> Result<Vec<u8>, Ended> {
        let until = Instant::now() + self.shared.config.request_read_max;
        let mut frame = Vec::with_capacity(SMALL_REQUEST_BYTES);
        while frame.len() < size {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Ended::Slow(size));
            }
            self.stream.set_read_timeout(Some(left))?;
            let there = frame.len();
            frame.resize(size.min(there + SMALL_REQUEST_BYTES), 0);
            let read = match (&self.stream).read(&mut frame[there..]) {
                Ok(0) => return Err(wire::WireError::Short.into()),
                Ok(read) => read,
                Err(error) if is_early(&error) => 0,
                Err(error) => return Err(error.into()),
            };
            frame.truncate(there + read);
        }
        self.stream.set_read_timeout(Some(IDLE_MAX))?;
        Ok(frame)
    }

    fn write(&self, envelope: &Envelope, response: &ResponseKind) -> Result<(), Ended> {
        let frame = wire::encode(envelope, response)?;
        (&self.stream).write_all(&frame)?;
        Ok(())
    }

    /// Waits for a late answer; none if the client is gone or the broker stops.
    fn wait(&self) -> Result<Option<ResponseKind>, Ended> {
        loop {
            match self.slot.wait(PRESENCE_INTERVAL) {
                Waited::Answer(response) => return Ok(Some(response)),
                Waited::Closed => return Ok(None),
                Waited::Nothing if self.client_left()? => return Ok(None),
                Waited::Nothing => {}
            }
        }
    }

    /// Whether the client has closed the connection. Waiting requests do not count as that.
    fn client_left(&self) -> io::Result<bool> {
        self.stream.set_nonblocking(true)?;
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false)?;
        match peeked {
            Ok(bytes) => Ok(bytes == 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Ok(true),
        }
    }

    /// Logs why a connection ended, if it says something about the client.
    fn report(&self, ended: Result<(), Ended>) {
        match ended {
            Ok(()) | Err(Ended::Stopping) => {}
            Err(Ended::Io(error)) => tracing::debug!(client = %self.host, %error, "connection ended"),
            Err(reason) => tracing::warn!(client = %self.host, %reason, "connection closed"),
        }
    }
}

//! One connection through the proxy: a thread for the requests, one for the responses.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rule::{Action, Active, Direction, Frame, Request};
use super::{Shared, lock};

/// Largest frame; what claims to be larger is not Kafka's protocol.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// As much of a request as rules look at.
const HEAD_BYTES: usize = 256;
/// How long a held request's connection waits for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What the two threads of a connection know of each other.
#[derive(Default)]
struct Pending {
    /// Requests without a response so far, by correlation id.
    requests: Mutex<HashMap<i32, Request>>,
    /// Requests that were held; their answers are for the test.
    held: Mutex<HashMap<i32, Arc<Active>>>,
}

/// Starts the threads of a connection. They end when either side closes it.
pub fn run(shared: &Arc<Shared>, client: TcpStream, broker: TcpStream) {
    let (Ok(to_client), Ok(from_broker)) = (client.try_clone(), broker.try_clone()) else { return };
    let pending = Arc::new(Pending::default());
    let (rules, known) = (Arc::clone(shared), Arc::clone(&pending));
    std::thread::spawn(move || {
        // An error is the end of the connection, and so is a quiet end.
        let _ = requests(&rules, &known, &client, &broker);
        let _ = (client.shutdown(Shutdown::Both), broker.shutdown(Shutdown::Both));
    });
    let rules = Arc::clone(shared);
    std::thread::spawn(move || {
        let _ = responses(&rules, &pending, &from_broker, &to_client);
        let _ = (from_broker.shutdown(Shutdown::Both), to_client.shutdown(Shutdown::Both));
    });
}

fn requests(shared: &Shared, pending: &Pending, client: &TcpStream, broker: &TcpStream) -> io::Result<()> {
    loop {
        let bytes = read(client)?;
        let (Some(api), Some(correlation)) = (i16_at(&bytes, 0), i32_at(&bytes, 4)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let request = Request { api, head: bytes.iter().take(HEAD_BYTES).copied().collect() };
        lock(&pending.requests).insert(correlation, request.clone());
        let frame = Frame { direction: Direction::Request, request, correlation, bytes };
        let Some(rule) = shared.rule_for(&frame) else {
            write(broker, &frame.bytes)?;
            continue;
        };
        match rule.rule.action {
            Action::Drop => {}
            Action::Close => return Ok(()),
            Action::Delay(wait) => {
                // The delay is what the test asked for.
                std::thread::sleep(wait);
                write(broker, &frame.bytes)?;
            }
            Action::Duplicate => {
                write(broker, &frame.bytes)?;
                let copy = TcpStream::connect(broker.peer_addr()?)?;
                write(&copy, &frame.bytes)?;
                rule.answered(read(&copy)?.get(4..).unwrap_or_default());
            }
            Action::Hold { hang_up } => {
                lock(&pending.held).insert(frame.correlation, Arc::clone(&rule));
                if hang_up {
                    client.shutdown(Shutdown::Both)?;
                }
                rule.wait_released();
                write(broker, &frame.bytes)?;
                rule.wait_answered(ANSWER_MAX);
            }
        }
    }
}

fn responses(shared: &Shared, pending: &Pending, broker: &TcpStream, client: &TcpStream) -> io::Result<()> {
    loop {
        let bytes = read(broker)?;
        let Some(correlation) = i32_at(&bytes, 0) else { return Err(io::ErrorKind::InvalidData.into()) };
        if let Some(rule) = lock(&pending.held).remove(&correlation) {
            rule.answered(&bytes[4..]);
        }
        let request = lock(&pending.requests).remove(&correlation).unwrap_or_default();
        let frame = Frame { direction: Direction::Response, request, correlation, bytes };
        let rule = shared.rule_for(&frame);
        match rule.as_ref().map(|rule| rule.rule.action) {
            Some(Action::Drop) => continue,
            Some(Action::Close) => return Ok(()),
            Some(Action::Delay(wait)) => std::thread::sleep(wait),
            Some(Action::Hold { hang_up }) => {
                if hang_up {
                    client.shutdown(Shutdown::Both)?;
                }
                if let Some(rule) = &rule {
                    rule.wait_released();
                    rule.answered(&frame.bytes[4..]);
                }
            }
            // Nobody waits for a response twice.
            Some(Action::Duplicate) | None => {}
        }
        // A client that has gone leaves the broker's answers to held requests to be read.
        let delivered = write(client, &frame.bytes);
        if delivered.is_err() && lock(&pending.held).is_empty() {
            return delivered;
        }
    }
}

/// Reads one frame, without its length.
fn read(mut from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write(mut to: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
    frame.extend_from_slice(bytes);
    to.write_all(&frame)
}

fn i16_at(bytes: &[u8], at: usize) -> Option<i16> {
    Some(i16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

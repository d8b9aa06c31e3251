//! Ports for programs that listen a while later, and again after a kill.
//!
//! A port that the system chooses (port 0) is of those that it gives to any connection too: by the time that a broker
//! or a node has started, it may be another's. These are below that range. Between two lives of a node nobody listens at
//! its port, so that looking is not enough to keep it: each process has a block of ports of its own, and listens at the
//! first of them for as long as it lives.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::Error;

/// Below it are those of known services.
const LOWEST: u16 = 10_000;
/// Where the ports of connections begin, unless Linux was told otherwise.
const USUAL: u16 = 32_768;
/// With fewer below the range of connections it is as if there were none.
const ENOUGH: u16 = 1_000;
/// Ports of a block: several times what the tests of one process have in use at once.
const BLOCK: u16 = 256;

/// The block of this process, once it has asked for a port.
static OWN: Mutex<Option<Block>> = Mutex::new(None);

/// A port of loopback at which nobody listens, and that no other process is given by this function. This one is given it
/// again once it has had the whole block.
///
/// # Errors
///
/// Fails if all are taken.
pub fn free_port() -> Result<u16, Error> {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut block = match own.take() {
        Some(block) => block,
        None => Block::hold()?,
    };
    let port = block.free();
    *own = Some(block);
    port
}

/// Ports that other processes keep their hands off.
struct Block {
    /// At the first port: who holds it has the others.
    _held: TcpListener,
    first: u16,
    /// Of those behind the first one, whose turn it is.
    next: u16,
}

impl Block {
    /// The first one that nobody holds.
    fn hold() -> Result<Block, Error> {
        let ports = range(&fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default());
        let blocks = (ports.end - ports.start) / BLOCK;
        let mut firsts = (0..blocks).map(|block| ports.start + block * BLOCK);
        let held = firsts.find_map(|first| Some(Block { _held: listen(first).ok()?, first, next: 0 }));
        held.ok_or_else(taken)
    }

    fn free(&mut self) -> Result<u16, Error> {
        for _ in 1..BLOCK {
            let port = self.first + 1 + self.next;
            self.next = (self.next + 1) % (BLOCK - 1);
            if listen(port).is_ok() {
                return Ok(port);
            }
        }
        Err(taken())
    }
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

fn taken() -> Error {
    Error::NoPort(ErrorKind::AddrInUse.into())
}

/// What lies below the range of connections, as Linux tells it.
fn range(of_connections: &str) -> Range<u16> {
    let low = of_connections.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(USUAL);
    let end = if low >= LOWEST + ENOUGH { low } else { USUAL };
    LOWEST..end.min(USUAL)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let ports: HashSet<u16> = (0..200).map(|_| free_port().expect("a port")).collect();
        assert_eq!(ports.len(), 200);
    }

    #[test]
    fn two_processes_are_never_given_the_same_port() {
        let [one, other] = [Block::hold(), Block::hold()].map(|block| block.expect("a block"));
        assert!(one.first.abs_diff(other.first) >= BLOCK, "{} and {}", one.first, other.first);
        assert!([&one, &other].iter().all(|block| listen(block.first).is_err()), "it is held on to");
    }

    #[test]
    fn ports_are_below_those_of_connections() {
        assert_eq!(range("20000\t60999\n"), 10_000..20_000);
        assert_eq!(range("40000\t60999\n"), 10_000..32_768);
        assert_eq!(range(""), 10_000..32_768);
        assert_eq!(range("1024\t65535\n"), 10_000..32_768, "there is no better one");
    }
}

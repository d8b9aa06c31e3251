//! Ports for programs that listen a while later, and again after a kill.
//!
//! A port that the system chooses (port 0) is of those that it gives to any connection too: by the time that a broker
//! or a node has started, it may be another's. These are below that range, and a process is given none of them twice.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;

/// Below it are those of known services.
const LOWEST: u32 = 10_000;
/// Where the ports of connections begin, unless Linux was told otherwise.
const USUAL: u32 = 32_768;
/// With fewer below the range of connections it is as if there were none.
const ENOUGH: u32 = 1_000;

/// The next port, from a random one on: other processes look for some as well.
static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(RandomState::new().hash_one(()) as u32));

/// A port of loopback at which nobody listens, and that nobody is given but by this function.
///
/// # Errors
///
/// Fails if all are taken.
pub fn free_port() -> Result<u16, Error> {
    let ports = range(&fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default());
    for _ in ports.clone() {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % (ports.end - ports.start);
        let port = (ports.start + number) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::NoPort(ErrorKind::AddrInUse.into()))
}

/// What lies below the range of connections, as Linux tells it.
fn range(of_connections: &str) -> Range<u32> {
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
    fn ports_are_below_those_of_connections() {
        assert_eq!(range("20000\t60999\n"), 10_000..20_000);
        assert_eq!(range("40000\t60999\n"), 10_000..32_768);
        assert_eq!(range(""), 10_000..32_768);
        assert_eq!(range("1024\t65535\n"), 10_000..32_768, "there is no better one");
    }
}

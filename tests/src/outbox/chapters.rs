//! What has arrived at a receiver, chapter by chapter: one is a life of the only node, or a time in which every task
//! stays where it is, or one in which tasks move.
//!
//! A chapter ends at what the receiver holds at that moment and not at a time, so no two clocks are compared. Within
//! one in which each key has one owner, who lives, and whatever is sent is answered in time, nothing may arrive twice:
//! a row that no commit knew to be delivered, and that is therefore delivered again, is so in a later one.

use std::collections::HashSet;
use std::time::Duration;

use super::receiver::{Arrival, Receiver};
use super::stage::{Stage, Starts};
use crate::wait::until;

/// Until a receiver has read what the dead have sent.
const READ_MAX: Duration = Duration::from_secs(30);

/// What holds for the deliveries of a key within a chapter, beside the order of the first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Their sequence rises.
    Rises,
    /// A row may come again before the next one comes: some answers are lost or late.
    Repeats,
    /// A row may come again at any time: its owners change, or what was given up comes late.
    Any,
}

#[derive(Debug)]
pub struct Chapter {
    pub order: Order,
    pub arrivals: Vec<Arrival>,
}

#[derive(Debug, Default)]
pub struct Book {
    pub chapters: Vec<Chapter>,
    /// When the last of them ended.
    starts: Starts,
}

impl Book {
    /// Ends the chapter of the only node's life, which is over.
    pub fn end_life(&mut self, stage: &Stage, receiver: &mut dyn Receiver) {
        // What it has sent may still lie in a socket.
        let port = receiver.port();
        until(
            "the receiver has read it all",
            READ_MAX,
            || {
                if is_connected(port) { Err(port) } else { Ok(()) }
            },
        );
        self.end(stage, Some(1), || receiver.settled());
    }

    /// Ends a chapter. `starts_max` is how often each task starts in it if its owner stays the same; none if owners
    /// change. One that starts more often goes on from what its commits know, so it may deliver again.
    pub fn end_chapter(&mut self, stage: &Stage, receiver: &mut dyn Receiver, starts_max: Option<u64>) {
        self.end(stage, starts_max, || receiver.arrived());
    }

    fn end(&mut self, stage: &Stage, starts_max: Option<u64>, arrived: impl FnOnce() -> Vec<Arrival>) {
        // A start between these two looks counts for this chapter and for the next.
        let next = stage.starts();
        let arrivals = arrived();
        let order = order_within(self.starts, stage.starts(), starts_max);
        self.starts = next;
        self.chapters.push(Chapter { order, arrivals });
    }

    /// Chapters in which nothing may arrive twice.
    pub fn strict(&self) -> usize {
        self.chapters.iter().filter(|chapter| chapter.order == Order::Rises).count()
    }

    /// Something that arrived in this chapter arrived again in a later one.
    pub fn comes_again_after(&self, chapter: usize) -> bool {
        let Some((this, later)) = self.chapters.get(chapter..).and_then(|rest| rest.split_first()) else {
            return false;
        };
        let ids: HashSet<&str> = this.arrivals.iter().map(|arrival| arrival.id.as_str()).collect();
        later.iter().flat_map(|chapter| &chapter.arrivals).any(|arrival| ids.contains(arrival.id.as_str()))
    }
}

fn order_within(before: Starts, after: Starts, starts_max: Option<u64>) -> Order {
    let stays = |most: u64| after.iter().zip(before).all(|(&after, before)| after <= before + most);
    if starts_max.is_some_and(stays) { Order::Rises } else { Order::Any }
}

/// Whether a server of this machine has a connection that it has not read to its end.
fn is_connected(port: u16) -> bool {
    // Established, and closed by the other side alone.
    const OPEN: [&str; 2] = ["01", "08"];
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().any(|table| {
        // There is no second one without IPv6.
        let rows = std::fs::read_to_string(table).unwrap_or_default();
        rows.lines().skip(1).any(|row| {
            // Number, own address, the other's, state.
            let mut fields = row.split_ascii_whitespace().skip(1);
            let (own, state) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
            let own_port = own.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            own_port == Some(port) && OPEN.contains(&state)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::outbox::stage::count_starts;

    #[test]
    fn a_task_that_starts_anew_may_deliver_again() {
        let mut before = Starts::default();
        count_starts("INFO task starts deployment=\"w7\" partition=1 offset=\"0\"\n", &mut before);
        let mut after = before;
        let more = "\
INFO assigned deployment=w7 worker=0 partitions=0,1,2,3
INFO task starts deployment=\"w7\" partition=1 offset=\"7\" changelog_from=3
";
        count_starts(more, &mut after);
        assert_eq!(after, [0, 2, 0, 0]);
        assert_eq!(order_within(before, before, Some(0)), Order::Rises);
        assert_eq!(order_within(before, after, Some(0)), Order::Any, "it should stay where it is");
        assert_eq!(order_within(before, after, Some(1)), Order::Rises, "that is how a life begins");
        count_starts(more, &mut after);
        assert_eq!(order_within(before, after, Some(1)), Order::Any, "twice in a life");
        assert_eq!(order_within(before, before, None), Order::Any);
    }

    #[test]
    fn a_connection_is_seen_until_the_server_has_closed_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        assert!(!is_connected(address.port()));
        let mut client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("the other end");
        assert!(is_connected(address.port()));
        client.write_all(b"last words").expect("written");
        drop(client);
        assert!(is_connected(address.port()), "nobody has read what the dead have sent");
        drop(server);
        assert!(!is_connected(address.port()));
    }
}

//! Bytes to a broker and from it, within a deadline, encrypted or not.
//!
//! A deadline is of all that is sent or received, however many system calls that takes; a socket knows only
//! time-outs of a single one. They are set again only when they are far from what is left, so that an
//! exchange usually costs no system call beside its reads and writes.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;

use crate::tls::blocking::{Session, may_repeat};

/// The least that a socket's time-out is set to; none at all would be for ever.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Why bytes did not get through. The connection is of no use then.
#[derive(Debug)]
pub(super) enum Fault {
    /// By the other end, or by another thread that shut the socket down.
    Closed,
    Late,
    Io(io::Error),
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Encrypted(Box<Session>),
}

#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    /// As the socket has them.
    read_timeout: Duration,
    write_timeout: Duration,
    /// What came with an answer and is of the next one.
    ahead: Vec<u8>,
}

impl Wire {
    pub fn plain(tcp: TcpStream) -> Wire {
        Wire::new(Stream::Plain(tcp))
    }

    pub fn encrypted(session: Session) -> Wire {
        Wire::new(Stream::Encrypted(Box::new(session)))
    }

    fn new(stream: Stream) -> Wire {
        // Near to nothing, so that both are set before they are first needed.
        Wire { stream, read_timeout: Duration::ZERO, write_timeout: Duration::ZERO, ahead: Vec::new() }
    }

    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Encrypted(session) => session.socket(),
        }
    }

    pub fn send(&mut self, mut bytes: &[u8], until: Instant) -> Result<(), Fault> {
        loop {
            if let Some(timeout) = new_timeout(self.write_timeout, until)? {
                self.socket().set_write_timeout(Some(timeout)).map_err(Fault::Io)?;
                self.write_timeout = timeout;
            }
            match self.stream.send(&mut bytes) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if may_repeat(&error) => {}
                Err(error) => return Err(Fault::Io(error)),
            }
        }
    }

    /// The next `count` bytes, in memory that is not zeroed first.
    pub fn receive(&mut self, count: usize, until: Instant) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::with_capacity(count);
        bytes.extend(self.ahead.drain(..count.min(self.ahead.len())));
        while bytes.len() < count {
            if let Some(timeout) = new_timeout(self.read_timeout, until)? {
                self.socket().set_read_timeout(Some(timeout)).map_err(Fault::Io)?;
                self.read_timeout = timeout;
            }
            let most = count - bytes.len();
            match self.stream.append(&mut bytes, most) {
                Ok(Some(_)) => {}
                Ok(None) => return Err(Fault::Closed),
                Err(error) if may_repeat(&error) => {}
                Err(error) => return Err(Fault::Io(error)),
            }
        }
        // A vector may have more room than it was asked to have.
        self.ahead.extend(bytes.drain(count..));
        Ok(bytes)
    }
}

/// What a time-out has to be set to, if that is far from what it is; late if nothing is left.
fn new_timeout(set: Duration, until: Instant) -> Result<Option<Duration>, Fault> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Fault::Late);
    }
    // An eighth off: a wait that ends early is begun again, and one that outlasts the deadline does so by little.
    let is_near = set.abs_diff(left) <= left / 8;
    Ok((!is_near).then_some(left.max(TIMEOUT_MIN)))
}

impl Stream {
    /// One write at most, of the front of `bytes`, which is taken off; true = everything is out.
    fn send(&mut self, bytes: &mut &[u8]) -> io::Result<bool> {
        match self {
            Stream::Encrypted(session) => session.send(bytes),
            Stream::Plain(tcp) => {
                let sent = tcp.write(bytes)?;
                if sent == 0 && !bytes.is_empty() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                *bytes = &bytes[sent..];
                Ok(bytes.is_empty())
            }
        }
    }

    /// One read at most, of `most` bytes, or as many as there is room for; `None` = closed.
    fn append(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<Option<usize>> {
        match self {
            Stream::Encrypted(session) => session.append(into, most),
            Stream::Plain(tcp) => match rustix::io::read(&*tcp, spare_capacity(into))? {
                0 => Ok(None),
                read => Ok(Some(read)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn pair() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        (Wire::plain(near), listener.accept().expect("it connects").0)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn bytes_come_in_whatever_pieces_and_nothing_beyond_them_is_taken() {
        let (mut wire, mut far) = pair();
        let writer = thread::spawn(move || {
            for byte in 0..100u8 {
                far.write_all(&[byte]).expect("sent");
            }
            let mut got = Vec::new();
            far.read_to_end(&mut got).expect("received");
            got
        });
        assert_eq!(wire.receive(40, soon()).expect("they come"), (0..40).collect::<Vec<u8>>());
        assert_eq!(wire.receive(60, soon()).expect("they come"), (40..100).collect::<Vec<u8>>());
        // More than a socket holds.
        let many = vec![7; 8 << 20];
        wire.send(&many, soon()).expect("somebody reads");
        drop(wire);
        assert!(writer.join().expect("no panic") == many);
    }

    #[test]
    fn what_came_with_an_answer_is_of_the_next_one() {
        let (mut wire, mut far) = pair();
        wire.ahead = vec![0, 1, 2, 3, 4];
        far.write_all(&[5, 6, 7]).expect("sent");
        assert_eq!(wire.receive(2, soon()).expect("it is there"), [0, 1]);
        assert_eq!(wire.receive(4, soon()).expect("it comes"), [2, 3, 4, 5]);
        assert_eq!(wire.receive(2, soon()).expect("it comes"), [6, 7]);
    }

    #[test]
    fn a_peer_that_sends_byte_by_byte_does_not_outlast_the_deadline() {
        let (mut wire, mut far) = pair();
        let writer = thread::spawn(move || {
            while far.write_all(&[0]).is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let began = Instant::now();
        let outcome = wire.receive(1 << 20, began + Duration::from_millis(200));
        assert!(matches!(outcome, Err(Fault::Late)), "{outcome:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drop(wire);
        writer.join().expect("no panic");
    }

    #[test]
    fn a_peer_that_does_not_read_does_not_outlast_it_either() {
        let (mut wire, far) = pair();
        let outcome = wire.send(&vec![0; 64 << 20], Instant::now() + Duration::from_millis(100));
        assert!(matches!(outcome, Err(Fault::Late)), "{outcome:?}");
        drop(far);
    }

    #[test]
    fn a_time_out_is_set_again_only_when_it_is_far_off() {
        let until = Instant::now() + Duration::from_secs(1000);
        for (set, is_near) in
            [(0, false), (500, false), (900, true), (1000, true), (1100, true), (2000, false)]
        {
            let new = new_timeout(Duration::from_secs(set), until).expect("in time");
            assert_eq!(new.is_none(), is_near, "{set}: {new:?}");
        }
        assert!(matches!(new_timeout(Duration::ZERO, Instant::now()), Err(Fault::Late)));
    }
}

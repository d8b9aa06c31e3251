//! TLS on a blocking socket, as a client: what the node's own connections to brokers speak.
//!
//! Not `Read` and `Write`: a call here is one read or one write of the socket at most, so that its caller can
//! look at a deadline in between. A socket's own time-out bounds a single read, and a peer that sends byte by
//! byte would never meet it. Who shuts the socket down, from any thread, ends the read that waits.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig, ClientConnection};

use super::TlsError;
use super::client::{client_config, explanation};
use super::files::KeyPair;
use super::trust::Trust;

/// What one read of the socket takes: four records of TLS. rustls by itself asks for 4 KiB.
const READ_BYTES: usize = 64 << 10;
/// The least that a socket's time-out is set to; none at all would be for ever.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// What a client shows, and whom it believes. Read once, when it is made.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
}

/// An encrypted connection.
#[derive(Debug)]
pub struct Session {
    tls: ClientConnection,
    socket: BufReader<TcpStream>,
    /// Bytes that are decrypted and not taken yet.
    ready: usize,
}

impl Client {
    /// Without `ca` it believes whom this machine believes. `pair` is certificate and key.
    pub fn from_files(ca: Option<&Path>, pair: Option<(&Path, &Path)>) -> Result<Client, TlsError> {
        let trust = Trust::of_file_or_machine(ca, true)?;
        let pair = pair.map(|(cert, key)| KeyPair::read(cert, key)).transpose()?;
        Ok(Client { config: Arc::new(client_config(trust, pair.as_ref(), None)?) })
    }

    /// Shakes hands with `host`, whose name the certificate has to hold, until `until` at the latest.
    pub fn connect(&self, tcp: TcpStream, host: &str, until: Instant) -> io::Result<Session> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            // A broker has said it, maybe.
            let text = format!("{host:?} is neither a DNS name nor an IP address");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let tls = ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        let mut session = Session { tls, socket: BufReader::with_capacity(READ_BYTES, tcp), ready: 0 };
        while session.tls.is_handshaking() || session.tls.wants_write() {
            session.bound(until)?;
            match session.step() {
                Err(error) if !may_repeat(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(session)
    }
}

impl fmt::Debug for Client {
    /// It has a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What a person can do about an error of a session or of its handshake; `None` = it is not TLS that failed.
pub fn explain(error: &io::Error, host: &str) -> Option<String> {
    explanation(error, host)
}

/// The other end has ended the connection and said of nothing that it is wrong, as one does that stops.
pub fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => {
            matches!(alert, AlertDescription::CloseNotify | AlertDescription::UserCanceled)
        }
        Some(_) => false,
        None => matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof),
    }
}

/// The call has come to nothing, and may be made again.
pub fn may_repeat(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

impl Session {
    /// For time-outs, and for shutting it down.
    pub fn socket(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    /// Takes bytes off the front of `bytes` and sends what it can; true = everything is out.
    pub fn send(&mut self, bytes: &mut &[u8]) -> io::Result<bool> {
        // Not more before that is out: what is encrypted has been taken already.
        if !self.tls.wants_write() {
            let taken = self.tls.writer().write(bytes)?;
            *bytes = &bytes[taken..];
        }
        if self.tls.wants_write() {
            self.write()?;
        }
        Ok(bytes.is_empty() && !self.tls.wants_write())
    }

    /// Appends what has come, `most` bytes of it at most: the number of bytes, which is 0 as long as no record is
    /// whole; `None` = the other end has closed.
    pub fn append(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<Option<usize>> {
        if self.ready == 0 && !self.receive()? {
            return Ok(None);
        }
        let before = into.len();
        while self.ready > 0 && into.len() - before < most {
            let mut reader = self.tls.reader();
            let chunk = reader.fill_buf()?;
            let taken = chunk.len().min(most - (into.len() - before));
            into.extend_from_slice(&chunk[..taken]);
            reader.consume(taken);
            self.ready -= taken;
        }
        Ok(Some(into.len() - before))
    }

    /// One read or write of a handshake.
    fn step(&mut self) -> io::Result<()> {
        if self.tls.wants_write() {
            return self.write();
        }
        match self.receive()? {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// False = the other end has closed.
    fn receive(&mut self) -> io::Result<bool> {
        // TLS has things of its own to say, such as that it takes new keys.
        if self.tls.wants_write() {
            self.write()?;
        }
        let read = self.tls.read_tls(&mut self.socket)?;
        match self.tls.process_new_packets() {
            Ok(state) => self.ready = state.plaintext_bytes_to_read(),
            Err(reason) => {
                // What the other end is told about it; whether it gets there changes nothing here.
                drop(self.tls.write_tls(self.socket.get_mut()));
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
        }
        Ok(read > 0)
    }

    fn write(&mut self) -> io::Result<()> {
        match self.tls.write_tls(self.socket.get_mut())? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        }
    }

    /// Lets neither a read nor a write of the socket outlast `until`.
    fn bound(&self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = Some(left.max(TIMEOUT_MIN));
        self.socket().set_read_timeout(left)?;
        self.socket().set_write_timeout(left)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Shutdown, SocketAddr, TcpListener};
    use std::thread::{self, JoinHandle};

    use tidemill_test_support::certificates::{Authority, Pair};
    use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::super::{VERSIONS, provider};
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    type Stream = StreamOwned<ServerConnection, TcpStream>;

    /// Accepts one connection; whether it is spoken to in TLS is up to `speak`.
    fn listen(speak: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        (address, thread::spawn(move || speak(listener.accept().expect("a client").0)))
    }

    fn serve(pair: &Pair, speak: impl FnOnce(Stream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
        let identity = KeyPair::read(&pair.cert, &pair.key).and_then(|pair| pair.identity()).expect("valid");
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .expect("a pair");
        let session = ServerConnection::new(Arc::new(config)).expect("a session");
        listen(move |tcp| speak(StreamOwned::new(session, tcp)))
    }

    fn connect(ca: &Path, address: SocketAddr, host: &str, wait: Duration) -> Result<Session, String> {
        let client = Client::from_files(Some(ca), None).expect("a client");
        let tcp = TcpStream::connect(address).expect("it listens");
        let session = client.connect(tcp, host, Instant::now() + wait);
        session.map_err(|error| explain(&error, host).unwrap_or_else(|| error.kind().to_string()))
    }

    /// The server's part, when it has to fail.
    fn attempt(mut stream: Stream) {
        drop(stream.read(&mut [0]));
    }

    #[test]
    fn what_is_sent_arrives_and_an_answer_of_many_records_comes_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let answer: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        let sent = answer.clone();
        let (address, server) = serve(&authority.issue("broker", &["broker.test"]), move |mut stream| {
            let mut question = [0; 5];
            stream.read_exact(&mut question).expect("a question");
            assert_eq!(&question, b"hello");
            stream.write_all(&sent).and_then(|()| stream.flush()).expect("an answer");
        });
        let mut session = connect(&authority.ca, address, "broker.test", SOON).expect("a session");
        let mut question: &[u8] = b"hello";
        while !session.send(&mut question).expect("sent") {}
        let mut got = Vec::new();
        while got.len() < answer.len() {
            let most = (answer.len() - got.len()).min(70_000);
            assert!(session.append(&mut got, most).expect("read").is_some(), "closed at {}", got.len());
        }
        assert!(got == answer);
        server.join().expect("the server is content");
        let end = session.append(&mut got, 1);
        assert!(matches!(end, Ok(None)), "{end:?}");
    }

    #[test]
    fn whoever_is_not_believed_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let pair = authority.issue("broker", &["broker.test"]);
        let stranger = Authority::new(directory.path(), "other");
        for (ca, host, reason) in [
            (&authority.ca, "else.test", "its certificate is not for else.test"),
            (&stranger.ca, "broker.test", "not from a CA that is believed"),
        ] {
            let (address, server) = serve(&pair, attempt);
            let error = connect(ca, address, host, SOON).expect_err("refused");
            assert!(error.contains(reason), "{error}");
            server.join().expect("the server ends");
        }
        let (address, server) = listen(|mut tcp| {
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("sent");
            // Not before the client has read that: what it has sent is unread here.
            drop(tcp.read(&mut [0; 4096]));
        });
        let error = connect(&authority.ca, address, "broker.test", SOON).expect_err("no TLS");
        assert_eq!(error, "it does not speak TLS");
        server.join().expect("the server ends");
    }

    #[test]
    fn a_certificate_that_every_client_is_given_is_believed_though_it_is_a_ca_but_only_of_its_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let pair = Authority::self_signed(directory.path(), "broker", &["broker.test", "127.0.0.1"]);
        for (host, is_believed) in [("broker.test", true), ("127.0.0.1", true), ("else.test", false)] {
            let (address, server) = serve(&pair, attempt);
            let session = connect(&pair.cert, address, host, SOON);
            assert_eq!(session.is_ok(), is_believed, "{host}: {session:?}");
            drop(session);
            server.join().expect("the server ends");
        }
    }

    #[test]
    fn a_handshake_that_does_not_come_to_an_end_is_given_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let (address, server) = listen(|mut tcp| drop(tcp.read_to_end(&mut Vec::new())));
        let error = connect(&authority.ca, address, "broker.test", Duration::from_millis(50));
        assert_eq!(error.expect_err("given up"), io::ErrorKind::TimedOut.to_string());
        server.join().expect("the server ends");
    }

    #[test]
    fn a_read_that_waits_ends_when_another_thread_shuts_the_socket_down() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let (address, server) = serve(&authority.issue("broker", &["broker.test"]), attempt);
        let mut session = connect(&authority.ca, address, "broker.test", SOON).expect("a session");
        session.socket().set_read_timeout(Some(SOON)).expect("set");
        let socket = session.socket().try_clone().expect("a handle");
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            // What TLS itself sends, such as tickets, is nothing to append.
            while session.append(&mut got, 1)? == Some(0) {}
            io::Result::Ok(got)
        });
        socket.shutdown(Shutdown::Both).expect("shut down");
        // What the server sends only now, its tickets, is answered with a reset.
        match reader.join().expect("no panic") {
            Ok(got) => assert_eq!(got, b""),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        server.join().expect("the server ends");
    }
}

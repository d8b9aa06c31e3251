//! A receiver of webhooks, for tests, that behaves as badly as one tells it to: slow, hung, out of order, forgetful.
//!
//! It keeps what it was given, in the order of arrival. A request counts as **applied** when the receiver has
//! done what it asks for, whatever it answers: one that fails may have done it or not.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Until the thread that accepted has let go of the port.
const FREE_MAX: Duration = Duration::from_secs(60);

/// How requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Accept,
    /// Every request, with this status. Every second one is applied all the same.
    Status(u16),
    /// As `Status(429)`, saying how long to wait.
    RetryAfter {
        seconds: u64,
    },
    /// Accepts after a while.
    Slow(Duration),
    /// Answers nothing as long as this is the mode. Every second one is applied all the same.
    Hang,
    /// Every other one fails with 500.
    Flap,
    /// Answers each request twice.
    AcceptTwice,
    /// Never takes requests whose body holds this byte string's text; accepts the rest.
    Refuse(&'static str),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Answered with; none = not at all.
    pub status: Option<u16>,
    pub applied: bool,
    /// Milliseconds since the epoch, when it was complete.
    pub at_ms: i64,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The `tidemill-id`.
    pub fn id(&self) -> &str {
        self.header("tidemill-id").unwrap_or_default()
    }

    /// The `tidemill-sequence`.
    pub fn sequence(&self) -> u64 {
        self.header("tidemill-sequence").and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

pub struct HttpSink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    mode: Mutex<Mode>,
    /// The mode has, or the time.
    changed: Condvar,
    received: Mutex<Vec<Received>>,
    count: AtomicU64,
    /// Rises when it closes: whoever serves for an earlier time ends.
    time: AtomicU64,
}

impl HttpSink {
    /// Listens on a free port of loopback.
    pub fn start() -> HttpSink {
        HttpSink::start_at("127.0.0.1:0")
    }

    /// Listens at this address. One that is to be closed and opened again needs a port that the system gives to nobody
    /// meanwhile: those that it chooses itself are for any connection, and its own clients make many.
    pub fn start_at(address: &str) -> HttpSink {
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Accept),
            changed: Condvar::new(),
            received: Mutex::default(),
            count: AtomicU64::new(0),
            time: AtomicU64::new(0),
        });
        let listener = TcpListener::bind(address).expect("a port for the sink");
        let address = listener.local_addr().expect("the sink's address");
        listen(listener, &shared);
        HttpSink { address, shared }
    }

    /// Ends its connections, and listens no more: as a receiver that is gone.
    pub fn close(&self) {
        let mode = lock(&self.shared.mode);
        self.shared.time.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.notify_all();
        drop(mode);
        // Wakes the thread that accepts, so that the port is free.
        drop(TcpStream::connect(self.address));
    }

    /// Listens again where it did, and remembers what it was given before.
    pub fn reopen(&self) {
        let started = Instant::now();
        loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => return listen(listener, &self.shared),
                Err(_) if started.elapsed() < FREE_MAX => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("the sink's port is not free again: {error}"),
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn set(&self, mode: Mode) {
        *lock(&self.shared.mode) = mode;
        self.shared.changed.notify_all();
    }

    /// Everything so far, in the order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.received_since(0)
    }

    /// The same without the first so many.
    pub fn received_since(&self, count: usize) -> Vec<Received> {
        lock(&self.shared.received).get(count..).unwrap_or_default().to_vec()
    }

    /// How much that is.
    pub fn count(&self) -> usize {
        lock(&self.shared.received).len()
    }

    /// What has been applied, the first of each id.
    pub fn applied_once(&self) -> Vec<Received> {
        let mut seen = std::collections::HashSet::new();
        let received = self.received().into_iter().filter(|one| one.applied);
        received.filter(|one| seen.insert(one.id().to_owned())).collect()
    }
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn is_over(&self, time: u64) -> bool {
        self.time.load(Ordering::SeqCst) != time
    }
}

fn listen(listener: TcpListener, shared: &Arc<Shared>) {
    let time = shared.time.load(Ordering::SeqCst);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if shared.is_over(time) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || serve(&stream, &shared, time));
        }
    });
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Serves one connection until it ends.
fn serve(stream: &TcpStream, shared: &Shared, time: u64) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    let mut reader = BufReader::new(stream);
    while let Some((headers, body)) = read_request(&mut reader, shared, time) {
        if shared.is_over(time) {
            return;
        }
        let at_ms = now_ms();
        let number = shared.count.fetch_add(1, Ordering::Relaxed);
        let mode = *lock(&shared.mode);
        let every_second = number.is_multiple_of(2);
        let (status, applied) = match mode {
            Mode::Accept | Mode::Slow(_) | Mode::AcceptTwice => (Some(200), true),
            Mode::Status(status) => (Some(status), status < 300 || status >= 500 && every_second),
            Mode::RetryAfter { .. } => (Some(429), false),
            Mode::Hang => (None, every_second),
            Mode::Flap => (Some(if every_second { 200 } else { 500 }), every_second),
            Mode::Refuse(text) => match String::from_utf8_lossy(&body).contains(text) {
                true => (Some(422), false),
                false => (Some(200), true),
            },
        };
        if let Mode::Slow(pause) = mode {
            std::thread::sleep(pause);
        }
        lock(&shared.received).push(Received { headers, body, status, applied, at_ms });
        let Some(status) = status else {
            let hangs = |now: &mut Mode| *now == mode && !shared.is_over(time);
            drop(shared.changed.wait_while(lock(&shared.mode), hangs));
            return;
        };
        let wait = match mode {
            Mode::RetryAfter { seconds } => format!("retry-after: {seconds}\r\n"),
            _ => String::new(),
        };
        let answer = format!("HTTP/1.1 {status} Told So\r\n{wait}content-length: 0\r\n\r\n");
        let times = if mode == Mode::AcceptTwice { 2 } else { 1 };
        let mut writer = stream;
        if writer.write_all(answer.repeat(times).as_bytes()).is_err() || shared.is_over(time) {
            return;
        }
    }
}

/// Names in lower case, and values.
type Headers = Vec<(String, String)>;

/// Headers and body of the next request; none at the end of the connection.
fn read_request(
    reader: &mut BufReader<&TcpStream>,
    shared: &Shared,
    time: u64,
) -> Option<(Headers, Vec<u8>)> {
    let mut headers = Vec::new();
    let mut line = String::new();
    loop {
        match reader.read_line(&mut line) {
            Ok(0) => return None,
            Ok(_) => {}
            // What was read of the line stays in it.
            Err(error) if is_timeout(&error) && !shared.is_over(time) => continue,
            Err(_) => return None,
        }
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        if let Some((name, value)) = text.split_once(": ") {
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        line.clear();
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)];
    let mut filled = 0;
    while filled < body.len() {
        match reader.read(&mut body[filled..]) {
            Ok(0) => return None,
            Ok(read) => filled += read,
            Err(error) if is_timeout(&error) && !shared.is_over(time) => {}
            Err(_) => return None,
        }
    }
    Some((headers, body))
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

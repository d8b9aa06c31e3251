//! What handlers log, gathered from every node: a task that is here now may have logged elsewhere.
//!
//! ```text
//!   caller <-- one stream <-- this node's lines
//!                        <-- a stream of each other node
//! ```
//!
//! Of the lines that are kept, those of all nodes are put in order; what comes after is handed on as it
//! comes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::logs_client::LogsClient;
use tokio::sync::mpsc;
use tonic::{Request, Status};

use super::details::invalid;
use super::forward::{Forwarder, Peer};
use super::page;
use super::streams::Stream;
use crate::node::Handle;
use crate::telemetry::{Level, Line, LogRing, Since};

/// Lines of the past that a caller gets who does not say, and at most.
const LIMIT_DEFAULT: u32 = 1_000;
const LIMIT_MAX: u32 = 100_000;
/// Lines of one message; of 1 KiB each they are well within what a message may hold.
const LINES_PER_MESSAGE: usize = 500;
/// Between two looks at a ring that somebody follows.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between two looks at who is there, while somebody follows.
const PEERS_EVERY: Duration = Duration::from_secs(2);
/// What is kept comes at once; a node that takes longer is reported as silent.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Messages of other nodes that wait to be handed on.
const AHEAD_MAX: usize = 16;

/// What a request asks for.
#[derive(Clone)]
pub struct Wanted {
    request: proto::TailLogsRequest,
    level: Level,
    since_ms: i64,
    limit: usize,
}

impl Wanted {
    pub fn of(request: proto::TailLogsRequest, now_ms: i64) -> Result<Wanted, Status> {
        let limit = page::limit(request.limit, LIMIT_DEFAULT, LIMIT_MAX).map_err(invalid)?;
        let level = match request.level() {
            proto::LogLevel::Unspecified | proto::LogLevel::Debug => Level::Debug,
            proto::LogLevel::Info => Level::Info,
            proto::LogLevel::Warn => Level::Warn,
            proto::LogLevel::Error => Level::Error,
        };
        let since_ms = match request.age_ms {
            0 => i64::MIN,
            age => now_ms.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX)),
        };
        Ok(Wanted { request, level, since_ms, limit: limit as usize })
    }

    fn takes(&self, line: &Line) -> bool {
        line.level >= self.level
            && line.time_ms >= self.since_ms
            && self.request.partition.is_none_or(|partition| partition == line.partition)
    }
}

/// Answers from this node's own lines.
pub async fn here(
    node: &str,
    ring: Arc<LogRing>,
    wanted: Wanted,
    mut stream: Stream<proto::TailLogsResponse>,
) {
    let mut since = match wanted.request.from {
        Some(line) => ring.from(line),
        None => {
            let (lines, since) = ring.kept(wanted.limit, |line| wanted.takes(line));
            for message in chunks(node, lines, since) {
                if !stream.send(Ok(message)).await {
                    return;
                }
            }
            since
        }
    };
    if !wanted.request.follow {
        return;
    }
    loop {
        let goes_on = match news(node, &ring, &wanted, &mut since) {
            Some(message) => stream.send(Ok(message)).await,
            None => stream.pause(LOOK_EVERY).await,
        };
        if !goes_on {
            return;
        }
    }
}

/// What has come since then; none when nothing has.
fn news(node: &str, ring: &LogRing, wanted: &Wanted, since: &mut Since) -> Option<proto::TailLogsResponse> {
    let (lines, dropped, next) = ring.since(*since, LINES_PER_MESSAGE, |line| wanted.takes(line));
    *since = next;
    let message = message(node, lines, dropped, next);
    (!message.lines.is_empty() || dropped > 0).then_some(message)
}

/// At least one message, so that whoever waits for this node knows that it has answered.
fn chunks(node: &str, lines: Vec<Line>, next: Since) -> Vec<proto::TailLogsResponse> {
    let mut messages: Vec<_> =
        lines.chunks(LINES_PER_MESSAGE).map(|lines| message(node, lines.to_vec(), 0, next)).collect();
    if messages.is_empty() {
        messages.push(message(node, Vec::new(), 0, next));
    }
    messages
}

fn message(node: &str, lines: Vec<Line>, dropped: u64, next: Since) -> proto::TailLogsResponse {
    let shown = |line: Line| proto::LogLine {
        time_ms: line.time_ms,
        partition: line.partition,
        level: match line.level {
            Level::Debug => proto::LogLevel::Debug,
            Level::Info => proto::LogLevel::Info,
            Level::Warn => proto::LogLevel::Warn,
            Level::Error => proto::LogLevel::Error,
        }
        .into(),
        text: line.text,
        node: node.to_owned(),
    };
    proto::TailLogsResponse {
        lines: lines.into_iter().map(shown).collect(),
        dropped,
        node: node.to_owned(),
        trouble: String::new(),
        next: next.line(),
    }
}

/// Answers from every node.
pub async fn everywhere(
    forwarder: Forwarder,
    ring: Arc<LogRing>,
    wanted: Wanted,
    mut stream: Stream<proto::TailLogsResponse>,
) {
    let node = forwarder.node.clone();
    let mut gathering =
        Gathering { forwarder, wanted: wanted.clone(), next: HashMap::new(), followed: HashSet::new() };
    let Some((past, mut since)) = stream.unless_ended(gathering.past(&node, &ring)).await else { return };
    for message in past {
        if !stream.send(Ok(message)).await {
            return;
        }
    }
    if wanted.request.follow {
        gathering.follow(&node, &ring, &mut since, &mut stream).await;
    }
}

struct Gathering {
    forwarder: Forwarder,
    wanted: Wanted,
    /// By node: the line to go on from.
    next: HashMap<String, u64>,
    /// Nodes whose lines are coming.
    followed: HashSet<String>,
}

impl Gathering {
    /// The lines that are kept anywhere, the last ones of them in order of time, then who is silent.
    async fn past(&mut self, node: &Handle, ring: &LogRing) -> (Vec<proto::TailLogsResponse>, Since) {
        let (own, since) = ring.kept(self.wanted.limit, |line| self.wanted.takes(line));
        let mut lines = message(node.id(), own, 0, since).lines;
        let mut silent = Vec::new();
        let mut asked = tokio::task::JoinSet::new();
        for (id, address) in node.peers() {
            let request =
                proto::TailLogsRequest { local: true, follow: false, ..self.wanted.request.clone() };
            let forwarder = self.forwarder.clone();
            asked.spawn(async move {
                let kept = tokio::time::timeout(ANSWER_WAIT, kept_at(&forwarder, &address, request)).await;
                (id, kept.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))))
            });
        }
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((id, Ok((theirs, next)))) => {
                    lines.extend(theirs);
                    self.next.insert(id, next);
                }
                Ok((id, Err(status))) => silent.push(trouble(&id, &status)),
                Err(_) => {}
            }
        }
        lines.sort_by_key(|line| line.time_ms);
        let first = lines.len().saturating_sub(self.wanted.limit);
        let mut messages: Vec<_> = lines[first..]
            .chunks(LINES_PER_MESSAGE)
            .map(|lines| proto::TailLogsResponse { lines: lines.to_vec(), ..Default::default() })
            .collect();
        messages.extend(silent);
        (messages, since)
    }

    /// Hands on what comes, from here and from every node that is there or turns up.
    async fn follow(
        mut self,
        node: &Handle,
        ring: &LogRing,
        since: &mut Since,
        stream: &mut Stream<proto::TailLogsResponse>,
    ) {
        let (theirs, mut coming) = mpsc::channel(AHEAD_MAX);
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|looked| looked.elapsed() >= PEERS_EVERY) {
                looked = Some(Instant::now());
                for (id, address) in node.peers() {
                    if self.followed.insert(id.clone()) {
                        self.follow_node(id, address, stream.left(), theirs.clone());
                    }
                }
            }
            if let Some(message) = news(node.id(), ring, &self.wanted, since)
                && !stream.send(Ok(message)).await
            {
                return;
            }
            let next = tokio::time::timeout(LOOK_EVERY, coming.recv());
            match stream.unless_ended(next).await {
                None => return,
                // Nothing has come, and this sender keeps the channel open.
                Some(Err(_) | Ok(None)) => {}
                Some(Ok(Some((id, message)))) => {
                    if let Some(message) = message.as_ref().filter(|message| message.trouble.is_empty()) {
                        self.next.insert(id.clone(), message.next);
                    }
                    if message.as_ref().is_none_or(|message| !message.trouble.is_empty()) {
                        // It is asked again with the next look at who is there.
                        self.followed.remove(&id);
                    }
                    if let Some(message) = message
                        && !stream.send(Ok(message)).await
                    {
                        return;
                    }
                }
            }
        }
    }

    /// Reads what a node logs from now on, on a task of its own: it ends with the channel, that is, with
    /// the stream it is for. The last thing that comes of it is none, or the trouble it has met.
    fn follow_node(
        &self,
        id: String,
        address: String,
        left: Duration,
        theirs: mpsc::Sender<(String, Option<proto::TailLogsResponse>)>,
    ) {
        // Of a node that was not there before everything is new.
        let from = Some(self.next.get(&id).copied().unwrap_or_default());
        let request =
            proto::TailLogsRequest { local: true, follow: true, from, ..self.wanted.request.clone() };
        let forwarder = self.forwarder.clone();
        tokio::spawn(async move {
            let reading = async {
                let mut request = Request::new(request);
                request.set_timeout(left);
                let mut answers = client(&forwarder, &address).await?.tail(request).await?.into_inner();
                while let Some(message) = answers.message().await? {
                    let is_news = !message.lines.is_empty() || message.dropped > 0;
                    if is_news && theirs.send((id.clone(), Some(message))).await.is_err() {
                        return Ok(());
                    }
                }
                Ok::<(), Status>(())
            };
            let last = tokio::select! {
                ended = reading => ended.err().map(|status| trouble(&id, &status)),
                () = theirs.closed() => return,
            };
            // Nobody may be there any more to hear of it.
            let _ = theirs.send((id, last)).await;
        });
    }
}

async fn client(forwarder: &Forwarder, address: &str) -> Result<LogsClient<Peer>, Status> {
    Ok(LogsClient::new(forwarder.channel(address).await?))
}

/// The lines that a node has kept, and the number of the next one there.
async fn kept_at(
    forwarder: &Forwarder,
    address: &str,
    request: proto::TailLogsRequest,
) -> Result<(Vec<proto::LogLine>, u64), Status> {
    let mut answers = client(forwarder, address).await?.tail(request).await?.into_inner();
    let (mut lines, mut next) = (Vec::new(), 0);
    while let Some(message) = answers.message().await? {
        lines.extend(message.lines);
        next = message.next;
    }
    Ok((lines, next))
}

fn trouble(id: &str, status: &Status) -> proto::TailLogsResponse {
    proto::TailLogsResponse {
        node: id.to_owned(),
        trouble: format!("{id} does not answer ({}); its lines are missing", status.message()),
        ..proto::TailLogsResponse::default()
    }
}

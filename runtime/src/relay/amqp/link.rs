//! One connection with one channel that confirms: how it is made, written to and read from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::wire::{self, Arguments, Frame, Malformed, Name, Reader, Table};
use crate::config::failures::{CONNECTION_ERROR, UNAVAILABLE_ERROR};
use crate::ports::Landed;

/// The largest frame that this side wants, and the least that any side must take.
const FRAME_MAX: u32 = 128 << 10;
const FRAME_MIN: u32 = 4 << 10;
/// What a connection that says nothing for twice as long is: dead.
const HEARTBEAT_S: u16 = 10;
/// Publishes that wait to be written.
const QUEUE_MAX: usize = 256;
/// Of this side's only channel.
pub const CHANNEL: u16 = 1;
/// What a server closes a channel with that cannot take a message for what it is, such as one that is too large.
const PRECONDITION_FAILED: u16 = 406;

/// A connection that can be published to, until one of its tasks has ended.
#[derive(Clone)]
pub struct Link {
    publishes: mpsc::Sender<Publish>,
    shared: Arc<Shared>,
    /// As agreed; bytes.
    pub frame_max: u32,
}

struct Publish {
    frames: Vec<u8>,
    message_id: String,
    confirm: oneshot::Sender<Landed>,
}

#[derive(Default)]
struct Shared(Mutex<Waiting>);

/// What is published and not confirmed.
#[derive(Default)]
struct Waiting {
    /// By delivery tag.
    open: BTreeMap<u64, (String, oneshot::Sender<Landed>)>,
    /// Ids of messages that came back, and how often: one that was given up and published again may come back twice
    /// before one ack of both. `1 <= returned[id] <= ` the messages of that id in `open`.
    returned: HashMap<String, usize>,
    /// Ids of messages for one of which, and nobody knows which, the server has closed the channel.
    suspects: HashSet<String>,
    /// Why the connection is no more.
    broken: Option<String>,
}

impl Waiting {
    /// Whether a message of this id, which is acknowledged now, came back before.
    fn take_return(&mut self, id: &str) -> bool {
        let Some(times) = self.returned.get_mut(id) else { return false };
        *times -= 1;
        if *times == 0 {
            self.returned.remove(id);
        }
        true
    }
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Half = BufReader<ReadHalf<Box<dyn Stream>>>;

/// Agrees on the terms of a fresh connection; ends with a channel that can be published to.
pub async fn begin(stream: Box<dyn Stream>, vhost: &str, login: (&str, &str)) -> Result<Link, String> {
    let (reader, writer) = tokio::io::split(stream);
    let talk = Talk { reader: BufReader::new(reader), writer, frame_max: FRAME_MAX };
    talk.begin(vhost, login).await
}

/// A connection while its terms are agreed.
struct Talk {
    reader: Half,
    writer: WriteHalf<Box<dyn Stream>>,
    frame_max: u32,
}

impl Talk {
    async fn begin(mut self, vhost: &str, (user, password): (&str, &str)) -> Result<Link, String> {
        self.send(wire::PROTOCOL).await?;
        self.expect(wire::CONNECTION_START).await?;
        let able = Table::default()
            .flag("publisher_confirms")
            .flag("basic.nack")
            .flag("connection.blocked")
            .flag("authentication_failure_close");
        let client = Table::default()
            .text("product", b"tidemill")
            .text("version", env!("CARGO_PKG_VERSION").as_bytes())
            .table("capabilities", &able);
        let login = [b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat();
        let start = Arguments::of(wire::CONNECTION_START_OK).long(client.bytes()).short("PLAIN");
        self.send(&start.long(&login).short("en_US").frame(0)).await?;
        let tune = self.expect(wire::CONNECTION_TUNE).await?;
        let heartbeat_s = self.tune(&tune).await?;
        let open = Arguments::of(wire::CONNECTION_OPEN).short(vhost).short("").u8(0);
        self.send(&open.frame(0)).await?;
        self.expect(wire::CONNECTION_OPEN_OK).await?;
        self.send(&Arguments::of(wire::CHANNEL_OPEN).short("").frame(CHANNEL)).await?;
        self.expect(wire::CHANNEL_OPEN_OK).await?;
        self.send(&Arguments::of(wire::CONFIRM_SELECT).u8(0).frame(CHANNEL)).await?;
        self.expect(wire::CONFIRM_SELECT_OK).await?;
        let (publishes, queue) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        let frame_max = self.frame_max;
        let silence = Duration::from_secs(u64::from(heartbeat_s) * 2);
        let (writer, reader) = (self.writer, self.reader);
        let (answers, replies) = mpsc::channel(4);
        let for_writer = Arc::clone(&shared);
        let heartbeat = Duration::from_secs(u64::from(heartbeat_s)) / 2;
        tokio::spawn(async move { for_writer.write(writer, queue, replies, heartbeat).await });
        let for_reader = Arc::clone(&shared);
        tokio::spawn(async move {
            let why = for_reader.read(reader, frame_max, silence, &answers).await;
            for_reader.break_off(why);
        });
        Ok(Link { publishes, shared, frame_max })
    }

    /// Agrees on the least of both sides' terms; answers the heartbeat's pause, in seconds.
    async fn tune(&mut self, tune: &[u8]) -> Result<u16, String> {
        let read = |tune: &[u8]| -> Result<(u32, u16), Malformed> {
            let mut terms = Reader(tune);
            terms.u16()?;
            Ok((terms.u32()?, terms.u16()?))
        };
        let (frame_max, heartbeat_s) = read(tune).map_err(|error| error.to_string())?;
        let least = |theirs: u32, ours: u32| if theirs == 0 { ours } else { theirs.min(ours) };
        self.frame_max = least(frame_max, FRAME_MAX).max(FRAME_MIN);
        let heartbeat_s = least(heartbeat_s.into(), HEARTBEAT_S.into()) as u16;
        let ok = Arguments::of(wire::CONNECTION_TUNE_OK).u16(CHANNEL).u32(self.frame_max).u16(heartbeat_s);
        self.send(&ok.frame(0)).await?;
        Ok(heartbeat_s)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        };
        sent.await.map_err(|error| format!("the connection broke: {error}"))
    }

    /// Arguments of that method, which must come next.
    async fn expect(&mut self, wanted: Name) -> Result<Vec<u8>, String> {
        loop {
            let frame = read_frame(&mut self.reader, self.frame_max).await?;
            if frame.kind == wire::HEARTBEAT {
                continue;
            }
            let (name, arguments) = Reader::method(&frame.payload).map_err(|error| error.to_string())?;
            if name == wanted {
                return Ok(arguments.0.to_vec());
            }
            if let Some(why) = closed(name, arguments) {
                return Err(why);
            }
            return Err(Malformed("it answers something else").to_string());
        }
    }
}

/// What a server says when it closes a channel or a connection.
fn closed(name: Name, mut arguments: Reader<'_>) -> Option<String> {
    if name != wire::CONNECTION_CLOSE && name != wire::CHANNEL_CLOSE {
        return None;
    }
    let code = arguments.u16().unwrap_or_default();
    Some(format!("the server closed: {code} {}", arguments.short().unwrap_or_default()))
}

async fn read_frame(reader: &mut Half, frame_max: u32) -> Result<Frame, String> {
    let read = async {
        let mut head = [0; 7];
        reader.read_exact(&mut head).await?;
        let Ok((kind, channel, size)) = wire::frame_head(head, frame_max) else { return Ok(None) };
        let mut payload = vec![0; size];
        reader.read_exact(&mut payload).await?;
        let end = reader.read_u8().await?;
        Ok::<_, std::io::Error>(wire::is_frame_end(end).then_some(Frame { kind, channel, payload }))
    };
    match read.await {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(Malformed("a frame is out of shape").to_string()),
        Err(error) => Err(format!("the connection broke: {error}")),
    }
}

impl Link {
    /// Publishes a message, whose frames and id these are, and waits for what becomes of it.
    pub async fn publish(&self, frames: Vec<u8>, message_id: String) -> Landed {
        let (confirm, confirmed) = oneshot::channel();
        if self.publishes.send(Publish { frames, message_id, confirm }).await.is_err() {
            return self.shared.broken();
        }
        confirmed.await.unwrap_or_else(|_| self.shared.broken())
    }

    /// Ids of messages one of which has broken this connection; to the first who asks.
    pub fn suspects(&self) -> HashSet<String> {
        std::mem::take(&mut self.shared.lock().suspects)
    }

    pub fn is_whole(&self) -> bool {
        !self.publishes.is_closed() && self.shared.lock().broken.is_none()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self) -> Landed {
        let reason = self.lock().broken.clone().unwrap_or_else(|| "the connection broke".to_owned());
        gone(&reason)
    }

    /// The server has closed the channel for what a message is, and does not say which one: if only one waits, that
    /// will never be taken.
    fn refused(&self, why: &str) {
        let mut waiting = self.lock();
        // Before anybody is told, so that nobody goes on with this connection.
        waiting.broken.get_or_insert_with(|| why.to_owned());
        if waiting.open.len() > 1 {
            waiting.suspects = waiting.open.values().map(|(id, _)| id.clone()).collect();
            return;
        }
        for (_, (_, confirm)) in std::mem::take(&mut waiting.open) {
            // Whoever gave up waiting needs no answer.
            let _ = confirm.send(Landed::Permanent { reason: why.to_owned() });
        }
    }

    /// Everything that waits for a confirm will not get one.
    fn break_off(&self, why: String) {
        let mut waiting = self.lock();
        for (_, (_, confirm)) in std::mem::take(&mut waiting.open) {
            // Whoever gave up waiting needs no answer.
            let _ = confirm.send(gone(&why));
        }
        waiting.broken.get_or_insert(why);
    }

    /// Writes what is to be published, in order; delivery tags count from 1. `replies` are the reader's.
    async fn write(
        &self,
        mut writer: WriteHalf<Box<dyn Stream>>,
        mut queue: mpsc::Receiver<Publish>,
        mut replies: mpsc::Receiver<Vec<u8>>,
        heartbeat: Duration,
    ) {
        let mut tag = 0;
        let mut beat = tokio::time::interval(heartbeat.max(Duration::from_secs(1)));
        let why = loop {
            let frames = tokio::select! {
                publish = queue.recv() => match publish {
                    Some(Publish { frames, message_id, confirm }) => {
                        tag += 1;
                        self.lock().open.insert(tag, (message_id, confirm));
                        frames
                    }
                    None => break "nobody publishes any more".to_owned(),
                },
                reply = replies.recv() => match reply {
                    Some(reply) => reply,
                    // The reader has ended, and has said why.
                    None => break "the connection broke".to_owned(),
                },
                _ = beat.tick() => {
                    let mut frame = Vec::new();
                    wire::write_frame(&mut frame, wire::HEARTBEAT, 0, &[]);
                    frame
                }
            };
            let written = async {
                writer.write_all(&frames).await?;
                writer.flush().await
            };
            if let Err(error) = written.await {
                break format!("the connection broke: {error}");
            }
        };
        self.break_off(why);
    }

    /// Reads until the connection ends; answers why it did.
    async fn read(
        &self,
        mut reader: Half,
        frame_max: u32,
        silence: Duration,
        replies: &mpsc::Sender<Vec<u8>>,
    ) -> String {
        // The rest of a message that came back.
        let mut body_left = 0;
        loop {
            let Ok(frame) = tokio::time::timeout(silence, read_frame(&mut reader, frame_max)).await else {
                return format!("the server has said nothing for {} s", silence.as_secs());
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(why) => return why,
            };
            let outcome = match frame.kind {
                wire::METHOD => self.method(&frame),
                wire::HEADER => self.returned(&frame.payload, &mut body_left),
                wire::BODY => {
                    body_left = u64::saturating_sub(body_left, frame.payload.len() as u64);
                    Ok(None)
                }
                _ => Ok(None),
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(why)) => {
                    let reply = Arguments::of(wire::CONNECTION_CLOSE_OK).frame(0);
                    // The writer may have ended first.
                    let _ = replies.send(reply).await;
                    return why;
                }
                Err(malformed) => return malformed.to_string(),
            }
        }
    }

    /// Why the server has closed, if it has.
    fn method(&self, frame: &Frame) -> Result<Option<String>, Malformed> {
        let (name, mut arguments) = Reader::method(&frame.payload)?;
        match name {
            wire::BASIC_ACK | wire::BASIC_NACK => {
                let (tag, multiple) = (arguments.u64()?, arguments.u8()? & 1 == 1);
                self.confirm(tag, multiple, name == wire::BASIC_ACK);
            }
            wire::CONNECTION_BLOCKED => {
                tracing::warn!(reason = arguments.short()?, "the AMQP server takes no messages for now");
            }
            // The message follows in frames of its own, and its ack after it.
            wire::BASIC_RETURN => {}
            wire::CHANNEL_CLOSE if Reader(arguments.0).u16()? == PRECONDITION_FAILED => {
                let why = closed(name, arguments);
                why.iter().for_each(|why| self.refused(why));
                return Ok(why);
            }
            wire::CONNECTION_UNBLOCKED => tracing::info!("the AMQP server takes messages again"),
            _ => return Ok(closed(name, arguments)),
        }
        Ok(None)
    }

    fn returned(&self, payload: &[u8], body_left: &mut u64) -> Result<Option<String>, Malformed> {
        let (bytes, id) = wire::read_header(payload)?;
        *body_left = bytes;
        let mut waiting = self.lock();
        // No more often than they are under way, whatever the server sends.
        let under_way = waiting.open.values().filter(|(open, _)| *open == id).count();
        if under_way > 0 {
            let times = waiting.returned.entry(id).or_default();
            *times = under_way.min(*times + 1);
        }
        Ok(None)
    }

    fn confirm(&self, tag: u64, multiple: bool, ack: bool) {
        let mut waiting = self.lock();
        let open = match multiple {
            true => {
                let later = waiting.open.split_off(&tag.saturating_add(1));
                std::mem::replace(&mut waiting.open, later)
            }
            false => waiting.open.remove_entry(&tag).into_iter().collect(),
        };
        for (_, (id, confirm)) in open {
            let landed = if waiting.take_return(&id) {
                unavailable("the server returned it: no queue is bound for it")
            } else if ack {
                Landed::Delivered
            } else {
                unavailable("the server refused it (nack)")
            };
            // Whoever gave up waiting needs no answer.
            let _ = confirm.send(landed);
        }
    }
}

/// The connection is no more, so there will be no confirm.
fn gone(why: &str) -> Landed {
    Landed::Transient { reason: format!("{CONNECTION_ERROR}: {why}"), after: None }
}

/// The server has answered that it cannot, now.
fn unavailable(why: &str) -> Landed {
    Landed::Transient { reason: format!("{UNAVAILABLE_ERROR}: {why}"), after: None }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Properties;
    use super::*;

    fn open(shared: &Shared, tag: u64, id: &str) -> oneshot::Receiver<Landed> {
        let (confirm, confirmed) = oneshot::channel();
        shared.lock().open.insert(tag, (id.to_owned(), confirm));
        confirmed
    }

    #[tokio::test]
    async fn the_only_message_that_a_channel_can_be_closed_for_is_refused_and_of_several_none_is() {
        let close = |code| {
            let frame =
                Arguments::of(wire::CHANNEL_CLOSE).u16(code).short("too large").u16(60).u16(40).frame(1);
            // Without its head and its end.
            Frame { kind: wire::METHOD, channel: 1, payload: frame[7..frame.len() - 1].to_vec() }
        };
        for (code, ids, is_refused) in
            [(406, &["a"][..], true), (406, &["a", "b"], false), (404, &["a"], false)]
        {
            let shared = Shared::default();
            let confirmed: Vec<_> = (1..).zip(ids).map(|(tag, id)| open(&shared, tag, id)).collect();
            let why = shared.method(&close(code)).expect("well-formed").expect("it has closed");
            assert!(why.contains(&code.to_string()), "{why}");
            shared.break_off(why);
            let suspects = shared.lock().suspects.len();
            assert_eq!(suspects, if ids.len() > 1 { ids.len() } else { 0 }, "{code} {ids:?}");
            for confirmed in confirmed {
                let landed = confirmed.await.expect("it has landed");
                assert_eq!(
                    matches!(landed, Landed::Permanent { .. }),
                    is_refused,
                    "{code} {ids:?} {landed:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_message_that_came_back_twice_is_not_delivered_with_one_ack_of_both() {
        let shared = Shared::default();
        let [first, again] = [1, 2].map(|tag| open(&shared, tag, "a"));
        let header = Properties { message_id: Some("a".into()), ..Properties::default() }.header(0);
        // Once more than can be.
        for _ in 0..3 {
            shared.returned(&header, &mut 0).expect("a header");
        }
        shared.confirm(2, true, true);
        for confirmed in [first, again] {
            let landed = confirmed.await.expect("it has landed");
            assert!(matches!(&landed, Landed::Transient { .. }), "{landed:?}");
        }
        assert!(shared.lock().returned.is_empty(), "nothing of it is under way");
        let later = open(&shared, 3, "a");
        shared.confirm(3, false, true);
        assert_eq!(later.await, Ok(Landed::Delivered));
    }

    #[tokio::test]
    async fn confirms_are_told_apart_and_a_returned_message_is_not_delivered() {
        let shared = Shared::default();
        let open = |tag, id| open(&shared, tag, id);
        let (first, second, third, fourth) = (open(1, "a"), open(2, "b"), open(3, "c"), open(4, "d"));
        let header = Properties { message_id: Some("b".into()), ..Properties::default() }.header(0);
        shared.returned(&header, &mut 0).expect("a header");
        shared.confirm(2, true, true);
        assert!(shared.lock().returned.is_empty(), "its ack has come");
        shared.confirm(3, false, false);
        shared.break_off("gone".to_owned());
        assert_eq!(first.await, Ok(Landed::Delivered));
        for (confirmed, begins) in [
            (second, "InfraUnavailableError: the server returned it"),
            (third, "InfraUnavailableError: the server refused it (nack)"),
            (fourth, "InfraConnectionError: gone"),
        ] {
            match confirmed.await {
                Ok(Landed::Transient { reason, .. }) => assert!(reason.starts_with(begins), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

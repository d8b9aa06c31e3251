//! Answers that go on: bounded in number, and each ends at its caller's deadline, when the caller has gone,
//! or when the node stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::deadline;

/// Streams of a node at once, all services together.
const STREAMS_MAX: usize = 64;
/// Answers that wait for a caller to read them.
const AHEAD_MAX: usize = 4;
/// Of a stream whose caller names no deadline, or a later one.
const LONGEST: Duration = Duration::from_secs(3600);

#[derive(Clone)]
pub struct Streams {
    free: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// What a caller reads from.
pub type Answers<T> = ReceiverStream<Result<T, Status>>;

/// What its answers are written to, as long as it lives.
pub struct Stream<T> {
    answers: mpsc::Sender<Result<T, Status>>,
    until: Instant,
    stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Streams {
    pub fn new(stopping: watch::Receiver<bool>) -> Streams {
        Streams { free: Arc::new(Semaphore::new(STREAMS_MAX)), stopping }
    }

    /// Of a call that came with this metadata.
    pub fn open<T>(&self, metadata: &MetadataMap) -> Result<(Stream<T>, Answers<T>), Status> {
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{STREAMS_MAX} streams are open on this node already; end one, or ask another node"
            ))
        })?;
        let (answers, received) = mpsc::channel(AHEAD_MAX);
        let asked = deadline::timeout(metadata).unwrap_or(LONGEST).min(LONGEST);
        let until = Instant::now() + deadline::less_the_way_back(asked);
        let stream = Stream { answers, until, stopping: self.stopping.clone(), _permit: permit };
        Ok((stream, ReceiverStream::new(received)))
    }
}

impl<T> Stream<T> {
    /// Waits until the caller has room for it; false when the stream has ended.
    pub async fn send(&mut self, answer: Result<T, Status>) -> bool {
        tokio::select! {
            sent = self.answers.send(answer) => sent.is_ok(),
            () = ended(self.until, &mut self.stopping) => false,
        }
    }

    /// False when the stream has ended meanwhile.
    pub async fn pause(&mut self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.answers.closed() => false,
            () = ended(self.until, &mut self.stopping) => false,
        }
    }

    /// What of the caller's time is left.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// The answer, unless the stream ends first.
    pub async fn unless_ended<A>(&mut self, answer: impl Future<Output = A>) -> Option<A> {
        tokio::select! {
            answer = answer => Some(answer),
            () = self.answers.closed() => None,
            () = ended(self.until, &mut self.stopping) => None,
        }
    }
}

/// Returns then, or when the node stops.
pub(super) async fn ended(until: Instant, stopping: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep_until(until.into()) => {}
        // An error says that the server is gone, which ends the stream as well.
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    fn streams() -> (watch::Sender<bool>, Streams) {
        let (stop, stopping) = watch::channel(false);
        (stop, Streams::new(stopping))
    }

    #[tokio::test]
    async fn a_stream_ends_at_its_deadline_and_so_many_are_open_at_once() {
        let (_stop, streams) = streams();
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "50m".parse().expect("a value"));
        let (mut stream, mut answers) = streams.open::<u32>(&metadata).expect("the first");
        assert!(stream.send(Ok(1)).await);
        assert!(!stream.pause(Duration::from_secs(60)).await, "the deadline comes first");
        drop(stream);
        assert!(matches!(answers.next().await, Some(Ok(1))) && answers.next().await.is_none());

        let open = |_| streams.open::<u32>(&MetadataMap::new());
        let held: Vec<_> = (0..STREAMS_MAX).map(open).collect();
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(open(0).err().map(|status| status.code()), Some(tonic::Code::ResourceExhausted));
        drop(held);
        assert!(open(0).is_ok());
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_caller_goes_or_the_node_stops() {
        let (stop, streams) = streams();
        let (mut left, answers) = streams.open::<u32>(&MetadataMap::new()).expect("open");
        let (mut kept, _answers) = streams.open::<u32>(&MetadataMap::new()).expect("open");
        drop(answers);
        assert!(!left.pause(Duration::from_secs(60)).await && !left.send(Ok(1)).await);
        for ahead in 0..AHEAD_MAX {
            assert!(kept.send(Ok(ahead as u32)).await);
        }
        stop.send(true).expect("somebody listens");
        assert!(!kept.send(Ok(0)).await, "nobody reads, and the node stops");
        assert_eq!(kept.unless_ended(std::future::pending::<()>()).await, None);
    }
}

//! Letters from Kafka: each feed is a thread of its own with a consumer of its own, outside any group.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::feed::{self, FeedError, Scan};
use super::{Feed, Letters, Orders, Reading};
use crate::kafka::scan::TopicScan;
use crate::node::revision::Revision;
use crate::node::runtime::NodeRuntime;
use crate::ports::{SourceError, TopicRecord};
use crate::record::Offset;
use crate::store::StoreError;
use crate::task::TaskConfig;
use crate::task::redrive::LetterPage;

/// Pages that wait for their task.
const PAGES_MAX: usize = 2;
/// Before letters that could not be read are tried again.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// The letters of one revision of a deployment.
pub struct KafkaLetters {
    node: Arc<NodeRuntime>,
    incarnation: String,
    config: Arc<TaskConfig>,
}

impl KafkaLetters {
    pub fn new(node: &Arc<NodeRuntime>, revision: &Revision) -> KafkaLetters {
        KafkaLetters {
            node: Arc::clone(node),
            incarnation: revision.registered.incarnation.clone(),
            config: Arc::new(revision.task_config()),
        }
    }
}

impl Letters for KafkaLetters {
    fn orders(&mut self) -> Orders {
        self.node.control_log.view().redrives(&self.incarnation)
    }

    fn open(&mut self, reading: Reading) -> Box<dyn Feed> {
        let (pages, inbox) = bounded(PAGES_MAX);
        let wanted = Arc::new(());
        let job = Job {
            node: Arc::clone(&self.node),
            config: Arc::clone(&self.config),
            reading,
            pages,
            wanted: Arc::downgrade(&wanted),
        };
        let name = format!("letters-{}", job.reading.partition);
        let spawned = std::thread::Builder::new().name(name).spawn(move || job.run());
        let failed = spawned.err().map(|error| format!("no thread to read letters on: {error}"));
        Box::new(KafkaFeed { inbox, failed, _wanted: wanted })
    }
}

struct KafkaFeed {
    inbox: Receiver<Result<LetterPage, String>>,
    failed: Option<String>,
    /// The thread ends when this is gone.
    _wanted: Arc<()>,
}

impl Feed for KafkaFeed {
    fn next(&mut self) -> Option<Result<LetterPage, String>> {
        if let Some(reason) = self.failed.take() {
            return Some(Err(reason));
        }
        self.inbox.try_recv().ok()
    }
}

/// What the thread of a feed has.
struct Job {
    node: Arc<NodeRuntime>,
    config: Arc<TaskConfig>,
    reading: Reading,
    pages: Sender<Result<LetterPage, String>>,
    wanted: Weak<()>,
}

impl Job {
    fn is_wanted(&self) -> bool {
        self.wanted.strong_count() > 0
    }

    fn run(mut self) {
        while self.is_wanted() {
            let reason = match self.read() {
                Ok(()) => return,
                // Its task is on its way elsewhere.
                Err(FeedError::Store(StoreError::Closed)) => return,
                Err(FeedError::Kafka(SourceError::Unavailable(reason) | SourceError::Fatal(reason))) => {
                    reason
                }
                Err(error) => {
                    // If nobody hears it, nobody is there any more.
                    let _ = self.pages.send(Err(error.to_string()));
                    return;
                }
            };
            tracing::warn!(
                topic = self.reading.order.entry.topic,
                partition = self.reading.partition,
                reason,
                "cannot read letters"
            );
            std::thread::park_timeout(AGAIN_PAUSE);
        }
    }

    fn read(&mut self) -> Result<(), FeedError> {
        let entry = &self.reading.order.entry;
        let id = self.node.admin.topic(&entry.topic).map_err(|error| match error {
            crate::kafka::admin::AdminError::Unavailable { .. } => {
                SourceError::Unavailable(error.to_string())
            }
            error => SourceError::Refused(error.to_string()),
        })?;
        if id.id.to_string() != entry.topic_id {
            let reason =
                format!("topic {} was deleted and made again: its letters are other ones", entry.topic);
            return Err(SourceError::Refused(reason).into());
        }
        let scan = TopicScan::new(&self.node.kafka, &entry.topic, self.reading.partition)?;
        let mut scan = WantedScan { scan, wanted: self.wanted.clone() };
        let mut reached = self.reading.from;
        let pages = &self.pages;
        let outcome = feed::run(&self.reading, &self.config, &mut scan, &mut |page| {
            let next = page.next;
            let sent = pages.send(Ok(page)).is_ok();
            reached = next.unwrap_or(reached).max(reached);
            sent
        });
        // What has been sent is not sent again when reading goes on.
        self.reading.from = reached;
        outcome
    }
}

/// Stops when nobody wants letters any more.
struct WantedScan {
    scan: TopicScan,
    wanted: Weak<()>,
}

impl Scan for WantedScan {
    fn start(&mut self) -> Result<Offset, SourceError> {
        Ok(self.scan.bounds()?.0)
    }

    fn scan(
        &mut self,
        range: (Offset, Offset),
        apply: &mut dyn FnMut(TopicRecord) -> bool,
    ) -> Result<(), SourceError> {
        let wanted = &self.wanted;
        self.scan.scan(range, &mut |record| wanted.strong_count() > 0 && apply(record))
    }
}

//! What to do with which frame.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Request,
    Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It vanishes; the connection goes on.
    Drop,
    /// It vanishes with its connection.
    Close,
    /// It arrives this much later, and so does what is behind it.
    Delay(Duration),
    /// A request arrives twice: a second time on a connection of its own.
    Duplicate,
    /// It, and what is behind it, waits for [`super::Handle::release`]. The broker's end of the
    /// connection stays open meanwhile, whatever the client does.
    Hold {
        /// The client's end is closed at once, as if the network had lost the connection.
        hang_up: bool,
    },
}

/// Applies an action to some frames of one kind.
#[derive(Debug, Clone)]
pub struct Rule {
    pub api: i16,
    pub direction: Direction,
    /// Only requests that hold these bytes near their beginning (a client's, a transaction's or a
    /// topic's id), and their responses. Empty is any.
    pub about: Vec<u8>,
    /// So many frames of the kind pass first.
    pub after: u32,
    /// Then the action is applied so often.
    pub times: u32,
    pub action: Action,
}

/// A frame on its way, without its length.
#[derive(Debug)]
pub struct Frame {
    pub direction: Direction,
    pub request: Request,
    pub correlation: i32,
    pub bytes: Vec<u8>,
}

/// What is remembered of a request until its response is through.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub api: i16,
    /// Its first bytes.
    pub head: Vec<u8>,
}

impl Request {
    fn is_about(&self, bytes: &[u8]) -> bool {
        bytes.is_empty() || self.head.windows(bytes.len()).any(|window| window == bytes)
    }
}

/// A rule in force.
pub struct Active {
    pub rule: Rule,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// Frames of the rule's kind so far.
    seen: u32,
    hits: u32,
    ended: bool,
    released: bool,
    /// The broker's answer to what was held.
    answer: Option<Vec<u8>>,
}

impl Active {
    pub fn new(rule: Rule) -> Active {
        Active { rule, progress: Mutex::default(), changed: Condvar::new() }
    }

    /// Counts the frame if it is of the rule's kind; true if the action is to be applied to it.
    pub fn wants(&self, frame: &Frame) -> bool {
        let kind = (frame.request.api, frame.direction);
        if (self.rule.api, self.rule.direction) != kind || !frame.request.is_about(&self.rule.about) {
            return false;
        }
        let mut progress = lock(&self.progress);
        progress.seen += 1;
        let applies = !progress.ended && progress.seen > self.rule.after && progress.hits < self.rule.times;
        progress.hits += u32::from(applies);
        applies
    }

    pub fn hits(&self) -> u32 {
        lock(&self.progress).hits
    }

    pub fn end(&self) {
        lock(&self.progress).ended = true;
    }

    pub fn release(&self, wait: Duration) -> Option<Vec<u8>> {
        let mut progress = lock(&self.progress);
        progress.released = true;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(progress, wait, |progress| progress.answer.is_none());
        waited.ok()?.0.answer.take()
    }

    /// Waits until the test releases what is held.
    pub fn wait_released(&self) {
        let held = self.changed.wait_while(lock(&self.progress), |progress| !progress.released);
        drop(held);
    }

    pub fn answered(&self, answer: &[u8]) {
        lock(&self.progress).answer = Some(answer.to_vec());
        self.changed.notify_all();
    }

    /// Waits until the answer to what was held is here, so that its connection lives that long.
    pub fn wait_answered(&self, wait: Duration) {
        let progress = lock(&self.progress);
        let waited = self.changed.wait_timeout_while(progress, wait, |progress| progress.answer.is_none());
        drop(waited);
    }
}

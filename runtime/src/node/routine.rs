//! A thread that does something now and then until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub struct Routine {
    name: &'static str,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Routine {
    /// Does `work` every so often, the first time after one pause.
    pub fn start(
        name: &'static str,
        every: Duration,
        mut work: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Routine> {
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            loop {
                std::thread::park_timeout(every);
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                work();
            }
        })?;
        Ok(Routine { name, stopping, thread: Some(thread) })
    }

    /// Returns when the thread has ended.
    pub fn stop(mut self) {
        self.tell();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(thread = self.name, "a thread of the node panicked");
        }
    }

    fn tell(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

/// Does not wait: the thread may be asking somebody who does not answer.
impl Drop for Routine {
    fn drop(&mut self) {
        self.tell();
    }
}

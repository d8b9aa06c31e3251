//! What is to end on this node: its workers stop on a thread of their own, and a start that was given up comes to
//! its end on the one that it has.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use super::start::Start;
use super::{HANGS_AFTER, Place, Retry, lock};
use crate::node::deployment::{Leave, words};
use crate::node::site::{Running, Site};

pub(in crate::node) struct Ending<S: Site> {
    /// That stops what ran; none if nothing did.
    workers: Option<JoinHandle<()>>,
    /// Given up.
    start: Option<Start<S>>,
    /// What is to be tried again then; none if nothing is wanted here any more.
    then: Option<Retry>,
    /// The deployment is to be forgotten then: it writes down what it does until it has ended.
    pub(in crate::node) is_of_the_deleted: bool,
    since: Instant,
    /// The log says that it hangs.
    is_told: bool,
}

impl<S: Site> Ending<S> {
    /// Of what runs; `then` is to be tried again.
    pub(super) fn of_running(
        name: &str,
        running: S::Running,
        leave: Leave,
        then: Option<Retry>,
    ) -> Ending<S> {
        Ending::new(stop(name, running, leave), None, then)
    }

    /// Of a start that was given up, and of what ran before it.
    pub(super) fn of_start(start: Start<S>, former: Option<Ending<S>>) -> Ending<S> {
        Ending::new(former.and_then(|former| former.workers), Some(start), None)
    }

    fn new(workers: Option<JoinHandle<()>>, start: Option<Start<S>>, then: Option<Retry>) -> Ending<S> {
        Ending { workers, start, then, is_of_the_deleted: false, since: Instant::now(), is_told: false }
    }

    /// This is to be tried again once it is over.
    pub(super) fn then_try(self, retry: Retry) -> Ending<S> {
        Ending { then: Some(retry), ..self }
    }

    /// Nothing is wanted here any more.
    pub(super) fn given_up(self) -> Ending<S> {
        Ending { then: None, ..self }
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.then.is_none()
    }

    /// A start that was given up has not ended.
    pub(super) fn has_a_start(&self) -> bool {
        self.start.is_some()
    }

    /// It should have ended long ago. Not if nothing but its start is left, which may wait for the compiler.
    pub(super) fn hangs(&self) -> bool {
        let may_compile = self.start.as_ref().is_some_and(Start::takes_a_turn);
        self.since.elapsed() >= HANGS_AFTER && !(may_compile && self.has_stopped())
    }

    /// No workers are left of it.
    fn has_stopped(&self) -> bool {
        self.workers.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// That it hangs, if it does, and what it waits for. The log has it the first time.
    pub(super) fn tell_hanging(&mut self, name: &str) -> Option<String> {
        if !self.hangs() {
            return None;
        }
        let waits_for = match &self.start {
            Some(start) if !start.takes_a_turn() => start.does().0,
            Some(_) | None => "its workers, which commit or are in a call of the handler",
        };
        let waited_s = self.since.elapsed().as_secs();
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::error!(deployment = name, waited_s, waits_for, "it does not end");
        }
        Some(format!("what is here of it was to end {waited_s} s ago and waits for {waits_for}"))
    }

    /// As [`Place::goes_on`].
    pub(super) fn goes_on(&mut self, name: &str) -> bool {
        let goes_on = self.is_told && !self.hangs();
        if goes_on {
            self.is_told = false;
            tracing::info!(deployment = name, "its end goes on after all");
        }
        goes_on
    }

    /// True once nothing of it is left. What a start brings that was given up ends as well.
    pub(super) fn is_over(&mut self, site: &S, name: &str) -> bool {
        if let Some(start) = self.start.take_if(|start| start.is_over(site))
            && let Place::Up(running, _) = start.arrive(site)
        {
            tracing::info!(deployment = name, "not wanted any more; stopping");
            self.workers = stop(name, running, Leave::All);
        }
        self.start.is_none() && self.has_stopped()
    }

    /// What is to be tried again, now that it is over.
    pub(super) fn end(self, site: &S, name: &str) -> Option<Retry> {
        if let Some(thread) = self.workers
            && let Err(panic) = thread.join()
        {
            tracing::error!(deployment = name, reason = words(&*panic), "its stop panicked");
        }
        if self.is_told {
            let waited_s = self.since.elapsed().as_secs();
            tracing::info!(deployment = name, waited_s, "it has ended after all");
        }
        if self.then.is_none() {
            site.set_trouble(name, None);
        }
        if self.is_of_the_deleted {
            site.forget(name);
        }
        self.then
    }

    /// As if it had been given up long ago.
    #[cfg(test)]
    pub(super) fn grow_old(&mut self) {
        self.since = super::long_ago();
        if let Some(start) = &mut self.start {
            start.grow_old();
        }
    }
}

/// Stops what runs on a thread of its own; on this one, if there is none to be had.
fn stop<R: Running>(name: &str, running: R, leave: Leave) -> Option<JoinHandle<()>> {
    // Whoever comes to it takes it, for a thread that does not start drops what it was to do.
    let running = Arc::new(Mutex::new(Some(running)));
    let work = move || {
        let running = lock(&running).take();
        if let Some(running) = running {
            running.stop(leave);
        }
    };
    match std::thread::Builder::new().name(format!("stop-{name}")).spawn(work.clone()) {
        Ok(thread) => Some(thread),
        Err(error) => {
            tracing::warn!(deployment = name, %error, "no thread to stop it on; everything else waits");
            work();
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fake_site::{FakeSite, registered, wait_until};

    #[test]
    fn what_hangs_says_what_it_waits_for() {
        let registered = registered();
        for (held, waits_for) in [
            ("prepare a", "its start, which compiles"),
            ("start a", "its start, which stops what ran before"),
            ("leave a", "its workers"),
        ] {
            let site = FakeSite::default();
            site.hold(held);
            let mut place: Place<FakeSite> = match held {
                "leave a" => Place::Up(site.start(registered.clone(), None).expect("it starts"), None),
                _ => Start::begin(&site, None, &registered, &Arc::default()),
            };
            wait_until("it is at that", || held == "leave a" || site.begun(held) > 0);
            let mut ending = place.given_up("a").expect("it runs, or is about to");
            assert_eq!(ending.tell_hanging("a"), None, "it has hardly begun");
            ending.grow_old();
            assert!(ending.tell_hanging("a").is_some_and(|said| said.contains(waits_for)), "{held}");
            place = Place::Ending(ending);
            assert!(!place.is_moving() && place.has_lost_a_start() == (held != "leave a"));
            site.release(held);
            wait_until("it is over", || place.is_over(&site, "a"));
        }
    }

    #[test]
    fn a_start_that_was_given_up_and_may_wait_for_the_compiler_does_not_hang_but_what_ran_before_it_may() {
        let (registered, site) = (registered(), FakeSite::default());
        ["prepare a", "leave a"].iter().for_each(|held| site.hold(held));
        let former: Place<FakeSite> =
            Place::Up(site.start(registered.clone(), None).expect("it starts"), None);
        let place = Start::begin(&site, Some(former), &registered, &Arc::default());
        let mut ending = place.given_up("a").expect("it runs, and its successor is about to");
        ending.since = super::super::long_ago();
        assert!(ending.tell_hanging("a").is_some_and(|said| said.contains("its workers")));
        assert!(!ending.goes_on("a"));
        site.release("leave a");
        wait_until("its workers have stopped", || ending.has_stopped());
        assert_eq!(ending.tell_hanging("a"), None, "it is being made ready");
        assert!(ending.goes_on("a") && !ending.goes_on("a"), "said once");
        ending.grow_old();
        assert!(ending.tell_hanging("a").is_some_and(|said| said.contains("its start, which compiles")));
        site.release("prepare a");
        wait_until("it is over", || ending.is_over(&site, "a"));
    }
}

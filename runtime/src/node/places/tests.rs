//! A node of a fleet whose registry changes, on a site where nothing happens but what is told.

use std::time::Instant;

use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::{DeleteEntry, DeployEntry, PauseEntry, ResetEntry};

use super::*;
use crate::node::fake_site::{FakeSite, PATIENCE};
use crate::node::proposal::proposal;
use crate::node::registry::Outcome;

/// A registry that changes, and what it was at the last look.
#[derive(Default)]
struct Fleet {
    former: Registry,
    now: Registry,
}

impl Fleet {
    fn deploy(&mut self, name: &str, incarnation: &str) {
        let (name, incarnation) = (name.to_owned(), incarnation.to_owned());
        let expected_revision = self.now.revision(&name);
        let deploy = DeployEntry { name, expected_revision, incarnation, ..DeployEntry::default() };
        self.apply(Entry::Deploy(deploy));
    }

    fn pause(&mut self, name: &str, paused: bool) {
        let (name, expected_revision) = (name.to_owned(), self.now.revision(name));
        let pause = PauseEntry { name, expected_revision, paused, ..PauseEntry::default() };
        self.apply(Entry::Pause(pause));
    }

    fn reset(&mut self, name: &str, incarnation: &str) {
        let (name, incarnation) = (name.to_owned(), incarnation.to_owned());
        let expected_revision = self.now.revision(&name);
        let reset = ResetEntry { name, expected_revision, incarnation, ..ResetEntry::default() };
        self.apply(Entry::Reset(reset));
    }

    fn delete(&mut self, name: &str, keep_state: bool) {
        let (name, expected_revision) = (name.to_owned(), self.now.revision(name));
        let delete = DeleteEntry { name, expected_revision, keep_state, ..DeleteEntry::default() };
        self.apply(Entry::Delete(delete));
    }

    fn apply(&mut self, entry: Entry) {
        let outcome = self.now.apply(self.now.next, 1, &proposal(entry));
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }

    fn look(&mut self) -> Vec<String> {
        let former = std::mem::replace(&mut self.former, self.now.clone());
        gone(&former, &self.now).into_iter().map(str::to_owned).collect()
    }
}

#[test]
fn what_has_ended_is_known_from_the_registry_whether_it_ran_or_not() {
    let mut fleet = Fleet::default();
    for (name, incarnation) in [("a", "a1"), ("b", "b1"), ("c", "c1"), ("d", "d1")] {
        fleet.deploy(name, incarnation);
    }
    assert!(fleet.look().is_empty());
    fleet.deploy("a", "");
    fleet.pause("b", true);
    fleet.pause("c", true);
    assert!(fleet.look().is_empty(), "another version is the same life, and so is a pause");
    fleet.delete("b", false);
    fleet.reset("c", "c2");
    fleet.delete("d", true);
    assert_eq!(fleet.look(), ["b", "c", "d"]);
    assert!(fleet.look().is_empty(), "once");
    // Between two looks.
    fleet.delete("a", false);
    fleet.deploy("a", "a2");
    fleet.deploy("e", "e1");
    fleet.delete("e", false);
    assert_eq!(fleet.look(), ["a"]);
}

/// As a site is told to hold it.
fn prepare(name: &str) -> String {
    format!("prepare {name}")
}

/// A node of the fleet, that somebody looks after.
struct Node {
    fleet: Fleet,
    site: FakeSite,
    places: Places<FakeSite>,
    /// It neither drains nor stops.
    is_wanted: bool,
    ended: Vec<Life>,
}

impl Node {
    fn new() -> Node {
        let site = FakeSite::default();
        let places = Places::new(site.clone(), Arc::default());
        Node { fleet: Fleet::default(), site, places, is_wanted: true, ended: Vec::new() }
    }

    /// On which these are up.
    fn with(names: &[&str]) -> Node {
        let mut node = Node::new();
        names.iter().for_each(|name| node.fleet.deploy(name, &format!("{name}1")));
        node.look_until("all are up", |node| names.iter().all(|name| node.is_up(name)));
        node
    }

    /// On which `a` is up, and its next revision is made ready until that is released.
    fn with_successor() -> Node {
        let mut node = Node::with(&["a"]);
        node.site.hold("prepare a");
        node.fleet.deploy("a", "");
        node.look_until("its successor is made ready", |node| node.site.begun("prepare a") == 2);
        node
    }

    /// Takes these up, each of which is made ready until that is released.
    fn begin(&mut self, names: &[String]) {
        for name in names {
            self.site.hold(&prepare(name));
            self.fleet.deploy(name, "i");
        }
        let all_begun = |node: &Node| names.iter().all(|name| node.site.begun(&prepare(name)) == 1);
        self.look_until("it is their turn", all_begun);
    }

    fn look(&mut self) {
        let view = Arc::new(self.fleet.now.clone());
        self.ended.extend(self.places.look(view, self.is_wanted));
    }

    fn look_until(&mut self, what: &str, holds: impl Fn(&Node) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        self.look();
        while !holds(self) {
            assert!(Instant::now() < deadline, "not {what}: {:?}", self.site.all_begun());
            std::thread::yield_now();
            self.look();
        }
    }

    fn is_up(&self, name: &str) -> bool {
        matches!(self.places.by_name.get(name), Some(Place::Up(..)))
    }

    fn is_gone(&self, name: &str) -> bool {
        !self.places.by_name.contains_key(name)
    }
}

#[test]
fn a_stop_that_takes_its_time_holds_up_nobody_but_what_follows_it() {
    let mut node = Node::with(&["a"]);
    node.site.hold("leave a");
    node.fleet.pause("a", true);
    node.look_until("it is stopped", |node| node.site.begun("leave a") == 1);
    node.fleet.pause("a", false);
    node.fleet.deploy("b", "b1");
    node.look_until("another is up", |node| node.is_up("b"));
    assert_eq!(node.site.begun("prepare a"), 1, "it has not ended");
    node.site.release("leave a");
    node.look_until("it is up again", |node| node.is_up("a"));
    assert_eq!(node.site.begun("start a"), 2);
}

#[test]
fn inputs_that_have_changed_end_it_beside_and_start_it_again() {
    let mut node = Node::with(&["a", "b"]);
    let revision = node.fleet.now.revision("a");
    let finding = |reaction| Finding { deployment: "a".into(), revision, reaction };
    node.places.react(finding(Reaction::Rejoin));
    assert!(node.site.begun("rejoin a") == 1 && node.is_up("a"));
    let stop = Reaction::Stop("no topic".into());
    let table = [(Reaction::Restart, "stop a", None), (stop, "leave a", Some("no topic"))];
    for (reaction, how, why) in table {
        let starts = node.site.begun("start a");
        node.site.hold(how);
        node.places.react(finding(reaction));
        node.look_until("it is stopped", |node| node.site.begun(how) == 1);
        node.look();
        assert!(node.is_up("b") && node.site.begun("prepare a") == starts);
        assert_eq!(node.site.trouble("a").as_deref(), why);
        node.site.release(how);
        node.look_until("it is up again", |node| node.is_up("a"));
        assert_eq!((node.site.begun("start a"), node.site.trouble("a")), (starts + 1, None));
    }
    let old = Finding { deployment: "a".into(), revision: revision - 1, reaction: Reaction::Restart };
    node.places.react(old);
    assert!(node.is_up("a"), "it has changed itself meanwhile");
}

#[test]
fn what_is_deleted_is_forgotten_once_it_has_ended_and_its_name_begins_another_life_then() {
    let mut node = Node::with(&["a"]);
    node.site.hold("leave a");
    node.fleet.delete("a", false);
    node.fleet.deploy("a", "a2");
    node.look_until("it is stopped", |node| node.site.begun("leave a") == 1);
    node.look();
    assert!(node.ended.is_empty() && node.site.begun("forget a") == 0);
    node.site.release("leave a");
    node.look_until("the other life is up", |node| node.is_up("a"));
    assert_eq!(node.ended, [("a".to_owned(), "a1".to_owned())]);
    let begun = ["prepare a", "start a", "leave a", "forget a", "prepare a", "start a"];
    assert_eq!(node.site.all_begun(), begun);
}

#[test]
fn what_is_deleted_while_it_is_not_here_is_forgotten_at_once() {
    let mut node = Node::with(&["a"]);
    node.fleet.pause("a", true);
    node.look_until("it has ended", |node| node.is_gone("a"));
    node.fleet.delete("a", false);
    node.look();
    assert_eq!((node.site.begun("forget a"), node.ended.len()), (1, 1));
}

#[test]
fn a_start_that_is_given_up_takes_nothing_over_and_what_it_brings_all_the_same_is_stopped() {
    for (held, stops) in [("prepare a", 0), ("start a", 1)] {
        let mut node = Node::new();
        node.site.hold(held);
        node.fleet.deploy("a", "a1");
        node.look_until("it is on its way", |node| node.site.begun(held) == 1);
        node.fleet.pause("a", true);
        node.look();
        node.site.release(held);
        node.look_until("nothing of it is left", |node| node.is_gone("a"));
        assert_eq!((node.site.begun("start a"), node.site.begun("leave a")), (stops, stops), "{held}");
    }
}

#[test]
fn what_runs_while_its_successor_is_made_ready_is_stopped_at_once_when_both_are_given_up() {
    let mut node = Node::with_successor();
    node.fleet.pause("a", true);
    node.look_until("it is stopped", |node| node.site.begun("leave a") == 1);
    assert!(!node.is_gone("a"), "the start is waited for");
    node.site.release("prepare a");
    node.look_until("nothing of it is left", |node| node.is_gone("a"));
    assert_eq!(node.site.begun("start a"), 1);
}

#[test]
fn a_worker_that_panics_ends_its_deployment_beside_and_says_when_it_starts_again() {
    let mut node = Node::with(&["a", "b"]);
    node.site.hold("stop a");
    node.site.break_worker("a");
    node.look_until("it is stopped", |node| node.site.begun("stop a") == 1);
    assert!(node.site.trouble("a").is_some_and(|trouble| trouble.ends_with("it starts again in 1 s")));
    node.look();
    assert!(node.is_up("b") && node.site.begun("prepare a") == 1, "it has not ended");
    node.site.release("stop a");
    node.look_until("it has ended", |node| !node.places.by_name["a"].is_moving());
}

#[test]
fn a_worker_that_panics_while_its_successor_is_made_ready_is_noticed_at_once() {
    let mut node = Node::with_successor();
    node.site.hold("stop a");
    node.site.break_worker("a");
    node.look_until("it is stopped", |node| node.site.begun("stop a") == 1);
    let trouble = "a worker of revision 1 panicked: see the node's log; revision 2 is next";
    assert_eq!(node.site.trouble("a").as_deref(), Some(trouble));
    node.site.release("prepare a");
    node.look();
    assert!(node.site.begun("start a") == 1, "it waits");
    assert!(matches!(node.places.by_name["a"], Place::Starting(_)));
    node.site.release("stop a");
    node.look_until("the successor is up", |node| node.is_up("a"));
    assert_eq!((node.site.begun("start a"), node.site.trouble("a")), (2, None));
}

#[test]
fn a_deployment_that_broke_while_its_successor_was_made_ready_is_waited_for_when_both_are_given_up() {
    let mut node = Node::with_successor();
    node.site.hold("stop a");
    node.site.break_worker("a");
    node.look_until("it is stopped", |node| node.site.begun("stop a") == 1);
    node.is_wanted = false;
    node.look();
    node.site.release("prepare a");
    node.look_until("the start has ended", |node| !node.places.by_name["a"].has_lost_a_start());
    assert!(!node.places.is_given_away, "its workers have not");
    node.site.release("stop a");
    node.look_until("all has ended", |node| node.places.is_given_away);
    assert_eq!(node.site.begun("start a"), 1);
}

#[test]
fn a_version_that_waits_for_the_stop_of_the_one_before_takes_nobodys_turn() {
    let names: Vec<String> = (0..STARTS_AT_ONCE).map(|number| format!("n{number}")).collect();
    let mut node = Node::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let stop = |name: &String| format!("stop {name}");
    for name in &names {
        node.site.hold(&stop(name));
        node.fleet.deploy(name, "");
    }
    node.look_until("all wait", |node| names.iter().all(|name| node.site.begun(&stop(name)) == 1));
    node.fleet.deploy("late", "i");
    node.look_until("another is up", |node| node.is_up("late"));
    names.iter().for_each(|name| node.site.release(&stop(name)));
    let starts = |node: &Node, name: &String| node.site.begun(&format!("start {name}"));
    let is_next = |node: &Node, name: &String| node.is_up(name) && starts(node, name) == 2;
    node.look_until("the next versions are up", |node| names.iter().all(|name| is_next(node, name)));
}

#[test]
fn starts_that_were_given_up_and_hang_take_nobodys_turn_until_there_are_too_many() {
    let mut node = Node::new();
    let names: Vec<String> = (0..LOST_STARTS_MAX).map(|number| format!("n{number}")).collect();
    for turn in names.chunks(STARTS_AT_ONCE) {
        node.begin(turn);
        turn.iter().for_each(|name| node.fleet.pause(name, true));
        node.look();
    }
    node.fleet.deploy("late", "i");
    node.look();
    let trouble = node.site.trouble("late").expect("it is told why");
    assert!(node.is_gone("late") && trouble.starts_with("64 starts on this node do not end"), "{trouble}");
    let is_told = |node: &mut Node| {
        node.look();
        node.site.trouble("late").is_some()
    };
    node.fleet.pause("late", true);
    assert!(!is_told(&mut node), "it is not to be begun");
    node.fleet.pause("late", false);
    assert!(is_told(&mut node));
    node.is_wanted = false;
    assert!(!is_told(&mut node), "nothing is");
    node.is_wanted = true;
    assert!(is_told(&mut node));
    node.site.release(&prepare(&names[0]));
    node.look_until("there is room for it", |node| node.is_up("late"));
    assert_eq!(node.site.trouble("late"), None);
    names.iter().for_each(|name| node.site.release(&prepare(name)));
    node.look_until("all have ended", |node| names.iter().all(|name| node.is_gone(name)));
}

#[test]
fn starts_that_hang_give_their_turns_back_and_start_all_the_same_once_they_can() {
    let mut node = Node::new();
    let names: Vec<String> = (0..STARTS_AT_ONCE).map(|number| format!("n{number}")).collect();
    node.begin(&names);
    node.fleet.deploy("late", "i");
    node.look();
    assert_eq!((node.site.begun("prepare late"), node.places.tell_hanging()), (0, 0), "it waits");
    node.places.by_name.values_mut().for_each(Place::grow_old);
    node.look_until("another is up", |node| node.is_up("late"));
    assert_eq!(node.places.tell_hanging(), STARTS_AT_ONCE);
    let trouble = node.site.trouble("n0").expect("it is told");
    assert!(trouble.contains("does not start") && trouble.contains("compiles the module"), "{trouble}");
    node.site.hold("start n0");
    names.iter().for_each(|name| node.site.release(&prepare(name)));
    node.look_until("it is ready", |node| node.site.begun("start n0") == 1);
    node.places.tell_hanging();
    assert_eq!(node.site.trouble("n0"), None, "it goes on");
    node.site.release("start n0");
    node.look_until("all are up", |node| names.iter().all(|name| node.is_up(name)));
    assert!(names.iter().all(|name| node.site.trouble(name).is_none()));
    assert_eq!(node.places.tell_hanging(), 0);
}

#[test]
fn with_too_many_starts_that_hang_the_others_are_told_which_they_are() {
    let mut node = Node::new();
    let names: Vec<String> = (0..LOST_STARTS_MAX).map(|number| format!("n{number:02}")).collect();
    for turn in names.chunks(STARTS_AT_ONCE) {
        node.begin(turn);
        node.places.by_name.values_mut().for_each(Place::grow_old);
    }
    node.fleet.deploy("late", "i");
    node.look();
    let trouble = node.site.trouble("late").expect("it is told why");
    assert!(node.is_gone("late") && trouble.contains("(of n00, n01, "), "{trouble}");
    node.site.release(&prepare(&names[0]));
    node.look_until("there is room for it", |node| node.is_up("late"));
    assert_eq!(node.site.trouble("late"), None);
    names.iter().for_each(|name| node.site.release(&prepare(name)));
    node.look_until("all are up", |node| names.iter().all(|name| node.is_up(name)));
}

#[test]
fn a_node_that_stops_or_drains_stops_all_at_once_and_what_hangs_keeps_no_store_of_another_open() {
    let mut node = Node::with(&["a", "b", "c"]);
    let leaves = ["leave a", "leave b", "leave c"];
    leaves.iter().for_each(|leave| node.site.hold(leave));
    node.is_wanted = false;
    node.look_until("all are stopped", |node| leaves.iter().all(|leave| node.site.begun(leave) == 1));
    node.site.release("leave a");
    node.site.release("leave b");
    node.look_until("two have ended", |node| node.is_gone("a") && node.is_gone("b"));
    assert!(!node.places.is_given_away);
    assert_eq!(node.site.all_begun().last().map(String::as_str), Some("close stores"));
    node.site.release("leave c");
    node.look_until("all have ended", |node| node.places.is_given_away);
    let begun = node.site.all_begun();
    assert_eq!(begun.last().map(String::as_str), Some("close stores"));
    node.look();
    assert_eq!(node.site.all_begun(), begun, "there is nothing left to do");
    node.is_wanted = true;
    node.look_until("it takes all up again", |node| ["a", "b", "c"].iter().all(|name| node.is_up(name)));
}

//! What is decided without a broker: who is asked for what, whose answer counts, and who is called back.

use std::net::TcpListener;

use bytes::Bytes;
use tidemill_batches::testing::NewBatch;
use uuid::Uuid;

use super::*;
use crate::kafka::BELIEVED_AFTER;

const TOPIC: Uuid = Uuid::from_u128(1);
const WAIT: Duration = Duration::from_millis(500);

fn fetching() -> Fetching {
    Fetching {
        wait_max: WAIT,
        min_bytes: 1,
        max_bytes: 8_000,
        partition_bytes: 1_000,
        queue_bytes: 10_000,
        unpacks: 8,
        committed_only: true,
    }
}

fn at(partition: i32) -> InputPartition {
    InputPartition { input: 0, partition }
}

fn address(host: &str) -> Address {
    Address { host: host.to_owned(), port: 9092 }
}

fn batch(from: i64, records: Bytes) -> Answer {
    let (chunk, damage) = Chunk::read(records, from, Vec::new(), usize::MAX);
    assert_eq!(damage, None);
    Answer::Records { chunk, refusal: None }
}

/// A record at that offset.
fn record(at: i64) -> Answer {
    batch(at, NewBatch::at(at).put("k", "v").build())
}

/// There is a transaction at offset 3, and more behind it.
fn nothing() -> Answer {
    Answer::Nothing { end: 9, stable: 3 }
}

fn out_of_range() -> Answer {
    Answer::Refused(Refusal::OutOfRange("it is not there".to_owned()))
}

/// A state, and what time it is.
struct Case {
    state: State,
    now: Instant,
}

impl Case {
    fn new() -> Case {
        Case { state: State::default(), now: Instant::now() }
    }

    /// Starts partitions, each at offset 0.
    fn start(&mut self, partitions: impl IntoIterator<Item = InputPartition>) {
        for partition in partitions {
            self.state.start(partition, 0, -1);
        }
    }

    /// The cluster says who leads partitions, and in which epoch: brokers 0 and 1 are there.
    fn hears(&mut self, leaders: &[(i32, i32, i32)]) {
        let leaders: Vec<_> =
            leaders.iter().map(|&(partition, broker, epoch)| (at(partition), broker, epoch)).collect();
        self.hears_of(TOPIC, &leaders);
    }

    fn hears_of(&mut self, topic: Uuid, leaders: &[(InputPartition, i32, i32)]) {
        let leaders =
            leaders.iter().map(|&(id, broker, epoch)| (id, Leader { broker, epoch, topic })).collect();
        self.is_told([(0, address("zero")), (1, address("one"))], leaders);
    }

    fn is_told(&mut self, brokers: [(i32, Address); 2], leaders: Vec<(InputPartition, Leader)>) {
        self.state.look(self.now);
        self.state.found(brokers.into(), leaders, self.now);
        for (id, address) in self.state.unserved() {
            self.state.serves(id, address);
        }
    }

    fn plan(&mut self, broker: i32) -> Plan {
        match self.state.step(broker, &fetching(), self.now) {
            Step::Fetch(plan) => plan,
            other => panic!("no fetch, but {other:?}"),
        }
    }

    /// The broker answers the first of what it was asked for.
    fn answer(&mut self, broker: i32, plan: &Plan, answer: Answer) {
        self.state.answered(broker, vec![(plan.wanted[0].clone(), answer)], self.now);
    }

    /// A partition has no leader that is known.
    fn is_leaderless(&self) -> bool {
        !self.state.sought(self.now).is_empty()
    }
}

#[test]
fn of_two_fetches_one_is_answered_however_often_partitions_start() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3), (1, 0, 3), (2, 0, 3)]);
    assert_eq!(case.plan(0).wait, WAIT);
    case.state.call_back(&[at(0)]);
    assert!(!case.state.was_interrupted(0), "it has what was started");
    case.start([at(1)]);
    case.state.call_back(&[at(1)]);
    assert!(case.state.was_interrupted(0));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(case.state.address(0), Some(address("zero")));
    case.state.connected(0, &address("zero"), socket);
    let again = case.plan(0);
    assert_eq!((again.wanted.len(), again.wait), (2, SHORT_WAIT));
    case.start([at(2)]);
    case.state.call_back(&[at(2)]);
    assert!(!case.state.was_interrupted(0), "it has to be answered first");
    case.answer(0, &again, nothing());
    let last = case.plan(0);
    assert_eq!((last.wanted.len(), last.wait), (3, WAIT));
}

#[test]
fn whoever_comes_to_lead_another_partition_is_called_back_for_it() {
    let mut case = Case::new();
    case.start([at(0), at(1)]);
    case.hears(&[(0, 0, 3)]);
    case.plan(0);
    case.hears(&[(0, 0, 3)]);
    assert!(!case.state.was_interrupted(0));
    case.hears(&[(0, 0, 3), (1, 0, 4)]);
    assert!(case.state.was_interrupted(0));
}

#[test]
fn an_answer_counts_from_whoever_leads_and_to_what_is_still_asked() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3)]);
    let old = case.plan(0);
    case.hears(&[(0, 1, 4)]);
    let new = case.plan(1);
    case.answer(0, &old, Answer::Again { leads: false });
    assert!(!case.is_leaderless(), "nobody asks it any more");
    case.answer(1, &new, record(0));
    for (broker, plan) in [(0, &old), (1, &new)] {
        case.answer(broker, plan, record(0));
    }
    assert_eq!(case.state.take_arrived().len(), 1);
    assert_eq!(case.plan(1).wanted[0].next, 1);
    assert_eq!(case.state.step(0, &fetching(), case.now), Step::End);
}

#[test]
fn what_is_older_than_an_answer_or_of_another_topic_is_not_believed() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 5)]);
    let plan = case.plan(0);
    case.answer(0, &plan, nothing());
    case.answer(0, &plan, Answer::Again { leads: false });
    assert!(case.is_leaderless());
    case.hears(&[(0, 1, 4)]);
    assert!(case.is_leaderless(), "the broker that says so has not heard of epoch 5");
    case.hears_of(Uuid::from_u128(2), &[(at(0), 1, 6)]);
    assert!(case.is_leaderless(), "it was made again");
    case.hears_of(Uuid::nil(), &[(at(0), 1, 6)]);
    assert!(!case.is_leaderless());
}

#[test]
fn of_a_topic_whose_id_is_known_no_other_is_read_from_the_start_on() {
    let mut case = Case::new();
    case.state = State::of(&[TOPIC]);
    case.start([at(0)]);
    case.hears_of(Uuid::from_u128(2), &[(at(0), 0, 0)]);
    assert!(case.is_leaderless());
    case.hears_of(TOPIC, &[(at(0), 0, 0)]);
    assert_eq!(case.plan(0).wanted[0].topic, TOPIC);
}

#[test]
fn a_broker_that_is_late_is_asked_after_and_left_once_it_leads_no_more() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3)]);
    case.plan(0);
    case.now += WAIT + LATE;
    assert!(!case.state.sought(case.now).is_empty());
    assert_eq!(case.state.look(case.now).last(), Some(&address("zero")));
    assert!(case.state.sought(case.now).is_empty(), "not again at once");
    case.now += LATE;
    assert!(!case.state.sought(case.now).is_empty());
    case.hears(&[(0, 1, 4)]);
    assert!(case.state.was_interrupted(0));
    assert_eq!(case.state.address(0), None, "its thread ends");
    case.plan(1);
}

#[test]
fn the_cluster_is_asked_again_after_a_while_and_each_time_another_broker_first() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3)]);
    assert!(case.state.sought(case.now).is_empty());
    case.now += LOOK_EVERY;
    assert!(!case.state.sought(case.now).is_empty());
    let [first, second] = [case.state.look(case.now), case.state.look(case.now)];
    assert_ne!(first, second);
    assert_eq!(first.into_iter().rev().collect::<Vec<_>>(), second);
}

#[test]
fn every_partition_comes_first_in_its_turn_whatever_its_topic() {
    let all: Vec<_> = [0, 1]
        .into_iter()
        .flat_map(|input| [0, 1].map(|partition| InputPartition { input, partition }))
        .collect();
    let mut case = Case::new();
    case.start(all.iter().copied());
    let leaders: Vec<_> = all.iter().map(|&id| (id, 0, 3)).collect();
    case.hears_of(TOPIC, &leaders);
    let mut first = Vec::new();
    for _ in 0..8 {
        let plan = case.plan(0);
        let wanted = &plan.wanted[0];
        first.push(wanted.partition);
        case.answer(0, &plan, record(wanted.next));
        // A full queue would leave it out.
        for arrival in case.state.take_arrived() {
            case.state.taken(arrival.partition, arrival.bytes);
        }
    }
    assert_eq!(first, [&all[..], &all[..]].concat());
}

#[test]
fn who_has_not_heard_of_an_epoch_is_asked_again_before_it_is_believed() {
    let mut case = Case::new();
    // The record before was written in epoch 5.
    case.state.start(at(0), 10, 5);
    case.hears(&[(0, 0, 3)]);
    let plan = case.plan(0);
    case.answer(0, &plan, out_of_range());
    assert!(case.is_leaderless());
    case.hears(&[(0, 1, 5)]);
    case.now += PAUSE.1;
    let plan = case.plan(1);
    case.answer(1, &plan, out_of_range());
    let arrived = case.state.take_arrived();
    assert!(matches!(arrived[0].what, What::Failed(Refusal::OutOfRange(_))));
}

#[test]
fn what_only_a_person_can_mend_is_said_once_it_has_lasted_and_of_what_it_concerns() {
    let mut case = Case::new();
    case.start([at(0), at(1)]);
    case.hears(&[(0, 0, 3), (1, 1, 3)]);
    let no_entry = || Some("no entry".to_owned());
    let lost = |case: &mut Case, obstacle: Option<String>, after: Duration| {
        case.now += after;
        case.hears(&[(0, 0, 3)]);
        case.state.lost(0, obstacle, case.now);
        case.state.obstacle()
    };
    assert_eq!(lost(&mut case, no_entry(), PAUSE.1), None, "it may have been an accident");
    assert_eq!(lost(&mut case, no_entry(), BELIEVED_AFTER - PAUSE.1), None, "or one that is just starting");
    for _ in 0..2 {
        assert_eq!(lost(&mut case, None, PAUSE.1), None, "it is away now");
        assert_eq!(lost(&mut case, no_entry(), PAUSE.1), None);
        assert_eq!(lost(&mut case, no_entry(), BELIEVED_AFTER), no_entry());
    }
    let plan = case.plan(1);
    case.answer(1, &plan, nothing());
    assert_eq!(case.state.obstacle(), no_entry(), "the other broker cannot tell");
    case.hears(&[(0, 1, 4)]);
    let plan = case.plan(1);
    let asked = plan.wanted.iter().find(|wanted| wanted.partition == at(0)).expect("another leads it");
    case.state.answered(1, vec![(asked.clone(), nothing())], case.now);
    assert_eq!(case.state.obstacle(), None);
}

#[test]
fn why_nothing_comes_is_what_who_leads_has_said_last_unless_an_answer_is_overdue() {
    let mut case = Case::new();
    let silence = |case: &Case| case.state.silence(&at(0), case.now);
    case.start([at(0)]);
    assert_eq!(silence(&case), Silence::Unled);
    case.hears(&[(0, 0, 3)]);
    assert_eq!(silence(&case), Silence::Unanswered);
    let plan = case.plan(0);
    case.answer(0, &plan, nothing());
    assert_eq!(silence(&case), Silence::Empty { end: 9, stable: 3 });
    let plan = case.plan(0);
    case.now += WAIT + LATE;
    assert_eq!(silence(&case), Silence::Unanswered);
    case.answer(0, &plan, Answer::Again { leads: true });
    assert_eq!(silence(&case), Silence::Refused);
    case.now += PAUSE.1;
    let plan = case.plan(0);
    case.answer(0, &plan, record(0));
    assert_eq!(silence(&case), Silence::Unanswered, "since the record");
    let plan = case.plan(0);
    case.answer(0, &plan, nothing());
    case.state.lost(0, None, case.now);
    assert_eq!(silence(&case), Silence::Unled);
    case.now += PAUSE.1;
    case.hears(&[(0, 0, 3)]);
    assert_eq!(silence(&case), Silence::Unanswered, "since it is back");
}

#[test]
fn a_broker_that_is_back_elsewhere_is_connected_to_there() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3)]);
    case.plan(0);
    case.is_told([(0, address("elsewhere")), (1, address("one"))], Vec::new());
    assert!(case.state.was_interrupted(0));
    assert_eq!(case.state.address(0), Some(address("elsewhere")));
}

#[test]
fn an_answer_with_nothing_of_what_was_asked_for_is_not_asked_for_at_once_again() {
    let mut case = Case::new();
    case.state.start(at(0), 10, -1);
    case.hears(&[(0, 0, 3)]);
    let plan = case.plan(0);
    case.answer(0, &plan, batch(10, NewBatch::at(3).put("k", "v").build()));
    assert!(!case.state.has_arrived());
    assert_eq!(case.state.step(0, &fetching(), case.now), Step::Wait(Some(case.now + PAUSE.0)));
}

#[test]
fn what_waits_is_bounded_even_if_it_holds_no_records() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3)]);
    let mut fetches = 0;
    while let Step::Fetch(plan) = case.state.step(0, &fetching(), case.now) {
        let next = plan.wanted[0].next;
        // Compaction has left nothing of it.
        case.answer(0, &plan, batch(next, NewBatch::at(next).gap(10).build()));
        fetches += 1;
        assert!(fetches < 1_000);
    }
    for arrival in case.state.take_arrived() {
        case.state.taken(arrival.partition, arrival.bytes);
    }
    assert_eq!(case.plan(0).wanted[0].next, fetches * 10);
}

#[test]
fn whoever_takes_nothing_for_long_costs_few_fetches_of_what_has_room() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3), (1, 0, 3)]);
    let plan = case.plan(0);
    let value = "v".repeat(2_000);
    case.answer(0, &plan, batch(0, NewBatch::at(0).put("k", &value).build()));
    case.start([at(1)]);
    for (full_ms, wait_ms) in [(0, 10), (20, 10), (160, 10), (1_000, 62), (60_000, 500)] {
        let began = case.now;
        case.now += Duration::from_millis(full_ms);
        let plan = case.plan(0);
        assert_eq!((plan.wanted.len(), plan.wait.as_millis()), (1, wait_ms), "full for {full_ms} ms");
        case.now = began;
    }
    let patient = Fetching { wait_max: Duration::from_secs(60), ..fetching() };
    let later = case.now + Duration::from_secs(600);
    let Step::Fetch(plan) = case.state.step(0, &patient, later) else { panic!("no fetch") };
    assert_eq!(plan.wait, ROOM_LOOK_MAX, "there may be room at once when it goes on");
    for arrival in case.state.take_arrived() {
        case.state.taken(arrival.partition, arrival.bytes);
    }
    let plan = case.plan(0);
    assert_eq!((plan.wanted.len(), plan.wait), (2, WAIT));
}

#[test]
fn an_answer_is_asked_for_of_what_there_is_room_for_and_of_one_part_at_least() {
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3), (1, 0, 3)]);
    assert_eq!(case.plan(0).bytes, 8_000);
    let plan = case.plan(0);
    let value = "v".repeat(9_000);
    case.answer(0, &plan, batch(0, NewBatch::at(0).put("k", &value).build()));
    case.start([at(1)]);
    assert_eq!(case.plan(0).bytes, 1_000);
}

#[test]
fn what_did_not_come_in_time_is_asked_for_in_smaller_parts_until_they_come_soon() {
    let wide = Fetching { max_bytes: 8 << 20, partition_bytes: 2 << 20, queue_bytes: 16 << 20, ..fetching() };
    let plan = |case: &mut Case| match case.state.step(0, &wide, case.now) {
        Step::Fetch(plan) => plan,
        other => panic!("no fetch, but {other:?}"),
    };
    let lose = |case: &mut Case| {
        case.state.out_of_time(0);
        case.state.lost(0, None, case.now);
        case.now += PAUSE.1;
        case.hears(&[(0, 0, 3)]);
    };
    let mut case = Case::new();
    case.start([at(0)]);
    case.hears(&[(0, 0, 3)]);
    lose(&mut case);
    assert_eq!(plan(&mut case).bytes, 8 << 20, "nothing was owed");
    lose(&mut case);
    assert_eq!(plan(&mut case).bytes, 512 << 10);
    for _ in 0..2 {
        lose(&mut case);
        assert_eq!(plan(&mut case).bytes, ANSWER_BYTES_MIN, "that much comes through");
    }
    let mut next = 0;
    let mut answered = |case: &mut Case, after: Duration| {
        let asked = plan(case);
        case.now += after;
        case.answer(0, &asked, record(next));
        next += 1;
        plan(case).bytes
    };
    assert_eq!(answered(&mut case, WAIT + LATE), ANSWER_BYTES_MIN, "it took long");
    let soon: Vec<i32> = (0..9).map(|_| answered(&mut case, Duration::ZERO) >> 10).collect();
    assert_eq!(soon, [64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 8_192]);
    let asked = plan(&mut case);
    lose(&mut case);
    let again = plan(&mut case);
    assert_eq!((again.bytes, &again.wanted[0].next), (512 << 10, &asked.wanted[0].next));
    case.answer(0, &again, nothing());
    assert_eq!(plan(&mut case).bytes, 512 << 10, "that says nothing of the way");
}

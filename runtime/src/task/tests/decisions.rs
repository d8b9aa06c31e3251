//! The table of recovery's decisions.

use super::super::recovery::{Decision, Facts, Known, Started, StoreVerdict, decide, judge_store};
use super::super::seal::encode_metadata;
use super::*;
use crate::ports::CommittedOffset;
use crate::store::{Position, PositionGuarantee, PositionInput, Progress};

fn metadata(revision: u64, incarnation: &str, topic_id: &str) -> String {
    let config = TaskConfig { revision, incarnation: incarnation.into(), ..config(Failures::halt()) };
    encode_metadata(&config, topic_id, None)
}

fn position(offset: u64) -> Position {
    Position {
        inputs: vec![PositionInput {
            topic: "words".into(),
            topic_id: "words-id".into(),
            offset,
            unbound: false,
            first: Some(0),
            number: None,
        }],
        revision: 1,
        incarnation: "life".into(),
        guarantee: PositionGuarantee::ExactlyOnce.into(),
        writer: 4,
        commit: 9,
        ..Position::default()
    }
}

fn committed(offset: u64) -> Option<CommittedOffset> {
    Some(CommittedOffset { offset: Offset(offset), metadata: String::new() })
}

fn started(offset: u64) -> Known {
    Known {
        started: vec![Some(Started { topic_id: "words-id".into(), offset: Offset(offset) })],
        first_commit: Vec::new(),
    }
}

/// A case as a table has it; everything that is not said is ordinary.
struct Case {
    config: TaskConfig,
    position: Option<Position>,
    committed: Vec<Option<CommittedOffset>>,
    known: Known,
}

impl Case {
    fn stateful(position: Option<Position>, committed: Option<CommittedOffset>, known: Known) -> Case {
        Case { config: config(Failures::halt()), position, committed: vec![committed], known }
    }

    fn stateless(committed: Option<CommittedOffset>, known: Known) -> Case {
        let mut case = Case::stateful(None, committed, known);
        case.config.stores = Arc::new(Stores::new(&[]).unwrap());
        case
    }

    fn at_least_once(mut self) -> Case {
        if let Some(position) = &mut self.position {
            position.guarantee = PositionGuarantee::AtLeastOnce.into();
        }
        self
    }

    fn committed_before(mut self) -> Case {
        self.known.first_commit = vec![true];
        self
    }

    fn decide(&self) -> Decision {
        decide(&Facts {
            config: &self.config,
            partition: PARTITION,
            position: self.position.as_ref(),
            writer_seen: 0,
            committed: &self.committed,
            known: &self.known,
        })
    }

    fn starts_at(&self) -> u64 {
        match self.decide() {
            Decision::Start { next, .. } => next[0].0,
            other => panic!("{other:?}"),
        }
    }

    /// The reason must contain what a person needs: each of `words`.
    fn halts(&self, words: &[&str]) {
        match self.decide() {
            Decision::Halt(reason) => has(&reason, words),
            other => panic!("{other:?}"),
        }
    }

    fn misses(&self, words: &[&str]) {
        match self.decide() {
            Decision::Missing(reason) => has(&reason, words),
            other => panic!("{other:?}"),
        }
    }
}

fn has(reason: &str, words: &[&str]) {
    for word in words {
        assert!(reason.contains(word), "'{word}' is not in: {reason}");
    }
}

#[test]
fn a_task_that_never_committed_begins_where_its_start_was_resolved() {
    assert_eq!(Case::stateful(None, None, started(17)).starts_at(), 17);
    assert_eq!(Case::stateless(None, started(17)).starts_at(), 17);
    let unresolved = Known { started: vec![None], first_commit: Vec::new() };
    assert_eq!(Case::stateful(None, None, unresolved).decide(), Decision::Unresolved(vec![0]));
}

#[test]
fn a_task_continues_where_position_and_offset_agree() {
    let case = Case::stateful(Some(position(40)), committed(40), started(0)).committed_before();
    assert_eq!(case.starts_at(), 40);
    match case.decide() {
        Decision::Start { writer, .. } => assert_eq!(writer, 5, "above the former writer"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn behind_the_last_writer_that_there_can_be_no_task_starts() {
    let position = Position { writer: u64::MAX, ..position(17) };
    let case = Case::stateful(Some(position), committed(17), started(0));
    case.halts(&["fleet.count.changelog/3", "writer 18446744073709551615", "damaged"]);
}

#[test]
fn a_missing_offset_is_never_taken_for_a_new_group() {
    Case::stateful(Some(position(40)), None, started(0)).misses(&["words/3", "--to-offset 40"]);
    Case::stateful(None, None, started(0)).committed_before().misses(&["words/3", "fleet.count.changelog/3"]);
    Case::stateless(None, started(0)).committed_before().misses(&["words/3", "dev.group.count"]);
}

#[test]
fn an_offset_moved_by_an_operator_halts_a_task_with_state_and_is_followed_by_one_without() {
    for (offset, how) in [(41, "ahead of"), (39, "behind"), (0, "behind")] {
        let case = Case::stateful(Some(position(40)), committed(offset), started(0));
        case.halts(&[how, "words/3", "--reset-offsets", "--to-offset 40"]);
    }
    assert_eq!(Case::stateless(committed(5), started(0)).committed_before().starts_at(), 5);
}

#[test]
fn a_position_without_its_offset_or_an_offset_without_its_position_halts() {
    Case::stateful(None, committed(40), started(0)).halts(&["offset 40 of words/3", "no position record"]);
    Case::stateful(None, committed(40), started(0)).at_least_once().halts(&["no position record"]);
}

#[test]
fn under_at_least_once_the_position_record_wins_over_an_offset_behind_it() {
    let case = |committed| Case::stateful(Some(position(40)), committed, started(0)).at_least_once();
    assert_eq!(case(committed(30)).starts_at(), 40);
    assert_eq!(case(committed(40)).starts_at(), 40);
    case(committed(41)).halts(&["ahead of"]);
    // The first commit's record is written before its offsets.
    assert_eq!(case(None).starts_at(), 40);
    case(None).committed_before().misses(&["words/3"]);
}

#[test]
fn a_topic_made_again_halts() {
    let mut other = position(40);
    other.inputs[0].topic_id = "another-id".into();
    Case::stateful(Some(other), committed(40), started(0)).halts(&[
        "topic words",
        "another-id",
        "made again",
    ]);

    let metadata = metadata(1, "life", "another-id");
    let offset = Some(CommittedOffset { offset: Offset(5), metadata });
    Case::stateless(offset, started(0)).halts(&["topic words", "made again"]);

    let mut known = started(0);
    known.started[0].as_mut().unwrap().topic_id = "another-id".into();
    Case::stateful(None, None, known).halts(&["topic words", "made again"]);
}

#[test]
fn what_a_former_deployment_of_the_name_left_behind_halts() {
    let mut other = position(40);
    other.incarnation = "former".into();
    Case::stateful(Some(other), committed(40), started(0)).halts(&["former", "fleet.count.changelog/3"]);

    let metadata = metadata(1, "former", "words-id");
    let offset = Some(CommittedOffset { offset: Offset(5), metadata });
    Case::stateless(offset, started(0)).halts(&["former", "words/3"]);
}

#[test]
fn a_new_input_begins_at_its_start_and_a_removed_one_stays_in_the_position() {
    let mut case = Case::stateful(Some(position(40)), committed(40), started(0));
    case.config.inputs.push(TaskInput { topic: "names".into(), topic_id: "names-id".into() });
    case.committed.push(None);
    case.known.started.push(Some(Started { topic_id: "names-id".into(), offset: Offset(7) }));
    match case.decide() {
        Decision::Start { next, unbound, .. } => {
            assert_eq!((next, unbound.len()), (vec![Offset(40), Offset(7)], 0));
        }
        other => panic!("{other:?}"),
    }

    let mut both = position(40);
    both.inputs.push(PositionInput {
        topic: "gone".into(),
        topic_id: "gone-id".into(),
        offset: 99,
        unbound: false,
        first: None,
        number: None,
    });
    match Case::stateful(Some(both), committed(40), started(0)).decide() {
        Decision::Start { next, unbound, .. } => {
            assert_eq!((next, unbound[0].topic.as_str(), unbound[0].offset), (vec![Offset(40)], "gone", 99));
            assert!(unbound[0].unbound);
        }
        other => panic!("{other:?}"),
    }
}

/// Rows go on calling it by that, wherever it comes to stand in the next position record.
#[test]
fn an_unbound_input_keeps_its_number_and_gets_its_place_where_it_had_none() {
    for (numbers, expected) in [([None, None], 0), ([Some(4), Some(2)], 4)] {
        let mut both = position(40);
        let gone = PositionInput {
            topic: "gone".into(),
            topic_id: "gone-id".into(),
            offset: 99,
            ..PositionInput::default()
        };
        both.inputs.insert(0, gone);
        for (input, number) in both.inputs.iter_mut().zip(numbers) {
            input.number = number;
        }
        match Case::stateful(Some(both), committed(40), started(0)).decide() {
            Decision::Start { unbound, .. } => assert_eq!(unbound[0].number, Some(expected)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_input_that_comes_back_resumes_although_kafka_has_forgotten_its_offset() {
    let mut position = position(40);
    let gone = Case::stateful(Some(position.clone()), None, started(0)).committed_before();
    gone.misses(&["words/3"]);
    position.inputs[0].unbound = true;
    assert_eq!(Case::stateful(Some(position), None, started(0)).committed_before().starts_at(), 40);
}

#[test]
fn a_stateless_task_with_a_new_input_tells_it_from_a_lost_offset_by_the_revision() {
    let offset = |revision| {
        Some(CommittedOffset { offset: Offset(5), metadata: metadata(revision, "life", "words-id") })
    };
    let case = |revision| {
        let mut case = Case::stateless(offset(revision), started(0));
        case.config.revision = 2;
        case.config.inputs.push(TaskInput { topic: "names".into(), topic_id: "names-id".into() });
        case.committed.push(None);
        case.known.started.push(Some(Started { topic_id: "names-id".into(), offset: Offset(7) }));
        case
    };
    match case(1).decide() {
        Decision::Start { next, .. } => assert_eq!(next, [Offset(5), Offset(7)]),
        other => panic!("{other:?}"),
    }
    case(2).misses(&["names/3"]);
    // The registry knows commits of `words` only, then of both.
    let mut known = case(1).committed_before();
    assert!(matches!(known.decide(), Decision::Start { .. }));
    known.known.first_commit.push(true);
    known.misses(&["names/3"]);
}

#[test]
fn a_store_is_judged_by_its_changelog() {
    let judge = |next, bounds: (u64, u64), age_ms: i64| {
        let progress = Progress {
            changelog_next: Offset(next),
            changelog_ms: 1_000_000,
            inbox_next: Offset(0),
            inbox_ids: 0,
            closed: None,
        };
        judge_store(progress, (Offset(bounds.0), Offset(bounds.1)), 60_000, 1_000_000 + age_ms)
    };
    assert_eq!(judge(5, (0, 9), 30_000), StoreVerdict::Use);
    assert_eq!(judge(5, (5, 9), 30_000), StoreVerdict::Use);
    assert_eq!(judge(0, (0, 9), 30_001), StoreVerdict::Use, "an empty one reads it all");
    assert!(matches!(judge(5, (6, 9), 0), StoreVerdict::Halt(_)), "its next record is gone");
    assert!(matches!(judge(0, (6, 9), 0), StoreVerdict::Halt(_)), "the log's beginning is gone");
    assert!(matches!(judge(5, (3, 9), 30_001), StoreVerdict::Halt(_)), "too old, and not to be rebuilt");
    assert!(matches!(judge(5, (0, 9), 30_001), StoreVerdict::Rebuild(_)), "deletions may be gone");
    assert_eq!(judge(9, (0, 9), 30_001), StoreVerdict::Use, "it missed nothing");
    assert!(matches!(judge(10, (0, 9), 0), StoreVerdict::Halt(_)), "the log is shorter than it was");
}

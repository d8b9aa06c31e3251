//! Numbers of inputs: what a task's own rows call the input of a record, for the life of the deployment.
//!
//! ```text
//!   version   inputs    numbers
//!   1         [a]       a 0
//!   2         [b, a]    a 0, b 1            the first place is b's now, and 0 is still a's
//!   3         [c]       a 0, b 1, c 2       a and b are unbound, and keep theirs
//! ```
//!
//! Rows outlive the version that wrote them, and what is at a place of `inputs:` may be another topic in the
//! next one. The position record says whose number is whose. In one that does not, which was written before there
//! were numbers, an input's place is its number: rows of that time name inputs by it.
//!
//! An input is a topic by its id, so one that was deleted and made again is another input. Of brokers that have no ids
//! it is one by its name.
//!
//! What an inbox remembers may outlive the life of the deployment, and with it every position record (a reset). So
//! the commits whose ids or sequences name inputs say it in the inbox's topic too, in a row that has no id: the next
//! life takes it up from there. It is dated like those, so it is remembered as long as any of them. If there are any of
//! before, the first commit of a task says it.

use super::{TaskError, TaskInput};
use crate::store::{Position, PositionInput, StoreError, StoreReader, Table};

/// Key of that row, in [`Table::Inbox`].
pub(super) const ROW: &[u8] = b"";

/// The id of every topic, where brokers have none (Redpanda; Apache Kafka before 2.8, or with metadata of before).
pub(super) const NO_ID: &str = "00000000-0000-0000-0000-000000000000";

/// The inputs of a position record, each with its number.
pub fn numbered(position: &Position) -> impl Iterator<Item = (u32, &PositionInput)> {
    (0u32..).zip(&position.inputs).map(|(place, input)| (input.number.unwrap_or(place), input))
}

/// The topic that rows of a store call by this number, and whether it is an input; none if nobody knows it. Of a store
/// without a position these are the inputs, at their places.
pub fn topic_at<'a>(
    position: Option<&'a Position>,
    inputs: &'a [String],
    number: u32,
) -> Option<(&'a str, bool)> {
    let Some(position) = position else {
        return inputs.get(number as usize).map(|topic| (topic.as_str(), true));
    };
    let (_, input) = numbered(position).find(|(known, _)| *known == number)?;
    Some((input.topic.as_str(), !input.unbound))
}

/// An input that there is, or was.
#[derive(Debug)]
struct Known {
    number: u16,
    /// Empty while nobody but an inbox has named it.
    topic: String,
    topic_id: String,
}

impl Known {
    fn identity(&self) -> &str {
        identity(&self.topic, &self.topic_id)
    }
}

/// What tells a topic from every other.
pub(super) fn identity<'a>(topic: &'a str, topic_id: &'a str) -> &'a str {
    if topic_id == NO_ID { topic } else { topic_id }
}

impl TaskInput {
    /// What tells it from every other.
    pub(super) fn identity(&self) -> &str {
        identity(&self.topic, &self.topic_id)
    }
}

#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// By input.
    bound: Vec<u16>,
    /// With those that are unbound.
    known: Vec<Known>,
}

impl Numbers {
    /// Of a task with these inputs that goes on from this position. `row` is that of its inbox, if it has one.
    pub fn of(
        inputs: &[TaskInput],
        position: Option<&Position>,
        row: Option<&[u8]>,
    ) -> Result<Numbers, TaskError> {
        let mut numbers = Numbers::default();
        for (number, input) in position.into_iter().flat_map(numbered) {
            numbers.add(number, &input.topic, &input.topic_id)?;
        }
        for (number, identity) in row.map(decode).unwrap_or_default() {
            let is_news = |known: &Known| known.number != number && known.identity() != identity;
            if numbers.known.iter().all(is_news) {
                numbers.add(number.into(), "", identity)?;
            }
        }
        for input in inputs {
            let known = numbers.known.iter_mut().find(|known| known.identity() == input.identity());
            let number = match known {
                Some(known) => {
                    known.topic.clone_from(&input.topic);
                    known.topic_id.clone_from(&input.topic_id);
                    known.number
                }
                None => numbers.add(numbers.next(), &input.topic, &input.topic_id)?,
            };
            numbers.bound.push(number);
        }
        Ok(numbers)
    }

    /// The row of the inbox in a store.
    pub fn row(reader: Option<&StoreReader>) -> Result<Option<Vec<u8>>, StoreError> {
        reader.map_or(Ok(None), |reader| reader.snapshot(|snapshot| snapshot.row(Table::Inbox, ROW)))
    }

    /// The same with this date, ms since the epoch. On disk and in Kafka: the date (i64), then of each input its
    /// number (u16), the length of its topic's id (u8) and that id, or the topic's name if it has none; little endian.
    pub fn encode(&self, date_ms: i64) -> Vec<u8> {
        let mut row = date_ms.to_le_bytes().to_vec();
        for known in &self.known {
            row.extend(known.number.to_le_bytes());
            let identity = known.identity();
            row.push(u8::try_from(identity.len()).unwrap_or(u8::MAX));
            row.extend(identity.bytes().take(u8::MAX.into()));
        }
        row
    }

    /// Above all there are.
    fn next(&self) -> u32 {
        self.known.iter().map(|known| u32::from(known.number) + 1).max().unwrap_or(0)
    }

    fn add(&mut self, number: u32, topic: &str, topic_id: &str) -> Result<u16, TaskError> {
        // Rows have two bytes for it. A position record of so many inputs would fit no changelog.
        let number =
            u16::try_from(number).map_err(|_| TaskError::Misuse("the number of an input is above 65535"))?;
        self.known.push(Known { number, topic: topic.to_owned(), topic_id: topic_id.to_owned() });
        Ok(number)
    }

    /// Of an input that there is.
    pub fn number(&self, input: u16) -> u16 {
        self.bound.get(usize::from(input)).copied().unwrap_or(u16::MAX)
    }

    /// Of all inputs that there are.
    pub fn bound(&self) -> &[u16] {
        &self.bound
    }

    /// The input of that number; none if it is unbound.
    pub fn input(&self, number: u32) -> Option<u16> {
        let input = self.bound.iter().position(|&bound| u32::from(bound) == number)?;
        u16::try_from(input).ok()
    }

    /// Topic and topic id of the input of that number, unbound or not; empty if nobody knows it.
    pub fn topic(&self, number: u32) -> (&str, &str) {
        let known = self.known.iter().find(|known| u32::from(known.number) == number);
        known.map_or(("", ""), |known| (known.topic.as_str(), known.topic_id.as_str()))
    }
}

/// Numbers, and what tells their topics apart. What is behind something that cannot be read is left out.
fn decode(row: &[u8]) -> Vec<(u16, &str)> {
    let mut all = Vec::new();
    let mut rest = row.get(size_of::<i64>()..).unwrap_or_default();
    while let Some((number, behind)) = rest.split_first_chunk::<2>() {
        let Some((&length, behind)) = behind.split_first() else { break };
        let Some((identity, behind)) = behind.split_at_checked(length.into()) else { break };
        let Ok(identity) = std::str::from_utf8(identity) else { break };
        all.push((u16::from_le_bytes(*number), identity));
        rest = behind;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(inputs: &[(&str, Option<u32>)]) -> Position {
        let input = |&(topic, number): &(&str, Option<u32>)| PositionInput {
            topic: topic.into(),
            topic_id: format!("{topic}-id"),
            number,
            ..PositionInput::default()
        };
        Position { inputs: inputs.iter().map(input).collect(), ..Position::default() }
    }

    fn bound(topics: &[&str], position: Option<&Position>) -> Vec<u16> {
        let input = |topic: &&str| TaskInput { topic: (*topic).into(), topic_id: format!("{topic}-id") };
        let inputs: Vec<TaskInput> = topics.iter().map(input).collect();
        Numbers::of(&inputs, position, None).unwrap().bound
    }

    #[test]
    fn an_input_keeps_its_number_and_a_new_one_gets_one_above_the_highest_unbound_or_not() {
        assert_eq!(bound(&["a", "b"], None), [0, 1]);
        let two = position(&[("a", Some(0)), ("b", Some(1))]);
        assert_eq!(bound(&["b", "a"], Some(&two)), [1, 0]);
        assert_eq!(bound(&["c", "a"], Some(&two)), [2, 0], "b is unbound, and 1 is its");
        let three = position(&[("c", Some(2)), ("a", Some(0)), ("b", Some(1))]);
        assert_eq!(bound(&["d", "b"], Some(&three)), [3, 1]);
        let gap = position(&[("a", Some(7))]);
        assert_eq!(bound(&["b", "a", "c"], Some(&gap)), [8, 7, 9]);
    }

    #[test]
    fn in_a_position_of_before_there_were_numbers_a_place_is_one() {
        let old = position(&[("b", None), ("a", None), ("gone", None)]);
        assert_eq!(numbered(&old).map(|(number, _)| number).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(bound(&["a", "c", "b"], Some(&old)), [1, 3, 0]);
    }

    #[test]
    fn a_topic_that_was_made_again_is_another_input() {
        let mut old = position(&[("a", Some(0))]);
        old.inputs[0].topic_id = "former-id".into();
        assert_eq!(bound(&["a"], Some(&old)), [1]);
    }

    #[test]
    fn who_reads_rows_goes_by_the_position_beside_them() {
        let mut position = position(&[("b", Some(1)), ("a", Some(0))]);
        position.inputs[1].unbound = true;
        let inputs = ["c".to_owned()];
        let at = |number| topic_at(Some(&position), &inputs, number);
        assert_eq!((at(0), at(1), at(2)), (Some(("a", false)), Some(("b", true)), None));
        assert_eq!((topic_at(None, &inputs, 0), topic_at(None, &inputs, 1)), (Some(("c", true)), None));
    }

    #[test]
    fn what_is_known_of_a_number_is_known_of_an_unbound_one_too() {
        let inputs = [TaskInput { topic: "b".into(), topic_id: "b-id".into() }];
        let numbers = Numbers::of(&inputs, Some(&position(&[("a", Some(0))])), None).unwrap();
        assert_eq!((numbers.number(0), numbers.input(1), numbers.input(0)), (1, Some(0), None));
        assert_eq!((numbers.topic(0), numbers.topic(1)), (("a", "a-id"), ("b", "b-id")));
        assert_eq!(numbers.topic(2), ("", ""));
        let last = position(&[("a", Some(65_535))]);
        assert!(Numbers::of(&inputs, Some(&last), None).is_err(), "none is left");
    }

    #[test]
    fn topics_of_brokers_without_ids_are_told_apart_by_their_names() {
        let input = |topic: &str| TaskInput { topic: topic.into(), topic_id: NO_ID.into() };
        let recorded = |topic: &str, number| PositionInput {
            topic: topic.into(),
            topic_id: NO_ID.into(),
            number,
            ..PositionInput::default()
        };
        let numbers = Numbers::of(&[input("b"), input("a")], None, None).unwrap();
        assert_eq!(numbers.bound, [0, 1]);
        let row = numbers.encode(7);
        assert_eq!(decode(&row), [(0, "b"), (1, "a")]);
        let numbers = Numbers::of(&[input("a"), input("c"), input("b")], None, Some(&row)).unwrap();
        assert_eq!((&numbers.bound[..], numbers.topic(1)), (&[1, 2, 0][..], ("a", NO_ID)));

        let inputs = vec![recorded("a", None), recorded("b", None)];
        let former = Position { inputs, ..Position::default() };
        let numbers = Numbers::of(&[input("c"), input("b")], Some(&former), Some(&row)).unwrap();
        assert_eq!((&numbers.bound[..], numbers.topic(0)), (&[2, 1][..], ("a", NO_ID)));
    }

    #[test]
    fn a_life_without_a_position_goes_on_with_what_its_inbox_says_and_one_with_a_position_knows_better() {
        let input = |topic: &str| TaskInput { topic: topic.into(), topic_id: format!("{topic}-id") };
        let former = position(&[("b", Some(1)), ("a", Some(0)), ("gone", Some(2))]);
        let row = Numbers::of(&[input("b"), input("a")], Some(&former), None).unwrap().encode(7);
        assert_eq!(decode(&row), [(1, "b-id"), (0, "a-id"), (2, "gone-id")]);
        let numbers = Numbers::of(&[input("a"), input("c"), input("b")], None, Some(&row)).unwrap();
        assert_eq!((&numbers.bound[..], numbers.topic(0)), (&[0, 3, 1][..], ("a", "a-id")));

        let later = position(&[("c", Some(0)), ("a", Some(5))]);
        let numbers = Numbers::of(&[input("a"), input("b"), input("d")], Some(&later), Some(&row)).unwrap();
        assert_eq!(numbers.bound, [5, 1, 6]);
        for end in 0..row.len() {
            assert!(decode(&row[..end]).len() < 3, "its first {end} bytes");
        }
        assert_eq!(decode(b"").len(), 0);
    }
}

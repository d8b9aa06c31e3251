//! Positions as people write and read them: `words/0@12` is partition 0 of `words`, next record 12.

use serde_json::{Value, json};
use tidemill_proto::v1::{InputPosition, StatePosition};

pub fn show(at: &InputPosition) -> String {
    format!("{}/{}@{}", at.topic, at.partition, at.offset)
}

pub fn show_all(positions: &[InputPosition]) -> String {
    positions.iter().map(show).collect::<Vec<_>>().join(" ")
}

pub fn parse(text: &str) -> Result<InputPosition, String> {
    let wrong = || format!("`{text}` is no position: write TOPIC/PARTITION@OFFSET, for example words/0@12");
    let (place, offset) = text.rsplit_once('@').ok_or_else(wrong)?;
    let (topic, partition) = place.rsplit_once('/').ok_or_else(wrong)?;
    let partition: i32 = partition.parse().ok().filter(|partition| *partition >= 0).ok_or_else(wrong)?;
    let offset: u64 = offset.parse().map_err(|_| wrong())?;
    if topic.is_empty() {
        return Err(wrong());
    }
    Ok(InputPosition { topic: topic.to_owned(), partition, offset })
}

pub fn to_json(positions: &[InputPosition]) -> Value {
    let one = |at: &InputPosition| json!({ "topic": at.topic, "partition": at.partition, "offset": at.offset, "position": show(at) });
    positions.iter().map(one).collect()
}

/// `words/0@12 on node-1`, for people who wonder how fresh an answer is.
pub fn read_at(read_at: &[StatePosition]) -> String {
    let one = |at: &StatePosition| {
        let place = match at.positions.as_slice() {
            [] => format!("partition {}", at.partition),
            positions => show_all(positions),
        };
        format!("{place} on {}", at.node)
    };
    let mut all: Vec<String> = read_at.iter().take(4).map(one).collect();
    if read_at.len() > all.len() {
        all.push(format!("and {} more partitions", read_at.len() - all.len()));
    }
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_shown() {
        for text in ["words/0@12", "a.b-c_d/31@0"] {
            assert_eq!(parse(text).map(|at| show(&at)), Ok(text.to_owned()));
        }
        for wrong in ["words", "words/0", "words@3", "/0@1", "words/-1@1", "words/0@-1", "words/x@1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}

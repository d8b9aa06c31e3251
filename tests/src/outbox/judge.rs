//! What must hold when everything has come to rest, from raw dumps of the topics and the receiver's log.
//!
//! - the topic has each record's link once, in order;
//! - every committed row was applied at least once, or is a dead letter, which only a row may be that a receiver was
//!   told to refuse for good;
//! - nothing was delivered that is not committed, or before it was;
//! - the first deliveries of a key come in the order of its records, so a receiver that uses the sequence never
//!   goes back;
//! - a repetition has the id, the sequence and the content of the first, and where no node dies and no task moves it
//!   comes before the next row of its key.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::Offset;
use tidemill_proto::v1::OutboxRow;

use super::Summary;
use super::stage::{DEPLOYMENT, FLEET, Fed, MARK, OUTPUT, PARTITIONS};
use crate::reading::{assign, reading};

const READ_MAX: Duration = Duration::from_secs(60);
/// Longest list of violations of one kind.
const TOLD_MAX: usize = 5;
/// The scene whose receiver refuses marked rows for good, and whose only node lives on.
const SINKS: &str = "sinks";
/// First byte of an outbox row's key.
const OUTBOX: u8 = 0x03;

/// Something that a receiver was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub id: String,
    pub sequence: u64,
    pub key: String,
    pub body: Vec<u8>,
    /// The correlation id; empty where nobody asks for it.
    pub correlation: String,
    /// When, milliseconds since the epoch; none if the receiver does not say.
    pub at_ms: Option<i64>,
}

/// A row that was committed.
struct Row {
    row: OutboxRow,
    sequence: u64,
    appended_ms: i64,
}

struct Record {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    timestamp_ms: i64,
    /// The header `tidemill-id`.
    id: Option<String>,
}

/// Judges a scene. `applied` is in the order of arrival.
pub fn judge(scene: &str, bootstrap: &str, fed: &Fed, applied: &[Arrival]) -> Summary {
    let mut judge = Judge { scene, summary: Summary::default() };
    let rows = committed_rows(&dump(bootstrap, &format!("{FLEET}.{DEPLOYMENT}.changelog")));
    let letters: HashSet<String> = dump(bootstrap, &format!("{FLEET}.{DEPLOYMENT}.dead-letters"))
        .into_iter()
        .filter_map(|letter| letter.id)
        .collect();
    judge.topic(fed, &dump(bootstrap, OUTPUT));
    judge.rows(fed, &rows);
    judge.arrivals(&rows, &letters, applied);
    judge.summary.rows = rows.len() as u64;
    judge.summary.deliveries = applied.len() as u64;
    let (count, scene) = (applied.len(), judge.scene);
    judge.summary.notes.push(format!(
        "{scene}: {} rows, {count} applied deliveries, {} dead letters",
        rows.len(),
        letters.len()
    ));
    judge.summary
}

struct Judge<'a> {
    scene: &'a str,
    summary: Summary,
}

impl Judge<'_> {
    fn blame(&mut self, mut what: Vec<String>) {
        let more = what.len().saturating_sub(TOLD_MAX);
        what.truncate(TOLD_MAX);
        if more > 0 {
            what.push(format!("and {more} more like these"));
        }
        let scene = self.scene;
        self.summary.violations.extend(what.into_iter().map(|what| format!("{scene}: {what}")));
    }

    fn topic(&mut self, fed: &Fed, records: &[Record]) {
        let mut found: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        for record in records {
            found.entry(&record.key).or_default().push(record.value.as_deref().unwrap_or_default());
        }
        let mut wrong = Vec::new();
        for (key, texts) in fed {
            let expected = links(texts);
            let found = found.remove(key.as_bytes()).unwrap_or_default();
            if found != expected.iter().map(String::as_bytes).collect::<Vec<_>>() {
                wrong.push(format!(
                    "the topic has {} records of {key}, {} expected, or others",
                    found.len(),
                    expected.len()
                ));
            }
        }
        self.blame(wrong);
    }

    /// One row for each record, and what it holds.
    fn rows(&mut self, fed: &Fed, rows: &HashMap<String, Row>) {
        let mut by_key: BTreeMap<&[u8], Vec<&Row>> = BTreeMap::new();
        for row in rows.values() {
            by_key.entry(row.row.key.as_deref().unwrap_or_default()).or_default().push(row);
        }
        let mut wrong = Vec::new();
        for (key, texts) in fed {
            let mut of_key = by_key.remove(key.as_bytes()).unwrap_or_default();
            of_key.sort_by_key(|row| row.sequence);
            let found: Vec<&[u8]> =
                of_key.iter().map(|row| row.row.value.as_deref().unwrap_or_default()).collect();
            if found != links(texts).iter().map(String::as_bytes).collect::<Vec<_>>() {
                wrong.push(format!(
                    "{} rows of {key} were committed for {} records",
                    found.len(),
                    texts.len()
                ));
            }
        }
        self.blame(wrong);
    }

    fn arrivals(&mut self, rows: &HashMap<String, Row>, letters: &HashSet<String>, applied: &[Arrival]) {
        let mut wrong = Vec::new();
        let mut first: HashMap<&str, &Arrival> = HashMap::new();
        let mut last: HashMap<&str, u64> = HashMap::new();
        for arrival in applied {
            let Some(row) = rows.get(&arrival.id) else {
                wrong.push(format!("{} was delivered and never committed", arrival.id));
                continue;
            };
            if arrival.at_ms.is_some_and(|at_ms| at_ms < row.appended_ms) {
                wrong.push(format!("{} was delivered before it was committed", arrival.id));
            }
            if row.sequence != arrival.sequence || row.row.value.as_deref() != Some(&arrival.body[..]) {
                wrong.push(format!("{} was delivered as something else", arrival.id));
            }
            if first.insert(&arrival.id, arrival).is_some() {
                let newest = last.get(arrival.key.as_str()).copied();
                if self.scene == SINKS && newest > Some(arrival.sequence) {
                    let (key, sequence) = (&arrival.key, arrival.sequence);
                    wrong.push(format!("row {sequence} of {key} was repeated after row {newest:?}"));
                }
                continue;
            }
            let before = last.insert(&arrival.key, arrival.sequence);
            if before >= Some(arrival.sequence) {
                let (key, sequence) = (&arrival.key, arrival.sequence);
                wrong.push(format!("row {sequence} of {key} was first delivered after row {before:?}"));
            }
        }
        let is_refused = |row: &Row| self.scene == SINKS && is_marked(row);
        let buried = letters.iter().filter(|id| rows.get(*id).is_some_and(|row| !is_refused(row)));
        wrong.extend(buried.map(|id| format!("{id} is a dead letter although nothing refuses it for good")));
        let lost = rows.keys().filter(|id| !first.contains_key(id.as_str()) && !letters.contains(*id));
        wrong.extend(lost.map(|id| format!("{id} was committed and never delivered")));
        let strange = letters.iter().filter(|id| !rows.contains_key(*id));
        wrong.extend(strange.map(|id| format!("{id} is a dead letter and was never committed")));
        self.blame(wrong);
    }
}

/// The text that it was made of has the mark.
fn is_marked(row: &Row) -> bool {
    let value = row.row.value.as_deref().unwrap_or_default();
    value.split(|&byte| byte == b',').next().is_some_and(|text| text.ends_with(MARK.as_bytes()))
}

/// What the handler makes of a key's records.
fn links(texts: &[String]) -> Vec<String> {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut link = 0u64;
    let mut all = Vec::with_capacity(texts.len());
    for (count, text) in (1..).zip(texts) {
        let bytes = link.to_le_bytes().into_iter().chain(text.bytes());
        link = bytes.fold(0xcbf2_9ce4_8422_2325, step);
        all.push(format!("{text},{count},{link}"));
    }
    all
}

/// Every row that was ever committed, by its id.
fn committed_rows(changelog: &[Record]) -> HashMap<String, Row> {
    let mut rows = HashMap::new();
    for record in changelog {
        let (Some((&OUTBOX, sequence)), Some(value)) = (record.key.split_first(), &record.value) else {
            continue;
        };
        let Ok(row) = OutboxRow::decode(value.as_slice()) else { continue };
        let sequence = u64::from_be_bytes(sequence.try_into().unwrap_or_default());
        rows.insert(row.id.clone(), Row { row, sequence, appended_ms: record.timestamp_ms });
    }
    rows
}

/// Every committed record of a topic; none if there is no such topic.
fn dump(bootstrap: &str, topic: &str) -> Vec<Record> {
    let consumer: BaseConsumer = reading(bootstrap, "w7-judge", true)
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), READ_MAX).expect("the broker answers");
    if metadata.topics().first().is_none_or(|topic| topic.partitions().is_empty()) {
        return Vec::new();
    }
    assign(&consumer, topic, 0..PARTITIONS, Offset::Beginning).expect("assigned");
    // By number: an end is told again where the marker of a transaction comes behind it.
    let mut open: BTreeSet<i32> = (0..PARTITIONS).collect();
    let mut records = Vec::new();
    let deadline = Instant::now() + READ_MAX;
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "{topic} could not be read to its end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            // Lost connections and the like; librdkafka goes on by itself.
            None | Some(Err(_)) => {}
            Some(Ok(message)) => {
                let id = message.headers().and_then(|headers| {
                    let found = headers.iter().find(|header| header.key == "tidemill-id")?;
                    String::from_utf8(found.value?.to_vec()).ok()
                });
                records.push(Record {
                    key: message.key().unwrap_or_default().to_vec(),
                    value: message.payload().map(<[u8]>::to_vec),
                    timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
                    id,
                });
            }
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(id: &str, sequence: u64, key: &str) -> Arrival {
        Arrival {
            id: id.into(),
            sequence,
            key: key.into(),
            body: b"v".to_vec(),
            correlation: String::new(),
            at_ms: Some(10),
        }
    }

    /// Of a text that is marked, if it is `c`.
    fn row(id: &str, sequence: u64) -> (String, Row) {
        let value = if id == "c" { format!("v{MARK},1,2") } else { "v".to_owned() };
        let row = OutboxRow { id: id.into(), value: Some(value.into_bytes()), ..OutboxRow::default() };
        (id.to_owned(), Row { row, sequence, appended_ms: 10 })
    }

    fn found(scene: &str, rows: &[(&str, u64)], letters: &[&str], applied: &[Arrival]) -> Vec<String> {
        let mut judge = Judge { scene, summary: Summary::default() };
        let rows = rows.iter().map(|(id, sequence)| row(id, *sequence)).collect();
        let letters = letters.iter().map(|id| (*id).to_owned()).collect();
        judge.arrivals(&rows, &letters, applied);
        judge.summary.violations
    }

    #[test]
    fn each_kind_of_wrong_is_seen_and_a_repetition_is_none() {
        let rows = [("a", 1), ("b", 2), ("c", 3)];
        let (a, b) = (arrival("a", 1, "k"), arrival("b", 2, "k"));
        assert_eq!(found(SINKS, &rows, &["c"], &[a.clone(), a.clone(), b.clone()]), Vec::<String>::new());
        let late = [a.clone(), b.clone(), a.clone()];
        assert_eq!(found("moves", &rows[..2], &[], &late), Vec::<String>::new(), "of another owner");
        let violations = found(SINKS, &rows, &["c"], &late).join("\n");
        assert!(violations.contains("row 1 of k was repeated after"), "{violations}");
        let violations = found("moves", &rows, &["c"], &[a.clone(), b.clone()]).join("\n");
        assert!(violations.contains("c is a dead letter although"), "nobody refuses it there: {violations}");
        let early = Arrival { at_ms: Some(9), ..b.clone() };
        let other = Arrival { body: b"w".to_vec(), ..b.clone() };
        for (letters, applied, part) in [
            (&["c"][..], vec![b.clone(), a.clone()], "after row"),
            (&[], vec![a.clone(), b.clone()], "c was committed and never delivered"),
            (&["c"], vec![a.clone(), b.clone(), arrival("d", 4, "k")], "never committed"),
            (&["c"], vec![a.clone(), early], "before it was committed"),
            (&["c"], vec![a.clone(), other], "as something else"),
            (&["c", "d"], vec![a.clone(), b.clone()], "d is a dead letter and was never committed"),
            (&["c", "b"], vec![a, b], "b is a dead letter although"),
        ] {
            let violations = found(SINKS, &rows, letters, &applied).join("\n");
            assert!(violations.contains(part), "{part} is not in {violations}");
        }
    }
}

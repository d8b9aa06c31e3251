//! What must hold when everything has come to rest, from raw dumps of the topics and what the receiver was given.
//!
//! | what goes wrong | what the judge says |
//! |---|---|
//! | a record is lost, handled twice or out of order | the topic, or the rows, are not the links of what was fed |
//! | a row is lost behind its commit | it "was committed and never delivered" |
//! | a row is delivered that is not committed, or before it is | it "was delivered and never committed", or "before" |
//! | another row goes out under its id | it "was delivered as something else" |
//! | a key is overtaken, or its new owner begins too late | a row "was first delivered after" a later one |
//! | a row is sent twice by an owner who lives ([`Order`]) | it "was repeated after" itself or a later one |
//! | a row is given up that can be delivered | it "is a dead letter although nothing refuses it" |
//!
//! So a receiver that uses the sequence never goes back, and one that drops ids that it has seen has one effect a row.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message as _;
use rdkafka::message::Message;
use tidemill_proto::v1::OutboxRow;

use super::Summary;
use super::chapters::{Chapter, Order};
use super::receiver::Arrival;
use super::stage::{DEPLOYMENT, FLEET, Fed, MARK, OUTPUT, PARTITIONS};
use crate::reading::{header, read_on};

/// Longest list of violations of one kind.
const TOLD_MAX: usize = 5;
/// First byte of an outbox row's key.
const OUTBOX: u8 = 0x03;

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

/// What a scene leaves behind.
pub struct Case<'a> {
    pub scene: &'a str,
    pub bootstrap: &'a str,
    pub fed: &'a Fed,
    pub chapters: &'a [Chapter],
    /// The receiver may have refused marked rows for good.
    pub refuses_marked: bool,
}

pub fn judge(case: &Case<'_>) -> Summary {
    let mut judge = Judge { case, summary: Summary::default() };
    let rows = committed_rows(&dump(case.bootstrap, &format!("{FLEET}.{DEPLOYMENT}.changelog")));
    let letters: HashSet<String> = dump(case.bootstrap, &format!("{FLEET}.{DEPLOYMENT}.dead-letters"))
        .into_iter()
        .filter_map(|letter| letter.id)
        .collect();
    judge.topic(&dump(case.bootstrap, OUTPUT));
    judge.rows(&rows);
    judge.contents(&rows);
    judge.order();
    judge.fates(&rows, &letters);
    let mut summary = judge.summary;
    summary.rows = rows.len() as u64;
    summary.deliveries = case.arrivals().count() as u64;
    summary.notes.push(format!(
        "{}: {} rows, {} applied deliveries, {} dead letters",
        case.scene,
        rows.len(),
        summary.deliveries,
        letters.len()
    ));
    summary
}

impl<'a> Case<'a> {
    fn arrivals(&self) -> impl Iterator<Item = &'a Arrival> + use<'a> {
        self.chapters.iter().flat_map(|chapter| &chapter.arrivals)
    }
}

struct Judge<'a> {
    case: &'a Case<'a>,
    summary: Summary,
}

impl Judge<'_> {
    fn blame(&mut self, mut what: Vec<String>) {
        let more = what.len().saturating_sub(TOLD_MAX);
        what.truncate(TOLD_MAX);
        if more > 0 {
            what.push(format!("and {more} more like these"));
        }
        let scene = self.case.scene;
        self.summary.violations.extend(what.into_iter().map(|what| format!("{scene}: {what}")));
    }

    fn topic(&mut self, records: &[Record]) {
        let mut found: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        for record in records {
            found.entry(&record.key).or_default().push(record.value.as_deref().unwrap_or_default());
        }
        let mut wrong = Vec::new();
        for (key, texts) in self.case.fed {
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
    fn rows(&mut self, rows: &HashMap<String, Row>) {
        let mut by_key: BTreeMap<&[u8], Vec<&Row>> = BTreeMap::new();
        for row in rows.values() {
            by_key.entry(row.row.key.as_deref().unwrap_or_default()).or_default().push(row);
        }
        let mut wrong = Vec::new();
        for (key, texts) in self.case.fed {
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

    /// What arrived is a row that was committed by then, and nothing else.
    fn contents(&mut self, rows: &HashMap<String, Row>) {
        let mut wrong = Vec::new();
        for arrival in self.case.arrivals() {
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
        }
        self.blame(wrong);
    }

    /// First deliveries of a key are in order throughout, and others as the chapter says.
    fn order(&mut self) {
        let mut wrong = Vec::new();
        let (mut ids, mut last) = (HashSet::new(), HashMap::new());
        for chapter in self.case.chapters {
            let mut newest: HashMap<&str, u64> = HashMap::new();
            for arrival in &chapter.arrivals {
                let (key, sequence) = (arrival.key.as_str(), arrival.sequence);
                let before = newest.get(key).copied();
                newest.insert(key, before.unwrap_or_default().max(sequence));
                if ids.insert(arrival.id.as_str()) {
                    let before = last.insert(key, sequence);
                    if before >= Some(sequence) {
                        wrong.push(format!(
                            "row {sequence} of {key} was first delivered after row {before:?}"
                        ));
                    }
                    continue;
                }
                let is_wrong = match chapter.order {
                    Order::Rises => before >= Some(sequence),
                    Order::Repeats => before > Some(sequence),
                    Order::Any => false,
                };
                if is_wrong {
                    wrong.push(format!("row {sequence} of {key} was repeated after row {before:?}"));
                }
            }
        }
        self.blame(wrong);
    }

    /// Every row arrived, or is a dead letter for a reason.
    fn fates(&mut self, rows: &HashMap<String, Row>, letters: &HashSet<String>) {
        let arrived: HashSet<&str> = self.case.arrivals().map(|arrival| arrival.id.as_str()).collect();
        let is_refused = |row: &Row| self.case.refuses_marked && is_marked(row);
        let buried = letters.iter().filter(|id| rows.get(*id).is_some_and(|row| !is_refused(row)));
        let mut wrong: Vec<String> =
            buried.map(|id| format!("{id} is a dead letter although nothing refuses it for good")).collect();
        let lost = rows.keys().filter(|id| !arrived.contains(id.as_str()) && !letters.contains(*id));
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

/// Every committed record of a topic.
fn dump(bootstrap: &str, topic: &str) -> Vec<Record> {
    let mut records = Vec::new();
    let mut next = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
    read_on(bootstrap, topic, &mut next, |message| {
        let id = header(message, "tidemill-id").and_then(|id| String::from_utf8(id.to_vec()).ok());
        records.push(Record {
            key: message.key().unwrap_or_default().to_vec(),
            value: message.payload().map(<[u8]>::to_vec),
            timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
            id,
        });
    });
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

    /// What is said of rows `a`, `b` and so on, in their order, of a receiver that refuses what is marked or does not.
    fn said(rows: &[&str], letters: &[&str], refuses_marked: bool, chapters: &[Chapter]) -> String {
        let case = Case { scene: "test", bootstrap: "", fed: &Fed::new(), chapters, refuses_marked };
        let mut judge = Judge { case: &case, summary: Summary::default() };
        let rows = (1..).zip(rows).map(|(sequence, id)| row(id, sequence)).collect();
        let letters = letters.iter().map(|id| (*id).to_owned()).collect();
        judge.contents(&rows);
        judge.order();
        judge.fates(&rows, &letters);
        judge.summary.violations.join("\n")
    }

    fn chapter(order: Order, arrivals: &[&Arrival]) -> Chapter {
        Chapter { order, arrivals: arrivals.iter().copied().cloned().collect() }
    }

    #[test]
    fn each_kind_of_wrong_is_seen() {
        let (a, b) = (arrival("a", 1, "k"), arrival("b", 2, "k"));
        let early = Arrival { at_ms: Some(9), ..b.clone() };
        let other = Arrival { body: b"w".to_vec(), ..b.clone() };
        let unknown = arrival("d", 4, "k");
        for (letters, arrivals, part) in [
            (&["c"][..], &[&b, &a][..], "after row"),
            (&[], &[&a, &b], "c was committed and never delivered"),
            (&["c"], &[&a, &b, &unknown], "never committed"),
            (&["c"], &[&a, &early], "before it was committed"),
            (&["c"], &[&a, &other], "as something else"),
            (&["c", "d"], &[&a, &b], "d is a dead letter and was never committed"),
            (&["c", "b"], &[&a, &b], "b is a dead letter although"),
        ] {
            let said = said(&["a", "b", "c"], letters, true, &[chapter(Order::Any, arrivals)]);
            assert!(said.contains(part), "{part} is not in {said}");
        }
        let right = [chapter(Order::Rises, &[&a, &b])];
        assert_eq!(said(&["a", "b", "c"], &["c"], true, &right), "");
        let said = said(&["a", "b", "c"], &["c"], false, &right);
        assert!(said.contains("c is a dead letter although"), "nobody refuses it there: {said}");
    }

    #[test]
    fn a_repetition_is_wrong_while_one_owner_lives_and_is_answered() {
        let (a, b) = (arrival("a", 1, "k"), arrival("b", 2, "k"));
        let said = |chapters: &[Chapter]| said(&["a", "b"], &[], false, chapters);
        for (order, twice, late) in
            [(Order::Rises, false, false), (Order::Repeats, true, false), (Order::Any, true, true)]
        {
            let of_twice = said(&[chapter(order, &[&a, &a, &b])]);
            assert_eq!(of_twice.is_empty(), twice, "{order:?}: {of_twice}");
            let of_late = said(&[chapter(order, &[&a, &b, &a])]);
            assert_eq!(of_late.is_empty(), late, "{order:?}: {of_late}");
        }
        let next_life = [chapter(Order::Rises, &[&a, &b]), chapter(Order::Rises, &[&a, &b])];
        assert_eq!(said(&next_life), "", "no commit of the first knew");
        let backwards = [chapter(Order::Rises, &[&a, &b]), chapter(Order::Rises, &[&b, &a])];
        assert!(said(&backwards).contains("row 1 of k was repeated after row Some(2)"), "out of order again");
        let overtaken = [chapter(Order::Any, &[&b]), chapter(Order::Any, &[&a])];
        assert!(said(&overtaken).contains("row 1 of k was first delivered after row Some(2)"));
    }
}

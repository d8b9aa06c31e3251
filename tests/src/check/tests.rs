//! The checker finds each way to be wrong, and passes what is right.

use prost::Message;
use tidemill_proto::v1::Position;

use super::*;
use crate::evidence::{Ack, Committed, Ends, Fault, Outcome, Row, Run};

/// A right run of three records of one key, one transfer, and one fault.
struct Case {
    run: Run,
    acks: Vec<Ack>,
    topics: Vec<(&'static str, Vec<Row>)>,
    ends: Vec<Ends>,
    heads: Vec<Row>,
}

fn row(offset: i64, key: &[u8], value: &str) -> Row {
    Row { partition: 0, offset, key: Some(key.to_vec()), value: Some(value.as_bytes().to_vec()) }
}

impl Case {
    fn right() -> Case {
        // Worked out by another program, by the rule in the guest's description.
        let links = [4141454174377833837_u64, 14022447582652292444, 17981211665828249103];
        let texts = ["k,0,a", "k,1,b", "k,2,c"];
        let input: Vec<Row> = (0..).zip(texts).map(|(at, text)| row(at, b"k", text)).collect();
        let output = (0..).zip(texts.iter().zip(links));
        let output: Vec<Row> =
            output.map(|(at, (text, link))| row(at, b"k", &format!("{text},{},{link}", at + 1))).collect();
        let head = row(0, b"k", &format!("3,{}", links[2]));
        let changelog = row(0, b"\x01\x05headsk", &head.value_text());
        let money = |number: i64| number.to_le_bytes().to_vec();
        let balance = |account: &[u8], number| Row { value: Some(money(number)), ..row(0, account, "") };
        let booked = |account: &[u8], number| balance(&[b"\x01\x08balances", account].concat(), number);
        let acks = |topic: &'static str, rows: &[Row]| {
            let ack = |row: &Row| Ack {
                outcome: Outcome::Ok,
                topic: topic.to_owned(),
                partition: 0,
                offset: row.offset,
                key: row.key.clone().unwrap_or_default(),
                value: row.value.clone().unwrap_or_default(),
            };
            rows.iter().map(ack).collect::<Vec<_>>()
        };
        let transfers = vec![row(0, b"t1", "x,y,5")];
        let entries = vec![row(0, b"x", "t1,-5"), row(1, b"y", "t1,5")];
        let ledger = vec![row(0, b"x", "t1,-5,-5"), row(1, b"y", "t1,5,5")];
        let fault = Fault { name: "kill".into(), wanted: 1, proven: 1 };
        let run = Run {
            partitions: 1,
            bank: true,
            chain: true,
            records_min: 4,
            faults: vec![fault],
            settled: true,
            stall_ms_max: 1,
            ..Run::default()
        };
        Case {
            run,
            acks: [acks("chain-in", &input), acks("transfers", &transfers)].concat(),
            topics: vec![
                ("chain-in", input.clone()),
                ("copy-out", input),
                ("chain-out", output),
                ("chain.changelog", vec![changelog]),
                ("transfers", transfers),
                ("entries", entries),
                ("ledger", ledger),
                ("book.changelog", vec![booked(b"x", -5), booked(b"y", 5)]),
            ],
            ends: vec![Ends { topic: "chain-in".into(), partition: 0, stable: 3, high: 3 }],
            heads: vec![head],
        }
    }

    fn topic(&mut self, name: &str) -> &mut Vec<Row> {
        &mut self.topics.iter_mut().find(|(topic, _)| *topic == name).expect("a topic of the case").1
    }

    /// Rules that are violated, and reasons why the run is invalid.
    fn judge(&self) -> (Vec<&'static str>, Vec<String>) {
        let directory = tempfile::tempdir().expect("a directory");
        let evidence = Evidence::create(directory.path()).expect("created");
        evidence.write_run(&self.run).expect("written");
        evidence.write_acks(&self.acks).expect("written");
        for (topic, rows) in &self.topics {
            evidence.write_topic(topic, true, rows).expect("written");
            evidence.write_topic(topic, false, rows).expect("written");
        }
        evidence.write_ends(&self.ends).expect("written");
        let committed = |deployment: &str, topic: &str, offset| Committed {
            deployment: deployment.into(),
            topic: topic.into(),
            partition: 0,
            offset,
        };
        let offsets = [("chain", 3), ("copy", 3), ("split", 3), ("book", 3)];
        let offsets = offsets.map(|(deployment, offset)| committed(deployment, "chain-in", offset));
        evidence.write_offsets(&offsets).expect("written");
        evidence.write_state("live", "chain.heads", &self.heads).expect("written");
        let balances = [("x", -5i64), ("y", 5)].map(|(key, number)| Row {
            value: Some(number.to_le_bytes().to_vec()),
            ..row(0, key.as_bytes(), "")
        });
        evidence.write_state("live", "book.balances", &balances).expect("written");
        let verdict = check(&evidence).expect("judged");
        let mut rules: Vec<_> = verdict.violations.iter().map(|violation| violation.rule).collect();
        rules.dedup();
        (rules, verdict.invalid)
    }
}

#[test]
fn a_right_run_is_right() {
    assert_eq!(Case::right().judge(), (vec![], vec![]));
}

#[test]
fn every_way_to_be_wrong_is_found() {
    type Spoil = fn(&mut Case);
    let ways: [(&str, &[&str], Spoil); 13] = [
        ("a record is lost", &["W2"], |case| drop(case.topic("chain-out").remove(1))),
        ("a record is handled twice", &["W2"], |case| {
            let again = Row { offset: 3, ..case.topic("chain-out")[2].clone() };
            case.topic("chain-out").push(again);
        }),
        ("records are out of order", &["W2"], |case| {
            let rows = case.topic("chain-out");
            (rows[0].offset, rows[1].offset) = (1, 0);
        }),
        ("state was stale", &["W2"], |case| case.topic("chain-out")[2] = row(2, b"k", "k,2,c,2,17")),
        ("a copy is lost", &["W3"], |case| drop(case.topic("copy-out").pop())),
        ("a transaction hangs", &["W4"], |case| case.ends[0].stable = 2),
        ("a store is behind", &["W5"], |case| case.heads = vec![row(0, b"k", "2,17")]),
        ("a changelog is wrong", &["W5"], |case| case.topic("chain.changelog").clear()),
        ("a debit is entered twice", &["W1"], |case| {
            case.topic("entries").push(row(2, b"x", "t1,-5"));
            case.topic("ledger").push(row(2, b"x", "t1,-5,-10"));
        }),
        ("a credit is not booked", &["W1"], |case| drop(case.topic("ledger").pop())),
        ("nothing moves", &["W8"], |case| case.run.stall_ms = [(0, 2)].into()),
        ("an older revision is served again", &["W10"], |case| {
            let at = |offset, revision| Row {
                value: Some(Position { revision, ..Position::default() }.encode_to_vec()),
                ..row(offset, b"\0position", "")
            };
            case.topic("chain.changelog").extend([at(1, 7), at(2, 6)]);
        }),
        ("a node panics", &["W9"], |case| case.run.unexpected.push("n1 panicked".into())),
    ];
    for (name, rules, spoil) in ways {
        let mut case = Case::right();
        spoil(&mut case);
        let (found, invalid) = case.judge();
        // A wrong entry is a wrong balance, too.
        assert!(
            found.starts_with(rules) && found.iter().all(|rule| rules.contains(rule) || *rule == "W5"),
            "{name}: {found:?}"
        );
        assert_eq!(invalid, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_run_that_proves_nothing_is_invalid() {
    type Spoil = fn(&mut Case);
    let ways: [(&str, Spoil); 5] = [
        ("too few records", |case| case.run.records_min = 5),
        ("no fault", |case| case.run.faults.clear()),
        ("a fault without proof", |case| case.run.faults[0].proven = 0),
        ("an input that nobody sent", |case| case.topic("chain-in").push(row(3, b"k", "k,3,d"))),
        ("an acknowledged input that is gone", |case| {
            case.acks.push(Ack { offset: 9, value: b"k,9,z".to_vec(), ..case.acks[0].clone() });
        }),
    ];
    for (name, spoil) in ways {
        let mut case = Case::right();
        spoil(&mut case);
        assert!(!case.judge().1.is_empty(), "{name}");
    }
}

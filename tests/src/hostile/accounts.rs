//! What the records of a guest have come to, once it is paused: each that was passed has had its effects or is a
//! failure, and a failure has left nothing but what the policy leaves of it (F25, F29).
//!
//! ```text
//!   passed records == successes + failures        emissions == successes
//!   dead letters == failures, with the original bytes   state == what the successes wrote
//! ```
//!
//! By what lies in Kafka, read as any consumer reads it: group offsets, letters, emissions and the changelog.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;

use super::case::{Fate, Records, State};
use super::stage::Stage;
use crate::evidence::Row;
use crate::rig::dump::Dump;
use crate::wait::within;

/// Until what runs of a paused deployment has committed and left.
const STOPPED_MAX: Duration = Duration::from_secs(60);
/// The key of a commit's last record in a changelog, and the type byte of a state key; length and name of the store
/// follow it (`docs/formats/store.md`).
const POSITION: &[u8] = b"\0position";
const STATE: u8 = 0x01;
/// That of a record which waits behind one of its key that failed in the same call; without a value once it is done with.
const PARKED: u8 = 0x04;
/// What a guest of the kind [`State::Marks`] writes first.
const MARK: &[u8] = b"written";

impl Stage {
    /// Pauses the deployment, and judges everything that it has left.
    pub(super) fn account(&self, name: &str, records: &Records) -> Result<()> {
        let found = self.deployment(name)?;
        let is_halted = found.state() == proto::DeploymentState::Halted;
        ensure!(!is_halted || records.then == "halt", "it is halted: {}", found.reason);
        self.pause(name)?;
        Left::read(&self.bootstrap, name, records)?.judge(records)
    }

    fn pause(&self, name: &str) -> Result<()> {
        let mut client = DeploymentsClient::new(self.channel.clone());
        let request = proto::PauseRequest { name: name.to_owned(), ..Default::default() };
        self.runtime.block_on(client.pause(request))?;
        let has_stopped = || self.deployment(name).is_ok_and(|found| found.tasks.is_empty()).then_some(());
        let stopped = within(STOPPED_MAX, has_stopped);
        stopped.with_context(|| format!("it has tasks {STOPPED_MAX:?} after it was paused"))
    }
}

/// Keys of a store by partition, each with its last value; none of one that was deleted.
type Kept = BTreeMap<(i32, Vec<u8>), Option<Vec<u8>>>;

#[derive(Debug)]
struct Left {
    /// Records that are behind the group, by partition.
    passed: BTreeMap<i32, u64>,
    letters: Vec<Row>,
    emissions: u64,
    kept: Kept,
}

impl Left {
    fn read(bootstrap: &str, name: &str, records: &Records) -> Result<Left> {
        let dump = Dump::of(bootstrap);
        let committed = dump.committed(name, &format!("{name}-in"))?;
        let letters = match records.has_letters() {
            true => dump.topic(&format!("tidemill.{name}.dead-letters"), true)?,
            false => Vec::new(),
        };
        Ok(Left {
            passed: committed.iter().map(|at| (at.partition, at.offset.max(0) as u64)).collect(),
            letters,
            emissions: dump.topic(&format!("{name}-out"), true)?.len() as u64,
            kept: kept(dump.topic(&format!("tidemill.{name}.changelog"), true)?)?,
        })
    }

    fn judge(&self, records: &Records) -> Result<()> {
        let numbers =
            self.passed.iter().flat_map(|(&partition, &end)| (0..end).map(move |at| (partition, at)));
        let (good, bad): (BTreeSet<_>, BTreeSet<_>) = numbers.partition(|&(_, at)| records.is_good(at));
        let (passed, letters) = ((good.len() + bad.len()) as u64, self.letters.len() as u64);
        ensure!(passed > 0, "it has passed no record");
        let (failures, buried) = match (records.fate, records.then) {
            (Fate::Succeeds, _) => (0, 0),
            (Fate::Either, _) => (letters, letters),
            (Fate::Fails, "dead_letter") => (bad.len() as u64, bad.len() as u64),
            (Fate::Fails, "halt") => {
                ensure!(bad.is_empty(), "it has passed {} records that it was to halt before", bad.len());
                (0, 0)
            }
            (Fate::Fails, _) => (bad.len() as u64, 0),
        };
        ensure!(letters == buried, "{letters} dead letters, and {buried} records were to become some");
        let (key, value) = &records.record;
        let value = value.bytes();
        let is_another = |row: &&Row| row.key.as_deref() != *key || row.value != value;
        if let Some(other) = self.letters.iter().find(is_another) {
            anyhow::bail!("a dead letter is not its record: {:.100}", format!("{other:?}"));
        }
        let successes = passed - failures;
        ensure!(
            self.emissions == successes,
            "{} emissions of {successes} records that did not fail, of {passed}",
            self.emissions
        );
        match (records.state, records.fate) {
            (State::Nothing, _) => self.has_kept(&Kept::new()),
            (State::Count(key), _) => {
                let count = Some(successes.to_le_bytes().to_vec()).filter(|_| successes > 0);
                self.has_kept(&count.into_iter().map(|count| ((0, key.to_vec()), Some(count))).collect())
            }
            (State::Marks, Fate::Fails) => self.has_kept(&marks(&good)),
            (State::Marks, Fate::Succeeds) => self.has_kept(&marks(&(&good | &bad))),
            // Which of them is not known: each of them has written its mark and a row of its own.
            (State::Marks, Fate::Either) => {
                let marks = self.kept.values().filter(|value| value.as_deref() == Some(MARK)).count() as u64;
                let others = self.kept.len() as u64 - marks;
                ensure!(
                    (marks, others) == (successes, successes),
                    "{marks} marks and {others} other rows of {successes} records that did not fail"
                );
                Ok(())
            }
        }
    }

    fn has_kept(&self, expected: &Kept) -> Result<()> {
        let show = |(partition, key): &(i32, Vec<u8>)| format!("{partition}/{}", key.escape_ascii());
        let wrong = |(key, value): &(&(i32, Vec<u8>), &Option<Vec<u8>>)| expected.get(*key) != Some(*value);
        if let Some((key, _)) = self.kept.iter().find(wrong) {
            let many = self.kept.iter().filter(wrong).count();
            anyhow::bail!("{many} rows of state are of no record that did not fail, such as {}", show(key));
        }
        if let Some(key) = expected.keys().find(|key| !self.kept.contains_key(*key)) {
            let many = expected.len() - self.kept.len();
            anyhow::bail!("{many} records that did not fail have left no state, such as {}", show(key));
        }
        Ok(())
    }
}

/// What a changelog says of the only store of its deployment.
fn kept(changelog: Vec<Row>) -> Result<Kept> {
    let mut kept = Kept::new();
    let mut waiting = BTreeSet::new();
    for row in changelog {
        let key = row.key.unwrap_or_default();
        if key == POSITION {
            continue;
        }
        if key.first() == Some(&PARKED) {
            match row.value {
                Some(_) => waiting.insert((row.partition, key)),
                None => waiting.remove(&(row.partition, key)),
            };
            continue;
        }
        ensure!(key.first() == Some(&STATE), "the changelog has a row of no state: {}", key.escape_ascii());
        let name = usize::from(*key.get(1).context("a state key has the length of a name")?);
        let key = key.get(2 + name..).context("a state key has a name")?;
        kept.insert((row.partition, key.to_vec()), row.value);
    }
    ensure!(waiting.is_empty(), "{} records are passed and wait", waiting.len());
    Ok(kept)
}

/// What these records, by partition and offset, write first.
fn marks(records: &BTreeSet<(i32, u64)>) -> Kept {
    let mark = |&(partition, at): &(i32, u64)| {
        let key = [&b"m"[..], &at.to_be_bytes()].concat();
        ((partition, key), Some(MARK.to_vec()))
    };
    records.iter().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::case::{Act, all};

    /// Of two partitions, in each of which so many records are passed: the even ones are good.
    fn left(records: &Records, passed: u64) -> Left {
        let row = |partition, at: u64| Row {
            partition,
            offset: at as i64,
            key: records.record.0.map(<[u8]>::to_vec),
            value: records.record.1.bytes(),
        };
        let all = || (0..2).flat_map(|partition| (0..passed).map(move |at| (partition, at)));
        let good: BTreeSet<_> = all().filter(|&(_, at)| records.is_good(at)).collect();
        Left {
            passed: (0..2).map(|partition| (partition, passed)).collect(),
            letters: all().filter(|&(_, at)| !records.is_good(at)).map(|(p, at)| row(p, at)).collect(),
            emissions: good.len() as u64,
            kept: marks(&good),
        }
    }

    fn case(name: &str) -> Records {
        let case = all(0).into_iter().find(|case| case.name == name).expect("there is such a case");
        match case.act {
            Act::Records(records) => records,
            _ => panic!("{name} is about no records"),
        }
    }

    #[test]
    fn a_failure_leaves_its_letter_and_nothing_else() {
        let records = case("panic");
        left(&records, 7).judge(&records).expect("all is in order");
        let said = |change: fn(&mut Left)| {
            let mut left = left(&records, 7);
            change(&mut left);
            left.judge(&records).expect_err("something is wrong").to_string()
        };
        let kept = said(|left| left.kept.extend(marks(&BTreeSet::from([(1, 3)]))));
        assert!(kept.starts_with("1 rows of state") && kept.contains("such as 1/m"), "{kept}");
        let deleted = said(|left| drop(left.kept.insert((0, b"k".to_vec()), None)));
        assert!(deleted.starts_with("1 rows of state") && deleted.ends_with("such as 0/k"), "{deleted}");
        let lost = said(|left| drop(left.kept.pop_first()));
        assert!(lost.starts_with("1 records that did not fail have left no state"), "{lost}");
        assert!(said(|left| left.emissions += 1).starts_with("9 emissions of 8 records"));
        assert!(said(|left| drop(left.letters.pop())).starts_with("5 dead letters, and 6 records"));
        assert!(said(|left| left.letters[0].value = None).starts_with("a dead letter is not its record"));
        assert!(said(|left| left.passed.clear()).contains("no record"));
    }

    #[test]
    fn a_halt_is_exactly_before_the_record_and_a_skipped_one_has_no_letter() {
        let halts = case("bad UTF-8, halted for");
        left(&halts, 1).judge(&halts).expect("all is in order");
        assert!(left(&halts, 2).judge(&halts).is_err(), "it went on");
        let skips = case("bad UTF-8, skipped");
        let mut left = left(&skips, 5);
        assert!(left.judge(&skips).is_err(), "it has letters");
        left.letters.clear();
        left.judge(&skips).expect("all is in order");
    }

    #[test]
    fn rows_of_state_are_told_from_what_else_a_changelog_holds() {
        let row = |key: &[u8], value: Option<&[u8]>| Row {
            partition: 3,
            offset: 0,
            key: Some(key.to_vec()),
            value: value.map(<[u8]>::to_vec),
        };
        let key = b"\x01\x05statek";
        let rows = vec![row(POSITION, Some(b"")), row(key, Some(b"1")), row(key, None)];
        assert_eq!(kept(rows).expect("a changelog"), Kept::from([((3, b"k".to_vec()), None)]));
        assert!(kept(vec![row(b"\x04", Some(b""))]).is_err(), "somebody waits");
        assert!(kept(vec![row(b"\x04", Some(b"")), row(b"\x04", None)]).is_ok(), "and is done with");
    }
}

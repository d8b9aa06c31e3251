//! An upstream that may repeat, killed between a commit's records and its offsets, and the inbox behind it that drops
//! every repeat.
//!
//! ```text
//!  feed --> once-in --> [filter, at_least_once, ids] --> once-between --> [chain, inbox] --> once-out
//!                         nemesis: a kill, crashes        repeats                            none
//! ```
//!
//! The upstream has no state, so whatever the group's offsets do not cover when it dies is emitted again. Nothing but
//! the `tidemill-id` says that it is the same.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use rdkafka::config::ClientConfig;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::lines::each_committed;
use super::round::{FIRST_ANSWER_MAX, PROGRAM, SETTLE_MAX, is_settled};
use super::{DEPLOYMENT, INPUT, OUTPUT, PARTITIONS};
use crate::cluster::Cluster;
use crate::node::{Node, plain};
use crate::reading::header;
use crate::rig::dump::Dump;
use crate::wait::{until, within};

const UPSTREAM: &str = "upstream";
const BETWEEN: &str = "once-between";
/// Steps of a commit at which its records are in Kafka and its offsets are not.
const CRASHES: [&str; 3] = ["after-send-offsets", "after-end", "after-stores"];
const CRASH_MAX: Duration = Duration::from_secs(45);
const FLUSH_MAX: Duration = Duration::from_secs(60);
const KEYS: u32 = 40;
/// Records that are fed between two looks, which are 25 ms apart.
const HANDFUL: u32 = 50;
/// Longest list of violations.
const TOLD_MAX: usize = 10;

/// What the scene has found.
#[derive(Debug, Default)]
pub struct Found {
    pub records: u64,
    /// Emissions of the upstream that were there before. Without any the scene shows nothing.
    pub repeats: u64,
    /// Of the deployment behind it.
    pub effects: u64,
    pub violations: Vec<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { records, repeats, effects, violations } = self;
        match repeats {
            0 => write!(f, "{records} records, no repeats seen, so this run shows nothing, ")?,
            _ => write!(f, "{records} records, repeated {repeats} times, ")?,
        }
        write!(f, "{effects} effects behind the inbox, {} violations", violations.len())
    }
}

/// A record between the two deployments.
struct Emission {
    id: String,
    text: String,
}

/// Kills the node once and crashes it at each step in turn, all of it under load, and judges what came out. `modules`
/// are those of the upstream and of the deployment behind it.
pub fn play(
    cluster: &Cluster,
    directory: &Path,
    (upstream, behind): (&Path, &Path),
    seed: u64,
) -> Result<Found> {
    let mut node = Node::prepare(cluster, directory, &plain(cluster));
    node.restart_as(PROGRAM, &[]);
    node.until_it_answers(FIRST_ANSWER_MAX);
    let partitions = PARTITIONS.to_string();
    node.tidemill(&["topics", "create", INPUT, BETWEEN, OUTPUT, "--partitions", &partitions]).ok();
    let file = directory.join("upstream.yaml");
    let documents = format!(
        "name: {UPSTREAM}\nmodule: {}\nguarantee: at_least_once\ninputs: {{ in: {{ topic: {INPUT}, start: earliest }} }}\n\
         outputs: {{ out: {{ topic: {BETWEEN}, ids: true }} }}\nconfig: {{ keep: [{{ exists: true }}] }}\n\
         commit: {{ interval: 50ms }}\n---\n\
         name: {DEPLOYMENT}\nmodule: {}\ninputs: {{ in: {{ topic: {BETWEEN}, start: earliest }} }}\n\
         outputs: {{ out: {{ topic: {OUTPUT} }} }}\ninbox: {{ id: \"header:tidemill-id\", ttl: 1h }}\n\
         commit: {{ interval: 50ms }}\n",
        upstream.display(),
        behind.display()
    );
    fs::write(&file, documents)?;
    node.tidemill(&["apply", "--wait", "-f", &file.display().to_string()]).ok();

    let dump = Dump::of(cluster.bootstrap());
    let mut feed = Feed::new(cluster.bootstrap())?;
    until("the first come out", FIRST_ANSWER_MAX, || {
        feed.some();
        match dump.ends(OUTPUT) {
            Ok(ends) if ends.iter().any(|end| end.high > 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    node.kill();
    let mut wrong = Vec::new();
    let mut rng = Rng::with_seed(seed);
    for point in CRASHES {
        let crash = format!("{point}:{}@{UPSTREAM}", rng.u32(2..=4));
        node.restart_as(PROGRAM, &[("TIDEMILL_CRASH", &crash)]);
        let ended = within(CRASH_MAX, || {
            feed.some();
            node.ended()
        });
        if ended.is_none() {
            node.kill();
        }
        if !node.log().contains(&format!("crash point {crash}")) {
            wrong.push(format!("the node did not die at {crash}: {ended:?}"));
        }
    }
    node.restart_as(PROGRAM, &[]);
    let sent = feed.finish()?;
    let settled = within(SETTLE_MAX, || {
        let first = is_settled(&dump, UPSTREAM, INPUT).unwrap_or(false);
        (first && is_settled(&dump, DEPLOYMENT, BETWEEN).unwrap_or(false)).then_some(())
    });
    if settled.is_none() {
        wrong.push(format!("not everything was handled within {SETTLE_MAX:?}"));
    }
    wrong.extend(node.complaints());
    let mut found = judge(sent, &emissions(cluster)?, &effects(cluster)?);
    wrong.append(&mut found.violations);
    Ok(Found { violations: wrong, ..found })
}

/// The producer: texts that are numbered, of a few keys in turn.
struct Feed {
    producer: BaseProducer,
    sent: u32,
}

impl Feed {
    fn new(bootstrap: &str) -> Result<Feed> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true").set("linger.ms", "5");
        Ok(Feed { producer: config.create()?, sent: 0 })
    }

    fn some(&mut self) {
        for _ in 0..HANDFUL {
            let (key, text) = (format!("k{}", self.sent % KEYS), text_of(self.sent));
            let record = || BaseRecord::to(INPUT).key(&key).payload(&text);
            while self.producer.send(record()).is_err() {
                self.producer.poll(Duration::from_millis(20));
            }
            self.sent += 1;
        }
        self.producer.poll(Duration::ZERO);
    }

    /// Returns once every record is acknowledged: how many those are.
    fn finish(self) -> Result<u32> {
        self.producer.flush(FLUSH_MAX)?;
        Ok(self.sent)
    }
}

fn text_of(number: u32) -> String {
    format!("t{number}")
}

/// What the upstream has emitted.
fn emissions(cluster: &Cluster) -> Result<Vec<Emission>> {
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        each_committed(cluster.bootstrap(), BETWEEN, partition, |record| {
            let id = text(header(record, "tidemill-id"));
            all.push(Emission { id, text: text(record.payload()) });
            Ok(())
        })?;
    }
    Ok(all)
}

/// The texts that the deployment behind it has handled: an output of the chain is `TEXT,COUNT,LINK`.
fn effects(cluster: &Cluster) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        each_committed(cluster.bootstrap(), OUTPUT, partition, |record| {
            all.push(text(record.payload()).split(',').next().unwrap_or_default().to_owned());
            Ok(())
        })?;
    }
    Ok(all)
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

/// Every record is emitted at least once, always under one id that no other has, and has one effect.
fn judge(sent: u32, emissions: &[Emission], effects: &[String]) -> Found {
    let mut wrong = Vec::new();
    let (mut ids, mut texts) = (HashMap::new(), HashMap::new());
    for Emission { id, text } in emissions {
        let (id, text) = (id.as_str(), text.as_str());
        let first = *ids.entry(text).or_insert(id);
        if first != id {
            wrong.push(format!("{text} was emitted as {first} and again as {id}"));
        }
        let named = *texts.entry(id).or_insert(text);
        if named != text {
            wrong.push(format!("{named} and {text} were both emitted as {id:?}"));
        }
    }
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for effect in effects {
        *counts.entry(effect.as_str()).or_default() += 1;
    }
    for number in 0..sent {
        let text = text_of(number);
        if !ids.contains_key(text.as_str()) {
            wrong.push(format!("{text} was never emitted"));
        }
        match counts.remove(text.as_str()) {
            Some(1) => {}
            Some(times) => wrong.push(format!("{text} has its effect {times} times")),
            None => wrong.push(format!("{text} has no effect")),
        }
    }
    wrong.extend(counts.keys().map(|text| format!("{text} has an effect and was never sent")));
    if wrong.len() > TOLD_MAX {
        let more = wrong.len() - TOLD_MAX;
        wrong.truncate(TOLD_MAX);
        wrong.push(format!("and {more} more"));
    }
    Found {
        records: u64::from(sent),
        repeats: (emissions.len() - ids.len()) as u64,
        effects: effects.len() as u64,
        violations: wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges two records, by what was emitted (id and text) and what had effects.
    fn judged(emitted: &[(&str, &str)], effects: &[&str]) -> Found {
        let one = |(id, text): &(&str, &str)| Emission { id: (*id).to_owned(), text: (*text).to_owned() };
        let emissions: Vec<Emission> = emitted.iter().map(one).collect();
        let effects: Vec<String> = effects.iter().map(|text| (*text).to_owned()).collect();
        judge(2, &emissions, &effects)
    }

    #[test]
    fn a_repeat_with_an_effect_or_an_id_of_its_own_is_found_and_so_is_a_loss() {
        let found = judged(&[("a", "t0"), ("b", "t1"), ("a", "t0")], &["t0", "t1"]);
        assert_eq!((found.repeats, found.effects, found.violations.len()), (1, 2, 0), "{found:?}");
        let violations =
            |emitted: &[(&str, &str)], effects: &[&str]| judged(emitted, effects).violations.len();
        let once = [("a", "t0"), ("b", "t1")];
        assert_eq!(violations(&once, &["t0", "t1", "t0"]), 1, "an effect twice");
        assert_eq!(violations(&once, &["t0"]), 1, "none");
        assert_eq!(violations(&once, &["t0", "t1", "t7"]), 1, "one of nobody");
        assert_eq!(violations(&once[..1], &["t0", "t1"]), 1, "never emitted");
        assert_eq!(violations(&[("a", "t0"), ("b", "t1"), ("c", "t0")], &["t0", "t1"]), 1, "two ids");
        assert_eq!(violations(&[("a", "t0"), ("a", "t1")], &["t0", "t1"]), 1, "one id for both");
    }

    #[test]
    fn a_run_without_a_repeat_says_that_it_shows_nothing() {
        let found = judged(&[("a", "t0"), ("b", "t1")], &["t0", "t1"]);
        assert!(found.violations.is_empty() && found.to_string().contains("no repeats seen"), "{found}");
    }
}

//! Versions of the chain under traffic: what tests that exchange them, take them back or move them have in common.
//! Every record that comes out says which version handled it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::case::{Case, Special};
use super::dump::Dump;
use super::scenario::SOON;
use super::watch::Watch;
use crate::check::{Verdict, check_swaps};
use crate::cluster::Cluster;
use crate::evidence::{Ack, Began, Ends, Evidence};
use crate::wait::until;

const SETTLE_MAX: Duration = Duration::from_secs(120);

/// A feed of nothing but the chain's records, so many a second.
pub fn case(seed: u64, rate: u64, partitions: i32) -> Case {
    let special = Special { chain_only: true, ..Special::default() };
    Case { seed, rate, partitions, special, ..Case::plain(1, 1) }
}

/// The document of a version. `config` is what its handler is told beside, `more` are lines of the document.
pub fn document(version: u64, module: &str, config: &str, more: &str) -> String {
    format!(
        "name: chain\nmodule: {module}\ninputs: {{ in: {{ topic: chain-in }} }}\n\
         outputs: {{ out: {{ topic: chain-out }} }}\n\
         config: {{ remember: true, version: {version}{config} }}\n{more}"
    )
}

/// Where a version began in each of the partitions, from the `first` of a command that waited for it.
pub fn began_at(version: u64, first: &Value, partitions: i32) -> Result<Began> {
    let first = first.as_array().context("a command that waits says where a version began")?;
    let place = |at: &Value| -> Option<(i32, i64)> {
        Some((i32::try_from(at["partition"].as_i64()?).ok()?, at["offset"].as_i64()?))
    };
    let first: Option<Vec<(i32, i64)>> = first.iter().map(place).collect();
    let first = first.context("a position has a partition and an offset")?;
    ensure!(first.len() as i32 == partitions, "version {version} began in {first:?} only");
    Ok(Began { version, first })
}

/// Waits until so many more records have come out.
pub fn flows(watch: &Watch, records: u64) {
    let wanted = watch.records() + records;
    until("records flow", SOON, || match watch.records() {
        seen if seen >= wanted => Ok(()),
        seen => Err((seen, wanted)),
    });
}

/// Waits until all of the input is committed.
pub fn until_settled(dump: &Dump) {
    until("everything is committed", SETTLE_MAX, || match is_settled(dump) {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn is_settled(dump: &Dump) -> Result<bool> {
    let committed = dump.committed("chain", "chain-in")?;
    let reached =
        |end: &Ends| committed.iter().any(|at| at.partition == end.partition && at.offset == end.high);
    Ok(dump.ends("chain-in")?.iter().all(reached))
}

/// Holds what has come out against what went in and against where the versions began, in their order: W2, W4 and W10.
/// The evidence is left in `directory`.
pub fn judge(cluster: &Cluster, directory: &Path, acks: &[Ack], began: &[Began]) -> Result<Verdict> {
    let evidence = Evidence::create(&directory.join("evidence"))?;
    let dump = Dump::of(cluster.bootstrap());
    until_settled(&dump);
    evidence.write_acks(acks)?;
    for topic in ["chain-in", "chain-out"] {
        evidence.write_topic(topic, true, &dump.topic(topic, true)?)?;
    }
    evidence.write_ends(&[dump.ends("chain-in")?, dump.ends("chain-out")?].concat())?;
    check_swaps(&evidence, began)
}

//! What the control plane asks about redrives: accepted by the registry, carried out by the tasks.

use std::collections::BTreeMap;

use prost::Message;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::{CancelRedriveEntry, LetterFilter, RedriveEntry, RedriveRange};

use super::{Order, RETRIES_MAX};
use crate::config::Problem;
use crate::kafka::admin::At;
use crate::node::change::{AUTHOR_BYTES_MAX, bounded, refuse, too_long};
use crate::node::handle::{ControlError, Handle};
use crate::node::registered::Registered;
use crate::node::registry::Outcome;
use crate::store::RedriveProgress;
use crate::task::redrive::{error_types, progress_of};

/// A filter is kept for ever.
const FILTER_BYTES_MAX: usize = 64 << 10;
const RATE_MAX: f64 = 1e6;
const RETRIES_LIMIT: u32 = 1_000;

impl Handle {
    /// Accepts a redrive of the letters that are there now. `ended` names earlier ones that have come to
    /// their end in every partition.
    pub fn redrive(
        &self,
        request: proto::RedriveRequest,
        ended: Vec<u64>,
    ) -> Result<proto::RedriveResponse, ControlError> {
        let mut problems = Vec::new();
        if !(0.0..=RATE_MAX).contains(&request.rate) {
            problems.push(Problem::at("rate", format!("{} is outside 0 to {RATE_MAX}", request.rate)));
        }
        if request.retries_max > RETRIES_LIMIT {
            let message = format!("{} is above {RETRIES_LIMIT}", request.retries_max);
            problems.push(Problem::at("retries_max", message));
        }
        let entry = RedriveEntry {
            deployment: request.deployment,
            discard: false,
            filter: Some(request.filter.unwrap_or_default()),
            rate: request.rate,
            retries_max: if request.retries_max == 0 { RETRIES_MAX } else { request.retries_max },
            ended,
            author: request.author,
            ..RedriveEntry::default()
        };
        Ok(proto::RedriveResponse { id: self.order(entry, problems)? })
    }

    /// The same for letters that are to wait no more.
    pub fn discard_letters(
        &self,
        request: proto::DiscardLettersRequest,
        ended: Vec<u64>,
    ) -> Result<proto::DiscardLettersResponse, ControlError> {
        let entry = RedriveEntry {
            deployment: request.deployment,
            discard: true,
            filter: Some(request.filter.unwrap_or_default()),
            ended,
            author: request.author,
            ..RedriveEntry::default()
        };
        Ok(proto::DiscardLettersResponse { id: self.order(entry, Vec::new())? })
    }

    pub fn cancel_redrive(&self, request: proto::CancelRedriveRequest) -> Result<(), ControlError> {
        bounded("author", &request.author, AUTHOR_BYTES_MAX)?;
        self.latest()?;
        let registered = self.registered(&request.deployment)?;
        let orders = self.node.control_log.view().redrives(&registered.incarnation);
        if orders.iter().all(|order| order.id != request.id) {
            return Err(ControlError::NotFound(format!(
                "{} has no redrive {}; `tidemill dlq redrives {0}` lists them",
                request.deployment, request.id
            )));
        }
        let entry = CancelRedriveEntry {
            deployment: request.deployment.clone(),
            incarnation: registered.incarnation,
            id: request.id,
            author: request.author,
        };
        self.propose(&request.deployment, Entry::CancelRedrive(entry))
    }

    /// Redrives of a deployment's life, the newest first, without what the tasks know of them. Of a deployment
    /// that is paused there are none to ask.
    pub fn redrives(
        &self,
        deployment: &str,
        id: Option<u64>,
    ) -> Result<Vec<proto::RedriveStatus>, ControlError> {
        let registered = self.registered(deployment)?;
        let orders = self.node.control_log.view().redrives(&registered.incarnation);
        let paused = if registered.paused { format!("{deployment} is paused") } else { String::new() };
        let found: Vec<_> = orders
            .iter()
            .rev()
            .filter(|order| id.is_none_or(|id| order.id == id))
            .map(|order| shown(order, if order.is_open() { paused.as_str() } else { "" }))
            .collect();
        match (found.is_empty(), id) {
            (true, Some(id)) => Err(ControlError::NotFound(format!(
                "{deployment} has no redrive {id}; `tidemill dlq redrives {deployment}` lists them"
            ))),
            _ => Ok(found),
        }
    }

    /// What the task of one partition, which this node runs, has committed of its redrives. Without a
    /// partition, of a paused deployment: what has ended in any that this node had.
    pub fn redrives_here(
        &self,
        request: &proto::RedrivesRequest,
    ) -> Result<proto::RedrivesResponse, ControlError> {
        let registered = self.registered(&request.deployment)?;
        if registered.paused && request.partition.is_none() {
            return self.redrives_at_rest(&registered, request.id);
        }
        let partition = super::look::partition_of(request.partition)?;
        let shelf = super::look::Shelf::find(&self.node, &request.deployment, partition)?;
        let known = shelf.progress()?;
        let redrives = self.redrives(&request.deployment, request.id)?.into_iter().map(|mut status| {
            status.partitions.retain(|at| at.partition == partition);
            for at in &mut status.partitions {
                let row = known.iter().find(|(id, _)| *id == status.id).map(|(_, row)| row.clone());
                let progress = row.unwrap_or_default();
                let stands = !progress.ended && !status.cancelled;
                at.reason = if stands { shelf.reason.clone() } else { String::new() };
                at.progress = Some(progress);
            }
            status
        });
        Ok(proto::RedrivesResponse { redrives: redrives.collect() })
    }

    /// What has ended stays so, wherever its task was later; of anything else the last owner may know more,
    /// so nothing is said.
    fn redrives_at_rest(
        &self,
        registered: &Registered,
        id: Option<u64>,
    ) -> Result<proto::RedrivesResponse, ControlError> {
        let mut redrives = self.redrives(&registered.name, id)?;
        let mut known = BTreeMap::new();
        for redrive in &mut redrives {
            let id = redrive.id;
            for at in &mut redrive.partitions {
                let partition = at.partition;
                let rows = known.entry(partition).or_insert_with(|| self.left_open(registered, partition));
                if let Some((_, ended)) = rows.iter().find(|(of, row)| *of == id && row.ended) {
                    at.progress = Some(ended.clone());
                    at.reason.clear();
                }
            }
        }
        Ok(proto::RedrivesResponse { redrives })
    }

    /// What the store of a task that is not there any more knows of redrives, if it is open.
    fn left_open(&self, registered: &Registered, partition: i32) -> Vec<(u64, RedriveProgress)> {
        let reader = self.node.leases.reader(&self.node.store_dir(registered, partition));
        reader.and_then(|reader| progress_of(&reader).ok()).unwrap_or_default()
    }

    /// Checks an order, fixes its ranges, and has the registry accept it.
    fn order(&self, mut entry: RedriveEntry, mut problems: Vec<Problem>) -> Result<u64, ControlError> {
        problems.extend(too_long("author", &entry.author, AUTHOR_BYTES_MAX));
        self.latest()?;
        let registered = self.registered(&entry.deployment)?;
        let partitions = self.node.partitions(&registered)?;
        let filter = entry.filter.clone().unwrap_or_default();
        problems.extend(check_filter(&filter, partitions));
        problems.extend(check_size(&filter));
        refuse(problems)?;
        let spec = registered.parsed.spec.clone().map_err(ControlError::Unmet)?;
        if !spec.writes_letters() {
            return Err(ControlError::Precondition(format!(
                "{} has no dead letters: no kind of failure says `then: dead_letter`",
                entry.deployment
            )));
        }
        let topic = self.node.admin.topic(&self.node.letters_of(&spec))?;
        let wanted = |partition: &i32| filter.partitions.is_empty() || filter.partitions.contains(partition);
        let places: Vec<(String, i32)> = (0..partitions.min(topic.partitions))
            .filter(wanted)
            .map(|partition| (topic.name.clone(), partition))
            .collect();
        let starts = self.node.admin.offsets(&places, At::Start)?;
        let ends = self.node.admin.offsets(&places, At::End)?;
        entry.ranges = places
            .iter()
            .zip(starts.iter().zip(&ends))
            .map(|((_, partition), (from, to))| RedriveRange {
                partition: *partition,
                from: from.0,
                to: to.0,
            })
            .collect();
        (entry.topic, entry.topic_id) = (topic.name, topic.id.to_string());
        entry.incarnation = registered.incarnation;
        let (deployment, discard, author) = (entry.deployment.clone(), entry.discard, entry.author.clone());
        match self.node.control_log.propose(Entry::Redrive(entry))? {
            Outcome::Accepted(id) => {
                tracing::info!(deployment, id, discard, author, "a redrive is accepted");
                Ok(id)
            }
            Outcome::Refused(reason) => Err(ControlError::Precondition(reason)),
            Outcome::Stale { expected, current } => {
                Err(ControlError::Conflict { name: deployment, expected, current })
            }
        }
    }
}

fn check_size(filter: &LetterFilter) -> Option<Problem> {
    let bytes = filter.encoded_len();
    let message = || format!("it has {bytes} bytes; at most {FILTER_BYTES_MAX} are taken");
    (bytes > FILTER_BYTES_MAX).then(|| Problem::at("filter", message()))
}

/// Everything that keeps a filter from meaning any letter of a deployment with so many partitions.
pub fn check_filter(filter: &LetterFilter, partitions: i32) -> Vec<Problem> {
    let mut problems = Vec::new();
    let known = error_types();
    for wrong in filter.error_types.iter().filter(|named| !known.contains(&named.as_str())) {
        let message = format!(
            "`{wrong}` is no error type and no kind of a dead letter: there are {}",
            known.join(", ")
        );
        problems.push(Problem::at("filter.error_types", message));
    }
    if let (Some(from_ms), Some(to_ms)) = (filter.from_ms, filter.to_ms)
        && from_ms >= to_ms
    {
        problems.push(Problem::at("filter.to_ms", "is not after from_ms, so nothing lies between them"));
    }
    for wrong in filter.partitions.iter().filter(|partition| !(0..partitions).contains(*partition)) {
        let message = format!("there is no partition {wrong}; there are {partitions}");
        problems.push(Problem::at("filter.partitions", message));
    }
    for (field, what, ranges) in
        [("offsets", "offset", &filter.offsets), ("revisions", "revision", &filter.revisions)]
    {
        for range in ranges.iter().filter(|range| range.from >= range.to) {
            let message = format!("{}..{} holds no {what}", range.from, range.to);
            problems.push(Problem::at(format!("filter.{field}"), message));
        }
    }
    problems
}

/// With the reason why none of its partitions goes on.
fn shown(order: &Order, reason: &str) -> proto::RedriveStatus {
    let entry = &order.entry;
    proto::RedriveStatus {
        id: order.id,
        discard: entry.discard,
        filter: entry.filter.clone(),
        rate: entry.rate,
        retries_max: entry.retries_max,
        author: entry.author.clone(),
        asked_at_ms: order.asked_at_ms,
        cancelled: order.cancelled,
        partitions: entry
            .ranges
            .iter()
            .map(|range| proto::RedrivePartition {
                partition: range.partition,
                end: range.to,
                progress: None,
                reason: reason.to_owned(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::OffsetRange;

    use super::*;

    #[test]
    fn a_filter_that_cannot_match_is_refused_with_all_that_is_wrong() {
        let filter = LetterFilter {
            from_ms: Some(7),
            to_ms: Some(7),
            partitions: vec![0, 3, -1],
            offsets: vec![OffsetRange { from: 5, to: 5 }],
            revisions: vec![OffsetRange { from: 7, to: 6 }],
            error_types: ["decode", "DecodeError", "delivery", "decodeerror"].map(str::to_owned).into(),
            keys: vec![vec![0; FILTER_BYTES_MAX]],
            ..LetterFilter::default()
        };
        let keys: Vec<String> = check_filter(&filter, 3).into_iter().map(|problem| problem.key).collect();
        let [times, partitions] = ["filter.to_ms", "filter.partitions"];
        assert_eq!(
            keys,
            ["filter.error_types", times, partitions, partitions, "filter.offsets", "filter.revisions"]
        );
        assert!(check_size(&filter).is_some_and(|problem| problem.key == "filter"));
        assert_eq!(check_filter(&LetterFilter::default(), 1), []);
        assert_eq!(check_size(&LetterFilter::default()), None);
    }
}

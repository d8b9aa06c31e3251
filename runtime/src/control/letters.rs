//! Dead letters and redrives over gRPC: each partition is asked of the node that runs its task.

use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::dead_letters_client::DeadLettersClient;
use tonic::{Request, Response, Status};

use super::deadline::Deadline;
use super::details::status;
use super::forward::{ANSWER_BYTES_MAX, Forwarder, Peer, Read, timed};
use super::grpc::{Services, ask, change, pending};
use super::page::{self, PageToken};
use super::peers::{self, Peers};
use crate::config::problem::Problem;
use crate::node::redrive::check_filter;
use crate::node::{ControlError, Handle};

/// Letters that one page may hold at most, and holds when the caller does not say.
const LIMIT_MAX: u32 = 1_000;
const LIMIT_DEFAULT: u32 = 100;

fn client(channel: Peer) -> DeadLettersClient<Peer> {
    DeadLettersClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Read for proto::ListLettersRequest {
    type Answer = proto::ListLettersResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, _: Instant) -> Result<Self::Answer, ControlError> {
        node.letters_list(self)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).list(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::ShowLetterRequest {
    type Answer = proto::ShowLetterResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, Some(self.partition))
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, _: Instant) -> Result<Self::Answer, ControlError> {
        node.letters_show(self)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).show(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::CountLettersRequest {
    type Answer = proto::CountLettersResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, _: Instant) -> Result<Self::Answer, ControlError> {
        node.letters_count(self)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).count(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::RedrivesRequest {
    type Answer = proto::RedrivesResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, _: Instant) -> Result<Self::Answer, ControlError> {
        node.redrives_here(self)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).redrives(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Forwarder {
    /// The partitions in which letters are meant. A filter that cannot mean any is an error, and not an empty answer.
    async fn with_letters(
        &self,
        request: &impl Read,
        filter: &Option<proto::LetterFilter>,
        local: bool,
    ) -> Result<Vec<i32>, Status> {
        let all = self.partitions(request, local).await?;
        let filter = filter.clone().unwrap_or_default();
        // Who names one partition has asked for all of them before.
        let count = if request.target().1.is_none() { all.len() as i32 } else { i32::MAX };
        let problems = check_filter(&filter, count);
        if !problems.is_empty() {
            return Err(status(ControlError::Invalid(problems)));
        }
        let wanted = |partition: &i32| filter.partitions.is_empty() || filter.partitions.contains(partition);
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// Partition after partition; the token is the partition and the next offset in it.
    async fn letters(
        &self,
        request: proto::ListLettersRequest,
        deadline: Deadline,
    ) -> Result<proto::ListLettersResponse, Status> {
        let token = match request.local {
            // Of one partition, and its owner's to read.
            true => Ok(PageToken::default()),
            false => PageToken::read(&request.page_token)
                .filter(|token| matches!(token.after.len(), 0 | 8))
                .ok_or_else(|| Problem::at("page_token", "it is not from a page of letters")),
        };
        let (limit, token) = page::both(page::limit(request.limit, LIMIT_DEFAULT, LIMIT_MAX), token)?;
        if request.local {
            return self.read(proto::ListLettersRequest { limit, ..request }, true, deadline).await;
        }
        let partitions = self.with_letters(&request, &request.filter, false).await?;
        let token = token.among(&partitions)?;
        let mut answer = proto::ListLettersResponse::default();
        for partition in partitions {
            if partition < token.partition {
                continue;
            }
            let left = limit - answer.letters.len() as u32;
            if left == 0 {
                answer.next_page_token = PageToken { partition, after: Vec::new() }.write();
                break;
            }
            let part = proto::ListLettersRequest {
                partition: Some(partition),
                limit: left,
                page_token: token.within(partition),
                ..request.clone()
            };
            let part = self.read(part, false, deadline).await?;
            answer.letters.extend(part.letters);
            if !part.next_page_token.is_empty() {
                answer.next_page_token = PageToken { partition, after: part.next_page_token }.write();
                break;
            }
        }
        Ok(answer)
    }

    async fn count_letters(
        &self,
        request: proto::CountLettersRequest,
        deadline: Deadline,
    ) -> Result<proto::CountLettersResponse, Status> {
        let mut answer = proto::CountLettersResponse::default();
        for partition in self.with_letters(&request, &request.filter, request.local).await? {
            let part = proto::CountLettersRequest { partition: Some(partition), ..request.clone() };
            answer.partitions.extend(self.read(part, request.local, deadline).await?.partitions);
        }
        Ok(answer)
    }

    /// A partition whose owner does not answer has no progress, and says why; the others have.
    async fn redrives(
        &self,
        request: proto::RedrivesRequest,
        deadline: Deadline,
    ) -> Result<proto::RedrivesResponse, Status> {
        if request.local {
            return self.read(request, true, deadline).await;
        }
        let (name, id) = (request.deployment.clone(), request.id);
        let mut redrives = ask(&self.node, move |node| node.redrives(&name, id)).await?;
        if redrives.is_empty() {
            return Ok(proto::RedrivesResponse { redrives });
        }
        let name = request.deployment.clone();
        if ask(&self.node, move |node| node.is_paused(&name)).await? {
            let asked = proto::RedrivesRequest { partition: None, local: true, ..request };
            for known in self.redrives_at_rest(asked).await {
                take_over(&mut redrives, &known.redrives);
            }
            return Ok(proto::RedrivesResponse { redrives });
        }
        for partition in self.partitions(&request, false).await? {
            let part = proto::RedrivesRequest { partition: Some(partition), ..request.clone() };
            let known = match self.read(part, false, deadline).await {
                Ok(answer) => answer.redrives,
                Err(status) => {
                    tracing::debug!(partition, %status, "how far redrives are is not known");
                    say_why(&mut redrives, partition, status.message());
                    continue;
                }
            };
            for redrive in &mut redrives {
                let here = known.iter().find(|known| known.id == redrive.id);
                let here = here.and_then(|known| known.partitions.first());
                let place = redrive.partitions.iter_mut().find(|place| place.partition == partition);
                if let (Some(here), Some(place)) = (here, place) {
                    place.progress.clone_from(&here.progress);
                    place.reason.clone_from(&here.reason);
                }
            }
        }
        Ok(proto::RedrivesResponse { redrives })
    }

    /// Nobody runs the tasks of a paused deployment, so every node says what it knows to have ended.
    async fn redrives_at_rest(&self, asked: proto::RedrivesRequest) -> Vec<proto::RedrivesResponse> {
        let here = asked.clone();
        let here = ask(&self.node, move |node| node.redrives_here(&here)).await.ok();
        let others = Peers::new(self.clone());
        let told = others.each(move |channel| {
            let asked = peers::timed(asked.clone());
            async move { Some(client(channel).redrives(asked).await.ok()?.into_inner()) }
        });
        told.await.into_iter().filter_map(|(_, answer)| answer).chain(here).collect()
    }

    /// Redrives that have come to their end in every partition.
    async fn ended(&self, deployment: &str, deadline: Deadline) -> Result<Vec<u64>, Status> {
        let request =
            proto::RedrivesRequest { deployment: deployment.to_owned(), ..proto::RedrivesRequest::default() };
        let answer = self.redrives(request, deadline).await?;
        let has_ended = |redrive: &&proto::RedriveStatus| {
            redrive.partitions.iter().all(|at| at.progress.as_ref().is_some_and(|progress| progress.ended))
        };
        Ok(answer.redrives.iter().filter(has_ended).map(|redrive| redrive.id).collect())
    }
}

/// Nobody can say how far redrives are in a partition, so nothing need come of those that may still run. What
/// is known of the deployment as a whole says more.
fn say_why(redrives: &mut [proto::RedriveStatus], partition: i32, why: &str) {
    let open = redrives.iter_mut().filter(|redrive| !redrive.cancelled);
    for place in open.flat_map(|redrive| &mut redrive.partitions) {
        if place.partition == partition && place.reason.is_empty() {
            why.clone_into(&mut place.reason);
        }
    }
}

/// Of a partition that moved after the end, the node that had it last has seen more records come to theirs.
fn take_over(redrives: &mut [proto::RedriveStatus], known: &[proto::RedriveStatus]) {
    for redrive in redrives {
        let id = redrive.id;
        let places = known.iter().filter(|known| known.id == id).flat_map(|known| &known.partitions);
        for (partition, ended) in places.filter_map(|at| Some((at.partition, at.progress.as_ref()?))) {
            let place = redrive.partitions.iter_mut().find(|place| place.partition == partition);
            let Some(place) = place else { continue };
            if place.progress.as_ref().is_none_or(|known| settled(known) < settled(ended)) {
                place.progress = Some(ended.clone());
                place.reason.clear();
            }
        }
    }
}

fn settled(progress: &proto::RedriveProgress) -> u64 {
    progress.ok + progress.again + progress.dropped
}

#[tonic::async_trait]
impl proto::dead_letters_server::DeadLetters for Services {
    async fn list(
        &self,
        request: Request<proto::ListLettersRequest>,
    ) -> Result<Response<proto::ListLettersResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.letters(request, deadline)).await
    }

    async fn show(
        &self,
        request: Request<proto::ShowLetterRequest>,
    ) -> Result<Response<proto::ShowLetterResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        let local = request.local;
        self.counted(forwarder.read(request, local, deadline)).await
    }

    async fn count(
        &self,
        request: Request<proto::CountLettersRequest>,
    ) -> Result<Response<proto::CountLettersResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.count_letters(request, deadline)).await
    }

    async fn redrive(
        &self,
        request: Request<proto::RedriveRequest>,
    ) -> Result<Response<proto::RedriveResponse>, Status> {
        let pending = pending(&request);
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(async {
            let ended = forwarder.ended(&request.deployment, deadline).await?;
            let redrive = move |node: &Handle| node.redrive(request, ended);
            change(&forwarder.node, pending, |_, _| 0, redrive).await
        })
        .await
    }

    async fn discard(
        &self,
        request: Request<proto::DiscardLettersRequest>,
    ) -> Result<Response<proto::DiscardLettersResponse>, Status> {
        let pending = pending(&request);
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(async {
            let ended = forwarder.ended(&request.deployment, deadline).await?;
            let discard = move |node: &Handle| node.discard_letters(request, ended);
            change(&forwarder.node, pending, |_, _| 0, discard).await
        })
        .await
    }

    async fn cancel(
        &self,
        request: Request<proto::CancelRedriveRequest>,
    ) -> Result<Response<proto::CancelRedriveResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        let cancel =
            move |node: &Handle| node.cancel_redrive(request).map(|()| proto::CancelRedriveResponse {});
        self.change(node, pending, cancel).await
    }

    async fn redrives(
        &self,
        request: Request<proto::RedrivesRequest>,
    ) -> Result<Response<proto::RedrivesResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.redrives(request, deadline)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_before_a_pause_is_told_by_whichever_node_knows_most_of_it() {
        let at = |partition, progress| proto::RedrivePartition {
            partition,
            progress,
            reason: "orders is paused".into(),
            ..proto::RedrivePartition::default()
        };
        let of = |partitions| [proto::RedriveStatus { id: 7, partitions, ..proto::RedriveStatus::default() }];
        let ended = |ok| {
            Some(proto::RedriveProgress { given: 9, ok, ended: true, ..proto::RedriveProgress::default() })
        };
        let mut redrives = of(vec![at(0, None), at(1, None)]);
        for ok in [3, 9, 4] {
            take_over(&mut redrives, &of(vec![at(0, ended(ok)), at(1, None), at(2, ended(ok))]));
        }
        let other = [proto::RedriveStatus { id: 8, ..of(vec![at(1, ended(9))])[0].clone() }];
        take_over(&mut redrives, &other);
        let [known, unknown] = &redrives[0].partitions[..] else { panic!("{redrives:?}") };
        assert_eq!((&known.progress, known.reason.as_str()), (&ended(9), ""));
        assert_eq!((&unknown.progress, unknown.reason.as_str()), (&None, "orders is paused"));
    }
}

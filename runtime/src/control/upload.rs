//! A module on its way in: one header, then its bytes in order, bounded.

use std::time::{Duration, Instant};

use tidemill_proto::v1::{DeployHeader, DeployRequest, deploy_request::Part};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{timeout, timeout_at};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::details::invalid;
use crate::config::problem::Problem;

/// A larger module is refused while it arrives, before it is held.
pub const MODULE_BYTES_MAX: usize = 16 << 20;
/// A deployment document.
pub const DOCUMENT_BYTES_MAX: usize = 256 << 10;

/// Modules that are held at once; further callers wait before they send theirs.
pub const UPLOADS_MAX: usize = 4;
/// A caller that sends nothing for this long gives its place to the next.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Upload<'a> {
    /// Kept until the module is dealt with.
    pub place: SemaphorePermit<'a>,
    pub header: DeployHeader,
    /// Empty when the header came alone.
    pub module: Vec<u8>,
}

/// What a caller sends until then, in a place of its own.
pub async fn receive(
    places: &Semaphore,
    stream: impl Stream<Item = Result<DeployRequest, Status>> + Unpin,
    until: Instant,
) -> Result<Upload<'_>, Status> {
    // As a whole: a little of it, again and again, would otherwise hold a place for ever.
    timeout_at(until.into(), receive_whole(places, stream)).await.unwrap_or_else(|_| {
        let reason = format!(
            "the deploy did not arrive whole in its time; {UPLOADS_MAX} are received at once, and others wait: \
             send it again"
        );
        Err(Status::deadline_exceeded(reason))
    })
}

async fn receive_whole(
    places: &Semaphore,
    mut stream: impl Stream<Item = Result<DeployRequest, Status>> + Unpin,
) -> Result<Upload<'_>, Status> {
    let place = places.acquire().await.map_err(|_| Status::unavailable("this node is stopping"))?;
    let first = next(&mut stream).await?.and_then(|message| message.part);
    let Some(Part::Header(header)) = first else {
        return Err(invalid(Problem::from("the first message of a deploy is its header")));
    };
    if header.document.len() > DOCUMENT_BYTES_MAX {
        let message = format!("has {} bytes; at most {DOCUMENT_BYTES_MAX} are taken", header.document.len());
        return Err(invalid(Problem::at("document", message)));
    }
    let mut module = Vec::new();
    while let Some(message) = next(&mut stream).await? {
        let Some(Part::Chunk(chunk)) = message.part else {
            return Err(invalid(Problem::from(
                "after the header of a deploy come only chunks of its module",
            )));
        };
        if module.len() + chunk.len() > MODULE_BYTES_MAX {
            let message = format!(
                "is larger than {} MiB; strip its debug information (`tidemill build` does)",
                MODULE_BYTES_MAX >> 20
            );
            return Err(invalid(Problem::at("module", message)));
        }
        module.extend_from_slice(&chunk);
    }
    Ok(Upload { place, header, module })
}

async fn next(
    stream: &mut (impl Stream<Item = Result<DeployRequest, Status>> + Unpin),
) -> Result<Option<DeployRequest>, Status> {
    match timeout(SILENCE_MAX, stream.next()).await {
        Ok(message) => message.transpose(),
        Err(_) => {
            let reason = format!("nothing of the deploy has arrived for {SILENCE_MAX:?}; send it again");
            Err(Status::deadline_exceeded(reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn message(part: Part) -> Result<DeployRequest, Status> {
        Ok(DeployRequest { part: Some(part) })
    }

    /// A header, and then empty chunks for ever.
    fn trickle() -> impl Stream<Item = Result<DeployRequest, Status>> {
        let chunks = std::iter::repeat_with(|| message(Part::Chunk(Vec::new())));
        let chunks = tokio_stream::iter(chunks).throttle(Duration::from_millis(5));
        tokio_stream::once(message(Part::Header(DeployHeader::default()))).chain(chunks)
    }

    #[tokio::test]
    async fn a_module_that_comes_for_ever_gives_its_place_to_the_next() {
        let places = Semaphore::new(1);
        let until = || Instant::now() + Duration::from_millis(100);
        let slow = receive(&places, Box::pin(trickle()), until()).await;
        assert_eq!(slow.expect_err("too slow").code(), Code::DeadlineExceeded);

        let parts = [Part::Header(DeployHeader::default()), Part::Chunk(vec![1, 2]), Part::Chunk(vec![3])];
        let whole = tokio_stream::iter(parts.map(message));
        let upload = receive(&places, whole, Instant::now() + Duration::from_secs(60)).await;
        let upload = upload.expect("it is whole");
        assert_eq!(upload.module, [1, 2, 3]);

        let second = receive(&places, Box::pin(trickle()), until()).await;
        assert_eq!(second.expect_err("there is one place").code(), Code::DeadlineExceeded);
    }
}

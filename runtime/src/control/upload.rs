//! A module on its way in: one header, then its bytes in order, bounded.

use std::time::Duration;

use tidemill_proto::v1::{DeployHeader, DeployRequest, deploy_request::Part};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tonic::{Status, Streaming};

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

pub async fn receive(places: &Semaphore, mut stream: Streaming<DeployRequest>) -> Result<Upload<'_>, Status> {
    let place = places.acquire().await.map_err(|_| Status::unavailable("this node is stopping"))?;
    let first = next(&mut stream).await?.and_then(|message| message.part);
    let Some(Part::Header(header)) = first else {
        return Err(Status::invalid_argument("the first message of a deploy is its header"));
    };
    if header.document.len() > DOCUMENT_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "the document has {} bytes; at most {DOCUMENT_BYTES_MAX} are taken",
            header.document.len()
        )));
    }
    let mut module = Vec::new();
    while let Some(message) = next(&mut stream).await? {
        let Some(Part::Chunk(chunk)) = message.part else {
            return Err(Status::invalid_argument(
                "after the header of a deploy come only chunks of its module",
            ));
        };
        if module.len() + chunk.len() > MODULE_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "the module is larger than {} MiB; strip its debug information (`tidemill build` does)",
                MODULE_BYTES_MAX >> 20
            )));
        }
        module.extend_from_slice(&chunk);
    }
    Ok(Upload { place, header, module })
}

async fn next(stream: &mut Streaming<DeployRequest>) -> Result<Option<DeployRequest>, Status> {
    timeout(SILENCE_MAX, stream.message()).await.unwrap_or_else(|_| {
        let reason = format!("nothing of the deploy has arrived for {SILENCE_MAX:?}; send it again");
        Err(Status::deadline_exceeded(reason))
    })
}

//! A module on its way in: one header, then its bytes in order, bounded.

use tidemill_proto::v1::{DeployHeader, DeployRequest, deploy_request::Part};
use tonic::{Status, Streaming};

/// A larger module is refused while it arrives, before it is held.
pub const MODULE_BYTES_MAX: usize = 16 << 20;
/// A deployment document.
pub const DOCUMENT_BYTES_MAX: usize = 256 << 10;

#[derive(Debug)]
pub struct Upload {
    pub header: DeployHeader,
    /// Empty when the header came alone.
    pub module: Vec<u8>,
}

pub async fn receive(mut stream: Streaming<DeployRequest>) -> Result<Upload, Status> {
    let first = stream.message().await?.and_then(|message| message.part);
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
    while let Some(message) = stream.message().await? {
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
    Ok(Upload { header, module })
}

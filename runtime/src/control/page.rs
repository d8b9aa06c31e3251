//! Page tokens: where the next page begins, in words of the data and not of a node, so that a token
//! survives restarts, moves and new versions.

use sha2::{Digest, Sha256};
use tidemill_proto::v1::ScanStateRequest;
use tonic::Status;

/// A partition, and the last key that was returned from it, or what else its node says; nothing = at its
/// beginning.
///
/// | bytes | what |
/// |---|---|
/// | 8 | of a scan: of the digest of the request, which the next request must repeat |
/// | 4 | partition, big endian |
/// | rest | the last key |
#[derive(Debug, PartialEq, Eq, Default)]
pub struct PageToken {
    pub partition: i32,
    pub after: Vec<u8>,
}

impl PageToken {
    /// A token that says nothing of its request; an empty one is the beginning.
    pub fn read(token: &[u8]) -> Option<PageToken> {
        if token.is_empty() { Some(PageToken::default()) } else { PageToken::place(token) }
    }

    pub fn write(&self) -> Vec<u8> {
        [&self.partition.to_be_bytes()[..], &self.after].concat()
    }

    /// Where a partition is gone on with, that is not before the token's.
    pub fn within(&self, partition: i32) -> Vec<u8> {
        if partition == self.partition { self.after.clone() } else { Vec::new() }
    }

    fn place(bytes: &[u8]) -> Option<PageToken> {
        let (partition, after) = bytes.split_first_chunk::<4>()?;
        Some(PageToken { partition: i32::from_be_bytes(*partition), after: after.to_vec() })
    }

    /// The token of a scan; without one, the beginning.
    pub fn decode(request: &ScanStateRequest) -> Result<PageToken, Status> {
        let token = request.page_token.as_slice();
        if token.is_empty() {
            return Ok(PageToken::default());
        }
        let refuse = || {
            Status::invalid_argument(
                "page_token: it is not from a page of this scan; repeat deployment, store, prefix, from, to \
                 and partition of the first page, or begin again without a token",
            )
        };
        let (digest, rest) = token.split_first_chunk::<8>().ok_or_else(refuse)?;
        let place = PageToken::place(rest).filter(|_| *digest == digest_of(request));
        place.ok_or_else(refuse)
    }

    pub fn encode(&self, request: &ScanStateRequest) -> Vec<u8> {
        [&digest_of(request)[..], &self.write()].concat()
    }
}

/// What all pages of a scan have in common.
fn digest_of(request: &ScanStateRequest) -> [u8; 8] {
    let mut hash = Sha256::new();
    let partition = request.partition.map(i32::to_be_bytes).unwrap_or_default();
    let parts: [&[u8]; 6] = [
        request.deployment.as_bytes(),
        request.store.as_bytes(),
        &request.prefix,
        &request.from,
        &request.to,
        &partition,
    ];
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    std::array::from_fn(|index| digest[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_survives_its_way_to_the_caller_and_back_and_fits_no_other_scan() {
        let first = ScanStateRequest { deployment: "d".into(), ..ScanStateRequest::default() };
        assert_eq!(PageToken::decode(&first).expect("decodes"), PageToken::default());
        let token = PageToken { partition: 3, after: b"key".to_vec() };
        let next = ScanStateRequest { page_token: token.encode(&first), limit: 5, ..first.clone() };
        assert_eq!(PageToken::decode(&next).expect("decodes"), token);
        let other = ScanStateRequest { prefix: b"k".to_vec(), ..next.clone() };
        assert!(PageToken::decode(&other).is_err());
        let cut = ScanStateRequest { page_token: b"abc".to_vec(), ..first };
        assert!(PageToken::decode(&cut).is_err());
    }
}

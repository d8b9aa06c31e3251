//! Pages: how large one is, and where the next one begins, in words of the data and not of a node, so that
//! a token survives restarts, moves and new versions.

use sha2::{Digest, Sha256};
use tidemill_proto::v1::ScanStateRequest;
use tonic::Status;

use super::details::{invalid, status};
use crate::config::problem::Problem;
use crate::node::ControlError;

/// Rows of one page: as many as its caller says, `otherwise` if he does not.
pub fn limit(asked: u32, otherwise: u32, most: u32) -> Result<u32, Problem> {
    match asked {
        0 => Ok(otherwise),
        asked if asked <= most => Ok(asked),
        asked => Err(Problem::at("limit", format!("is {asked}; 1 to {most} are possible"))),
    }
}

/// Both things that a page is asked for with, or everything that is wrong with them.
pub fn both<T>(limit: Result<u32, Problem>, token: Result<T, Problem>) -> Result<(u32, T), Status> {
    match (limit, token) {
        (Ok(limit), Ok(token)) => Ok((limit, token)),
        (limit, token) => {
            let problems = [limit.err(), token.err()].into_iter().flatten().collect();
            Err(status(ControlError::Invalid(problems)))
        }
    }
}

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

    /// Refuses one of a partition that is not read: nothing would be left of what it is to go on with.
    pub fn among(self, partitions: &[i32]) -> Result<PageToken, Status> {
        if self == PageToken::default() || partitions.contains(&self.partition) {
            return Ok(self);
        }
        let partition = self.partition;
        let message =
            format!("it goes on in partition {partition}, which is not read: begin again without it");
        Err(invalid(Problem::at("page_token", message)))
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
    pub fn decode(request: &ScanStateRequest) -> Result<PageToken, Problem> {
        let token = request.page_token.as_slice();
        if token.is_empty() {
            return Ok(PageToken::default());
        }
        let refuse = || {
            Problem::at(
                "page_token",
                "it is not from a page of this scan; repeat deployment, store, prefix, from, to and \
                 partition of the first page, or begin again without a token",
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

    #[test]
    fn a_token_of_a_partition_that_is_not_there_is_refused_and_no_empty_page() {
        let of = |partition| PageToken { partition, after: b"key".to_vec() };
        assert_eq!(of(1).among(&[0, 1]).expect("it is there"), of(1));
        assert_eq!(PageToken::default().among(&[3]).expect("the beginning"), PageToken::default());
        for gone in [2, -1] {
            let status = of(gone).among(&[0, 1]).expect_err("it is not there");
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with("page_token: it goes on in partition"), "{status}");
        }
    }

    #[test]
    fn everything_that_is_wrong_with_a_page_is_said_at_once() {
        let asked = |rows| limit(rows, 100, 1_000);
        let other = ScanStateRequest { page_token: b"abc".to_vec(), ..ScanStateRequest::default() };
        let status = both(asked(1_001), PageToken::decode(&other)).expect_err("neither is right");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        let lines: Vec<&str> = status.message().lines().collect();
        assert_eq!((lines.len(), lines[0]), (2, "limit: is 1001; 1 to 1000 are possible"), "{status}");
        assert!(lines[1].starts_with("page_token: it is not from a page of this scan"), "{status}");
        assert!(!status.details().is_empty(), "programs are told as well");
        for (rows, page) in [(0, 100), (1, 1), (1_000, 1_000)] {
            assert_eq!(both(asked(rows), Ok(7)).expect("right").0, page);
        }
    }
}

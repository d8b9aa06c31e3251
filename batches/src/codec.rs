//! Decompression with a bound: what a few bytes may turn into is decided here and not by them.

use std::io::Read;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::BatchError;

/// Bytes that the records of one batch may decompress to. Clients fill batches by their
/// uncompressed size, so real ones stay far below.
const DECOMPRESSED_BYTES_MAX: usize = 128 * 1024 * 1024;

/// What is reserved at most before it has been seen that there is as much.
const GUESS_BYTES_MAX: usize = 1024 * 1024;

/// What snappy-java puts before its blocks: magic, version 1, compatible since 1.
pub(crate) const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Decompresses the records of a batch; `codec` is the number in its attributes.
pub fn decompress(codec: i16, compressed: &[u8]) -> Result<Bytes, BatchError> {
    // Most records shrink to a third or a quarter, so what they are copied to need not grow.
    let guess = compressed.len().saturating_mul(4).min(GUESS_BYTES_MAX);
    let bytes = match codec {
        1 => read_all(MultiGzDecoder::new(compressed), guess),
        2 => snappy(compressed),
        3 => lz4::Decoder::new(compressed).ok().and_then(|decoder| read_all(decoder, guess)),
        4 => ZstdDecoder::with_buffer(compressed).ok().and_then(|decoder| read_all(decoder, guess)),
        _ => None,
    };
    bytes.map(Bytes::from).ok_or(BatchError::Compression)
}

/// Reads to the end, but not beyond the bound.
fn read_all(from: impl Read, guess: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(guess);
    from.take(DECOMPRESSED_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    // Whoever keeps them reckons with as many bytes as there are.
    if bytes.len() < bytes.capacity() / 2 {
        bytes.shrink_to_fit();
    }
    (bytes.len() <= DECOMPRESSED_BYTES_MAX).then_some(bytes)
}

/// Snappy comes in blocks with snappy-java's framing, or as a single block without.
fn snappy(compressed: &[u8]) -> Option<Vec<u8>> {
    let Some(mut left) = compressed.strip_prefix(XERIAL_MAGIC) else {
        return block(compressed, 0);
    };
    let mut bytes = Vec::new();
    while !left.is_empty() {
        let (length, rest) = left.split_first_chunk::<4>()?;
        let (compressed, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        bytes.extend(block(compressed, bytes.len())?);
        left = rest;
    }
    Some(bytes)
}

/// One block, if it fits beside the `used` bytes.
fn block(compressed: &[u8], used: usize) -> Option<Vec<u8>> {
    let length = snap::raw::decompress_len(compressed).ok()?;
    if length > DECOMPRESSED_BYTES_MAX - used {
        return None;
    }
    snap::raw::Decoder::new().decompress_vec(compressed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::compress;

    #[test]
    fn a_small_batch_does_not_become_a_huge_one() {
        let zeros = std::io::repeat(0).take(DECOMPRESSED_BYTES_MAX as u64 + 1);
        let bomb = zstd::stream::encode_all(zeros, 1).expect("compresses");
        assert!(bomb.len() < 100_000);
        assert_eq!(decompress(4, &bomb), Err(BatchError::Compression));
    }

    #[test]
    fn a_snappy_block_that_promises_too_much_is_refused() {
        // A length of 2^32 - 1 and nothing else.
        assert_eq!(decompress(2, &[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(BatchError::Compression));
    }

    #[test]
    fn what_was_compressed_comes_back_whatever_the_codec() {
        // Longer than any buffer on the way, with a tail that does not repeat.
        let mut bytes = b"the quick brown fox ".repeat(20_000);
        bytes.extend((0..70_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
        for codec in 1..=4 {
            let compressed = compress(codec, &bytes);
            assert!(compressed.len() < bytes.len());
            assert_eq!(decompress(codec, &compressed), Ok(Bytes::from(bytes.clone())), "codec {codec}");
        }
    }

    #[test]
    fn snappy_is_read_in_the_framing_of_snappy_java_too() {
        let mut framed = XERIAL_MAGIC.to_vec();
        for part in [&b"one part"[..], b"and another"] {
            let block = compress(2, part);
            framed.extend((block.len() as u32).to_be_bytes());
            framed.extend(block);
        }
        assert_eq!(decompress(2, &framed), Ok(Bytes::from_static(b"one partand another")));
        framed.pop();
        assert_eq!(decompress(2, &framed), Err(BatchError::Compression));
    }

    #[test]
    fn garbage_is_refused_by_every_codec() {
        for codec in 1..=7 {
            assert_eq!(decompress(codec, b"garbage"), Err(BatchError::Compression), "codec {codec}");
        }
    }
}

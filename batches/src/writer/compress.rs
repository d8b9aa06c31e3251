//! Compresses the records of a batch, as Kafka's own clients do and every client reads it.
//!
//! | codec | what is written | why |
//! |---|---|---|
//! | gzip | one member | librdkafka reads no second one |
//! | snappy | snappy-java's framing: its magic, then blocks, a length before each | Java writes nothing else |
//! | lz4 | one frame of independent blocks, without checksums | Java refuses linked blocks, and the batch has its CRC |
//! | zstd | one frame that says its content's size | readers allocate once |
//!
//! Whatever becomes as large as it was is given up as soon as that shows. So is what cannot be compressed for another
//! reason, memory that a codec does not get for example: a batch can always be sent as it is.

use std::io::{self, Cursor, Write};
use std::str::FromStr;

use flate2::Compression;
use flate2::write::GzEncoder;
use lz4::liblz4::BlockChecksum;
use lz4::{BlockMode, BlockSize, ContentChecksum, EncoderBuilder};

use crate::HEADER_LEN;
use crate::codec::XERIAL_MAGIC;

/// Uncompressed bytes of a snappy block: the most that snappy finds repetitions in.
const SNAPPY_BLOCK_BYTES: usize = 64 * 1024;

/// Kafka's name for "whatever the codec takes by itself".
const LEVEL_DEFAULT: i32 = -1;
const GZIP_LEVEL_MAX: i32 = 9;
const LZ4_LEVEL_MAX: i32 = 12;

/// How records are compressed. The numbers are those in the attributes of a batch, which Kafka has frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

/// Not the name of a codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compression.type is `{0}`: it must be none, gzip, snappy, lz4 or zstd")]
pub struct UnknownCodec(String);

impl Codec {
    pub(super) fn number(self) -> i16 {
        self as i16
    }
}

impl FromStr for Codec {
    type Err = UnknownCodec;

    /// From a value of `compression.type`, written as carelessly as librdkafka takes it.
    fn from_str(name: &str) -> Result<Codec, UnknownCodec> {
        match name.trim().to_ascii_lowercase().as_str() {
            "none" => Ok(Codec::None),
            "gzip" => Ok(Codec::Gzip),
            "snappy" => Ok(Codec::Snappy),
            "lz4" => Ok(Codec::Lz4),
            "zstd" => Ok(Codec::Zstd),
            _ => Err(UnknownCodec(name.to_owned())),
        }
    }
}

/// A batch with its records compressed, and room for its header; none where that is not shorter than `batch`.
///
/// The codecs' tables, up to megabytes for zstd, live as long as the call: there is a writer for every partition, and
/// each would hold them otherwise.
pub(super) fn compress(codec: Codec, level: Option<i32>, batch: &[u8]) -> Option<Vec<u8>> {
    let pack: fn(&[u8], Option<i32>, Bounded<'_>) -> Option<()> = match codec {
        Codec::None => return None,
        Codec::Gzip => gzip,
        Codec::Snappy => snappy,
        Codec::Lz4 => lz4,
        Codec::Zstd => zstd,
    };
    let records = batch.get(HEADER_LEN..)?;
    let mut out = Vec::with_capacity(batch.len());
    out.resize(HEADER_LEN, 0);
    let bounded = Bounded { out: &mut out, bytes_max: batch.len() - 1 };
    pack(records, level.filter(|&level| level != LEVEL_DEFAULT), bounded)?;
    if out.len() >= batch.len() {
        return None;
    }
    out.shrink_to_fit();
    Some(out)
}

/// Takes bytes as long as compressing pays. Never grows beyond what was allocated.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    bytes_max: usize,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.bytes_max.saturating_sub(self.out.len()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gzip(records: &[u8], level: Option<i32>, out: Bounded<'_>) -> Option<()> {
    let level = level.map(|level| Compression::new(level.clamp(0, GZIP_LEVEL_MAX).cast_unsigned()));
    let mut encoder = GzEncoder::new(out, level.unwrap_or_default());
    encoder.write_all(records).ok()?;
    encoder.finish().ok().map(|_| ())
}

fn snappy(records: &[u8], _level: Option<i32>, mut out: Bounded<'_>) -> Option<()> {
    let mut encoder = snap::raw::Encoder::new();
    let mut block = vec![0u8; snap::raw::max_compress_len(records.len().min(SNAPPY_BLOCK_BYTES))];
    out.write_all(XERIAL_MAGIC).ok()?;
    for records in records.chunks(SNAPPY_BLOCK_BYTES) {
        let length = encoder.compress(records, &mut block).ok()?;
        out.write_all(&(length as u32).to_be_bytes()).ok()?;
        out.write_all(&block[..length]).ok()?;
    }
    Some(())
}

fn lz4(records: &[u8], level: Option<i32>, out: Bounded<'_>) -> Option<()> {
    let mut encoder = EncoderBuilder::new()
        .level(level.unwrap_or(0).clamp(0, LZ4_LEVEL_MAX).cast_unsigned())
        .block_size(BlockSize::Max64KB)
        .block_mode(BlockMode::Independent)
        .block_checksum(BlockChecksum::NoBlockChecksum)
        .checksum(ContentChecksum::NoChecksum)
        .build(out)
        .ok()?;
    encoder.write_all(records).ok()?;
    encoder.finish().1.ok()
}

fn zstd(records: &[u8], level: Option<i32>, out: Bounded<'_>) -> Option<()> {
    // It finds the nearest level by itself.
    let mut compressor =
        zstd::bulk::Compressor::new(level.unwrap_or(zstd::DEFAULT_COMPRESSION_LEVEL)).ok()?;
    let after = out.out.len() as u64;
    // It writes into what is allocated behind the position, and fails where that does not do.
    let mut end = Cursor::new(out.out);
    end.set_position(after);
    compressor.compress_to_buffer(records, &mut end).ok().map(|_| ())
}

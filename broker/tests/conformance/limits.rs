//! Requests that are too large, cut short or senseless harm nobody but their connection.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse, MetadataRequest};
use kafka_protocol::protocol::Decodable;

use crate::cluster::{cluster, connect};

fn serves() {
    let response = connect().call(&MetadataRequest::default().with_topics(Some(Vec::new())), 9);
    assert_eq!(response.brokers.len(), 1);
}

/// A request header and whatever follows it.
fn request(key: i16, version: i16, body: &[u8]) -> BytesMut {
    let mut frame = BytesMut::new();
    frame.put_i16(key);
    frame.put_i16(version);
    frame.put_i32(7);
    frame.put_i16(-1);
    frame.put_slice(body);
    frame
}

fn closes(frame: &[u8], what: &str) {
    let mut raw = connect();
    raw.send_frame(frame);
    assert!(raw.receive_frame().is_none(), "{what} is answered");
}

#[test]
fn an_oversized_or_negative_length_closes_the_connection() {
    for length in [i32::MAX, -1, i32::MIN, 200 << 20] {
        let mut raw = connect();
        raw.stream.write_all(&length.to_be_bytes()).expect("is sent");
        assert!(raw.receive_frame().is_none(), "length {length}");
    }
    serves();
}

#[test]
fn an_unknown_api_or_version_closes_the_connection() {
    closes(&request(999, 0, &[]), "an unknown API");
    closes(&request(3, 99, &[]), "an unknown version");
    closes(&request(-1, 0, &[]), "a negative API");
    serves();
}

#[test]
fn a_newer_version_of_api_versions_is_answered_with_what_there_is() {
    let mut raw = connect();
    // The header of a flexible version ends in tagged fields, of which there are none.
    raw.send_frame(&request(18, 99, &[0]));
    let mut frame = raw.receive_frame().expect("is answered");
    let _correlation_id = frame.split_to(4);
    let response = ApiVersionsResponse::decode(&mut frame, 0).expect("is version 0");
    assert_eq!(response.error_code, 35);
    // Apache Kafka names ApiVersions alone, the embedded broker everything.
    assert!(response.api_keys.iter().any(|api| api.api_key == 18));
    for version in 0..=4 {
        let request = ApiVersionsRequest::default()
            .with_client_software_name("test".to_owned().into())
            .with_client_software_version("1".to_owned().into());
        assert_eq!(raw.call(&request, version).error_code, 0, "version {version}");
    }
}

#[test]
fn a_body_that_is_cut_short_or_promises_too_much_closes_the_connection() {
    // Metadata v1: an array of i32::MAX names, and no names.
    closes(&request(3, 1, &[0x7f, 0xff, 0xff, 0xff]), "a huge array");
    // The same with a compact array of u32::MAX - 1 elements, in version 9.
    closes(&request(3, 9, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f]), "a huge compact array");
    // Metadata v1: one name of 100 bytes, of which there are two.
    closes(&request(3, 1, &[0, 0, 0, 1, 0, 100, b'a', b'b']), "a short name");
    // Produce v3 with an array of i32::MAX topics.
    closes(&request(0, 3, &[0xff, 0xff, 0, 1, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]), "huge topics");
    // Nothing at all where a body is needed.
    closes(&request(11, 5, &[]), "an empty join");
    closes(&[0, 3], "half a header");
    closes(&[], "an empty frame");
    serves();
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_request_is_forgotten() {
    for length in [2, 4, 6, 100] {
        let mut raw = connect();
        let bytes = [&1000i32.to_be_bytes()[..], &[0; 96]].concat();
        raw.stream.write_all(&bytes[..length]).expect("is sent");
    }
    serves();
}

#[test]
fn random_bytes_never_stop_the_broker() {
    if cluster().embedded().is_none() {
        return; // It is the embedded broker whose decoder is on trial.
    }
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("SEED={seed}");
    let mut state = seed | 1;
    let mut random = move || {
        // xorshift64: enough to make bytes, and the seed brings them back.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3000 {
        let key = (random() % 70) as i16;
        let version = (random() % 14) as i16;
        let length = (random() % 80) as usize;
        let mostly_small = |byte: u64| if byte & 0x300 == 0 { (byte & 0xff) as u8 } else { (byte & 3) as u8 };
        let body: Vec<u8> = (0..length).map(|_| mostly_small(random())).collect();
        let mut raw = connect();
        raw.send_frame(&request(key, version, &body));
    }
    serves();
}

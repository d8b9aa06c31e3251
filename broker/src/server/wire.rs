//! Frames and messages: bytes to requests, responses to bytes.
//!
//! ```text
//!   request:  length i32 | api key i16 | version i16 | correlation id i32 | client id | ... | body
//!   response: length i32 | correlation id i32 | (tagged fields) | body
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ResponseHeader;
use kafka_protocol::messages::{ApiKey, RequestHeader, RequestKind, ResponseKind};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::guard;
use crate::core::versions;

/// Why a frame closes its connection. Kafka does the same in all these cases.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than a header has.
    #[error("the request is cut short")]
    Short,
    /// Not an API that this broker has.
    #[error("API {0} is not served")]
    UnknownApi(i16),
    /// A version that ApiVersions does not offer.
    #[error("version {version} of {key:?} is not served")]
    UnsupportedVersion {
        /// The API.
        key: ApiKey,
        /// The version.
        version: i16,
    },
    /// The body does not follow the API's schema.
    #[error("malformed {key:?} request, version {version}: {reason}")]
    Malformed {
        /// The API.
        key: ApiKey,
        /// The version.
        version: i16,
        /// What the decoder said.
        reason: String,
    },
    /// A response could not be written in the request's version: a bug of the broker.
    #[error("cannot encode the response to {key:?}, version {version}: {reason}")]
    Unencodable {
        /// The API.
        key: ApiKey,
        /// The version.
        version: i16,
        /// What the encoder said.
        reason: String,
    },
}

/// What is needed to answer a request.
#[derive(Debug, Clone, Copy)]
pub struct Envelope {
    /// The API.
    pub key: ApiKey,
    /// Its version.
    pub version: i16,
    /// The client's number for the request.
    pub correlation_id: i32,
}

/// A request, ready to be handled.
#[derive(Debug)]
pub struct Received {
    /// How to answer.
    pub envelope: Envelope,
    /// The client's name for itself.
    pub client_id: String,
    /// The body, or none for a version of ApiVersions that is not known.
    pub request: Option<RequestKind>,
}

/// Decodes a frame.
pub fn decode(mut frame: Bytes) -> Result<Received, WireError> {
    let number = |at: usize| frame.get(at..at + 2).map(|b| i16::from_be_bytes([b[0], b[1]]));
    let (Some(key), Some(version)) = (number(0), number(2)) else { return Err(WireError::Short) };
    let key = ApiKey::try_from(key).map_err(|()| WireError::UnknownApi(key))?;
    let correlation_id = frame.get(4..8).ok_or(WireError::Short)?;
    let correlation_id = i32::from_be_bytes(correlation_id.try_into().map_err(|_| WireError::Short)?);
    let envelope = Envelope { key, version, correlation_id };
    if !versions::supported(key, version) {
        return match key {
            // A newer client asks first and falls back to what the answer says.
            ApiKey::ApiVersions => {
                let envelope = Envelope { version: 0, ..envelope };
                Ok(Received { envelope, client_id: String::new(), request: None })
            }
            _ => Err(WireError::UnsupportedVersion { key, version }),
        };
    }
    let malformed = |reason: String| WireError::Malformed { key, version, reason };
    let header = RequestHeader::decode(&mut frame, key.request_header_version(version))
        .map_err(|error| malformed(error.to_string()))?;
    guard::check(key, version, &frame).map_err(|_| malformed("its arrays are not there".to_owned()))?;
    let request =
        RequestKind::decode(key, &mut frame, version).map_err(|error| malformed(error.to_string()))?;
    let client_id = header.client_id.map(|id| id.to_string()).unwrap_or_default();
    Ok(Received { envelope, client_id, request: Some(request) })
}

/// Encodes a response as a frame.
pub fn encode(envelope: &Envelope, response: &ResponseKind) -> Result<BytesMut, WireError> {
    let Envelope { key, version, correlation_id } = *envelope;
    let failed = |reason: String| WireError::Unencodable { key, version, reason };
    let mut frame = BytesMut::with_capacity(256);
    frame.put_i32(0);
    ResponseHeader::default()
        .with_correlation_id(correlation_id)
        .encode(&mut frame, response.header_version(version))
        .map_err(|error| failed(error.to_string()))?;
    response.encode(&mut frame, version).map_err(|error| failed(error.to_string()))?;
    let length = i32::try_from(frame.len() - 4).map_err(|error| failed(error.to_string()))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

//! TLS: what a node and its callers show each other, and how connections are encrypted. The only place
//! that names rustls (with aws-lc-rs as its one provider of cryptography) and reads certificates.
//!
//! TLS 1.2 and 1.3, nothing older. A node has one certificate, for both of its listeners and for calls of
//! other nodes; every caller of the control plane has one, from a CA that the node is told. What it shows to
//! Kafka's brokers, and whom it believes there, is configured apart from that.
//!
//! | file | what |
//! |---|---|
//! | [`certificate`] | the names and the term of a certificate |
//! | `files` | PEM files, read and checked |
//! | [`own`] | what a node shows and demands, read again when its files change |
//! | [`connection`] | an accepted connection, encrypted or not, and who is at its other end |
//! | [`client`] | connecting, with an error that says what to mend |
//! | [`blocking`] | the same without tokio, to brokers |
//! | `trust`, `callers` | whom clients believe, and whom a node |
//! | `anchors` | what both have of a file of certificates |
//! | `usage` | what a certificate is for |

mod anchors;
pub mod blocking;
mod callers;
pub mod certificate;
pub mod client;
pub mod connection;
mod files;
pub mod own;
mod trust;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::config::files::ReadError;

/// Why certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read: {reason}")]
    Read { path: PathBuf, reason: ReadError },
    #[error("{path} holds no certificate: it must have a `BEGIN CERTIFICATE` block (PEM)")]
    NoCertificate { path: PathBuf },
    #[error(
        "{path} holds no private key that can be used: it must have an unencrypted `BEGIN PRIVATE KEY` block (PEM)"
    )]
    NoKey { path: PathBuf },
    #[error(
        "{path} holds an encrypted private key: decrypt it, and let nobody but the program's user read the file"
    )]
    EncryptedKey { path: PathBuf },
    #[error("{path}: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("{path} is a certificate that expired at {at}: renew it")]
    Expired { path: PathBuf, at: String },
    #[error("{path} is a certificate that is not valid before {at}: look at this machine's clock, or wait")]
    NotYet { path: PathBuf, at: String },
    #[error("{key} is not the private key of {cert}")]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error("{path}: {reason}")]
    Unusable { path: PathBuf, reason: rustls::Error },
    #[error("this machine trusts no certificate authority: install ca-certificates, or name a file of them")]
    NobodyTrusted,
}

const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
/// What gRPC speaks.
const HTTP2: &[u8] = b"h2";
/// What `/metrics` and the probes speak.
const HTTP1: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

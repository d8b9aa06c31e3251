//! PEM files: read, checked, and compared with what they held before.

use std::fmt;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;
use super::certificate::{Certificate, now_s};
use crate::config::files;
use crate::config::units::show_time_ms;

/// A file beyond this holds no certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file and what it held when it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    pub path: PathBuf,
    bytes: Vec<u8>,
}

impl fmt::Debug for PemFile {
    /// It may be a private key's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl PemFile {
    pub fn read(path: &Path) -> Result<PemFile, TlsError> {
        match files::read(path, FILE_BYTES_MAX) {
            Ok(bytes) => Ok(PemFile { path: path.to_owned(), bytes }),
            Err(reason) => Err(TlsError::Read { path: path.to_owned(), reason }),
        }
    }

    /// At least one, the holder's own first.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        let found = found.map_err(|error| self.malformed(error.to_string()))?;
        if found.is_empty() {
            return Err(TlsError::NoCertificate { path: self.path.clone() });
        }
        Ok(found)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let encrypted = b"BEGIN ENCRYPTED PRIVATE KEY";
        if self.bytes.windows(encrypted.len()).any(|window| window == encrypted) {
            return Err(TlsError::EncryptedKey { path: self.path.clone() });
        }
        // The reason could quote the file, which is a secret.
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|_| TlsError::NoKey { path: self.path.clone() })
    }

    pub(super) fn malformed(&self, reason: String) -> TlsError {
        TlsError::Malformed { path: self.path.clone(), reason }
    }
}

/// A certificate with its chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    pub cert: PemFile,
    pub key: PemFile,
}

/// The same, understood.
pub struct Identity {
    pub certificate: Certificate,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl KeyPair {
    pub fn read(cert: &Path, key: &Path) -> Result<KeyPair, TlsError> {
        Ok(KeyPair { cert: PemFile::read(cert)?, key: PemFile::read(key)? })
    }

    /// Refuses one that nobody would accept now.
    pub fn identity(&self) -> Result<Identity, TlsError> {
        let (chain, key) = (self.cert.certificates()?, self.key.key()?);
        let certificate = Certificate::read(&chain[0]).map_err(|reason| self.cert.malformed(reason))?;
        let (now, path) = (now_s(), self.cert.path.clone());
        if certificate.has_expired(now) {
            return Err(TlsError::Expired { path, at: certificate.shown_end() });
        }
        if now < certificate.valid_from_s {
            return Err(TlsError::NotYet {
                path,
                at: show_time_ms(certificate.valid_from_s.saturating_mul(1000)),
            });
        }
        Ok(Identity { certificate, chain, key })
    }

    /// What rustls says of the pair.
    pub fn refused(&self, reason: rustls::Error) -> TlsError {
        match reason {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::Mismatch { cert: self.cert.path.clone(), key: self.key.path.clone() }
            }
            reason => TlsError::Unusable { path: self.cert.path.clone(), reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_test_support::certificates::Authority;

    use super::*;

    #[test]
    fn a_key_is_not_shown_and_a_file_without_an_end_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let pair = Authority::new(directory.path(), "ca").issue("leaf", &["leaf.test"]);
        let shown = format!("{:?}", KeyPair::read(&pair.cert, &pair.key).expect("a pair"));
        assert!(shown.contains("leaf.key") && !shown.contains('['), "{shown}");
        let error = PemFile::read(Path::new("/dev/zero")).expect_err("it has no end").to_string();
        assert!(error.contains("more than the 1048576 bytes"), "{error}");
    }
}

//! Whom a client of brokers believes: what comes from the CAs of a file, or from those of this machine.
//!
//! A certificate that is in the file itself is believed as well, of its names and in its term. rustls has it
//! that a CA cannot be a server; but a broker with a certificate of its own making, which every client is
//! given and which says of itself that it is a CA (what `keytool` makes for that), is how many clusters are
//! set up, and OpenSSL, which librdkafka asks, believes it.
//!
//! Otherwise OpenSSL's strictness is kept where rustls would take what it is given for a CA: a certificate of
//! the file makes others believed only if it says that it is a CA, of servers, and only in its term. Or else
//! each of several brokers whose own certificates are in the file could issue one for any other's name.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{self, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use webpki::{EndEntityCert, anchor_from_trusted_cert};

use super::certificate::term;
use super::files::PemFile;
use super::usage::Usage;
use super::{TlsError, provider};

/// See the module.
#[derive(Debug)]
pub struct Trust {
    /// Those of the file.
    known: Vec<CertificateDer<'static>>,
    authorities: Vec<Authority>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A CA.
#[derive(Debug)]
struct Authority {
    anchor: TrustAnchor<'static>,
    /// Its first and its last second; `None` = not known, of those that are too old to say what they are.
    term: Option<(i64, i64)>,
}

/// Why nobody is believed whom a CA has signed.
#[derive(Debug, thiserror::Error)]
#[error("the CA that it is from has expired, or is not valid yet")]
struct OutOfTerm;

impl Trust {
    pub fn of_file(ca: &Path) -> Result<Trust, TlsError> {
        let known = PemFile::read(ca)?.certificates()?;
        let mut authorities = Vec::new();
        for certificate in &known {
            let authority = Authority::read(certificate)
                .map_err(|reason| TlsError::Malformed { path: ca.to_owned(), reason })?;
            authorities.extend(authority);
        }
        Ok(Trust { known, authorities, algorithms: provider().signature_verification_algorithms })
    }

    pub fn of_this_machine() -> Result<Trust, TlsError> {
        let certificates = rustls_native_certs::load_native_certs().certs;
        // One that cannot be read does not make the others worthless.
        let read = |certificate| Authority::read(certificate).ok().flatten();
        let authorities: Vec<Authority> = certificates.iter().filter_map(read).collect();
        if authorities.is_empty() {
            return Err(TlsError::NobodyTrusted);
        }
        let algorithms = provider().signature_verification_algorithms;
        Ok(Trust { known: Vec::new(), authorities, algorithms })
    }

    /// Those that count at a time.
    fn roots(&self, at: Option<UnixTime>) -> RootCertStore {
        let counts = |authority: &&Authority| at.is_none_or(|at| authority.is_in_term(at));
        self.authorities.iter().filter(counts).map(|authority| authority.anchor.clone()).collect()
    }

    /// Whether somebody who is believed has signed it, for servers, and it is valid.
    fn verify_signed(
        &self,
        certificate: &ParsedCertificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let verify = |roots: RootCertStore| {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(certificate, &roots, intermediates, now, algorithms)
        };
        verify(self.roots(Some(now))).map_err(|error| match verify(self.roots(None)) {
            Ok(()) => CertificateError::Other(OtherError(Arc::new(OutOfTerm))).into(),
            Err(_) => error,
        })
    }
}

impl Authority {
    /// `None` = it is of no CA that signs servers' certificates.
    fn read(certificate: &CertificateDer<'_>) -> Result<Option<Authority>, String> {
        let usage = Usage::read(certificate).ok_or("it holds a certificate that cannot be read")?;
        if !usage.signs_servers() {
            return Ok(None);
        }
        let anchor = anchor_from_trusted_cert(certificate).map_err(|error| error.to_string())?;
        let parsed = EndEntityCert::try_from(certificate).ok();
        let term = parsed.and_then(|parsed| term(&parsed).ok());
        Ok(Some(Authority { anchor: anchor.to_owned(), term }))
    }

    fn is_in_term(&self, now: UnixTime) -> bool {
        self.term.is_none_or(|(from, to)| (from..=to).contains(&seconds(now)))
    }
}

/// Whether a certificate that needs nobody's signature is a server's, and valid.
fn verify_known(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let unreadable = || rustls::Error::from(CertificateError::BadEncoding);
    let parsed = EndEntityCert::try_from(certificate).map_err(|_| unreadable())?;
    let (from, to) = term(&parsed).map_err(|_| unreadable())?;
    if seconds(now) < from {
        return Err(CertificateError::NotValidYet.into());
    }
    if seconds(now) > to {
        return Err(CertificateError::Expired.into());
    }
    let usage = Usage::read(certificate).ok_or_else(unreadable)?;
    usage.serves().then_some(()).ok_or(CertificateError::InvalidPurpose.into())
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.known.iter().any(|known| known.as_ref() == end_entity.as_ref()) {
            verify_known(end_entity, now)?;
        } else {
            self.verify_signed(&certificate, intermediates, now)?;
        }
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tidemill_test_support::certificates::{Authority, Oddity, Term};

    use super::super::client::explanation;
    use super::*;

    const BROKER: &str = "broker.test";
    const ELSE: &str = "else.test";

    /// What comes of a server at `host` that shows the certificates of a file to whoever believes another one.
    fn judged(ca: &Path, shown: &Path, host: &'static str) -> Result<(), String> {
        let trust = Trust::of_file(ca).expect("it can be read");
        let shown = PemFile::read(shown).and_then(|file| file.certificates()).expect("a certificate");
        let name = ServerName::try_from(host).expect("a name");
        let verified = trust.verify_server_cert(&shown[0], &shown[1..], &name, &[], UnixTime::now());
        verified.map(|_| ()).map_err(|error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            explanation(&error, host).expect("it is TLS that failed")
        })
    }

    fn refused(ca: &Path, shown: &Path, host: &'static str, why: &str) {
        let error = judged(ca, shown, host).expect_err(why);
        assert!(error.contains(why), "{why}: {error}");
    }

    #[test]
    fn what_a_ca_has_signed_is_believed_of_its_names_in_its_term_and_for_servers() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let leaf = authority.issue("leaf", &[BROKER, "127.0.0.1"]).cert;
        for host in [BROKER, "127.0.0.1"] {
            assert_eq!(judged(&authority.ca, &leaf, host), Ok(()), "{host}");
        }
        refused(&authority.ca, &leaf, ELSE, "is not for else.test");
        refused(&authority.ca, &leaf, "127.0.0.2", "is not for 127.0.0.2");
        let past = authority.issue_for("past", &[BROKER], Term::Past).cert;
        refused(&authority.ca, &past, BROKER, "its certificate has expired");
        let future = authority.issue_for("future", &[BROKER], Term::Future).cert;
        refused(&authority.ca, &future, BROKER, "not valid yet");
        let client = authority.issue_to_client("client").cert;
        refused(&authority.ca, &client, "client", "not a server's");
        // Of a CA's own certificate somebody else may have the key, and it is no server's.
        refused(&authority.ca, &authority.ca, "ca", "not a server's");
        let stranger = Authority::new(directory.path(), "other");
        refused(&stranger.ca, &leaf, BROKER, "not from a CA that is believed");
    }

    #[test]
    fn what_is_no_ca_of_servers_makes_nothing_else_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        for (oddity, of_others, of_itself) in [
            (Oddity::Server, Err("not from a CA that is believed"), Ok(())),
            (Oddity::ForClients, Err("not from a CA that is believed"), Err("not a server's")),
            (Oddity::Expired, Err("has expired, or is not valid yet"), Err("its certificate has expired")),
        ] {
            let odd = Authority::odd(directory.path(), &format!("{oddity:?}"), &[BROKER], oddity);
            // For the name of another broker.
            let issued = odd.issue(&format!("by-{oddity:?}"), &[ELSE]).cert;
            for (shown, host, expected) in [(&issued, ELSE, of_others), (&odd.ca, BROKER, of_itself)] {
                let outcome = judged(&odd.ca, shown, host);
                match expected {
                    Ok(()) => assert_eq!(outcome, Ok(()), "{oddity:?} {host}"),
                    Err(why) => assert!(outcome.expect_err(why).contains(why), "{oddity:?} {host}"),
                }
            }
            refused(&odd.ca, &issued, BROKER, "");
        }
    }

    #[test]
    fn a_certificate_that_is_in_the_file_needs_nobodys_signature_but_the_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let leaf = authority.issue("leaf", &[BROKER]).cert;
        assert_eq!(judged(&leaf, &leaf, BROKER), Ok(()));
        refused(&leaf, &leaf, ELSE, "is not for else.test");
        let past = authority.issue_for("past", &[BROKER], Term::Past).cert;
        refused(&past, &past, BROKER, "its certificate has expired");
        // Nobody else of the same CA is believed for that.
        let other = authority.issue("other", &[BROKER]).cert;
        refused(&leaf, &other, BROKER, "not from a CA that is believed");
    }
}

//! Whom a client believes, of brokers, nodes or destinations: what comes from the CAs of a file, or from those that this
//! machine trusts, and what is itself among these ([`super::anchors`]), of its names.

use std::path::Path;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{self, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, DigitallySignedStruct, SignatureScheme};

use super::anchors::Anchors;
use super::files::PemFile;
use super::usage::Side;
use super::{TlsError, provider};

/// See the module.
#[derive(Debug)]
pub struct Trust {
    anchors: Anchors,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    /// In the certificates of a file.
    pub fn of_file(ca: &Path) -> Result<Trust, TlsError> {
        Trust::of(&PemFile::read(ca)?)
    }

    /// The same, of a file that has been read.
    pub fn of(ca: &PemFile) -> Result<Trust, TlsError> {
        Ok(Trust::new(Anchors::of_file(ca, Side::Server)?))
    }

    /// In the certificates of a file, or else in whom this machine trusts. `needed`: that must not be nobody.
    pub fn of_file_or_machine(ca: Option<&Path>, needed: bool) -> Result<Trust, TlsError> {
        if let Some(ca) = ca {
            return Trust::of_file(ca);
        }
        let anchors = Anchors::of_this_machine();
        if needed && anchors.is_empty() { Err(TlsError::NobodyTrusted) } else { Ok(Trust::new(anchors)) }
    }

    fn new(anchors: Anchors) -> Trust {
        Trust { anchors, algorithms: provider().signature_verification_algorithms }
    }
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
        self.anchors.verify(end_entity, now, |roots| {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &roots, intermediates, now, algorithms)
        })?;
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
        judged_by(&Trust::of_file(ca).expect("it can be read"), shown, host)
    }

    fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
        PemFile::read(path).and_then(|file| file.certificates()).expect("a certificate")
    }

    fn judged_by(trust: &Trust, shown: &Path, host: &'static str) -> Result<(), String> {
        let shown = certificates(shown);
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

    /// A server's may have been installed beside the CAs.
    #[test]
    fn what_this_machine_trusts_is_believed_itself_and_whom_a_ca_among_it_has_signed_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let server = Authority::odd(directory.path(), "server", &[BROKER], Oddity::Server);
        let unreadable = vec![CertificateDer::from(b"none".to_vec())];
        let installed = [unreadable, certificates(&authority.ca), certificates(&server.ca)].concat();
        let trust = Trust::new(Anchors::of_readable(installed));
        let judged = |shown: &Path, host| judged_by(&trust, shown, host);
        assert_eq!(judged(&server.ca, BROKER), Ok(()));
        assert_eq!(judged(&authority.issue("leaf", &[BROKER]).cert, BROKER), Ok(()));
        let other = judged(&server.issue("other", &[ELSE]).cert, ELSE).expect_err("it is no CA");
        assert!(other.contains("not from a CA that is believed"), "{other}");
        let elsewhere = judged(&server.ca, ELSE).expect_err("it has no such name");
        assert!(elsewhere.contains("is not for else.test"), "{elsewhere}");
    }
}

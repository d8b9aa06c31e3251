//! Whom a node believes that calls it: what comes from the CAs of a file, and what is in the file itself
//! ([`super::anchors`]). What somebody may whose certificate is believed is another matter.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{self, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    self, CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme,
};

use super::anchors::Anchors;
use super::files::PemFile;
use super::usage::Side;
use super::{TlsError, provider};

/// See the module. Whoever calls has to show a certificate.
#[derive(Debug)]
pub struct Callers {
    anchors: Anchors,
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Callers {
    pub fn of_file(ca: &PemFile) -> Result<Callers, TlsError> {
        let anchors = Anchors::of_file(ca, Side::Client)?;
        let algorithms = provider().signature_verification_algorithms;
        Ok(Callers { subjects: anchors.subjects(), anchors, algorithms })
    }
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.anchors.verify(end_entity, now, |roots| {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            // Without a single CA there is none.
            let verifier = verifier.build().map_err(|_| CertificateError::UnknownIssuer)?;
            verifier.verify_client_cert(end_entity, intermediates, now)
        })?;
        Ok(ClientCertVerified::assertion())
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
    use std::path::Path;

    use tidemill_test_support::certificates::{Authority, Oddity, Term};

    use super::super::client::explanation;
    use super::*;

    /// What comes of a caller who shows the certificates of a file to a node that is given another one.
    fn judged(ca: &Path, shown: &Path) -> Result<(), String> {
        let callers = PemFile::read(ca).and_then(|ca| Callers::of_file(&ca)).expect("it can be read");
        let shown = PemFile::read(shown).and_then(|file| file.certificates()).expect("a certificate");
        let verified = callers.verify_client_cert(&shown[0], &shown[1..], UnixTime::now());
        verified.map(|_| ()).map_err(|error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            explanation(&error, "").expect("it is TLS that failed")
        })
    }

    #[track_caller]
    fn refused(ca: &Path, shown: &Path, why: &str) {
        let error = judged(ca, shown).expect_err(why);
        assert!(error.contains(why), "{why}: {error}");
    }

    const STRANGER: &str = "not from a CA that is believed";

    #[test]
    fn what_a_ca_has_signed_for_clients_is_believed_in_its_term() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let client = authority.issue_to_client("client").cert;
        assert_eq!(judged(&authority.ca, &client), Ok(()));
        let past = authority.issue_for("past", &["past.test"], Term::Past).cert;
        refused(&authority.ca, &past, "its certificate has expired");
        let elsewhere = Authority::new(directory.path(), "elsewhere");
        refused(&elsewhere.ca, &client, STRANGER);
        let of_clients = Authority::odd(directory.path(), "clients", &["c.test"], Oddity::ForClients);
        assert_eq!(judged(&of_clients.ca, &of_clients.issue_to_client("of-clients").cert), Ok(()));
        let expired = Authority::odd(directory.path(), "expired", &["e.test"], Oddity::Expired);
        let issued = expired.issue_to_client("of-the-past").cert;
        refused(&expired.ca, &issued, "the CA that it is from has expired");
    }

    /// Or else whoever has its key could issue himself a certificate of an admin.
    #[test]
    fn a_certificate_in_the_file_that_is_no_cas_makes_itself_believed_and_nobody_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let one = Authority::odd(directory.path(), "one", &["one.test"], Oddity::Server);
        assert_eq!(judged(&one.ca, &one.ca), Ok(()));
        refused(&one.ca, &one.issue_to_client("admin").cert, STRANGER);
        let authority = Authority::new(directory.path(), "ca");
        let leaf = authority.issue("leaf", &["leaf.test"]).cert;
        assert_eq!(judged(&leaf, &leaf), Ok(()));
        refused(&leaf, &authority.issue_to_client("other").cert, STRANGER);
        // Of its own making, and a CA as OpenSSL's command has it.
        let own = Authority::self_signed(directory.path(), "own", &["own.test"]).cert;
        assert_eq!(judged(&own, &own), Ok(()));
        let past = authority.issue_for("past", &["past.test"], Term::Past).cert;
        refused(&past, &past, "its certificate has expired");
    }

    #[test]
    fn callers_are_told_the_cas_unless_others_are_believed_as_well() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let told = |ca: &Path| {
            let callers = PemFile::read(ca).and_then(|ca| Callers::of_file(&ca)).expect("it can be read");
            callers.root_hint_subjects().len()
        };
        assert_eq!(told(&authority.ca), 1);
        assert_eq!(told(&authority.issue("leaf", &["leaf.test"]).cert), 0);
    }
}

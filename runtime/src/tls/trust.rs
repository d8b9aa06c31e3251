//! Whom a client of brokers believes: what comes from the certificates of a file, or from those of this machine.
//!
//! A certificate that is in the file itself is believed as well, of its names and in its term. rustls has it
//! that a CA cannot be a server; but a broker with a certificate of its own making, which every client is
//! given and which says of itself that it is a CA (what `keytool` makes for that), is how many clusters are
//! set up, and OpenSSL, which librdkafka asks, believes it.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use webpki::EndEntityCert;

use super::certificate::term;
use super::files::PemFile;
use super::{TlsError, provider};

/// See the module.
#[derive(Debug)]
pub struct Trust {
    /// Those of the file.
    known: Vec<CertificateDer<'static>>,
    others: Arc<WebPkiServerVerifier>,
}

impl Trust {
    pub fn of_file(ca: &Path) -> Result<Trust, TlsError> {
        let file = PemFile::read(ca)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(file.roots()?, provider()).build();
        let others = verifier
            .map_err(|error| TlsError::Malformed { path: ca.to_owned(), reason: error.to_string() })?;
        Ok(Trust { known: file.certificates()?, others })
    }

    pub fn of_this_machine() -> Result<Trust, TlsError> {
        let mut roots = RootCertStore::empty();
        // One that cannot be read does not make the others worthless.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        Ok(Trust { known: Vec::new(), others: verifier.map_err(|_| TlsError::NobodyTrusted)? })
    }
}

/// Whether a certificate that needs nobody's signature is the server's, and valid.
fn verify_known(
    certificate: &CertificateDer<'_>,
    server: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    let unreadable = || rustls::Error::from(CertificateError::BadEncoding);
    let parsed = EndEntityCert::try_from(certificate).map_err(|_| unreadable())?;
    let (from, to) = term(&parsed).map_err(|_| unreadable())?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < from {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > to {
        return Err(CertificateError::Expired.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, server)?;
    Ok(ServerCertVerified::assertion())
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.known.iter().any(|known| known.as_ref() == end_entity.as_ref()) {
            return verify_known(end_entity, server_name, now);
        }
        self.others.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.others.supported_verify_schemes()
    }
}

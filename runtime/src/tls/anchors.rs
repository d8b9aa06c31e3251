//! Whom a file of certificates, or this machine, makes believed at one side of a connection: brokers, nodes and
//! destinations as servers, callers as clients.
//!
//! A certificate that is in the file itself is believed, of its names and in its term. rustls has it that a CA cannot be
//! the other end; but a certificate of its holder's own making, which everybody is given and which says of itself that it
//! is a CA (what `openssl req -x509` makes), is how many clusters are set up, and OpenSSL, which librdkafka asks,
//! believes it. The same holds of a server's certificate that somebody has this machine trust.
//!
//! Otherwise OpenSSL's strictness is kept where rustls would take what it is given for a CA: a certificate of
//! the file makes others believed only if it says that it is a CA, of those at that side, and only in its term. Or else
//! each of several brokers or callers whose own certificates are in the file could issue one for any other's name.

use std::sync::Arc;

use tokio_rustls::rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use tokio_rustls::rustls::{self, CertificateError, DistinguishedName, OtherError, RootCertStore};
use webpki::{EndEntityCert, anchor_from_trusted_cert};

use super::TlsError;
use super::certificate::term;
use super::files::PemFile;
use super::usage::{Side, Usage};

/// See the module.
#[derive(Debug)]
pub struct Anchors {
    side: Side,
    /// Those of the file, or of this machine.
    known: Vec<CertificateDer<'static>>,
    /// Which of them are of CAs.
    authorities: Vec<Authority>,
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

impl Anchors {
    /// For whoever is at that side.
    pub fn of_file(ca: &PemFile, side: Side) -> Result<Anchors, TlsError> {
        let known = ca.certificates()?;
        let mut authorities = Vec::new();
        for certificate in &known {
            let authority = Authority::read(certificate, side).map_err(|reason| ca.malformed(reason))?;
            authorities.extend(authority);
        }
        Ok(Anchors { side, known, authorities })
    }

    /// For servers; there may be none.
    pub fn of_this_machine() -> Anchors {
        Anchors::of_readable(rustls_native_certs::load_native_certs().certs)
    }

    /// For servers. One that cannot be read does not make the others worthless.
    pub(super) fn of_readable(certificates: Vec<CertificateDer<'static>>) -> Anchors {
        let mut anchors = Anchors { side: Side::Server, known: Vec::new(), authorities: Vec::new() };
        for certificate in certificates {
            if let Ok(authority) = Authority::read(&certificate, anchors.side) {
                anchors.authorities.extend(authority);
                anchors.known.push(certificate);
            }
        }
        anchors
    }

    /// Nobody is believed.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Names of the CAs, for whoever has certificates of several to choose from; none where others are believed as well.
    pub fn subjects(&self) -> Vec<DistinguishedName> {
        if self.known.len() > self.authorities.len() { Vec::new() } else { self.roots(None).subjects() }
    }

    /// Whether a certificate is believed, its names aside: it is in the file, or `is_signed` says that one of some CAs
    /// has signed it, for its side, and that it is valid.
    pub fn verify<T>(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        is_signed: impl Fn(RootCertStore) -> Result<T, rustls::Error>,
    ) -> Result<(), rustls::Error> {
        if self.known.iter().any(|known| known.as_ref() == certificate.as_ref()) {
            return verify_known(certificate, self.side, now);
        }
        let Err(error) = is_signed(self.roots(Some(now))) else { return Ok(()) };
        Err(match is_signed(self.roots(None)) {
            Ok(_) => CertificateError::Other(OtherError(Arc::new(OutOfTerm))).into(),
            Err(_) => error,
        })
    }

    /// CAs that count at a time.
    fn roots(&self, at: Option<UnixTime>) -> RootCertStore {
        let counts = |authority: &&Authority| at.is_none_or(|at| authority.is_in_term(at));
        self.authorities.iter().filter(counts).map(|authority| authority.anchor.clone()).collect()
    }
}

impl Authority {
    /// `None` = it is of no CA that signs certificates of that side.
    fn read(certificate: &CertificateDer<'_>, side: Side) -> Result<Option<Authority>, String> {
        let usage = Usage::read(certificate).ok_or("it holds a certificate that cannot be read")?;
        if !usage.signs(side) {
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

/// Whether a certificate that needs nobody's signature is of somebody at that side, and valid.
fn verify_known(certificate: &CertificateDer<'_>, side: Side, now: UnixTime) -> Result<(), rustls::Error> {
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
    usage.is_for(side).then_some(()).ok_or(CertificateError::InvalidPurpose.into())
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

//! The names and the term of a certificate. Its signature is rustls's business, and has been checked by then.

use std::time::Duration;

use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::config::roles::Name;
use crate::config::units::show_time_ms;

/// Names that are looked at; a certificate with more is refused rather than half read.
const NAMES_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 512;

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// URIs of its SAN, then its DNS names. Never a name with `*`, which is nobody's.
    pub names: Vec<Name>,
    /// Seconds since the epoch.
    pub valid_from_s: i64,
    pub valid_to_s: i64,
}

impl Certificate {
    pub fn read(der: &CertificateDer<'_>) -> Result<Certificate, String> {
        let certificate = EndEntityCert::try_from(der)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let uris = certificate.valid_uri_names().filter(|uri| is_plain(uri) && uri.contains(':'));
        let hosts = certificate.valid_dns_names().filter(|host| is_plain(host) && !host.contains(':'));
        let uris = uris.map(|uri| Name::Uri(uri.to_owned()));
        let names: Vec<Name> = uris.chain(hosts.map(|host| Name::Dns(host.to_ascii_lowercase()))).collect();
        if names.len() > NAMES_MAX {
            return Err(format!(
                "the certificate has {} names; at most {NAMES_MAX} are looked at",
                names.len()
            ));
        }
        let (valid_from_s, valid_to_s) = term(&certificate)?;
        Ok(Certificate { names, valid_from_s, valid_to_s })
    }

    /// `now_s` in seconds since the epoch.
    pub fn has_expired(&self, now_s: i64) -> bool {
        now_s > self.valid_to_s
    }

    /// Its last moment, for people.
    pub fn shown_end(&self) -> String {
        show_time_ms(self.valid_to_s.saturating_mul(1000))
    }
}

/// Only visible ASCII: a name travels in a header and ends in a log.
fn is_plain(name: &str) -> bool {
    let visible = name.bytes().all(|byte| byte.is_ascii_graphic());
    visible && !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains('*')
}

/// First and last moment. webpki tells them only when it refuses a time outside of them, and both ends of
/// all time are; it looks at the time before anything else.
pub(super) fn term(certificate: &EndEntityCert<'_>) -> Result<(i64, i64), String> {
    let at = |seconds| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        certificate.verify_for_usage(&[], &[], &[], time, KeyUsage::client_auth(), None, None).err()
    };
    let seconds = |time: UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match (at(0), at(u64::MAX)) {
        (
            Some(webpki::Error::CertNotValidYet { not_before, .. }),
            Some(webpki::Error::CertExpired { not_after, .. }),
        ) => Ok((seconds(not_before), seconds(not_after))),
        // Valid since the epoch itself, or before.
        (_, Some(webpki::Error::CertExpired { not_after, .. })) => Ok((0, seconds(not_after))),
        (_, other) => Err(format!("the term of the certificate cannot be read: {other:?}")),
    }
}

/// Seconds since the epoch, by this machine's clock.
pub fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

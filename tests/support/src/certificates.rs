//! Certificates for tests: a CA in memory, and what it signs, as files.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

const DAY: Duration = Duration::from_secs(86_400);

/// A CA whose key nobody else has.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
    /// Its certificate (PEM).
    pub ca: PathBuf,
}

/// A certificate and its key (PEM).
#[derive(Debug, Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    Now,
    Past,
    Future,
    /// It expires so many seconds from now.
    Seconds(u64),
}

/// Why whoever believes an authority's certificate should believe nothing that it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// It is a server's, and no CA.
    Server,
    /// It is a CA of clients only.
    ForClients,
    Expired,
}

impl Authority {
    /// Writes its certificate into `directory` as `NAME.pem`.
    pub fn new(directory: &Path, name: &str) -> Authority {
        let mut params = params(name, Term::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Authority::of(directory, name, params)
    }

    /// One with an oddity, whose certificate has names like a server's.
    pub fn odd(directory: &Path, name: &str, names: &[&str], oddity: Oddity) -> Authority {
        let term = if oddity == Oddity::Expired { Term::Past } else { Term::Now };
        let mut params = params(name, term);
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        if oddity != Oddity::Server {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        if oddity == Oddity::ForClients {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        Authority::of(directory, name, params)
    }

    fn of(directory: &Path, name: &str, params: CertificateParams) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca = directory.join(format!("{name}.pem"));
        write(&ca, &certificate.pem());
        Authority { issuer: Issuer::new(params, key), directory: directory.into(), ca }
    }

    /// A server's certificate that nobody but itself has signed, and that says it is a CA: what `openssl req -x509` makes.
    pub fn self_signed(directory: &Path, file: &str, names: &[&str]) -> Pair {
        let mut params = params(file, Term::Now);
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Pair::write(directory, file, &certificate.pem(), &key.serialize_pem())
    }

    /// A certificate of these names, URIs, DNS names and IP addresses, as `FILE.pem` and `FILE.key`.
    pub fn issue(&self, file: &str, names: &[&str]) -> Pair {
        self.issue_for(file, names, Term::Now)
    }

    pub fn issue_for(&self, file: &str, names: &[&str], term: Term) -> Pair {
        let purposes = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.issue_with(file, names, term, &purposes)
    }

    /// A certificate with the file's name, which is no server's.
    pub fn issue_to_client(&self, file: &str) -> Pair {
        self.issue_with(file, &[file], Term::Now, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue_with(
        &self,
        file: &str,
        names: &[&str],
        term: Term,
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Pair {
        let mut params = params(file, term);
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        params.extended_key_usages = purposes.to_vec();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair::write(&self.directory, file, &certificate.pem(), &key.serialize_pem())
    }
}

impl Pair {
    fn write(directory: &Path, file: &str, cert: &str, key: &str) -> Pair {
        let named = |end: &str| directory.join(format!("{file}.{end}"));
        let pair = Pair { cert: named("pem"), key: named("key") };
        write(&pair.cert, cert);
        write(&pair.key, key);
        pair
    }
}

fn params(name: &str, term: Term) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    let (from, to) = match term {
        Term::Now => (now - DAY, now + DAY),
        Term::Past => (now - 2 * DAY, now - DAY),
        Term::Future => (now + DAY, now + 2 * DAY),
        Term::Seconds(left) => (now - DAY, now + Duration::from_secs(left)),
    };
    params.not_before = from.into();
    params.not_after = to.into();
    params
}

fn san(name: &str) -> SanType {
    match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if name.contains(':') => SanType::URI(name.try_into().expect("ASCII")),
        Err(_) => SanType::DnsName(name.try_into().expect("ASCII")),
    }
}

/// In one step, as an operator's tools do, so that a reader never sees half a file.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("renamed");
}

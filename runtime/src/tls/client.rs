//! Connecting to a node with TLS, with an error that says what to mend.

use std::error::Error;
use std::io::{self, Cursor};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, Chain, Join, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig};
use tower::Service;

use super::certificate::Certificate;
use super::files::KeyPair;
use super::own::Own;
use super::trust::Trust;
use super::{HTTP1, HTTP2, TlsError, VERSIONS, provider};

/// Bytes that are read to learn whether the node takes the connection; its first frame has as many.
const FIRST_BYTES: usize = 9;

/// A node whose machine does not accept a connection for this long is not there.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One that is there has longer to agree on keys: it may be busy.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of the channel as a whole, whose own time-out has to be behind both.
pub const CHANNEL_TIMEOUT: Duration = Duration::from_secs(15);

type BoxError = Box<dyn Error + Send + Sync>;
type Stream = TlsStream<TcpStream>;
/// What the node has said first, and what comes after it.
type Encrypted = TokioIo<Join<Chain<Cursor<Vec<u8>>, ReadHalf<Stream>>, WriteHalf<Stream>>>;

/// The two sides could not agree on who they are. Trying again does not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// Whether the other end's certificate is one to speak to; says why not.
type Believes = dyn Fn(&Certificate) -> Result<(), String> + Send + Sync;

/// What a client shows, and whom it believes.
#[derive(Clone)]
pub struct Client {
    shows: Shows,
    believes: Arc<Believes>,
}

#[derive(Clone)]
enum Shows {
    /// As long as the client lives.
    Files(Arc<ClientConfig>),
    /// Whatever the node's files hold at the time.
    Own(Arc<Own>),
}

impl Client {
    /// For commands. `pair` is certificate and key; without one only what asks for none can be called.
    pub fn from_files(ca: &Path, pair: Option<(&Path, &Path)>) -> Result<Client, TlsError> {
        let pair = pair.map(|(cert, key)| KeyPair::read(cert, key)).transpose()?;
        let config = client_config(Trust::of_file(ca)?, pair.as_ref(), Some(HTTP2))?;
        Ok(Client { shows: Shows::Files(Arc::new(config)), believes: Arc::new(|_| Ok(())) })
    }

    /// For a node that calls another one.
    pub fn of_node(
        own: Arc<Own>,
        believes: impl Fn(&Certificate) -> Result<(), String> + Send + Sync + 'static,
    ) -> Client {
        Client { shows: Shows::Own(own), believes: Arc::new(believes) }
    }

    /// In the form that gRPC channels want it.
    pub fn connector(
        &self,
    ) -> impl Service<Uri, Response = Encrypted, Error = BoxError, Future: Send> + Clone + Send + 'static
    {
        let client = self.clone();
        tower::service_fn(move |uri: Uri| {
            let client = client.clone();
            async move { client.connect(&uri).await }
        })
    }

    async fn connect(&self, uri: &Uri) -> Result<Encrypted, BoxError> {
        let (tcp, name, host) = reach(uri).await?;
        within(HANDSHAKE_TIMEOUT, "TLS handshake", self.shake_hands(tcp, name, &host)).await
    }

    async fn shake_hands(
        &self,
        tcp: TcpStream,
        name: ServerName<'static>,
        host: &str,
    ) -> Result<Encrypted, BoxError> {
        let config = match &self.shows {
            Shows::Files(config) => Arc::clone(config),
            Shows::Own(own) => Arc::clone(&own.current().client),
        };
        let explained = |error| explain(error, host);
        let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(explained)?;
        let der = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = der.map(|der| Certificate::read(der)).transpose().map_err(Refused)?;
        if let Some(certificate) = certificate {
            (self.believes)(&certificate).map_err(Refused)?;
        }
        // With TLS 1.3 a client is done before the server has judged its certificate. The node speaks
        // first, so that its refusal is found here and not in the first call.
        let (mut read, write) = tokio::io::split(stream);
        let mut first = vec![0; FIRST_BYTES];
        read.read_exact(&mut first).await.map_err(|error| explain(error, host))?;
        Ok(TokioIo::new(tokio::io::join(Cursor::new(first).chain(read), write)))
    }
}

/// To a node's `/metrics` and probes at `HOST:PORT`, which ask nobody for a certificate. The caller bounds
/// the time.
pub async fn connect_http(ca: &Path, address: &str) -> Result<Stream, BoxError> {
    let config = Arc::new(client_config(Trust::of_file(ca)?, None, Some(HTTP1))?);
    let uri: Uri = format!("https://{address}").parse()?;
    let (tcp, name, host) = reach(&uri).await?;
    TlsConnector::from(config).connect(name, tcp).await.map_err(|error| explain(error, &host))
}

/// A connection that is not encrypted yet, and whom its other end has to prove to be; as text, too.
async fn reach(uri: &Uri) -> Result<(TcpStream, ServerName<'static>, String), BoxError> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone())
        .map_err(|_| Refused(format!("{host} is neither a DNS name nor an IP address")))?;
    let connected = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443)));
    let tcp = within(CONNECT_TIMEOUT, "connection", connected).await?;
    tcp.set_nodelay(true)?;
    Ok((tcp, name, host))
}

/// The outcome of one step, or that there was none in time.
async fn within<T, E: Into<BoxError>>(
    limit: Duration,
    what: &str,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, BoxError> {
    match tokio::time::timeout(limit, step).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => {
            let text = format!("no {what} within {} s", limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
        }
    }
}

/// For a client of servers that are no nodes. Without `ca` it believes whom this machine does, which may be nobody unless
/// that is `needed`.
pub fn of_servers(ca: Option<&Path>, needed: bool) -> Result<ClientConfig, TlsError> {
    client_config(Trust::of_file_or_machine(ca, needed)?, None, None)
}

/// Believes whom `trust` does, shows `pair` to whoever asks for a certificate, and agrees on a `protocol`, if there is
/// one, with ALPN.
pub(super) fn client_config(
    trust: Trust,
    pair: Option<&KeyPair>,
    protocol: Option<&[u8]>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|reason| TlsError::Unusable { path: "TLS".into(), reason })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let identity = pair.identity()?;
            let config = builder.with_client_auth_cert(identity.chain, identity.key);
            config.map_err(|reason| pair.refused(reason))?
        }
    };
    config.alpn_protocols.extend(protocol.map(<[u8]>::to_vec));
    Ok(config)
}

/// What a person can do about a handshake that failed.
fn explain(error: io::Error, host: &str) -> BoxError {
    match explanation(&error, host) {
        Some(text) => Refused(text).into(),
        None => error.into(),
    }
}

/// The same as text; `None` = it is not TLS that failed.
pub(super) fn explanation(error: &io::Error, host: &str) -> Option<String> {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    Some(match reason {
        Some(rustls::Error::AlertReceived(alert)) => refused_by_the_other(*alert),
        Some(rustls::Error::InvalidCertificate(problem)) => not_believed(problem, host),
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".into(),
        Some(reason) => format!("TLS: {reason}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection in the middle of the TLS handshake".into()
        }
        None => return None,
    })
}

fn refused_by_the_other(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "it asks for a certificate, and none was shown".into(),
        AlertDescription::UnknownCA => "it does not know the CA of the certificate that it was shown".into(),
        AlertDescription::CertificateExpired => "the certificate that it was shown has expired".into(),
        AlertDescription::ProtocolVersion => "it speaks no common version of TLS".into(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => {
            format!("it does not accept the certificate that it was shown ({alert:?})")
        }
        other => format!("it refused the TLS handshake ({other:?})"),
    }
}

fn not_believed(problem: &CertificateError, host: &str) -> String {
    match problem {
        CertificateError::UnknownIssuer => "its certificate is not from a CA that is believed".into(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("its certificate is not for {host}: use a name that is in it, or add {host} to its SAN")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not a server's: that is what its key usage, or extended key usage, says"
                .into()
        }
        CertificateError::Other(reason) => format!("its certificate cannot be believed: {reason}"),
        other => format!("its certificate cannot be believed: {other}"),
    }
}

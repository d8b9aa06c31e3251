//! What a node shows and demands: one certificate, and the CAs of everybody who calls it.
//!
//! The files are read again every few seconds. What has changed counts for connections from then on; what
//! cannot be used is refused with its reason, and the former one stays. A connection that exists is not
//! touched, but a call on it is refused once its caller's certificate has expired.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use super::callers::Callers;
use super::certificate::Certificate;
use super::client::client_config;
use super::files::{KeyPair, PemFile};
use super::trust::Trust;
use super::{HTTP1, HTTP2, TlsError, VERSIONS, provider};
use crate::config::node::TlsFiles;

/// Between two looks at the files.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A node's certificate, in every use that it has. Shared by listeners and calls of other nodes.
pub struct Own {
    paths: TlsFiles,
    current: RwLock<Arc<Current>>,
}

/// As of one reading of the files.
pub struct Current {
    pair: KeyPair,
    client_ca: PemFile,
    pub certificate: Certificate,
    /// Of the control plane: callers must have a certificate.
    pub grpc: Arc<ServerConfig>,
    /// Of `/metrics` and the probes: encrypted, for anyone.
    pub http: Arc<ServerConfig>,
    /// For calls of other nodes.
    pub client: Arc<ClientConfig>,
}

impl Own {
    pub fn load(paths: &TlsFiles) -> Result<Own, TlsError> {
        let (pair, client_ca) = read(paths)?;
        let current = RwLock::new(Arc::new(Current::build(pair, client_ca)?));
        Ok(Own { paths: paths.clone(), current })
    }

    pub fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files once; the certificate, if anything has changed. Blocks.
    pub fn refresh(&self) -> Result<Option<Certificate>, TlsError> {
        let (pair, client_ca) = read(&self.paths)?;
        let before = self.current();
        if before.pair == pair && before.client_ca == client_ca {
            return Ok(None);
        }
        let current = Arc::new(Current::build(pair, client_ca)?);
        let certificate = current.certificate.clone();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(Some(certificate))
    }

    /// Looks again and again; for a task of its own, which ends when it is dropped.
    pub async fn keep_fresh(self: Arc<Own>) {
        let mut said = None;
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let own = Arc::clone(&self);
            let Ok(outcome) = tokio::task::spawn_blocking(move || own.refresh()).await else { return };
            match outcome {
                Ok(None) => said = None,
                Ok(Some(certificate)) => {
                    said = None;
                    let valid_until = certificate.shown_end();
                    tracing::info!(%valid_until, "certificates were read again, and count for new connections");
                }
                Err(error) => {
                    // A certificate and its key are replaced one after the other: said once, and mended
                    // by itself a moment later.
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(error, "new certificates cannot be used; the former ones stay");
                        said = Some(error);
                    }
                }
            }
        }
    }
}

fn read(paths: &TlsFiles) -> Result<(KeyPair, PemFile), TlsError> {
    Ok((KeyPair::read(&paths.cert, &paths.key)?, PemFile::read(&paths.client_ca)?))
}

impl Current {
    fn build(pair: KeyPair, client_ca: PemFile) -> Result<Current, TlsError> {
        let (callers, nodes) = (Callers::of_file(&client_ca)?, Trust::of(&client_ca)?);
        Ok(Current {
            certificate: pair.identity()?.certificate,
            grpc: server_config(&pair, Some(callers), HTTP2)?,
            http: server_config(&pair, None, HTTP1)?,
            client: Arc::new(client_config(nodes, Some(&pair), Some(HTTP2))?),
            pair,
            client_ca,
        })
    }
}

/// Without `callers` nobody is asked for a certificate.
fn server_config(
    pair: &KeyPair,
    callers: Option<Callers>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, TlsError> {
    let identity = pair.identity()?;
    let refused = |error| pair.refused(error);
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS).map_err(refused)?;
    let builder = match callers {
        Some(callers) => builder.with_client_cert_verifier(Arc::new(callers)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(identity.chain, identity.key).map_err(refused)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    // A session that is taken up again shows no certificate, so that nobody would ask whether it is valid
    // still. Connections are long, and a handshake is cheap beside one.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

//! The connection to a node.

use std::future::Future;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::Global;
use super::failure::{Failure, root_cause};
use crate::tls::client::{CHANNEL_TIMEOUT, CONNECT_TIMEOUT, Client, Refused};

/// Answers of state scans may be large.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// A node answers every call, and begins every stream, within a minute. One that has not has stopped, or cannot be heard.
const ANSWER_MAX: Duration = Duration::from_secs(65);

/// Connects to the node that the caller named.
pub async fn connect(global: &Global) -> Result<Channel, Failure> {
    let address = &global.address;
    let wrong =
        || Failure::usage(format!("--address {address}: write HOST:PORT, for example 127.0.0.1:7600"));
    if !address.contains(':') || address.contains("://") {
        return Err(wrong());
    }
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?.timeout(ANSWER_MAX);
    let connected = match tls(global)? {
        None => endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await,
        Some(tls) => endpoint.connect_timeout(CHANNEL_TIMEOUT).connect_with_connector(tls.connector()).await,
    };
    connected.map_err(|error| match refused(&error) {
        Some(refused) => Failure::refused(format!(
            "no secure connection to {address}: {refused} (see --ca, --cert and --cert-key)"
        )),
        None => Failure::unreachable(format!(
            "no node answers at {address} ({}): is `tidemill dev` or `tidemill node` running? \
             Name another with --address HOST:PORT",
            root_cause(&error)
        )),
    })
}

/// What the caller shows and believes, if anything.
fn tls(global: &Global) -> Result<Option<Client>, Failure> {
    let Some(ca) = &global.ca else {
        return match (&global.cert, &global.cert_key) {
            (None, None) => Ok(None),
            _ => Err(Failure::usage(
                "--cert needs --ca: the CA that the node's certificate comes from (TIDEMILL_CA)",
            )),
        };
    };
    let pair = match (&global.cert, &global.cert_key) {
        (Some(cert), key) => Some((cert.as_path(), key.as_ref().unwrap_or(cert).as_path())),
        (None, None) => None,
        (None, Some(_)) => return Err(Failure::usage("--cert-key needs --cert (TIDEMILL_CERT)")),
    };
    Client::from_files(ca, pair).map(Some).map_err(|error| Failure::usage(error.to_string()))
}

/// A handshake that failed, somewhere below what the transport says.
fn refused<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Refused> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref() {
            return Some(refused);
        }
        cause = error.source();
    }
    None
}

/// Who makes a change, for the history: as `TIDEMILL_AUTHOR` says, or the user of this machine.
pub fn author() -> String {
    let name = ["TIDEMILL_AUTHOR", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    name.unwrap_or_else(|| "unknown".to_owned())
}

/// Runs one command's conversation. One thread is enough for a client.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

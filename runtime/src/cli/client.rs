//! The connection to a node.

use std::future::Future;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::Global;
use super::failure::Failure;

/// A node that does not accept a connection for this long is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Answers of state scans may be large.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Connects to the node that the caller named.
pub async fn connect(global: &Global) -> Result<Channel, Failure> {
    let address = &global.address;
    let wrong =
        || Failure::usage(format!("--address {address}: write HOST:PORT, for example 127.0.0.1:7600"));
    if !address.contains(':') || address.contains("://") {
        return Err(wrong());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| {
        Failure::unreachable(format!(
            "no node answers at {address} ({}): is `tidemill dev` or `tidemill node` running? \
             Name another with --address HOST:PORT",
            root_cause(&error)
        ))
    })
}

/// Who makes a change, for the history: as `TIDEMILL_AUTHOR` says, or the user of this machine.
pub fn author() -> String {
    let name = ["TIDEMILL_AUTHOR", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    name.unwrap_or_else(|| "unknown".to_owned())
}

/// The innermost cause: "Connection refused" says more than "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Runs one command's conversation. One thread is enough for a client.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

//! Whether the alerts of docs/operations.md have what they are made of, asked where it is scraped.

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::row;
use crate::cli::Global;
use crate::cli::doctor::{Check, Verdict};
use crate::tls::client::connect_http;

/// Families of metrics, as `/metrics` names their types: the samples of a counter have `_total` as well.
const ALERTED: [&str; 14] = [
    "tidemill_breaker_state",
    "tidemill_dead_letters",
    "tidemill_dead_letters_over_limit",
    "tidemill_deployments_hanging",
    "tidemill_lag_records",
    "tidemill_lag_seconds",
    "tidemill_nodes",
    "tidemill_parked_full",
    "tidemill_rebalances",
    "tidemill_records_failed",
    "tidemill_records_in",
    "tidemill_rollbacks",
    "tidemill_task_state",
    "tidemill_unassigned_partitions",
];

/// Of `listen.http`, where nobody says otherwise.
const PORT: u16 = 7601;
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Above what a node shows of thousands of tasks.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub async fn alerts(global: &Global, http: Option<&str>) -> Check {
    let address = match http {
        Some(address) => address.to_owned(),
        None => format!("{}:{PORT}", global.address.rsplit_once(':').map_or("", |(host, _)| host)),
    };
    match (scrape(&address, global.ca.as_deref()).await, http) {
        (Ok(text), _) => found(&address, &text),
        (Err(error), Some(_)) => {
            row("alerts", Verdict::Failed, format!("{address}/metrics cannot be read: {error}"))
        }
        (Err(error), None) => row(
            "alerts",
            Verdict::Warning,
            format!("{address}/metrics cannot be read ({error}): say where it is with --http HOST:PORT"),
        ),
    }
}

/// Whether what was scraped has every family that is needed.
fn found(address: &str, text: &str) -> Check {
    let told: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let missing: Vec<&str> = ALERTED.into_iter().filter(|name| !told.contains(name)).collect();
    match missing.as_slice() {
        [] => {
            let many = ALERTED.len();
            let detail = format!(
                "{address}/metrics has all {many} metrics that the alerts of docs/operations.md need"
            );
            row("alerts", Verdict::Ok, detail)
        }
        missing => {
            let detail = format!("{address}/metrics lacks {}: alerts on them never fire", missing.join(", "));
            row("alerts", Verdict::Failed, detail)
        }
    }
}

/// The text of `/metrics`, or why there is none. A node has its certificate for both of its listeners: whoever
/// needs a CA for gRPC needs it here.
async fn scrape(address: &str, ca: Option<&Path>) -> Result<String, String> {
    let answer = match tokio::time::timeout(ANSWER_WAIT, read(address, ca)).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer within {} s", ANSWER_WAIT.as_secs())),
    };
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        Some((head, _)) => Err(format!("it answers {}", head.lines().next().unwrap_or_default())),
        None => Err("it does not speak HTTP".to_owned()),
    }
}

async fn read(address: &str, ca: Option<&Path>) -> Result<String, Box<dyn Error + Send + Sync>> {
    Ok(match ca {
        None => ask(TcpStream::connect(address).await?, address).await?,
        Some(ca) => ask(connect_http(ca, address).await?, address).await?,
    })
}

/// One question and its whole answer. In HTTP/1.0 that is in one piece, and ends with the connection.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, address: &str) -> io::Result<String> {
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidemill_test_support::certificates::Authority;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::node::TlsFiles;
    use crate::telemetry::{Telemetry, table};
    use crate::tls::connection::Connection;
    use crate::tls::own::Own;

    /// Listens for a question and says this.
    async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), said: &str) {
        let mut asked = [0; 1_024];
        let read = stream.read(&mut asked).await.expect("a request");
        assert!(asked[..read].starts_with(b"GET /metrics HTTP/1.0\r\n"));
        stream.write_all(said.as_bytes()).await.expect("sent");
        stream.shutdown().await.expect("ended");
    }

    #[test]
    fn what_is_missing_for_the_alerts_is_named() {
        let text = Telemetry::new().render();
        assert_eq!(found("n1:7601", &text).verdict, Verdict::Ok);
        let check = found("n1:7601", &text.replace("tidemill_lag_", "tidemill_late_"));
        assert_eq!(
            (check.verdict, check.detail.as_str()),
            (
                Verdict::Failed,
                "n1:7601/metrics lacks tidemill_lag_records, tidemill_lag_seconds: alerts on them never fire"
            )
        );
    }

    #[test]
    fn the_alerts_of_the_documentation_are_made_of_these_metrics() {
        let text = include_str!("../../../../docs/operations.md");
        let (_, section) = text.split_once("\n### Alerts\n").expect("a section of alerts");
        let section = section.split("\n#").next().expect("a section");
        let words = section.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        let named = words.filter(|word| word.starts_with("tidemill_"));
        let named: BTreeSet<&str> = named.map(|word| word.strip_suffix("_total").unwrap_or(word)).collect();
        assert_eq!(named, BTreeSet::from(ALERTED));
        let known: BTreeSet<&str> = table::names().collect();
        assert!(named.is_subset(&known), "{named:?}");
    }

    #[tokio::test]
    async fn somebody_who_does_not_answer_with_metrics_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let said = ["HTTP/1.1 404 Not Found\r\n\r\n", "220 mail\r\n", "HTTP/1.1 200 OK\r\n\r\n# EOF\n"];
        let server = tokio::spawn(async move {
            for said in said {
                let (mut stream, _) = listener.accept().await.expect("somebody connects");
                answer(&mut stream, said).await;
            }
        });
        assert_eq!(scrape(&address, None).await, Err("it answers HTTP/1.1 404 Not Found".to_owned()));
        assert_eq!(scrape(&address, None).await, Err("it does not speak HTTP".to_owned()));
        assert_eq!(scrape(&address, None).await, Ok("# EOF\n".to_owned()));
        server.await.expect("no panic");
        assert!(scrape(&address, None).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn metrics_of_a_node_with_a_certificate_are_asked_for_in_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let elsewhere = Authority::new(directory.path(), "elsewhere");
        let pair = authority.issue("node", &["127.0.0.1"]);
        let files = TlsFiles { cert: pair.cert, key: pair.key, client_ca: authority.ca.clone() };
        let config = Arc::clone(&Own::load(&files).expect("good certificates").current().http);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let server = tokio::spawn(async move {
            let (stream, peer) = listener.accept().await.expect("somebody connects");
            let shaken = Connection::encrypted(Arc::clone(&config), stream, peer).await;
            answer(&mut shaken.expect("a handshake"), "HTTP/1.1 200 OK\r\n\r\n# EOF\n").await;
            let (stream, peer) = listener.accept().await.expect("somebody connects");
            assert!(Connection::encrypted(config, stream, peer).await.is_err(), "it is not believed");
        });
        assert_eq!(scrape(&address, Some(&authority.ca)).await, Ok("# EOF\n".to_owned()));
        let doubted = scrape(&address, Some(&elsewhere.ca)).await.expect_err("another CA");
        assert_eq!(doubted, "its certificate is not from a CA that is believed");
        server.await.expect("no panic");
    }
}

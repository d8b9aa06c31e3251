//! Deliveries by HTTP: one POST each, as a CloudEvent.
//!
//! | answer | means |
//! |---|---|
//! | 2xx | delivered |
//! | 408, 429, 5xx, no answer, no connection | transient; `Retry-After` is honoured |
//! | any other, redirects included | permanent |

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sha2::Sha256;

use super::event::Event;
use super::{Origin, Unsent, secrets, tls};
use crate::config::failures::{CONNECTION_ERROR, UNAVAILABLE_ERROR};
use crate::config::node::Secret;
use crate::config::outbox::{HttpFormat, HttpSpec, check_url};
use crate::config::units::show_hex;
use crate::ports::{Delivery, Landed};

/// Connections that wait for their next use, and for how long they do.
const IDLE_MAX: usize = 32;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is read up to here and for so long, so that its connection can be used again. What it means is in its
/// head.
const ANSWER_BYTES_MAX: usize = 64 << 10;
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(1);

pub struct Carrier {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Of one attempt; who calls sees to it.
    timeout: Duration,
    url: Uri,
    format: HttpFormat,
    secret: Option<Secret>,
    authorization: Option<HeaderValue>,
    source: String,
    event_type: String,
}

impl Carrier {
    pub fn new(
        spec: &HttpSpec,
        origin: &Origin,
        event_type: &str,
        timeout: Duration,
    ) -> Result<Carrier, String> {
        let (url, login) = without_login(secrets::read("url", &spec.url)?.expose())?;
        check_url(&url, &["http://", "https://"]).map_err(|why| format!("url {why}"))?;
        // It may be a secret, so the reason does not hold it.
        let url: Uri = url.parse().map_err(|error| format!("url is no URL: {error}"))?;
        let read = |what: &str, source: &Option<_>| {
            source.as_ref().map(|source| secrets::read(what, source)).transpose()
        };
        let authorization = match (read("authorization", &spec.authorization)?, login) {
            (Some(_), Some(_)) => {
                return Err("url has a user, and there is authorization as well: keep one".to_owned());
            }
            (given, login) => given.or(login),
        };
        let authorization = authorization.map(|value| {
            let mut header = HeaderValue::from_str(value.expose())
                .map_err(|_| "authorization holds what no header may hold".to_owned())?;
            header.set_sensitive(true);
            Ok::<_, String>(header)
        });
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let tls = tls::client(spec.ca.as_deref(), url.scheme_str() == Some("https"))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Ok(Carrier {
            client,
            timeout,
            url,
            format: spec.format,
            secret: read("secret", &spec.secret)?,
            authorization: authorization.transpose()?,
            source: origin.source(),
            event_type: event_type.to_owned(),
        })
    }

    pub async fn deliver(&self, delivery: &Delivery) -> Result<Landed, Unsent> {
        let event = Event::of(delivery, &self.source, &self.event_type);
        let (headers, body) = self.message(delivery, &event).map_err(Unsent)?;
        let mut request = Request::new(Full::from(body));
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, self.url.clone());
        *request.headers_mut() = headers;
        let began = Instant::now();
        Ok(match self.client.request(request).await {
            Ok(answer) => {
                // Half of what is left, so that the time is not over before it is told what the head has said.
                let left = self.timeout.saturating_sub(began.elapsed()) / 2;
                judge(answer, left.min(ANSWER_WAIT_MAX)).await
            }
            Err(error) => {
                let reason = format!("{CONNECTION_ERROR}: {error}{}", cause(&error));
                Landed::Transient { reason, after: None }
            }
        })
    }

    fn message(&self, delivery: &Delivery, event: &Event) -> Result<(HeaderMap, Vec<u8>), String> {
        let mut headers = HeaderMap::new();
        let mut put = |name: &str, value: &str| -> Result<(), String> {
            let told = |_| format!("the header {name} cannot hold this value");
            let header =
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("no header is named {name}"))?;
            headers.insert(header, HeaderValue::from_str(value).map_err(told)?);
            Ok(())
        };
        put(USER_AGENT.as_str(), concat!("tidemill/", env!("CARGO_PKG_VERSION")))?;
        put("tidemill-id", &delivery.id)?;
        put("tidemill-sequence", &delivery.sequence.to_string())?;
        // These come from upstream, unseen: a row is delivered without what no header can say.
        let can_be_said = |value: &str| HeaderValue::from_str(value).is_ok();
        for name in ["traceparent", "tracestate"] {
            let found = event.attributes.iter().find(|(found, _)| *found == name);
            if let Some((_, value)) = found.filter(|(_, value)| can_be_said(value)) {
                put(name, value)?;
            }
        }
        let body = match self.format {
            HttpFormat::Structured => {
                put(CONTENT_TYPE.as_str(), "application/cloudevents+json; charset=UTF-8")?;
                event.structured()
            }
            HttpFormat::Binary => {
                for (name, value) in event.binary_headers() {
                    put(&name, &value)?;
                }
                if let Some(content_type) = event.content_type.as_ref().filter(|text| can_be_said(text)) {
                    put(CONTENT_TYPE.as_str(), content_type)?;
                }
                event.value.clone().unwrap_or_default()
            }
        };
        if let Some(secret) = &self.secret {
            let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            put("tidemill-signature", &sign(secret, now_s, &delivery.id, &body))?;
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok((headers, body))
    }
}

/// A URL without a user and a password in it, and what they are as the value of an `Authorization` header. One that a
/// document holds has none.
fn without_login(url: &str) -> Result<(String, Option<Secret>), String> {
    let none = || Ok((url.to_owned(), None));
    let Some((scheme, rest)) = url.split_once("://") else { return none() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let Some((login, host)) = authority.rsplit_once('@') else { return none() };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let login = format!("{}:{}", secrets::unescape(user)?, secrets::unescape(password)?);
    let basic = Secret::new(format!("Basic {}", STANDARD.encode(login)));
    Ok((format!("{scheme}://{host}{path}"), Some(basic)))
}

/// `t=SECONDS,v1=HEX`, the HMAC-SHA256 of `SECONDS.ID.BODY`.
fn sign(secret: &Secret, now_s: u64, id: &str, body: &[u8]) -> String {
    // A key of any length will do for HMAC.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else {
        return String::new();
    };
    mac.update(format!("{now_s}.{id}.").as_bytes());
    mac.update(body);
    format!("t={now_s},v1={}", show_hex(&mac.finalize().into_bytes()))
}

async fn judge(mut answer: Response<Incoming>, wait: Duration) -> Landed {
    let status = answer.status();
    let after = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| retry_after(value.to_str().ok()?, SystemTime::now()));
    let rest = async {
        let mut read = 0;
        while let Some(Ok(part)) = answer.frame().await {
            read += part.data_ref().map_or(0, Bytes::len);
            if read > ANSWER_BYTES_MAX {
                break;
            }
        }
    };
    // One that does not end costs its connection, and is no reason to send the delivery again.
    let _ = tokio::time::timeout(wait, rest).await;
    landed(status, after)
}

fn landed(status: StatusCode, after: Option<Duration>) -> Landed {
    let reason = format!("the answer is {status}");
    match status.as_u16() {
        200..=299 => Landed::Delivered,
        408 | 429 | 500..=599 => {
            Landed::Transient { reason: format!("{UNAVAILABLE_ERROR}: {reason}"), after }
        }
        _ => Landed::Permanent { reason },
    }
}

/// Seconds, or a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    match value.trim().parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(value.trim()).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// What an error of the client leaves to its sources: "connection refused" for example.
fn cause(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!(": {error}");
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::outbox::Source;
    use crate::record::headers;

    fn carrier(url: Source, authorization: Option<Source>, format: HttpFormat) -> Result<Carrier, String> {
        let spec = HttpSpec { url, format, secret: None, authorization, event_type: None, ca: None };
        let origin = Origin { fleet: "f".to_owned(), deployment: "d".to_owned() };
        Carrier::new(&spec, &origin, "d.hook", Duration::from_secs(2))
    }

    #[tokio::test]
    async fn an_answer_whose_body_does_not_end_means_what_its_head_says() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("its address"));
        tokio::spawn(async move {
            let mut kept = Vec::new();
            for head in ["200 OK\r\nContent-Length: 9", "404 Not Found\r\nTransfer-Encoding: chunked"] {
                let Ok((mut socket, _)) = listener.accept().await else { return };
                let mut request = [0; 4 << 10];
                let answer = format!("HTTP/1.1 {head}\r\n\r\n");
                if socket.read(&mut request).await.is_ok()
                    && socket.write_all(answer.as_bytes()).await.is_ok()
                {
                    kept.push(socket);
                }
            }
            std::future::pending::<()>().await;
        });
        let carrier = carrier(Source::Plain(url), None, HttpFormat::Binary).expect("a carrier");
        let delivery = Delivery {
            partition: 0,
            sequence: 7,
            destination: "hook".into(),
            id: "life/topic/0/1/2".to_owned(),
            key: None,
            value: Some(b"v".to_vec()),
            headers: Vec::new(),
            timestamp_ms: 5,
        };
        let deliver = async || {
            let landed = tokio::time::timeout(carrier.timeout, carrier.deliver(&delivery)).await;
            landed.expect("in time").expect("it was sent")
        };
        assert_eq!(deliver().await, Landed::Delivered);
        let refused = deliver().await;
        assert!(matches!(&refused, Landed::Permanent { reason } if reason.contains("404")), "{refused:?}");
    }

    #[test]
    fn a_user_and_a_password_in_a_url_that_is_in_no_document_are_the_authorization() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            Source::File(path)
        };
        let url = file("url", "http://joe:p%40ss@shop.example:81/hook?to=a@b\n");
        let signed = carrier(url.clone(), None, HttpFormat::Binary).expect("a carrier");
        assert_eq!(signed.url.to_string(), "http://shop.example:81/hook?to=a@b");
        let header = signed.authorization.expect("it signs in");
        assert_eq!((header.to_str().ok(), header.is_sensitive()), (Some("Basic am9lOnBAc3M="), true));
        let plain = file("plain", "http://shop.example/hook?to=a@b");
        let plain = carrier(plain, None, HttpFormat::Binary).expect("a carrier");
        assert!(plain.authorization.is_none());
        let token = Some(file("token", "Bearer canary"));
        let both = carrier(url, token, HttpFormat::Binary).err().expect("two of them");
        assert!(both.contains("keep one") && !both.contains("canary") && !both.contains("joe"), "{both}");
    }

    #[test]
    fn a_header_of_the_row_that_http_cannot_say_is_left_out_and_the_row_is_delivered() {
        let own = [("traceparent", "00-ab-cd-01"), ("tracestate", "käse"), ("content-type", "text/käse")];
        let delivery = Delivery {
            partition: 0,
            sequence: 7,
            destination: "hook".into(),
            id: "life/topic/0/1/2".to_owned(),
            key: Some(b"k".to_vec()),
            value: Some(b"v".to_vec()),
            headers: headers::encode(own.iter().map(|(name, value)| (*name, Some(value.as_bytes())))),
            timestamp_ms: 5,
        };
        for (format, content_type) in [
            (HttpFormat::Binary, None),
            (HttpFormat::Structured, Some("application/cloudevents+json; charset=UTF-8")),
        ] {
            let url = Source::Plain("http://shop.example/hook".to_owned());
            let carrier = carrier(url, None, format).expect("a carrier");
            let event = Event::of(&delivery, &carrier.source, &carrier.event_type);
            let (headers, _) = carrier.message(&delivery, &event).expect("it can be sent");
            let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(text("tidemill-id"), Some("life/topic/0/1/2"));
            assert_eq!((text("traceparent"), text("tracestate")), (Some("00-ab-cd-01"), None));
            assert_eq!(text("content-type"), content_type);
        }
    }

    #[test]
    fn answers_are_sorted_by_what_they_mean() {
        let of = |code: u16| landed(StatusCode::from_u16(code).unwrap(), Some(Duration::from_secs(3)));
        for code in [200, 201, 204, 299] {
            assert_eq!(of(code), Landed::Delivered, "{code}");
        }
        for code in [408, 429, 500, 502, 503, 599] {
            let landed = of(code);
            let is_told = |reason: &str| reason.starts_with("InfraUnavailableError: the answer is ");
            assert!(
                matches!(&landed, Landed::Transient { reason, after: Some(_) } if is_told(reason)),
                "{landed:?}"
            );
        }
        for code in [301, 307, 400, 401, 404, 409, 410, 422, 431] {
            assert!(matches!(of(code), Landed::Permanent { .. }), "{code}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:00 GMT", now), Some(Duration::ZERO), "in the past");
        assert_eq!(retry_after("soon", now), None);
    }

    /// Against the example that docs/outbox.md gives to receivers.
    #[test]
    fn a_signature_covers_time_id_and_body() {
        let signature = sign(&Secret::new("key".to_owned()), 1_700_000_000, "id", b"body");
        let text = include_str!("../../../docs/outbox.md");
        assert!(text.contains(&format!("`{signature}`")), "{signature} is not in docs/outbox.md");
    }
}

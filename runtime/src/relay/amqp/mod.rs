//! Deliveries to RabbitMQ: AMQP 0-9-1 with publisher confirms and mandatory routing.
//!
//! ```text
//!   deliver --Publish--> writer task --frames--> server
//!      ^                                           |
//!      +---- confirm <--- reader task <--- ack, nack, return, close
//! ```
//!
//! One connection and channel for a destination, made with the first delivery and again after it has broken.
//! Frames are written by one task only, so that an attempt which is given up never leaves half a frame.
//!
//! | the server | means |
//! |---|---|
//! | acks | delivered |
//! | returns it (no queue is bound for it) | transient: a queue that is not there yet may come |
//! | nacks, closes, does not answer | transient |
//!
//! A client of our own and no library: see docs/decisions.

mod link;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::event::Event;
use super::{Origin, secrets, tls};
use crate::config::node::Secret;
use crate::config::outbox::AmqpSpec;
use crate::ports::{Delivery, Landed};
use crate::record::headers;
use link::{CHANNEL, Link, Stream};
use wire::{Arguments, Properties, Table};

/// The whole way from a socket to a channel that confirms.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Carrier {
    place: Place,
    exchange: String,
    routing_key: String,
    kind: String,
    source: String,
    link: tokio::sync::Mutex<Option<Link>>,
}

/// A URL, taken apart.
struct Place {
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    vhost: String,
    user: String,
    password: Secret,
}

impl Carrier {
    pub fn new(spec: &AmqpSpec, origin: &Origin, output: &str) -> Result<Carrier, String> {
        let url = secrets::read("url", &spec.url)?;
        for (what, text) in [("exchange", &spec.exchange), ("routing_key", &spec.routing_key)] {
            if text.len() > wire::SHORT_MAX {
                return Err(format!(
                    "{what} has {} bytes, at most {} are possible",
                    text.len(),
                    wire::SHORT_MAX
                ));
            }
        }
        Ok(Carrier {
            place: Place::parse(url.expose(), spec)?,
            exchange: spec.exchange.clone(),
            routing_key: spec.routing_key.clone(),
            kind: format!("{}.{output}", origin.deployment),
            source: origin.source(),
            link: tokio::sync::Mutex::default(),
        })
    }

    pub async fn deliver(&self, delivery: &Delivery) -> Landed {
        let link = match self.link().await {
            Ok(link) => link,
            Err(reason) => return Landed::Transient { reason, after: None },
        };
        let frames = match self.frames(delivery, link.frame_max) {
            Ok(frames) => frames,
            Err(reason) => return Landed::Permanent { reason },
        };
        link.publish(frames, delivery.id.clone()).await
    }

    /// The connection, made if there is none. One at a time makes it; the others wait for that.
    async fn link(&self) -> Result<Link, String> {
        let mut place = self.link.lock().await;
        if let Some(link) = place.as_ref().filter(|link| link.is_whole()) {
            return Ok(link.clone());
        }
        *place = None;
        let made = tokio::time::timeout(CONNECT_TIMEOUT, self.place.connect()).await;
        let link = made.map_err(|_| format!("no channel within {} s", CONNECT_TIMEOUT.as_secs()))??;
        *place = Some(link.clone());
        Ok(link)
    }

    /// A message: its method, its header, its body in as many frames as it takes.
    fn frames(&self, delivery: &Delivery, frame_max: u32) -> Result<Vec<u8>, String> {
        let event = Event::of(delivery, &self.source, &self.kind);
        let attribute = |name: &str| {
            event.attributes.iter().find(|(found, _)| *found == name).map(|(_, value)| value.clone())
        };
        let own = match delivery.headers.is_empty() {
            true => Vec::new(),
            false => headers::decode(&delivery.headers).unwrap_or_default(),
        };
        let mut table = Table::default()
            .text("tidemill-id", delivery.id.as_bytes())
            .number("tidemill-sequence", i64::try_from(delivery.sequence).unwrap_or(i64::MAX));
        if let Some(key) = &delivery.key {
            table = table.text("tidemill-key", key);
        }
        for (name, value) in own.iter().filter(|(name, _)| !name.is_empty() && !name.starts_with("tidemill-"))
        {
            table = table.text(name, value.unwrap_or_default());
        }
        let body = delivery.value.as_deref().unwrap_or_default();
        let properties = Properties {
            content_type: event.content_type.clone().unwrap_or_default(),
            headers: table,
            correlation_id: attribute("correlationid"),
            message_id: delivery.id.clone(),
            timestamp_s: u64::try_from(delivery.timestamp_ms).ok().map(|ms| ms / 1_000),
            kind: attribute("type").unwrap_or_default(),
        };
        let part = frame_max as usize - wire::FRAME_OVERHEAD;
        let header = properties.header(body.len());
        if header.len() > part {
            return Err(format!("its headers take {} bytes, a frame of the server {part}", header.len()));
        }
        const MANDATORY: u8 = 1;
        let publish = Arguments::of(wire::BASIC_PUBLISH).u16(0).short(&self.exchange);
        let mut frames = publish.short(&self.routing_key).u8(MANDATORY).frame(CHANNEL);
        wire::write_frame(&mut frames, wire::HEADER, CHANNEL, &header);
        for part in body.chunks(part) {
            wire::write_frame(&mut frames, wire::BODY, CHANNEL, part);
        }
        Ok(frames)
    }
}

impl Place {
    fn parse(url: &str, spec: &AmqpSpec) -> Result<Place, String> {
        let (secure, rest) = match (url.strip_prefix("amqp://"), url.strip_prefix("amqps://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err("url begins with amqp:// or amqps://".to_owned()),
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, vhost) = rest.split_once('/').map_or((rest, None), |(a, vhost)| (a, Some(vhost)));
        let (user, host) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let (user, password) = match user {
            None => ("guest", "guest"),
            Some(user) => user.split_once(':').unwrap_or((user, "")),
        };
        // An address of IPv6 has colons of its own, and brackets around them.
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().map_err(|_| "url has no number for a port".to_owned())?)
            }
            _ => (host, if secure { 5671 } else { 5672 }),
        };
        if host.is_empty() {
            return Err("url has no host".to_owned());
        }
        let tls = match secure {
            true => Some(TlsConnector::from(Arc::new(tls::client(spec.ca.as_deref(), true)?))),
            false => None,
        };
        Ok(Place {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            tls,
            vhost: vhost.filter(|vhost| !vhost.is_empty()).map_or_else(|| Ok("/".to_owned()), unescape)?,
            user: unescape(user)?,
            password: Secret::new(unescape(password)?),
        })
    }

    async fn connect(&self) -> Result<Link, String> {
        let address = (self.host.as_str(), self.port);
        let told = |error: std::io::Error| format!("{}:{}: {error}", self.host, self.port);
        let socket = TcpStream::connect(address).await.map_err(told)?;
        socket.set_nodelay(true).map_err(told)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(socket),
            Some(tls) => {
                let name = rustls::pki_types::ServerName::try_from(self.host.clone())
                    .map_err(|_| format!("{} is no name of a server", self.host))?;
                Box::new(tls.connect(name, socket).await.map_err(told)?)
            }
        };
        link::begin(stream, &self.vhost, (&self.user, self.password.expose())).await
    }
}

/// `%41` is `A`.
fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let code =
            rest.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        bytes.push(code.ok_or("url has a percent sign without two hexadecimal digits")?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| "url is no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::outbox::Source;

    fn place(url: &str) -> Result<(String, u16, String, String, String), String> {
        let spec = AmqpSpec {
            url: Source::Plain(url.to_owned()),
            exchange: String::new(),
            routing_key: "q".into(),
            ca: None,
        };
        let place = Place::parse(url, &spec)?;
        Ok((place.host, place.port, place.vhost, place.user, place.password.expose().to_owned()))
    }

    #[test]
    fn a_url_says_where_and_as_whom() {
        let all = |host: &str, port, vhost: &str, user: &str, password: &str| {
            Ok((host.to_owned(), port, vhost.to_owned(), user.to_owned(), password.to_owned()))
        };
        assert_eq!(place("amqp://rabbit"), all("rabbit", 5672, "/", "guest", "guest"));
        assert_eq!(place("amqp://joe:p%40ss@[::1]:5673/%2Fshop"), all("::1", 5673, "/shop", "joe", "p@ss"));
        assert_eq!(place("amqp://[::1]/"), all("::1", 5672, "/", "guest", "guest"));
        for wrong in ["http://h", "amqp://", "amqp://h:port", "amqp://u%4:p@h"] {
            let error = place(wrong).expect_err(wrong);
            assert!(!error.contains(wrong), "{error}");
        }
    }
}

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
//! | closes the channel for what a message is (406) | permanent for the only one; of several, each goes alone next |
//! | nacks, closes otherwise, does not answer | transient |
//!
//! A client of our own and no library: see docs/decisions.

mod link;
mod wire;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::RwLock;
use tokio_rustls::TlsConnector;

use super::event::Event;
use super::{Origin, Unsent, lock, secrets, tls};
use crate::config::failures::{CONNECTION_ERROR, TIMEOUT_ERROR};
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
    event_type: String,
    source: String,
    link: tokio::sync::Mutex<Option<Link>>,
    /// Held by every delivery: with others, or alone.
    turn: RwLock<()>,
    /// Ids of messages for one of which the server has closed the channel. Those of the last time only.
    suspects: Mutex<HashSet<String>>,
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
    pub fn new(spec: &AmqpSpec, origin: &Origin, event_type: &str) -> Result<Carrier, String> {
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
        let place = Place::parse(url.expose(), spec)?;
        if place.vhost.len() > wire::SHORT_MAX {
            return Err(format!("url names a virtual host of more than {} bytes", wire::SHORT_MAX));
        }
        Ok(Carrier {
            place,
            exchange: spec.exchange.clone(),
            routing_key: spec.routing_key.clone(),
            event_type: event_type.to_owned(),
            source: origin.source(),
            link: tokio::sync::Mutex::default(),
            turn: RwLock::default(),
            suspects: Mutex::default(),
        })
    }

    pub async fn deliver(&self, delivery: &Delivery) -> Result<Landed, Unsent> {
        let is_suspect = self.suspects().contains(&delivery.id);
        // A suspect goes alone, so that it is known if it is the one.
        let (_with_others, _alone) = match is_suspect {
            false => (Some(self.turn.read().await), None),
            true => (None, Some(self.turn.write().await)),
        };
        let link = match self.link().await {
            Ok(link) => link,
            Err(reason) => return Ok(Landed::Transient { reason, after: None }),
        };
        let frames = self.frames(delivery, link.frame_max).map_err(Unsent)?;
        let landed = link.publish(frames, delivery.id.clone()).await;
        let mut suspects = self.suspects();
        match landed {
            Landed::Transient { .. } => {
                // None of them is told before, so none is tried again as if nothing were known.
                let found = link.suspects();
                if !found.is_empty() {
                    *suspects = found;
                }
            }
            Landed::Delivered | Landed::Permanent { .. } => {
                suspects.remove(&delivery.id);
            }
        }
        Ok(landed)
    }

    fn suspects(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.suspects)
    }

    /// The connection, made if there is none. One at a time makes it; the others wait for that.
    async fn link(&self) -> Result<Link, String> {
        let mut place = self.link.lock().await;
        if let Some(link) = place.as_ref().filter(|link| link.is_whole()) {
            return Ok(link.clone());
        }
        *place = None;
        let made = tokio::time::timeout(CONNECT_TIMEOUT, self.place.connect()).await;
        let late = |_| format!("{TIMEOUT_ERROR}: no channel within {} s", CONNECT_TIMEOUT.as_secs());
        let link = made.map_err(late)?.map_err(|reason| format!("{CONNECTION_ERROR}: {reason}"))?;
        *place = Some(link.clone());
        Ok(link)
    }

    /// A message: its method, its header, its body in as many frames as it takes.
    fn frames(&self, delivery: &Delivery, frame_max: u32) -> Result<Vec<u8>, String> {
        let event = Event::of(delivery, &self.source, &self.event_type);
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
        // Those of this kind are an outbox's own, and of another one if the row has some.
        let can_be_said =
            |name: &str| (1..=wire::SHORT_MAX).contains(&name.len()) && !name.starts_with("tidemill-");
        for (name, value) in own.iter().filter(|(name, _)| can_be_said(name)) {
            table = table.text(name, value.unwrap_or_default());
        }
        let body = delivery.value.as_deref().unwrap_or_default();
        let properties = Properties {
            // What is too long for one of these is among the headers, as the row's own.
            content_type: event.content_type.clone(),
            headers: table,
            correlation_id: attribute("correlationid"),
            message_id: Some(delivery.id.clone()),
            timestamp_s: u64::try_from(delivery.timestamp_ms).ok().map(|ms| ms / 1_000),
            kind: attribute("type"),
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
            vhost: vhost
                .filter(|vhost| !vhost.is_empty())
                .map_or_else(|| Ok("/".to_owned()), secrets::unescape)?,
            user: secrets::unescape(user)?,
            password: Secret::new(secrets::unescape(password)?),
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::outbox::Source;

    fn spec(url: &str) -> AmqpSpec {
        AmqpSpec {
            url: Source::Plain(url.to_owned()),
            exchange: String::new(),
            routing_key: "q".into(),
            ca: None,
        }
    }

    fn carrier(url: &str) -> Carrier {
        let origin = Origin { fleet: "f".to_owned(), deployment: "d".to_owned() };
        Carrier::new(&spec(url), &origin, "d.out").expect("a carrier")
    }

    fn delivery(id: &str, value: &[u8], own: &[(&str, &str)]) -> Delivery {
        Delivery {
            partition: 0,
            sequence: 1,
            destination: "out".into(),
            id: id.to_owned(),
            key: None,
            value: Some(value.to_vec()),
            headers: headers::encode(own.iter().map(|(name, value)| (*name, Some(value.as_bytes())))),
            timestamp_ms: 5,
        }
    }

    /// Messages with a larger body close the channel.
    const BODY_MAX: u64 = 10;

    /// Serves one connection, which has its channel closed at once for a message that is too large, or if `crowd`
    /// when three messages are under way; without `crowd` all others are confirmed.
    async fn serve(mut socket: TcpStream, crowd: bool) -> std::io::Result<()> {
        socket.read_exact(&mut [0; 8]).await?;
        let tune = Arguments::of(wire::CONNECTION_TUNE).u16(1).u32(0).u16(10);
        for (method, channel) in [
            (Arguments::of(wire::CONNECTION_START), 0),
            (tune, 0),
            (Arguments::of(wire::CONNECTION_OPEN_OK), 0),
            (Arguments::of(wire::CHANNEL_OPEN_OK), CHANNEL),
            (Arguments::of(wire::CONFIRM_SELECT_OK), CHANNEL),
        ] {
            socket.write_all(&method.frame(channel)).await?;
        }
        let mut tag = 0;
        loop {
            let mut head = [0; 7];
            socket.read_exact(&mut head).await?;
            let (kind, _, size) = wire::frame_head(head, 1 << 20).expect("a frame");
            let mut payload = vec![0; size + 1];
            socket.read_exact(&mut payload).await?;
            if kind != wire::HEADER {
                continue;
            }
            tag += 1;
            let (body_bytes, _) = wire::read_header(&payload).expect("a header");
            let closes = if crowd { tag == 3 } else { body_bytes > BODY_MAX };
            let answer = match closes {
                true => Arguments::of(wire::CHANNEL_CLOSE).u16(406).short("too large").u16(60).u16(40),
                false if crowd => continue,
                false => Arguments::of(wire::BASIC_ACK).u32(0).u32(tag).u8(0),
            };
            socket.write_all(&answer.frame(CHANNEL)).await?;
        }
    }

    #[tokio::test]
    async fn of_several_messages_the_one_that_closes_the_channel_is_found_and_the_others_are_delivered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let carrier = carrier(&format!("amqp://{}", listener.local_addr().expect("its address")));
        tokio::spawn(async move {
            let mut crowd = true;
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, crowd));
                crowd = false;
            }
        });
        let all = [delivery("a", b"small", &[]), delivery("b", &[0; 11], &[]), delivery("c", b"small", &[])];
        let deliver = async || {
            let [a, b, c] = all.each_ref().map(|delivery| carrier.deliver(delivery));
            let (a, b, c) = tokio::join!(a, b, c);
            [a, b, c].map(|landed| landed.expect("it was sent"))
        };
        let first = deliver().await;
        assert!(first.iter().all(|landed| matches!(landed, Landed::Transient { .. })), "{first:?}");
        assert_eq!(carrier.suspects().len(), 3);
        let again = deliver().await;
        assert!(matches!(&again[1], Landed::Permanent { reason } if reason.contains("406")), "{again:?}");
        assert_eq!([&again[0], &again[2]], [&Landed::Delivered; 2]);
        assert_eq!(carrier.suspects().len(), 0);
    }

    #[test]
    fn what_no_property_can_say_is_a_header_and_a_name_that_no_header_can_have_is_left_out() {
        let (long, name) = ("c".repeat(1_024), "n".repeat(256));
        let carrier = carrier("amqp://rabbit");
        let frames =
            |own: &[(&str, &str)]| carrier.frames(&delivery("id", b"v", own), 4_096).expect("frames");
        let count = |frames: &[u8], text: &str| {
            frames.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
        };
        assert_eq!(
            count(&frames(&[("correlation-id", "short")]), "short"),
            2,
            "a property, and the row's own header"
        );
        let passed_on = frames(&[("tidemill-id", "theirs"), ("tidemill-later", "theirs"), ("more", "mine")]);
        assert_eq!((count(&passed_on, "theirs"), count(&passed_on, "mine")), (0, 1), "another outbox's");
        let frames = frames(&[("correlation-id", long.as_str()), (name.as_str(), "value")]);
        assert_eq!((count(&frames, &long), count(&frames, &"n".repeat(9))), (1, 0));
    }

    fn place(url: &str) -> Result<(String, u16, String, String, String), String> {
        let place = Place::parse(url, &spec(url))?;
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

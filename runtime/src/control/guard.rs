//! Every call passes here first: who is it, may they, and what is written about it.
//!
//! ```text
//!   connection (tls) -> who -> table of methods -> first message: which deployment -> service, within a scope
//!                        |            |                        |
//!                 UNAUTHENTICATED     +--- PERMISSION_DENIED --+--> audit
//! ```
//!
//! A service is given a [`Caller`] beside its request and answers with nothing outside of its scope; a call
//! without one, that is, past this guard, sees nothing. The caller's name replaces whatever the request
//! says about its author. Without TLS everybody may everything, and an author is believed.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use tokio_stream::StreamExt;
use tonic::Status;

use super::audit::{Pending, refused};
use super::caller::{Caller, Identity};
use super::details::invalid;
use super::methods::{self, About, Inspected, Method};
use super::server::MESSAGE_BYTES_MAX;
use super::upload::SILENCE_MAX;
use crate::config::problem::Problem;
use crate::config::roles::{Role, Scope};
use crate::config::roles_file::Roles;
use crate::telemetry::Telemetry;
use crate::telemetry::audit::Line;
use crate::tls::certificate::now_s;
use crate::tls::connection::Peer;

/// Of a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Who may what on this node.
pub enum Access {
    /// Whoever reaches the listener may everything.
    Open,
    Roles(Arc<Roles>),
}

pub struct Guard {
    access: Access,
    telemetry: Arc<Telemetry>,
}

/// Who asks.
#[derive(Default)]
struct Who {
    /// `None` = nobody was asked for a certificate.
    identity: Option<Identity>,
    /// The node that passes the call on.
    via: Option<Identity>,
}

impl Guard {
    pub fn new(access: Access, telemetry: Arc<Telemetry>) -> Guard {
        Guard { access, telemetry }
    }

    /// Who asks, and why they are not believed.
    fn who(&self, peer: &Peer, headers: &HeaderMap) -> (Who, Result<(), Status>) {
        let Access::Roles(roles) = &self.access else { return (Who::default(), Ok(())) };
        let Some(certificate) = &peer.certificate else {
            let status = Status::unauthenticated("a certificate is needed, and none was shown");
            return (Who::default(), Err(status));
        };
        let Some(identity) = Identity::new(&certificate.names) else {
            let status = "the certificate names nobody: it needs a URI or a DNS name in its SAN";
            return (Who::default(), Err(Status::unauthenticated(status)));
        };
        let itself = Who { identity: Some(identity.clone()), via: None };
        if certificate.has_expired(now_s()) {
            let end = certificate.shown_end();
            let status =
                format!("the certificate of this connection expired at {end}: renew it and connect again");
            return (itself, Err(Status::unauthenticated(status)));
        }
        match Identity::passed_on(headers) {
            None => (itself, Ok(())),
            Some(_) if Scope::of(&roles.grants(), identity.names(), Role::Node).is_none() => {
                let status = format!("{identity} may not pass on calls of others: that needs the role node");
                (itself, Err(Status::permission_denied(status)))
            }
            Some(Err(status)) => (itself, Err(status)),
            Some(Ok(original)) => (Who { identity: Some(original), via: Some(identity) }, Ok(())),
        }
    }

    /// What a call may be about and see; before it is known what it is about.
    fn scope(&self, identity: Option<&Identity>, role: Role) -> Scope {
        match (&self.access, identity) {
            (Access::Open, _) => Scope::All,
            (Access::Roles(_), None) => Scope::none(),
            (Access::Roles(roles), Some(identity)) => Scope::of(&roles.grants(), identity.names(), role),
        }
    }

    fn refuse(&self, status: Status) -> Response {
        let metrics = &self.telemetry.node;
        metrics.control_calls.add(1);
        metrics.control_errors.add(1);
        metrics.control_refused.add(1);
        status.into_http()
    }
}

/// The guard, as a layer around every service.
pub async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return guard.refuse(Status::internal("a call without a connection"));
    };
    let path = request.uri().path().to_owned();
    let (who, believed) = guard.who(&peer, request.headers());
    if let Err(status) = believed {
        refused(&line(&who, &peer, path, Inspected::default()), &status);
        return guard.refuse(status);
    }
    let Some(method) = methods::find(&path) else {
        if let Access::Open = guard.access {
            return next.run(request).await; // It says that there is no such method.
        }
        let status = Status::permission_denied(format!("{path}: there is no such method"));
        refused(&line(&who, &peer, path, Inspected::default()), &status);
        return guard.refuse(status);
    };
    admit(&guard, method, (who, peer), request, next).await
}

/// A call of a method that there is.
async fn admit(
    guard: &Guard,
    method: &Method,
    (who, peer): (Who, Peer),
    mut request: Request,
    next: Next,
) -> Response {
    let scope = guard.scope(who.identity.as_ref(), method.role);
    let inspect = match &method.about {
        About::One(inspect) | About::OneOrSeen(inspect) | About::Node(inspect) | About::Topics(inspect) => {
            Some(*inspect)
        }
        About::Seen | About::Fleet => None,
    };
    let mut inspected = Inspected::default();
    // What nobody asks for is not read: neither names nor an audit line depend on it.
    if let Some(inspect) = inspect
        && (method.changes || scope != Scope::All)
    {
        let (parts, body) = request.into_parts();
        let name = who.identity.as_ref().map(ToString::to_string);
        let read = first_message(body).await.and_then(|first| first.inspect(inspect, name.as_deref()));
        let (found, body) = match read {
            Ok(read) => read,
            Err(status) => {
                refused(&line(&who, &peer, method.name(), inspected), &status);
                return guard.refuse(status);
            }
        };
        inspected = found;
        request = Request::from_parts(parts, body);
    }
    let allowed = allowed(method, &scope, &inspected.name);
    let line = line(&who, &peer, method.name(), inspected);
    if let Err(why) = allowed {
        let status = Status::permission_denied(format!("{}: {why}", line.who));
        refused(&line, &status);
        return guard.refuse(status);
    }
    request.extensions_mut().insert(Caller { identity: who.identity, scope });
    if !method.changes {
        return next.run(request).await;
    }
    let pending = Pending::new(line);
    request.extensions_mut().insert(pending.clone());
    let response = next.run(request).await;
    pending.answered(&response);
    response
}

/// What would be needed, if it is not there.
fn allowed(method: &Method, scope: &Scope, deployment: &str) -> Result<(), String> {
    let (name, role) = (method.name(), method.role.as_str());
    if scope.is_none() {
        return Err(format!("{name} needs the role {role}, which the node's `roles` do not give"));
    }
    match method.about {
        About::Seen => Ok(()),
        About::OneOrSeen(_) if deployment.is_empty() => Ok(()),
        About::One(_) | About::OneOrSeen(_) if scope.covers(deployment) => Ok(()),
        About::One(_) if deployment.is_empty() => {
            Err(format!("{name} must name a deployment, for the role {role} is given for some only"))
        }
        About::One(_) | About::OneOrSeen(_) => Err(format!(
            "{name} needs the role {role} for {deployment}, and the node's `roles` give it for others only"
        )),
        About::Fleet | About::Node(_) | About::Topics(_) if scope.covers_fleet() => Ok(()),
        About::Fleet | About::Node(_) | About::Topics(_) => Err(format!(
            "{name} concerns the whole fleet: it needs the role {role} without a restriction to deployments"
        )),
    }
}

fn line(who: &Who, peer: &Peer, action: String, inspected: Inspected) -> Line {
    let shown = |identity: &Option<Identity>| identity.as_ref().map(ToString::to_string);
    Line {
        authenticated: who.identity.is_some(),
        who: shown(&who.identity).unwrap_or(inspected.author),
        via: shown(&who.via).unwrap_or_default(),
        from: Some(peer.address),
        action,
        name: inspected.name,
        dry_run: inspected.dry_run,
        expected_revision: inspected.expected_revision.unwrap_or(0),
    }
}

/// The first message of a call, and what comes after it.
struct First {
    message: Bytes,
    rest: Bytes,
    body: axum::body::BodyDataStream,
}

/// Why nothing more of a call comes: its time is over, or its caller has gone.
fn broken_off(error: axum::Error) -> Status {
    Status::try_from_error(error.into_inner())
        .unwrap_or_else(|error| Status::cancelled(format!("the call broke off: {error}")))
}

/// Each part of it has its time here, the whole has that of the call: `admission` ends the body then.
async fn first_message(body: Body) -> Result<First, Status> {
    let mut body = body.into_data_stream();
    let mut read = bytes::BytesMut::new();
    let mut wanted = PREFIX_BYTES;
    while read.len() < wanted {
        let Ok(next) = tokio::time::timeout(SILENCE_MAX, body.next()).await else {
            let reason = format!("nothing of the call has arrived for {SILENCE_MAX:?}; send it again");
            return Err(Status::deadline_exceeded(reason));
        };
        match next {
            Some(Ok(data)) => read.extend_from_slice(&data),
            Some(Err(error)) => return Err(broken_off(error)),
            None => return Err(invalid(Problem::from("the call ends before its first message does"))),
        }
        if let Some(prefix) = read.first_chunk::<PREFIX_BYTES>() {
            let [compressed, length @ ..] = *prefix;
            if compressed != 0 {
                return Err(Status::unimplemented("compressed messages are not taken"));
            }
            let length = u32::from_be_bytes(length) as usize;
            if length > MESSAGE_BYTES_MAX {
                return Err(Status::resource_exhausted(format!(
                    "a message of {length} bytes; at most {MESSAGE_BYTES_MAX} are taken"
                )));
            }
            wanted = PREFIX_BYTES + length;
        }
    }
    let rest = read.split_off(wanted).freeze();
    Ok(First { message: read.freeze().slice(PREFIX_BYTES..), rest, body })
}

impl First {
    /// What the message says, and the body as the service is to see it.
    fn inspect(self, inspect: methods::Inspect, name: Option<&str>) -> Result<(Inspected, Body), Status> {
        let unreadable = |error| invalid(Problem::from(format!("the first message cannot be read: {error}")));
        let mut inspected = inspect(&self.message, name).map_err(unreadable)?;
        let message = inspected.signed.take().map_or(self.message, Bytes::from);
        let mut first = bytes::BytesMut::with_capacity(PREFIX_BYTES + message.len() + self.rest.len());
        first.extend_from_slice(&[0]);
        first.extend_from_slice(&(message.len() as u32).to_be_bytes());
        first.extend_from_slice(&message);
        first.extend_from_slice(&self.rest);
        let body = tokio_stream::once(Ok(first.freeze())).chain(self.body);
        Ok((inspected, Body::from_stream(body)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tonic::Code;

    use super::*;
    use crate::config::roles::{Grant, Name, Pattern};
    use crate::tls::certificate::Certificate;

    #[test]
    fn a_certificate_that_has_expired_or_names_nobody_is_not_believed_on_a_connection_that_is_there() {
        let roles = vec![Grant {
            san: Pattern::new("a.b"),
            role: Role::Admin,
            deployments: Vec::new(),
            topics: Vec::new(),
            secrets: Vec::new(),
        }];
        let guard = Guard::new(Access::Roles(Arc::new(Roles::new(roles, None))), Telemetry::new());
        let code = |names: &[&str], valid_to_s: i64| {
            let names = names.iter().map(|name| Name::parse(name)).collect();
            let certificate = Some(Arc::new(Certificate { names, valid_from_s: 0, valid_to_s }));
            let peer = Peer { address: SocketAddr::from(([127, 0, 0, 1], 1)), certificate };
            guard.who(&peer, &HeaderMap::new()).1.err().map(|status| status.code())
        };
        assert_eq!(code(&["a.b"], now_s() + 60), None);
        assert_eq!(code(&["a.b"], now_s() - 1), Some(Code::Unauthenticated));
        assert_eq!(code(&[], now_s() + 60), Some(Code::Unauthenticated));
    }
}

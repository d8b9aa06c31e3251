//! Who makes a call, and how that is passed on to another node.

use std::fmt;
use std::sync::Arc;

use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::details::invalid;
use crate::config::problem::Problem;
use crate::config::roles::{Name, Scope};

/// Header of a call that a node passes on: one of the caller's names each. Believed only from a node.
const ON_BEHALF_OF: &str = "tidemill-caller";

/// What the guard found out about a call; with it, and only with it, services answer.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `None` = the listener asks for no certificate.
    pub identity: Option<Identity>,
    /// What this call may be about and see.
    pub scope: Scope,
}

/// The names of somebody's certificate; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(Arc<[Name]>);

impl Identity {
    /// `None` for nobody.
    pub fn new(names: &[Name]) -> Option<Identity> {
        if names.is_empty() { None } else { Some(Identity(names.into())) }
    }

    pub fn names(&self) -> &[Name] {
        &self.0
    }

    /// Of whom a node passes this call on; `None` = it is nobody's but its sender's.
    pub fn passed_on(headers: &axum::http::HeaderMap) -> Option<Result<Identity, Status>> {
        let values = headers.get_all(ON_BEHALF_OF);
        values.iter().next()?;
        let names: Option<Vec<Name>> = values
            .iter()
            .map(|value| value.to_str().ok().filter(|text| !text.is_empty()).map(Name::parse))
            .collect();
        let identity = names.and_then(|names| Identity::new(&names));
        Some(identity.ok_or_else(|| invalid(Problem::at(ON_BEHALF_OF, "it holds no names"))))
    }
}

/// The name that stands for all of them in the history and in logs: the first URI, or else the first.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = self.0.iter().find(|name| matches!(name, Name::Uri(_)));
        match uri.or(self.0.first()) {
            Some(name) => name.fmt(f),
            None => f.write_str("nobody"),
        }
    }
}

/// Tells the other node on whose behalf this one calls.
#[derive(Debug, Clone)]
pub struct OnBehalf(pub Option<Identity>);

impl Interceptor for OnBehalf {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for name in self.0.iter().flat_map(|identity| identity.names()) {
            append(request.metadata_mut(), &name.to_string())?;
        }
        Ok(request)
    }
}

fn append(metadata: &mut MetadataMap, name: &str) -> Result<(), Status> {
    let value = MetadataValue::try_from(name)
        .map_err(|_| Status::internal(format!("{name:?} cannot be passed on to another node")))?;
    metadata.append(MetadataKey::from_static(ON_BEHALF_OF), value);
    Ok(())
}

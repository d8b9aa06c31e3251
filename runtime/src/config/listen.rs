//! Where a node listens, and the combinations of that which are not safe or do not go together.

use super::build::{address, flag, list, path};
use super::load::Values;
use super::node::{Listen, TlsFiles};
use super::roles::ENTRY;

const TLS: [&str; 3] = ["listen.tls.cert", "listen.tls.key", "listen.tls.client_ca"];

pub(super) fn read(values: &Values<'_>) -> Listen {
    let encrypted = TLS.iter().any(|key| values.is_given(key));
    check_addresses(values, encrypted);
    check_roles(values, encrypted);
    Listen {
        grpc: address(values, "listen.grpc"),
        http: address(values, "listen.http"),
        advertise: list(values, "listen.advertise").into_iter().next(),
        tls: if encrypted { tls(values) } else { None },
    }
}

fn check_addresses(values: &Values<'_>, encrypted: bool) {
    let keys = ["listen.grpc", "listen.http"];
    for key in keys {
        let address = address(values, key);
        if !address.ip().is_loopback() && !encrypted && !flag(values, "insecure") {
            let message = format!(
                "{address} is reachable from other machines and not encrypted: use 127.0.0.1, or give the node a \
                 certificate (listen.tls), or allow it with `insecure: true` (--insecure)"
            );
            values.refuse(key, message);
        }
    }
    let (grpc, http) = (address(values, keys[0]), address(values, keys[1]));
    if grpc == http && grpc.port() != 0 {
        values.refuse(keys[1], format!("and {} are both {grpc}: give them different ports", keys[0]));
    }
}

/// Roles go by certificates, and who has a certificate may nothing without a role.
fn check_roles(values: &Values<'_>, encrypted: bool) {
    match (encrypted, values.is_given("roles")) {
        (true, false) => {
            let message =
                format!("needs `roles`: without one nobody may do anything; write a list of {ENTRY}");
            values.refuse(TLS[0], message);
        }
        (false, true) => {
            values.refuse("roles", "has no effect without listen.tls: callers have no certificates then");
        }
        (true, true) | (false, false) => {}
    }
}

/// All three files; what they hold is checked when the node starts.
fn tls(values: &Values<'_>) -> Option<TlsFiles> {
    let missing: Vec<&str> = TLS.into_iter().filter(|key| !values.is_given(key)).collect();
    for given in TLS.into_iter().filter(|key| values.is_given(key)) {
        if !missing.is_empty() {
            values.refuse(given, format!("needs {} as well", missing.join(" and ")));
        }
        if let Some(path) = path(values, given)
            && let Err(error) = std::fs::File::open(&path)
        {
            values.refuse(given, format!("{} cannot be read: {error}", path.display()));
        }
    }
    Some(TlsFiles {
        cert: path(values, TLS[0])?,
        key: path(values, TLS[1])?,
        client_ca: path(values, TLS[2])?,
    })
}

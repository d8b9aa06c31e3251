//! TLS to destinations: whom they are trusted to be.

use std::path::Path;

use rustls::ClientConfig;

use crate::config::files;
use crate::tls::client::of_servers;

/// Settings of a client that trusts what `ca` holds, or what the system trusts. `needed`: without anybody to
/// trust it could not be used.
pub fn client(ca: Option<&Path>, needed: bool) -> Result<ClientConfig, String> {
    if let Some(ca) = ca {
        files::expect_regular(ca).map_err(|why| format!("ca_file: {why}"))?;
    }
    of_servers(ca, needed).map_err(|error| match ca {
        Some(_) => format!("ca_file: {error}"),
        None => error.to_string(),
    })
}

/// Whether a file holds certificates: librdkafka would read one without an end for ever.
pub fn check(ca: &Path) -> Result<(), String> {
    client(Some(ca), true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_cas_that_is_none_is_refused_and_not_read_to_its_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = check(file.path()).unwrap_err();
        assert!(refused.starts_with("ca_file: ") && refused.contains("holds no certificate"), "{refused}");
        assert_eq!(check(Path::new("/dev/zero")).unwrap_err(), "ca_file: /dev/zero is no regular file");
    }
}

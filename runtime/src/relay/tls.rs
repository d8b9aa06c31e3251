//! TLS to destinations: whom they are trusted to be. The only file that names rustls' roots.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Settings of a client that trusts what `ca` holds, or what the system trusts. `needed`: without anybody to
/// trust it could not be used.
pub fn client(ca: Option<&Path>, needed: bool) -> Result<ClientConfig, String> {
    let roots = roots(ca)?;
    if needed && roots.is_empty() {
        return Err(
            "no certificate authority is trusted here: install ca-certificates, or name some with ca_file"
                .to_owned(),
        );
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        // One that cannot be read does not make the others worthless.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let told = |why: String| format!("ca_file {} cannot be used: {why}", path.display());
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| told(error.to_string()))? {
        let certificate = certificate.map_err(|error| told(error.to_string()))?;
        roots.add(certificate).map_err(|error| told(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(told("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

//! A self-signed certificate for one SASL_SSL listener, made with the JDK's `keytool`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, jars};

/// Protects nothing but a temporary directory, so it may be a constant.
pub(crate) const PASSWORD: &str = "test-only";

/// The two files of a listener: the broker's key and what clients have to trust.
pub(crate) struct Certificate {
    pub(crate) keystore: PathBuf,
    pub(crate) ca_pem: PathBuf,
}

/// Makes a key for `localhost` and 127.0.0.1 in `directory`.
pub(crate) fn generate(directory: &Path) -> Result<Certificate, Error> {
    let keystore = directory.join("broker.p12");
    let ca_pem = directory.join("ca.pem");
    let store = ["-storetype", "PKCS12", "-storepass", PASSWORD, "-alias", "broker"];
    let mut make = Command::new("keytool");
    make.args(["-genkeypair", "-keyalg", "RSA", "-keysize", "2048", "-validity", "30"])
        .args(["-dname", "CN=localhost", "-ext", "san=dns:localhost,ip:127.0.0.1"])
        // A client that trusts exactly this certificate wants it to be a CA.
        .args(["-ext", "bc:c", "-keypass", PASSWORD])
        .args(store)
        .arg("-keystore")
        .arg(&keystore);
    jars::run(&mut make, "keytool")?;
    let mut export = Command::new("keytool");
    export.args(["-exportcert", "-rfc", "-file"]).arg(&ca_pem).args(store);
    export.arg("-keystore").arg(&keystore);
    jars::run(&mut export, "keytool")?;
    Ok(Certificate { keystore, ca_pem })
}

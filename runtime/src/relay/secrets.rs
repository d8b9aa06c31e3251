//! Texts that a document only points at. Read by each node when it makes a destination ready; whatever is
//! wrong is said without the text.

use crate::config::node::Secret;
use crate::config::outbox::Source;

/// Longest text that is read, in bytes.
const BYTES_MAX: u64 = 64 << 10;

/// What a source holds, without the line break at its end.
pub fn read(what: &str, source: &Source) -> Result<Secret, String> {
    let text = match source {
        Source::Plain(text) => text.clone(),
        Source::File(path) => {
            let told = |why: String| format!("{what}: {} cannot be read: {why}", path.display());
            let length = std::fs::metadata(path).map_err(|error| told(error.to_string()))?.len();
            if length > BYTES_MAX {
                return Err(told(format!("it has {length} bytes, at most {BYTES_MAX} are possible")));
            }
            std::fs::read_to_string(path).map_err(|error| told(error.to_string()))?
        }
        Source::Variable(name) => std::env::var(name)
            .map_err(|_| format!("{what}: the variable {name} is not set on this node, or is no text"))?,
    };
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_without_its_line_break_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "canary\n").unwrap();
        let secret = read("secret_file", &Source::File(file.path().to_owned())).unwrap();
        assert_eq!(secret.expose(), "canary");
        assert!(!format!("{secret:?}").contains("canary"));
        std::fs::write(file.path(), "\n").unwrap();
        assert!(read("secret_file", &Source::File(file.path().to_owned())).is_err());
        let missing = read("secret_env", &Source::Variable("OUTBOX_NOT_THERE".into())).unwrap_err();
        assert!(missing.contains("OUTBOX_NOT_THERE"), "{missing}");
    }
}

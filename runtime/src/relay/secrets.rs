//! Texts that a document only points at. Read by each node when it makes a destination ready; whatever is
//! wrong is said without the text.

use crate::config::files;
use crate::config::node::Secret;
use crate::config::outbox::Source;

/// What a source holds, without the line break at its end.
pub fn read(what: &str, source: &Source) -> Result<Secret, String> {
    let text = match source {
        Source::Plain(text) => text.clone(),
        Source::File(path) => {
            let text = files::expect_regular(path).and_then(|()| files::secret(path));
            text.map_err(|why| format!("{what}: {why}"))?
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

/// A part of a URL as it is meant: `%41` is `A`.
pub fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        // Both are digits: a number may begin with a sign.
        let digit = |at: usize| char::from(*rest.get(at)?).to_digit(16);
        let code = digit(0).and_then(|high| Some((high << 4 | digit(1)?) as u8));
        bytes.push(code.ok_or("url has a percent sign without two hexadecimal digits")?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| "url is no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_does_not_have_the_node_read_what_has_no_end() {
        let refused = read("secret_file", &Source::File("/dev/zero".into())).unwrap_err();
        assert_eq!(refused, "secret_file: /dev/zero is no regular file");
    }

    #[test]
    fn a_percent_sign_stands_before_two_hexadecimal_digits_and_nothing_else() {
        assert_eq!(unescape("a%40%c3%A4%2f+").as_deref(), Ok("a@ä/+"));
        for wrong in ["%", "%4", "%+4", "%-1", "% 4", "%4g", "%ä"] {
            assert!(unescape(wrong).is_err_and(|why| why.contains("percent sign")), "{wrong}");
        }
        assert_eq!(unescape("%ff"), Err("url is no text".to_owned()));
    }

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

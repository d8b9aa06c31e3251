//! What a certificate says that it may be used for.
//!
//! webpki looks at that only as a part of a whole verification, never of a CA that is shown as a server, and takes for a
//! CA whatever it is told to believe. Here it is read to believe less, never more: the rules are OpenSSL's.
//!
//! ```text
//!   certificate   signed part, algorithm, signature
//!   signed part   (version), serial, algorithm, issuer, term, subject, key, ..., (extensions)
//!   extension     id, (critical), octets of the value
//! ```

const BOOLEAN: u8 = 0x01;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const ID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// `2.5.29.15`, `.19` and `.37`.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
/// `1.3.6.1.5.5.7.3.1` and `.2`.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// Of a key usage: to sign certificates; and to sign, encipher or agree, of which TLS needs one. Nothing is enciphered
/// for a client.
const SIGNS_CERTIFICATES: u8 = 0x04;
const SERVES: u8 = 0x80 | 0x20 | 0x08;
const CALLS: u8 = 0x80 | 0x08;

/// Which end of a connection somebody is who shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Server,
    Client,
}

/// See the module. `None` = nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// From before there were extensions, and of its own making: the oldest CAs.
    is_ancient: bool,
    is_ca: Option<bool>,
    /// The first eight bits of its key usage.
    key: Option<u8>,
    /// Whether servers, and clients, are among the purposes that it names.
    purposes: Option<(bool, bool)>,
}

impl Usage {
    /// Of a certificate in DER; `None` = it cannot be read.
    pub fn read(certificate: &[u8]) -> Option<Usage> {
        let mut signed = Der(certificate).expect(SEQUENCE)?.expect(SEQUENCE)?;
        let is_old = signed.0.first() != Some(&VERSION);
        if !is_old {
            signed.element()?;
        }
        let _serial = signed.element()?;
        let _algorithm = signed.expect(SEQUENCE)?;
        let issuer = signed.expect(SEQUENCE)?;
        let _term = signed.expect(SEQUENCE)?;
        let subject = signed.expect(SEQUENCE)?;
        let mut usage = Usage { is_ancient: is_old && issuer.0 == subject.0, ..Usage::default() };
        while !signed.0.is_empty() {
            let (tag, mut inside) = signed.element()?;
            if tag == EXTENSIONS {
                let mut extensions = inside.expect(SEQUENCE)?;
                while !extensions.0.is_empty() {
                    usage.note(extensions.expect(SEQUENCE)?)?;
                }
            }
        }
        Some(usage)
    }

    fn note(&mut self, mut extension: Der<'_>) -> Option<()> {
        let id = extension.expect(ID)?.0;
        if extension.0.first() == Some(&BOOLEAN) {
            extension.element()?;
        }
        let mut value = extension.expect(OCTETS)?;
        if id == KEY_USAGE {
            // Behind the number of bits that the last byte does not have; none at all may be said.
            let bits = value.expect(BITS)?.0;
            self.key = Some(bits.get(1).copied().unwrap_or(0));
        } else if id == BASIC_CONSTRAINTS {
            let mut inside = value.expect(SEQUENCE)?;
            let is_said = inside.0.first() == Some(&BOOLEAN);
            self.is_ca = Some(is_said && inside.expect(BOOLEAN)?.0.iter().any(|byte| *byte != 0));
        } else if id == EXTENDED_KEY_USAGE {
            let mut named = value.expect(SEQUENCE)?;
            let (mut servers, mut clients) = (false, false);
            while !named.0.is_empty() {
                let purpose = named.expect(ID)?.0;
                servers |= purpose == SERVER_AUTH;
                clients |= purpose == CLIENT_AUTH;
            }
            self.purposes = Some((servers, clients));
        }
        Some(())
    }

    /// Whether it is of a CA that signs certificates of that side. One that does not say that it is a CA has to say that
    /// its key signs certificates, or to be too old to say anything.
    pub fn signs(&self, side: Side) -> bool {
        let is_ca = self.is_ca.unwrap_or(self.is_ancient || self.key.is_some());
        let may_sign = self.key.is_none_or(|bits| bits & SIGNS_CERTIFICATES != 0);
        is_ca && may_sign && self.names(side)
    }

    /// Whether it may be of somebody at that side, CA or not.
    pub fn is_for(&self, side: Side) -> bool {
        let needed = match side {
            Side::Server => SERVES,
            Side::Client => CALLS,
        };
        self.key.is_none_or(|bits| bits & needed != 0) && self.names(side)
    }

    fn names(&self, side: Side) -> bool {
        self.purposes.is_none_or(|(servers, clients)| match side {
            Side::Server => servers,
            Side::Client => clients,
        })
    }
}

/// Elements of DER, one after the other: a tag, a length, and so many bytes.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Takes the next one off: its tag, and what is in it.
    fn element(&mut self) -> Option<(u8, Der<'a>)> {
        let (&[tag, length], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match length {
            0..=0x7f => (usize::from(length), rest),
            0x81 => {
                let (&[length], rest) = rest.split_first_chunk::<1>()?;
                (usize::from(length), rest)
            }
            0x82 => {
                let (&length, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(length)), rest)
            }
            // webpki reads no longer ones.
            _ => return None,
        };
        let (inside, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Der(inside)))
    }

    fn expect(&mut self, tag: u8) -> Option<Der<'a>> {
        self.element().and_then(|(found, inside)| (found == tag).then_some(inside))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidemill_test_support::certificates::{Authority, Oddity};

    use super::super::files::PemFile;
    use super::*;

    fn usage(path: &Path) -> Usage {
        let certificates = PemFile::read(path).and_then(|file| file.certificates()).expect("a certificate");
        Usage::read(&certificates[0]).expect("it can be read")
    }

    #[test]
    fn what_a_certificate_is_for_is_what_it_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let authority = Authority::new(directory, "ca");
        let odd = |name, oddity| usage(&Authority::odd(directory, name, &["odd.test"], oddity).ca);
        let its_own = Authority::self_signed(directory, "own", &["broker.test"]);
        // Whether it signs, and is one, of servers and of clients.
        for (what, usage, of_servers, of_clients) in [
            ("a CA that signs only", usage(&authority.ca), (true, false), (true, false)),
            (
                "what a CA issues",
                usage(&authority.issue("leaf", &["broker.test"]).cert),
                (false, true),
                (false, true),
            ),
            (
                "what it issues to clients",
                usage(&authority.issue_to_client("client").cert),
                (false, false),
                (false, true),
            ),
            ("a server's of its own making that is a CA", usage(&its_own.cert), (true, true), (true, true)),
            ("a server's of its own making", odd("server", Oddity::Server), (false, true), (false, true)),
            ("a CA of clients", odd("clients", Oddity::ForClients), (false, false), (true, true)),
            ("a CA of the past", odd("past", Oddity::Expired), (true, true), (true, true)),
        ] {
            for (side, expected) in [(Side::Server, of_servers), (Side::Client, of_clients)] {
                let found = (usage.signs(side), usage.is_for(side));
                assert_eq!(found, expected, "{what}, {side:?}: {usage:?}");
            }
        }
    }

    #[test]
    fn one_that_says_nothing_of_being_a_ca_signs_only_if_its_key_does_or_it_is_ancient() {
        let usage = Usage::default();
        let signs = |usage: Usage| usage.signs(Side::Server);
        assert!(!signs(usage) && usage.is_for(Side::Server));
        for (key, expected) in [(SIGNS_CERTIFICATES, true), (0x80, false), (0, false)] {
            assert_eq!(signs(Usage { key: Some(key), ..usage }), expected, "{key}");
            assert_eq!(signs(Usage { key: Some(key), is_ca: Some(true), ..usage }), expected, "{key}");
        }
        assert!(signs(Usage { is_ancient: true, ..usage }));
        assert!(!signs(Usage { is_ancient: true, is_ca: Some(false), ..usage }));
        let enciphers = Usage { key: Some(0x20), ..usage };
        assert!(enciphers.is_for(Side::Server) && !enciphers.is_for(Side::Client));
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let whole = PemFile::read(&authority.ca).and_then(|file| file.certificates()).expect("a certificate");
        for length in 0..whole[0].len() {
            assert_eq!(Usage::read(&whole[0][..length]), None, "{length}");
        }
    }
}

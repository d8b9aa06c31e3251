//! Signing in: PLAIN, and SCRAM as RFC 5802 and 7677 have it, in the messages that SaslAuthenticate carries.
//!
//! ```text
//!  PLAIN   us      NUL name NUL password
//!  SCRAM   us      n,,n=NAME,r=NONCE
//!          broker  r=NONCE+ITS OWN,s=SALT,i=ITERATIONS
//!          us      c=biws,r=NONCE+ITS OWN,p=PROOF          that we know the password
//!          broker  v=SIGNATURE                             that it does, too
//! ```
//!
//! Names and passwords go as they are, in UTF-8: Kafka applies no SASLprep, so none must be applied here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

use crate::config::node::Secret;

/// A password is stretched by so many rounds: fewer are too easy to guess from, and Kafka itself refuses them; more
/// would keep a thread busy for seconds on the word of a broker that has not proved anything yet.
const ITERATIONS_MIN: u32 = 4096;
const ITERATIONS_MAX: u32 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha512,
}

/// How to sign in, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Sasl {
    /// `None` = PLAIN.
    scram: Option<Hash>,
    pub username: String,
    password: Secret,
}

/// Why nobody can sign in with what is configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::kafka) enum SaslError {
    #[error(
        "kafka.sasl.mechanism is {0}, and the node itself signs in with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512: \
         leave it to librdkafka (kafka.client: librdkafka)"
    )]
    Mechanism(String),
    #[error("{0} needs kafka.sasl.username and a password (kafka.sasl.password_file)")]
    Missing(String),
    #[error("kafka.sasl.username and the password must not hold a NUL character")]
    Nul,
}

/// Why a dialog came to no good end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Distrust {
    #[error("it says: {0}")]
    Said(String),
    #[error("its {0} is not as SCRAM has it")]
    Malformed(&'static str),
    #[error("it wants {0} rounds of hashing, and not less than {least} and not more than {most} are done",
        least = ITERATIONS_MIN, most = ITERATIONS_MAX)]
    Iterations(u32),
    #[error("it has not proved that it knows the password")]
    Unproved,
}

/// Where a dialog stands.
enum State {
    /// The password is out, and there is nothing to be heard.
    Plain,
    First {
        hash: Hash,
        nonce: String,
        /// Our first message, without what is in front of the name.
        bare: String,
    },
    Last {
        hash: Hash,
        /// With what the broker has to sign what was said, and that.
        server_key: Vec<u8>,
        said: String,
    },
    Done,
}

/// One sign-in.
pub(super) struct Dialog<'a> {
    sasl: &'a Sasl,
    state: State,
}

impl Sasl {
    pub fn new(mechanism: &str, username: Option<&str>, password: Option<&str>) -> Result<Sasl, SaslError> {
        let scram = match mechanism.to_ascii_uppercase().as_str() {
            "PLAIN" => None,
            "SCRAM-SHA-256" => Some(Hash::Sha256),
            "SCRAM-SHA-512" => Some(Hash::Sha512),
            _ => return Err(SaslError::Mechanism(mechanism.to_owned())),
        };
        let (Some(username), Some(password)) = (username, password) else {
            return Err(SaslError::Missing(mechanism.to_owned()));
        };
        if username.contains('\0') || password.contains('\0') {
            return Err(SaslError::Nul);
        }
        Ok(Sasl { scram, username: username.to_owned(), password: Secret::new(password.to_owned()) })
    }

    pub fn mechanism(&self) -> &'static str {
        match self.scram {
            None => "PLAIN",
            Some(Hash::Sha256) => "SCRAM-SHA-256",
            Some(Hash::Sha512) => "SCRAM-SHA-512",
        }
    }

    /// A dialog, and what to say first.
    pub fn begin(&self) -> (Dialog<'_>, Vec<u8>) {
        // Random bits of the system's, 122 of them; only hexadecimal digits, so no comma among them.
        self.begin_with(uuid::Uuid::new_v4().simple().to_string())
    }

    fn begin_with(&self, nonce: String) -> (Dialog<'_>, Vec<u8>) {
        let Some(hash) = self.scram else {
            let message = format!("\0{}\0{}", self.username, self.password.expose());
            return (Dialog { sasl: self, state: State::Plain }, message.into_bytes());
        };
        let name = self.username.replace('=', "=3D").replace(',', "=2C");
        let bare = format!("n={name},r={nonce}");
        let message = format!("n,,{bare}").into_bytes();
        (Dialog { sasl: self, state: State::First { hash, nonce, bare } }, message)
    }
}

impl Dialog<'_> {
    /// What to say to what the broker has said; `None` = nothing, all is well.
    pub fn answer(&mut self, said: &[u8]) -> Result<Option<Vec<u8>>, Distrust> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Plain => Ok(None),
            State::First { hash, nonce, bare } => self.prove(hash, &nonce, &bare, said).map(Some),
            State::Last { hash, server_key, said: all } => {
                verify(hash, &server_key, &all, said)?;
                Ok(None)
            }
            // Nobody asks again after the end.
            State::Done => Err(Distrust::Unproved),
        }
    }

    fn prove(&mut self, hash: Hash, nonce: &str, bare: &str, said: &[u8]) -> Result<Vec<u8>, Distrust> {
        let said = std::str::from_utf8(said).map_err(|_| Distrust::Malformed("first message"))?;
        let Challenge { nonce, salt, iterations } = Challenge::read(said, nonce)?;
        let salted = hash.stretch(self.sasl.password.expose().as_bytes(), &salt, iterations);
        let client_key = hash.mac(&salted, b"Client Key");
        let stored_key = hash.digest(&client_key);
        // `biws` is `n,,` in base64: there is no channel that is bound.
        let unproved = format!("c=biws,r={nonce}");
        let all = format!("{bare},{said},{unproved}");
        let signature = hash.mac(&stored_key, all.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, signed)| key ^ signed).collect();
        let server_key = hash.mac(&salted, b"Server Key");
        self.state = State::Last { hash, server_key, said: all };
        Ok(format!("{unproved},p={}", STANDARD.encode(proof)).into_bytes())
    }
}

/// What a broker wants to see proved.
struct Challenge<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> Challenge<'a> {
    fn read(said: &'a str, ours: &str) -> Result<Challenge<'a>, Distrust> {
        if let Some(error) = said.strip_prefix("e=") {
            return Err(Distrust::Said(error.to_owned()));
        }
        // In this order; more may follow, which nobody has to know. What has to be known comes first, as `m=`.
        let mut parts = said.split(',');
        let mut part = |name: &str| parts.next().and_then(|part| part.strip_prefix(name));
        let malformed = Distrust::Malformed("first message");
        let (Some(nonce), Some(salt), Some(iterations)) = (part("r="), part("s="), part("i=")) else {
            return Err(malformed);
        };
        // A nonce that was not made for us is one of another dialog, which somebody repeats.
        if !nonce.starts_with(ours) || nonce.len() == ours.len() {
            return Err(Distrust::Malformed("nonce"));
        }
        let salt = STANDARD.decode(salt).map_err(|_| Distrust::Malformed("salt"))?;
        let iterations: u32 = iterations.parse().map_err(|_| malformed)?;
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err(Distrust::Iterations(iterations));
        }
        Ok(Challenge { nonce, salt, iterations })
    }
}

/// Whether the broker knows the password: whoever only wants to hear ours does not.
fn verify(hash: Hash, server_key: &[u8], all: &str, said: &[u8]) -> Result<(), Distrust> {
    let said = std::str::from_utf8(said).map_err(|_| Distrust::Malformed("last message"))?;
    if let Some(error) = said.strip_prefix("e=") {
        return Err(Distrust::Said(error.to_owned()));
    }
    let signature = said.split(',').next().and_then(|first| first.strip_prefix("v="));
    let signature = signature.ok_or(Distrust::Malformed("last message"))?;
    let signature = STANDARD.decode(signature).map_err(|_| Distrust::Malformed("signature"))?;
    hash.is_mac(server_key, all.as_bytes(), &signature).then_some(()).ok_or(Distrust::Unproved)
}

impl Hash {
    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(bytes).to_vec(),
            Hash::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    fn mac(self, key: &[u8], bytes: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => mac::<Hmac<Sha256>>(key, bytes).finalize().into_bytes().to_vec(),
            Hash::Sha512 => mac::<Hmac<Sha512>>(key, bytes).finalize().into_bytes().to_vec(),
        }
    }

    /// In a time that does not tell how much of it is right.
    fn is_mac(self, key: &[u8], bytes: &[u8], given: &[u8]) -> bool {
        match self {
            Hash::Sha256 => mac::<Hmac<Sha256>>(key, bytes).verify_slice(given).is_ok(),
            Hash::Sha512 => mac::<Hmac<Sha512>>(key, bytes).verify_slice(given).is_ok(),
        }
    }

    /// PBKDF2 of one block, which SCRAM calls `Hi`.
    fn stretch(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            Hash::Sha256 => stretch::<Hmac<Sha256>>(password, salt, iterations),
            Hash::Sha512 => stretch::<Hmac<Sha512>>(password, salt, iterations),
        }
    }
}

fn mac<M: Mac + KeyInit>(key: &[u8], bytes: &[u8]) -> M {
    let mut mac = keyed::<M>(key);
    mac.update(bytes);
    mac
}

fn keyed<M: KeyInit>(key: &[u8]) -> M {
    match M::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes a key of any length"),
    }
}

fn stretch<M: Mac + KeyInit + Clone>(password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
    let keyed = keyed::<M>(password);
    let mut first = keyed.clone();
    first.update(salt);
    first.update(&1u32.to_be_bytes());
    let mut block = first.finalize().into_bytes();
    let mut stretched = block.to_vec();
    for _ in 1..iterations {
        let mut next = keyed.clone();
        next.update(&block);
        block = next.finalize().into_bytes();
        stretched.iter_mut().zip(block.iter()).for_each(|(all, byte)| *all ^= byte);
    }
    stretched
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const CHALLENGE: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn user(mechanism: &str) -> Sasl {
        Sasl::new(mechanism, Some("user"), Some("pencil")).expect("complete")
    }

    fn said(answer: Result<Option<Vec<u8>>, Distrust>) -> String {
        String::from_utf8(answer.expect("trusted").expect("an answer")).expect("UTF-8")
    }

    #[test]
    fn scram_says_what_rfc_7677_says_and_believes_only_who_proves_it() {
        let messages = [
            (
                "SCRAM-SHA-256",
                "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ),
            // The same dialog with the other function, of which no RFC has an example.
            (
                "SCRAM-SHA-512",
                "gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==",
                "v=ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==",
            ),
        ];
        for (mechanism, proof, signature) in messages {
            let sasl = user(mechanism);
            for (last, outcome) in [
                (signature, Ok(None)),
                ("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=", Err(Distrust::Malformed("signature"))),
                ("v=AAAA", Err(Distrust::Unproved)),
                ("v=", Err(Distrust::Unproved)),
                ("e=invalid-proof", Err(Distrust::Said("invalid-proof".to_owned()))),
                ("", Err(Distrust::Malformed("last message"))),
            ] {
                let (mut dialog, first) = sasl.begin_with(NONCE.to_owned());
                assert_eq!(first, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
                let proved = said(dialog.answer(CHALLENGE.as_bytes()));
                let expected =
                    format!("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p={proof}");
                assert_eq!(proved, expected, "{mechanism}");
                assert_eq!(dialog.answer(last.as_bytes()), outcome, "{mechanism} {last}");
            }
        }
    }

    #[test]
    fn a_challenge_that_is_not_for_us_or_costs_too_much_or_nothing_is_not_met() {
        let sasl = user("SCRAM-SHA-256");
        for (challenge, distrust) in [
            (CHALLENGE.replace("i=4096", "i=4095"), Distrust::Iterations(4095)),
            (CHALLENGE.replace("i=4096", "i=1000001"), Distrust::Iterations(1_000_001)),
            (CHALLENGE.replace("i=4096", "i=-1"), Distrust::Malformed("first message")),
            (CHALLENGE.replace("rOpr", "rOps"), Distrust::Malformed("nonce")),
            (format!("r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"), Distrust::Malformed("nonce")),
            (CHALLENGE.replace("s=W", "s=*"), Distrust::Malformed("salt")),
            (format!("m=new,{CHALLENGE}"), Distrust::Malformed("first message")),
            (String::new(), Distrust::Malformed("first message")),
            ("e=unknown-user".to_owned(), Distrust::Said("unknown-user".to_owned())),
        ] {
            let (mut dialog, _) = sasl.begin_with(NONCE.to_owned());
            assert_eq!(dialog.answer(challenge.as_bytes()), Err(distrust), "{challenge}");
        }
    }

    #[test]
    fn a_name_may_hold_what_scram_uses_itself() {
        let sasl = Sasl::new("scram-sha-512", Some("a=b,c"), Some("x")).expect("complete");
        assert_eq!(sasl.begin_with("nonce".to_owned()).1, b"n,,n=a=3Db=2Cc,r=nonce");
        let nonces = [sasl.begin().1, sasl.begin().1];
        assert_ne!(nonces[0], nonces[1]);
    }

    #[test]
    fn plain_says_everything_at_once() {
        let sasl = user("PLAIN");
        let (mut dialog, first) = sasl.begin();
        assert_eq!(first, b"\0user\0pencil");
        assert_eq!(dialog.answer(b""), Ok(None));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named_and_the_password_never() {
        let mechanism = "OAUTHBEARER".to_owned();
        assert_eq!(Sasl::new(&mechanism, None, None).err(), Some(SaslError::Mechanism(mechanism)));
        let missing = Sasl::new("PLAIN", Some("user"), None).err();
        assert_eq!(missing, Some(SaslError::Missing("PLAIN".to_owned())));
        assert_eq!(Sasl::new("PLAIN", Some("a\0b"), Some("x")).err(), Some(SaslError::Nul));
        assert!(!format!("{:?}", user("PLAIN")).contains("pencil"));
    }
}

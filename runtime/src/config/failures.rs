//! What happens to a record that fails: the `failures:` block of a deployment.
//!
//! ```text
//!   a record fails --+-- attempts left --> its key parks; tried again after a back-off
//!                    +-- none left ------> then: halt | skip | dead_letter | park
//! ```
//!
//! `docs/failures.md` is the reference; a test holds it to the tables here.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::document::{SpecDefaults, topic_name};
use super::section::{Field, Section};
use super::units;
use super::yaml::Yaml;

/// What failed of what a node depends on: no connection, no answer in time, an answer that it cannot now. Stable
/// names, promised to alerts; they stand in front of what is told of it.
pub const CONNECTION_ERROR: &str = "InfraConnectionError";
pub const TIMEOUT_ERROR: &str = "InfraTimeoutError";
pub const UNAVAILABLE_ERROR: &str = "InfraUnavailableError";

/// Why a record failed. The one place where failures are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// May succeed when tried again; the handler says so.
    Transient,
    /// Fails every time; the handler says so.
    Permanent,
    /// The record could not be read: no key, no value, not the format that the handler expects.
    Decode,
    /// The handler ended abnormally, or answered what breaks the ABI.
    Trap,
    /// It used more CPU time than a record may.
    Timeout,
    /// It asked for more than the deployment or Kafka allows.
    Limit,
    /// The record could be read, and is not what its schema says; the handler says so.
    Schema,
}

impl FailureKind {
    pub const ALL: [FailureKind; 7] = [
        FailureKind::Transient,
        FailureKind::Permanent,
        FailureKind::Decode,
        FailureKind::Trap,
        FailureKind::Timeout,
        FailureKind::Limit,
        FailureKind::Schema,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Transient => "transient",
            FailureKind::Permanent => "permanent",
            FailureKind::Decode => "decode",
            FailureKind::Trap => "trap",
            FailureKind::Timeout => "timeout",
            FailureKind::Limit => "limit",
            FailureKind::Schema => "schema",
        }
    }

    pub fn parse(name: &str) -> Option<FailureKind> {
        FailureKind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The `error_type` of dead letters and of answers: stable names, promised to alerts.
    pub fn error_type(self) -> &'static str {
        match self {
            FailureKind::Transient => UNAVAILABLE_ERROR,
            FailureKind::Permanent => "HandlerError",
            FailureKind::Decode => "DecodeError",
            FailureKind::Trap => "HandlerTrapError",
            FailureKind::Timeout => TIMEOUT_ERROR,
            FailureKind::Limit => "LimitError",
            FailureKind::Schema => "SchemaViolationError",
        }
    }
}

/// What a failed record comes to once it is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Then {
    /// The task stops before the record, with a clear state and reason.
    #[default]
    Halt,
    /// The record's effects are dropped, it is counted, and the task goes on.
    Skip,
    /// The record goes to the dead-letter topic; its key is free again.
    DeadLetter,
    /// The record stays, and its key's later records behind it, until another version is deployed.
    Park,
}

impl Then {
    pub const ALL: [(&'static str, Then); 4] =
        [("halt", Then::Halt), ("skip", Then::Skip), ("dead_letter", Then::DeadLetter), ("park", Then::Park)];
}

/// What waits while a record is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ParkOrder {
    /// Later records of its key, in their order.
    #[default]
    ParkKey,
    /// Nothing: later records of its key overtake it.
    None,
}

impl ParkOrder {
    pub const ALL: [(&'static str, ParkOrder); 2] =
        [("park_key", ParkOrder::ParkKey), ("none", ParkOrder::None)];
}

/// Pauses between attempts: the first is `min`, each next one twice as long, none above `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
}

impl Backoff {
    /// Before the attempt after `retries` earlier ones, without jitter.
    pub fn pause(self, retries: u32) -> Duration {
        let factor = 1u32.checked_shl(retries).unwrap_or(u32::MAX);
        self.min.saturating_mul(factor).min(self.max)
    }
}

/// What happens to failures of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How often the record is tried again after its first failure.
    pub attempts: u32,
    pub backoff: Backoff,
    pub then: Then,
    /// Of the records that would become dead letters, in millionths; the others are skipped.
    pub sample_ppm: u32,
}

/// Of transient failures of which nobody says how often and when they are tried again.
pub const ATTEMPTS: u32 = 3;
pub const BACKOFF: Backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) };
/// Every record.
const WHOLE_PPM: u32 = 1_000_000;

impl Policy {
    /// Of a kind that the document does not mention.
    pub fn default_for(kind: FailureKind, then: Then) -> Policy {
        let attempts = if kind == FailureKind::Transient { ATTEMPTS } else { 0 };
        Policy { attempts, backoff: BACKOFF, then, sample_ppm: WHOLE_PPM }
    }

    /// Some records that would become dead letters do not.
    pub fn is_sampled(&self) -> bool {
        self.then == Then::DeadLetter && self.sample_ppm < WHOLE_PPM
    }

    /// What a record that has come to its end comes to. `dice` is its own, from 0 to 1.
    pub fn end(&self, dice: f64) -> Then {
        match self.then {
            Then::DeadLetter if dice * f64::from(WHOLE_PPM) >= f64::from(self.sample_ppm) => Then::Skip,
            then => then,
        }
    }
}

/// Bounds of what is parked, for each task. At a bound its input pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkedLimits {
    pub records: u64,
    pub bytes: u64,
}

impl Default for ParkedLimits {
    fn default() -> ParkedLimits {
        ParkedLimits { records: 10_000, bytes: 64 << 20 }
    }
}

/// What the value of a dead letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LetterFormat {
    /// The record's own bytes.
    #[default]
    Raw,
    /// A JSON document about the record, which holds them.
    Envelope,
}

impl LetterFormat {
    pub const ALL: [(&'static str, LetterFormat); 2] =
        [("raw", LetterFormat::Raw), ("envelope", LetterFormat::Envelope)];
}

/// The topic in which failures are told as they happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailureEvents {
    /// None = the node's default name for the deployment.
    pub topic: Option<String>,
}

/// The whole failure policy of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// By [`FailureKind::ALL`].
    policies: [Policy; FailureKind::ALL.len()],
    pub order: ParkOrder,
    pub parked: ParkedLimits,
    /// The dead-letter topic; none = the node's default name for the deployment.
    pub dead_letters: Option<String>,
    pub letter_format: LetterFormat,
    /// None = failures are not told.
    pub events: Option<FailureEvents>,
    /// The document has a `dead_letters:` block, and something may be parked.
    pub drops_to_letters: bool,
}

impl Default for Failures {
    fn default() -> Failures {
        Failures::at_once(Then::Halt)
    }
}

impl Failures {
    /// `failures: halt`: whatever fails stops the task before it.
    pub fn halt() -> Failures {
        Failures::at_once(Then::Halt)
    }

    /// `failures: skip`: whatever fails is dropped and counted.
    pub fn skip() -> Failures {
        Failures::at_once(Then::Skip)
    }

    /// The same for every kind, without another attempt.
    pub fn at_once(then: Then) -> Failures {
        let policy = |kind| Policy { attempts: 0, ..Policy::default_for(kind, then) };
        Failures::by_kind(policy)
    }

    pub fn by_kind(policy: impl Fn(FailureKind) -> Policy) -> Failures {
        Failures {
            policies: FailureKind::ALL.map(policy),
            order: ParkOrder::default(),
            parked: ParkedLimits::default(),
            dead_letters: None,
            letter_format: LetterFormat::default(),
            events: None,
            drops_to_letters: false,
        }
    }

    pub fn policy(&self, kind: FailureKind) -> &Policy {
        &self.policies[kind as usize]
    }

    /// Some record may be parked.
    pub fn parks(&self) -> bool {
        self.policies.iter().any(|policy| policy.attempts > 0 || policy.then == Then::Park)
    }

    /// Some record may become a dead letter: by policy, or because an operator drops one that is parked.
    pub fn has_dead_letters(&self) -> bool {
        self.policies.iter().any(|policy| policy.then == Then::DeadLetter) || self.drops_to_letters
    }

    /// Records must be kept whole, headers included.
    pub fn keeps_records(&self) -> bool {
        self.parks() || self.has_dead_letters()
    }
}

const ATTEMPTS_RANGE: RangeInclusive<u64> = 0..=1000;
const BACKOFF_MAX: Duration = Duration::from_secs(24 * 3600);

/// Reads `failures:`, a word or a mapping.
/// `has_outbox`: what can never be delivered becomes a dead letter too.
pub(super) fn read(section: &mut Section<'_>, has_outbox: bool, defaults: &SpecDefaults) -> Failures {
    let mut failures = read_given(section, has_outbox, defaults);
    failures.dead_letters = failures.dead_letters.or_else(|| defaults.dead_letters.clone());
    failures
}

fn read_given(section: &mut Section<'_>, has_outbox: bool, defaults: &SpecDefaults) -> Failures {
    let Some(field) = section.take("failures") else {
        return Failures::default();
    };
    if !matches!(field.node.value, Yaml::Map(_)) {
        let Some(text) = field.text() else { return Failures::default() };
        return match text.as_str() {
            "halt" => Failures::halt(),
            "skip" => Failures::skip(),
            _ => {
                field.refuse(format!(
                    "unknown value `{text}`: write halt, skip, or a mapping like \
                     {{ transient: {{ attempts: 5, backoff: 100ms..30s }}, then: dead_letter }}"
                ));
                Failures::default()
            }
        };
    }
    let Some(mut block) = field.section() else { return Failures::default() };
    let then = block.choice("then", Then::default(), &Then::ALL);
    let mut failures = Failures::by_kind(|kind| standard_for(kind, then, defaults));
    for kind in FailureKind::ALL {
        if kind == FailureKind::Schema {
            // A part of `decode` before it was a kind: documents that know that one only still mean both.
            failures.policies[kind as usize] = *failures.policy(FailureKind::Decode);
        }
        if let Some(mut policy) = block.section(kind.as_str()) {
            failures.policies[kind as usize] = read_policy(&mut policy, failures.policies[kind as usize]);
            policy.finish();
        }
    }
    let order = block.take("order");
    failures.order = block.choice("order", ParkOrder::default(), &ParkOrder::ALL);
    if let (Some(field), false) = (order, failures.parks()) {
        field.refuse(
            "says what waits behind a parked record, but no kind of failure is tried again or parked: \
             leave it out, or give a kind `attempts` or `then: park`",
        );
    }
    failures.parked = read_parked(&mut block);
    let letters = block.take("dead_letters");
    failures.drops_to_letters = letters.is_some() && failures.parks();
    if let Some(field) = &letters {
        if !failures.has_dead_letters() && !has_outbox {
            field.refuse(
                "has no use: no kind of failure says `then: dead_letter`, and none is parked, so that it could be dropped",
            );
        }
        (failures.dead_letters, failures.letter_format) = read_dead_letters(field);
    }
    failures.events = block.section("events").map(|mut events| {
        let topic = read_topic(&mut events);
        events.finish();
        FailureEvents { topic }
    });
    block.finish();
    failures
}

/// As built in, but for what this node's operator has said.
fn standard_for(kind: FailureKind, then: Then, defaults: &SpecDefaults) -> Policy {
    let mut policy = Policy::default_for(kind, then);
    if kind == FailureKind::Transient {
        policy.attempts = defaults.attempts;
    }
    let first = defaults.first_pause;
    policy.backoff = Backoff { min: first, max: policy.backoff.max.max(first) };
    policy
}

fn read_policy(section: &mut Section<'_>, standard: Policy) -> Policy {
    let attempts = section.integer("attempts", standard.attempts.into(), ATTEMPTS_RANGE) as u32;
    let backoff = section.take("backoff");
    if let (Some(field), 0) = (&backoff, attempts) {
        field.refuse("is the pause between attempts, and there are none: give it `attempts` as well");
    }
    let then = section.choice("then", standard.then, &Then::ALL);
    let sample = section.take("sample");
    let sample_ppm = section.share("sample", standard.sample_ppm);
    if let (Some(field), true) = (sample, then != Then::DeadLetter) {
        field.refuse("says how many become dead letters, and none does: say `then: dead_letter` as well");
    }
    Policy {
        attempts,
        backoff: backoff.as_ref().and_then(read_backoff).unwrap_or(standard.backoff),
        then,
        sample_ppm,
    }
}

/// `100ms..30s`
pub(super) fn read_backoff(field: &Field<'_>) -> Option<Backoff> {
    let text = field.text()?;
    let Some((min, max)) = text.split_once("..") else {
        field.refuse(format!("`{text}` is no range: write the first and the longest pause, like 100ms..30s"));
        return None;
    };
    let parsed = units::parse_duration(min).and_then(|min| Ok((min, units::parse_duration(max)?)));
    match parsed {
        Ok((min, max)) if min.is_zero() || min > max || max > BACKOFF_MAX => {
            field.refuse(format!("`{text}` must rise, from above zero to at most 24h"));
            None
        }
        Ok((min, max)) => Some(Backoff { min, max }),
        Err(message) => {
            field.refuse(message);
            None
        }
    }
}

fn read_parked(block: &mut Section<'_>) -> ParkedLimits {
    let standard = ParkedLimits::default();
    let Some(mut parked) = block.section("parked") else { return standard };
    let limits = ParkedLimits {
        records: parked.integer("records", standard.records, 1..=1_000_000),
        bytes: parked.bytes("bytes", standard.bytes, 1 << 20..=16 << 30),
    };
    parked.finish();
    limits
}

fn read_dead_letters(field: &Field<'_>) -> (Option<String>, LetterFormat) {
    let Some(mut section) = field.section() else { return (None, LetterFormat::default()) };
    let topic = read_topic(&mut section);
    let format = section.choice("format", LetterFormat::default(), &LetterFormat::ALL);
    section.finish();
    (topic, format)
}

fn read_topic(section: &mut Section<'_>) -> Option<String> {
    topic_name(&section.take("topic")?)
}

#[cfg(test)]
mod tests {
    use super::super::deployment::DeploymentSpec;
    use super::*;

    #[test]
    fn the_documentation_names_every_kind_every_choice_and_every_default() {
        let text = include_str!("../../../docs/failures.md");
        let row = |cells: &[&str]| {
            let cells: Vec<String> = cells.iter().map(|cell| (*cell).to_owned()).collect();
            let found = text.lines().any(|line| {
                let line: Vec<&str> = line.split('|').map(str::trim).collect();
                cells.iter().all(|cell| line.contains(&cell.as_str()))
            });
            assert!(found, "no row of docs/failures.md has {cells:?}");
        };
        for kind in FailureKind::ALL {
            let policy = Policy::default_for(kind, Then::default());
            let (name, error) = (format!("`{}`", kind.as_str()), format!("`{}`", kind.error_type()));
            let attempts = policy.attempts.to_string();
            let [min, max] = [policy.backoff.min, policy.backoff.max].map(units::show_duration);
            let backoff = if policy.attempts > 0 { format!("{min}..{max}") } else { String::new() };
            row(&[&name, &error, &attempts, &backoff]);
            assert_eq!(FailureKind::parse(kind.as_str()), Some(kind));
        }
        for name in [CONNECTION_ERROR, TIMEOUT_ERROR, UNAVAILABLE_ERROR] {
            row(&[&format!("`{name}`")]);
        }
        for (name, _) in Then::ALL {
            row(&[&format!("`{name}`")]);
        }
        for (name, _) in LetterFormat::ALL {
            row(&[&format!("`{name}`")]);
        }
        for (name, _) in ParkOrder::ALL {
            row(&[&format!("`{name}`")]);
        }
        let ParkedLimits { records, bytes } = ParkedLimits::default();
        assert!(text.contains(&format!("default {records})")) && text.contains(&units::show_bytes(bytes)));
        assert_eq!(Then::default(), Then::Halt);
        assert_eq!(ParkOrder::default(), ParkOrder::ParkKey);
    }

    /// Before chance; whether a document says it or the node's settings.
    #[test]
    fn presets_of_the_operations_handbook_wait_exactly_as_it_says() {
        let text = include_str!("../../../docs/failures.md");
        let base = "name: a\nmodule: a.wasm\ninputs: { in: { topic: in } }\n";
        for (policy, attempts, first_ms, expected) in [
            ("{ attempts: 2, backoff: 500ms..1s }", 2, 500, &[500u128, 1_000][..]),
            ("{ attempts: 3, backoff: 1s..4s }", 3, 1_000, &[1_000, 2_000, 4_000]),
            ("{ attempts: 5, backoff: 2s..32s }", 5, 2_000, &[2_000, 4_000, 8_000, 16_000, 32_000]),
        ] {
            assert!(text.contains(&format!("| `{policy}` |")), "{policy} is not in docs/failures.md");
            let said = DeploymentSpec::parse(&format!("{base}failures: {{ transient: {policy} }}\n"));
            let first_pause = Duration::from_millis(first_ms);
            let settings = SpecDefaults { attempts, first_pause, ..SpecDefaults::default() };
            let silent =
                DeploymentSpec::parse_with(&format!("{base}failures: {{ then: skip }}\n"), &settings);
            for spec in [said, silent] {
                let spec = spec.expect("valid");
                let Policy { attempts, backoff, .. } = *spec.failures.policy(FailureKind::Transient);
                let pauses: Vec<u128> =
                    (0..attempts).map(|retries| backoff.pause(retries).as_millis()).collect();
                assert_eq!(pauses, expected, "{policy}");
            }
        }
    }

    #[test]
    fn pauses_double_up_to_their_bound() {
        let backoff = Backoff { min: Duration::from_secs(2), max: Duration::from_secs(32) };
        assert_eq!([3, 4, 5, 69].map(|retries| backoff.pause(retries).as_secs()), [16, 32, 32, 32]);
    }
}

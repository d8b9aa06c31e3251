//! How long a caller waits: the deadline that it sends with its call.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

/// Of a call that does not say.
const DEFAULT: Duration = Duration::from_secs(10);
/// No call waits longer, whatever it says: the server's own limit is a little above.
const LONGEST: Duration = Duration::from_secs(55);
/// Part of the time that is left for the answer's way back, so that it says more than "too late".
const WAY_BACK: u32 = 10;
const WAY_BACK_MAX: Duration = Duration::from_millis(100);

/// When a call must have its answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// Of a call that came with this metadata.
    pub fn of(metadata: &MetadataMap) -> Deadline {
        let timeout = metadata.get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?));
        let timeout = timeout.unwrap_or(DEFAULT).min(LONGEST);
        Deadline(Instant::now() + timeout.saturating_sub((timeout / WAY_BACK).min(WAY_BACK_MAX)))
    }

    /// When the node must have ended its work.
    pub fn until(self) -> Instant {
        self.0
    }
}

/// gRPC's form: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_is_read_in_every_unit_and_nothing_else_is() {
        let cases = [
            ("2H", Some(7_200_000)),
            ("3M", Some(180_000)),
            ("4S", Some(4_000)),
            ("5m", Some(5)),
            ("6000u", Some(6)),
            ("99999999n", Some(99)),
            ("5", None),
            ("m", None),
            ("-5m", None),
            ("999999999m", None),
            ("", None),
            ("5é", None),
        ];
        for (text, ms) in cases {
            assert_eq!(parse(text).map(|timeout| timeout.as_millis()), ms, "{text}");
        }
    }

    #[test]
    fn a_call_ends_a_little_before_its_caller_gives_up() {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "1S".parse().expect("a value"));
        let left = Deadline::of(&metadata).until().saturating_duration_since(Instant::now());
        assert!(left <= Duration::from_millis(900), "{left:?}");
        metadata.insert("grpc-timeout", "99999999S".parse().expect("a value"));
        let left = Deadline::of(&metadata).until().saturating_duration_since(Instant::now());
        assert!(left <= LONGEST, "{left:?}");
    }
}

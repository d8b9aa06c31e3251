//! How long a caller waits: the deadline that it sends with its call.

use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use tonic::metadata::MetadataMap;

const TIMEOUT: &str = "grpc-timeout";

/// Of a call that does not say.
const DEFAULT: Duration = Duration::from_secs(30);
/// No call waits longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(60);
/// Calls that may compile a module, or wait until the members of a group have left: they have the longest
/// time unless their caller says less.
const SLOW: [&str; 4] = ["Deploy", "Rollback", "Delete", "Reset"];
/// Part of the time that is left for the answer's way back, so that it says more than "too late".
const WAY_BACK: u32 = 10;
const WAY_BACK_MAX: Duration = Duration::from_millis(250);

/// When a call must have its answer.
///
/// Invariant: `until < answer_by < ` the end of the caller's own wait. Work that keeps its deadline says
/// best itself what it waited for.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    began: Instant,
    allowed: Duration,
}

impl Deadline {
    /// Of a call that came with this metadata.
    pub fn of(metadata: &MetadataMap) -> Deadline {
        Deadline::after(timeout(metadata), DEFAULT)
    }

    /// Of a call of any method, by its path.
    pub fn of_call(path: &str, headers: &HeaderMap) -> Deadline {
        let is_slow = path.rsplit('/').next().is_some_and(|method| SLOW.contains(&method));
        let asked = headers.get(TIMEOUT).and_then(|value| parse(value.to_str().ok()?));
        Deadline::after(asked, if is_slow { LONGEST } else { DEFAULT })
    }

    fn after(asked: Option<Duration>, otherwise: Duration) -> Deadline {
        Deadline { began: Instant::now(), allowed: asked.unwrap_or(otherwise).min(LONGEST) }
    }

    /// What its caller, or the node, gives the call.
    pub fn allowed(self) -> Duration {
        self.allowed
    }

    /// When the node must have ended its work.
    pub fn until(self) -> Instant {
        self.began + less_the_way_back(self.allowed)
    }

    /// When the caller must have an answer, whatever the work says.
    pub fn answer_by(self) -> Instant {
        self.began + (self.allowed - self.way_back() / 2)
    }

    fn way_back(self) -> Duration {
        (self.allowed / WAY_BACK).min(WAY_BACK_MAX)
    }
}

/// How long a caller waits, if it says so.
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    metadata.get(TIMEOUT).and_then(|value| parse(value.to_str().ok()?))
}

/// What of a caller's time the node may use.
pub fn less_the_way_back(timeout: Duration) -> Duration {
    timeout - (timeout / WAY_BACK).min(WAY_BACK_MAX)
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
        let left = |deadline: Deadline| deadline.until().saturating_duration_since(Instant::now());
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "1S".parse().expect("a value"));
        let deadline = Deadline::of(&metadata);
        assert!(left(deadline) <= Duration::from_millis(900), "{deadline:?}");
        assert!(deadline.until() < deadline.answer_by());
        assert!(deadline.answer_by() < deadline.began + Duration::from_secs(1));
        metadata.insert("grpc-timeout", "99999999S".parse().expect("a value"));
        assert!(left(Deadline::of(&metadata)) <= LONGEST);
    }

    #[test]
    fn who_does_not_say_waits_as_long_as_the_method_may_take() {
        let deadline = |path: &str| Deadline::of_call(path, &HeaderMap::new()).allowed();
        assert_eq!(deadline("/tidemill.v1.Deployments/List"), DEFAULT);
        assert_eq!(deadline("/tidemill.v1.Deployments/Deploy"), LONGEST);
    }
}

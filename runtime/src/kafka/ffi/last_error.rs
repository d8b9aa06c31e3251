//! The last error that concerns a client as a whole, and whether it says that the client is not let in.

use std::time::{Duration, Instant};

use super::KafkaError;
use crate::kafka::BELIEVED_AFTER;

/// librdkafka tells every half a minute of a broker that it fails to connect to for the same reason.
const LATELY: Duration = Duration::from_secs(60);

/// Such as a connection refused.
#[derive(Debug)]
pub(super) struct LastError {
    pub error: KafkaError,
    at: Instant,
    /// Nothing else has been told since then but that a broker does not let the client in.
    shut_out_since: Option<Instant>,
}

impl LastError {
    pub fn after(before: Option<&LastError>, error: KafkaError, now: Instant) -> LastError {
        let before = before.filter(|before| before.is_of_late(now)).and_then(|before| before.shut_out_since);
        let shut_out_since = error.is_of_access().then(|| before.unwrap_or(now));
        LastError { error, at: now, shut_out_since }
    }

    /// A broker does not let the client in, and it is no accident.
    pub fn shuts_out(&self, now: Instant) -> bool {
        let is_believed = |since: Instant| now.saturating_duration_since(since) >= BELIEVED_AFTER;
        self.is_of_late(now) && self.shut_out_since.is_some_and(is_believed)
    }

    pub fn is_since(&self, since: Instant) -> bool {
        self.at >= since
    }

    fn is_of_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < LATELY
    }
}

#[cfg(test)]
mod tests {
    use super::super::Code;
    use super::*;

    const EVERY: Duration = Duration::from_secs(30);

    #[test]
    fn whoever_is_shut_out_is_so_after_a_while_and_until_something_else_is_told_or_nothing_for_long() {
        let refusal = || KafkaError::new(Code::RD_KAFKA_RESP_ERR__AUTHENTICATION, "no");
        let began = Instant::now();
        let first = LastError::after(None, refusal(), began);
        assert!(!first.shuts_out(began), "the broker may be just starting");
        assert!(first.shuts_out(began + BELIEVED_AFTER) && !first.shuts_out(began + LATELY));
        let second = LastError::after(Some(&first), refusal(), began + EVERY);
        assert!(second.shuts_out(began + EVERY) && second.shuts_out(began + LATELY));
        let gone = KafkaError::new(Code::RD_KAFKA_RESP_ERR__TRANSPORT, "gone");
        let other = LastError::after(Some(&second), gone, began + EVERY);
        assert!(!other.shuts_out(began + EVERY + BELIEVED_AFTER));
        for before in [&other, &first] {
            let later = began + EVERY + LATELY;
            assert!(!LastError::after(Some(before), refusal(), later).shuts_out(later), "it begins anew");
        }
    }
}

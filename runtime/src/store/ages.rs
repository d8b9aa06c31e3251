//! How old the ids of an inbox are, by their offsets in its topic: what may be trimmed there, and how much
//! of the store has expired since it was last swept.
//!
//! Dates rise with offsets, so a few marks suffice: everything below a mark's offset is dated at most so.
//! The marks are kept in the store, so that a restart does not forget when what is there will expire.

use std::collections::VecDeque;

use crate::record::Offset;

/// Marks of a TTL.
const PARTS: i64 = 64;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ages {
    /// Ids below it that have expired are not in the store any more.
    pub swept: Offset,
    /// The oldest first.
    marks: VecDeque<(Offset, i64)>,
}

impl Ages {
    /// Of a store that holds none.
    pub fn beginning(at: Offset) -> Ages {
        Ages { swept: at, marks: VecDeque::new() }
    }

    /// Everything below `next` is dated at most `date_ms`. True if that is a mark of its own; the last one
    /// is extended until it is full.
    pub fn note(&mut self, next: Offset, date_ms: i64, ttl_ms: i64) -> bool {
        // A part begins where the one before the last ended.
        let began = self.marks.iter().rev().nth(1).map(|&(_, end_ms)| end_ms);
        let extends = began.is_some_and(|began| date_ms.saturating_sub(began) < ttl_ms / PARTS);
        if extends {
            self.marks.pop_back();
        }
        self.marks.push_back((next, date_ms));
        !extends
    }

    /// Takes away the marks of what has expired, and answers the last one's offset.
    pub fn expire(&mut self, horizon_ms: i64, ttl_ms: i64) -> Option<Offset> {
        let mut expired = None;
        while let Some(&(offset, date_ms)) = self.marks.front()
            && date_ms.saturating_add(ttl_ms) <= horizon_ms
        {
            expired = Some(offset);
            self.marks.pop_front();
        }
        expired
    }

    /// The latest date of any id.
    pub fn latest_ms(&self) -> Option<i64> {
        self.marks.back().map(|&(_, date_ms)| date_ms)
    }

    /// On disk since 0.2, little endian: `swept`, then offset and date of each mark.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.swept.0.to_le_bytes().to_vec();
        for (offset, date_ms) in &self.marks {
            bytes.extend_from_slice(&offset.0.to_le_bytes());
            bytes.extend_from_slice(&date_ms.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Ages> {
        let (swept, marks) = bytes.split_first_chunk::<8>()?;
        let (marks, rest) = marks.as_chunks::<16>();
        let mark = |mark: &[u8; 16]| {
            let (offset, date) = mark.split_at(8);
            Some((
                Offset(u64::from_le_bytes(offset.try_into().ok()?)),
                i64::from_le_bytes(date.try_into().ok()?),
            ))
        };
        let marks = marks.iter().map(mark).collect::<Option<_>>()?;
        rest.is_empty().then_some(Ages { swept: Offset(u64::from_le_bytes(*swept)), marks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_marks_say_when_everything_expires_and_survive_a_restart() {
        let (mut ages, ttl_ms) = (Ages::default(), 6_400);
        let made = (0..10_000).filter(|&at| ages.note(Offset(at + 1), at as i64, ttl_ms)).count();
        assert!((95..=105).contains(&made), "one in a hundred: {made}");
        let mut ages = Ages::decode(&ages.encode()).expect("as it was written");
        assert_eq!(ages.expire(ttl_ms - 1, ttl_ms), None, "the first is dated 0");
        let expired = ages.expire(ttl_ms + 5_000, ttl_ms).expect("half of them");
        assert!((4_900..=5_001).contains(&expired.0), "{expired}");
        assert_eq!(ages.expire(2 * ttl_ms + 10_000, ttl_ms), Some(Offset(10_000)));
        assert_eq!(Ages::decode(&[0; 12]), None);
    }
}

//! How old the ids of an inbox are, by their offsets in its topic: what may be trimmed there, and how much
//! of the store has expired since it was last swept.
//!
//! Dates rise with offsets, so a few marks suffice: everything below a mark's offset is dated at most so. How many
//! ids that is must be counted beside, because a record has many. The marks are kept in the store, so that a restart
//! does not forget when what is there will expire.

use std::collections::VecDeque;

use crate::record::Offset;

/// Marks of a TTL.
const PARTS: i64 = 64;

/// First of an encoding whose marks have counts.
const COUNTED: u8 = 1;

/// Everything below an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    next: Offset,
    /// So many have come up to there ([`super::Progress`]).
    ids: u64,
    /// The latest of any of them; ms since the epoch.
    date_ms: i64,
}

/// Counts are of all the ids that have come; `swept <= expired`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ages {
    /// Of the first so many, none that has expired is in the store any more.
    pub swept: u64,
    /// The first so many have expired.
    pub expired: u64,
    /// The oldest first.
    marks: VecDeque<Mark>,
}

impl Ages {
    /// Of a store that needs none of the `ids` that have come.
    pub fn beginning(ids: u64) -> Ages {
        Ages { swept: ids, expired: ids, marks: VecDeque::new() }
    }

    /// Of a store of which everything below `next`, which is `ids` in all, has expired. Of the first `swept` none is
    /// left in it.
    pub fn all_expired(next: Offset, ids: u64, swept: u64) -> Ages {
        // Older than any horizon: it is taken away with the first look, and until then kept like any mark.
        let mark = (ids > swept).then_some(Mark { next, ids, date_ms: i64::MIN });
        Ages { swept, expired: swept, marks: mark.into_iter().collect() }
    }

    /// Everything below `next`, which is `ids` in all, is dated at most `date_ms`. True if that is a mark of its
    /// own; the last one is extended until it is full.
    pub fn note(&mut self, next: Offset, ids: u64, date_ms: i64, ttl_ms: i64) -> bool {
        // A part begins where the one before the last ended.
        let began = self.marks.iter().rev().nth(1).map(|mark| mark.date_ms);
        let extends = began.is_some_and(|began| date_ms.saturating_sub(began) < ttl_ms / PARTS);
        if extends {
            self.marks.pop_back();
        }
        self.marks.push_back(Mark { next, ids, date_ms });
        !extends
    }

    /// Takes away the marks of what has expired, and answers the last one's offset.
    pub fn expire(&mut self, horizon_ms: i64, ttl_ms: i64) -> Option<Offset> {
        let mut expired = None;
        while let Some(&Mark { next, ids, date_ms }) = self.marks.front()
            && date_ms.saturating_add(ttl_ms) <= horizon_ms
        {
            expired = Some(next);
            self.expired = self.expired.max(ids);
            self.marks.pop_front();
        }
        expired
    }

    /// So many ids have come, or more.
    pub fn ids(&self) -> u64 {
        self.marks.iter().map(|mark| mark.ids).fold(self.expired, u64::max)
    }

    /// The latest date of any id.
    pub fn latest_ms(&self) -> Option<i64> {
        self.marks.back().map(|mark| mark.date_ms)
    }

    /// On disk, little endian: a byte that is 1, `swept`, then offset, count and date of each mark.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![COUNTED];
        bytes.extend_from_slice(&self.swept.to_le_bytes());
        for mark in &self.marks {
            bytes.extend_from_slice(&mark.next.0.to_le_bytes());
            bytes.extend_from_slice(&mark.ids.to_le_bytes());
            bytes.extend_from_slice(&mark.date_ms.to_le_bytes());
        }
        bytes
    }

    /// Before ids were packed there was neither the first byte nor a count, for each had an offset: lengths were
    /// whole words, and are one byte more since.
    pub fn decode(bytes: &[u8]) -> Option<Ages> {
        let (words, rest) = bytes.as_chunks::<8>();
        let ([], [swept, marks @ ..]) = (rest, words) else { return Ages::decode_counted(bytes) };
        let (marks, rest) = marks.as_chunks::<2>();
        let mark = |&[next, date]: &[[u8; 8]; 2]| Mark {
            next: Offset(u64::from_le_bytes(next)),
            ids: u64::from_le_bytes(next),
            date_ms: i64::from_le_bytes(date),
        };
        rest.is_empty().then(|| Ages::with(*swept, marks.iter().map(mark).collect()))
    }

    fn decode_counted(bytes: &[u8]) -> Option<Ages> {
        let (words, rest) = bytes.strip_prefix(&[COUNTED])?.as_chunks::<8>();
        let ([], [swept, marks @ ..]) = (rest, words) else { return None };
        let (marks, rest) = marks.as_chunks::<3>();
        let mark = |&[next, ids, date]: &[[u8; 8]; 3]| Mark {
            next: Offset(u64::from_le_bytes(next)),
            ids: u64::from_le_bytes(ids),
            date_ms: i64::from_le_bytes(date),
        };
        rest.is_empty().then(|| Ages::with(*swept, marks.iter().map(mark).collect()))
    }

    /// What else has expired shows with the next mark that does.
    fn with(swept: [u8; 8], marks: VecDeque<Mark>) -> Ages {
        let swept = u64::from_le_bytes(swept);
        Ages { swept, expired: swept, marks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_marks_say_when_everything_expires_and_survive_a_restart() {
        let (mut ages, ttl_ms) = (Ages::default(), 6_400);
        let mut note = |at: u64| ages.note(Offset(at + 1), 9 * (at + 1), at as i64, ttl_ms);
        let made = (0..10_000).filter(|&at| note(at)).count();
        assert!((95..=105).contains(&made), "one in a hundred: {made}");
        let mut ages = Ages::decode(&ages.encode()).expect("as it was written");
        assert_eq!(ages.expire(ttl_ms - 1, ttl_ms), None, "the first is dated 0");
        let expired = ages.expire(ttl_ms + 5_000, ttl_ms).expect("half of them");
        assert!((4_900..=5_001).contains(&expired.0), "{expired}");
        assert_eq!((ages.expired, ages.ids()), (9 * expired.0, 90_000));
        assert_eq!(ages.expire(2 * ttl_ms + 10_000, ttl_ms), Some(Offset(10_000)));
        assert_eq!(ages.ids(), 90_000, "that they have expired makes them no fewer");
        assert_eq!(Ages::decode(&ages.encode()).map(|ages| ages.expired), Some(0), "as far as it is known");
        let others: [&[u8]; 5] = [&[], &[0; 12], &[0; 17], &[COUNTED; 17], &[COUNTED; 32]];
        for other in others {
            assert_eq!(Ages::decode(other), None, "{} bytes", other.len());
        }
    }

    #[test]
    fn what_a_store_has_and_its_topic_does_not_has_expired_with_the_first_look_also_after_a_restart() {
        let mut ages = Ages::all_expired(Offset(10), 500, 20);
        ages.note(Offset(30), 700, 9_000, 6_400);
        let mut ages = Ages::decode(&ages.encode()).expect("as it was written");
        assert_eq!(ages.expire(9_000, 6_400), Some(Offset(10)));
        assert_eq!((ages.swept, ages.expired, ages.ids()), (20, 500, 700));
        assert_eq!(Ages::all_expired(Offset(10), 20, 20), Ages::beginning(20), "nothing is left to sweep");
    }

    #[test]
    fn ages_of_before_ids_were_packed_have_as_many_ids_as_offsets() {
        let words = [7i64, 10, 1_000, 20, 2_000];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut ages = Ages::decode(&bytes).unwrap();
        assert_eq!((ages.swept, ages.expired, ages.latest_ms()), (7, 7, Some(2_000)));
        assert_eq!(ages.expire(1_500, 500), Some(Offset(10)));
        assert_eq!(ages.expired, 10);
        assert_eq!(Ages::decode(&ages.encode()), Some(Ages { expired: 7, ..ages }));
    }
}

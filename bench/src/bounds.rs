//! How much may be asked for, and how much of it makes a result that is kept.

use std::ops::RangeInclusive;

use clap::builder::RangedU64ValueParser;

/// Fewer rounds say little of the spread: they do not take the place of what more of them have found.
pub const KEPT_ROUNDS: usize = 5;
const ROUNDS: RangeInclusive<u64> = 1..=1_000;
const SCALE_MIN: f64 = 0.001;
const SCALE_MAX: f64 = 100.0;

/// Of rounds as an argument; none would measure nothing.
pub fn rounds() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(ROUNDS)
}

/// So many times the records, as an argument.
pub fn scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    let is_sound = (SCALE_MIN..=SCALE_MAX).contains(&scale);
    if is_sound { Ok(scale) } else { Err(format!("it is to be {SCALE_MIN} to {SCALE_MAX}")) }
}

/// Why what was measured does not take the place of a result; `None` if it does. `is_whole`: nothing was left out.
pub fn why_not_kept(rounds: usize, scale: f64, is_whole: bool) -> Option<String> {
    if rounds < KEPT_ROUNDS {
        Some(format!("a result has {KEPT_ROUNDS} rounds or more"))
    } else if scale != 1.0 {
        Some("a result is of --scale 1".to_owned())
    } else if !is_whole {
        Some("of a result nothing is left out".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    #[test]
    fn nobody_can_ask_for_nothing() {
        let command = Command::new("bench").arg(Arg::new("rounds").value_parser(rounds()));
        let parsed = |text: &str| {
            let matches = command.clone().try_get_matches_from(["bench", text]).ok()?;
            matches.get_one::<usize>("rounds").copied()
        };
        let asked = [parsed("0"), parsed("1"), parsed("1000"), parsed("1001")];
        assert_eq!(asked, [None, Some(1), Some(1_000), None]);
        assert_eq!(scale("0.25"), Ok(0.25));
        for text in ["0", "-1", "NaN", "inf", "1e9", "a half"] {
            assert!(scale(text).is_err(), "{text}");
        }
    }

    #[test]
    fn few_rounds_another_size_or_a_part_do_not_replace_a_result() {
        assert_eq!(why_not_kept(KEPT_ROUNDS, 1.0, true), None);
        for (rounds, scale, is_whole) in [(KEPT_ROUNDS - 1, 1.0, true), (5, 0.5, true), (5, 1.0, false)] {
            assert!(why_not_kept(rounds, scale, is_whole).is_some());
        }
    }
}

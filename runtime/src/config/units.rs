//! Durations, byte sizes, shares and times as people write them: `100ms`, `64MiB`, `5%`,
//! `2013-01-01T00:00:00Z`. And digests, which are only ever shown.
//!
//! Both directions of the others, so that what `config show` prints can be pasted back.

use std::time::Duration;

/// `100ms`, `30s`, `1.5m`, `24h`, `7d`, `250us`. A bare number has no unit and is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let nanos_per_unit: f64 = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3_600e9,
        "d" => 86_400e9,
        "" => return Err(format!("`{text}` needs a unit: write {text}ms or {text}s")),
        _ => {
            return Err(format!("`{text}` is no duration: write 100ms, 30s, 5m, 24h or 7d"));
        }
    };
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` is no duration: write 100ms, 30s, 5m, 24h or 7d"))?;
    let nanos = number * nanos_per_unit;
    if !(0.0..=u64::MAX as f64 / 2.0).contains(&nanos) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(Duration::from_nanos(nanos.round() as u64))
}

/// `4096`, `64KiB`, `64MiB`, `1.5GiB`, also `64kB`, `64MB` (powers of ten).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let factor: f64 = match unit {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => {
            return Err(format!("`{text}` is no size: write 64MiB, 512KiB, 1GiB or a number of bytes"));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no size: write 64MiB, 512KiB, 1GiB or a number of bytes"))?;
    let bytes = number * factor;
    if !(0.0..=i64::MAX as f64 / 2.0).contains(&bytes) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(bytes.round() as u64)
}

/// `5%`, `0.25%`, in millionths. May be above the whole; a caller has a range.
pub fn parse_share(text: &str) -> Result<u32, String> {
    let (number, unit) = split_unit(text);
    let percent: f64 = number.parse().map_err(|_| format!("`{text}` is no share: write 5% or 0.5%"))?;
    match unit {
        "%" if percent <= 1_000.0 => Ok((percent * 10_000.0).round() as u32),
        "%" => Err(format!("`{text}` is out of range")),
        "" => Err(format!("`{text}` needs a percent sign: write {text}%")),
        _ => Err(format!("`{text}` is no share: write 5% or 0.5%")),
    }
}

/// The shortest form that [`parse_share`] reads back as the same value.
pub fn show_share(ppm: u32) -> String {
    format!("{}%", f64::from(ppm) / 10_000.0)
}

/// Digits (and a point) first, the unit after them, spaces between them ignored.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// The shortest form that [`parse_duration`] reads back as the same value.
pub fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    const UNITS: [(&str, u128); 6] = [
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, size) in UNITS {
        if nanos.is_multiple_of(size) {
            return format!("{}{unit}", nanos / size);
        }
    }
    unreachable!("every whole number of nanoseconds divides by one")
}

/// The shortest form that [`parse_bytes`] reads back as the same value.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// Two hexadecimal digits a byte, in lower case. Names of modules and ids of inboxes are kept in this form.
pub fn show_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Milliseconds since the epoch of an RFC 3339 time: `2013-01-01T00:00:00Z`, `...T00:00:00.250+01:00`. One
/// without a zone, which RFC 3339 does not have, is UTC, as Kafka's own tools take it.
pub fn parse_time_ms(text: &str) -> Result<i64, String> {
    time_ms(text.as_bytes()).ok_or_else(|| {
        format!("`{text}` is no time: write it like 2013-01-31T12:00:00Z (RFC 3339; UTC without a zone)")
    })
}

fn time_ms(text: &[u8]) -> Option<i64> {
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        let part = text.get(range)?;
        part.iter()
            .try_fold(0i64, |sum, &byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
    };
    let is = |at: usize, wanted: &[u8]| text.get(at).is_some_and(|byte| wanted.contains(byte));
    let separated = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    if !separated {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19)?);
    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if is(at, b".") {
        let end = (at + 1..text.len()).find(|&i| !text[i].is_ascii_digit()).unwrap_or(text.len());
        let fraction = &text[at + 1..end];
        if fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        millis =
            (0..3).fold(0, |sum, i| sum * 10 + fraction.get(i).map_or(0, |&digit| i64::from(digit - b'0')));
        at = end;
    }
    let offset_minutes = match text.get(at) {
        None => 0,
        Some(b'Z' | b'z') if text.len() == at + 1 => 0,
        Some(sign @ (b'+' | b'-')) if text.len() == at + 6 && is(at + 3, b":") => {
            let minutes = digits(at + 1..at + 3)? * 60 + digits(at + 4..at + 6)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        Some(_) => return None,
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds - offset_minutes * 60) * 1_000 + millis)
}

/// `2013-01-31T12:00:00.000Z`.
pub fn show_time_ms(ms: i64) -> String {
    let days = ms.div_euclid(86_400_000);
    let of_day = ms.rem_euclid(86_400_000);
    let (year, month, day) = civil_from_days(days);
    let (seconds, millis) = (of_day / 1_000, of_day % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar. Years are counted from
/// March, so that the leap day is the last one of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_written_and_print_as_read() {
        for (text, ms) in
            [("100ms", 100), ("30s", 30_000), ("1.5m", 90_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            let duration = parse_duration(text).expect(text);
            assert_eq!(duration, Duration::from_millis(ms), "{text}");
            assert_eq!(parse_duration(&show_duration(duration)), Ok(duration), "{text}");
        }
        for bad in ["", "5", "s", "-3s", "3 parsecs", "1e3s", "1..2s", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_read_as_written_and_print_as_read() {
        for (text, bytes) in
            [("64MiB", 64 << 20), ("4096", 4096), ("1.5KiB", 1536), ("10MB", 10_000_000), ("0", 0)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
            assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "64mib", "64 megs", "-1", "999999999TiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_read_as_written_and_print_as_read() {
        for (text, ppm) in [("5%", 50_000), ("0.25%", 2_500), ("0%", 0), ("100 %", 1_000_000), ("0.0001%", 1)]
        {
            assert_eq!(parse_share(text), Ok(ppm), "{text}");
            assert_eq!(parse_share(&show_share(ppm)), Ok(ppm), "{text}");
        }
        for bad in ["", "5", "%", "-5%", "5 percent", "1e3%", "99999999999%"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_byte_shows_as_two_digits() {
        assert_eq!(show_hex(&[0x00, 0x0f, 0xa5, 0xff]), "000fa5ff");
        assert_eq!(show_hex(&[]), "");
    }

    #[test]
    fn times_survive_the_calendar() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2013-01-01T00:00:00.250Z", 1_356_998_400_250),
            ("2000-02-29T23:59:59+01:00", 951_865_199_000),
            ("1969-12-31T23:59:59Z", -1_000),
            ("2025-01-15T00:00:00.000", 1_736_899_200_000),
            ("2025-01-15T00:00:00", 1_736_899_200_000),
        ] {
            assert_eq!(parse_time_ms(text), Ok(ms), "{text}");
            assert_eq!(parse_time_ms(&show_time_ms(ms)), Ok(ms), "{text}");
        }
        for bad in [
            "2013-02-29T00:00:00Z",
            "2013-01-01",
            "2013-01-01T00:00",
            "2013-01-01T00:00:00.",
            "2013-01-01T00:00:00+01",
            "2013-13-01T00:00:00Z",
            "now",
        ] {
            assert!(parse_time_ms(bad).is_err(), "{bad}");
        }
    }
}

//! Times of day as people and files write them: RFC 3339 in UTC, and days of the Gregorian calendar as numbers.

/// "2026-11-23T21:09:54Z" of a number of seconds since 1970-01-01 UTC.
pub fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// "2026-11-23T21:09:54.000123Z" of a number of microseconds since 1970-01-01 UTC.
pub fn rfc3339_micros(micros: u64) -> String {
    let whole = rfc3339(micros / 1_000_000);
    format!("{}.{:06}Z", whole.trim_end_matches('Z'), micros % 1_000_000)
}

/// The seconds since 1970-01-01 UTC of an RFC 3339 time like "2026-11-23T21:09:54Z" or "2026-11-23T22:09:54.5+01:00"; a fraction of a
/// second is left out. Nothing for another text, and for a time before 1970.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |part: &str, most: u16| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u16>().ok()).flatten().filter(|number| *number <= most)
    };
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let mut date = date.split('-');
    let (year, month, day) = (number(date.next()?, 9999)?, number(date.next()?, 12)?, number(date.next()?, 31)?);
    let at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, offset) = rest.split_at(at);
    let mut clock = clock.split('.').next()?.split(':');
    let (hour, minute, second) = (number(clock.next()?, 23)?, number(clock.next()?, 59)?, number(clock.next()?, 60)?);
    let minutes = match offset.split_at(1) {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let minutes = i64::from(number(hours, 23)?) * 60 + i64::from(number(minutes, 59)?);
            if sign == "+" { minutes } else { -minutes }
        }
        _ => return None,
    };
    if date.next().is_some() || clock.next().is_some() || month == 0 || day == 0 {
        return None;
    }
    let days = days_to(year, u8::try_from(month).ok()?, u8::try_from(day).ok()?);
    let of_day = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    u64::try_from(days * 86_400 + of_day - minutes * 60).ok()
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar. Years are counted from March, so
/// that the leap day is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The days from 1970-01-01 to a day of the Gregorian calendar; negative for one before it. `month` is 1 to 12.
pub fn days_to(year: u16, month: u8, day: u8) -> i64 {
    let (month, day) = (i64::from(month), i64::from(day));
    let year = i64::from(year) - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_date_1() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_468_194, "2026-11-23T21:09:54Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn times_are_read_back() {
        for (text, seconds) in [
            ("2026-11-23T21:09:54Z", 1_795_468_194),
            ("2026-11-23T22:09:54.25+01:00", 1_795_468_194),
            ("2026-11-23 20:39:54-00:30", 1_795_468_194),
            ("1970-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(parse_rfc3339(text), Some(seconds), "{text}");
        }
        for text in ["", "2026-11-23", "2026-11-23T21:09Z", "2026-11-23T21:09:54", "2026-13-23T21:09:54Z", "1h", "é"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn microseconds_have_six_digits() {
        assert_eq!(rfc3339_micros(1_795_468_194_000_123), "2026-11-23T21:09:54.000123Z");
    }

    #[test]
    fn every_day_of_four_centuries_is_found_again() {
        for days in 0..146_097 * 2 {
            let (year, month, day) = civil(days);
            let (year, month, day) = (year.try_into().unwrap_or(0), month as u8, day as u8);
            assert_eq!(days_to(year, month, day), days as i64, "{year}-{month}-{day}");
        }
        assert_eq!(days_to(1969, 12, 31), -1);
        assert_eq!(days_to(0, 3, 1), -719_468);
    }
}

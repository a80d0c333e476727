//! Durations as people write them: "90s", "2m", "1h".

use std::time::Duration;

/// The longest: a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads a whole number of seconds, minutes or hours.
///
/// # Errors
/// A sentence for people that says what is accepted.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no duration: write a whole number with s, m or h, from 1s to 168h");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let duration = Duration::from_secs(number.checked_mul(unit).ok_or_else(wrong)?);
    if duration.is_zero() || duration > LONGEST || digits.starts_with('+') {
        return Err(wrong());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_with_a_unit_from_a_second_to_a_week() {
        for (text, seconds) in [("1s", 1), ("90s", 90), ("2m", 120), ("15m", 900), ("168h", 604_800)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "s", "2", "0s", "-1s", "+1s", "1.5m", "169h", "2 m", "2min", "99999999999999999999h", "1é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

//! How a change is confirmed, as people write it: "2m", "auto", "auto:30s".

use std::time::Duration;

use super::duration;

/// How long a self-test has to pass when nobody says otherwise.
pub const SELF_TEST_TIME: Duration = Duration::from_secs(60);

/// Who confirms a change, and within which time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confirm {
    /// Somebody, with `nodewall confirm`.
    Operator(Duration),
    /// The daemon, once its self-test passes.
    SelfTest(Duration),
}

impl Confirm {
    /// The time.
    pub const fn time(self) -> Duration {
        match self {
            Self::Operator(time) | Self::SelfTest(time) => time,
        }
    }
}

/// Reads a time, or "auto" with or without one.
///
/// # Errors
/// A sentence for people that says what is accepted.
pub fn parse(text: &str) -> Result<Confirm, String> {
    match text.strip_prefix("auto") {
        Some("") => Ok(Confirm::SelfTest(SELF_TEST_TIME)),
        Some(rest) if rest.starts_with(':') => duration::parse(&rest[1..]).map(Confirm::SelfTest),
        _ => duration::parse(text)
            .map(Confirm::Operator)
            .map_err(|error| format!("{error}; or \"auto\", or \"auto:30s\", to have it confirmed by a self-test")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_for_somebody_and_auto_for_the_self_test() {
        let seconds = Duration::from_secs;
        assert_eq!(parse("2m"), Ok(Confirm::Operator(seconds(120))));
        assert_eq!(parse("auto"), Ok(Confirm::SelfTest(seconds(60))));
        assert_eq!(parse("auto:30s"), Ok(Confirm::SelfTest(seconds(30))));
        for text in ["", "auto:", "auto30s", "auto 30s", "auto:0s", "automatic", "Auto", "30"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

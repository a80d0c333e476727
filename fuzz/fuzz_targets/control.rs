//! Requests on the control socket: any line is an order that can be carried out, or a short refusal.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nodewall::daemon::socket::{Asked, What, parse};

/// The longest time that a request may name.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fuzz_target!(|line: &[u8]| match parse(line) {
    Ok(Asked::Order(What::Apply { confirm, paths })) => {
        assert!(!confirm.is_zero() && confirm <= WEEK);
        assert!(paths.iter().all(|path| path.is_absolute()));
    }
    Ok(Asked::Order(What::BreakGlass { time: Some(time), reason })) => {
        assert!(!time.is_zero() && time <= WEEK && !reason.is_empty());
        assert!(!reason.contains(char::is_control));
    }
    Ok(Asked::Order(What::Panic { reason, .. } | What::BreakGlass { reason, .. })) => {
        assert!(reason.len() <= 500 && !reason.contains(char::is_control));
    }
    Ok(_) => {}
    Err(refusal) => {
        assert!(refusal.message.chars().count() <= 200 && !refusal.message.contains(char::is_control));
    }
});

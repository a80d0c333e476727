//! Policy documents: any text is decoded and its findings printed without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::policy::selector::Selector;
use nodewall::text::render::{line, render};

fuzz_target!(|text: &str| {
    let sourced = nodewall::source::decode_text("fuzz.toml", text);
    let printed = render(&sourced.findings, &sourced.texts, false);
    assert_eq!(printed.is_empty(), sourced.findings.is_empty());
    for finding in &sourced.findings {
        assert!(finding.place.end <= text.len());
        assert!(!line(finding).contains('\n'));
    }
    for policy in &sourced.policy.policies {
        assert_eq!(Selector::parse(&policy.interfaces.to_string()).as_ref(), Ok(&policy.interfaces));
    }
});

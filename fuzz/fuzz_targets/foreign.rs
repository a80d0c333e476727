//! Whatever text is given as rules of iptables, nft, ufw or firewalld: reading it ends, in documents that load or in findings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::source;
use nodewall::source::foreign::{Firewall, convert};
use nodewall::source::object::convert::to_toml;
use nodewall::text::finding::Severity;
use nodewall::text::tree::Source;

/// What stands beside the text that ufw's files need.
const DEFAULTS: &str = "IPV6=yes\nDEFAULT_INPUT_POLICY=\"DROP\"\nDEFAULT_OUTPUT_POLICY=\"ACCEPT\"\nDEFAULT_FORWARD_POLICY=\"REJECT\"\n";

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let one = |name: &str| vec![Source::new(name, text)];
    let (firewall, sources) = match first % 4 {
        0 => (Firewall::Iptables, one("rules")),
        1 => (Firewall::Nft, one("ruleset.json")),
        2 => (Firewall::Firewalld, one("public.xml")),
        _ => {
            let files = ["before", "after", "user"].iter().flat_map(|name| [format!("{name}.rules"), format!("{name}6.rules")]);
            let mut sources: Vec<Source> = files.map(|name| Source::new(name, text)).collect();
            sources.push(Source::new("default/ufw", DEFAULTS));
            (Firewall::Ufw, sources)
        }
    };
    let (documents, findings) = convert(firewall, &sources);
    assert!(!documents.is_empty() || !findings.is_empty());
    let loaded = source::decode_text("converted.toml", &to_toml(&documents));
    assert!(loaded.findings.iter().all(|finding| finding.severity != Severity::Error), "{:?}", loaded.findings);
});

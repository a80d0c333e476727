//! nodewall.toml and kubeconfigs: any text is decoded without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (_, findings) = nodewall::config::decode_text("nodewall.toml", text);
    for finding in &findings {
        assert!(finding.place.end <= text.len());
    }
    nodewall::config::kubeconfig::api_servers(text);
});

//! A policy's rules on a host: its facts, what the policy comes to there, and the kernel that gets it.

use std::path::Path;

use nodewall::compile::compile;
use nodewall::driver::{self, Netlink};
use nodewall::net::facts::Facts;
use nodewall::nft::ir::Ruleset;
use nodewall::policy::resolve::resolve;
use nodewall::policy::settings::NodeSettings;
use nodewall::source;
use nodewall::text::finding::Severity;

use super::net::Host;

impl Host {
    /// What the daemon would know of it.
    pub fn facts(&self) -> Facts {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(nodewall::host::collect(Path::new("/sys"))).unwrap()
        })
    }

    /// What a policy without errors comes to on it.
    pub fn compiled(&self, policy: &str, settings: &NodeSettings) -> Ruleset {
        let sourced = source::decode_text("policy.toml", policy);
        let (effective, resolved) = resolve(&sourced.policy, settings, &self.facts());
        let findings = sourced.findings.iter().chain(&resolved);
        let errors: Vec<_> = findings.filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:#?}\n{policy}");
        compile(&effective)
    }

    /// Puts rules in force, for flows that begin from now on.
    pub fn put_in_force(&self, ruleset: &Ruleset) {
        self.enter(|| {
            driver::apply(&mut Netlink::open().unwrap(), ruleset, None).unwrap();
            super::conntrack::flush();
        });
    }
}

//! Settings: nodewall.toml.

mod clusters;
pub mod confirm;
mod decode;
pub mod duration;
pub mod flows;
mod guards;
pub mod kubeconfig;
pub mod metrics;
mod selftest;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::policy::clusters::Cluster;
use crate::policy::guards::Guards;
use crate::policy::model::{Mode, ServicePort};
use crate::policy::selector::Selector;
use crate::policy::settings::{ACCEPT_MARK, Failsafe, LogSettings, NodeSettings};
use crate::reconcile::selftest::Probe;
use crate::text::finding::Finding;
use crate::text::place::Place;
use crate::textfile::{self, Trust, Unread};
use confirm::Confirm;
use flows::FlowSettings;
use metrics::MetricsSettings;

/// The control socket, as shipped.
const SOCKET: &str = "/run/nodewall/nodewall.sock";

/// What nodewall.toml says, with what it leaves out as shipped.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// What changes a verdict.
    pub settings: NodeSettings,
    /// Which of the built-in policies hold.
    pub guards: Guards,
    /// Where policy files are, lowest precedence first.
    pub policy_directories: Vec<PathBuf>,
    /// The control socket.
    pub socket: PathBuf,
    /// Where generations are kept.
    pub state_directory: PathBuf,
    /// How a change of the documents is confirmed; `None`: it need not be.
    pub confirm: Option<Confirm>,
    /// What a self-test tries beside what is built in.
    pub probes: Vec<Probe>,
    /// A file that tells who logs in of what holds for the moment only; `None`: there is none.
    pub motd: Option<PathBuf>,
    /// The kubeconfig from which the cluster API's address is learned ([`kubeconfig::api_servers`]). There need not be a
    /// file: a host outside a cluster has none.
    pub kubeconfig: Option<PathBuf>,
    /// The clusters that documents come from, the highest precedence first.
    pub clusters: Vec<Cluster>,
    /// What is kept of what goes on.
    pub flows: FlowSettings,
    /// Where metrics are served.
    pub metrics: MetricsSettings,
}

impl Config {
    /// What holds without a nodewall.toml: `policy.md` section 3.
    pub fn shipped() -> Self {
        Self {
            settings: NodeSettings {
                early: BTreeSet::new(),
                accept_mark: ACCEPT_MARK,
                mode: Mode::Enforce,
                node: None,
                labels: BTreeMap::new(),
                failsafe: shipped_failsafe(),
                defaults: BTreeMap::new(),
                drop_invalid: true,
                revoke: true,
                log: LogSettings { group: 5, denied: true, rate: 1000, burst: 1000 },
            },
            guards: Guards::default(),
            policy_directories: ["/usr/lib", "/etc", "/run"]
                .map(|root| PathBuf::from(format!("{root}/nodewall/policy.d")))
                .to_vec(),
            socket: PathBuf::from(SOCKET),
            state_directory: PathBuf::from("/var/lib/nodewall"),
            confirm: None,
            probes: Vec::new(),
            motd: None,
            kubeconfig: Some(PathBuf::from("/etc/kubernetes/kubelet.conf")),
            clusters: Vec::new(),
            flows: flows::SHIPPED,
            metrics: MetricsSettings::beside(Path::new(SOCKET)),
        }
    }
}

/// Reads nodewall.toml. A file that is not there means the shipped settings; `text` is what was read, for printing findings.
/// Of a file with errors, what is valid counts, and the rest is as shipped.
pub fn load(path: &Path, trust: Trust) -> (Config, Vec<Finding>, String) {
    match textfile::read(path, trust) {
        Ok(text) => {
            let (config, findings) = decode_text(&textfile::name(path), &text);
            (config, findings, text)
        }
        Err(Unread::Missing) => (Config::shipped(), Vec::new(), String::new()),
        Err(Unread::Refused(finding)) => (Config::shipped(), vec![*finding], String::new()),
    }
}

/// The settings in a text, as if a file of this name held it. Pure.
pub fn decode_text(file: &str, text: &str) -> (Config, Vec<Finding>) {
    decode::decode(file, text)
}

/// SSH in where administrators come from; DNS, time and the cluster API out. Without them a host cannot be mended.
fn shipped_failsafe() -> Vec<Failsafe> {
    let place = Place::file("built-in");
    let entry = |name: &str, direction, ports: &[(Protocol, u16)], interfaces| Failsafe {
        name: name.to_owned(),
        direction,
        ports: ports.iter().map(|(protocol, port)| ServicePort::Ports(*protocol, RangeSet::single(*port))).collect(),
        peers: None,
        interfaces,
        cluster_api: false,
        place: place.clone(),
    };
    let administrators = Selector::In("role".to_owned(), ["mgmt", "unknown"].map(str::to_owned).into());
    vec![
        entry("ssh", Direction::Ingress, &[(Protocol::TCP, 22)], administrators),
        entry("dns", Direction::Egress, &[(Protocol::UDP, 53), (Protocol::TCP, 53)], Selector::All),
        entry("ntp", Direction::Egress, &[(Protocol::UDP, 123)], Selector::All),
        Failsafe { cluster_api: true, ..entry("cluster-api", Direction::Egress, &[], Selector::All) },
    ]
}

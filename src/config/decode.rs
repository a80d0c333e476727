//! nodewall.toml from text to [`Config`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::metrics::MetricsSettings;
use super::{Config, clusters, confirm, flows, guards, metrics, selftest};
use crate::net::interface::{Direction, Role};
use crate::policy::model::Mode;
use crate::policy::parse::{self, EntityPlace};
use crate::policy::selector::Selector;
use crate::policy::settings::{Default, Failsafe};
use crate::text::finding::{Code, Finding};
use crate::text::name::is_node_name;
use crate::text::read::{Fields, Reader, quoted, suggestion};
use crate::text::tree::{Node, Source, Value, parse as parse_toml};

/// Most packets a second, or at once, that a rule may log: more floods the log's reader.
const MAX_LOG_RATE: i64 = 100_000;

/// Decodes nodewall.toml. Of a text with syntax errors nothing counts: a key that landed in the wrong table would say something
/// that nobody meant.
pub(super) fn decode(file: &str, text: &str) -> (Config, Vec<Finding>) {
    let source = Source::new(file, text);
    let (root, mut findings) = parse_toml(&source);
    let mut config = Config::shipped();
    let mut reader = Reader::new(&source);
    if let Some(mut fields) = root.as_ref().and_then(|root| reader.table(root, "nodewall.toml")) {
        read(&mut reader, &mut fields, &mut config);
        fields.finish(&mut reader, "nodewall.toml");
    }
    if findings.is_empty() {
        return (config, reader.into_findings());
    }
    let lines: Vec<u32> = findings.iter().map(|finding| finding.place.line).collect();
    let apart = |finding: &Finding| finding.code != Code::MissingKey && !lines.contains(&finding.place.line);
    findings.extend(reader.into_findings().into_iter().filter(apart));
    (Config::shipped(), findings)
}

fn read<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>, config: &mut Config) {
    if let Some(mode) = fields.get("mode") {
        let words = [("enforce", Mode::Enforce), ("audit", Mode::Audit)];
        config.settings.mode = reader.word(mode, "mode", &words).unwrap_or(config.settings.mode);
    }
    if let Some(node) = fields.get("node") {
        config.settings.node = node_name(reader, node);
    }
    if let Some(labels) = fields.get("labels") {
        config.settings.labels = parse::labels(reader, labels, "labels");
    }
    if let Some(failsafe) = fields.get("failsafe")
        && let Some(entries) = self::failsafe(reader, failsafe)
    {
        config.settings.failsafe = entries;
    }
    if let Some(default) = fields.get("default") {
        (config.settings.defaults, config.settings.early) = defaults(reader, default);
    }
    if let Some(mut log) = fields.get("log").and_then(|log| reader.table(log, "[log]")) {
        let settings = &mut config.settings.log;
        if let Some(group) = number(reader, &mut log, "group", 0, i64::from(u16::MAX)) {
            settings.group = u16::try_from(group).unwrap_or(settings.group);
        }
        if let Some(denied) = log.get("denied").and_then(|node| reader.boolean(node, "denied")) {
            settings.denied = denied;
        }
        if let Some(rate) = number(reader, &mut log, "rate", 1, MAX_LOG_RATE) {
            settings.rate = u32::try_from(rate).unwrap_or(settings.rate);
        }
        if let Some(burst) = number(reader, &mut log, "burst", 1, MAX_LOG_RATE) {
            settings.burst = u32::try_from(burst).unwrap_or(settings.burst);
        }
        log.finish(reader, "[log]");
    }
    if let Some(mut conntrack) = fields.get("conntrack").and_then(|node| reader.table(node, "[conntrack]")) {
        if let Some(drop) = conntrack.get("drop_invalid").and_then(|node| reader.boolean(node, "drop_invalid")) {
            config.settings.drop_invalid = drop;
        }
        if let Some(revoke) = conntrack.get("revoke").and_then(|node| reader.boolean(node, "revoke")) {
            config.settings.revoke = revoke;
        }
        conntrack.finish(reader, "[conntrack]");
    }
    if let Some(mark) = fields.get("accept_mark").and_then(|node| mark_bit(reader, node)) {
        config.settings.accept_mark = mark;
    }
    if let Some(directories) = fields.get("policy_directories") {
        let before = reader.errors();
        let items = parse::some(reader, directories, "policy_directories");
        let paths: Vec<PathBuf> = items.iter().filter_map(|item| path(reader, item, "a policy directory")).collect();
        if reader.errors() == before {
            config.policy_directories = paths;
        }
    }
    if let Some(socket) = fields.get("socket").and_then(|node| path(reader, node, "socket")) {
        config.socket = socket;
    }
    if let Some(directory) = fields.get("state_directory").and_then(|node| path(reader, node, "state_directory")) {
        config.state_directory = directory;
    }
    if let Some(mut apply) = fields.get("apply").and_then(|node| reader.table(node, "[apply]")) {
        if let Some(confirm) = apply.get("confirm")
            && let Some(text) = reader.string(confirm, "confirm")
        {
            match confirm::parse(text) {
                Ok(confirm) => config.confirm = Some(confirm),
                Err(message) => reader.error_with_help(Code::Value, confirm.span, message, "write \"2m\" or \"auto\""),
            }
        }
        if let Some(motd) = apply.get("motd").and_then(|node| path(reader, node, "motd")) {
            config.motd = Some(motd);
        }
        apply.finish(reader, "[apply]");
    }
    if let Some(guards) = fields.get("guards") {
        config.guards = guards::guards(reader, guards);
    }
    if let Some(selftest) = fields.get("selftest") {
        config.probes = selftest::probes(reader, selftest);
    }
    if let Some(kubeconfig) = fields.get("kubeconfig").and_then(|node| path(reader, node, "kubeconfig")) {
        config.kubeconfig = Some(kubeconfig);
    }
    if let Some(table) = fields.get("flows").and_then(|node| reader.table(node, "[flows]")) {
        config.flows = flows::flows(reader, table);
    }
    config.metrics = match fields.get("metrics").and_then(|node| reader.table(node, "[metrics]")) {
        Some(table) => metrics::metrics(reader, table, &config.socket),
        None => MetricsSettings::beside(&config.socket),
    };
    if let Some(source) = fields.get("source") {
        config.clusters = clusters::clusters(reader, source);
    }
}

/// A name that a Node of Kubernetes can have: a DNS subdomain (RFC 1123).
fn node_name<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<String> {
    let text = reader.string(node, "node")?;
    if is_node_name(text) {
        return Some(text.to_owned());
    }
    let message = format!("{} is no name of a node", quoted(text));
    reader.error_with_help(Code::Value, node.span, message, "write it as `kubectl get nodes` does");
    None
}

fn number<'t>(
    reader: &mut Reader<'t>,
    fields: &mut Fields<'_, 't>,
    key: &'static str,
    least: i64,
    most: i64,
) -> Option<i64> {
    let node = fields.get(key)?;
    reader.integer(node, key, least, most)
}

/// One bit of the 32 of a packet mark.
fn mark_bit<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<u32> {
    let mark = u32::try_from(reader.integer(node, "accept_mark", 1, i64::from(u32::MAX))?).ok()?;
    if !mark.is_power_of_two() {
        let message = format!("accept_mark {mark:#x} has {} bits", mark.count_ones());
        reader.error_with_help(Code::Value, node.span, message, "write a single bit, like 0x10");
        return None;
    }
    Some(mark)
}

pub(super) fn path<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> Option<PathBuf> {
    let text = reader.string(node, what)?;
    if !text.starts_with('/') || text.contains('\0') {
        let message = format!("{} cannot be {what}", quoted(text));
        reader.error_with_help(Code::Value, node.span, message, "write an absolute path");
        return None;
    }
    Some(PathBuf::from(text))
}

/// `[[failsafe.entry]]`, which replace the shipped ones. With an error in one of them the shipped list stays, as half a list
/// could lock the operator out.
fn failsafe<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Vec<Failsafe>> {
    let before = reader.errors();
    let mut fields = reader.table(node, "[failsafe]")?;
    let list = fields.get("entry");
    if list.is_none() {
        let help = "write [[failsafe.entry]] tables, or entry = [] for no failsafe at all";
        reader.error_with_help(Code::MissingKey, node.span, "[failsafe] has no `entry`", help);
    }
    let items = list.and_then(|list| reader.list(list, "failsafe.entry")).unwrap_or_default();
    let mut entries: Vec<Failsafe> = Vec::new();
    for item in items {
        let Some(entry) = failsafe_entry(reader, item) else { continue };
        if let Some(earlier) = entries.iter().find(|earlier| earlier.name == entry.name) {
            let message = format!("the name \"{}\" is taken by another failsafe entry", entry.name);
            let finding =
                Finding::error(Code::DuplicateName, &entry.place, message).related(&earlier.place, "the first");
            reader.report(finding);
            continue;
        }
        entries.push(entry);
    }
    fields.finish(reader, "[failsafe]");
    (reader.errors() == before).then_some(entries)
}

/// `name`, `direction`, `ports`, `peers` (an entity, or the word "cluster-api"), `interfaces`.
fn failsafe_entry<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Failsafe> {
    let what = "[[failsafe.entry]]";
    let place = reader.place(node.span);
    let mut fields = reader.table(node, what)?;
    let name = fields.need(reader, "name", what);
    let name = name.and_then(|name| parse::name(reader, name, "the name of a failsafe entry"));
    let direction = fields.need(reader, "direction", what);
    let words = Direction::BOTH.map(|direction| (direction.name(), direction));
    let direction = direction.and_then(|word| reader.word(word, "direction", &words));
    let interfaces = fields.need(reader, "interfaces", what);
    let interfaces: Option<Selector> = interfaces.and_then(|text| parse::selector(reader, text, "interfaces"));
    let peers_node = fields.get("peers");
    let mut cluster_api = false;
    let peers = match peers_node.map(|peers| (peers, &peers.value)) {
        Some((peers, Value::String(_))) => {
            cluster_api = reader.word(peers, "word for peers", &[("cluster-api", ())]).is_some();
            None
        }
        Some((peers, _)) => parse::entity(reader, peers, "peers", EntityPlace::Peers),
        None => None,
    };
    let ports = if cluster_api {
        if let Some(ports) = fields.entry("ports") {
            let help = "the kubeconfig says them; leave `ports` out";
            reader.error_with_help(Code::Conflict, ports.span, "the cluster API's ports are not written here", help);
        }
        if direction == Some(Direction::Ingress) {
            reader.error(Code::Conflict, node.span, "the cluster API is reached by egress");
        }
        Vec::new()
    } else {
        let ports = fields.need(reader, "ports", what);
        ports.map(|ports| parse::service_ports(reader, ports, "ports")).unwrap_or_default()
    };
    fields.finish(reader, what);
    Some(Failsafe { name: name?, direction: direction?, ports, peers, interfaces: interfaces?, cluster_api, place })
}

/// `[default.ROLE]` with `ingress`, `egress` and `early`.
fn defaults<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> (BTreeMap<(Role, Direction), Default>, BTreeSet<Role>) {
    let (mut defaults, mut early) = (BTreeMap::new(), BTreeSet::new());
    let Some(roles) = reader.table(node, "[default]") else { return (defaults, early) };
    for entry in roles.entries() {
        let Some(role) = Role::by_name(&entry.key) else {
            let names: Vec<&str> = Role::ALL.iter().map(|role| role.name()).collect();
            let message = format!("{} is not a role", quoted(&entry.key));
            reader.error_with_help(Code::UnknownKey, entry.span, message, suggestion(&entry.key, &names));
            continue;
        };
        let what = format!("[default.{role}]");
        let Some(mut fields) = reader.table(&entry.node, &what) else { continue };
        for direction in Direction::BOTH {
            let Some(word) = fields.get(direction.name()) else { continue };
            let words = [("allow", Default::Allow), ("deny", Default::Deny)];
            if let Some(default) = reader.word(word, "default of an interface", &words) {
                defaults.insert((role, direction), default);
            }
        }
        if fields.get("early").and_then(|node| reader.boolean(node, "early")) == Some(true) {
            early.insert(role);
        }
        fields.finish(reader, &what);
    }
    (defaults, early)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::text::render::line;

    fn decoded(text: &str) -> (Config, Vec<String>) {
        let (config, findings) = decode("nodewall.toml", text);
        (config, findings.iter().map(line).collect())
    }

    #[test]
    fn an_empty_file_is_as_shipped() {
        assert_eq!(decoded(""), (Config::shipped(), vec![]));
        let names: Vec<String> = Config::shipped().settings.failsafe.iter().map(|entry| entry.name.clone()).collect();
        assert_eq!(names, ["ssh", "dns", "ntp", "cluster-api"]);
    }

    #[test]
    fn a_name_that_no_node_can_have_is_an_error() {
        for name in ["", "GPU-7", "gpu_7", "-a", "a-", "a..b", ".", &"a".repeat(64)] {
            let (config, findings) = decoded(&format!("node = \"{name}\"\n"));
            assert!(config.settings.node.is_none() && findings.len() == 1, "{name}: {findings:?}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let (config, findings) = decoded(
            r#"
mode = "audit"
node = "gpu-7.example"
accept_mark = 0x8000_0000
policy_directories = ["/a", "/b"]
socket = "/run/x.sock"
kubeconfig = "/etc/k"
[labels]
pool = "training"
"topology.kubernetes.io/zone" = "z1"
[[failsafe.entry]]
name = "ssh"
direction = "ingress"
ports = ["tcp/22", "icmp/echo-request"]
peers = { cidrs = ["10.0.0.0/8"], sets = ["bastion"], except = { cidrs = ["10.9.0.0/16"] } }
interfaces = "role == 'mgmt'"
[[failsafe.entry]]
name = "api"
direction = "egress"
peers = "cluster-api"
interfaces = "all()"
[default.mgmt]
ingress = "allow"
egress = "deny"
[default.pod]
ingress = "deny"
[log]
group = 7
rate = 100
burst = 200
[conntrack]
drop_invalid = false
revoke = false
[apply]
confirm = "auto:90s"
motd = "/run/motd.d/nodewall"
[[selftest.probe]]
name = "store"
tcp = "10.0.0.9:443"
"#,
        );
        assert_eq!(findings, Vec::<String>::new());
        let settings = config.settings;
        assert_eq!((settings.mode, settings.accept_mark), (Mode::Audit, 0x8000_0000));
        assert_eq!(settings.node.as_deref(), Some("gpu-7.example"));
        assert_eq!(settings.labels["topology.kubernetes.io/zone"], "z1");
        assert_eq!((settings.log.group, settings.log.rate, settings.log.burst), (7, 100, 200));
        assert!(!settings.drop_invalid && !settings.revoke);
        assert!(Config::shipped().settings.revoke);
        assert_eq!(settings.default_for(Role::Mgmt, Direction::Ingress), Default::Allow);
        assert_eq!(settings.default_for(Role::Mgmt, Direction::Egress), Default::Deny);
        assert_eq!(settings.default_for(Role::Pod, Direction::Ingress), Default::Deny);
        assert_eq!(settings.default_for(Role::Pod, Direction::Egress), Default::Allow);
        let [ssh, api] = &settings.failsafe[..] else { panic!("two entries") };
        assert_eq!(ssh.ports.len(), 2);
        assert_eq!(ssh.peers.as_ref().unwrap().sets[0].0, "bastion");
        assert_eq!(ssh.interfaces.to_string(), "role == 'mgmt'");
        assert!(api.cluster_api && !ssh.cluster_api && api.ports.is_empty());
        assert_eq!(config.policy_directories, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(config.socket, PathBuf::from("/run/x.sock"));
        assert_eq!(config.kubeconfig, Some(PathBuf::from("/etc/k")));
        assert_eq!(config.confirm, Some(confirm::Confirm::SelfTest(std::time::Duration::from_secs(90))));
        assert_eq!(config.motd, Some(PathBuf::from("/run/motd.d/nodewall")));
        assert_eq!(config.probes.len(), 1);
    }

    #[test]
    fn mistakes_are_found_and_what_is_valid_counts() {
        let (config, findings) = decoded(
            "mode = \"adit\"\nsokcet = \"/x\"\nsocket = \"x\"\npolicy_directories = []\n[log]\ngroup = 70000\nrate = 5\n\
             [default.mgmnt]\ningress = \"deny\"\n[default.rail]\ningress = \"drop\"\n[conntrack]\nrevoke = 1\n\
             [[failsafe.entry]]\nname = \"ssh\"\ndirection = \"in\"\nports = [\"tcp/70000\"]\ninterfaces = \"role = 'x'\"\n\
             [[failsafe.entry]]\nname = \"api\"\ndirection = \"ingress\"\nports = [\"tcp/1\"]\npeers = \"cluster-api\"\ninterfaces = \"all()\"\n\
             [apply]\nconfirm = \"automatic\"\nmotd = \"motd\"\n",
        );
        assert_eq!(config.settings.log.rate, 5);
        assert_eq!(config.settings.failsafe, Config::shipped().settings.failsafe);
        let codes: Vec<&str> = findings.iter().map(|text| text.split(": ").next().unwrap()).collect();
        assert_eq!(findings.len(), 15, "{findings:#?}");
        for place in [
            "1:8", "2:1", "3:10", "4:22", "6:9", "8:10", "11:11", "13:10", "16:13", "17:10", "18:20", "22:1", "19:1",
            "26:11", "27:8",
        ] {
            assert!(codes.contains(&format!("nodewall.toml:{place}").as_str()), "{place}: {findings:#?}");
        }
        assert!(config.settings.revoke, "what is no boolean leaves it as shipped");
    }

    #[test]
    fn the_mark_is_one_bit() {
        assert_eq!(decoded("accept_mark = 0x1\n"), (decoded("accept_mark = 1").0, vec![]));
        for (value, finding) in [
            ("0", "error[value]: accept_mark must be from 1 to 4294967295"),
            ("0x1_0000_0000", "error[value]: accept_mark must be from 1 to 4294967295"),
            ("-16", "error[value]: accept_mark must be from 1 to 4294967295"),
            ("0x30", "error[value]: accept_mark 0x30 has 2 bits; write a single bit, like 0x10"),
            ("\"0x10\"", "error[type]: accept_mark must be an integer, not a string"),
        ] {
            let (config, findings) = decoded(&format!("accept_mark = {value}\n"));
            assert_eq!(config, Config::shipped(), "{value}");
            assert_eq!(findings, [format!("nodewall.toml:1:15: {finding}")]);
        }
    }

    #[test]
    fn nothing_counts_of_a_file_that_is_not_toml() {
        let (config, findings) = decoded("mode = \"audit\"\n[log\nrate = 5\n");
        assert_eq!(config, Config::shipped());
        assert!(findings[0].starts_with("nodewall.toml:2:5: error[syntax]"), "{findings:?}");
    }

    #[test]
    fn a_missing_file_is_no_finding_and_a_directory_is_one() {
        use crate::textfile::Trust;
        let temporary = tempfile::tempdir().unwrap();
        let (config, findings, text) = super::super::load(&temporary.path().join("nope"), Trust::Required);
        assert_eq!((config, findings, text), (Config::shipped(), vec![], String::new()));
        assert_eq!(super::super::load(temporary.path(), Trust::Anyone).1[0].code, Code::Unreadable);
        let path = temporary.path().join("nodewall.toml");
        std::fs::write(&path, "mode = \"audit\"\n").unwrap();
        assert_eq!(super::super::load(&path, Trust::Required).0.settings.mode, Mode::Audit);
        std::os::unix::fs::chown(&path, Some(1), None).unwrap();
        let (config, findings, _) = super::super::load(&path, Trust::Required);
        assert_eq!((config.settings.mode, findings[0].code), (Mode::Enforce, Code::Untrusted));
    }
}

//! What else on this machine decides about packets: old iptables tables, files that flush everything, XDP and tc in front of us,
//! and sysctls that undo an assumption.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::tc::TcMessage;

use super::{Error, netlink, sysfs};

/// Something that an operator should know about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Remark {
    /// Its kind, for scripts.
    pub code: &'static str,
    /// What there is.
    pub message: String,
    /// What it means, or what to do.
    pub help: &'static str,
}

/// Files that a service feeds to nft(8) at the start: Debian's and Ubuntu's, and that of the Red Hat family.
const NFTABLES_FILES: &[&str] = &["etc/nftables.conf", "etc/sysconfig/nftables.conf"];

/// Where the kernel names the tables of the older iptables.
const LEGACY_TABLES: [(&str, &str); 2] = [("proc/net/ip_tables_names", "IPv4"), ("proc/net/ip6_tables_names", "IPv6")];

/// What files below `root` tell, sorted. A file that is not there tells nothing.
pub fn from_files(root: &Path) -> Vec<Remark> {
    let mut remarks = Vec::new();
    for (file, what) in LEGACY_TABLES {
        let path = root.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let mut tables: Vec<&str> = text.split_whitespace().collect();
                tables.sort_unstable();
                if !tables.is_empty() {
                    remarks.push(Remark {
                        code: "legacy-iptables",
                        message: format!("legacy iptables tables are loaded for {what}: {}", tables.join(", ")),
                        help: "their rules hold beside ours and show in no listing of nft; `iptables-legacy-save` shows them",
                    });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => remarks.push(unreadable(&path)),
            Err(_) => {}
        }
    }
    for file in NFTABLES_FILES {
        look_for_flush(root, root.join(file), &mut remarks);
    }
    let directory = root.join("proc/sys/net/ipv4/conf");
    let set: Vec<String> = sysfs::names(&directory)
        .into_iter()
        .filter(|name| sysfs::number(&directory.join(name).join("route_localnet")).is_some_and(|value| value != 0))
        .collect();
    if !set.is_empty() {
        remarks.push(Remark {
            code: "route-localnet",
            message: format!("route_localnet is set for {}", set.join(", ")),
            help: "the kernel then takes packets to 127.0.0.0/8 from outside; nodewall drops them, and without it services \
                   that listen on loopback are reachable (CVE-2020-8558)",
        });
    }
    remarks.sort();
    remarks.dedup();
    remarks
}

/// Which legacy iptables tables below `root` may publish ports, in words: their rules are seen by nothing here.
pub fn legacy_nat(root: &Path) -> Vec<String> {
    let mut remarks = Vec::new();
    for (file, what) in LEGACY_TABLES {
        let path = root.join(file);
        match fs::read_to_string(&path) {
            Ok(text) if text.split_whitespace().any(|table| table == "nat") => remarks
                .push(format!("legacy iptables has a nat table for {what}: ports that its rules publish are not seen")),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => remarks.push(unreadable(&path).message),
            _ => {}
        }
    }
    remarks
}

fn unreadable(path: &Path) -> Remark {
    Remark { code: "not-readable", message: format!("{} cannot be read", path.display()), help: "run this as root" }
}

/// More files than these are not followed.
const MOST_FILES: usize = 1000;

/// Remarks on files for nft(8) that flush everything: this one, and those that it includes.
fn look_for_flush(root: &Path, first: PathBuf, remarks: &mut Vec<Remark>) {
    let (mut seen, mut next) = (BTreeSet::new(), vec![first]);
    while let Some(path) = next.pop() {
        if seen.len() == MOST_FILES || !seen.insert(path.clone()) {
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(text) if flushes(&text) => remarks.push(Remark {
                code: "flush-ruleset",
                message: format!("{} has `flush ruleset`", path.display()),
                help: "loading it removes every table, ours too; the daemon puts ours back, others may not. Flush only the \
                       file's own table",
            }),
            Ok(text) => next.extend(includes(&text).flat_map(|pattern| matching(root, pattern))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => remarks.push(unreadable(&path)),
            Err(_) => {}
        }
    }
}

/// The commands of a file for nft(8), comments aside.
fn commands(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.flat_map(|line| line.split(';')).map(str::trim)
}

/// Whether a file for nft(8) flushes everything.
fn flushes(text: &str) -> bool {
    commands(text).any(|command| command.split_whitespace().eq(["flush", "ruleset"]))
}

/// The files that a file for nft(8) includes, as it names them.
fn includes(text: &str) -> impl Iterator<Item = &str> {
    commands(text).filter_map(|command| command.strip_prefix("include").map(|rest| rest.trim().trim_matches('"')))
}

/// The files below `root` that an include means: one, or with `*` in its last part those that fit. A name without a leading slash is
/// looked for in /etc, where nft looks first.
fn matching(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = root.join("etc").join(pattern.trim_start_matches("./"));
    let path = pattern.strip_prefix('/').map_or(path, |absolute| root.join(absolute));
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let Some((start, end)) = name.split_once('*') else { return vec![path] };
    let fits = |file: &String| file.len() >= start.len() + end.len() && file.starts_with(start) && file.ends_with(end);
    sysfs::names(directory).into_iter().filter(fits).map(|file| directory.join(file)).collect()
}

/// What rtnetlink tells of this network namespace, sorted: XDP programs, and tc's hooks before and behind the network stack.
///
/// # Errors
/// When rtnetlink does not answer.
pub async fn from_links() -> Result<Vec<Remark>, Error> {
    let links: Vec<LinkMessage> = netlink::dump("list links", |handle| handle.link().get().execute()).await?;
    let queues: Vec<TcMessage> = netlink::dump("list queues", |handle| handle.qdisc().get().execute()).await?;
    let mut remarks: Vec<Remark> = links
        .iter()
        .filter(|link| netlink::has_xdp(link))
        .filter_map(|link| {
            Some(Remark {
                code: "xdp",
                message: format!("interface {} has an XDP program", netlink::name(link)?),
                help: "it sees packets before us: what it drops or redirects never reaches a rule of ours",
            })
        })
        .collect();
    for queue in &queues {
        let hooks = netlink::tc_hook(queue);
        let link = links.iter().find(|link| i32::try_from(link.header.index) == Ok(queue.header.index));
        if let (Some(kind), Some(name)) = (hooks, link.and_then(netlink::name)) {
            remarks.push(Remark {
                code: "tc",
                message: format!("interface {name} has tc's {kind} hook, which may hold programs or filters"),
                help: "they see packets before us on the way in, and behind us on the way out; \
                       `tc filter show dev NAME ingress` and `bpftool net` show them, and the latter also what tcx attached",
            });
        }
    }
    remarks.sort();
    remarks.dedup();
    Ok(remarks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_tell_what_else_is_there() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(from_files(root.path()), []);
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/net/ip_tables_names", "nat\nfilter\n");
        write("proc/net/ip6_tables_names", "");
        assert_eq!(
            legacy_nat(root.path()),
            ["legacy iptables has a nat table for IPv4: ports that its rules publish are not seen"]
        );
        write("etc/nftables.conf", "#!/usr/sbin/nft -f\n\n  flush  ruleset\n\ntable inet filter {\n}\n");
        for (name, value) in [("all", "0\n"), ("eth0", "1\n"), ("docker0", "1\n")] {
            write(&format!("proc/sys/net/ipv4/conf/{name}/route_localnet"), value);
        }
        let lines: Vec<String> =
            from_files(root.path()).iter().map(|remark| format!("{}: {}", remark.code, remark.message)).collect();
        assert_eq!(
            lines,
            [
                format!("flush-ruleset: {} has `flush ruleset`", root.path().join("etc/nftables.conf").display()),
                "legacy-iptables: legacy iptables tables are loaded for IPv4: filter, nat".to_owned(),
                "route-localnet: route_localnet is set for docker0, eth0".to_owned(),
            ]
        );
    }

    #[test]
    fn files_that_a_file_includes_are_looked_at_too() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/sysconfig/nftables.conf", "# include \"/etc/not.nft\"\ninclude \"/etc/nftables/main.nft\"\n");
        write("etc/not.nft", "flush ruleset\n");
        write("etc/nftables/main.nft", "include \"/etc/nftables/main.nft\"; include \"nftables.d/*.nft\"\n");
        write("etc/nftables.d/10.nft", "table inet a {}\n");
        assert_eq!(from_files(root.path()), [], "a file that includes itself is no trouble");
        write("etc/nftables.d/20.conf", "flush ruleset\n");
        assert_eq!(from_files(root.path()), []);
        write("etc/nftables.d/20.nft", "flush ruleset\n");
        let found = from_files(root.path());
        let wanted = format!("{} has `flush ruleset`", root.path().join("etc/nftables.d/20.nft").display());
        assert_eq!(
            found.iter().map(|remark| &remark.message).collect::<std::collections::BTreeSet<_>>(),
            [&wanted].into()
        );
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn only_a_command_flushes() {
        assert!(flushes("table inet a {}; flush ruleset # all of it"));
        assert!(!flushes("# flush ruleset\nflush table inet a\n# no: flush ruleset"));
        assert!(!flushes("flush ruleset inet"));
    }

    #[test]
    fn tc_hooks_are_seen_on_their_links() {
        let seen = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let run = |line: &str| {
                let mut words = line.split(' ');
                std::process::Command::new(words.next().unwrap()).args(words).status().unwrap().success()
            };
            assert!(run("ip link add a0 type veth peer name a1"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            assert_eq!(runtime.block_on(from_links()).unwrap(), []);
            assert!(run("tc qdisc add dev a1 clsact"));
            runtime.block_on(from_links()).unwrap()
        });
        let seen = seen.join().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].message, "interface a1 has tc's clsact hook, which may hold programs or filters");
    }
}

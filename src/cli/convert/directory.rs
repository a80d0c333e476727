//! Which files of a directory a firewall reads.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::foreign::Firewall;

/// The files of ufw's directory; that of the defaults is beside it.
const UFW: [&str; 9] = [
    "before.rules",
    "before6.rules",
    "after.rules",
    "after6.rules",
    "user.rules",
    "user6.rules",
    "ufw.conf",
    "before.init",
    "after.init",
];

/// The directories of firewalld whose files count.
const FIREWALLD: [&str; 4] = ["zones", "services", "ipsets", "policies"];

/// Where a firewall has its rules, if that is in files.
pub(super) const fn usual(firewall: Firewall) -> Option<&'static str> {
    match firewall {
        Firewall::Ufw => Some("/etc/ufw"),
        Firewall::Firewalld => Some("/etc/firewalld"),
        Firewall::Iptables | Firewall::Nft => None,
    }
}

/// The files that a path means: itself, or those in it that count.
pub(super) fn files(firewall: Firewall, path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    match firewall {
        Firewall::Ufw => ufw(path),
        Firewall::Firewalld => firewalld(path),
        // What comes of reading it is the message.
        Firewall::Iptables | Firewall::Nft => vec![path.to_owned()],
    }
}

fn ufw(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = UFW.iter().map(|name| directory.join(name)).collect();
    files.extend(directory.parent().map(|parent| parent.join("default/ufw")));
    files.retain(|file| file.exists());
    files
}

/// Those of /usr/lib first, so that those of /etc replace them.
fn firewalld(directory: &Path) -> Vec<PathBuf> {
    let vendor = directory.parent().and_then(Path::parent).map(|root| root.join("usr/lib/firewalld"));
    let mut files = Vec::new();
    for root in vendor.iter().map(PathBuf::as_path).chain([directory]) {
        files.extend(["firewalld.conf", "direct.xml"].map(|name| root.join(name)));
        for kind in FIREWALLD {
            let entries = fs::read_dir(root.join(kind)).into_iter().flatten().flatten();
            let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            found.retain(|file| file.extension().is_some_and(|extension| extension == "xml"));
            found.sort();
            files.extend(found);
        }
    }
    files.retain(|file| file.exists());
    files
}

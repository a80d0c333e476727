//! The process that sends a packet, from what the command line says about it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Args;

use crate::cli::examine::ANSWER_TIME;
use crate::host::accounts::{self, Looked};
use crate::host::cgroup;
use crate::policy::local::LocalNames;
use crate::simulate::{Origin, Socket};

/// What is said about the sender of a packet from this host.
#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct Arguments {
    /// The user whose process sends it, by name or number
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The group, by name or number; by default the user's own
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// The systemd unit in which it runs
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
    /// The kernel sends it by itself
    #[arg(long, conflicts_with_all = ["user", "group", "unit"])]
    kernel: bool,
}

/// Who sends the packet; what was taken for granted is added to `taken`.
pub(super) fn origin(
    arguments: &super::Arguments,
    root: Option<&Path>,
    taken: &mut Vec<String>,
) -> Result<Origin, String> {
    let Arguments { user, group, unit, kernel } = &arguments.process;
    let said = user.is_some() || group.is_some() || unit.is_some();
    if (said || *kernel) && arguments.input.is_some() && arguments.pcap.is_none() {
        return Err("--user, --group, --unit and --kernel are for packets of this host: --out without --in".to_owned());
    }
    if *kernel {
        return Ok(Origin::Kernel);
    } else if !said {
        return Ok(Origin::Unknown);
    }
    let root = root.unwrap_or(Path::new("/"));
    let uid = match user {
        Some(user) => account(root, user, "user")?,
        None => {
            taken.push("--user 0".to_owned());
            0
        }
    };
    let gid = match group {
        Some(group) => account(root, group, "group")?,
        None => {
            let own = own_group(root, uid).ok_or("say in which group: --group GROUP (this user's own is not known)")?;
            taken.push(format!("--group {own}"));
            own
        }
    };
    let mut cgroups = BTreeSet::new();
    if let Some(unit) = unit {
        cgroups = cgroup::find(root).map(|hierarchy| cgroup::of_process(&hierarchy, unit)).unwrap_or_default();
        if cgroups.is_empty() {
            taken.push(format!("no control group, as {unit} does not run here"));
        }
    }
    Ok(Origin::Process(Socket { uid, gid, cgroups }))
}

/// The number of a user or group.
fn account(root: &Path, text: &str, kind: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let mut names = LocalNames::default();
    let of_kind = if kind == "user" { &mut names.users } else { &mut names.groups };
    of_kind.insert(text.to_owned());
    let found = accounts::look_up_within(ANSWER_TIME, root, &names);
    let found = if kind == "user" { found.users } else { found.groups };
    match found.get(text) {
        Some(Looked::Found(number)) => Ok(*number),
        Some(Looked::Failed(why)) => Err(format!("cannot look up {kind} {text}: {why}; write a number")),
        Some(Looked::Unknown) | None => Err(format!("there is no {kind} {text}; write a number")),
    }
}

/// The group that passwd(5) gives a user; root's is known anyway.
fn own_group(root: &Path, uid: u32) -> Option<u32> {
    let text = fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
    let group = |line: &str| {
        let mut fields = line.split(':').skip(2).map(|field| field.parse::<u32>().ok());
        (fields.next()? == Some(uid)).then(|| fields.next())??
    };
    text.lines().find_map(group).or((uid == 0).then_some(0))
}

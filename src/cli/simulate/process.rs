//! The process that sends a packet, from what the command line says about it.

use std::fs;
use std::path::Path;

use clap::Args;
use nix::unistd::{Group, Uid, User};

use crate::net::facts::Facts;
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
    facts: &Facts,
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
    let accounts = Accounts { root: root.filter(|root| *root != Path::new("/")) };
    let (uid, own_group) = match user {
        Some(user) => accounts.user(user)?,
        None => {
            taken.push("--user 0".to_owned());
            (0, Some(0))
        }
    };
    let gid = match (group, own_group) {
        (Some(group), _) => accounts.group(group)?,
        (None, Some(gid)) => {
            taken.push(format!("--group {gid}"));
            gid
        }
        (None, None) => return Err("say in which group: --group GROUP (this user is not known here)".to_owned()),
    };
    let mut cgroups = Default::default();
    if let Some(unit) = unit {
        match facts.units.get(unit) {
            Some(known) => cgroups = known.clone(),
            None => taken.push(format!("no control group for {unit}, which no rule names or which does not run")),
        }
    }
    Ok(Origin::Process(Socket { uid, gid, cgroups }))
}

/// The users and groups of this machine, or those in the files of a copy of another one.
struct Accounts<'a> {
    root: Option<&'a Path>,
}

impl Accounts<'_> {
    /// A user's number, and the number of the group that is his own, if it is known.
    fn user(&self, text: &str) -> Result<(u32, Option<u32>), String> {
        let number = text.parse::<u32>().ok();
        let found = match self.root {
            Some(root) => entry(root, "etc/passwd", text, number).map(|fields| (fields[0], fields.get(1).copied())),
            None => {
                let user = number.map_or_else(|| User::from_name(text), |number| User::from_uid(Uid::from_raw(number)));
                let user = user.map_err(|error| format!("cannot look up user {text}: {error}"))?;
                user.map(|user| (user.uid.as_raw(), Some(user.gid.as_raw())))
            }
        };
        found.or(number.map(|number| (number, None))).ok_or_else(|| format!("there is no user {text}; write a number"))
    }

    fn group(&self, text: &str) -> Result<u32, String> {
        if let Ok(number) = text.parse() {
            return Ok(number);
        }
        let found = match self.root {
            Some(root) => entry(root, "etc/group", text, None).map(|fields| fields[0]),
            None => {
                let group = Group::from_name(text).map_err(|error| format!("cannot look up group {text}: {error}"))?;
                group.map(|group| group.gid.as_raw())
            }
        };
        found.ok_or_else(|| format!("there is no group {text}; write a number"))
    }
}

/// The numbers from the third field on of the line of a name or number, as in passwd(5) and group(5).
fn entry(root: &Path, file: &str, name: &str, number: Option<u32>) -> Option<Vec<u32>> {
    let text = fs::read_to_string(root.join(file)).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let named = fields.next()? == name;
        let numbers: Vec<u32> = fields.skip(1).map_while(|field| field.parse().ok()).collect();
        let first = *numbers.first()?;
        (named || Some(first) == number).then_some(numbers)
    })
}

//! The numbers of users and groups: from this machine's name service, or from a copy of another machine's files.
//!
//! The name service may be a directory on the network (nsswitch.conf(5)), and a question to it can take for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::unistd::{Group, Uid, User};

use crate::policy::local::LocalNames;

/// What was found about some names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Accounts {
    /// Users.
    pub users: BTreeMap<String, Looked>,
    /// Groups.
    pub groups: BTreeMap<String, Looked>,
}

/// What a look-up came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Looked {
    /// The account's number.
    Found(u32),
    /// There is no such account.
    Unknown,
    /// Nobody could tell, and why.
    Failed(String),
}

/// The files that name services begin with, for whoever watches them.
pub const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Looks the accounts up: by this machine's name service when `root` is "/", else in the etc/passwd and etc/group below it.
/// Takes as long as the name service does.
pub fn look_up(root: &Path, names: &LocalNames) -> Accounts {
    if root == Path::new("/") {
        let user = |name: &str| looked(User::from_name(name).map(|user| user.map(|user| user.uid.as_raw())));
        let group = |name: &str| looked(Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw())));
        return Accounts { users: each(&names.users, user), groups: each(&names.groups, group) };
    }
    let from_file = |file: &str, names: &BTreeSet<String>| {
        let text = fs::read_to_string(root.join(file));
        each(names, |name| in_text(&text, name))
    };
    Accounts { users: from_file("etc/passwd", &names.users), groups: from_file("etc/group", &names.groups) }
}

/// So many questions that nobody answers are enough.
const MOST_WAITING: usize = 4;
/// How many threads wait for a name service.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// The same, but not for longer than `limit`: whatever is not known by then has failed. The thread that waits is left behind.
pub fn look_up_within(limit: Duration, root: &Path, names: &LocalNames) -> Accounts {
    ask(limit, root, names).unwrap_or_else(|why| Accounts {
        users: each(&names.users, |_| Looked::Failed(why.clone())),
        groups: each(&names.groups, |_| Looked::Failed(why.clone())),
    })
}

/// What this machine's name service calls a user, if it says so within `limit`. The thread that waits for it is left behind.
pub fn user_name_within(limit: Duration, uid: u32) -> Option<String> {
    within(limit, move || User::from_uid(Uid::from_raw(uid))).ok()?.ok()?.map(|user| user.name)
}

fn ask(limit: Duration, root: &Path, names: &LocalNames) -> Result<Accounts, String> {
    let (root, names) = (root.to_owned(), names.clone());
    within(limit, move || look_up(&root, &names))
}

/// What a thread of its own finds in that time.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    if WAITING.load(Ordering::Relaxed) >= MOST_WAITING {
        return Err("earlier questions have no answer yet".to_owned());
    }
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().name("accounts".to_owned()).spawn(move || {
        WAITING.fetch_add(1, Ordering::Relaxed);
        let found = work();
        WAITING.fetch_sub(1, Ordering::Relaxed);
        // Nobody may be waiting any more.
        let _ = sender.send(found);
    });
    spawned.map_err(|error| error.to_string())?;
    receiver.recv_timeout(limit).map_err(|_| format!("no answer within {} s", limit.as_secs_f32()))
}

/// The names of users in a file like passwd(5), by number.
pub(super) fn names_in(path: &Path) -> BTreeMap<u32, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    // Of two names with one id, the first is what others show, too.
    text.lines().rev().filter_map(user).collect()
}

/// The numbers of those that were found.
pub fn found(looked: &BTreeMap<String, Looked>) -> BTreeMap<String, u32> {
    let number = |(name, looked): (&String, &Looked)| match looked {
        Looked::Found(number) => Some((name.clone(), *number)),
        Looked::Unknown | Looked::Failed(_) => None,
    };
    looked.iter().filter_map(number).collect()
}

fn each(names: &BTreeSet<String>, look: impl Fn(&str) -> Looked) -> BTreeMap<String, Looked> {
    names.iter().map(|name| (name.clone(), look(name))).collect()
}

/// getpwnam_r(3) has as many ways to say "there is no such user" as to fail, and tells them apart by errors that mean either: only
/// an answer without an error is one.
fn looked(answer: nix::Result<Option<u32>>) -> Looked {
    match answer {
        Ok(Some(number)) => Looked::Found(number),
        Ok(None) => Looked::Unknown,
        Err(error) => Looked::Failed(error.to_string()),
    }
}

/// The third field of the line that begins with the name, as in passwd(5) and group(5).
fn in_text(text: &io::Result<String>, name: &str) -> Looked {
    let text = match text {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Looked::Unknown,
        Err(error) => return Looked::Failed(error.to_string()),
    };
    let number = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    };
    text.lines().find_map(number).map_or(Looked::Unknown, Looked::Found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(users: &[&str], groups: &[&str]) -> LocalNames {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        LocalNames { users: set(users), groups: set(groups), ..LocalNames::default() }
    }

    #[test]
    fn this_machine_knows_root_and_nobody_else_of_this_name() {
        let found =
            look_up_within(Duration::from_secs(20), Path::new("/"), &names(&["root", "nw no such user"], &["root"]));
        assert_eq!(found.users["root"], Looked::Found(0));
        assert_ne!(found.users["nw no such user"], Looked::Found(0));
        assert_eq!(found.groups["root"], Looked::Found(0));
    }

    #[test]
    fn another_machine_is_its_files() {
        let root = tempfile::tempdir().unwrap();
        let wanted = names(&["slurm", "root", "rot"], &["render", "root"]);
        let nothing = look_up(root.path(), &wanted);
        assert!(nothing.users.values().chain(nothing.groups.values()).all(|looked| *looked == Looked::Unknown));

        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\n+::::::\nbad\nslurm:x:64030:64030:a:b:c\nslurm:x:1:1:again::\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        fs::write(root.path().join("etc/group"), "render:x:105:\nroot:x:none:\n").unwrap();
        let found = look_up(root.path(), &wanted);
        let users: Vec<&Looked> = found.users.values().collect();
        assert_eq!(users, [&Looked::Found(0), &Looked::Unknown, &Looked::Found(64030)]);
        assert_eq!(found.groups["render"], Looked::Found(105));
        assert_eq!(found.groups["root"], Looked::Unknown, "a number that is none");
    }

    #[test]
    fn a_name_service_that_cannot_be_asked_is_no_answer() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/passwd")).unwrap();
        let found = look_up(root.path(), &names(&["root"], &[]));
        assert!(matches!(found.users["root"], Looked::Failed(_)), "{found:?}");
    }

    #[test]
    fn a_look_up_that_hangs_is_over_in_time() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        // Opening it waits for a writer, for ever.
        nix::unistd::mkfifo(&root.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = look_up_within(Duration::from_millis(100), root.path(), &names(&["root"], &["root"]));
        assert!(matches!(found.users["root"], Looked::Failed(_)), "{found:?}");
        // Lets the thread end.
        fs::OpenOptions::new().write(true).open(root.path().join("etc/passwd")).unwrap();
    }
}

//! The accounts and units that the policy names, as facts of this node: looked up off the loop, before the policy that names them is
//! judged, and followed from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::documents::Documents;
use super::requests::Fetched;
use super::{Daemon, Input, Received, Work};
use crate::host::accounts::{self, Accounts, Looked};
use crate::host::cgroup::Scan;
use crate::host::{CgroupWatch, Scanner};
use crate::net::facts::{Cgroup, Facts};
use crate::policy::local::LocalNames;

/// A policy does not wait longer for a name service; what is not known by then counts as unknown, or as it last was.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Names that nobody knows are asked for again after this time: a directory service may not be there yet.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// A unit that is restarted goes and comes.
const UNITS_SETTLE: Duration = Duration::from_millis(5);
/// Where not every directory can be watched, all are looked at after this time.
const SCAN_AGAIN: Duration = Duration::from_secs(10);

/// What is known.
#[derive(Default)]
pub(super) struct Local {
    /// The names that matter.
    names: LocalNames,
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
    units: BTreeMap<String, BTreeSet<Cgroup>>,
    pub(super) watch: Option<CgroupWatch>,
    /// Whether there was a look, so that what is missing is not there.
    looked: bool,
    scanning: Work,
    pub(super) scan_at: Option<Instant>,
    pub(super) ask_at: Option<Instant>,
    /// What was last complained about, so that it is said once.
    troubles: BTreeSet<String>,
    incomplete: Option<String>,
}

/// What waits for a look.
pub(super) enum Next {
    /// Documents that were loaded.
    Documents(Box<Documents>),
    /// What an order of somebody needs.
    Order(u64, String, Fetched),
    /// Nothing: it is for those in force.
    Facts,
}

/// What a look came to.
pub(super) struct Look {
    names: LocalNames,
    accounts: Accounts,
    scan: Option<Scan>,
    next: Next,
}

impl Next {
    fn names(&self) -> LocalNames {
        match self {
            Self::Documents(documents) | Self::Order(_, _, Fetched::Documents { documents, .. }) => {
                LocalNames::of(&documents.policy)
            }
            Self::Order(_, _, Fetched::Version(Ok(version))) => LocalNames::of(&version.policy),
            Self::Order(_, _, Fetched::Version(Err(_))) | Self::Facts => LocalNames::default(),
        }
    }
}

impl Local {
    /// Whether facts without what is here would be wrong.
    pub(super) fn is_known(&self) -> bool {
        self.looked
    }

    /// Adds what is known.
    pub(super) fn add_to(&self, facts: &mut Facts) {
        facts.users.clone_from(&self.users);
        facts.groups.clone_from(&self.groups);
        facts.units = self.names.units.iter().map(|unit| (unit.clone(), BTreeSet::new())).collect();
        facts.units.extend(self.units.clone());
    }

    /// The files that, changed, are a reason to ask again.
    pub(super) fn files(&self, root: &Path) -> Vec<PathBuf> {
        let wanted = accounts::FILES.iter().filter(|_| self.names.has_accounts());
        wanted.map(|file| root.join(file.trim_start_matches('/'))).collect()
    }

    /// The directories are watched from the first unit on that a policy names.
    fn scanner(&mut self, root: &Path, names: &LocalNames) -> Option<Scanner> {
        if self.watch.is_none() && !names.units.is_empty() {
            match CgroupWatch::open(root) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => tracing::error!("cannot watch control groups by inotify: {error}; `units` match nothing"),
            }
        }
        self.watch.as_ref().map(CgroupWatch::scanner)
    }

    /// Takes in what a look came to; `names` are those that matter now.
    fn take(&mut self, names: LocalNames, looked: &LocalNames, accounts: &Accounts, scan: Option<Scan>) {
        let mut troubles = BTreeSet::new();
        let mut merge = |kind: &str, known: &mut BTreeMap<String, u32>, found: &BTreeMap<String, Looked>| -> bool {
            for (name, looked) in found {
                match looked {
                    Looked::Found(number) => drop(known.insert(name.clone(), *number)),
                    Looked::Unknown => drop(known.remove(name)),
                    // What it was last is more likely than nothing.
                    Looked::Failed(why) => drop(troubles.insert(format!("cannot look up {kind} \"{name}\": {why}"))),
                }
            }
            found.keys().any(|name| !known.contains_key(name))
        };
        let unknown_user = merge("user", &mut self.users, &accounts.users);
        let unknown_group = merge("group", &mut self.groups, &accounts.groups);
        self.names = names;
        self.users.retain(|name, _| self.names.users.contains(name));
        self.groups.retain(|name, _| self.names.groups.contains(name));
        let again = unknown_user || unknown_group || !troubles.is_empty();
        self.ask_at = again.then(|| Instant::now() + ASK_AGAIN);
        if let Some(scan) = scan {
            self.scanned(looked, scan);
        }
        for trouble in troubles.difference(&self.troubles) {
            tracing::warn!("{trouble}");
        }
        (self.troubles, self.looked) = (troubles, true);
    }

    /// Takes in what a scan for the units of `looked` found.
    fn scanned(&mut self, looked: &LocalNames, scan: Scan) {
        let Scan { units, incomplete } = scan;
        for unit in &looked.units {
            if self.units.get(unit) != units.get(unit) {
                tracing::debug!(unit = unit.as_str(), "unit {unit} has the control groups {:?}", units.get(unit));
            }
        }
        self.units.retain(|unit, _| self.names.units.contains(unit) && !looked.units.contains(unit));
        self.units.extend(units.into_iter().filter(|(unit, _)| self.names.units.contains(unit)));
        if !self.names.units.is_subset(&looked.units) {
            self.scan_at = Some(Instant::now());
        } else if incomplete.is_some() {
            self.scan_at.get_or_insert(Instant::now() + SCAN_AGAIN);
        }
        if let Some(why) = incomplete.as_ref().filter(|_| incomplete != self.incomplete) {
            tracing::warn!("{why}; `units` may match too little");
        }
        self.incomplete = incomplete;
    }
}

/// Waits until a wanted unit may have started or stopped.
pub(super) async fn changed(watch: &mut Option<CgroupWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => future::pending().await,
    }
}

impl Daemon {
    /// Goes on with `next` once the accounts and units that it names, and those of what is in force, are known.
    pub(super) fn look_up(&mut self, next: Next) -> Received {
        let mut names = self.state.local_names();
        names.add(next.names());
        if names == LocalNames::default() && self.local.watch.is_none() {
            self.local.take(names.clone(), &names, &Accounts::default(), None);
            return self.go_on(next);
        }
        let scanner = self.local.scanner(&self.options.root, &names);
        let (root, inbox) = (self.options.root.clone(), self.inbox.clone());
        tokio::task::spawn_blocking(move || {
            let scan = scanner.map(|scanner| scanner.scan(&names.units));
            let accounts = if names.has_accounts() {
                accounts::look_up_within(ANSWER_TIME, &root, &names)
            } else {
                Accounts::default()
            };
            let _ = inbox.send(Input::Looked(Box::new(Look { names, accounts, scan, next })));
        });
        Received::Nothing
    }

    pub(super) fn looked(&mut self, look: Look) -> Received {
        let Look { names: asked, accounts, scan, next } = look;
        // What is in force may have changed since it was asked.
        let mut names = self.state.local_names();
        names.add(next.names());
        let before = (self.local.users.clone(), self.local.groups.clone());
        self.local.take(names, &asked, &accounts, scan);
        self.tell_facts();
        if matches!(next, Next::Facts) && before != (self.local.users.clone(), self.local.groups.clone()) {
            // What was said about names that nobody knew is out of date.
            self.load();
        }
        self.go_on(next)
    }

    fn go_on(&mut self, next: Next) -> Received {
        match next {
            Next::Documents(documents) => {
                self.loaded(*documents);
                return Received::Documents;
            }
            Next::Order(order, by, fetched) => self.fetched(order, by, fetched),
            Next::Facts => {}
        }
        Received::Nothing
    }

    /// A unit may have started or stopped.
    pub(super) fn units_changed(&mut self) {
        let soon = Instant::now() + UNITS_SETTLE;
        self.local.scan_at = Some(self.local.scan_at.map_or(soon, |at| at.min(soon)));
    }

    /// Looks for the units again.
    pub(super) fn scan(&mut self) {
        self.local.scan_at = None;
        let Some(scanner) = self.local.watch.as_ref().map(CgroupWatch::scanner) else { return };
        if !self.local.scanning.begin() {
            return;
        }
        let (names, inbox) = (self.local.names.clone(), self.inbox.clone());
        tokio::task::spawn_blocking(move || {
            let scan = scanner.scan(&names.units);
            let _ = inbox.send(Input::Scanned(names, scan));
        });
    }

    pub(super) fn scanned(&mut self, looked: &LocalNames, scan: Scan) {
        // One that was told of more names meanwhile counts, and asks for another scan by itself.
        let again = self.local.scanning.end();
        self.local.scanned(looked, scan);
        self.tell_facts();
        if again {
            self.scan();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(users: &[&str], units: &[&str]) -> LocalNames {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        LocalNames { users: set(users), units: set(units), ..LocalNames::default() }
    }

    fn users(found: &[(&str, Looked)]) -> Accounts {
        let users = found.iter().map(|(name, looked)| ((*name).to_owned(), looked.clone())).collect();
        Accounts { users, ..Accounts::default() }
    }

    fn scan(found: &[(&str, u64)]) -> Scan {
        let units = found.iter().map(|(unit, id)| ((*unit).to_owned(), [Cgroup { level: 2, id: *id }].into()));
        Scan { units: units.collect(), incomplete: None }
    }

    /// Users and units as the policy sees them, in one line.
    fn facts(local: &Local) -> String {
        let mut facts = Facts::default();
        local.add_to(&mut facts);
        let users = facts.users.into_iter().map(|(user, number)| format!("{user}={number}"));
        let ids = |cgroups: BTreeSet<Cgroup>| cgroups.into_iter().map(|cgroup| cgroup.id).collect::<Vec<_>>();
        let units = facts.units.into_iter().map(|(unit, cgroups)| format!("{unit}={:?}", ids(cgroups)));
        users.chain(units).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_name_service_that_fails_changes_no_number_and_is_asked_again() {
        let (mut local, wanted) = (Local::default(), names(&["a", "b"], &[]));
        assert!(!local.is_known());
        local.take(wanted.clone(), &wanted, &users(&[("a", Looked::Found(7)), ("b", Looked::Unknown)]), None);
        assert!(local.is_known() && local.ask_at.is_some(), "b may come");
        local.take(wanted.clone(), &wanted, &users(&[("a", Looked::Found(8)), ("b", Looked::Found(9))]), None);
        assert!(local.ask_at.is_none());
        let failed = || Looked::Failed("no answer".to_owned());
        local.take(wanted.clone(), &wanted, &users(&[("a", failed()), ("b", failed())]), None);
        assert_eq!(facts(&local), "a=8 b=9");
        assert!(local.ask_at.is_some());
        local.take(wanted.clone(), &wanted, &users(&[("a", Looked::Unknown), ("b", Looked::Found(9))]), None);
        assert_eq!(facts(&local), "b=9", "an account that is gone");
        let other = names(&["c"], &[]);
        local.take(other.clone(), &other, &users(&[("c", Looked::Found(1))]), None);
        assert_eq!(facts(&local), "c=1", "nobody wants the others any more");
    }

    #[test]
    fn units_have_the_control_groups_of_the_newest_scan_that_looked_for_them() {
        let (mut local, wanted) = (Local::default(), names(&[], &["a.service", "b.service"]));
        let only = names(&[], &["a.service"]);
        local.take(wanted.clone(), &wanted, &Accounts::default(), Some(scan(&[("a.service", 1)])));
        assert_eq!(facts(&local), "a.service=[1] b.service=[]");
        assert!(local.scan_at.is_none());
        local.scanned(&wanted, scan(&[("b.service", 2)]));
        assert_eq!(facts(&local), "a.service=[] b.service=[2]");
        // One that began before the newest names were known.
        local.scanned(&only, scan(&[("a.service", 3)]));
        assert_eq!(facts(&local), "a.service=[3] b.service=[2]");
        assert!(local.scan_at.is_some(), "another look, as b is not watched now");
    }

    #[test]
    fn where_not_everything_can_be_watched_it_is_looked_at_again() {
        let (mut local, wanted) = (Local::default(), names(&[], &["a.service"]));
        let incomplete = Some("too many".to_owned());
        local.take(wanted.clone(), &wanted, &Accounts::default(), Some(Scan { incomplete, ..Scan::default() }));
        assert!(local.scan_at.is_some_and(|at| at > Instant::now()));
    }
}

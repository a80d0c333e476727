//! Who on this host has a socket: by sock_diag(7) its user and control group, by those its unit or pod, and by /proc its process.
//!
//! A flood of connections must not become a flood of looks into /proc. Which socket a flow has, and in which control group, is asked each
//! time, as the kernel answers that in microseconds. The name of the process comes without a look at its files where all processes of the
//! control group have one name, or where the socket that listens is known; else it is looked for with what is left of a
//! number of looks for each second, and when nothing is left, the process is not known.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::ask::Asker;
use super::cgroup_paths::CgroupPaths;
use super::diag::{self, Held};
use super::{accounts, cgroup, processes, sysfs};
use crate::net::listener::Home;
use crate::net::protocol::Protocol;
use crate::traffic::Actor;

/// Looks owners up, and remembers what it found.
pub struct Owners {
    asker: Asker,
    root: PathBuf,
    paths: CgroupPaths,
    users: Users,
    looks: Looks,
    /// Where the processes of a control group belong.
    homes: Cache<u64, Home>,
    /// The processes of a control group; of all of them where the kernel tells no control groups.
    members: Cache<Option<u64>, Arc<Members>>,
    /// Who has a socket, by control group and inode.
    holders: Cache<(Option<u64>, u64), Holder>,
    /// The namespace and name of pods, by UID.
    pods: BTreeMap<String, (String, String)>,
}

/// How many answers of a kind are remembered.
const MOST_REMEMBERED: usize = 4096;
/// A control group does not move. Its pod may get its name late.
const HOME_HOLDS: Duration = Duration::from_secs(30);
/// Processes come and go.
const MEMBERS_HOLD: Duration = Duration::from_secs(1);
/// A socket may be handed to another process, which is rare.
const HOLDER_HOLDS: Duration = Duration::from_secs(30);
/// How many processes of one control group are asked for their names.
const MOST_NAMES: usize = 256;
/// How many processes are looked through for a socket.
const MOST_PROCESSES: usize = 4096;
/// How many open files of one process are looked at.
const MOST_FILES: usize = 2048;

impl Owners {
    /// Looks into the network namespace of the calling thread, and for processes, control groups and accounts below `root`.
    ///
    /// # Errors
    /// When the kernel cannot be asked about sockets.
    pub fn open(root: &Path) -> io::Result<Self> {
        Ok(Self {
            asker: Asker::open(NETLINK_SOCK_DIAG)?,
            root: root.to_owned(),
            paths: CgroupPaths::new(cgroup::find(root)),
            users: Users::new(root),
            looks: Looks::default(),
            homes: Cache::new(HOME_HOLDS),
            members: Cache::new(MEMBERS_HOLD),
            holders: Cache::new(HOLDER_HOLDS),
            pods: BTreeMap::new(),
        })
    }

    /// Who has the socket of a flow with these ends, or would get a packet with them: whoever has the connection, else whoever listens
    /// there. Only of TCP and UDP. `None` where nobody on this host does, and where nobody can tell: the kernel does not know whose
    /// a connection was that is over, and finds no TCP connection between link-local addresses.
    pub fn of_flow(&mut self, protocol: Protocol, local: (IpAddr, u16), remote: (IpAddr, u16)) -> Option<Actor> {
        self.of_flow_at(Instant::now(), protocol, local, remote)
    }

    /// The same at a time by which what is remembered grows old.
    pub fn of_flow_at(
        &mut self,
        now: Instant,
        protocol: Protocol,
        local: (IpAddr, u16),
        remote: (IpAddr, u16),
    ) -> Option<Actor> {
        if !matches!(protocol, Protocol::TCP | Protocol::UDP) {
            return None;
        }
        self.looks.refill(now);
        let mut held = self.ask(protocol, local, remote)?;
        if !held.whole {
            held = self.listening(protocol, local)?;
        }
        let holder = self.holder(now, protocol, local, held);
        let home = match held.cgroup.map(|id| self.home(now, id)) {
            // A process may be elsewhere in systemd's own hierarchy, where that is another one.
            Some(home) if home.unit.is_some() || home.pod.is_some() => home,
            _ => holder.home,
        };
        let pod = home.pod.map(|pod| pod.name.map_or(pod.uid, |(namespace, name)| format!("{namespace}/{name}")));
        Some(Actor { process: holder.process, unit: home.unit, pod, user: Some(self.users.name(now, held.uid)) })
    }

    fn ask(&mut self, protocol: Protocol, local: (IpAddr, u16), remote: (IpAddr, u16)) -> Option<Held> {
        // One question finds sockets of IPv6 that take IPv4 as well; an address of IPv4 in IPv6's clothes is one of IPv4 here.
        let plain = |(address, port): (IpAddr, u16)| (address.to_canonical(), port);
        diag::of_flow(&mut self.asker, protocol, plain(local), plain(remote)).ok().flatten()
    }

    /// The socket that listens there.
    fn listening(&mut self, protocol: Protocol, local: (IpAddr, u16)) -> Option<Held> {
        let nobody = if local.0.to_canonical().is_ipv4() {
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        self.ask(protocol, local, (nobody, 0)).filter(|held| held.whole)
    }

    /// Where the processes of a control group belong.
    fn home(&mut self, now: Instant, id: u64) -> Home {
        if let Some(home) = self.homes.get(&id, now) {
            return home.clone();
        }
        let may_walk = self.paths.may_walk(now);
        let mut home = match self.paths.find(id, now) {
            Some((_, path)) => processes::of_path(&path.to_string_lossy()),
            // It is looked for later.
            None if !may_walk => return Home::default(),
            None => Home::default(),
        };
        if let Some(pod) = &mut home.pod {
            if !self.pods.contains_key(&pod.uid) {
                self.pods = processes::pods(&self.root.join("var/log/pods"));
            }
            pod.name = self.pods.get(&pod.uid).cloned();
        }
        self.homes.put(id, home.clone(), now);
        home
    }

    /// The process that has a socket.
    fn holder(&mut self, now: Instant, protocol: Protocol, local: (IpAddr, u16), held: Held) -> Holder {
        let key = (held.cgroup, held.inode);
        let known = |owners: &mut Self, key| owners.holders.get(key, now).cloned();
        if held.inode != 0
            && let Some(holder) = known(self, &key)
        {
            return holder;
        }
        let Some(members) = self.members(now, held.cgroup) else { return Holder::default() };
        // In the root of the hierarchy is whatever nobody put anywhere.
        if let Some(name) = members.one_name.clone() {
            return Holder { process: name, home: Home::default() };
        }
        // Each connection that is accepted has another inode, and whoever listens has one.
        let mut key = key;
        if let Some(listener) = self.listening(protocol, local).filter(|listener| listener.cgroup == held.cgroup) {
            key = (listener.cgroup, listener.inode);
            if let Some(holder) = known(self, &key) {
                return holder;
            }
        }
        if key.1 == 0 {
            return Holder::default();
        }
        let Some(found) = self.search(key.1, &members.pids) else {
            // Nothing is left of this second's looks.
            return Holder::default();
        };
        let holder = found.map_or_else(Holder::default, |pid| self.process(pid));
        self.holders.put(key, holder.clone(), now);
        holder
    }

    /// The processes of a control group; `None` where nobody knows (yet) where it is.
    fn members(&mut self, now: Instant, cgroup: Option<u64>) -> Option<Arc<Members>> {
        if let Some(members) = self.members.get(&cgroup, now) {
            return Some(Arc::clone(members));
        }
        let directory =
            cgroup.map(|id| self.paths.find(id, now).map(|(directory, path)| (directory, path == Path::new(""))));
        let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let (pids, everybody): (Vec<u32>, bool) = match directory {
            Some(Some((directory, root))) => {
                let text = text(directory.join("cgroup.procs"));
                (text.lines().filter_map(|line| line.parse().ok()).take(MOST_PROCESSES).collect(), root)
            }
            Some(None) => return None,
            None => {
                let names = sysfs::names(&self.root.join("proc"));
                (names.iter().filter_map(|name| name.parse().ok()).take(MOST_PROCESSES).collect(), true)
            }
        };
        let mut one_name = None;
        if !everybody && pids.len() <= MOST_NAMES {
            for pid in &pids {
                let name = self.looks.take().then(|| self.name(*pid)).filter(|name| !name.is_empty());
                match (&one_name, name) {
                    (None, Some(name)) => one_name = Some(name),
                    (Some(known), Some(name)) if *known == name => {}
                    _ => {
                        one_name = None;
                        break;
                    }
                }
            }
        }
        let members = Arc::new(Members { pids, one_name });
        self.members.put(cgroup, Arc::clone(&members), now);
        Some(members)
    }

    /// Which of these processes has a socket open: `None` where that would be too many looks.
    fn search(&mut self, inode: u64, pids: &[u32]) -> Option<Option<u32>> {
        for pid in pids {
            if !self.looks.take() {
                return None;
            }
            let files = self.root.join("proc").join(pid.to_string()).join("fd");
            for entry in fs::read_dir(files).into_iter().flatten().flatten().take(MOST_FILES) {
                if !self.looks.take() {
                    return None;
                }
                let link = fs::read_link(entry.path()).ok();
                if link.as_deref().and_then(Path::to_str).and_then(processes::socket) == Some(inode) {
                    return Some(Some(*pid));
                }
            }
        }
        Some(None)
    }

    fn process(&self, pid: u32) -> Holder {
        let text = fs::read(self.root.join("proc").join(pid.to_string()).join("cgroup")).unwrap_or_default();
        let mut home = processes::home(&String::from_utf8_lossy(&text));
        if let Some(pod) = &mut home.pod {
            pod.name = self.pods.get(&pod.uid).cloned();
        }
        Holder { process: self.name(pid), home }
    }

    fn name(&self, pid: u32) -> String {
        let text = fs::read(self.root.join("proc").join(pid.to_string()).join("comm")).unwrap_or_default();
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }
}

/// The processes of a control group.
#[derive(Debug, Default)]
struct Members {
    /// Their ids; not all of too many.
    pids: Vec<u32>,
    /// The name that all of them have.
    one_name: Option<String>,
}

/// A process.
#[derive(Clone, Debug, Default)]
struct Holder {
    /// Its name; empty where it is not known.
    process: String,
    /// Where it belongs by its own account.
    home: Home,
}

/// How many files of /proc may still be looked at.
#[derive(Debug, Default)]
struct Looks {
    left: u32,
    refilled: Option<Instant>,
}

/// A look takes about two microseconds, so that this is a hundredth of a core.
const LOOKS_A_SECOND: u32 = 5000;

impl Looks {
    /// Whole seconds, so that nothing is lost in parts of them.
    fn refill(&mut self, now: Instant) {
        if self.refilled.is_none_or(|refilled| now.duration_since(refilled) >= Duration::from_secs(1)) {
            *self = Self { left: LOOKS_A_SECOND, refilled: Some(now) };
        }
    }

    fn take(&mut self) -> bool {
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// Answers that hold for a time; of too many, the oldest go.
#[derive(Debug)]
struct Cache<K, V> {
    holds: Duration,
    entries: HashMap<K, (V, Instant)>,
    /// Keys in the order in which they came.
    order: VecDeque<(K, Instant)>,
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    fn new(holds: Duration) -> Self {
        Self { holds, entries: HashMap::new(), order: VecDeque::new() }
    }

    fn get(&self, key: &K, now: Instant) -> Option<&V> {
        let (value, since) = self.entries.get(key)?;
        (now.duration_since(*since) < self.holds).then_some(value)
    }

    fn put(&mut self, key: K, value: V, now: Instant) {
        while let Some((oldest, since)) = self.order.front().copied()
            && (self.order.len() >= MOST_REMEMBERED || now.duration_since(since) >= self.holds)
        {
            self.order.pop_front();
            // It may have been put again since.
            if self.entries.get(&oldest).is_some_and(|(_, again)| *again == since) {
                self.entries.remove(&oldest);
            }
        }
        self.order.push_back((key, now));
        self.entries.insert(key, (value, now));
    }
}

/// The names of users.
#[derive(Debug)]
struct Users {
    passwd: PathBuf,
    /// Whether this machine's name service may be asked about those whom the file does not have.
    service: bool,
    names: BTreeMap<u32, String>,
    modified: Option<SystemTime>,
    looked: Option<Instant>,
    asked: Cache<u32, String>,
}

/// How often it is looked whether the file of users is another one.
const BETWEEN_FILES: Duration = Duration::from_secs(10);
/// How long an answer of the name service holds.
const NAME_HOLDS: Duration = Duration::from_secs(600);
/// The name service may be a directory on the network. Packets wait meanwhile.
const NAME_PATIENCE: Duration = Duration::from_millis(100);

impl Users {
    fn new(root: &Path) -> Self {
        Self {
            passwd: root.join("etc/passwd"),
            service: root == Path::new("/"),
            names: BTreeMap::new(),
            modified: None,
            looked: None,
            asked: Cache::new(NAME_HOLDS),
        }
    }

    /// The name, or the number where there is none.
    fn name(&mut self, now: Instant, uid: u32) -> String {
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= BETWEEN_FILES) {
            self.looked = Some(now);
            let modified = fs::metadata(&self.passwd).and_then(|metadata| metadata.modified()).ok();
            if modified != self.modified {
                self.modified = modified;
                self.names = accounts::names_in(&self.passwd);
            }
        }
        if let Some(name) = self.names.get(&uid).or_else(|| self.asked.get(&uid, now)) {
            return name.clone();
        }
        let asked = if self.service { accounts::user_name_within(NAME_PATIENCE, uid) } else { None };
        let name = asked.unwrap_or_else(|| uid.to_string());
        self.asked.put(uid, name.clone(), now);
        name
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_remembered_grows_old_and_is_never_too_much() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut cache = Cache::new(Duration::from_secs(30));
        cache.put(1_u64, "one", at(0));
        cache.put(1, "another", at(20));
        assert_eq!([at(49), at(50)].map(|now| cache.get(&1, now).copied()), [Some("another"), None]);
        cache.put(2, "two", at(31));
        assert_eq!(cache.get(&1, at(31)), Some(&"another"), "the first went, not the second");
        for key in 0..3 * MOST_REMEMBERED as u64 {
            cache.put(key, "many", at(40));
        }
        assert!(cache.entries.len() <= MOST_REMEMBERED && cache.order.len() <= MOST_REMEMBERED);
        assert_eq!(cache.get(&(3 * MOST_REMEMBERED as u64 - 1), at(40)), Some(&"many"));
        cache.put(7, "late", at(100));
        assert_eq!(cache.entries.len(), 1);
    }

    #[test]
    fn looks_are_so_many_for_each_second() {
        let start = Instant::now();
        let mut looks = Looks::default();
        let mut all = |now| {
            looks.refill(now);
            std::iter::repeat_with(|| looks.take()).take_while(|may| *may).count()
        };
        assert_eq!(all(start), LOOKS_A_SECOND as usize);
        assert_eq!(all(start + Duration::from_millis(999)), 0);
        assert_eq!(all(start + Duration::from_secs(1)), LOOKS_A_SECOND as usize);
    }

    #[test]
    fn users_have_names_from_the_file_and_numbers_without() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let start = Instant::now();
        let mut users = Users::new(root.path());
        assert_eq!(users.name(start, 1000), "1000");
        fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nslurm:x:1000:1000::/:/bin/sh\n").unwrap();
        assert_eq!(users.name(start, 0), "0", "it was looked just now");
        assert_eq!(users.name(start + BETWEEN_FILES, 1000), "slurm");
    }
}

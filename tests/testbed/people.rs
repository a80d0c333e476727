//! Processes of several users, groups and control groups on the node: each a pair of raw sockets made with their credentials.
//!
//! `meta skuid` reads the file system user of the thread that made the socket (kernel nft_meta.c: `f_cred->fsuid`), which a
//! thread can change for itself; `socket cgroupv2` the control group of the process that made it (`sk_cgrp_data`).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, sendto, setsockopt,
    socket, sockopt,
};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use nodewall::net::facts::Cgroup;
use nodewall::policy::effective::ProcessMatch;
use nodewall::simulate::Socket;

/// How many levels of control groups there are, and how many groups on each.
pub const LEVELS: usize = 4;
pub const GROUPS: usize = 6;

/// Control groups for the test: on each level the groups of the generated policies.
pub struct Cgroups {
    /// By level, from 1, and number.
    made: Vec<Vec<(PathBuf, Cgroup)>>,
    /// Where this process belongs.
    home: PathBuf,
}

impl Cgroups {
    /// Makes them, or says why it cannot.
    pub fn make() -> std::io::Result<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(PathBuf::from)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())
            .ok_or_else(|| std::io::Error::other("no unified hierarchy of control groups"))?;
        let mine = fs::read_to_string("/proc/self/cgroup")?;
        let path = mine.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let mut all = Self { made: vec![Vec::new(); LEVELS], home: root.join(path) };
        for group in 0..GROUPS {
            let mut path = root.join(format!("nodewall-oracle-{}-{group}", std::process::id()));
            for level in 0..LEVELS {
                fs::create_dir(&path)?;
                let cgroup = Cgroup { level: level as u8 + 1, id: fs::metadata(&path)?.ino() };
                all.made[level].push((path.clone(), cgroup));
                path = path.join("below");
            }
        }
        Ok(all)
    }

    /// The control group of a level, from 1, and a number.
    pub fn get(&self, level: u8, group: usize) -> Cgroup {
        self.made[usize::from(level) - 1][group].1
    }

    /// Runs `work` with this process in a control group.
    fn inside<R>(&self, level: u8, group: usize, work: impl FnOnce() -> R) -> R {
        enter(&self.made[usize::from(level) - 1][group].0).expect("a control group of our own");
        let result = work();
        enter(&self.home).expect("the control group where we began");
        result
    }
}

fn enter(group: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(group.join("cgroup.procs"))?.write_all(b"0")
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for level in self.made.iter().rev() {
            for (path, _) in level {
                let _ = fs::remove_dir(path);
            }
        }
    }
}

/// A process that sends.
pub struct Person {
    /// As rules see it.
    pub socket: Socket,
    v4: OwnedFd,
    v6: OwnedFd,
}

/// A few of them, and the control groups in which they are.
pub struct People {
    /// The control groups, if there could be any.
    pub cgroups: Option<Cgroups>,
    /// The people.
    pub all: Vec<Person>,
}

/// How many people there are.
pub const PEOPLE: usize = 24;

impl People {
    /// Makes them, in the network namespace of this thread.
    pub fn make() -> Self {
        let cgroups = match Cgroups::make() {
            Ok(cgroups) => Some(cgroups),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no control groups: {error}");
                println!("SKIPPED control groups: {error}");
                None
            }
        };
        // Users and groups from 0 to 6 as in the policies, control groups of each depth, and some in none of ours.
        let all = (0..PEOPLE)
            .map(|number| {
                let (uid, gid) = ((number % 7) as u32, (number / 3 % 7) as u32);
                let (depth, group) = ((number % (LEVELS + 1)) as u8, number / 5 % GROUPS);
                let sockets = || as_user(uid, gid, || (raw(AddressFamily::Inet), raw(AddressFamily::Inet6)));
                let (v4, v6) = match &cgroups {
                    Some(cgroups) if depth > 0 => cgroups.inside(depth, group, sockets),
                    _ => sockets(),
                };
                let within = cgroups
                    .as_ref()
                    .map_or_else(BTreeSet::new, |cgroups| (1..=depth).map(|level| cgroups.get(level, group)).collect());
                Person { socket: Socket { uid, gid, cgroups: within }, v4, v6 }
            })
            .collect();
        Self { cgroups, all }
    }
}

/// Runs `work` as another user and group, as far as files and sockets of this thread go.
fn as_user<R>(uid: u32, gid: u32, work: impl FnOnce() -> R) -> R {
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    let result = work();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    result
}

/// A raw socket that is given whole packets (raw(7): `IPPROTO_RAW` implies `IP_HDRINCL`; ipv6(7) likewise).
fn raw(family: AddressFamily) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Raw, flags, SockProtocol::Raw).expect("a raw socket");
    if family == AddressFamily::Inet {
        setsockopt(&socket, sockopt::Broadcast, &true).expect("leave to send to everybody");
    }
    socket
}

impl Person {
    /// Whether a rule for some processes is for this one.
    pub fn is(&self, process: &ProcessMatch) -> bool {
        let Socket { uid, gid, cgroups } = &self.socket;
        process.users.as_ref().is_none_or(|users| users.contains(*uid))
            && process.groups.as_ref().is_none_or(|groups| groups.contains(*gid))
            && process.units.as_ref().is_none_or(|units| !units.cgroups.is_disjoint(cgroups))
    }

    /// Sends a whole packet by a link, with a packet mark.
    pub fn send(&self, link: (&str, u32), mark: u32, to: IpAddr, packet: &[u8]) -> Result<(), Errno> {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        through(socket, link.0, mark)?;
        sendto(socket.as_raw_fd(), packet, &end(to, 0, link.1), MsgFlags::empty()).map(drop)
    }

    /// Sends from an ordinary socket: a datagram, or the first packet of a connection, which is given up at once.
    pub fn talk(
        &self,
        link: (&str, u32),
        mark: u32,
        tcp: bool,
        from: u16,
        (to, port): (IpAddr, u16),
    ) -> Result<(), Errno> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let kind = if tcp { SockType::Stream } else { SockType::Datagram };
        let Socket { uid, gid, .. } = self.socket;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // As for the control group, one in which this process is now: none of ours.
        let socket: OwnedFd = as_user(uid, gid, || socket(family, kind, flags, None))?;
        if to.is_ipv4() && !tcp {
            setsockopt(&socket, sockopt::Broadcast, &true)?;
        }
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        through(&socket, link.0, mark)?;
        let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
        bind(socket.as_raw_fd(), &end(any, from, 0))?;
        connect(socket.as_raw_fd(), &end(to, port, link.1))?;
        if !tcp {
            nix::sys::socket::send(socket.as_raw_fd(), b"nodewall", MsgFlags::empty())?;
        }
        Ok(())
    }
}

/// What a socket sends from now on leaves by a link, with a mark.
fn through(socket: &OwnedFd, link: &str, mark: u32) -> Result<(), Errno> {
    setsockopt(socket, sockopt::BindToDevice, &link.into())?;
    setsockopt(socket, sockopt::Mark, &mark)
}

fn end(address: IpAddr, port: u16, scope: u32) -> SockaddrStorage {
    match address {
        IpAddr::V4(address) => SocketAddr::from(SocketAddrV4::new(address, port)).into(),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() || address.is_multicast() { scope } else { 0 };
            SocketAddr::from(SocketAddrV6::new(address, port, 0, scope)).into()
        }
    }
}

//! Hosts that are network namespaces, wires that are veth pairs, servers, and probes that say what became of a packet.
//!
//! A host is an open namespace file: nothing has a name outside this process, and the kernel removes namespaces, links
//! and rules when the last file is closed, however the test ends.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::sh;

/// How long a probe waits for an answer. On one machine an answer takes well under a millisecond, so that this is for
/// busy processors only; it must stay below the second after which TCP tries again, or a lost packet would go unseen.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// How many probes are in the air at once.
const AT_ONCE: usize = 48;

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Arc<File>,
}

impl Host {
    /// A new host with loopback up, no duplicate address detection, and echo sockets for everyone.
    pub fn new() -> Self {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("the namespace's file")
        });
        let host = Self { namespace: Arc::new(namespace.join().expect("a thread")) };
        host.enter(|| {
            sh("ip link set lo up");
            for (name, value) in [
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv6/conf/default/router_solicitations", "0"),
                ("ipv4/ping_group_range", "0 2147483647"),
                // Rejections and refusals are answers that probes count on; the kernel limits how many it sends a second.
                ("ipv4/icmp_ratelimit", "0"),
                ("ipv4/icmp_msgs_per_sec", "1000000"),
                ("ipv6/icmp/ratelimit", "0"),
            ] {
                // Some are global on some kernels, and then they are not ours to set.
                let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
            }
        });
        host
    }

    /// The namespace of this thread.
    pub fn this() -> Self {
        Self { namespace: Arc::new(File::open("/proc/thread-self/ns/net").expect("the namespace's file")) }
    }

    /// Runs `work` on a thread inside the host; commands that it starts are inside too.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.step_into();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves this thread into the host.
    pub fn step_into(&self) {
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("the namespace is there");
    }

    /// Runs a shell command inside; it must succeed.
    pub fn sh(&self, command: &str) -> String {
        self.enter(|| sh(command))
    }

    /// A path that names the namespace to `ip link ... netns`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }
}

/// A wire between two hosts: the interface's name and its addresses with prefix lengths, at both ends.
pub fn wire(one: (&Host, &str, &[&str]), other: (&Host, &str, &[&str])) {
    one.0.sh(&format!("ip link add {} type veth peer name {} netns {}", one.1, other.1, other.0.path()));
    for (host, name, addresses) in [one, other] {
        let mut script = String::new();
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            script.push_str(&format!("ip addr add {address} dev {name} {nodad}\n"));
        }
        host.sh(&format!("{script}ip link set {name} up"));
    }
    // What is sent before the kernel has taken note of the carrier is lost.
    for (host, name, _) in [one, other] {
        for _ in 0..200 {
            if host.sh(&format!("ip -o link show {name}")).contains("state UP") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// Servers on every address of a host: UDP ports answer with what they got, TCP ports accept and close. They stop when
/// this is dropped.
#[derive(Debug)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Starts servers; they listen when this returns.
    pub fn serve(&self, tcp: &[u16], udp: &[u16]) -> Servers {
        let (tcp, udp): (Vec<TcpListener>, Vec<UdpSocket>) = self.enter(|| {
            // One socket per address, so that answers come from the address that was asked; "::" would take IPv4 too, and
            // answer from the interface's first address.
            let addresses = addresses();
            let ends = |ports: &[u16]| -> Vec<SocketAddr> {
                let end = |port| addresses.iter().map(move |address| SocketAddr::new(*address, port));
                ports.iter().copied().flat_map(end).collect()
            };
            let tcp = ends(tcp).into_iter().map(|end| TcpListener::bind(end).expect("a free TCP port")).collect();
            let udp = ends(udp).into_iter().map(|end| UdpSocket::bind(end).expect("a free UDP port")).collect();
            (tcp, udp)
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // Sockets stay in the namespace in which they were made, so that this thread may be anywhere.
        let thread = std::thread::spawn(move || serve(&tcp, &udp, &stopped));
        Servers { stop, thread: Some(thread) }
    }
}

/// The addresses of the namespace of this thread, link-local ones apart.
fn addresses() -> Vec<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().expect("the addresses of this namespace");
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|end| IpAddr::V4(end.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|end| IpAddr::V6(end.ip())))
    };
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    all.filter_map(|interface| interface.address.and_then(ip)).filter(|address| !is_link_local(address)).collect()
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(tcp: &[TcpListener], udp: &[UdpSocket], stop: &AtomicBool) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    for (index, listener) in tcp.iter().enumerate() {
        listener.set_nonblocking(true).expect("a socket");
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).expect("epoll");
    }
    for (index, socket) in udp.iter().enumerate() {
        socket.set_nonblocking(true).expect("a socket");
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, (tcp.len() + index) as u64)).expect("epoll");
    }
    let mut events = [EpollEvent::empty(); 32];
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let ready = epoll.wait(&mut events, EpollTimeout::from(20u8)).unwrap_or(0);
        for event in &events[..ready] {
            let index = event.data() as usize;
            if let Some(listener) = tcp.get(index) {
                while listener.accept().is_ok() {}
            } else {
                let socket = &udp[index - tcp.len()];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    // An answer that our own rules hold back is the prober's silence, and no trouble of the server's.
                    let _ = socket.send_to(&buffer[..length], peer);
                }
            }
        }
    }
}

/// What a probe sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A TCP connection to a port.
    Tcp(u16),
    /// A UDP datagram to a port, and its answer.
    Udp(u16),
    /// An ICMP or ICMPv6 echo request, by the family of the addresses.
    Echo,
}

/// One packet to try.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Where it is sent.
    pub from: Host,
    /// Its source address, one of that host's.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// What it is.
    pub what: What,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was answered by whom it was for.
    Allowed,
    /// Nothing came back.
    Denied,
    /// A reset, or an ICMP error; but a TCP connection that is answered by an ICMP error counts as denied: on a wire within
    /// one machine the error is there before `connect` has let go of the socket, and the kernel drops it (tcp_v4_err).
    Rejected,
}

impl Probe {
    /// Sends it from a thread that is inside already.
    fn send(&self, patience: Duration) -> io::Result<()> {
        let (kind, protocol) = match self.what {
            What::Tcp(_) => (SockType::Stream, None),
            What::Udp(_) => (SockType::Datagram, None),
            What::Echo if self.source.is_ipv4() => (SockType::Datagram, Some(SockProtocol::Icmp)),
            What::Echo => (SockType::Datagram, Some(SockProtocol::IcmpV6)),
        };
        let port = match self.what {
            What::Tcp(port) | What::Udp(port) => port,
            What::Echo => 0,
        };
        let family = if self.source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket: OwnedFd = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
        let limit = TimeVal::new(0, i64::from(patience.subsec_micros()));
        // The limit of sending is also that of a blocking connect (socket(7)).
        setsockopt(&socket, sockopt::SendTimeout, &limit)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(self.source, 0)))?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(self.destination, port)))?;
        if let What::Tcp(_) = self.what {
            return Ok(());
        }
        let socket = UdpSocket::from(socket);
        // Type 8 or 128, code 0; the kernel fills in checksum and identifier of an echo socket (icmp(7)).
        let (request, reply): (&[u8], Option<u8>) = match (self.what, self.source) {
            (What::Echo, IpAddr::V4(_)) => (&[8, 0, 0, 0, 0, 0, 0, 1], Some(0)),
            (What::Echo, IpAddr::V6(_)) => (&[128, 0, 0, 0, 0, 0, 0, 1], Some(129)),
            _ => (b"nodewall", None),
        };
        match socket.send(request) {
            // Held back by an output rule here; a rejection has left its error on the socket by now.
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {
                return Err(socket.take_error()?.unwrap_or(error));
            }
            sent => sent?,
        };
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        match reply {
            Some(reply) if answer[..length].first() != Some(&reply) => Err(ErrorKind::InvalidData.into()),
            _ => Ok(()),
        }
    }

    /// Sends it and waits.
    fn answer(&self, patience: Duration) -> Answer {
        match self.send(patience) {
            Ok(()) => Answer::Allowed,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // Silence; what a local output rule drops says EPERM at once.
                Some(Errno::EAGAIN | Errno::EINPROGRESS | Errno::ETIMEDOUT | Errno::EPERM) => Answer::Denied,
                Some(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::EACCES) => Answer::Rejected,
                _ => panic!("{:?} from {} to {}: {error}", self.what, self.source, self.destination),
            },
        }
    }
}

/// Sends all probes, many at once, and returns their answers in order.
pub fn probe(probes: &[Probe]) -> Vec<Answer> {
    let next = AtomicUsize::new(0);
    let mut answers: Vec<(usize, Answer)> = std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            while let Some((index, probe)) = Some(next.fetch_add(1, Ordering::Relaxed))
                .and_then(|index| probes.get(index).map(|probe| (index, probe)))
            {
                probe.from.step_into();
                done.push((index, probe.answer(PATIENCE)));
            }
            done
        };
        let threads: Vec<_> = (0..AT_ONCE.min(probes.len())).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    answers.sort_unstable_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

//! A node with something that listens, another host behind it that listens as well, and somebody on the wire who writes frames by hand
//! and reads what comes back.
#![allow(unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use nodewall::net::protocol::Protocol;
use socket2::{Domain, Socket, Type};

use super::frame::{ARP, IP, IPV6, Shot, ether};
use super::lab::net::{Host, wire};
use super::trick::Trick;

/// Where everything listens.
pub const PORT: u16 = 9999;
/// Who writes the frames; nobody's address, so that no stack answers what comes back.
pub const ATTACKERS: [&str; 2] = ["10.0.0.99", "fd00::99"];
/// How long nothing more has to come before it is taken for all: the last frame's answer is there by then.
const QUIET: Duration = Duration::from_millis(60);
/// What takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// For bursts of hundreds of packets.
const BUFFER: usize = 8 << 20;

/// Whose sockets are meant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The node's own.
    Node,
    /// Those of a host behind it.
    Behind,
}

/// What is tried: a family and a protocol.
pub type Target = (bool, Protocol);

/// Every target.
pub const TARGETS: [Target; 10] = [
    (true, Protocol::TCP),
    (false, Protocol::TCP),
    (true, Protocol::UDP),
    (false, Protocol::UDP),
    (true, Protocol::UDPLITE),
    (false, Protocol::UDPLITE),
    (true, Protocol::SCTP),
    (false, Protocol::SCTP),
    (true, Protocol::ICMP),
    (false, Protocol::ICMPV6),
];

/// How a packet was noticed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Noticed {
    /// TCP answered, or the echo came back.
    Answered,
    /// A connection was accepted.
    Accepted,
    /// A socket had something to read.
    Read,
}

/// By target and trick.
pub type Reached = BTreeMap<(Target, String), BTreeSet<Noticed>>;

/// Sockets that hear what comes to [`PORT`]; each takes both families where it can.
struct Ears {
    tcp: TcpListener,
    datagrams: [(Protocol, UdpSocket); 2],
    /// Sockets of a protocol that this kernel may not know otherwise.
    raw: [(bool, Socket); 2],
}

impl Ears {
    fn new(host: &Host) -> Self {
        host.enter(|| {
            let both: SocketAddr = SocketAddr::new("::".parse().unwrap(), PORT);
            let tcp = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            tcp.bind(&both.into()).unwrap();
            tcp.listen(4096).unwrap();
            tcp.set_nonblocking(true).unwrap();
            let datagrams = [Protocol::UDP, Protocol::UDPLITE].map(|protocol| {
                let number = socket2::Protocol::from(i32::from(protocol.0));
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(number)).unwrap();
                socket.bind(&both.into()).unwrap();
                socket.set_nonblocking(true).unwrap();
                setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).unwrap();
                (protocol, UdpSocket::from(socket))
            });
            let raw = [(true, Domain::IPV4), (false, Domain::IPV6)].map(|(v4, domain)| {
                let number = socket2::Protocol::from(i32::from(Protocol::SCTP.0));
                let socket = Socket::new(domain, Type::RAW, Some(number)).unwrap();
                socket.set_nonblocking(true).unwrap();
                setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).unwrap();
                (v4, socket)
            });
            Self { tcp: tcp.into(), datagrams, raw }
        })
    }
}

/// A salvo: the tricks by source port.
struct Salvo<'a> {
    base: u16,
    tricks: &'a [Trick],
    reached: Reached,
    /// What TCP's answers said: source port of the question, and the answer's sequence number.
    handshakes: BTreeMap<(bool, u16), u32>,
    streams: Vec<(Target, u16, TcpStream)>,
    heard_of: bool,
}

impl Salvo<'_> {
    /// The trick that was played from a port; what is late from a salvo before has another one.
    fn trick(&self, port: u16) -> Option<&Trick> {
        self.tricks.get(usize::from(port.checked_sub(self.base)?))
    }

    fn notice(&mut self, target: Target, port: u16, how: Noticed) {
        if let Some(name) = self.trick(port).map(|trick| trick.name.clone()) {
            self.reached.entry((target, name)).or_default().insert(how);
        }
    }
}

/// Whether a host does what source routes say. It does not unless somebody switches that on for all of its interfaces.
const ROUTES: [&str; 4] = [
    "ipv4/conf/NAME/accept_source_route",
    "ipv6/conf/NAME/accept_source_route",
    "ipv6/conf/NAME/seg6_enabled",
    "ipv6/conf/NAME/rpl_seg_enabled",
];

/// Sets files below /proc/sys/net, those of interfaces for all of them, as far as this kernel has them.
fn set(host: &Host, files: &[&str], value: &str) {
    host.enter(|| {
        for file in files {
            for name in ["all", "default", "rail0", "pod0", "eth0"] {
                let _ = std::fs::write(format!("/proc/sys/net/{}", file.replace("NAME", name)), value);
            }
        }
    });
}

pub struct Bench {
    pub node: Host,
    _peer: Host,
    behind: Host,
    ears: [Ears; 2],
    wire: OwnedFd,
    link: LinkAddr,
    macs: [u8; 12],
    next: u16,
    ident: u32,
}

impl Bench {
    pub fn new() -> Self {
        let [node, peer, behind] = std::array::from_fn(|_| Host::new());
        wire(
            (&node, "rail0", &["10.0.0.5/24", "10.0.0.6/24", "fd00::5/64", "fd00::6/64"]),
            (&peer, "eth0", &["10.0.0.1/24", "fd00::1/64"]),
        );
        wire((&node, "pod0", &["10.1.0.1/24", "fd01::1/64"]), (&behind, "eth0", &["10.1.0.7/24", "fd01::7/64"]));
        let (here, there) = (node.enter(|| link("rail0")), peer.enter(|| link("eth0")));
        let [to, from] = [here.addr().unwrap(), there.addr().unwrap()];
        let mac = from.map(|byte| format!("{byte:02x}")).join(":");
        for attacker in ATTACKERS {
            node.sh(&format!("ip neigh replace {attacker} lladdr {mac} dev rail0 nud permanent"));
        }
        behind.sh("ip route add default via 10.1.0.1; ip -6 route add default via fd01::1");
        node.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        // The kernel is to deliver as much as it can be made to, and to keep what waits for its other fragments.
        for host in [&node, &behind] {
            set(host, &["ipv4/conf/NAME/accept_local", "ipv4/conf/NAME/route_localnet"], "1");
            set(host, &["ipv4/conf/NAME/rp_filter", "ipv4/icmp_echo_ignore_broadcasts"], "0");
            set(host, &["ipv4/ipfrag_high_thresh", "ipv6/ip6frag_high_thresh"], "268435456");
            set(host, &["netfilter/nf_conntrack_frag6_high_thresh"], "268435456");
            // A server without cookies.
            set(host, &["ipv4/tcp_fastopen"], "1539");
            set(host, &ROUTES, "0");
        }
        let ears = [Ears::new(&node), Ears::new(&behind)];
        let wire = peer.enter(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap()
        });
        setsockopt(&wire, sockopt::RcvBufForce, &BUFFER).unwrap();
        // Frames that one processor takes arrive in order.
        let mine = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mut one = CpuSet::new();
        let first = (0..CpuSet::count()).find(|number| mine.is_set(*number).unwrap_or(false)).unwrap();
        one.set(first).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        let macs = [to, from].concat().try_into().unwrap();
        let mut bench = Self { node, _peer: peer, behind, ears, wire, link: there, macs, next: 10_000, ident: 1 };
        bench.meet();
        bench
    }

    /// Makes both hosts do what source routes say.
    pub fn follow_routes(&self) {
        for host in [&self.node, &self.behind] {
            set(host, &ROUTES, "1");
        }
    }

    /// Makes the node know who is behind it, as soon as the link has come up.
    fn meet(&mut self) {
        let (_, ear) = &self.ears[1].datagrams[0];
        let mut met = BTreeSet::new();
        let start = Instant::now();
        while met.len() < 2 {
            assert!(start.elapsed() < PATIENCE, "the host behind hears nothing");
            self.node.enter(|| {
                for (here, there) in [("10.1.0.1", "10.1.0.7"), ("fd01::1", "fd01::7")] {
                    let mouth = UdpSocket::bind(SocketAddr::new(here.parse().unwrap(), 0)).unwrap();
                    // Until the link is up there may be no way.
                    let _ = mouth.send_to(b"hello", SocketAddr::new(there.parse().unwrap(), PORT));
                }
            });
            std::thread::sleep(Duration::from_millis(20));
            while let Ok((_, peer)) = ear.recv_from(&mut [0; 16]) {
                met.insert(is_v4(&peer));
            }
        }
        self.barrier(&mut self.salvo(&[]));
    }

    fn salvo<'a>(&self, tricks: &'a [Trick]) -> Salvo<'a> {
        Salvo {
            base: self.next,
            tricks,
            reached: Reached::new(),
            handshakes: BTreeMap::new(),
            streams: Vec::new(),
            heard_of: false,
        }
    }

    fn addresses(place: Place, v4: bool) -> [IpAddr; 3] {
        let (destination, via) = match (place, v4) {
            (Place::Node, true) => ("10.0.0.5", "10.0.0.6"),
            (Place::Node, false) => ("fd00::5", "fd00::6"),
            (Place::Behind, true) => ("10.1.0.7", "10.0.0.5"),
            (Place::Behind, false) => ("fd01::7", "fd00::5"),
        };
        let attacker = ATTACKERS[usize::from(!v4)];
        [attacker, destination, via].map(|text| text.parse().unwrap())
    }

    /// Plays every trick that applies on the sockets of a place, and says what they noticed.
    pub fn play(&mut self, place: Place, targets: &[Target], tricks: &[Trick]) -> Reached {
        let mut salvo = self.salvo(tricks);
        self.next += tricks.len() as u16;
        assert!(self.next < 60_000, "too many salvoes for one bench");
        for target in targets {
            let (v4, protocol) = *target;
            let [source, destination, via] = Self::addresses(place, v4);
            for (port, trick) in (salvo.base..)
                .zip(tricks)
                .filter(|(_, trick)| trick.applies(v4, protocol) && !(place == Place::Behind && trick.local))
            {
                self.ident += 1;
                let segment = first(protocol, port);
                let mut shot = Shot { macs: self.macs, source, destination, via, protocol, segment, ident: self.ident };
                shot.seal();
                (trick.alter)(&mut shot);
                self.send(&(trick.wrap)(&shot));
            }
            // Before the sockets have no room for more.
            self.drain(&mut salvo);
        }
        self.settle(&mut salvo);
        // Who was asked to connect is told more.
        let handshakes = std::mem::take(&mut salvo.handshakes);
        if handshakes.is_empty() {
            return salvo.reached;
        }
        for ((v4, port), sequence) in &handshakes {
            let [source, destination, via] = Self::addresses(place, *v4);
            let Some(trick) = salvo.trick(*port) else { continue };
            self.ident += 1;
            let segment = second(*port, sequence.wrapping_add(1));
            let mut shot =
                Shot { macs: self.macs, source, destination, via, protocol: Protocol::TCP, segment, ident: self.ident };
            shot.seal();
            self.send(&(trick.wrap)(&shot));
        }
        self.settle(&mut salvo);
        for ((v4, port), _) in handshakes {
            let [source, destination, via] = Self::addresses(place, v4);
            let mut segment = second(port, 0);
            (segment[13], segment[8]) = (4, 0);
            let mut shot =
                Shot { macs: self.macs, source, destination, via, protocol: Protocol::TCP, segment, ident: 0 };
            shot.seal();
            let (kind, packet) = super::frame::plain(&shot);
            self.send(&[ether(&self.macs, &[], kind, &packet)]);
        }
        self.settle(&mut salvo);
        salvo.reached
    }

    fn send(&self, frames: &[Vec<u8>]) {
        for frame in frames {
            let start = Instant::now();
            while let Err(error) = sendto(self.wire.as_raw_fd(), frame, &self.link, MsgFlags::empty()) {
                let full = matches!(error, nix::errno::Errno::ENOBUFS | nix::errno::Errno::EAGAIN);
                assert!(full && start.elapsed() < PATIENCE, "a frame of {} bytes: {error}", frame.len());
            }
        }
    }

    /// Waits until everything that was sent has been dealt with, and then until nothing more comes.
    fn settle(&self, salvo: &mut Salvo) {
        self.barrier(salvo);
        let mut last = Instant::now();
        while last.elapsed() < QUIET {
            if self.drain(salvo) {
                last = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A question that the node answers whatever its rules are (RFC 826): what was sent before has been dealt with.
    fn barrier(&self, salvo: &mut Salvo) {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
        body.extend([&self.macs[6..], &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 5]].concat());
        salvo.heard_of = false;
        let start = Instant::now();
        while !salvo.heard_of {
            self.send(&[ether(&[&[255; 6], &self.macs[6..]].concat(), &[], ARP, &body)]);
            let asked = Instant::now();
            while !salvo.heard_of && asked.elapsed() < Duration::from_secs(1) {
                self.drain(salvo);
            }
            assert!(start.elapsed() < PATIENCE, "the node does not answer");
        }
    }

    /// Takes whatever there is; whether there was anything.
    fn drain(&self, salvo: &mut Salvo) -> bool {
        let mut any = false;
        let mut buffer = [0; 4096];
        while let Ok(length) = recv(self.wire.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // What is sent is heard, too.
            if length >= 14 && buffer[6..12] == self.macs[..6] {
                any = true;
                answer(&buffer[12..length], salvo);
            }
        }
        for ears in &self.ears {
            for (protocol, ear) in &ears.datagrams {
                while let Ok((_, peer)) = ear.recv_from(&mut buffer) {
                    any = true;
                    salvo.notice((is_v4(&peer), *protocol), peer.port(), Noticed::Read);
                }
            }
            for (v4, ear) in &ears.raw {
                while let Ok(length) = (&*ear).read(&mut buffer) {
                    let header = if *v4 { usize::from(buffer[0] & 15) * 4 } else { 0 };
                    let Some([from, to]) = ports(&buffer[header.min(length)..length]) else { continue };
                    if to == PORT {
                        any = true;
                        salvo.notice((*v4, Protocol::SCTP), from, Noticed::Read);
                    }
                }
            }
            while let Ok((stream, peer)) = ears.tcp.accept() {
                any = true;
                stream.set_nonblocking(true).unwrap();
                let target = (is_v4(&peer), Protocol::TCP);
                salvo.notice(target, peer.port(), Noticed::Accepted);
                salvo.streams.push((target, peer.port(), stream));
            }
        }
        let mut streams = std::mem::take(&mut salvo.streams);
        for (target, port, stream) in &mut streams {
            while let Ok(1..) = stream.read(&mut buffer) {
                any = true;
                salvo.notice(*target, *port, Noticed::Read);
            }
        }
        salvo.streams = streams;
        any
    }
}

fn is_v4(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_ipv4()
}

fn ports(segment: &[u8]) -> Option<[u16; 2]> {
    let word = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    Some([word(0)?, word(2)?])
}

/// What comes back: from the EtherType on.
fn answer(frame: &[u8], salvo: &mut Salvo) {
    let kind = u16::from_be_bytes([frame[0], frame[1]]);
    let packet = &frame[2..];
    let (v4, protocol, segment) = match kind {
        ARP => {
            salvo.heard_of |= packet.get(6..8) == Some(&[0, 2]);
            return;
        }
        IP if packet.len() > 20 => (true, packet[9], &packet[(usize::from(packet[0] & 15) * 4).min(packet.len())..]),
        IPV6 if packet.len() > 40 => (false, packet[6], &packet[40..]),
        _ => return,
    };
    let Some([_, port]) = ports(segment) else { return };
    match Protocol(protocol) {
        Protocol::TCP if segment.len() >= 20 => {
            salvo.notice((v4, Protocol::TCP), port, Noticed::Answered);
            let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
            if segment[13] & 0x16 == 0x12 && salvo.trick(port).is_some() {
                salvo.handshakes.insert((v4, port), sequence);
            }
        }
        protocol @ (Protocol::ICMP | Protocol::ICMPV6) if segment.len() >= 8 => {
            if matches!((protocol, segment[0]), (Protocol::ICMP, 0) | (Protocol::ICMPV6, 129)) {
                let ident = u16::from_be_bytes([segment[4], segment[5]]);
                salvo.notice((v4, protocol), ident, Noticed::Answered);
            }
        }
        _ => {}
    }
}

/// The link-layer address of an interface here, with its index.
fn link(name: &str) -> LinkAddr {
    let mut all = nix::ifaddrs::getifaddrs().unwrap().filter(|interface| interface.interface_name == name);
    all.find_map(|interface| interface.address?.as_link_addr().copied()).unwrap()
}

const DATA: [u8; 24] = *b"one of these is too many";

/// What begins a flow from this port; its checksum is to be set.
fn first(protocol: Protocol, port: u16) -> Vec<u8> {
    let ends = [port.to_be_bytes(), PORT.to_be_bytes()].concat();
    match protocol {
        Protocol::TCP => {
            // SYN, with a maximum segment size and NOPs up to 40 bytes.
            let mut segment = [ends, vec![0, 0, 3, 232, 0, 0, 0, 0, 0xa0, 2, 0xff, 0xff, 0, 0, 0, 0]].concat();
            segment.extend([2, 4, 5, 0xb4]);
            segment.resize(40, 1);
            segment
        }
        Protocol::UDP | Protocol::UDPLITE => {
            let length = if protocol == Protocol::UDP { 8 + DATA.len() as u16 } else { 0 };
            [ends, length.to_be_bytes().to_vec(), vec![0, 0], DATA.to_vec()].concat()
        }
        Protocol::SCTP => {
            // INIT (RFC 9260 section 3.3.2).
            let chunk = [1, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
            [ends, vec![0; 8], chunk.to_vec()].concat()
        }
        Protocol::ICMP => [vec![8, 0, 0, 0], port.to_be_bytes().to_vec(), vec![0, 1], DATA.to_vec()].concat(),
        _ => [vec![128, 0, 0, 0], port.to_be_bytes().to_vec(), vec![0, 1], DATA.to_vec()].concat(),
    }
}

/// What follows TCP's answer: an acknowledgement with data.
fn second(port: u16, acknowledged: u32) -> Vec<u8> {
    let ends = [port.to_be_bytes(), PORT.to_be_bytes()].concat();
    let head = [ends, vec![0, 0, 3, 233], acknowledged.to_be_bytes().to_vec()].concat();
    [head, vec![0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0], DATA.to_vec()].concat()
}

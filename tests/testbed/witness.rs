//! Witnesses: a table beside ours that drops nothing and tells, by NFLOG, of every packet at every hook before and after our chains.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nodewall::simulate::ConntrackState;
use std::os::fd::{AsFd as _, AsRawFd as _};

use crate::lab::sh;

/// The NFLOG group of the witnesses.
const WITNESSES: u16 = 771;
/// The NFLOG group for our own table's `log`.
pub const OUR_LOG: u16 = 772;

/// The identification of packets that are seen once and go no further: nothing sent before them is still on its way.
pub const LAST: u16 = 0xffff;

/// Their protocol (RFC 3692: for experiments): the kernel may give what it sends any identification.
pub const LAST_PROTOCOL: u8 = 253;

/// Whether it is one of them.
pub fn is_last(bytes: &[u8]) -> bool {
    matches!(bytes, [0x40..=0x4f, _, _, _, a, b, _, _, _, LAST_PROTOCOL, ..] if u16::from_be_bytes([*a, *b]) == LAST)
}

/// Where a witness stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Point {
    /// On the device on which it arrives, before `early`; fragments by themselves.
    Ingress,
    /// After that.
    AfterIngress,
    /// After reassembly, before `raw_prerouting`.
    Arrived,
    /// After `early` and `raw_prerouting`, before connection tracking.
    AfterRaw,
    /// After connection tracking.
    Tracked(State),
    /// After `prednat`, before address translation.
    AfterPrednat,
    /// Before `input`.
    BeforeInput,
    /// After it.
    AfterInput,
    /// Before `forward`.
    BeforeForward,
    /// After it.
    AfterForward,
    /// Of a packet from this host: before `raw_output`.
    Sent,
    /// After it, before connection tracking.
    SentAfterRaw,
    /// After connection tracking.
    SentTracked(State),
    /// After address translation, before `output`.
    BeforeOutput,
    /// After it.
    AfterOutput,
}

/// [`ConntrackState`] with an order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    /// `new`
    New,
    /// `established`
    Established,
    /// `related`
    Related,
    /// `invalid`
    Invalid,
    /// `untracked`
    Untracked,
}

impl State {
    const ALL: [(Self, &'static str, ConntrackState); 5] = [
        (Self::New, "new", ConntrackState::New),
        (Self::Established, "established", ConntrackState::Established),
        (Self::Related, "related", ConntrackState::Related),
        (Self::Invalid, "invalid", ConntrackState::Invalid),
        (Self::Untracked, "untracked", ConntrackState::Untracked),
    ];

    /// As the simulator has it.
    pub fn simulated(self) -> ConntrackState {
        Self::ALL.into_iter().find(|(state, ..)| *state == self).map(|(.., state)| state).expect("all are there")
    }
}

/// The witnesses' rules, and others' that give packets marks and other destinations by their ECN bits.
fn table() -> String {
    let mut text = String::from("table inet witness {\n");
    let mut chain = |name: &str, hook: &str, priority: i32, rules: &str| {
        writeln!(text, "chain {name} {{ type filter hook {hook} priority {priority}; {rules}; }}").unwrap();
    };
    let states = |side: &str| {
        let all = State::ALL.map(|(_, name, _)| format!("{name} : goto {side}_{name}")).join(", ");
        format!("ct state vmap {{ {all} }}")
    };
    let marked = "meta mark set 0xffffffff";
    chain("marks", "prerouting", -395, &format!("ip ecn ce {marked}; ip6 ecn ce {marked}"));
    chain("arrived", "prerouting", -390, &log("arrived"));
    chain("last", "prerouting", -385, &format!("ip protocol {LAST_PROTOCOL} ip id {LAST} drop"));
    chain("after_raw", "prerouting", -250, &short("after raw"));
    chain("tracked", "prerouting", -150, &states("in"));
    chain("after_prednat", "prerouting", -105, &short("after prednat"));
    chain("before_input", "input", -10, &log("before input"));
    chain("after_input", "input", 10, &short("after input"));
    chain("before_forward", "forward", -10, &log("before forward"));
    chain("after_forward", "forward", 10, &short("after forward"));
    // What the node says by itself at any time, and not in answer to a packet at once: that it waits no longer for a fragment, and to
    // which groups it belongs (IGMP; MLD, RFC 3810).
    let late = "meta skuid 0-4294967295 accept; icmp type time-exceeded icmp code 1 drop; icmpv6 type time-exceeded \
                icmpv6 code 1 drop; ip protocol igmp drop; icmpv6 type { 131, 132, 143 } drop";
    chain("late", "output", -396, late);
    chain("sent", "output", -390, &log("sent"));
    chain("sent_after_raw", "output", -250, &short("sent after raw"));
    chain("sent_tracked", "output", -150, &states("out"));
    chain("before_output", "output", -10, &log("before output"));
    chain("after_output", "output", 10, &short("after output"));
    for side in ["in", "out"] {
        for (_, name, _) in State::ALL {
            writeln!(text, "chain {side}_{name} {{ {}; }}", short(&format!("{side} {name}"))).unwrap();
        }
    }
    let ports = "meta l4proto { tcp, udp, sctp, dccp, udplite }";
    writeln!(
        text,
        "chain translate {{ type nat hook prerouting priority -100; goto translated; }}
         chain translate_out {{ type nat hook output priority -100; goto translated; }}
         chain translated {{
             {ports} ip ecn ect0 dnat ip to 10.0.0.0-10.0.0.31:20-40
             {ports} ip6 ecn ect0 dnat ip6 to [fd00::]-[fd00::1f]:20-40
             ip ecn ect1 dnat ip to 10.0.0.5
             ip6 ecn ect1 dnat ip6 to fd00::5
         }}\n}}"
    )
    .unwrap();
    text
}

/// The statement by which a witness tells of whole packets.
fn log(word: &str) -> String {
    format!("log prefix \"{word}\" group {WITNESSES}")
}

/// The statement by which a witness tells of the beginnings of packets.
fn short(word: &str) -> String {
    format!("{} snaplen {HEAD}", log(word))
}

/// How many bytes of a packet the later witnesses show.
pub const HEAD: usize = 64;

/// What a witness says.
#[derive(Clone, Debug)]
pub struct Testimony {
    /// Which witness; `None` for our own table's `log`.
    pub point: Option<Point>,
    /// The words of the log.
    pub prefix: String,
    /// The hook (`enum nf_inet_hooks`).
    pub hook: u8,
    /// Indices of the interfaces, 0 for none.
    pub input: u32,
    pub output: u32,
    /// The packet mark.
    pub mark: u32,
    /// User and group of the process that sends it.
    pub owner: Option<(u32, u32)>,
    /// The packet from its IP header on, or its beginning.
    pub bytes: Vec<u8>,
}

/// The witnesses, and who listens to them.
pub struct Witnesses {
    socket: Socket,
    buffer: Vec<u8>,
    devices: BTreeSet<String>,
}

const NFNL_SUBSYS_ULOG: u16 = 4;
/// nfnetlink_log.h
const NFULNL_MSG_CONFIG: u16 = NFNL_SUBSYS_ULOG << 8 | 1;
const NFULNL_MSG_PACKET: u16 = NFNL_SUBSYS_ULOG << 8;
const NFULA_PACKET_HDR: u16 = 1;
const NFULA_MARK: u16 = 2;
const NFULA_IFINDEX_INDEV: u16 = 4;
const NFULA_IFINDEX_OUTDEV: u16 = 5;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_UID: u16 = 11;
const NFULA_GID: u16 = 14;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_QTHRESH: u16 = 5;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;

impl Witnesses {
    /// Puts them up, in the network namespace of this thread.
    pub fn new() -> Self {
        nft(&table());
        let mut socket = Socket::new(NETLINK_NETFILTER).expect("a socket");
        socket.bind_auto().expect("an address");
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &(256 << 20)).expect("a large buffer");
        for group in [WITNESSES, OUR_LOG] {
            configure(&socket, group);
        }
        Self { socket, buffer: vec![0; 1 << 17], devices: BTreeSet::new() }
    }

    /// Puts witnesses at the ingress hooks of these devices, and at no others: a chain there makes the kernel drop broken headers that it
    /// otherwise leaves for rules to judge (`nft_set_pktinfo_ipv6_ingress`).
    pub fn watch(&mut self, devices: &BTreeSet<String>) {
        let mut text = String::new();
        for device in self.devices.symmetric_difference(devices) {
            for (name, priority, says) in [
                ("ingress", -10, format!("{}; ip protocol {LAST_PROTOCOL} ip id {LAST} drop", log("ingress"))),
                ("after_ingress", 10, short("after ingress")),
            ] {
                let _ = if devices.contains(device) {
                    let hook = format!("type filter hook ingress device {device} priority {priority}");
                    writeln!(text, "table inet witness {{ chain {name}_{device} {{ {hook}; {says}; }}\n}}")
                } else {
                    writeln!(text, "delete chain inet witness {name}_{device}")
                };
            }
        }
        if !text.is_empty() {
            nft(&text);
            self.devices = devices.clone();
        }
    }

    /// The devices at whose ingress hooks there are witnesses.
    pub fn devices(&self) -> &BTreeSet<String> {
        &self.devices
    }

    /// What was said since it was last asked, in order.
    ///
    /// # Panics
    /// If something was lost.
    pub fn heard(&mut self) -> Vec<Testimony> {
        let mut all = Vec::new();
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => read(&self.buffer[..length], &mut all),
                Err(Errno::EAGAIN) => return all,
                Err(errno) => panic!("a witness was not heard: {errno}"),
            }
        }
    }
}

fn nft(text: &str) {
    let file = std::env::temp_dir().join(format!("nodewall-witness-{}-{}", std::process::id(), nix::unistd::gettid()));
    std::fs::write(&file, text).expect("a temporary file");
    sh(&format!("nft -f {}", file.display()));
    let _ = std::fs::remove_file(file);
}

fn configure(socket: &Socket, group: u16) {
    // As many bytes as there are (`u32` in network order), and the mode.
    let attributes: [(u16, &[u8]); 3] = [
        (NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]),
        (NFULA_CFG_MODE, &[0, 0, 0xff, 0xff, NFULNL_COPY_PACKET, 0]),
        (NFULA_CFG_QTHRESH, &1u32.to_be_bytes()),
    ];
    for (kind, value) in attributes {
        let mut payload = vec![0, 0];
        payload.extend(group.to_be_bytes());
        payload.extend((value.len() as u16 + 4).to_ne_bytes());
        payload.extend(kind.to_ne_bytes());
        payload.extend(value);
        payload.resize(payload.len().next_multiple_of(4), 0);
        let mut bytes = Vec::new();
        bytes.extend((payload.len() as u32 + 16).to_ne_bytes());
        bytes.extend(NFULNL_MSG_CONFIG.to_ne_bytes());
        // REQUEST, ACK
        bytes.extend(5u16.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(payload);
        socket.send(&bytes, 0).expect("sent");
        let mut answer = Vec::with_capacity(4096);
        socket.recv(&mut answer, 0).expect("an answer");
        let code = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
        assert_eq!(code, 0, "the kernel does not take the NFLOG group {group}");
    }
}

fn read(mut bytes: &[u8], all: &mut Vec<Testimony>) {
    while bytes.len() >= 20 {
        let length = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        let kind = u16::from_ne_bytes(bytes[4..6].try_into().unwrap());
        if kind == NFULNL_MSG_PACKET {
            all.push(testimony(&bytes[18..length]));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// A message from its group on.
fn testimony(message: &[u8]) -> Testimony {
    let group = u16::from_be_bytes([message[0], message[1]]);
    let mut said = Testimony {
        point: None,
        prefix: String::new(),
        hook: 0,
        input: 0,
        output: 0,
        mark: 0,
        owner: None,
        bytes: Vec::new(),
    };
    let (mut uid, mut gid) = (None, None);
    let mut rest = &message[2..];
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = &rest[4..length];
        let number = || u32::from_be_bytes(value[..4].try_into().unwrap());
        match u16::from_ne_bytes([c, d]) {
            NFULA_PACKET_HDR => said.hook = value[2],
            NFULA_MARK => said.mark = number(),
            NFULA_IFINDEX_INDEV => said.input = number(),
            NFULA_IFINDEX_OUTDEV => said.output = number(),
            NFULA_PAYLOAD => said.bytes = value.to_vec(),
            NFULA_PREFIX => said.prefix = String::from_utf8_lossy(&value[..value.len() - 1]).into_owned(),
            NFULA_UID => uid = Some(number()),
            NFULA_GID => gid = Some(number()),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    said.owner = uid.zip(gid);
    said.point = (group == WITNESSES).then(|| point(&said.prefix));
    said
}

fn point(prefix: &str) -> Point {
    let state = |name: &str| State::ALL.into_iter().find(|(_, known, _)| *known == name).map(|(state, ..)| state);
    match prefix {
        "ingress" => Point::Ingress,
        "after ingress" => Point::AfterIngress,
        "arrived" => Point::Arrived,
        "after raw" => Point::AfterRaw,
        "after prednat" => Point::AfterPrednat,
        "before input" => Point::BeforeInput,
        "after input" => Point::AfterInput,
        "before forward" => Point::BeforeForward,
        "after forward" => Point::AfterForward,
        "sent" => Point::Sent,
        "sent after raw" => Point::SentAfterRaw,
        "before output" => Point::BeforeOutput,
        "after output" => Point::AfterOutput,
        other => match other.split_once(' ') {
            Some(("in", name)) => Point::Tracked(state(name).expect(name)),
            Some(("out", name)) => Point::SentTracked(state(name).expect(name)),
            _ => panic!("a witness that we do not know: {other}"),
        },
    }
}

//! The packet log: the request for an NFLOG group, and the kernel's messages to [`LoggedPacket`]. It stands here because the log speaks
//! the same nfnetlink as nf_tables: one header, one kind of attribute.
//!
//! The layout is that of include/uapi/linux/netfilter/nfnetlink_log.h; what the kernel does with it, net/netfilter/nfnetlink_log.c.

use super::attribute::{Malformed, Walk, Writer, text};
use super::constant::{
    NFNETLINK_HEADER_LENGTH, NFNL_SUBSYS_ULOG, NFPROTO_UNSPEC, NFULA_CFG_CMD, NFULA_CFG_FLAGS, NFULA_CFG_MODE,
    NFULA_CFG_NLBUFSIZ, NFULA_CFG_QTHRESH, NFULA_CFG_TIMEOUT, NFULA_GID, NFULA_IFINDEX_INDEV, NFULA_IFINDEX_OUTDEV,
    NFULA_IFINDEX_PHYSINDEV, NFULA_IFINDEX_PHYSOUTDEV, NFULA_MARK, NFULA_PACKET_HDR, NFULA_PAYLOAD, NFULA_PREFIX,
    NFULA_SEQ, NFULA_TIMESTAMP, NFULA_UID, NFULNL_CFG_CMD_BIND, NFULNL_CFG_F_SEQ, NFULNL_COPY_PACKET,
    NFULNL_MSG_CONFIG, NFULNL_MSG_PACKET, NLM_F_ACK, NLM_F_REQUEST,
};
use super::decode::Message;
use super::encode::{finish, header};

/// One packet that a rule logged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LoggedPacket {
    /// What the rule's `log prefix` says; at most [`LONGEST_PREFIX`] bytes.
    pub prefix: String,
    /// The family of the hook: `NFPROTO_IPV4`, `NFPROTO_IPV6`, or `NFPROTO_NETDEV` for a chain of that family.
    pub family: u8,
    /// Where the rule stands: an `NF_INET_` number (include/uapi/linux/netfilter.h), or in `NFPROTO_NETDEV` an `NF_NETDEV_` number.
    pub hook: u8,
    /// The protocol of the frame (`ETH_P_`); 0 where the kernel does not know one.
    pub frame_protocol: u16,
    /// The index of the interface by which it came.
    pub indev: Option<u32>,
    /// The index of the interface by which it leaves.
    pub outdev: Option<u32>,
    /// The port of a bridge by which it came; [`LoggedPacket::indev`] is the bridge then.
    pub physical_indev: Option<u32>,
    /// The port of a bridge by which it leaves.
    pub physical_outdev: Option<u32>,
    /// The packet mark; 0 without.
    pub mark: u32,
    /// The user who opened the socket that it is from, or for which it is where the kernel knows that already.
    pub uid: Option<u32>,
    /// The group, likewise.
    pub gid: Option<u32>,
    /// When it came, in microseconds since 1970-01-01 UTC; the kernel does not say it of packets from this host.
    pub time_micros: Option<u64>,
    /// Its number among all that the kernel has logged for this reader, from 0: a gap is what was lost.
    pub sequence: Option<u32>,
    /// The packet from its IP header on, at most [`LONGEST_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// The longest prefix (`NF_LOG_PREFIXLEN` of the kernel, with its terminator).
pub const LONGEST_PREFIX: usize = 128;
/// How much of a packet is kept, whatever was asked for.
pub const LONGEST_PAYLOAD: usize = 512;

/// How the kernel gathers logged packets before it hands them out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gathering {
    /// How many bytes of each packet are handed out.
    pub copy_bytes: u32,
    /// So many packets are handed out at once.
    pub packets: u32,
    /// A packet waits for others no longer than so many hundredths of a second.
    pub wait_hundredths: u32,
    /// How much memory the kernel takes for the packets that it hands out at once.
    pub buffer_bytes: u32,
}

/// A request to be the one reader of a group of this network namespace, with every packet numbered. The kernel answers 0 or an error:
/// `EPERM` to whoever may not read, and where another has the group; `EBUSY` where this socket has it; `EINVAL` without nfnetlink_log.
///
/// The group is bound for packets of all families: which logger takes what a rule of nf_tables logs, the rule says.
pub fn read_group(group: u16, gathering: &Gathering, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG;
    let start = header(&mut writer, kind, NLM_F_REQUEST | NLM_F_ACK, sequence, NFPROTO_UNSPEC, group);
    writer.put(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]);
    // `struct nfulnl_msg_config_mode`, which is packed.
    let [a, b, c, d] = gathering.copy_bytes.to_be_bytes();
    writer.put(NFULA_CFG_MODE, &[a, b, c, d, NFULNL_COPY_PACKET, 0]);
    writer.put_u32(NFULA_CFG_NLBUFSIZ, gathering.buffer_bytes);
    writer.put_u32(NFULA_CFG_TIMEOUT, gathering.wait_hundredths);
    writer.put_u32(NFULA_CFG_QTHRESH, gathering.packets);
    writer.put_u16(NFULA_CFG_FLAGS, NFULNL_CFG_F_SEQ);
    finish(&mut writer, start);
    writer.bytes
}

/// The packet in a message; `None` if the message is something else.
///
/// # Errors
/// A message that is not as the kernel writes it.
pub fn logged_packet(message: &Message<'_>) -> Result<Option<LoggedPacket>, Malformed> {
    if message.kind != NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET {
        return Ok(None);
    }
    let (Some(family), Some(attributes)) = (message.payload.first(), message.payload.get(NFNETLINK_HEADER_LENGTH..))
    else {
        return Err(Malformed::new("a logged packet is shorter than its header"));
    };
    let mut packet = LoggedPacket { family: *family, ..LoggedPacket::default() };
    let mut headed = false;
    for attribute in Walk::new(attributes) {
        let (kind, value) = attribute?;
        match kind {
            NFULA_PACKET_HDR => {
                // `struct nfulnl_msg_packet_hdr`: protocol, hook, padding.
                let [high, low, hook, _] = exactly(kind, value)?;
                packet.frame_protocol = u16::from_be_bytes([high, low]);
                packet.hook = hook;
                headed = true;
            }
            NFULA_PREFIX => packet.prefix = text(value.get(..LONGEST_PREFIX).unwrap_or(value)),
            NFULA_MARK => packet.mark = word(kind, value)?,
            NFULA_IFINDEX_INDEV => packet.indev = Some(word(kind, value)?),
            NFULA_IFINDEX_OUTDEV => packet.outdev = Some(word(kind, value)?),
            NFULA_IFINDEX_PHYSINDEV => packet.physical_indev = Some(word(kind, value)?),
            NFULA_IFINDEX_PHYSOUTDEV => packet.physical_outdev = Some(word(kind, value)?),
            NFULA_UID => packet.uid = Some(word(kind, value)?),
            NFULA_GID => packet.gid = Some(word(kind, value)?),
            NFULA_SEQ => packet.sequence = Some(word(kind, value)?),
            NFULA_TIMESTAMP => packet.time_micros = Some(micros(kind, value)?),
            NFULA_PAYLOAD => packet.payload = value.get(..LONGEST_PAYLOAD).unwrap_or(value).to_vec(),
            // Hardware addresses, VLAN tags and whatever later kernels add.
            _ => {}
        }
    }
    if headed { Ok(Some(packet)) } else { Err(Malformed::new("a logged packet without its header")) }
}

fn exactly<const N: usize>(kind: u16, value: &[u8]) -> Result<[u8; N], Malformed> {
    value.try_into().map_err(|_| Malformed::new(format!("attribute {kind} has {} bytes instead of {N}", value.len())))
}

fn word(kind: u16, value: &[u8]) -> Result<u32, Malformed> {
    exactly(kind, value).map(u32::from_be_bytes)
}

/// `struct nfulnl_msg_packet_timestamp`: seconds and microseconds.
fn micros(kind: u16, value: &[u8]) -> Result<u64, Malformed> {
    let both = u128::from_be_bytes(exactly(kind, value)?);
    let (seconds, micros) = ((both >> 64) as u64, both as u64);
    Ok(seconds.saturating_mul(1_000_000).saturating_add(micros))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::attribute::Attributes;
    use super::super::constant::{NF_INET_FORWARD, NFPROTO_IPV4};
    use super::super::decode::messages;
    use super::*;

    const KIND: u16 = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET;

    /// A message as the kernel writes it, the trailing zero of the prefix included.
    fn bytes(packet: &LoggedPacket) -> Vec<u8> {
        let mut writer = Writer::default();
        let start = header(&mut writer, KIND, 0, 0, packet.family, 5);
        let [high, low] = packet.frame_protocol.to_be_bytes();
        writer.put(NFULA_PACKET_HDR, &[high, low, packet.hook, 0]);
        writer.put_text(NFULA_PREFIX, &packet.prefix);
        for (kind, value) in [
            (NFULA_IFINDEX_INDEV, packet.indev),
            (NFULA_IFINDEX_OUTDEV, packet.outdev),
            (NFULA_IFINDEX_PHYSINDEV, packet.physical_indev),
            (NFULA_IFINDEX_PHYSOUTDEV, packet.physical_outdev),
            (NFULA_MARK, Some(packet.mark).filter(|mark| *mark != 0)),
            (NFULA_UID, packet.uid),
            (NFULA_GID, packet.gid),
            (NFULA_SEQ, packet.sequence),
        ] {
            if let Some(value) = value {
                writer.put_u32(kind, value);
            }
        }
        if let Some(time) = packet.time_micros {
            let both = [(time / 1_000_000).to_be_bytes(), (time % 1_000_000).to_be_bytes()].concat();
            writer.put(NFULA_TIMESTAMP, &both);
        }
        // NFULA_HWTYPE, which nobody asked about.
        writer.put_u16(15, 1);
        writer.put(NFULA_PAYLOAD, &packet.payload);
        finish(&mut writer, start);
        writer.bytes
    }

    fn example() -> LoggedPacket {
        LoggedPacket {
            prefix: "ssh#1 deny: not from here ".to_owned(),
            family: NFPROTO_IPV4,
            hook: NF_INET_FORWARD,
            frame_protocol: 0x0800,
            indev: Some(2),
            outdev: Some(7),
            physical_indev: Some(9),
            physical_outdev: Some(10),
            mark: 0x8000_0000,
            uid: Some(1000),
            gid: Some(100),
            time_micros: Some(1_764_145_219_000_123),
            sequence: Some(41),
            payload: (0..85).collect(),
        }
    }

    fn read(bytes: &[u8]) -> Result<Option<LoggedPacket>, Malformed> {
        logged_packet(&messages(bytes)?[0])
    }

    #[test]
    fn a_packet_is_read_with_all_that_is_known_of_it() {
        let all = example();
        assert_eq!(read(&bytes(&all)), Ok(Some(all)));
        let least = LoggedPacket { payload: vec![0x45], ..LoggedPacket::default() };
        assert_eq!(read(&bytes(&least)), Ok(Some(least)));
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_is_too_short_is_an_error() {
        let long =
            LoggedPacket { prefix: "p".repeat(300), payload: vec![7; LONGEST_PAYLOAD + 1], ..LoggedPacket::default() };
        let found = read(&bytes(&long)).unwrap().unwrap();
        assert_eq!((found.prefix.len(), found.payload.len()), (LONGEST_PREFIX, LONGEST_PAYLOAD));
        let of = |payload| Message { kind: KIND, flags: 0, sequence: 0, port: 0, payload };
        assert!(logged_packet(&of(&[])).is_err());
        assert!(logged_packet(&of(&[2, 0, 0, 5])).is_err(), "no header of a packet");
        assert!(logged_packet(&of(&[2, 0, 0, 5, 6, 0, 2, 0, 1, 1, 0, 0])).is_err(), "a mark of two bytes");
        assert_eq!(logged_packet(&Message { kind: KIND + 1, ..of(&[]) }), Ok(None));
    }

    #[test]
    fn the_request_names_the_group_and_asks_for_numbers() {
        let gathering = Gathering { copy_bytes: 192, packets: 64, wait_hundredths: 10, buffer_bytes: 31 << 10 };
        let bytes = read_group(0x1234, &gathering, 9);
        let messages = messages(&bytes).unwrap();
        let [message] = messages[..] else { panic!("{messages:?}") };
        assert_eq!((message.kind, message.flags, message.sequence), (4 << 8 | 1, NLM_F_REQUEST | NLM_F_ACK, 9));
        assert_eq!(message.payload[..4], [0, 0, 0x12, 0x34]);
        let attributes: Attributes<'_> = message.attributes().unwrap();
        assert_eq!(attributes.get(NFULA_CFG_CMD), Some(&[1][..]));
        assert_eq!(attributes.get(NFULA_CFG_MODE), Some(&[0, 0, 0, 192, 2, 0][..]));
        assert_eq!(attributes.u32(NFULA_CFG_QTHRESH), Ok(Some(64)));
        assert_eq!(attributes.u32(NFULA_CFG_TIMEOUT), Ok(Some(10)));
        assert_eq!(attributes.u32(NFULA_CFG_NLBUFSIZ), Ok(Some(31 << 10)));
        assert_eq!(attributes.u16(NFULA_CFG_FLAGS), Ok(Some(1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Whatever is flipped or cut off, the answer is a packet or an error.
        #[test]
        fn made_up_bytes_do_no_harm(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            end in any::<prop::sample::Index>(),
            cut in any::<bool>(),
            noise in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut bytes = bytes(&example());
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            for message in messages(&bytes).unwrap_or_default() {
                let _ = logged_packet(&message);
            }
            // And with a frame that is right around what is not.
            for payload in [bytes.get(16..).unwrap_or_default(), &noise] {
                let message = Message { kind: KIND, flags: 0, sequence: 0, port: 0, payload };
                if let Ok(Some(packet)) = logged_packet(&message) {
                    // A byte that is no UTF-8 becomes a character of three.
                    prop_assert!(packet.prefix.len() <= 3 * LONGEST_PREFIX && packet.payload.len() <= LONGEST_PAYLOAD);
                }
            }
        }
    }
}

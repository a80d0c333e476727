//! The reader of the packet log (NFLOG): what rules log, numbered by the kernel, so that what is lost is known exactly.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::Error;
use super::inbox::{Inbox, Next};
use crate::nft::netlink::log::{Gathering, LoggedPacket, logged_packet, read_group};
use crate::nft::netlink::messages;
use crate::nft::netlink::probe::ask_log_reader;

/// The one reader of a group of the packet log of a network namespace.
pub struct PacketLog {
    inbox: Inbox,
    /// The number that the next packet has if none is lost.
    next: u32,
    lost: u64,
}

const WHAT: &str = "the packet log";

/// What the kernel does before we are woken: at 1,000 packets a second it wakes us 16 times. A packet is copied so far that IPv6
/// extension headers and the transport header behind them are in it; with what else is said of it, 64 packets are about 28 KiB, and
/// the buffer with the kernel's own end of it is one piece of 32 KiB.
const GATHERING: Gathering =
    Gathering { copy_bytes: 192, packets: 64, wait_hundredths: 10, buffer_bytes: (32 << 10) - 1024 };

/// What may wait: 4 MiB of the kernel's memory (it doubles the number), which is 128 times 64 packets.
const ROOM_BYTES: usize = 2 << 20;

impl PacketLog {
    /// Becomes the reader of a group in the network namespace of the calling thread. It stays so until this is dropped.
    ///
    /// # Errors
    /// [`Error::Taken`] where another program is; [`Error::NoReader`] where the kernel has none; else [`Error::Socket`], mostly because
    /// it takes CAP_NET_ADMIN.
    pub fn open(group: u16) -> Result<Self, Error> {
        Self::open_with_room(group, ROOM_BYTES)
    }

    /// The same with another number of bytes for what waits; the kernel doubles it and has a least one of its own.
    ///
    /// # Errors
    /// As [`PacketLog::open`].
    pub fn open_with_room(group: u16, room_bytes: usize) -> Result<Self, Error> {
        let mut inbox = Inbox::open(WHAT, 0, room_bytes)?;
        let answer = inbox.ask(|sequence| read_group(group, &GATHERING, sequence))?;
        if answer == 0 {
            return Ok(Self { inbox, next: 0, lost: 0 });
        }
        match Errno::from_raw(answer) {
            Errno::EBUSY => Err(Error::Taken { group, port: reader(group) }),
            // The same error for a group that is another's (`nfulnl_recv_config`) and for want of the privilege: whoever has that
            // hears of a group without a reader that there is no such thing.
            Errno::EPERM if inbox.ask(ask_log_reader)? != Errno::EPERM as i32 => {
                Err(Error::Taken { group, port: reader(group) })
            }
            Errno::EINVAL | Errno::EOPNOTSUPP => Err(Error::NoReader),
            errno => Err(Error::Socket { attempt: "read", what: WHAT, source: errno.into() }),
        }
    }

    /// Appends what waits: `most` packets, and what else came in one piece with the last of them, which is fewer than 64. Whether more may
    /// wait. Never blocks.
    ///
    /// # Errors
    /// When the socket is broken; a message that cannot be read counts as lost.
    pub fn read(&mut self, most: usize, into: &mut Vec<LoggedPacket>) -> Result<bool, Error> {
        let enough = into.len().saturating_add(most);
        // Each turn takes something out of the socket, so that this ends also where nothing can be read.
        for _ in 0..most {
            if into.len() >= enough {
                return Ok(true);
            }
            match self.inbox.next()? {
                Next::Nothing => return Ok(false),
                // The next packet's number tells how many there were.
                Next::Overrun => {}
                Next::Datagram(datagram) => {
                    for message in messages(datagram).unwrap_or_default() {
                        let Ok(Some(packet)) = logged_packet(&message) else { continue };
                        self.lost += gap(&mut self.next, packet.sequence);
                        into.push(packet);
                    }
                }
            }
        }
        Ok(true)
    }

    /// How many logged packets did not get here, as far as a later one tells: those at the very end are counted with the next one. What
    /// a rule's own limit holds back was never logged.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// How often the kernel had no room for more; each time some packets were lost.
    pub const fn overruns(&self) -> u64 {
        self.inbox.overruns()
    }
}

impl AsFd for PacketLog {
    /// Ready to read when packets wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}

/// How many numbers are left out before this one.
fn gap(next: &mut u32, sequence: Option<u32>) -> u64 {
    let Some(sequence) = sequence else { return 0 };
    let gap = sequence.wrapping_sub(*next);
    *next = sequence.wrapping_add(1);
    // The kernel numbers in order. A number from before is no gap of four thousand million.
    if gap < 1 << 31 { gap.into() } else { 0 }
}

/// The netlink port of whoever reads a group in the network namespace of this thread.
fn reader(group: u16) -> Option<u32> {
    port_in(&fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log").ok()?, group)
}

/// Group, port, and six more numbers (`seq_show`, net/netfilter/nfnetlink_log.c).
fn port_in(text: &str, group: u16) -> Option<u32> {
    let port = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        (fields.next()?.parse() == Ok(group)).then(|| fields.next()?.parse().ok())?
    };
    text.lines().find_map(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_also_where_numbers_begin_again() {
        let mut next = 0;
        let mut of = |sequence| gap(&mut next, sequence);
        assert_eq!([of(Some(0)), of(Some(1)), of(Some(5)), of(None), of(Some(6))], [0, 0, 3, 0, 0]);
        assert_eq!(of(Some(3)), 0, "from before");
        next = u32::MAX - 1;
        let mut of = |sequence| gap(&mut next, sequence);
        assert_eq!([of(Some(u32::MAX)), of(Some(2)), of(Some(3))], [1, 2, 0]);
        let mut first = 0;
        assert_eq!(gap(&mut first, Some(40)), 40, "before anything was read");
    }

    #[test]
    fn the_kernel_says_who_reads_a_group() {
        let text = "    1   4711     0 2    192 10  2  1\n    5 2147487 0 2 192 10 2 1\n";
        assert_eq!([1, 5, 2].map(|group| port_in(text, group)), [Some(4711), Some(2_147_487), None]);
        assert_eq!(port_in("5", 5), None);
    }
}

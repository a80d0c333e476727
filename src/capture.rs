//! Capture files, pcap and pcapng: one frame after the other, in constant memory.

use std::fs::File;
use std::io;
use std::path::Path;

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};

use crate::simulate::link::{LinkType, Seen};
use crate::simulate::replay::Captured;

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It does not begin like a capture.
    #[error("neither pcap nor pcapng")]
    NotCapture,
    /// It stops in the middle of a packet, as it does while somebody still captures.
    #[error("the file ends in the middle of a packet")]
    Truncated,
    /// It is damaged.
    #[error("damaged after packet {0}")]
    Damaged(u64),
    /// Its frames begin with something that is not read here.
    #[error(
        "link type {0} is not supported; Ethernet, raw IP, Linux cooked (tcpdump -i any), BSD loopback and IP over InfiniBand are"
    )]
    LinkType(i32),
}

/// Reads this much at a time, and a packet may be so large at most without another reading.
const BUFFER: usize = 1 << 18;
/// A larger packet is a sign of damage: a capture of the largest BIG TCP segments has half a MiB.
const LARGEST_BLOCK: usize = 16 << 20;

/// Hands on each frame of a capture file, in its order, until `each` says false.
///
/// # Errors
/// See [`Error`]; the frames before were handed on.
pub fn read(path: &Path, each: &mut dyn FnMut(&Captured<'_>) -> bool) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::Read)?;
    let metadata = file.metadata().map_err(Error::Read)?;
    if metadata.is_dir() {
        return Err(Error::Read(io::ErrorKind::IsADirectory.into()));
    }
    let mut reader = create_reader(BUFFER, file).map_err(|error| match error {
        PcapError::ReadError => Error::Read(io::Error::other("reading failed")),
        _ => Error::NotCapture,
    })?;
    let mut progress = Progress::default();
    loop {
        let there = reader.data().len();
        match reader.next() {
            Ok((length, block)) => {
                let goes_on = progress.block(&block, each)?;
                drop(block);
                reader.consume(length);
                if !goes_on {
                    return Ok(());
                }
            }
            Err(PcapError::Eof) => return Ok(()),
            Err(PcapError::UnexpectedEof) if there == 0 => return Ok(()),
            Err(PcapError::UnexpectedEof) => return Err(Error::Truncated),
            Err(PcapError::ReadError) => return Err(Error::Read(io::Error::other("reading failed"))),
            Err(PcapError::Incomplete(_) | PcapError::BufferTooSmall) => {
                more(reader.as_mut(), there).map_err(|()| Error::Damaged(progress.packets))?;
            }
            Err(_) => return Err(Error::Damaged(progress.packets)),
        }
    }
}

/// Reads on, in a larger buffer where this one is full.
fn more(reader: &mut dyn PcapReaderIterator, there: usize) -> Result<(), ()> {
    reader.refill().map_err(|_| ())?;
    if reader.data().len() > there || reader.reader_exhausted() {
        return Ok(());
    }
    let larger = (there + BUFFER).next_power_of_two();
    if larger > LARGEST_BLOCK || !reader.grow(larger) {
        return Err(());
    }
    reader.refill().map_err(|_| ())
}

#[derive(Default)]
struct Progress {
    /// The link types of the capture's interfaces: one in pcap, any number in each section of pcapng.
    links: Vec<i32>,
    packets: u64,
}

impl Progress {
    fn block(
        &mut self,
        block: &PcapBlockOwned<'_>,
        each: &mut dyn FnMut(&Captured<'_>) -> bool,
    ) -> Result<bool, Error> {
        let (interface, bytes, length, seen) = match block {
            PcapBlockOwned::LegacyHeader(header) => {
                // The upper bits say how long the frame check sequence is.
                self.links = vec![header.network.0 & 0xffff];
                return Ok(true);
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                self.links.clear();
                return Ok(true);
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                self.links.push(interface.linktype.0);
                return Ok(true);
            }
            PcapBlockOwned::Legacy(packet) => (0, packet.data, packet.origlen, None),
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let flags = packet.options.iter().find(|option| option.code.0 == EPB_FLAGS);
                let flags = flags.and_then(|option| <[u8; 4]>::try_from(option.value()).ok());
                let flags = flags.map(|bytes| match packet.big_endian() {
                    true => u32::from_be_bytes(bytes),
                    false => u32::from_le_bytes(bytes),
                });
                let seen = match flags.map(|flags| flags & 0b11) {
                    Some(0b01) => Some(Seen::Arriving),
                    Some(0b10) => Some(Seen::Leaving),
                    _ => None,
                };
                (packet.if_id, packet.packet_data(), packet.origlen, seen)
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => (0, packet.packet_data(), packet.origlen, None),
            PcapBlockOwned::NG(_) => return Ok(true),
        };
        let damaged = Error::Damaged(self.packets);
        let number = usize::try_from(interface).ok().and_then(|index| self.links.get(index)).ok_or(damaged)?;
        let link = LinkType::by_number(*number).ok_or(Error::LinkType(*number))?;
        self.packets += 1;
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(bytes.len());
        Ok(each(&Captured { link, bytes, length, seen }))
    }
}

/// `epb_flags` of an enhanced packet block: the two lowest bits say which way the packet went.
const EPB_FLAGS: u16 = 2;

#[cfg(test)]
mod tests;

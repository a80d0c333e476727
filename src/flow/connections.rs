//! The listener for connections that begin and end, by the events of connection tracking.

use std::os::fd::{AsFd, BorrowedFd};

use super::Error;
use super::inbox::{Inbox, Next};
use crate::nft::netlink::conntrack::{ConnectionEvent, connection_event};
use crate::nft::netlink::constant::{NFNLGRP_CONNTRACK_DESTROY, NFNLGRP_CONNTRACK_NEW};
use crate::nft::netlink::messages;

/// Hears of connections of the network namespace in which it is opened.
///
/// What changes in between is in a multicast group of its own, and this is not in it: the kernel makes those messages for others only.
/// A connection that began before anybody listened ends without a word (`net.netfilter.nf_conntrack_events`, 2 by default).
pub struct Connections {
    inbox: Inbox,
    unread: u64,
}

/// As bind(2) takes groups: one bit each, from 1.
const GROUPS: u32 = 1 << (NFNLGRP_CONNTRACK_NEW - 1) | 1 << (NFNLGRP_CONNTRACK_DESTROY - 1);

/// What may wait: 4 MiB of the kernel's memory (it doubles the number), about a kilobyte for each event.
const ROOM_BYTES: usize = 2 << 20;

impl Connections {
    /// Listens in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be opened; it takes CAP_NET_ADMIN.
    pub fn open() -> Result<Self, Error> {
        Self::open_with_room(ROOM_BYTES)
    }

    /// The same with another number of bytes for what waits; the kernel doubles it and has a least one of its own.
    ///
    /// # Errors
    /// As [`Connections::open`].
    pub fn open_with_room(room_bytes: usize) -> Result<Self, Error> {
        Ok(Self { inbox: Inbox::open("connection tracking's events", GROUPS, room_bytes)?, unread: 0 })
    }

    /// Appends at most `most` events; whether more may wait. Never blocks.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn read(&mut self, most: usize, into: &mut Vec<ConnectionEvent>) -> Result<bool, Error> {
        // One datagram is one event.
        for _ in 0..most {
            match self.inbox.next()? {
                Next::Nothing => return Ok(false),
                Next::Overrun => {}
                Next::Datagram(datagram) => match messages(datagram) {
                    Ok(messages) => {
                        for message in messages {
                            match connection_event(&message) {
                                Ok(event) => into.extend(event),
                                Err(_) => self.unread += 1,
                            }
                        }
                    }
                    Err(_) => self.unread += 1,
                },
            }
        }
        Ok(true)
    }

    /// How often events were lost: the kernel had no room, or wrote one that nobody can read. It does not say how many.
    pub const fn overruns(&self) -> u64 {
        self.inbox.overruns() + self.unread
    }
}

impl AsFd for Connections {
    /// Ready to read when events wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}

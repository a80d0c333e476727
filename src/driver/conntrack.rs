//! The kernel's connection tracking table (ctnetlink): looked through, and what a policy does not allow any more ended.

use std::net::IpAddr;

use nix::errno::Errno;

use super::route::Routes;
use super::socket::{Answer, Netlink};
use super::sockets::{Ends, Sockets};
use super::{Error, socket};
use crate::net::flow::Flow;
use crate::net::protocol::Protocol;
use crate::nft::netlink::conntrack::{end_flow, flow, list_flows};
use crate::revoke::{Judge, Revocation};

/// The connection tracking table of the network namespace in which it is opened.
#[derive(Debug)]
pub struct Conntrack {
    netlink: Netlink,
    routes: Routes,
    /// Absent on a kernel without them: flows are forgotten all the same.
    sockets: Option<Sockets>,
}

/// What became of the flows that a policy ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Revoked {
    /// How many flows were looked at.
    pub seen: usize,
    /// How many were ended.
    pub ended: usize,
    /// Whether it stopped early because something newer is to be judged.
    pub superseded: bool,
}

/// How many flows are ended with one datagram.
const FLOWS_AT_ONCE: usize = 64;
/// How often a dump that the kernel calls incomplete is read again.
const DUMP_ATTEMPTS: usize = 5;

impl Conntrack {
    /// Opens the sockets.
    ///
    /// # Errors
    /// [`Error::Socket`] when there is none to be had.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::open()?, routes: Routes::open()?, sockets: Sockets::open().ok() })
    }

    /// Every flow for which `keep` says so. A flow that comes or goes meanwhile may be missing or there.
    ///
    /// # Errors
    /// When the kernel refuses, or sends what is no flow.
    pub fn flows(&mut self, keep: &mut dyn FnMut(&Flow) -> bool) -> Result<Vec<Flow>, Error> {
        list(&mut self.netlink, keep)
    }

    /// The flows that a policy ends; also how many there are in all.
    ///
    /// # Errors
    /// As [`Conntrack::flows`].
    pub fn denied(&mut self, revocation: &Revocation) -> Result<(Vec<Flow>, usize), Error> {
        if !revocation.enforces() {
            return Ok((Vec::new(), 0));
        }
        let routes = &mut self.routes;
        let mut route = |local: IpAddr, remote: IpAddr| routes.interface(local, remote);
        let mut judge = Judge::new(revocation, &mut route);
        let mut seen = 0;
        let ended = list(&mut self.netlink, &mut |flow| {
            seen += 1;
            judge.ends(flow)
        })?;
        Ok((ended, seen))
    }

    /// Ends the flows that a policy denies: the sockets of TCP connections first, then the entries. It asks `superseded`
    /// now and then whether to stop, so that no flow ends by an answer that a newer policy has overtaken.
    ///
    /// # Errors
    /// As [`Conntrack::flows`]; the flows that were ended by then stay so.
    pub fn revoke(&mut self, revocation: &Revocation, superseded: &dyn Fn() -> bool) -> Result<Revoked, Error> {
        let (denied, seen) = self.denied(revocation)?;
        let mut revoked = Revoked { seen, ended: 0, superseded: false };
        for flows in denied.chunks(FLOWS_AT_ONCE) {
            if superseded() {
                revoked.superseded = true;
                break;
            }
            revoked.ended += self.end(flows)?;
        }
        Ok(revoked)
    }

    /// Ends flows; how many of them were still there.
    ///
    /// # Errors
    /// When the kernel refuses to.
    pub fn end(&mut self, flows: &[Flow]) -> Result<usize, Error> {
        let mut ended = 0;
        for flows in flows.chunks(FLOWS_AT_ONCE) {
            if let Some(sockets) = &mut self.sockets {
                for ends in flows.iter().flat_map(tcp_ends) {
                    // A kernel that cannot end sockets (INET_DIAG_DESTROY) still forgets the flow.
                    let _ = sockets.end(&ends);
                }
            }
            let first = self.netlink.take_sequence(flows.len());
            let mut bytes = Vec::new();
            for (index, flow) in (0..).zip(flows) {
                end_flow(&mut bytes, flow, first.wrapping_add(index));
            }
            self.netlink.send(&bytes)?;
            for (index, _) in (0..).zip(flows) {
                match self.netlink.answer(first.wrapping_add(index), &mut |_| Ok(()))? {
                    Answer::Complete => ended += 1,
                    // It ended by itself meanwhile.
                    Answer::Error(answer) if answer.errno == Errno::ENOENT as i32 => {}
                    Answer::Error(answer) => return Err(socket::refused("to end a flow".to_owned(), &answer)),
                    Answer::Interrupted => {
                        return Err(Error::Answer("the answers to ended flows were lost".to_owned()));
                    }
                }
            }
        }
        Ok(ended)
    }
}

fn list(netlink: &mut Netlink, keep: &mut dyn FnMut(&Flow) -> bool) -> Result<Vec<Flow>, Error> {
    let mut kept = Vec::new();
    for _ in 0..DUMP_ATTEMPTS {
        kept.clear();
        let sequence = netlink.take_sequence(1);
        netlink.send(&list_flows(sequence))?;
        let answer = netlink.answer(sequence, &mut |message| {
            kept.extend(flow(message)?.filter(|flow| keep(flow)));
            Ok(())
        })?;
        match answer {
            Answer::Complete => return Ok(kept),
            Answer::Interrupted => {}
            Answer::Error(answer) => return Err(socket::refused("to show the flows".to_owned(), &answer)),
        }
    }
    Err(Error::Contended)
}

/// The connection of a TCP flow as its socket on this host, which is at one of two ends, would see it: between translations
/// of the destination, which come before an incoming and after an outgoing packet's socket, and those of the source.
fn tcp_ends(flow: &Flow) -> Vec<Ends> {
    let (original, reply) = (&flow.original, &flow.reply);
    let (Some(sent), Some(answered)) = (original.ports(), reply.ports()) else { return Vec::new() };
    if original.protocol != Protocol::TCP {
        return Vec::new();
    }
    vec![
        Ends { local: (reply.source, answered.0), remote: (reply.destination, answered.1) },
        Ends { local: (original.source, sent.0), remote: (original.destination, sent.1) },
    ]
}

//! The kernel's connection tracking table (ctnetlink): looked through, and what a policy does not allow any more ended.

use std::collections::HashSet;
use std::net::IpAddr;

use nix::errno::Errno;

use super::route::Routes;
use super::socket::{Answer, Netlink};
use super::sockets::{Cookies, Ends, Sockets};
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
    /// How many denied flows are remembered at once.
    round: usize,
}

/// How far the work on the flows that a policy ends has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Revoked {
    /// How many flows were looked at.
    pub judged: usize,
    /// How many of them the policy denies.
    pub denied: usize,
    /// How many were ended.
    pub ended: usize,
    /// How many ended by themselves before it was their turn.
    pub gone: usize,
    /// Whether it was stopped: something newer is to be judged.
    pub stopped: bool,
}

impl Revoked {
    /// How many of the denied flows are still to be ended, as far as they were judged.
    pub const fn left(&self) -> usize {
        self.denied.saturating_sub(self.ended).saturating_sub(self.gone)
    }
}

/// How many flows are ended with one datagram.
const FLOWS_AT_ONCE: usize = 64;
/// How many flows are judged between two questions whether to go on.
const JUDGED_AT_ONCE: usize = 64;
/// How many denied flows are remembered before they are ended, which is a dozen megabytes; for more, the table is listed again.
const LARGEST_ROUND: usize = 1 << 17;
/// How often the table is listed again. Each round ends all that it found, so that not even a table of millions takes more.
const MOST_ROUNDS: usize = 64;
/// How often a dump that the kernel calls incomplete is read again.
const DUMP_ATTEMPTS: usize = 5;
/// From so many TCP flows on, the sockets are listed once instead of looked up one by one.
const SOCKETS_LISTED_FROM: usize = 256;

impl Conntrack {
    /// Opens the sockets.
    ///
    /// # Errors
    /// [`Error::Socket`] when there is none to be had.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::open()?,
            routes: Routes::open()?,
            sockets: Sockets::open().ok(),
            round: LARGEST_ROUND,
        })
    }

    /// The same with another number of denied flows that are remembered at once; a smaller one takes less memory and more time.
    #[must_use]
    pub fn remembering(self, most: usize) -> Self {
        Self { round: most.max(1), ..self }
    }

    /// Every flow for which `keep` says so. A flow that comes or goes meanwhile may be missing or there.
    ///
    /// # Errors
    /// When the kernel refuses, or sends what is no flow.
    pub fn flows(&mut self, keep: &mut dyn FnMut(&Flow) -> bool) -> Result<Vec<Flow>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(kept) = list(&mut self.netlink, keep)? {
                return Ok(kept);
            }
        }
        Err(Error::Contended)
    }

    /// The flows that a policy ends; also how many there are in all.
    ///
    /// # Errors
    /// As [`Conntrack::flows`].
    pub fn denied(&mut self, revocation: &Revocation) -> Result<(Vec<Flow>, usize), Error> {
        let mut revoked = Revoked::default();
        let denied = self.judge(revocation, usize::MAX, &mut revoked, &mut |_| true)?;
        Ok((denied, revoked.judged))
    }

    /// Ends the flows that a policy denies: the sockets of TCP connections first, then the entries. It asks `go_on` every few flows
    /// with how far it has come; where that says no, it stops, so that no flow ends by an answer that a newer policy has overtaken.
    /// It always comes to an end: what is denied is ended once, and flows that come meanwhile pass the rules in force.
    ///
    /// # Errors
    /// As [`Conntrack::flows`]; the flows that were ended by then stay so.
    pub fn revoke(
        &mut self,
        revocation: &Revocation,
        go_on: &mut dyn FnMut(&Revoked) -> bool,
    ) -> Result<Revoked, Error> {
        let mut revoked = Revoked::default();
        for _ in 0..MOST_ROUNDS {
            // Those that are gone were judged, too, and are not met again.
            revoked.judged = revoked.ended + revoked.gone;
            let denied = self.judge(revocation, self.round, &mut revoked, go_on)?;
            if revoked.stopped {
                break;
            }
            let cookies = self.cookies(&denied);
            for flows in denied.chunks(FLOWS_AT_ONCE) {
                if !go_on(&revoked) {
                    revoked.stopped = true;
                    break;
                }
                let ended = self.end_with(flows, cookies.as_ref())?;
                revoked.ended += ended;
                revoked.gone += flows.len() - ended;
            }
            if revoked.stopped || denied.len() < self.round {
                break;
            }
        }
        Ok(revoked)
    }

    /// Ends flows; how many of them were still there.
    ///
    /// # Errors
    /// When the kernel refuses to.
    pub fn end(&mut self, flows: &[Flow]) -> Result<usize, Error> {
        let cookies = self.cookies(flows);
        let mut ended = 0;
        for flows in flows.chunks(FLOWS_AT_ONCE) {
            ended += self.end_with(flows, cookies.as_ref())?;
        }
        Ok(ended)
    }

    /// Judges flows until so many are denied. What comes after that, or after a stop, is read and left aside: the kernel has it
    /// ready, and a listing cannot be called off.
    fn judge(
        &mut self,
        revocation: &Revocation,
        most: usize,
        revoked: &mut Revoked,
        go_on: &mut dyn FnMut(&Revoked) -> bool,
    ) -> Result<Vec<Flow>, Error> {
        if !revocation.enforces() {
            return Ok(Vec::new());
        }
        let routes = &mut self.routes;
        let mut route = |local: IpAddr, remote: IpAddr| routes.interface(local, remote);
        let mut judge = Judge::new(revocation, &mut route);
        let before = *revoked;
        for _ in 0..DUMP_ATTEMPTS {
            *revoked = before;
            let denied = list(&mut self.netlink, &mut |flow| {
                if revoked.stopped || revoked.denied - before.denied >= most {
                    return false;
                }
                if revoked.judged.is_multiple_of(JUDGED_AT_ONCE) && !go_on(revoked) {
                    revoked.stopped = true;
                    return false;
                }
                revoked.judged += 1;
                let ends = judge.ends(flow);
                revoked.denied += usize::from(ends);
                ends
            })?;
            if let Some(denied) = denied {
                return Ok(denied);
            }
        }
        Err(Error::Contended)
    }

    /// The sockets of flows with their cookies, where there are so many that this is cheaper than looking each up.
    fn cookies(&mut self, flows: &[Flow]) -> Option<Cookies> {
        let wanted: HashSet<Ends> = flows.iter().flat_map(tcp_ends).collect();
        if wanted.len() < SOCKETS_LISTED_FROM {
            return None;
        }
        // Should the list fail, they are looked up.
        self.sockets.as_mut()?.cookies(&wanted).ok()
    }

    /// Ends as many flows as fit a datagram; how many were still there.
    fn end_with(&mut self, flows: &[Flow], cookies: Option<&Cookies>) -> Result<usize, Error> {
        if let Some(sockets) = &mut self.sockets {
            for ends in flows.iter().flat_map(tcp_ends) {
                // A kernel that cannot end sockets (INET_DIAG_DESTROY) still forgets the flow.
                let _ = match cookies {
                    Some(cookies) => cookies.get(&ends).map_or(Ok(false), |cookie| sockets.end_by(&ends, *cookie)),
                    None => sockets.end(&ends),
                };
            }
        }
        let first = self.netlink.take_sequence(flows.len());
        let mut bytes = Vec::new();
        for (index, flow) in (0..).zip(flows) {
            // The kernel takes them in order and says only of the last one that it worked.
            end_flow(&mut bytes, flow, first.wrapping_add(index), index as usize + 1 == flows.len());
        }
        self.netlink.send(&bytes)?;
        let mut ended = flows.len();
        for answer in self.netlink.answers_up_to(first, flows.len())? {
            match answer.errno {
                0 => {}
                // It ended by itself meanwhile.
                errno if errno == Errno::ENOENT as i32 => ended -= 1,
                _ => return Err(socket::refused("to end a flow".to_owned(), &answer)),
            }
        }
        Ok(ended)
    }
}

/// One listing; `None` if the kernel calls it incomplete.
fn list(netlink: &mut Netlink, keep: &mut dyn FnMut(&Flow) -> bool) -> Result<Option<Vec<Flow>>, Error> {
    let mut kept = Vec::new();
    let sequence = netlink.take_sequence(1);
    netlink.send(&list_flows(sequence))?;
    let answer = netlink.answer(sequence, &mut |message| {
        kept.extend(flow(message)?.filter(|flow| keep(flow)));
        Ok(())
    })?;
    match answer {
        Answer::Complete => Ok(Some(kept)),
        Answer::Interrupted => Ok(None),
        Answer::Error(answer) => Err(socket::refused("to show the flows".to_owned(), &answer)),
    }
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

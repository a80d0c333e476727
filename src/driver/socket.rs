//! The kernel over one nfnetlink socket, kept open: closing it makes the kernel wait for its own clean-up
//! (`nf_tables.md` section 1).

mod replay;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{Ear, Error, Kernel, Read};
use crate::nft::change::{Batch, Change, Loaded, next_generation};
use crate::nft::ir::{Elements, Set};
use crate::nft::netlink::constant::{
    NFT_MSG_GETCHAIN, NFT_MSG_GETFLOWTABLE, NFT_MSG_GETGEN, NFT_MSG_GETOBJ, NFT_MSG_GETRULE, NFT_MSG_GETSET,
    NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFTA_CHAIN_TABLE, NFTA_FLOWTABLE_TABLE, NFTA_OBJ_TABLE, NFTA_RULE_TABLE,
    NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_TABLE, NFTA_TABLE_NAME, NLM_F_ACK, NLM_F_DUMP,
    NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR,
};
use crate::nft::netlink::{
    Acknowledgement, AnyChain, Encoded, Malformed, Message, Snapshot, acknowledgement, any_chain, elements_of, encode,
    generation, get_elements, messages, request, request_of_all_families,
};
use crate::nft::{TABLE, TABLE_NAME};

/// The kernel of the network namespace in which [`Netlink::open`] is called, over one socket that is kept open.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    /// The next sequence number.
    sequence: u32,
    /// How many bytes one send may have by now.
    send_limit: usize,
    buffer: Vec<u8>,
    /// What is closed while a large transaction is committed.
    ear: Option<Ear>,
}

/// How long we wait for the kernel's answer. It answers before the send returns; a wait means that something is broken.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for what the kernel sends at once: a dump fills datagrams of up to 32 KiB, and events come one by one.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// The largest datagram that we take (kernel `NLMSG_GOODSIZE` and the 32 KiB of netlink_dump, with room to spare).
const DATAGRAM_BYTES: usize = 1 << 17;
/// What the kernel adds to a message when it counts it against the send buffer (netlink_sendmsg: 32 bytes).
const SEND_OVERHEAD_BYTES: usize = 4096;
/// From this size on, a transaction is committed unheard: the notifications about it would take longer than not listening.
const HUSHED_BYTES: usize = 16 << 10;
/// How often a dump that another transaction interrupted is read again.
const DUMP_ATTEMPTS: usize = 50;

/// What became of one request.
pub(super) enum Answer {
    /// Everything up to its end came.
    Complete,
    /// The dump was interrupted by a transaction (`NLM_F_DUMP_INTR`, `EINTR`): what came is no consistent view.
    Interrupted,
    /// The kernel refused it.
    Error(Acknowledgement),
}

impl Netlink {
    /// Opens the socket in the calling thread's network namespace, in which it stays.
    ///
    /// # Errors
    /// [`Error::Socket`] when there is no socket to be had.
    pub fn open() -> Result<Self, Error> {
        Self::speaking(NETLINK_NETFILTER)
    }

    /// The same for another netlink protocol: routes and sockets are asked about in the same way.
    pub(super) fn speaking(protocol: isize) -> Result<Self, Error> {
        let failed = |attempt| move |source| Error::Socket { attempt, source };
        let mut socket = Socket::new(protocol).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        // Words with an error (Linux 4.12) and answers without the whole request in them: useful, not needed.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let timeout = TimeVal::new(RECEIVE_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| failed("set up")(errno.into()))?;
        // More than net.core.rmem_max takes CAP_NET_ADMIN; without it the smaller buffer has to do, for reading.
        if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            let _ = setsockopt(&socket.as_fd(), sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
        }
        Ok(Self { socket, sequence: 1, send_limit: 0, buffer: vec![0; DATAGRAM_BYTES], ear: None })
    }

    pub(super) fn take_sequence(&mut self, count: usize) -> u32 {
        let first = self.sequence;
        self.sequence = first.wrapping_add(u32::try_from(count).unwrap_or(1));
        first
    }

    /// Sends one datagram; the send buffer grows to hold it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let wanted = bytes.len() + SEND_OVERHEAD_BYTES;
        if wanted > self.send_limit {
            let forced = setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &wanted);
            if forced.is_err() {
                let _ = setsockopt(&self.socket.as_fd(), sockopt::SndBuf, &wanted);
            }
            self.send_limit = wanted;
        }
        loop {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Socket { attempt: "write to", source: errno.into() }),
            }
        }
    }

    /// Receives one datagram into the buffer and says how long it is; `None` when `wait` is off and there is none.
    fn receive(&mut self, wait: bool) -> Result<Option<usize>, Errno> {
        // With MSG_TRUNC the length is that of the datagram even where the buffer was too small for it.
        let flags = if wait { MsgFlags::MSG_TRUNC } else { MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) if length > self.buffer.len() => return Err(Errno::EMSGSIZE),
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !wait => return Ok(None),
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends a request and hands each message that answers it to `each`, up to its end.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        texts: &[(u16, &str)],
        each: &mut dyn FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Answer, Error> {
        let sequence = self.take_sequence(1);
        self.send(&request(kind, flags, sequence, texts))?;
        self.answer(sequence, each)
    }

    pub(super) fn answer(
        &mut self,
        sequence: u32,
        each: &mut dyn FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Answer, Error> {
        let mut interrupted = false;
        loop {
            let length = match self.receive(true) {
                Ok(length) => length.unwrap_or(0),
                // Something of the answer was lost: what came is not all of it.
                Err(Errno::ENOBUFS) => return Ok(Answer::Interrupted),
                Err(errno) => return Err(Error::Socket { attempt: "read from", source: errno.into() }),
            };
            for message in messages(&self.buffer[..length])? {
                // Left over from a request that was given up on.
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match acknowledgement(&message)? {
                    Some(answer) if answer.errno == Errno::EINTR as i32 => return Ok(Answer::Interrupted),
                    Some(answer) if answer.errno != 0 => return Ok(Answer::Error(answer)),
                    Some(_) if interrupted => return Ok(Answer::Interrupted),
                    Some(_) => return Ok(Answer::Complete),
                    None if message.kind == NLMSG_DONE => return Ok(Answer::Complete),
                    None => each(&message)?,
                }
            }
        }
    }

    /// What the kernel says about so many requests of one datagram, of which only the last asks for an acknowledgement: their errors
    /// in order, and that.
    pub(super) fn answers_up_to(&mut self, first: u32, count: usize) -> Result<Vec<Acknowledgement>, Error> {
        let mut answers = Vec::new();
        let last = count.saturating_sub(1);
        loop {
            let length = match self.receive(true) {
                Ok(length) => length.unwrap_or(0),
                Err(errno) => return Err(Error::Socket { attempt: "read from", source: errno.into() }),
            };
            for message in messages(&self.buffer[..length])? {
                let Some(answer) = acknowledgement(&message)? else { continue };
                let Ok(index) = usize::try_from(answer.sequence.wrapping_sub(first)) else { continue };
                if index < last {
                    answers.push(answer);
                } else if index == last {
                    answers.push(answer);
                    return Ok(answers);
                }
            }
        }
    }

    /// The one message that answers a request which asks for no acknowledgement; `None` if it is an error.
    pub(super) fn one<T>(
        &mut self,
        sequence: u32,
        read: impl FnOnce(&Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        loop {
            let length = match self.receive(true) {
                Ok(length) => length.unwrap_or(0),
                Err(errno) => return Err(Error::Socket { attempt: "read from", source: errno.into() }),
            };
            for message in messages(&self.buffer[..length])? {
                // Left over from a request that was given up on.
                if message.sequence == sequence {
                    return Ok(if message.kind == NLMSG_ERROR { None } else { read(&message) });
                }
            }
        }
    }

    /// One dump into the snapshot; whether it is consistent.
    fn dump(&mut self, kind: u16, texts: &[(u16, &str)], into: &mut Snapshot) -> Result<bool, Error> {
        match self.ask(kind, NLM_F_DUMP, texts, &mut |message| into.take(message))? {
            Answer::Complete => Ok(true),
            Answer::Interrupted => Ok(false),
            Answer::Error(answer) => match Errno::from_raw(answer.errno) {
                // The object went away between two dumps, or this kernel has none of the kind (flowtables, objects).
                Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EINVAL
                    if kind == NFT_MSG_GETFLOWTABLE || kind == NFT_MSG_GETOBJ =>
                {
                    Ok(true)
                }
                Errno::ENOENT => Ok(false),
                _ => Err(refused(format!("to show {TABLE}"), &answer)),
            },
        }
    }

    /// One reading of the table; `None` when something changed meanwhile.
    fn try_load(&mut self, read: &Read) -> Result<Option<Loaded>, Error> {
        let before = self.generation()?;
        let mut snapshot = Snapshot::default();
        let named = [(NFTA_TABLE_NAME, TABLE_NAME)];
        match self.ask(NFT_MSG_GETTABLE, NLM_F_ACK, &named, &mut |message| snapshot.take(message))? {
            Answer::Error(answer) if answer.errno == Errno::ENOENT as i32 => {
                let unchanged = self.generation()? == before;
                return Ok(unchanged.then(|| Loaded { generation: before, ..Loaded::default() }));
            }
            Answer::Error(answer) => return Err(refused(format!("to show {TABLE}"), &answer)),
            Answer::Interrupted => return Ok(None),
            Answer::Complete => {}
        }
        for (kind, attribute) in [
            (NFT_MSG_GETCHAIN, NFTA_CHAIN_TABLE),
            (NFT_MSG_GETSET, NFTA_SET_TABLE),
            (NFT_MSG_GETRULE, NFTA_RULE_TABLE),
            (NFT_MSG_GETOBJ, NFTA_OBJ_TABLE),
            (NFT_MSG_GETFLOWTABLE, NFTA_FLOWTABLE_TABLE),
        ] {
            if !self.dump(kind, &[(attribute, TABLE_NAME)], &mut snapshot)? {
                return Ok(None);
            }
        }
        let sets = snapshot.sets_to_read(|name| match read {
            Read::Everything => true,
            Read::Only(names) => names.iter().any(|wanted| wanted == name),
        });
        for name in &sets {
            let texts = [(NFTA_SET_ELEM_LIST_TABLE, TABLE_NAME), (NFTA_SET_ELEM_LIST_SET, name.as_str())];
            if !self.dump(NFT_MSG_GETSETELEM, &texts, &mut snapshot)? {
                return Ok(None);
            }
        }
        if self.generation()? != before {
            return Ok(None);
        }
        Ok(Some(snapshot.finish(before, &sets)?))
    }

    /// Reads what the kernel said about a batch whose sequence numbers `ours` knows: its errors, and whether answers were
    /// lost. All of it is queued when the send returns; the one wait is for the acknowledgement that the last change asks for.
    fn answers(&mut self, ours: impl Fn(u32) -> bool) -> Result<(Vec<Acknowledgement>, bool), Error> {
        let mut errors = Vec::new();
        let lost = self.each_answer(ours, |answer| {
            if answer.errno != 0 {
                errors.push(answer);
            }
        })?;
        Ok((errors, lost))
    }

    /// All that the kernel said about a batch each of whose messages asks for an acknowledgement.
    pub(super) fn all_answers(&mut self, ours: impl Fn(u32) -> bool) -> Result<Vec<Acknowledgement>, Error> {
        let mut answers = Vec::new();
        self.each_answer(ours, |answer| answers.push(answer))?;
        Ok(answers)
    }

    /// Whether answers were lost.
    fn each_answer(
        &mut self,
        ours: impl Fn(u32) -> bool,
        mut each: impl FnMut(Acknowledgement),
    ) -> Result<bool, Error> {
        let mut answered = false;
        let mut lost = false;
        loop {
            match self.receive(!answered) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    for message in messages(&self.buffer[..length])? {
                        let Some(answer) = acknowledgement(&message)? else { continue };
                        if !ours(answer.sequence) {
                            continue;
                        }
                        answered = true;
                        each(answer);
                    }
                }
                Err(Errno::ENOBUFS) => {
                    lost = true;
                    answered = true;
                }
                Err(errno) => return Err(Error::Socket { attempt: "read from", source: errno.into() }),
            }
        }
        Ok(lost)
    }

    fn encode(&mut self, batch: &Batch) -> Encoded {
        let encoded = encode(batch, self.sequence);
        self.take_sequence(encoded.len());
        encoded
    }

    fn transact(&mut self, batch: &Batch, encoded: &Encoded) -> Result<(), Error> {
        self.send(&encoded.bytes)?;
        self.verdict(batch, encoded)
    }

    /// Does `work`, which commits so many transactions on top of the generation `planned`, with the ear closed if it is worth it.
    fn unheard(
        &mut self,
        bytes: usize,
        planned: Option<u32>,
        commits: u32,
        work: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let closed = self.ear.clone().filter(|ear| bytes >= HUSHED_BYTES && ear.close());
        let Some(ear) = closed else { return work(self) };
        let done = work(self);
        ear.open();
        // Whatever comes from here on is heard. If the generation is the one that we made, nothing else came before.
        let made = planned.map(|planned| (0..commits).fold(planned, |generation, _| next_generation(generation)));
        if done.is_err() || made.is_none() || self.generation().ok() != made {
            ear.missed();
        }
        done
    }

    fn verdict(&mut self, batch: &Batch, encoded: &Encoded) -> Result<(), Error> {
        let (errors, lost) = self.answers(|sequence| encoded.contains(sequence))?;
        let change_of =
            |answer: &Acknowledgement| encoded.change_of(answer.sequence).and_then(|index| batch.changes.get(index));
        let missing: BTreeSet<&String> = errors
            .iter()
            .filter(|answer| answer.errno == Errno::ENOENT as i32)
            .filter_map(|answer| on_device(change_of(answer)?))
            .collect();
        if !missing.is_empty() {
            return Err(Error::NoDevice { chains: missing.into_iter().cloned().collect() });
        }
        match errors.first() {
            None if !lost => Ok(()),
            None => self.after_loss(batch),
            Some(answer) if answer.errno == ERESTART => Err(Error::Contended),
            Some(answer) => {
                Err(refused(change_of(answer).map_or_else(|| format!("table {TABLE}"), Change::subject), answer))
            }
        }
    }

    /// Answers were lost for want of buffer. Only errors are many, so the batch was refused if the generation is still
    /// the one it was planned against; otherwise what the kernel has now must be read again.
    fn after_loss(&mut self, batch: &Batch) -> Result<(), Error> {
        let now = self.generation()?;
        if batch.generation == Some(now) {
            let subject = format!("table {TABLE} (its reasons were lost)");
            return Err(Error::Refused { subject, errno: Errno::ENOBUFS });
        }
        Err(Error::Contended)
    }
}

/// The chain that a change puts on a device, if it does.
fn on_device(change: &Change) -> Option<&String> {
    match change {
        Change::AddChain { name, base: Some(base) } if base.device.is_some() => Some(name),
        _ => None,
    }
}

/// `ERESTART`, which user space otherwise never sees (include/linux/errno.h): the generation is not the one given.
const ERESTART: i32 = 85;

pub(super) fn refused(subject: String, answer: &Acknowledgement) -> Error {
    let subject = match &answer.text {
        Some(text) => format!("{subject} ({text})"),
        None => subject,
    };
    Error::Refused { subject, errno: Errno::from_raw(answer.errno) }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Answer(malformed.0)
    }
}

impl Kernel for Netlink {
    fn generation(&mut self) -> Result<u32, Error> {
        let mut found = None;
        let answer = self.ask(NFT_MSG_GETGEN, NLM_F_ACK, &[], &mut |message| {
            found = Some(generation(message)?);
            Ok(())
        })?;
        match (answer, found) {
            // The request has nothing in it that could be wrong: nfnetlink knows of no nf_tables (nfnetlink_rcv_msg).
            (Answer::Error(answer), _) if answer.errno == Errno::EINVAL as i32 => {
                let subject = "to speak of nf_tables, which it does not have (module nf_tables)".to_owned();
                Err(Error::Refused { subject, errno: Errno::EOPNOTSUPP })
            }
            (Answer::Error(answer), _) => Err(refused("to say its generation".to_owned(), &answer)),
            (_, Some(found)) => Ok(found),
            (_, None) => Err(Error::Answer("no generation in it".to_owned())),
        }
    }

    fn load(&mut self, read: &Read) -> Result<Loaded, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(loaded) = self.try_load(read)? {
                return Ok(loaded);
            }
        }
        Err(Error::Contended)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.changes.is_empty() {
            // Nothing to send, and nothing that would be acknowledged; only whether the plan is still of today.
            let now = self.generation()?;
            let stale = batch.generation.is_some_and(|planned| planned != now);
            return if stale { Err(Error::Contended) } else { Ok(()) };
        }
        let encoded = self.encode(batch);
        self.unheard(encoded.bytes.len(), batch.generation, 1, |kernel| kernel.transact(batch, &encoded))
    }

    fn commit_both(&mut self, first: &Batch, second: &Batch) -> Result<(), Error> {
        if first.changes.is_empty() || second.changes.is_empty() {
            self.commit(first)?;
            return self.commit(second);
        }
        // Between the two, whoever else has waited for the kernel's lock may get it, and hold it for as long as it takes to free
        // what a flush removed: everything that can be done before is.
        let (one, other) = (self.encode(first), self.encode(second));
        self.unheard(one.bytes.len() + other.bytes.len(), first.generation, 2, |kernel| {
            kernel.transact(first, &one)?;
            kernel.transact(second, &other)
        })
    }

    fn hush(&mut self, ear: Ear) {
        self.ear = Some(ear);
    }

    fn port(&self) -> Option<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address).ok()?;
        Some(address.port_number()).filter(|port| *port != 0)
    }

    fn chains(&mut self) -> Result<Vec<AnyChain>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.take_sequence(1);
            self.send(&request_of_all_families(NFT_MSG_GETCHAIN, sequence))?;
            let mut chains = Vec::new();
            let answer = self.answer(sequence, &mut |message| {
                chains.extend(any_chain(message)?);
                Ok(())
            })?;
            match answer {
                Answer::Complete => return Ok(chains),
                Answer::Interrupted => {}
                Answer::Error(answer) => return Err(refused("to show all chains".to_owned(), &answer)),
            }
        }
        Err(Error::Contended)
    }

    fn elements(&mut self, name: &str, shape: &Set) -> Result<Elements, Error> {
        let texts = [(NFTA_SET_ELEM_LIST_TABLE, TABLE_NAME), (NFTA_SET_ELEM_LIST_SET, name)];
        for _ in 0..DUMP_ATTEMPTS {
            let mut payloads = Vec::new();
            let answer = self.ask(NFT_MSG_GETSETELEM, NLM_F_DUMP, &texts, &mut |message| {
                payloads.push(message.payload.to_vec());
                Ok(())
            })?;
            match answer {
                Answer::Complete => return Ok(elements_of(&payloads, shape)?),
                Answer::Interrupted => {}
                Answer::Error(answer) => return Err(refused(format!("to show set {name}"), &answer)),
            }
        }
        Err(Error::Contended)
    }

    fn has_element(&mut self, name: &str, element: &Set) -> Result<bool, Error> {
        let sequence = self.take_sequence(1);
        self.send(&get_elements(name, element, sequence))?;
        let mut payloads = Vec::new();
        let answer = self.answer(sequence, &mut |message| {
            payloads.push(message.payload.to_vec());
            Ok(())
        })?;
        match answer {
            Answer::Error(answer) if answer.errno == Errno::ENOENT as i32 => Ok(false),
            Answer::Error(answer) => Err(refused(format!("to show set {name}"), &answer)),
            // Asked for the start of a range, the kernel gives the range that the value is in: it has to be the same.
            Answer::Complete | Answer::Interrupted => Ok(elements_of(&payloads, element)? == element.elements),
        }
    }
}

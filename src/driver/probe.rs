//! Which features the kernel has, asked of the kernel itself. Nothing comes into force, and nobody is notified.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process;

use nix::errno::Errno;

use super::sockets::{Ends, Sockets};
use super::{Error, Kernel, Netlink, socket, watch};
use crate::nft::feature::{Feature, Support};
use crate::nft::netlink::probe::{
    Probe, ask_conntrack, ask_log_reader, probe, read_socket_destroy, read_stale, read_subsystem, stale,
};

/// What the kernel of the calling thread's network namespace said about every feature. Modules that are there and not loaded are
/// loaded by the kernel.
///
/// # Errors
/// When the kernel may not be asked, which takes CAP_NET_ADMIN.
pub fn features() -> Result<BTreeMap<Feature, Support>, Error> {
    let mut found: BTreeMap<Feature, Support> =
        Feature::ALL.into_iter().map(|feature| (feature, Support::Unknown(None))).collect();
    let mut netlink = Netlink::open()?;
    found.insert(Feature::LogReader, subsystem(&mut netlink, ask_log_reader)?);
    found.insert(Feature::ConntrackList, subsystem(&mut netlink, ask_conntrack)?);
    found.insert(Feature::SocketDestroy, socket_destroy());
    let generation = match netlink.generation() {
        Ok(generation) => generation,
        // nfnetlink says so for a subsystem that it does not have.
        Err(Error::Refused { errno: Errno::EINVAL, .. }) => {
            found.insert(Feature::NfTables, Support::Missing(Errno::EINVAL as i32));
            return Ok(found);
        }
        Err(error) => return Err(error),
    };
    found.insert(Feature::NfTables, Support::Present);
    found.insert(Feature::Notifications, notifications());
    // Of this process alone, so that it is nobody's table, and two that ask at the same time do not meet.
    let table = format!("nodewall-probe-{}", process::id());
    let batch = probe(&table, netlink.take_sequence(0));
    let answers = netlink.answers_of(&batch)?;
    found.extend(batch.read(&answers));
    let batch = stale(&table, generation, netlink.take_sequence(0));
    let answers = netlink.answers_of(&batch)?;
    found.insert(Feature::BatchGeneration, read_stale(&batch, &answers));
    Ok(found)
}

fn subsystem(netlink: &mut Netlink, ask: fn(u32) -> Vec<u8>) -> Result<Support, Error> {
    let sequence = netlink.take_sequence(1);
    netlink.send(&ask(sequence))?;
    match netlink.answer(sequence, &mut |_| Ok(()))? {
        socket::Answer::Complete | socket::Answer::Interrupted => Ok(Support::Present),
        socket::Answer::Error(answer) if answer.errno == Errno::EPERM as i32 => {
            Err(socket::refused("to say what it can do".to_owned(), &answer))
        }
        socket::Answer::Error(answer) => Ok(read_subsystem(answer.errno)),
    }
}

/// Orders the end of a connection that cannot be: from and to addresses for documentation (RFC 5737), and port 0.
fn socket_destroy() -> Support {
    let documentation = |last| (IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), 0);
    let ends = Ends { local: documentation(1), remote: documentation(2) };
    match Sockets::open().and_then(|mut sockets| sockets.end_errno(&ends)) {
        Ok(errno) => read_socket_destroy(errno),
        Err(_) => Support::Unknown(None),
    }
}

fn notifications() -> Support {
    match watch::subscribe() {
        Ok(()) => Support::Present,
        Err(error) => match error.raw_os_error() {
            Some(errno) if errno != Errno::EPERM as i32 => Support::Missing(errno),
            errno => Support::Unknown(errno),
        },
    }
}

impl Netlink {
    /// Sends a batch of questions, and reads its answers.
    fn answers_of(&mut self, batch: &Probe) -> Result<Vec<crate::nft::netlink::Acknowledgement>, Error> {
        self.take_sequence(batch.len());
        self.send(&batch.bytes)?;
        let answers = self.all_answers(|sequence| batch.index_of(sequence).is_some())?;
        // What may not be asked at all is said of the first message.
        match answers.iter().find(|answer| answer.errno == Errno::EPERM as i32) {
            Some(answer) if batch.index_of(answer.sequence) == Some(0) => {
                Err(socket::refused("to say what it can do".to_owned(), answer))
            }
            _ => Ok(answers),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs a test in a network namespace of its own.
    fn isolated(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// As a kernel without the module would: the same question about an expression that there is not.
    #[test]
    fn an_expression_that_the_kernel_has_not_is_missing_and_the_rest_is_there() {
        isolated(|| {
            let mut netlink = Netlink::open().unwrap();
            let mut batch = probe("nodewall-test", netlink.take_sequence(0));
            let at = batch.bytes.windows(7).position(|bytes| bytes == b"socket\0").unwrap();
            batch.bytes[at..at + 6].copy_from_slice(b"sokket");
            let answers = netlink.answers_of(&batch).unwrap();
            let lacking: Vec<(Feature, Support)> =
                batch.read(&answers).into_iter().filter(|(_, support)| *support != Support::Present).collect();
            assert_eq!(lacking, [(Feature::SocketCgroup, Support::Missing(Errno::ENOENT as i32))]);
        });
    }
}

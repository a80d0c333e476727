//! The kernel's nf_tables: a socket that speaks nfnetlink, an in-memory kernel for tests and dry runs, and the one way in
//! which a ruleset gets from one generation to the next.

mod apply;
mod conntrack;
mod foreign;
mod members;
mod memory;
mod probe;
mod published;
mod route;
mod socket;
mod sockets;
mod watch;

pub use apply::{apply, verify};
pub use conntrack::{Conntrack, Revoked};
pub use foreign::{Drops, OtherChain, coexisting};
pub use members::change_members;
pub use memory::Memory;
pub use probe::features;
pub use published::{Exposed, published};
pub use route::{Routes, ways};
pub use socket::Netlink;
pub use watch::{Ear, Touch, Watch};

use crate::nft::change::{Batch, Loaded};
use crate::nft::ir::{Elements, Set};
use crate::nft::netlink::AnyChain;

/// Which sets' elements a read-back includes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// All of them.
    Everything,
    /// Only those of the sets named; the others come back empty and named in [`Loaded::unread`].
    Only(Vec<String>),
}

/// What went wrong with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened or used.
    #[error("cannot {attempt} the netlink socket")]
    Socket {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused one change of a batch, and with it the whole batch.
    #[error("the kernel refused {subject}: {errno}")]
    Refused {
        /// What it was about: see [`crate::nft::change::Change::subject`].
        subject: String,
        /// The kernel's error.
        errno: nix::errno::Errno,
    },
    /// The kernel refused a batch because devices of chains in it are not there. Since Linux 6.16 such chains wait for their device.
    #[error("the kernel has no device for chain {}", chains.join(", chain "))]
    NoDevice {
        /// The chains.
        chains: Vec<String>,
    },
    /// Another transaction came between planning and commit, more often than we try again.
    #[error("the ruleset kept changing while ours was applied")]
    Contended,
    /// The kernel sent something that is not nfnetlink as we know it.
    #[error("cannot read the kernel's answer: {0}")]
    Answer(String),
    /// The bytes of a stored batch are not one that builds our table and nothing else; nothing was sent.
    #[error("the batch is not one of ours: {0}")]
    Batch(String),
    /// What the kernel has after the commit is not what was sent.
    #[error("the kernel has something else than was sent: {0}")]
    Differs(String),
}

/// A kernel that holds our table. Two implementations: [`Netlink`] and, in memory, [`Memory`].
pub trait Kernel: Send {
    /// The current generation id of this network namespace's nf_tables (`NFT_MSG_GETGEN`).
    fn generation(&mut self) -> Result<u32, Error>;
    /// Reads our table.
    fn load(&mut self, read: &Read) -> Result<Loaded, Error>;
    /// Commits one transaction; [`Error::Contended`] when `batch.generation` is stale.
    fn commit(&mut self, batch: &Batch) -> Result<(), Error>;
    /// Commits two transactions with as little between them as can be; the second is planned against the generation that the
    /// first one makes. After an error the first may be in force, and the second is not.
    fn commit_both(&mut self, first: &Batch, second: &Batch) -> Result<(), Error> {
        self.commit(first)?;
        self.commit(second)
    }
    /// From now on, the watch of this ear does not listen while a large transaction of this kernel's is committed. What it may
    /// have missed then is told as [`Touch::Overrun`].
    fn hush(&mut self, _ear: Ear) {}
    /// The port by which notifications name our transactions; `None` for a kernel that notifies nobody.
    fn port(&self) -> Option<u32> {
        None
    }
    /// All chains of all tables, without their rules. There are none besides ours in a kernel that holds only our table.
    fn chains(&mut self) -> Result<Vec<AnyChain>, Error> {
        Ok(Vec::new())
    }
    /// What is in a set of this shape, and nothing else of the table.
    fn elements(&mut self, name: &str, shape: &Set) -> Result<Elements, Error> {
        let loaded = self.load(&Read::Only(vec![name.to_owned()]))?;
        let there = loaded.ruleset.sets.get(name).filter(|there| there.key == shape.key);
        there.map(|there| there.elements.clone()).ok_or_else(|| Error::Differs(format!("no set {name}")))
    }
    /// Whether the named set has the one element of `element`: cheaper than reading a large set. Of a range the kernel is
    /// asked for its start and its end, so that two ranges with a gap between them may answer for one without it.
    fn has_element(&mut self, name: &str, element: &Set) -> Result<bool, Error> {
        let loaded = self.load(&Read::Only(vec![name.to_owned()]))?;
        let there = loaded.ruleset.sets.get(name);
        Ok(there.is_some_and(|there| memory::without(&there.elements, &element.elements).is_ok()))
    }
}

/// What [`apply`] did.
#[derive(Clone, PartialEq, Debug)]
pub struct Applied {
    /// The table as it was read back.
    pub loaded: Loaded,
    /// How many changes were sent; 0 when the kernel had it all already.
    pub changes: usize,
    /// Large sets that were written and not read back yet: [`verify`] does.
    pub deferred: Vec<String>,
    /// Chains that are not in force because their device is not there. They are tried again with each [`apply()`].
    pub without: Vec<String>,
}

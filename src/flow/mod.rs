//! What the kernel tells of packets and connections as they come, the packet log and the events of connection tracking; and the
//! store of what they added up to.
//!
//! The first two are sockets that never block and are read in bounded pieces: under a flood it is the kernel that has no room, and what it
//! leaves out is counted.

mod connections;
mod inbox;
mod packets;
pub mod store;

pub use connections::Connections;
pub use packets::PacketLog;

/// What went wrong with one of the sockets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened or used.
    #[error("cannot {attempt} {what}")]
    Socket {
        /// What was tried.
        attempt: &'static str,
        /// What the socket is for.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// There is one reader for each group of the packet log, and it is not we.
    #[error(
        "another program reads group {group} of the packet log{}; stop it, or write another group in [log] of nodewall.toml",
        port.map_or_else(String::new, |port| format!(" (netlink port {port}, which most programs choose to be their process id)"))
    )]
    Taken {
        /// The group.
        group: u16,
        /// The netlink port of the reader, where the kernel says it.
        port: Option<u32>,
    },
    /// The kernel has no reader of the packet log.
    #[error("the kernel hands out no logged packets; load the module nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG)")]
    NoReader,
}

//! `[flows]` of nodewall.toml: what is kept of connections and logged packets, and how much.

use std::time::Duration;

use super::duration;
use crate::text::finding::Code;
use crate::text::read::{Fields, Reader};

/// What is kept of what goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowSettings {
    /// Whether records are kept on disk.
    pub store: bool,
    /// Whether connections are recorded that were let through, not only what was logged.
    pub connections: bool,
    /// Whether it is found out which process, unit, pod and user has a socket.
    pub processes: bool,
    /// Whether logged packets are told to the journal.
    pub journal: bool,
    /// Whether connection tracking is told to count packets and bytes (`net.netfilter.nf_conntrack_acct`).
    pub accounting: bool,
    /// For how long a record gathers before it is written.
    pub window: Duration,
    /// For how long records are kept.
    pub keep: Duration,
    /// How many bytes the store takes on disk at most.
    pub size: u64,
}

/// The shipped settings.
pub const SHIPPED: FlowSettings = FlowSettings {
    store: true,
    connections: true,
    processes: true,
    journal: true,
    accounting: true,
    window: Duration::from_secs(10),
    keep: Duration::from_secs(24 * 3600),
    size: 256 * MIB as u64,
};

const MIB: i64 = 1024 * 1024;
/// The smallest store, in MiB: below, a busy minute would not fit.
const LEAST_MIB: i64 = 4;
/// The largest.
const MOST_MIB: i64 = 16 * 1024;
/// The longest window: nobody waits longer to see what happened.
const LONGEST_WINDOW: Duration = Duration::from_secs(300);

/// Reads `[flows]`.
pub(super) fn flows<'t>(reader: &mut Reader<'t>, mut fields: Fields<'_, 't>) -> FlowSettings {
    let mut settings = SHIPPED;
    for (key, place) in [
        ("store", &mut settings.store),
        ("connections", &mut settings.connections),
        ("processes", &mut settings.processes),
        ("journal", &mut settings.journal),
        ("accounting", &mut settings.accounting),
    ] {
        if let Some(said) = fields.get(key).and_then(|node| reader.boolean(node, key)) {
            *place = said;
        }
    }
    for (key, longest, place) in
        [("window", Some(LONGEST_WINDOW), &mut settings.window), ("keep", None, &mut settings.keep)]
    {
        let Some(node) = fields.get(key) else { continue };
        let Some(text) = reader.string(node, key) else { continue };
        match duration::parse(text) {
            Ok(time) if longest.is_some_and(|longest| time > longest) => {
                let message = format!("{key} \"{text}\" is too long");
                reader.error_with_help(Code::Value, node.span, message, "write at most \"5m\"");
            }
            Ok(time) => *place = time,
            Err(message) => {
                reader.error_with_help(Code::Value, node.span, message, "write it as \"10s\" or \"24h\"");
            }
        }
    }
    if let Some(node) = fields.get("size_mib")
        && let Some(mib) = reader.integer(node, "size_mib", LEAST_MIB, MOST_MIB)
    {
        settings.size = u64::try_from(mib.saturating_mul(MIB)).unwrap_or(settings.size);
    }
    fields.finish(reader, "[flows]");
    settings
}

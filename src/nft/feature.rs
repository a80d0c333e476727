//! What nodewall uses of the kernel's packet filter and a kernel may be built without: for whom it is needed, and where it comes from.

/// Something that a kernel has or lacks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "Feature::words says what each is")]
pub enum Feature {
    NfTables,
    Inet,
    Conntrack,
    Counter,
    Limit,
    Log,
    Reject,
    IntervalSets,
    RangeConcatenations,
    VerdictMaps,
    InterfaceKind,
    BatchGeneration,
    Notifications,
    LogReader,
    ConntrackList,
    SocketDestroy,
    DynamicSets,
    SocketOwner,
    SocketCgroup,
    Fib,
    Notrack,
    HeaderOptions,
    NetdevIngress,
}

/// What a kernel without a feature means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// nodewall does not work without it.
    Always,
    /// Without it, this does not work: a part of a sentence that begins with "without it".
    Partly(&'static str),
}

/// Everything there is to say about a feature.
struct Entry {
    name: &'static str,
    words: &'static str,
    need: Need,
    config: &'static str,
    module: Option<&'static str>,
}

impl Feature {
    /// All, those without which nothing works first.
    pub const ALL: [Self; 23] = [
        Self::NfTables,
        Self::Inet,
        Self::Conntrack,
        Self::Counter,
        Self::Limit,
        Self::Log,
        Self::Reject,
        Self::IntervalSets,
        Self::RangeConcatenations,
        Self::VerdictMaps,
        Self::InterfaceKind,
        Self::BatchGeneration,
        Self::Notifications,
        Self::LogReader,
        Self::ConntrackList,
        Self::SocketDestroy,
        Self::DynamicSets,
        Self::SocketOwner,
        Self::SocketCgroup,
        Self::Fib,
        Self::Notrack,
        Self::HeaderOptions,
        Self::NetdevIngress,
    ];

    /// The name for scripts.
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    /// What it is, for people.
    pub const fn words(self) -> &'static str {
        self.entry().words
    }

    /// Who needs it.
    pub const fn need(self) -> Need {
        self.entry().need
    }

    /// The option that a kernel with it is built with.
    pub const fn config(self) -> &'static str {
        self.entry().config
    }

    /// The module that brings it, where it can be one.
    pub const fn module(self) -> Option<&'static str> {
        self.entry().module
    }

    /// One line for each: the name for scripts, what it is, what does not work without it, and where it comes from.
    const fn entry(self) -> Entry {
        const fn always(name: &'static str, words: &'static str, config: &'static str, module: &'static str) -> Entry {
            Entry { name, words, need: Need::Always, config, module: Some(module) }
        }
        const fn partly(
            (name, words): (&'static str, &'static str),
            without: &'static str,
            config: &'static str,
            module: Option<&'static str>,
        ) -> Entry {
            Entry { name, words, need: Need::Partly(without), config, module }
        }
        match self {
            Self::NfTables => always("nf-tables", "nf_tables", "CONFIG_NF_TABLES", "nf_tables"),
            Self::Inet => always("inet", "tables of family inet", "CONFIG_NF_TABLES_INET", "nf_tables"),
            Self::Conntrack => always("conntrack", "matches of connection states (ct)", "CONFIG_NFT_CT", "nft_ct"),
            Self::Counter => always("counter", "counters", "CONFIG_NFT_COUNTER (or Linux 5.18)", "nft_counter"),
            Self::Limit => always("limit", "rate limits", "CONFIG_NFT_LIMIT", "nft_limit"),
            Self::Log => {
                always("log", "packet logging by NFLOG", "CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG", "nft_log")
            }
            Self::Reject => partly(
                ("reject", "reject in tables of family inet"),
                "rules with the action reject are refused",
                "CONFIG_NFT_REJECT_INET",
                Some("nft_reject_inet"),
            ),
            Self::IntervalSets => always("interval-sets", "sets of ranges", "CONFIG_NF_TABLES", "nf_tables"),
            Self::RangeConcatenations => always(
                "range-concatenations",
                "sets of ranges of several fields",
                "CONFIG_NF_TABLES of Linux 5.6",
                "nf_tables",
            ),
            Self::VerdictMaps => always("verdict-maps", "verdict maps", "CONFIG_NF_TABLES", "nf_tables"),
            Self::InterfaceKind => {
                always("interface-kind", "matches of interface kinds", "CONFIG_NF_TABLES of Linux 5.1", "nf_tables")
            }
            Self::BatchGeneration => partly(
                ("batch-generation", "transactions that are bound to a generation"),
                "a change by somebody else at the same moment is overwritten unseen",
                "CONFIG_NF_TABLES of Linux 4.13",
                None,
            ),
            Self::Notifications => partly(
                ("notifications", "notifications of nf_tables changes"),
                "what others change in our table is found and repaired after a minute only",
                "CONFIG_NF_TABLES",
                None,
            ),
            Self::LogReader => partly(
                ("log-reader", "reading logged packets (nfnetlink_log)"),
                "nobody can read the packets that rules log",
                "CONFIG_NETFILTER_NETLINK_LOG",
                Some("nfnetlink_log"),
            ),
            Self::ConntrackList => partly(
                ("conntrack-list", "the list of tracked connections (ctnetlink)"),
                "flows that a new policy denies do not end",
                "CONFIG_NF_CT_NETLINK",
                Some("nf_conntrack_netlink"),
            ),
            Self::SocketDestroy => partly(
                ("socket-destroy", "ending TCP sockets (SOCK_DESTROY)"),
                "TCP connections that a new policy denies can go on from this host's side",
                "CONFIG_INET_DIAG_DESTROY",
                Some("tcp_diag"),
            ),
            Self::DynamicSets => partly(
                ("dynamic-sets", "sets that rules fill, with timeouts and limits"),
                "limits for each source are refused",
                "CONFIG_NF_TABLES of Linux 4.1",
                None,
            ),
            Self::SocketOwner => partly(
                ("socket-owner", "matches of a socket's user and group"),
                "rules for local users and groups are refused",
                "CONFIG_NF_TABLES",
                None,
            ),
            Self::SocketCgroup => partly(
                ("socket-cgroup", "matches of a socket's control group (socket cgroupv2)"),
                "rules for units are refused",
                "CONFIG_NFT_SOCKET and CONFIG_SOCK_CGROUP_DATA of Linux 5.13",
                Some("nft_socket"),
            ),
            Self::Fib => partly(
                ("fib", "route lookups (fib)"),
                "checks of a packet's source against the routes are refused",
                "CONFIG_NFT_FIB_INET",
                Some("nft_fib_inet"),
            ),
            Self::Notrack => partly(
                ("notrack", "packets that are not tracked (notrack)"),
                "untracked policies are refused",
                "CONFIG_NFT_CT",
                Some("nft_ct"),
            ),
            Self::HeaderOptions => partly(
                ("header-options", "matches of IP options and IPv6 extension headers"),
                "rules for them are refused",
                "CONFIG_NF_TABLES of Linux 5.3",
                None,
            ),
            Self::NetdevIngress => partly(
                ("netdev-ingress", "the ingress hook of interfaces (netdev)"),
                "policies of the ingress stage are refused",
                "CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS",
                Some("nf_tables"),
            ),
        }
    }
}

/// What a kernel said about a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It has it.
    Present,
    /// It does not, by this error number.
    Missing(i32),
    /// It did not say: by this error number, or because what the feature belongs to is missing itself.
    Unknown(Option<i32>),
}

impl Support {
    /// The word for scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Missing(_) => "missing",
            Self::Unknown(_) => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_feature_is_in_the_list_once_and_has_a_name_of_its_own() {
        let mut sorted = Feature::ALL;
        sorted.sort_unstable();
        assert_eq!(sorted, Feature::ALL, "in the order in which they are declared");
        assert_eq!(Feature::NetdevIngress as usize + 1, Feature::ALL.len());
        let names: BTreeSet<&str> = Feature::ALL.iter().map(|feature| feature.name()).collect();
        assert_eq!(names.len(), Feature::ALL.len());
    }
}

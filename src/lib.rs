//! nodewall: a host firewall for bare-metal GPU nodes.
//!
//! The house, from the ground up; a module uses only what is on lower floors (`tests/layers.rs` holds it to that):
//!
//! | floor | modules | what it is |
//! |---|---|---|
//! | 0 | [`net`], [`text`] | shared words: protocols, ports, addresses, `Facts`; places and findings in text |
//! | 1 | [`policy`], [`nft`] | what the operator means; what the kernel is told |
//! | 2 | [`compile`], [`simulate`], [`plan`] | policy to ruleset; packet to verdict; current and desired to transaction |
//! | 3 | [`revoke`], [`exposure`], [`traffic`], [`metrics`] | which flows a policy ends; what can be reached, and from where; what goes on, as events and records; numbers as OpenMetrics |
//! | 4 | [`reconcile`], [`fleet`], [`learn`] | the state machine of the daemon, without I/O; what the nodes of a fleet have in force, and how they differ; a policy from what went on |
//! | 5 | [`config`], [`source`], [`host`], [`driver`], [`store`], [`flow`], [`capture`], [`identity`] | one outside thing each: settings, policy files, inventory, kernel, generations on disk, packets and connections as the kernel tells of them, captures, who the node is to its cluster |
//! |   | [`textfile`], [`connect`] | below those of floor 5: one text file, read with care, for `config` and `source`; clients of API servers, for `source` and `identity` |
//! | 6 | [`daemon`], [`boot`], [`controller`] | the one loop, the control socket, systemd; the rules before all that; what one for a whole cluster does |
//! | 7 | [`cli`] | one file per subcommand |

pub mod net;
pub mod text;

pub mod nft;
pub mod policy;

pub mod compile;
pub mod plan;
pub mod simulate;

pub mod exposure;
pub mod metrics;
pub mod revoke;
pub mod traffic;

pub mod fleet;
pub mod learn;
pub mod reconcile;

pub mod boot;
pub mod capture;
pub mod cli;
pub mod config;
pub mod connect;
pub mod controller;
pub mod daemon;
pub mod driver;
pub mod flow;
pub mod host;
pub mod identity;
pub mod source;
pub mod store;
pub mod textfile;

//! What the kernel is told: a small IR of the nf_tables objects and expressions that we emit ([`ir`], [`key`]), what is
//! changed in one transaction ([`change`]), the longest way through it ([`longest`]), the IR's three spellings: nft(8) text,
//! libnftables JSON, and netlink; and what a kernel may lack of all that ([`feature`]).

pub mod change;
pub mod feature;
pub mod ir;
pub mod json;
pub mod key;
pub mod longest;
pub mod netlink;
mod normal;
pub mod text;
mod words;

/// The family and name of the one table that is ours, as nft(8) writes them.
pub const TABLE: &str = "inet nodewall";

/// The name of the table.
pub const TABLE_NAME: &str = "nodewall";

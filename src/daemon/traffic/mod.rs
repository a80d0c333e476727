//! What goes on at this node: from the packet log and connection tracking to the journal, to who watches, and to the store.

pub mod record;

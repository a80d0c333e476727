//! The netlink form of the IR: batches as bytes, dumps as IR. Pure: no socket here.

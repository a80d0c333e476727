//! A node for packets of any kind: frames made byte by byte, witnesses at every hook that say how far each packet came and what
//! connection tracking called it, and the comparison of that with the two judges in the program.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bed;
pub mod compare;
pub mod frame;
pub mod inbox;
pub mod node;
pub mod observe;
pub mod people;
pub mod report;
pub mod shape;
pub mod witness;

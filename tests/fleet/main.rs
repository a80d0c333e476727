//! Fleets: what nodes say that they have in force, in groups, and how these differ, from objects and by the program.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod command;
mod contrast;
#[allow(dead_code)]
#[path = "../kube/stand_in.rs"]
mod stand_in;
mod survey;

//! Text that people wrote: where a thing stands in it, what is wrong with it, times of day, and TOML as a tree in which every
//! value knows its place.

pub mod finding;
pub mod place;
pub mod read;
pub mod render;
pub mod time;
pub mod tree;

//! Text that people wrote: where a thing stands in it, what is wrong with it, times of day, and TOML and YAML as trees in which
//! every value knows its place.

pub mod fields;
pub mod finding;
pub mod place;
pub mod read;
pub mod render;
pub mod time;
pub mod tree;
pub mod yaml;

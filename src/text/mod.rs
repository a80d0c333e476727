//! Text that people wrote: where a thing stands in it, what is wrong with it, what errors say, times of day, names of Kubernetes, and TOML and YAML as trees in which
//! every value knows its place.

pub mod cause;
pub mod fields;
pub mod finding;
pub mod name;
pub mod place;
pub mod plain;
pub mod read;
pub mod render;
pub mod time;
pub mod tree;
pub mod yaml;

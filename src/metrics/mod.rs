//! Numbers about this node as OpenMetrics: what is counted, what is shown of it, and as which text.

pub mod bounded;
pub mod families;
pub mod histogram;
pub mod snapshot;
pub mod text;
pub mod verdicts;

//! What is listed and watched of a cluster: our objects, and its Nodes.

use crate::source::object::{API_VERSION, Kind};

/// Objects of one kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// One of ours.
    Object(Kind),
    /// Node of Kubernetes' core.
    Node,
}

impl Resource {
    /// Where they are: the path of a request for all of them.
    pub(super) fn path(self) -> String {
        match self {
            Self::Object(kind) => format!("/apis/{API_VERSION}/{}", kind.plural()),
            Self::Node => "/api/v1/nodes".to_owned(),
        }
    }

    /// What they are called in the path of a request.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Object(kind) => kind.plural(),
            Self::Node => "nodes",
        }
    }

    /// The kind of a document.
    pub(super) fn document(self) -> Option<Kind> {
        match self {
            Self::Object(kind) => kind.table().map(|_| kind),
            Self::Node => None,
        }
    }
}

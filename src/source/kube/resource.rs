//! What is listed and watched of a cluster: our objects, its Nodes, and Calico's objects.

use crate::source::calico::CalicoKind;
use crate::source::object::{API_VERSION, Kind};

/// Objects of one kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// One of ours.
    Object(Kind),
    /// Node of Kubernetes' core.
    Node,
    /// One of Calico's.
    Calico(CalicoKind, Form),
}

/// The form in which a server has Calico's objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Form {
    /// `crd.projectcalico.org/v1`, as Calico stores them: nothing but the API server itself is needed for it.
    Stored,
    /// `projectcalico.org/v3`, as Calico's own API server or its newer definitions have them.
    V3,
}

impl Form {
    const fn api_version(self) -> &'static str {
        match self {
            Self::Stored => "crd.projectcalico.org/v1",
            Self::V3 => "projectcalico.org/v3",
        }
    }
}

impl Resource {
    /// Where they are: the path of a request for all of them.
    pub(super) fn path(self) -> String {
        match self {
            Self::Object(kind) => format!("/apis/{API_VERSION}/{}", kind.plural()),
            Self::Node => "/api/v1/nodes".to_owned(),
            Self::Calico(kind, form) => format!("/apis/{}/{}", form.api_version(), kind.plural()),
        }
    }

    /// What they are called in the path of a request.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Object(kind) => kind.plural(),
            Self::Node => "nodes",
            Self::Calico(kind, _) => kind.plural(),
        }
    }

    /// The kind of a document.
    pub(super) fn document(self) -> Option<Kind> {
        match self {
            Self::Object(kind) => kind.table().map(|_| kind),
            Self::Node | Self::Calico(..) => None,
        }
    }

    /// Where the same is if the server does not know this.
    pub(super) const fn otherwise(self) -> Option<Self> {
        match self {
            Self::Calico(kind, Form::Stored) => Some(Self::Calico(kind, Form::V3)),
            _ => None,
        }
    }
}

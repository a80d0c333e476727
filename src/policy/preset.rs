//! Policies that come with nodewall, for kinds of nodes and for what runs on them; and the copy of one that a node has.
//!
//! A preset is a policy file like any other. Its copy begins with a line that says what it was copied from, so that a copy which
//! somebody edited is told from one that is only older.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// What a preset is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A kind of node.
    Node,
    /// Something that runs on nodes.
    Stack,
}

impl Kind {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Stack => "stack",
        }
    }
}

/// A preset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// The policy file.
    pub text: &'static str,
}

macro_rules! presets {
    ($($kind:ident: $($name:literal),*;)*) => {
        /// Every preset: kinds of nodes, then stacks.
        pub const ALL: &[Preset] = &[$($(Preset {
            name: $name,
            kind: Kind::$kind,
            text: include_str!(concat!("../../config/presets/", $name, ".toml")),
        }),*),*];
    };
}

presets! {
    Node: "training", "inference-edge", "inference-cluster", "dev", "login";
    Stack: "amd-metrics-exporter", "beegfs", "calico", "ceph", "cilium", "dcgm", "flannel", "gpfs", "imds", "imex", "iwarp", "jupyter",
        "kube-control-plane", "kubelet", "lustre", "nccl-peers", "nfs", "node-exporter", "nvme-tcp", "ollama", "ray", "redfish-host",
        "roce-soft", "sglang", "sharp-client", "slurm", "tmfifo", "torchrun", "triton", "vllm";
}

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    ALL.iter().find(|preset| preset.name == name)
}

/// What a file is that stands where the copy of a preset would.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The copy that this version would write.
    Enabled,
    /// The copy of another version, as that wrote it.
    Outdated,
    /// Somebody changed it, or it never was a copy.
    Edited,
}

impl State {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Outdated => "outdated",
            Self::Edited => "edited",
        }
    }
}

/// How the first line of a copy begins.
const HEAD: &str = "# nodewall preset ";

impl Preset {
    /// What it is for: the first sentence of its text, without the full stop.
    pub fn summary(&self) -> String {
        let comment = self.text.lines().map_while(|line| line.strip_prefix("# ")).collect::<Vec<_>>().join(" ");
        let sentence = comment.split_once(". ").map_or(comment.as_str(), |(first, _)| first);
        sentence.trim_end_matches('.').to_owned()
    }

    /// The name of its copy in a policy directory.
    pub fn file_name(&self) -> String {
        format!("50-preset-{}.toml", self.name)
    }

    /// Its copy.
    pub fn copy(&self) -> String {
        format!("{}\n{}", self.head(&digest(self.text)), self.text)
    }

    /// What a file with this text is.
    pub fn state(&self, text: &str) -> State {
        if text == self.copy() {
            return State::Enabled;
        }
        match text.split_once('\n') {
            Some((head, rest)) if head == self.head(&digest(rest)) => State::Outdated,
            _ => State::Edited,
        }
    }

    fn head(&self, digest: &str) -> String {
        format!("{HEAD}{} sha256:{digest}", self.name)
    }
}

fn digest(text: &str) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(text.as_bytes()) {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_copy_that_was_edited_is_told_from_one_of_another_version() {
        let preset = find("kubelet").unwrap();
        let copy = preset.copy();
        assert_eq!(preset.state(&copy), State::Enabled);
        let older = Preset { text: "# Kubelet, as it was.\n", ..*preset };
        assert_eq!(preset.state(&older.copy()), State::Outdated);
        let other = find("nfs").unwrap();
        for edited in [
            copy.replace("5100", "5"),
            format!("{copy}# mine\n"),
            preset.text.to_owned(),
            other.copy(),
            String::new(),
            copy.trim_end().to_owned(),
        ] {
            assert_eq!(preset.state(&edited), State::Edited, "{edited}");
        }
    }

    #[test]
    fn names_are_sorted_unique_and_said_what_for() {
        for kind in [Kind::Node, Kind::Stack] {
            let names: Vec<&str> = ALL.iter().filter(|preset| preset.kind == kind).map(|preset| preset.name).collect();
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(names.len(), sorted.len());
            if kind == Kind::Stack {
                assert_eq!(names, sorted);
            }
        }
        for preset in ALL {
            assert!(preset.text.starts_with("# ") && !preset.summary().is_empty(), "{}", preset.name);
        }
    }
}

//! Which clusters a node takes documents from, and what each of them may say (`policy.md` section 6).

use std::collections::BTreeSet;
use std::path::PathBuf;

use ipnet::IpNet;

use super::model::{HostPolicy, Stage, Tier};

/// A cluster of `[[source.cluster]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// What it is called here.
    pub name: String,
    /// Where its API server is, and what this node shows it.
    pub kubeconfig: PathBuf,
    /// What it may say.
    pub contribute: BTreeSet<Contribution>,
    /// The tiers for which it may write policies, and which it may define where it contributes tiers.
    pub tiers: BTreeSet<String>,
    /// Whether it is believed when it has nothing more of what it had.
    pub believe_empty: bool,
    /// Where the addresses of its nodes are; others that it says its nodes have do not count. Empty: anywhere.
    pub node_addresses: Vec<IpNet>,
    /// Whether Calico's objects in it hold, in tiers of their own.
    pub calico: bool,
}

/// What a cluster may say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Contribution {
    /// HostPolicy, HostService and HostExpectation.
    Policies,
    /// HostNetworkSet.
    Sets,
    /// HostTier: in which order tiers hold.
    Tiers,
    /// HostInterface: which roles interfaces have.
    Interfaces,
    /// Policies of the stages `untracked` and `prednat`, which decide before the tiers of the other stages are asked.
    EarlyStages,
    /// Node and HostState: who its nodes are, with labels and addresses, for `nodes` in rules; and this node is one of them.
    Nodes,
}

impl Contribution {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Policies, Self::Sets, Self::Tiers, Self::Interfaces, Self::EarlyStages, Self::Nodes];

    /// The word in nodewall.toml.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policies => "policies",
            Self::Sets => "sets",
            Self::Tiers => "tiers",
            Self::Interfaces => "interfaces",
            Self::EarlyStages => "early-stages",
            Self::Nodes => "nodes",
        }
    }
}

impl Cluster {
    /// Why it may not have this policy; `None`: it may.
    pub fn refuses_policy(&self, policy: &HostPolicy) -> Option<String> {
        if !self.tiers.contains(&policy.tier) {
            return Some(format!("cluster \"{}\" may not write to tier \"{}\"", self.name, policy.tier));
        }
        self.refuses_stage(policy.stage)
    }

    /// Why it may not have policies of this stage; `None`: it may.
    pub fn refuses_stage(&self, stage: Stage) -> Option<String> {
        let early = matches!(stage, Stage::Untracked | Stage::Prednat);
        (early && !self.contribute.contains(&Contribution::EarlyStages)).then(|| {
            let stage = stage.name();
            format!("cluster \"{}\" may not have policies of stage \"{stage}\", which go before all tiers", self.name)
        })
    }

    /// Why it may not have this tier; `None`: it may.
    pub fn refuses_tier(&self, tier: &Tier) -> Option<String> {
        (!self.tiers.contains(&tier.name))
            .then(|| format!("cluster \"{}\" may not define tier \"{}\"", self.name, tier.name))
    }
}

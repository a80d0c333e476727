//! How two nodes differ in what their policy means, and how one differs from what the API says for it.

use super::Report;
use super::api::Api;

/// How the policy of some nodes differs from that of others, by its parts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Mode: theirs, and that of the others.
    pub mode: Option<Pair>,
    /// What is done with packets that no policy decides, by hash.
    pub defaults: Option<Pair>,
    /// The ways that no policy can close, by hash.
    pub failsafe: Option<Pair>,
    /// Policies, by name.
    pub policies: Vec<PolicyDifference>,
    /// How many policies are not told apart, as there was no room for them.
    pub untold: u64,
}

/// Here, and on the others; `None` where that is not known.
pub type Pair = (Option<String>, Option<String>);

/// A policy that is not the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyDifference {
    /// "tier/name".
    pub name: String,
    /// Its hash here; `None`: it is not there.
    pub here: Option<String>,
    /// Its hash on the others.
    pub there: Option<String>,
    /// The API's; `None`: it has no such policy.
    pub api: Option<String>,
    /// Whether the one here is the API's, and whether that of the others is.
    pub is_apis: (bool, bool),
}

impl PolicyDifference {
    /// Whether it is known what the policy says, on both sides.
    pub fn is_known(&self) -> bool {
        let (here, there) = self.is_apis;
        (self.here.is_none() || here) && (self.there.is_none() || there)
    }
}

impl Difference {
    /// How one differs from the other.
    pub fn between(here: &Report, there: &Report, api: &Api) -> Self {
        let pair = |one: &Option<String>, other: &Option<String>| (one != other).then(|| (one.clone(), other.clone()));
        let mut policies = Vec::new();
        let others = there.policies.keys().filter(|name| !here.policies.contains_key(*name));
        let mut names: Vec<&String> = here.policies.keys().chain(others).collect();
        names.sort();
        for name in names {
            let (one, other) = (here.policies.get(name), there.policies.get(name));
            // What there was no room for is not known to be missing.
            let cut = (one.is_none() && here.omitted > 0) || (other.is_none() && there.omitted > 0);
            if one == other || cut {
                continue;
            }
            let is = |hash: Option<&String>| hash.is_some_and(|hash| api.is(name, hash));
            policies.push(PolicyDifference {
                name: name.clone(),
                here: one.cloned(),
                there: other.cloned(),
                api: api.hash(name).map(str::to_owned),
                is_apis: (is(one), is(other)),
            });
        }
        Self {
            mode: pair(&here.mode, &there.mode),
            defaults: pair(&here.defaults, &there.defaults),
            failsafe: pair(&here.failsafe, &there.failsafe),
            policies,
            untold: here.omitted.max(there.omitted),
        }
    }

    /// Whether no part that is told is another: only the order of policies, the default of a tier, or what there was no room for.
    pub fn is_of_no_part(&self) -> bool {
        let Self { mode, defaults, failsafe, policies, untold: _ } = self;
        mode.is_none() && defaults.is_none() && failsafe.is_none() && policies.is_empty()
    }
}

/// A policy of the API that nodes for which it is do not have in force as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Behind {
    /// "tier/name".
    pub name: String,
    /// Its hash on the nodes; `None`: it is not there.
    pub here: Option<String>,
    /// The API's.
    pub api: String,
}

/// What a node that has in force what `report` says, and is called so, lacks of what the API says for it.
pub fn behind<'a>(report: &Report, meant: impl IntoIterator<Item = &'a String>, api: &Api) -> Vec<Behind> {
    if !api.known {
        return Vec::new();
    }
    let lacks = |name: &String| {
        let here = report.policies.get(name);
        let fits = here.is_some_and(|hash| api.is(name, hash));
        let cut = here.is_none() && report.omitted > 0;
        let behind = Behind { name: name.clone(), here: here.cloned(), api: api.hash(name)?.to_owned() };
        (!fits && !cut).then_some(behind)
    };
    meant.into_iter().filter_map(lacks).collect()
}

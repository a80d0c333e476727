//! What clusters say beside the files: who may say what, and who wins where two say something of one name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Holdings, calico, name};
use crate::policy::clusters::{Cluster, Contribution};
use crate::source::decoded::DecodedFile;
use crate::source::document::Documents;
use crate::source::object::Kind;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;

/// The objects that count, by what each is called, in the order in which they are merged, and what there is to say about the others.
/// Files win over clusters, and a cluster over those that nodewall.toml names after it.
pub(in crate::source) fn combine(
    clusters: &[Cluster],
    holdings: &Holdings,
    files: &[Arc<DecodedFile>],
) -> (Vec<(String, Arc<DecodedFile>)>, Vec<Finding>) {
    let mut taken: BTreeMap<(&'static str, String), Place> = BTreeMap::new();
    for file in files {
        for (kind, name, place) in names(&file.documents) {
            taken.entry((kind, name)).or_insert(place);
        }
    }
    let (mut chosen, mut findings) = (Vec::new(), Vec::new());
    for cluster in clusters {
        let Some(holding) = holdings.get(&cluster.name).filter(|holding| holding.heard) else {
            let place = Place::file(name::of_cluster(&cluster.name));
            let message = format!("nothing is known yet of what cluster \"{}\" says", cluster.name);
            let help = "what is in force stays until its API has answered once; `nodewall status` says why it does not";
            findings.push(Finding::error(Code::Cluster, &place, message).help(help));
            continue;
        };
        findings.extend(holding.findings.iter().cloned());
        // Objects of one cluster do not compete, but for expectations, which have names of their own.
        let mut own = BTreeMap::new();
        for ((kind, object), file) in &holding.objects {
            let called = name::of(&cluster.name, *kind, object);
            if let Some(why) = refused(cluster, *kind, object, &file.documents) {
                let help = "it is left out; `contribute` and `tiers` of its [[source.cluster]] say what it may";
                findings.push(Finding::warning(Code::NotAllowed, &Place::file(called.as_str()), why).help(help));
                continue;
            }
            let mut free = true;
            for (kind, name, place) in names(&file.documents) {
                let key = (kind, name);
                if let Some(first) = taken.get(&key).or_else(|| own.get(&key)) {
                    let message = format!("the name \"{}\" is taken by another {kind}", key.1);
                    let finding = Finding::warning(Code::DuplicateName, &place, message);
                    findings.push(finding.related(first, "this one is used").help("rename one of them"));
                    free = false;
                }
                own.entry(key).or_insert(place);
            }
            if free {
                chosen.push((called, Arc::clone(file)));
            }
        }
        for (kind, object) in &holding.hidden {
            if let Some(table) = kind.table() {
                let place = Place::file(name::of(&cluster.name, *kind, object));
                own.entry((table, object.clone())).or_insert(place);
            }
        }
        for (key, place) in own {
            taken.entry(key).or_insert(place);
        }
    }
    (chosen, findings)
}

/// Kind, name and place of each document, broken ones too.
fn names(documents: &Documents) -> Vec<(&'static str, String, Place)> {
    let Documents { interfaces, sets, services, tiers, policies, expected_sets, broken } = documents;
    let mut names = Vec::new();
    names.extend(interfaces.iter().map(|document| ("interface", document.name.clone(), document.place.clone())));
    names.extend(sets.iter().map(|document| ("set", document.name.clone(), document.place.clone())));
    names.extend(services.iter().map(|document| ("service", document.name.clone(), document.place.clone())));
    names.extend(tiers.iter().map(|document| ("tier", document.name.clone(), document.place.clone())));
    names.extend(policies.iter().map(|document| ("policy", document.name.clone(), document.place.clone())));
    names.extend(expected_sets.iter().map(|document| ("expect", document.name.clone(), document.place.clone())));
    names.extend(broken.iter().map(|(kind, name)| (*kind, name.clone(), Place::file("a file with an error"))));
    names
}

/// Why a cluster may not have an object; `None`: it may.
fn refused(cluster: &Cluster, kind: Kind, name: &str, documents: &Documents) -> Option<String> {
    if calico::is_ours(name) {
        return refused_of_calico(cluster, documents);
    }
    let needed = match kind {
        Kind::HostPolicy | Kind::HostService | Kind::HostExpectation => Contribution::Policies,
        Kind::HostState | Kind::HostPeers => Contribution::Nodes,
        Kind::HostNetworkSet => Contribution::Sets,
        Kind::HostTier => Contribution::Tiers,
        Kind::HostInterface => Contribution::Interfaces,
    };
    if !cluster.contribute.contains(&needed) {
        return Some(format!("cluster \"{}\" does not contribute {}", cluster.name, needed.name()));
    }
    let policies = documents.policies.iter().find_map(|policy| cluster.refuses_policy(policy));
    policies.or_else(|| documents.tiers.iter().find_map(|tier| cluster.refuses_tier(tier)))
}

/// The same of a document that comes from Calico's objects: `calico = true` is the permission, but for what decides before the tiers of
/// others.
fn refused_of_calico(cluster: &Cluster, documents: &Documents) -> Option<String> {
    let is_elsewhere = documents.policies.iter().any(|policy| !calico::is_ours(&policy.tier));
    if !cluster.calico || is_elsewhere {
        return Some(format!("cluster \"{}\" may not have documents of Calico's", cluster.name));
    }
    documents.policies.iter().find_map(|policy| cluster.refuses_stage(policy.stage))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::Holding;
    use super::*;
    use crate::policy::clusters::Contribution;
    use crate::source::kube::item::decode;
    use crate::text::render::line;

    fn cluster(name: &str, tiers: &[&str]) -> Cluster {
        Cluster {
            name: name.to_owned(),
            kubeconfig: "/dev/null".into(),
            contribute: [Contribution::Policies, Contribution::Sets].into(),
            tiers: tiers.iter().map(|tier| (*tier).to_owned()).collect(),
            believe_empty: false,
            node_addresses: Vec::new(),
            calico: false,
        }
    }

    /// Objects of a cluster: kind, name and spec.
    fn holding(cluster: &str, objects: &[(Kind, &str, &str)]) -> Arc<Holding> {
        let object = |(kind, name, spec): &(Kind, &str, &str)| {
            let text = format!(
                r#"{{"apiVersion":"nodewall.dev/v1alpha1","kind":"{}","metadata":{{"name":"{name}"}},"spec":{spec}}}"#,
                kind.name()
            );
            let file = decode(cluster, *kind, name, text.into());
            assert_eq!(file.findings, []);
            ((*kind, (*name).to_owned()), Arc::new(file))
        };
        Arc::new(Holding { heard: true, objects: objects.iter().map(object).collect(), ..Holding::default() })
    }

    fn policy(tier: &str, stage: &str) -> String {
        format!(r#"{{"tier":"{tier}","stage":"{stage}","interfaces":"all()","ingress":[]}}"#)
    }

    fn combined(clusters: &[Cluster], holdings: &Holdings, file: &str) -> (Vec<String>, Vec<String>) {
        let file = Arc::new(DecodedFile::new("a.toml".into(), file));
        let (chosen, findings) = combine(clusters, holdings, &[file]);
        (chosen.into_iter().map(|(name, _)| name).collect(), findings.iter().map(line).collect())
    }

    #[test]
    fn a_cluster_says_what_nodewall_toml_lets_it_say() {
        let (default, platform) = (policy("default", "host"), policy("platform", "host"));
        let early = policy("default", "prednat");
        let holdings: Holdings = [(
            "dev".to_owned(),
            holding(
                "dev",
                &[
                    (Kind::HostPolicy, "own", &default),
                    (Kind::HostPolicy, "others", &platform),
                    (Kind::HostPolicy, "early", &early),
                    (Kind::HostTier, "first", r#"{"order":1,"default":"pass"}"#),
                    (Kind::HostInterface, "all", r#"{"match":{"name":"*"},"role":"mgmt"}"#),
                    (Kind::HostNetworkSet, "store", r#"{"cidrs":["10.0.0.1"]}"#),
                ],
            ),
        )]
        .into();
        let dev = cluster("dev", &["default"]);
        let (chosen, findings) = combined(std::slice::from_ref(&dev), &holdings, "");
        assert_eq!(chosen, ["cluster dev: HostNetworkSet/store", "cluster dev: HostPolicy/own"]);
        assert_eq!(findings.len(), 4, "{findings:#?}");
        assert!(findings.iter().all(|finding| finding.contains("warning[not-allowed]")), "{findings:#?}");
        let all = Cluster {
            contribute: Contribution::ALL.into(),
            tiers: ["default", "platform", "first"].map(str::to_owned).into(),
            ..dev
        };
        assert_eq!(combined(&[all], &holdings, "").0.len(), 6);
    }

    #[test]
    fn files_win_over_clusters_and_a_cluster_over_the_next() {
        let (one, two) = (r#"{"cidrs":["10.0.0.1"]}"#, r#"{"cidrs":["10.0.0.2"]}"#);
        let mut dev = Holding::clone(&holding(
            "dev",
            &[
                (Kind::HostNetworkSet, "a", two),
                (Kind::HostNetworkSet, "b", two),
                (Kind::HostNetworkSet, "c", two),
                (Kind::HostNetworkSet, "d", two),
            ],
        ));
        dev.hidden.insert((Kind::HostNetworkSet, "e".to_owned()));
        let mut hub =
            Holding::clone(&holding("hub", &[(Kind::HostNetworkSet, "a", one), (Kind::HostNetworkSet, "b", one)]));
        // For other nodes, or without a good version: the name is taken all the same.
        hub.hidden.insert((Kind::HostNetworkSet, "c".to_owned()));
        let holdings: Holdings = [("dev".to_owned(), Arc::new(dev)), ("hub".to_owned(), Arc::new(hub))].into();
        let clusters = [cluster("hub", &[]), cluster("dev", &[])];
        let (chosen, findings) = combined(&clusters, &holdings, "[[set]]\nname = \"a\"\ncidrs = []\n");
        assert_eq!(chosen, ["cluster hub: HostNetworkSet/b", "cluster dev: HostNetworkSet/d"]);
        assert_eq!(findings.len(), 4, "{findings:#?}");
        assert!(findings.iter().all(|finding| finding.contains("warning[duplicate-name]")), "{findings:#?}");
        // Nor does a broken file let what it hides come back.
        let (chosen, _) = combined(&clusters, &holdings, "[[set]]\nname = \"b\"\ncidrs = 7\n");
        assert_eq!(chosen, ["cluster hub: HostNetworkSet/a", "cluster dev: HostNetworkSet/d"]);
    }

    #[test]
    fn calico_true_is_the_permission_for_tiers_of_calico_s_and_for_nothing_else() {
        let of = |tier: &str, stage: &str| policy(tier, stage);
        let (late, early, other) =
            (of("calico_default", "host"), of("calico_default-early", "prednat"), of("platform", "host"));
        let holdings: Holdings = [(
            "dev".to_owned(),
            holding(
                "dev",
                &[
                    (Kind::HostTier, "calico_default", r#"{"order":30010,"default":"deny"}"#),
                    (Kind::HostPolicy, "calico_late", &late),
                    (Kind::HostPolicy, "calico_early", &early),
                    (Kind::HostPolicy, "calico_other", &other),
                    (Kind::HostPolicy, "own", &late),
                ],
            ),
        )]
        .into();
        let chosen = |calico: bool, more: &[Contribution]| {
            let mut dev = Cluster { calico, ..cluster("dev", &["default"]) };
            dev.contribute.extend(more);
            let (chosen, findings) = combined(&[dev], &holdings, "");
            assert_eq!(chosen.len() + findings.len(), 5, "{findings:#?}");
            chosen.into_iter().filter_map(|name| Some(name.rsplit_once('/')?.1.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(chosen(false, &[]), Vec::<String>::new());
        assert_eq!(chosen(true, &[]), ["calico_default", "calico_late"]);
        assert_eq!(chosen(true, &[Contribution::EarlyStages]), ["calico_default", "calico_early", "calico_late"]);
    }

    #[test]
    fn a_cluster_that_was_never_heard_of_is_an_error() {
        let (chosen, findings) = combined(&[cluster("hub", &[])], &Holdings::new(), "");
        assert!(chosen.is_empty() && findings.len() == 1, "{findings:?}");
        assert!(findings[0].contains("error[cluster]"), "{findings:?}");
    }
}

//! `[[source.cluster]]` of nodewall.toml: the clusters that documents come from, and what each may say.

use std::collections::BTreeSet;

use super::decode::path;
use crate::policy::clusters::{Cluster, Contribution};
use crate::policy::parse;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::read::Reader;
use crate::text::tree::Node;

/// Each is a thread and some connections.
const MOST_CLUSTERS: usize = 16;

/// What is contributed where nothing is said: what cannot change how the documents of others are meant.
const SHIPPED: [Contribution; 2] = [Contribution::Policies, Contribution::Sets];

/// The tier of a policy that names none.
const SHIPPED_TIER: &str = "default";

/// The clusters, the highest precedence first. One with an error is left out, with the finding.
pub(super) fn clusters<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<Cluster> {
    let Some(mut fields) = reader.table(node, "[source]") else { return Vec::new() };
    let list = fields.get("cluster");
    let items = list.and_then(|list| reader.list(list, "source.cluster")).unwrap_or_default();
    if let (Some(list), true) = (list, items.len() > MOST_CLUSTERS) {
        reader.error(Code::Value, list.span, format!("there are more than {MOST_CLUSTERS} clusters"));
    }
    let mut found: Vec<(Cluster, Place)> = Vec::new();
    for item in items.iter().take(MOST_CLUSTERS) {
        let place = reader.place(item.span);
        let Some(cluster) = cluster(reader, item) else { continue };
        if let Some((_, first)) = found.iter().find(|(earlier, _)| earlier.name == cluster.name) {
            let message = format!("the name \"{}\" is taken by another cluster", cluster.name);
            reader.report(Finding::error(Code::DuplicateName, &place, message).related(first, "the first"));
            continue;
        }
        if let Some((earlier, first)) = found.iter().find(|(earlier, _)| earlier.calico && cluster.calico) {
            let message = format!("cluster \"{}\" has `calico = true` as well", earlier.name);
            let help = "a node is in one cluster of Calico's: leave it to that one";
            reader.report(Finding::error(Code::Conflict, &place, message).related(first, "the first").help(help));
            continue;
        }
        found.push((cluster, place));
    }
    fields.finish(reader, "[source]");
    found.into_iter().map(|(cluster, _)| cluster).collect()
}

fn cluster<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Cluster> {
    let what = "[[source.cluster]]";
    let before = reader.errors();
    let mut fields = reader.table(node, what)?;
    let name = fields.need(reader, "name", what);
    let name = name.and_then(|name| parse::name(reader, name, "the name of a cluster"));
    let kubeconfig = fields.need(reader, "kubeconfig", what);
    let kubeconfig = kubeconfig.and_then(|node| path(reader, node, "kubeconfig"));
    let contribute = match fields.get("contribute") {
        None => SHIPPED.into(),
        Some(list) => {
            let words = Contribution::ALL.map(|each| (each.name(), each));
            let items = parse::some(reader, list, "contribute");
            items.iter().filter_map(|item| reader.word(item, "contribution", &words)).collect()
        }
    };
    let tiers: BTreeSet<String> = match fields.get("tiers") {
        None => [SHIPPED_TIER.to_owned()].into(),
        Some(list) => {
            parse::names(reader, list, "tiers", "the name of a tier").into_iter().map(|(name, _)| name).collect()
        }
    };
    let believe_empty = fields.get("believe_empty").and_then(|node| reader.boolean(node, "believe_empty"));
    let node_addresses = match fields.get("node_addresses") {
        None => Vec::new(),
        Some(list) => parse::prefixes(reader, list, "node_addresses"),
    };
    let calico = fields.get("calico").and_then(|node| reader.boolean(node, "calico"));
    fields.finish(reader, what);
    let cluster = Cluster {
        name: name?,
        kubeconfig: kubeconfig?,
        contribute,
        tiers,
        believe_empty: believe_empty.unwrap_or(false),
        node_addresses,
        calico: calico.unwrap_or(false),
    };
    (reader.errors() == before).then_some(cluster)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::decode_text;
    use super::*;
    use crate::text::render::line;

    fn decoded(text: &str) -> (Vec<Cluster>, Vec<String>) {
        let (config, findings) = decode_text("nodewall.toml", text);
        (config.clusters, findings.iter().map(line).collect())
    }

    #[test]
    fn a_cluster_may_say_little_unless_it_is_given_more() {
        let (clusters, findings) = decoded(
            "[[source.cluster]]\nname = \"hub\"\nkubeconfig = \"/etc/nodewall/hub.conf\"\ncontribute = [\"policies\", \"sets\", \"tiers\", \"early-stages\"]\ntiers = [\"platform\"]\nbelieve_empty = true\nnode_addresses = [\"10.0.0.0/8\", \"fd00::/8\"]\ncalico = true\n\
             [[source.cluster]]\nname = \"dev\"\nkubeconfig = \"/etc/kubernetes/nodewall.conf\"\n",
        );
        assert_eq!(findings, Vec::<String>::new());
        let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["hub", "dev"]);
        assert!(clusters[0].believe_empty && !clusters[1].believe_empty);
        assert!(clusters[0].calico && !clusters[1].calico);
        assert_eq!(clusters[0].contribute.len(), 4);
        assert_eq!(clusters[0].node_addresses.len(), 2);
        assert_eq!(clusters[1].node_addresses, []);
        assert_eq!(clusters[1].contribute, [Contribution::Policies, Contribution::Sets].into());
        assert_eq!(clusters[1].tiers, ["default".to_owned()].into());
        assert_eq!(clusters[1].kubeconfig, PathBuf::from("/etc/kubernetes/nodewall.conf"));
    }

    #[test]
    fn mistakes_in_a_cluster_are_found_and_leave_it_out() {
        let (clusters, findings) = decoded(
            "[[source.cluster]]\nname = \"a\"\nkubeconfig = \"hub.conf\"\n\
             [[source.cluster]]\nname = \"b\"\nkubeconfig = \"/b\"\ncontribute = [\"polices\"]\n\
             [[source.cluster]]\nkubeconfig = \"/c\"\n\
             [[source.cluster]]\nname = \"d\"\nkubeconfig = \"/d\"\nbelieve_empty = 1\n\
             [[source.cluster]]\nname = \"e\"\nkubeconfig = \"/e\"\ncalico = true\n\
             [[source.cluster]]\nname = \"e\"\nkubeconfig = \"/f\"\n\
             [[source.cluster]]\nname = \"f\"\nkubeconfig = \"/f\"\ncalico = true\n",
        );
        let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["e"]);
        let codes = ["value", "value", "missing-key", "type", "duplicate-name", "conflict"];
        assert_eq!(findings.len(), codes.len(), "{findings:#?}");
        for code in codes {
            assert!(
                findings.iter().any(|finding| finding.contains(&format!("error[{code}]"))),
                "{code}: {findings:#?}"
            );
        }
    }
}

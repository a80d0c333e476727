//! What an object of a cluster is called in places, in `status` and in generations: "cluster hub: HostPolicy/model-store".

use crate::source::object::Kind;

/// The name of an object.
pub(in crate::source) fn of(cluster: &str, kind: Kind, name: &str) -> String {
    format!("cluster {cluster}: {}/{name}", kind.name())
}

/// The name of a cluster as a whole.
pub fn of_cluster(cluster: &str) -> String {
    format!("cluster {cluster}")
}

/// Cluster, kind and name of an object that is called so; `None` for what is called otherwise: the path of a file.
pub fn parse(called: &str) -> Option<(&str, Kind, &str)> {
    let (cluster, object) = called.strip_prefix("cluster ")?.split_once(": ")?;
    let (kind, name) = object.split_once('/')?;
    Some((cluster, Kind::by_name(kind)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_was_made_of() {
        let called = of("hub", Kind::HostPolicy, "a.b-c");
        assert_eq!(called, "cluster hub: HostPolicy/a.b-c");
        assert_eq!(parse(&called), Some(("hub", Kind::HostPolicy, "a.b-c")));
        assert_eq!(parse("/etc/nodewall/policy.d/cluster hub: HostPolicy/a.toml"), None);
        assert_eq!(parse("cluster hub: Pod/a"), None);
    }
}

//! Which server is believed: roots from a file, or those that kubeadm publishes, where their hash is known from elsewhere.

use k8s_openapi::ByteString;
use serde_json::{Value as Json, json};

use super::certificate::{Root, roots};
use super::client::{Client, Failure};
use crate::connect::kubeconfig;

/// The roots (DER) that the cluster publishes to anybody, of which the SubjectPublicKeyInfo has one of these SHA-256 sums. Whoever
/// answers is not known yet, so that nothing else of the answer is believed: neither a server's name nor further roots beside.
pub(super) async fn discover(server: &str, hashes: &[[u8; 32]]) -> Result<Vec<Vec<u8>>, Undiscovered> {
    let client = Client::unverified(server).map_err(Undiscovered::Unusable)?;
    let published = client
        .get("/api/v1/namespaces/kube-public/configmaps", "cluster-info")
        .await
        .map_err(Undiscovered::Unanswered)?;
    let roots = published_roots(&published).map_err(Undiscovered::Unusable)?;
    pinned(&roots, hashes).ok_or(Undiscovered::Strange)
}

/// Why there are no roots.
pub(super) enum Undiscovered {
    /// The server does not say.
    Unanswered(Failure),
    /// What it says cannot be used.
    Unusable(String),
    /// None of its roots has the hash.
    Strange,
}

fn published_roots(published: &Json) -> Result<Vec<Root>, String> {
    let unusable = |why: &str| format!("kube-public/cluster-info {why}");
    let text = published.pointer("/data/kubeconfig").and_then(Json::as_str).ok_or_else(|| unusable("says nothing"))?;
    let config = kubeconfig::parse(text, None).map_err(|_| unusable("is no kubeconfig"))?;
    let clusters = config.clusters.into_iter().filter_map(|named| named.cluster);
    let encoded = clusters.filter_map(|cluster| cluster.certificate_authority_data).next();
    let encoded = encoded.ok_or_else(|| unusable("has no certificate-authority-data"))?;
    let pem: ByteString = serde_json::from_value(json!(encoded)).map_err(|_| unusable("has no base64 in it"))?;
    roots(&pem.0).map_err(|why| unusable(&why))
}

fn pinned(roots: &[Root], hashes: &[[u8; 32]]) -> Option<Vec<Vec<u8>>> {
    let pinned: Vec<_> = roots.iter().filter(|root| hashes.contains(&root.hash)).map(|root| root.der.clone()).collect();
    (!pinned.is_empty()).then_some(pinned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn of_what_is_published_only_what_is_pinned_is_believed() {
        let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert;
        let (good, bad) = (made("good"), made("bad"));
        let pem = bad.pem() + &good.pem();
        let encoded = json!(ByteString(pem.clone().into_bytes()));
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: ''\n  cluster: {{server: 'https://elsewhere', certificate-authority-data: {encoded}}}\n"
        );
        let found = published_roots(&json!({ "data": { "kubeconfig": text } })).unwrap();
        assert_eq!(found.len(), 2);
        let hash = roots(good.pem().as_bytes()).unwrap()[0].hash;
        assert_eq!(pinned(&found, &[hash]), Some(vec![good.der().to_vec()]));
        assert_eq!(pinned(&found, &[[0; 32]]), None);
        for nothing in
            [json!({}), json!({ "data": { "kubeconfig": "clusters: 7" } }), json!({ "data": { "kubeconfig": "{}" } })]
        {
            assert!(published_roots(&nothing).is_err());
        }
    }
}

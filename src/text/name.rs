//! Names as Kubernetes has them.

/// Whether a Node of Kubernetes can have this name: a DNS subdomain (RFC 1123).
pub fn is_node_name(text: &str) -> bool {
    let inner = |part: &str| part.chars().all(|next| matches!(next, 'a'..='z' | '0'..='9' | '-'));
    let part =
        |part: &str| (1..=63).contains(&part.len()) && inner(part) && !part.starts_with('-') && !part.ends_with('-');
    text.len() <= 253 && text.split('.').all(part)
}

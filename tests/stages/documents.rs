//! Policies for packets, in the words of an operator.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use super::flow::Head;
use super::lab::net::What;
use super::page::Point;

/// Rules by stage, direction and the interfaces that they are for.
#[derive(Clone, Default)]
pub struct Documents {
    /// The mode of all of them; "" is the one that holds without.
    pub mode: &'static str,
    pub rules: BTreeMap<(Point, String), BTreeSet<String>>,
}

impl Documents {
    pub fn add(&mut self, point: Point, interfaces: impl Into<String>, rule: impl Into<String>) {
        self.rules.entry((point, interfaces.into())).or_default().insert(rule.into());
    }
}

impl std::fmt::Display for Documents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mode = if self.mode.is_empty() { "enforce" } else { self.mode };
        for (order, (((stage, direction), interfaces), rules)) in self.rules.iter().enumerate() {
            let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
            writeln!(
                formatter,
                "[[policy]]\nname = \"p{order}\"\norder = {order}\nmode = \"{mode}\"\nstage = \"{}\"\ninterfaces = \"{interfaces}\"\n{} = [\n  {},\n]\n",
                stage.name(),
                direction.name(),
                rules.join(",\n  "),
            )?;
        }
        Ok(())
    }
}

/// A rule for just this packet.
pub fn rule(action: &str, head: &Head) -> String {
    let Head { source, destination, what } = head;
    let what = match what {
        What::Tcp(port) => format!("protocol = \"tcp\", ports = [{port}]"),
        What::Udp(port) => format!("protocol = \"udp\", ports = [{port}]"),
        What::Echo => "icmp = { type = \"echo-request\" }".to_owned(),
    };
    format!(
        "{{ action = \"{action}\", from = {{ cidrs = [\"{source}\"] }}, to = {{ cidrs = [\"{destination}\"] }}, {what} }}"
    )
}

/// A rule for the answers to it, whoever gets them.
pub fn reply_rule(action: &str, head: &Head) -> String {
    let Head { destination, what, .. } = head;
    let from = |ports: &str| format!("action = \"{action}\", from = {{ cidrs = [\"{destination}\"]{ports} }}");
    match what {
        What::Tcp(port) => format!("{{ {}, protocol = \"tcp\" }}", from(&format!(", ports = [{port}]"))),
        What::Udp(port) => format!("{{ {}, protocol = \"udp\" }}", from(&format!(", ports = [{port}]"))),
        What::Echo => format!("{{ {}, icmp = {{ type = \"echo-reply\" }} }}", from("")),
    }
}

/// Just this interface.
pub fn on(interface: &str) -> String {
    format!("name == '{interface}'")
}

/// Every other one.
pub fn elsewhere(interface: &str) -> String {
    format!("name != '{interface}'")
}

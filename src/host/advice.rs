//! What an operator could do about traffic that passes nftables by: said, and never done by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::coexistence::Remark;
use crate::net::device::{Protocol, RdmaDevice};
use crate::net::facts::Facts;
use crate::policy::coverage::{self, State};
use crate::policy::roles::{rdma_of, uplinks};

/// Who may use RDMA devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// Device nodes below /dev/infiniband by which programs use RDMA, with their modes.
    pub nodes: BTreeMap<String, u32>,
    /// Whether all network namespaces share them (`netns_mode` of ib_core, kernel drivers/infiniband/core/device.c).
    pub shared: Option<bool>,
}

/// The P_Key of a full member of the default partition (InfiniBand Architecture Specification volume 1, 10.9).
const DEFAULT_PARTITION: u16 = 0xffff;

/// What there is to say about a machine, whose files are below `root`.
pub fn of(facts: &Facts, root: &Path) -> Vec<Remark> {
    judge(facts, &access(root))
}

fn access(root: &Path) -> Access {
    let nodes = fs::read_dir(root.join("dev/infiniband")).into_iter().flatten().flatten().filter_map(|node| {
        let name = node.file_name().into_string().ok().filter(|name| name.starts_with("uverbs"))?;
        Some((name, node.metadata().ok()?.permissions().mode() & 0o7777))
    });
    let shared = fs::read_to_string(root.join("sys/module/ib_core/parameters/netns_mode")).ok();
    let shared = shared.and_then(|text| match text.trim() {
        "Y" => Some(true),
        "N" => Some(false),
        _ => None,
    });
    Access { nodes: nodes.collect(), shared }
}

/// What to say, by kind.
pub fn judge(facts: &Facts, access: &Access) -> Vec<Remark> {
    let hardware = || facts.rdma.values().filter(|device| !device.software);
    let mut remarks = Vec::new();
    if hardware().next().is_some() {
        remarks.extend(open_nodes(access));
        if access.shared == Some(true) {
            remarks.push(Remark {
                code: "rdma-netns-shared",
                message: "all network namespaces share the RDMA devices: a pod that may open one can use each of them"
                    .to_owned(),
                help: "`options ib_core netns_mode=0` in modprobe.d gives each device to one namespace, from the next boot on",
            });
        }
    }
    remarks.extend(hardware().filter(|device| default_member(device)).map(|device| Remark {
        code: "pkey-default",
        message: format!(
            "{} is a full member of the default partition (P_Key 0xffff): every full or limited member of it reaches this port",
            device.name
        ),
        help: "partitions are given by the subnet manager (opensm's partitions.conf, UFM), not by the host",
    }));
    remarks.extend(on_uplinks(facts).into_iter().map(|(device, link)| Remark {
        code: "rdma-on-uplink",
        message: format!("RDMA device {device} shares the uplink {link}: what it carries passes nftables by"),
        help: "where RDMA is not used there, keep its driver from being loaded (mlx5_ib, bnxt_re, irdma, ...), or switch RoCE off \
               with `devlink dev param set ... enable_roce` and a reload of the device",
    }));
    let away = coverage::elsewhere(facts).into_values().filter(|found| found.state == State::OutOfNetns).count();
    if away > 0 {
        let (functions, have) = if away == 1 { ("network function", "has") } else { ("network functions", "have") };
        remarks.push(Remark {
            code: "functions-away",
            message: format!("{away} {functions} {have} no interface here: pods have such functions"),
            help: "rules of this host see none of their packets; filter at the switch, and keep the firmware of the NIC new",
        });
    }
    remarks
}

fn open_nodes(access: &Access) -> Option<Remark> {
    let open: Vec<&str> =
        access.nodes.iter().filter(|(_, mode)| *mode & 0o006 != 0).map(|(name, _)| name.as_str()).collect();
    let (first, mode) = (open.first()?, access.nodes.get(*open.first()?)?);
    let others = if open.len() > 1 { format!(" and {} more", open.len() - 1) } else { String::new() };
    Some(Remark {
        code: "uverbs-open",
        message: format!(
            "every user may send by RDMA, past nftables: /dev/infiniband/{first} has the mode {mode:04o}{others}"
        ),
        help: "a udev rule like KERNEL==\"uverbs*\", GROUP=\"rdma\", MODE=\"0660\" leaves it to a group",
    })
}

fn default_member(device: &RdmaDevice) -> bool {
    device.protocol() == Protocol::Infiniband
        && device.ports.values().any(|port| port.pkeys.contains(&DEFAULT_PARTITION))
}

/// RDMA devices of Ethernet NICs that share a link with the default route, or a part of one.
fn on_uplinks(facts: &Facts) -> BTreeSet<(String, String)> {
    let uplinks = uplinks(facts);
    let links = facts.links.values().filter(|link| uplinks.contains(&link.name));
    let shared = links.filter_map(|link| {
        let device = facts.rdma.get(rdma_of(facts, link)?).filter(|device| !device.software)?;
        let ethernet = matches!(device.protocol(), Protocol::Roce | Protocol::Iwarp);
        ethernet.then(|| (device.name.clone(), link.name.to_string()))
    });
    shared.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::collect_fixture;

    fn codes(machine: &str, access: &Access) -> Vec<&'static str> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(machine);
        judge(&collect_fixture(&root), access).into_iter().map(|remark| remark.code).collect()
    }

    fn access(mode: u32, shared: bool) -> Access {
        Access { nodes: [("uverbs0".to_owned(), mode), ("uverbs1".to_owned(), 0o660)].into(), shared: Some(shared) }
    }

    #[test]
    fn each_machine_gets_the_advice_that_is_for_it() {
        let none = Access::default();
        assert_eq!(codes("h100-vm", &access(0o666, true)), [""; 0], "no RDMA, whatever the nodes are");
        assert_eq!(codes("edge-gpu", &none), ["rdma-on-uplink"]);
        assert_eq!(codes("dgx-h100", &access(0o666, true)), ["uverbs-open", "rdma-netns-shared"]);
        assert_eq!(codes("dgx-h100", &access(0o660, false)), [""; 0]);
        let partitions = codes("hgx-ib", &none);
        assert!(!partitions.is_empty() && partitions.iter().all(|code| *code == "pkey-default"), "{partitions:?}");
        assert!(codes("sriov-pods", &none).contains(&"functions-away"));
    }

    #[test]
    fn who_may_use_devices_is_read_below_a_root() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let at = |path: &str| root.path().join(path);
        for folder in ["dev/infiniband", "sys/module/ib_core/parameters"] {
            fs::create_dir_all(at(folder))?;
        }
        for (name, mode) in [("uverbs0", 0o666), ("uverbs1", 0o660), ("umad0", 0o666)] {
            fs::write(at("dev/infiniband").join(name), "")?;
            fs::set_permissions(at("dev/infiniband").join(name), fs::Permissions::from_mode(mode))?;
        }
        fs::write(at("sys/module/ib_core/parameters/netns_mode"), "Y\n")?;
        let found = super::access(root.path());
        assert_eq!(found, access(0o666, true));
        let said = open_nodes(&found).map(|remark| remark.message).unwrap_or_default();
        assert!(said.ends_with("/dev/infiniband/uverbs0 has the mode 0666"), "{said}");
        Ok(())
    }
}

//! The daemon on a machine with cards that share switches with GPUs: links that a made-up /sys calls hardware.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use lab::daemon::{Node, management_link};
use lab::{isolated, sh};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The roots of three PCIe switches, each with a GPU and a NIC.
const ROOTS: [u8; 3] = [0x10, 0x20, 0x30];

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

fn link(path: &Path, target: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(target, path).unwrap();
}

/// A device at a port of the switch below a root.
fn below(sys: &Path, root: u8, port: u8, bus: u8) -> PathBuf {
    let (switch, ports) = (root + 1, root + 2);
    let path = format!("0000:{root:02x}:01.0/0000:{switch:02x}:00.0/0000:{ports:02x}:{port:02x}.0/0000:{bus:02x}:00.0");
    sys.join(format!("devices/pci0000:{root:02x}")).join(path)
}

fn function(sys: &Path, device: &Path, class: &str, vendor: &str) {
    for (file, text) in [("class", class), ("vendor", vendor), ("device", "0x1021"), ("numa_node", "0")] {
        write(&device.join(file), text);
    }
    link(&sys.join("bus/pci/devices").join(device.file_name().unwrap()), device);
    link(&device.join("subsystem"), &sys.join("bus/pci"));
}

fn mac(index: u32) -> String {
    format!("02:00:00:00:00:{index:02x}")
}

/// A NIC with an RDMA device, on the link of this name and index.
fn nic(sys: &Path, root: u8, name: &str, index: u32, rdma: &str) {
    let device = below(sys, root, 1, root + 5);
    function(sys, &device, "0x020000", "0x15b3");
    let net = device.join("net").join(name);
    write(&net.join("ifindex"), &index.to_string());
    write(&net.join("type"), "1");
    write(&net.join("address"), &mac(index));
    link(&net.join("device"), &device);
    link(&sys.join("class/net").join(name), &net);
    let infiniband = device.join("infiniband").join(rdma);
    write(&infiniband.join("node_type"), "1: CA");
    write(&infiniband.join("node_guid"), &format!("b83f:d203:0000:{index:04x}"));
    write(&infiniband.join("ports/1/link_layer"), "Ethernet");
    write(&infiniband.join("ports/1/state"), "4: ACTIVE");
    write(&infiniband.join("ports/1/gids/0"), &format!("fe80:0000:0000:0000:b83f:d2ff:fe00:{index:04x}"));
    write(&infiniband.join("ports/1/gid_attrs/ndevs/0"), name);
    link(&infiniband.join("device"), &device);
    link(&sys.join("class/infiniband").join(rdma), &infiniband);
}

/// The numbers of rails by interface, as the daemon shows them.
fn rails(status: &Value) -> BTreeMap<String, String> {
    let interfaces = status["interfaces"].as_array().unwrap().iter();
    let rails = interfaces.filter_map(|interface| {
        let labels = &interface["labels"];
        Some((interface["name"].as_str()?.to_owned(), labels["rail"].as_str()?.to_owned()))
    });
    rails.collect()
}

const POLICY: &str = r#"
[[policy]]
name = "third-rail"
order = 10
interfaces = "rail == 'rail2'"
ingress = [{ action = "allow", protocol = "tcp", ports = [9100] }]
"#;

#[test]
fn a_rail_keeps_its_number_and_its_policy_over_a_start_without_another_ones_card() {
    isolated("a_rail_keeps_its_number", || {
        management_link();
        let root = tempfile::tempdir().unwrap();
        let sys = root.path().join("sys");
        for (number, bus) in ROOTS.into_iter().enumerate() {
            function(&sys, &below(&sys, bus, 0, bus + 4), "0x030200", "0x10de");
            let index = 100 + number as u32;
            // A veth would be a pod's, whatever sysfs says.
            let mac = mac(index);
            sh(&format!("ip link add nic{number} index {index} address {mac} type bridge; ip link set nic{number} up"));
            nic(&sys, bus, &format!("nic{number}"), index, &format!("mlx5_{number}"));
        }
        let mut node = Node::new(&[("10.toml", POLICY)]).with_root(root.path().to_owned());
        node.run();
        let (_, status) = node.status();
        let all: BTreeMap<String, String> = (0..3).map(|n| (format!("nic{n}"), format!("rail{n}"))).collect();
        assert_eq!(rails(&status), all, "{status:#}");
        assert_eq!(status["policies"].as_array().unwrap().last().unwrap()["interfaces"], serde_json::json!(["nic2"]));
        // A pod's link comes, and nothing is asked about devices: what is known of them stays.
        sh("ip link add pod0 type veth peer name pod0p");
        node.until("the pod's link", |_, status| {
            status["interfaces"].as_array().unwrap().iter().any(|link| link["name"] == "pod0")
        });
        assert_eq!(rails(&node.status().1), all);
        // A reload asks again.
        let device = sys.join("class/infiniband/mlx5_1");
        let target = fs::read_link(&device).unwrap();
        let hidden = sys.join("hidden");
        fs::remove_file(&device).unwrap();
        fs::rename(target.parent().unwrap(), &hidden).unwrap();
        node.signal(Signal::SIGHUP);
        node.until("one rail less", |_, status| !rails(status).contains_key("nic1"));
        assert_eq!(rails(&node.status().1)["nic2"], "rail2", "the others keep their numbers");
        fs::rename(&hidden, target.parent().unwrap()).unwrap();
        link(&device, &target);
        node.signal(Signal::SIGHUP);
        node.until("all of them", |_, status| rails(status) == all);
        let kept = node.path("state/rails");
        node.until("the numbers on disk", |_, _| kept.exists());
        node.signal(Signal::SIGTERM);
        node.kill();

        // The first card is dead: without a memory, the others would move up.
        sh("ip link del nic0");
        fs::remove_file(sys.join("class/net/nic0")).unwrap();
        fs::remove_file(sys.join("class/infiniband/mlx5_0")).unwrap();
        node.run();
        let (_, status) = node.status();
        let left: BTreeMap<String, String> = (1..3).map(|n| (format!("nic{n}"), format!("rail{n}"))).collect();
        assert_eq!(rails(&status), left, "{status:#}");
        assert_eq!(status["policies"].as_array().unwrap().last().unwrap()["interfaces"], serde_json::json!(["nic2"]));
    });
}

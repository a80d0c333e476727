//! Listeners of the RDMA connection manager by RDMA netlink: what `rdma resource show cm_id` shows, and `ss` does not.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use netlink_sys::protocols::NETLINK_RDMA;

use super::ask::Asker;
use super::attribute::{Attributes, attribute};
use super::diag::sockaddr_port;
use super::nldev;

/// One listener on one RDMA device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CmListener {
    /// The address that it is bound to; the unspecified one is any.
    pub address: IpAddr,
    /// The port, in the port space of TCP or of UDP: connections and datagrams of RDMA's own, not of those protocols.
    pub port: u16,
    /// The RDMA device. One that is bound to any address is on each device by itself.
    pub rdma: String,
    /// The process that holds it.
    pub pid: Option<u32>,
    /// The module of the kernel that holds it instead ("nvmet_rdma").
    pub kernel: Option<String>,
}

/// include/uapi/rdma/rdma_netlink.h
const RDMA_NLDEV_CMD_RES_CM_ID_GET: u16 = 11;
const RDMA_NLDEV_ATTR_RES_STATE: u16 = 27;
const RDMA_NLDEV_ATTR_RES_PID: u16 = 28;
const RDMA_NLDEV_ATTR_RES_KERN_NAME: u16 = 29;
const RDMA_NLDEV_ATTR_RES_CM_ID: u16 = 30;
const RDMA_NLDEV_ATTR_RES_CM_ID_ENTRY: u16 = 31;
const RDMA_NLDEV_ATTR_RES_SRC_ADDR: u16 = 33;
/// `RDMA_CM_LISTEN`, include/rdma/rdma_cm.h.
const LISTEN: u8 = 8;

/// The listeners of all devices that this network namespace has; none where RDMA is not loaded.
pub(super) fn listeners(root: &Path) -> Vec<CmListener> {
    let devices = nldev::indexes(root);
    if devices.is_empty() {
        return Vec::new();
    }
    let Ok(mut asker) = Asker::open(NETLINK_RDMA) else { return Vec::new() };
    let of_device = |(index, name): (u32, String)| {
        // A device may be gone by now.
        let found = ask(&mut asker, index).unwrap_or_default();
        found.into_iter().map(move |listener| CmListener { rdma: name.clone(), ..listener })
    };
    devices.into_iter().flat_map(of_device).collect()
}

fn ask(asker: &mut Asker, index: u32) -> io::Result<Vec<CmListener>> {
    let of_device = attribute(nldev::RDMA_NLDEV_ATTR_DEV_INDEX, &index.to_ne_bytes());
    let kind = nldev::message_type(RDMA_NLDEV_CMD_RES_CM_ID_GET);
    let found = asker.dump(kind, &of_device, |message| Some(listening(message.payload)))?;
    Ok(found.into_iter().flatten().collect())
}

/// The listeners in an answer to `RDMA_NLDEV_CMD_RES_CM_ID_GET` (kernel `fill_res_cm_id_entry`, drivers/infiniband/core/nldev.c), of a
/// device that the answer's other part names. Those of InfiniBand's own addresses (`AF_IB`) have no port and are left out.
pub fn listening(payload: &[u8]) -> Vec<CmListener> {
    let all = Attributes::of(payload);
    let entries = all.get(RDMA_NLDEV_ATTR_RES_CM_ID).map(Attributes::of).unwrap_or_default();
    let listener = |entry: &[u8]| {
        let entry = Attributes::of(entry);
        if entry.u8(RDMA_NLDEV_ATTR_RES_STATE) != Some(LISTEN) {
            return None;
        }
        let (address, port) = sockaddr_port(entry.get(RDMA_NLDEV_ATTR_RES_SRC_ADDR)?)?;
        let kernel = entry.text(RDMA_NLDEV_ATTR_RES_KERN_NAME).map(str::to_owned);
        Some(CmListener { address, port, rdma: String::new(), pid: entry.u32(RDMA_NLDEV_ATTR_RES_PID), kernel })
    };
    let entries = entries.iter().filter(|(kind, _)| *kind == RDMA_NLDEV_ATTR_RES_CM_ID_ENTRY);
    entries.filter_map(|(_, entry)| listener(entry)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::host::attribute::messages;

    /// What rdma(8) says of listeners, and what we find in what the kernel told it, on a real machine (tests/recorded/rdma_cm).
    #[test]
    fn what_is_found_is_what_rdma_resource_shows() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/rdma_cm");
        let mut most = 0;
        for name in ["none", "no_device", "wildcard_v4", "listeners", "connected"] {
            let digits = fs::read_to_string(directory.join(name).with_extension("hex")).unwrap();
            let datagram = |line: &str| -> Vec<u8> {
                let pairs = line.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
                pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
            };
            let datagrams: Vec<Vec<u8>> = digits.lines().map(datagram).collect();
            let found =
                datagrams.iter().flat_map(|datagram| messages(datagram)).flat_map(|message| listening(message.payload));
            let mut found: Vec<(String, Option<u64>, Option<String>)> = found
                .map(|CmListener { address, port, pid, kernel, .. }| {
                    (format!("{address}:{port}"), pid.map(u64::from), kernel)
                })
                .collect();
            let shown =
                fs::read_to_string(directory.join(name).with_extension("json")).unwrap_or_else(|_| "[]".to_owned());
            let shown: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap();
            let mut expected: Vec<(String, Option<u64>, Option<String>)> = shown
                .iter()
                .filter(|one| one["state"] == "LISTEN")
                .map(|one| {
                    let name = one["comm"].as_str().filter(|_| one["pid"].is_null());
                    (one["src-addr"].as_str().unwrap().to_owned(), one["pid"].as_u64(), name.map(str::to_owned))
                })
                .collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{name}");
            most = most.max(found.len());
        }
        assert!(most >= 8, "the recordings have listeners");
    }

    fn entry(state: u8, address: &[u8]) -> Vec<u8> {
        let parts = [
            attribute(RDMA_NLDEV_ATTR_RES_STATE, &[state]),
            attribute(RDMA_NLDEV_ATTR_RES_PID, &812_u32.to_ne_bytes()),
            attribute(RDMA_NLDEV_ATTR_RES_SRC_ADDR, address),
        ];
        attribute(RDMA_NLDEV_ATTR_RES_CM_ID_ENTRY | 0x8000, &parts.concat())
    }

    #[test]
    fn those_that_listen_are_found_with_their_process() {
        let mut v4 = vec![0; 16];
        v4[..2].copy_from_slice(&2_u16.to_ne_bytes());
        v4[2..8].copy_from_slice(&[0x1c, 0xb4, 10, 0, 0, 2]);
        let mut v6 = vec![0; 28];
        v6[..2].copy_from_slice(&10_u16.to_ne_bytes());
        v6[2..4].copy_from_slice(&[0x1c, 0xb5]);
        let mut ib = vec![0; 48];
        ib[..2].copy_from_slice(&27_u16.to_ne_bytes());
        let entries = [entry(LISTEN, &v4), entry(5, &v4), entry(LISTEN, &v6), entry(LISTEN, &ib), entry(LISTEN, &[])];
        let found = listening(&attribute(RDMA_NLDEV_ATTR_RES_CM_ID | 0x8000, &entries.concat()));
        let seen: Vec<(String, u16, Option<u32>)> =
            found.into_iter().map(|listener| (listener.address.to_string(), listener.port, listener.pid)).collect();
        assert_eq!(seen, [("10.0.0.2".to_owned(), 7348, Some(812)), ("::".to_owned(), 7349, Some(812))]);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = listening(&bytes);
        }
    }
}

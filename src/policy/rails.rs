//! Which RDMA NIC is which rail.
//!
//! The accelerators in the order of their PCI addresses each take the nearest RDMA NIC that is free, and that NIC is the next rail.
//! Near is what is as near as any pair of the machine is: where some share a PCIe switch, a NIC at the same NUMA node only is no
//! rail. Other NICs at a switch with an accelerator follow in the order of their addresses.
//!
//! A number stays with its NIC once it has it. A NIC is known again by address and GUID, then by its GUID (addresses move when a
//! card is dead), then by its address (the card was replaced). The number of one that is missing stays free. Only when none is
//! missing and there are more NICs than remembered, all are numbered anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::net::facts::Facts;
use crate::net::pci::{Distance, Location, PciAddress, Proximity};
use crate::net::rail::{Rails, Slot};

/// A NIC that may be a rail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Its RDMA device.
    pub rdma: String,
    /// Where it is.
    pub location: Location,
    /// Its GUID.
    pub guid: Option<String>,
    /// Whether somebody said that it is a rail, wherever it is.
    pub said: bool,
}

/// A NIC of a rail, and what it is near to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rail {
    /// Its RDMA device.
    pub rdma: String,
    /// The accelerator that it is paired with, and how far that is.
    pub gpu: Option<(PciAddress, Distance)>,
}

/// The RDMA devices that may be rails: hardware on PCI, one for each function, without virtual functions of a card that is here itself,
/// and without those in `not`. Those in `said` are rails wherever they are.
pub fn nics(facts: &Facts, said: &BTreeSet<&str>, not: &BTreeSet<&str>) -> Vec<Nic> {
    let physfn = |address: PciAddress| {
        let link = facts.links.values().find(|link| link.pci == Some(address.to_string()));
        link.map_or_else(|| facts.functions.get(&address)?.physfn, |link| link.physfn)
    };
    let with_rdma: BTreeSet<PciAddress> =
        facts.rdma.values().filter_map(|device| Some(device.location.as_ref()?.path.address)).collect();
    let mut nics: BTreeMap<PciAddress, Nic> = BTreeMap::new();
    for device in facts.rdma.values().filter(|device| !device.software && !not.contains(device.name.as_str())) {
        let Some(location) = &device.location else { continue };
        let address = location.path.address;
        if physfn(address).is_some_and(|parent| with_rdma.contains(&parent)) {
            continue;
        }
        let nic = Nic {
            rdma: device.name.clone(),
            location: location.clone(),
            guid: device.guid().map(str::to_owned),
            said: said.contains(device.name.as_str()),
        };
        // Of several devices on one function, that of the function itself: its interface is on PCI, and those of subfunctions are on
        // the auxiliary bus.
        let own = device
            .netdevs()
            .any(|name| facts.link(name.as_str()).is_some_and(|link| link.bus.as_deref() == Some("pci")));
        if own || !nics.contains_key(&address) {
            nics.insert(address, nic);
        }
    }
    nics.into_values().collect()
}

/// The rails by number, and what is to be remembered. Assigning again with that gives the same.
pub fn assign(remembered: &Rails, facts: &Facts, nics: &[Nic]) -> (BTreeMap<u32, Rail>, Rails) {
    let natural = natural(facts, nics);
    let slot = |nic: &Nic, gpu: Option<(PciAddress, Distance)>| Slot {
        pci: nic.location.path.address,
        guid: nic.guid.clone(),
        gpu: gpu.map(|(address, _)| address),
    };
    let known = recognise(remembered, &natural);
    let anew = known.len() == remembered.len() && natural.len() > known.len();
    let (mut memory, mut numbered) = if anew { (Rails::new(), BTreeMap::new()) } else { (remembered.clone(), known) };
    let old: BTreeSet<usize> = numbered.values().copied().collect();
    let new = (0..natural.len()).filter(|index| !old.contains(index));
    let free = (0..).filter(|number| !memory.contains_key(number));
    numbered.extend(free.zip(new));
    let mut rails = BTreeMap::new();
    for (number, index) in numbered {
        let (nic, gpu) = natural[index];
        memory.insert(number, slot(nic, gpu));
        rails.insert(number, Rail { rdma: nic.rdma.clone(), gpu });
    }
    (rails, memory)
}

/// A rail before it has a number: its NIC and the accelerator that it is paired with.
type Found<'a> = (&'a Nic, Option<(PciAddress, Distance)>);

/// How a NIC is known again, surest first.
#[derive(Clone, Copy)]
enum Known {
    Both,
    Guid,
    Address,
}

impl Known {
    fn holds(self, slot: &Slot, nic: &Nic) -> bool {
        let guid = slot.guid.is_some() && slot.guid == nic.guid;
        let address = slot.pci == nic.location.path.address;
        match self {
            Self::Both => guid && address,
            Self::Guid => guid,
            Self::Address => address,
        }
    }
}

/// Which of the rails has which of the remembered numbers.
fn recognise(remembered: &Rails, found: &[Found<'_>]) -> BTreeMap<u32, usize> {
    let mut numbers: BTreeMap<u32, usize> = BTreeMap::new();
    for way in [Known::Both, Known::Guid, Known::Address] {
        for (number, slot) in remembered {
            if numbers.contains_key(number) {
                continue;
            }
            let taken = |index: usize| numbers.values().any(|taken| *taken == index);
            if let Some(index) = (0..found.len()).find(|index| !taken(*index) && way.holds(slot, found[*index].0)) {
                numbers.insert(*number, index);
            }
        }
    }
    numbers
}

/// The rails in the order of their first numbering.
fn natural<'a>(facts: &Facts, nics: &'a [Nic]) -> Vec<Found<'a>> {
    let mut pairs: Vec<(Distance, PciAddress, usize)> = facts
        .gpus
        .iter()
        .flat_map(|(gpu, at)| {
            nics.iter().enumerate().map(|(index, nic)| (nic.location.distance(&at.location), *gpu, index))
        })
        .collect();
    pairs.sort_by_key(|(distance, gpu, index)| (*distance, *gpu, nics[*index].location.path.address));
    let best = pairs.first().map_or(Proximity::System, |(distance, ..)| distance.proximity);
    pairs.retain(|(distance, ..)| distance.proximity == best && best < Proximity::System);
    let mut of_gpu: BTreeMap<PciAddress, (Distance, usize)> = BTreeMap::new();
    let mut taken: BTreeSet<usize> = BTreeSet::new();
    for (distance, gpu, index) in &pairs {
        if !of_gpu.contains_key(gpu) && taken.insert(*index) {
            of_gpu.insert(*gpu, (*distance, *index));
        }
    }
    let mut rails: Vec<Found<'_>> =
        of_gpu.iter().map(|(gpu, (distance, index))| (&nics[*index], Some((*gpu, *distance)))).collect();
    let mut others: Vec<usize> = (0..nics.len()).filter(|index| !taken.contains(index)).collect();
    others.sort_by_key(|index| nics[*index].location.path.address);
    for index in others {
        let nearest = pairs.iter().find(|(_, _, nic)| *nic == index).filter(|_| best == Proximity::Switch);
        if nearest.is_some() || nics[index].said {
            rails.push((&nics[index], nearest.map(|(distance, gpu, _)| (*gpu, *distance))));
        }
    }
    rails
}

/// The accelerator nearest to a place, the first by address of several; none on a machine without.
pub fn nearest_gpu(facts: &Facts, location: &Location) -> Option<(PciAddress, Distance)> {
    facts
        .gpus
        .iter()
        .map(|(gpu, at)| (*gpu, location.distance(&at.location)))
        .min_by_key(|(gpu, distance)| (*distance, *gpu))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::net::device::{Gpu, GpuVendor};
    use crate::net::pci::PciPath;

    fn at(path: &str, numa: Option<u32>) -> Location {
        Location { path: PciPath::of(&format!("/sys/devices/{path}")).unwrap(), numa }
    }

    /// A GPU at each path.
    fn gpus(paths: &[(String, u32)]) -> Facts {
        let gpu = |(path, numa): &(String, u32)| {
            let location = at(path, Some(*numa));
            (location.path.address, Gpu { location, vendor: GpuVendor::Nvidia, model: None, minor: None, driver: None })
        };
        Facts { gpus: paths.iter().map(gpu).collect(), ..Facts::default() }
    }

    /// The NIC of this bus below a switch of its own, or of the GPU's.
    fn nic(name: &str, path: &str, numa: u32) -> Nic {
        Nic { rdma: name.to_owned(), location: at(path, Some(numa)), guid: Some(format!("guid-{name}")), said: false }
    }

    fn switch(root: u8, port: u8, bus: u8) -> String {
        format!(
            "pci0000:{root:02x}/0000:{root:02x}:01.0/0000:{:02x}:00.0/0000:{:02x}:{port:02x}.0/0000:{bus:02x}:00.0",
            root + 1,
            root + 2
        )
    }

    /// Four switches with a GPU and a NIC each, and a NIC of the first NUMA node elsewhere.
    fn four() -> (Facts, Vec<Nic>) {
        let roots = [0x10, 0x20, 0x80, 0x90];
        let facts = gpus(&roots.map(|root| (switch(root, 0, root + 4), u32::from(root >= 0x80))));
        let mut nics: Vec<Nic> = roots
            .iter()
            .enumerate()
            .map(|(n, root)| nic(&format!("mlx5_{n}"), &switch(*root, 1, root + 5), u32::from(*root >= 0x80)))
            .collect();
        nics.push(nic("storage", "pci0000:00/0000:00:01.0/0000:01:00.0", 0));
        (facts, nics)
    }

    /// "0=mlx5_0 1=mlx5_1".
    fn numbers(rails: &BTreeMap<u32, Rail>) -> String {
        rails.iter().map(|(number, rail)| format!("{number}={}", rail.rdma)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_rail_is_the_nic_at_the_gpus_switch_in_the_order_of_the_gpus() {
        let (facts, mut nics) = four();
        let (rails, remembered) = assign(&Rails::new(), &facts, &nics);
        assert_eq!(numbers(&rails), "0=mlx5_0 1=mlx5_1 2=mlx5_2 3=mlx5_3", "and no NIC that is only at the same node");
        assert_eq!(rails[&2].gpu.unwrap().0.to_string(), "0000:84:00.0");
        assert_eq!(remembered[&2].guid.as_deref(), Some("guid-mlx5_2"));
        nics.reverse();
        assert_eq!(
            numbers(&assign(&Rails::new(), &facts, &nics).0),
            numbers(&rails),
            "in whatever order they are found"
        );
    }

    #[test]
    fn gpus_that_share_a_switch_share_its_nics_and_more_nics_follow() {
        let mut facts = gpus(&[(switch(0x10, 0, 0x14), 0), (switch(0x10, 1, 0x15), 0), (switch(0x80, 0, 0x84), 1)]);
        let nics = [
            nic("a", &switch(0x10, 2, 0x16), 0),
            nic("b", &switch(0x10, 3, 0x17), 0),
            nic("c", &switch(0x10, 4, 0x18), 0),
            nic("d", &switch(0x80, 1, 0x85), 1),
        ];
        assert_eq!(numbers(&assign(&Rails::new(), &facts, &nics).0), "0=a 1=b 2=d 3=c");
        assert_eq!(numbers(&assign(&Rails::new(), &facts, &nics[..1]).0), "0=a");
        // Without a switch the root complex will do, and without that the NUMA node; nothing more than one for each GPU then.
        facts = gpus(&[("pci0000:10/0000:10:1c.0".to_owned(), 0), ("pci0000:20/0000:20:1c.0".to_owned(), 0)]);
        let flat = [
            nic("a", "pci0000:10/0000:10:1b.0", 0),
            nic("b", "pci0000:20/0000:20:1b.0", 0),
            nic("c", "pci0000:20/0000:20:1a.0", 0),
        ];
        assert_eq!(numbers(&assign(&Rails::new(), &facts, &flat).0), "0=a 1=c");
        let nodes = [nic("a", "pci0000:30/0000:30:1b.0", 0), nic("far", "pci0000:40/0000:40:1b.0", 1)];
        assert_eq!(numbers(&assign(&Rails::new(), &facts, &nodes).0), "0=a");
        assert_eq!(numbers(&assign(&Rails::new(), &facts, &nodes[1..]).0), "", "across the system is not near");
        let said = [Nic { said: true, ..nodes[1].clone() }];
        assert_eq!(numbers(&assign(&Rails::new(), &facts, &said).0), "0=far");
    }

    #[test]
    fn numbers_stay_when_a_card_is_dead_and_when_it_comes_back() {
        let (facts, nics) = four();
        let (_, remembered) = assign(&Rails::new(), &facts, &nics);
        for dead in 0..4 {
            let mut left = nics.clone();
            left.remove(dead);
            let (rails, memory) = assign(&remembered, &facts, &left);
            assert_eq!(rails.len(), 3);
            assert!(rails.iter().all(|(number, rail)| rail.rdma == format!("mlx5_{number}")), "{}", numbers(&rails));
            assert_eq!(memory, remembered, "the dead card's number is kept");
            assert_eq!(numbers(&assign(&memory, &facts, &nics).0), "0=mlx5_0 1=mlx5_1 2=mlx5_2 3=mlx5_3");
        }
    }

    #[test]
    fn addresses_that_move_are_known_by_guid_and_a_new_card_by_its_slot() {
        let (facts, nics) = four();
        let (_, remembered) = assign(&Rails::new(), &facts, &nics);
        // The card of rail1 is dead with its switch, and what came after it has moved up into its address.
        let moved = [
            nics[0].clone(),
            Nic { rdma: "mlx5_1".to_owned(), location: nics[1].location.clone(), ..nics[2].clone() },
            nics[3].clone(),
        ];
        let (rails, memory) = assign(&remembered, &facts, &moved);
        assert_eq!(numbers(&rails), "0=mlx5_0 2=mlx5_1 3=mlx5_3");
        assert_eq!(memory[&2].pci, nics[1].location.path.address, "where it is now");
        // Another card in the slot of rail2.
        let mut replaced = nics.clone();
        replaced[2].guid = Some("another".to_owned());
        let (rails, memory) = assign(&remembered, &facts, &replaced);
        assert_eq!(numbers(&rails), "0=mlx5_0 1=mlx5_1 2=mlx5_2 3=mlx5_3");
        assert_eq!(memory[&2].guid.as_deref(), Some("another"));
    }

    #[test]
    fn drivers_that_come_one_by_one_end_in_the_order_of_the_gpus() {
        let (facts, nics) = four();
        let mut remembered = Rails::new();
        for there in [&nics[2..3], &nics[1..3], &nics[1..4], &nics[..]] {
            remembered = assign(&remembered, &facts, there).1;
        }
        assert_eq!(numbers(&assign(&remembered, &facts, &nics).0), "0=mlx5_0 1=mlx5_1 2=mlx5_2 3=mlx5_3");
        // But while one that was there is missing, nobody else gets its number.
        let extra = nic("new", &switch(0x10, 2, 0x16), 0);
        let with_new = [nics[1].clone(), nics[2].clone(), nics[3].clone(), extra];
        assert_eq!(numbers(&assign(&remembered, &facts, &with_new).0), "1=mlx5_1 2=mlx5_2 3=mlx5_3 4=new");
    }

    proptest::proptest! {
        /// Whatever is missing and whatever was there before: what is remembered is enough, every NIC has one number, and nobody
        /// who keeps being there changes it while anybody is missing.
        #[test]
        fn assigning_is_stable(first in 0u8..16, second in 0u8..16) {
            let (facts, nics) = four();
            let some = |mask: u8| -> Vec<Nic> { (0..4).filter(|bit| mask & 1 << bit != 0).map(|bit| nics[bit].clone()).collect() };
            let (_, memory) = assign(&Rails::new(), &facts, &nics[..4]);
            let (before, memory) = assign(&memory, &facts, &some(first));
            let (after, again) = assign(&memory, &facts, &some(second));
            proptest::prop_assert_eq!(assign(&again, &facts, &some(second)), (after.clone(), again));
            for (number, rail) in &after {
                proptest::prop_assert!(before.iter().all(|(other, known)| (other == number) == (known.rdma == rail.rdma)));
            }
        }
    }
}

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

/// Which of the rails has which of the remembered numbers.
fn recognise(remembered: &Rails, found: &[(&Nic, Option<(PciAddress, Distance)>)]) -> BTreeMap<u32, usize> {
    let same_guid = |slot: &Slot, nic: &Nic| slot.guid.is_some() && slot.guid == nic.guid;
    let same_address = |slot: &Slot, nic: &Nic| slot.pci == nic.location.path.address;
    let ways: [&dyn Fn(&Slot, &Nic) -> bool; 3] =
        [&|slot, nic| same_guid(slot, nic) && same_address(slot, nic), &same_guid, &same_address];
    let mut numbers = BTreeMap::new();
    for way in ways {
        for (number, slot) in remembered {
            if numbers.contains_key(number) {
                continue;
            }
            let taken = |index: usize| numbers.values().any(|taken| *taken == index);
            if let Some(index) = (0..found.len()).find(|index| !taken(*index) && way(slot, found[*index].0)) {
                numbers.insert(*number, index);
            }
        }
    }
    numbers
}

/// The rails in the order of their first numbering.
fn natural<'a>(facts: &Facts, nics: &'a [Nic]) -> Vec<(&'a Nic, Option<(PciAddress, Distance)>)> {
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
    let mut rails: Vec<(&Nic, Option<(PciAddress, Distance)>)> =
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

//! The numbers of rails, kept in the state directory: a card that is dead after the next boot must not give its number to another.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Daemon, Input};
use crate::net::rail::{Rails, Slot};
use crate::store::{Directory, Disk, Store};

/// What is on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    rails: BTreeMap<u32, KeptSlot>,
}

#[derive(Serialize, Deserialize)]
struct KeptSlot {
    pci: String,
    guid: Option<String>,
    gpu: Option<String>,
}

/// The text to keep.
fn encode(rails: &Rails) -> Result<String, String> {
    let slot = |slot: &Slot| KeptSlot {
        pci: slot.pci.to_string(),
        guid: slot.guid.clone(),
        gpu: slot.gpu.map(|gpu| gpu.to_string()),
    };
    let rails = rails.iter().map(|(number, known)| (*number, slot(known))).collect();
    serde_json::to_string(&Kept { version: 1, rails }).map_err(|error| error.to_string())
}

/// The rails in a text that was kept.
fn decode(text: &str) -> Result<Rails, String> {
    let kept: Kept = serde_json::from_str(text).map_err(|error| format!("rails: {error}"))?;
    if kept.version != 1 {
        return Err(format!("rails: version {} is not known here", kept.version));
    }
    let address = |text: &str| text.parse().map_err(|error| format!("rails: \"{text}\" is {error}"));
    let slot = |slot: KeptSlot| -> Result<Slot, String> {
        let gpu = slot.gpu.as_deref().map(address).transpose()?;
        Ok(Slot { pci: address(&slot.pci)?, guid: slot.guid, gpu })
    };
    kept.rails.into_iter().map(|(number, known)| Ok((number, slot(known)?))).collect()
}

/// What a store has of rails; none where it has nothing.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn read<D: Disk>(store: &Store<D>) -> Result<Rails, String> {
    store.rails().map_err(|error| error.to_string())?.map_or_else(|| Ok(Rails::new()), |text| decode(&text))
}

/// The numbers of rails that the daemon left in its state directory; none where it left nothing. Needs no daemon, and the right to
/// read the directory.
///
/// # Errors
/// Why they cannot be used.
pub fn remembered(directory: &Path) -> Result<Rails, String> {
    read(&Store::new(Directory::existing(directory)))
}

/// How the numbers of rails are kept.
#[derive(Default)]
pub(super) struct Remembered {
    pub(super) rails: Rails,
    /// Whether they are not on disk yet.
    unwritten: bool,
}

impl Remembered {
    pub(super) fn of(rails: Rails) -> Self {
        Self { rails, unwritten: false }
    }
}

impl Daemon {
    /// Remembers the rails of what is in force. Before there is a default route, a NIC may be taken for a rail that is the uplink.
    pub(super) fn remember_rails(&mut self) {
        let uplink = self.facts.as_ref().is_some_and(|facts| facts.links.values().any(|link| link.default_route));
        let Some(rails) = self.state.rails().filter(|rails| uplink && **rails != self.remembered.rails) else { return };
        self.remembered.rails = rails.clone();
        self.write_rails();
    }

    /// Writes them once more when a disk did not take them.
    pub(super) fn write_rails_again(&mut self) {
        if self.remembered.unwritten {
            self.write_rails();
        }
    }

    fn write_rails(&mut self) {
        self.remembered.unwritten = true;
        let (Some(disk), Ok(text)) = (&self.disk, encode(&self.remembered.rails)) else { return };
        let (keeping, inbox) = (disk.keep_rails(text), self.inbox.clone());
        tokio::spawn(async move {
            // The loop is gone only when the process ends.
            let _ = inbox.send(Input::RailsKept(keeping.await));
        });
    }

    pub(super) fn rails_kept(&mut self, kept: Result<(), String>) {
        match kept {
            Ok(()) => self.remembered.unwritten = false,
            Err(error) => tracing::warn!("cannot remember the numbers of rails: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_nothing_else_is_believed() {
        let slot = Slot {
            pci: "0000:18:00.0".parse().unwrap(),
            guid: Some("b83f:d2ff:fe20:0000".to_owned()),
            gpu: "0000:1b:00.0".parse().ok(),
        };
        let rails: Rails = [(0, slot.clone()), (3, Slot { guid: None, gpu: None, ..slot })].into();
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(remembered(directory.path()), Ok(Rails::new()));
        let mut store = Store::new(Directory::open(directory.path()).unwrap());
        store.keep_rails(&encode(&rails).unwrap()).unwrap();
        assert_eq!(remembered(directory.path()), Ok(rails.clone()));
        assert_eq!(store.numbers().unwrap(), Vec::<u64>::new(), "it is no generation");

        let file = directory.path().join("rails");
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(remembered(directory.path()).is_err());
        let text = encode(&rails).unwrap();
        for (wrong, why) in [
            (text.replace("\"version\":1", "\"version\":2"), "version 2"),
            (text.replace("0000:18:00.0", "18:00.0"), "not a PCI address"),
            ("{".to_owned(), "rails:"),
        ] {
            assert!(decode(&wrong).unwrap_err().contains(why), "{wrong}");
        }
    }
}

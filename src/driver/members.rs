//! A change of what is in some sets, and of nothing else: a transaction of a few elements, whatever else is in the table.

use std::collections::BTreeSet;

use super::apply::Written;
use super::{Error, Kernel};
use crate::nft::change::{Batch, Change, Loaded, next_generation};
use crate::nft::ir::Ruleset;
use crate::nft::netlink::canonical_set;
use crate::plan::{elements, shape};

/// How often it is planned anew when other transactions come between.
const ATTEMPTS: usize = 10;

/// Makes the sets of these names hold what they do in `wanted`; how many changes were sent. What is `known` of the table is taken to
/// hold of these sets, however old it is: the kernel refuses to delete an element that it does not have, and what was written is
/// looked up. `known` follows, and stays as old as it was if other transactions came since.
///
/// # Errors
/// The kernel's, and [`Error::Differs`] where a set is not there or is not a set of this kind. Nothing is in force then but maybe the
/// change itself, so that an [`apply()`](super::apply()) of the whole ruleset is the way on.
pub fn change_members(
    kernel: &mut dyn Kernel,
    wanted: &Ruleset,
    names: &BTreeSet<String>,
    known: &mut Loaded,
) -> Result<usize, Error> {
    let mut changes = Vec::new();
    for name in names {
        let (Some(there), Some(set)) = (known.ruleset.sets.get(name), wanted.sets.get(name)) else {
            return Err(Error::Differs(format!("no set {name}")));
        };
        let set = canonical_set(set);
        if shape(there) != shape(&set) || known.unread.contains(name) {
            return Err(Error::Differs(format!("another set {name}")));
        }
        changes.extend(elements(name, there, &set));
    }
    if changes.is_empty() {
        return Ok(0);
    }
    let generation = commit(kernel, &changes)?;
    let written = Written::of(&changes);
    written.single.iter().try_for_each(|single| single.look(kernel))?;
    for name in names {
        let Some(set) = wanted.sets.get(name).map(canonical_set) else { continue };
        if written.whole.contains(name) && kernel.elements(name, &set)? != set.elements {
            return Err(Error::Differs(format!("another set {name}")));
        }
        known.ruleset.sets.insert(name.clone(), set);
    }
    if known.generation == generation {
        known.generation = next_generation(generation);
    }
    Ok(changes.len())
}

/// Commits the changes, whatever the generation is; the one that they came after.
fn commit(kernel: &mut dyn Kernel, changes: &[Change]) -> Result<u32, Error> {
    for _ in 0..ATTEMPTS {
        let generation = kernel.generation()?;
        match kernel.commit(&Batch { generation: Some(generation), changes: changes.to_vec() }) {
            Err(Error::Contended) => {}
            answer => return answer.map(|()| generation),
        }
    }
    Err(Error::Contended)
}

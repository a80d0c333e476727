//! Which HostStates are of nodes that are gone. Decides, and does nothing; times are from a monotonic clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// At most one of so many is deleted at a look: a list of nodes that is wrong must not cost the fleet its states.
const SHARE: usize = 10;

/// A HostState as a look shows it. It has the name of its node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    /// Its name.
    pub(super) name: String,
    /// Another one of the same name has another.
    pub(super) uid: String,
    /// `resourceVersion`.
    pub(super) version: String,
}

/// What comes of a look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Sweep {
    /// To be deleted, as they were seen.
    pub(super) delete: Vec<State>,
    /// How many more there are, which is too many at once.
    pub(super) held_back: usize,
}

/// States without a Node, as they were seen first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Leftovers {
    apart: Duration,
    lonely: BTreeMap<String, (State, Duration)>,
}

impl Leftovers {
    /// Two looks are so far apart at least.
    pub(super) fn new(apart: Duration) -> Self {
        Self { apart, lonely: BTreeMap::new() }
    }

    /// What to delete, with the states first and the names of all Nodes after them: who came between has no state here. A state that
    /// somebody wrote since the first look is of a host that lives, whatever the cluster has for Nodes.
    pub(super) fn look(&mut self, states: &[State], nodes: &BTreeSet<String>, now: Duration) -> Sweep {
        // A cluster without Nodes has nobody to run this, and what says so is not believed before either.
        if nodes.is_empty() {
            self.lonely.clear();
            return Sweep::default();
        }
        let lonely = states.iter().filter(|state| !nodes.contains(&state.name)).map(|state| {
            let before = self.lonely.get(&state.name).filter(|(before, _)| before == state);
            (state.name.clone(), (state.clone(), before.map_or(now, |(_, since)| *since)))
        });
        self.lonely = lonely.collect();
        let mut due: Vec<_> = self.lonely.values().filter(|(_, since)| *since + self.apart <= now).collect();
        due.sort_by_key(|(_, since)| *since);
        let most = (states.len() / SHARE).max(1);
        let held_back = due.len().saturating_sub(most);
        Sweep { delete: due.into_iter().take(most).map(|(state, _)| state.clone()).collect(), held_back }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_secs(600);

    fn state(number: usize, version: &str) -> State {
        State { name: format!("gpu-{number:03}"), uid: format!("u{number}"), version: version.to_owned() }
    }

    fn states(count: usize) -> Vec<State> {
        (0..count).map(|number| state(number, "1")).collect()
    }

    fn nodes(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
        numbers.into_iter().map(|number| state(number, "").name).collect()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_state_of_a_node_that_is_gone_goes_at_the_second_look() {
        let mut leftovers = Leftovers::new(APART);
        assert_eq!(leftovers.look(&states(30), &nodes(1..30), at(0)), Sweep::default());
        assert_eq!(leftovers.look(&states(30), &nodes(1..30), at(599)), Sweep::default(), "too early");
        assert_eq!(leftovers.look(&states(30), &nodes(1..30), at(600)).delete, [state(0, "1")]);
        // As long as it is there, it is to be deleted.
        assert_eq!(leftovers.look(&states(30), &nodes(1..30), at(700)).delete, [state(0, "1")]);
    }

    #[test]
    fn whoever_came_back_or_writes_or_is_another_is_waited_for_anew() {
        let mut leftovers = Leftovers::new(APART);
        leftovers.look(&states(3), &nodes([1, 2]), at(0));
        leftovers.look(&states(3), &nodes(0..3), at(600));
        assert_eq!(leftovers.look(&states(3), &nodes([1, 2]), at(1200)), Sweep::default(), "its Node came back");
        let written = [state(0, "2"), state(1, "1"), state(2, "1")];
        assert_eq!(leftovers.look(&written, &nodes([1, 2]), at(1800)), Sweep::default(), "it was written");
        let mut another = written.clone();
        another[0].uid = "another".to_owned();
        assert_eq!(leftovers.look(&another, &nodes([1, 2]), at(2400)), Sweep::default(), "it is another one");
        assert_eq!(leftovers.look(&another, &nodes([1, 2]), at(3000)).delete, another[..1]);
    }

    #[test]
    fn a_list_without_nodes_is_not_believed_and_undoes_what_was_seen() {
        let mut leftovers = Leftovers::new(APART);
        for seconds in [0, 600, 1200] {
            assert_eq!(leftovers.look(&states(5), &nodes([]), at(seconds)), Sweep::default());
        }
        leftovers.look(&states(5), &nodes(1..5), at(1800));
        leftovers.look(&states(5), &nodes([]), at(2400));
        assert_eq!(leftovers.look(&states(5), &nodes(1..5), at(2401)), Sweep::default());
        assert_eq!(leftovers.look(&states(5), &nodes(1..5), at(3001)).delete.len(), 1);
    }

    #[test]
    fn a_tenth_goes_at_a_look_and_the_longest_gone_first() {
        let mut leftovers = Leftovers::new(APART);
        leftovers.look(&states(100), &nodes((0..100).filter(|number| *number != 99)), at(0));
        leftovers.look(&states(100), &nodes(0..50), at(10));
        let sweep = leftovers.look(&states(100), &nodes(0..50), at(610));
        let names: Vec<&str> = sweep.delete.iter().map(|state| state.name.as_str()).collect();
        assert_eq!((names[0], names[1], names.len()), ("gpu-099", "gpu-050", 10));
        assert_eq!(sweep.held_back, 40);
        // A small fleet loses one at a time.
        let mut leftovers = Leftovers::new(APART);
        leftovers.look(&states(4), &nodes([0]), at(0));
        let sweep = leftovers.look(&states(4), &nodes([0]), at(600));
        assert_eq!((sweep.delete, sweep.held_back), (vec![state(1, "1")], 2));
    }
}

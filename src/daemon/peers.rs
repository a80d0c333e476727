//! Whose turn it is on the control socket: who has not sent a request yet makes room for others, whoever has most of the places first.

use std::collections::BTreeMap;

/// The peers that have not sent a whole request yet, in the order in which they came.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    most: usize,
    /// The user of each, by a number that counts up.
    users: BTreeMap<u64, u32>,
    next: u64,
}

impl Waiting {
    /// At most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { most, users: BTreeMap::new(), next: 0 }
    }

    /// One more, of this user: its number, and who has to go for it. That is the one that has waited longest of the user who has most
    /// peers waiting, so that one user cannot keep out another, and who sends at once is not kept out by who sends nothing.
    pub(super) fn enter(&mut self, user: u32) -> (u64, Option<u64>) {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.users.insert(number, user);
        let goes = (self.users.len() > self.most).then(|| self.longest_of_the_greediest()).flatten();
        if let Some(goes) = goes {
            self.users.remove(&goes);
        }
        (number, goes)
    }

    /// It has sent its request, or is gone.
    pub(super) fn leave(&mut self, number: u64) {
        self.users.remove(&number);
    }

    fn longest_of_the_greediest(&self) -> Option<u64> {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for user in self.users.values() {
            *counts.entry(*user).or_default() += 1;
        }
        let most = counts.values().max()?;
        self.users.iter().find(|(_, user)| counts.get(user) == Some(most)).map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_the_user_with_most_goes() {
        let mut waiting = Waiting::new(3);
        assert_eq!(waiting.enter(1), (0, None));
        assert_eq!(waiting.enter(2), (1, None));
        assert_eq!(waiting.enter(2), (2, None));
        assert_eq!(waiting.enter(1), (3, Some(0)), "both have two, and this one came first");
        assert_eq!(waiting.enter(3), (4, Some(1)));
        waiting.leave(3);
        assert_eq!(waiting.enter(3), (5, None));
        assert_eq!(waiting.enter(2), (6, Some(2)), "it comes itself, and an older one of its own goes");
    }

    #[test]
    fn a_crowd_of_one_user_never_moves_another_out() {
        let mut waiting = Waiting::new(4);
        let (mine, _) = waiting.enter(0);
        for _ in 0..1000 {
            let (_, goes) = waiting.enter(7);
            assert_ne!(goes, Some(mine));
        }
        assert_eq!(waiting.users.len(), 4);
    }
}

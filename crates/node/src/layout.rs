//! Into which fragments a table is cut, and how that changes while it is used: group by group, where a group is the fragments before
//! and after that share keys. Of all others nothing is changed meanwhile.

use crate::schema::{Durability, TableDef};
use base::{ERA_MAX, FRAGMENTS_MAX, FragmentId, NodeId};
use replica::{Config, Room, Slice};
use serde::{Deserialize, Serialize};

/// What is remembered of a table's fragments beside their number.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// Branches of different fragments have different names: what they are of can be joined.
    pub lined: bool,
    /// With how many fragments the table began; 0: with as many as it has.
    first: u16,
    /// How often their number was changed.
    era: u16,
    /// The change that is under way.
    pub(crate) change: Option<Change>,
}

/// A change of the number of fragments that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// How many there were.
    pub from: u16,
    /// So many groups have been changed, the first ones.
    pub done: u16,
}

impl Change {
    /// Keys whose hash leaves the same when divided by this are in one group.
    pub fn groups(&self, count: u16) -> u16 {
        self.from.min(count).max(1)
    }
}

/// The next change of a table's number of fragments cannot be that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadCount {
    /// Neither a multiple of the present number nor a part of it, or too many.
    Uneven,
    /// The last change is not over.
    Busy,
    /// Made by a program that did not tell branches of different fragments apart.
    Old,
    /// Too often.
    Often,
}

impl TableDef {
    fn with_era(&self, before: bool, place: u16) -> FragmentId {
        let (era, count) = match self.layout.change {
            Some(change) if before => (self.layout.era.saturating_sub(1), change.from),
            _ => (self.layout.era, self.options.fragments),
        };
        FragmentId::new(self.id, era, count, place)
    }

    /// The fragment of keys with this hash.
    pub(crate) fn of_hash(&self, hash: u64) -> FragmentId {
        let place = |count: u16| (hash % u64::from(count.max(1))) as u16;
        match self.layout.change {
            Some(change) if place(change.groups(self.options.fragments)) >= change.done => {
                self.with_era(true, place(change.from))
            }
            _ => self.with_era(false, place(self.options.fragments)),
        }
    }

    /// All fragments of the table; while their number changes some of those before and some of those after.
    pub fn all(&self) -> impl Iterator<Item = FragmentId> + use<> {
        let count = self.options.fragments;
        let (groups, done, from) = match self.layout.change {
            Some(change) => (change.groups(count), change.done, change.from),
            None => (1, 1, 0),
        };
        let (id, era, before) = (self.id, self.layout.era, self.layout.era.saturating_sub(1));
        let new = (0..count).filter(move |place| place % groups < done);
        let old = (0..from).filter(move |place| place % groups >= done);
        new.map(move |place| FragmentId::new(id, era, count, place))
            .chain(old.map(move |place| FragmentId::new(id, before, from, place)))
    }

    /// All of them, with the nodes that they begin with. Those that were made of others begin where those were.
    pub(crate) fn founded(&self) -> impl Iterator<Item = (FragmentId, &[NodeId])> {
        let founders = move |id: FragmentId| self.founders.get(usize::from(id.place())).filter(|_| id.era() == 0);
        self.all().map(move |id| (id, founders(id).map_or(&[][..], Vec::as_slice)))
    }

    /// Is it one of the table's fragments at this moment?
    pub fn has(&self, fragment: FragmentId) -> bool {
        let slice = self.slice(fragment);
        fragment.table == self.id && slice.place < slice.count && self.of_hash(slice.place.into()) == fragment
    }

    /// Which keys lie in a fragment, of whichever era.
    pub fn slice(&self, fragment: FragmentId) -> Slice {
        let first = if self.layout.first == 0 { self.options.fragments } else { self.layout.first };
        Slice { count: fragment.count().unwrap_or(first).into(), place: fragment.place().into() }
    }

    /// What tells its branches from those of others.
    pub(crate) fn line(&self, fragment: FragmentId) -> u32 {
        if self.layout.lined || fragment.era() > 0 { fragment.index } else { 0 }
    }

    /// Tells the copies of a fragment what the table's options say, and how much it may hold.
    pub(crate) fn shape(&self, room: Room, config: &mut Config) {
        let o = &self.options;
        (config.storage, config.sync) = (o.storage, o.durability == Durability::Sync);
        (config.unordered, config.min_in_sync) = (o.unordered, o.min_in_sync);
        (config.policy, config.ttl_ms) = (o.policy.clone(), o.ttl_ms);
        (config.room, config.evict) = (room, o.evict.clone());
    }

    /// How often the number of its fragments was changed.
    pub(crate) fn era(&self) -> u16 {
        self.layout.era
    }

    /// The change that is under way.
    pub fn change(&self) -> Option<Change> {
        self.layout.change
    }

    /// The table is to have so many.
    pub(crate) fn recut(&mut self, count: u16) -> Result<(), BadCount> {
        let now = self.options.fragments;
        if count == now {
            return Ok(());
        }
        if let Some(change) = self.layout.change.filter(|change| (change.from, change.done) == (count, 0)) {
            // Called back before anything was changed: there is no fragment of it.
            (self.options.fragments, self.layout.change) = (change.from, None);
            self.layout.era = self.layout.era.saturating_sub(1);
            return Ok(());
        }
        let even = count.is_multiple_of(now) || (count > 0 && now.is_multiple_of(count));
        match () {
            () if self.layout.change.is_some() => return Err(BadCount::Busy),
            () if !even || count == 0 || count > FRAGMENTS_MAX => return Err(BadCount::Uneven),
            () if !self.layout.lined => return Err(BadCount::Old),
            () if self.layout.era >= ERA_MAX => return Err(BadCount::Often),
            () => {}
        }
        if self.layout.first == 0 {
            self.layout.first = now;
        }
        self.layout.era = self.layout.era.saturating_add(1);
        self.layout.change = Some(Change { from: now, done: 0 });
        self.options.fragments = count;
        Ok(())
    }

    /// The fragments that share keys and are changed next, before and after.
    pub(crate) fn next_group(&self) -> Option<(Vec<FragmentId>, Vec<FragmentId>)> {
        let change = self.layout.change?;
        let groups = change.groups(self.options.fragments);
        let of = |count: u16, before: bool| {
            let places = (0..count).filter(|place| place % groups == change.done);
            places.map(|place| self.with_era(before, place)).collect()
        };
        Some((of(change.from, true), of(self.options.fragments, false)))
    }

    /// And that was done.
    pub(crate) fn advance(&mut self) {
        let Some(change) = &mut self.layout.change else { return };
        change.done = change.done.saturating_add(1);
        if change.done >= change.groups(self.options.fragments) {
            self.layout.change = None;
        }
    }

    /// The fragment whose line this is.
    pub fn of_line(&self, line: u32) -> FragmentId {
        FragmentId { table: self.id, index: line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::TableOptions;
    use std::collections::BTreeSet;

    fn table(fragments: u16) -> TableDef {
        let options = TableOptions { fragments, ..TableOptions::default() };
        let mut def = TableDef::new("t", options, 0, vec![NodeId(1)]);
        def.layout.lined = true;
        def
    }

    fn places(def: &TableDef) -> Vec<(u16, u16)> {
        def.all().map(|id| (id.era(), id.place())).collect()
    }

    #[test]
    fn keys_go_over_group_by_group() {
        for (from, to) in [(4, 8), (8, 4), (1, 5), (6, 1)] {
            let mut def = table(from);
            assert_eq!(def.recut(to), Ok(()));
            let mut steps = 0;
            while def.change().is_some() {
                let all: BTreeSet<FragmentId> = def.all().collect();
                assert!(all.iter().all(|id| def.has(*id)));
                let (old, new) = def.next_group().expect("one is next");
                assert!(old.iter().all(|id| all.contains(id)) && new.iter().all(|id| !all.contains(id)));
                // Each key lies in exactly one of the slices, and is looked for there.
                for hash in 0..48 {
                    let id = def.of_hash(hash);
                    assert!(all.contains(&id), "{id:?} of {all:?}");
                    let slice = def.slice(id);
                    assert!(slice.has(hash));
                    let holds = |id: &&FragmentId| def.slice(**id).has(hash);
                    assert_eq!(all.iter().filter(holds).count(), 1);
                }
                // Whoever still has fragments of a number before the last finds a place for every key among these.
                let slices: Vec<_> = all.iter().map(|id| (*id, def.slice(*id))).collect();
                for key in (0..40u8).map(|n| [n]) {
                    assert_eq!(def.which(&slices, &key), Some(def.fragment(&key)));
                }
                def.advance();
                steps += 1;
            }
            assert_eq!(steps, from.min(to));
            assert_eq!(places(&def), (0..to).map(|place| (1, place)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut def = table(4);
        for bad in [0, 3, 6, 1028] {
            assert_eq!(def.recut(bad), Err(BadCount::Uneven), "{bad}");
        }
        assert_eq!((def.recut(4), def.change()), (Ok(()), None));
        assert_eq!(def.recut(8), Ok(()));
        assert_eq!(def.recut(16), Err(BadCount::Busy));
        // Called back, until something was changed.
        assert_eq!((def.recut(4), def.change(), def.era(), def.options.fragments), (Ok(()), None, 0, 4));
        assert_eq!(def.recut(8), Ok(()));
        def.advance();
        assert_eq!(def.recut(4), Err(BadCount::Busy));
        let mut old = table(4);
        old.layout.lined = false;
        assert_eq!((old.recut(2), old.recut(8)), (Err(BadCount::Old), Err(BadCount::Old)));
    }

    #[test]
    fn what_never_changed_is_as_it_was() {
        let def = table(3);
        assert_eq!(def.all().map(|id| id.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(def.founded().map(|(_, nodes)| nodes.len()).collect::<Vec<_>>(), [1, 1, 1]);
    }
}

//! The copies that a node holds, where threads beside it can read them.

use base::{FragmentId, Instant, Now};
use replica::{Copy, Read, Rows};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

type Shared = Arc<RwLock<Copy>>;

fn look<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread beside the node can read without asking it. Clones look at the same copies.
#[derive(Clone, Default)]
pub struct Window {
    all: Arc<RwLock<BTreeMap<FragmentId, Shared>>>,
}

/// What came of a look through a [`Window`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Glance {
    /// The rows, if a copy here may be read at this moment.
    pub rows: Option<Vec<Rows>>,
    /// Its leases are old or missing: [`Input::Warm`](crate::Input::Warm) gets new ones.
    pub cold: bool,
}

impl Window {
    /// Reads a fragment if a copy of it is here and has the leases for it. `clock` is asked while the copy stands still.
    pub fn read(&self, fragment: FragmentId, read: &Read, clock: impl FnOnce() -> Now) -> Glance {
        let Some(copy) = look(&self.all).get(&fragment).cloned() else { return Glance::default() };
        let copy = look(&copy);
        let now = clock();
        Glance { rows: copy.read_under_lease(now, read), cold: copy.wants_warmth(now) }
    }
}

/// All copies of a node, and when each wants to be called.
#[derive(Default)]
pub(crate) struct Copies {
    window: Window,
    due: BTreeSet<(Instant, FragmentId)>,
    deadlines: BTreeMap<FragmentId, Instant>,
}

impl Copies {
    pub(crate) fn window(&self) -> Window {
        self.window.clone()
    }

    pub(crate) fn contains(&self, fragment: FragmentId) -> bool {
        look(&self.window.all).contains_key(&fragment)
    }

    pub(crate) fn ids(&self) -> Vec<FragmentId> {
        look(&self.window.all).keys().copied().collect()
    }

    /// Looks at one.
    pub(crate) fn with<R>(&self, fragment: FragmentId, look_at: impl FnOnce(&Copy) -> R) -> Option<R> {
        let copy = look(&self.window.all).get(&fragment)?.clone();
        let copy = look(&copy);
        Some(look_at(&copy))
    }

    /// Changes one.
    pub(crate) fn step<R>(&mut self, fragment: FragmentId, change: impl FnOnce(&mut Copy) -> R) -> Option<R> {
        let copy = look(&self.window.all).get(&fragment)?.clone();
        let mut copy = copy.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut copy);
        let (at, before) = (copy.deadline(), self.deadlines.get(&fragment).copied());
        if at != before {
            before.map(|before| self.due.remove(&(before, fragment)));
            self.deadlines.extend(at.map(|at| (fragment, at)));
            self.due.extend(at.map(|at| (at, fragment)));
        }
        Some(result)
    }

    pub(crate) fn insert(&mut self, fragment: FragmentId, copy: Copy) {
        let mut all = self.window.all.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(fragment, Arc::new(RwLock::new(copy)));
        drop(all);
        self.step(fragment, |_| ());
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(FragmentId) -> bool) {
        self.window.all.write().unwrap_or_else(PoisonError::into_inner).retain(|fragment, _| keep(*fragment));
        self.due.retain(|(_, fragment)| keep(*fragment));
        self.deadlines.retain(|fragment, _| keep(*fragment));
    }

    /// When the first of them wants to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Those that want to be called now.
    pub(crate) fn due(&self, now: Instant) -> Vec<FragmentId> {
        self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, fragment)| *fragment).collect()
    }
}

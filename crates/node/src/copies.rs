//! The copies that a node holds, where threads beside it can read them.

use crate::schema::TableDef;
use base::{FragmentId, Instant, Now, TableId};
use replica::{Copy, Effects, Input, Read, Record, Rows, Stored};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

type Shared = Arc<RwLock<Copy>>;

/// The node alone changes what is locked here; if it failed half-way it has ended, and [`Window::close`] has been called.
fn look<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread beside the node can read without asking it. Clones look at the same copies.
#[derive(Clone, Default)]
pub struct Window {
    all: Arc<RwLock<BTreeMap<FragmentId, Shared>>>,
    /// Tables whose fragments have changed since the node began.
    recut: Arc<RwLock<BTreeMap<TableId, Arc<TableDef>>>>,
    is_recut: Arc<AtomicBool>,
}

/// What came of a look through a [`Window`].
#[derive(Clone, PartialEq, Debug)]
pub struct Glance<T> {
    /// What was read, if a copy here may be read at this moment.
    pub found: Option<T>,
    /// Its leases are old or missing: [`Input::Warm`](crate::Input::Warm) gets new ones.
    pub cold: bool,
}

impl Window {
    /// The node ends: nothing is read here any more.
    pub fn close(&self) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The definition of a table is another from here on, and its fragments may be.
    pub(crate) fn note_layout(&self, def: &TableDef, is_recut: bool) {
        let mut recut = self.recut.write().unwrap_or_else(PoisonError::into_inner);
        if is_recut || recut.contains_key(&def.id) {
            recut.insert(def.id, Arc::new(def.clone()));
            self.is_recut.store(true, Ordering::Release);
        }
    }

    /// The fragment of a key, whatever this definition says, which may be old.
    pub fn fragment(&self, def: &TableDef, key: &[u8]) -> FragmentId {
        if !self.is_recut.load(Ordering::Acquire) {
            return def.fragment(key);
        }
        look(&self.recut).get(&def.id).map_or_else(|| def.fragment(key), |now| now.fragment(key))
    }

    /// A table's definition as it is now, as far as its fragments go.
    pub fn renewed(&self, def: &TableDef) -> Option<Arc<TableDef>> {
        let recut = self.is_recut.load(Ordering::Acquire);
        recut.then(|| look(&self.recut).get(&def.id).filter(|now| now.layout != def.layout).cloned())?
    }

    /// Reads a fragment if a copy of it is here and has the leases for it. `clock` is asked while the copy stands still.
    pub fn read(&self, fragment: FragmentId, read: &Read, clock: impl FnOnce() -> Now) -> Glance<Vec<Rows>> {
        self.look_at(fragment, clock, |copy, now| copy.read_under_lease(now, read))
    }

    /// One key's live record.
    pub fn get(&self, fragment: FragmentId, key: &[u8], clock: impl FnOnce() -> Now) -> Glance<Option<Record>> {
        self.look_at(fragment, clock, |copy, now| copy.get_under_lease(now, key))
    }

    fn look_at<T>(
        &self,
        fragment: FragmentId,
        clock: impl FnOnce() -> Now,
        read: impl FnOnce(&Copy, Now) -> Option<T>,
    ) -> Glance<T> {
        let nothing = Glance { found: None, cold: false };
        let Some(copy) = look(&self.all).get(&fragment).cloned() else { return nothing };
        // One that the node failed in the midst of changing is no copy.
        let Ok(copy) = copy.read() else { return nothing };
        let now = clock();
        Glance { found: read(&copy, now), cold: copy.wants_warmth(now) }
    }
}

/// What one copy is to take at the end of a burst. Those of different copies may run on different threads at once.
pub struct Task {
    pub(crate) fragment: FragmentId,
    copy: Shared,
    inputs: Vec<Input>,
    pub(crate) fx: Effects,
}

impl Task {
    /// How many inputs wait.
    pub fn weight(&self) -> usize {
        self.inputs.len()
    }

    /// Hands them to the copy, and lets it send what they caused.
    pub fn run(&mut self, now: Now) {
        let mut copy = self.copy.write().unwrap_or_else(PoisonError::into_inner);
        self.inputs.drain(..).for_each(|input| copy.handle(now, input, &mut self.fx));
        copy.flush(now, &mut self.fx);
    }
}

/// All copies of a node, what they have not been given yet, and when each wants to be called.
#[derive(Default)]
pub(crate) struct Copies {
    window: Window,
    /// Those that are to be flushed at the end of the burst, and what they get before that, in order.
    waiting: BTreeMap<FragmentId, Vec<Input>>,
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

    /// Keeps an input for the end of the burst; `false`: there is no such copy.
    pub(crate) fn later(&mut self, fragment: FragmentId, input: Input) -> bool {
        let here = self.contains(fragment);
        if here {
            self.waiting.entry(fragment).or_default().push(input);
        }
        here
    }

    /// Hands an input to a copy now, after all that were kept for it; `None`: there is no such copy.
    pub(crate) fn now(&mut self, now: Now, fragment: FragmentId, input: Input) -> Option<Effects> {
        let mut inputs = self.waiting.get_mut(&fragment).map(std::mem::take).unwrap_or_default();
        inputs.push(input);
        let mut fx = Effects::default();
        self.step(fragment, |copy| inputs.into_iter().for_each(|input| copy.handle(now, input, &mut fx)))?;
        self.touch(fragment);
        Some(fx)
    }

    /// It is to be flushed at the end of the burst.
    pub(crate) fn touch(&mut self, fragment: FragmentId) {
        self.waiting.entry(fragment).or_default();
    }

    /// What is to be run now: all that waited. To be followed by [`Copies::ran`].
    pub(crate) fn tasks(&mut self) -> Vec<Task> {
        let all = look(&self.window.all);
        let task = |(fragment, inputs)| {
            let copy = all.get(&fragment)?.clone();
            Some(Task { fragment, copy, inputs, fx: Effects::default() })
        };
        std::mem::take(&mut self.waiting).into_iter().filter_map(task).collect()
    }

    /// A copy's task was run.
    pub(crate) fn ran(&mut self, fragment: FragmentId) {
        self.step(fragment, |_| ());
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

    /// Takes out those that are not to be kept, with their last words: whoever waits is answered, branches are closed.
    pub(crate) fn take_out(
        &mut self,
        now: Now,
        keep: impl Fn(FragmentId) -> bool,
    ) -> Vec<(FragmentId, Stored, Effects)> {
        let gone: Vec<FragmentId> = self.ids().into_iter().filter(|fragment| !keep(*fragment)).collect();
        gone.into_iter()
            .filter_map(|fragment| {
                let resign = |copy: &mut Copy, fx: &mut Effects| {
                    copy.handle(now, Input::Resign, fx);
                    Some(copy.take_stored())
                };
                let (stored, fx) = self.end(now, fragment, resign);
                Some((fragment, stored?, fx))
            })
            .collect()
    }

    /// Takes one out, after what was kept for it, if it has these last words.
    pub(crate) fn end<R>(
        &mut self,
        now: Now,
        fragment: FragmentId,
        last: impl FnOnce(&mut Copy, &mut Effects) -> Option<R>,
    ) -> (Option<R>, Effects) {
        let (mut fx, inputs) = (Effects::default(), self.waiting.remove(&fragment).unwrap_or_default());
        let said = self.step(fragment, |copy| {
            inputs.into_iter().for_each(|input| copy.handle(now, input, &mut fx));
            last(copy, &mut fx)
        });
        let said = said.flatten();
        if said.is_some() {
            self.window.all.write().unwrap_or_else(PoisonError::into_inner).remove(&fragment);
            self.deadlines.remove(&fragment).map(|at| self.due.remove(&(at, fragment)));
        } else if self.contains(fragment) {
            self.touch(fragment);
        }
        (said, fx)
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

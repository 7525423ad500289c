//! What others change is told to the kernel of this machine, so that it may keep names, attributes and bytes meanwhile.
//!
//! A mount follows the keys of its metadata. What it wrote itself the kernel knows already, from the replies; everything else
//! is pushed: from a thread of its own, since the kernel may hold a lock that an operation under way has to give back first.
//! Each push is repeated once, since the kernel may install a reply that was on its way when the first came. What
//! is known here of the kernel's bytes (`known`) decides whether it may keep them when a file is opened.

use crate::fs::{Fs, Ino, lock};
use crate::record;
use base::Version;
use bytes::Bytes;
use client::{Change, Subscription};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long the kernel may keep what it was told, if nobody tells it otherwise. A change is pushed much sooner.
const KEPT: Duration = Duration::from_secs(30);
/// When a push is repeated.
const REPEAT: Duration = Duration::from_millis(50);
/// How many of its own writes a mount remembers, until it meets them among the changes.
const OWN_MAX: usize = 65_536;
/// Of how many inodes it is remembered what the kernel holds; of others it is taken to hold nothing.
const KNOWN_MAX: usize = 200_000;
/// With more pushes than these waiting, nothing is kept for a while instead.
const WAITING_MAX: usize = 100_000;
/// Changes that come at once are looked at together.
const GATHER: Duration = Duration::from_millis(1);
/// How often is looked for changes that nobody announces.
const LOOK: Duration = Duration::from_millis(50);

/// The kernel's memory of one mount. Calls may block until operations under way have been answered.
pub trait Kernel: Send + Sync {
    /// Whether there is such a name, and what it leads to, is to be asked again.
    fn forget_name(&self, dir: Ino, name: &[u8]);
    /// So are an inode's attributes.
    fn forget_attributes(&self, ino: Ino);
    /// So are its bytes, and its attributes.
    fn forget_bytes(&self, ino: Ino);
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Push {
    Name(Ino, Bytes),
    Attributes(Ino),
    Bytes(Ino),
}

/// What the kernel has to forget when this key is changed.
fn push_of(key: &Bytes) -> Option<Push> {
    let ino = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
    match key.get(8)? {
        _ if ino == 0 => None,
        b'D' => record::split_entry(key).map(|(name, ..)| Push::Name(ino, name)),
        b'C' => Some(Push::Bytes(ino)),
        b'I' | b'T' | b'P' | b'X' | b'K' | b'A' => Some(Push::Attributes(ino)),
        _ => None,
    }
}

/// What a mount wrote itself.
#[derive(Default)]
struct Own {
    /// Keys of batches that have not been answered.
    flying: HashMap<Bytes, usize>,
    done: HashSet<Version>,
    order: VecDeque<Version>,
}

#[derive(Default)]
struct Queue {
    fresh: BTreeSet<Push>,
    again: VecDeque<(Instant, Push)>,
    closed: bool,
}

/// Of what version the kernel has something of an inode.
#[derive(Clone, Copy, Default)]
struct Known {
    attributes: Option<Version>,
    bytes: Option<Version>,
}

/// The link between the changes and the kernel.
#[derive(Default)]
pub(crate) struct Watch {
    own: Mutex<Own>,
    known: Mutex<HashMap<Ino, Known>>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// How many changes of others there were.
    others: AtomicU64,
    /// The changes are followed without a gap.
    in_step: AtomicBool,
    /// Too much was pushed at once: nothing is to be kept until then.
    blind_until: Mutex<Option<Instant>>,
    kernel: Mutex<Option<Arc<dyn Kernel>>>,
}

impl Watch {
    /// Of these keys a batch is on its way.
    pub(crate) fn begin(&self, keys: &[Bytes]) {
        let mut own = lock(&self.own);
        keys.iter().for_each(|key| *own.flying.entry(key.clone()).or_default() += 1);
    }

    /// It has been answered; `Some`: it was done, and the kernel knows it from the reply.
    pub(crate) fn end(&self, keys: &[Bytes], done: Option<Version>) {
        let mut own = lock(&self.own);
        for key in keys {
            if let Some(count) = own.flying.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    own.flying.remove(key);
                }
            }
        }
        if let Some(version) = done
            && own.done.insert(version)
        {
            own.order.push_back(version);
            if own.order.len() > OWN_MAX
                && let Some(old) = own.order.pop_front()
            {
                own.done.remove(&old);
            }
        }
    }

    /// Is it this mount's own? `None`: that will be known when its batch is answered.
    fn is_own(&self, key: &Bytes, version: Version) -> Option<bool> {
        let own = lock(&self.own);
        match own.done.contains(&version) {
            true => Some(true),
            false if own.flying.contains_key(key) => None,
            false => Some(false),
        }
    }

    /// How many changes of others there were so far.
    pub(crate) fn others(&self) -> u64 {
        self.others.load(Ordering::Acquire)
    }

    fn may_keep(&self) -> bool {
        let mut blind = lock(&self.blind_until);
        if blind.is_some_and(|until| Instant::now() >= until) {
            *blind = None;
        }
        blind.is_none() && self.in_step.load(Ordering::Acquire)
    }

    /// How long the kernel may keep a reply that was begun when there were so many changes of others.
    pub(crate) fn kept(&self, begun: u64) -> Duration {
        if self.may_keep() && self.others() == begun { KEPT } else { Duration::ZERO }
    }

    fn push(&self, push: Push) {
        let mut queue = lock(&self.queue);
        queue.fresh.insert(push);
        if queue.fresh.len() + queue.again.len() > WAITING_MAX {
            (queue.fresh, queue.again) = (BTreeSet::new(), VecDeque::new());
            *lock(&self.blind_until) = Some(Instant::now() + KEPT);
        }
        self.wake.notify_one();
    }

    /// What is here is not what the kernel has: it is to drop an inode's bytes.
    pub(crate) fn drop_bytes(&self, ino: Ino) {
        lock(&self.known).remove(&ino);
        self.push(Push::Bytes(ino));
    }

    /// The kernel is told attributes, as they are with this commit of the bytes.
    pub(crate) fn told(&self, ino: Ino, content: Version) {
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX && !known.contains_key(&ino) {
            known.clear();
        }
        known.entry(ino).or_default().attributes = Some(content);
    }

    /// A file (or directory) is opened as it is with this commit. May the kernel keep the bytes (or names) that it has?
    /// If its attributes may be older, they are dropped before this returns.
    pub(crate) async fn opened(&self, ino: Ino, content: Version) -> bool {
        let (before, stale) = {
            let mut known = lock(&self.known);
            let entry = known.entry(ino).or_default();
            let before = entry.bytes.replace(content);
            (before, entry.attributes.is_some_and(|told| told != content))
        };
        let kernel = lock(&self.kernel).clone();
        if stale && let Some(kernel) = kernel {
            let _ = tokio::task::spawn_blocking(move || kernel.forget_attributes(ino)).await;
        }
        before == Some(content) && self.may_keep()
    }

    /// This mount put one commit of the bytes in another's place, and the kernel knows what is new of it.
    pub(crate) fn committed(&self, ino: Ino, before: Version, after: Version) {
        let raced = {
            let mut known = lock(&self.known);
            let Some(entry) = known.get_mut(&ino) else { return };
            let raced = entry.bytes.is_some_and(|bytes| bytes != before);
            *entry = Known {
                attributes: entry.attributes.filter(|a| *a == before).map(|_| after),
                bytes: entry.bytes.filter(|b| *b == before).map(|_| after),
            };
            raced
        };
        if raced {
            self.drop_bytes(ino);
        }
    }

    /// The kernel has let go of an inode.
    pub(crate) fn forgotten(&self, ino: Ino) {
        lock(&self.known).remove(&ino);
    }

    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
        *lock(&self.kernel) = None;
        self.wake.notify_all();
    }

    /// Carries out pushes until the mount is gone.
    fn carry_out(&self, kernel: &dyn Kernel) {
        loop {
            let mut queue = lock(&self.queue);
            if queue.closed {
                return;
            }
            let now = Instant::now();
            let due = queue.again.iter().take_while(|(at, _)| *at <= now).count();
            let mut all: BTreeSet<Push> = queue.again.drain(..due).map(|(_, push)| push).collect();
            let fresh = std::mem::take(&mut queue.fresh);
            queue.again.extend(fresh.iter().map(|push| (now + REPEAT, push.clone())));
            all.extend(fresh);
            if all.is_empty() {
                let next = queue.again.front().map_or(KEPT, |(at, _)| at.saturating_duration_since(now));
                drop(self.wake.wait_timeout(queue, next).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(queue);
            for push in all {
                match push {
                    Push::Name(dir, name) => kernel.forget_name(dir, &name),
                    Push::Attributes(ino) => kernel.forget_attributes(ino),
                    Push::Bytes(ino) => kernel.forget_bytes(ino),
                }
            }
        }
    }
}

impl Fs {
    /// From now on what others change is told to this kernel, which may keep what it is told until then.
    pub async fn watch(self: &Arc<Self>, kernel: Arc<dyn Kernel>) -> Result<(), client::Error> {
        let mut changes = self.meta.subscribe(client::Position::default()).keys_only();
        changes.skip().await?;
        *lock(&self.watch.kernel) = Some(kernel.clone());
        let watch = self.watch.clone();
        let carry_out = move || watch.carry_out(&*kernel);
        // Without the thread nothing is kept: correct, and slow.
        if std::thread::Builder::new().name("walkenfs-push".into()).spawn(carry_out).is_ok() {
            tokio::spawn(follow(Arc::downgrade(self), changes));
        }
        Ok(())
    }

    /// How many changes of others this mount has met: what to give to [`Fs::kept`].
    pub fn others(&self) -> u64 {
        self.watch.others()
    }

    /// How long the kernel may keep a reply that was begun when [`Fs::others`] said so.
    pub fn kept(&self, begun: u64) -> Duration {
        if self.options.strict { Duration::ZERO } else { self.watch.kept(begun) }
    }

    /// The kernel has let go of an inode.
    pub fn forgotten(&self, ino: Ino) {
        self.watch.forgotten(ino);
    }
}

async fn follow(fs: Weak<Fs>, mut changes: Subscription) {
    let mut unclear: Vec<(Bytes, Version)> = Vec::new();
    loop {
        let Some(fs) = fs.upgrade() else { return };
        let watch = &fs.watch;
        if lock(&watch.queue).closed {
            return;
        }
        let found = changes.try_next().await;
        watch.in_step.store(found.is_ok() && changes.is_in_step(), Ordering::Release);
        let rest = match found {
            Ok(Some(Change::Key { key, record })) => {
                unclear.push((key, record.version));
                None
            }
            // What is gone is asked for again when its time is over.
            Ok(Some(Change::Anew { .. })) => None,
            Ok(None) => Some(fs.db.handle().clone()),
            Err(_) => {
                tokio::time::sleep(LOOK).await;
                None
            }
        };
        unclear.retain(|(key, version)| match watch.is_own(key, *version) {
            None => true,
            Some(true) => false,
            Some(false) => {
                if let Some(push) = push_of(key) {
                    watch.others.fetch_add(1, Ordering::AcqRel);
                    watch.push(push);
                }
                false
            }
        });
        drop(fs);
        if let Some(handle) = rest {
            let look = if unclear.is_empty() { LOOK } else { GATHER };
            let _ = tokio::time::timeout(look, handle.changed()).await;
            tokio::time::sleep(GATHER).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{BranchId, NodeId};

    fn version(seq: u64) -> Version {
        Version { branch: BranchId { node: NodeId(1), n: 1 }, seq }
    }

    #[derive(Default)]
    struct Told(Mutex<Vec<Push>>);

    impl Kernel for Told {
        fn forget_name(&self, dir: Ino, name: &[u8]) {
            lock(&self.0).push(Push::Name(dir, Bytes::copy_from_slice(name)));
        }

        fn forget_attributes(&self, ino: Ino) {
            lock(&self.0).push(Push::Attributes(ino));
        }

        fn forget_bytes(&self, ino: Ino) {
            lock(&self.0).push(Push::Bytes(ino));
        }
    }

    #[test]
    fn a_key_says_what_is_to_be_forgotten() {
        assert_eq!(push_of(&record::entry(5, b"name", 9, 1)), Some(Push::Name(5, Bytes::from_static(b"name"))));
        assert_eq!(push_of(&record::content(5)), Some(Push::Bytes(5)));
        assert_eq!(push_of(&record::place(5, 7)), Some(Push::Attributes(5)));
        for nothing in [record::small(5, 1), record::orphan(5), record::session(3), Bytes::from_static(b"short")] {
            assert_eq!(push_of(&nothing), None);
        }
    }

    #[test]
    fn what_a_mount_wrote_itself_is_known_when_its_batch_is_answered() {
        let (watch, key) = (Watch::default(), record::content(5));
        assert_eq!(watch.is_own(&key, version(1)), Some(false));
        watch.begin(&[key.clone()]);
        assert_eq!(watch.is_own(&key, version(1)), None);
        watch.end(&[key.clone()], Some(version(1)));
        assert_eq!(watch.is_own(&key, version(1)), Some(true));
        assert_eq!(watch.is_own(&key, version(2)), Some(false), "another's, after it");
        (10..10 + OWN_MAX as u64 + 1).for_each(|n| watch.end(&[], Some(version(n))));
        assert_eq!(watch.is_own(&key, version(1)), Some(false), "no more than so many are remembered");
    }

    #[tokio::test]
    async fn bytes_are_kept_as_long_as_nobody_else_committed() {
        let watch = Watch::default();
        watch.in_step.store(true, Ordering::Release);
        assert!(!watch.opened(5, version(1)).await, "nothing is known of it");
        assert!(watch.opened(5, version(1)).await);
        watch.committed(5, version(1), version(2));
        assert!(watch.opened(5, version(2)).await, "the kernel wrote that itself");
        assert!(!watch.opened(5, version(3)).await, "another's");
        assert!(lock(&watch.queue).fresh.is_empty());
        watch.committed(5, version(4), version(5));
        assert_eq!(lock(&watch.queue).fresh.iter().collect::<Vec<_>>(), [&Push::Bytes(5)], "on top of what it never saw");
        assert!(!watch.opened(5, version(5)).await);
        watch.in_step.store(false, Ordering::Release);
        assert!(!watch.opened(5, version(5)).await, "while the changes are not followed");
    }

    #[tokio::test]
    async fn attributes_that_may_be_old_are_dropped_before_a_file_is_open() {
        let (watch, told) = (Watch::default(), Arc::new(Told::default()));
        *lock(&watch.kernel) = Some(told.clone());
        watch.told(5, version(1));
        watch.opened(5, version(1)).await;
        assert!(lock(&told.0).is_empty());
        watch.opened(5, version(2)).await;
        assert_eq!(*lock(&told.0), [Push::Attributes(5)]);
    }

    #[test]
    fn a_push_is_carried_out_twice_and_too_many_blind_the_mount() {
        let (watch, told) = (Arc::new(Watch::default()), Arc::new(Told::default()));
        watch.in_step.store(true, Ordering::Release);
        let thread = std::thread::spawn({
            let (watch, told) = (watch.clone(), told.clone());
            move || watch.carry_out(&*told)
        });
        watch.push(Push::Attributes(5));
        let end = Instant::now() + Duration::from_secs(20);
        while lock(&told.0).len() < 2 && Instant::now() < end {
            std::thread::yield_now();
        }
        watch.close();
        thread.join().expect("the thread ends");
        assert_eq!(*lock(&told.0), [Push::Attributes(5), Push::Attributes(5)]);
        assert_eq!((watch.kept(0), watch.kept(1)), (KEPT, Duration::ZERO));
        (0..=WAITING_MAX as u64).for_each(|ino| watch.push(Push::Attributes(ino)));
        assert_eq!(watch.kept(0), Duration::ZERO);
        assert!(lock(&watch.queue).fresh.len() <= 1);
    }
}

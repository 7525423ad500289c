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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long the kernel may keep what it was told, if nobody tells it otherwise. A change is pushed much sooner.
const KEPT: Duration = Duration::from_secs(30);
/// The same while another mount has something to itself, and tells of it a little later.
const KEPT_BESIDE: Duration = Duration::from_secs(1);
/// When a push is repeated.
const REPEAT: Duration = Duration::from_millis(50);
/// How many of its own writes a mount remembers, until it meets them among the changes.
const OWN_MAX: usize = 65_536;
/// Of how many inodes it is remembered what the kernel holds; of others it is taken to hold nothing.
const KNOWN_MAX: usize = 200_000;
/// With more pushes than these waiting, nothing is kept for a while instead.
const WAITING_MAX: usize = 100_000;
/// What takes longer than this is not relied on.
const LATE: Duration = Duration::from_secs(1);
/// So long is waited for the answer that says whose a change is.
const UNCLEAR: Duration = Duration::from_millis(20);
/// So many changes are judged at once, at most.
const TOGETHER: usize = 256;
/// Of changes of the mount's own is remembered by this many classes of inodes whether there were any.
const STAMPS: usize = 4096;
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
    let ino = record::ino_of(key);
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

/// Pushes of one kind, and who waits for them. Those that may wait for a lock keep no others waiting.
#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    fresh: BTreeSet<Push>,
    again: VecDeque<(Instant, Push)>,
    /// Since when one push is carried out.
    busy: Option<Instant>,
    closed: bool,
}

/// Of what version the kernel has something of an inode; `None` where that is not known.
#[derive(Clone, Copy, Default)]
struct Known {
    attributes: Option<Version>,
    bytes: Option<Version>,
}

/// How things stood when a reply was begun: whether the kernel may keep it is decided when it leaves.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    others: u64,
    stamps: [(Ino, u64); 2],
    content: Version,
}

/// The link between the changes and the kernel.
pub(crate) struct Watch {
    own: Mutex<Own>,
    known: Mutex<HashMap<Ino, Known>>,
    /// Names and attributes; bytes.
    lanes: [Lane; 2],
    /// How many changes of others there were.
    others: AtomicU64,
    /// Counted up before and after each change of this mount's own, by inode.
    stamps: Vec<AtomicU64>,
    /// When the changes were last known to be followed without a gap, in milliseconds from the beginning.
    in_step: AtomicU64,
    begun: Instant,
    /// Too much was pushed at once: nothing is to be kept until then.
    blind_until: Mutex<Option<Instant>>,
    kernel: Mutex<Option<Arc<dyn Kernel>>>,
}

impl Default for Watch {
    fn default() -> Self {
        Watch {
            own: Mutex::default(),
            known: Mutex::default(),
            lanes: Default::default(),
            others: AtomicU64::new(0),
            stamps: (0..STAMPS).map(|_| AtomicU64::new(0)).collect(),
            in_step: AtomicU64::new(0),
            begun: Instant::now(),
            blind_until: Mutex::default(),
            kernel: Mutex::default(),
        }
    }
}

impl Watch {
    /// Of these keys a batch is on its way.
    pub(crate) fn begin(&self, keys: &[Bytes]) {
        keys.iter().for_each(|key| self.changes(record::ino_of(key)));
        let mut own = lock(&self.own);
        keys.iter().for_each(|key| *own.flying.entry(key.clone()).or_default() += 1);
    }

    /// It has been answered; `Some`: it was done, and the kernel knows it from the reply.
    pub(crate) fn end(&self, keys: &[Bytes], done: Option<Version>) {
        keys.iter().for_each(|key| self.changes(record::ino_of(key)));
        self.ended(keys, done);
    }

    fn ended(&self, keys: &[Bytes], done: Option<Version>) {
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

    /// What was acknowledged early has landed, or never will (`None`). Of commits of bytes: whose, and the version that they had
    /// until then.
    pub(crate) fn landed(&self, keys: &[Bytes], done: Option<Version>, commits: &[(Ino, Version)]) {
        self.ended(keys, done);
        let mut known = lock(&self.known);
        for (ino, early) in commits {
            if let Some(entry) = known.get_mut(ino) {
                let real = |version: &mut Option<Version>| {
                    if *version == Some(*early) {
                        *version = done;
                    }
                };
                real(&mut entry.attributes);
                real(&mut entry.bytes);
            }
        }
    }

    /// Something of this inode is changing here, or has: replies that were begun before are not to be kept.
    pub(crate) fn changes(&self, ino: Ino) {
        self.stamp(ino).fetch_add(1, Ordering::AcqRel);
    }

    fn stamp(&self, ino: Ino) -> &AtomicU64 {
        // Numbers of one mount follow each other: the low bits tell them apart.
        &self.stamps[ino as usize % STAMPS]
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

    /// A reply about these two inodes is begun; 0: none.
    pub(crate) fn mark(&self, one: Ino, two: Ino) -> Mark {
        let stamp = |ino| (ino, self.stamp(ino).load(Ordering::Acquire));
        let others = self.others.load(Ordering::Acquire);
        Mark { others, stamps: [stamp(one), stamp(two)], content: Version::default() }
    }

    fn may_keep(&self) -> bool {
        let mut blind = lock(&self.blind_until);
        if blind.is_some_and(|until| Instant::now() >= until) {
            *blind = None;
        }
        let seen = self.in_step.load(Ordering::Acquire);
        let in_step = seen > 0 && self.begun.elapsed().saturating_sub(Duration::from_millis(seen)) < LATE;
        let open = |lane: &Lane| {
            let queue = lock(&lane.queue);
            !queue.closed && queue.busy.is_none_or(|since| since.elapsed() < LATE)
        };
        blind.is_none() && in_step && self.lanes.iter().all(open)
    }

    fn is_in_step(&self, so: bool) {
        let now = if so { self.begun.elapsed().as_millis() as u64 + 1 } else { 0 };
        self.in_step.store(now, Ordering::Release);
    }

    /// How long the kernel may keep a reply.
    pub(crate) fn kept(&self, mark: &Mark) -> Duration {
        let as_was = |(ino, stamp): &(Ino, u64)| *ino == 0 || self.stamp(*ino).load(Ordering::Acquire) == *stamp;
        let same = self.others.load(Ordering::Acquire) == mark.others && mark.stamps.iter().all(as_was);
        if same && self.may_keep() { KEPT } else { Duration::ZERO }
    }

    fn push(&self, push: Push) {
        let lane = &self.lanes[usize::from(matches!(push, Push::Bytes(_)))];
        let mut queue = lock(&lane.queue);
        queue.fresh.insert(push);
        let waiting = queue.fresh.len() + queue.again.len();
        if waiting > WAITING_MAX {
            (queue.fresh, queue.again) = (BTreeSet::new(), VecDeque::new());
        }
        lane.wake.notify_one();
        drop(queue);
        if waiting > WAITING_MAX {
            *lock(&self.blind_until) = Some(Instant::now() + KEPT);
            // Names and attributes the kernel keeps no longer than that; bytes it would keep for ever.
            let held: Vec<Ino> = lock(&self.known).drain().map(|(ino, _)| ino).collect();
            lock(&self.lanes[1].queue).fresh.extend(held.into_iter().map(Push::Bytes));
            self.lanes[1].wake.notify_one();
        }
    }

    /// The kernel is to forget what these keys say.
    pub(crate) fn push_all(&self, keys: &[Bytes]) {
        for push in keys.iter().filter_map(push_of) {
            self.others.fetch_add(1, Ordering::AcqRel);
            self.push(push);
        }
    }

    /// What is here is not what the kernel has: it is to drop an inode's bytes.
    pub(crate) fn drop_bytes(&self, ino: Ino) {
        lock(&self.known).remove(&ino);
        self.changes(ino);
        self.push(Push::Bytes(ino));
    }

    /// The kernel is told attributes, as they are with this commit of the bytes. It may drop the reply for a newer one: what
    /// differs from what it was told before is not relied on. `true`: it may hold bytes of another commit, of a file that is open
    /// whatever is not known.
    fn told(&self, ino: Ino, content: Version, open: bool) -> bool {
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX && !known.contains_key(&ino) {
            known.clear();
        }
        let entry = known.entry(ino).or_default();
        entry.attributes = entry.attributes.is_none_or(|told| told == content).then_some(content);
        let stale = entry.bytes.map_or(open, |bytes| bytes != content);
        if stale {
            entry.bytes = None;
        }
        stale
    }

    /// The kernel has no bytes of an inode that are older than this commit.
    fn dropped(&self, ino: Ino, content: Version) {
        if let Some(entry) = lock(&self.known).get_mut(&ino) {
            entry.bytes.get_or_insert(content);
        }
    }

    /// An inode that was made just now: the kernel knows all of it.
    pub(crate) fn made(&self, ino: Ino) {
        let nothing = Some(Version::default());
        lock(&self.known).insert(ino, Known { attributes: nothing, bytes: nothing });
    }

    /// A file is opened as it is with this commit. May the kernel keep the bytes that it has? If its attributes may be
    /// older, they are dropped before this returns.
    pub(crate) async fn opened(&self, ino: Ino, content: Version) -> bool {
        let (before, stale) = {
            let mut known = lock(&self.known);
            let entry = known.entry(ino).or_default();
            (entry.bytes.replace(content), entry.attributes != Some(content))
        };
        if stale {
            self.forget(ino, false).await;
        }
        before == Some(content) && self.may_keep()
    }

    /// What the kernel has of an inode is of this commit when this returns. `None`: it has nothing.
    pub(crate) async fn freshen(&self, ino: Ino, content: Option<Version>) {
        {
            let mut known = lock(&self.known);
            let entry = known.entry(ino).or_default();
            if content.is_some() && (entry.attributes, entry.bytes) == (content, content) {
                return;
            }
            *entry = Known::default();
        }
        self.forget(ino, true).await;
        if let Some(content) = content {
            self.dropped(ino, content);
        }
    }

    /// The kernel forgets attributes, or bytes too, before this returns.
    pub(crate) async fn forget(&self, ino: Ino, bytes: bool) {
        let Some(kernel) = lock(&self.kernel).clone() else { return };
        let forget = move || if bytes { kernel.forget_bytes(ino) } else { kernel.forget_attributes(ino) };
        let _ = tokio::task::spawn_blocking(forget).await;
    }

    /// This mount put one commit of the bytes in another's place, and the kernel knows what is new of it. What else lay between
    /// it does not know.
    pub(crate) fn committed(&self, ino: Ino, before: Version, after: Version) {
        let raced = {
            let mut known = lock(&self.known);
            let as_was = |k: &&mut Known| k.bytes == Some(before) && k.attributes.is_none_or(|a| a == before);
            match known.get_mut(&ino).filter(as_was) {
                Some(entry) => *entry = Known { attributes: entry.attributes.map(|_| after), bytes: Some(after) },
                None => drop(known.remove(&ino)),
            }
            !known.contains_key(&ino)
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
        *lock(&self.kernel) = None;
        for lane in &self.lanes {
            lock(&lane.queue).closed = true;
            lane.wake.notify_all();
        }
    }

    fn is_closed(&self) -> bool {
        lock(&self.lanes[0].queue).closed
    }

    /// Carries out the pushes of one lane until the mount is gone.
    fn carry_out(&self, lane: usize, kernel: &dyn Kernel) {
        let lane = &self.lanes[lane];
        while let Some(all) = lane.next() {
            for push in all {
                let mut queue = lock(&lane.queue);
                if queue.closed {
                    return;
                }
                queue.busy = Some(Instant::now());
                drop(queue);
                match push {
                    Push::Name(dir, name) => kernel.forget_name(dir, &name),
                    Push::Attributes(ino) => kernel.forget_attributes(ino),
                    Push::Bytes(ino) => kernel.forget_bytes(ino),
                }
            }
            lock(&lane.queue).busy = None;
        }
    }
}

impl Lane {
    /// What is to be pushed now; `None`: the mount is gone.
    fn next(&self) -> Option<BTreeSet<Push>> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            let now = Instant::now();
            let due = queue.again.iter().take_while(|(at, _)| *at <= now).count();
            let mut all: BTreeSet<Push> = queue.again.drain(..due).map(|(_, push)| push).collect();
            let fresh = std::mem::take(&mut queue.fresh);
            queue.again.extend(fresh.iter().map(|push| (now + REPEAT, push.clone())));
            all.extend(fresh);
            if !all.is_empty() {
                return Some(all);
            }
            let next = queue.again.front().map_or(KEPT, |(at, _)| at.saturating_duration_since(now));
            queue = self.wake.wait_timeout(queue, next).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Fs {
    /// From now on what others change is told to this kernel, which may keep what it is told until then.
    pub async fn watch(self: &Arc<Self>, kernel: Arc<dyn Kernel>) -> Result<(), client::Error> {
        let Some(table) = self.meta.table() else { return Ok(()) };
        let mut changes = table.subscribe(client::Position::default()).keys_only();
        changes.skip().await?;
        *lock(&self.watch.kernel) = Some(kernel.clone());
        for lane in 0..self.watch.lanes.len() {
            let (watch, kernel) = (self.watch.clone(), kernel.clone());
            let thread = std::thread::Builder::new().name("walkenfs-push".into());
            if thread.spawn(move || watch.carry_out(lane, &*kernel)).is_err() {
                // Nothing is kept: correct, and slow.
                return Ok(());
            }
        }
        tokio::spawn(follow(Arc::downgrade(self), changes));
        Ok(())
    }

    /// How long the kernel may keep a reply.
    pub fn kept(&self, mark: &Mark) -> Duration {
        let kept = if self.options.strict { Duration::ZERO } else { self.watch.kept(mark) };
        // Where others have something to themselves they are told later of what is done there.
        if self.delegations.others.load(Ordering::Relaxed) { kept.min(KEPT_BESIDE) } else { kept }
    }

    /// The kernel is about to be told attributes. Bytes of another commit than theirs it forgets before this returns.
    pub async fn tells(&self, ino: Ino, mark: &Mark) {
        let content = self.real(&record::content(ino), mark.content);
        if self.watch.told(ino, content, lock(&self.open).contains_key(&ino)) {
            self.watch.forget(ino, true).await;
            self.watch.dropped(ino, content);
        }
    }

    /// The kernel has let go of an inode.
    pub fn forgotten(&self, ino: Ino) {
        self.watch.forgotten(ino);
    }
}

impl Mark {
    /// The same, of attributes as they are with this commit of the bytes.
    pub(crate) fn with_content(self, content: Version) -> Mark {
        Mark { content, ..self }
    }

    /// What holds for both.
    pub(crate) fn and(self, names: Mark) -> Mark {
        let stamps = [names.stamps[0], self.stamps[1]];
        Mark { others: self.others.min(names.others), stamps, content: self.content }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.watch.close();
    }
}

/// Changes of which it is not known whether they are this mount's own, and since when.
type Unclear = HashMap<Bytes, (Version, Instant)>;

async fn follow(fs: Weak<Fs>, mut changes: Subscription) {
    let mut unclear = Unclear::new();
    loop {
        let Some(fs) = fs.upgrade() else { return };
        let watch = &fs.watch;
        if watch.is_closed() {
            return;
        }
        let found = changes.try_next().await;
        watch.is_in_step(found.is_ok() && changes.is_in_step());
        let rest = match found {
            Ok(Some(Change::Key { key, record })) => {
                fs.hears(&key);
                let since = unclear.get(&key).map_or_else(Instant::now, |(_, since)| *since);
                unclear.insert(key, (record.version, since));
                None
            }
            // What is gone is asked for again when its time is over.
            Ok(Some(Change::Anew { .. })) => None,
            Ok(None) => fs.db.as_ref().map(|db| db.handle().clone()),
            Err(_) => {
                tokio::time::sleep(LOOK).await;
                None
            }
        };
        // Many at once are judged together, and where there are no more.
        if rest.is_some() || unclear.len() >= TOGETHER {
            unclear.retain(|key, (version, since)| !watch.judge(key, *version, *since));
        }
        drop(fs);
        if let Some(handle) = rest {
            let look = if unclear.is_empty() { LOOK } else { GATHER };
            let _ = tokio::time::timeout(look, handle.changed()).await;
            tokio::time::sleep(GATHER).await;
        }
    }
}

impl Watch {
    /// Pushes a change if it is another's; `false`: that is not known yet.
    fn judge(&self, key: &Bytes, version: Version, since: Instant) -> bool {
        match self.is_own(key, version) {
            None if since.elapsed() < UNCLEAR => return false,
            Some(true) => return true,
            None | Some(false) => {}
        }
        self.push_all(std::slice::from_ref(key));
        true
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
        watch.begin(std::slice::from_ref(&key));
        assert_eq!(watch.is_own(&key, version(1)), None);
        watch.end(std::slice::from_ref(&key), Some(version(1)));
        assert_eq!(watch.is_own(&key, version(1)), Some(true));
        assert_eq!(watch.is_own(&key, version(2)), Some(false), "another's, after it");
        (10..10 + OWN_MAX as u64 + 1).for_each(|n| watch.end(&[], Some(version(n))));
        assert_eq!(watch.is_own(&key, version(1)), Some(false), "no more than so many are remembered");
    }

    #[tokio::test]
    async fn bytes_are_kept_as_long_as_nobody_else_committed() {
        let watch = Watch::default();
        watch.is_in_step(true);
        assert!(!watch.opened(5, version(1)).await, "nothing is known of it");
        assert!(watch.opened(5, version(1)).await);
        watch.committed(5, version(1), version(2));
        assert!(watch.opened(5, version(2)).await, "the kernel wrote that itself");
        assert!(!watch.opened(5, version(3)).await, "another's");
        assert!(lock(&watch.lanes[1].queue).fresh.is_empty());
        watch.committed(5, version(4), version(5));
        let pushed: Vec<Push> = lock(&watch.lanes[1].queue).fresh.iter().cloned().collect();
        assert_eq!(pushed, [Push::Bytes(5)], "on top of what it never saw");
        assert!(!watch.opened(5, version(5)).await);
        watch.is_in_step(false);
        assert!(!watch.opened(5, version(5)).await, "while the changes are not followed");
        watch.made(6);
        watch.is_in_step(true);
        assert!(watch.opened(6, Version::default()).await, "made here, and written by nobody");
    }

    #[tokio::test]
    async fn attributes_that_may_be_old_are_dropped_before_a_file_is_open() {
        let (watch, told) = (Watch::default(), Arc::new(Told::default()));
        *lock(&watch.kernel) = Some(told.clone());
        let pushes = || lock(&told.0).len();
        assert!(!watch.told(5, version(1), false));
        watch.opened(5, version(1)).await;
        assert_eq!(pushes(), 0);
        watch.opened(5, version(2)).await;
        assert_eq!(*lock(&told.0), [Push::Attributes(5)]);
        assert!(watch.told(5, version(3), false), "bytes of another commit are held");
        watch.opened(5, version(3)).await;
        assert_eq!(pushes(), 2, "that reply may have been dropped by the kernel");
        watch.opened(7, version(1)).await;
        assert_eq!(pushes(), 3, "nothing is known of it");
        assert!(!watch.told(8, version(3), false) && watch.told(8, version(3), true), "what is open may hold anything");
        watch.dropped(8, version(3));
        assert!(!watch.told(8, version(3), true));
    }

    #[test]
    fn a_reply_is_kept_if_nothing_changed_while_it_was_made() {
        let watch = Watch::default();
        watch.is_in_step(true);
        let mark = watch.mark(5, 6);
        assert_eq!(watch.kept(&mark), KEPT);
        watch.begin(&[record::inode(7)]);
        assert_eq!(watch.kept(&mark), KEPT, "of another inode");
        watch.begin(&[record::content(6)]);
        assert_eq!(watch.kept(&mark), Duration::ZERO, "on its way");
        let mark = watch.mark(5, 6);
        watch.end(&[record::content(6)], None);
        assert_eq!(watch.kept(&mark), Duration::ZERO, "and done");
        let mark = watch.mark(5, 6);
        assert!(watch.judge(&record::inode(99), version(1), Instant::now()));
        assert_eq!(watch.kept(&mark), Duration::ZERO, "another's, of whatever");
        let mark = watch.mark(5, 6);
        watch.close();
        assert_eq!(watch.kept(&mark), Duration::ZERO, "nobody would say that it changes");
    }

    #[test]
    fn a_change_that_may_be_ones_own_is_pushed_when_it_is_not_known_in_time() {
        let (watch, key) = (Watch::default(), record::content(5));
        watch.begin(std::slice::from_ref(&key));
        assert!(!watch.judge(&key, version(1), Instant::now()));
        assert!(watch.judge(&key, version(1), Instant::now() - UNCLEAR));
        assert_eq!(lock(&watch.lanes[1].queue).fresh.len(), 1);
    }

    #[test]
    fn a_push_is_carried_out_twice_and_too_many_blind_the_mount() {
        let (watch, told) = (Arc::new(Watch::default()), Arc::new(Told::default()));
        watch.is_in_step(true);
        let thread = std::thread::spawn({
            let (watch, told) = (watch.clone(), told.clone());
            move || watch.carry_out(0, &*told)
        });
        watch.push(Push::Attributes(5));
        let end = Instant::now() + Duration::from_secs(20);
        while lock(&told.0).len() < 2 && Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(*lock(&told.0), [Push::Attributes(5), Push::Attributes(5)]);
        watch.made(9);
        (0..=WAITING_MAX as u64).for_each(|ino| watch.push(Push::Bytes(ino)));
        assert_eq!(watch.kept(&watch.mark(1, 2)), Duration::ZERO);
        let left: Vec<Push> = lock(&watch.lanes[1].queue).fresh.iter().cloned().collect();
        assert_eq!(left, [Push::Bytes(9)], "what the kernel may hold bytes of");
        watch.close();
        thread.join().expect("the thread ends");
    }
}

use crate::Clock;
use crate::answers::Load;
use crate::ceilings::{Ceilings, FREE_BYTES_MIN, Watch, resident};
use crate::crew::Crew;
use crate::host::Host;
use crate::journal::Journal;
use crate::log::{self, Line, describe};
use crate::meter::{self, Counts, Meter};
use base::{FragmentId, NodeId, Span};
use node::{
    Config, Effect, Frame, Glance, Grade, Hello, Input, Node, Notice, Op, OpId, OpReply, Said, TableDef, Window,
};
use providers::{Asking, Provider};
use replica::{Pressure, Read, Record, Rows};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use storage::{DataDir, Disc, Identity, StorageError, Writer};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use transport::{Hush, Transport, TransportError};
use wire::Keys;

/// How many inputs are handled before what they caused is sent.
const BURST_MAX: usize = 256;
/// How many inputs of peers and clients may wait.
const QUEUE_MAX: usize = 4096;
/// The room is looked at again after so many bytes written, however soon that is.
const LOOK_BYTES: usize = 4 * 1024 * 1024;
/// How often the room is looked at.
const FREE_LOOK: Duration = Duration::from_millis(500);
/// How often the machine's address is looked at.
const ADDRESS_LOOK: Duration = Duration::from_secs(3);

/// What a node is started with.
pub struct Settings {
    /// The data directory.
    pub data: PathBuf,
    /// The node's name.
    pub name: String,
    /// The group.
    pub group: String,
    /// The cookie.
    pub cookie: Vec<u8>,
    /// Other cookies that are taken from others, while a fleet changes from one to the other.
    pub accept: Vec<Vec<u8>>,
    /// Where to listen; `None`: the default port, or the next free one.
    pub listen: Option<SocketAddr>,
    /// What to tell others; `None`: what was bound.
    pub advertise: Option<SocketAddr>,
    /// Addresses to try for ever.
    pub join: Vec<SocketAddr>,
    /// Those who know which machines there are.
    pub providers: Vec<Provider>,
    /// Call out and listen by multicast.
    pub multicast: bool,
    /// The zone.
    pub zone: Option<String>,
    /// Its share of copies in relation to other nodes', if not the usual one.
    pub weight: Option<u16>,
    /// How long to look for peers before taking part alone.
    pub discover_delay: Duration,
    /// How long who is waited for before it is given up.
    pub patience: membership::Patience,
    /// How many threads work on fragments, the node's own among them; `None`: half of the machine's processors, at most 8.
    pub threads: Option<usize>,
    /// Functions that tables may name to merge conflicts with.
    pub functions: replica::Functions,
    /// How much of the machine it may take.
    pub ceilings: Ceilings,
    /// The program around it.
    pub host: Arc<dyn Host>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its sockets.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The system gives no threads, sockets or randomness.
    #[error("the system refuses what a node needs")]
    System(#[source] std::io::Error),
}

/// What a running node tells those who listen.
#[derive(Clone, Debug)]
pub enum Event {
    /// See [`Notice`].
    Notice(Notice),
    /// The node has ended; `Some`: not of its own will.
    Ended(Option<String>),
}

pub(crate) enum Wake {
    Disc(storage::Event),
    Shortage(replica::Shortage),
    Op(OpId, Op, oneshot::Sender<OpReply>),
    Warm(FragmentId),
    Forget(OpId),
    Said(u64, Said),
    Input(Input),
    Advertise(SocketAddr),
    /// A provider's answer.
    Listed(u16, bool, Result<Vec<membership::Place>, String>),
    Stop,
}

/// A running node, for its local clients. Clones speak to the same node.
#[derive(Clone)]
pub struct Handle {
    pub(crate) wake: mpsc::UnboundedSender<Wake>,
    permits: Arc<tokio::sync::Semaphore>,
    ops: Arc<AtomicU64>,
    events: broadcast::Sender<Event>,
    window: Window,
    clock: Clock,
    ended: Arc<Mutex<Option<Option<String>>>>,
    /// Somebody follows a table, and is told of each burst.
    changed: Arc<Notify>,
    /// Where the node listens.
    pub listen: SocketAddr,
    /// What it tells others.
    pub advertise: SocketAddr,
    /// Who it is.
    pub me: NodeId,
    /// Its how-manieth start.
    pub incarnation: u64,
}

/// Tells the node that its client went away before it was answered.
struct Abandon<'a> {
    handle: &'a Handle,
    op: OpId,
    armed: bool,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.handle.wake.send(Wake::Forget(self.op));
        }
    }
}

impl Handle {
    fn new(
        wake: mpsc::UnboundedSender<Wake>,
        node: &Node,
        clock: Clock,
        (listen, advertise): (SocketAddr, SocketAddr),
        identity: &Identity,
    ) -> Handle {
        Handle {
            wake,
            permits: Arc::new(tokio::sync::Semaphore::new(QUEUE_MAX)),
            ops: Arc::new(AtomicU64::new(1)),
            events: broadcast::channel(1024).0,
            window: node.window(),
            clock,
            ended: Arc::new(Mutex::new(None)),
            changed: Arc::default(),
            listen,
            advertise,
            me: identity.node,
            incarnation: identity.incarnation,
        }
    }

    /// Does one operation; `None` when the node has ended. Waits while too many are under way.
    pub async fn op(&self, op: Op) -> Option<OpReply> {
        let _permit = self.permits.acquire().await.ok()?;
        let id = self.ops.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.wake.send(Wake::Op(id, op, reply)).ok()?;
        let mut abandon = Abandon { handle: self, op: id, armed: true };
        let answer = answer.await.ok();
        abandon.armed = false;
        answer
    }

    /// The fragment of a key as the table is cut now, whatever this definition says, which may be old.
    pub fn fragment(&self, def: &TableDef, key: &[u8]) -> FragmentId {
        self.window.fragment(def, key)
    }

    /// The table's definition as it is now, if its fragments are others than this one says.
    pub fn renewed(&self, def: &TableDef) -> Option<Arc<TableDef>> {
        self.window.renewed(def)
    }

    /// Reads a fragment on the calling thread, if a copy of it is here and has the leases for it: a function call, no
    /// message. `None`: ask with [`Op::Read`].
    pub fn read_here(&self, fragment: FragmentId, read: &Read) -> Option<Vec<Rows>> {
        self.seen(fragment, self.window.read(fragment, read, || self.clock.now()))
    }

    /// The same of one key: its live record, if it has one.
    pub fn get_here(&self, fragment: FragmentId, key: &[u8]) -> Option<Option<Record>> {
        self.seen(fragment, self.window.get(fragment, key, || self.clock.now()))
    }

    fn seen<T>(&self, fragment: FragmentId, glance: Glance<T>) -> Option<T> {
        if glance.cold {
            let _ = self.wake.send(Wake::Warm(fragment));
        }
        glance.found
    }

    /// Everything that happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Waits until copies here may have changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Asks the node to stop cleanly.
    pub fn stop(&self) {
        let _ = self.wake.send(Wake::Stop);
    }

    /// Waits for the node's end; `Some`: why it did not end of its own will.
    pub async fn ended(&self) -> Option<String> {
        let mut events = self.events.subscribe();
        loop {
            if let Some(why) = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return why;
            }
            match events.recv().await {
                Ok(Event::Ended(why)) => return why,
                Err(broadcast::error::RecvError::Closed) => return None,
                _ => {}
            }
        }
    }
}

fn random_u64() -> Result<u64, StartError> {
    getrandom::u64().map_err(|e| StartError::System(std::io::Error::other(e.to_string())))
}

/// What this process uses.
pub(crate) fn vitals(watch: &Watch) -> node::Vitals {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    node::Vitals {
        cpu_us: used.tv_sec as u64 * 1_000_000 + used.tv_nsec as u64 / 1000,
        resident_bytes: resident(),
        used_bytes: (watch.ceilings.used)(),
        memory_max: watch.ceilings.memory,
        shortage: watch.shortage,
    }
}

/// Starts a node: opens its data, binds its sockets, and runs it on a thread of its own. It brings the runtime
/// that carries its sockets.
pub fn start(settings: Settings) -> Result<Handle, StartError> {
    let dir = DataDir::open(&settings.data)?;
    let bound = transport::bind(settings.listen)?;
    let identity = dir.identity(NodeId(random_u64()?))?;
    let (disc, stored) = Disc::open(&settings.data.join("store"), random_u64()?)?;
    let disc = Arc::new(disc);
    let (listen, keys) = (bound.addr, Keys::derive(&settings.cookie, &settings.group));
    let accept: Vec<Keys> = settings.accept.iter().map(|c| Keys::derive(c, &settings.group)).collect();
    let advertise = settings.advertise.unwrap_or_else(|| bound.advertise());
    // Unless the user has named one address, each peer takes the one that it hears from.
    let announce = settings.advertise.unwrap_or(listen);
    let config = Config {
        me: identity.node,
        incarnation: identity.incarnation,
        name: settings.name,
        group: settings.group,
        advertise,
        announce,
        zone: settings.zone,
        weight: settings.weight,
        keys: keys.clone(),
        accept: accept.clone(),
        join: settings.join,
        discover_delay: Span::ms(settings.discover_delay.as_millis() as u64),
        patience: settings.patience,
        timing: replica::Timing::default(),
        functions: settings.functions,
        values: Some(disc.clone()),
        seed: random_u64()?,
    };
    let clock = Clock::default();
    let node = Node::new(clock.now(), config, stored);
    let (wake, woken) = mpsc::unbounded_channel();
    let (packets, arrived) = mpsc::channel(QUEUE_MAX);
    let handle = Handle::new(wake.clone(), &node, clock, (listen, advertise), &identity);
    let asking = start_providers(&settings.providers, &handle, &wake).map_err(StartError::System)?;
    let sources = settings.providers.iter().map(|p| p.source.to_string()).collect();
    let writer = Writer::start(disc.clone(), move |e| drop(wake.send(Wake::Disc(e)))).map_err(StartError::System)?;
    let hello = wire::encode(&node.hello()).unwrap_or_default();
    // One thread carries the sockets and the node: a frame that arrives, what it causes, and what is sent for it, wake nobody.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::System)?;
    let transport = start_transport(&runtime, bound, (keys, accept), hello, (settings.multicast, packets))?;
    let crew = Crew::new(settings.threads.unwrap_or_else(Crew::usual)).map_err(StartError::System)?;
    let shell = Shell {
        clock,
        node,
        disc,
        writer,
        transport,
        clients: HashMap::new(),
        meter: Meter::default(),
        counts: Counts::default(),
        handle: handle.clone(),
        dir,
        watch: Watch::new(settings.ceilings),
        hush: Hush::default(),
        journal: Journal::new(identity.incarnation),
        crew,
        sources,
        asking,
        host: settings.host,
        load: Load::new(),
        failed: None,
        scratch: Vec::new(),
        roams: announce.ip().is_unspecified(),
        advertised: advertise,
    };
    run_on_thread(runtime, shell, woken, arrived)?;
    Ok(handle)
}

/// The sockets live in the node's own runtime.
fn start_transport(
    runtime: &tokio::runtime::Runtime,
    bound: transport::Bound,
    (keys, accept): (Keys, Vec<Keys>),
    hello: bytes::Bytes,
    (multicast, packets): (bool, mpsc::Sender<transport::Event>),
) -> Result<Transport, StartError> {
    let _inside = runtime.enter();
    Transport::start(bound, keys, accept, hello, multicast, packets).map_err(StartError::System)
}

/// Each provider on a thread of its own, for as long as the node is there.
fn start_providers(
    all: &[Provider],
    here: &Handle,
    wake: &mpsc::UnboundedSender<Wake>,
) -> std::io::Result<Vec<Asking>> {
    let me = providers::Me { node: here.me, addr: here.advertise };
    let start = |(number, provider): (u16, &Provider)| {
        // Not what keeps the node's inputs open.
        let (told, heard, authoritative) = (wake.downgrade(), wake.downgrade(), provider.authoritative);
        let tell = move |places| {
            told.upgrade().is_some_and(|wake| wake.send(Wake::Listed(number, authoritative, places)).is_ok())
        };
        let listens = move || heard.upgrade().is_some_and(|wake| !wake.is_closed());
        providers::start(provider.source.clone(), me, tell, listens)
    };
    (0..).zip(all).map(start).collect()
}

/// The node's thread, which carries its sockets, too.
fn run_on_thread(
    runtime: tokio::runtime::Runtime,
    shell: Shell,
    woken: mpsc::UnboundedReceiver<Wake>,
    arrived: mpsc::Receiver<transport::Event>,
) -> Result<(), StartError> {
    let guarded = shell.handle.clone();
    let run = move || {
        let _guard = EndGuard(guarded);
        runtime.block_on(shell.run(woken, arrived));
    };
    std::thread::Builder::new().name("node".into()).spawn(run).map_err(StartError::System)?;
    Ok(())
}

/// A node whose thread dies of a bug has ended, and its process must know.
struct EndGuard(Handle);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.window.close();
        let mut ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            let why =
                Some("the node failed for a reason that it did not expect; what it acknowledged is safe".to_string());
            *ended = Some(why.clone());
            let _ = self.0.events.send(Event::Ended(why));
        }
    }
}

/// Whoever waits for an answer, for what kind of operation, since when.
type Waiting = (oneshot::Sender<OpReply>, usize, base::Instant);

pub(crate) struct Shell {
    pub(crate) clock: Clock,
    pub(crate) node: Node,
    pub(crate) disc: Arc<Disc>,
    pub(crate) writer: Writer,
    pub(crate) transport: Transport,
    pub(crate) clients: HashMap<OpId, Waiting>,
    pub(crate) meter: Meter,
    pub(crate) counts: Counts,
    pub(crate) handle: Handle,
    pub(crate) dir: DataDir,
    /// Memory and room on the disc.
    pub(crate) watch: Watch,
    hush: Hush,
    /// What happened lately.
    pub(crate) journal: Journal,
    crew: Crew,
    /// Where lists of nodes come from, by number.
    sources: Vec<String>,
    /// The threads that ask them.
    asking: Vec<Asking>,
    /// The program around it.
    pub(crate) host: Arc<dyn Host>,
    /// How much of a processor is used.
    pub(crate) load: Load,
    /// Why the node must end.
    failed: Option<String>,
    /// Frames are encoded here.
    scratch: Vec<u8>,
    /// Its address is whatever the machine has, and may change.
    roams: bool,
    advertised: SocketAddr,
}

impl Shell {
    async fn run(mut self, mut woken: mpsc::UnboundedReceiver<Wake>, mut arrived: mpsc::Receiver<transport::Event>) {
        let mut look = tokio::time::interval(FREE_LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look_address = tokio::time::interval(ADDRESS_LOOK);
        look_address.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut wakes, mut packets, mut out) = (Vec::new(), Vec::new(), Vec::new());
        let ended = loop {
            let before = self.clock.now().mono;
            let wait = self.clock.until(before, self.node.deadline(before));
            tokio::select! {
                biased;
                n = woken.recv_many(&mut wakes, BURST_MAX) => if n == 0 { break None },
                n = arrived.recv_many(&mut packets, BURST_MAX) => if n == 0 { break None },
                () = tokio::time::sleep(wait) => {}
                _ = look.tick() => self.look_at_room(&mut wakes),
                _ = look_address.tick() => self.look_at_address(&mut wakes),
            }
            // Neither queue starves the other.
            while packets.len() < BURST_MAX
                && let Ok(event) = arrived.try_recv()
            {
                packets.push(event);
            }
            let now = self.clock.now();
            if let Some(failed) = self.take(now, &mut wakes, &mut packets, &mut out) {
                break Some(failed.to_string());
            }
            if self.node.deadline(now.mono) <= now.mono {
                self.node.handle(now, Input::Tick, &mut out);
            }
            self.node.flush_by(now, &mut |tasks| self.crew.run(now, tasks), &mut out);
            self.handle.changed.notify_waiters();
            if self.perform(&mut out) {
                break self.failed.take();
            }
            if self.watch.unlooked >= LOOK_BYTES {
                // Not left to the timer, whose turn a steady load would put off.
                self.look_at_room(&mut wakes);
            }
            self.look_at_memory(&mut wakes);
        };
        drop(woken);
        self.end(ended).await;
    }

    /// Hands a burst to the node; `Some` when the disc has failed.
    fn take(
        &mut self,
        now: base::Now,
        wakes: &mut Vec<Wake>,
        packets: &mut Vec<transport::Event>,
        out: &mut Vec<Effect>,
    ) -> Option<StorageError> {
        for wake in wakes.drain(..) {
            let input = match wake {
                Wake::Disc(storage::Event::Durable(fragment, mark)) => Input::Durable(fragment, mark),
                Wake::Disc(storage::Event::Failed(e)) => return Some(e),
                Wake::Disc(storage::Event::Slow(batches, bytes, took)) => {
                    self.tell_slow_disc(batches, bytes, took);
                    continue;
                }
                Wake::Shortage(shortage) => Input::Shortage(shortage),
                Wake::Op(id, op, reply) => {
                    self.clients.insert(id, (reply, meter::kind(&op), now.mono));
                    Input::Op(id, op)
                }
                Wake::Warm(fragment) => Input::Warm(fragment),
                Wake::Forget(id) => {
                    self.clients.remove(&id);
                    Input::Forget(id)
                }
                Wake::Said(number, said) => Input::Said(number, said),
                Wake::Advertise(addr) => Input::Advertise(addr),
                Wake::Listed(provider, authoritative, places) => Input::Listed { provider, authoritative, places },
                Wake::Input(input) => input,
                Wake::Stop => Input::Stop,
            };
            self.node.handle(now, input, out);
        }
        for event in packets.drain(..) {
            if let Some(input) = self.decode(event) {
                self.node.handle(now, input, out);
            }
        }
        None
    }

    /// Bytes from outside become inputs; what cannot be read costs its sender the link.
    fn decode(&mut self, event: transport::Event) -> Option<Input> {
        self.count(&event);
        Some(match event {
            transport::Event::Linked { link, dialled, addr, hello } => match wire::decode::<Hello>(&hello) {
                Ok(hello) => Input::Linked { link, dialled, addr, hello },
                Err(e) => {
                    if let Some(unsaid) = self.hush.may_say("hello") {
                        tracing::warn!(%addr, unsaid, "a node with our cookie cannot be understood: {e}");
                    }
                    self.transport.close(link);
                    return None;
                }
            },
            transport::Event::Unlinked(link) => Input::Unlinked(link),
            transport::Event::DialFailed { addr, refused } => Input::DialFailed { addr, refused },
            transport::Event::Frame(link, bytes) => match wire::decode(&bytes) {
                Ok(frame) => Input::Frame(link, frame),
                // It is not meant for this version.
                Err(wire::CodecError::Newer(_)) => return None,
                Err(e) => {
                    if let Some(unsaid) = self.hush.may_say("frame") {
                        tracing::warn!(link, unsaid, "a frame from a peer cannot be read: {e}; its link is closed");
                    }
                    self.transport.close(link);
                    return None;
                }
            },
            transport::Event::Datagram(from, bytes) => Input::Datagram(from, bytes),
            transport::Event::Beacon(from, bytes) => Input::Beacon(from, bytes),
        })
    }

    fn count(&mut self, event: &transport::Event) {
        let counter = match event {
            transport::Event::Linked { .. } => &mut self.counts.links,
            transport::Event::Unlinked(_) => &mut self.counts.links_lost,
            transport::Event::DialFailed { .. } => &mut self.counts.dials_failed,
            transport::Event::Frame(..) => &mut self.counts.frames_in,
            transport::Event::Datagram(..) => &mut self.counts.datagrams_in,
            transport::Event::Beacon(..) => &mut self.counts.beacons_in,
        };
        *counter += 1;
    }

    /// Performs effects; `true` when the node is done.
    fn perform(&mut self, out: &mut Vec<Effect>) -> bool {
        // All answers of a burst go out together.
        let (mut done, mut answered) = (false, None);
        for effect in out.drain(..) {
            match effect {
                Effect::Persist(fragment, persist) => {
                    self.watch.unlooked += persist.batch.bytes();
                    self.writer.write(fragment, persist);
                }
                Effect::Frame(link, frame) => match wire::encode_by(&mut self.scratch, &frame) {
                    Ok(bytes) => {
                        self.counts.frames_out += 1;
                        self.transport.send(link, bytes);
                    }
                    Err(e) => tracing::error!("a frame of our own cannot be sent: {e}"),
                },
                Effect::Datagram(to, bytes) => {
                    self.counts.datagrams_out += 1;
                    self.transport.datagram(to, &bytes);
                }
                Effect::Multicast(bytes) => {
                    self.counts.beacons_out += 1;
                    self.transport.multicast(&bytes);
                }
                Effect::Dial(addr) => {
                    self.counts.dials += 1;
                    self.transport.dial(addr);
                }
                Effect::Close(link) => self.transport.close(link),
                Effect::Hello(hello) => {
                    let _ = wire::encode(&hello).map(|bytes| self.transport.set_hello(bytes));
                }
                Effect::Reply(op, reply) => {
                    if let Some((client, kind, asked)) = self.clients.remove(&op) {
                        let now = *answered.get_or_insert_with(|| self.clock.now().mono);
                        self.meter.note(kind, now - asked);
                        let _ = client.send(reply);
                    }
                }
                Effect::Ask(None, number, question) => {
                    // Its answer is an input of the next burst.
                    let said = self.answer(&question);
                    let _ = self.handle.wake.send(Wake::Said(number, said));
                }
                Effect::Ask(Some(link), number, question) => {
                    let frame = Frame::Said(number, self.answer(&question));
                    match wire::encode(&frame) {
                        Ok(bytes) => self.transport.send(link, bytes),
                        Err(e) => tracing::warn!("what another node asked for cannot be sent: {e}"),
                    }
                }
                Effect::Notice(notice) => {
                    if let Notice::Copy(_, replica::Notice::ValueLost) = notice {
                        let (path, why) =
                            (self.dir.path().display(), self.disc.lost().unwrap_or("it is not there".into()));
                        self.failed = Some(format!(
                            "a value cannot be read from {path} ({why}); check the disc, or move the directory aside and start \
                             again: the other nodes' copies will fill it"
                        ));
                        done = true;
                    }
                    self.tell(notice);
                }
                Effect::Stopped => done = true,
            }
        }
        done
    }

    /// Something happened: for the log, and for whoever asks later.
    pub(crate) fn note(&mut self, line: Line) {
        log::log(&line);
        self.journal.note(self.clock.now().wall, line);
    }

    /// Whoever waits for this node finds here why.
    fn tell_slow_disc(&mut self, batches: usize, bytes: usize, took: Duration) {
        let now = self.clock.now().mono;
        if Span::ms(took.as_millis() as u64) >= self.counts.slow.after && self.counts.slow.may_say(now) {
            let kib = bytes.div_ceil(1024);
            log::log(&(
                Grade::Warn,
                "slow",
                format!("slow disc: {batches} batches, {kib} KiB, took {} ms", took.as_millis()),
            ));
        }
    }

    fn tell(&mut self, notice: Notice) {
        if let Notice::Slow(slow) = &notice {
            // There may be many: they are for the log alone, and drive no other event out.
            if self.counts.slow.may_say(self.clock.now().mono) {
                log::log(&log::slow(slow, &self.node.table_name(slow.fragment.table)));
            }
            return;
        }
        if let Notice::Copy(_, replica::Notice::Merged(heal)) = &notice {
            self.counts.heal(heal);
        }
        let cause = match &notice {
            Notice::Foreign(..) => "foreign",
            Notice::WrongProtocol(..) => "protocol",
            Notice::Twin(_) => "twin",
            Notice::Incredible(..) => "incredible",
            _ => "",
        };
        // What others can cause again and again is said once a minute.
        if cause.is_empty() || self.hush.may_say(cause).is_some() {
            let line = describe(&notice, &self.sources, |id| self.node.table_name(id));
            if let Some(line) = line {
                self.note(line);
            }
        }
        let _ = self.handle.events.send(Event::Notice(notice));
    }

    /// A machine that moves to another network tells where it is now.
    fn look_at_address(&mut self, wakes: &mut Vec<Wake>) {
        let now = if self.roams { transport::advertise(self.handle.listen) } else { self.advertised };
        // Without a network there is nothing to tell, and nobody to.
        if now != self.advertised && (self.advertised.ip().is_loopback() || !now.ip().is_loopback()) {
            tracing::info!("this machine is reached at {now} from now on");
            self.advertised = now;
            wakes.push(Wake::Advertise(now));
        }
    }

    fn look_at_room(&mut self, wakes: &mut Vec<Wake>) {
        self.watch.unlooked = 0;
        let Some(free) = self.dir.free_bytes() else { return };
        // What the engine holds is added up from many files, and of no interest where there is no ceiling.
        let used = self.watch.ceilings.disc.map_or(0, |_| self.disc.used_bytes());
        if self.watch.look_at_disc(free, used) {
            let least = FREE_BYTES_MIN >> 20;
            let what = match self.watch.ceilings.disc {
                Some(max) => {
                    format!("{} MiB of {} MiB (disc-max) are used, {} MiB are free", used >> 20, max >> 20, free >> 20)
                }
                None => format!("{} MiB are free, {least} MiB are kept free", free >> 20),
            };
            let path = self.dir.path().display().to_string();
            let now = self.watch.shortage.disc;
            self.watch.said.disc = self.note_shortage(&path, &what, self.watch.said.disc, now);
            wakes.push(Wake::Shortage(self.watch.shortage));
        }
    }

    /// A node that is short again and again says so once a minute; and that it is not any more, if it had said so. What is said now.
    fn note_shortage(&mut self, of: &str, what: &str, said: Pressure, now: Pressure) -> Pressure {
        let memory = ["", "memory steady", "memory high", "memory full"];
        let disc = ["", "disc steady", "disc high", "disc full"];
        let cause = if of == "memory" { memory } else { disc }[now as usize];
        if now == said || (now > Pressure::Low && self.hush.may_say(cause).is_none()) {
            return said;
        }
        self.note(log::shortage(of, what, said, now));
        now
    }

    fn look_at_memory(&mut self, wakes: &mut Vec<Wake>) {
        if let Some(used) = self.watch.look_at_memory() {
            let what = match self.watch.ceilings.memory {
                Some(max) => format!("{} MiB of {} MiB (memory-max) are in use", used >> 20, max >> 20),
                None => "there is no ceiling any more".into(),
            };
            let now = self.watch.shortage.memory;
            self.watch.said.memory = self.note_shortage("memory", &what, self.watch.said.memory, now);
            wakes.push(Wake::Shortage(self.watch.shortage));
        }
    }

    async fn end(self, why: Option<String>) {
        self.handle.window.close();
        // What others must hear of the stop is on its way; the disc gets all it was given.
        self.transport.drain(Duration::from_secs(1)).await;
        self.writer.close();
        self.asking.iter().for_each(Asking::end);
        *self.handle.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
        let _ = self.handle.events.send(Event::Ended(why));
    }
}

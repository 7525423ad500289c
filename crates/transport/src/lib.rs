//! Sockets between nodes: TCP links under Noise, unicast datagrams, multicast. The only crate that has them.
//!
//! It carries bytes and knows nothing of what they mean. A link is encrypted and authenticated with a key from the cookie
//! (Noise NNpsk0, AES-GCM); whoever does not know it is dropped without a word. Every queue is bounded: a peer that does not
//! read loses its link, and catches up by delta when it comes back.

mod hush;
mod link;
mod multicast;
mod socket;

pub use hush::Hush;
pub use multicast::multicast_comes_back;
pub use socket::{Bound, advertise, bind};

use bytes::Bytes;
use link::Link;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use wire::Keys;

/// Names one connection of this process's life.
pub type LinkId = u64;

/// How long a connection may take to stand, and to prove itself.
const HANDSHAKE_TIME: Duration = Duration::from_secs(3);
/// How many unproved connections may be open at once.
const HANDSHAKES_MAX: usize = 256;

/// Why sockets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The port is taken, or the address is not ours.
    #[error("cannot listen on {addr}; give another address with --listen, or none to take the next free port")]
    Listen {
        /// What was asked for.
        addr: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No port of the range is free.
    #[error("no free port from {from} on for both TCP and UDP; give one with --listen IP:PORT")]
    NoPort {
        /// The first one tried.
        from: u16,
    },
}

/// What the sockets have to say. Frames come through a bounded channel, so that a node that is busy slows its peers down.
#[derive(Debug)]
pub enum Event {
    /// A link stands; its first frame is the other end's hello.
    Linked {
        /// Its name.
        link: LinkId,
        /// We dialled.
        dialled: bool,
        /// The other end.
        addr: SocketAddr,
        /// What it said first.
        hello: Bytes,
    },
    /// A link is gone.
    Unlinked(LinkId),
    /// Nobody there (`refused`), or no answer, or not one of us.
    DialFailed {
        /// What was dialled.
        addr: SocketAddr,
        /// The machine answered: nobody listens.
        refused: bool,
    },
    /// A frame.
    Frame(LinkId, Bytes),
    /// A unicast datagram.
    Datagram(SocketAddr, Bytes),
    /// A multicast datagram.
    Beacon(SocketAddr, Bytes),
}

struct Shared {
    keys: Keys,
    /// Of older or newer cookies, which others may still or already use.
    accept: Vec<Keys>,
    hush: Hush,
    hello: Mutex<Bytes>,
    links: Mutex<HashMap<LinkId, Link>>,
    next: AtomicU64,
    handshakes: Arc<tokio::sync::Semaphore>,
    events: mpsc::Sender<Event>,
}

impl Shared {
    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<LinkId, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets of one node.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    udp: Arc<UdpSocket>,
    /// What is bound: says which addresses can be reached.
    bound: SocketAddr,
    multicast: Option<Arc<multicast::Sender>>,
    /// Sockets live where the transport was started, whoever calls.
    runtime: tokio::runtime::Handle,
}

impl Transport {
    /// From here on this is the first frame on every new link.
    pub fn set_hello(&self, hello: Bytes) {
        *self.shared.hello.lock().unwrap_or_else(PoisonError::into_inner) = hello;
    }

    /// Starts to listen. `hello` is the first frame on every link. `accept`: whoever dials may have proved any of these.
    pub fn start(
        bound: Bound,
        keys: Keys,
        accept: Vec<Keys>,
        hello: Bytes,
        multicast: bool,
        events: mpsc::Sender<Event>,
    ) -> std::io::Result<Transport> {
        let shared = Arc::new(Shared {
            keys,
            accept,
            hush: Hush::default(),
            hello: Mutex::new(hello),
            links: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
            handshakes: Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX)),
            events: events.clone(),
        });
        let udp = Arc::new(UdpSocket::from_std(bound.udp)?);
        let listener = TcpListener::from_std(bound.tcp)?;
        tokio::spawn(take_in(listener, shared.clone()));
        tokio::spawn(receive(udp.clone(), events.clone()));
        let sender = if multicast {
            tokio::spawn(multicast::receive(false, events.clone()));
            if bound.addr.is_ipv6() {
                tokio::spawn(multicast::receive(true, events));
            }
            Some(Arc::new(multicast::Sender { v6: bound.addr.is_ipv6() }))
        } else {
            None
        };
        Ok(Transport { shared, udp, bound: bound.addr, multicast: sender, runtime: tokio::runtime::Handle::current() })
    }

    /// Connects; what became of it comes as an event.
    pub fn dial(&self, addr: SocketAddr) {
        let shared = self.shared.clone();
        // A peer that datagrams cannot reach is better reached another way, or found by others.
        let both = self.bound.ip().is_unspecified() && self.bound.is_ipv6();
        let family = both || self.bound.is_ipv6() == addr.is_ipv6();
        self.runtime.spawn(async move {
            if !family {
                let _ = shared.events.send(Event::DialFailed { addr, refused: false }).await;
                return;
            }
            let tried = tokio::time::timeout(HANDSHAKE_TIME, TcpStream::connect(addr)).await;
            let failed = |refused| Event::DialFailed { addr, refused };
            let event = match tried {
                Ok(Ok(stream)) => {
                    if link::run(stream, addr, true, &shared).await {
                        return;
                    }
                    failed(false)
                }
                Ok(Err(e)) => failed(e.kind() == std::io::ErrorKind::ConnectionRefused),
                Err(_) => failed(false),
            };
            let _ = shared.events.send(event).await;
        });
    }

    /// Queues a frame. A link whose queue is full is closed.
    pub fn send(&self, link: LinkId, frame: Bytes) {
        let full = self.shared.links().get(&link).is_some_and(|l| !l.send(frame));
        if full {
            if let Some(unsaid) = self.shared.hush.may_say("full") {
                tracing::warn!(link, unsaid, "a peer does not read what it is sent; its link is closed");
            }
            self.close(link);
        }
    }

    /// How many bytes of frames were sent through a link that stands, and how many were received.
    pub fn traffic(&self, link: LinkId) -> Option<(u64, u64)> {
        self.shared.links().get(&link).map(Link::traffic)
    }

    /// Closes a link, after what is queued has been sent.
    pub fn close(&self, link: LinkId) {
        self.shared.links().remove(&link);
    }

    /// Sends a datagram; like any, it may be lost.
    pub fn datagram(&self, to: SocketAddr, bytes: &[u8]) {
        let _ = self.udp.try_send_to(bytes, if self.bound.is_ipv6() { socket::mapped(to) } else { to });
    }

    /// Sends a multicast datagram on every usable interface.
    pub fn multicast(&self, bytes: &[u8]) {
        if let Some(sender) = &self.multicast {
            sender.send(bytes);
        }
    }

    /// Waits until all queues are empty, for at most this long.
    pub async fn drain(&self, most: Duration) {
        let end = tokio::time::Instant::now() + most;
        while tokio::time::Instant::now() < end && self.shared.links().values().any(|l| !l.idle()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What comes through a connection.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let shared = Shared {
        keys: Keys::derive(b"secret", "group"),
        accept: Vec::new(),
        hush: Hush::default(),
        hello: Mutex::new(Bytes::from_static(b"hello")),
        links: Mutex::default(),
        next: AtomicU64::new(1),
        handshakes: Arc::new(tokio::sync::Semaphore::new(1)),
        events: mpsc::channel(1).0,
    };
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() {
        runtime.block_on(link::fuzz(bytes, &shared));
    }
}

async fn take_in(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, addr)) = listener.accept().await.map(|(stream, addr)| (stream, socket::canonical(addr))) else {
            // Out of file descriptors, most likely: let some be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = shared.handshakes.clone().try_acquire_owned() else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let proved = link::run(stream, addr, false, &shared);
            let _ = proved.await;
            drop(permit);
        });
    }
}

async fn receive(udp: Arc<UdpSocket>, events: mpsc::Sender<Event>) {
    let mut buffer = vec![0; 65_536];
    loop {
        match udp.recv_from(&mut buffer).await {
            Ok((len, from)) if len <= base::DATAGRAM_BYTES_MAX => {
                // Under a flood what cannot be queued is dropped, as the network would.
                let from = socket::canonical(from);
                let _ = events.try_send(Event::Datagram(from, Bytes::copy_from_slice(&buffer[..len])));
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

impl Shared {
    fn next_link(&self) -> LinkId {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

use crate::asking::{Question, Said};
use crate::frame::{Frame, Hello};
use crate::gateway::{Op, OpReply};
use crate::lifecycle::Burial;
use crate::trace::Slow;
use base::{FragmentId, NodeId, Span};
use bytes::Bytes;
use membership::Place;
use replica::Persist;
use std::net::SocketAddr;

/// Names one connection of this process's life.
pub type LinkId = u64;
/// Names one operation of a local client.
pub type OpId = u64;

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// The deadline has passed, or may have.
    Tick,
    /// A unicast datagram.
    Datagram(SocketAddr, Bytes),
    /// A multicast datagram.
    Beacon(SocketAddr, Bytes),
    /// A link stands, both sides have said hello.
    Linked {
        /// Its name.
        link: LinkId,
        /// We dialled.
        dialled: bool,
        /// The other end.
        addr: SocketAddr,
        /// What it said.
        hello: Hello,
    },
    /// A link is gone.
    Unlinked(LinkId),
    /// Dialling failed; `refused`: the machine answered, and nobody listens there.
    DialFailed {
        /// What was dialled.
        addr: SocketAddr,
        /// Nobody listens there.
        refused: bool,
    },
    /// A frame from the other end of a link.
    Frame(LinkId, Frame),
    /// All batches of this fragment up to this mark are on disc.
    Durable(FragmentId, u64),
    /// A local client wants something.
    Op(OpId, Op),
    /// A provider has answered; or could not, and why.
    Listed {
        /// Which of those the node was started with.
        provider: u16,
        /// It names every node that there should be.
        authoritative: bool,
        /// Where it says that nodes are.
        places: Result<Vec<Place>, String>,
    },
    /// A copy of this fragment is being read through a [`Window`](crate::Window), and its leases are old or missing.
    Warm(FragmentId),
    /// This machine has another address now.
    Advertise(SocketAddr),
    /// What this node's own process says, asked under this number.
    Said(u64, Said),
    /// A local client no longer waits.
    Forget(OpId),
    /// The process is so short of memory, or of room on its disc.
    Shortage(replica::Shortage),
    /// Somebody wants to know how long peers take to answer.
    Probe,
    /// Requests that take so long or longer are told of; 0: all.
    SlowAfter(Span),
    /// Stop cleanly.
    Stop,
}

/// What a node wants done. Nothing has to wait for anything else in one list: what must be durable first is held back
/// inside until [`Input::Durable`].
#[derive(Clone, Debug)]
pub enum Effect {
    /// Write to disc, in order.
    Persist(FragmentId, Persist),
    /// Send on a link.
    Frame(LinkId, Frame),
    /// Send a datagram.
    Datagram(SocketAddr, Vec<u8>),
    /// Call out on every interface.
    Multicast(Vec<u8>),
    /// Connect.
    Dial(SocketAddr),
    /// Close a link.
    Close(LinkId),
    /// From here on this is said first on every new link.
    Hello(Hello),
    /// Answer a local client.
    Reply(OpId, OpReply),
    /// Answer for this process: to be sent on this link, or for [`Input::Said`], with this number.
    Ask(Option<LinkId>, u64, Question),
    /// Tell whoever listens.
    Notice(Notice),
    /// Everything is done: exit.
    Stopped,
}

/// What happened, for log lines, metrics, events and subscribers: the one source of all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A node entered the view.
    MemberJoin(NodeId, String),
    /// A node left the view; `true`: it said goodbye.
    MemberLeave(NodeId, String, bool),
    /// What this node had of a fragment that is no more could not be joined with the rest, and is kept: of which table, and which.
    SetAside(String, FragmentId),
    /// Of this table so many records had to go here since it was said last; the oldest that is left is so many milliseconds old.
    Evicted(String, u64, u64),
    /// A node comes and goes.
    Flaps(NodeId, String),
    /// The island changed: state, and why.
    Island(&'static str, String),
    /// A copy here has something to tell.
    Copy(FragmentId, replica::Notice),
    /// This machine's clock is so many milliseconds ahead of the others' (or behind; `None`: in step again); `true`: it
    /// leads nothing meanwhile, where others can.
    Clock(Option<i64>, bool),
    /// The first peer answered, or nobody did: the node takes part from here on.
    Ready {
        /// How many peers were found.
        peers: usize,
    },
    /// Packets of another cookie or group come from here; from so many senders so far. They are ignored.
    Foreign(SocketAddr, usize),
    /// A node of our group speaks another protocol version.
    WrongProtocol(SocketAddr, u16),
    /// So many records of the system table make no sense to this program: another version wrote them.
    Unreadable(usize),
    /// A node of a cluster that was formed apart from this one, with the same secret: the two become one.
    FormedApart(NodeId, String),
    /// Values that lost conflicts take so many bytes here: more than anybody would leave unread.
    Ledger(u64),
    /// A node was buried.
    Buried(Burial),
    /// Others have buried this very node: it comes anew.
    BuriedHere(Burial),
    /// One that was buried, by its name, has come anew.
    Returned(String),
    /// These were to be buried, and are not.
    BurialHeld {
        /// The names of the nodes.
        names: Vec<String>,
        /// Why not.
        why: String,
    },
    /// An answer of a provider, by its number, is not acted on: so many nodes of so many would be gone.
    Incredible(u16, usize, usize),
    /// A provider, by its number, fails (why), or works again.
    Provider(u16, Option<String>),
    /// A request took long.
    Slow(Slow),
    /// Another node has our node id: a data directory was copied.
    Twin(SocketAddr),
}

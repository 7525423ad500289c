use crate::batch::{Answer, Read, Request, Rows};
use crate::ledger::Heal;
use crate::msg::{Lead, Msg};
use crate::record::WriteBatch;
use base::{BranchId, NodeId};
use std::collections::{BTreeSet, VecDeque};

/// Names one waiting client of this copy.
pub type Ticket = u64;

/// What happens to a copy.
#[derive(Clone, Debug)]
pub enum Input {
    /// The deadline has passed, or may have.
    Tick,
    /// Who can be reached has changed, or what is known of those that cannot.
    View {
        /// The nodes that can be reached now, without this one.
        view: BTreeSet<NodeId>,
        /// Those of the missing that look dead: nobody listens where they did. A hint: it saves waiting for a calm view.
        dead: BTreeSet<NodeId>,
        /// Those of the missing that said goodbye: they serve nothing, and hold no lease.
        gone: BTreeSet<NodeId>,
        /// Those that come and go: whether they are there says nothing of whether the view is calm. A hint, too.
        flapping: BTreeSet<NodeId>,
        /// No node is missing that is not planned to be.
        whole: bool,
    },
    /// Another copy speaks.
    Msg(NodeId, Msg),
    /// What was said to this node may be lost on the way: say again where this copy stands.
    Met(NodeId),
    /// Every [`Persist`] up to this mark is on disc.
    Durable(u64),
    /// A write for the leader.
    Write(Ticket, Request),
    /// A read, for the leader or a copy that follows in sync.
    Read(Ticket, Read),
    /// This copy is being read ([`Copy::read_under_lease`](crate::Copy::read_under_lease)): get or renew its leases.
    Warm,
    /// Leader: the table was dropped in this island, for the so-manieth time, when this was known of it.
    Dropped(u64, base::Heads),
    /// Leader: what was dropped so, and stamped before that, is not needed any more, if every copy knows of it.
    Clear(u64, base::WallMs),
    /// Leader: take this node in as a copy.
    AddMember(NodeId),
    /// Leader: there are copies enough without this node's; it gives its own up.
    RemoveMember(NodeId),
    /// Leader: let this node's copy lead, if it is in step.
    HandOver(NodeId),
    /// These nodes were given up by an operator, whatever becomes of what only they have: nobody waits for their promises.
    GivenUp(std::collections::BTreeSet<base::NodeId>),
    /// Begin to keep records as the table's definition says, if that is not so yet and the copy is in step.
    Turn,
    /// Leader: this node does not come back; `true`: it is struck off even where a majority is asked for and not there.
    Bury(NodeId, bool),
    /// The node is so short of memory, or of room on its disc.
    Shortage(crate::Shortage),
    /// This node's clock is far off those of the others (or no longer): leave leading to better ones.
    Barred(bool),
    /// The node stops: end the branch led, so that others can tell how it ended.
    Resign,
}

/// A batch for the disc, in order. `Input::Durable(mark)` is owed when `sync` is set.
#[derive(Clone, Debug)]
pub struct Persist {
    /// What to write.
    pub batch: WriteBatch,
    /// Grows by one per batch.
    pub mark: u64,
    /// Flush to disc at once, and say so.
    pub sync: bool,
}

/// An answer to a ticket.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// To a write.
    Write(Answer),
    /// To a read: one [`Rows`] per range.
    Rows(Vec<Rows>),
    /// To a read: not here, ask whoever leads.
    NotLeading,
    /// To a read: there is only a stand-in here, which does not know. The copies are on the other side of a cut.
    Elsewhere,
}

/// Something worth telling a person, a metric or a subscriber.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// This copy opened a branch.
    Opened(Lead),
    /// This copy stopped leading it.
    SteppedDown(BranchId),
    /// The in-sync set of the branch led here changed.
    InSync(BTreeSet<NodeId>),
    /// This copy follows, in step with its leader.
    Following(NodeId),
    /// This stand-in has given away what it took, and keeps nothing: it can go.
    Left,
    /// A value cannot be read from the disc: this copy says nothing more.
    ValueLost,
    /// An opening merged what islands had written apart.
    Merged(Heal),
}

/// What a copy wants done. Nothing in `sends` or `replies` has to wait for `persists`: what must is held back inside the
/// copy until [`Input::Durable`].
#[derive(Default, Debug)]
pub struct Effects {
    /// To disc, in order.
    pub persists: Vec<Persist>,
    /// To other copies.
    pub sends: Vec<(NodeId, Msg)>,
    /// To clients.
    pub replies: Vec<(Ticket, Reply)>,
    /// To whom it may concern.
    pub notices: Vec<Notice>,
}

/// What happens when something is durable.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    Send(NodeId, Msg),
    SelfAck(BranchId, u64),
    Ready(BranchId),
}

/// Holds back what has to wait for the disc.
pub(crate) struct Gate {
    pub written: u64,
    pub synced: u64,
    pub durable: u64,
    waiting: VecDeque<(u64, Then)>,
}

impl Gate {
    /// That of a copy which goes on where another in this process ended: marks are never used twice.
    pub(crate) fn after(mark: u64) -> Gate {
        Gate { written: mark, synced: mark, durable: mark, waiting: VecDeque::new() }
    }

    /// Queues `then` behind the last batch that asked for a flush; it is due at once when that is on disc.
    pub(crate) fn push(&mut self, then: Then) {
        self.waiting.push_back((self.synced, then));
    }

    /// The next thing whose turn has come.
    pub(crate) fn pop(&mut self) -> Option<Then> {
        let due = self.waiting.front().is_some_and(|(mark, _)| *mark <= self.durable);
        if due { self.waiting.pop_front().map(|(_, then)| then) } else { None }
    }

    pub(crate) fn idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

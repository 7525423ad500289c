//! What local clients want, carried to whoever leads the fragment: tried again until it is known what became of it.

use crate::asking::{Question, Said};
use crate::lifecycle::Word;
use crate::map::Map;
use crate::schema::{Alteration, BadTable, TableDef, TableOptions};
use crate::status::{Status, TableInfo};
use crate::trace::Traces;
use crate::why::Object;
use base::{BranchId, FragmentId, Instant, NAME_BYTES_MAX, NodeId, Span};
use replica::{Answer, Batch, Changes, Outcome, Read, Refusal, Request, Rows, SessionId, Since};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use crate::io::OpId;

/// How many operations may be under way at once.
const OPS_MAX: usize = 20_000;
/// An attempt that was not answered for so long is made again.
const ATTEMPT_WAIT: Span = Span::ms(2_000);
/// How often those that wait for an answer are held against the clock.
const LOOK_EVERY: Span = Span::ms(250);
/// Pause before another attempt after "not I" or "busy"; it doubles. A lead that changes hands takes some milliseconds.
const BACKOFF: Span = Span::ms(4);
/// The longest of those pauses.
const BACKOFF_MAX: Span = Span::ms(32);
/// The longest pause of a write that is refused for want of copies; it doubles.
const TOO_FEW_BACKOFF_MAX: Span = Span::ms(500);

/// What a local client wants.
#[derive(Clone, Debug)]
pub enum Op {
    /// A conditional batch, all keys in this fragment.
    Write(FragmentId, Batch, Span),
    /// Rows of one fragment.
    Read(FragmentId, Read, Span),
    /// Make a table; `true`: it may be there already.
    CreateTable(String, TableOptions, bool),
    /// Remove a table.
    DropTable(String),
    /// The definition of a table.
    Table(String),
    /// All tables.
    Tables,
    /// How things stand.
    Status,
    /// One table, fragment by fragment.
    TableInfo(String),
    /// What the processes of all nodes in view, or of this one alone, say to this.
    Ask(Question, Option<NodeId>),
    /// Why something is as it is, in a sentence or two.
    Why(Object),
    /// What an operator says of a node, by its name or its id.
    Word(String, Word),
    /// What changed in a fragment.
    Changes(FragmentId, Since),
    /// Where all copies are, and what is to be moved.
    Map,
    /// Copies are evened out no more, or again.
    PauseBalance(bool),
    /// A node takes in so many bytes a second of copies that are made on it, at least [`COPY_RATE_MIN`](crate::COPY_RATE_MIN); `None`:
    /// as many as it can.
    CopyRate(Option<u64>),
    /// Change a table while it is used.
    AlterTable(String, Alteration),
}

/// What a local client is told.
#[derive(Clone, Debug)]
pub enum OpReply {
    /// To a write.
    Outcome(Outcome),
    /// To a read.
    Rows(Vec<Rows>),
    /// To `CreateTable` and `Table`.
    Table(TableDef),
    /// To `Tables`.
    Tables(Vec<TableDef>),
    /// To `Status`.
    Status(Box<Status>),
    /// To `TableInfo`.
    TableInfo(Box<TableInfo>),
    /// To `Ask`: by node, with its name, of those that answered.
    Said(BTreeMap<NodeId, (String, Said)>),
    /// To `Changes`; `None`: nobody in reach can tell now.
    Changes(Option<Changes>),
    /// To `Why`.
    Text(String),
    /// To `Map`.
    Map(Box<Map>),
    /// It cannot be done, or not now; nothing was changed.
    Error(ClientError),
}

/// Why an operation was not done. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum ClientError {
    /// Nobody in this island leads the fragment, and nobody came to within the time limit.
    #[error(
        "no copy of fragment {index} of table {table} answers here: its nodes are down or on the other side of a cut; see `tombolo status`"
    )]
    Unavailable {
        /// Which table.
        table: String,
        /// Which fragment.
        index: u16,
    },
    /// This island has no copy of the fragment, and the stand-in does not know what was asked for.
    #[error(
        "unavailable here: the copies of fragment {index} of table {table} are on the other side of a cut, and only what was written on this side since can be read; see `tombolo status`"
    )]
    Elsewhere {
        /// Which table.
        table: String,
        /// Which fragment.
        index: u16,
    },
    /// No such table.
    #[error("there is no table {0:?}; `tombolo table list` shows those there are, `tombolo table create` makes one")]
    NoTable(String),
    /// The table is there already.
    #[error("table {0:?} is there already; nothing was changed")]
    TableExists(String),
    /// The table is there, but otherwise.
    #[error(transparent)]
    BadTable(#[from] BadTable),
    /// Its keys are not all in one fragment.
    #[error(
        "the keys are in different fragments of table {0}, and are written or read together only where they are in one: take them one by one"
    )]
    Parted(String),
    /// What was read is in other fragments by now.
    #[error("the fragments of table {0} changed while it was read: read it again")]
    Recut(String),
    /// No such fragment.
    #[error("table {0} has no fragment {1}; `tombolo table info {0}` shows those there are")]
    NoFragment(String, u16),
    /// No such node.
    #[error("there is no node {0:?}; `tombolo nodes` shows those there are")]
    NoNode(String),
    /// Several such nodes.
    #[error("{0:?} is more than one node; name it by its id, as `tombolo nodes` shows it")]
    Ambiguous(String),
    /// The node was buried.
    #[error("{0} is buried already; if it comes back, it is taken in again with what it has")]
    IsBuried(String),
    /// The node is there.
    #[error("{0} is in view, and so not gone; to take it out of the cluster: `tombolo leave {0}`")]
    InView(String),
    /// The node is not there.
    #[error("{0} is not in view, and cannot give away what it has; if it is gone for good: `tombolo condemn {0}`")]
    NotInView(String),
    /// There is nobody else.
    #[error("{0} is the last node here: nobody could take what it has; to end it: `tombolo stop`")]
    LastNode(String),
    /// The last copy of something might be on it.
    #[error(
        "{name} may hold the last copy of fragment {index} of table {table}: there is none in this island. Bring a node back that holds one, or lose it: --force"
    )]
    LastCopy {
        /// The node.
        name: String,
        /// The fragment's table.
        table: String,
        /// The fragment.
        index: u16,
    },
    /// The node is not what is to be taken back.
    #[error("{0} is not {1}; nothing was changed")]
    NotMarked(String, String),
    /// A name that cannot be.
    #[error("the name {0:?} must have 1 to {NAME_BYTES_MAX} printable bytes")]
    BadName(String),
    /// Too much is under way.
    #[error("more than {OPS_MAX} operations are under way on this node; wait for some to end")]
    Overloaded,
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// An operation on its way.
pub(crate) struct Pending {
    pub op: OpId,
    pub fragment: FragmentId,
    pub what: What,
    pub deadline: Instant,
    /// When its client asked, when it was first sent, and how often.
    pub asked: Instant,
    pub sent: Option<Instant>,
    pub attempts: u32,
    /// Who had it last, since when.
    pub last: Option<(NodeId, Instant)>,
    /// To whom, since when.
    pub attempt: Option<(NodeId, Instant)>,
    pub not_before: Instant,
    /// The last pause.
    pause: Span,
    /// It was tried at a copy beside it, which follows.
    pub read_here: bool,
    /// Too few copies were in sync when it was last tried, under another number; and how long it waits before the next.
    pub too_few: Option<(Refusal, Span)>,
}

impl Pending {
    /// It is with nobody, and waits for a while.
    fn pause(&mut self, now: Instant) {
        self.pause = Span(self.pause.0 * 2).clamp(BACKOFF, BACKOFF_MAX);
        (self.attempt, self.not_before) = (None, now + self.pause);
    }
}

pub(crate) enum What {
    Write { batch: Batch, branches: Vec<BranchId> },
    Read(Read),
}

/// All operations under way, by number. Numbers of writes name them for ever within this node's session.
pub(crate) struct Gateway {
    pub session: SessionId,
    next: u64,
    pub pending: BTreeMap<u64, Pending>,
    /// Those that are with nobody now.
    idle: BTreeSet<u64>,
    /// When all were last held against their time limits.
    looked: Instant,
    pub traces: Traces,
}

/// What to do after an answer.
pub(crate) enum Next {
    /// It is over.
    Done(OpId, OpReply),
    /// Try again soon.
    Retry,
    /// The leader leads under this branch: try again at once.
    Moved(FragmentId, NodeId, BranchId),
    /// Nobody waits for it.
    Nothing,
}

impl Gateway {
    pub(crate) fn new(session: SessionId) -> Gateway {
        Gateway {
            session,
            next: 1,
            pending: BTreeMap::new(),
            idle: BTreeSet::new(),
            looked: Instant(0),
            traces: Traces::default(),
        }
    }

    /// Takes an operation in; its number, or `None` when there are too many.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        op: OpId,
        fragment: FragmentId,
        what: What,
        wait: Span,
    ) -> Option<u64> {
        if self.pending.len() >= OPS_MAX {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let deadline = now + wait;
        let pending = Pending {
            op,
            fragment,
            what,
            deadline,
            asked: now,
            sent: None,
            attempts: 0,
            last: None,
            attempt: None,
            not_before: now,
            pause: Span(0),
            read_here: false,
            too_few: None,
        };
        self.pending.insert(number, pending);
        self.idle.insert(number);
        Some(number)
    }

    /// The next attempt at a write, listing the branch before it is sent there; `None` for reads and the finished.
    pub(crate) fn request(&mut self, number: u64, branch: BranchId) -> Option<Request> {
        let (session, done_through) = (self.session, *self.pending.first_key_value()?.0);
        let What::Write { batch, branches } = &mut self.pending.get_mut(&number)?.what else { return None };
        branches.retain(|b| *b != branch);
        branches.push(branch);
        Some(Request { session, number, done_through, branches: branches.clone(), batch: batch.clone() })
    }

    /// A leader's answer to an attempt at a write.
    pub(crate) fn answered(&mut self, now: Instant, from: NodeId, number: u64, answer: Answer) -> Next {
        let Some(pending) = self.pending.get_mut(&number) else { return Next::Nothing };
        let What::Write { branches, .. } = &pending.what else { return Next::Nothing };
        let fragment = pending.fragment;
        match answer {
            // A refusal counts only from the branch that the list names last [R5].
            Answer::Outcome(Outcome::Failed(_), branch) if branches.last() != Some(&branch) => Next::Nothing,
            Answer::Outcome(Outcome::Failed(refusal @ Refusal::TooFewCopies { .. }), _)
                if now + BACKOFF < pending.deadline =>
            {
                self.renumber(now, number, refusal)
            }
            Answer::Outcome(outcome, _) => self.end(now, number, OpReply::Outcome(outcome)),
            Answer::Moved(branch) => {
                pending.attempt = None;
                self.idle.insert(number);
                Next::Moved(fragment, from, branch)
            }
            Answer::NotLeading | Answer::Busy => {
                pending.pause(now);
                self.idle.insert(number);
                Next::Retry
            }
        }
    }

    /// What was refused for want of copies is refused for ever under its number; it may be done under another, as long as
    /// there is time.
    fn renumber(&mut self, now: Instant, number: u64, refusal: Refusal) -> Next {
        let Some(mut pending) = self.pending.remove(&number) else { return Next::Nothing };
        if let What::Write { branches, .. } = &mut pending.what {
            branches.clear();
        }
        let wait = pending.too_few.take().map_or(BACKOFF, |(_, wait)| Span(wait.0 * 2).min(TOO_FEW_BACKOFF_MAX));
        (pending.attempt, pending.not_before, pending.too_few) = (None, now + wait, Some((refusal, wait)));
        self.pending.insert(self.next, pending);
        self.idle.insert(self.next);
        self.next += 1;
        Next::Retry
    }

    pub(crate) fn rows(&mut self, now: Instant, number: u64, rows: Option<Vec<Rows>>) -> Next {
        let Some(pending) = self.pending.get_mut(&number) else { return Next::Nothing };
        match rows {
            Some(rows) => self.end(now, number, OpReply::Rows(rows)),
            None => {
                // The leader is asked at once for what the copy beside could not answer.
                if pending.read_here {
                    (pending.attempt, pending.not_before) = (None, now);
                } else {
                    pending.pause(now);
                }
                self.idle.insert(number);
                Next::Retry
            }
        }
    }

    /// Its keys are in another fragment by now.
    pub(crate) fn redirect(&mut self, number: u64, fragment: FragmentId) {
        if let Some(pending) = self.pending.get_mut(&number) {
            (pending.fragment, pending.attempt, pending.read_here) = (fragment, None, false);
            self.idle.insert(number);
        }
    }

    /// A read that was not tried beside it yet.
    pub(crate) fn may_read_here(&self, number: u64) -> bool {
        self.pending.get(&number).is_some_and(|p| matches!(p.what, What::Read(_)) && !p.read_here)
    }

    /// It is on its way to somebody, or to the copy beside it.
    pub(crate) fn attempted(&mut self, now: Instant, number: u64, to: NodeId, here: bool) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        (pending.attempt, pending.last, pending.read_here) = (Some((to, now)), Some((to, now)), here);
        (pending.sent, pending.attempts) = (pending.sent.or(Some(now)), pending.attempts.saturating_add(1));
        self.idle.remove(&number);
    }

    /// Nobody is known to lead: it is tried again in a moment, not at every step of the node.
    pub(crate) fn nobody(&mut self, now: Instant, number: u64) {
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.pause(now);
            self.idle.insert(number);
        }
    }

    pub(crate) fn end(&mut self, now: Instant, number: u64, reply: OpReply) -> Next {
        let Some(pending) = self.pending.remove(&number) else { return Next::Nothing };
        self.traces.end(now, number, &pending);
        Next::Done(pending.op, reply)
    }

    /// Nobody waits any more. What was sent may still be done: it keeps its number, so that the session does not call it
    /// finished before its time is over.
    pub(crate) fn forget(&mut self, op: OpId) {
        self.pending.retain(|_, p| p.op != op || p.attempt.is_some());
    }

    /// Attempts on their way to a node whose link broke are made again.
    pub(crate) fn lost(&mut self, node: NodeId) {
        for pending in self.pending.values_mut().filter(|p| p.attempt.is_some_and(|(to, _)| to == node)) {
            pending.attempt = None;
        }
        self.idle.extend(self.pending.iter().filter(|(_, p)| p.attempt.is_none()).map(|(number, _)| *number));
    }

    /// The numbers to try now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<u64> {
        let pending = &self.pending;
        self.idle.retain(|number| pending.get(number).is_some_and(|p| p.attempt.is_none()));
        let ready = |n: &&u64| pending.get(n).is_some_and(|p| now >= p.not_before);
        let mut due: Vec<u64> = self.idle.iter().filter(ready).copied().collect();
        if now - self.looked >= LOOK_EVERY {
            self.looked = now;
            let late = |p: &Pending| p.attempt.is_some_and(|(_, since)| now - since > ATTEMPT_WAIT);
            due.extend(pending.iter().filter(|(_, p)| late(p)).map(|(number, _)| *number));
        }
        due
    }

    /// Those whose time is over: unknown if a write was ever sent, else not done.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<(OpId, FragmentId, Option<Outcome>)> {
        let late: Vec<u64> = self.pending.iter().filter(|(_, p)| now >= p.deadline).map(|(n, _)| *n).collect();
        let late = late.into_iter().filter_map(|n| Some((n, self.pending.remove(&n)?)));
        let traces = &mut self.traces;
        late.map(|(number, p)| {
            traces.end(now, number, &p);
            let sent = matches!(&p.what, What::Write { branches, .. } if !branches.is_empty());
            (
                p.op,
                p.fragment,
                if sent { Some(Outcome::Unknown) } else { p.too_few.map(|(refusal, _)| Outcome::Failed(refusal)) },
            )
        })
        .collect()
    }

    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.pending.is_empty() {
            return None;
        }
        Some(now + if self.idle.is_empty() { LOOK_EVERY } else { BACKOFF })
    }
}

//! A fragment keeps its members, ledger, outcomes and branches beside the users' records, under a first byte that tells
//! them apart. So they travel, merge and recover with the fragment, atomically.

use crate::Record;
use crate::batch::SessionId;
use crate::policy::BranchInfo;
use base::{BranchId, NodeId, Version};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The first byte of every stored key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Space {
    /// The users' records.
    User = 1,
    /// node -> [`MemberStatus`].
    Member = 2,
    /// (user key, losing version) -> losing record.
    Ledger = 3,
    /// session -> the number below which all its requests are finished.
    Session = 4,
    /// (session, number) -> the version that the request was given.
    Outcome = 5,
    /// branch -> nothing: its leader ended it with this very entry.
    Closed = 6,
    /// branch -> the ballot it was opened with, and its in-sync sets.
    Branch = 7,
    /// The in-sync set in force.
    Set = 8,
    /// How far the fragment has forgotten.
    Floor = 9,
    /// The history of its heals.
    Heals = 10,
    /// Up to where its records went with its table, which was dropped.
    Dropped = 11,
}

/// A copy's standing in the fragment's own list of copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemberStatus {
    /// Chosen to hold a copy; not in sync yet.
    Joining,
    /// Was in sync at least once.
    In,
    /// Has a copy that is to go.
    Leaving,
    /// Has no copy any more.
    Left,
    /// Took writes where no copy was: no member, and gone when the copies have them.
    StandIn,
    /// Its node was given up. If it comes back with what it has, it is taken in anew.
    Buried,
}

impl MemberStatus {
    /// Does it hold a copy that counts?
    pub fn is_member(self) -> bool {
        matches!(self, MemberStatus::Joining | MemberStatus::In | MemberStatus::Leaving)
    }

    /// Is nothing of it waited for any more?
    pub fn is_gone(self) -> bool {
        matches!(self, MemberStatus::Left | MemberStatus::Buried)
    }
}

fn prefixed(space: Space, rest: &[u8]) -> BytesMut {
    let mut key = BytesMut::with_capacity(1 + rest.len() + 24);
    key.put_u8(space as u8);
    key.put_slice(rest);
    key
}

/// The space of a stored key.
pub(crate) fn space_of(key: &[u8]) -> Option<Space> {
    use Space::*;
    let all = [User, Member, Ledger, Session, Outcome, Closed, Branch, Set, Floor, Heals, Dropped];
    all.into_iter().find(|s| key.first() == Some(&(*s as u8)))
}

/// May a tombstone lie under this key? Users delete records, and operators rows of the ledger.
pub(crate) fn is_deletable(key: &[u8]) -> bool {
    matches!(space_of(key), Some(Space::User | Space::Ledger))
}

pub(crate) fn in_space(space: Space, rest: &[u8]) -> Bytes {
    prefixed(space, rest).freeze()
}

pub(crate) fn user(key: &[u8]) -> Bytes {
    // There are many: nothing to spare.
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(Space::User as u8);
    stored.extend_from_slice(key);
    stored.into()
}

/// The one record that a line has in a space of its own: what is joined of several fragments has that of each.
pub(crate) fn one_of(space: Space, line: u32) -> Bytes {
    if line == 0 { in_space(space, &[]) } else { in_space(space, &line.to_be_bytes()) }
}

/// The line whose one record this is.
pub(crate) fn line_of(key: &[u8]) -> u32 {
    key.get(1..5).and_then(|line| line.try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(crate) fn set(line: u32) -> Bytes {
    one_of(Space::Set, line)
}

pub(crate) fn floor(line: u32) -> Bytes {
    one_of(Space::Floor, line)
}

pub(crate) fn dropped(line: u32) -> Bytes {
    one_of(Space::Dropped, line)
}

pub(crate) fn heals(line: u32) -> Bytes {
    one_of(Space::Heals, line)
}

pub(crate) fn member(node: NodeId) -> Bytes {
    in_space(Space::Member, &node.0.to_be_bytes())
}

pub(crate) fn node_of_member(key: &[u8]) -> Option<NodeId> {
    Some(NodeId(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?)))
}

fn put_branch(key: &mut BytesMut, branch: BranchId) {
    key.put_u64(branch.node.0);
    key.put_u64(branch.n);
}

pub(crate) fn closed(branch: BranchId) -> Bytes {
    let mut key = prefixed(Space::Closed, &[]);
    put_branch(&mut key, branch);
    key.freeze()
}

pub(crate) fn branch(branch: BranchId) -> Bytes {
    let mut key = prefixed(Space::Branch, &[]);
    put_branch(&mut key, branch);
    key.freeze()
}

fn put_session(key: &mut BytesMut, session: SessionId) {
    key.put_u64(session.node.0);
    key.put_u64(session.incarnation);
}

pub(crate) fn session(id: SessionId) -> Bytes {
    let mut key = prefixed(Space::Session, &[]);
    put_session(&mut key, id);
    key.freeze()
}

pub(crate) fn outcome(id: SessionId, number: u64) -> Bytes {
    let mut key = prefixed(Space::Outcome, &[]);
    put_session(&mut key, id);
    key.put_u64(number);
    key.freeze()
}

fn session_at(key: &[u8]) -> Option<SessionId> {
    let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    Some(SessionId { node: NodeId(number(1)?), incarnation: number(9)? })
}

/// The session whose record's key this is.
pub(crate) fn session_of(key: &[u8]) -> Option<SessionId> {
    session_at(key).filter(|_| key[0] == Space::Session as u8 && key.len() == 17)
}

/// Splits an outcome's key into its session and its number.
pub(crate) fn outcome_of(key: &[u8]) -> Option<(SessionId, u64)> {
    let session = session_at(key).filter(|_| key[0] == Space::Outcome as u8 && key.len() == 25)?;
    Some((session, u64::from_be_bytes(key[17..].try_into().ok()?)))
}

/// The ledger's key of a losing record: a pure function of that record.
pub(crate) fn ledger(stored: &[u8], lost: Version) -> Bytes {
    let mut key = prefixed(Space::Ledger, stored);
    put_branch(&mut key, lost.branch);
    key.put_u64(lost.seq);
    key.freeze()
}

/// The branch that a key of the spaces `Branch` and `Closed` names.
pub(crate) fn branch_of(key: &[u8]) -> Option<BranchId> {
    let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    Some(BranchId { node: NodeId(number(1)?), n: number(9)? })
}

/// Reads a branch's record: which branch, and what is known of it.
pub(crate) fn branch_opened(key: &Bytes, record: &Record) -> Option<(BranchId, BranchInfo)> {
    let branch = branch_of(key).filter(|_| space_of(key) == Some(Space::Branch))?;
    Some((branch, decode(record.value.as_ref()?)?))
}

/// Encodes an internal value. Serialising plain data into memory cannot fail; an empty value would decode to `None`.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value).unwrap_or_default().into()
}

pub(crate) fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

pub(crate) fn decode_set(record: Option<&Record>) -> BTreeSet<NodeId> {
    record.and_then(|r| decode(r.value.as_ref()?)).unwrap_or_default()
}

/// The smallest key above all that start with `prefix`; `None` when there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end.into());
        }
    }
    None
}

//! Following a table: what is there, then every change, from a position that can be kept and come back to.

use crate::{Error, Table};
use base::{FragmentId, Heads};
use bytes::Bytes;
use node::{ClientError, Op, OpReply, TableDef};
use replica::{Changes, Record, Since};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How often a fragment is looked at that does not say by itself that it changed.
const LOOK: Duration = Duration::from_millis(50);

/// What a subscriber is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// One key's newest state.
    Key {
        /// The key.
        key: Bytes,
        /// What it holds; a record without a value: it was deleted. One that expires is told of when it is put, and again when
        /// it is cleared away, some time after it has expired.
        record: Record,
    },
    /// The position is older than deletions that the table has forgotten by now. All that this fragment holds is told next;
    /// keys of it (see [`Table::fragment`]) that are not among that are gone.
    Anew {
        /// Which fragment of the table.
        fragment: FragmentId,
    },
}

/// How far a subscriber has come, fragment by fragment. The default is the very beginning.
///
/// It can be kept anywhere as bytes, and be taken up by another process on another node. It is about 20 bytes for each
/// branch of each fragment.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Position(BTreeMap<u32, Heads>);

/// Bytes that are no position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("these bytes are no position of a subscription")]
pub struct BadPosition;

impl Position {
    /// The table has other fragments by now than those that this is of: whatever is known of those is known of these.
    fn renew(&mut self, def: &TableDef) {
        let id = |index: u32| def.of_line(index);
        let old: Vec<FragmentId> = self.0.keys().map(|index| id(*index)).filter(|f| !def.has(*f)).collect();
        if old.is_empty() {
            return;
        }
        for new in def.all().filter(|f| !self.0.contains_key(&f.index)).collect::<Vec<_>>() {
            let shares = |f: &&FragmentId| def.slice(**f).overlaps(def.slice(new));
            // Of those that it was made of the newest.
            let last = old.iter().filter(shares).map(|f| f.era()).max();
            let made_of = old.iter().filter(shares).filter(|f| Some(f.era()) == last);
            let known: Vec<_> = made_of.filter_map(|f| Some((def.slice(*f), self.0.get(&f.index)?))).collect();
            if !known.is_empty() {
                let heads = replica::known_of(def.slice(new), &|line| def.slice(def.of_line(line)), &known);
                self.0.insert(new.index, heads);
            }
        }
        old.iter().for_each(|f| drop(self.0.remove(&f.index)));
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Bytes {
        wire::encode(self).unwrap_or_default()
    }

    /// From what [`Position::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<Position, BadPosition> {
        wire::decode(bytes).map_err(|_| BadPosition)
    }
}

/// A round of one fragment: one question, answered in one or more parts.
#[derive(Default)]
struct Round {
    fragment: Option<FragmentId>,
    upto: Option<Heads>,
    after: Option<(base::Version, Bytes)>,
}

/// Follows a table. It holds one part of an answer (about 256 KiB) and no more, however slowly it is read and however fast
/// the table changes: a key that changes several times between two looks is told of once, as it is then.
///
/// Each change is told at least once: whoever goes on from a kept position, or at another copy, may be told some again. In an
/// island it is that island's changes that are told; what the others wrote comes when they have met. Whoever keeps the last
/// word on each key ends with what the table holds.
pub struct Subscription {
    table: Table,
    position: Position,
    round: Round,
    queue: VecDeque<Change>,
    /// The fragment whose round is over when the queue is empty, and how far that went.
    ended: Option<(u32, Heads)>,
    /// Fragments of the present lap that had nothing new.
    quiet: usize,
    /// Since when a fragment has not been answered for.
    silent: Option<Instant>,
    /// Values are left out.
    bare: bool,
}

impl Subscription {
    pub(crate) fn new(table: Table, position: Position) -> Subscription {
        let (round, queue) = (Round::default(), VecDeque::new());
        Subscription { table, position, round, queue, ended: None, quiet: 0, silent: None, bare: false }
    }

    /// Was every fragment answered for when it was last asked?
    pub fn is_in_step(&self) -> bool {
        self.silent.is_none()
    }

    /// From now on with an empty value in the place of each: for whoever wants to know which keys changed, not to what.
    pub fn keys_only(self) -> Subscription {
        Subscription { bare: true, ..self }
    }

    /// Leaves out all that is there at this moment, except what this cannot be asked of now: that is told all the same.
    pub async fn skip(&mut self) -> Result<(), Error> {
        self.renew();
        for fragment in self.table.def().all().collect::<Vec<_>>() {
            let since = Since { bare: true, ..Since::default() };
            if let OpReply::Changes(Some(changes)) = self.table.db.op(Op::Changes(fragment, since)).await? {
                self.position.0.insert(fragment.index, changes.upto);
            }
        }
        Ok(())
    }

    /// Whoever goes on from here is told everything that was not returned yet, and some of what was.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The next change; waits for one. Dropping the future loses nothing.
    ///
    /// Errors: a fragment had no copy in reach that is in step with a leader, for as long as the database's limit; call again to
    /// go on waiting.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.try_next().await? {
                return Ok(change);
            }
            // What falls between the look and the wait is met at the next look.
            let changed = self.table.db.handle().changed();
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }

    /// The next change; `None`: at this moment there is none, in any fragment.
    pub async fn try_next(&mut self) -> Result<Option<Change>, Error> {
        loop {
            if let Some(change) = self.queue.pop_front() {
                self.quiet = 0;
                return Ok(Some(change));
            }
            // Not before the last of them was returned: a position may be kept at any time.
            self.position.0.extend(self.ended.take());
            self.renew();
            if self.quiet >= self.table.def().all().count() {
                self.quiet = 0;
                return Ok(None);
            }
            self.ask().await?;
        }
    }

    /// The table may have other fragments by now.
    fn renew(&mut self) {
        if let Some(def) = self.table.db.handle().renewed(self.table.def()) {
            self.table.def = (*def).clone();
            (self.round, self.quiet) = (Round::default(), 0);
        }
        self.position.renew(self.table.def());
    }

    /// One part of one fragment's round.
    async fn ask(&mut self) -> Result<(), Error> {
        let Some(fragment) = self.round.fragment.or_else(|| self.table.def().all().next()) else { return Ok(()) };
        let index = fragment.index;
        let seen = self.position.0.get(&index);
        let (fresh, have) = (seen.is_none(), seen.cloned().unwrap_or_default());
        let (upto, after) = (self.round.upto.clone(), self.round.after.clone());
        let since = Since { have: have.clone(), upto, after, bare: self.bare };
        let changes = match self.table.db.op(Op::Changes(fragment, since)).await? {
            OpReply::Changes(changes) => changes,
            _ => return Err(Error::Ended),
        };
        let Some(Changes { rows, upto, after, anew }) = changes else { return self.unanswered(fragment) };
        let have = if anew { Heads::default() } else { have };
        self.silent = None;
        self.quiet = if rows.is_empty() && after.is_none() && !anew { self.quiet + 1 } else { 0 };
        // Whoever was told nothing yet holds nothing that could be gone.
        self.queue.extend((anew && !fresh).then_some(Change::Anew { fragment }));
        self.queue.extend(rows.into_iter().map(|(key, record)| Change::Key { key, record }));
        if after.is_some() {
            // Should the round be given up, what this copy does not know of is to be told again.
            self.position.0.insert(index, have.meet(&upto));
            self.round = Round { fragment: Some(fragment), upto: Some(upto), after };
        } else {
            self.ended = Some((index, upto));
            self.next_fragment(fragment);
        }
        Ok(())
    }

    fn next_fragment(&mut self, fragment: FragmentId) {
        let next = self.table.def().all().skip_while(|other| *other != fragment).nth(1);
        self.round = Round { fragment: next, ..Round::default() };
    }

    /// A round that cannot be ended here is begun anew; other fragments go on meanwhile.
    fn unanswered(&mut self, fragment: FragmentId) -> Result<(), Error> {
        self.quiet += 1;
        self.next_fragment(fragment);
        let since = *self.silent.get_or_insert_with(Instant::now);
        if since.elapsed() > self.table.db.limit() {
            self.silent = None;
            let table = self.table.def().name.clone();
            return Err(ClientError::Unavailable { table, index: fragment.place() }.into());
        }
        Ok(())
    }
}

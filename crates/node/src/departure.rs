//! Going for good: a node whose copies move away first, and which then takes itself off the roster.
//!
//! It is the node itself that watches: nobody else knows all that it holds. Leaders of its fragments take others in its place as
//! soon as its mark is read (see `tend_members`); where it leads, it lets others lead.

use crate::gateway::{Op, OpReply};
use crate::io::{Effect, OpId};
use crate::node::Node;
use crate::schema::{self, TableDef, sys_fragment};
use base::{FragmentId, NodeId, Now, Span};
use membership::Mark;
use replica::{Batch, Copy, MinInSync, Outcome, RoleName, Write};
use std::collections::BTreeSet;

/// How long the last word may take.
const LAST_WAIT: Span = Span::ms(10_000);

/// How far a node on its way out has got.
#[derive(Default)]
pub(crate) struct Departure {
    /// How many copies were here at first.
    copies: usize,
    /// Its last word is under way.
    last: Option<OpId>,
}

impl Node {
    /// Is it on its way out?
    pub(crate) fn is_leaving(&self, node: NodeId) -> bool {
        self.lives.marks.get(&node) == Some(&Mark::Leaving)
    }

    pub(crate) fn is_on_its_way(&self) -> bool {
        self.fates.departure.is_some()
    }

    /// The nodes of this island that would stay.
    pub(crate) fn remaining(&self, without: NodeId) -> BTreeSet<NodeId> {
        let stays = |n: &NodeId| *n != without && self.roster.contains_key(n) && !self.is_leaving(*n);
        self.here().into_iter().filter(stays).collect()
    }

    /// Looks how far it has got, and goes when nothing is left to wait for.
    pub(crate) fn tend_departure(&mut self, now: Now, out: &mut Vec<Effect>) {
        let ended = self.has_ended(self.config.me, self.fates.life).is_some();
        if self.is_stopping() || !(ended || self.is_leaving(self.config.me)) {
            self.fates.departure = None;
            return;
        }
        if let Some(departure) = self.fates.departure.as_ref().filter(|_| ended) {
            // The last word was heard, whether its answer comes or not.
            return if departure.last.is_none() {
                self.has_left(now)
            };
        }
        if self.remaining(self.config.me).is_empty() {
            return self.stay(now, out);
        }
        let left = self.to_move(now).len();
        let copies = self.copies.ids().len();
        let departure = self.fates.departure.get_or_insert(Departure { copies, last: None });
        departure.copies = departure.copies.max(copies);
        if left > 0 || departure.last.is_some() {
            return;
        }
        let last = self.next_internal();
        let Some(batch) = self.burial_of(now, self.config.me, "it left") else { return };
        if let Some(departure) = &mut self.fates.departure {
            departure.last = Some(last);
        }
        self.on_op(now, last, Op::Write(sys_fragment(), batch, LAST_WAIT), out);
    }

    /// Everybody here is on its way out: the one with the smallest id stays.
    fn stay(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.here().first() == Some(&self.config.me) {
            let key = schema::mark_key(self.config.me);
            let batch = Batch { checks: Vec::new(), writes: vec![Write::Delete { key }], sync: true };
            self.write_sys(now, batch, out);
        }
    }

    /// The copies here that others could not do without.
    fn to_move(&self, now: Now) -> Vec<FragmentId> {
        let rest = self.remaining(self.config.me);
        let needed = |fragment: &FragmentId, def: Option<&TableDef>| {
            let look = |c: &Copy| {
                let seen = c.inspect();
                let elsewhere = match def {
                    Some(def) => self.are_enough(now, self.config.me, def, &seen),
                    None => !seen.in_sync.is_disjoint(&rest),
                };
                // Where a majority is asked for, it must not count for one any more.
                let votes = def.is_some_and(|def| def.options.min_in_sync == MinInSync::Majority)
                    && seen.members.get(&self.config.me).is_some_and(|s| s.is_member());
                // What it holds is known elsewhere only while it follows.
                c.serves() && (votes || !(seen.role == RoleName::Following && elsewhere))
            };
            self.copies.with(*fragment, look).unwrap_or(false)
        };
        let tables = self.tables.values().flat_map(|def| def.all().map(move |fragment| (fragment, Some(def))));
        // What was dropped, and hidden, needs nobody.
        let all = tables.chain([(sys_fragment(), None)]);
        all.filter(|(fragment, def)| needed(fragment, *def)).map(|(fragment, _)| fragment).collect()
    }

    /// How many copies still have to move, and how many there were; `None`: this node stays.
    pub(crate) fn departing(&self, now: Now) -> Option<(u64, u64)> {
        let departure = self.fates.departure.as_ref()?;
        Some((self.to_move(now).len() as u64, departure.copies as u64))
    }

    /// Its last word was heard; or it did not get through, and is said again.
    pub(crate) fn mind_last_word(&mut self, now: Now, op: OpId, reply: &OpReply) {
        let Some(departure) = self.fates.departure.as_mut().filter(|d| d.last == Some(op)) else { return };
        departure.last = None;
        if matches!(reply, OpReply::Outcome(Outcome::Done { .. })) {
            self.has_left(now);
        }
    }

    /// Nobody counts on it any more.
    pub(crate) fn has_left(&mut self, now: Now) {
        if !self.is_stopping() {
            self.stopping = Some((now.mono, OpId::MAX));
            self.leaving = true;
            self.chores_at = now.mono;
        }
    }
}

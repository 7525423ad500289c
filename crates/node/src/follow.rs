//! Subscribers of fragments: answered by the copy here, or by the node that leads.

use crate::frame::Frame;
use crate::gateway::{ClientError, OpReply};
use crate::io::{Effect, OpId};
use crate::node::Node;
use base::{FragmentId, Instant, NodeId, Now, Span};
use replica::Since;
use std::collections::BTreeMap;

/// Who has not answered by then is asked no more; the subscriber asks again.
const ANSWER_WAIT: Span = Span::ms(1_000);
/// How many questions may be under way.
const ASKED_MAX: usize = 10_000;
/// How many bytes of records one answer carries, about.
pub(crate) const CHANGES_BYTES: usize = 256 * 1024;

/// Questions to other nodes that are under way.
#[derive(Default)]
pub(crate) struct Questions {
    next: u64,
    all: BTreeMap<u64, (OpId, Instant)>,
}

impl Questions {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        // Numbers and deadlines grow together.
        self.all.first_key_value().map(|(_, (_, until))| *until)
    }
}

impl Node {
    /// A local subscriber asks.
    pub(crate) fn ask_changes(
        &mut self,
        now: Now,
        op: OpId,
        fragment: FragmentId,
        since: Since,
        out: &mut Vec<Effect>,
    ) {
        if let Some(changes) = self.changes_here(fragment, &since) {
            return self.reply(op, OpReply::Changes(Some(changes)), out);
        }
        let leader = self.lead_of(fragment).map(|(node, _)| node).filter(|node| *node != self.config.me);
        let Some(link) = leader.and_then(|node| self.peers.link(node)) else {
            return self.reply(op, OpReply::Changes(None), out);
        };
        if self.questions.all.len() >= ASKED_MAX {
            return self.reply(op, OpReply::Error(ClientError::Overloaded), out);
        }
        self.questions.next += 1;
        self.questions.all.insert(self.questions.next, (op, now.mono + ANSWER_WAIT));
        out.push(Effect::Frame(link, Frame::AskChanges(self.questions.next, fragment, since)));
    }

    fn changes_here(&self, fragment: FragmentId, since: &Since) -> Option<replica::Changes> {
        self.copies.with(fragment, |copy| copy.changes(since, CHANGES_BYTES)).flatten()
    }

    /// Another node's subscriber asks.
    pub(crate) fn answer_changes(
        &mut self,
        from: NodeId,
        number: u64,
        fragment: FragmentId,
        since: &Since,
        out: &mut Vec<Effect>,
    ) {
        let answer = self.changes_here(fragment, since);
        out.extend(self.peers.link(from).map(|link| Effect::Frame(link, Frame::Changes(number, answer))));
    }

    pub(crate) fn changes_told(&mut self, number: u64, changes: Option<replica::Changes>, out: &mut Vec<Effect>) {
        if let Some((op, _)) = self.questions.all.remove(&number) {
            self.reply(op, OpReply::Changes(changes), out);
        }
    }

    /// Ends the questions whose time is over.
    pub(crate) fn tend_questions(&mut self, now: Now, out: &mut Vec<Effect>) {
        while let Some(first) = self.questions.all.first_entry().filter(|e| now.mono >= e.get().1) {
            let (op, _) = first.remove();
            self.reply(op, OpReply::Changes(None), out);
        }
    }
}

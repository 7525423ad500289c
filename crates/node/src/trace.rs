//! Where the time of a request went: what is told of those that took long, at every node that had a part in them.

use crate::gateway::{Pending, What};
use crate::io::{Effect, Notice};
use crate::node::Node;
use base::{FragmentId, Instant, NodeId, Span};

/// From when on a request is slow, unless somebody says otherwise.
pub const SLOW_AFTER: Span = Span::ms(500);

/// A request that took long, as one node saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slow {
    /// The request: the first eight digits of the id of the node whose client asked, that node's how-manieth start, and a number.
    /// Every node that has a part in it knows it by the same.
    pub request: String,
    /// `read` or `write`.
    pub what: &'static str,
    /// Of which fragment.
    pub fragment: FragmentId,
    /// How long it took at this node.
    pub took: Span,
    /// What with, for people.
    pub spent: String,
}

/// Requests that ended and were slow, until they are told of.
pub(crate) struct Traces {
    pub after: Span,
    /// When the node was ready: that it looked for others before is no request's fault.
    pub ready: Instant,
    /// How many there were.
    pub count: u64,
    ended: Vec<Ended>,
}

/// So many are told of in one burst: the rest would say the same.
const TOLD_MAX: usize = 100;

struct Ended {
    number: u64,
    what: &'static str,
    fragment: FragmentId,
    took: Span,
    /// Until it was first sent.
    waited: Span,
    attempts: u32,
    /// Who had it last, for how long, and whether it was given back undone.
    last: Option<(NodeId, Span)>,
    is_undone: bool,
    /// Too few copies were in sync.
    too_few: bool,
}

impl Default for Traces {
    fn default() -> Traces {
        Traces { after: SLOW_AFTER, ready: Instant(0), count: 0, ended: Vec::new() }
    }
}

impl Traces {
    /// A request has ended, whatever became of it.
    pub(crate) fn end(&mut self, now: Instant, number: u64, pending: &Pending) {
        let took = now - pending.asked.max(self.ready);
        if took < self.after {
            return;
        }
        self.count += 1;
        if self.ended.len() >= TOLD_MAX {
            return;
        }
        self.ended.push(Ended {
            number,
            what: if matches!(pending.what, What::Read(_)) { "read" } else { "write" },
            fragment: pending.fragment,
            took,
            waited: pending.sent.map_or(took, |sent| sent - pending.asked.max(self.ready)),
            attempts: pending.attempts,
            last: pending.last.map(|(node, since)| (node, now - since)),
            is_undone: pending.attempt.is_none(),
            too_few: pending.too_few.is_some(),
        });
    }
}

impl Node {
    fn request_name(&self, node: NodeId, number: u64) -> String {
        let incarnation = match self.peers.get(node) {
            Some(peer) => peer.hello.incarnation,
            None => self.config.incarnation,
        };
        format!("{:08x}.{incarnation}.{number}", node.0 >> 32)
    }

    /// Tells of the slow requests of local clients.
    pub(crate) fn tell_slow(&mut self, out: &mut Vec<Effect>) {
        for ended in std::mem::take(&mut self.gateway.traces.ended) {
            let spent = match ended.last {
                None => "nobody who leads was found".to_string(),
                Some((node, _)) if ended.is_undone => {
                    let why = if ended.too_few { "too few copies were in sync" } else { "it could not do it then" };
                    format!("{} tries, the last with {}: {why}", ended.attempts, self.name_of(node))
                }
                Some((node, had)) => {
                    let tries = match ended.attempts {
                        ..2 => String::new(),
                        n => format!(" at the last of {n} tries"),
                    };
                    let here = node == self.config.me;
                    let last = if here { self.acknowledged_last(ended.fragment, ended.what) } else { String::new() };
                    let (waited, had, name) = (ended.waited.as_ms(), had.as_ms(), self.name_of(node));
                    format!("{waited} ms until it was first sent, {had} ms with {name}{tries}{last}")
                }
            };
            let request = self.request_name(self.config.me, ended.number);
            let (what, fragment, took) = (ended.what, ended.fragment, ended.took);
            out.push(Effect::Notice(Notice::Slow(Slow { request, what, fragment, took, spent })));
        }
    }

    /// Whom a write waited for last, if it was led here.
    fn acknowledged_last(&self, fragment: FragmentId, what: &str) -> String {
        let decided = self.copies.with(fragment, replica::Copy::decided).flatten();
        match decided.filter(|_| what == "write") {
            Some((node, true)) if node == self.config.me => "; its own disc acknowledged last".to_string(),
            Some((node, true)) => format!("; {} acknowledged last", self.name_of(node)),
            Some((node, false)) => format!("; {} did not acknowledge, and was dropped", self.name_of(node)),
            None => String::new(),
        }
    }

    /// Another node's request was answered by a copy here.
    pub(crate) fn tell_slow_answer(
        &self,
        (from, number): (NodeId, u64),
        fragment: FragmentId,
        (what, took): (&'static str, Span),
        out: &mut Vec<Effect>,
    ) {
        if took < self.gateway.traces.after {
            return;
        }
        let last = self.acknowledged_last(fragment, what);
        let spent = format!("answered here, for {}{last}", self.name_of(from));
        let request = self.request_name(from, number);
        out.push(Effect::Notice(Notice::Slow(Slow { request, what, fragment, took, spent })));
    }
}

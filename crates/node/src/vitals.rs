//! What each node's process uses, asked of every node in view: the shell knows its own, a frame brings the others'.

use crate::frame::Frame;
use crate::gateway::OpReply;
use crate::io::{Effect, LinkId, OpId};
use crate::node::Node;
use base::{Instant, NodeId, Now, Span};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Who has not answered by then is left out.
const ANSWER_WAIT: Span = Span::ms(1_000);
/// How many may ask at once.
const ASKED_MAX: usize = 1_000;

/// What a node's process uses.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Vitals {
    /// Processor time since its start, user and system, in microseconds.
    pub cpu_us: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
}

/// Who waits for whose answers.
struct Asked {
    op: OpId,
    until: Instant,
    missing: BTreeSet<NodeId>,
    told: BTreeMap<NodeId, Vitals>,
}

/// All questions under way.
#[derive(Default)]
pub(crate) struct Asking {
    next: u64,
    all: BTreeMap<u64, Asked>,
}

impl Asking {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.all.values().map(|asked| asked.until).min()
    }
}

impl Node {
    /// Asks every node in view, and this one.
    pub(crate) fn ask_vitals(&mut self, now: Now, op: OpId, out: &mut Vec<Effect>) {
        if self.asking.all.len() >= ASKED_MAX {
            return self.reply(op, OpReply::Error(crate::ClientError::Overloaded), out);
        }
        self.asking.next += 1;
        let number = self.asking.next;
        let me = self.config.me;
        let reached = self.view.iter().filter_map(|node| Some((*node, self.peers.link(*node)?)));
        let reached: BTreeMap<NodeId, LinkId> = reached.collect();
        out.extend(reached.values().map(|link| Effect::Frame(*link, Frame::AskVitals(number))));
        out.push(Effect::Vitals(None, number));
        let missing = reached.into_keys().chain([me]).collect();
        let asked = Asked { op, until: now.mono + ANSWER_WAIT, missing, told: BTreeMap::new() };
        self.asking.all.insert(number, asked);
    }

    pub(crate) fn vitals_told(&mut self, from: NodeId, number: u64, vitals: Vitals, out: &mut Vec<Effect>) {
        let Some(asked) = self.asking.all.get_mut(&number) else { return };
        if asked.missing.remove(&from) {
            asked.told.insert(from, vitals);
        }
        if asked.missing.is_empty() {
            self.tell_vitals(number, out);
        }
    }

    /// Ends the questions whose time is over.
    pub(crate) fn tend_vitals(&mut self, now: Now, out: &mut Vec<Effect>) {
        let late = self.asking.all.iter().filter(|(_, asked)| now.mono >= asked.until).map(|(n, _)| *n);
        for number in late.collect::<Vec<_>>() {
            self.tell_vitals(number, out);
        }
    }

    fn tell_vitals(&mut self, number: u64, out: &mut Vec<Effect>) {
        let Some(asked) = self.asking.all.remove(&number) else { return };
        let told = asked.told.into_iter().map(|(node, vitals)| (self.name_of(node), vitals)).collect();
        self.reply(asked.op, OpReply::Vitals(told), out);
    }
}

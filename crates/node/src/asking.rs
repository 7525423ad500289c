//! What is asked of every node in view: of its process, and what it leads.

use crate::balance::Told;
use crate::facts::{Fact, Subject};
use crate::frame::Frame;
use crate::gateway::OpReply;
use crate::io::{Effect, LinkId, OpId};
use crate::metrics::Sample;
use crate::node::Node;
use base::{FragmentId, Instant, NodeId, Now, Span, WallMs};
use bytes::Bytes;
use replica::Record;
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
    /// What of it is in use, where that is known, in bytes: what it is held to.
    pub used_bytes: u64,
    /// How much may be, if there is a ceiling.
    pub memory_max: Option<u64>,
    /// What it is short of.
    pub shortage: replica::Shortage,
}

/// What is asked of a node's process, and not of its copies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Question {
    /// What does it use?
    Vitals,
    /// What happened there since, by node; at most so much.
    Events(BTreeMap<NodeId, Mark>, u32),
    /// What is to be counted there?
    Metrics,
    /// What is known there of this?
    Facts(Subject),
    /// What did its log say since that line; at most so many lines.
    Log(Mark, u32),
    /// Set one of its knobs.
    Set(String, String),
    /// What does its copy of this fragment say under this key?
    Record(FragmentId, Bytes),
}

/// What a process says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Said {
    /// What it uses.
    Vitals(Vitals),
    /// What happened, or what the log said, the oldest first.
    Events(Vec<Happened>),
    /// What is counted there.
    Metrics(Vec<Sample>),
    /// What is known there; nothing, if there is no such thing.
    Facts(Vec<Fact>),
    /// Whether it was set, or why not.
    Set(Result<(), String>),
    /// The record, if there is one, and a copy that can answer for itself.
    Record(Option<Record>),
}

/// Which of a node's events: its how-manieth start, and a number that grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// The node's how-manieth start.
    pub incarnation: u64,
    /// From 1 in each.
    pub number: u64,
}

/// How much it matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Grade {
    /// Good to know.
    Info,
    /// Somebody should look.
    Warn,
    /// Somebody must do something.
    Error,
}

impl Grade {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Grade::Info => "info",
            Grade::Warn => "warn",
            Grade::Error => "error",
        }
    }
}

/// Something that happened at a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Happened {
    /// Which event it is.
    pub mark: Mark,
    /// When, by that node's clock.
    pub at: WallMs,
    /// How much it matters.
    pub grade: Grade,
    /// One word for its kind: `member-join`, `island`, ...
    pub kind: String,
    /// For people.
    pub text: String,
}

/// Who waits for whose answers.
struct Asked<T> {
    op: OpId,
    until: Instant,
    missing: BTreeSet<NodeId>,
    told: BTreeMap<NodeId, T>,
}

/// Whose question it was, and what each node answered.
type Answers<T> = (OpId, BTreeMap<NodeId, T>);

/// All questions of one kind that are under way.
pub(crate) struct Asking<T> {
    next: u64,
    all: BTreeMap<u64, Asked<T>>,
}

impl<T> Default for Asking<T> {
    fn default() -> Self {
        Asking { next: 0, all: BTreeMap::new() }
    }
}

impl<T> Asking<T> {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.all.values().map(|asked| asked.until).min()
    }

    /// A question's number; `None`: there are too many.
    fn begin(&mut self, now: Now, op: OpId, missing: BTreeSet<NodeId>) -> Option<u64> {
        if self.all.len() >= ASKED_MAX {
            return None;
        }
        self.next += 1;
        self.all.insert(self.next, Asked { op, until: now.mono + ANSWER_WAIT, missing, told: BTreeMap::new() });
        Some(self.next)
    }

    /// One has answered; all answers, if it was the last.
    fn told(&mut self, from: NodeId, number: u64, answer: T) -> Option<Answers<T>> {
        let asked = self.all.get_mut(&number)?;
        if asked.missing.remove(&from) {
            asked.told.insert(from, answer);
        }
        if !asked.missing.is_empty() {
            return None;
        }
        self.all.remove(&number).map(|asked| (asked.op, asked.told))
    }

    /// Those whose time is over.
    fn late(&mut self, now: Now) -> Vec<Answers<T>> {
        let late: Vec<u64> = self.all.iter().filter(|(_, asked)| now.mono >= asked.until).map(|(n, _)| *n).collect();
        late.into_iter().filter_map(|number| self.all.remove(&number)).map(|asked| (asked.op, asked.told)).collect()
    }
}

impl Node {
    /// Every node in view with a link, and this one.
    fn reached(&self) -> (BTreeMap<NodeId, LinkId>, BTreeSet<NodeId>) {
        let links = self.view.iter().filter_map(|node| Some((*node, self.peers.link(*node)?)));
        let links: BTreeMap<NodeId, LinkId> = links.collect();
        let all = links.keys().copied().chain([self.config.me]).collect();
        (links, all)
    }

    /// Every node in view with a link, and this one; or that one alone, if it is among them.
    fn asked(&self, alone: Option<NodeId>) -> (BTreeMap<NodeId, LinkId>, BTreeSet<NodeId>) {
        let (mut links, mut all) = self.reached();
        if let Some(node) = alone {
            links.retain(|other, _| *other == node);
            all.retain(|other| *other == node);
        }
        (links, all)
    }

    pub(crate) fn ask_processes(
        &mut self,
        now: Now,
        op: OpId,
        (question, alone): (&Question, Option<NodeId>),
        out: &mut Vec<Effect>,
    ) {
        let (links, all) = self.asked(alone);
        if all.is_empty() {
            return self.reply(op, OpReply::Said(BTreeMap::new()), out);
        }
        let Some(number) = self.asking.begin(now, op, all) else {
            return self.reply(op, OpReply::Error(crate::ClientError::Overloaded), out);
        };
        out.extend(links.values().map(|link| Effect::Frame(*link, Frame::Ask(number, question.clone()))));
        if alone.is_none_or(|node| node == self.config.me) {
            out.push(Effect::Ask(None, number, question.clone()));
        }
    }

    pub(crate) fn process_said(&mut self, from: NodeId, number: u64, said: Said, out: &mut Vec<Effect>) {
        if let Some(answers) = self.asking.told(from, number, said) {
            self.tell_said(answers, out);
        }
    }

    pub(crate) fn ask_leads(&mut self, now: Now, op: OpId, out: &mut Vec<Effect>) {
        let (links, all) = self.reached();
        let Some(number) = self.surveys.begin(now, op, all) else {
            return self.reply(op, OpReply::Error(crate::ClientError::Overloaded), out);
        };
        out.extend(links.values().map(|link| Effect::Frame(*link, Frame::AskLeads(number))));
        let mine = self.survey(now);
        self.leads_told(now, self.config.me, number, mine, out);
    }

    pub(crate) fn leads_told(&mut self, now: Now, from: NodeId, number: u64, told: Told, out: &mut Vec<Effect>) {
        if let Some((op, reports)) = self.surveys.told(from, number, told) {
            let map = self.map(now, &reports);
            self.reply(op, OpReply::Map(Box::new(map)), out);
        }
    }

    /// Ends the questions whose time is over.
    pub(crate) fn tend_asking(&mut self, now: Now, out: &mut Vec<Effect>) {
        for answers in self.asking.late(now) {
            self.tell_said(answers, out);
        }
        for (op, reports) in self.surveys.late(now) {
            let map = self.map(now, &reports);
            self.reply(op, OpReply::Map(Box::new(map)), out);
        }
    }

    fn tell_said(&mut self, (op, said): Answers<Said>, out: &mut Vec<Effect>) {
        let said = said.into_iter().map(|(node, said)| (node, (self.name_of(node), said))).collect();
        self.reply(op, OpReply::Said(said), out);
    }
}

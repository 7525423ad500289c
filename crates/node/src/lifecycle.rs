//! Who belongs to the cluster: each node's own line in the roster, what operators say of nodes, and burials.
//!
//! Every node reads the same records; the node that leads the system table acts on them, in each island. What it decides by is
//! [`membership::judge`]; what it may do with that stands here.

use crate::frame::Frame;
use crate::gateway::{ClientError, Op, OpReply};
use crate::io::{Effect, LinkId, Notice, OpId};
use crate::node::Node;
use crate::schema::{self, sys_fragment};
use base::{NAME_BYTES_MAX, NodeId, Now, PORT, Span, WallMs};
use bytes::Bytes;
use membership::{Facts, Island, Judgement, Mark, Place, RosterEntry, RosterStatus, Taken, judge, may_bury};
use replica::{Batch, Check, Copy, Input, Space, Write};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How long an operator's word may take to be written.
const WORD_WAIT: Span = Span::ms(10_000);

/// A node that does not come back under its id. Nothing overrides it, and nothing removes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Burial {
    /// Who.
    pub node: NodeId,
    /// What it was called.
    pub name: String,
    /// Who led the system table, and wrote this.
    pub by: NodeId,
    /// When, by that one's clock.
    pub at: WallMs,
    /// How many nodes were in view then.
    pub view: u32,
    /// Why, for people.
    pub why: String,
}

/// The nodes of the last whole roster. While it changes, both the list before and the one to come count: an island has the
/// majority if it has that of each. So no two islands have it, whichever of the steps each of them knows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Whole {
    pub now: BTreeSet<NodeId>,
    pub before: Option<BTreeSet<NodeId>>,
}

impl Whole {
    /// Are more than half of them here?
    pub(crate) fn is_held_by(&self, here: &BTreeSet<NodeId>) -> bool {
        let most = |all: &BTreeSet<NodeId>| all.intersection(here).count() * 2 > all.len();
        most(&self.now) && self.before.as_ref().is_none_or(most)
    }
}

/// What the system table says of nodes, beside the roster.
#[derive(Default)]
pub(crate) struct Lives {
    pub marks: BTreeMap<NodeId, Mark>,
    pub names: BTreeMap<NodeId, String>,
    pub buried: BTreeMap<NodeId, Burial>,
    pub whole: Whole,
}

/// What an operator may say of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Word {
    /// It is gone for good; `true`: even if the last copy of something goes with it.
    Condemn(bool),
    /// It is not gone after all.
    Admit,
    /// It never expires; `false`: it does.
    Immortalize(bool),
    /// It is called so from now on.
    Rename(String),
}

impl Lives {
    pub(crate) fn read(sys: &Copy, now: Now) -> Lives {
        let mut lives = Lives::default();
        for (key, kept) in sys.store().space(Space::User) {
            let (key, Some(value)) = (&key[1..], kept.here().and_then(|r| r.live(now.wall))) else { continue };
            if let Some(node) = schema::node_of(schema::MARK_PREFIX, key) {
                lives.marks.extend(wire::decode(value).ok().map(|mark| (node, mark)));
            } else if let Some(node) = schema::node_of(schema::NAME_PREFIX, key) {
                lives.names.extend(wire::decode(value).ok().map(|name| (node, name)));
            } else if let Some(node) = schema::node_of(schema::BURIED_PREFIX, key) {
                lives.buried.extend(wire::decode(value).ok().map(|burial| (node, burial)));
            } else if key == schema::WHOLE_KEY {
                lives.whole = wire::decode(value).unwrap_or_default();
            }
        }
        lives
    }
}

impl Node {
    /// Writes this node's own line in the roster when it is not as it should be.
    pub(crate) fn enter_roster(&mut self, now: Now, out: &mut Vec<Effect>) {
        let waits = !self.ready || self.is_stopping() || self.entered.is_some();
        if waits || self.lives.buried.contains_key(&self.config.me) || self.lead_of(sys_fragment()).is_none() {
            return;
        }
        // Until its own copy of the system table is in step it does not know what the cluster is.
        let in_step = |c: &Copy| matches!(c.inspect_role(), replica::RoleName::Leading | replica::RoleName::Following);
        let in_step = self.copies.with(sys_fragment(), in_step).unwrap_or(false);
        let entry = self.entry(if in_step { RosterStatus::Up } else { RosterStatus::Joining });
        let known = self.roster.get(&self.config.me);
        // Who falls behind for a moment has not left.
        if known != Some(&entry) && (in_step || known.is_none()) {
            self.entered = Some(self.put_entry(now, self.config.me, &entry, Vec::new(), out));
        }
    }

    pub(crate) fn entry(&self, status: RosterStatus) -> RosterEntry {
        RosterEntry {
            name: self.config.name.clone(),
            addr: self.config.advertise,
            zone: self.config.zone.clone(),
            incarnation: self.config.incarnation,
            status,
        }
    }

    pub(crate) fn put_entry(
        &mut self,
        now: Now,
        node: NodeId,
        entry: &RosterEntry,
        checks: Vec<Check>,
        out: &mut Vec<Effect>,
    ) -> OpId {
        let value = wire::encode(entry).unwrap_or_default();
        let writes = vec![Write::Put { key: schema::node_key(node), value, ttl_ms: None }];
        self.write_sys(now, Batch { checks, writes, sync: true }, out)
    }

    fn write_sys(&mut self, now: Now, batch: Batch, out: &mut Vec<Effect>) -> OpId {
        let op = self.next_internal();
        self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(5_000)), out);
        op
    }

    /// This node and all in view.
    fn here(&self) -> BTreeSet<NodeId> {
        self.view.iter().copied().chain([self.config.me]).collect()
    }

    /// What is thought of a node, by what this one knows.
    pub(crate) fn judged(&self, now: Now, node: NodeId, entry: &RosterEntry) -> Judgement {
        let since = self.out_since.get(&node);
        let facts = Facts {
            status: entry.status,
            mark: self.lives.marks.get(&node).copied(),
            in_view: node == self.config.me || self.view.contains(&node),
            away: since.map_or(Span(0), |since| now.mono - *since),
            truth: self.truths.of(now.mono, node),
            majority: self.majority_since.map(|since| now.mono - since),
        };
        judge(&facts, &self.config.patience)
    }

    /// Looks after the roster: who is away and for how long, and, where the system table is led here, what follows from that.
    pub(crate) fn tend_roster(&mut self, now: Now, island: &Island, out: &mut Vec<Effect>) {
        let here = self.here();
        // One that others hear is not away: it is this node's wire to it that is cut.
        let is_away = |node: &NodeId| !here.contains(node) && !self.peers.hears(*node);
        let away: BTreeSet<NodeId> = self.roster.keys().copied().filter(is_away).collect();
        self.out_since.retain(|node, _| away.contains(node));
        for node in away {
            self.out_since.entry(node).or_insert(now.mono);
        }
        let majority = self.lives.whole.is_held_by(&here);
        self.majority_since = self.majority_since.filter(|_| majority).or(majority.then_some(now.mono));
        self.strike_buried(now, out);
        if !self.copies.with(sys_fragment(), |c| c.lead().is_some()).unwrap_or(false) {
            self.doomed.clear();
            return;
        }
        self.pardon(now, out);
        let judged = |(node, entry): (&NodeId, &RosterEntry)| (*node, self.judged(now, *node, entry));
        let all: BTreeMap<NodeId, Judgement> = self.roster.iter().map(judged).collect();
        for (node, _) in all.iter().filter(|(_, it)| it.set_lost) {
            self.set_lost(now, *node, out);
        }
        let doomed = all.into_iter().filter(|(_, it)| it.bury).collect::<BTreeMap<_, _>>();
        // Several that go at once are buried at once: not before a round brings nobody new.
        let settled = doomed.keys().eq(self.doomed.iter());
        self.doomed = doomed.keys().copied().collect();
        if settled && !doomed.is_empty() {
            self.bury(now, doomed, out);
        }
        self.note_whole(now, island, out);
    }

    /// Whoever is back before it was buried is not condemned any more: else its next restart would end it.
    fn pardon(&mut self, now: Now, out: &mut Vec<Effect>) {
        let here = self.here();
        let marks = self.lives.marks.iter();
        let back = marks.filter(|(node, mark)| matches!(mark, Mark::Condemned { .. }) && here.contains(node));
        let keys: Vec<Bytes> = back.map(|(node, _)| schema::mark_key(*node)).collect();
        for key in keys {
            let Some(version) = self.sys_record(&key).map(|r| r.version) else { continue };
            let checks = vec![Check::AtVersion(key.clone(), version)];
            self.write_sys(now, Batch { checks, writes: vec![Write::Delete { key }], sync: true }, out);
        }
    }

    fn set_lost(&mut self, now: Now, node: NodeId, out: &mut Vec<Effect>) {
        let Some(entry) = self.roster.get(&node).cloned() else { return };
        let Some(version) = self.sys_record(&schema::node_key(node)).map(|r| r.version) else { return };
        let check = vec![Check::AtVersion(schema::node_key(node), version)];
        self.put_entry(now, node, &RosterEntry { status: RosterStatus::Lost, ..entry }, check, out);
    }

    /// A fragment of which no copy is in this island: the last ones may be on nodes that are away.
    pub(crate) fn without_copy(&self) -> Option<(String, u16)> {
        let led = |fragment| {
            let copy = self.copies.with(fragment, |c| c.lead().is_some() && !c.stands_in());
            let far = || self.routes.get(&fragment).is_some_and(|all| all.values().any(|(is_copy, ..)| *is_copy));
            copy.unwrap_or(false) || far() || self.copies.with(fragment, Copy::follows_a_copy).unwrap_or(false)
        };
        let mut all = self.tables.values().flat_map(|def| def.all().map(move |fragment| (def, fragment)));
        let (def, fragment) = all.find(|(_, fragment)| !led(*fragment))?;
        Some((def.name.clone(), fragment.index))
    }

    /// Writes the burials of these, but for those that must wait.
    fn bury(&mut self, now: Now, mut doomed: BTreeMap<NodeId, Judgement>, out: &mut Vec<Effect>) {
        let marked = |node: &NodeId| matches!(self.lives.marks.get(node), Some(Mark::Condemned { .. }));
        let by_ourselves = doomed.keys().filter(|node| !marked(node)).count();
        let buried = self.lives.whole.now.iter().filter(|n| self.lives.buried.contains_key(n)).count();
        if !may_bury(self.lives.whole.now.len(), buried, by_ourselves) {
            doomed.retain(|node, _| marked(node));
        }
        if let Some((table, index)) = self.without_copy() {
            doomed.retain(|node, _| self.is_forced(*node));
            let held = self.doomed.iter().filter(|node| !self.is_forced(**node));
            let names = held.map(|node| self.name_of(*node)).collect();
            if !std::mem::replace(&mut self.held, true) {
                out.push(Effect::Notice(Notice::BurialHeld { names, table, index }));
            }
        } else {
            self.held = false;
        }
        if doomed.is_empty() {
            return;
        }
        let view = self.here().len() as u32;
        let (mut checks, mut writes) = (Vec::new(), Vec::new());
        for (node, judged) in &doomed {
            let key = schema::buried_key(*node);
            let (name, by, at, why) = (self.name_of(*node), self.config.me, now.wall, judged.why.to_string());
            let burial = Burial { node: *node, name, by, at, view, why };
            checks.push(Check::Absent(key.clone()));
            writes.push(Write::Put { key, value: wire::encode(&burial).unwrap_or_default(), ttl_ms: None });
            // What was forced stays known: copies that ask for a majority go by it.
            let mark = (!self.is_forced(*node)).then(|| schema::mark_key(*node));
            for key in [schema::node_key(*node), schema::name_key(*node)].into_iter().chain(mark) {
                writes.push(Write::Delete { key });
            }
            out.push(Effect::Notice(Notice::Buried(burial)));
        }
        self.doomed.clear();
        self.write_sys(now, Batch { checks, writes, sync: true }, out);
    }

    /// Keeps the list of those among whom a majority is counted.
    fn note_whole(&mut self, now: Now, island: &Island, out: &mut Vec<Effect>) {
        if matches!(island, Island::Partitioned(_))
            || self.entered.is_some()
            || !self.roster.contains_key(&self.config.me)
        {
            return;
        }
        let old = &self.lives.whole;
        let all: BTreeSet<NodeId> = self.roster.keys().copied().collect();
        let next = match &old.before {
            None if old.now == all => return,
            None if old.now.is_empty() => Whole { now: all, before: None },
            None => Whole { now: all, before: Some(old.now.clone()) },
            // Not before everybody knows of both.
            Some(_) => {
                let version = self.sys_record(schema::WHOLE_KEY).map(|r| r.version);
                let known = |c: &Copy| version.is_some_and(|version| c.is_known_by_all(now, version));
                if !self.copies.with(sys_fragment(), known).unwrap_or(false) {
                    return;
                }
                Whole { now: old.now.clone(), before: None }
            }
        };
        let key = Bytes::from_static(schema::WHOLE_KEY);
        let checks = match self.sys_record(schema::WHOLE_KEY) {
            Some(record) => vec![Check::AtVersion(key.clone(), record.version)],
            None => vec![Check::Absent(key.clone())],
        };
        let value = wire::encode(&next).unwrap_or_default();
        self.write_sys(now, Batch { checks, writes: vec![Write::Put { key, value, ttl_ms: None }], sync: true }, out);
    }

    fn is_forced(&self, node: NodeId) -> bool {
        self.lives.marks.get(&node) == Some(&Mark::Condemned { force: true })
    }

    /// Leaders take the buried off their lists of copies.
    fn strike_buried(&mut self, now: Now, out: &mut Vec<Effect>) {
        let fragments = if self.lives.buried.is_empty() { Vec::new() } else { self.copies.ids() };
        for fragment in fragments {
            let listed = |c: &Copy| {
                c.lead()?;
                let buried = |node: &NodeId| self.lives.buried.contains_key(node);
                let listed = c.members().into_iter().filter(|(node, s)| !s.is_gone() && buried(node));
                Some(listed.map(|(node, _)| node).collect::<Vec<_>>())
            };
            let Some(gone) = self.copies.with(fragment, listed).flatten() else { continue };
            for node in gone {
                let force = self.is_forced(node);
                self.feed(now, fragment, Input::Bury(node, force), out);
            }
        }
    }

    /// Cuts the links to those that were buried, and tells them.
    pub(crate) fn part_with_buried(&mut self, now: Now, out: &mut Vec<Effect>) {
        let linked = |burial: &Burial| Some((burial.clone(), self.peers.link(burial.node)?));
        let linked: Vec<(Burial, LinkId)> = self.lives.buried.values().filter_map(linked).collect();
        for (burial, link) in linked {
            refuse(link, &burial, out);
            // Nothing that still comes through it is anybody's.
            self.peers.unlinked(now.mono, link);
            self.gateway.lost(burial.node);
            self.discover(now, discovery::Input::Unlinked(burial.node), out);
        }
    }

    /// May this node be linked with? It is told if it may not.
    pub(crate) fn is_refused(&self, node: NodeId, link: LinkId, out: &mut Vec<Effect>) -> bool {
        if self.shunned.contains(&node) {
            out.push(Effect::Close(link));
            return true;
        }
        let burial = self.lives.buried.get(&node);
        burial.into_iter().for_each(|burial| refuse(link, burial, out));
        burial.is_some()
    }

    /// Others have buried this node. It goes on serving what it has, on its own: nothing of it is lost.
    pub(crate) fn told_buried(&mut self, from: NodeId, burial: Burial, out: &mut Vec<Effect>) {
        if burial.node != self.config.me {
            return;
        }
        self.shunned.insert(from);
        out.extend(self.peers.link(from).map(Effect::Close));
        if self.buried_as.is_none() {
            out.push(Effect::Notice(Notice::BuriedHere(burial.clone())));
            self.buried_as = Some(burial);
        }
    }

    /// What a provider says: where to dial, and, if it names all that there should be, who is gone.
    pub(crate) fn listed(
        &mut self,
        now: Now,
        provider: u16,
        authoritative: bool,
        places: Result<Vec<Place>, String>,
        out: &mut Vec<Effect>,
    ) {
        let places = match places {
            Ok(places) => places,
            Err(why) => {
                // What it said last is kept: a provider that fails says nothing of nodes.
                if self.failing.insert(provider) {
                    out.push(Effect::Notice(Notice::Provider(provider, Some(why))));
                }
                return;
            }
        };
        if self.failing.remove(&provider) {
            out.push(Effect::Notice(Notice::Provider(provider, None)));
        }
        let addrs = places.iter().map(|place| (place.ip, place.port.unwrap_or(PORT)).into()).collect();
        self.discover(now, discovery::Input::Listed(provider, addrs), out);
        if authoritative {
            let roster = self.roster.iter().map(|(node, entry)| (*node, entry.addr)).collect();
            let taken = self.truths.answer(now.mono, provider, &places, self.config.me, &roster);
            if let Taken::Incredible(gone, of) = taken {
                out.push(Effect::Notice(Notice::Incredible(provider, gone, of)));
            }
        }
    }

    /// An operator's word on a node, which is named by its name or its id.
    pub(crate) fn word(&mut self, now: Now, op: OpId, named: &str, word: Word, out: &mut Vec<Effect>) {
        match self.word_batch(named, word) {
            Ok(batch) => self.on_op(now, op, Op::Write(sys_fragment(), batch, WORD_WAIT), out),
            Err(error) => self.reply(op, OpReply::Error(error), out),
        }
    }

    fn word_batch(&self, named: &str, word: Word) -> Result<Batch, ClientError> {
        let node = match (self.named(named), &word) {
            // Too late for a burial that loses nothing, not for one that does.
            (Err(ClientError::IsBuried(_)), Word::Condemn(true)) => return self.force_batch(named),
            (found, _) => found?,
        };
        let name = self.name_of(node);
        let in_view = node == self.config.me || self.view.contains(&node);
        let key = schema::mark_key(node);
        let marked = self.lives.marks.get(&node).copied();
        let mark =
            |mark: Mark| Write::Put { key: key.clone(), value: wire::encode(&mark).unwrap_or_default(), ttl_ms: None };
        // Not of one that was buried or forgotten meanwhile.
        let mut checks = vec![Check::Present(schema::node_key(node))];
        let write = match word {
            Word::Condemn(_) if in_view => return Err(ClientError::InView(name)),
            Word::Condemn(false) if self.without_copy().is_some() => {
                let (table, index) = self.without_copy().unwrap_or_default();
                return Err(ClientError::LastCopy { name, table, index });
            }
            Word::Condemn(force) => mark(Mark::Condemned { force }),
            Word::Admit if !matches!(marked, Some(Mark::Condemned { .. })) => {
                return Err(ClientError::NotMarked(name, "condemned".into()));
            }
            Word::Immortalize(true) => mark(Mark::Immortal),
            Word::Immortalize(false) if marked != Some(Mark::Immortal) => {
                return Err(ClientError::NotMarked(name, "immortal".into()));
            }
            Word::Admit | Word::Immortalize(false) => {
                checks.push(Check::Present(key.clone()));
                Write::Delete { key }
            }
            Word::Rename(new) => {
                if new.is_empty() || new.len() > NAME_BYTES_MAX || new.chars().any(char::is_control) {
                    return Err(ClientError::BadName(new));
                }
                let value = wire::encode(&new).unwrap_or_default();
                Write::Put { key: schema::name_key(node), value, ttl_ms: None }
            }
        };
        Ok(Batch { checks, writes: vec![write], sync: true })
    }

    fn force_batch(&self, named: &str) -> Result<Batch, ClientError> {
        let burial = self.buried_named(named).ok_or_else(|| ClientError::NoNode(named.into()))?;
        let value = wire::encode(&Mark::Condemned { force: true }).unwrap_or_default();
        let write = Write::Put { key: schema::mark_key(burial.node), value, ttl_ms: None };
        let checks = vec![Check::Present(schema::buried_key(burial.node))];
        Ok(Batch { checks, writes: vec![write], sync: true })
    }

    fn buried_named(&self, named: &str) -> Option<&Burial> {
        self.lives.buried.values().find(|b| b.name == named || b.node.to_string() == named)
    }

    /// The one node of this name, or whose id begins so.
    fn named(&self, named: &str) -> Result<NodeId, ClientError> {
        let by_name: Vec<NodeId> = self.roster.keys().copied().filter(|n| self.name_of(*n) == named).collect();
        let by_id = || self.roster.keys().copied().filter(|n| n.to_string().starts_with(named)).collect();
        let found: Vec<NodeId> = if by_name.is_empty() && named.len() >= 4 { by_id() } else { by_name };
        match found[..] {
            [node] => Ok(node),
            [] => match self.buried_named(named) {
                Some(burial) => Err(ClientError::IsBuried(burial.name.clone())),
                None => Err(ClientError::NoNode(named.into())),
            },
            _ => Err(ClientError::Ambiguous(named.into())),
        }
    }
}

fn refuse(link: LinkId, burial: &Burial, out: &mut Vec<Effect>) {
    out.push(Effect::Frame(link, Frame::Buried(burial.clone())));
    out.push(Effect::Close(link));
}

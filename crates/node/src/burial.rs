//! Who is given up, and what becomes of those who are. [`membership::judge`] says who; what is done stands here, and is done by
//! the node that leads the system table, in each island.
//!
//! A burial is no sentence. It tells the copies not to wait for a node any more, and it tells the node, if it comes back, to
//! come anew: its copies are taken in like those of another island, and get all there is, since others may have forgotten
//! deletions that it never heard of.

use crate::departure::Departure;
use crate::frame::{Frame, Hello};
use crate::io::{Effect, LinkId, Notice};
use crate::lifecycle::{Burial, Whole};
use crate::node::Node;
use crate::schema::{self, TableDef, sys_fragment};
use base::{FragmentId, NodeId, Now, Span};
use bytes::Bytes;
use membership::{Facts, Island, Judgement, Mark, RosterEntry, RosterStatus, Verdict, judge, may_bury};
use replica::{Batch, Check, Copy, Input, MemberStatus, Write};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of nodes, this one among them.
#[derive(Default)]
pub(crate) struct Fates {
    /// How often this node was buried, and whether its peers are to be told.
    pub life: u64,
    pub say_life: bool,
    /// What became of others, and is to be said.
    pub news: Vec<Notice>,
    /// Links to buried nodes that were told; `true`: a while ago.
    pub refused: BTreeMap<LinkId, bool>,
    /// Who was to be buried when this was last looked at.
    pub doomed: BTreeSet<NodeId>,
    /// Why burials are held up, as was said.
    pub held: Option<String>,
    /// How far this node has got on its way out, if it is.
    pub departure: Option<Departure>,
}

/// For how long after its burial a node is looked for, in ms.
const LOOKED_FOR_MS: u64 = 7 * 24 * 3_600_000;
/// One chore in so many calls a buried node's address to mind, which is then dialled for a minute.
const LOOK_EVERY: u64 = 120;

impl Node {
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
        let majority = self.lives.whole.without(|node| self.is_gone(*node)).is_held_by(&here);
        self.majority_since = self.majority_since.filter(|_| majority).or(majority.then_some(now.mono));
        self.strike_buried(now, out);
        if !self.copies.with(sys_fragment(), |c| c.lead().is_some()).unwrap_or(false) {
            self.fates.doomed.clear();
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
        let settled = doomed.keys().eq(self.fates.doomed.iter());
        self.fates.doomed = doomed.keys().copied().collect();
        let doomed = if settled { self.allowed(doomed, out) } else { BTreeMap::new() };
        if self.note_whole(now, island, &doomed, out) && !doomed.is_empty() {
            self.bury(now, &doomed, out);
        }
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
        let here = self.here();
        // What was in RAM alone, on nodes that are all here, is on none that is away.
        let lost = |def: &TableDef, f: FragmentId| {
            let founders = def.founders.get(usize::from(f.place())).filter(|_| f.era() == 0);
            def.options.is_in_ram_alone() && founders.is_some_and(|all| all.iter().all(|n| here.contains(n)))
        };
        let mut all = self.tables.values().flat_map(|def| def.all().map(move |fragment| (def, fragment)));
        let (def, fragment) = all.find(|(def, fragment)| !led(*fragment) && !lost(def, *fragment))?;
        Some((def.name.clone(), fragment.place()))
    }

    /// Those of the doomed that may be buried now. Why others may not is said once.
    fn allowed(&mut self, doomed: BTreeMap<NodeId, Judgement>, out: &mut Vec<Effect>) -> BTreeMap<NodeId, Judgement> {
        let marked = |node: &NodeId| matches!(self.lives.marks.get(node), Some(Mark::Condemned { .. }));
        let whole = &self.lives.whole;
        let by_ourselves = doomed.keys().filter(|node| whole.now.contains(node) && !marked(node)).count();
        let gone = whole.roster.difference(&whole.now).count();
        let many = (!may_bury(whole.roster.len(), gone, by_ourselves)).then(|| {
            let most = "more than half of all nodes would be gone since last nobody was missing";
            format!("{most}: if they are, say so with `tombolo condemn`")
        });
        let last = self.without_copy().map(|(table, index)| {
            format!("fragment {index} of table {table} has no copy here: the last one may be there (`tombolo condemn --force`)")
        });
        let unread =
            (self.unreadable > 0).then(|| "this program cannot read all there is in the system table".to_string());
        let held = |node: &NodeId| {
            let many = many.as_ref().filter(|_| !marked(node));
            many.or(last.as_ref().or(unread.as_ref()).filter(|_| !self.is_forced(*node)))
        };
        let why = doomed.keys().find_map(held).cloned();
        let names: Vec<String> = doomed.keys().filter(|n| held(n).is_some()).map(|n| self.name_of(*n)).collect();
        let allowed = doomed.into_iter().filter(|(node, _)| held(node).is_none()).collect();
        if self.fates.held != why {
            out.extend(why.clone().map(|why| Effect::Notice(Notice::BurialHeld { names, why })));
            self.fates.held = why;
        }
        allowed
    }

    /// Writes the burials of these, whom nobody counts any more.
    fn bury(&mut self, now: Now, doomed: &BTreeMap<NodeId, Judgement>, out: &mut Vec<Effect>) {
        let each = doomed.iter().filter_map(|(node, judged)| self.burial_of(now, *node, judged.why));
        let batch = each.fold(Batch { sync: true, ..Batch::default() }, |mut all, one| {
            all.checks.extend(one.checks);
            all.writes.extend(one.writes);
            all
        });
        if !batch.writes.is_empty() {
            self.write_sys(now, batch, out);
        }
    }

    /// What is written when one of the roster is buried, or buries itself.
    pub(crate) fn burial_of(&self, now: Now, node: NodeId, why: &str) -> Option<Batch> {
        let (entry, row) = (self.roster.get(&node)?, schema::node_key(node));
        let key = schema::buried_key(node, entry.life);
        let (name, by, at, why) = (self.name_of(node), self.config.me, now.wall, why.into());
        let burial = Burial { node, life: entry.life, name, addr: entry.addr, by, at, why };
        // Not of one that has come back in this very moment, or has said goodbye.
        let checks = vec![Check::Absent(key.clone()), Check::AtVersion(row.clone(), self.sys_record(&row)?.version)];
        let mut writes = vec![Write::Put { key, value: wire::encode(&burial).ok()?, ttl_ms: None }];
        // What was forced stays known: copies that ask for a majority go by it.
        let mark = (!self.is_forced(node)).then(|| schema::mark_key(node));
        writes.extend([row].into_iter().chain(mark).map(|key| Write::Delete { key }));
        Some(Batch { checks, writes, sync: true })
    }

    /// Keeps the list of those among whom a majority is counted; `true`: none of these is on it. Nobody is buried who is:
    /// an island that does not know of the burial would count it for its own.
    fn note_whole(
        &mut self,
        now: Now,
        island: &Island,
        doomed: &BTreeMap<NodeId, Judgement>,
        out: &mut Vec<Effect>,
    ) -> bool {
        if self.entered.is_some() || !self.roster.contains_key(&self.config.me) {
            return false;
        }
        let old = &self.lives.whole;
        let going: BTreeSet<NodeId> = doomed.keys().copied().collect();
        let partitioned = matches!(island, Island::Partitioned(_));
        let all: BTreeSet<NodeId> = self.roster.keys().copied().collect();
        let mut target: BTreeSet<NodeId> = if partitioned { &old.now - &going } else { &all - &going };
        target.retain(|node| !self.is_gone(*node));
        let roster = if partitioned { old.roster.clone() } else { all };
        let next = match &old.before {
            // One node alone needs no majority; and it may be about to meet others that have a list.
            None if old.now.is_empty() && (partitioned || target.len() < 2) => return true,
            None if old.now == target => return true,
            None if old.now.is_empty() => Whole { now: target, before: None, roster },
            None => Whole { now: target, before: Some(old.now.clone()), roster },
            // Not before a majority of each knows of both; those who are said to be gone for good are not counted.
            Some(_) => {
                let version = self.sys_record(schema::WHOLE_KEY).map(|r| r.version);
                let known = |c: &Copy| version.map(|version| c.holders(version));
                let known = self.copies.with(sys_fragment(), known).flatten().unwrap_or_default();
                let condemned = |node: &NodeId| doomed.get(node).is_some_and(|it| it.verdict == Verdict::Condemned);
                if !old.without(|node| condemned(node) || self.is_gone(*node)).is_held_by(&known) {
                    return false;
                }
                Whole { before: None, ..old.clone() }
            }
        };
        let key = Bytes::from_static(schema::WHOLE_KEY);
        let checks = match self.sys_record(schema::WHOLE_KEY) {
            Some(record) => vec![Check::AtVersion(key.clone(), record.version)],
            None => vec![Check::Absent(key.clone())],
        };
        let value = wire::encode(&next).unwrap_or_default();
        self.write_sys(now, Batch { checks, writes: vec![Write::Put { key, value, ttl_ms: None }], sync: true }, out);
        false
    }

    fn is_forced(&self, node: NodeId) -> bool {
        self.lives.marks.get(&node) == Some(&Mark::Condemned { force: true })
    }

    /// Was it buried, or has it left, and has not come back?
    pub(crate) fn is_gone(&self, node: NodeId) -> bool {
        self.lives.buried.contains_key(&node) && !self.roster.contains_key(&node)
    }

    /// Leaders take the buried off their lists of copies. Whom an operator gave up for good is not counted even where nobody can
    /// lead without it.
    fn strike_buried(&mut self, now: Now, out: &mut Vec<Effect>) {
        let away = |node: &NodeId| self.is_gone(*node) && !self.view.contains(node);
        let buried: BTreeSet<NodeId> = self.lives.buried.keys().copied().filter(away).collect();
        let forced: BTreeSet<NodeId> = buried.iter().copied().filter(|node| self.is_forced(*node)).collect();
        let fragments = if self.lives.buried.is_empty() { Vec::new() } else { self.copies.ids() };
        for fragment in fragments {
            let due = |c: &Copy| {
                // Of those that left a fragment only whoever went by itself is known to have nothing of it.
                let went = |node: &NodeId| self.lives.buried.get(node).is_some_and(|b| b.by == *node);
                let done = |node: &NodeId, s: MemberStatus| s == MemberStatus::Buried || (s.is_gone() && went(node));
                let listed = c.members().into_iter().filter(|(node, s)| !done(node, *s) && buried.contains(node));
                let told = (*c.given_up() != forced).then(|| Input::GivenUp(forced.clone()));
                let listed =
                    listed.filter(|_| c.lead().is_some()).map(|(node, _)| Input::Bury(node, forced.contains(&node)));
                told.into_iter().chain(listed).collect::<Vec<_>>()
            };
            for input in self.copies.with(fragment, due).unwrap_or_default() {
                self.feed(now, fragment, input, out);
            }
        }
    }

    /// Those that were buried may be well, and may have buried this node, too: they are looked for now and then.
    pub(crate) fn look_for_buried(&mut self, now: Now, out: &mut Vec<Effect>) {
        let recent = |b: &&Burial| self.is_gone(b.node) && now.wall.0.saturating_sub(b.at.0) < LOOKED_FOR_MS;
        let buried: Vec<_> = self.lives.buried.values().filter(recent).map(|b| (b.node, b.addr)).collect();
        for (node, addr) in buried {
            if self.seed().is_multiple_of(LOOK_EVERY) {
                self.discover(now, discovery::Input::Found(node, addr), out);
            }
        }
    }

    /// Has this life of a node ended?
    pub(crate) fn has_ended(&self, node: NodeId, life: u64) -> Option<&Burial> {
        self.lives.buried.get(&node).filter(|burial| burial.life >= life)
    }

    /// The system table was read: whose lives have ended, and who has come anew?
    pub(crate) fn note_fates(&mut self, now: Now, before: &BTreeMap<NodeId, RosterEntry>) {
        let ended = |node: &NodeId, entry: &RosterEntry| self.has_ended(*node, entry.life).is_some();
        let gone: Vec<NodeId> = self.roster.iter().filter(|(n, e)| ended(n, e)).map(|(n, _)| *n).collect();
        gone.iter().for_each(|node| drop(self.roster.remove(node)));
        for burial in self.lives.buried.values() {
            let (was, is) = (before.get(&burial.node), self.roster.get(&burial.node));
            match (was, is) {
                (Some(_), None) => self.fates.news.push(Notice::Buried(burial.clone())),
                (None, Some(_)) => self.fates.news.push(Notice::Returned(self.name_of(burial.node))),
                _ => {}
            }
        }
        self.part_with_buried = !self.lives.buried.is_empty();
        if let Some(burial) = self.has_ended(self.config.me, self.fates.life).cloned() {
            self.reborn(now, burial);
        }
    }

    /// This life of this node has ended. It goes on, as one that comes anew; unless it ended it itself.
    fn reborn(&mut self, now: Now, burial: Burial) {
        if burial.by == self.config.me && self.is_on_its_way() {
            return;
        }
        (self.fates.life, self.fates.say_life) = (burial.life.saturating_add(1), true);
        self.fates.news.push(Notice::BuriedHere(burial));
        self.chores_at = now.mono;
    }

    /// Tells the log what became of others, and peers what became of this node.
    pub(crate) fn say_fates(&mut self, out: &mut Vec<Effect>) {
        out.extend(std::mem::take(&mut self.fates.news).into_iter().map(Effect::Notice));
        if std::mem::take(&mut self.fates.say_life) {
            out.push(Effect::Hello(self.hello()));
            let links: Vec<LinkId> = self.peers.links().collect();
            out.extend(links.into_iter().map(|link| Effect::Frame(link, Frame::Life(self.fates.life))));
        }
    }

    /// Cuts the links to those that were buried and do not know it, and tells them.
    pub(crate) fn part_with_buried(&mut self, now: Now, out: &mut Vec<Effect>) {
        let linked = |burial: &Burial| {
            let old = self.peers.get(burial.node).is_some_and(|peer| peer.hello.life <= burial.life);
            Some((burial.clone(), self.peers.link(burial.node).filter(|_| old)?))
        };
        let linked: Vec<(Burial, LinkId)> = self.lives.buried.values().filter_map(linked).collect();
        for (burial, link) in linked {
            self.refuse(link, &burial, out);
            // Nothing that still comes through it is anybody's.
            self.peers.unlinked(now.mono, link);
            self.gateway.lost(burial.node);
            self.discover(now, discovery::Input::Unlinked(burial.node), out);
        }
    }

    /// May the one who says this be linked with? It is told if it may not.
    pub(crate) fn is_refused(&mut self, hello: &Hello, link: LinkId, out: &mut Vec<Effect>) -> bool {
        let burial = self.has_ended(hello.node, hello.life).cloned();
        burial.iter().for_each(|burial| self.refuse(link, burial, out));
        burial.is_some()
    }

    /// It is told why, and it is for it to close the link: it may have the same to say, if each of two islands buried the other.
    fn refuse(&mut self, link: LinkId, burial: &Burial, out: &mut Vec<Effect>) {
        out.push(Effect::Frame(link, Frame::Buried(burial.clone())));
        self.fates.refused.insert(link, false);
    }

    /// Links of those who were told, and have not closed them.
    pub(crate) fn close_refused(&mut self, out: &mut Vec<Effect>) {
        out.extend(self.fates.refused.iter().filter(|(_, old)| **old).map(|(link, _)| Effect::Close(*link)));
        self.fates.refused.retain(|_, old| !std::mem::replace(old, true));
    }

    /// Others have buried this node: it joins them as one that comes anew.
    pub(crate) fn told_buried(&mut self, now: Now, link: LinkId, burial: Burial, out: &mut Vec<Effect>) {
        if burial.node != self.config.me {
            return;
        }
        if burial.by == self.config.me && self.is_on_its_way() {
            // Its last word was heard, and they let go of it before they could say so.
            return self.has_left(now);
        }
        if burial.life >= self.fates.life {
            self.reborn(now, burial);
            self.say_fates(out);
        }
        // They have let go of it; what is said on the next one is said by one that knows.
        out.push(Effect::Close(link));
        self.on_unlinked(now, link, out);
    }
}

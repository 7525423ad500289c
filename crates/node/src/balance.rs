//! Where copies are to be: whoever leads the system table draws a picture of the island from what leaders tell, has it planned
//! ([`placement::plan`]), and orders what can be done now. It remembers nothing: at any moment the next plan begins with what there
//! is, so it does not matter who draws it, what was lost on the way, or what another island had begun.

use crate::frame::Frame;
use crate::gateway::Op;
use crate::io::{Effect, LinkId, OpId};
use crate::node::Node;
use crate::pace::Pace;
use crate::schema::{Storage, TableDef, sys_fragment};
use base::{Ballot, FragmentId, Instant, NodeId, Now, Span, TableId};
use membership::{Mark, RosterStatus};
use placement::{Aim, Fragment, Holder, Machine, Picture, Plan, Step, Table};
use replica::{Batch, Input, Inspect, MinInSync, Write};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// So many copies are on their way to one node at once.
const COMING_MAX: usize = 4;
/// So many leaders are changed in one round: each costs its fragment's writers some milliseconds.
const LEADS_MAX: usize = 4;
/// A view must have stood for so long before anything is evened out.
const CALM: Span = Span::ms(2_000);
/// How soon it is looked again while something is on its way.
pub(crate) const SOON: Span = Span::ms(100);
/// How long nothing is evened out because of a fragment that nobody leads.
const UNLED_WAIT: Span = Span::ms(10_000);
/// What was told is told again after this.
const TELL_AGAIN: Span = Span::ms(10_000);
/// What was ordered, and is not done, is ordered again after this; it doubles.
const ORDER_AGAIN: Span = Span::ms(500);
/// The longest of those waits.
const ORDER_AGAIN_MAX: Span = Span::ms(30_000);
/// What a node weighs that does not say.
pub const WEIGHT: u16 = 100;

/// What a leader tells of a fragment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Which.
    pub fragment: FragmentId,
    /// Its copies, and which of them are in sync.
    pub holders: Vec<(NodeId, bool)>,
    /// About how many bytes a copy has.
    pub bytes: u64,
    /// It is led where it is written, and is to stay there.
    pub settled: bool,
    /// By which opening: what a higher one tells is newer.
    pub ballot: Ballot,
}

/// What a node tells of itself.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Of each fragment that it leads.
    pub reports: Vec<Report>,
    /// It must not lead more: its clock is wrong, or it is about to go.
    pub barred: bool,
    /// It can take nothing in.
    pub full: bool,
    /// So many of its copies keep their records in another way than their tables ask for; told to whoever asks.
    pub odd: u32,
    /// Of fragments that it leads, and that were made of others: a digest of what is known of each line that they go back to.
    pub lines: Vec<(FragmentId, u32, u64)>,
    /// How the bounded fragments that it leads have fared; told to whoever asks.
    pub tallies: Vec<(FragmentId, replica::Tally)>,
}

/// What is done to a fragment by its leader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Take this node in.
    Add(NodeId),
    /// Let this one lead.
    Lead(NodeId),
    /// Let this one go.
    Remove(NodeId),
}

/// The picture, and what was told to whoever draws it.
#[derive(Default)]
pub(crate) struct Balance {
    /// What leaders in view told, by who told it.
    reports: BTreeMap<NodeId, Told>,
    /// What this node told last, to whom and when.
    told: Option<(NodeId, Told, Instant)>,
    /// Counts changes of the reports.
    edition: u64,
    /// With what there was nothing to do.
    idle: Option<Seen>,
    /// What was ordered and is still to be done: when it may be ordered again, and how long the wait is by now.
    ordered: BTreeMap<(FragmentId, Order), (Instant, Span)>,
    /// Since when of some fragment nobody is known to lead it.
    unknown: Option<Instant>,
    /// An operator said that nothing is to be evened out.
    pub(crate) paused: bool,
    /// How fast copies are made here.
    pub(crate) pace: Pace,
}

/// What a plan depends on: the reports, the system table, the view, and how much is to be done.
type Seen = (u64, u64, Instant, bool);

impl Balance {
    /// A node left the view.
    pub(crate) fn parted(&mut self, node: NodeId) {
        self.edition += u64::from(self.reports.remove(&node).is_some());
    }

    /// A node may not have heard what was said.
    pub(crate) fn linked(&mut self, node: NodeId) {
        self.told.take_if(|(to, ..)| *to == node);
    }

    /// Where the copies are of those fragments of which all are in step with their leader, as far as that was told.
    pub(crate) fn in_step(&self) -> BTreeMap<FragmentId, BTreeSet<NodeId>> {
        let mut newest: BTreeMap<FragmentId, &Report> = BTreeMap::new();
        for report in self.reports.values().flat_map(|told| &told.reports) {
            let last = newest.entry(report.fragment).or_insert(report);
            if last.ballot < report.ballot {
                *last = report;
            }
        }
        let steady = newest.into_iter().filter(|(_, r)| r.holders.iter().all(|(_, in_sync)| *in_sync));
        steady.map(|(f, r)| (f, r.holders.iter().map(|(node, _)| *node).collect())).collect()
    }

    /// Do these fragments know the same of every line that several of them go back to?
    pub(crate) fn know_alike(&self, fragments: &[FragmentId]) -> bool {
        let mut known: BTreeMap<u32, u64> = BTreeMap::new();
        let told = self.reports.values().flat_map(|told| &told.lines).filter(|(f, ..)| fragments.contains(f));
        let told: Vec<_> = told.collect();
        // Whoever has not heard of the change yet tells nothing of this.
        let all = fragments.iter().all(|f| told.iter().any(|(of, line, _)| of == f && *line == f.index));
        all && told.into_iter().all(|(_, line, digest)| *known.entry(*line).or_insert(*digest) == *digest)
    }

    fn heard(&mut self, from: NodeId, mut told: Told) {
        for report in &mut told.reports {
            report.holders.sort_unstable();
            report.holders.dedup_by_key(|(node, _)| *node);
        }
        if self.reports.get(&from) != Some(&told) {
            self.reports.insert(from, told);
            self.edition += 1;
        }
    }
}

/// Sizes change all the time, and matter by their order only.
fn roughly(bytes: u64) -> u64 {
    let keep = 64 - bytes.leading_zeros().min(64);
    let drop = keep.saturating_sub(3);
    (bytes >> drop) << drop
}

impl Node {
    /// Each fragment's leader invites the members that have not come yet.
    pub(crate) fn invite_members(&mut self, out: &mut Vec<Effect>) {
        for fragment in self.tables.values().flat_map(TableDef::all) {
            // One that stands in knows nothing that others could hold copies of.
            let seen = self.copies.with(fragment, |c| c.lead().filter(|_| !c.stands_in()).map(|_| c.inspect()));
            let Some(seen) = seen.flatten() else { continue };
            out.extend(self.awaited(&seen).into_iter().map(|link| Effect::Frame(link, Frame::Invite(fragment))));
        }
    }

    /// Members that have not come yet, or do not know any more that they are: what they had may have been in RAM.
    fn awaited(&self, seen: &Inspect) -> Vec<LinkId> {
        let away = seen.members.iter().filter(|(node, s)| s.is_member() && !seen.in_sync.contains(node));
        away.filter_map(|(node, _)| self.peers.link(*node)).collect()
    }

    /// Does a copy on this node count among those that are wished for? Not if its node is about to go, nor if it has been out of
    /// reach for so long that another is made, in case it does not come back soon.
    fn counts(&self, now: Now, node: NodeId) -> bool {
        let stopped = self.roster.get(&node).is_some_and(|entry| entry.status == RosterStatus::Stopped);
        let planned = stopped || self.lives.marks.get(&node) == Some(&Mark::Immortal);
        let away = self.out_since.get(&node).map_or(Span(0), |since| now.mono - *since);
        // One that has only just come may not be in the roster yet.
        !self.is_gone(node) && !self.is_leaving(node) && (planned || away < self.config.patience.replace)
    }

    /// Can a fragment do without this node's copy? As many as can be have others, in sync where their nodes are here.
    pub(crate) fn are_enough(&self, now: Now, without: NodeId, def: &TableDef, seen: &Inspect) -> bool {
        let (here, rest) = (self.here(), self.remaining(without));
        let members: BTreeSet<NodeId> = seen.members.iter().filter(|(_, s)| s.is_member()).map(|(n, _)| *n).collect();
        let there: BTreeSet<NodeId> =
            seen.in_sync.iter().filter(|n| members.contains(n) && rest.contains(n)).copied().collect();
        let away = members.iter().filter(|n| **n != without && !here.contains(n) && self.counts(now, **n)).count();
        // Others that could hold one: who is to hold none does not count, unless it does.
        let could = rest.iter().filter(|n| there.contains(n) || self.weight(**n) > 0).count();
        // What is in RAM is gone from whoever is stopped.
        let away = if def.options.storage == Storage::Ram { 0 } else { away };
        !there.is_empty() && there.len() + away >= usize::from(self.copies_of(def)).min(could + away)
    }

    /// How many copies there shall be.
    pub(crate) fn copies_of(&self, def: &TableDef) -> u16 {
        self.beside(def).unwrap_or(def).options.copies
    }

    /// The table beside which this one lies, while that is there.
    pub(crate) fn beside(&self, def: &TableDef) -> Option<&TableDef> {
        let id = def.options.beside?;
        let fits = |other: &&TableDef| other.id == id && other.options.fragments == def.options.fragments;
        self.tables.values().find(fits).filter(|other| other.options.beside.is_none())
    }

    /// A node's share in relation to others', as far as it has said.
    pub(crate) fn weight(&self, node: NodeId) -> u16 {
        self.roster.get(&node).and_then(|entry| entry.weight).unwrap_or(WEIGHT)
    }

    /// What this node leads, but for the system table.
    pub(crate) fn tell(&self) -> Told {
        let mut all = Vec::new();
        for fragment in self.tables.values().flat_map(TableDef::all) {
            let look = |c: &replica::Copy| {
                let lead = c.lead().filter(|_| !c.stands_in())?;
                let bytes = roughly(c.store().live_size().1);
                let (holders, settled) = (holders(&c.inspect()), c.is_settled());
                Some(Report { fragment, holders, bytes, settled, ballot: lead.ballot })
            };
            all.extend(self.copies.with(fragment, look).flatten());
        }
        // They are asked for before fragments are joined.
        let joins = |def: &&TableDef| def.change().is_some_and(|change| change.from > def.options.fragments);
        let joined: BTreeSet<TableId> = self.tables.values().filter(joins).map(|def| def.id).collect();
        let of_these = all.iter().map(|report| report.fragment).filter(|f| joined.contains(&f.table));
        let lines = of_these.flat_map(|fragment| self.lines_of(fragment)).collect();
        Told { reports: all, barred: self.barred, full: self.is_full(), odd: 0, lines, tallies: Vec::new() }
    }

    /// Of each line that a fragment goes back to a digest of what is known of it, and 0 of its own.
    fn lines_of(&self, fragment: FragmentId) -> Vec<(FragmentId, u32, u64)> {
        let digest = |heads: base::Heads| {
            let hash = blake3::hash(&wire::encode(&heads).unwrap_or_default());
            hash.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
        };
        let look = |c: &replica::Copy| {
            let heads = c.store().heads();
            let others = heads.lines().into_iter().filter(|line| *line != fragment.index);
            let others = others.map(|line| (fragment, line, digest(heads.of_line(line))));
            others.chain([(fragment, fragment.index, 0)]).collect()
        };
        self.copies.with(fragment, look).unwrap_or_default()
    }

    /// Whoever leads the system table is told what is led here, when that changes.
    pub(crate) fn tell_reports(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some((to, _)) = self.lead_of(sys_fragment()) else { return };
        let told = self.tell();
        if to == self.config.me {
            self.balance.told = None;
            return self.balance.heard(to, told);
        }
        // And now and then in any case: a frame may be lost with its link.
        let known =
            |(last, said, at): &(NodeId, Told, Instant)| (*last, said) == (to, &told) && now.mono - *at < TELL_AGAIN;
        if !self.balance.told.as_ref().is_some_and(known) && self.peers.link(to).is_some() {
            self.to(to, Frame::Leads(0, told.clone()), out);
            self.balance.told = Some((to, told, now.mono));
        }
    }

    /// A leader tells what it leads.
    pub(crate) fn balance_told(&mut self, now: Now, from: NodeId, told: Told) {
        let before = self.balance.edition;
        self.balance.heard(from, told);
        if self.balance.edition != before {
            self.chores_at = self.chores_at.min(now.mono + SOON);
        }
    }

    /// What there is, as far as these reports know. Of fragments that nobody is known to lead nothing is known.
    pub(crate) fn picture(&self, now: Now, told: &BTreeMap<NodeId, Told>) -> Picture {
        let mut newest: BTreeMap<FragmentId, (NodeId, &Report)> = BTreeMap::new();
        for (node, report) in told.iter().flat_map(|(node, told)| told.reports.iter().map(move |r| (*node, r))) {
            let last = newest.entry(report.fragment).or_insert((node, report));
            if last.1.ballot < report.ballot {
                *last = (node, report);
            }
        }
        let here = self.here();
        let fragment = |id: FragmentId, ram: bool| {
            let (leader, report) = newest.get(&id)?;
            let holder = |(node, in_sync): &(NodeId, bool)| Holder { node: *node, in_sync: *in_sync };
            let (bytes, settled) = (report.bytes, report.settled);
            // What is in RAM is gone from whoever is stopped.
            let there = report.holders.iter().filter(|(node, _)| !ram || here.contains(node));
            let holders = there.map(holder).collect();
            Some(Fragment { id, holders, leader: Some(*leader), bytes, settled })
        };
        let table = |def: &TableDef| {
            let options = &def.options;
            // A second copy of one that asks for a majority stops it until it is in sync.
            let copies = self.copies_of(def);
            let fixed = (copies == 1 && options.min_in_sync == MinInSync::Majority) || def.change().is_some();
            let fragments = def.all().filter_map(|id| fragment(id, options.storage == Storage::Ram)).collect();
            Table { copies: copies.into(), with: None, fixed, fragments }
        };
        let mut tables: Vec<Table> = self.tables.values().map(table).collect();
        self.put_together(&mut tables);
        self.gather_joined(&mut tables);
        Picture { machines: self.machines(now, told), tables }
    }

    /// Tables that lie beside others do so fragment by fragment: only where all of both are known. Else they stay where they are.
    fn put_together(&self, tables: &mut [Table]) {
        let here = self.here();
        let place: BTreeMap<TableId, usize> = self.tables.values().zip(0..).map(|(def, i)| (def.id, i)).collect();
        for (i, def) in self.tables.values().enumerate() {
            let head = self.beside(def).and_then(|other| place.get(&other.id).copied());
            let whole = |i: usize| tables[i].fragments.len() == usize::from(def.options.fragments);
            // A copy that is away counts for its own table, and not for one beside it that has none there.
            let missing = |head: usize| {
                let mut both = tables[head].fragments.iter().zip(&tables[i].fragments);
                let has = |f: &Fragment, node: NodeId| f.holders.iter().any(|h| h.node == node);
                both.any(|(a, b)| a.holders.iter().any(|h| !here.contains(&h.node) && !has(b, h.node)))
            };
            match head {
                Some(head) if whole(i) && whole(head) && !missing(head) => tables[i].with = Some(head),
                Some(_) => tables[i].fixed = true,
                None => {}
            }
        }
    }

    /// Fragments that are to be joined come to lie on the same nodes: like tables beside each other, of which each has one of every
    /// group.
    fn gather_joined(&self, tables: &mut Vec<Table>) {
        for (i, def) in self.tables.values().enumerate() {
            let Some(change) = def.change().filter(|change| change.from > def.options.fragments) else { continue };
            let groups = change.groups(def.options.fragments);
            let all = std::mem::take(&mut tables[i].fragments);
            let (old, new): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|f| f.id.count() != Some(def.options.fragments) || f.id.era() != def.era());
            let known =
                old.len() == usize::from(groups.saturating_sub(change.done)) * usize::from(change.from / groups);
            let copies = tables[i].copies;
            let part = |with, fixed, fragments| Table { copies, with, fixed, fragments };
            tables.push(part(None, true, new));
            if !known {
                tables[i].fragments = old;
                continue;
            }
            for turn in 0..change.from / groups {
                let mine = |f: &&Fragment| f.id.place() / groups == turn;
                let mine: Vec<Fragment> = old.iter().filter(mine).cloned().collect();
                if turn == 0 {
                    tables[i] = part(None, false, mine);
                } else {
                    tables.push(part(Some(i), false, mine));
                }
            }
        }
    }

    fn machines(&self, now: Now, told: &BTreeMap<NodeId, Told>) -> Vec<Machine> {
        let here = self.here();
        // One that has only just come is not in the roster yet: what it holds counts.
        let new = here.iter().filter(|node| !self.roster.contains_key(node));
        let known = self.roster.keys().filter(|node| self.counts(now, **node));
        let all: BTreeSet<NodeId> = new.chain(known).copied().collect();
        // Where all are told to hold nothing, somebody has to.
        let any = all.iter().any(|node| here.contains(node) && self.weight(*node) > 0);
        let machine = |node: NodeId| {
            let entry = self.roster.get(&node);
            let said = told.get(&node);
            // One on its way in does not know yet what it is to hold.
            let joins = entry.is_none_or(|entry| entry.status == RosterStatus::Joining);
            Machine {
                node,
                weight: if any { self.weight(node).into() } else { WEIGHT.into() },
                zone: entry.and_then(|entry| entry.zone.clone()),
                away: !here.contains(&node) || joins || said.is_some_and(|told| told.full),
                leads: said.is_some_and(|told| !told.barred),
            }
        };
        all.into_iter().map(machine).collect()
    }

    /// Is it the time to even things out? Not while somebody is missing, on its way in, or has only just come or gone.
    fn aim(&self, now: Now) -> Aim {
        let calm = now.mono - self.view_at >= CALM && self.whole;
        let joins = self.roster.values().any(|entry| entry.status == RosterStatus::Joining);
        let met = self.here().iter().all(|node| self.roster.contains_key(node));
        let led = self.balance.unknown.is_none_or(|since| now.mono - since >= UNLED_WAIT);
        let even = calm && met && led && !joins && !self.balance.paused;
        if even { Aim::Balance } else { Aim::Repair }
    }

    /// What is to be done.
    pub(crate) fn plan(&self, now: Now, picture: &Picture) -> Plan {
        placement::plan(picture, self.aim(now))
    }

    /// Whoever leads the system table orders what can be done now.
    pub(crate) fn tend_balance(&mut self, now: Now, out: &mut Vec<Effect>) {
        let leads = self.copies.with(sys_fragment(), |c| c.lead().is_some() && !c.stands_in()).unwrap_or(false);
        if !leads || !self.ready || self.is_stopping() {
            return;
        }
        let led: BTreeSet<FragmentId> =
            self.balance.reports.values().flat_map(|t| t.reports.iter().map(|r| r.fragment)).collect();
        let all = self.tables.values().flat_map(TableDef::all).all(|fragment| led.contains(&fragment));
        self.balance.unknown = (!all).then(|| self.balance.unknown.unwrap_or(now.mono));
        let seen = (self.balance.edition, self.sys_edition, self.view_at, self.aim(now) == Aim::Balance);
        // How long who has been away is no input: that is looked at while somebody is.
        if self.balance.idle == Some(seen) && self.out_since.is_empty() {
            return;
        }
        let picture = self.picture(now, &self.balance.reports);
        let plan = self.plan(now, &picture);
        self.balance.idle = plan.moves.is_empty().then_some(seen);
        let orders = self.orders(now, &picture, &plan);
        if !orders.is_empty() {
            self.chores_at = self.chores_at.min(now.mono + SOON);
        }
        for (leader, fragment, order) in orders {
            if leader == self.config.me {
                self.ordered(now, fragment, order, out);
            } else {
                self.to(leader, Frame::Order(fragment, order), out);
            }
        }
    }

    /// Of a plan what can be done now, without too much at once; and who is to do it. What was ordered before, and is not done, waits
    /// longer each time: its leader may see things otherwise.
    fn orders(&mut self, now: Now, picture: &Picture, plan: &Plan) -> Vec<(NodeId, FragmentId, Order)> {
        let all = || picture.tables.iter().flat_map(|t| &t.fragments);
        let leader: BTreeMap<FragmentId, NodeId> = all().filter_map(|f| Some((f.id, f.leader?))).collect();
        let mut coming: BTreeMap<NodeId, usize> = BTreeMap::new();
        for holder in all().flat_map(|f| &f.holders).filter(|h| !h.in_sync && self.view.contains(&h.node)) {
            *coming.entry(holder.node).or_default() += 1;
        }
        let mut before = std::mem::take(&mut self.balance.ordered);
        let (mut leads, mut orders) = (0, Vec::new());
        for m in plan.moves.iter().filter(|m| m.safe_now) {
            let order = match m.step {
                Step::Add(node) => Order::Add(node),
                Step::Lead(node) => Order::Lead(node),
                Step::Remove(node) => Order::Remove(node),
            };
            let Some(to) = leader.get(&m.fragment) else { continue };
            let waits = before.remove(&(m.fragment, order));
            if let Some((until, wait)) = waits.filter(|(until, _)| now.mono < *until) {
                self.balance.ordered.insert((m.fragment, order), (until, wait));
                continue;
            }
            let room = match order {
                Order::Add(node) => {
                    let coming = coming.entry(node).or_default();
                    *coming += 1;
                    *coming <= COMING_MAX
                }
                Order::Lead(_) => {
                    leads += 1;
                    leads <= LEADS_MAX
                }
                Order::Remove(_) => true,
            };
            if room {
                let wait = waits.map_or(ORDER_AGAIN, |(_, wait)| Span((wait.0 * 2).min(ORDER_AGAIN_MAX.0)));
                self.balance.ordered.insert((m.fragment, order), (now.mono + wait, wait));
                orders.push((*to, m.fragment, order));
            }
        }
        orders
    }

    /// Somebody orders something; it counts if it is whoever leads the system table.
    pub(crate) fn told_order(
        &mut self,
        now: Now,
        from: NodeId,
        fragment: FragmentId,
        order: Order,
        out: &mut Vec<Effect>,
    ) {
        if self.lead_of(sys_fragment()).is_some_and(|(leader, _)| leader == from) {
            self.ordered(now, fragment, order, out);
        }
    }

    /// Does what was ordered, if it still makes sense.
    fn ordered(&mut self, now: Now, fragment: FragmentId, order: Order, out: &mut Vec<Effect>) {
        let Some(def) = self.tables.values().find(|def| def.id == fragment.table) else { return };
        let look = |c: &replica::Copy| c.lead().filter(|_| !c.stands_in()).map(|_| c.inspect());
        let Some(seen) = self.copies.with(fragment, look).flatten() else { return };
        let input = match order {
            Order::Add(node) if self.here().contains(&node) && !self.is_leaving(node) => Input::AddMember(node),
            Order::Lead(node) if seen.in_force.contains(&node) => Input::HandOver(node),
            Order::Remove(node) if node != self.config.me && self.are_enough(now, node, def, &seen) => {
                Input::RemoveMember(node)
            }
            _ => return,
        };
        // Members are invited, and what has changed is told, soon.
        self.chores_at = self.chores_at.min(now.mono + Span::ms(50));
        self.feed(now, fragment, input, out);
    }

    /// An operator's word on how copies are made.
    pub(crate) fn set(
        &mut self,
        now: Now,
        op: OpId,
        key: &'static [u8],
        value: &impl Serialize,
        out: &mut Vec<Effect>,
    ) {
        let value = wire::encode(value).unwrap_or_default();
        let writes = vec![Write::Put { key: key.into(), value, ttl_ms: None }];
        let batch = Batch { checks: Vec::new(), writes, sync: true };
        self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(10_000)), out);
    }
}

/// A fragment's copies, and which of them are in sync.
fn holders(seen: &Inspect) -> Vec<(NodeId, bool)> {
    let members = seen.members.iter().filter(|(_, s)| s.is_member()).map(|(node, _)| *node);
    members.map(|node| (node, seen.in_force.contains(&node))).collect()
}

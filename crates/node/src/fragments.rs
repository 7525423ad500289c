//! The copies that this node holds: made, fed, and their effects carried out of the node.

use crate::copies::Task;
use crate::frame::Frame;
use crate::graves::Grave;
use crate::io::{Effect, Notice, OpId};
use crate::lifecycle::Lives;
use crate::node::{Node, Origin};
use crate::schema::{self, TableDef, sys_fragment};
use base::{FragmentId, Instant, NodeId, Now, Span, TableId, Version};
use bytes::Bytes;
use membership::RosterEntry;
use replica::{Config, Copy, Effects, Input, Lead, Meta, Msg, Reply, Space, Stored, Ticket};
use std::collections::{BTreeMap, BTreeSet};

/// How long a view without any copy of a fragment must stand before somebody stands in.
const STAND_IN_AFTER: Span = Span::ms(1_000);
/// A founder that says nothing of its copy for so long has none any more.
const FOUNDED_WITHIN: Span = Span::ms(3_000);
/// A founder's copy that has not been opened by then will not be.
const OPENED_WITHIN: Span = Span::ms(15_000);
/// The same where a majority is asked for.
const MAJORITY_WITHIN: Span = Span::ms(60_000);
/// How long everybody must have been there before a fragment without any copy is begun anew.
const BEGIN_ANEW_AFTER: Span = Span::ms(5_000);

impl Node {
    /// Feeds one copy at once and carries its effects out. What comes from peers and clients goes the other way, by
    /// [`Copies::later`](crate::copies::Copies::later), to be run for all copies at the end of the burst.
    pub(crate) fn feed(&mut self, now: Now, fragment: FragmentId, input: Input, out: &mut Vec<Effect>) {
        if let Some(fx) = self.copies.now(now, fragment, input) {
            self.carry(now, fragment, fx, out);
        }
    }

    /// Runs what the copies were given during a burst of inputs, and sends what they gathered; was there anything?
    pub(crate) fn flush_copies(&mut self, now: Now, run: &mut dyn FnMut(&mut [Task]), out: &mut Vec<Effect>) -> bool {
        let mut ran = false;
        loop {
            let mut tasks = self.copies.tasks();
            if tasks.is_empty() {
                return ran;
            }
            ran = true;
            run(&mut tasks);
            // Nothing that carrying causes may feed a copy: what it would say would overtake what is carried later.
            for task in tasks {
                self.copies.ran(task.fragment);
                self.carry(now, task.fragment, task.fx, out);
            }
            // The system table may have told of new ones, and of some that are gone.
            self.deliver_late(now, out);
        }
    }

    fn carry(&mut self, now: Now, fragment: FragmentId, fx: Effects, out: &mut Vec<Effect>) {
        out.extend(fx.persists.into_iter().map(|p| Effect::Persist(fragment, p)));
        for (to, msg) in fx.sends {
            let Some(msg) = self.balance.pace.pass(now.mono, to, fragment, msg) else { continue };
            if let Some(link) = self.peers.link(to) {
                out.push(Effect::Frame(link, Frame::Copy(fragment, msg)));
            }
        }
        for (ticket, reply) in fx.replies {
            self.replied(now, fragment, (ticket, reply), out);
        }
        for notice in fx.notices {
            if notice == replica::Notice::Left {
                self.left.push(fragment);
            }
            out.push(Effect::Notice(Notice::Copy(fragment, notice)));
        }
        if fragment == sys_fragment() {
            self.refresh(now);
        }
    }

    fn replied(&mut self, now: Now, fragment: FragmentId, (ticket, reply): (Ticket, Reply), out: &mut Vec<Effect>) {
        let Some((origin, since)) = self.origins.remove(&ticket) else { return };
        let (node, number) = match origin {
            Origin::Local(number) => (None, number),
            Origin::Remote(node, number) => (Some(node), number),
        };
        let Some(node) = node else {
            let me = self.config.me;
            let next = match reply {
                Reply::Write(answer) => self.gateway.answered(now.mono, me, number, answer),
                Reply::Rows(rows) => self.gateway.rows(now.mono, number, Some(rows)),
                Reply::NotLeading => self.gateway.rows(now.mono, number, None),
                Reply::Elsewhere => self.read_elsewhere(number),
            };
            return self.next(now, next, out);
        };
        let what = if matches!(reply, Reply::Write(_)) { "write" } else { "read" };
        self.tell_slow_answer((node, number), fragment, (what, now.mono - since), out);
        let Some(link) = self.peers.link(node) else { return };
        out.push(Effect::Frame(
            link,
            match reply {
                Reply::Write(answer) => Frame::Answer(number, answer),
                Reply::Rows(rows) => Frame::Rows(number, Some(rows)),
                Reply::NotLeading => Frame::Rows(number, None),
                Reply::Elsewhere => Frame::Elsewhere(number),
            },
        ));
    }

    /// What waited until it may be sent.
    pub(crate) fn send_paced(&mut self, now: Now, out: &mut Vec<Effect>) {
        while let Some((to, fragment, msg)) = self.balance.pace.due(now.mono) {
            self.to(to, Frame::Copy(fragment, msg), out);
        }
    }

    /// A message for a copy, which this node may hold or not.
    pub(crate) fn on_copy_msg(
        &mut self,
        now: Now,
        from: NodeId,
        fragment: FragmentId,
        msg: Msg,
        out: &mut Vec<Effect>,
    ) {
        if let Msg::Status(status) = &msg {
            let holders = self.holders.entry(fragment).or_default();
            if status.stand_in {
                holders.remove(&from);
            } else {
                holders.insert(from, status.weight > 0 || status.lead.is_some());
            }
        }
        if self.copies.contains(fragment) {
            self.balance.pace.came(now.mono, &msg);
            self.copies.later(fragment, Input::Msg(from, msg));
            return;
        }
        match msg {
            Msg::Status(status) => {
                let Some(lead) = status.lead else { return self.drop_route(fragment, from) };
                let leads = self.routes.entry(fragment).or_default();
                let since = leads.get(&from).filter(|(_, old, _)| old.ballot == lead.ballot).map(|(.., since)| *since);
                leads.insert(from, (!status.stand_in, lead, since.unwrap_or(now.mono)));
            }
            // I hold nothing of it, and so have nothing that the opener could lack.
            Msg::Prepare { ballot } if !self.holds_stored(fragment) && !self.keeps_kin(fragment) => {
                if let Some(link) = self.peers.link(from) {
                    let (heads, floor, set) = Default::default();
                    let promise = Msg::Promise { ballot, heads, floor, set, leases: Vec::new() };
                    out.push(Effect::Frame(link, Frame::Copy(fragment, promise)));
                }
            }
            _ => {}
        }
    }

    /// Whoever says that it does not lead is asked no more, until it says that it does.
    pub(crate) fn mind_not_leading(&mut self, from: NodeId, number: u64, said: bool) {
        // Not of the fragment that it was sent on to meanwhile.
        let asked = |p: &&crate::gateway::Pending| p.attempt.is_some_and(|(to, _)| to == from);
        let fragment = self.gateway.pending.get(&number).filter(asked).map(|p| p.fragment).filter(|_| said);
        if let Some(fragment) = fragment {
            self.drop_route(fragment, from);
        }
    }

    /// A node leads a fragment no more. If it was the one that is asked, its island is about to have another leader: those
    /// that were known beside it are of other islands, and are asked instead only if none has come for a while.
    pub(crate) fn drop_route(&mut self, fragment: FragmentId, from: NodeId) {
        let asked = self.routed(fragment).is_some_and(|(node, _)| node == from);
        if let Some(leads) = self.routes.get_mut(&fragment) {
            leads.remove(&from);
            if asked {
                let later = self.latest + self.config.timing.promise_wait;
                leads.values_mut().for_each(|(.., since)| *since = later);
            }
        }
    }

    /// The leader that is asked of those that are known by their own word alone.
    fn routed(&self, fragment: FragmentId) -> Option<(NodeId, Lead)> {
        let leads = self.routes.get(&fragment)?.iter().filter(|(_, (.., since))| *since <= self.latest);
        // Of two that meet the one that was there first: the other does not know yet what this island has been shown.
        let first = leads.min_by_key(|(_, (_, lead, since))| (*since, std::cmp::Reverse(lead.ballot)));
        first.map(|(node, (_, lead, _))| (*node, *lead))
    }

    /// Who leads a fragment, as far as this node knows.
    pub(crate) fn lead_of(&self, fragment: FragmentId) -> Option<(NodeId, Lead)> {
        if let Some(leader) = self.copies.with(fragment, Copy::leader) {
            return leader;
        }
        self.routed(fragment)
    }

    /// Reads the system table anew if it has changed, and makes the copies that this node is to hold.
    pub(crate) fn refresh(&mut self, now: Now) {
        let edition = self.copies.with(sys_fragment(), |sys| sys.store().edition());
        if edition.is_none_or(|edition| edition == self.sys_edition) {
            return;
        }
        self.sys_edition = edition.unwrap_or_default();
        let read = self.copies.with(sys_fragment(), |sys| described(sys, now));
        let before = (std::mem::take(&mut self.roster), std::mem::take(&mut self.tables));
        let unreadable;
        (self.roster, self.tables, unreadable) = read.unwrap_or_default();
        self.graves = self.copies.with(sys_fragment(), buried).unwrap_or_default();
        let mut nameless = self.copies.with(sys_fragment(), |sys| nameless(sys, &self.tables)).unwrap_or_default();
        // One that was dropped goes by what has turned up of it.
        nameless.retain(|(def, ..)| !self.graves.contains_key(&def.id));
        self.nameless.clear();
        for (def, key, lost) in nameless {
            self.nameless.insert(def.name.clone(), (key, lost));
            self.tables.insert(def.name.clone(), def);
        }
        for (grave, shown) in self.graves.values() {
            // What turned up of it is a table again, of another name.
            let def = TableDef { name: grave.name(), ..grave.def.clone() };
            self.tables.extend(shown.then(|| (def.name.clone(), def)));
        }
        if self.tables.len() != before.1.len() || self.tables.keys().any(|name| !before.1.contains_key(name)) {
            self.tables_at = now.mono;
        }
        let paused = self.sys_record(schema::PAUSED_KEY).and_then(|r| wire::decode(&r.value?).ok());
        self.balance.paused = paused.unwrap_or(false);
        let rate = self.sys_record(schema::RATE_KEY).and_then(|r| wire::decode(&r.value?).ok());
        self.balance.pace.rate = rate.filter(|rate| *rate > 0);
        self.lives = self.copies.with(sys_fragment(), |sys| Lives::read(sys, now)).unwrap_or_default();
        self.note_fates(now, &before.0);
        self.read_cluster();
        if unreadable != self.unreadable {
            self.unreadable = unreadable;
            self.say_unreadable = true;
        }
        self.set_options(&before.1);
        self.recut(now);
        self.mind_layouts(now, &before.1);
        self.note_graves();
        if self.roster.len() != before.0.len() {
            // A newcomer shall hold what it is to hold soon, not at the next round.
            self.chores_at = now.mono;
        }
        let known: BTreeSet<_> = self.tables.values().map(|def| def.id).chain(self.graves.keys().copied()).collect();
        // A table that vanishes may come back when islands meet: its branches must not be numbered anew.
        let keep = |fragment: FragmentId| fragment == sys_fragment() || known.contains(&fragment.table);
        self.take_out(now, keep);
        self.make_copies(now, true);
    }

    /// Copies go by their tables' definitions as they are now.
    fn set_options(&mut self, before: &BTreeMap<String, TableDef>) {
        let changed = |def: &&TableDef| before.get(&def.name).is_some_and(|old| old.options != def.options);
        for def in self.tables.values().filter(changed).cloned().collect::<Vec<_>>() {
            for fragment in def.all() {
                let room = self.room_of(&def, fragment);
                self.copies.step(fragment, |copy| copy.set_options(|config| def.shape(room, config)));
            }
        }
    }

    /// Is something of it on this node's disc, other than the numbers of branches?
    fn holds_stored(&self, fragment: FragmentId) -> bool {
        self.stored.get(&fragment).is_some_and(|stored| !stored.store.heads().is_empty())
    }

    /// Copies that have given away all that they took are taken out.
    pub(crate) fn part_with_left(&mut self, now: Now, out: &mut Vec<Effect>) {
        let left = std::mem::take(&mut self.left);
        if left.is_empty() {
            return;
        }
        self.invited.retain(|fragment| !left.contains(fragment));
        // Not made again before it is asked for.
        self.given_away.extend(&left);
        self.take_out(now, |fragment| !left.contains(&fragment));
        // After their last words: others would count on them, where the rest is on the other side of a cut.
        self.deliver_late(now, out);
        self.view.iter().for_each(|node| self.to(*node, Frame::GaveAway(left.clone()), out));
    }

    pub(crate) fn gave_away(&mut self, from: NodeId, fragments: &[FragmentId]) {
        for fragment in fragments {
            self.holders.get_mut(fragment).map(|nodes| nodes.remove(&from));
        }
    }

    /// Takes copies out that are not to be kept. Numbers of branches and sessions go on where they ended.
    fn take_out(&mut self, now: Now, keep: impl Fn(FragmentId) -> bool) {
        let going: Vec<FragmentId> = self.copies.ids().into_iter().filter(|fragment| !keep(*fragment)).collect();
        for fragment in going {
            // What its copy had heard of others is all that this node knows. Its own leader is asked; those that were known beside it
            // are of other islands.
            let known = |c: &Copy| (c.leader(), c.leads().collect::<Vec<_>>());
            let (leader, leads) = self.copies.with(fragment, known).unwrap_or_default();
            let Some((leader, lead)) = leader.filter(|(node, _)| *node != self.config.me) else { continue };
            let is_copy = leads.iter().all(|(node, _, is_copy)| *node != leader || *is_copy);
            let others = leads.into_iter().filter(|(node, ..)| *node != leader);
            let routes = self.routes.entry(fragment).or_default();
            routes.extend(others.map(|(node, lead, is_copy)| (node, (is_copy, lead, now.mono))));
            routes.insert(leader, (is_copy, lead, Instant(now.mono.0.saturating_sub(1))));
        }
        for (fragment, stored, fx) in self.copies.take_out(now, keep) {
            self.stored.insert(fragment, stored);
            self.late.push((fragment, fx));
        }
    }

    /// Where this island has no copy of a fragment, one of its nodes stands in: the same one by everybody's reckoning. Where
    /// nobody is away who could have one, that node begins the fragment anew, with what a stand-in may have taken.
    pub(crate) fn stand_in(&mut self, now: Now) {
        let looking = now.mono - self.started < self.config.discover_delay;
        let here = self.here();
        let all = self.roster.keys().all(|node| here.contains(node)) && self.roster.contains_key(&self.config.me);
        let calm = now.mono - self.view_at;
        if looking || calm < STAND_IN_AFTER {
            return;
        }
        // Those that a table begins with make their copies in that time; later they may have given them away.
        let begun = now.mono - self.view_at.max(self.tables_at);
        let chosen = |fragment: FragmentId| here.iter().copied().max_by_key(|node| rendezvous(fragment, *node));
        let mut make = Vec::new();
        for def in self.tables.values() {
            // Nobody is away who could have a copy: who stopped has none in RAM.
            let all = all || (self.whole && def.options.is_in_ram_alone());
            if (self.whole && !all) || (all && calm < BEGIN_ANEW_AFTER) {
                continue;
            }
            for (fragment, founders) in def.founded() {
                let said = |node: &NodeId| self.holders.get(&fragment).and_then(|all| all.get(node)).copied();
                // What is in RAM alone may be gone from those who had it.
                let founded = all || !def.options.is_in_ram_alone();
                let majority = def.options.min_in_sync == replica::MinInSync::Majority;
                let founds = |node: &NodeId| {
                    // One that has a copy with nothing in it may be about to open it, and of two majorities one would lose.
                    let within = match said(node) {
                        _ if majority => MAJORITY_WITHIN,
                        Some(_) => OPENED_WITHIN,
                        None => FOUNDED_WITHIN,
                    };
                    founded && begun < within && founders.contains(node)
                };
                let copies = here.iter().any(|node| said(node) == Some(true) || founds(node));
                // One that was never filled is none; one that is about to open must not be made anew all the time.
                let mine = |c: &Copy| if all { (c.serves() && !c.stands_in()) || c.begins_alone() } else { c.serves() };
                let led = self.lead_of(fragment).is_some_and(|(node, _)| !all || !self.stands_in_for(fragment, node));
                let led = led || self.copies.with(fragment, mine).unwrap_or(false);
                // Nor where somebody still has what one is to be made of.
                let may = (all || !majority) && !(def.era() > 0 && self.awaits_kin(def, fragment));
                if may && !copies && !led && chosen(fragment) == Some(self.config.me) {
                    make.push((fragment, def.clone(), all));
                }
            }
        }
        for (fragment, def, all) in make {
            self.take_out(now, |other| other != fragment);
            let founders = if all { vec![self.config.me] } else { Vec::new() };
            self.make_copy(now, fragment, &def, founders, (true, !all));
        }
    }

    /// Does this leader stand in for copies, as far as is known here?
    fn stands_in_for(&self, fragment: FragmentId, node: NodeId) -> bool {
        let route = self.routes.get(&fragment).and_then(|all| all.get(&node)).is_some_and(|(is_copy, ..)| !is_copy);
        let me = node == self.config.me;
        route || self.copies.with(fragment, |c| c.is_stand_in(node) || (me && c.stands_in())).unwrap_or(false)
    }

    /// Makes every copy that is on disc, that I am a founder of, or that I was invited to hold, as its table becomes known.
    pub(crate) fn make_copies(&mut self, now: Now, live: bool) {
        let mut make = Vec::new();
        let graves =
            self.graves.values().filter(|(_, shown)| !shown).map(|(grave, _)| grave.def.clone()).collect::<Vec<_>>();
        for def in &graves {
            // A copy of it that is on disc has others to meet; nobody gets a new one.
            for (fragment, founders) in def.founded() {
                if self.holds_stored(fragment) && !self.copies.contains(fragment) {
                    make.push((fragment, def.clone(), founders.to_vec()));
                }
            }
        }
        for def in self.tables.values() {
            for (fragment, founders) in def.founded() {
                let ram = def.options.is_in_ram_alone();
                let gave = self.given_away.contains(&fragment) || (self.gave_before.contains(&fragment) && !ram);
                let founds = founders.contains(&self.config.me) && !gave;
                let asked = founds || self.invited.contains(&fragment);
                let mine = self.holds_stored(fragment) || (asked && !self.is_leaving(self.config.me));
                let waits = def.era() > 0 && (self.keeps_kin(fragment) || self.smoulders(fragment));
                if mine && !waits && !self.copies.contains(fragment) {
                    make.push((fragment, def.clone(), founders.to_vec()));
                }
            }
        }
        for (fragment, def, founders) in make {
            self.make_copy(now, fragment, &def, founders, (live, false));
        }
    }

    pub(crate) fn make_copy(
        &mut self,
        now: Now,
        fragment: FragmentId,
        def: &TableDef,
        founders: Vec<NodeId>,
        (live, stand_in): (bool, bool),
    ) {
        let stored = self.stored.remove(&fragment);
        // Whoever is to stand in now was chosen because nobody has been in view for long enough.
        let eager = live && (stored.is_none() || stand_in) && fragment != sys_fragment();
        // One that begins anew is the copy from here on.
        let anew = founders[..] == [self.config.me] && live && fragment != sys_fragment();
        let stand_in = stand_in || (!anew && stored.as_ref().is_some_and(|s| s.store.stands_in(self.config.me)));
        let stored = stored.unwrap_or_else(|| self.nothing());
        let founders = if stand_in { vec![self.config.me] } else { founders };
        let mut config = self.copy_config(def, fragment, founders, stand_in);
        if eager {
            (config.eager, config.opens_after) = (true, Instant(0));
        }
        let copy = Copy::new(now, config, stored.meta, stored.store);
        self.begin_copy(now, fragment, copy, Effects::default());
    }

    /// What a copy is told when it is made.
    pub(crate) fn copy_config(
        &mut self,
        def: &TableDef,
        fragment: FragmentId,
        founders: Vec<NodeId>,
        stand_in: bool,
    ) -> Config {
        let mut config = Config {
            fragment,
            line: def.line(fragment),
            me: self.config.me,
            incarnation: self.config.incarnation,
            founders,
            stand_in,
            storage: def.options.storage,
            values: self.config.values.clone(),
            unordered: def.options.unordered,
            sync: true,
            eager: false,
            opens_after: self.started + self.config.discover_delay,
            open_membership: fragment == sys_fragment(),
            min_in_sync: def.options.min_in_sync,
            ttl_ms: None,
            room: Default::default(),
            evict: Default::default(),
            in_sync_max: if fragment == sys_fragment() { schema::SYS_IN_SYNC_MAX } else { usize::MAX },
            policy: def.options.policy.clone(),
            functions: self.config.functions.clone(),
            timing: self.config.timing,
            seed: self.seed(),
            mutant: None,
        };
        def.shape(self.room_of(def, fragment), &mut config);
        config
    }

    /// A copy begins with the view that the node has; what it says goes out with the next flush.
    pub(crate) fn begin_copy(&mut self, now: Now, fragment: FragmentId, mut copy: Copy, mut fx: Effects) {
        copy.handle(now, self.sight(now), &mut fx);
        copy.handle(now, Input::Shortage(self.shortage), &mut fx);
        copy.handle(now, Input::Barred(self.barred), &mut fx);
        for (node, (is_copy, lead, _)) in self.routes.remove(&fragment).unwrap_or_default() {
            let heard = lead.ballot;
            let was_in_sync = true;
            let status =
                replica::Status { lead: Some(lead), heard, was_in_sync, stand_in: !is_copy, ..Default::default() };
            copy.handle(now, Input::Msg(node, Msg::Status(status)), &mut fx);
        }
        self.copies.insert(fragment, copy);
        self.copies.touch(fragment);
        self.late.push((fragment, fx));
    }

    /// Carries out what new copies wanted to say, and those that are gone.
    pub(crate) fn deliver_late(&mut self, now: Now, out: &mut Vec<Effect>) {
        // Carrying may add to them.
        while !self.late.is_empty() {
            for (fragment, fx) in std::mem::take(&mut self.late) {
                self.carry(now, fragment, fx, out);
            }
        }
        for (op, reply) in std::mem::take(&mut self.recutting.over) {
            self.finish(now, op, reply, out);
        }
    }

    /// Looks at every copy; the first answer ends it.
    pub fn find_copy<R>(&self, mut look: impl FnMut(FragmentId, &Copy) -> Option<R>) -> Option<R> {
        self.copies.ids().into_iter().find_map(|fragment| self.copies.with(fragment, |c| look(fragment, c))?)
    }

    /// Answers a local client.
    pub(crate) fn reply(&mut self, op: OpId, reply: crate::OpReply, out: &mut Vec<Effect>) {
        out.push(Effect::Reply(op, reply));
    }
}

/// A copy that was given away left nothing but its promises: it is not begun anew with nothing, as if it were the first.
pub(crate) fn given_away(stored: &BTreeMap<FragmentId, Stored>) -> BTreeSet<FragmentId> {
    let gone = |(_, s): &(&FragmentId, &Stored)| s.store.heads().is_empty() && s.meta != Meta::default();
    stored.iter().filter(gone).map(|(fragment, _)| *fragment).collect()
}

/// Highest random weight (Thaler and Ravishankar, 1998): everybody with the same view picks the same node, and one that comes or
/// goes changes only its own.
pub(crate) fn rendezvous(fragment: FragmentId, node: NodeId) -> u64 {
    let parts = [fragment.table.0, u64::from(fragment.index), node.0];
    let hash = blake3::hash(&parts.map(u64::to_be_bytes).concat());
    u64::from_be_bytes(*hash.as_bytes().first_chunk().unwrap_or(&[0; 8]))
}

/// Tables that lost their names to others when islands met: the ledger keeps their definitions, and they go under names of their
/// own.
fn nameless(sys: &Copy, tables: &BTreeMap<String, TableDef>) -> Vec<(TableDef, Bytes, Version)> {
    let mut all = Vec::new();
    for row in sys.ledger().filter(|row| row.key.starts_with(schema::TABLE_PREFIX)) {
        let Some(mut def) = row.lost.value.and_then(|v| wire::decode::<TableDef>(&v).ok()) else { continue };
        // The same table, but for options: nothing is hidden.
        let known = tables.values().any(|other| other.id == def.id);
        let twice = all.iter().any(|(other, ..): &(TableDef, Bytes, Version)| other.id == def.id);
        if !known && !twice {
            def.name = format!("{}~conflict-{:04x}", def.name, def.id.0 >> 48);
            all.push((def, row.key, row.lost.version));
        }
    }
    all
}

/// Tables that were dropped, and whether something of them has turned up since.
fn buried(sys: &Copy) -> BTreeMap<TableId, (Grave, bool)> {
    let value = |kept: &replica::Kept| kept.here().and_then(|r| r.value.clone());
    let users = sys.store().space(Space::User).filter(|(key, _)| key[1..].starts_with(schema::GRAVE_PREFIX));
    let read =
        |kept: &replica::Kept| Some(Grave { at: kept.hlc().wall(), ..wire::decode::<Grave>(&value(kept)?).ok()? });
    let graves = users.filter_map(|(_, kept)| read(kept));
    let shown = |id| {
        sys.store()
            .find(&[&[Space::User as u8], &schema::saved_key(id)[..]].concat())
            .is_some_and(|r| r.value.is_some())
    };
    graves.map(|grave| (grave.def.id, (grave.clone(), shown(grave.def.id)))).collect()
}

type Described = (BTreeMap<NodeId, RosterEntry>, BTreeMap<String, TableDef>, usize);

/// The roster and the tables, as the system table has them, and how many of its records make no sense to this program.
fn described(sys: &Copy, now: Now) -> Described {
    let (mut roster, mut tables, mut unreadable) = Described::default();
    for (key, record) in sys.store().space(Space::User) {
        let (key, Some(value)) = (&key[1..], record.here().and_then(|r| r.live(now.wall))) else { continue };
        if let Some(node) = schema::node_of(schema::NODE_PREFIX, key) {
            let entry = wire::decode(value).ok().map(|entry| (node, entry));
            unreadable += usize::from(entry.is_none());
            roster.extend(entry);
        } else if key.starts_with(schema::TABLE_PREFIX) {
            let def = wire::decode::<TableDef>(value).ok().map(|def| (def.name.clone(), def));
            unreadable += usize::from(def.is_none());
            tables.extend(def);
        }
    }
    (roster, tables, unreadable)
}

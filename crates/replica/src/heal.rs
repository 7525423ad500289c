//! Healing without a stop: what another island wrote is fetched and kept aside, invisible, while both sides serve. The opening that
//! then merges, and the copies that join its branch, ask only for what has come since.
//!
//! What is staged is the state of one leader's copy as of certain heads, beyond what this copy knew. It is complete after a pass
//! over that leader's index that fitted into one answer: a record that is overwritten while a longer pass goes on is in no part
//! of it. It stays good when the wire is cut again, as long as that leader leads the same branch.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::merge::Merge;
use crate::msg::{Lead, Msg, Pass};
use crate::mutant;
use crate::open::Pulled;
use crate::policy::MergePolicy;
use crate::quorum::MinInSync;
use crate::record::Record;
use base::{Ballot, BranchId, Heads, Instant, NodeId, Now, Span, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was staged of a leader that has been out of view for so long is dropped.
const KEPT_FOR: Span = Span::ms(60_000);

/// How far a copy is with fetching what other islands wrote.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Progress {
    /// There is no other island in view.
    #[default]
    Alone,
    /// So many parts have come.
    Staging(u64),
    /// Nearly everything is.
    Staged,
}

/// What one other leader has that this copy has not.
pub(crate) struct Staging {
    ballot: Ballot,
    branch: BranchId,
    /// That leader's heads as of which `records` is complete, if ever it was.
    upto: Option<Heads>,
    records: BTreeMap<Bytes, Record>,
    /// What passes have shown since, which counts for nothing until one is short.
    loose: BTreeMap<Bytes, Record>,
    seen: Heads,
    /// The pass under way: up to where, from where on.
    pass: Option<(Heads, Option<(Version, Bytes)>)>,
    /// That leader has forgotten what this copy may still hold: what is staged of it would not tell.
    beyond: bool,
    nonce: u64,
    asked: Option<Instant>,
    /// When a pass was last over.
    done: Instant,
    /// How many entries there were to fetch when it began.
    of: u64,
}

impl Staging {
    /// What is known with it, beside these heads, as far as it is complete.
    fn known(&self, heads: &Heads) -> Heads {
        let mut known = heads.clone();
        self.upto.iter().for_each(|upto| known.join(upto));
        known
    }
}

impl Copy {
    /// Other leaders in view: never this copy's own.
    fn rivals(&self) -> BTreeMap<NodeId, Lead> {
        let own = match &self.role {
            Role::Leading(l) => l.ballot,
            Role::Following(f) => f.lead.ballot,
            _ => return BTreeMap::new(),
        };
        // Few lead, and many are in view.
        let leads = self.statuses.iter().filter_map(|(node, s)| Some((*node, s.lead.filter(|l| l.ballot != own)?)));
        leads.filter(|(node, _)| self.view.contains(node)).collect()
    }

    /// May it fetch what others have? Only what is in step has anything to add to; values that are to lie on disc would have
    /// to be in RAM meanwhile.
    fn may_stage(&self) -> bool {
        // One that stands in would fetch the whole of it.
        if self.config.stand_in {
            return false;
        }
        if self.config.min_in_sync == MinInSync::Majority {
            // Conflicts go by sides there, and who may open by lists of members that would have to be looked for in what is staged.
            return false;
        }
        let led = matches!(&self.role, Role::Leading(l) if l.ready);
        led || (matches!(&self.role, Role::Following(f) if f.joined) && !self.store.lets_go())
    }

    /// How far it is, for others and for people.
    pub(crate) fn progress(&self) -> Progress {
        let rivals = self.rivals();
        if rivals.is_empty() {
            return Progress::Alone;
        }
        let complete = |node: &NodeId| self.stagings.get(node).is_some_and(|s| s.upto.is_some() || s.beyond);
        if !self.may_stage() || rivals.keys().all(complete) {
            return Progress::Staged;
        }
        Progress::Staging(self.stage_parts)
    }

    /// How many records are staged, and about how many there are to stage.
    pub fn healing(&self) -> Option<(u64, u64)> {
        (!self.rivals().is_empty() || !self.stagings.is_empty()).then(|| {
            let all = self.stagings.values().map(|s| ((s.records.len() + s.loose.len()) as u64, s.of));
            all.fold((0, 0), |sum, (here, of)| (sum.0 + here, sum.1 + of.max(here)))
        })
    }

    /// Fetches from every other leader in view, and drops what is of no use any more.
    pub(crate) fn tend_heal(&mut self, now: Now, fx: &mut Effects) {
        let in_step = match &self.role {
            Role::Leading(l) => l.ready,
            Role::Following(f) => f.joined,
            _ => false,
        };
        if !in_step {
            // What is staged has been offered, or counted: it stays as it is.
            return;
        }
        if !self.may_stage() {
            return self.stagings.clear();
        }
        let rivals = self.rivals();
        let (heads, statuses, left) = (self.store.heads(), &self.statuses, &self.left);
        self.stagings.retain(|node, s| {
            let leads = statuses.get(node).and_then(|status| status.lead);
            let gone = left.get(node).is_some_and(|at| now.mono - *at > KEPT_FOR) && !statuses.contains_key(node);
            // One that still leads and has nothing new is fetched, and stays so: else it would be asked for ever, and none merge.
            let known = !rivals.contains_key(node) && s.upto.as_ref().is_some_and(|upto| upto.within(heads));
            // What was not complete when its source stopped leading never will be.
            let over = s.upto.is_none() && statuses.contains_key(node) && leads.is_none();
            leads.is_none_or(|lead| lead.ballot == s.ballot) && !gone && !known && !over
        });
        for (node, lead) in rivals {
            let fresh = || Staging {
                ballot: lead.ballot,
                branch: lead.branch,
                upto: None,
                records: BTreeMap::new(),
                loose: BTreeMap::new(),
                seen: Heads::default(),
                pass: None,
                beyond: false,
                nonce: 0,
                asked: None,
                done: Instant(0),
                of: 0,
            };
            let timing = self.config.timing;
            let s = self.stagings.entry(node).or_insert_with(fresh);
            let due = match s.asked {
                Some(at) => now.mono - at > timing.append_timeout,
                None => !s.beyond && (s.upto.is_none() || now.mono - s.done > Span(timing.retry.0 * 2)),
            };
            if due {
                // What was under way is lost, or its source is another process now.
                s.pass = None;
                self.ask_stage(now, node, fx);
            }
        }
    }

    /// Asks for the next part of the pass under way, or for the first of a new one.
    fn ask_stage(&mut self, now: Now, node: NodeId, fx: &mut Effects) {
        let Some(s) = self.stagings.get_mut(&node) else { return };
        let mut have = self.store.heads().clone();
        have.join(&s.seen);
        self.stage_nonce += 1;
        (s.nonce, s.asked) = (self.stage_nonce, Some(now.mono));
        let pass =
            Pass { have, upto: s.pass.as_ref().map(|(upto, _)| upto.clone()), after: s.pass.clone().and_then(|p| p.1) };
        fx.sends.push((node, Msg::Stage { ballot: s.ballot, nonce: s.nonce, pass }));
    }

    /// Another island's copy asks.
    pub(crate) fn on_stage(&mut self, from: NodeId, ballot: Ballot, nonce: u64, pass: Pass, fx: &mut Effects) {
        let Role::Leading(l) = &self.role else { return };
        if !l.ready || l.ballot != ballot {
            return;
        }
        let left = self.store.heads().beyond(&pass.have);
        let upto = pass.upto.unwrap_or_else(|| self.store.heads().clone());
        let bytes = self.config.timing.chunk_bytes;
        if let Some((records, after)) = self.store.delta(&pass.have, &upto, pass.after, bytes) {
            fx.sends.push((from, Msg::Staged { nonce, records, upto, after, left }));
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn on_staged(
        &mut self,
        now: Now,
        from: NodeId,
        nonce: u64,
        records: Vec<(Bytes, Record)>,
        upto: Heads,
        after: Option<(Version, Bytes)>,
        left: u64,
        fx: &mut Effects,
    ) {
        let hasty = mutant!(self, StagedEarly);
        let ok = self.may_stage();
        let Some(s) = self.stagings.get_mut(&from).filter(|s| ok && s.nonce == nonce && s.asked.is_some()) else {
            return;
        };
        s.asked = None;
        // What is gone over anew is no news: others would wait for more of it, while nothing else moves.
        self.stage_parts += u64::from(s.upto.is_none());
        let floors = records.iter().filter(|(key, _)| crate::key::space_of(key) == Some(crate::Space::Floor));
        let line = self.config.line;
        let mut floors = floors.map(|(key, record)| crate::Floor::seen_from(line, key, record));
        // What passes before this one have shown may be gone since, and nobody would tell.
        let first = s.seen.is_empty();
        let known = s.known(self.store.heads());
        s.beyond |= floors.any(|f| f.is_beyond(self.store.heads(), &upto) || (!first && !f.levels.within(&known)));
        if s.beyond {
            (s.records, s.loose, s.upto, s.pass) = Default::default();
            return;
        }
        s.of = s.of.max(left.saturating_add(s.records.len() as u64));
        s.loose.extend(records);
        let short = s.pass.is_none() || hasty;
        if after.is_some() {
            s.pass = Some((upto, after));
            return self.ask_stage(now, from, fx);
        }
        s.pass = None;
        s.seen.join(&upto);
        s.done = now.mono;
        if short {
            // Whatever was there as of the pass before, and has not changed since, was in its parts; the rest is in this one.
            s.records.extend(std::mem::take(&mut s.loose));
            s.upto = Some(s.seen.clone());
            self.tick(now, fx);
        } else {
            self.ask_stage(now, from, fx);
        }
    }

    /// What is staged of a copy that has promised these heads, if that copy is still where it was but for its own branch, and has not
    /// forgotten since what would have to be told.
    pub(crate) fn staged_of(&self, node: NodeId, heads: &Heads, floor: &crate::Floor) -> Option<Heads> {
        if self.config.min_in_sync == MinInSync::Majority {
            return None;
        }
        let s = self.stagings.get(&node)?;
        let upto = s.upto.as_ref()?;
        let same = heads.clone().without(s.branch).within(upto) && upto.within(heads);
        (same && floor.levels.within(&s.known(self.store.heads()))).then(|| upto.clone())
    }

    /// Those of whom everything is staged, and who are not among these.
    pub(crate) fn staged_of_others(&self, others: impl Fn(&NodeId) -> bool) -> Vec<(NodeId, Heads)> {
        let may = self.config.min_in_sync != MinInSync::Majority;
        let all = self.stagings.iter().filter(|(node, _)| may && !others(node));
        all.filter_map(|(node, s)| Some((*node, s.upto.clone()?))).collect()
    }

    /// Takes what is staged of a node: beneath what came of it later.
    pub(crate) fn take_staged(&mut self, node: NodeId, later: Vec<(Bytes, Record)>) -> Vec<(Bytes, Record)> {
        let mut records = self.stagings.remove(&node).map(|s| s.records).unwrap_or_default();
        records.extend(later);
        records.into_iter().collect()
    }

    /// What a joiner may offer beside its own heads.
    pub(crate) fn staged_heads(&self) -> Heads {
        let mut all = Heads::default();
        // A delta whose values go to disc as they come lies beneath whatever is in RAM.
        let may = !self.store.lets_go() && self.config.min_in_sync != MinInSync::Majority;
        self.stagings.values().filter_map(|s| s.upto.as_ref().filter(|_| may)).for_each(|upto| all.join(upto));
        all
    }

    /// A joiner's own records and what it has staged, as the leader has them unless its delta says otherwise: between two that did
    /// not know of each other the rank decides, everywhere alike, and what a leader decides in another way is in its delta.
    pub(crate) fn merge_staged(&mut self) -> Vec<(Bytes, Record)> {
        let stagings = std::mem::take(&mut self.stagings);
        let policy = MergePolicy::default();
        let mut merge =
            Merge::new(&self.store, &policy, &self.config.functions, Version::default(), base::Hlc::default());
        merge.foretells(self.config.line);
        for (from, s) in stagings {
            if let Some(heads) = s.upto {
                merge.fold(Pulled {
                    heads,
                    records: s.records.into_iter().collect(),
                    whole: false,
                    from,
                    staged: false,
                });
            }
        }
        merge.finish().1.into_iter().collect()
    }

    /// Has everybody in view who holds a copy fetched what it lacks? Then there is little left to do while nobody serves.
    pub(crate) fn all_staged(&self) -> bool {
        let holds = |node: &NodeId| self.view.contains(node);
        let others = self.statuses.iter().filter(|(node, s)| holds(node) && (s.was_in_sync || s.lead.is_some()));
        self.progress() == Progress::Staged && others.into_iter().all(|(_, s)| !matches!(s.heal, Progress::Staging(_)))
    }

    /// How far everybody is together: as long as it grows, a heal gets on.
    pub(crate) fn staged_by_all(&self) -> u64 {
        let count = |progress: Progress| match progress {
            Progress::Alone => 0,
            Progress::Staging(n) => n.saturating_add(1),
            Progress::Staged => 1 << 40,
        };
        let others = self.statuses.values().map(|s| count(s.heal));
        others.fold(count(self.progress()), u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Input;
    use crate::lease::tests::{feed, leading};
    use crate::msg::Status;

    /// Another leader is in view: node 3, under a ballot and a branch of its own.
    fn meet(copy: &mut Copy, ms: u64) {
        let (near, far) = (NodeId(2), NodeId(3));
        let view = Input::View {
            view: [near, far].into(),
            dead: [].into(),
            gone: [].into(),
            flapping: [].into(),
            whole: true,
        };
        feed(copy, ms, view);
        let lead = Lead { branch: BranchId { node: far, n: 1 }, ballot: Ballot { counter: 1, node: far }, in_sync: 1 };
        let status = Status { lead: Some(lead), was_in_sync: true, ..Status::default() };
        feed(copy, ms, Input::Msg(far, Msg::Status(status)));
    }

    /// It answers at once what it is asked, with nothing that is new.
    #[test]
    fn one_that_has_nothing_new_is_fetched_and_stays_so() {
        let (mut copy, ms) = leading();
        meet(&mut copy, ms);
        let (mut asked, mut unstaged) = (0, 0);
        for ms in (ms..ms + 1_500).step_by(10) {
            let mut said = feed(&mut copy, ms, Input::Tick);
            while let Some(nonce) =
                said.iter().find_map(|m| if let Msg::Stage { nonce, .. } = m { Some(*nonce) } else { None })
            {
                asked += 1;
                assert!(asked <= 7, "it is asked again and again");
                let upto = copy.store().heads().clone();
                let staged = Msg::Staged { nonce, records: Vec::new(), upto, after: None, left: 0 };
                said = feed(&mut copy, ms, Input::Msg(NodeId(3), staged));
            }
            if copy.lead().is_none() {
                // It opens, to merge.
                break;
            }
            unstaged += u32::from(asked > 0 && copy.progress() != Progress::Staged);
        }
        assert_eq!(unstaged, 0, "what is fetched stays fetched");
        assert!(asked > 0 && copy.lead().is_none(), "within a moment they are merged");
    }
}

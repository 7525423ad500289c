//! Who belongs to the cluster: each node's own line in the roster, what operators say of nodes, and burials.
//!
//! Every node reads the same records; the node that leads the system table acts on them, in each island (see `burial`).

use crate::gateway::{ClientError, Op, OpReply};
use crate::io::{Effect, Notice, OpId};
use crate::node::Node;
use crate::schema::{self, sys_fragment};
use base::{NAME_BYTES_MAX, NodeId, Now, PORT, Span, WallMs};
use membership::{Mark, Place, RosterEntry, RosterStatus, Taken};
use replica::{Batch, Check, Copy, Space, Write};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// How long an operator's word may take to be written.
const WORD_WAIT: Span = Span::ms(10_000);

/// A node was given up. Nothing overrides that, and nothing removes it: if the node comes back it has to know of it, and comes
/// anew, as its own next life. What it brings is merged with what the others have, which may have forgotten deletions since;
/// so nothing of it is in any list of copies that has not been taken in again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Burial {
    /// Who.
    pub node: NodeId,
    /// Which of its lives: how often it had been buried before.
    pub life: u64,
    /// What it was called.
    pub name: String,
    /// Where it listened.
    pub addr: SocketAddr,
    /// Who led the system table, and wrote this.
    pub by: NodeId,
    /// When, by that one's clock.
    pub at: WallMs,
    /// Why, for people.
    pub why: String,
}

/// The nodes of the last whole roster. While it changes, both the list before and the one to come count: an island has the
/// majority if it has that of each. So no two islands have it, whichever of the steps each of them knows.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Whole {
    pub now: BTreeSet<NodeId>,
    pub before: Option<BTreeSet<NodeId>>,
    /// All nodes there were when last nobody was missing.
    pub roster: BTreeSet<NodeId>,
}

impl Whole {
    /// The same lists, less some.
    pub(crate) fn without(&self, less: impl Fn(&NodeId) -> bool) -> Whole {
        let rest = |all: &BTreeSet<NodeId>| all.iter().copied().filter(|node| !less(node)).collect();
        Whole { now: rest(&self.now), before: self.before.as_ref().map(rest), roster: self.roster.clone() }
    }

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
    /// It goes for good, and its copies move away first.
    Leave,
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
            } else if key.starts_with(schema::BURIED_PREFIX) {
                let Ok(burial) = wire::decode::<Burial>(value) else { continue };
                let last = lives.buried.entry(burial.node).or_insert_with(|| burial.clone());
                if last.life < burial.life {
                    *last = burial;
                }
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
        if waits || self.lead_of(sys_fragment()).is_none() {
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
            life: self.fates.life,
            status,
            weight: self.config.weight,
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

    pub(crate) fn write_sys(&mut self, now: Now, batch: Batch, out: &mut Vec<Effect>) -> OpId {
        let op = self.next_internal();
        self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(5_000)), out);
        op
    }

    /// This node and all in view.
    pub(crate) fn here(&self) -> BTreeSet<NodeId> {
        self.view.iter().copied().chain([self.config.me]).collect()
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
            Word::Admit if !matches!(marked, Some(Mark::Condemned { .. } | Mark::Leaving)) => {
                return Err(ClientError::NotMarked(name, "condemned".into()));
            }
            Word::Leave if !in_view => return Err(ClientError::NotInView(name)),
            Word::Leave if self.remaining(node).is_empty() => return Err(ClientError::LastNode(name)),
            Word::Leave => mark(Mark::Leaving),
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
        let checks = vec![Check::Present(schema::buried_key(burial.node, burial.life))];
        Ok(Batch { checks, writes: vec![write], sync: true })
    }

    pub(crate) fn buried_named(&self, named: &str) -> Option<&Burial> {
        let is = |b: &&Burial| b.name == named || (named.len() >= 4 && b.node.to_string().starts_with(named));
        self.lives.buried.values().filter(|b| !self.roster.contains_key(&b.node)).find(is)
    }

    /// The one node of this name, or whose id begins so.
    pub(crate) fn named(&self, named: &str) -> Result<NodeId, ClientError> {
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

//! Where all copies are, and what is to be moved, for people.

use crate::balance::Told;
use crate::node::Node;
use base::{NodeId, Now};
use placement::{Fragment, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where everything is, as `tombolo fragments --json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Map {
    /// Every node that holds something, or could.
    pub nodes: Vec<MapNode>,
    /// Every table.
    pub tables: Vec<MapTable>,
    /// What is to be done, most urgent first.
    pub moves: Vec<MapMove>,
    /// An operator said that copies are not evened out.
    pub paused: bool,
    /// How many bytes a second a node takes in of copies that are made on it, if an operator said so.
    pub rate: Option<u64>,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapNode {
    /// Its name.
    pub name: String,
    /// Its share in relation to others'.
    pub weight: u16,
    /// Its zone.
    pub zone: Option<String>,
    /// It can be reached.
    pub here: bool,
    /// How many copies it holds, how many of them lead, and about how many bytes.
    pub copies: u64,
    /// See `copies`.
    pub leads: u64,
    /// See `copies`.
    pub bytes: u64,
    /// So many of its copies keep their records in another way than their tables ask for, and are on their way.
    pub changing: u64,
}

/// One table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapTable {
    /// Its name.
    pub name: String,
    /// Copies wanted.
    pub copies: u16,
    /// Each of its fragments.
    pub fragments: Vec<MapFragment>,
    /// While the number of fragments changes: of how many groups that has been done, and how many there are.
    pub changing: Option<(u16, u16)>,
}

/// One fragment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapFragment {
    /// Which.
    pub index: u16,
    /// Who leads it; nobody: it cannot be used in this island.
    pub leader: Option<String>,
    /// Where its copies are that have all, the leader's among them.
    pub in_sync: Vec<String>,
    /// Where its copies are that do not have all.
    pub behind: Vec<String>,
    /// About how large a copy is.
    pub bytes: u64,
    /// How it has fared, if it has a bound and a leader.
    pub tally: Option<replica::Tally>,
}

/// What is to be done with a fragment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapMove {
    /// Its table.
    pub table: String,
    /// Which fragment.
    pub index: u16,
    /// `copy to`, `lead from` or `remove from`.
    pub what: String,
    /// The node.
    pub node: String,
    /// About how many bytes are sent.
    pub bytes: u64,
    /// It lacks copies.
    pub repair: bool,
}

impl Node {
    /// Where everything is, by what leaders told just now.
    pub(crate) fn map(&self, now: Now, told: &BTreeMap<NodeId, Told>) -> Map {
        let picture = self.picture(now, told);
        let name = |node: NodeId| self.name_of(node);
        let tallies: BTreeMap<_, _> = told.values().flat_map(|told| told.tallies.iter().copied()).collect();
        let all = || picture.tables.iter().flat_map(|t| &t.fragments);
        let here = self.here();
        let node = |(id, entry): (&NodeId, &membership::RosterEntry)| {
            let mine = || all().filter(|f| f.holders.iter().any(|h| h.node == *id));
            MapNode {
                name: name(*id),
                weight: self.weight(*id),
                zone: entry.zone.clone(),
                here: here.contains(id),
                copies: mine().count() as u64,
                leads: all().filter(|f| f.leader == Some(*id)).count() as u64,
                bytes: mine().map(|f| f.bytes).fold(0, u64::saturating_add),
                changing: told.get(id).map_or(0, |told| u64::from(told.odd)),
            }
        };
        let fragment = |f: &Fragment| {
            let those =
                |in_sync: bool| f.holders.iter().filter(|h| h.in_sync == in_sync).map(|h| name(h.node)).collect();
            let (in_sync, behind) = (those(true), those(false));
            MapFragment {
                index: f.id.place(),
                leader: f.leader.map(name),
                in_sync,
                behind,
                bytes: f.bytes,
                tally: tallies.get(&f.id).copied(),
            }
        };
        let unled = |id: base::FragmentId| MapFragment {
            index: id.place(),
            leader: None,
            in_sync: Vec::new(),
            behind: Vec::new(),
            bytes: 0,
            tally: None,
        };
        let by_id: BTreeMap<base::FragmentId, &Fragment> = all().map(|f| (f.id, f)).collect();
        let table = |def: &crate::TableDef| MapTable {
            name: def.name.clone(),
            copies: self.copies_of(def),
            // Those that nobody leads in this island are in no picture.
            fragments: def.all().map(|id| by_id.get(&id).map_or_else(|| unled(id), |f| fragment(f))).collect(),
            changing: def.change().map(|change| (change.done, change.groups(def.options.fragments))),
        };
        let step = |m: placement::Move| {
            let (what, node) = match m.step {
                Step::Add(node) => ("copy to", node),
                Step::Lead(node) => ("lead from", node),
                Step::Remove(node) => ("remove from", node),
            };
            let (table, node) = (self.table_of(m.fragment), name(node));
            MapMove { table, index: m.fragment.place(), what: what.into(), node, bytes: m.bytes, repair: m.is_repair }
        };
        let mut nodes: Vec<MapNode> = self.roster().iter().map(node).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Map {
            nodes,
            tables: self.tables.values().map(table).collect(),
            moves: self.plan(now, &picture).moves.into_iter().map(step).collect(),
            paused: self.balance.paused,
            rate: self.balance.pace.rate,
        }
    }
}

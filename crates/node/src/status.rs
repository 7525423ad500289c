use crate::lifecycle::Burial;
use crate::node::Node;
use base::{FragmentId, NodeId, Now};
use membership::{Island, Mark, RosterEntry};
use replica::Copy;
use serde::{Deserialize, Serialize};

/// How things stand, as `tombolo status --json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// This node's name.
    pub node: String,
    /// The group.
    pub group: String,
    /// `whole`, `partitioned` or `solo`.
    pub state: String,
    /// Why.
    pub why: String,
    /// It takes part: it has found others, or looked for them for long enough.
    pub ready: bool,
    /// The names of those in this island.
    pub island: Vec<String>,
    /// The names of the live that are out of view.
    pub missing: Vec<String>,
    /// Every node of the roster.
    pub nodes: Vec<NodeLine>,
    /// Nodes that do not come back.
    pub buried: Vec<BuriedLine>,
    /// Every table.
    pub tables: Vec<TableLine>,
    /// How far this machine's clock is ahead of the median of those in view, in ms (negative: behind), if there are others.
    pub clock_ahead_ms: Option<i64>,
    /// How many nodes of other cookies or groups were heard.
    pub foreign: usize,
    /// While islands meet: how many records are staged in copies here, and about how many there are to stage.
    pub healing: Option<(u64, u64)>,
    /// While this node is on its way out: how many copies here have to move yet, and how many there were.
    pub leaving: Option<(u64, u64)>,
    /// Values that lost a conflict, in copies here, and their bytes.
    pub conflicts: u64,
    /// See `conflicts`.
    pub conflict_bytes: u64,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeLine {
    /// Its name.
    pub name: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its roster status: joining, up, leaving, stopped, immortal, lost or condemned.
    pub status: String,
    /// What this node thinks of it: present, stopped, immortal, condemned, partitioned or lost.
    pub verdict: String,
    /// Why, in a sentence.
    pub why: String,
    /// For how many seconds it has been out of this node's view, if it is.
    pub away_s: Option<u64>,
    /// It is in view, or this node itself.
    pub reachable: bool,
    /// Its zone.
    pub zone: Option<String>,
    /// Where it listens.
    pub addr: String,
    /// Whether its datagrams get through, if it is linked with.
    pub datagrams: Option<bool>,
}

/// A node that does not come back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BuriedLine {
    /// What it was called.
    pub name: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// The name of the node that buried it.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Why, in a sentence.
    pub why: String,
}

/// One table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableLine {
    /// Its name.
    pub name: String,
    /// Copies wanted.
    pub copies: u16,
    /// Fragments.
    pub fragments: u16,
    /// `ram` or `disc`.
    pub storage: String,
    /// `sync` or `interval`.
    pub durability: String,
    /// `latest` or `max`.
    pub on_conflict: String,
    /// A number of copies, or `majority`.
    pub min_in_sync: String,
    /// Keys are found by hash only.
    pub unordered: bool,
    /// What is put without a time to live lives for so many milliseconds.
    pub ttl_ms: Option<u64>,
    /// So many records are taken at most, over all fragments.
    pub max_records: Option<u64>,
    /// So many bytes of their keys and values.
    pub max_bytes: Option<u64>,
    /// The table beside which its copies lie; `-`: that is gone.
    pub beside: Option<String>,
    /// Fragments that have a leader in this island.
    pub led: u16,
    /// The fewest in-sync copies of any fragment; none, where one has no leader.
    pub in_sync: u16,
    /// What a bound is counted over: `cluster` or `node`.
    pub per: String,
    /// What goes when there is no room.
    pub evict: String,
}

/// One table, as `tombolo table info --json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableInfo {
    /// The table as a whole.
    pub table: TableLine,
    /// Its id, in hexadecimal.
    pub id: String,
    /// `key`, or the length of the prefix that keys of one fragment share.
    pub fragment_by: String,
    /// Each of its fragments.
    pub fragments: Vec<FragmentLine>,
    /// While the number of fragments changes: of how many groups that has been done, how many groups there are, and how many
    /// fragments in the end.
    pub changing: Option<(u16, u16, u16)>,
    /// How full it is and how it fares, if it has a bound and all nodes in view were asked.
    pub fill: Option<replica::Tally>,
}

/// One fragment, as far as this node knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FragmentLine {
    /// Which.
    pub index: u16,
    /// The name of the node that leads it in this island.
    pub leader: Option<String>,
    /// How many copies are in sync.
    pub in_sync: u16,
    /// The names of the nodes that hold copies, if one is here to tell.
    pub members: Vec<String>,
    /// What the copy here does, if there is one.
    pub here: Option<String>,
    /// Live and expired records in the copy here, and the bytes of their keys and values.
    pub records: Option<u64>,
    /// See `records`.
    pub bytes: Option<u64>,
    /// How the copy here keeps its records; `changing`: it is on its way.
    pub storage: Option<String>,
}

impl Node {
    /// How things stand.
    pub fn status(&self, now: Now) -> Status {
        let view = self.peers.view(now.mono);
        let island = self.island(now);
        let name = |node: NodeId| self.name_of(node);
        let mut nodes: Vec<NodeLine> = self
            .roster()
            .iter()
            .map(|(node, entry)| NodeLine {
                name: name(*node),
                id: node.to_string(),
                status: self.standing(*node, entry).into(),
                verdict: self.judged(now, *node, entry).verdict.name().into(),
                why: self.judged(now, *node, entry).why.into(),
                away_s: self.out_since.get(node).map(|since| (now.mono - *since).as_ms() / 1000),
                reachable: *node == self.config.me || view.contains(node),
                zone: entry.zone.clone(),
                addr: entry.addr.to_string(),
                datagrams: self.peers.datagrams(*node),
            })
            .collect();
        nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let mut names: Vec<String> = view.iter().chain([&self.config.me]).map(|n| name(*n)).collect();
        names.sort();
        let mut missing: Vec<String> = match &island {
            Island::Partitioned(missing) => missing.iter().map(|n| name(*n)).collect(),
            _ => Vec::new(),
        };
        missing.sort();
        Status {
            node: name(self.config.me),
            group: self.config.group.clone(),
            state: island.name().into(),
            why: self.why(&island) + &self.skewed.map(skew_text).unwrap_or_default(),
            ready: self.ready,
            island: names,
            missing,
            nodes,
            buried: self.buried_lines(),
            tables: self.tables().values().map(|def| self.table_line(def)).collect(),
            clock_ahead_ms: self.clock_ahead(now),
            foreign: self.discovery.foreign(),
            healing: self.healing(),
            leaving: self.departing(now),
            conflicts: self.ledger_size().0,
            conflict_bytes: self.ledger_size().1,
        }
    }

    /// What the roster says of a node, with what an operator has said of it.
    fn standing(&self, node: NodeId, entry: &RosterEntry) -> &'static str {
        let away = node != self.config.me && !self.view.contains(&node);
        match self.lives.marks.get(&node).filter(|_| away) {
            Some(Mark::Condemned { .. }) => "condemned",
            Some(Mark::Immortal) => "immortal",
            _ if self.is_leaving(node) => "leaving",
            _ => entry.status.name(),
        }
    }

    fn buried_lines(&self) -> Vec<BuriedLine> {
        let line = |burial: &Burial| BuriedLine {
            name: burial.name.clone(),
            id: burial.node.to_string(),
            by: self.name_of(burial.by),
            at_ms: burial.at.0,
            why: burial.why.clone(),
        };
        self.lives.buried.values().filter(|burial| !self.roster.contains_key(&burial.node)).map(line).collect()
    }

    pub(crate) fn healing(&self) -> Option<(u64, u64)> {
        let all = self.copies.ids().into_iter().filter_map(|f| self.copies.with(f, Copy::healing).flatten());
        all.reduce(|a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// Values that lost a conflict, in copies here, and their bytes.
    pub(crate) fn ledger_size(&self) -> (u64, u64) {
        let all = self.copies.ids().into_iter().filter_map(|f| self.copies.with(f, Copy::ledger_size));
        all.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// A plain sentence on why the island is what it is.
    pub(crate) fn why(&self, island: &Island) -> String {
        match island {
            Island::Whole => "every live node is in view".into(),
            Island::Solo => "no other live node is known".into(),
            Island::Partitioned(missing) => {
                let each = missing.iter().map(|node| {
                    let why = match self.peers.get(*node) {
                        None => "not met since this node started",
                        Some(_) if self.peers.dead().contains(node) => "its process is gone",
                        Some(_) => "it does not answer",
                    };
                    format!("{}: {why}", self.name_of(*node))
                });
                each.collect::<Vec<_>>().join("; ")
            }
        }
    }

    fn table_line(&self, def: &crate::TableDef) -> TableLine {
        let o = &def.options;
        let in_sync: Vec<Option<u16>> = def.all().map(|f| Some(self.lead_of(f)?.1.in_sync)).collect();
        TableLine {
            name: def.name.clone(),
            copies: self.copies_of(def),
            fragments: def.all().count() as u16,
            storage: o.storage.to_string(),
            durability: format!("{:?}", o.durability).to_lowercase(),
            on_conflict: o.policy.default.to_string(),
            min_in_sync: o.min_in_sync.to_string(),
            unordered: o.unordered,
            ttl_ms: o.ttl_ms,
            max_records: o.max_records,
            max_bytes: o.max_bytes,
            per: o.per.to_string(),
            evict: o.evict.to_string(),
            beside: o.beside.map(|id| self.tables.values().find(|d| d.id == id).map_or("-".into(), |d| d.name.clone())),
            led: in_sync.iter().flatten().count() as u16,
            in_sync: in_sync.into_iter().min().flatten().unwrap_or(0),
        }
    }

    pub(crate) fn table_info(&self, def: &crate::TableDef) -> TableInfo {
        let fragment_by = match def.options.fragment_by {
            crate::FragmentBy::Key => "key".into(),
            crate::FragmentBy::Prefix(bytes) => bytes.to_string(),
        };
        let fragments = def.all().map(|fragment| self.fragment_line(fragment)).collect();
        let count = def.options.fragments;
        let changing = def.change().map(|change| (change.done, change.groups(count), count));
        let (table, id) = (self.table_line(def), format!("{:016x}", def.id.0));
        TableInfo { table, id, fragment_by, fragments, fill: None, changing }
    }

    fn fragment_line(&self, fragment: FragmentId) -> FragmentLine {
        let lead = self.lead_of(fragment);
        let seen = self.copies.with(fragment, |c| {
            let kept = if c.is_turning() { "changing".into() } else { c.store().form().to_string() };
            (c.inspect(), c.store().live_size(), kept)
        });
        let name = |node: &NodeId| self.name_of(*node);
        let listed = seen.as_ref().map(|(seen, ..)| seen.members.iter().filter(|(_, s)| s.is_member()));
        FragmentLine {
            index: fragment.place(),
            leader: lead.map(|(node, _)| self.name_of(node)),
            in_sync: lead.map_or(0, |(_, lead)| lead.in_sync),
            members: listed.into_iter().flatten().map(|(node, _)| name(node)).collect(),
            here: seen.as_ref().map(|(seen, ..)| format!("{:?}", seen.role).to_lowercase()),
            records: seen.as_ref().map(|(_, size, _)| size.0),
            bytes: seen.as_ref().map(|(_, size, _)| size.1),
            storage: seen.as_ref().map(|(.., kept)| kept.clone()),
        }
    }

    /// A node's name; two of one name are told apart by the larger id's `~XXXX`.
    pub(crate) fn name_of(&self, node: NodeId) -> String {
        let named = |node: NodeId| -> Option<&str> {
            let listed = self.roster().get(&node).map(|e| e.name.as_str());
            let own = || (node == self.config.me).then_some(self.config.name.as_str());
            let given = self.lives.names.get(&node).map(String::as_str).or_else(own).or(listed);
            given.or_else(|| self.peers.get(node).map(|p| p.hello.name.as_str()))
        };
        let Some(name) = named(node) else { return node.to_string() };
        let known = self.roster().keys().chain([&self.config.me]);
        let twin = known.filter(|other| **other < node).any(|other| named(*other) == Some(name));
        if twin { format!("{name}~{:04x}", node.0 >> 48) } else { name.into() }
    }
}

fn skew_text(ahead_ms: i64) -> String {
    let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
    format!("; this machine's clock is {} s {way} the others': set it right", ahead_ms.abs() / 1000)
}

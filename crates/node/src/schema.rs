//! The cluster describes itself in its own system table: table definitions and the roster are records in it.

use crate::layout::Layout;
use base::{ERA_MAX, FRAGMENTS_MAX, FragmentId, NAME_BYTES_MAX, NodeId, TableId};
use bytes::Bytes;
pub use replica::Storage;
use replica::{Evict, MergePolicy, MergeRule, MinInSync, Room, Slice};
use serde::{Deserialize, Serialize};

/// When an acknowledged write is on disc.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Durability {
    /// Before the acknowledgement, at every in-sync copy.
    Sync,
    /// Within `sync_interval` (100 ms).
    Interval,
}

/// What decides in which fragment a key lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FragmentBy {
    /// The whole key.
    Key,
    /// Its first so many bytes: keys that share them share a fragment.
    Prefix(u16),
}

/// What a bound is counted over.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Per {
    /// All nodes: each record counts once, however many copies it has.
    #[default]
    Cluster,
    /// Each node: what its copies hold. The fullest node decides.
    Node,
}

impl std::fmt::Display for Per {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Per::Node { "node" } else { "cluster" })
    }
}

/// What a user chooses when making a table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableOptions {
    /// How many nodes shall hold each fragment; with fewer nodes, as many as there are.
    pub copies: u16,
    /// Into how many slices the table is cut.
    pub fragments: u16,
    /// Where records are kept.
    pub storage: Storage,
    /// When acknowledged writes are on disc.
    pub durability: Durability,
    /// What conflicts become.
    pub policy: MergePolicy,
    /// What decides in which fragment a key lies.
    pub fragment_by: FragmentBy,
    /// Keys are found by hash only: less memory and work for point reads and writes; a scan walks the whole table.
    pub unordered: bool,
    /// With fewer in-sync copies than this, writes are refused; reads are not.
    pub min_in_sync: MinInSync,
    /// Its copies lie where that table's do, fragment by fragment; it has as many of both.
    pub beside: Option<TableId>,
    /// What is put without a time to live lives for so many milliseconds.
    pub ttl_ms: Option<u64>,
    /// It holds so many records at most, and so many bytes (of keys and values, and 480 a record for what is kept with it); each fragment
    /// has its share of that.
    pub max_records: Option<u64>,
    /// See `max_records`.
    pub max_bytes: Option<u64>,
    /// It lay on disc before it came to lie in RAM: a node that was stopped meanwhile may have it there still.
    #[serde(default)]
    pub once_on_disc: bool,
    /// What a bound is counted over.
    #[serde(default)]
    pub per: Per,
    /// What goes when there is no room.
    #[serde(default)]
    pub evict: Evict,
}

impl TableOptions {
    /// Has it a bound?
    pub fn is_bounded(&self) -> bool {
        self.max_records.is_some() || self.max_bytes.is_some()
    }

    /// What one of so many fragments may hold.
    pub(crate) fn share(&self, fragments: u32) -> Room {
        let share = |all: Option<u64>| all.map(|all| all / u64::from(fragments.max(1)));
        Room { records: share(self.max_records), bytes: share(self.max_bytes) }
    }

    /// Is nothing of it on the disc of anybody who is stopped?
    pub(crate) fn is_in_ram_alone(&self) -> bool {
        self.storage == Storage::Ram && !self.once_on_disc
    }
}

impl Default for TableOptions {
    fn default() -> Self {
        TableOptions {
            copies: 3,
            fragments: 8,
            storage: Storage::Disc,
            durability: Durability::Interval,
            policy: MergePolicy::default(),
            fragment_by: FragmentBy::Key,
            unordered: false,
            min_in_sync: MinInSync::default(),
            beside: None,
            ttl_ms: None,
            max_records: None,
            max_bytes: None,
            per: Per::Cluster,
            evict: Evict::Reject,
            once_on_disc: false,
        }
    }
}

/// What is changed of a table; the rest stays as it is.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Alteration {
    /// See [`TableOptions::copies`].
    pub copies: Option<u16>,
    /// See [`TableOptions::durability`].
    pub durability: Option<Durability>,
    /// See [`TableOptions::min_in_sync`].
    pub min_in_sync: Option<MinInSync>,
    /// See [`TableOptions::policy`].
    pub policy: Option<MergePolicy>,
    /// See [`TableOptions::beside`].
    pub beside: Option<Option<TableId>>,
    /// See [`TableOptions::storage`].
    pub storage: Option<Storage>,
    /// See [`TableOptions::ttl_ms`].
    pub ttl_ms: Option<Option<u64>>,
    /// See [`TableOptions::max_records`].
    pub max_records: Option<Option<u64>>,
    /// See [`TableOptions::max_bytes`].
    pub max_bytes: Option<Option<u64>>,
    /// See [`TableOptions::fragments`]: a multiple of what it was, or a part.
    pub fragments: Option<u16>,
    /// See [`TableOptions::per`].
    pub per: Option<Per>,
    /// See [`TableOptions::evict`].
    pub evict: Option<Evict>,
}

impl Alteration {
    pub(crate) fn apply(self, options: &mut TableOptions) {
        options.copies = self.copies.unwrap_or(options.copies);
        options.durability = self.durability.unwrap_or(options.durability);
        options.min_in_sync = self.min_in_sync.unwrap_or(options.min_in_sync);
        options.policy = self.policy.unwrap_or_else(|| options.policy.clone());
        options.beside = self.beside.unwrap_or(options.beside);
        options.once_on_disc |= options.storage != Storage::Ram && self.storage == Some(Storage::Ram);
        options.storage = self.storage.unwrap_or(options.storage);
        options.ttl_ms = self.ttl_ms.unwrap_or(options.ttl_ms);
        options.max_records = self.max_records.unwrap_or(options.max_records);
        options.max_bytes = self.max_bytes.unwrap_or(options.max_bytes);
        options.per = self.per.unwrap_or(options.per);
        let evict = if options.is_bounded() { options.evict.clone() } else { Evict::Reject };
        options.evict = self.evict.unwrap_or(evict);
    }
}

/// A table, as the system table holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "StoredDef", into = "StoredDef")]
pub struct TableDef {
    /// Part of every fragment's id. Derived from the name and the shape, so that two islands which each make the same
    /// table make one; that is why two machines can both be told to `mount shared` before they have met.
    pub id: TableId,
    /// For people.
    pub name: String,
    /// As chosen.
    pub options: TableOptions,
    /// Which nodes begin with copies of which fragment. From then on each fragment's own list is the truth.
    pub founders: Vec<Vec<NodeId>>,
    /// Into which fragments it is cut, if that was changed.
    pub layout: Layout,
}

/// The form in which a definition is kept: what is added stands at the end.
#[derive(Serialize, Deserialize)]
struct StoredDef {
    id: TableId,
    name: String,
    shape: (u16, u16, Storage, Durability, MergePolicy, FragmentBy, bool, MinInSync),
    founders: Vec<Vec<NodeId>>,
    beside: Option<TableId>,
    ttl_ms: Option<u64>,
    once_on_disc: bool,
    bound: (Option<u64>, Option<u64>),
    layout: Layout,
    evict: (Per, Evict),
}

impl From<TableDef> for StoredDef {
    fn from(def: TableDef) -> StoredDef {
        let TableDef { id, name, options: o, founders, layout } = def;
        let shape =
            (o.copies, o.fragments, o.storage, o.durability, o.policy, o.fragment_by, o.unordered, o.min_in_sync);
        StoredDef {
            id,
            name,
            shape,
            founders,
            beside: o.beside,
            ttl_ms: o.ttl_ms,
            once_on_disc: o.once_on_disc,
            bound: (o.max_records, o.max_bytes),
            layout,
            evict: (o.per, o.evict),
        }
    }
}

impl From<StoredDef> for TableDef {
    fn from(stored: StoredDef) -> TableDef {
        let StoredDef { id, name, shape, founders, beside, ttl_ms, once_on_disc, bound, layout, evict } = stored;
        let (copies, fragments, storage, durability, policy, fragment_by, unordered, min_in_sync) = shape;
        let options = TableOptions {
            copies,
            fragments,
            storage,
            durability,
            policy,
            fragment_by,
            unordered,
            min_in_sync,
            beside,
            ttl_ms,
            max_records: bound.0,
            max_bytes: bound.1,
            per: evict.0,
            evict: evict.1,
            once_on_disc,
        };
        TableDef { id, name, options, founders, layout }
    }
}

impl TableDef {
    /// Lays a new table out over these nodes, evenly, copies of one fragment on different nodes.
    /// `generation`: how many tables of this name were dropped before it.
    pub fn new(name: &str, options: TableOptions, generation: u64, mut nodes: Vec<NodeId>) -> TableDef {
        nodes.sort_unstable();
        let shape = (name, options.fragments, options.fragment_by, generation);
        let hash = blake3::derive_key("tombolo 2026 table ids", &postcard::to_stdvec(&shape).unwrap_or_default());
        let id = TableId(first_u64(&hash) | 1);
        let copies = usize::from(options.copies).min(nodes.len());
        let start = id.0 as usize % nodes.len().max(1);
        let nth = |i: usize| nodes[(start + i) % nodes.len()];
        let row = |fragment: u16| (0..copies).map(|copy| nth(usize::from(fragment) + copy)).collect();
        let founders = (0..options.fragments).map(row).collect();
        TableDef { id, name: name.into(), options, founders, layout: Layout::default() }
    }

    /// The fragment that a key lies in.
    pub fn fragment(&self, key: &[u8]) -> FragmentId {
        let one = self.options.fragments <= 1 && self.layout.change.is_none();
        self.of_hash(if one { 0 } else { self.hash(self.plain(key)) })
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let part = match self.options.fragment_by {
            FragmentBy::Key => key,
            FragmentBy::Prefix(n) => &key[..key.len().min(usize::from(n))],
        };
        first_u64(blake3::hash(part).as_bytes())
    }

    /// Which of these fragments a key lies in.
    pub(crate) fn which(&self, slices: &[(FragmentId, Slice)], key: &[u8]) -> Option<FragmentId> {
        let hash = self.hash(self.plain(key));
        slices.iter().find(|(_, slice)| slice.has(hash)).map(|(id, _)| *id)
    }

    /// What a conflict put beside a key lies where the key does.
    fn plain<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        let both = self.options.policy.default == MergeRule::KeepBoth;
        if both { replica::beside_whom(key) } else { key }
    }

    /// Does the key lie in that fragment, of whichever number of them?
    pub fn is_in(&self, fragment: FragmentId, key: &[u8]) -> bool {
        self.slice(fragment).has(self.hash(self.plain(key)))
    }
}

/// Why a table cannot be made so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum BadTable {
    /// The name.
    #[error(
        "the table name {0:?} must have 1 to {NAME_BYTES_MAX} letters, digits, '.', '-' or '_', and not begin with \"sys.\""
    )]
    Name(String),
    /// Copies or fragments.
    #[error("table {0}: copies must be 1 to 64 and fragments 1 to {FRAGMENTS_MAX}")]
    Shape(String),
    /// More in-sync copies asked for than there shall be.
    #[error("table {0}: min-in-sync must be `majority`, or a number from 1 to the number of copies")]
    MinInSync(String),
    /// It cannot lie beside that table.
    #[error(
        "table {0} cannot lie beside that one: it must be there, have as many fragments, and lie beside none itself; nor may others lie beside {0}"
    )]
    Beside(String),
    /// A bound of which no fragment has a share.
    #[error(
        "table {0}: its bound must leave each of its fragments one record at least (480 bytes, and its key and value); give it fewer fragments"
    )]
    Bound(String),
    /// There is nothing to make room in.
    #[error("table {0} has no bound, so nothing ever has to go: give --max-bytes or --max-records with --evict")]
    NoBound(String),
    /// A number that its fragments cannot be cut into, or joined to.
    #[error(
        "table {0} has {1} fragments: it can be given a multiple of that, or one of its divisors; at most {FRAGMENTS_MAX}"
    )]
    Uneven(String, u16),
    /// One change of the number of fragments at a time.
    #[error("table {0}: its number of fragments is being changed: wait until that is over (`tombolo rebalance` waits)")]
    BeingRecut(String),
    /// Its fragments cannot be joined.
    #[error(
        "table {0} was made by an older version: its number of fragments stays; `tombolo export` and `import` make a new table of it"
    )]
    Unlined(String),
    /// It was done too often.
    #[error(
        "table {0}: its number of fragments was changed {ERA_MAX} times; `tombolo export` and `import` make a new table of it"
    )]
    TooOften(String),
    /// Tables that lie beside each other have as many fragments.
    #[error(
        "table {0} lies beside another, or another beside it: their fragments go in pairs; part them first (`--beside \"\"`)"
    )]
    RecutBeside(String),
    /// Nothing is moved.
    #[error(
        "table {0}: fragments that are to be joined have to come to lie on the same nodes first, and nothing is moved now: `tombolo rebalance --resume`"
    )]
    NothingMoves(String),
    /// What is changed passes through RAM.
    #[error(
        "table {0} keeps its values on disc only, and a fragment passes through RAM when it is changed: keep the table with `--storage disc` meanwhile"
    )]
    OnDiscOnly(String),
    /// Somebody is missing.
    #[error("table {0}: the number of fragments is changed only while no node is missing; see `tombolo status`")]
    NotWhole(String),
    /// It has as many copies as the table that it lies beside.
    #[error("table {0} lies beside another, and has as many copies: change those of that one")]
    CopiesBeside(String),
}

/// Checks what came from a user.
pub(crate) fn validate(name: &str, options: &TableOptions) -> Result<(), BadTable> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(plain) || name.starts_with("sys.") {
        return Err(BadTable::Name(name.into()));
    }
    if !(1..=64).contains(&options.copies) || !(1..=FRAGMENTS_MAX).contains(&options.fragments) {
        return Err(BadTable::Shape(name.into()));
    }
    let share = options.share(options.fragments.into());
    if share.records == Some(0) || share.bytes.is_some_and(|bytes| bytes <= replica::RECORD_OVERHEAD) {
        return Err(BadTable::Bound(name.into()));
    }
    if options.evict != Evict::Reject && !options.is_bounded() {
        return Err(BadTable::NoBound(name.into()));
    }
    if matches!(options.min_in_sync, MinInSync::Copies(n) if n == 0 || n > options.copies) {
        return Err(BadTable::MinInSync(name.into()));
    }
    Ok(())
}

fn first_u64(hash: &[u8; 32]) -> u64 {
    u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// So many nodes hold in-sync copies of the system table; all others hold mirrors.
pub(crate) const SYS_IN_SYNC_MAX: usize = 5;

/// The one fragment of the system table. Every node holds a copy.
pub fn sys_fragment() -> FragmentId {
    FragmentId { table: TableId(0), index: 0 }
}

/// The system table's definition; not a record of itself.
pub fn sys_table() -> TableDef {
    // How often tables of a name were dropped is never less than either side knew: ids are not used again.
    let policy = MergePolicy { default: MergeRule::Latest, exceptions: vec![(0, DROPPED_PREFIX[0], MergeRule::Max)] };
    let options = TableOptions {
        copies: 64,
        fragments: 1,
        storage: Storage::Disc,
        durability: Durability::Sync,
        policy,
        ..TableOptions::default()
    };
    let layout = Layout::default();
    TableDef { id: TableId(0), name: "sys".into(), options, founders: vec![Vec::new()], layout }
}

/// Holds a number that the cluster was given when it was formed.
pub(crate) const CLUSTER_KEY: &[u8] = b"cluster";
pub(crate) const NODE_PREFIX: &[u8] = b"node/";
/// What operators have said of nodes.
pub(crate) const MARK_PREFIX: &[u8] = b"mark/";
/// What operators have called nodes.
pub(crate) const NAME_PREFIX: &[u8] = b"name/";
/// Nodes that do not come back.
pub(crate) const BURIED_PREFIX: &[u8] = b"buried/";
/// Among whom a majority is counted.
pub(crate) const WHOLE_KEY: &[u8] = b"whole";
pub(crate) const TABLE_PREFIX: &[u8] = b"table/";
/// Copies are not evened out.
pub(crate) const PAUSED_KEY: &[u8] = b"paused";
/// How many bytes a second a node takes in of copies that are made on it.
pub(crate) const RATE_KEY: &[u8] = b"rate";

fn key_of(prefix: &[u8], node: NodeId) -> Bytes {
    [prefix, node.to_string().as_bytes()].concat().into()
}

pub(crate) fn node_key(node: NodeId) -> Bytes {
    key_of(NODE_PREFIX, node)
}

pub(crate) fn mark_key(node: NodeId) -> Bytes {
    key_of(MARK_PREFIX, node)
}

pub(crate) fn name_key(node: NodeId) -> Bytes {
    key_of(NAME_PREFIX, node)
}

/// One for each time that a node was buried.
pub(crate) fn buried_key(node: NodeId, life: u64) -> Bytes {
    [BURIED_PREFIX, format!("{node}/{life}").as_bytes()].concat().into()
}

/// The node whose record under this prefix it is.
pub(crate) fn node_of(prefix: &[u8], key: &[u8]) -> Option<NodeId> {
    let hex = std::str::from_utf8(key.strip_prefix(prefix)?).ok()?;
    u64::from_str_radix(hex, 16).ok().map(NodeId)
}

/// No other key of the system table begins with its first letter.
const DROPPED_PREFIX: &[u8] = b"dropped/";

/// How many tables of that name were dropped.
pub(crate) fn dropped_key(name: &str) -> Bytes {
    [DROPPED_PREFIX, name.as_bytes()].concat().into()
}

/// What is remembered of a table that was dropped.
pub(crate) const GRAVE_PREFIX: &[u8] = b"grave/";

pub(crate) fn grave_key(id: TableId) -> Bytes {
    [GRAVE_PREFIX, format!("{:016x}", id.0).as_bytes()].concat().into()
}

/// Something turned up of a table that was dropped.
pub(crate) fn saved_key(id: TableId) -> Bytes {
    [b"saved/", format!("{:016x}", id.0).as_bytes()].concat().into()
}

pub(crate) fn table_key(name: &str) -> Bytes {
    [TABLE_PREFIX, name.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_even_and_apart() {
        let nodes: Vec<NodeId> = (1..=5).map(NodeId).collect();
        let options = TableOptions { fragments: 10, ..TableOptions::default() };
        let def = TableDef::new("t", options, 0, nodes.clone());
        for node in nodes {
            assert_eq!(def.founders.iter().filter(|row| row.contains(&node)).count(), 6);
            assert_eq!(def.founders.iter().filter(|row| row.first() == Some(&node)).count(), 2);
        }
        assert!(def.founders.iter().all(|row| row.iter().collect::<std::collections::BTreeSet<_>>().len() == 3));
    }

    #[test]
    fn islands_that_make_the_same_table_make_one() {
        let a = TableDef::new("t", TableOptions::default(), 0, vec![NodeId(1)]);
        let b = TableDef::new("t", TableOptions::default(), 0, vec![NodeId(2), NodeId(3)]);
        assert_eq!(a.id, b.id);
        let other = TableOptions { fragments: 9, ..TableOptions::default() };
        assert_ne!(a.id, TableDef::new("t", other, 0, vec![NodeId(1)]).id);
        // What is made after a drop is another table: the old records do not come back.
        assert_ne!(a.id, TableDef::new("t", TableOptions::default(), 1, vec![NodeId(1)]).id);
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["", "a b", "sys.x", "ü", &"x".repeat(200)] {
            assert!(validate(name, &TableOptions::default()).is_err(), "{name}");
        }
        assert!(validate("fs.shared.blocks", &TableOptions::default()).is_ok());
        assert!(validate("t", &TableOptions { copies: 0, ..TableOptions::default() }).is_err());
    }
}

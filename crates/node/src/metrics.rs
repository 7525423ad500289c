//! What can be counted of a node, for those who watch many.

use crate::node::Node;
use crate::schema::TableDef;
use base::{Now, TableId};
use replica::Copy;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// One value of one thing, as Prometheus has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// What is counted: `tombolo_...`, with its unit.
    pub name: Cow<'static, str>,
    /// Of what.
    pub labels: Vec<(Cow<'static, str>, String)>,
    /// How much.
    pub value: f64,
}

impl Sample {
    /// A value of this name, of nothing in particular.
    pub fn new(name: &'static str, value: impl Into<Value>) -> Sample {
        Sample { name: Cow::Borrowed(name), labels: Vec::new(), value: value.into().0 }
    }

    /// The same, of this.
    #[must_use]
    pub fn of(mut self, label: &'static str, what: impl Into<String>) -> Sample {
        self.labels.push((Cow::Borrowed(label), what.into()));
        self
    }
}

/// A number.
pub struct Value(f64);

impl From<u64> for Value {
    fn from(n: u64) -> Value {
        // Beyond 2^53 the last digits are nobody's concern.
        Value(n as f64)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Value {
        Value(n as f64)
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Value {
        Value(n)
    }
}

/// What a node knows of a table, added up over its fragments.
#[derive(Default)]
struct Sums {
    copies: u64,
    led: u64,
    records: u64,
    bytes: u64,
    /// The fewest.
    in_sync: Option<u16>,
    uncommitted: u64,
    /// The most that one of them lacks.
    lag: u64,
    /// Those with fewer copies in sync than wanted.
    short: u64,
    tally: replica::Tally,
    /// By whoever led, as far as it was counted here.
    counted: replica::Tally,
}

impl Sums {
    fn add(&mut self, copy: &Copy, now: Now, (bounded, wanted): (bool, u16)) {
        self.copies += 1;
        self.counted = self.counted.and(copy.counted());
        let Some(lead) = copy.lead() else { return };
        let (records, bytes) = copy.store().live_size();
        self.led += 1;
        self.records += records;
        self.bytes += bytes;
        self.in_sync = Some(self.in_sync.map_or(lead.in_sync, |least| least.min(lead.in_sync)));
        let waits = |(last, commit): (u64, u64)| last.saturating_sub(commit);
        self.uncommitted += copy.positions().map_or(0, waits);
        self.lag = self.lag.max(copy.lag().unwrap_or(0));
        self.short += u64::from(lead.in_sync < wanted);
        if bounded {
            self.tally = self.tally.and(copy.tally(now));
        }
    }

    fn tell(self, def: &TableDef, wanted: u16, all: &mut Vec<Sample>) {
        let mut put = |name, value: Value| all.push(Sample::new(name, value.0).of("table", def.name.clone()));
        put("tombolo_table_copies", self.copies.into());
        put("tombolo_table_fragments_led", self.led.into());
        put("tombolo_table_evicted_total", self.counted.evicted.into());
        put("tombolo_table_expired_total", self.counted.expired.into());
        if def.options.is_bounded() {
            put("tombolo_table_reads_found_total", self.counted.hits.into());
            put("tombolo_table_reads_missed_total", self.counted.misses.into());
        }
        let Some(in_sync) = self.in_sync else { return };
        put("tombolo_table_in_sync_min", u64::from(in_sync).into());
        put("tombolo_table_copies_wanted", u64::from(wanted).into());
        put("tombolo_table_records", self.records.into());
        put("tombolo_table_bytes", self.bytes.into());
        put("tombolo_table_uncommitted_entries", self.uncommitted.into());
        put("tombolo_table_lag_entries_max", self.lag.into());
        put("tombolo_table_fragments_short", self.short.into());
        if def.options.is_bounded() {
            put("tombolo_table_held_bytes", self.tally.held.into());
            put("tombolo_table_fullness_ratio", (f64::from(self.tally.full) / 10_000.0).into());
            put("tombolo_table_oldest_seconds", (self.tally.oldest_ms as f64 / 1000.0).into());
        }
    }
}

impl Node {
    fn count_peers(&self, now: Now, all: &mut Vec<Sample>) {
        let mut states: BTreeMap<&'static str, u64> =
            ["linked", "doubted", "unlinked", "refused", "gone"].map(|state| (state, 0)).into();
        for (node, seen) in self.peers.seen(now.mono) {
            *states.entry(seen.state).or_default() += 1;
            let rtt = seen.rtt.map(|rtt| Sample::new("tombolo_peer_rtt_seconds", rtt.0 as f64 / 1e9));
            all.extend(rtt.map(|sample| sample.of("peer", self.name_of(node))));
        }
        all.extend(states.into_iter().map(|(state, n)| Sample::new("tombolo_peers", n).of("state", state)));
    }

    /// What is to be counted here now.
    pub fn metrics(&self, now: Now) -> Vec<Sample> {
        let (here, known) = (self.here().len(), self.roster.len());
        let mut all = vec![
            Sample::new("tombolo_nodes_in_view", here),
            Sample::new("tombolo_nodes_known", known),
            Sample::new("tombolo_partitioned", f64::from(u8::from(!self.whole))),
            Sample::new("tombolo_clock_barred", f64::from(u8::from(self.barred))),
            Sample::new("tombolo_tables", self.tables.len()),
            Sample::new("tombolo_shortage_level", f64::from(self.shortage.memory as u8)).of("of", "memory"),
            Sample::new("tombolo_shortage_level", f64::from(self.shortage.disc as u8)).of("of", "disc"),
            Sample::new("tombolo_conflicts_kept", self.ledger_size().0),
            Sample::new("tombolo_conflicts_kept_bytes", self.ledger_size().1),
            Sample::new("tombolo_slow_requests_total", self.gateway.traces.count),
            Sample::new("tombolo_swim_suspicions_total", self.peers.doubts),
            Sample::new("tombolo_peers_given_up_total", self.peers.given_up),
            Sample::new("tombolo_foreign_senders", self.discovery.foreign()),
            Sample::new("tombolo_providers_failing", self.failing.len()),
            Sample::new("tombolo_clock_ahead_seconds", self.clock_ahead(now).unwrap_or(0) as f64 / 1000.0),
        ];
        let (staged, of) = self.healing().unwrap_or((0, 0));
        all.push(Sample::new("tombolo_heal_staged_records", staged));
        all.push(Sample::new("tombolo_heal_records", of));
        self.count_peers(now, &mut all);
        let wants = |def: &TableDef| (def.id, (def.options.is_bounded(), self.copies_of(def)));
        let bounded: BTreeMap<TableId, (bool, u16)> = self.tables.values().map(wants).collect();
        let mut sums: BTreeMap<TableId, Sums> = BTreeMap::new();
        // Whatever is here, and not all that there may be of a thousand tables.
        for fragment in self.copies.ids() {
            let Some(bounded) = bounded.get(&fragment.table) else { continue };
            let of = sums.entry(fragment.table).or_default();
            self.copies.with(fragment, |copy| of.add(copy, now, *bounded));
        }
        for def in self.tables.values() {
            let unled = def.all().filter(|fragment| self.lead_of(*fragment).is_none()).count();
            all.push(Sample::new("tombolo_table_fragments_unled", unled).of("table", def.name.clone()));
            if let Some(sums) = sums.remove(&def.id) {
                sums.tell(def, self.copies_of(def), &mut all);
            }
        }
        all
    }
}

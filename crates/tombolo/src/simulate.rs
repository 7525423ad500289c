//! `simulate placement`: plans for fleets that nobody has on a desk.

use crate::text::bytes_text;
use anyhow::Result;
use base::{FragmentId, NodeId, TableId};
use placement::{Aim, Fragment, Holder, Machine, Picture, Step, Table, plan};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// What a fleet is made of.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Fleet {
    /// How many nodes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub nodes: u32,
    /// How many zones they are spread over.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub zones: u32,
    /// How many tables.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub tables: u32,
    /// Into how many fragments each is cut.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub fragments: u16,
    /// How many copies there are of each fragment.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub copies: u16,
    /// MiB in each fragment.
    #[arg(long, default_value_t = 64)]
    pub mib: u64,
    /// As a JSON array.
    #[arg(long)]
    pub json: bool,
}

/// What one change of the fleet costs.
#[derive(Serialize, Debug)]
struct Line {
    what: String,
    /// Copies that are made, and the fewest that have to be, whatever the placement.
    made: usize,
    least: usize,
    bytes: u64,
    /// How far a node is from its share at most: of one table, of all together, of leadership of one table and of all. In copies.
    table_off: f64,
    total_off: f64,
    lead_off: f64,
    lead_total_off: f64,
    /// Copies that are in one zone with another of their fragment.
    together: usize,
    planned_ms: u128,
}

fn machine(n: u32, fleet: &Fleet) -> Machine {
    let zone = (fleet.zones > 1).then(|| format!("zone{}", n % fleet.zones));
    Machine { node: NodeId(u64::from(n) + 1), weight: 100, zone, away: false, leads: true }
}

fn empty(fleet: &Fleet) -> Picture {
    let fragment = |table: u32, index: u16| Fragment {
        id: FragmentId { table: TableId(u64::from(table) + 1), index: index.into() },
        holders: Vec::new(),
        leader: None,
        bytes: fleet.mib << 20,
        settled: false,
    };
    let table = |t: u32| Table {
        copies: fleet.copies.into(),
        with: None,
        fixed: false,
        fragments: (0..fleet.fragments).map(|index| fragment(t, index)).collect(),
    };
    Picture {
        machines: (0..fleet.nodes).map(|n| machine(n, fleet)).collect(),
        tables: (0..fleet.tables).map(table).collect(),
    }
}

/// Plans, does what was planned, and looks what came of it.
fn settle(picture: &mut Picture, what: &str, least: usize) -> Line {
    let begun = Instant::now();
    let made = plan(picture, Aim::Balance);
    let planned_ms = begun.elapsed().as_millis();
    let (count, bytes) = made.copied();
    let places = |(t, table): (usize, &Table)| {
        table.fragments.iter().enumerate().map(move |(f, fragment)| (fragment.id, (t, f))).collect::<Vec<_>>()
    };
    let at: HashMap<FragmentId, (usize, usize)> = picture.tables.iter().enumerate().flat_map(places).collect();
    for done in &made.moves {
        let Some((t, f)) = at.get(&done.fragment).copied() else { continue };
        let fragment = &mut picture.tables[t].fragments[f];
        match done.step {
            Step::Add(node) => fragment.holders.push(Holder { node, in_sync: true }),
            Step::Lead(node) => fragment.leader = Some(node),
            Step::Remove(node) => fragment.holders.retain(|h| h.node != node),
        }
    }
    // Of what nobody led yet whoever is to lead does.
    for (table, leaders) in picture.tables.iter_mut().zip(&made.leaders) {
        for (fragment, leader) in table.fragments.iter_mut().zip(leaders) {
            fragment.leader = leader.map(|i| picture.machines[i].node);
        }
    }
    let [table_off, lead_off] = [false, true]
        .map(|leads| picture.tables.iter().map(|t| off(picture, std::slice::from_ref(t), leads)).fold(0.0, f64::max));
    let [total_off, lead_total_off] = [false, true].map(|leads| off(picture, &picture.tables, leads));
    let together = together(picture);
    let what = what.into();
    Line { what, made: count, least, bytes, table_off, total_off, lead_off, lead_total_off, together, planned_ms }
}

/// How far a machine is from the mean, at most.
fn off(picture: &Picture, tables: &[Table], leads: bool) -> f64 {
    let mut counts: BTreeMap<NodeId, usize> = picture.machines.iter().map(|m| (m.node, 0)).collect();
    for fragment in tables.iter().flat_map(|t| &t.fragments) {
        let holders = fragment.holders.iter().map(|h| h.node);
        let nodes: Vec<NodeId> = if leads { fragment.leader.into_iter().collect() } else { holders.collect() };
        nodes.iter().for_each(|node| *counts.entry(*node).or_default() += 1);
    }
    let mean = counts.values().sum::<usize>() as f64 / counts.len().max(1) as f64;
    counts.values().map(|count| (*count as f64 - mean).abs()).fold(0.0, f64::max)
}

fn together(picture: &Picture) -> usize {
    let zone: HashMap<NodeId, &Option<String>> = picture.machines.iter().map(|m| (m.node, &m.zone)).collect();
    let doubled = |f: &Fragment| {
        let mut zones: Vec<_> = f.holders.iter().filter_map(|h| zone.get(&h.node).filter(|z| z.is_some())).collect();
        let all = zones.len();
        zones.sort_unstable();
        zones.dedup();
        all - zones.len()
    };
    picture.tables.iter().flat_map(|t| &t.fragments).map(doubled).sum()
}

fn held(picture: &Picture, on: impl Fn(NodeId) -> bool) -> usize {
    let holders = picture.tables.iter().flat_map(|t| &t.fragments).flat_map(|f| &f.holders);
    holders.filter(|h| on(h.node)).count()
}

/// Takes machines away with all they hold.
fn lose(picture: &mut Picture, lost: impl Fn(&Machine) -> bool) -> usize {
    let gone: Vec<NodeId> = picture.machines.iter().filter(|m| lost(m)).map(|m| m.node).collect();
    let held = held(picture, |node| gone.contains(&node));
    picture.machines.retain(|m| !gone.contains(&m.node));
    for fragment in picture.tables.iter_mut().flat_map(|t| &mut t.fragments) {
        fragment.holders.retain(|h| !gone.contains(&h.node));
        fragment.leader = fragment.leader.filter(|l| !gone.contains(l));
    }
    held
}

/// `simulate placement`.
pub(crate) fn placement(fleet: &Fleet) -> Result<u8> {
    let mut picture = empty(fleet);
    let copies =
        usize::from(fleet.fragments) * fleet.tables as usize * usize::from(fleet.copies).min(fleet.nodes as usize);
    let mut lines = vec![settle(&mut picture, "made", copies)];
    let mut one = picture.clone();
    one.machines.push(machine(fleet.nodes, fleet));
    let mut joins = settle(&mut one, "one joins", 0);
    // What it holds had to be made.
    joins.least = held(&one, |node| node == NodeId(u64::from(fleet.nodes) + 1));
    lines.push(joins);
    let mut one = picture.clone();
    let lost = lose(&mut one, |m| m.node == NodeId(1));
    lines.push(settle(&mut one, "one leaves", lost));
    if fleet.zones > 1 {
        let zone = Some("zone0".to_string());
        let lost = lose(&mut picture, |m| m.zone == zone);
        lines.push(settle(&mut picture, "a zone is lost", lost));
    }
    if fleet.json {
        println!("{}", serde_json::to_string(&lines)?);
    } else {
        print(&lines);
    }
    Ok(0)
}

fn print(lines: &[Line]) {
    println!(
        "{:<15} {:>8} {:>8} {:>6} {:>11} {:>9} {:>7} {:>9} {:>7} {:>9} {:>8}",
        "", "COPIES", "AT LEAST", "RATIO", "BYTES", "TABLE±", "ALL±", "LEADS±", "ALL±", "IN A ZONE", "PLANNED"
    );
    for l in lines {
        let ratio = l.made as f64 / l.least.max(1) as f64;
        println!(
            "{:<15} {:>8} {:>8} {ratio:>6.3} {:>11} {:>9.2} {:>7.2} {:>9.2} {:>7.2} {:>9} {:>5} ms",
            l.what,
            l.made,
            l.least,
            bytes_text(l.bytes),
            l.table_off,
            l.total_off,
            l.lead_off,
            l.lead_total_off,
            l.together,
            l.planned_ms
        );
    }
}

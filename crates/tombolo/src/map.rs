//! `fragments` and `rebalance`: where copies are, and where they go.

use crate::cli::Rebalance;
use crate::commands::{FAILED, Usage, ask, done};
use crate::control::{Ask, Told};
use crate::text::{bytes_text, size_bytes};
use anyhow::Result;
use node::{COPY_RATE_MIN, Map, MapFragment, MapMove, MapTable};
use replica::Outcome;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What a node takes in by, for a guess beforehand.
const GUESSED_RATE: u64 = 100 << 20;

async fn map(data: &Path) -> Result<Result<Map, Told>> {
    Ok(match ask(data, Ask::Map).await? {
        Told::Map(map) => Ok(*map),
        other => Err(other),
    })
}

/// `fragments`.
pub(crate) async fn fragments(data: &Path, json: bool) -> Result<u8> {
    let map = match map(data).await? {
        Ok(map) => map,
        Err(other) => return done(other, None),
    };
    if json {
        println!("{}", serde_json::to_string(&map)?);
        return Ok(0);
    }
    map.tables.iter().for_each(|table| print_table(&map, table));
    println!("{:<20} {:>6} {:>7} {:>7} {:>11}  ZONE", "NODE", "WEIGHT", "COPIES", "LEADS", "BYTES");
    for n in &map.nodes {
        let zone = n.zone.as_deref().unwrap_or("-");
        let away = if n.here { "" } else { "  (away)" };
        let changing = match n.changing {
            0 => String::new(),
            count => format!("  ({count} copies on their way to their tables' storage)"),
        };
        println!(
            "{:<20} {:>6} {:>7} {:>7} {:>11}  {zone}{away}{changing}",
            n.name,
            n.weight,
            n.copies,
            n.leads,
            bytes_text(n.bytes)
        );
    }
    if map.rate.is_some() {
        println!("{}: `tombolo rebalance --rate none` ends that", rate_text(map.rate));
    }
    if map.paused {
        println!("copies are not evened out: `tombolo rebalance --resume` goes on with it");
    }
    Ok(0)
}

/// One line a fragment, one column a node: who leads (L), who has all of it (+), who is behind (~).
fn print_table(map: &Map, table: &MapTable) {
    println!("table {}: {} copies of {} fragments", table.name, table.copies, table.fragments.len());
    let width = |name: &str| name.chars().count().max(3);
    let names: Vec<String> = map.nodes.iter().map(|n| format!("{:<1$}", n.name, width(&n.name))).collect();
    println!("{:>8}  {}  {:>11}", "FRAGMENT", names.join(" "), "BYTES");
    for f in &table.fragments {
        let cell = |name: &String| format!("{:<1$}", sign(f, name), width(name));
        let cells: Vec<String> = map.nodes.iter().map(|n| cell(&n.name)).collect();
        let note = if f.leader.is_none() { "  nobody leads it here" } else { "" };
        println!("{:>8}  {}  {:>11}{note}", f.index, cells.join(" "), bytes_text(f.bytes));
    }
    println!();
}

fn sign(f: &MapFragment, name: &String) -> &'static str {
    if f.leader.as_ref() == Some(name) {
        "L"
    } else if f.in_sync.contains(name) {
        "+"
    } else if f.behind.contains(name) {
        "~"
    } else {
        "."
    }
}

/// How many copies are to be made, of how many bytes; how many leaders change, and how many copies go.
fn sums(moves: &[MapMove]) -> (usize, u64, usize, usize) {
    let count = |what: &str| moves.iter().filter(|m| m.what == what).count();
    (count("copy to"), moves.iter().map(|m| m.bytes).sum(), count("lead from"), count("remove from"))
}

fn changing(map: &Map) -> u64 {
    map.nodes.iter().map(|n| n.changing).sum()
}

/// Tables whose number of fragments is being changed, with how far that is.
fn recut(map: &Map) -> impl Iterator<Item = (&MapTable, u16, u16)> {
    map.tables.iter().filter_map(|table| table.changing.map(|(done, groups)| (table, done, groups)))
}

fn sums_text(map: &Map) -> String {
    let (copies, bytes, leads, removed) = sums(&map.moves);
    let behind: usize = map.tables.iter().flat_map(|t| &t.fragments).map(|f| f.behind.len()).sum();
    let changing = match changing(map) {
        0 => String::new(),
        count => format!(", {count} on their way to another storage"),
    };
    let recut = recut(map)
        .map(|(table, done, groups)| format!(", {done} of {groups} groups of {}'s fragments are changed", table.name));
    let changing = changing + &recut.collect::<String>();
    format!(
        "{copies} copies to make ({}), {behind} on their way, {leads} leaders to change, {removed} copies to remove{changing}",
        bytes_text(bytes)
    )
}

/// `rebalance`.
pub(crate) async fn rebalance(data: &Path, what: Rebalance) -> Result<u8> {
    if let Some(rate) = &what.rate {
        let rate = if rate == "none" { None } else { Some(size_bytes(rate).map_err(Usage)?) };
        if let Some(less) = rate.filter(|rate| *rate < COPY_RATE_MIN) {
            let (less, least) = (bytes_text(less), bytes_text(COPY_RATE_MIN));
            return Err(Usage(format!(
                "--rate {less} is too little: copies would never be done; give {least} or more"
            ))
            .into());
        }
        match ask(data, Ask::CopyRate(rate)).await? {
            Told::Outcome(Outcome::Done { .. }) => println!("{}", rate_text(rate)),
            other => return done(other, None),
        }
        if !what.pause && !what.resume {
            return Ok(0);
        }
    }
    if what.pause || what.resume {
        return match ask(data, Ask::PauseBalance(what.pause)).await? {
            Told::Outcome(Outcome::Done { .. }) if what.pause => {
                println!(
                    "copies are not evened out any more, until `tombolo rebalance --resume`; what lacks copies gets them"
                );
                Ok(0)
            }
            Told::Outcome(Outcome::Done { .. }) => {
                println!("copies are evened out again");
                Ok(0)
            }
            other => done(other, None),
        };
    }
    if what.dry_run { planned(data).await } else { watch(data).await }
}

fn rate_text(rate: Option<u64>) -> String {
    match rate {
        Some(rate) => format!("a node takes in {} a second of copies that are made on it", bytes_text(rate)),
        None => "a node takes in as much as it can of copies that are made on it".into(),
    }
}

async fn planned(data: &Path) -> Result<u8> {
    let map = match map(data).await? {
        Ok(map) => map,
        Err(other) => return done(other, None),
    };
    for m in &map.moves {
        let size = if m.what == "copy to" { format!(" ({})", bytes_text(m.bytes)) } else { String::new() };
        let why = if m.repair { ", which lacks copies" } else { "" };
        println!("{} {}: {} {}{size}{why}", m.table, m.index, m.what, m.node);
    }
    let mut to: BTreeMap<&str, u64> = BTreeMap::new();
    map.moves.iter().for_each(|m| *to.entry(&m.node).or_default() += m.bytes);
    let rate = map.rate.unwrap_or(GUESSED_RATE).max(1);
    let longest = to.values().max().copied().unwrap_or(0).div_ceil(rate);
    println!("{}", sums_text(&map));
    if longest > 0 {
        println!("about {longest} s, if a node takes in {} a second", bytes_text(rate));
    }
    Ok(0)
}

/// Prints how far it is until nothing is left to do.
async fn watch(data: &Path) -> Result<u8> {
    let begun = Instant::now();
    let (mut most, mut said) = (0u64, String::new());
    loop {
        let map = match map(data).await? {
            Ok(map) => map,
            Err(other) => return done(other, None),
        };
        let (.., bytes, _, _) = sums(&map.moves);
        let behind = map.tables.iter().flat_map(|t| &t.fragments).any(|f| !f.behind.is_empty());
        if map.moves.is_empty() && !behind && changing(&map) == 0 && recut(&map).next().is_none() {
            let unled = map.tables.iter().flat_map(|t| &t.fragments).filter(|f| f.leader.is_none()).count();
            if unled > 0 {
                println!("nothing else to do, but {unled} fragments have no leader here: see `tombolo status`");
                return Ok(FAILED);
            }
            let away = map.nodes.iter().any(|n| !n.here);
            println!(
                "{}",
                match (map.paused, away) {
                    (true, _) => "nothing lacks copies; they are not evened out: it is paused",
                    (_, true) => "nothing lacks copies; they are evened out when all nodes are back",
                    _ => "every node holds and leads its share",
                }
            );
            return Ok(if map.paused { FAILED } else { 0 });
        }
        if map.paused && recut(&map).next().is_some() {
            println!("the number of fragments is being changed; copies are not evened out meanwhile: it is paused");
            return Ok(FAILED);
        }
        most = most.max(bytes);
        let rate = (most - bytes) as f64 / begun.elapsed().as_secs_f64().max(0.1);
        let left = if rate > 0.0 {
            format!(", {}/s, about {:.0} s left", bytes_text(rate as u64), bytes as f64 / rate)
        } else {
            String::new()
        };
        let text = sums_text(&map) + &left;
        if text != said {
            println!("{text}");
            said = text;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

//! Commands about nodes: who there is and what is thought of each, and what an operator says of them.

use crate::commands::{FAILED, ask, done};
use crate::control::{Ask, Told};
use anyhow::Result;
use node::{NodeLine, Status, Word};
use replica::{Outcome, Pressure, Refusal, Shortage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// What a node's process uses.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Load {
    /// Processor time, in thousandths of one processor.
    pub cpu_permille: u64,
    /// Resident memory, in MiB.
    pub resident_mib: u64,
    /// What of it is in use, in MiB.
    pub used_mib: u64,
    /// How much may be, in MiB, if there is a ceiling.
    pub memory_max_mib: Option<u64>,
    /// What it is short of.
    pub shortage: Shortage,
}

impl Load {
    /// What the node is short of, if it is, and what follows from that.
    fn shortage(&self) -> Option<String> {
        let what = |level: Pressure, name: &'static str| (level > Pressure::Low).then_some((level, name));
        let both = [what(self.shortage.memory, "memory"), what(self.shortage.disc, "room on its disc")];
        let short: Vec<_> = both.into_iter().flatten().collect();
        let then = match short.iter().map(|(level, _)| *level).max()? {
            Pressure::Full => "takes no writes that need more",
            Pressure::High => "its bounded tables make room",
            _ => "its bounded tables grow no more",
        };
        let names: Vec<_> = short.into_iter().map(|(_, name)| name).collect();
        Some(format!("short of {}: {then}", names.join(" and of ")))
    }
}

/// For how long the load is measured.
const LOAD_FOR: Duration = Duration::from_millis(250);

/// Measures what the processes in view use.
pub(crate) async fn loads(db: &client::Database) -> Result<BTreeMap<String, Load>, client::Error> {
    let (begun, before) = (std::time::Instant::now(), db.vitals().await?);
    tokio::time::sleep(LOAD_FOR).await;
    let after = db.vitals().await?;
    let us = begun.elapsed().as_micros().max(1) as u64;
    let load = |(name, now): (String, node::Vitals)| {
        let used = now.cpu_us.saturating_sub(before.get(&name)?.cpu_us);
        let load = Load {
            cpu_permille: used * 1000 / us,
            resident_mib: now.resident_bytes >> 20,
            used_mib: now.used_bytes >> 20,
            memory_max_mib: now.memory_max.map(|bytes| bytes >> 20),
            shortage: now.shortage,
        };
        Some((name, load))
    };
    Ok(after.into_iter().filter_map(load).collect())
}

/// One node, as `nodes --json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    node: &'a NodeLine,
    #[serde(flatten)]
    load: Option<&'a Load>,
}

/// `nodes`.
pub(crate) async fn list(data: &Path, json: bool) -> Result<u8> {
    let (status, loads) = match ask(data, Ask::Nodes).await? {
        Told::Nodes(status, loads) => (status, loads),
        other => return done(other, None),
    };
    if json {
        let lines: Vec<_> = status.nodes.iter().map(|node| Line { node, load: loads.get(&node.name) }).collect();
        println!("{}", serde_json::json!({ "nodes": lines, "buried": status.buried }));
        return Ok(0);
    }
    print(&status, &loads);
    Ok(0)
}

fn print(status: &Status, loads: &BTreeMap<String, Load>) {
    println!(
        "{:<20} {:<9} {:<11} {:<12} {:<10} {:>6} {:>7}  ID",
        "NODE", "STATUS", "VERDICT", "LAST SEEN", "ZONE", "CPU", "RAM"
    );
    for node in &status.nodes {
        let seen = match node.away_s {
            None => "now".into(),
            Some(s) => format!("{} ago", humantime::format_duration(Duration::from_secs(s))),
        };
        let load = loads.get(&node.name);
        let cpu = load.map_or("-".into(), |l| format!("{} %", l.cpu_permille / 10));
        let ram = load.map_or("-".into(), |l| format!("{} MiB", l.resident_mib));
        let zone = node.zone.as_deref().unwrap_or("-");
        println!(
            "{:<20} {:<9} {:<11} {:<12} {:<10} {:>6} {:>7}  {}",
            node.name, node.status, node.verdict, seen, zone, cpu, ram, node.id
        );
        if node.away_s.is_some() {
            println!("{:<20} {}", "", node.why);
        }
        if let Some(short) = load.and_then(Load::shortage) {
            println!("{:<20} {short}", "");
        }
    }
    for burial in &status.buried {
        println!(
            "{:<20} {:<9} by {} on {}: {}  {}",
            burial.name,
            "buried",
            burial.by,
            crate::conflicts::time(base::WallMs(burial.at_ms)),
            burial.why,
            burial.id
        );
    }
}

/// How often it is looked how far a node on its way out has got.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often in a row a node on its way out may be asked in vain.
const LOOKS_MAX: u32 = 60;

async fn status(data: &Path) -> Result<Status> {
    match ask(data, Ask::Status).await? {
        Told::Status(status) => Ok(*status),
        _ => anyhow::bail!("the node does not say how things stand"),
    }
}

/// `leave`: says so, and waits until it is done.
pub(crate) async fn leave(data: &Path, named: Option<String>) -> Result<u8> {
    let before = status(data).await?;
    let named = named.unwrap_or_else(|| before.node.clone());
    let told = ask(data, Ask::Word(named.clone(), Word::Leave)).await?;
    if !matches!(told, Told::Done | Told::Outcome(Outcome::Done { .. })) {
        return done(told, None);
    }
    let mut all = before.nodes.iter();
    let id = all.find(|n| n.name == named || n.id.starts_with(&named)).map(|n| n.id.clone()).unwrap_or_default();
    let mine = before.nodes.iter().any(|n| n.id == id && n.name == before.node);
    let is_it = |n: &&NodeLine| n.id == id;
    let (mut said, mut silent) = (None, 0);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = match status(data).await {
            Ok(now) => now,
            // It goes when nobody counts on it any more; while it stops it says nothing.
            Err(_) if mine && !crate::control::socket_path(data).exists() => break,
            Err(_) if mine && silent < LOOKS_MAX => {
                silent += 1;
                continue;
            }
            Err(e) => return Err(e.context("whether it has left is not known")),
        };
        silent = 0;
        let Some(line) = now.nodes.iter().find(is_it) else { break };
        if line.status != "leaving" && said.is_some() && now.leaving.is_none() {
            eprintln!("tombolo: {named} stays: somebody took it back, or it is away");
            return Ok(FAILED);
        }
        let text = match now.leaving.filter(|_| mine) {
            Some((left, of)) => format!("{} of {of} copies have others to do their work", of.saturating_sub(left)),
            None => format!("{named} gives away what it has"),
        };
        if said.as_ref() != Some(&text) {
            println!("{text}");
            said = Some(text);
        }
    }
    println!("{named} has left");
    Ok(0)
}

/// `condemn`, `admit`, `immortalize` and `rename-node`: what an operator says of a node.
pub(crate) async fn say(data: &Path, name: String, word: Word) -> Result<u8> {
    match ask(data, Ask::Word(name.clone(), word)).await? {
        Told::Outcome(Outcome::Failed(Refusal::Check(_))) => {
            eprintln!("tombolo: {name} is not there any more, or not so marked; nothing was changed");
            Ok(FAILED)
        }
        other => done(other, None),
    }
}

//! `tombolo events`: what happened lately at all nodes in view, and what happens.

use crate::commands::{ask, done};
use crate::control::{Ask, Told};
use anyhow::{Result, bail};
use base::{NodeId, WallMs};
use node::{EventMark, Happened};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How often it is asked for more.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What is asked for.
pub(crate) struct Wanted {
    pub follow: bool,
    pub json: bool,
    pub node: Option<String>,
    pub limit: u32,
}

fn line(node: &str, event: &Happened, json: bool) -> String {
    if json {
        return serde_json::json!({
            "node": node,
            "at_ms": event.at.0,
            "grade": event.grade.name(),
            "kind": event.kind,
            "text": event.text,
            "start": event.mark.incarnation,
            "number": event.mark.number,
        })
        .to_string();
    }
    let line = format!(
        "{}  {node:<12} {:<5} {:<12} {}",
        crate::conflicts::time(event.at),
        event.grade.name(),
        event.kind,
        event.text
    );
    // Names and reasons come from anywhere.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The latest of all nodes, by the time that each says.
fn latest(told: &BTreeMap<NodeId, (String, Vec<Happened>)>, wanted: &Wanted) -> Vec<(WallMs, String)> {
    let of = |name: &String| wanted.node.as_ref().is_none_or(|node| node == name);
    let nodes = told.values().filter(|(name, _)| of(name));
    let lines = nodes.flat_map(|(name, all)| all.iter().map(move |event| (event.at, line(name, event, wanted.json))));
    let mut lines: Vec<_> = lines.collect();
    lines.sort_by_key(|(at, _)| *at);
    lines.drain(..lines.len().saturating_sub(wanted.limit as usize));
    lines
}

/// Prints what happened, and goes on as long as it is read if it is to follow.
pub(crate) async fn run(data: &Path, mut wanted: Wanted) -> Result<u8> {
    let mut since: BTreeMap<NodeId, EventMark> = BTreeMap::new();
    let mut out = std::io::stdout();
    loop {
        let told = match ask(data, Ask::Events(since.clone(), wanted.limit)).await? {
            Told::Events(told) => told,
            other => return done(other, None),
        };
        // Later it may be silent for a moment.
        let missing = |node: &&String| since.is_empty() && !told.values().any(|(name, _)| name == *node);
        if let Some(node) = wanted.node.as_ref().filter(missing) {
            bail!("no node {node:?} answers: `tombolo nodes` says who there is");
        }
        for (_, line) in latest(&told, &wanted) {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        if !wanted.follow {
            return Ok(0);
        }
        wanted.limit = u32::MAX;
        since.extend(told.iter().filter_map(|(node, (_, all))| Some((*node, all.last()?.mark))));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

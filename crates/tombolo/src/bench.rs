//! `tombolo bench kv`: load from inside the node, where an embedding program would be, so that it is the database that is
//! measured and not the control socket.

use crate::cli::BenchKv;
use crate::commands::{ask, done};
use crate::control::{Ask, Told};
use crate::tables;
use anyhow::Result;
use bytes::Bytes;
use client::{Batch, Check, Database, Error, Outcome, Table, Write};
use hdrhistogram::Histogram;
use node::{TableOptions, Vitals};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The table that is measured.
pub(crate) const TABLE: &str = "tombolo-bench";
/// How long its copies may take to come into step.
const READY_WAIT: Duration = Duration::from_secs(20);
/// Clients that put the keys which are to be read.
const FILLERS: u64 = 64;

/// What each client does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Op {
    Put,
    Get,
    PutIfAbsent,
    Mixed,
}

/// A load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    name: String,
    op: Op,
    clients: u32,
    value_size: u32,
    keys: u32,
    seconds: u32,
    warm: u32,
    keep: bool,
    options: TableOptions,
}

/// What came of it. Times in microseconds; processor seconds by node, of the counted time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    ops_s: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    /// Operations that were refused, could not be done, or of unknown fate.
    failed: u64,
    /// What each reason for that came to, in their own words.
    reasons: BTreeMap<String, u64>,
    in_sync: u16,
    seconds: f64,
    cpu_s: BTreeMap<String, f64>,
}

/// Why there is no report.
pub(crate) enum Stopped {
    Error(Error),
    Why(String),
}

impl From<Error> for Stopped {
    fn from(e: Error) -> Self {
        Stopped::Error(e)
    }
}

/// The table goes with the load, however that ends.
struct Scratch {
    db: Database,
    name: String,
    keep: bool,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let (db, name) = (self.db.clone(), std::mem::take(&mut self.name));
            tokio::spawn(async move { db.drop_table(&name).await });
        }
    }
}

/// The command.
pub(crate) async fn kv(data: &Path, kv: BenchKv) -> Result<u8> {
    let spec = Spec {
        name: kv.name,
        op: kv.op,
        clients: kv.clients,
        value_size: kv.value_size,
        keys: kv.keys,
        seconds: kv.seconds,
        warm: kv.warm,
        keep: kv.keep,
        options: tables::options(&kv.table)?,
    };
    let report = match ask(data, Ask::Bench(spec.clone())).await? {
        Told::Bench(report) => report,
        other => return done(other, None),
    };
    if kv.json {
        let mut line = serde_json::to_value(&report)?;
        line["op"] = serde_json::to_value(format!("{:?}", spec.op).to_lowercase())?;
        line["clients"] = spec.clients.into();
        line["value_size"] = spec.value_size.into();
        println!("{line}");
        return Ok(0);
    }
    println!("{} operations a second over {:.1} s, {} copies in sync", report.ops_s, report.seconds, report.in_sync);
    println!(
        "half within {:.0} us, 99 % within {:.0} us, 99.9 % within {:.0} us, all within {:.0} us",
        report.p50_us, report.p99_us, report.p999_us, report.max_us
    );
    if report.failed > 0 {
        println!("{} operations were not done, or it is not known:", report.failed);
    }
    for (reason, times) in &report.reasons {
        println!("{times} times: {reason}");
    }
    for (node, seconds) in &report.cpu_s {
        println!("processor time of {node}: {seconds:.1} s");
    }
    Ok(0)
}

/// Puts the load on this node's database.
pub(crate) async fn run(db: &Database, spec: &Spec) -> Result<Report, Stopped> {
    let name = &spec.name;
    let table = db.create_table(name, spec.options.clone(), false).await.map_err(|e| match e {
        Error::Node(node::ClientError::TableExists(_)) => Stopped::Why(format!(
            "a table {name} is there: another load runs, or its table was kept; `tombolo table drop {name}` removes it"
        )),
        other => other.into(),
    })?;
    let _scratch = Scratch { db: db.clone(), name: name.clone(), keep: spec.keep };
    let in_sync = ready(db, name, spec.options.copies).await?;
    if matches!(spec.op, Op::Get | Op::Mixed) {
        fill(&table, spec).await?;
    }
    let load = Load { table, op: spec.op, keys: spec.keys.into(), value: vec![b'x'; spec.value_size as usize].into() };
    let load = Arc::new((load, AtomicU64::new(0)));
    let begun = Instant::now() + Duration::from_secs(spec.warm.into());
    let end = begun + Duration::from_secs(spec.seconds.into());
    // Nanoseconds, to three digits.
    let mut all = Histogram::new(3).map_err(|e| Stopped::Why(format!("times cannot be counted: {e}")))?;
    let mut clients = JoinSet::new();
    for _ in 0..spec.clients {
        let (load, took) = (load.clone(), all.clone());
        clients.spawn(async move { client(&load.0, &load.1, (begun, end), took).await });
    }
    tokio::time::sleep_until(begun.into()).await;
    let before = db.vitals().await?;
    let mut reasons = BTreeMap::new();
    while let Some(part) = clients.join_next().await {
        let (took, bad) = part.map_err(|e| Stopped::Why(format!("a client of the load failed: {e}")))?;
        let _ = all.add(took);
        for (reason, times) in bad {
            *reasons.entry(reason).or_default() += times;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = db.vitals().await?;
    let us = |nanos: u64| nanos as f64 / 1000.0;
    Ok(Report {
        ops_s: (all.len() as f64 / seconds) as u64,
        p50_us: us(all.value_at_quantile(0.5)),
        p99_us: us(all.value_at_quantile(0.99)),
        p999_us: us(all.value_at_quantile(0.999)),
        max_us: us(all.max()),
        failed: reasons.values().sum(),
        reasons,
        in_sync,
        seconds,
        cpu_s: after.iter().filter_map(|(node, now)| Some((node.clone(), used(before.get(node)?, now)))).collect(),
    })
}

fn used(before: &Vitals, after: &Vitals) -> f64 {
    after.cpu_us.saturating_sub(before.cpu_us) as f64 / 1e6
}

/// Waits until all fragments are led, and as many copies in sync as there can be; how many that is.
async fn ready(db: &Database, name: &str, copies: u16) -> Result<u16, Stopped> {
    let end = Instant::now() + READY_WAIT;
    loop {
        let status = db.status().await?;
        let nodes = status.island.len().min(usize::from(copies)) as u16;
        let line = status.tables.iter().find(|t| t.name == name);
        match line.filter(|t| t.led == t.fragments) {
            Some(t) if t.in_sync >= nodes => return Ok(t.in_sync),
            Some(t) if Instant::now() > end => {
                return Err(Stopped::Why(format!("{} of {nodes} copies were in sync after 20 s", t.in_sync)));
            }
            None if Instant::now() > end => {
                return Err(Stopped::Why("not every fragment had a leader after 20 s; see `tombolo status`".into()));
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

struct Load {
    table: Table,
    op: Op,
    keys: u64,
    value: Bytes,
}

fn key(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

impl Load {
    async fn put(&self, key: Bytes, checks: Vec<Check>) -> Result<Result<(), String>, Error> {
        let writes = vec![Write::Put { key: key.clone(), value: self.value.clone(), ttl_ms: None }];
        Ok(match self.table.batch(&key, Batch { checks, writes, sync: false }).await? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Failed(refusal) => Err(refusal.to_string()),
            Outcome::Unknown => Err("its outcome is unknown".to_string()),
        })
    }

    /// The `n`th operation of all; and why it was not done.
    async fn one(&self, n: u64) -> Result<(), String> {
        let scattered = key(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.keys);
        let get = async || {
            let found = self.table.get(&scattered).await?;
            Ok(found.map(drop).ok_or_else(|| "a key was missing".to_string()))
        };
        let done = match self.op {
            Op::Get => get().await,
            Op::Mixed if n.is_multiple_of(2) => get().await,
            Op::Put | Op::Mixed => self.put(scattered.clone(), Vec::new()).await,
            // Every key is new.
            Op::PutIfAbsent => self.put(key(n), vec![Check::Absent(key(n))]).await,
        };
        done.unwrap_or_else(|e: Error| Err(e.to_string()))
    }
}

/// Does one operation after the other; `took` is for nanoseconds.
async fn client(
    load: &Load,
    next: &AtomicU64,
    (begun, end): (Instant, Instant),
    mut took: Histogram<u64>,
) -> (Histogram<u64>, BTreeMap<String, u64>) {
    let mut failed = BTreeMap::new();
    let mut start = Instant::now();
    while start < end {
        let done = load.one(next.fetch_add(1, Ordering::Relaxed)).await;
        let now = Instant::now();
        if start >= begun {
            match done {
                Ok(()) => {
                    let _ = took.record((now - start).as_nanos() as u64);
                }
                Err(why) => *failed.entry(why).or_default() += 1,
            }
        }
        if load.op == Op::Get {
            // A read that is a function call never gives way by itself.
            tokio::task::consume_budget().await;
        }
        start = now;
    }
    (took, failed)
}

/// All keys that are to be read.
async fn fill(table: &Table, spec: &Spec) -> Result<(), Stopped> {
    let value = Bytes::from(vec![b'x'; spec.value_size as usize]);
    let mut fillers = JoinSet::new();
    for filler in 0..FILLERS {
        let load = Load { table: table.clone(), op: spec.op, keys: spec.keys.into(), value: value.clone() };
        fillers.spawn(async move {
            for n in (filler..load.keys).step_by(FILLERS as usize) {
                if let Err(why) = load.put(key(n), Vec::new()).await? {
                    return Err(Stopped::Why(format!("a key could not be put before the load: {why}")));
                }
            }
            Ok(())
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled.map_err(|e| Stopped::Why(format!("filling the table failed: {e}")))??;
    }
    Ok(())
}

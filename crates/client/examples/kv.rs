//! Load from inside a node: the driver is one of the nodes, as an embedding program would be.
//!
//! `cargo run --release -p client --example kv -- --data DIR --cookie-file FILE --join IP:PORT --op put --clients 64`

use bytes::Bytes;
use clap::Parser;
use client::{Batch, Check, Database, Outcome, Table, Write};
use node::{Durability, Storage, TableOptions};
use runtime::{Cookie, Settings};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    /// Where this node keeps its data.
    #[arg(long)]
    data: std::path::PathBuf,
    /// The cluster's secret.
    #[arg(long)]
    cookie_file: std::path::PathBuf,
    /// The other nodes.
    #[arg(long)]
    join: Vec<std::net::SocketAddr>,
    /// How many nodes there must be, this one included, before it begins.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// put, put-if-absent, get (of 100,000 keys that it puts first), or fill (so many records, then stay).
    #[arg(long, default_value = "put")]
    op: String,
    /// Clients at once.
    #[arg(long, default_value_t = 1)]
    clients: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024)]
    value_size: usize,
    /// Copies.
    #[arg(long, default_value_t = 3)]
    copies: u16,
    /// Seconds of load before anything is counted.
    #[arg(long, default_value_t = 0)]
    warm: u64,
    /// On disc, flushed before each write is acknowledged, instead of in RAM.
    #[arg(long)]
    durable: bool,
    /// How many seconds, or how many records for `fill`.
    #[arg(long, default_value_t = 5)]
    amount: u64,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failed = Box<dyn std::error::Error>;

/// A node of the cluster in this process, and a table that all nodes hold in sync.
async fn begin(args: &Args) -> Result<(runtime::Handle, Table), Failed> {
    let settings = Settings {
        data: args.data.clone(),
        name: "driver".into(),
        group: "default".into(),
        cookie: Cookie::load_or_make(&args.cookie_file)?.bytes,
        accept: Vec::new(),
        listen: Some(([127, 0, 0, 1], 0).into()),
        advertise: None,
        join: args.join.clone(),
        multicast: false,
        zone: None,
        discover_delay: Duration::from_secs(3),
    };
    let handle = runtime::start(settings)?;
    let db = Database::new(handle.clone(), Duration::from_secs(20));
    while db.status().await?.nodes.iter().filter(|n| n.reachable).count() < args.nodes {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (storage, durability) =
        if args.durable { (Storage::Disc, Durability::Sync) } else { (Storage::Ram, Durability::Interval) };
    let options = TableOptions { copies: args.copies, storage, durability, ..TableOptions::default() };
    let table = db.create_table("load", options, true).await?;
    let ready = |line: &node::TableLine| line.led == line.fragments && usize::from(line.in_sync) >= args.nodes;
    while !db.status().await?.tables.iter().any(|t| t.name == "load" && ready(t)) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((handle, table))
}

/// All 100,000 keys.
async fn populate(table: &Table, value_size: usize) -> Result<(), Failed> {
    let value = Bytes::from(vec![b'x'; value_size]);
    let clients = (0..64u64).map(|client| {
        let (table, value) = (table.clone(), value.clone());
        tokio::spawn(async move {
            for n in (client..100_000).step_by(64) {
                let key = Bytes::copy_from_slice(&n.to_be_bytes());
                let writes = vec![Write::Put { key: key.clone(), value: value.clone(), ttl_ms: None }];
                table.batch(&key, Batch { checks: Vec::new(), writes, sync: false }).await?;
            }
            Ok::<_, client::Error>(())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await??;
    }
    Ok(())
}

/// One line of JSON; `took` in nanoseconds.
fn report(args: &Args, mut took: Vec<u64>, within: Duration) {
    took.sort_unstable();
    let us = |nanos: &u64| *nanos as f64 / 1000.0;
    let at = |part: f64| took.get((took.len() as f64 * part) as usize).map_or(0.0, us);
    println!(
        "{{\"op\":\"{}\",\"clients\":{},\"ops_s\":{:.0},\"p50_us\":{:.1},\"p99_us\":{:.1},\"max_us\":{:.0}}}",
        args.op,
        args.clients,
        took.len() as f64 / within.as_secs_f64(),
        at(0.5),
        at(0.99),
        took.last().map_or(0.0, us)
    );
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let (handle, table) = begin(&args).await?;
    let fill = args.op == "fill";
    let (absent, get) = (args.op == "put-if-absent", args.op == "get");
    if get {
        populate(&table, args.value_size).await?;
    }
    let value = Bytes::from(vec![b'x'; args.value_size]);
    let (next, begun) = (Arc::new(AtomicU64::new(0)), Instant::now() + Duration::from_secs(args.warm));
    let end = begun + Duration::from_secs(if fill { 3600 } else { args.amount });
    let salt = u64::from(std::process::id()) << 32;
    let clients = (0..args.clients).map(|_| {
        let (table, value, next) = (table.clone(), value.clone(), next.clone());
        tokio::spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < end {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if fill && n >= args.amount {
                    break;
                }
                // Fresh keys where they must be absent, 100,000 otherwise.
                let key = match (fill, absent) {
                    (true, _) => n,
                    (_, true) => n ^ salt,
                    _ => n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 100_000,
                };
                let key = Bytes::copy_from_slice(&key.to_be_bytes());
                let checks = if absent { vec![Check::Absent(key.clone())] } else { Vec::new() };
                let writes = vec![Write::Put { key: key.clone(), value: value.clone(), ttl_ms: None }];
                let start = Instant::now();
                if get {
                    match table.get(&key).await {
                        Ok(Some(_)) if start < begun => {}
                        Ok(Some(_)) => took.push(start.elapsed().as_nanos() as u64),
                        other => eprintln!("{other:?}"),
                    }
                    continue;
                }
                match table.batch(&key, Batch { checks, writes, sync: false }).await {
                    Ok(Outcome::Done { .. }) if start < begun => {}
                    Ok(Outcome::Done { .. }) => took.push(start.elapsed().as_nanos() as u64),
                    other => eprintln!("{other:?}"),
                }
            }
            took
        })
    });
    let mut took: Vec<u64> = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        took.extend(client.await?);
    }
    report(&args, took, begun.elapsed());
    if fill {
        // The records stay as long as this node does.
        tokio::signal::ctrl_c().await?;
    }
    handle.stop();
    handle.ended().await;
    Ok(())
}

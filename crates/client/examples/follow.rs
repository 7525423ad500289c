//! A program with the database inside: it becomes a node, keeps a counter in a table that all nodes share, and prints every
//! change that any of them makes. Start it in two terminals, with two directories and one secret:
//!
//! `cargo run --release -p client --example follow -- /tmp/a /tmp/secret`
//! `cargo run --release -p client --example follow -- /tmp/b /tmp/secret 127.0.0.1:7474`

use client::{Batch, Bump, Change, Database, Outcome, Position, Write};
use node::TableOptions;
use runtime::{Cookie, Settings};
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, secret, rest @ ..] = &args[..] else {
        return Err("usage: follow DIRECTORY SECRET-FILE [IP:PORT of another node ...]".into());
    };
    let node = runtime::start(Settings {
        data: data.into(),
        name: data.clone(),
        group: "example".into(),
        cookie: Cookie::load_or_make(secret.as_ref())?.bytes,
        accept: Vec::new(),
        listen: None,
        advertise: None,
        join: rest.iter().map(|addr| addr.parse()).collect::<Result<_, _>>()?,
        providers: Vec::new(),
        multicast: true,
        zone: None,
        weight: None,
        functions: Default::default(),
        host: std::sync::Arc::new(runtime::NoHost),
        ceilings: Default::default(),
        threads: None,
        discover_delay: Duration::from_secs(1),
        patience: Default::default(),
    })?;
    println!("{data} listens on {}; Ctrl-C ends it", node.listen);
    let db = Database::new(node.clone(), Duration::from_secs(10));
    let table = db.create_table("counters", TableOptions::default(), true).await?;

    // One key per node, and one for all; a bump never fails another's.
    let writer = table.clone();
    let name = data.clone();
    tokio::spawn(async move {
        loop {
            for key in [name.clone(), "all".into()] {
                let bump = Write::Bump { key: key.clone().into(), by: Bump::Add, fields: vec![1] };
                match writer.batch(key.as_bytes(), Batch { writes: vec![bump], ..Batch::default() }).await {
                    Ok(Outcome::Done { .. }) => {}
                    other => eprintln!("{key}: {other:?}"),
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });

    // Everything that is there, then everything that comes. A program that is to go on where it stopped keeps
    // `changes.position().to_bytes()`.
    let mut changes = table.subscribe(Position::default());
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Ok(Change::Key { key, record }) => {
                    let count = record.value.and_then(|v| Some(u64::from_be_bytes(v[..].try_into().ok()?)));
                    println!("{} is {}", String::from_utf8_lossy(&key), count.unwrap_or(0));
                }
                Ok(Change::Anew { fragment }) => println!("all of fragment {} is told again", fragment.place()),
                Err(e) => eprintln!("{e}"),
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    node.stop();
    node.ended().await;
    Ok(())
}

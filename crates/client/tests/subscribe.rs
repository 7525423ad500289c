//! Subscriptions on real nodes in this process, over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use client::{Batch, Change, Database, Outcome, Position, Subscription, Table, Write};
use node::TableOptions;
use runtime::{Handle, Settings};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

fn node(dir: &Path, name: &str, join: &[&Handle]) -> Handle {
    let settings = Settings {
        data: dir.join(name),
        name: name.into(),
        group: "subscribe".into(),
        cookie: b"a secret".to_vec(),
        accept: Vec::new(),
        listen: Some(([127, 0, 0, 1], 0).into()),
        advertise: None,
        join: join.iter().map(|h| h.listen).collect(),
        providers: Vec::new(),
        multicast: false,
        zone: None,
        weight: None,
        functions: Default::default(),
        host: Arc::new(runtime::NoHost),
        ceilings: Default::default(),
        threads: None,
        discover_delay: Duration::from_millis(500),
        patience: Default::default(),
    };
    runtime::start(settings).unwrap()
}

async fn write(table: &Table, write: Write) {
    let key = write.key().clone();
    let outcome = table.batch(&key, Batch { writes: vec![write], ..Batch::default() }).await.unwrap();
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
}

async fn put(table: &Table, key: &str, value: &str) {
    write(table, Write::Put { key: key.to_string().into(), value: value.to_string().into(), ttl_ms: None }).await;
}

/// Reads changes until so many keys are as they should be.
async fn until(from: &mut Subscription, seen: &mut BTreeMap<Bytes, Option<Bytes>>, want: &[(&str, Option<&str>)]) {
    let want: Vec<(Bytes, Option<Bytes>)> =
        want.iter().map(|(k, v)| (k.to_string().into(), v.map(|v| v.to_string().into()))).collect();
    let all = async {
        while !want.iter().all(|(k, v)| seen.get(k) == Some(v)) {
            match from.next().await.unwrap() {
                Change::Key { key, record } => drop(seen.insert(key, record.value)),
                Change::Anew { .. } => panic!("nothing is forgotten that it has not seen"),
            }
        }
    };
    tokio::time::timeout(LIMIT, all).await.expect("the changes come");
}

#[tokio::test]
async fn a_subscriber_sees_what_is_there_and_what_comes_and_goes_on_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let a = node(dir.path(), "a", &[]);
    let db = Database::new(a.clone(), LIMIT);
    // One copy only, so that the other node has none.
    let options = TableOptions { copies: 1, fragments: 3, ..TableOptions::default() };
    let table = db.create_table("t", options, false).await.unwrap();
    put(&table, "old", "1").await;
    let (mut all, mut seen) = (table.subscribe(Position::default()), BTreeMap::new());
    until(&mut all, &mut seen, &[("old", Some("1"))]).await;
    assert_eq!(all.try_next().await.unwrap(), None);
    for n in 0..100 {
        put(&table, "often", &n.to_string()).await;
    }
    write(&table, Write::Delete { key: "old".into() }).await;
    put(&table, "new", "x").await;
    until(&mut all, &mut seen, &[("old", None), ("new", Some("x")), ("often", Some("99"))]).await;
    // Its position is taken up by a node that holds no copy, and nothing is told again.
    assert_eq!(all.try_next().await.unwrap(), None);
    let kept = all.position().to_bytes();
    let b = node(dir.path(), "b", &[&a]);
    let far = Database::new(b.clone(), LIMIT);
    let met = async {
        while far.table("t").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, met).await.expect("the nodes meet");
    let there = far.table("t").await.unwrap();
    let (mut rest, mut later) = (there.subscribe(Position::from_bytes(&kept).unwrap()), BTreeMap::new());
    put(&table, "last", "y").await;
    until(&mut rest, &mut later, &[("last", Some("y"))]).await;
    assert_eq!(later.len(), 1, "{later:?}");
    // From the beginning, everything, in parts: more than one answer carries.
    let big = "v".repeat(100_000);
    for n in 0..10 {
        put(&table, &format!("big{n}"), &big).await;
    }
    let mut whole = there.subscribe(Position::default());
    let want: Vec<String> = (0..10).map(|n| format!("big{n}")).collect();
    let want: Vec<(&str, Option<&str>)> = want.iter().map(|k| (k.as_str(), Some(big.as_str()))).collect();
    until(&mut whole, &mut BTreeMap::new(), &want).await;
    // A position kept after each change: whoever goes on from it misses nothing.
    let mut one_by_one = table.subscribe(Position::default());
    let mut seen = BTreeMap::new();
    while seen.len() < 5 {
        if let Change::Key { key, record } = one_by_one.next().await.unwrap() {
            seen.insert(key, record.value);
        }
        let mut rest = there.subscribe(one_by_one.position().clone());
        until(&mut rest, &mut seen.clone(), &want).await;
    }
    assert!(Position::from_bytes(b"nonsense").is_err());
    for handle in [b, a] {
        handle.stop();
        handle.ended().await;
    }
}

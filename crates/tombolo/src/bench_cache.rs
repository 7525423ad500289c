//! `bench cache`: how much of what is asked for each policy of eviction keeps, on a trace.

use crate::text::size_bytes;
use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use evict::{Order, POLICIES, Policy, Slot};
use serde::Serialize;
use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What is replayed, and into how much room.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BenchCache {
    /// A file with a request a line: a key, or time, key and size in bytes, separated by commas or blanks; or, with the ending
    /// .oracleGeneral, libCacheSim's binary form. Without: keys that are made up.
    pub trace: Option<PathBuf>,
    /// Room for so many records.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub records: u64,
    /// Room for so many bytes of values instead, as the trace tells sizes.
    #[arg(long, value_name = "SIZE", conflicts_with = "records")]
    pub bytes: Option<String>,
    /// Of what is made up: how many requests,
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub requests: u64,
    /// of how many keys,
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    pub keys: u32,
    /// how much more the first are asked for than the last (Zipf's exponent),
    #[arg(long, default_value_t = 1.0)]
    pub exponent: f64,
    /// and with runs of keys that come once: a third of all.
    #[arg(long)]
    pub scans: bool,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// One policy's part.
#[derive(Serialize, Debug)]
struct Line {
    policy: String,
    requests: u64,
    hits: u64,
    hit_ratio: f64,
    byte_hit_ratio: f64,
    evictions: u64,
}

struct Cache {
    order: Order,
    slots: HashMap<u64, (Slot, u64)>,
    line: Line,
    bytes: (u64, u64),
}

impl Cache {
    fn new(policy: Policy) -> Cache {
        let line = Line {
            policy: policy.to_string(),
            requests: 0,
            hits: 0,
            hit_ratio: 0.0,
            byte_hit_ratio: 0.0,
            evictions: 0,
        };
        Cache { order: Order::new(policy), slots: HashMap::new(), line, bytes: (0, 0) }
    }

    /// Somebody asks for a record; what is not there is put there.
    fn ask(&mut self, key: u64, size: u64, room: u64) {
        self.line.requests += 1;
        self.bytes.1 = self.bytes.1.saturating_add(size);
        if let Some((slot, before)) = self.slots.get_mut(&key) {
            (self.line.hits, self.bytes.0) = (self.line.hits + 1, self.bytes.0.saturating_add(size));
            self.order.touch(*slot);
            if std::mem::replace(before, size) != size {
                self.order.change(*slot, size, None);
            }
        } else if size <= room {
            let slot = self.order.insert(Bytes::copy_from_slice(&key.to_be_bytes()), mix(key), size, None);
            self.slots.insert(key, (slot, size));
        }
        while self.order.bytes() > room {
            let Some((gone, _)) = self.order.evict() else { return };
            self.line.evictions += 1;
            let gone = gone[..].try_into().map(u64::from_be_bytes).unwrap_or_default();
            self.slots.remove(&gone);
        }
    }

    fn end(mut self) -> Line {
        self.line.hit_ratio = self.line.hits as f64 / self.line.requests.max(1) as f64;
        self.line.byte_hit_ratio = self.bytes.0 as f64 / self.bytes.1.max(1) as f64;
        self.line
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
fn mix(key: u64) -> u64 {
    let mut x = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `bench cache`.
pub(crate) fn run(bench: &BenchCache) -> Result<u8> {
    let room = bench.bytes.as_deref().map(size_bytes).transpose().map_err(|e| anyhow!("--bytes: {e}"))?;
    let mut caches = POLICIES.map(Cache::new);
    let mut ask = |key: u64, size: u64| {
        let size = if room.is_some() { size } else { 1 };
        caches.iter_mut().for_each(|cache| cache.ask(key, size, room.unwrap_or(bench.records)));
    };
    match &bench.trace {
        Some(path) if path.extension().is_some_and(|e| e == "oracleGeneral") => binary(path, &mut ask)?,
        Some(path) => lines(path, &mut ask)?,
        None => made_up(bench, &mut ask),
    }
    // Without times to expire the last is the first.
    let lines: Vec<Line> = caches.into_iter().map(Cache::end).filter(|line| line.policy != "ttl-first").collect();
    if bench.json {
        println!("{}", serde_json::to_string(&lines)?);
        return Ok(0);
    }
    println!(
        "{:<10} {:>12} {:>12} {:>10} {:>10} {:>12}",
        "POLICY", "REQUESTS", "HITS", "RATIO", "OF BYTES", "EVICTIONS"
    );
    for l in &lines {
        println!(
            "{:<10} {:>12} {:>12} {:>10.4} {:>10.4} {:>12}",
            l.policy, l.requests, l.hits, l.hit_ratio, l.byte_hit_ratio, l.evictions
        );
    }
    Ok(0)
}

/// Keys by Zipf's law, scattered; with runs of such that come once.
fn made_up(bench: &BenchCache, ask: &mut impl FnMut(u64, u64)) {
    let mut sum = 0.0;
    let add = |rank: u32| {
        sum += f64::from(rank).powf(-bench.exponent);
        sum
    };
    let sums: Vec<f64> = (1..=bench.keys).map(add).collect();
    let (mut asked, mut once) = (0, 0);
    for n in 0.. {
        let at = (mix(n) >> 11) as f64 / (1u64 << 53) as f64 * sum;
        ask(mix(sums.partition_point(|s| *s < at) as u64), 1);
        asked += 1;
        if bench.scans && n % 2000 == 1999 {
            for _ in 0..1000 {
                once += 1;
                ask(mix(u64::MAX - once), 1);
            }
            asked += 1000;
        }
        if asked >= bench.requests {
            return;
        }
    }
}

fn opened(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).with_context(|| format!("cannot read the trace {}", path.display()))?))
}

fn lines(path: &Path, ask: &mut impl FnMut(u64, u64)) -> Result<()> {
    for (number, line) in (1..).zip(opened(path)?.lines()) {
        let line = line.with_context(|| format!("{}, line {number}", path.display()))?;
        let fields: Vec<&str> = line.split([',', ' ', '\t']).filter(|field| !field.is_empty()).collect();
        let (key, size) = match fields[..] {
            // An empty line, or a header's.
            [] => continue,
            [key] => (key, Ok(1)),
            [_, _, size, ..] if number == 1 && size.parse::<u64>().is_err() => continue,
            [_, key, size, ..] => (key, size.parse()),
            [..] => return Err(anyhow!("{}, line {number}: neither a key, nor time, key and size", path.display())),
        };
        let size = size.with_context(|| format!("{}, line {number}: no size of a record", path.display()))?;
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        ask(hasher.finish(), size);
    }
    Ok(())
}

/// Of 24 bytes each, little-endian: seconds (4), object (8), bytes (4), when it comes again (8).
fn binary(path: &Path, ask: &mut impl FnMut(u64, u64)) -> Result<()> {
    let mut file = opened(path)?;
    let mut row = [0u8; 24];
    loop {
        match file.read_exact(&mut row) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read.with_context(|| format!("cannot read the trace {}", path.display()))?,
        }
        let key = u64::from_le_bytes(row[4..12].try_into().unwrap_or_default());
        let size = u32::from_le_bytes(row[12..16].try_into().unwrap_or_default());
        ask(key, size.max(1).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_of_each_form_are_read() {
        let dir = tempfile::tempdir().expect("dir");
        let asked = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let mut sizes = Vec::new();
            let mut keys = std::collections::BTreeSet::new();
            let mut ask = |key, size| {
                sizes.push(size);
                keys.insert(key);
            };
            let read = if name.ends_with("oracleGeneral") { binary(&path, &mut ask) } else { lines(&path, &mut ask) };
            read.map(|()| (keys.len(), sizes)).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(asked("a.txt", b"x\ny\n\nx\n"), Ok((2, vec![1, 1, 1])));
        assert_eq!(asked("b.csv", b"time,id,size\n1,x,10\n2,y,20\n3,x,10\n"), Ok((2, vec![10, 20, 10])));
        assert_eq!(asked("c.tr", b"1 x 10\n2 y 20\n"), Ok((2, vec![10, 20])));
        assert!(asked("d.csv", b"1,x,10\n2,y,much\n").expect_err("no size").contains("line 2"));
        assert!(asked("e.csv", b"1,x\n").expect_err("two").contains("time, key and size"));
        let row = |key: u64, size: u32| [&[0; 4], &key.to_le_bytes()[..], &size.to_le_bytes(), &[0; 8]].concat();
        let rows = [row(7, 100), row(9, 0), row(7, 100), vec![1, 2]].concat();
        assert_eq!(asked("f.oracleGeneral", &rows), Ok((2, vec![100, 1, 100])));
    }

    #[test]
    fn what_comes_once_does_not_drive_out_what_is_asked_for() {
        let bench = BenchCache {
            trace: None,
            records: 100,
            bytes: None,
            requests: 60_000,
            keys: 1000,
            exponent: 1.0,
            scans: true,
            json: false,
        };
        let mut caches = POLICIES.map(Cache::new);
        made_up(&bench, &mut |key, _| caches.iter_mut().for_each(|cache| cache.ask(key, 1, 100)));
        let hits: HashMap<String, u64> = caches.into_iter().map(Cache::end).map(|l| (l.policy, l.hits)).collect();
        assert!(hits["s3-fifo"] > hits["lru"] && hits["sieve"] > hits["lru"] && hits["lru"] > hits["fifo"], "{hits:?}");
    }
}

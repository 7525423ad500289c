//! `tombolo bench fs DIR`: what a program sees that works in this directory, whatever filesystem it is on.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CHUNK_BYTES: usize = 1024 * 1024;
const BLOCK_BYTES: u64 = 4096;
/// Random reads of one block each.
const RANDOM_READS: u64 = 2_000;

/// A directory of our own that goes, however the run ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The command.
pub(crate) fn run(dir: &Path, files: u32, mib: u32, threads: u32, json: bool) -> Result<u8> {
    let scratch = Scratch(dir.join(format!("tombolo-bench-{}", std::process::id())));
    let at = &scratch.0;
    std::fs::create_dir(at).with_context(|| format!("cannot make a directory in {}", dir.display()))?;
    let name = |n: u32| at.join(n.to_string());
    let each = |what: &'static str, threads: u32, one: &(dyn Fn(&Path) -> std::io::Result<()> + Sync)| {
        let (took, all) = over(files, threads, &|n| one(&name(n)))?;
        say(json, what, took, &all, files.into());
        anyhow::Ok(())
    };
    each("create", 1, &|path| OpenOptions::new().write(true).create_new(true).open(path).map(drop))?;
    each("stat", 1, &|path| std::fs::metadata(path).map(drop))?;
    each("open", 1, &|path| File::open(path).map(drop))?;
    each("unlink", 1, &|path| std::fs::remove_file(path))?;
    each("create-parallel", threads, &|path| OpenOptions::new().write(true).create_new(true).open(path).map(drop))?;
    each("unlink-parallel", threads, &|path| std::fs::remove_file(path))?;
    let big = at.join("big");
    stream(json, "write", mib, || write(&big, mib))?;
    // Only root may; others read what the kernel kept.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    stream(json, "read", mib, || read(&big))?;
    let file = File::open(&big).with_context(|| format!("cannot open {}", big.display()))?;
    let blocks = u64::from(mib) * CHUNK_BYTES as u64 / BLOCK_BYTES;
    let random = |n: u32| {
        let block = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
        file.read_exact_at(&mut [0; BLOCK_BYTES as usize], block * BLOCK_BYTES)
    };
    let (took, all) = over(RANDOM_READS as u32, 1, &random)?;
    say(json, "random-read", took, &all, RANDOM_READS);
    Ok(0)
}

/// Does something so many times, shared out over threads; how long it took in all and each.
fn over(
    count: u32,
    threads: u32,
    one: &(dyn Fn(u32) -> std::io::Result<()> + Sync),
) -> Result<(Duration, Histogram<u64>)> {
    let begun = Instant::now();
    let parts = std::thread::scope(|scope| {
        let part = |thread: u32| {
            scope.spawn(move || {
                let mut took = Vec::new();
                for n in (thread..count).step_by(threads as usize) {
                    let start = Instant::now();
                    one(n)?;
                    took.push(start.elapsed().as_nanos() as u64);
                }
                Ok::<_, std::io::Error>(took)
            })
        };
        let parts: Vec<_> = (0..threads).map(part).collect();
        parts.into_iter().map(|part| part.join()).collect::<Vec<_>>()
    });
    let took = begun.elapsed();
    let mut all = Histogram::new(3)?;
    for part in parts {
        let nanos = part.map_err(|_| anyhow::anyhow!("a thread of the load failed"))?;
        for nanos in nanos.context("a file operation failed")? {
            all.record(nanos)?;
        }
    }
    Ok((took, all))
}

fn say(json: bool, op: &str, took: Duration, all: &Histogram<u64>, count: u64) {
    let rate = count as f64 / took.as_secs_f64();
    let us = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
    if json {
        let (p50, p99, p999) = (us(0.5), us(0.99), us(0.999));
        let line = serde_json::json!({ "op": op, "ops_s": rate as u64, "p50_us": p50, "p99_us": p99, "p999_us": p999 });
        println!("{line}");
    } else {
        println!("{op:16} {rate:>9.0} a second, half within {:.0} us, 99 % within {:.0} us", us(0.5), us(0.99));
    }
}

fn stream(json: bool, op: &str, mib: u32, work: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
    let begun = Instant::now();
    work().with_context(|| format!("{op} of the large file"))?;
    let rate = f64::from(mib) / begun.elapsed().as_secs_f64();
    if json {
        println!("{}", serde_json::json!({ "op": op, "mib_s": (rate * 10.0).round() / 10.0 }));
    } else {
        println!("{op:16} {rate:>9.1} MiB a second");
    }
    Ok(())
}

fn write(path: &Path, mib: u32) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    // Not all alike, in case somebody below compresses.
    let mut chunk: Vec<u8> = (0..CHUNK_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
    for n in 0..mib {
        chunk[..4].copy_from_slice(&n.to_be_bytes());
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

fn read(path: &Path) -> std::io::Result<()> {
    let (mut file, mut chunk) = (File::open(path)?, vec![0; CHUNK_BYTES]);
    while file.read(&mut chunk)? > 0 {}
    Ok(())
}

//! `cargo xtask verify` is the gate that CI runs; `test` is its last part and the README's test command; `fix` mends what can
//! be mended; `fuzz` throws noise at whatever reads bytes from outside; `mutants` proves that the checkers see known bugs; `soak` runs as many histories as it is told.

mod tidy;

use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Instant;

/// Crates whose code and dependencies hold no clock, socket, thread, engine or system randomness.
const PURE: [&str; 8] = ["base", "wire", "discovery", "evict", "membership", "placement", "replica", "node"];
/// What their dependency closure must not hold.
const FORBIDDEN: [&str; 9] = ["tokio", "mio", "socket2", "fuser", "fjall", "getrandom", "rustix", "libc", "snow"];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["verify"] => verify(),
        ["test"] => test(),
        ["tidy"] => tidy::check(),
        ["purity"] => purity(),
        ["fix"] => cargo(&["fmt", "--all"]),
        ["mutants"] => cargo(&["test", "--release", "-p", "sim", "--test", "mutants", "--", "--nocapture"]),
        ["fuzz", seconds] => fuzz(seconds, 0),
        ["soak", seeds] => cargo(&["run", "--release", "-p", "sim", "--", "--seeds", seeds]),
        _ => bail!("usage: cargo xtask verify | test | tidy | purity | fix | mutants | fuzz SECONDS | soak SEEDS"),
    }
}

/// What a build needs for libFuzzer to see where an input leads.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// What is fuzzed: see `fuzz/src`.
const FUZZ_TARGETS: [&str; 3] = ["peers", "stored", "outside"];

/// This machine, as the compiler names it.
fn host() -> Result<String> {
    let out = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().find_map(|l| l.strip_prefix("host: ")).map(String::from).context("rustc does not name its host")
}

/// How long the gate fuzzes each target.
const FUZZ_SECONDS: &str = "20";

/// Runs every fuzz target for so many seconds, from what earlier runs have found. `seed` 0: another each time; the gate begins
/// with the same, so that what it says is of the change and not of chance.
fn fuzz(seconds: &str, seed: u32) -> Result<()> {
    let seconds: u64 = seconds.parse().context("the seconds to fuzz each target for")?;
    let host = host()?;
    // Named, so that the flags do not go to build scripts.
    let build = ["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target/fuzz"];
    let mut cargo = Command::new("cargo");
    let status = cargo.args(build).args(["--target", &host]).env("RUSTFLAGS", COVERAGE).status();
    let status = status.context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", build.join(" "));
    }
    for target in FUZZ_TARGETS {
        let corpus = format!("target/fuzz/corpus/{target}");
        std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {corpus}"))?;
        let found = format!("-artifact_prefix=target/fuzz/{target}-");
        let (time, seed) = (format!("-max_total_time={seconds}"), format!("-seed={seed}"));
        // Small inputs: what a frame can do wrong it can do in a few hundred bytes.
        let args = [
            &corpus,
            "-max_len=2048",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            &found,
            &time,
            &seed,
        ];
        let program = format!("target/fuzz/{host}/release/{target}");
        let status = Command::new(&program).args(args).status().with_context(|| format!("cannot run {program}"))?;
        if !status.success() {
            bail!("the fuzz target {target} failed; what did it lies in target/fuzz/{target}-*");
        }
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    let status = Command::new("cargo").args(args).status().context("cannot run cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} failed", args.join(" ")) }
}

/// Runs one part and prints how long it took.
fn part(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let start = Instant::now();
    work()?;
    println!("== {name}: {} s", start.elapsed().as_secs());
    Ok(())
}

fn verify() -> Result<()> {
    part("format", || cargo(&["fmt", "--all", "--check"]))?;
    part("tidy", tidy::check)?;
    part("purity", purity)?;
    part("clippy", || {
        cargo(&["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    })?;
    part("fuzzing", || fuzz(FUZZ_SECONDS, 1))?;
    test()
}

fn test() -> Result<()> {
    part("unit tests and simulation", || {
        cargo(&["test", "--release", "--workspace", "--exclude", "tombolo", "--locked"])
    })?;
    // Two at a time: each is a cluster of its own on this machine, and waits for most of its time.
    part("clusters and files", || cargo(&["test", "--release", "-p", "tombolo", "--locked", "--", "--test-threads=2"]))
}

/// Purity is a build failure: what the pure crates could reach, by name.
fn purity() -> Result<()> {
    for name in PURE {
        let args = ["tree", "--locked", "-p", name, "-e", "normal", "--prefix", "none", "--format", "{p}"];
        let out = Command::new("cargo").args(args).output().context("cannot run cargo tree")?;
        if !out.status.success() {
            bail!("cargo tree -p {name} failed: {}", String::from_utf8_lossy(&out.stderr));
        }
        let tree = String::from_utf8_lossy(&out.stdout).into_owned();
        for line in tree.lines() {
            let krate = line.split(' ').next().unwrap_or_default();
            if FORBIDDEN.contains(&krate) {
                bail!("the pure crate {name} depends on {krate}: move what needs it to an outer crate");
            }
        }
    }
    Ok(())
}

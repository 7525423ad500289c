//! Runs histories: `cargo run --release -p sim -- --seeds 2000`, or one again: `-- --seed 17 --trace`.

use clap::Parser;
use sim::fragment::{Base, Options, Report, explore, run};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

#[derive(Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Histories of whole nodes instead of one fragment's copies.
    #[arg(long)]
    cluster: bool,
    /// Every schedule of three copies with two deviations so many points apart, instead of random histories.
    #[arg(long)]
    exhaustive: Option<u64>,
    /// Histories of tables that ask for a majority.
    #[arg(long)]
    majority: bool,
    /// Histories in which it changes where records are kept.
    #[arg(long)]
    turns: bool,
    /// Histories in which it changes into how many fragments the table is cut.
    #[arg(long)]
    cuts: bool,
    /// Histories in which there is not room for all that is written.
    #[arg(long)]
    bounds: bool,
    /// Figures of fleets of 5, 25 and 100 nodes, on networks that lose 0 and 5 per cent of the datagrams.
    #[arg(long)]
    fleets: bool,
    /// So many simulated hours of 100 nodes with losses, pauses and cuts: who is called lost?
    #[arg(long, value_name = "HOURS")]
    false_deaths: Option<u64>,
    /// Of how many nodes the fleets are, instead.
    #[arg(long, value_delimiter = ',')]
    nodes: Option<Vec<usize>>,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
    /// Stop after so many failures.
    #[arg(long, default_value_t = 5)]
    most: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.fleets {
        return fleets(args.seed, args.nodes.as_deref().unwrap_or(&[5, 25, 100]));
    }
    if let Some(hours) = args.false_deaths {
        let lost = sim::fleet::false_deaths(args.seed, 100, 5, hours);
        println!("{hours} hours of 100 nodes: called lost: {lost:?}");
        return if lost.is_some_and(|lost| lost.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let Some(reach) = args.exhaustive {
        return exhaustive(reach);
    }
    let next = AtomicU64::new(args.seed);
    let sum = Mutex::new((Report::default(), 0u64));
    let begun = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&args, &next, &sum));
        }
    });
    let (sum, bad) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{} histories, {bad} bad, {:.0} a second", args.seeds, args.seeds as f64 / seconds);
    let Report { done, failed, unknown, reads, follower_reads, conflicts, opened, handovers, crashes, .. } = sum;
    println!(
        "{done} done, {failed} refused, {unknown} unknown, {reads} reads ({follower_reads} by followers), {conflicts} conflicts, {opened} openings, {handovers} handovers, {crashes} crashes"
    );
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fleets(seed: u64, sizes: &[usize]) -> ExitCode {
    println!(
        "| nodes | datagrams lost | met | idle: messages a node and second | a death is seen by all | a cut | a start |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for nodes in sizes.iter().copied() {
        for loss in [0, 5] {
            // The worst of three.
            let all: Option<Vec<_>> = (0..3).map(|i| sim::fleet::figures(seed + i, nodes, loss)).collect();
            let Some(all) = all else { return ExitCode::FAILURE };
            let worst = |of: fn(&sim::fleet::Figures) -> u64| all.iter().map(of).max().unwrap_or(0);
            let idle = all.iter().map(|f| f.idle).fold(0.0, f64::max);
            println!(
                "| {nodes} | {loss} % | {} ms | {idle:.1} | {} ms | {} ms | {} ms |",
                worst(|f| f.met_ms),
                worst(|f| f.death_ms),
                worst(|f| f.cut_ms),
                worst(|f| f.joined_ms)
            );
        }
    }
    ExitCode::SUCCESS
}

fn exhaustive(reach: u64) -> ExitCode {
    let mut bad = false;
    for base in [Base::Open, Base::Join, Base::Meet] {
        let begun = std::time::Instant::now();
        let (count, found) = explore(base, reach, None);
        println!("{base:?}: {count} schedules in {} s", begun.elapsed().as_secs());
        if let Some(what) = found {
            println!("  {what}");
            bad = true;
        }
    }
    if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn work(args: &Args, next: &AtomicU64, sum: &Mutex<(Report, u64)>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= args.seed + args.seeds {
            return;
        }
        let report = if args.cluster {
            let done = sim::cluster::run(seed);
            Report { violation: done.clone().err(), done: done.unwrap_or(0), ..Report::default() }
        } else {
            let asks = args.majority.then_some(replica::MinInSync::Majority);
            let (turns, cuts, bounds) = (args.turns, args.cuts, args.bounds);
            run(seed, Options { trace: args.trace, asks, turns, cuts, bounds, mutant: None })
        };
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(what) = &report.violation {
            println!("seed {seed}: {what}\n  replay: cargo run --release -p sim -- --seed {seed} --trace");
            sum.1 += 1;
        }
        let (s, r) = (&mut sum.0, report);
        s.done += r.done;
        s.failed += r.failed;
        s.unknown += r.unknown;
        s.reads += r.reads;
        s.follower_reads += r.follower_reads;
        s.conflicts += r.conflicts;
        s.opened += r.opened;
        s.crashes += r.crashes;
        s.handovers += r.handovers;
        if sum.1 >= args.most {
            return;
        }
    }
}

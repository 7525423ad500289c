//! The binary: command line, configuration, assembly. A library only so that what it reads from outside can be fuzzed.

mod alloc;
mod around;
mod bench;
mod bench_cache;
mod bench_fs;
mod cli;
mod commands;
mod conflicts;
mod control;
mod cookie;
mod doctor;
mod dump;
mod events;
mod fsck;
mod helper;
mod http;
mod logging;
mod map;
mod metrics;
mod nodes;
mod server;
mod service;
mod settings;
mod settled;
mod simulate;
mod tables;
mod text;
mod top;
mod ttl;
mod walk;
mod why;

use clap::{CommandFactory, FromArgMatches};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if helper::is_called(args.next().as_deref()) {
        return helper::run(args);
    }
    let matches = cli::Cli::command().get_matches();
    let cli = cli::Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    if !matches!(cli.command, cli::Command::Up(_) | cli::Command::Mount(_)) {
        // `tombolo scan ... | head` ends quietly. A node must not end because its log is read no more.
        sigpipe::reset();
    }
    let level = match cli.verbose {
        0 => logging::of_level("info"),
        1 => logging::of_level("debug"),
        _ => "trace",
    };
    logging::begin(level, cli.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("tombolo: the system gives no threads: {e}");
            return ExitCode::from(commands::OTHER);
        }
    };
    let code = runtime.block_on(commands::run(cli, matches));
    // What still runs in the background must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}

/// What comes through the control socket, out of a dump and out of a config file.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    control::fuzz(bytes);
    dump::fuzz(bytes);
    settings::fuzz(bytes);
}

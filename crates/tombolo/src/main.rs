//! The binary: command line, configuration, assembly.

mod cli;
mod commands;
mod control;
mod server;
mod settings;
mod text;

use clap::Parser;
use std::process::ExitCode;

/// Records come and go by the thousand with every flush: with the system's allocator that was 40 % of a durable load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let level = match cli.verbose {
        0 => "warn,fuser=error,runtime=info,transport=info,tombolo=info,vfs=info",
        1 => "debug,fjall=warn,lsm_tree=warn,fuser=info",
        _ => "trace",
    };
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let filter = tracing_subscriber::EnvFilter::try_from_env("TOMBOLO_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("tombolo: the system gives no threads: {e}");
            return ExitCode::from(commands::OTHER);
        }
    };
    let code = runtime.block_on(commands::run(cli));
    // What still runs in the background must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}

//! Each command, from its arguments to its exit status.

use crate::cli::{BenchCommand, Cli, Command, FsCommand, Mount, SimulateCommand};
use crate::control::{self, Ask, Told};
use crate::server::{Mountable, Server};
use crate::{
    bench, bench_cache, bench_fs, conflicts, cookie, doctor, dump, events, map, metrics, nodes, settings, simulate,
    tables, text, top, ttl, why,
};
use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::{ArgMatches, CommandFactory};
use node::{Status, Word};
use replica::{Batch, Check, Outcome, Record, Refusal, Write};
use std::ffi::OsString;
use std::io::{Read, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) const FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const UNAVAILABLE: u8 = 3;
pub(crate) const OTHER: u8 = 4;
pub(crate) const UNKNOWN: u8 = 5;

/// What `mount` says when it has.
const MOUNTED: &str = " is mounted on ";
/// How many rows one question of `scan` asks for.
const SCAN_PAGE: u32 = 1000;

/// Runs a command; its exit status.
pub(crate) async fn run(cli: Cli, sources: ArgMatches) -> u8 {
    match command(cli, &sources).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("tombolo: {e:#}");
            let usage = e.downcast_ref::<Usage>().is_some();
            if usage { USAGE } else { e.downcast_ref::<NoNode>().map_or(OTHER, |_| UNAVAILABLE) }
        }
    }
}

/// What the user wrote makes no sense.
#[derive(Debug)]
pub(crate) struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// No node runs on the data directory.
#[derive(Debug)]
struct NoNode(PathBuf);

impl std::fmt::Display for NoNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dir = self.0.display();
        write!(
            f,
            "no node runs on the data directory {dir}; start one with `tombolo up`, or name another directory with --data"
        )
    }
}

impl std::error::Error for NoNode {}

async fn command(cli: Cli, sources: &ArgMatches) -> Result<u8> {
    let data = settings::data_dir(cli.data)?;
    let data = std::path::absolute(&data).unwrap_or(data);
    match cli.command {
        Command::Up(up) => Server::start(settings::load(data, cli.config.as_deref(), up)?, false)?.run().await,
        Command::Mount(mount) => mount_command(data, cli.config.as_deref(), mount).await,
        Command::Umount { dir } => umount(&data, &dir).await,
        Command::Fs(command) => fs_command(&data, command).await,
        Command::Fsck(what) => crate::fsck::command(&data, what).await,
        Command::Status { json } => status(&data, json).await,
        Command::Conflicts(what) => {
            conflicts::check(&what)?;
            conflicts::command(&data, what).await
        }
        Command::Heals { json } => conflicts::heals(&data, json).await,
        Command::Fragments { json } => map::fragments(&data, json).await,
        Command::Rebalance(what) => map::rebalance(&data, what).await,
        Command::Events { follow, json, node, limit } => {
            events::run(&data, events::Wanted { follow, json, node, limit }).await
        }
        Command::Metrics => metrics::run(&data).await,
        Command::Why { object } => why::run(&data, object).await,
        Command::Top { once, every } => top::run(&data, once, &every).await,
        Command::Nodes { json } => nodes::list(&data, json).await,
        Command::Condemn { node, force } => nodes::say(&data, node, Word::Condemn(force)).await,
        Command::Leave { node } => nodes::leave(&data, node).await,
        Command::Admit { node } => nodes::say(&data, node, Word::Admit).await,
        Command::Immortalize { node, undo } => nodes::say(&data, node, Word::Immortalize(!undo)).await,
        Command::RenameNode { node, new } => nodes::say(&data, node, Word::Rename(new)).await,
        Command::Table(command) => tables::command(&data, command).await,
        Command::Put { table, key, value, if_absent, if_version, ttl } => {
            put(&data, (table, argument(key)?, value), if_absent, if_version, ttl).await
        }
        Command::Get { table, key, version } => get(&data, table, argument(key)?, version).await,
        Command::Del { table, key } => {
            let key = argument(key)?;
            let checks = vec![Check::Present(key.clone())];
            write_command(&data, table, key.clone(), checks, Write::Delete { key }).await
        }
        Command::Ttl { table, key } => ttl::left(&data, table, argument(key)?).await,
        Command::Touch { table, key, ttl } => ttl::touch(&data, table, argument(key)?, ttl).await,
        Command::Persist { table, key } => ttl::persist(&data, table, argument(key)?).await,
        Command::Scan { table, prefix, limit, json } => {
            scan(&data, table, Bytes::from(prefix.into_vec()), limit.unwrap_or(u64::MAX), json).await
        }
        Command::Export { table, file } => dump::export(&data, table, file).await,
        Command::Import { table, file, if_absent } => dump::import(&data, table, file, if_absent).await,
        Command::Backup { file } => dump::backup(&data, &file).await,
        Command::Restore { file, overwrite } => dump::restore(&data, &file, overwrite).await,
        Command::Cookie(command) => cookie::run(&data, cli.config.as_deref(), command),
        Command::Config(up) => settings::print(&data, cli.config.as_deref(), up, sources),
        Command::Doctor { json, up } => doctor::run(&data, cli.config.as_deref(), up, json).await,
        Command::Bench(command) => bench_command(&data, command).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tombolo", &mut std::io::stdout());
            Ok(0)
        }
        Command::Man { dir } => manual(&dir),
        Command::Simulate(SimulateCommand::Placement(fleet)) => simulate::placement(&fleet),
        Command::Stop => done(ask(&data, Ask::Stop).await?, None),
    }
}

async fn bench_command(data: &Path, command: BenchCommand) -> Result<u8> {
    match command {
        BenchCommand::Kv(kv) => bench::kv(data, *kv).await,
        BenchCommand::Cache(cache) => tokio::task::spawn_blocking(move || bench_cache::run(&cache)).await?,
        BenchCommand::Fs { dir, files, mib, threads, json } => {
            tokio::task::spawn_blocking(move || bench_fs::run(&dir, files, mib, threads, json)).await?
        }
    }
}

fn manual(dir: &Path) -> Result<u8> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("cannot write the manual to {}", dir.display()))?;
    Ok(0)
}

/// An argument's bytes; `-`: those of standard input.
fn argument(arg: OsString) -> Result<Bytes> {
    if arg != "-" {
        return Ok(Bytes::from(arg.into_vec()));
    }
    let mut bytes = Vec::new();
    // One more than can be taken, to be able to say so.
    std::io::stdin()
        .take(base::VALUE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    Ok(bytes.into())
}

pub(crate) async fn connect(data: &Path) -> Result<UnixStream> {
    UnixStream::connect(control::socket_path(data)).await.map_err(|_| anyhow!(NoNode(data.into())))
}

pub(crate) async fn ask(data: &Path, ask: Ask) -> Result<Told> {
    let mut stream = connect(data).await?;
    ask_on(&mut stream, &ask).await
}

pub(crate) async fn ask_on(stream: &mut UnixStream, ask: &Ask) -> Result<Told> {
    control::send(stream, ask).await?;
    control::receive(stream).await?.context("the node ended before it answered")
}

/// The exit status of an answer that has nothing to show.
pub(crate) fn done(told: Told, object: Option<&str>) -> Result<u8> {
    Ok(match told {
        Told::Failed(code, text) => {
            eprintln!("tombolo: {text}");
            code
        }
        Told::Outcome(Outcome::Failed(refusal)) => {
            let object = object.map(|o| format!("{o}: ")).unwrap_or_default();
            eprintln!("tombolo: {object}{}", plain(&refusal));
            if matches!(refusal, Refusal::TooLarge { .. }) { USAGE } else { refusal_code(&refusal) }
        }
        Told::Outcome(Outcome::Unknown) => {
            eprintln!(
                "tombolo: whether it was done is not known: the leader went away meanwhile; look again, and repeat it if that does no harm"
            );
            UNKNOWN
        }
        _ => 0,
    })
}

fn refusal_code(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::Check(_) | Refusal::NotACounter(_) => FAILED,
        Refusal::NoSpace | Refusal::TableFull { .. } | Refusal::TooFewCopies { .. } | Refusal::Elsewhere => UNAVAILABLE,
        _ => OTHER,
    }
}

fn plain(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Check(_) => "not found, or not as required; nothing was changed".into(),
        other => other.to_string(),
    }
}

pub(crate) async fn write_command(
    data: &Path,
    table: String,
    key: Bytes,
    checks: Vec<Check>,
    write: Write,
) -> Result<u8> {
    let object = format!("{table} {}", text::escape(&key));
    let batch = Batch { checks, writes: vec![write], sync: false };
    if let Err(refusal) = batch.validate() {
        return Err(Usage(format!("{}: {refusal}", shorten(&object))).into());
    }
    let checks = batch.checks.clone();
    let told = ask(data, Ask::Write(table, key, batch)).await?;
    if let Told::Outcome(Outcome::Failed(Refusal::Check(index))) = &told
        && let Some(check) = checks.get(*index as usize)
    {
        eprintln!("tombolo: {}: {}; nothing was changed", shorten(&object), unmet(check));
        return Ok(FAILED);
    }
    done(told, Some(&shorten(&object)))
}

/// Why a check was not met, for people.
fn unmet(check: &Check) -> &'static str {
    match check {
        Check::Absent(_) => "there is a value already",
        Check::Present(_) => "there is no value",
        Check::AtVersion(..) => "its version is another, see `tombolo get --version`, or there is no value",
        Check::Count(..) => "so many values are not there",
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 { text.into() } else { text.chars().take(77).chain("...".chars()).collect() }
}

async fn put(
    data: &Path,
    (table, key, value): (String, Bytes, OsString),
    if_absent: bool,
    if_version: Option<String>,
    ttl: Option<String>,
) -> Result<u8> {
    let ttl_ms = ttl.map(|t| text::duration_ms(&t)).transpose().map_err(Usage)?;
    let mut checks = Vec::new();
    checks.extend(if_absent.then(|| Check::Absent(key.clone())));
    if let Some(version) = if_version {
        let version = version.parse().map_err(|e: &str| Usage(e.into()))?;
        checks.push(Check::AtVersion(key.clone(), version));
    }
    let write = Write::Put { key: key.clone(), value: argument(value)?, ttl_ms };
    write_command(data, table, key, checks, write).await
}

async fn get(data: &Path, table: String, key: Bytes, version: bool) -> Result<u8> {
    let object = shorten(&format!("{table} {}", text::escape(&key)));
    match ask(data, Ask::Get(table, key)).await? {
        Told::Record(Some(record)) => {
            let mut out = std::io::stdout().lock();
            if version {
                writeln!(out, "{}", record.version)?;
            } else {
                out.write_all(record.value.as_deref().unwrap_or_default())?;
            }
            out.flush()?;
            Ok(0)
        }
        Told::Record(None) => {
            not_found(&object);
            Ok(FAILED)
        }
        other => done(other, Some(&object)),
    }
}

pub(crate) fn not_found(object: &str) {
    eprintln!("tombolo: {}: not found", shorten(object));
}

async fn scan(data: &Path, table: String, prefix: Bytes, limit: u64, json: bool) -> Result<u8> {
    let mut stream = connect(data).await?;
    let to = replica::Range::prefix(prefix.clone(), 0).to;
    let (mut from, mut left, mut first) = (prefix, limit, true);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    loop {
        let limit = u64::from(SCAN_PAGE).min(left) as u32;
        let told = ask_on(&mut stream, &Ask::Scan { table: table.clone(), from, to: to.clone(), limit }).await?;
        let Told::Rows(rows, next) = told else { return done(told, None) };
        left -= (rows.len() as u64).min(left);
        for (key, record) in rows {
            show(&mut out, &key, &record, json, &mut first)?;
        }
        match next.filter(|_| left > 0) {
            Some(next) => from = next,
            None => break,
        }
    }
    if json {
        out.write_all(if first { b"[]\n" } else { b"\n]\n" })?;
    }
    out.flush()?;
    Ok(0)
}

fn show(
    out: &mut impl std::io::Write,
    key: &[u8],
    record: &Record,
    json: bool,
    first: &mut bool,
) -> std::io::Result<()> {
    let value = record.value.as_deref().unwrap_or_default();
    if json {
        let row = serde_json::json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
        write!(out, "{}{row}", if *first { "[\n" } else { ",\n" })?;
    } else {
        writeln!(out, "{}\t{}", text::escape(key), text::escape(value))?;
    }
    *first = false;
    Ok(())
}

async fn status(data: &Path, json: bool) -> Result<u8> {
    match ask(data, Ask::Status).await? {
        Told::Status(status) if json => println!("{}", serde_json::to_string(&status)?),
        Told::Status(status) => print_status(&status),
        other => return done(other, None),
    }
    Ok(0)
}

fn print_status(s: &Status) {
    println!("{} of group {}: {} ({})", s.node, s.group, s.state, s.why);
    println!("in this island: {}", s.island.join(", "));
    if !s.missing.is_empty() {
        println!("missing: {}", s.missing.join(", "));
    }
    println!("{:24} {:8} {:9} {:22} ID", "NODE", "STATUS", "REACHABLE", "ADDRESS");
    for n in &s.nodes {
        let reachable = if n.reachable { "yes" } else { "no" };
        println!("{:24} {:8} {:9} {:22} {}", n.name, n.status, reachable, n.addr, n.id);
    }
    if !s.tables.is_empty() {
        println!(
            "{:24} {:>6} {:>9} {:>4} {:>7}  STORAGE  DURABILITY",
            "TABLE", "COPIES", "FRAGMENTS", "LED", "IN SYNC"
        );
    }
    for t in &s.tables {
        println!(
            "{:24} {:>6} {:>9} {:>4} {:>7}  {:8} {}",
            t.name, t.copies, t.fragments, t.led, t.in_sync, t.storage, t.durability
        );
    }
    if let Some((staged, of)) = s.healing {
        println!("islands meet: {staged} of about {of} records are here");
    }
    if s.conflicts > 0 {
        println!("{} values that lost a conflict are kept here: see `tombolo conflicts`", s.conflicts);
    }
    if s.foreign > 0 {
        println!("{} nodes with another cookie or group were heard", s.foreign);
    }
}

async fn fs_command(data: &Path, command: FsCommand) -> Result<u8> {
    match command {
        FsCommand::List => match ask(data, Ask::Tables).await? {
            Told::Tables(tables) => {
                vfs::filesystems(tables.iter().map(|t| t.name.as_str())).iter().for_each(|name| println!("{name}"));
                Ok(0)
            }
            other => done(other, None),
        },
        FsCommand::Info { fs } => match ask(data, Ask::Status).await? {
            Told::Status(status) => {
                let (meta, blocks) = vfs::table_names(&fs);
                let lines: Vec<_> = status.tables.iter().filter(|t| t.name == meta || t.name == blocks).collect();
                if lines.is_empty() {
                    eprintln!("tombolo: there is no filesystem {fs:?}; `tombolo fs list` shows those there are");
                    return Ok(FAILED);
                }
                for t in lines {
                    println!(
                        "{}: {} copies wanted, {} in sync; {} of {} fragments led",
                        t.name, t.copies, t.in_sync, t.led, t.fragments
                    );
                }
                Ok(0)
            }
            other => done(other, None),
        },
        FsCommand::Drop { fs } => match ask(data, Ask::DropFs(fs.clone())).await? {
            Told::Failed(FAILED, _) => {
                eprintln!(
                    "tombolo: cannot drop the filesystem {fs:?}: it is mounted here, or there is none; see `tombolo fs list`"
                );
                Ok(FAILED)
            }
            other => done(other, Some(&fs)),
        },
    }
}

async fn umount(data: &Path, dir: &Path) -> Result<u8> {
    let dir = std::path::absolute(dir)?;
    done(ask(data, Ask::Umount(dir)).await?, None)
}

async fn mount_command(data: PathBuf, config: Option<&Path>, mount: Mount) -> Result<u8> {
    let dir = mount.proc.as_ref().or(mount.dir.as_ref()).context("say where to mount")?;
    let (dir, fs) = (std::path::absolute(dir)?, mount.fs.as_deref());
    let name = fs.unwrap_or("The cluster");
    fuse::Options::parse(&mount.options).map_err(|e| Usage(e.to_string()))?;
    if !dir.exists() && std::fs::symlink_metadata(&dir).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the mount point {}", dir.display()))?;
    }
    if mount.background {
        return in_background(&data).await;
    }
    let told = || println!("{name}{MOUNTED}{}. It goes with Ctrl-C or: tombolo umount {0}", dir.display());
    let Ok(mut stream) = connect(&data).await else {
        let server = Server::start(settings::load(data, config, mount.up)?, true)?;
        println!("Looking for other nodes ...");
        let what = fs.map_or(Mountable::Proc, |fs| Mountable::Fs(fs, mount.copies));
        if let Err((code, text)) = server.mount(what, &dir, &mount.options).await {
            eprintln!("tombolo: {text}");
            // Without a mount it ends at once, and cleanly.
            server.run().await?;
            return Ok(code);
        }
        told();
        return server.run().await;
    };
    let ask = Ask::Mount { fs: fs.map(String::from), dir: dir.clone(), options: mount.options, copies: mount.copies };
    let answer = ask_on(&mut stream, &ask).await?;
    if !matches!(answer, Told::Done) {
        return done(answer, Some(name));
    }
    told();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let wait = Ask::WaitUnmounted(dir.clone());
    tokio::select! {
        // However it ended: it is over.
        _ = ask_on(&mut stream, &wait) => Ok(0),
        _ = term.recv() => umount(&data, &dir).await,
        _ = int.recv() => umount(&data, &dir).await,
    }
}

/// Runs this very command in the foreground of another process, until it has mounted.
async fn in_background(data: &Path) -> Result<u8> {
    std::fs::create_dir_all(data).with_context(|| format!("cannot make the data directory {}", data.display()))?;
    let log_path = data.join("log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
    let start = log.metadata()?.len();
    let args = std::env::args_os().skip(1).filter(|a| a.as_bytes() != b"--background");
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(args).stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn()?;
    loop {
        let ended = child.try_wait()?;
        let said = std::fs::read(&log_path).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(start as usize..).unwrap_or_default()).into_owned();
        // Its own word, not the kernel's list: a dead mount point stands in that too.
        if ended.is_none() && !said.contains(MOUNTED) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        }
        print!("{said}");
        return Ok(ended.map_or(0, |status| status.code().map_or(OTHER, |code| code as u8)));
    }
}

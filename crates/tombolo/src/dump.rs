//! Tables as files: `export`, `import`, `backup`, `restore`. One format for all of them, a JSON object a line:
//!
//! ```text
//! {"tombolo":"dump","version":1}
//! {"table":"colours","options":{...}}            then its rows
//! {"k":"c2t5","v":"Ymx1ZQ==","expires_ms":null}  key and value in base64, Unix time of expiry
//! {"end":{"tables":1,"rows":1,"blake3":"..."}}   of every byte before this line
//! ```
//!
//! A file without its last line was cut short; nothing of it is put.

use crate::commands::{FAILED, OTHER, USAGE, Usage, ask, ask_on, connect, done};
use crate::control::{Ask, Told};
use crate::walk::Walk;
use anyhow::{Context, Result, anyhow, bail};
use base::WallMs;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use node::{TableDef, TableOptions};
use replica::{Batch, Check, MergeRule, Outcome, Refusal, Write as Put};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

const VERSION: u32 = 1;
/// Rows that one question asks for.
const PAGE_ROWS: u32 = 4096;
/// A batch is sent when it holds so many rows, or bytes.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 1024 * 1024;
/// How many batches are under way at once.
const BATCHES_MAX: usize = 32;
/// How often a batch whose fate is not known is put again: it says the same each time.
const TRIES: usize = 5;
/// The longest line: a key and a value at their limits, in base64.
const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Head { tombolo: String, version: u32 },
    Table { table: String, options: TableOptions },
    Row { k: String, v: String, expires_ms: Option<u64> },
    End { end: End },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    tables: u64,
    rows: u64,
    blake3: String,
}

/// A row as read.
struct Row {
    key: Bytes,
    value: Bytes,
    expires_ms: Option<u64>,
}

// ---- out ----

struct Dump<W: Write> {
    out: W,
    hash: blake3::Hasher,
    tables: u64,
    rows: u64,
}

impl<W: Write> Dump<W> {
    fn new(out: W) -> Result<Dump<W>> {
        let mut dump = Dump { out, hash: blake3::Hasher::new(), tables: 0, rows: 0 };
        dump.line(&Line::Head { tombolo: "dump".into(), version: VERSION })?;
        Ok(dump)
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.hash.update(&text);
        self.out.write_all(&text)?;
        Ok(())
    }

    /// Every row of a table, fragment by fragment.
    async fn table(&mut self, stream: &mut UnixStream, def: &TableDef) -> Result<Option<Told>> {
        self.line(&Line::Table { table: def.name.clone(), options: def.options.clone() })?;
        self.tables += 1;
        let mut walk = Walk::new(def.clone());
        while let Some((fragment, from)) = walk.next() {
            let scan = Ask::ScanFragment { table: def.name.clone(), index: fragment.index, from, limit: PAGE_ROWS };
            let (rows, next) = match ask_on(stream, &scan).await? {
                Told::Rows(rows, next) => (rows, next),
                other => match renewed(stream, walk.def()).await? {
                    Some(def) => {
                        walk.renew(def);
                        continue;
                    }
                    None => return Ok(Some(other)),
                },
            };
            for (key, record) in rows.into_iter().filter(|(key, _)| walk.is_new(key)) {
                let (k, v) = (BASE64.encode(&key), BASE64.encode(record.value.unwrap_or_default()));
                self.line(&Line::Row { k, v, expires_ms: record.expires.map(|at| at.0) })?;
                self.rows += 1;
            }
            walk.went_on(next);
        }
        Ok(None)
    }

    fn end(mut self) -> Result<(W, u64, u64)> {
        let blake3 = self.hash.finalize().to_hex().to_string();
        let end = Line::End { end: End { tables: self.tables, rows: self.rows, blake3 } };
        self.line(&end)?;
        self.out.flush()?;
        Ok((self.out, self.tables, self.rows))
    }
}

async fn tables(stream: &mut UnixStream) -> Result<Result<Vec<TableDef>, Told>> {
    Ok(match ask_on(stream, &Ask::Tables).await? {
        Told::Tables(tables) => Ok(tables),
        other => Err(other),
    })
}

/// The definition of a table, if it is cut otherwise by now.
pub(crate) async fn renewed(stream: &mut UnixStream, def: &TableDef) -> Result<Option<TableDef>> {
    let all = tables(stream).await?.unwrap_or_default();
    Ok(all.into_iter().find(|now| now.id == def.id && now.layout != def.layout))
}

fn no_table(name: &str) -> u8 {
    eprintln!("tombolo: there is no table {name:?}; `tombolo table list` shows those there are");
    FAILED
}

pub(crate) async fn export(data: &Path, table: String, file: Option<PathBuf>) -> Result<u8> {
    let mut stream = connect(data).await?;
    let tables = match tables(&mut stream).await? {
        Ok(tables) => tables,
        Err(told) => return done(told, None),
    };
    let Some(def) = tables.into_iter().find(|def| def.name == table) else { return Ok(no_table(&table)) };
    let Some(file) = file else {
        let mut dump = Dump::new(BufWriter::new(std::io::stdout()))?;
        return match dump.table(&mut stream, &def).await? {
            Some(told) => done(told, Some(&table)),
            None => dump.end().map(|_| 0),
        };
    };
    to_file(&mut stream, &[def], &file).await
}

pub(crate) async fn backup(data: &Path, file: &Path) -> Result<u8> {
    let mut stream = connect(data).await?;
    match tables(&mut stream).await? {
        Ok(tables) => to_file(&mut stream, &tables, file).await,
        Err(told) => done(told, None),
    }
}

/// The file is there whole, or not at all.
async fn to_file(stream: &mut UnixStream, tables: &[TableDef], path: &Path) -> Result<u8> {
    if path.exists() {
        return Err(Usage(format!("{} is there already; name another file", path.display())).into());
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = Part(PathBuf::from(name));
    let cannot = || format!("cannot write {}", part.0.display());
    let mut dump = Dump::new(BufWriter::new(File::create(&part.0).with_context(cannot)?))?;
    for def in tables {
        if let Some(told) = dump.table(stream, def).await.with_context(cannot)? {
            return done(told, Some(&def.name));
        }
    }
    let (out, tables, rows) = dump.end().with_context(cannot)?;
    out.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all()).with_context(cannot)?;
    std::fs::rename(&part.0, path).with_context(|| format!("cannot make {}", path.display()))?;
    println!("{tables} tables, {rows} rows are in {}", path.display());
    Ok(0)
}

/// A file that is not whole yet, and goes if it never becomes so.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

// ---- in ----

/// Reads a dump line by line, and holds it against its own last line.
struct Lines<R: BufRead> {
    from: R,
    hash: blake3::Hasher,
    number: u64,
    tables: u64,
    rows: u64,
    ended: bool,
}

enum Item {
    Table(String, TableOptions),
    Row(Row),
}

impl<R: BufRead> Lines<R> {
    fn new(from: R) -> Lines<R> {
        Lines { from, hash: blake3::Hasher::new(), number: 0, tables: 0, rows: 0, ended: false }
    }

    fn read(&mut self) -> Result<Option<(Line, Vec<u8>)>> {
        let mut text = Vec::new();
        std::io::Read::take(&mut self.from, LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut text)?;
        if text.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        if text.len() > LINE_BYTES_MAX {
            bail!("line {} is longer than any row can be", self.number);
        }
        let line = serde_json::from_slice(&text).map_err(|_| anyhow!("line {} is not of a dump", self.number))?;
        Ok(Some((line, text)))
    }

    /// The next table or row; `None` at the end of a dump that is whole.
    fn next(&mut self) -> Result<Option<Item>> {
        loop {
            let Some((line, text)) = self.read()? else {
                if self.ended {
                    return Ok(None);
                }
                bail!("it was cut short after line {}: its last line is missing", self.number);
            };
            if self.ended {
                bail!("line {} comes after the end", self.number);
            }
            match line {
                Line::Head { tombolo, version } if self.number == 1 && tombolo == "dump" => {
                    if version != VERSION {
                        bail!("it is of version {version}; this program reads version {VERSION}");
                    }
                }
                _ if self.number == 1 => bail!("line 1 does not begin a dump"),
                Line::Head { .. } => bail!("line {} begins a dump within a dump", self.number),
                Line::End { end } => {
                    if end.blake3 != self.hash.finalize().to_hex().as_str()
                        || (end.tables, end.rows) != (self.tables, self.rows)
                    {
                        bail!("it is damaged: its contents are not what its last line says");
                    }
                    self.ended = true;
                    continue;
                }
                Line::Table { table, options } => {
                    self.tables += 1;
                    self.hash.update(&text);
                    return Ok(Some(Item::Table(table, options)));
                }
                Line::Row { k, v, expires_ms } => {
                    if self.tables == 0 {
                        bail!("line {} is a row of no table", self.number);
                    }
                    self.rows += 1;
                    self.hash.update(&text);
                    let bytes = |text: &str| BASE64.decode(text).map(Bytes::from);
                    let (Ok(key), Ok(value)) = (bytes(&k), bytes(&v)) else {
                        bail!("line {} holds what is not base64", self.number)
                    };
                    return Ok(Some(Item::Row(Row { key, value, expires_ms })));
                }
            }
            self.hash.update(&text);
        }
    }
}

fn open(file: &Path) -> Result<Lines<BufReader<File>>> {
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Lines::new(BufReader::new(opened)))
}

/// Reads the whole of it once, so that nothing is put of one that is not whole. The tables in it.
fn check(file: &Path) -> Result<Vec<(String, TableOptions)>> {
    let mut lines = open(file)?;
    let mut tables = Vec::new();
    let bad = || format!("{}: nothing was put", file.display());
    while let Some(item) = lines.next().with_context(bad)? {
        if let Item::Table(name, options) = item {
            tables.push((name, options));
        }
    }
    Ok(tables)
}

/// Rows on their way into a table, gathered by fragment.
struct Sink {
    data: PathBuf,
    if_absent: bool,
    def: Option<TableDef>,
    gathered: BTreeMap<u32, (Vec<Row>, usize)>,
    under_way: JoinSet<Result<Sent>>,
    put: u64,
    kept: u64,
    expired: u64,
}

struct Sent {
    put: u64,
    kept: u64,
    failed: Option<Told>,
}

impl Sink {
    fn new(data: &Path, if_absent: bool) -> Sink {
        let (gathered, under_way) = (BTreeMap::new(), JoinSet::new());
        Sink { data: data.into(), if_absent, def: None, gathered, under_way, put: 0, kept: 0, expired: 0 }
    }

    async fn row(&mut self, row: Row) -> Result<Option<Told>> {
        let Some(def) = &self.def else { return Ok(None) };
        if row.expires_ms.is_some_and(|at| at <= wall_ms()) {
            self.expired += 1;
            return Ok(None);
        }
        let index = def.fragment(&row.key).index;
        let (rows, bytes) = self.gathered.entry(index).or_default();
        *bytes += row.key.len() + row.value.len();
        rows.push(row);
        // A check of one row must not keep others out.
        if self.if_absent || rows.len() >= BATCH_ROWS || *bytes >= BATCH_BYTES {
            return self.send(index).await;
        }
        Ok(None)
    }

    async fn send(&mut self, index: u32) -> Result<Option<Told>> {
        let (Some((rows, _)), Some(def)) = (self.gathered.remove(&index), &self.def) else { return Ok(None) };
        let table = (def.name.clone(), expires_by_itself(def));
        let (data, if_absent) = (self.data.clone(), self.if_absent);
        self.under_way.spawn(async move { send(&data, table, rows, if_absent).await });
        if self.under_way.len() >= BATCHES_MAX { self.wait().await } else { Ok(None) }
    }

    async fn wait(&mut self) -> Result<Option<Told>> {
        let Some(sent) = self.under_way.join_next().await else { return Ok(None) };
        let sent = sent??;
        self.put += sent.put;
        self.kept += sent.kept;
        Ok(sent.failed)
    }

    /// Sends the rest, and waits for all of it.
    async fn finish(&mut self) -> Result<Option<Told>> {
        while let Some(index) = self.gathered.keys().next().copied() {
            if let Some(told) = self.send(index).await? {
                return Ok(Some(told));
            }
        }
        while !self.under_way.is_empty() {
            if let Some(told) = self.wait().await? {
                return Ok(Some(told));
            }
        }
        Ok(None)
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Would what is put for good into this table expire, and can it be told not to?
pub(crate) fn expires_by_itself(def: &TableDef) -> bool {
    let parts = matches!(def.options.policy.default, MergeRule::Sum | MergeRule::Union);
    def.options.ttl_ms.is_some() && !parts
}

/// Puts a value that expires when it is said to, or lives for good, whatever the table has for those of which nothing is said.
pub(crate) fn put_until(
    key: Bytes,
    value: Bytes,
    expires: Option<WallMs>,
    table_expires: bool,
) -> impl Iterator<Item = Put> {
    let ttl_ms = expires.map(|at| at.0.saturating_sub(wall_ms()).max(1));
    let for_good = (table_expires && ttl_ms.is_none()).then(|| Put::Expire { key: key.clone(), ttl_ms: None });
    [Put::Put { key, value, ttl_ms }].into_iter().chain(for_good)
}

async fn send(data: &Path, (table, expires): (String, bool), rows: Vec<Row>, if_absent: bool) -> Result<Sent> {
    let mut stream = connect(data).await?;
    let Some(key) = rows.first().map(|row| row.key.clone()) else { bail!("a batch of no rows") };
    let count = rows.len() as u64;
    let checks = if if_absent { vec![Check::Absent(key.clone())] } else { Vec::new() };
    let put = |row: Row| put_until(row.key, row.value, row.expires_ms.map(WallMs), expires);
    let batch = Batch { checks, writes: rows.into_iter().flat_map(put).collect(), sync: false };
    let mut told = Told::Done;
    for _ in 0..TRIES {
        told = ask_on(&mut stream, &Ask::Write(table.clone(), key.clone(), batch.clone())).await?;
        match told {
            Told::Outcome(Outcome::Done { .. }) => return Ok(Sent { put: count, kept: 0, failed: None }),
            Told::Outcome(Outcome::Failed(Refusal::Check(_))) => return Ok(Sent { put: 0, kept: 1, failed: None }),
            Told::Outcome(Outcome::Unknown) => {}
            _ => break,
        }
    }
    if matches!(told, Told::Failed(USAGE, _)) && batch.writes.len() > 1 {
        // The table is cut otherwise by now, and they are not in one fragment any more.
        return send_apart(&mut stream, &table, batch).await;
    }
    Ok(Sent { put: 0, kept: 0, failed: Some(told) })
}

async fn send_apart(stream: &mut UnixStream, table: &str, batch: Batch) -> Result<Sent> {
    let mut sent = Sent { put: 0, kept: 0, failed: None };
    for write in batch.writes {
        let (key, is_row) = (write.key().clone(), matches!(write, Put::Put { .. }));
        let checks = batch.checks.iter().filter(|_| is_row).cloned().collect();
        let ask = Ask::Write(table.into(), key, Batch { checks, writes: vec![write], sync: false });
        for tries in 1..=TRIES {
            match ask_on(stream, &ask).await? {
                Told::Outcome(Outcome::Done { .. }) => sent.put += u64::from(is_row),
                Told::Outcome(Outcome::Failed(Refusal::Check(_))) => sent.kept += 1,
                Told::Outcome(Outcome::Unknown) if tries < TRIES => continue,
                other => sent.failed = Some(other),
            }
            break;
        }
    }
    Ok(sent)
}

/// Takes up a table for the rows that follow, made if it is not there.
async fn take_up(sink: &mut Sink, name: &str, options: &TableOptions) -> Result<Option<Told>> {
    if let Some(told) = sink.finish().await? {
        return Ok(Some(told));
    }
    match ask(&sink.data, Ask::CreateTable(name.into(), options.clone())).await? {
        Told::Done | Told::Failed(FAILED, _) => {}
        other => return Ok(Some(other)),
    }
    let mut stream = connect(&sink.data).await?;
    match tables(&mut stream).await? {
        Ok(all) => sink.def = all.into_iter().find(|def| def.name == name),
        Err(told) => return Ok(Some(told)),
    }
    if sink.def.is_none() {
        bail!("table {name} was dropped meanwhile");
    }
    Ok(None)
}

/// Puts all rows; `into`: the one table they go to, whatever they came from.
async fn pour<R: BufRead>(mut lines: Lines<R>, mut sink: Sink, into: Option<&str>, what: &str) -> Result<u8> {
    loop {
        let item = lines.next().with_context(|| format!("{what}: {} rows were put before", sink.put))?;
        let failed = match item {
            Some(Item::Table(..)) if into.is_some() && lines.tables > 1 => {
                return Err(Usage(format!("{what} holds more than one table; see `tombolo restore`")).into());
            }
            Some(Item::Table(name, options)) => take_up(&mut sink, into.unwrap_or(&name), &options).await?,
            Some(Item::Row(row)) => sink.row(row).await?,
            None => break,
        };
        if let Some(told) = failed {
            return stopped(told, &sink);
        }
    }
    if let Some(told) = sink.finish().await? {
        return stopped(told, &sink);
    }
    let kept =
        if sink.kept > 0 { format!(", {} keys that held a value were left alone", sink.kept) } else { "".into() };
    let expired = if sink.expired > 0 { format!(", {} had expired", sink.expired) } else { "".into() };
    println!("{} rows were put{kept}{expired}", sink.put);
    Ok(0)
}

fn stopped(told: Told, sink: &Sink) -> Result<u8> {
    let code = done(told, sink.def.as_ref().map(|def| def.name.as_str()))?;
    eprintln!("tombolo: {} rows were put before; the same command may be given again", sink.put);
    Ok(if code == 0 { OTHER } else { code })
}

pub(crate) async fn import(data: &Path, table: String, file: Option<PathBuf>, if_absent: bool) -> Result<u8> {
    let sink = Sink::new(data, if_absent);
    match file {
        Some(file) => {
            if check(&file)?.len() > 1 {
                let file = file.display();
                return Err(Usage(format!("{file} holds more than one table; see `tombolo restore`")).into());
            }
            pour(open(&file)?, sink, Some(&table), &file.display().to_string()).await
        }
        // It cannot be read twice: what is put before something wrong is met, is put.
        None => pour(Lines::new(BufReader::new(std::io::stdin())), sink, Some(&table), "standard input").await,
    }
}

pub(crate) async fn restore(data: &Path, file: &Path, overwrite: bool) -> Result<u8> {
    let wanted = check(file)?;
    let mut stream = connect(data).await?;
    let there = match tables(&mut stream).await? {
        Ok(tables) => tables,
        Err(told) => return done(told, None),
    };
    let both: Vec<&str> =
        wanted.iter().map(|(n, _)| n.as_str()).filter(|n| there.iter().any(|t| t.name == *n)).collect();
    if !both.is_empty() && !overwrite {
        let names = both.join(", ");
        eprintln!(
            "tombolo: tables are there already: {names}. Nothing was put. --overwrite puts the backup's rows over theirs"
        );
        return Ok(FAILED);
    }
    pour(open(file)?, Sink::new(data, false), None, &file.display().to_string()).await
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut lines = Lines::new(bytes);
    while let Ok(Some(_)) = lines.next() {}
}

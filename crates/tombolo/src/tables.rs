//! `tombolo table ...`.

use crate::cli::{Alter, Shape, TableCommand};
use crate::commands::{FAILED, Usage, ask, done};
use crate::control::{Ask, Told};
use crate::text;
use anyhow::Result;
use node::{Alteration, Durability, Per, Storage, TableDef, TableInfo, TableOptions};
use replica::{Evict, MergePolicy, MergeRule, MinInSync};
use std::path::Path;

pub(crate) async fn command(data: &Path, command: TableCommand) -> Result<u8> {
    match command {
        TableCommand::Create { name, mut shape } => {
            let rule = named_rule(data, &shape.on_conflict).await?;
            shape.on_conflict = rule.to_string();
            if let Some(ttl) = &shape.ttl {
                living(&name, ttl)?;
            }
            going(&name, &shape.evict)?;
            let mut options = options(&shape)?;
            if let Some(other) = &shape.beside {
                let other = named(data, other).await?;
                (options.beside, options.fragments) = (Some(other.id), other.options.fragments);
            }
            done(ask(data, Ask::CreateTable(name, options)).await?, None)
        }
        TableCommand::List => match ask(data, Ask::Tables).await? {
            Told::Tables(tables) => {
                tables.iter().for_each(print_table);
                Ok(0)
            }
            other => done(other, None),
        },
        TableCommand::Info { name, json } => match ask(data, Ask::TableInfo(name)).await? {
            Told::TableInfo(info) if json => {
                println!("{}", serde_json::to_string(&info)?);
                Ok(0)
            }
            Told::TableInfo(info) => {
                print_info(&info);
                Ok(0)
            }
            other => done(other, None),
        },
        TableCommand::Alter(what) => {
            let name = what.name.clone();
            let change = alteration(data, what).await?;
            done(ask(data, Ask::AlterTable(name.clone(), change)).await?, Some(&name))
        }
        TableCommand::Drop { name } => {
            if let Some(fs) = vfs::filesystems([name.strip_suffix(".blocks").unwrap_or(&name)].into_iter()).first() {
                eprintln!(
                    "tombolo: table {name} is part of the filesystem {fs}; remove it with `tombolo fs drop {fs}`"
                );
                return Ok(FAILED);
            }
            done(ask(data, Ask::DropTable(name.clone())).await?, Some(&name))
        }
    }
}

/// What is to be changed, as the node takes it.
async fn alteration(data: &Path, what: Alter) -> Result<Alteration> {
    let rule = match what.on_conflict {
        Some(rule) => Some(named_rule(data, &rule).await?),
        None => None,
    };
    let beside = match what.beside.as_deref() {
        None => None,
        Some("") => Some(None),
        Some(other) => Some(Some(named(data, other).await?.id)),
    };
    let change = Alteration {
        copies: what.copies,
        fragments: what.fragments,
        durability: what.durability.as_deref().map(durable).transpose()?,
        min_in_sync: what.min_in_sync.as_deref().map(enough).transpose()?,
        policy: rule.map(|default| MergePolicy { default, exceptions: Vec::new() }),
        beside,
        storage: what.storage.as_deref().map(kept).transpose()?,
        ttl_ms: what.ttl.as_deref().map(|ttl| living(&what.name, ttl)).transpose()?,
        max_records: what.max_records.as_deref().map(|n| at_most(n, records)).transpose()?,
        max_bytes: what.max_bytes.as_deref().map(|n| at_most(n, bytes)).transpose()?,
        per: what.per.as_deref().map(per).transpose()?,
        evict: what.evict.as_deref().map(|policy| going(&what.name, policy)).transpose()?,
    };
    if change == Alteration::default() {
        let flags = "--copies, --fragments, --storage, --durability, --min-in-sync, --on-conflict, --ttl, --max-records, --max-bytes, --per, --evict or --beside";
        return Err(Usage(format!("nothing to change: give {flags}")).into());
    }
    Ok(change)
}

fn at_most(text: &str, read: impl Fn(&str) -> Result<u64, Usage>) -> Result<Option<u64>, Usage> {
    if text == "none" { Ok(None) } else { read(text).map(Some) }
}

fn records(text: &str) -> Result<u64, Usage> {
    text.parse().map_err(|_| Usage(format!("--max-records {text} is neither a number of records nor `none`")))
}

fn bytes(text: &str) -> Result<u64, Usage> {
    text::size_bytes(text).map_err(|e| Usage(format!("--max-bytes: {e}")))
}

/// What conflicts become. `island:NODE` takes a name, and is kept as an id: names change.
async fn named_rule(data: &Path, rule: &str) -> Result<MergeRule> {
    if let (Some(name), Err(_)) = (rule.strip_prefix("island:"), rule.parse::<MergeRule>())
        && let Told::Status(status) = ask(data, Ask::Status).await?
    {
        let node = status.nodes.iter().find(|node| node.name == name);
        let node = node.ok_or_else(|| Usage(format!("--on-conflict island:{name}: no node of that name is known")))?;
        return Ok(merge_rule(&format!("island:{}", node.id))?);
    }
    Ok(merge_rule(rule)?)
}

/// The definition of a table.
pub(crate) async fn named(data: &Path, name: &str) -> Result<TableDef> {
    let tables = match ask(data, Ask::Tables).await? {
        Told::Tables(tables) => tables,
        _ => Vec::new(),
    };
    let found = tables.into_iter().find(|def| def.name == name);
    Ok(found.ok_or_else(|| Usage(format!("there is no table {name:?}; see `tombolo table list`")))?)
}

fn merge_rule(text: &str) -> Result<MergeRule, Usage> {
    text.parse().map_err(|e| Usage(format!("--on-conflict: {e}")))
}

/// For how long what is put into a table lives; for good.
fn living(table: &str, text: &str) -> Result<Option<u64>, Usage> {
    if text == "none" {
        return Ok(None);
    }
    if is_of_files(table) {
        return Err(Usage(format!("{table} is part of a filesystem: files do not expire")));
    }
    text::duration_ms(text).map(Some).map_err(|e| Usage(format!("--ttl: {e}")))
}

/// What goes when there is no room in a table.
fn going(table: &str, text: &str) -> Result<Evict, Usage> {
    let evict = text.parse().map_err(|e| Usage(format!("--evict: {e}")))?;
    if evict != Evict::Reject && is_of_files(table) {
        return Err(Usage(format!("{table} is part of a filesystem: files are not thrown out")));
    }
    Ok(evict)
}

fn is_of_files(table: &str) -> bool {
    !vfs::filesystems([table.strip_suffix(".blocks").unwrap_or(table)].into_iter()).is_empty()
}

fn per(text: &str) -> Result<Per, Usage> {
    match text {
        "cluster" => Ok(Per::Cluster),
        "node" => Ok(Per::Node),
        other => Err(Usage(format!("--per {other} is neither cluster nor node"))),
    }
}

fn durable(text: &str) -> Result<Durability, Usage> {
    match text {
        "interval" => Ok(Durability::Interval),
        "sync" => Ok(Durability::Sync),
        other => Err(Usage(format!("--durability {other} is not supported; supported are interval and sync"))),
    }
}

fn enough(text: &str) -> Result<MinInSync, Usage> {
    match (text, text.parse()) {
        ("majority", _) => Ok(MinInSync::Majority),
        (_, Ok(n)) => Ok(MinInSync::Copies(n)),
        (other, _) => Err(Usage(format!("--min-in-sync {other} is neither a number of copies nor `majority`"))),
    }
}

fn kept(text: &str) -> Result<Storage, Usage> {
    match text {
        "disc" => Ok(Storage::Disc),
        "ram" => Ok(Storage::Ram),
        "disc_only" | "disc-only" => Ok(Storage::DiscOnly),
        other => Err(Usage(format!("--storage {other} is not supported; supported are disc, disc_only and ram"))),
    }
}

/// What the flags say, as the node takes it.
pub(crate) fn options(shape: &Shape) -> Result<TableOptions, Usage> {
    let storage = kept(&shape.storage)?;
    let default = merge_rule(&shape.on_conflict)?;
    let (durability, min_in_sync) = (durable(&shape.durability)?, enough(&shape.min_in_sync)?);
    let ttl = shape.ttl.as_deref().map(text::duration_ms).transpose();
    Ok(TableOptions {
        copies: shape.copies,
        fragments: shape.fragments,
        storage,
        durability,
        policy: MergePolicy { default, exceptions: Vec::new() },
        unordered: shape.unordered,
        min_in_sync,
        ttl_ms: ttl.map_err(|e| Usage(format!("--ttl: {e}")))?,
        max_records: shape.max_records,
        max_bytes: shape.max_bytes.as_deref().map(bytes).transpose()?,
        per: per(&shape.per)?,
        evict: shape.evict.parse().map_err(|e| Usage(format!("--evict: {e}")))?,
        ..TableOptions::default()
    })
}

fn print_table(def: &TableDef) {
    let o = &def.options;
    let lower = |text: String| text.to_lowercase();
    let (storage, durability) = (o.storage, lower(format!("{:?}", o.durability)));
    let rule = lower(format!("{:?}", o.policy.default));
    let unordered = if o.unordered { "\tunordered" } else { "" };
    println!(
        "{}\tcopies={}\tfragments={}\tstorage={storage}\tdurability={durability}\ton-conflict={rule}\tmin-in-sync={}{unordered}",
        def.name, o.copies, o.fragments, o.min_in_sync
    );
}

/// How full a bounded table is, and how it fares.
fn print_fill(info: &TableInfo) {
    let Some(t) = &info.fill else { return };
    let part = |of: f64| format!("{:.1} %", of * 100.0);
    let full = part(f64::from(t.full) / 10_000.0);
    println!(
        "holds {} with what is kept beside its records; the fullest fragment is {full} full",
        text::bytes_text(t.held)
    );
    let reads = t.hits.saturating_add(t.misses);
    let ratio = if reads == 0 {
        "no reads yet".into()
    } else {
        format!("{} of {reads} reads found something", part(t.hits as f64 / reads as f64))
    };
    println!(
        "{ratio}; {} records had to go, {} had expired, the oldest is {} s old (since its leaders took over)",
        t.evicted,
        t.expired,
        t.oldest_ms / 1000
    );
}

fn print_info(info: &TableInfo) {
    let t = &info.table;
    println!("{} (id {}): {} copies of {} fragments by {}", t.name, info.id, t.copies, t.fragments, info.fragment_by);
    let order = if t.unordered { "unordered" } else { "ordered" };
    println!("storage {}, durability {}, on conflict {}, {order}", t.storage, t.durability, t.on_conflict);
    println!("writes are taken with {} copies in sync or more", t.min_in_sync);
    if let Some(ms) = t.ttl_ms {
        println!("what is put without a time to live lives for {} s", ms as f64 / 1000.0);
    }
    if t.max_records.is_some() || t.max_bytes.is_some() {
        let records = t.max_records.map(|n| format!("{n} records"));
        let bytes = t.max_bytes.map(text::bytes_text);
        let both: Vec<String> = records.into_iter().chain(bytes).collect();
        let over = if t.per == "node" { "on each node" } else { "in all, each record counted once" };
        let then = if t.evict == "reject" { "what would go beyond is refused" } else { "then records go to make room" };
        println!("at most {} {over}; {then} (evict {})", both.join(" and "), t.evict);
        print_fill(info);
    }
    if let Some(other) = &t.beside {
        println!("copies lie where those of table {other} do");
    }
    if let Some((done, groups, count)) = info.changing {
        println!("on its way to {count} fragments: {done} of {groups} groups of them are changed");
    }
    let here = info.fragments.iter().filter_map(|f| Some((f.records?, f.bytes?)));
    let (count, records, bytes) = here.fold((0, 0, 0), |sum, (r, b)| (sum.0 + 1, sum.1 + r, sum.2 + b));
    println!("on this node: {count} fragments, {records} records, {bytes} bytes of keys and values");
    let other = info.fragments.iter().filter_map(|f| f.storage.as_ref()).filter(|s| **s != t.storage).count();
    if other > 0 {
        println!("on its way to storage {}: {other} of the copies here are not kept so yet", t.storage);
    }
    println!(
        "{:>8}  {:20} {:>7}  {:10} {:>10} {:>12}  COPIES",
        "FRAGMENT", "LEADER", "IN SYNC", "HERE", "RECORDS", "BYTES"
    );
    for f in &info.fragments {
        let number = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
        let (leader, here) = (f.leader.as_deref().unwrap_or("nobody"), f.here.as_deref().unwrap_or("-"));
        println!(
            "{:>8}  {leader:20} {:>7}  {here:10} {:>10} {:>12}  {}",
            f.index,
            f.in_sync,
            number(f.records),
            number(f.bytes),
            f.members.join(" ")
        );
    }
}

//! `tombolo conflicts` and `tombolo heals`: what islands wrote apart, and when they met.

use crate::cli::Conflicts;
use crate::commands::{FAILED, UNAVAILABLE, Usage, ask, ask_on, connect, done};
use crate::control::{Ask, Conflict, Told};
use crate::dump::{expires_by_itself, put_until, renewed};
use crate::settled;
use crate::text;
use crate::walk::Walk;
use anyhow::Result;
use base::{Version, WallMs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use node::TableDef;
use replica::{Batch, Check, Heal, Outcome, Record, Write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use tokio::net::UnixStream;

/// How many rows one question asks for.
const PAGE: u32 = 1000;
/// Heals of several fragments so close together are one, in ms.
const ONE_HEAL_MS: u64 = 10_000;
/// How often a restore is tried again when somebody writes the key meanwhile.
const TRIES: usize = 10;

/// Names of nodes by their ids.
type Names = BTreeMap<String, String>;

pub(crate) async fn command(data: &Path, what: Conflicts) -> Result<u8> {
    let mut stream = connect(data).await?;
    let tables = match ask_on(&mut stream, &Ask::Tables).await? {
        Told::Tables(all) => all,
        other => return done(other, None),
    };
    let wanted = |def: &TableDef| what.table.as_ref().is_none_or(|name| *name == def.name);
    let tables: Vec<TableDef> = tables.into_iter().filter(wanted).collect();
    if let (Some(name), true) = (&what.table, tables.is_empty()) {
        eprintln!("tombolo: there is no table {name:?}; `tombolo table list` shows those there are");
        return Ok(FAILED);
    }
    match (&what.restore, &what.forget) {
        (Some(id), _) => restore(&mut stream, &tables, id).await,
        (None, Some(id)) => forget(&mut stream, &tables, id).await,
        (None, None) => list(&mut stream, &tables, what.json).await,
    }
}

/// What names a losing value, for ever and everywhere.
fn id(table: &str, conflict: &Conflict) -> String {
    let mut hash = blake3::Hasher::new_derive_key("tombolo 2026 conflict ids");
    hash.update(table.as_bytes())
        .update(&[0])
        .update(conflict.lost.version.to_string().as_bytes())
        .update(&conflict.key);
    hash.finalize().to_hex()[..16].to_string()
}

/// Calls `each` for every losing value; until it says that it has seen enough.
async fn all(
    stream: &mut UnixStream,
    tables: &[TableDef],
    mut each: impl FnMut(&TableDef, Conflict) -> Result<bool>,
) -> Result<Option<Told>> {
    for def in tables {
        let mut walk = Walk::new(def.clone());
        while let Some((fragment, from)) = walk.next() {
            let ask = Ask::Conflicts { table: def.name.clone(), index: fragment.index, from, limit: PAGE };
            let (rows, next) = match ask_on(stream, &ask).await? {
                Told::Conflicts(rows, next) => (rows, next),
                Told::Failed(UNAVAILABLE, text) => match renewed(stream, walk.def()).await? {
                    Some(def) => {
                        // Places in the list are no keys.
                        walk.begin_again();
                        walk.renew(def);
                        continue;
                    }
                    // Only a stand-in is here: other fragments may have something to tell.
                    None => {
                        eprintln!("tombolo: {text}");
                        (Vec::new(), None)
                    }
                },
                other => return Ok(Some(other)),
            };
            for conflict in rows.into_iter().filter(|conflict| walk.is_new(&conflict.key)) {
                if !each(def, conflict)? {
                    return Ok(None);
                }
            }
            walk.went_on(next);
        }
    }
    Ok(None)
}

async fn list(stream: &mut UnixStream, tables: &[TableDef], json: bool) -> Result<u8> {
    let names = names(stream).await?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut count = 0;
    let failed = all(stream, tables, |def, conflict| {
        let id = id(&def.name, &conflict);
        if json {
            let row = json!({
                "id": id,
                "table": def.name,
                "key": value(&conflict.key),
                "lost": side(&names, &conflict.lost),
                "kept": conflict.kept.as_ref().map(|kept| side(&names, kept)),
            });
            write!(out, "{}{row}", if count == 0 { "[\n" } else { ",\n" })?;
        } else {
            writeln!(out, "{id}  {}  {}", def.name, text::escape(&conflict.key))?;
            writeln!(out, "  lost  {}", line(&names, Some(&conflict.lost)))?;
            writeln!(out, "  now   {}", line(&names, conflict.kept.as_ref()))?;
        }
        count += 1;
        Ok(true)
    })
    .await?;
    if let Some(told) = failed {
        return done(told, None);
    }
    let files = match settled::all(stream, tables).await? {
        Ok(files) => files,
        Err(told) => return done(told, None),
    };
    for one in files {
        match json {
            true => write!(out, "{}{}", if count == 0 { "[\n" } else { ",\n" }, one.to_json())?,
            false => writeln!(out, "{}", one.to_text())?,
        }
        count += 1;
    }
    if json {
        out.write_all(if count == 0 { b"[]\n" } else { b"\n]\n" })?;
    } else if count == 0 {
        writeln!(out, "no conflicts: no key was written on two sides of a cut, or what lost was dropped since")?;
    }
    out.flush()?;
    Ok(0)
}

/// Nothing that could be put back has this id.
async fn not_found(stream: &mut UnixStream, tables: &[TableDef], id: &str) -> Result<u8> {
    let files = settled::all(stream, tables).await?.unwrap_or_default();
    if files.iter().any(|one| one.id == id) {
        eprintln!(
            "tombolo: {id} was settled among files: what it tells of is there; `--forget {id}` takes it off the list"
        );
    } else {
        eprintln!("tombolo: no conflict has the id {id}; `tombolo conflicts` lists those there are");
    }
    Ok(FAILED)
}

/// The losing value of this id.
async fn find(
    stream: &mut UnixStream,
    tables: &[TableDef],
    wanted: &str,
) -> Result<Result<Option<(TableDef, Conflict)>, u8>> {
    let mut found = None;
    let failed = all(stream, tables, |def, conflict| {
        if id(&def.name, &conflict) == wanted {
            found = Some((def.clone(), conflict));
        }
        Ok(found.is_none())
    })
    .await?;
    Ok(match failed {
        Some(told) => Err(done(told, None)?),
        None => Ok(found),
    })
}

/// Puts a losing value back under its key, over what is there now, and takes it off the list.
async fn restore(stream: &mut UnixStream, tables: &[TableDef], id: &str) -> Result<u8> {
    for _ in 0..TRIES {
        let (def, Conflict { key, lost, kept }) = match find(stream, tables, id).await? {
            Ok(Some(found)) => found,
            Ok(None) => return not_found(stream, tables, id).await,
            Err(code) => return Ok(code),
        };
        let check = match &kept {
            Some(kept) => Check::AtVersion(key.clone(), kept.version),
            None => Check::Absent(key.clone()),
        };
        let mut writes = vec![Write::Forget { key: key.clone(), lost: lost.version }];
        match lost.value {
            Some(value) => writes.extend(put_until(key.clone(), value, lost.expires, expires_by_itself(&def))),
            None => writes.push(Write::Delete { key: key.clone() }),
        }
        let batch = Batch { checks: vec![check], writes, sync: true };
        let told = ask_on(stream, &Ask::Write(def.name.clone(), key.clone(), batch)).await?;
        // Somebody has written the key since it was looked at.
        if !matches!(&told, Told::Outcome(Outcome::Failed(replica::Refusal::Check(_)))) {
            return done(told, Some(&format!("{} {}", def.name, text::escape(&key))));
        }
    }
    eprintln!("tombolo: the key of conflict {id} is written all the time; nothing was changed");
    Ok(FAILED)
}

/// Drops losing values for good: the one of this id, or `all` of the named tables.
async fn forget(stream: &mut UnixStream, tables: &[TableDef], id: &str) -> Result<u8> {
    let mut rows: Vec<(String, Bytes, Version)> = Vec::new();
    if id == "all" {
        let failed = all(stream, tables, |def, c| {
            rows.push((def.name.clone(), c.key, c.lost.version));
            Ok(true)
        });
        if let Some(told) = failed.await? {
            return done(told, None);
        }
    } else {
        match find(stream, tables, id).await? {
            Ok(found) => rows.extend(found.map(|(def, c)| (def.name, c.key, c.lost.version))),
            Err(code) => return Ok(code),
        }
    }
    let mut files = match settled::all(stream, tables).await? {
        Ok(files) => files,
        Err(told) => return done(told, None),
    };
    files.retain(|one| id == "all" || one.id == id);
    let count = rows.len() + files.len();
    if count == 0 && id != "all" {
        return not_found(stream, tables, id).await;
    }
    for one in files {
        let told = one.forget(stream).await?;
        if !matches!(&told, Told::Outcome(Outcome::Done { .. })) {
            return done(told, Some("conflicts"));
        }
    }
    for (table, key, lost) in rows {
        let writes = vec![Write::Forget { key: key.clone(), lost }];
        let told = ask_on(stream, &Ask::Write(table, key, Batch { writes, ..Batch::default() })).await?;
        if !matches!(&told, Told::Outcome(Outcome::Done { .. })) {
            return done(told, Some("conflicts"));
        }
    }
    println!("{count} dropped");
    Ok(0)
}

async fn names(stream: &mut UnixStream) -> Result<Names> {
    Ok(match ask_on(stream, &Ask::Status).await? {
        Told::Status(status) => status.nodes.into_iter().map(|node| (node.id, node.name)).collect(),
        _ => Names::new(),
    })
}

fn named(names: &Names, node: base::NodeId) -> String {
    let id = node.to_string();
    names.get(&id).cloned().unwrap_or(id)
}

/// Text as text, else base64.
fn value(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "base64": BASE64.encode(bytes) }),
    }
}

pub(crate) fn time(at: WallMs) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at.0)).to_string()
}

fn side(names: &Names, record: &Record) -> Value {
    json!({
        "value": record.value.as_ref().map(|v| value(v)),
        "version": record.version.to_string(),
        "node": named(names, record.version.branch.node),
        "time": time(record.hlc.wall()),
    })
}

fn line(names: &Names, record: Option<&Record>) -> String {
    let Some(record) = record else { return "nothing: it was deleted, or has expired".into() };
    let shown = record.value.as_ref().map_or_else(|| "(deleted)".into(), |v| text::escape(v));
    let node = named(names, record.version.branch.node);
    format!("{shown}  {} by {node} at {}", record.version, time(record.hlc.wall()))
}

/// A heal of the whole cluster: those of its fragments that were close together.
struct Met {
    first: WallMs,
    last: WallMs,
    took_ms: u64,
    nodes: Vec<String>,
    tables: Vec<String>,
    taken: u64,
    given: u64,
    conflicts: u64,
}

fn gathered(names: &Names, mut all: Vec<(String, Heal)>) -> Vec<Met> {
    all.sort_by_key(|(_, heal)| heal.at);
    let mut met: Vec<Met> = Vec::new();
    for (table, heal) in all {
        if met.last().is_none_or(|m| heal.at.0 - m.last.0 > ONE_HEAL_MS) {
            let (nodes, tables) = (Vec::new(), Vec::new());
            met.push(Met {
                first: heal.at,
                last: heal.at,
                took_ms: 0,
                nodes,
                tables,
                taken: 0,
                given: 0,
                conflicts: 0,
            });
        }
        let Some(m) = met.last_mut() else { continue };
        m.last = heal.at;
        m.took_ms = m.took_ms.max(heal.took.as_ms() + (heal.at.0 - m.first.0));
        m.nodes.extend(heal.with.iter().chain([&heal.by]).map(|node| named(names, *node)));
        m.tables.push(table);
        (m.taken, m.given, m.conflicts) = (m.taken + heal.taken, m.given + heal.given, m.conflicts + heal.conflicts);
    }
    for m in &mut met {
        for list in [&mut m.nodes, &mut m.tables] {
            list.sort();
            list.dedup();
        }
    }
    met
}

pub(crate) async fn heals(data: &Path, json: bool) -> Result<u8> {
    let mut stream = connect(data).await?;
    let names = names(&mut stream).await?;
    let all = match ask(data, Ask::Heals).await? {
        Told::Heals(all) => all,
        other => return done(other, None),
    };
    let met = gathered(&names, all);
    if json {
        let row = |m: &Met| {
            json!({ "time": time(m.last), "seconds": m.took_ms as f64 / 1000.0, "nodes": m.nodes, "tables": m.tables,
                "records_in": m.taken, "entries_out": m.given, "conflicts": m.conflicts })
        };
        println!("{}", Value::from_iter(met.iter().map(row)));
        return Ok(0);
    }
    if met.is_empty() {
        println!("no heals: no islands have met");
    }
    for m in met {
        println!(
            "{}  {:.1} s  {} records taken over, {} entries given, {} conflicts  nodes {}  tables {}",
            time(m.last),
            m.took_ms as f64 / 1000.0,
            m.taken,
            m.given,
            m.conflicts,
            m.nodes.join(", "),
            m.tables.join(", ")
        );
    }
    Ok(0)
}

/// Refuses what makes no sense before anything is asked.
pub(crate) fn check(what: &Conflicts) -> Result<(), Usage> {
    let is_id = |id: &str| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
    for (flag, id) in [("--restore", &what.restore), ("--forget", &what.forget)] {
        if let Some(id) = id.as_ref().filter(|id| !(is_id(id) || flag == "--forget" && *id == "all")) {
            return Err(Usage(format!(
                "{flag} {id}: an id has 16 hexadecimal digits, as `tombolo conflicts` prints it"
            )));
        }
    }
    if what.forget.as_deref() == Some("all") && what.table.is_none() {
        return Err(Usage("--forget all needs the name of a table".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{NodeId, Span};

    #[test]
    fn heals_of_fragments_that_were_close_together_are_one() {
        let heal = |at, taken| Heal {
            at: WallMs(at),
            took: Span::ms(900),
            by: NodeId(1),
            with: vec![NodeId(2)],
            taken,
            given: 1,
            conflicts: 1,
        };
        let all = vec![("t".to_string(), heal(5_000, 3)), ("s".into(), heal(4_000, 2)), ("t".into(), heal(40_000, 7))];
        let met = gathered(&Names::new(), all);
        let seen: Vec<_> = met.iter().map(|m| (m.taken, m.given, m.conflicts, m.took_ms, m.tables.len())).collect();
        assert_eq!(seen, [(5, 2, 2, 1900, 2), (7, 1, 1, 900, 1)]);
    }

    #[test]
    fn text_is_shown_as_text_and_the_rest_in_base64() {
        assert_eq!(value("ü\n".as_bytes()), json!({ "text": "ü\n" }));
        assert_eq!(value(&[0xff]), json!({ "base64": "/w==" }));
        assert_eq!(time(WallMs(0)), "1970-01-01T00:00:00.000Z");
    }
}

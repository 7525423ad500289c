//! `ttl`, `touch` and `persist`: how long a value lives.

use crate::commands::{FAILED, Usage, ask, done, not_found, write_command};
use crate::control::{Ask, Told};
use crate::{tables, text};
use anyhow::Result;
use bytes::Bytes;
use replica::{Check, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Prints the seconds that a value has left, or `none`.
pub(crate) async fn left(data: &Path, table: String, key: Bytes) -> Result<u8> {
    let object = format!("{table} {}", text::escape(&key));
    match ask(data, Ask::Get(table, key)).await? {
        Told::Record(Some(record)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
            match record.expires {
                Some(at) => println!("{:.3}", at.0.saturating_sub(now) as f64 / 1000.0),
                None => println!("none"),
            }
            Ok(0)
        }
        Told::Record(None) => {
            not_found(&object);
            Ok(FAILED)
        }
        other => done(other, Some(&object)),
    }
}

/// Has a value live for so long from now on; not said: for as long as its table says.
pub(crate) async fn touch(data: &Path, table: String, key: Bytes, ttl: Option<String>) -> Result<u8> {
    let ttl_ms = match ttl {
        Some(ttl) => Some(text::duration_ms(&ttl).map_err(Usage)?),
        None => tables::named(data, &table).await?.options.ttl_ms,
    };
    if ttl_ms.is_none() {
        return Err(Usage(format!("table {table} has no time to live of its own: give --ttl, as in --ttl 10m")).into());
    }
    expire(data, table, key, ttl_ms).await
}

/// Has a value live for good.
pub(crate) async fn persist(data: &Path, table: String, key: Bytes) -> Result<u8> {
    expire(data, table, key, None).await
}

async fn expire(data: &Path, table: String, key: Bytes, ttl_ms: Option<u64>) -> Result<u8> {
    let checks = vec![Check::Present(key.clone())];
    write_command(data, table, key.clone(), checks, Write::Expire { key, ttl_ms }).await
}

//! What was settled among files by itself: lines beside the conflicts of tables.

use crate::commands::ask_on;
use crate::conflicts::time;
use crate::control::{Ask, Told};
use anyhow::Result;
use base::WallMs;
use bytes::Bytes;
use node::TableDef;
use replica::{Batch, Write};
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// How many rows one question asks for.
const PAGE: u32 = 1000;

/// Something that was settled.
pub(crate) struct Settled {
    pub id: String,
    pub table: String,
    key: Bytes,
    at: WallMs,
    what: String,
}

impl Settled {
    pub(crate) fn to_json(&self) -> Value {
        json!({ "id": self.id, "table": self.table, "settled": self.what, "time": time(self.at) })
    }

    pub(crate) fn to_text(&self) -> String {
        format!("{}  {}  settled at {}\n  {}", self.id, self.table, time(self.at), self.what)
    }

    /// Takes it off the list.
    pub(crate) async fn forget(&self, stream: &mut UnixStream) -> Result<Told> {
        let writes = vec![Write::Delete { key: self.key.clone() }];
        ask_on(stream, &Ask::Write(self.table.clone(), self.key.clone(), Batch { writes, ..Batch::default() })).await
    }
}

/// All of these tables; `Err`: the node's answer, where it is none.
pub(crate) async fn all(
    stream: &mut UnixStream,
    tables: &[TableDef],
) -> Result<std::result::Result<Vec<Settled>, Told>> {
    let mut out = Vec::new();
    let names = vfs::filesystems(tables.iter().map(|def| def.name.as_str()));
    for table in names.iter().map(|name| vfs::table_names(name).0) {
        let (mut from, to) = vfs::record::all_settled();
        loop {
            let ask = Ask::Scan { table: table.clone(), from: from.clone(), to: Some(to.clone()), limit: PAGE };
            let (rows, next) = match ask_on(stream, &ask).await? {
                Told::Rows(rows, next) => (rows, next),
                other => return Ok(Err(other)),
            };
            for (key, row) in rows {
                let Some((id, settled)) = vfs::record::read_settled(&key, row.value.as_deref().unwrap_or_default())
                else {
                    continue;
                };
                let at = WallMs(settled.at / 1_000_000);
                out.push(Settled { id: format!("{id:016x}"), table: table.clone(), key, at, what: settled.what });
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
    }
    Ok(Ok(out))
}

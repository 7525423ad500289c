//! What commands and the node of their data directory say to each other, over a socket in that directory that only its
//! owner can open.

use base::FRAME_BYTES_MAX;
use bytes::Bytes;
use node::{Status, TableDef, TableInfo, TableOptions};
use replica::{Batch, Heal, Outcome, Record};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What a command wants.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Ask {
    Status,
    CreateTable(String, TableOptions),
    Tables,
    TableInfo(String),
    DropTable(String),
    /// Rows of one fragment.
    ScanFragment {
        table: String,
        index: u32,
        from: Bytes,
        limit: u32,
    },
    Bench(crate::bench::Spec),
    Write(String, Bytes, Batch),
    Get(String, Bytes),
    Scan {
        table: String,
        from: Bytes,
        to: Option<Bytes>,
        limit: u32,
    },
    /// No filesystem: the cluster itself.
    Mount {
        fs: Option<String>,
        dir: PathBuf,
        options: String,
        copies: u16,
    },
    Umount(PathBuf),
    /// Answered when the mount is gone.
    WaitUnmounted(PathBuf),
    /// Losing values of one fragment.
    Conflicts {
        table: String,
        index: u32,
        from: Bytes,
        limit: u32,
    },
    Heals,
    Nodes,
    Word(String, node::Word),
    DropFs(String),
    /// Which filesystem; mend it.
    Fsck(String, bool),
    Stop,
    Map,
    PauseBalance(bool),
    CopyRate(Option<u64>),
    AlterTable(String, node::Alteration),
    Events(BTreeMap<base::NodeId, node::EventMark>, u32),
    Metrics,
    Why(Object),
}

/// What is asked about.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Object {
    Known(node::Object),
    /// A file of a filesystem.
    Path(PathBuf),
}

/// A value that lost a conflict, and what is under its key now.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Conflict {
    pub key: Bytes,
    pub lost: Record,
    pub kept: Option<Record>,
}

/// What it is told.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Told {
    Status(Box<Status>),
    Nodes(Box<Status>, BTreeMap<String, crate::nodes::Load>),
    Tables(Vec<TableDef>),
    TableInfo(Box<TableInfo>),
    Bench(Box<crate::bench::Report>),
    Outcome(Outcome),
    Record(Option<Record>),
    Rows(Vec<(Bytes, Record)>, Option<Bytes>),
    /// And where to go on.
    Conflicts(Vec<Conflict>, Option<Bytes>),
    /// By table.
    Heals(Vec<(String, Heal)>),
    Done,
    /// Exit status, and what to print.
    Failed(u8, String),
    Map(Box<node::Map>),
    /// By node, with its name.
    Events(BTreeMap<base::NodeId, (String, Vec<node::Happened>)>),
    Text(String),
    Checked(Box<vfs::Checked>),
    /// The same.
    Metrics(BTreeMap<base::NodeId, (String, Vec<node::Sample>)>),
}

/// Where the socket of a data directory lies.
pub(crate) fn socket_path(data: &Path) -> PathBuf {
    data.join("control.sock")
}

/// Sends one message.
pub(crate) async fn send<T: Serialize>(to: &mut UnixStream, message: &T) -> Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(|e| Error::new(ErrorKind::InvalidData, e))?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("a message of {} bytes; at most {FRAME_BYTES_MAX} are taken", bytes.len()),
        ));
    }
    to.write_u32(bytes.len() as u32).await?;
    to.write_all(&bytes).await
}

/// Receives one message; `None`: the other side is gone.
pub(crate) async fn receive<T: for<'a> Deserialize<'a>>(from: &mut UnixStream) -> Result<Option<T>> {
    let len = match from.read_u32().await {
        Ok(len) => len as usize,
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    if len > FRAME_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("a message of {len} bytes; at most {FRAME_BYTES_MAX} are taken"),
        ));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).await?;
    postcard::from_bytes(&bytes).map(Some).map_err(|e| Error::new(ErrorKind::InvalidData, e))
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(Ask::Write(_, _, batch)) = postcard::from_bytes(bytes) {
        let _ = batch.validate();
    }
}

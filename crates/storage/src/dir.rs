use crate::StorageError;
use base::NodeId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The form of a data directory. Another minor one has more, or fewer, fields at the end of what it keeps.
pub(crate) const FORMAT_MAJOR: u32 = 1;
const FORMAT_MINOR: u32 = 1;

/// Who the node of a data directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Random, made at first start.
    pub node: NodeId,
    /// Counts starts, this one included.
    pub incarnation: u64,
}

/// A data directory, locked for this process for as long as this value lives.
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is not there (mode 0700), and locks it.
    pub fn open(path: &Path) -> Result<DataDir, StorageError> {
        let io = |source| StorageError::Io { path: path.into(), source };
        if !path.exists() {
            fs::create_dir_all(path).map_err(io)?;
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(io)?;
        }
        let file = path.join("lock");
        let mut lock = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(file).map_err(io)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown".into() } else { pid.trim().to_string() };
            return Err(StorageError::InUse { path: path.into(), pid });
        }
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;
        let dir = DataDir { path: path.into(), _lock: lock };
        dir.check_format()?;
        Ok(dir)
    }

    /// The form of what is in it is one that this program reads; a fresh one is marked with this program's.
    fn check_format(&self) -> Result<(), StorageError> {
        let (file, wrong) = (self.path.join("format"), |theirs: &str| {
            Err(StorageError::Format { path: self.path.clone(), theirs: theirs.chars().take(40).collect() })
        });
        let io = |source| StorageError::Io { path: file.clone(), source };
        match fs::read_to_string(&file) {
            Ok(text) => {
                let major = text.trim().split('.').next().and_then(|major| major.parse::<u32>().ok());
                if major == Some(FORMAT_MAJOR) { Ok(()) } else { wrong(text.trim()) }
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(e)),
            Err(_) if self.path.join("node").exists() => wrong("0, of a build before 1.0"),
            Err(_) => {
                let next = self.path.join("format.next");
                let mut out = File::create(&next).map_err(io)?;
                writeln!(out, "{FORMAT_MAJOR}.{FORMAT_MINOR}").map_err(io)?;
                out.sync_all().map_err(io)?;
                fs::rename(&next, &file).map_err(io)
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who I am, this start counted, durably. `fresh` is taken as the node id at the first start.
    pub fn identity(&self, fresh: NodeId) -> Result<Identity, StorageError> {
        let file = self.path.join("node");
        let io = |source| StorageError::Io { path: file.clone(), source };
        let damaged = || StorageError::Damaged { path: self.path.clone(), what: "its file `node`".into() };
        let mut identity = Identity { node: fresh, incarnation: 0 };
        if file.exists() {
            let text = fs::read_to_string(&file).map_err(io)?;
            let (node, incarnation) = text.trim().split_once(' ').ok_or_else(damaged)?;
            identity.node = NodeId(u64::from_str_radix(node, 16).map_err(|_| damaged())?);
            identity.incarnation = incarnation.parse().map_err(|_| damaged())?;
        }
        identity.incarnation += 1;
        let next = self.path.join("node.next");
        let mut out = File::create(&next).map_err(io)?;
        writeln!(out, "{} {}", identity.node, identity.incarnation).map_err(io)?;
        out.sync_all().map_err(io)?;
        fs::rename(&next, &file).map_err(io)?;
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(io)?;
        Ok(identity)
    }

    /// Bytes that can still be written.
    pub fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_names_the_process() {
        let dir = tempfile::tempdir().expect("dir");
        let held = DataDir::open(dir.path()).expect("free");
        match DataDir::open(dir.path()) {
            Err(StorageError::InUse { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            _ => panic!("opened twice"),
        }
        drop(held);
        DataDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn a_node_keeps_its_id_and_counts_its_starts() {
        let dir = tempfile::tempdir().expect("dir");
        let data = DataDir::open(dir.path()).expect("free");
        assert_eq!(data.identity(NodeId(5)).expect("made"), Identity { node: NodeId(5), incarnation: 1 });
        assert_eq!(data.identity(NodeId(6)).expect("kept"), Identity { node: NodeId(5), incarnation: 2 });
        std::fs::write(dir.path().join("node"), "rubbish").expect("write");
        assert!(matches!(data.identity(NodeId(6)), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn what_another_major_version_wrote_is_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        drop(DataDir::open(dir.path()).expect("fresh"));
        let mark = |text: &str| std::fs::write(dir.path().join("format"), text).expect("write");
        mark("1.7\n");
        drop(DataDir::open(dir.path()).expect("one major version"));
        for text in ["2.0\n", "rubbish", ""] {
            mark(text);
            let error = DataDir::open(dir.path()).map(drop).expect_err("of another");
            assert!(error.to_string().contains("run the version that wrote it"), "{error}");
            assert_eq!(std::fs::read_to_string(dir.path().join("format")).expect("there"), text);
        }
        std::fs::remove_file(dir.path().join("format")).expect("there");
        std::fs::write(dir.path().join("node"), "1 1").expect("write");
        assert!(matches!(DataDir::open(dir.path()), Err(StorageError::Format { .. })), "from before there was a mark");
    }
}

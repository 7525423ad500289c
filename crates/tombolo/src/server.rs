//! A running node as commands see it: the control socket, the mounts, and the end of both.

use crate::around::{Around, MountSeen};
use crate::bench;
use crate::commands::{FAILED, OTHER, UNAVAILABLE, USAGE};
use crate::control::{self, Ask, Conflict, Object, Told};
use crate::http;
use crate::service;
use crate::settings::{Loaded, NewCookie};
use anyhow::{Context, Result};
use bytes::Bytes;
use client::{Database, Error};
use node::ClientError;
use procfs::Proc;
use runtime::Handle;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use vfs::{Fs, MountError, MountOptions};

/// How long a command waits for a leader and its answer.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a filesystem call does.
const FS_LIMIT: Duration = Duration::from_secs(30);
/// How many bytes of losing values one answer carries, and one row more.
const CONFLICTS_BYTES: usize = 2 * 1024 * 1024;
/// How often mounts are looked after.
const LOOK: Duration = Duration::from_millis(50);

struct Mount {
    /// `None`: the cluster itself.
    fs: Option<Arc<Fs>>,
    name: String,
    mounted: fuse::Mounted,
}

/// What is mounted.
pub(crate) enum Mountable<'a> {
    /// A filesystem, and how many copies it has if it is made.
    Fs(&'a str, u16),
    /// The cluster itself.
    Proc,
}

/// A node that runs in this process.
pub(crate) struct Server {
    handle: Handle,
    data: PathBuf,
    mounts: Mutex<BTreeMap<PathBuf, Mount>>,
    around: Arc<Around>,
    /// The cluster as files, for all mounts.
    proc: Arc<Proc>,
    /// `mount` became this node: it goes with its last mount.
    ends_with_mounts: bool,
}

impl Server {
    /// Starts the node and its control socket.
    pub(crate) fn start(loaded: Loaded, ends_with_mounts: bool) -> Result<Arc<Server>> {
        let Loaded { settings, fresh: cookie, around, http } = loaded;
        let (data, name, group) = (settings.data.clone(), settings.name.clone(), settings.group.clone());
        // A node that is not to be started is not to be met first.
        let listener = http.map(http::listen).transpose()?;
        let handle = runtime::start(settings)?;
        if let Some(NewCookie(path)) = cookie {
            println!("A new secret was made in {}.", path.display());
            println!("To let another machine join, bring that file to the same place there, with mode 0600:");
            println!("  scp -p {0} OTHER:{0}", path.display());
        }
        println!("Node {name} of group {group} listens on {} and is reached at {}.", handle.listen, handle.advertise);
        let db = Database::new(handle.clone(), LIMIT);
        if let Some(listener) = listener {
            println!("Prometheus is answered at http://{}/metrics.", listener.local_addr()?);
            http::start(listener, db.clone());
        }
        let path = control::socket_path(&data);
        // A crash leaves it behind; the directory is locked, so it is ours.
        let _ = std::fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot make the control socket {}", path.display()))?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let proc = Proc::new(db);
        let server = Arc::new(Server { handle, data, mounts: Mutex::default(), around, proc, ends_with_mounts });
        tokio::spawn(accept(listener, server.clone()));
        Ok(server)
    }

    fn mounts(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Mount>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until a signal, `tombolo stop`, the last mount's end, or a failure; then stops cleanly.
    pub(crate) async fn run(self: Arc<Server>) -> Result<u8> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(service::watch(Database::new(self.handle.clone(), LIMIT)));
        let handle = self.handle.clone();
        let ended = handle.ended();
        tokio::pin!(ended);
        let mut look = tokio::time::interval(LOOK);
        let why = loop {
            tokio::select! {
                why = &mut ended => break why,
                _ = term.recv() => { self.stop().await; break ended.await }
                _ = int.recv() => { self.stop().await; break ended.await }
                _ = look.tick() => {
                    self.end_gone_mounts().await;
                    if self.ends_with_mounts && self.mounts().is_empty() {
                        self.stop().await;
                        break ended.await;
                    }
                }
            }
        };
        let _ = std::fs::remove_file(control::socket_path(&self.data));
        match why {
            None => Ok(0),
            Some(why) => {
                eprintln!("tombolo: {why}");
                Ok(OTHER)
            }
        }
    }

    async fn stop(&self) {
        service::stopping();
        let all: Vec<PathBuf> = self.mounts().keys().cloned().collect();
        for dir in all {
            self.unmount(&dir).await;
        }
        self.handle.stop();
    }

    async fn end_gone_mounts(&self) {
        let gone: Vec<PathBuf> =
            self.mounts().iter().filter(|(_, m)| m.mounted.is_gone()).map(|(d, _)| d.clone()).collect();
        for dir in gone {
            self.unmount(&dir).await;
        }
    }

    /// `false`: it is not mounted here.
    async fn unmount(&self, dir: &Path) -> bool {
        let Some(Mount { fs, mounted, name }) = self.mounts().remove(dir) else { return false };
        self.around.unmounted(dir);
        // The kernel asks for what is under way while it unmounts: not on a thread that would have to answer.
        let _ = tokio::task::spawn_blocking(move || mounted.unmount()).await;
        if let Some(fs) = fs
            && let Err(e) = fs.unmount().await
        {
            eprintln!("tombolo: unmounting {name} from {}: {e}; what was written last may be lost", dir.display());
        }
        true
    }

    /// Mounts a filesystem, or the cluster, on a directory of this machine.
    pub(crate) async fn mount(&self, what: Mountable<'_>, dir: &Path, options: &str) -> Result<(), (u8, String)> {
        let usage = |e: &dyn std::fmt::Display| (USAGE, e.to_string());
        let fuse_options = fuse::Options::parse(options).map_err(|e| usage(&e))?;
        if self.data.starts_with(dir) {
            return Err((USAGE, format!("the data directory {} would lie in its own mount", self.data.display())));
        }
        // What was unmounted a moment ago is being ended.
        let deadline = tokio::time::Instant::now() + FS_LIMIT;
        while self.mounts().contains_key(dir) && !fuse::is_mounted(dir) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        if self.mounts().contains_key(dir) || fuse::is_mounted(dir) && !is_dead(dir) {
            return Err((
                FAILED,
                format!("{} is a mount point already; unmount it first: tombolo umount {0}", dir.display()),
            ));
        }
        match what {
            Mountable::Fs(name, copies) => self.mount_fs((name, copies), dir, (options, &fuse_options)).await,
            Mountable::Proc => {
                let mounted = fuse::mount_proc(self.proc.another(), dir, &fuse_options).map_err(refused)?;
                self.around.mounted(dir, seen("procfs", "", options, None));
                self.mounts().insert(dir.into(), Mount { fs: None, name: "procfs".into(), mounted });
                Ok(())
            }
        }
    }

    async fn mount_fs(
        &self,
        (name, copies): (&str, u16),
        dir: &Path,
        (options, fuse_options): (&str, &fuse::Options),
    ) -> Result<(), (u8, String)> {
        let db = Database::new(self.handle.clone(), FS_LIMIT);
        let plain = MountOptions::default();
        let fs_options = MountOptions {
            copies,
            strict: fuse_options.strict,
            relatime: fuse_options.relatime,
            dirty_bytes_max: fuse_options.cache.unwrap_or(plain.dirty_bytes_max),
            scrub: fuse_options.scrub.filter(|_| !fuse_options.ro).map(|rate| rate as u64),
            uid: fuse_options.uid,
            gid: fuse_options.gid,
            delegate: !fuse_options.waits(),
        };
        let deadline = tokio::time::Instant::now() + FS_LIMIT;
        let fs = loop {
            match Fs::mount(db.clone(), name, fs_options.clone(), self.data.clone()).await {
                Ok(fs) => break fs,
                // A node that has just started has to find its peers, or find that there are none.
                Err(MountError::Client(e)) if e.is_unavailable() && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(MountError::Client(e)) => return Err(code(&e)),
                Err(e) => return Err((FAILED, e.to_string())),
            }
        };
        match fuse::mount(fs.clone(), self.proc.another(), name, dir, fuse_options).await {
            Ok((mounted, tally)) => {
                self.around.mounted(
                    dir,
                    MountSeen { files: Some(Arc::downgrade(&fs)), ..seen("walkenfs", name, options, Some(tally)) },
                );
                self.mounts().insert(dir.into(), Mount { fs: Some(fs), name: name.into(), mounted });
                Ok(())
            }
            Err(e) => {
                let _ = fs.unmount().await;
                Err(refused(e))
            }
        }
    }

    async fn answer(&self, ask: Ask) -> Result<Told, Error> {
        let db = Database::new(self.handle.clone(), LIMIT);
        Ok(match ask {
            Ask::Status => Told::Status(Box::new(db.status().await?)),
            Ask::CreateTable(name, options) => {
                db.create_table(&name, options, false).await?;
                Told::Done
            }
            Ask::Tables => Told::Tables(db.tables().await?),
            Ask::TableInfo(name) => Told::TableInfo(Box::new(db.table_info(&name).await?)),
            Ask::DropTable(name) => Told::Outcome(db.drop_table(&name).await?),
            Ask::ScanFragment { table, index, from, limit } => {
                let table = db.table(&table).await?;
                let (rows, next) = table.scan_fragment(table.def().of_line(index), from, limit).await?;
                Told::Rows(rows, next)
            }
            Ask::Bench(spec) => match bench::run(&db, &spec).await {
                Ok(report) => Told::Bench(Box::new(report)),
                Err(bench::Stopped::Error(e)) => return Err(e),
                Err(bench::Stopped::Why(text)) => Told::Failed(OTHER, text),
            },
            Ask::Write(table, key, batch) => Told::Outcome(db.table(&table).await?.batch(&key, batch).await?),
            Ask::Get(table, key) => Told::Record(db.table(&table).await?.get(&key).await?),
            Ask::Scan { table, from, to, limit } => {
                let (rows, next) = db.table(&table).await?.scan(from, to, limit).await?;
                Told::Rows(rows, next)
            }
            Ask::Mount { fs, dir, options, copies } => {
                let what = fs.as_deref().map_or(Mountable::Proc, |fs| Mountable::Fs(fs, copies));
                match self.mount(what, &dir, &options).await {
                    Ok(()) => Told::Done,
                    Err((code, text)) => Told::Failed(code, text),
                }
            }
            Ask::Why(object) => match object {
                Object::Known(object) => Told::Text(db.why(object).await?),
                Object::Path(path) => self.why_path(&db, &path).await?,
            },
            Ask::Conflicts { table, index, from, limit } => conflicts(&db, &table, index, from, limit).await?,
            Ask::Nodes => Told::Nodes(Box::new(db.status().await?), crate::nodes::loads(&db).await?),
            Ask::Word(name, word) => Told::Outcome(db.word(&name, word).await?),
            Ask::Events(since, most) => Told::Events(db.happened(&since, most).await?),
            Ask::Metrics => Told::Metrics(db.metrics().await?),
            Ask::Map => Told::Map(Box::new(db.map().await?)),
            Ask::PauseBalance(paused) => Told::Outcome(db.pause_balance(paused).await?),
            Ask::CopyRate(rate) => Told::Outcome(db.copy_rate(rate).await?),
            Ask::AlterTable(name, change) => Told::Outcome(db.alter_table(&name, change).await?),
            Ask::Heals => Told::Heals(db.heals().await?),
            Ask::Umount(dir) if self.unmount(&dir).await => Told::Done,
            Ask::Umount(dir) => Told::Failed(FAILED, format!("{} is not a mount of this node", dir.display())),
            Ask::WaitUnmounted(dir) => {
                while self.mounts().contains_key(&dir) {
                    tokio::time::sleep(LOOK).await;
                }
                Told::Done
            }
            Ask::DropFs(name) => self.drop_fs(&db, &name).await?,
            Ask::Fsck(name, repair) => self.fsck(&name, repair).await?,
            Ask::Stop => {
                self.stop().await;
                Told::Done
            }
        })
    }

    /// Of a file: of its filesystem's tables, in this node's mount of it.
    async fn why_path(&self, db: &Database, path: &Path) -> Result<Told, Error> {
        let mount = self
            .mounts()
            .iter()
            .rev()
            .find(|(dir, m)| path.starts_with(dir) && m.fs.is_some())
            .map(|(d, m)| (d.clone(), m.name.clone()));
        let Some((dir, name)) = mount else {
            return Ok(Told::Failed(
                FAILED,
                format!("{} is in no filesystem that this node has mounted", path.display()),
            ));
        };
        crate::why::of_file(db, &name, &dir, path).await
    }

    async fn fsck(&self, name: &str, repair: bool) -> Result<Told, Error> {
        let db = Database::new(self.handle.clone(), FS_LIMIT);
        // One that is not there is not to be made.
        if db.table(&vfs::table_names(name).0).await.is_err() {
            let why = format!("there is no filesystem {name:?}; `tombolo fs list` shows those there are");
            return Ok(Told::Failed(FAILED, why));
        }
        let fs = match Fs::mount(db, name, MountOptions::default(), self.data.clone()).await {
            Ok(fs) => fs,
            Err(MountError::Client(e)) => return Err(e),
            Err(e) => return Ok(Told::Failed(FAILED, e.to_string())),
        };
        let checked = fs.fsck(repair).await;
        let ended = fs.unmount().await;
        Ok(match checked.and_then(|checked| ended.map(|()| checked)) {
            Ok(checked) => Told::Checked(Box::new(checked)),
            Err(e) => Told::Failed(OTHER, format!("{name} could not be looked at to the end: {e}")),
        })
    }

    async fn drop_fs(&self, db: &Database, name: &str) -> Result<Told, Error> {
        if self.mounts().values().any(|m| m.fs.is_some() && m.name == name) {
            return Ok(Told::Failed(FAILED, format!("{name} is mounted here; unmount it first")));
        }
        let (meta, blocks) = vfs::table_names(name);
        let outcome = db.drop_table(&meta).await?;
        // The blocks of a filesystem without metadata are nobody's; one that never had any is fine.
        match db.drop_table(&blocks).await {
            Ok(_) | Err(Error::Node(ClientError::NoTable(_))) => Ok(Told::Outcome(outcome)),
            Err(e) => Err(e),
        }
    }
}

fn refused(e: fuse::MountError) -> (u8, String) {
    (OTHER, format!("{:#}", anyhow::Error::from(e)))
}

fn seen(kind: &'static str, fs: &str, options: &str, tally: Option<Arc<fuse::Tally>>) -> MountSeen {
    MountSeen { kind, fs: fs.into(), options: options.into(), tally, files: None }
}

fn is_dead(dir: &Path) -> bool {
    std::fs::metadata(dir).is_err()
}

/// The exit status of an error.
fn code(e: &Error) -> (u8, String) {
    let code = match e {
        Error::Node(
            ClientError::NoTable(_)
            | ClientError::NoFragment(..)
            | ClientError::TableExists(_)
            | ClientError::NoNode(_)
            | ClientError::IsBuried(_)
            | ClientError::InView(_)
            | ClientError::NotInView(_)
            | ClientError::LastNode(_)
            | ClientError::LastCopy { .. }
            | ClientError::NotMarked(..),
        ) => FAILED,
        Error::Node(
            ClientError::BadTable(_) | ClientError::BadName(_) | ClientError::Ambiguous(_) | ClientError::Parted(_),
        ) => USAGE,
        Error::Unknown(_) => crate::commands::UNKNOWN,
        _ => UNAVAILABLE,
    };
    (code, e.to_string())
}

async fn accept(listener: UnixListener, server: Arc<Server>) {
    while let Ok((stream, _)) = listener.accept().await {
        let server = server.clone();
        tokio::spawn(async move { drop(serve(stream, &server).await) });
    }
}

/// One command's connection. Bytes that make no sense end it.
async fn serve(mut stream: UnixStream, server: &Server) -> std::io::Result<()> {
    loop {
        let ask = match control::receive::<Ask>(&mut stream).await {
            Ok(Some(ask)) => ask,
            Ok(None) => return Ok(()),
            Err(e) => {
                let told = Told::Failed(USAGE, format!("what was sent cannot be read: {e}"));
                return control::send(&mut stream, &told).await;
            }
        };
        let lasting = matches!(ask, Ask::Bench(_));
        let told = tokio::select! {
            told = server.answer(ask) => told,
            // Whoever interrupts a load wants no more of it.
            () = hung_up(&stream), if lasting => return Ok(()),
        };
        let told = told.unwrap_or_else(|e| {
            let (code, text) = code(&e);
            Told::Failed(code, text)
        });
        match control::send(&mut stream, &told).await {
            // Nothing of it was sent.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                control::send(&mut stream, &Told::Failed(OTHER, format!("the answer is too large: {e}"))).await?;
            }
            sent => sent?,
        }
    }
}

/// Rows of one fragment's ledger, with what is under their keys now: as many as fit into an answer.
async fn conflicts(db: &Database, table: &str, index: u32, from: Bytes, limit: u32) -> Result<Told, Error> {
    let table = db.table(table).await?;
    let (rows, next) = table.ledger(table.def().of_line(index), from, limit).await?;
    let (mut told, mut bytes, mut cut) = (Vec::new(), 0, None);
    for (at, row) in rows {
        if bytes > CONFLICTS_BYTES {
            cut = Some(at);
            break;
        }
        let kept = table.get(&row.key).await?;
        let size = |r: &replica::Record| r.value.as_ref().map_or(0, |v| v.len());
        bytes += row.key.len() + size(&row.lost) + kept.as_ref().map_or(0, size) + 200;
        told.push(Conflict { key: row.key, lost: row.lost, kept });
    }
    Ok(Told::Conflicts(told, cut.or(next)))
}

/// Waits until the other side has closed. It has nothing to say before it is answered.
async fn hung_up(stream: &UnixStream) {
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0]) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

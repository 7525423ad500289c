//! The files: which there are, and what is in each.

use crate::ProcError;
use crate::ask::{Asker, Told};
use crate::exposition;
use crate::follow::{Growing, Text, Texts};
use crate::inodes::{Ino, Inodes, Known, Value};
use crate::knobs;
use crate::tree::{Tree, What, file, json_file, name_of};
use base::NodeId;
use bytes::Bytes;
use client::Database;
use node::{Question, Said, Subject, segment};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A value.
    File,
    /// A value that can be written.
    Knob,
    /// A name for another place.
    Link,
}

/// A file as `stat` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// How many bytes it has.
    pub size: u64,
    /// Since when it is as it is, as far as somebody looked.
    pub since: SystemTime,
    /// It may be taken to be so for a moment. If not, it grows, or is written here: it has to be asked for each time.
    pub lasts: bool,
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// What is there; of what was not asked for yet, as if it were empty.
    pub attr: Attr,
    known: Known,
}

/// A place that a path leads to.
#[derive(Clone, Debug)]
enum Place {
    /// `nodes`.
    Nodes,
    /// `nodes/ME`.
    Myself,
    /// The directory of a node: this one's is the top.
    Node(NodeId),
    /// `tables` of a node.
    Tables(NodeId),
    /// One of them, which was not asked for yet.
    Table(NodeId, String),
    /// A directory of what a node told.
    Dir(Arc<Told>, Vec<String>),
    /// A value of what a node told.
    Value(NodeId, Arc<Told>, Vec<String>),
    /// When islands met, in what a node leads.
    Heals(NodeId),
    /// A text that grows.
    Text(NodeId, Text),
    Metrics(NodeId),
    /// The JSON of a directory.
    Json(Box<Place>),
}

/// The running cluster as files, seen from one node.
pub struct Proc {
    asker: Arc<Asker>,
    texts: Arc<Texts>,
    /// What the kernel knows of this mount.
    inodes: Inodes,
    begun: SystemTime,
    /// How often a knob was written.
    writes: AtomicU64,
}

fn strs(path: &[String]) -> impl Iterator<Item = &str> {
    path.iter().map(String::as_str)
}

fn joined(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.into() } else { format!("{dir}/{name}") }
}

impl Proc {
    /// The files of this node's cluster.
    pub fn new(db: Database) -> Arc<Proc> {
        Arc::new(Proc {
            asker: Asker::new(db),
            inodes: Inodes::default(),
            texts: Arc::default(),
            begun: SystemTime::now(),
            writes: AtomicU64::new(1),
        })
    }

    /// The same files for another mount: what the kernel knows of one it does not know of the other.
    pub fn another(&self) -> Arc<Proc> {
        Arc::new(Proc {
            asker: self.asker.clone(),
            texts: self.texts.clone(),
            inodes: Inodes::default(),
            begun: self.begun,
            writes: AtomicU64::new(1),
        })
    }

    /// Where a path leads.
    async fn place(&self, path: &str) -> Result<Place, ProcError> {
        match self.exactly(path).await {
            Err(ProcError::NotFound) => {}
            found => return found,
        }
        // The JSON of a directory lies beside it; that of the top, in it.
        let dir = match path {
            ".json" => "",
            _ => path.strip_suffix(".json").filter(|dir| !dir.ends_with('/')).ok_or(ProcError::NotFound)?,
        };
        match self.exactly(dir).await? {
            Place::Value(..) | Place::Text(..) | Place::Metrics(_) | Place::Heals(_) | Place::Myself => {
                Err(ProcError::NotFound)
            }
            place => Ok(Place::Json(Box::new(place))),
        }
    }

    async fn exactly(&self, path: &str) -> Result<Place, ProcError> {
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(String::from).collect();
        let (mut node, mut rest) = (self.asker.me(), &parts[..]);
        if let Some(("nodes", below)) = parts.split_first().map(|(first, below)| (first.as_str(), below)) {
            let Some((name, below)) = below.split_first() else { return Ok(Place::Nodes) };
            (node, rest) = (self.node(name).await?, below);
            if node == self.asker.me() {
                return Ok(Place::Myself);
            }
        }
        match strs(rest).collect::<Vec<_>>()[..] {
            [] => Ok(Place::Node(node)),
            ["metrics"] => Ok(Place::Metrics(node)),
            ["heals"] => Ok(Place::Heals(node)),
            ["log"] => Ok(Place::Text(node, Text::Log)),
            ["events"] => Ok(Place::Text(node, Text::Events)),
            ["tables"] => Ok(Place::Tables(node)),
            ["tables", table, ..] => {
                let table = name_of(table);
                // Nobody is asked for what there is not.
                if !self.tables(node).await?.contains(&table) {
                    return Err(ProcError::NotFound);
                }
                self.within(node, Subject::Table(table), rest[2..].to_vec()).await
            }
            _ => self.within(node, Subject::Node, rest.to_vec()).await,
        }
    }

    async fn node(&self, name: &str) -> Result<NodeId, ProcError> {
        let own = self.asker.own().await?;
        let id = own.tree.at(["roster", name, "id"]).ok_or(ProcError::NotFound)?;
        let What::Leaf(node::Known::Text(id)) = &id.what else { return Err(ProcError::NotFound) };
        u64::from_str_radix(id, 16).map(NodeId).map_err(|_| ProcError::NotFound)
    }

    async fn within(&self, node: NodeId, subject: Subject, path: Vec<String>) -> Result<Place, ProcError> {
        let told = self.asker.facts(node, subject).await?;
        let found = told.tree.at(strs(&path)).ok_or(ProcError::NotFound)?;
        match &found.what {
            What::Dir(_) => Ok(Place::Dir(told, path)),
            What::Leaf(_) => Ok(Place::Value(node, told, path)),
        }
    }

    /// What is in a file.
    async fn content(&self, place: &Place) -> Result<Bytes, ProcError> {
        match place {
            Place::Value(_, told, path) => match told.tree.at(strs(path)).map(|tree| &tree.what) {
                Some(What::Leaf(known)) => Ok(file(known)),
                _ => Err(ProcError::NotFound),
            },
            Place::Heals(node) => match self.asker.facts(*node, Subject::Heals).await?.tree.at(["heals"]) {
                Some(Tree { what: What::Leaf(known), .. }) => Ok(file(known)),
                _ => Err(ProcError::NotFound),
            },
            Place::Metrics(node) => match self.asker.ask(*node, Question::Metrics).await? {
                Said::Metrics(all) => {
                    let name = self.name(*node).await?;
                    Ok(exposition::text(&BTreeMap::from([(*node, (name, all))])).into())
                }
                _ => Err(ProcError::Unavailable),
            },
            Place::Json(dir) => self.json(dir).await.map(|value| json_file(&value)),
            _ => Err(ProcError::IsDirectory),
        }
    }

    async fn name(&self, node: NodeId) -> Result<String, ProcError> {
        let told = self.asker.facts(node, Subject::Node).await?;
        Ok(match told.tree.at(["name"]).map(|tree| tree.json()) {
            Some(Json::String(name)) => name,
            _ => node.to_string(),
        })
    }

    /// A directory as JSON. Of nodes and tables those that can be looked at.
    async fn json(&self, dir: &Place) -> Result<Json, ProcError> {
        Ok(match dir {
            Place::Dir(told, path) => told.tree.at(strs(path)).ok_or(ProcError::NotFound)?.json(),
            Place::Table(node, table) => self.asker.facts(*node, Subject::Table(table.clone())).await?.tree.json(),
            Place::Node(node) => self.asker.facts(*node, Subject::Node).await?.tree.json(),
            Place::Tables(node) => {
                let tables = self.tables(*node).await?;
                self.each(tables.into_iter().map(|table| (table.clone(), *node, Subject::Table(table)))).await
            }
            Place::Nodes => {
                let mut nodes = Vec::new();
                for name in self.asker.own().await?.tree.list("roster") {
                    nodes.push((name_of(&name), self.node(&name).await?, Subject::Node));
                }
                self.each(nodes.into_iter()).await
            }
            _ => return Err(ProcError::NotDirectory),
        })
    }

    /// What is told of each of these, who are asked together; one that does not answer is there all the same.
    async fn each(&self, all: impl Iterator<Item = (String, NodeId, Subject)>) -> Json {
        let ask = |(name, node, subject)| {
            let asker = self.asker.clone();
            (name, tokio::spawn(async move { asker.facts(node, subject).await }))
        };
        let asked: Vec<_> = all.map(ask).collect();
        let mut told = Map::new();
        for (name, answer) in asked {
            let tree = answer.await.ok().and_then(Result::ok);
            told.insert(name, tree.map_or(Json::Null, |told| told.tree.json()));
        }
        Json::Object(told)
    }

    async fn tables(&self, node: NodeId) -> Result<Vec<String>, ProcError> {
        Ok(self.asker.facts(node, Subject::Node).await?.tree.list("tables"))
    }

    /// What a place looks like now, and what the kernel is to know of it. A value is read for it.
    async fn look(&self, path: &str, place: &Place) -> Result<(Attr, Known), ProcError> {
        let lasting = Known { path: path.into(), value: None };
        let attr = |kind, size, since| Attr { ino: lasting.ino(), kind, size, since, lasts: true };
        let attr = match place {
            Place::Nodes | Place::Node(_) | Place::Tables(_) | Place::Table(..) => attr(Kind::Dir, 0, self.begun),
            Place::Myself => attr(Kind::Link, 2, self.begun),
            Place::Dir(told, below) => attr(Kind::Dir, 0, since(told, below, self.begun)),
            Place::Text(node, text) => {
                let size = |t: &Growing| (t.lines.len() as u64, t.since);
                let (size, since) = self.texts.look(&self.asker, (*node, *text), size).await?;
                Attr { lasts: false, ..attr(Kind::File, size, since) }
            }
            _ => {
                let value = self.value(place).await?;
                let known = Known { value: Some(value.clone()), ..lasting };
                return Ok((value_attr(known.ino(), &value), known));
            }
        };
        Ok((attr, lasting))
    }

    async fn value(&self, place: &Place) -> Result<Value, ProcError> {
        let content = self.content(place).await?;
        let (since, is_knob) = match place {
            Place::Value(_, told, path) => {
                (since(told, path, self.begun), path.first().is_some_and(|dir| dir == "sys"))
            }
            Place::Json(dir) => match dir.as_ref() {
                Place::Dir(told, path) => (since(told, path, self.begun), false),
                _ => (SystemTime::now(), false),
            },
            _ => (SystemTime::now(), false),
        };
        let knob = is_knob.then(|| self.writes.load(Ordering::Relaxed));
        Ok(Value { content, since, knob })
    }

    fn known(&self, ino: Ino) -> Result<Known, ProcError> {
        self.inodes.known(ino).ok_or(ProcError::NotFound)
    }

    /// The file of that name in a directory. It is known until it is forgotten.
    pub async fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Attr, ProcError> {
        let name = std::str::from_utf8(name).map_err(|_| ProcError::NotFound)?;
        let path = joined(&self.known(dir)?.path, name);
        let (attr, known) = self.look(&path, &self.place(&path).await?).await?;
        self.inodes.tell(attr.ino, &known);
        Ok(attr)
    }

    /// A file's attributes.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr, ProcError> {
        let known = self.known(ino)?;
        match &known.value {
            Some(value) => Ok(value_attr(ino, value)),
            None => Ok(self.look(&known.path, &self.place(&known.path).await?).await?.0),
        }
    }

    /// Where a link leads.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes, ProcError> {
        match self.place(&self.known(ino)?.path).await? {
            Place::Myself => Ok(Bytes::from_static(b"..")),
            _ => Err(ProcError::Invalid),
        }
    }

    async fn names(&self, dir: &str) -> Result<Vec<(String, Place)>, ProcError> {
        Ok(match self.place(dir).await? {
            Place::Nodes => {
                let mut all = Vec::new();
                for name in self.asker.own().await?.tree.list("roster") {
                    let Ok(node) = self.node(&name).await else { continue };
                    let myself = node == self.asker.me();
                    all.push((name, if myself { Place::Myself } else { Place::Node(node) }));
                }
                with_json(all)
            }
            Place::Node(node) => {
                let told = self.asker.facts(node, Subject::Node).await?;
                let mut all = children(node, &told, &[]);
                all.retain(|(name, _)| name != "tables");
                all.push(("tables".into(), Place::Tables(node)));
                let top = dir.is_empty();
                all.extend(top.then(|| ("nodes".into(), Place::Nodes)));
                let mut all = with_json(all);
                all.push(("metrics".into(), Place::Metrics(node)));
                all.push(("heals".into(), Place::Heals(node)));
                all.push(("log".into(), Place::Text(node, Text::Log)));
                all.push(("events".into(), Place::Text(node, Text::Events)));
                all.extend(top.then(|| (".json".into(), Place::Json(Box::new(Place::Node(node))))));
                all
            }
            Place::Tables(node) => {
                let tables = self.tables(node).await?.into_iter();
                with_json(tables.map(|table| (segment(&table), Place::Table(node, table))).collect())
            }
            Place::Dir(told, path) => with_json(children(self.asker.me(), &told, &path)),
            _ => return Err(ProcError::NotDirectory),
        })
    }

    /// The names in a directory, in order. What is not at hand is not asked for: it is known when it is looked up.
    pub async fn list(&self, ino: Ino) -> Result<Vec<Entry>, ProcError> {
        let dir = self.known(ino)?.path;
        let names = self.names(&dir).await?;
        let mut entries = Vec::with_capacity(names.len());
        for (name, place) in names {
            let path = joined(&dir, &name);
            let later = match &place {
                Place::Text(..) | Place::Metrics(_) | Place::Heals(_) => true,
                Place::Json(dir) => !matches!(**dir, Place::Dir(..)),
                _ => false,
            };
            let (attr, known) = if later {
                let known = Known { path: path.into(), value: None };
                let kind = Kind::File;
                (Attr { ino: known.ino(), kind, size: 0, since: self.begun, lasts: false }, known)
            } else {
                self.look(&path, &place).await?
            };
            entries.push(Entry { name, attr, known });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The kernel was told what is there under a name: it is known until it is forgotten.
    pub fn told(&self, entry: &Entry) {
        self.inodes.tell(entry.attr.ino, &entry.known);
    }

    /// The kernel forgets a file, as often as it was told of it.
    pub fn forget(&self, ino: Ino, times: u64) {
        self.inodes.forget(ino, times);
    }

    /// Reads a part of a file: of a value, as it was when it was looked up.
    pub async fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Bytes, ProcError> {
        let known = self.known(ino)?;
        let part = |all: &[u8]| {
            let from = (offset as usize).min(all.len());
            from..all.len().min(from.saturating_add(size as usize))
        };
        if let Some(value) = known.value {
            return Ok(value.content.slice(part(&value.content)));
        }
        match self.place(&known.path).await? {
            Place::Text(node, text) => {
                let read = |t: &Growing| Bytes::copy_from_slice(&t.lines[part(&t.lines)]);
                self.texts.look(&self.asker, (node, text), read).await
            }
            place => {
                let content = self.content(&place).await?;
                Ok(content.slice(part(&content)))
            }
        }
    }

    /// Writes a knob: all of its value at once.
    pub async fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), ProcError> {
        let known = self.known(ino)?;
        match self.place(&known.path).await? {
            Place::Value(node, _, path) if path.len() == 2 && path[0] == "sys" => {
                let end = known.value.map_or(0, |value| value.content.len() as u64);
                // Whoever appends means all of it, too; nobody means a part.
                if offset != 0 && offset != end {
                    tracing::warn!("{} was not set: it is written as a whole", path[1]);
                    return Err(ProcError::Invalid);
                }
                // What the kernel has of it is what was written, whatever that came to be.
                self.writes.fetch_add(1, Ordering::Relaxed);
                knobs::turn(&self.asker, node, &path[1], data).await
            }
            _ => Err(ProcError::NotPermitted),
        }
    }

    /// A knob is emptied before it is written: that means nothing yet.
    pub async fn empty(&self, ino: Ino) -> Result<Attr, ProcError> {
        match self.getattr(ino).await? {
            attr if attr.kind == Kind::Knob => Ok(Attr { size: 0, ..attr }),
            _ => Err(ProcError::NotPermitted),
        }
    }
}

fn value_attr(ino: Ino, value: &Value) -> Attr {
    let kind = if value.knob.is_some() { Kind::Knob } else { Kind::File };
    Attr { ino, kind, size: value.content.len() as u64, since: value.since, lasts: value.knob.is_none() }
}

fn since(told: &Told, path: &[String], begun: SystemTime) -> SystemTime {
    told.tree.at(strs(path)).map_or(begun, |tree| tree.since)
}

/// What lies in a directory of what a node told.
fn children(node: NodeId, told: &Arc<Told>, path: &[String]) -> Vec<(String, Place)> {
    let Some(Tree { what: What::Dir(all), .. }) = told.tree.at(strs(path)) else { return Vec::new() };
    let place = |(name, tree): (&String, &Tree)| {
        let below: Vec<String> = path.iter().chain([name]).cloned().collect();
        let place = match tree.what {
            What::Dir(_) => Place::Dir(told.clone(), below),
            What::Leaf(_) => Place::Value(node, told.clone(), below),
        };
        (name.clone(), place)
    };
    all.iter().map(place).collect()
}

/// Beside each directory its JSON, unless something else is called so.
fn with_json(all: Vec<(String, Place)>) -> Vec<(String, Place)> {
    let is_dir = |place: &Place| {
        matches!(place, Place::Dir(..) | Place::Node(_) | Place::Tables(_) | Place::Table(..) | Place::Nodes)
    };
    let dirs: Vec<(String, Place)> = all
        .iter()
        .filter(|(_, place)| is_dir(place))
        .map(|(name, place)| (format!("{name}.json"), place.clone()))
        .collect();
    let mut all = all;
    for (name, place) in dirs {
        if !all.iter().any(|(other, _)| *other == name) {
            all.push((name, Place::Json(Box::new(place))));
        }
    }
    all
}

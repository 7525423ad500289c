//! `tombolo why`: why something is in the state that it is in.

use crate::commands::{Usage, ask, done};
use crate::control::{Ask, Object, Told};
use anyhow::Result;
use client::Database;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

fn known(object: node::Object) -> Object {
    Object::Known(object)
}

/// What the words name; of a bare name it is tried what it may be.
fn named(words: &[String]) -> Result<Vec<Object>, Usage> {
    let fragment = |text: &str| {
        let (table, index) = text.rsplit_once('/')?;
        Some(known(node::Object::Fragment(table.into(), index.parse().ok()?)))
    };
    match words {
        [kind, name] if kind == "node" => Ok(vec![known(node::Object::Node(name.clone()))]),
        [kind, name] if kind == "table" => Ok(vec![known(node::Object::Table(name.clone()))]),
        [kind, name] if kind == "fragment" => match fragment(name) {
            Some(fragment) => Ok(vec![fragment]),
            None => Err(Usage(format!("{name:?} is no fragment; name it as TABLE/3"))),
        },
        [kind, path] if kind == "file" => Ok(vec![Object::Path(PathBuf::from(path))]),
        [kind, _] => Err(Usage(format!("{kind:?} is not known; known are node, table, fragment and file"))),
        // An absolute path, or one that begins with a dot, can be nothing else.
        [path] if path.starts_with('/') || path.starts_with("./") || path.starts_with("../") => {
            Ok(vec![Object::Path(PathBuf::from(path))])
        }
        [name] => match fragment(name) {
            Some(fragment) => Ok(vec![fragment]),
            None => Ok(vec![known(node::Object::Table(name.clone())), known(node::Object::Node(name.clone()))]),
        },
        _ => Err(Usage("say what it is about: a node, a table, TABLE/3, or a file".into())),
    }
}

/// Prints why.
pub(crate) async fn run(data: &Path, words: Vec<String>) -> Result<u8> {
    let mut last = None;
    for object in named(&words)? {
        let object = match object {
            Object::Path(path) => Object::Path(std::path::absolute(path)?),
            known => known,
        };
        match ask(data, Ask::Why(object)).await? {
            Told::Text(text) => {
                println!("{text}");
                return Ok(0);
            }
            other => last = Some(other),
        }
    }
    match (last, &words[..]) {
        (Some(Told::Failed(code, _)), [name]) if !name.contains('/') && code == crate::commands::FAILED => {
            eprintln!("tombolo: there is no table and no node {name:?}; see `tombolo table list` and `tombolo nodes`");
            Ok(code)
        }
        (Some(told), _) => done(told, None),
        (None, _) => Ok(0),
    }
}

/// Of a file in a mount of this node: of the tables that hold its name and what is in it.
pub(crate) async fn of_file(db: &Database, fs: &str, dir: &Path, path: &Path) -> Result<Told, client::Error> {
    let (meta, blocks) = vfs::table_names(fs);
    // The mount answers on other threads than this.
    let looked = path.to_owned();
    let seen = tokio::task::spawn_blocking(move || std::fs::symlink_metadata(looked)).await;
    let mut text = format!("{} is in the filesystem {fs}, mounted on {}.", path.display(), dir.display());
    match seen {
        Ok(Ok(seen)) => {
            let kind = if seen.is_dir() { "directory" } else { "file" };
            text += &format!(" It is a {kind} with the number {}, and of {} bytes.", seen.ino(), seen.size());
        }
        Ok(Err(e)) => text += &format!(" It cannot be looked at: {e}."),
        Err(_) => text += " It cannot be looked at.",
    }
    text += &format!("\nNames and attributes ({meta}): {}", db.why(node::Object::Table(meta.clone())).await?);
    match db.why(node::Object::Table(blocks.clone())).await {
        Ok(why) => text += &format!("\nWhat is in files ({blocks}): {why}"),
        Err(_) => text += "\nNo file in it has had any content yet.",
    }
    Ok(Told::Text(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_what_they_look_like() {
        let of = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
            named(&words).map(|all| format!("{all:?}")).map_err(|Usage(text)| text)
        };
        assert_eq!(of(&["t/3"]).unwrap(), "[Known(Fragment(\"t\", 3))]");
        assert_eq!(of(&["/mnt/a/3"]).unwrap(), "[Path(\"/mnt/a/3\")]");
        assert_eq!(of(&["n1"]).unwrap(), "[Known(Table(\"n1\")), Known(Node(\"n1\"))]");
        assert_eq!(of(&["node", "n1"]).unwrap(), "[Known(Node(\"n1\"))]");
        assert!(of(&["fragment", "t"]).unwrap_err().contains("TABLE/3"));
        assert!(of(&["planet", "earth"]).unwrap_err().contains("known are"));
    }
}

//! A tree of values, made of facts, and how each looks as a file.

use bytes::Bytes;
use node::{Fact, Known};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// A value or a directory of them, and since when it is so, as far as was seen.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub since: SystemTime,
    pub what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Dir(BTreeMap<String, Tree>),
    Leaf(Known),
}

impl Tree {
    pub(crate) fn dir(since: SystemTime) -> Tree {
        Tree { since, what: What::Dir(BTreeMap::new()) }
    }

    /// What these facts make, at this moment. Where one is at a directory's place, the directory counts.
    pub(crate) fn of(facts: Vec<Fact>, now: SystemTime) -> Tree {
        let mut root = Tree::dir(now);
        for Fact { at, is } in facts.into_iter().filter(|fact| is_sane(&fact.at)) {
            let mut place = &mut root;
            let mut segments = at.split('/').peekable();
            while let Some(segment) = segments.next().filter(|segment| !segment.is_empty()) {
                if !matches!(place.what, What::Dir(_)) {
                    place.what = What::Dir(BTreeMap::new());
                }
                let What::Dir(children) = &mut place.what else { break };
                let empty = || Tree::dir(now);
                place = children.entry(segment.to_string()).or_insert_with(empty);
                if segments.peek().is_none() && matches!(&place.what, What::Dir(children) if children.is_empty()) {
                    place.what = What::Leaf(is.clone());
                }
            }
        }
        root
    }

    /// What is as it was before has been so since then.
    pub(crate) fn since(&mut self, before: &Tree) {
        match (&mut self.what, &before.what) {
            (What::Leaf(now), What::Leaf(then)) if now == then => self.since = before.since,
            (What::Dir(now), What::Dir(then)) => {
                now.iter_mut().for_each(|(name, tree)| {
                    if let Some(before) = then.get(name) {
                        tree.since(before);
                    }
                });
                let same = now.len() == then.len() && now.keys().eq(then.keys());
                let newest = now.values().map(|tree| tree.since).max();
                if same {
                    self.since = newest.map_or(before.since, |newest| newest.max(before.since));
                }
            }
            _ => {}
        }
    }

    pub(crate) fn at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<&Tree> {
        path.into_iter().try_fold(self, |tree, name| match &tree.what {
            What::Dir(children) => children.get(name),
            What::Leaf(_) => None,
        })
    }

    pub(crate) fn list(&self, at: &str) -> Vec<String> {
        match self.at(at.split('/')).map(|tree| &tree.what) {
            Some(What::Leaf(Known::List(all))) => all.clone(),
            Some(What::Dir(children)) => children.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        match &self.what {
            What::Dir(children) => {
                Value::Object(children.iter().map(|(name, tree)| (name_of(name), tree.json())).collect::<Map<_, _>>())
            }
            What::Leaf(known) => match known {
                Known::Nothing => Value::Null,
                Known::Flag(flag) => Value::from(*flag),
                Known::Count(n) => Value::from(*n),
                Known::Real(n) => Value::from(*n),
                Known::Text(text) => Value::from(text.as_str()),
                Known::List(all) => Value::from(all.as_slice()),
            },
        }
    }
}

/// So deep do facts lie at most, and so long is a name of one.
const SEGMENTS_MAX: usize = 8;
const NAME_BYTES_MAX: usize = 512;

/// Other nodes tell what they like: a path that no name can be is passed over.
fn is_sane(at: &str) -> bool {
    let names = |segment: &str| segment.len() <= NAME_BYTES_MAX && !matches!(segment, "." | "..");
    at.split('/').count() <= SEGMENTS_MAX && at.split('/').all(names)
}

/// What a segment of a path stands for (see [`node::segment`]).
pub(crate) fn name_of(segment: &str) -> String {
    segment.replace("%2E", ".").replace("%2F", "/").replace("%00", "\0").replace("%25", "%")
}

/// JSON as a file.
pub(crate) fn json_file(value: &Value) -> Bytes {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// A value as a file: one line, or one for each of several; what is not known is `-`.
pub(crate) fn file(known: &Known) -> Bytes {
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    let text = match known {
        Known::Nothing => "-\n".into(),
        Known::Flag(flag) => format!("{}\n", if *flag { "yes" } else { "no" }),
        Known::Count(n) => format!("{n}\n"),
        Known::Real(n) => format!("{n}\n"),
        Known::Text(text) => line(text) + "\n",
        Known::List(all) => all.iter().map(|text| line(text) + "\n").collect(),
    };
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn fact(at: &str, is: impl Into<Known>) -> Fact {
        Fact { at: at.into(), is: is.into() }
    }

    #[test]
    fn facts_make_a_tree_and_each_value_a_line() {
        let facts = vec![
            fact("why", "it is\nwell"),
            fact("fragments/3/lag", None::<u64>),
            fact("fragments/3/copies", vec!["a".to_string(), "b".into()]),
            fact("peers/a%2Fb/up", true),
            fact("fragments", 7u64),
            fact("tasks/", None::<u64>),
        ];
        let tree = Tree::of(facts, UNIX_EPOCH);
        let text = |path: &str| match &tree.at(path.split('/')).unwrap().what {
            What::Leaf(known) => String::from_utf8(file(known).to_vec()).unwrap(),
            What::Dir(children) => children.keys().cloned().collect::<Vec<_>>().join(","),
        };
        assert_eq!((text("why").as_str(), text("fragments/3/lag").as_str()), ("it is well\n", "-\n"));
        assert_eq!((text("fragments/3/copies"), text("fragments")), ("a\nb\n".into(), "3".into()));
        let expected = r#"{"fragments":{"3":{"copies":["a","b"],"lag":null}},"peers":{"a/b":{"up":true}},"tasks":{},"why":"it is\nwell"}"#;
        assert_eq!(tree.json().to_string(), expected);
    }

    #[test]
    fn what_no_node_would_tell_is_passed_over() {
        let deep = "a/".repeat(100_000);
        let tree = Tree::of(
            vec![fact(&deep, 1u64), fact("a/../b", 1u64), fact(&"x".repeat(600), 1u64), fact("c", 1u64)],
            UNIX_EPOCH,
        );
        assert_eq!(tree.json().to_string(), r#"{"c":1}"#);
    }

    #[test]
    fn what_did_not_change_keeps_its_time() {
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        let make = |n: u64, now| Tree::of(vec![fact("a/x", n), fact("a/y", 1u64), fact("b/z", 1u64)], at(now));
        let first = make(1, 10);
        let mut second = make(2, 20);
        second.since(&first);
        let since = |tree: &Tree, path: &str| tree.at(path.split('/')).unwrap().since;
        assert_eq!((since(&second, "a/x"), since(&second, "a/y"), since(&second, "b/z")), (at(20), at(10), at(10)));
        assert_eq!((since(&second, "a"), since(&second, "b"), second.since), (at(20), at(10), at(20)));
        let mut third = make(2, 30);
        third.since(&second);
        assert_eq!((since(&third, "a"), third.since), (at(20), at(20)));
    }
}

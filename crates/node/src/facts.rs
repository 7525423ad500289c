//! What a node knows of itself and of its tables, as small facts at paths: what procfs shows as files.
//!
//! A fact is a path below its subject and one value. Paths are made of segments (see [`segment`]) with `/` between; what is new in
//! one version is a path that others have not, and changes nothing of the conversation between nodes.

use crate::io::LinkId;
use crate::node::Node;
use crate::schema::TableDef;
use crate::status::{NodeLine, Status};
use base::{FragmentId, Now};
use replica::{Copy, Heal, RoleName, Space};
use serde::{Deserialize, Serialize};

/// So many heals are told, the latest.
const HEALS_MAX: usize = 1000;

/// What facts are asked of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// The node itself.
    Node,
    /// A table, by its name, as that node sees it.
    Table(String),
    /// When islands met, in fragments that are led there.
    Heals,
}

/// What is known at a path.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Known {
    /// It is not known there.
    Nothing,
    /// Yes or no.
    Flag(bool),
    /// How many, or how large in bytes.
    Count(u64),
    /// A number that may be below nothing, or a fraction.
    Real(f64),
    /// A word, a name or a sentence.
    Text(String),
    /// Several, each on a line.
    List(Vec<String>),
}

/// One fact.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fact {
    /// Where it lies below its subject: segments with `/` between; with one at the end it is a directory, empty so far.
    pub at: String,
    /// What is known.
    pub is: Known,
}

impl From<bool> for Known {
    fn from(flag: bool) -> Known {
        Known::Flag(flag)
    }
}

impl From<u64> for Known {
    fn from(n: u64) -> Known {
        Known::Count(n)
    }
}

impl From<u16> for Known {
    fn from(n: u16) -> Known {
        Known::Count(n.into())
    }
}

impl From<usize> for Known {
    fn from(n: usize) -> Known {
        Known::Count(n as u64)
    }
}

impl From<f64> for Known {
    fn from(n: f64) -> Known {
        Known::Real(n)
    }
}

impl From<String> for Known {
    fn from(text: String) -> Known {
        Known::Text(text)
    }
}

impl From<&str> for Known {
    fn from(text: &str) -> Known {
        Known::Text(text.into())
    }
}

impl From<Vec<String>> for Known {
    fn from(all: Vec<String>) -> Known {
        Known::List(all)
    }
}

impl<T: Into<Known>> From<Option<T>> for Known {
    fn from(what: Option<T>) -> Known {
        what.map_or(Known::Nothing, Into::into)
    }
}

/// Facts that are being gathered.
#[derive(Default, Debug)]
pub struct Facts {
    /// Those so far.
    pub all: Vec<Fact>,
    below: String,
}

impl Facts {
    /// One more.
    pub fn put(&mut self, at: &str, is: impl Into<Known>) {
        self.all.push(Fact { at: format!("{}{at}", self.below), is: is.into() });
    }

    /// A directory is there, even if nothing is in it.
    pub fn dir(&mut self, dir: &str) {
        self.all.push(Fact { at: format!("{}{dir}/", self.below), is: Known::Nothing });
    }

    /// Those that `tell` puts lie below this directory, whose name may hold anything.
    pub fn below(&mut self, dir: &[&str], tell: impl FnOnce(&mut Facts)) {
        let before = self.below.len();
        for name in dir {
            self.below.push_str(&segment(name));
            self.below.push('/');
        }
        tell(self);
        self.below.truncate(before);
    }
}

/// A name as one segment of a path: `%2F` for a slash, `%25` for `%`, and a leading dot as `%2E`.
pub fn segment(name: &str) -> String {
    let plain = name.replace('%', "%25").replace('/', "%2F").replace('\0', "%00");
    match plain.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => plain,
    }
}

impl Node {
    /// What is known here of the subject; nothing, if there is no such table.
    pub fn facts(&self, now: Now, subject: &Subject) -> Facts {
        let mut all = Facts::default();
        match subject {
            Subject::Node => self.facts_of_node(now, &mut all),
            Subject::Heals => all.put("heals", self.heal_lines()),
            Subject::Table(name) => {
                if let Some(def) = self.tables().get(name) {
                    self.facts_of_table(now, def, &mut all);
                }
            }
        }
        all
    }

    /// The links that stand, with the names of those at their other ends.
    pub fn links(&self) -> Vec<(String, LinkId)> {
        self.peers.linked_by().map(|(node, link)| (self.name_of(node), link)).collect()
    }

    fn facts_of_node(&self, now: Now, all: &mut Facts) {
        let s = self.status(now);
        all.put("name", s.node.as_str());
        all.put("id", self.config.me.to_string());
        all.put("group", s.group.as_str());
        all.put("status", s.state.as_str());
        all.put("why", self.why_node(&s, None));
        all.put("ready", s.ready);
        all.put("uptime", (now.mono - self.started).as_ms() / 1000);
        all.put("incarnation", self.config.incarnation);
        all.put("island", s.island.clone());
        all.put("view", s.island.iter().filter(|name| **name != s.node).cloned().collect::<Vec<_>>());
        all.put("missing", s.missing.clone());
        all.put("clock_ahead_ms", s.clock_ahead_ms.map(|ms| ms as f64));
        all.put("foreign", s.foreign);
        all.put("conflicts", s.conflicts);
        all.put("conflicts_bytes", s.conflict_bytes);
        ["buried", "peers", "tasks"].into_iter().for_each(|dir| all.dir(dir));
        all.below(&["roster"], |all| s.nodes.iter().for_each(|line| self.facts_of_roster(&s, line, all)));
        all.below(&["buried"], |all| s.buried.iter().for_each(|b| all.put(&segment(&b.name), b.why.as_str())));
        all.below(&["peers"], |all| self.facts_of_peers(now, all));
        all.below(&["tasks"], |all| self.tasks(&s, all));
        all.below(&["sys"], |all| {
            all.put("balance", if self.balance.paused { "paused" } else { "on" });
            all.put("copy_rate", self.balance.pace.rate.map_or("none".into(), |rate| rate.to_string()));
        });
        // Directories of tables are asked for one by one.
        all.put("tables", self.tables().keys().cloned().collect::<Vec<_>>());
    }

    fn facts_of_roster(&self, s: &Status, line: &NodeLine, all: &mut Facts) {
        all.below(&[&line.name], |all| {
            all.put("id", line.id.as_str());
            all.put("status", line.status.as_str());
            all.put("verdict", line.verdict.as_str());
            all.put("why", self.why_node(s, Some(line)));
            all.put("away", line.away_s);
            all.put("reachable", line.reachable);
            all.put("zone", line.zone.clone());
            all.put("address", line.addr.as_str());
        });
    }

    fn facts_of_peers(&self, now: Now, all: &mut Facts) {
        for (node, seen) in self.peers.seen(now.mono) {
            all.below(&[&self.name_of(node)], |all| {
                all.put("state", seen.state);
                all.put("address", seen.addr.to_string());
                all.put("incarnation", seen.incarnation);
                all.put("rtt", seen.rtt.map(|span| span.0 as f64 / 1e6));
                all.put("clock_ahead_ms", seen.ahead_ms.map(|ms| ms as f64));
                all.put("datagrams", self.peers.datagrams(node));
                all.put("flaps", u64::from(seen.flaps));
            });
        }
    }

    /// What is under way here, one line each.
    fn tasks(&self, s: &Status, all: &mut Facts) {
        if let Some((left, of)) = s.leaving {
            all.put("leave", format!("{left} of {of} copies have to move yet"));
        }
        for def in self.tables().values() {
            if let Some(change) = def.change() {
                let groups = change.groups(def.options.fragments);
                all.put(
                    &format!("recut.{}", def.name),
                    format!("{} of {groups} groups of fragments are done", change.done),
                );
            }
        }
        for fragment in self.copies.ids() {
            let seen = self.copies.with(fragment, |c| (c.inspect_role(), c.is_turning(), c.healing(), c.store().len()));
            let Some((role, turning, healing, len)) = seen else { continue };
            let named = |what: &str| format!("{what}.{}.{}", self.table_of(fragment), fragment.place());
            if role == RoleName::Joining {
                all.put(&named("join"), format!("{len} records are here so far"));
            }
            if turning {
                all.put(&named("restore"), "its records go to where the table keeps them now");
            }
            if let Some((staged, of)) = healing {
                all.put(&named("heal"), format!("{staged} of about {of} records of the other side are staged"));
            }
        }
    }

    fn heal_lines(&self) -> Vec<String> {
        let mut all: Vec<(Heal, FragmentId)> = Vec::new();
        for fragment in self.copies.ids() {
            let heals = self.copies.with(fragment, |c| {
                // Each is told by whoever leads, once in the cluster.
                let rows = c.lead().into_iter().flat_map(|_| c.store().space(Space::Heals));
                rows.filter_map(|(_, kept)| kept.here()).flat_map(Heal::read).collect::<Vec<_>>()
            });
            all.extend(heals.into_iter().flatten().map(|heal| (heal, fragment)));
        }
        all.sort();
        let old = all.len().saturating_sub(HEALS_MAX);
        let line = |(heal, fragment): &(Heal, FragmentId)| {
            let with: Vec<String> = heal.with.iter().map(|node| self.name_of(*node)).collect();
            format!(
                "{} {}.{} by {} with {}: {} records in, {} out, {} conflicts, {} ms",
                heal.at.0 / 1000,
                self.table_of(*fragment),
                fragment.place(),
                self.name_of(heal.by),
                with.join(","),
                heal.taken,
                heal.given,
                heal.conflicts,
                heal.took.as_ms()
            )
        };
        all[old..].iter().map(line).collect()
    }

    fn facts_of_table(&self, now: Now, def: &TableDef, all: &mut Facts) {
        let info = self.table_info(def);
        let (t, o) = (&info.table, &def.options);
        all.put("why", self.why_table(def));
        all.below(&["info"], |all| {
            let sum = |of: fn(&crate::FragmentLine) -> Option<u64>| info.fragments.iter().filter_map(of).sum::<u64>();
            all.put("id", info.id.as_str());
            all.put("fragments_led", t.led);
            all.put("in_sync", t.in_sync);
            all.put("copies_here", info.fragments.iter().filter(|f| f.here.is_some()).count());
            all.put("records_here", sum(|f| f.records));
            all.put("bytes_here", sum(|f| f.bytes));
        });
        all.below(&["options"], |all| {
            all.put("copies", t.copies);
            all.put("fragments", o.fragments);
            all.put("storage", t.storage.as_str());
            all.put("durability", t.durability.as_str());
            all.put("on_conflict", t.on_conflict.as_str());
            all.put("min_in_sync", t.min_in_sync.as_str());
            all.put("fragment_by", info.fragment_by.as_str());
            all.put("unordered", t.unordered);
            all.put("ttl_ms", t.ttl_ms);
            all.put("max_records", t.max_records);
            all.put("max_bytes", t.max_bytes);
            all.put("per", t.per.as_str());
            all.put("evict", t.evict.as_str());
            all.put("beside", t.beside.clone());
        });
        let bounded = o.is_bounded();
        for (fragment, line) in def.all().zip(&info.fragments) {
            all.below(&["fragments", &line.index.to_string()], |all| {
                all.put("leader", line.leader.clone());
                all.put("copies", line.members.clone());
                all.put("in_sync", line.in_sync);
                all.put("state", line.here.as_deref().unwrap_or("absent"));
                all.put("storage", line.storage.clone());
                all.put("records", line.records);
                all.put("bytes", line.bytes);
                let heads = self.copies.with(fragment, |c| {
                    c.store().heads().iter().map(|v| format!("{} {}", v.branch, v.seq)).collect::<Vec<_>>()
                });
                all.put("heads", heads);
                all.put("lag", self.copies.with(fragment, Copy::lag).flatten());
                if bounded {
                    let tally = self.copies.with(fragment, |c| c.tally(now));
                    all.put("full", tally.map(|tally| f64::from(tally.full) / 10_000.0));
                    all.put("evicted", tally.map(|tally| tally.evicted));
                }
                all.put("why", self.why_fragment(def, fragment));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_segments_that_no_path_can_be_mistaken_for() {
        let all = [("n1", "n1"), ("a/b", "a%2Fb"), ("..", "%2E."), (".", "%2E"), ("50%", "50%25"), ("x.y", "x.y")];
        for (name, expected) in all {
            assert_eq!(segment(name), expected);
        }
    }

    #[test]
    fn facts_lie_below_where_they_were_put() {
        let mut all = Facts::default();
        all.below(&["peers", "a/b"], |all| all.put("state", "linked"));
        all.put("rtt", None::<f64>);
        let seen: Vec<_> = all.all.iter().map(|f| (f.at.as_str(), f.is.clone())).collect();
        assert_eq!(seen, [("peers/a%2Fb/state", Known::Text("linked".into())), ("rtt", Known::Nothing)]);
    }
}

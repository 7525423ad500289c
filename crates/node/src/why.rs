//! Why a node, a table or a fragment is in the state that it is in: a plain sentence or two, from what this node knows.

use crate::gateway::{ClientError, OpReply};
use crate::io::{Effect, OpId};
use crate::node::Node;
use crate::schema::TableDef;
use crate::status::{NodeLine, Status};
use base::{FragmentId, NodeId, Now};
use replica::{Copy, Inspect, Pressure, RoleName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What is asked about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Object {
    /// A node, by its name or its id.
    Node(String),
    /// A table.
    Table(String),
    /// A fragment of a table.
    Fragment(String, u16),
}

/// `1 copy`, `3 copies`.
fn copies(n: usize) -> String {
    if n == 1 { "1 copy".into() } else { format!("{n} copies") }
}

fn short_of(what: &str, pressure: Pressure) -> Option<String> {
    match pressure {
        Pressure::Low => None,
        Pressure::Steady => Some(format!("It is nearly short of {what}: bounded tables here grow no more.")),
        Pressure::High => Some(format!("It is short of {what}: bounded tables here make room.")),
        Pressure::Full => Some(format!("It has no {what} left: writes that take more are refused here.")),
    }
}

impl Node {
    pub(crate) fn tell_why(&mut self, now: Now, op: OpId, object: &Object, out: &mut Vec<Effect>) {
        let reply = self.why_object(now, object).map_or_else(OpReply::Error, OpReply::Text);
        self.reply(op, reply, out);
    }

    /// Why the object is as it is, as far as this node knows.
    fn why_object(&self, now: Now, object: &Object) -> Result<String, ClientError> {
        let table = |name: &String| self.tables().get(name).ok_or_else(|| ClientError::NoTable(name.clone()));
        match object {
            Object::Node(name) => {
                let node = match self.named(name) {
                    // Before it is in the roster.
                    _ if *name == self.name_of(self.config.me) => self.config.me,
                    Err(ClientError::IsBuried(_)) => return Ok(self.why_buried(name)),
                    found => found?,
                };
                let s = self.status(now);
                let line = s.nodes.iter().find(|line| line.id == node.to_string());
                Ok(self.why_node(&s, line.filter(|_| node != self.config.me)))
            }
            Object::Table(name) => table(name).map(|def| self.why_table(def)),
            Object::Fragment(name, index) => {
                let def = table(name)?;
                let fragment = def.all().find(|f| f.place() == *index);
                let fragment = fragment.ok_or_else(|| ClientError::NoFragment(name.clone(), *index))?;
                Ok(self.why_fragment(def, fragment))
            }
        }
    }

    /// Of this node (`None`), or of another, as it looks from here.
    pub(crate) fn why_node(&self, s: &Status, other: Option<&NodeLine>) -> String {
        if let Some(line) = other.filter(|line| line.name != s.node) {
            return self.why_other(line);
        }
        let mut all = vec![format!("The cluster is {} from here: {}.", s.state, s.why)];
        if !s.ready {
            all.push("It has just started, and still looks for others.".into());
        }
        if let Some((left, of)) = s.leaving {
            all.push(format!("It is on its way out: {left} of {of} copies have to move yet."));
        }
        if let Some((staged, of)) = s.healing {
            all.push(format!("Islands meet: {staged} of about {of} records of the other side are here."));
        }
        if self.barred {
            all.push("Its clock is far off, or it is about to go: it leads nothing that another can lead.".into());
        }
        all.extend(short_of("memory", self.shortage.memory));
        all.extend(short_of("room on its disc", self.shortage.disc));
        all.join(" ")
    }

    fn why_buried(&self, name: &str) -> String {
        let Some(burial) = self.buried_named(name) else { return String::new() };
        let by = self.name_of(burial.by);
        format!(
            "{} is buried: {} ({by} did it). If it comes back, it is taken in again with what it has.",
            burial.name, burial.why
        )
    }

    fn why_other(&self, line: &NodeLine) -> String {
        if line.reachable {
            let datagrams = match line.datagrams {
                Some(false) => {
                    " Its datagrams do not get through: look at the firewall (UDP); only its connection tells of it."
                }
                _ => "",
            };
            return format!("{} is {}: {}.{datagrams}", line.name, line.verdict, line.why);
        }
        let away = line.away_s.map_or(String::new(), |s| format!(" for {s} s"));
        let node = u64::from_str_radix(&line.id, 16).map_or(NodeId(0), NodeId);
        let told = match self.peers.get(node).map(|_| self.peers.dead().contains(&node)) {
            None => "It has not been met since this node started.",
            Some(true) => "Its process is gone: nobody listens there, or it said goodbye.",
            Some(false) => "It does not answer: its machine, its process or the network between is down.",
        };
        format!("{} is {}, out of view{away}: {}. {told}", line.name, line.verdict, line.why)
    }

    /// The names of nodes, those first that are out of view.
    fn names_of(&self, nodes: &BTreeSet<NodeId>) -> String {
        let here = self.here();
        let mut all: Vec<(bool, String)> =
            nodes.iter().map(|node| (here.contains(node), self.name_of(*node))).collect();
        all.sort();
        all.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn why_table(&self, def: &TableDef) -> String {
        let wanted = usize::from(self.copies_of(def));
        let all: Vec<FragmentId> = def.all().collect();
        let mut parts = Vec::new();
        let led: Vec<(FragmentId, usize)> =
            all.iter().filter_map(|f| Some((*f, usize::from(self.lead_of(*f)?.1.in_sync)))).collect();
        let unled: Vec<&FragmentId> = all.iter().filter(|f| self.lead_of(**f).is_none()).collect();
        let short: Vec<&(FragmentId, usize)> = led.iter().filter(|(_, in_sync)| *in_sync < wanted).collect();
        if unled.is_empty() && short.is_empty() {
            parts.push(match all.len() {
                1 => format!("It is well: its fragment has a leader here and {} in sync.", copies(wanted)),
                n => format!("It is well: each of its {n} fragments has a leader here and {} in sync.", copies(wanted)),
            });
        }
        if let Some(first) = unled.first() {
            parts.push(format!("{} of {} fragments have no leader in this island.", unled.len(), all.len()));
            parts.push(format!("Fragment {}: {}", first.place(), self.why_fragment(def, **first)));
        }
        if let Some((first, _)) = short.iter().min_by_key(|(_, in_sync)| *in_sync) {
            parts.push(format!("{} of {} fragments have fewer than {wanted} copies in sync.", short.len(), all.len()));
            parts.push(format!("Fragment {}: {}", first.place(), self.why_fragment(def, *first)));
        }
        if let Some(change) = def.change() {
            let groups = change.groups(def.options.fragments);
            parts.push(format!("The number of its fragments changes: {} of {groups} groups are done.", change.done));
        }
        if def.options.is_bounded() {
            let full = all.iter().filter_map(|f| self.copies.with(*f, |c| c.lead().map(|_| c.counted().evicted))?);
            let evicted: u64 = full.sum();
            if evicted > 0 {
                parts.push(format!("It has a bound: {evicted} records had to go, as this node counted while it led."));
            }
        }
        parts.join(" ")
    }

    pub(crate) fn why_fragment(&self, def: &TableDef, fragment: FragmentId) -> String {
        let wanted = usize::from(self.copies_of(def));
        let seen = self.copies.with(fragment, Copy::inspect);
        let Some((leader, lead)) = self.lead_of(fragment) else { return self.why_unled(seen.as_ref()) };
        let mut text = if leader == self.config.me {
            "This node leads it".to_string()
        } else {
            format!("{} leads it", self.name_of(leader))
        };
        text += &format!(", with {} in sync.", copies(usize::from(lead.in_sync)));
        let Some(seen) = seen else { return text + " No copy is here." };
        let members: BTreeSet<NodeId> = seen.members.iter().filter(|(_, s)| s.is_member()).map(|(n, _)| *n).collect();
        if usize::from(lead.in_sync) < wanted {
            let here = self.here();
            let away: BTreeSet<NodeId> = members.difference(&here).copied().collect();
            let behind: BTreeSet<NodeId> =
                members.intersection(&here).filter(|n| !seen.in_sync.contains(n)).copied().collect();
            if !away.is_empty() {
                text += &format!(" Out of view: {}.", self.names_of(&away));
            }
            if !behind.is_empty() {
                text += &format!(" Catching up: {}.", self.names_of(&behind));
            }
            if here.len() < wanted {
                let nodes = match here.len() {
                    1 => "1 node is".to_string(),
                    n => format!("{n} nodes are"),
                };
                text += &format!(" {wanted} copies are wanted, and {nodes} in view.");
            } else if away.is_empty() && behind.is_empty() {
                text += &format!(" {wanted} are wanted: another copy is about to be made.");
            }
        }
        let mine = match seen.role {
            RoleName::Joining => " The copy here is being filled.",
            RoleName::Opening | RoleName::Promised => " Who leads is being settled.",
            _ => "",
        };
        text += mine;
        if let Some((staged, of)) = self.copies.with(fragment, Copy::healing).flatten() {
            text += &format!(" Islands meet: {staged} of about {of} records of the other side are here.");
        }
        text
    }

    fn why_unled(&self, seen: Option<&Inspect>) -> String {
        let Some(seen) = seen else {
            return "Nobody in this island is known to lead it, and no copy is here: its copies are on nodes out of view, \
                    or about to be made."
                .into();
        };
        let members: BTreeSet<NodeId> = seen.members.iter().filter(|(_, s)| s.is_member()).map(|(n, _)| *n).collect();
        let away: BTreeSet<NodeId> = members.difference(&self.here()).copied().collect();
        let wait = match seen.role {
            RoleName::Opening | RoleName::Promised => "A leader is being settled.",
            _ if away.is_empty() => "Its copies are in view, and one will lead in a moment.",
            _ => "What they hold may be newer than what is here, or too few copies are here to go on with.",
        };
        if away.is_empty() {
            return format!("Nobody leads it. {wait}");
        }
        format!("Nobody leads it. Out of view: {}. {wait}", self.names_of(&away))
    }
}

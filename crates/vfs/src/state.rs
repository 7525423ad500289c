//! How a mounted filesystem stands, in words: for whoever looks at the mount from outside.

use crate::fs::{Fs, lock};
use std::fmt;
use std::sync::atomic::Ordering;

/// How a mounted filesystem stands.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum State {
    /// All copies are there that there can be.
    #[default]
    Whole,
    /// It serves, with fewer copies than there can be: of which table, how many are in sync, and how many there would be.
    Degraded(String, u16, u16),
    /// Some of it does not answer: of which table, how many of its fragments are led by nobody, and how many it has.
    Stuck(String, u16, u16),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Whole => f.write_str("whole"),
            State::Degraded(table, is, wanted) => {
                write!(f, "degraded: {is} of {wanted} copies of {table} are in sync")
            }
            State::Stuck(table, stuck, all) => {
                write!(f, "stuck: {stuck} of {all} fragments of {table} have no leader here, and do not answer")
            }
        }
    }
}

/// A mounted filesystem from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// How it stands.
    pub state: State,
    /// How many directories this mount has to itself.
    pub alone: usize,
    /// How many operations are acknowledged and have not landed.
    pub waiting: usize,
    /// How many bytes are written and not committed.
    pub dirty_bytes: usize,
    /// Of how many files its processes have locked something.
    pub locked: usize,
    /// What the last scrubbing came to.
    pub scrubbed: Option<String>,
}

/// So often in a row it must be seen otherwise before that is logged.
const OTHERS_MIN: u32 = 5;

/// What was logged of it last.
#[derive(Default)]
pub(crate) struct StateTold {
    state: State,
    /// How often in a row it was seen otherwise.
    others: u32,
}

/// A table as this judges it.
struct Line<'a> {
    name: &'a str,
    fragments: u16,
    led: u16,
    in_sync: u16,
    wanted: u16,
}

fn judge(lines: &[Line]) -> State {
    if let Some(line) = lines.iter().find(|line| line.led < line.fragments) {
        return State::Stuck(line.name.into(), line.fragments - line.led, line.fragments);
    }
    match lines.iter().find(|line| line.in_sync < line.wanted) {
        Some(line) => State::Degraded(line.name.into(), line.in_sync, line.wanted),
        None => State::Whole,
    }
}

impl Fs {
    /// As it was seen a second ago, at most, while this node answers.
    pub fn standing(&self) -> Standing {
        Standing {
            state: lock(&self.state).clone(),
            alone: lock(&self.delegations.scope).dirs.len(),
            waiting: lock(&self.delegations.overlay).waiting(),
            dirty_bytes: self.dirty_bytes.load(Ordering::Relaxed),
            locked: self.locks.count(),
            scrubbed: lock(&self.scrubbed).clone(),
        }
    }

    /// Looks how it stands, and says so if that has changed for good.
    pub(crate) async fn look_at_state(&self, told: &mut StateTold) {
        let Ok(Some(status)) = self.status().await else { return };
        let nodes = status.nodes.len();
        let tables = [&self.meta, &self.blocks].into_iter().filter_map(|records| records.table());
        let names: Vec<String> = tables.map(|table| table.def().name.clone()).collect();
        let lines = status.tables.iter().filter(|table| names.contains(&table.name)).map(|table| Line {
            name: &table.name,
            fragments: table.fragments,
            led: table.led,
            in_sync: table.in_sync,
            wanted: table.copies.min(u16::try_from(nodes).unwrap_or(u16::MAX)),
        });
        let now = judge(&lines.collect::<Vec<_>>());
        *lock(&self.state) = now.clone();
        if now == told.state {
            told.others = 0;
            return;
        }
        told.others += 1;
        if told.others >= OTHERS_MIN {
            match now {
                State::Whole => tracing::info!("files are {now} again"),
                State::Degraded(..) | State::Stuck(..) => tracing::warn!("files are {now}"),
            }
            *told = StateTold { state: now, others: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_worse_than_what_lacks_copies() {
        let line = |led, in_sync| Line { name: "fs.a", fragments: 4, led, in_sync, wanted: 3 };
        assert_eq!(judge(&[line(4, 3)]).to_string(), "whole");
        assert_eq!(judge(&[line(4, 3), line(4, 2)]).to_string(), "degraded: 2 of 3 copies of fs.a are in sync");
        let stuck = judge(&[line(4, 1), line(3, 3)]).to_string();
        assert_eq!(stuck, "stuck: 1 of 4 fragments of fs.a have no leader here, and do not answer");
    }
}

//! Leadership goes to a fragment's only writer, whose writes then need no way to the leader and back; and from a node that
//! stops to another, before anybody has to find out.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::msg::Msg;
use base::{Instant, NodeId, Now};

/// A branch is led for so many windows at least: a move costs writers a moment.
const WINDOWS_MIN: u32 = 3;

/// Who wrote during the window under way.
#[derive(Default)]
pub(crate) struct Writers {
    since: Instant,
    windows: u32,
    writes: u32,
    only: Option<NodeId>,
    mixed: bool,
}

impl Writers {
    pub(crate) fn note(&mut self, node: NodeId) {
        self.writes += 1;
        self.mixed |= self.only.replace(node).is_some_and(|only| only != node);
    }
}

impl Copy {
    /// Once a window: if all of many writes came from one node, whose copy is in step, it is asked to take over.
    pub(crate) fn mind_writers(&mut self, now: Now, fx: &mut Effects) {
        let timing = self.config.timing;
        let Role::Leading(l) = &mut self.role else { return };
        if now.mono - l.writers.since < timing.writers_window {
            return;
        }
        let windows = l.writers.windows + 1;
        let seen = std::mem::replace(&mut l.writers, Writers { since: now.mono, windows, ..Writers::default() });
        let Some(node) = seen.only.filter(|_| !seen.mixed && seen.writes >= timing.writes_min) else { return };
        let able = self.view.contains(&node) && self.statuses.get(&node).is_some_and(|s| !s.barred);
        let (Some(f), true) = (l.followers.get(&node), able && l.set.contains(&node) && windows > WINDOWS_MIN) else {
            return;
        };
        if f.joined() && !f.doomed && self.view_at + timing.stable_view < now.mono {
            fx.sends.push((node, Msg::TakeOver { ballot: l.ballot, session: f.session }));
        }
    }

    /// What to tell the copy that shall go on when this one resigns: behind the last entry, so that it lacks nothing.
    pub(crate) fn heir(&self) -> Option<(NodeId, Msg)> {
        let Role::Leading(l) = &self.role else { return None };
        let able = |node: &NodeId| self.view.contains(node) && self.statuses.get(node).is_some_and(|s| !s.barred);
        let fit = l.followers.iter().filter(|(node, f)| l.ready && f.joined() && l.set.contains(node) && able(node));
        let ballot = l.ballot;
        fit.map(|(node, f)| (*node, Msg::TakeOver { ballot, session: f.session })).next()
    }

    /// The leader would rather have it led here: an opening like any other.
    pub(crate) fn on_take_over(&mut self, now: Now, session: u64, fx: &mut Effects) {
        let Role::Following(f) = &self.role else { return };
        if f.joined && f.session == session && !self.barred && !self.full {
            self.open(now, fx);
        }
    }
}

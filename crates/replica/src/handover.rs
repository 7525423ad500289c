//! Leadership goes to a fragment's only writer, whose writes then need no way to the leader and back; and from a node that
//! stops to another, before anybody has to find out.

use crate::copy::{Copy, Role};
use crate::gate::Effects;
use crate::msg::Msg;
use crate::shortage::Pressure;
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
    /// For how many more windows it is taken for led where it is written: since all of many writes came from this very node.
    home: u32,
}

/// So long a writer may pause.
const HOME_WINDOWS: u32 = 10;

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
        // While islands meet there will be an opening anyway.
        let rival = self.foreign_lead();
        let Role::Leading(l) = &mut self.role else { return };
        if l.writers.since == Instant(0) {
            l.writers.since = now.mono;
        }
        if now.mono - l.writers.since < timing.writers_window {
            return;
        }
        let windows = l.writers.windows + 1;
        let seen = std::mem::replace(&mut l.writers, Writers { since: now.mono, windows, ..Writers::default() });
        let one = !seen.mixed && seen.writes >= timing.writes_min;
        let here = one && seen.only == Some(self.config.me);
        l.writers.home = if here { HOME_WINDOWS } else { seen.home.saturating_sub(1) };
        let many = rival.is_none() && one && windows > WINDOWS_MIN;
        if let Some(node) = seen.only.filter(|_| many && self.view_is_stable(now)) {
            fx.sends.extend(self.invitation(node));
        }
    }

    /// Does it lead where all of its many writes come from, as far as can be told yet?
    pub fn is_settled(&self) -> bool {
        matches!(&self.role, Role::Leading(l) if l.writers.home > 0 || l.writers.windows <= WINDOWS_MIN)
    }

    /// Another is to lead, so that all nodes have their share of that.
    pub(crate) fn hand_over(&mut self, now: Now, node: NodeId, fx: &mut Effects) {
        if node != self.config.me && self.foreign_lead().is_none() && self.view_is_stable(now) {
            fx.sends.extend(self.invitation(node));
        }
    }

    /// What to tell the copy that shall go on when this one resigns: behind the last entry, so that it lacks nothing.
    pub(crate) fn heir(&self) -> Option<(NodeId, Msg)> {
        let Role::Leading(l) = &self.role else { return None };
        l.followers.keys().find_map(|node| self.invitation(*node))
    }

    /// May another lead instead? Its clock is right, and it can be reached.
    pub(crate) fn is_able(&self, node: NodeId) -> bool {
        self.view.contains(&node) && self.statuses.get(&node).is_some_and(|s| !s.barred)
    }

    /// The invitation to lead, for a copy that is in step and able.
    fn invitation(&self, node: NodeId) -> Option<(NodeId, Msg)> {
        let Role::Leading(l) = &self.role else { return None };
        let f = l.followers.get(&node).filter(|f| l.ready && f.joined() && !f.doomed)?;
        let fit = l.set.contains(&node) && self.is_able(node);
        fit.then(|| (node, Msg::TakeOver { ballot: l.ballot, session: f.session }))
    }

    /// The leader would rather have it led here: an opening like any other.
    pub(crate) fn on_take_over(&mut self, now: Now, session: u64, fx: &mut Effects) {
        let Role::Following(f) = &self.role else { return };
        if f.joined && f.session == session && !self.barred && self.pressed().most() < Pressure::Full {
            self.open(now, fx);
        }
    }
}

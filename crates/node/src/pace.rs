//! Copies that are made on a node take in no more than an operator allows: what has come is acknowledged when it is paid for, and a
//! leader sends no more than a few chunks ahead of that.

use crate::schema::sys_fragment;
use base::{FragmentId, Instant, NodeId, Span};
use replica::Msg;
use std::collections::VecDeque;

/// The least that may be allowed, bytes a second: with less a copy would be taken for one that is stuck.
pub const COPY_RATE_MIN: u64 = 4 * 1024 * 1024;

/// How long an acknowledgement is held back at most: a fourth of what a leader waits for one.
const DEBT_MAX: Span = Span::ms(2_500);

/// A meter of what comes, and what it holds back. A leaky bucket as a queue (Turner, 1986).
#[derive(Default)]
pub(crate) struct Pace {
    /// Bytes a second that are allowed; `None`: as many as come.
    pub(crate) rate: Option<u64>,
    /// When all that has come is paid for.
    paid_at: Instant,
    waiting: VecDeque<(Instant, NodeId, FragmentId, Msg)>,
}

impl Pace {
    /// Something came.
    pub(crate) fn came(&mut self, now: Instant, msg: &Msg) {
        if let (Some(rate), Msg::Sync { chunk, .. }) = (self.rate, msg) {
            let bytes: usize = chunk.records.iter().map(|(key, record)| record.weight(key)).sum();
            let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(COPY_RATE_MIN));
            // No later than this: whoever sends must not take it for stuck, however many send.
            self.paid_at = (self.paid_at.max(now) + Span(nanos as u64)).min(now + DEBT_MAX);
        }
    }

    /// Gives back what may be sent now.
    pub(crate) fn pass(&mut self, now: Instant, to: NodeId, fragment: FragmentId, msg: Msg) -> Option<Msg> {
        let free = self.rate.is_none() || fragment == sys_fragment();
        if free || self.paid_at <= now || !matches!(msg, Msg::SyncAck { .. }) {
            return Some(msg);
        }
        self.waiting.push_back((self.paid_at, to, fragment, msg));
        None
    }

    /// The next that may be sent.
    pub(crate) fn due(&mut self, now: Instant) -> Option<(NodeId, FragmentId, Msg)> {
        let free = self.rate.is_none();
        let due = self.waiting.front().is_some_and(|(at, ..)| free || *at <= now);
        let (_, to, fragment, msg) = if due { self.waiting.pop_front()? } else { return None };
        Some((to, fragment, msg))
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let at = self.waiting.front()?.0;
        Some(if self.rate.is_none() { Instant(0) } else { at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Ballot, BranchId, Heads, Hlc, TableId, Version};
    use replica::{Chunk, Record};

    /// A leader that keeps four chunks on their way gets through what is allowed, and no more.
    #[test]
    fn no_more_comes_than_is_allowed() {
        for (rate, seconds) in [(Some(COPY_RATE_MIN), 16..=17), (Some(4 * COPY_RATE_MIN), 4..=5), (None, 0..=1)] {
            let mut pace = Pace { rate, ..Pace::default() };
            let version = Version { branch: BranchId { node: NodeId(1), n: 1 }, seq: 1 };
            let record = Record { version, hlc: Hlc(1), expires: None, value: Some(vec![0; 256 * 1024].into()) };
            let chunk = |no| Chunk {
                no,
                h0: Heads::default(),
                records: vec![("k".into(), record.clone())],
                last: false,
                upto: 0,
                anew: false,
                staged: false,
            };
            let fragment = FragmentId { table: TableId(1), index: 0 };
            let ballot = Ballot { counter: 1, node: NodeId(1) };
            let (mut now, mut sent, mut acked) = (Instant(0), 0, 0);
            while acked < 256 {
                while sent < (acked + 4).min(256) {
                    pace.came(now, &Msg::Sync { ballot, session: 1, chunk: chunk(sent) });
                    let ack = Msg::SyncAck { session: 1, no: sent };
                    acked += u32::from(pace.pass(now, NodeId(1), fragment, ack).is_some());
                    sent += 1;
                }
                while pace.due(now).is_some() {
                    acked += 1;
                }
                now = pace.deadline().unwrap_or(now).max(now);
            }
            assert!(seconds.contains(&(now.0 / 1_000_000_000)), "{rate:?}: {now:?}");
        }
    }
}

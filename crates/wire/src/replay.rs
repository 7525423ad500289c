use crate::Header;
use base::{NodeId, WallMs};
use std::collections::BTreeMap;

/// How far a stranger's clock may be off ours, in ms: as in nodefinder.
const WINDOW_MS: u64 = 300_000;
/// How many senders are remembered: a fleet and its restarts.
const SENDERS_MAX: usize = 4096;

/// Whether a datagram may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// New.
    Fresh,
    /// Seen before, or too old to tell.
    Replayed,
    /// The clocks are too far apart to tell new from old.
    OutOfTime,
}

struct Sender {
    incarnation: u64,
    highest: u64,
    /// Bit i: `highest - i` was seen.
    seen: u64,
    heard: u64,
}

/// Refuses datagrams that were seen before: per sender a sliding window of counters, as in IPsec (RFC 4303, 3.4.3).
#[derive(Default)]
pub struct ReplayWindow {
    senders: BTreeMap<NodeId, Sender>,
    heard: u64,
}

impl ReplayWindow {
    /// Judges an authenticated header, and remembers it.
    pub fn judge(&mut self, now: WallMs, header: &Header) -> Verdict {
        self.heard += 1;
        let heard = self.heard;
        if let Some(sender) = self.senders.get_mut(&header.node)
            && header.incarnation <= sender.incarnation
        {
            return if header.incarnation < sender.incarnation {
                Verdict::Replayed
            } else {
                sender.judge(header, heard)
            };
        }
        if now.0.abs_diff(header.sent.0) > WINDOW_MS {
            return Verdict::OutOfTime;
        }
        let oldest = self.senders.iter().min_by_key(|(_, s)| s.heard).map(|(node, _)| *node);
        if self.senders.len() >= SENDERS_MAX
            && let Some(node) = oldest
        {
            self.senders.remove(&node);
        }
        let sender = Sender { incarnation: header.incarnation, highest: header.counter, seen: 1, heard };
        self.senders.insert(header.node, sender);
        Verdict::Fresh
    }
}

impl Sender {
    fn judge(&mut self, header: &Header, heard: u64) -> Verdict {
        if header.counter > self.highest {
            let shift = header.counter - self.highest;
            self.seen = if shift < 64 { self.seen << shift | 1 } else { 1 };
            self.highest = header.counter;
        } else {
            let bit = self.highest - header.counter;
            if bit >= 64 || self.seen >> bit & 1 == 1 {
                return Verdict::Replayed;
            }
            self.seen |= 1 << bit;
        }
        self.heard = heard;
        Verdict::Fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(node: u64, incarnation: u64, counter: u64, sent: u64) -> Header {
        Header { node: NodeId(node), incarnation, counter, sent: WallMs(sent) }
    }

    #[test]
    fn each_datagram_counts_once_in_any_order() {
        let (mut window, now) = (ReplayWindow::default(), WallMs(1_000_000));
        for counter in [5, 7, 6, 70] {
            assert_eq!(window.judge(now, &header(1, 1, counter, 1_000_000)), Verdict::Fresh);
            assert_eq!(window.judge(now, &header(1, 1, counter, 1_000_000)), Verdict::Replayed);
        }
        // Behind the window: cannot be told from a replay.
        assert_eq!(window.judge(now, &header(1, 1, 4, 1_000_000)), Verdict::Replayed);
    }

    #[test]
    fn a_restart_counts_anew_and_ends_what_was_before() {
        let (mut window, now) = (ReplayWindow::default(), WallMs(1_000_000));
        assert_eq!(window.judge(now, &header(1, 1, 900, 1_000_000)), Verdict::Fresh);
        assert_eq!(window.judge(now, &header(1, 2, 1, 1_000_000)), Verdict::Fresh);
        assert_eq!(window.judge(now, &header(1, 1, 901, 1_000_000)), Verdict::Replayed);
    }

    #[test]
    fn a_recording_of_a_stranger_is_refused_after_five_minutes() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.judge(WallMs(400_001), &header(1, 1, 1, 100_000)), Verdict::OutOfTime);
        assert_eq!(window.judge(WallMs(400_000), &header(1, 1, 1, 100_000)), Verdict::Fresh);
    }

    #[test]
    fn memory_is_bounded_under_a_flood_of_senders() {
        let (mut window, now) = (ReplayWindow::default(), WallMs(0));
        for node in 0..3 * SENDERS_MAX as u64 {
            window.judge(now, &header(node, 1, 1, 0));
        }
        assert_eq!(window.senders.len(), SENDERS_MAX);
    }
}

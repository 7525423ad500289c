//! A node that runs short of memory, or of room on its disc: first the bounded tables make room, then what takes more is refused.

use crate::config::{Room, Storage};
use crate::copy::{Copy, Role};
use crate::evict::Evict;
use crate::table::OVERHEAD;
use base::{Instant, KEY_BYTES_MAX, Now, Span, VALUE_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// How often a bounded fragment is given less memory, or more again.
const STEP_EVERY: Span = Span::ms(1000);
/// The same of the disc: what goes gives its room back later, when the engine has tidied up.
const DISC_STEP_EVERY: Span = Span::ms(16_000);
/// By what part of what it holds.
const STEP: u64 = 32;
/// The same when nothing else is taken until there is room.
const FULL_STEP: u64 = 8;
/// No fragment has to make do with less: it is not what the node is short of.
const CAP_MIN: u64 = 2 * (VALUE_BYTES_MAX + KEY_BYTES_MAX) as u64 + 2 * OVERHEAD;

/// How short a node is of something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub enum Pressure {
    /// There is enough.
    #[default]
    Low,
    /// Bounded tables do not grow.
    Steady,
    /// They make room, step by step.
    High,
    /// Nothing is taken but what frees some.
    Full,
}

/// How short a node is of what copies take.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Shortage {
    /// Of memory.
    pub memory: Pressure,
    /// Of room on its disc.
    pub disc: Pressure,
}

impl Shortage {
    /// What either of two is short of.
    pub(crate) fn or(self, other: Shortage) -> Shortage {
        Shortage { memory: self.memory.max(other.memory), disc: self.disc.max(other.disc) }
    }

    /// Of whatever it is shortest of.
    pub fn most(self) -> Pressure {
        self.memory.max(self.disc)
    }
}

/// What a bounded fragment may hold, by its leader, while one of its nodes is short of something.
#[derive(Default)]
pub(crate) struct Cap {
    bytes: Option<u64>,
    at: Instant,
}

impl Copy {
    /// How short this node is of what this copy takes. The system table takes little, and is what tables are dropped with.
    pub(crate) fn pressed(&self) -> Shortage {
        let Shortage { mut memory, mut disc } = self.shortage;
        if self.config.open_membership {
            memory = Pressure::Low;
        }
        if self.config.storage == Storage::Ram && self.store.is_volatile() {
            disc = Pressure::Low;
        }
        Shortage { memory, disc }
    }

    /// The same of all copies that take what is written here.
    pub(crate) fn pressure(&self) -> Shortage {
        let Role::Leading(l) = &self.role else { return self.pressed() };
        if self.config.open_membership {
            // All nodes follow it, and one without room must not keep the others from what they have to note.
            return self.pressed();
        }
        let theirs = l.followers.keys().filter_map(|node| self.statuses.get(node)).map(|status| status.pressed);
        theirs.fold(self.pressed(), Shortage::or)
    }

    /// What the fragment may hold for the moment.
    pub(crate) fn room_now(&self) -> Room {
        let cap = if let Role::Leading(l) = &self.role { l.cap.bytes } else { None };
        let bytes = [self.config.room.bytes, cap].into_iter().flatten().min();
        Room { bytes, ..self.config.room }
    }

    /// A bounded fragment that is to make room is given less of it, step by step, and more again when there is enough.
    pub(crate) fn mind_cap(&mut self, now: Now) {
        let pressure = self.pressure();
        let discs = pressure.disc >= Pressure::High && pressure.memory < Pressure::High;
        let bounded = self.config.room != Room::default() && self.config.evict != Evict::Reject;
        let held = self.store.held().1;
        let Role::Leading(l) = &mut self.role else { return };
        if l.cap.at != Instant(0) && now.mono - l.cap.at < if discs { DISC_STEP_EVERY } else { STEP_EVERY } {
            return;
        }
        l.cap.at = now.mono;
        let cap = match pressure.most() {
            _ if !bounded => None,
            // Until it does not bind any more; what came by a merge stays.
            Pressure::Low => l.cap.bytes.map(|cap| cap.max(held)).map(|cap| cap + cap / STEP),
            Pressure::Steady => Some(l.cap.bytes.unwrap_or(held)),
            level => {
                let cap = l.cap.bytes.unwrap_or(held).min(held);
                Some(cap - cap / if level == Pressure::Full { FULL_STEP } else { STEP })
            }
        };
        let binds = |cap: &u64| pressure.most() > Pressure::Low || held >= cap - cap / 4;
        l.cap.bytes = cap.filter(binds).map(|cap| cap.max(CAP_MIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::FULL_PUT_BYTES_MAX;
    use crate::evict::tests::{ask_for, leading, put};
    use crate::lease::tests::{self, feed};
    use crate::open::tests::at;
    use crate::{Answer, Input, Msg, Outcome, Refusal, Reply, Status, Write};
    use base::NodeId;

    const FULL: Shortage = Shortage { memory: Pressure::Full, disc: Pressure::Low };

    fn is_refused(answer: Option<Answer>) -> bool {
        matches!(answer, Some(Answer::Outcome(Outcome::Failed(Refusal::NoSpace), _)))
    }

    #[test]
    fn a_full_node_takes_what_frees_some_and_a_follower_tells_its_leader() {
        let (mut copy, start) = tests::leading();
        let status = |pressed| Status { was_in_sync: true, weight: 1, pressed, ..Status::default() };
        let say = |pressed| Input::Msg(NodeId(2), Msg::Status(status(pressed)));
        assert!(!is_refused(answer(&mut copy, start, 1, vec![put("a", 9)])));
        feed(&mut copy, start + 1, say(FULL));
        assert!(is_refused(answer(&mut copy, start + 2, 2, vec![put("b", 9)])));
        let delete = || Write::Delete { key: "a".into() };
        assert!(!is_refused(answer(&mut copy, start + 3, 3, vec![delete(), put("b", 9)])));
        assert!(is_refused(answer(&mut copy, start + 4, 4, vec![delete(), put("b", FULL_PUT_BYTES_MAX + 1)])));
        feed(&mut copy, start + 5, say(Shortage { memory: Pressure::High, disc: Pressure::High }));
        assert!(!is_refused(answer(&mut copy, start + 6, 5, vec![put("b", 9)])));
        // Its own node; and the system table is not what fills a memory.
        feed(&mut copy, start + 7, Input::Shortage(FULL));
        assert!(is_refused(answer(&mut copy, start + 8, 6, vec![put("b", 9)])));
        copy.set_options(|config| config.open_membership = true);
        assert!(!is_refused(answer(&mut copy, start + 9, 7, vec![put("b", 9)])));
    }

    /// The same with a follower that has everything at once.
    fn answer(copy: &mut Copy, ms: u64, number: u64, writes: Vec<Write>) -> Option<Answer> {
        let mut fx = crate::Effects::default();
        if let Some(answer) = ask_for(copy, ms, number, writes) {
            return Some(answer);
        }
        copy.handle(at(ms), Input::Msg(NodeId(2), Msg::Ack { session: 7, seq: u64::MAX }), &mut fx);
        fx.replies.into_iter().find_map(|(_, reply)| if let Reply::Write(answer) = reply { Some(answer) } else { None })
    }

    #[test]
    fn a_copy_says_what_it_takes_and_its_node_lacks() {
        let (mut copy, start) = tests::leading();
        let both = Shortage { memory: Pressure::High, disc: Pressure::Full };
        let said = |copy: &mut Copy, shortage| {
            let mut fx = crate::Effects::default();
            copy.handle(at(start), Input::Shortage(shortage), &mut fx);
            fx.sends.into_iter().find_map(|(_, msg)| if let Msg::Status(s) = msg { Some(s.pressed) } else { None })
        };
        assert_eq!(said(&mut copy, both), Some(both));
        assert_eq!(said(&mut copy, both), None, "it is said when it changes");
        // A table in RAM takes nothing of the disc.
        let mut copy = leading(Evict::Fifo, Room::default());
        copy.set_options(|config| config.storage = Storage::Ram);
        feed(&mut copy, start, Input::Shortage(both));
        assert_eq!(
            copy.pressed(),
            if copy.store().is_volatile() { Shortage { disc: Pressure::Low, ..both } } else { both }
        );
    }

    #[test]
    fn a_bounded_fragment_makes_room_step_by_step_and_takes_it_again() {
        const VALUE: usize = 64 * 1024;
        let mut copy = leading(Evict::Fifo, Room { records: Some(100), bytes: None });
        for number in 1..=100 {
            ask_for(&mut copy, 6000, number, vec![put(&number.to_string(), VALUE)]);
        }
        let full = copy.store().held().1;
        let mut now = 10_000;
        let mut tick = |copy: &mut Copy, level| {
            feed(copy, now, Input::Shortage(Shortage { memory: level, disc: Pressure::Low }));
            feed(copy, now, Input::Tick);
            now += 1100;
            copy.store().held().1
        };
        assert_eq!(tick(&mut copy, Pressure::Steady), full);
        let once = tick(&mut copy, Pressure::High);
        assert!(once < full && once > full - full / 8, "{once} of {full}");
        assert!(tick(&mut copy, Pressure::High) < once);
        // It grows no more, and has its place for what is written.
        tick(&mut copy, Pressure::Steady);
        assert!(!is_refused(ask_for(&mut copy, 20_000, 500, vec![put("new", VALUE)])));
        assert!(copy.room_now().bytes.is_some_and(|cap| copy.store().held().1 <= cap));
        for _ in 0..200 {
            tick(&mut copy, Pressure::High);
        }
        let least = tick(&mut copy, Pressure::High);
        assert!((CAP_MIN / 2..=CAP_MIN).contains(&least), "{least}");
        // A value that the cap alone has no room for is not taken for one that the table has none for.
        let large = |key| put(key, VALUE_BYTES_MAX);
        assert!(is_refused(ask_for(&mut copy, 300_000, 501, vec![large("a"), large("b"), large("c")])));
        assert!(!is_refused(ask_for(&mut copy, 300_001, 502, vec![large("a")])), "any record has a place");
        for number in 600..1500 {
            let now = 400_000 + number * 1100;
            feed(&mut copy, now, Input::Shortage(Shortage::default()));
            feed(&mut copy, now, Input::Tick);
            ask_for(&mut copy, now, number, vec![put(&number.to_string(), VALUE)]);
        }
        assert_eq!((copy.store().held().0, copy.room_now().bytes), (100, None));
    }

    /// What was short when it led before is nothing to it now, nor is what it got without asking.
    #[test]
    fn a_cap_goes_with_the_lead_and_follows_what_is_held_when_there_is_enough() {
        let mut copy = leading(Evict::Fifo, Room { records: Some(100), bytes: None });
        let fill = |copy: &mut Copy, from: u64, ms| {
            for number in from..from + 60 {
                ask_for(copy, ms, number, vec![put(&number.to_string(), 64 * 1024)]);
            }
        };
        let short = |copy: &mut Copy, ms, memory| {
            feed(copy, ms, Input::Shortage(Shortage { memory, disc: Pressure::Low }));
            feed(copy, ms, Input::Tick);
        };
        fill(&mut copy, 1, 6000);
        (0..20).for_each(|n| short(&mut copy, 10_000 + n * 1100, Pressure::High));
        let held = copy.store().held();
        assert!(held.0 < 40 && copy.room_now().bytes.is_some());
        feed(&mut copy, 40_000, Input::Shortage(Shortage::default()));
        feed(&mut copy, 40_000, Input::Resign);
        (0..80).for_each(|n| drop(feed(&mut copy, 40_100 + n * 100, Input::Tick)));
        assert!(copy.lead().is_some() && copy.room_now().bytes.is_none());
        fill(&mut copy, 1000, 60_000);
        assert_eq!(copy.store().held().0, (held.0 + 60).min(100));
    }

    #[test]
    fn the_disc_gives_room_back_later_and_tables_without_a_policy_keep_what_they_have() {
        for (evict, shrinks) in [(Evict::Fifo, true), (Evict::Reject, false)] {
            let mut copy = leading(evict, Room { records: Some(100), bytes: None });
            for number in 1..=100 {
                ask_for(&mut copy, 6000, number, vec![put(&number.to_string(), 64 * 1024)]);
            }
            let full = copy.store().held().1;
            feed(&mut copy, 10_000, Input::Shortage(Shortage { memory: Pressure::Low, disc: Pressure::High }));
            let mut tick = |ms| {
                feed(&mut copy, ms, Input::Tick);
                copy.store().held().1
            };
            let once = tick(30_000);
            assert_eq!(once < full, shrinks);
            assert_eq!(tick(40_000), once, "not yet");
            assert_eq!(tick(47_000) < once, shrinks);
        }
    }
}

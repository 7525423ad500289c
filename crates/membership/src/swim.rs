use base::{DATAGRAM_BYTES_MAX, Instant, NodeId, Span};
use foca::{Config, Foca, NoCustomBroadcast, Notification, OwnedNotification, PeriodicParams, PostcardCodec, Timer};
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// What the envelope round a datagram takes, generously.
const ENVELOPE_BYTES: usize = 96;

/// A node as gossip names it. `life` orders its appearances: a node that was declared down comes back with a higher one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Who.
    pub node: NodeId,
    /// Where its datagrams go.
    pub addr: SocketAddr,
    /// Its incarnation, times 2^20, plus how often it had to come back since.
    pub life: u64,
}

impl Identity {
    /// The identity with which a started node first appears.
    pub fn first(node: NodeId, addr: SocketAddr, incarnation: u64) -> Identity {
        Identity { node, addr, life: incarnation << 20 }
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Identity { life: self.life + 1, ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.life > other.life
    }
}

/// What happens to the detector.
pub enum Input {
    /// The deadline has passed, or may have.
    Tick,
    /// Gossip arrived, opened and fresh.
    Datagram(Vec<u8>),
    /// A peer was found: say hello to it.
    Found(Identity),
}

/// What the detector wants, or has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// To be sealed and sent.
    Send(Identity, Vec<u8>),
    /// Answers, directly or through others; and where it is.
    Up(NodeId, SocketAddr),
    /// Does not answer, even through others.
    Down(NodeId),
}

type Detector = Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>;

#[derive(Default)]
struct Pending {
    now: Instant,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    next: u64,
    out: VecDeque<Effect>,
}

impl foca::Runtime<Identity> for &mut Pending {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification.to_owned() {
            OwnedNotification::MemberUp(id) => self.out.push_back(Effect::Up(id.node, id.addr)),
            OwnedNotification::MemberDown(id) => self.out.push_back(Effect::Down(id.node)),
            _ => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.out.push_back(Effect::Send(to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.next += 1;
        let at = self.now + Span(after.as_nanos().min(u128::from(u64::MAX)) as u64);
        self.timers.insert((at, self.next), event);
    }
}

/// The SWIM failure detector (Das, Gupta, Motivala 2002; `foca`), with timers inside.
pub struct Swim {
    foca: Detector,
    pending: Pending,
}

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN)
}

/// A node cut off is declared down after a probe, its indirect probes and the suspicion: under 3 s. The suspicion is short, since
/// whoever is declared down is asked over its link before anybody acts on it.
fn config() -> Config {
    let every = |ms, n| Some(PeriodicParams { frequency: Duration::from_millis(ms), num_members: size(n) });
    Config {
        probe_period: Duration::from_millis(500),
        probe_rtt: Duration::from_millis(250),
        num_indirect_probes: size(3),
        max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: Duration::from_millis(400),
        remove_down_after: Some(Duration::from_secs(48 * 3600)),
        max_packet_size: size(DATAGRAM_BYTES_MAX - ENVELOPE_BYTES),
        notify_down_members: true,
        periodic_announce: every(30_000, 1),
        // At its default of 65 s, healed islands stay apart for over 40 s. A packet that gets through has its sender dialled.
        periodic_announce_to_down_members: every(500, 3),
        periodic_gossip: every(500, 2),
    }
}

impl Swim {
    /// A detector that knows nobody yet.
    pub fn new(identity: Identity, seed: u64) -> Swim {
        let foca = Foca::new(identity, config(), StdRng::seed_from_u64(seed), PostcardCodec);
        Swim { foca, pending: Pending::default() }
    }

    /// Takes one input. Gossip that cannot be parsed is dropped.
    pub fn handle(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        self.pending.now = now;
        let pending = &mut self.pending;
        // Every error of foca says that an input was not usable; its state stays sound.
        let _ = match input {
            Input::Tick => Ok(()),
            Input::Datagram(data) => self.foca.handle_data(&data, &mut *pending),
            Input::Found(identity) => self.foca.announce(identity, &mut *pending),
        };
        while let Some(entry) = self.pending.timers.first_entry().filter(|e| e.key().0 <= now) {
            let timer = entry.remove();
            let _ = self.foca.handle_timer(timer, &mut self.pending);
        }
        effects.extend(self.pending.out.drain(..));
    }

    /// When to call with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.pending.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// The identity in use: renewed when others had declared it down.
    pub fn identity(&self) -> &Identity {
        self.foca.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> Identity {
        Identity::first(NodeId(n), ([127, 0, 0, 1], n as u16).into(), 1)
    }

    /// Runs a few detectors on a network that delivers at once; `cut(a, b)` drops.
    fn run(nodes: &mut [Swim], from_ms: u64, to_ms: u64, cut: impl Fn(u64, u64) -> bool) -> Vec<(u64, u64, Effect)> {
        let mut seen = Vec::new();
        for ms in from_ms..to_ms {
            let now = Instant(ms * 1_000_000);
            let mut queue: VecDeque<(u64, u64, Vec<u8>)> = VecDeque::new();
            let collect = |from: u64, effects: Vec<Effect>, queue: &mut VecDeque<_>, seen: &mut Vec<_>| {
                for effect in effects {
                    match effect {
                        Effect::Send(to, data) if !cut(from, to.node.0) => queue.push_back((from, to.node.0, data)),
                        Effect::Send(..) => {}
                        other => seen.push((ms, from, other)),
                    }
                }
            };
            for (i, node) in nodes.iter_mut().enumerate() {
                let mut effects = Vec::new();
                node.handle(now, Input::Tick, &mut effects);
                if ms == 0 && i > 0 {
                    node.handle(now, Input::Found(id(1)), &mut effects);
                }
                collect(i as u64 + 1, effects, &mut queue, &mut seen);
            }
            while let Some((_, to, data)) = queue.pop_front() {
                let mut effects = Vec::new();
                nodes[to as usize - 1].handle(now, Input::Datagram(data), &mut effects);
                collect(to, effects, &mut queue, &mut seen);
            }
        }
        seen
    }

    fn alone(seen: &[(u64, u64, Effect)], by: u64, want: Effect) -> Option<u64> {
        seen.iter().find(|(_, who, effect)| *who == by && *effect == want).map(|(ms, ..)| *ms)
    }

    #[test]
    fn a_cut_node_is_down_within_three_seconds_and_up_again_within_one_of_the_heal() {
        let mut nodes: Vec<Swim> = (1..=3).map(|n| Swim::new(id(n), n)).collect();
        let seen = run(&mut nodes, 0, 3000, |_, _| false);
        for by in 1..=3 {
            for of in (1..=3).filter(|of| *of != by) {
                assert!(alone(&seen, by, Effect::Up(NodeId(of), id(of).addr)).is_some(), "{by} sees {of}");
            }
        }
        let seen = run(&mut nodes, 3000, 8000, |a, b| a == 3 || b == 3);
        let down = alone(&seen, 1, Effect::Down(NodeId(3))).expect("noticed");
        assert!(down <= 6000, "down at {down}");
        let seen = run(&mut nodes, 8000, 13000, |_, _| false);
        let up = alone(&seen, 1, Effect::Up(NodeId(3), id(3).addr)).expect("met again");
        assert!(up <= 9000, "up at {up}");
        assert!(alone(&seen, 3, Effect::Up(NodeId(1), id(1).addr)).is_some());
    }

    #[test]
    fn noise_is_dropped() {
        let mut swim = Swim::new(id(1), 1);
        let mut effects = Vec::new();
        for len in 0..64 {
            swim.handle(Instant(0), Input::Datagram(vec![0xa5; len]), &mut effects);
        }
        assert!(effects.is_empty());
    }
}

//! How much of its machine a node may take, and how near it is to that.

use replica::{Pressure, Shortage};
use std::time::{Duration, Instant};

/// With less room than this on its disc, a node takes no more writes but those that free some. The engine writes what its
/// journal holds (up to 128 MiB) a second time, and needs room to do so.
pub const FREE_BYTES_MIN: u64 = 192 * 1024 * 1024;
/// How often the memory is looked at, at most.
const MEMORY_LOOK: Duration = Duration::from_millis(20);
/// Memory must be lower for so long before a node says so.
const CALM: Duration = Duration::from_secs(1);
/// From how many thousandths of a ceiling on a node is so short.
const LEVELS: [(Pressure, u64); 3] = [(Pressure::Full, 950), (Pressure::High, 900), (Pressure::Steady, 850)];
/// It is so until there are so many thousandths less.
const BACK: u64 = 10;

/// How much of its machine a node may take.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Memory that is in use, in bytes; `None`: as much as there is.
    pub memory: Option<u64>,
    /// What the data directory holds, in bytes; `None`: as much as the disc has room for. At least [`FREE_BYTES_MIN`] is left
    /// free in any case.
    pub disc: Option<u64>,
    /// How much memory is in use: of the whole process. An allocator that counts knows it best; resident memory, which is
    /// asked for by default, does not shrink by all that is freed.
    pub used: fn() -> u64,
}

impl Default for Ceilings {
    fn default() -> Ceilings {
        Ceilings { memory: None, disc: None, used: resident }
    }
}

/// Resident memory of this process, in bytes.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// The memory that this process can have: the machine's, or what its control group is held to; `None`: nobody says.
pub fn available_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(group_limit).chain(machine).min()
}

/// What a line of /proc/self/cgroup holds its processes to: version 2 (`0::/path`), or the memory controller of version 1; itself
/// or any group above it.
fn group_limit(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let above = std::path::Path::new(path.trim_start_matches('/')).ancestors();
    let limit = |group| std::fs::read_to_string(std::path::Path::new(root).join(group).join(file)).ok();
    above.filter_map(limit).filter_map(|text| text.trim().parse().ok()).min()
}

/// What is looked at, and what was found last.
pub(crate) struct Watch {
    pub ceilings: Ceilings,
    pub shortage: Shortage,
    /// What people were told of it last.
    pub said: Shortage,
    /// Bytes written since the disc was looked at.
    pub unlooked: usize,
    looked: Option<Instant>,
    lower_since: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(ceilings: Ceilings) -> Watch {
        Watch {
            ceilings,
            shortage: Shortage::default(),
            said: Shortage::default(),
            unlooked: 0,
            looked: None,
            lower_since: None,
        }
    }

    /// Looks at the memory; what is in use, if that makes the shortage another.
    pub(crate) fn look_at_memory(&mut self) -> Option<u64> {
        let Some(max) = self.ceilings.memory else {
            // It was lifted.
            let was = std::mem::take(&mut self.shortage.memory);
            return (was > Pressure::Low).then(|| (self.ceilings.used)());
        };
        if self.looked.is_some_and(|at| at.elapsed() < MEMORY_LOOK) {
            return None;
        }
        let looked = Instant::now();
        self.looked = Some(looked);
        let (before, used) = (self.shortage.memory, (self.ceilings.used)());
        let now = level(used, max, before);
        // A buffer that comes and goes is no reason to have all copies told twice.
        self.lower_since = if now < before { self.lower_since.or(Some(looked)) } else { None };
        if now < before && self.lower_since.is_none_or(|since| since.elapsed() < CALM) {
            return None;
        }
        self.shortage.memory = now;
        (now != before).then_some(used)
    }

    /// Takes what is free on the disc and what the data directory holds; has that made the shortage another?
    pub(crate) fn look_at_disc(&mut self, free: u64, used: u64) -> bool {
        let before = self.shortage.disc;
        let by_free = match free {
            _ if free < FREE_BYTES_MIN => Pressure::Full,
            _ if free < 2 * FREE_BYTES_MIN => Pressure::High,
            _ if free < 3 * FREE_BYTES_MIN => Pressure::Steady,
            _ => Pressure::Low,
        };
        let by_use = self.ceilings.disc.map_or(Pressure::Low, |max| level(used, max, before));
        self.shortage.disc = by_free.max(by_use);
        self.shortage.disc != before
    }
}

/// How short of something a node is that uses so much of so much.
fn level(used: u64, max: u64, before: Pressure) -> Pressure {
    let part = used.saturating_mul(1000) / max.max(1);
    let reached = |(level, at): &(Pressure, u64)| part >= at - if before >= *level { BACK } else { 0 };
    LEVELS.iter().find(|level| reached(level)).map_or(Pressure::Low, |(level, _)| *level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_short_from_a_part_of_its_ceiling_on_and_until_there_is_somewhat_less() {
        let steps = [
            (0, Pressure::Low),
            (849, Pressure::Low),
            (850, Pressure::Steady),
            (841, Pressure::Steady),
            (839, Pressure::Low),
            (2000, Pressure::Full),
            (941, Pressure::Full),
            (939, Pressure::High),
            (889, Pressure::Steady),
            (901, Pressure::High),
            (0, Pressure::Low),
        ];
        let mut now = Pressure::Low;
        for (used, level) in steps {
            now = super::level(used << 20, 1000 << 20, now);
            assert_eq!(now, level, "at {used}");
        }
        assert_eq!(level(1, 0, Pressure::Low), Pressure::Full);
        assert_eq!(level(u64::MAX, 1 << 50, Pressure::Low), Pressure::Full);
    }

    #[test]
    fn a_disc_is_short_when_little_is_free_or_much_is_used() {
        let mut watch = Watch::new(Ceilings { disc: Some(1 << 30), ..Ceilings::default() });
        assert!(!watch.look_at_disc(u64::MAX, 0));
        for (free, used, level) in [
            (FREE_BYTES_MIN - 1, 0, Pressure::Full),
            (FREE_BYTES_MIN, 0, Pressure::High),
            (2 * FREE_BYTES_MIN, 0, Pressure::Steady),
            (u64::MAX, 1 << 30, Pressure::Full),
            (u64::MAX, 0, Pressure::Low),
        ] {
            assert!(watch.look_at_disc(free, used));
            assert_eq!(watch.shortage.disc, level, "{free} free, {used} used");
        }
    }

    #[test]
    fn the_machine_says_how_much_memory_it_has() {
        assert!(available_memory().is_some_and(|bytes| bytes > resident() && resident() > 0));
        assert_eq!(group_limit("nonsense"), None);
        assert_eq!(group_limit("5:cpu:/x"), None);
        assert_eq!(group_limit("0::/no/such/group").filter(|limit| *limit == 0), None);
    }
}

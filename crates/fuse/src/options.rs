//! What follows `-o`.

use crate::{MountError, is_root};
use fuser::MountOption;

/// What `mount(8)`, `fstab(5)` and systemd say to each other, and what holds here anyway.
const NOT_FOR_US: &[&str] = &[
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "noatime",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "async",
    "nomand",
    "loud",
    "silent",
];
/// What is known, for whoever wrote something else.
pub(crate) const KNOWN: &str = "ro, rw, allow_other, strict, relatime, noatime, cache=SIZE, scrub=SIZE|off, uid=N, gid=N, exec, suid, dev, sync, dirsync and their opposites";

/// So many bytes a second are read to see whether all is as it was written, if nothing else is said.
const SCRUB: usize = 4 << 20;

/// How to mount.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// Read-only.
    pub ro: bool,
    /// Other users may use it, with their own permissions; the default for root.
    pub allow_other: bool,
    /// The kernel keeps no name and no attribute of others' making: each call asks.
    pub strict: bool,
    /// Reading changes the time of access, where that is older than the last change, or than a day.
    pub relatime: bool,
    /// How many bytes of all files together may wait to be committed.
    pub cache: Option<usize>,
    /// How many bytes a second are read to see whether all is as it was written; `None`: none.
    pub scrub: Option<usize>,
    /// All files are shown as this user's.
    pub uid: Option<u32>,
    /// And as this group's.
    pub gid: Option<u32>,
    pub(crate) kernel: Vec<Flag>,
}

/// What the kernel does by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flag {
    NoExec,
    NoSuid,
    NoDev,
    Sync,
    DirSync,
}

impl Options {
    /// Reads what follows `-o`; of two that contradict each other the later holds.
    pub fn parse(text: &str) -> Result<Options, MountError> {
        let mut out = Options { allow_other: is_root(), scrub: Some(SCRUB), ..Options::default() };
        for word in text.split(',').filter(|w| !w.is_empty()) {
            out.take(word)?;
        }
        Ok(out)
    }

    fn take(&mut self, word: &str) -> Result<(), MountError> {
        let wrong = || MountError::Option(word.into());
        let mut flag = |flag: Flag, on: bool| {
            self.kernel.retain(|f| *f != flag);
            self.kernel.extend(on.then_some(flag));
        };
        match word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value))) {
            ("ro", None) => self.ro = true,
            ("rw", None) => self.ro = false,
            ("allow_other", None) => self.allow_other = true,
            ("strict", None) => self.strict = true,
            ("relatime", None) => self.relatime = true,
            ("noexec" | "exec", None) => flag(Flag::NoExec, word == "noexec"),
            ("nosuid" | "suid", None) => flag(Flag::NoSuid, word == "nosuid"),
            ("nodev" | "dev", None) => flag(Flag::NoDev, word == "nodev"),
            ("sync" | "async", None) => flag(Flag::Sync, word == "sync"),
            ("dirsync", None) => flag(Flag::DirSync, true),
            ("noatime" | "norelatime", None) => self.relatime = false,
            ("scrub", Some("off")) => self.scrub = None,
            ("scrub", Some(size)) => self.scrub = Some(bytes(size).ok_or_else(wrong)?),
            ("cache", Some(size)) => self.cache = Some(bytes(size).ok_or_else(wrong)?),
            ("uid", Some(id)) => self.uid = Some(id.parse().map_err(|_| wrong())?),
            ("gid", Some(id)) => self.gid = Some(id.parse().map_err(|_| wrong())?),
            ("comment", Some(_)) => {}
            (name, None) if NOT_FOR_US.contains(&name) => {}
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Is nothing to be acknowledged before the copies have it?
    pub fn waits(&self) -> bool {
        self.ro || self.kernel.iter().any(|flag| matches!(flag, Flag::Sync | Flag::DirSync))
    }

    pub(crate) fn for_kernel(&self) -> Vec<MountOption> {
        let one = |flag: &Flag| match flag {
            Flag::NoExec => MountOption::NoExec,
            Flag::NoSuid => MountOption::NoSuid,
            Flag::NoDev => MountOption::NoDev,
            Flag::Sync => MountOption::Sync,
            Flag::DirSync => MountOption::DirSync,
        };
        let mut out: Vec<MountOption> = self.kernel.iter().map(one).collect();
        out.push(if self.ro { MountOption::RO } else { MountOption::RW });
        if is_root() {
            let has = |flag| self.kernel.contains(&flag);
            out.extend((!has(Flag::NoSuid)).then_some(MountOption::Suid));
            out.extend((!has(Flag::NoDev)).then_some(MountOption::Dev));
        }
        out
    }
}

/// `64MiB`, `64M`, `65536`: at least a mebibyte.
fn bytes(text: &str) -> Option<usize> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: usize = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes >= 1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fstab_and_systemd_write_is_understood() {
        let all =
            "defaults,_netdev,nofail,x-systemd.automount,noatime,noexec,nosuid,exec,uid=12,gid=34,cache=8MiB,strict,ro";
        let options = Options::parse(all).expect("known");
        assert!(options.ro && options.strict && !options.relatime);
        assert_eq!((options.uid, options.gid, options.cache), (Some(12), Some(34), Some(8 << 20)));
        assert_eq!(options.kernel, [Flag::NoSuid], "of exec and noexec the later holds");
        assert_eq!(options.scrub, Some(SCRUB));
        assert_eq!(Options::parse("scrub=off").expect("known").scrub, None);
        assert_eq!(Options::parse("scrub=32M").expect("known").scrub, Some(32 << 20));
        assert!(!Options::parse("ro,rw").expect("known").ro);
    }

    #[test]
    fn what_is_not_known_is_named() {
        for bad in ["rwx", "uid=me", "cache=lots", "cache=10", "scrub=fast", "scrub=0", "ro=1", "gid"] {
            let said = Options::parse(bad).expect_err(bad).to_string();
            assert!(said.contains(bad) && said.contains("cache=SIZE"), "{said}");
        }
    }
}

//! What this program tells of itself through its node: its options, its mounts, its log; and the knobs that it has.

use crate::logging;
use crate::settings;
use base::Span;
use node::{Facts, Happened, Known, Sample};
use runtime::{Host, Setting};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The longest time that may be called quick.
const SLOW_MS_MAX: u64 = 600_000;

/// One mount, as it is told of.
pub(crate) struct MountSeen {
    /// `walkenfs` or `procfs`.
    pub kind: &'static str,
    /// The filesystem's name.
    pub fs: String,
    pub options: String,
    pub tally: Option<Arc<fuse::Tally>>,
    pub files: Option<Weak<vfs::Fs>>,
}

/// What the program around a node knows.
pub(crate) struct Around {
    config: Vec<(&'static str, Known)>,
    mounts: Mutex<BTreeMap<PathBuf, MountSeen>>,
}

impl Around {
    pub(crate) fn new(config: Vec<(&'static str, Known)>) -> Arc<Around> {
        Arc::new(Around { config, mounts: Mutex::default() })
    }

    fn mounts(&self) -> MutexGuard<'_, BTreeMap<PathBuf, MountSeen>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn mounted(&self, dir: &Path, seen: MountSeen) {
        self.mounts().insert(dir.into(), seen);
    }

    pub(crate) fn unmounted(&self, dir: &Path) {
        self.mounts().remove(dir);
    }
}

/// How files stand.
fn tell(files: &vfs::Standing, all: &mut Facts) {
    all.put("state", files.state.to_string());
    for (name, count) in [
        ("alone", files.alone),
        ("waiting", files.waiting),
        ("dirty_bytes", files.dirty_bytes),
        ("locked", files.locked),
    ] {
        all.put(name, count as u64);
    }
    all.put("scrubbed", files.scrubbed.clone());
}

impl Host for Around {
    fn facts(&self, all: &mut Facts) {
        all.put("pid", u64::from(std::process::id()));
        all.below(&["config"], |all| self.config.iter().for_each(|(name, value)| all.put(name, value.clone())));
        all.dir("mounts");
        for (dir, seen) in self.mounts().iter() {
            all.below(&["mounts", &dir.to_string_lossy()], |all| {
                all.put("kind", seen.kind);
                all.put("fs", seen.fs.as_str());
                all.put("options", seen.options.as_str());
                let calls = seen.tally.iter().flat_map(|tally| tally.all()).map(|(_, calls, _)| calls);
                all.put("calls", calls.sum::<u64>());
                if let Some(files) = seen.files.as_ref().and_then(Weak::upgrade) {
                    tell(&files.standing(), all);
                }
            });
        }
        all.below(&["sys"], |all| all.put("log", logging::filter()));
    }

    fn metrics(&self, all: &mut Vec<Sample>) {
        for (dir, seen) in self.mounts().iter() {
            let of = |name, value: f64, call: &str| {
                Sample::new(name, value).of("dir", dir.to_string_lossy()).of("fs", seen.fs.clone()).of("call", call)
            };
            for (call, calls, seconds) in seen.tally.iter().flat_map(|tally| tally.all()) {
                all.push(of("tombolo_fuse_calls_total", calls as f64, call));
                all.push(of("tombolo_fuse_seconds_total", seconds, call));
            }
        }
    }

    fn log(&self, after: u64, most: u32) -> Vec<Happened> {
        logging::since(after, most)
    }

    fn set(&self, knob: &str, value: &str) -> Result<Setting, String> {
        let text = |e: anyhow::Error| e.to_string();
        match knob {
            "log" => logging::set_filter(value).map(|()| Setting::Done),
            "memory_max" => settings::memory_max(value).map(Setting::MemoryMax).map_err(text),
            "disc_max" => settings::disc_max(value).map(Setting::DiscMax).map_err(text),
            "slow_ms" => match value.parse() {
                Ok(ms) if ms <= SLOW_MS_MAX => Ok(Setting::SlowAfter(Span::ms(ms))),
                _ => Err(format!("it is a number of milliseconds, at most {SLOW_MS_MAX}; 0: all requests are told of")),
            },
            _ => Err("there is no such knob; `ls sys` shows those there are".into()),
        }
    }
}

//! How much room there is.

use crate::fs::{Fs, Usage, lock};
use std::time::{Duration, Instant};

/// How long an answer is given again.
const KEPT: Duration = Duration::from_secs(5);

impl Fs {
    /// Room for files: what all nodes in view have free on their discs, and what the database takes there, divided by the number of
    /// copies. A node that does not answer within a second is left out. At most five seconds old.
    pub async fn usage(&self) -> Usage {
        if let Some((at, usage)) = *lock(&self.usage)
            && at.elapsed() < KEPT
        {
            return usage;
        }
        let usage = self.of_all().await.unwrap_or_else(|| self.of_this_node());
        *lock(&self.usage) = Some((Instant::now(), usage));
        usage
    }

    async fn of_all(&self) -> Option<Usage> {
        let (db, table) = (self.db.as_ref()?, self.meta.table()?);
        let said = db.metrics().await.ok()?;
        let sum = |name: &str| -> f64 {
            let samples = said.values().flat_map(|(_, samples)| samples);
            samples.filter(|sample| sample.name == name).map(|sample| sample.value).sum()
        };
        let copies = usize::from(table.now().options.copies).min(said.len()).max(1) as f64;
        let free = sum("tombolo_disc_free_bytes") / copies;
        let used = sum("tombolo_disc_used_bytes") / copies;
        (free > 0.0).then_some(Usage { total: (free + used) as u64, free: free as u64 })
    }

    fn of_this_node(&self) -> Usage {
        let stat = rustix::fs::statvfs(&self.data_dir);
        stat.map_or(Usage { total: 0, free: 0 }, |stat| Usage {
            total: stat.f_blocks * stat.f_frsize,
            free: stat.f_bavail * stat.f_frsize,
        })
    }
}

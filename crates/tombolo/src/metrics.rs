//! `tombolo metrics`: what is counted at all nodes in view, as Prometheus reads it.

use crate::commands::{ask, done};
use crate::control::{Ask, Told};
use anyhow::Result;
use std::path::Path;

/// Prints it.
pub(crate) async fn run(data: &Path) -> Result<u8> {
    match ask(data, Ask::Metrics).await? {
        Told::Metrics(all) => {
            print!("{}", procfs::exposition::text(&all));
            Ok(0)
        }
        other => done(other, None),
    }
}

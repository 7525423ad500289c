//! `tombolo fsck`: everything of a filesystem, looked at and mended.

use crate::commands::{FAILED, ask, done};
use crate::control::{Ask, Told};
use anyhow::Result;
use clap::Args;
use std::path::Path;

/// Which filesystem, and what to do with it.
#[derive(Args)]
pub(crate) struct Fsck {
    /// The filesystem's name; it may be mounted and in use.
    fs: String,
    /// Mend what can be mended. Nothing is thrown away: what has no place goes to /lost+found.
    #[arg(long)]
    repair: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn command(data: &Path, what: Fsck) -> Result<u8> {
    let checked = match ask(data, Ask::Fsck(what.fs.clone(), what.repair)).await? {
        Told::Checked(checked) => checked,
        other => return done(other, Some(&what.fs)),
    };
    if what.json {
        println!("{}", serde_json::to_string(&checked)?);
    } else {
        checked.found.iter().for_each(|line| println!("{line}"));
        println!("{}: {} inodes and {} bytes of files were looked at.", what.fs, checked.inodes, checked.bytes);
        match (checked.mended, checked.left.len()) {
            (0, 0) => println!("All is as it should be."),
            (mended, 0) => println!("{mended} things were mended; all is as it should be now."),
            (0, left) if !what.repair => {
                println!("{left} things are not as they should be; `--repair` mends what can be mended.")
            }
            (mended, left) => {
                println!("{mended} things were mended, and {left} could not be:");
                checked.left.iter().for_each(|line| println!("{line}"));
            }
        }
    }
    Ok(if checked.left.is_empty() { 0 } else { FAILED })
}

//! `cookie`: change a fleet's secret for another, one node at a time. A node takes what lies beside its secret: `cookie.next` and
//! `cookie.old` open its door, too, so that nodes before and after the change go on talking.

use crate::cli::CookieCommand;
use crate::commands::FAILED;
use crate::settings;
use anyhow::{Context, Result};
use runtime::Cookie;
use std::path::{Path, PathBuf};

/// The secret that comes next, and the one before.
pub(crate) fn beside(path: &Path) -> [PathBuf; 2] {
    ["next", "old"].map(|what| {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{what}"));
        path.with_file_name(name)
    })
}

/// Carries it out; the exit status.
pub(crate) fn run(data: &Path, config: Option<&Path>, command: CookieCommand) -> Result<u8> {
    let (CookieCommand::Show { up }
    | CookieCommand::Next { up, .. }
    | CookieCommand::Turn { up }
    | CookieCommand::Drop { up }) = &command;
    let (path, ..) = settings::places(data, config, (**up).clone())?;
    let [next, old] = beside(&path);
    match command {
        CookieCommand::Show { .. } => return show(&[("used", &path), ("next", &next), ("old", &old)]),
        CookieCommand::Next { from, .. } => {
            let wanted = from.map(|from| Cookie::load(&from)).transpose()?;
            if next.exists() {
                return refuse(&format!(
                    "{} is there already; `tombolo cookie turn` makes it the secret",
                    next.display()
                ));
            }
            match wanted {
                Some(wanted) => Cookie::keep(&next, &wanted.bytes)?,
                None => drop(Cookie::load_or_make(&next)?),
            }
            println!("{} opens the door of this machine's nodes, too, when they are started again.", next.display());
            println!(
                "Bring it to the other machines (`tombolo cookie next --from FILE`). When all nodes were started again: `tombolo cookie turn`."
            );
        }
        CookieCommand::Turn { .. } => {
            if !next.exists() {
                return refuse(&format!("there is no next secret: `tombolo cookie next` makes {}", next.display()));
            }
            Cookie::load(&next)?;
            if old.exists() {
                return refuse(&format!("{} is still there: `tombolo cookie drop` first", old.display()));
            }
            // At no moment is there no secret.
            std::fs::hard_link(&path, &old).with_context(|| format!("cannot keep {}", path.display()))?;
            std::fs::rename(&next, &path).with_context(|| format!("cannot rename {}", next.display()))?;
            println!(
                "{} is the new secret; the one before still opens the door. Start this machine's nodes again.",
                path.display()
            );
            println!("When that is done on every machine: `tombolo cookie drop`.");
        }
        CookieCommand::Drop { .. } => {
            if !old.exists() {
                return refuse(&format!("there is no {}; nothing was changed", old.display()));
            }
            std::fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
            println!("The secret before opens no door any more, when this machine's nodes were started again.");
        }
    }
    Ok(0)
}

fn refuse(why: &str) -> Result<u8> {
    eprintln!("tombolo: {why}");
    Ok(FAILED)
}

/// A mark of each secret, to compare machines by. It says nothing of a secret that was made by chance.
fn show(all: &[(&str, &PathBuf)]) -> Result<u8> {
    for (what, path) in all.iter().filter(|(what, path)| *what == "used" || path.exists()) {
        let cookie = Cookie::load(path)?;
        let mark = blake3::derive_key("tombolo 2026 mark of a cookie", &cookie.bytes);
        let mark: String = mark[..4].iter().map(|b| format!("{b:02x}")).collect();
        println!("{what:<5} {mark}  {}", path.display());
    }
    Ok(0)
}

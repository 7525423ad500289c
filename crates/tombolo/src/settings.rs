//! Settings: defaults, then the TOML file, then the environment, then flags (the last two are clap's).

use crate::cli::Up;
use anyhow::{Context, Result, bail};
use runtime::Settings;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    group: Option<String>,
    cookie_file: Option<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    #[serde(default)]
    join: Vec<SocketAddr>,
    multicast: Option<bool>,
    zone: Option<String>,
}

/// The user's data directory.
pub(crate) fn data_dir(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir);
    }
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(dir).join("tombolo"));
    }
    let home = std::env::var_os("HOME").context("there is no HOME; say where the data shall lie with --data DIR")?;
    Ok(PathBuf::from(home).join(".local/share/tombolo"))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "node".into() } else { name.trim().into() }
}

/// What a fresh cookie means to its user.
pub(crate) struct NewCookie(pub PathBuf);

/// Puts together what a node is started with.
pub(crate) fn load(data: PathBuf, config: Option<&Path>, up: Up) -> Result<(Settings, Option<NewCookie>)> {
    let file = match config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the config file {}", path.display()))?;
            toml::from_str(&text).with_context(|| format!("in the config file {}", path.display()))?
        }
        None => File::default(),
    };
    let cookie_path = up.cookie_file.or(file.cookie_file).unwrap_or_else(runtime::default_cookie_path);
    let cookie = runtime::Cookie::load_or_make(&cookie_path)?;
    let name = up.name.or(file.name).unwrap_or_else(|| match data.file_name() {
        // Several nodes of one host are told apart by the names of their directories.
        Some(dir) if dir != "tombolo" => format!("{}-{}", host_name(), dir.to_string_lossy()),
        _ => host_name(),
    });
    let group = up.group.or(file.group).unwrap_or_else(|| "default".into());
    for (what, text) in [("name", &name), ("group", &group)] {
        if text.is_empty() || text.len() > base::NAME_BYTES_MAX || text.chars().any(char::is_control) {
            bail!("the {what} {text:?} must have 1 to {} printable bytes", base::NAME_BYTES_MAX);
        }
    }
    let settings = Settings {
        data,
        name,
        group,
        cookie: cookie.bytes,
        listen: up.listen.or(file.listen),
        advertise: up.advertise.or(file.advertise),
        join: if up.join.is_empty() { file.join } else { up.join },
        multicast: !up.no_multicast && file.multicast.unwrap_or(true),
        zone: up.zone.or(file.zone),
        discover_delay: Duration::from_secs(3),
    };
    Ok((settings, cookie.fresh.then_some(NewCookie(cookie_path))))
}

//! Settings: defaults, then the TOML file, then the environment, then flags (the last two are clap's).

use crate::cli::Up;
use anyhow::{Context, Result, bail};
use base::Span;
use clap::ArgMatches;
use clap::parser::ValueSource;
use membership::Patience;
use providers::{Provider, Source};
use runtime::{Ceilings, Settings};
use serde::Deserialize;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The least that a node's memory may be held to: it takes some itself.
const MEMORY_MAX_MIN: u64 = 64 << 20;
/// The least that its data may be held to: the journal alone may take 128 MiB.
const DISC_MAX_MIN: u64 = 512 << 20;
/// The least that a timeout may be.
const TIMEOUT_MIN_MS: u64 = 30_000;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    group: Option<String>,
    cookie_file: Option<PathBuf>,
    #[serde(default)]
    accept_cookie_file: Vec<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    #[serde(default)]
    join: Vec<SocketAddr>,
    #[serde(default)]
    find: Vec<String>,
    #[serde(default)]
    truth: Vec<String>,
    multicast: Option<bool>,
    zone: Option<String>,
    weight: Option<u16>,
    threads: Option<NonZeroUsize>,
    memory_max: Option<String>,
    disc_max: Option<String>,
    node_timeout: Option<String>,
    stopped_timeout: Option<String>,
    replace_after: Option<String>,
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

/// The options of a node, whatever they came from.
struct Resolved {
    name: String,
    group: String,
    cookie_file: PathBuf,
    accept: Vec<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    join: Vec<SocketAddr>,
    providers: Vec<Provider>,
    multicast: bool,
    zone: Option<String>,
    weight: Option<u16>,
    threads: Option<NonZeroUsize>,
    ceilings: Ceilings,
    patience: Patience,
}

fn read(config: Option<&Path>) -> Result<File> {
    let Some(path) = config else { return Ok(File::default()) };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the config file {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in the config file {}", path.display()))
}

/// What flags and environment say, or else the file.
fn chosen<T>(given: Vec<T>, file: Vec<T>) -> Vec<T> {
    if given.is_empty() { file } else { given }
}

fn providers(find: &[String], truth: &[String]) -> Result<Vec<Provider>> {
    let named = find.iter().map(|text| (text, false)).chain(truth.iter().map(|text| (text, true)));
    let read = |(text, authoritative): (&String, bool)| {
        let source: Source = text.parse()?;
        if authoritative && !source.knows_who_is_gone() {
            bail!("{text} does not tell who is gone from who should be there; use it with --find")
        }
        Ok(Provider { source, authoritative })
    };
    named.map(read).collect()
}

fn patience(node: Option<String>, stopped: Option<String>, replace: Option<String>) -> Result<Patience> {
    let mut patience = Patience::default();
    let span = |what: &str, text: &str| {
        let ms = crate::text::duration_ms(text).map_err(|e| anyhow::anyhow!("{what}: {e}"))?;
        // Less than this and a restart is taken for a death.
        if ms < TIMEOUT_MIN_MS {
            bail!("{what} must be at least {} s", TIMEOUT_MIN_MS / 1000)
        }
        Ok(Span::ms(ms))
    };
    let or_never = |what: &str, text: String| if text == "never" { Ok(None) } else { span(what, &text).map(Some) };
    if let Some(text) = node {
        patience.node = or_never("node_timeout", text)?;
    }
    if let Some(text) = stopped {
        patience.stopped = or_never("stopped_timeout", text)?;
    }
    if let Some(text) = replace {
        patience.replace = span("replace_after", &text)?;
    }
    Ok(patience)
}

fn weight(weight: Option<u16>) -> Result<Option<u16>> {
    if let Some(weight) = weight.filter(|weight| *weight > 1000) {
        bail!("weight {weight} is too much: 0 to 1000, and 100 is usual");
    }
    Ok(weight)
}

fn ceilings(memory: Option<String>, disc: Option<String>) -> Result<Ceilings> {
    let size = |what: &str, text: &str, least: u64| {
        let bytes = crate::text::size_bytes(text).map_err(|e| anyhow::anyhow!("{what}: {e}"))?;
        if bytes < least {
            bail!("{what} {text:?} is too little: at least {} MiB, or none", least >> 20)
        }
        Ok(bytes)
    };
    let read = |what: &str, text: Option<String>, least: u64, usual: Option<u64>| match text.as_deref() {
        None => Ok(usual),
        Some("none") => Ok(None),
        Some(text) => size(what, text, least).map(Some),
    };
    // The rest is for what the allocator cannot use, and for others.
    let most = runtime::available_memory().map(|bytes| (bytes / 4 * 3).max(MEMORY_MAX_MIN));
    Ok(Ceilings {
        memory: read("memory_max", memory, MEMORY_MAX_MIN, most)?,
        disc: read("disc_max", disc, DISC_MAX_MIN, None)?,
        used: crate::alloc::in_use,
    })
}

fn size_text(bytes: Option<u64>) -> String {
    bytes.map_or("none".into(), |bytes| bytes.to_string())
}

/// The options as durations that can be read back.
fn duration_text(span: Option<Span>) -> String {
    span.map_or("never".into(), |span| format!("{}s", span.as_ms() / 1000))
}

fn resolve(data: &Path, file: File, up: Up) -> Result<Resolved> {
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
    Ok(Resolved {
        name,
        group,
        cookie_file: up.cookie_file.or(file.cookie_file).unwrap_or_else(runtime::default_cookie_path),
        accept: chosen(up.accept_cookie_file, file.accept_cookie_file),
        listen: up.listen.or(file.listen),
        advertise: up.advertise.or(file.advertise),
        join: chosen(up.join, file.join),
        providers: providers(&chosen(up.find, file.find), &chosen(up.truth, file.truth))?,
        multicast: !up.no_multicast && file.multicast.unwrap_or(true),
        zone: up.zone.or(file.zone),
        weight: weight(up.weight.or(file.weight))?,
        threads: up.threads.or(file.threads),
        ceilings: ceilings(up.memory_max.or(file.memory_max), up.disc_max.or(file.disc_max))?,
        patience: patience(
            up.node_timeout.or(file.node_timeout),
            up.stopped_timeout.or(file.stopped_timeout),
            up.replace_after.or(file.replace_after),
        )?,
    })
}

/// Where the secret lies, or would be made, and where the node would listen.
pub(crate) fn places(data: &Path, config: Option<&Path>, up: Up) -> Result<(PathBuf, Option<SocketAddr>, bool)> {
    let resolved = resolve(data, read(config)?, up)?;
    Ok((resolved.cookie_file, resolved.listen, resolved.multicast))
}

/// Puts together what a node is started with.
pub(crate) fn load(data: PathBuf, config: Option<&Path>, up: Up) -> Result<(Settings, Option<NewCookie>)> {
    let resolved = resolve(&data, read(config)?, up)?;
    let kept = crate::cookie::beside(&resolved.cookie_file).into_iter().find(|path| path.exists());
    if let Some(kept) = kept.filter(|_| !resolved.cookie_file.exists()) {
        // A new one would be another cluster's.
        bail!("there is no {}, but {}: put the cluster's secret there", resolved.cookie_file.display(), kept.display());
    }
    let cookie = runtime::Cookie::load_or_make(&resolved.cookie_file)?;
    let beside = crate::cookie::beside(&resolved.cookie_file).into_iter().filter(|path| path.exists());
    let accept = resolved.accept.iter().cloned().chain(beside).map(|path| Ok(runtime::Cookie::load(&path)?.bytes));
    let accept = accept.collect::<Result<Vec<_>>>()?;
    let settings = Settings {
        data,
        name: resolved.name,
        group: resolved.group,
        cookie: cookie.bytes,
        accept,
        listen: resolved.listen,
        advertise: resolved.advertise,
        join: resolved.join,
        providers: resolved.providers,
        multicast: resolved.multicast,
        zone: resolved.zone,
        weight: resolved.weight,
        functions: Default::default(),
        threads: resolved.threads.map(NonZeroUsize::get),
        ceilings: resolved.ceilings,
        discover_delay: Duration::from_secs(3),
        patience: resolved.patience,
    };
    Ok((settings, cookie.fresh.then_some(NewCookie(resolved.cookie_file))))
}

/// Prints the options as a config file that says the same, with where each comes from.
pub(crate) fn print(data: &Path, config: Option<&Path>, up: Up, sources: &ArgMatches) -> Result<u8> {
    let file = read(config)?;
    let sources = sources.subcommand_matches("config");
    let named = [
        ("name", file.name.is_some()),
        ("group", file.group.is_some()),
        ("cookie_file", file.cookie_file.is_some()),
        ("accept_cookie_file", !file.accept_cookie_file.is_empty()),
        ("listen", file.listen.is_some()),
        ("advertise", file.advertise.is_some()),
        ("join", !file.join.is_empty()),
        ("find", !file.find.is_empty()),
        ("truth", !file.truth.is_empty()),
        ("multicast", file.multicast.is_some()),
        ("zone", file.zone.is_some()),
        ("weight", file.weight.is_some()),
        ("threads", file.threads.is_some()),
        ("memory_max", file.memory_max.is_some()),
        ("disc_max", file.disc_max.is_some()),
        ("node_timeout", file.node_timeout.is_some()),
        ("stopped_timeout", file.stopped_timeout.is_some()),
        ("replace_after", file.replace_after.is_some()),
    ];
    let resolved = resolve(data, file, up)?;
    let values = [
        Some(toml_text(&resolved.name)),
        Some(toml_text(&resolved.group)),
        Some(toml_text(&resolved.cookie_file.to_string_lossy())),
        Some(array(resolved.accept.iter().map(|p| p.to_string_lossy().into_owned()))),
        resolved.listen.map(|addr| toml_text(&addr.to_string())),
        resolved.advertise.map(|addr| toml_text(&addr.to_string())),
        Some(array(resolved.join.iter().map(ToString::to_string))),
        Some(array(sources_of(&resolved.providers, false))),
        Some(array(sources_of(&resolved.providers, true))),
        Some(resolved.multicast.to_string()),
        resolved.zone.as_deref().map(toml_text),
        resolved.weight.map(|n| n.to_string()),
        resolved.threads.map(|n| n.to_string()),
        Some(toml_text(&size_text(resolved.ceilings.memory))),
        Some(toml_text(&size_text(resolved.ceilings.disc))),
        Some(toml_text(&duration_text(resolved.patience.node))),
        Some(toml_text(&duration_text(resolved.patience.stopped))),
        Some(toml_text(&duration_text(Some(resolved.patience.replace)))),
    ];
    println!("# The data directory is {}", data.display());
    for ((name, in_file), value) in named.into_iter().zip(values) {
        let id = if name == "multicast" { "no_multicast" } else { name };
        let given = sources.and_then(|s| s.value_source(id));
        let from = match given {
            Some(ValueSource::CommandLine) => "the command line",
            Some(ValueSource::EnvVariable) => "the environment",
            _ if in_file => "the config file",
            _ => "default",
        };
        match value {
            Some(value) => println!("{name} = {value}  # {from}"),
            None => println!("# {name} is not set"),
        }
    }
    Ok(0)
}

fn sources_of(all: &[Provider], authoritative: bool) -> impl Iterator<Item = String> + '_ {
    all.iter().filter(move |p| p.authoritative == authoritative).map(|p| p.source.to_string())
}

fn array(items: impl Iterator<Item = String>) -> String {
    toml::Value::Array(items.map(toml::Value::String).collect()).to_string()
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(file) = toml::from_str(&String::from_utf8_lossy(bytes)) {
        let _ = resolve(Path::new("/d"), file, Up::default());
    }
}

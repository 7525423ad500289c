//! Settings: defaults, then the TOML file, then the environment, then flags (the last two are clap's).

use crate::around::Around;
use crate::cli::Up;
use anyhow::{Context, Result, bail};
use base::Span;
use clap::ArgMatches;
use clap::parser::ValueSource;
use membership::Patience;
use node::Known;
use providers::{Provider, Source};
use runtime::{Ceilings, Settings};
use serde::Deserialize;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    http: Option<SocketAddr>,
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
    http: Option<SocketAddr>,
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

fn ceiling(what: &str, text: &str, least: u64) -> Result<Option<u64>> {
    if text == "none" {
        return Ok(None);
    }
    let bytes = crate::text::size_bytes(text).map_err(|e| anyhow::anyhow!("{what}: {e}"))?;
    if bytes < least {
        bail!("{what} {text:?} is too little: at least {} MiB, or none", least >> 20)
    }
    Ok(Some(bytes))
}

/// What a node's memory may be held to: a size, or `none`.
pub(crate) fn memory_max(text: &str) -> Result<Option<u64>> {
    ceiling("memory_max", text, MEMORY_MAX_MIN)
}

/// What its data may be held to, said alike.
pub(crate) fn disc_max(text: &str) -> Result<Option<u64>> {
    ceiling("disc_max", text, DISC_MAX_MIN)
}

fn ceilings(memory: Option<String>, disc: Option<String>) -> Result<Ceilings> {
    // The rest is for what the allocator cannot use, and for others.
    let usual = || runtime::available_memory().map(|bytes| (bytes / 4 * 3).max(MEMORY_MAX_MIN));
    Ok(Ceilings {
        memory: memory.map_or_else(|| Ok(usual()), |text| memory_max(&text))?,
        disc: disc.map_or(Ok(None), |text| disc_max(&text))?,
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
        http: up.http.or(file.http),
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

/// What a node is started with, and what this program is.
pub(crate) struct Loaded {
    pub settings: Settings,
    /// There was no secret: one was made.
    pub fresh: Option<NewCookie>,
    pub around: Arc<Around>,
    pub http: Option<SocketAddr>,
}

/// Puts together what a node is started with.
pub(crate) fn load(data: PathBuf, config: Option<&Path>, up: Up) -> Result<Loaded> {
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
    let told = listed(&resolved).into_iter().map(|(name, value)| (name, known(value)));
    let around = Around::new([("data", data.to_string_lossy().as_ref().into())].into_iter().chain(told).collect());
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
        host: around.clone(),
        discover_delay: Duration::from_secs(3),
        patience: resolved.patience,
    };
    let fresh = cookie.fresh.then_some(NewCookie(resolved.cookie_file));
    Ok(Loaded { settings, fresh, around, http: resolved.http })
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
        ("http", file.http.is_some()),
        ("node_timeout", file.node_timeout.is_some()),
        ("stopped_timeout", file.stopped_timeout.is_some()),
        ("replace_after", file.replace_after.is_some()),
    ];
    let values = listed(&resolve(data, file, up)?);
    println!("# The data directory is {}", data.display());
    for (name, value) in values {
        let in_file = named.iter().any(|(of, given)| *of == name && *given);
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

/// The options by name, as they came to be; `None`: not set.
fn listed(resolved: &Resolved) -> Vec<(&'static str, Option<toml::Value>)> {
    let text = |text: &str| Some(toml::Value::String(text.into()));
    let number = |n: Option<usize>| n.map(|n| toml::Value::Integer(n as i64));
    let array = |all: Vec<String>| Some(toml::Value::Array(all.into_iter().map(toml::Value::String).collect()));
    let addr = |addr: Option<SocketAddr>| addr.map(|addr| toml::Value::String(addr.to_string()));
    vec![
        ("name", text(&resolved.name)),
        ("group", text(&resolved.group)),
        ("cookie_file", text(&resolved.cookie_file.to_string_lossy())),
        ("accept_cookie_file", array(resolved.accept.iter().map(|p| p.to_string_lossy().into_owned()).collect())),
        ("listen", addr(resolved.listen)),
        ("advertise", addr(resolved.advertise)),
        ("join", array(resolved.join.iter().map(ToString::to_string).collect())),
        ("find", array(sources_of(&resolved.providers, false).collect())),
        ("truth", array(sources_of(&resolved.providers, true).collect())),
        ("multicast", Some(toml::Value::Boolean(resolved.multicast))),
        ("zone", resolved.zone.as_deref().and_then(text)),
        ("weight", number(resolved.weight.map(usize::from))),
        ("threads", number(resolved.threads.map(NonZeroUsize::get))),
        ("memory_max", text(&size_text(resolved.ceilings.memory))),
        ("disc_max", text(&size_text(resolved.ceilings.disc))),
        ("http", addr(resolved.http)),
        ("node_timeout", text(&duration_text(resolved.patience.node))),
        ("stopped_timeout", text(&duration_text(resolved.patience.stopped))),
        ("replace_after", text(&duration_text(Some(resolved.patience.replace)))),
    ]
}

/// The same, as it is told of.
fn known(value: Option<toml::Value>) -> Known {
    match value {
        None => Known::Nothing,
        Some(toml::Value::Boolean(flag)) => flag.into(),
        Some(toml::Value::Integer(n)) => (n.max(0) as u64).into(),
        Some(toml::Value::Array(all)) => {
            Known::List(all.iter().filter_map(|item| item.as_str()).map(String::from).collect())
        }
        Some(other) => other.as_str().unwrap_or_default().into(),
    }
}

fn sources_of(all: &[Provider], authoritative: bool) -> impl Iterator<Item = String> + '_ {
    all.iter().filter(move |p| p.authoritative == authoritative).map(|p| p.source.to_string())
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(file) = toml::from_str(&String::from_utf8_lossy(bytes)) {
        let _ = resolve(Path::new("/d"), file, Up::default());
    }
}

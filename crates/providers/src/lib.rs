//! Those who know which machines there are: DNS, a file, a command, EC2, a bucket. Each is asked again and again on a thread of
//! its own, so that one that hangs or fails keeps nobody waiting.

mod bucket;
mod cloud;
mod dns;
mod ec2;
mod exec;
mod list;

pub use ec2::Instances;

use base::NodeId;
use membership::Place;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use url::Url;

/// How often a provider that answers is asked.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// The first pause after a failure; it doubles.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const FAILED_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether a file has changed, and whether anybody still listens.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So long a node that stops waits until lists do not name it any more.
const END_WAIT: Duration = Duration::from_secs(3);
/// An answer may take so long.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// And have so many bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Where a list of nodes comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The addresses of a name, or, if it begins with `_`, its SRV records. From the system's resolvers, or from this server.
    Dns(String, Option<SocketAddr>),
    /// A file with a node a line. It may change.
    File(PathBuf),
    /// What a command prints, a node a line. `sh` runs it.
    Exec(String),
    /// EC2's instances.
    Ec2(Instances),
    /// One object for each node in a bucket, by the bucket's URL.
    Bucket(Url),
    /// On EC2 the instances of this one's security groups, elsewhere nothing.
    Auto,
}

/// Who asks: some lists are made by those who are on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Me {
    /// Its id.
    pub node: NodeId,
    /// Where others reach it.
    pub addr: SocketAddr,
}

/// One of those who know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Provider {
    /// Where its list comes from.
    pub source: Source,
    /// It names every node that there should be: whoever it leaves out is gone.
    pub authoritative: bool,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// What was written is no source.
    #[error(
        "{0:?} is no list of nodes: write dns:NAME, dns:NAME@SERVER:PORT, file:PATH, exec:COMMAND, ec2:tag=NAME=VALUE, ec2:group=NAME, s3:BUCKET/PREFIX (or s3:gs://..., s3:az://...), or auto"
    )]
    Source(String),
    /// A line of the list.
    #[error("line {line}: {text:?} is no node: write IP, IP:PORT, HOST or HOST:PORT")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// A line's host is not to be found.
    #[error("line {line}: the host {host} is not known")]
    Host {
        /// Which, from 1.
        line: usize,
        /// Its host.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// The list is too long to be one.
    #[error("the list has more than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// A file.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A command that cannot be run.
    #[error("cannot run the command")]
    Run(#[source] std::io::Error),
    /// A command that failed.
    #[error("the command failed ({status}): {said}")]
    Command {
        /// How it ended.
        status: String,
        /// The beginning of what it said.
        said: String,
    },
    /// A cloud's service.
    #[error("{0}")]
    Cloud(String),
    /// No credentials for it.
    #[error(
        "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the instance a role ({0})"
    )]
    Credentials(String),
    /// Nobody says which region.
    #[error("the region is not known: write region=NAME, or set AWS_REGION")]
    Region,
    /// A thread of its own could not be prepared.
    #[error("cannot wait for an answer")]
    Thread(#[source] std::io::Error),
    /// No answer.
    #[error("no answer within {} s", ANSWER_WAIT.as_secs())]
    Late,
    /// DNS.
    #[error("DNS says of {name}: {why}")]
    Dns {
        /// The name.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl FromStr for Source {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Source, ProviderError> {
        let wrong = || ProviderError::Source(text.into());
        if text == "auto" {
            return Ok(Source::Auto);
        }
        let (kind, what) = text.split_once(':').filter(|(_, what)| !what.is_empty()).ok_or_else(wrong)?;
        match kind {
            "dns" => match what.split_once('@') {
                Some((name, server)) if !name.is_empty() => {
                    Ok(Source::Dns(name.into(), Some(server.parse().map_err(|_| wrong())?)))
                }
                Some(_) => Err(wrong()),
                None => Ok(Source::Dns(what.into(), None)),
            },
            "file" => Ok(Source::File(what.into())),
            "exec" => Ok(Source::Exec(what.into())),
            "ec2" => Instances::read(what).map(Source::Ec2).ok_or_else(wrong),
            "s3" => bucket::read(what).map(Source::Bucket).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Dns(name, Some(server)) => write!(f, "dns:{name}@{server}"),
            Source::Dns(name, None) => write!(f, "dns:{name}"),
            Source::File(path) => write!(f, "file:{}", path.display()),
            Source::Exec(command) => write!(f, "exec:{command}"),
            Source::Ec2(which) => write!(f, "ec2:{which}"),
            Source::Bucket(url) => write!(f, "s3:{url}"),
            Source::Auto => f.write_str("auto"),
        }
    }
}

impl Source {
    /// Asks once. Takes as long as it takes, at most some ten seconds. `write`: say anew where this node is, where it is for
    /// nodes to say so.
    pub fn ask(&self, me: &Me, write: bool) -> Result<Vec<Place>, ProviderError> {
        match self {
            Source::Dns(name, server) => dns::ask(name, *server),
            Source::File(path) => list::parse(&list::read(path)?),
            Source::Exec(command) => list::parse(&exec::run(command)?),
            Source::Ec2(which) => ec2::ask(which),
            Source::Bucket(url) => bucket::ask(url, me, write),
            Source::Auto => ec2::ask_here(),
        }
    }

    /// This node stops: where it said that it is there, it is not any more.
    pub fn withdraw(&self, me: &Me) -> Result<(), ProviderError> {
        if let Source::Bucket(url) = self { bucket::withdraw(url, me) } else { Ok(()) }
    }

    /// Changes when what it lists may have changed.
    fn stamp(&self) -> Option<(std::time::SystemTime, u64)> {
        let Source::File(path) = self else { return None };
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// A thread that asks.
pub struct Asking {
    withdraws: bool,
    ended: mpsc::Receiver<()>,
}

impl Asking {
    /// Nobody listens any more: waits, but not for long, until it has taken back what it had said of this node, if it had.
    pub fn end(&self) {
        if self.withdraws {
            let _ = self.ended.recv_timeout(END_WAIT);
        }
    }
}

/// Asks again and again, on a thread of its own, and tells each answer, until telling says that nobody listens.
pub fn start(
    source: Source,
    me: Me,
    mut tell: impl FnMut(Result<Vec<Place>, String>) -> bool + Send + 'static,
    mut listens: impl FnMut() -> bool + Send + 'static,
) -> std::io::Result<Asking> {
    let withdraws = matches!(source, Source::Bucket(_));
    let (alive, ended) = mpsc::channel::<()>();
    let run = move || {
        ask_on(&source, me, &mut tell, &mut listens);
        let _ = source.withdraw(&me);
        drop(alive);
    };
    std::thread::Builder::new().name("provider".into()).spawn(run)?;
    Ok(Asking { withdraws, ended })
}

fn ask_on(
    source: &Source,
    me: Me,
    tell: &mut dyn FnMut(Result<Vec<Place>, String>) -> bool,
    listens: &mut dyn FnMut() -> bool,
) {
    let (mut pause, mut written) = (FAILED_PAUSE, None::<Instant>);
    loop {
        let stamp = source.stamp();
        let write = written.is_none_or(|at| at.elapsed() >= bucket::WRITE_EVERY);
        let answer = source.ask(&me, write).map_err(|e| chain(&e));
        written = written.filter(|_| !write).or(answer.is_ok().then(Instant::now));
        let wait = if answer.is_ok() { ASK_EVERY } else { pause };
        pause = if answer.is_ok() { FAILED_PAUSE } else { (pause * 2).min(FAILED_PAUSE_MAX) };
        if !tell(answer) {
            return;
        }
        let until = Instant::now() + wait;
        while Instant::now() < until && source.stamp() == stamp {
            std::thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
            if !listens() {
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written() {
        for text in [
            "dns:a.example",
            "dns:_tombolo._tcp.example@127.0.0.1:53",
            "file:/etc/nodes",
            "exec:cat a | sort",
            "ec2:tag=role=db,group=sg-1,region=eu-west-1,port=7000",
            "s3:gs://nodes/ours",
            "auto",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for text in ["", "dns", "dns:", "dns:@127.0.0.1:53", "dns:a@here", "ftp:x", "/etc/nodes", "ec2:x", "s3:"] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains("is no list of nodes"), "{error}");
        }
    }

    #[test]
    fn a_file_is_told_again_when_it_changes_and_failures_are_told_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        let (send, told) = std::sync::mpsc::channel();
        let me = Me { node: NodeId(1), addr: ([10, 0, 0, 9], 1).into() };
        start(Source::File(path.clone()), me, move |answer| send.send(answer).is_ok(), || true).unwrap();
        let next = || told.recv_timeout(Duration::from_secs(30)).unwrap();
        let missing = next().unwrap_err();
        assert!(missing.contains("cannot read") && missing.contains("No such file"), "{missing}");
        std::fs::write(&path, "10.0.0.1\n").unwrap();
        let mut places = next();
        while places.is_err() {
            places = next();
        }
        assert_eq!(places.unwrap().len(), 1);
        std::fs::write(&path, "10.0.0.1\n10.0.0.2:80\n").unwrap();
        assert_eq!(next().unwrap().len(), 2);
        std::fs::write(&path, "10.0.0.1\nnot a node\n").unwrap();
        assert!(next().unwrap_err().contains("line 2"));
    }
}

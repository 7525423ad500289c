use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Shared tables and shared files on machines that find each other.
///
/// Start it on each machine with the same secret; they form one database, serve on both sides of any network cut, and join
/// again by themselves.
#[derive(Parser)]
#[command(
    name = "tombolo",
    version,
    after_help = "Exit status: 0 done, 1 not found or check failed, 2 usage, 3 unavailable, 4 anything else, 5 outcome unknown.\nLimits: key 1 KiB, value 1 MiB, batch 4 MiB, frame 8 MiB."
)]
pub(crate) struct Cli {
    /// The data directory of the node to run or to talk to [default: ~/.local/share/tombolo].
    #[arg(long, global = true, env = "TOMBOLO_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// A TOML file with the options of `up`, named alike: name, group, cookie_file, listen, advertise, join, multicast, zone.
    #[arg(long, global = true, env = "TOMBOLO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say more; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

/// How a node is started.
#[derive(Args, Clone, Default)]
pub(crate) struct Up {
    /// The node's name [default: the host's name].
    #[arg(long, env = "TOMBOLO_NAME")]
    pub name: Option<String>,
    /// The cluster's name; nodes of other groups are ignored [default: default].
    #[arg(long, env = "TOMBOLO_GROUP")]
    pub group: Option<String>,
    /// The file that holds the shared secret; made on first start [default: ~/.config/tombolo/cookie, for root /etc/tombolo/cookie].
    #[arg(long, env = "TOMBOLO_COOKIE_FILE", value_name = "FILE")]
    pub cookie_file: Option<PathBuf>,
    /// Where to listen, TCP and UDP [default: 0.0.0.0:7474, or the next free port].
    #[arg(long, env = "TOMBOLO_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where others reach this node, if that differs.
    #[arg(long, env = "TOMBOLO_ADVERTISE", value_name = "IP:PORT")]
    pub advertise: Option<SocketAddr>,
    /// A node to look for, again and again; may be given several times.
    #[arg(long, env = "TOMBOLO_JOIN", value_name = "IP:PORT", value_delimiter = ',')]
    pub join: Vec<SocketAddr>,
    /// Neither call out nor listen by multicast.
    #[arg(long, env = "TOMBOLO_NO_MULTICAST")]
    pub no_multicast: bool,
    /// What this machine shares the fate of: a rack, a site.
    #[arg(long, env = "TOMBOLO_ZONE")]
    pub zone: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a node in the foreground, until SIGTERM or SIGINT.
    Up(Up),
    /// Mount a shared filesystem, and become a node if none runs here.
    Mount(Mount),
    /// Unmount.
    Umount {
        /// Where it is mounted.
        dir: PathBuf,
    },
    /// Shared filesystems.
    #[command(subcommand)]
    Fs(FsCommand),
    /// How things stand.
    Status {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Tables.
    #[command(subcommand)]
    Table(TableCommand),
    /// Put a value under a key.
    Put {
        table: String,
        key: OsString,
        /// The value; `-`: read from standard input.
        value: OsString,
        /// Only if there is none.
        #[arg(long, conflicts_with = "if_version")]
        if_absent: bool,
        /// Only if the present value has this version, as `get --version` prints it.
        #[arg(long, value_name = "V")]
        if_version: Option<String>,
        /// For so long: 500ms, 30s, 10m, 2h, 7d.
        #[arg(long, value_name = "D")]
        ttl: Option<String>,
    },
    /// Print the value under a key, nothing added.
    Get {
        table: String,
        key: OsString,
        /// Print its version instead.
        #[arg(long)]
        version: bool,
    },
    /// Delete a key.
    Del { table: String, key: OsString },
    /// Print keys and values in key order: key, tab, value, with \t \n \\ \xNN for what would not print.
    Scan {
        table: String,
        /// Only keys that begin so.
        #[arg(long, default_value = "")]
        prefix: OsString,
        /// At most so many.
        #[arg(long)]
        limit: Option<u64>,
        /// As a JSON array; keys and values in base64.
        #[arg(long)]
        json: bool,
    },
    /// Stop the node of --data cleanly.
    Stop,
}

#[derive(Args)]
pub(crate) struct Mount {
    /// The filesystem's name; it is made on first use.
    pub fs: String,
    /// The directory to mount on; made if it is not there.
    pub dir: PathBuf,
    /// Options: ro, rw, allow_other.
    #[arg(short, value_name = "OPTS", default_value = "")]
    pub options: String,
    /// Copies of every record when the filesystem is made; fewer nodes: as many as there are, the rest when they come.
    #[arg(long, default_value_t = 3)]
    pub copies: u16,
    /// Return when it is mounted.
    #[arg(long)]
    pub background: bool,
    #[command(flatten)]
    pub up: Up,
}

#[derive(Subcommand)]
pub(crate) enum FsCommand {
    /// The names of all filesystems.
    List,
    /// One filesystem.
    Info { fs: String },
    /// Remove a filesystem and all files in it.
    Drop { fs: String },
}

#[derive(Subcommand)]
pub(crate) enum TableCommand {
    /// Make a table.
    Create {
        name: String,
        /// How many nodes hold each record.
        #[arg(long, default_value_t = 3)]
        copies: u16,
        /// Into how many slices it is cut.
        #[arg(long, default_value_t = 8)]
        fragments: u16,
        /// disc (in RAM and on disc) or ram.
        #[arg(long, default_value = "disc")]
        storage: String,
        /// interval (on disc within 100 ms) or sync (before it is acknowledged).
        #[arg(long, default_value = "interval")]
        durability: String,
        /// latest, or max (big-endian 64-bit fields, each the greater).
        #[arg(long, default_value = "latest")]
        on_conflict: String,
    },
    /// All tables.
    List,
}

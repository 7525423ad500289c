use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
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
    /// A TOML file with the options of `up`, named alike: name, group, cookie_file, accept_cookie_file, listen, advertise, join, find, truth, multicast, zone, weight, threads, memory_max, disc_max, http, node_timeout, stopped_timeout, replace_after.
    #[arg(long, global = true, env = "TOMBOLO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say more; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How log lines look on standard error; which there are, TOMBOLO_LOG says (`debug`, `warn,transport=trace`).
    #[arg(long, global = true, env = "TOMBOLO_LOG_FORMAT", value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Default, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
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
    /// Another secret that is taken from others, while a fleet changes from one to the other; may be given several times.
    #[arg(long, env = "TOMBOLO_ACCEPT_COOKIE_FILE", value_name = "FILE", value_delimiter = ',')]
    pub accept_cookie_file: Vec<PathBuf>,
    /// Where to listen, TCP and UDP [default: all addresses, port 7474 or the next free one].
    #[arg(long, env = "TOMBOLO_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where others reach this node, if that differs.
    #[arg(long, env = "TOMBOLO_ADVERTISE", value_name = "IP:PORT")]
    pub advertise: Option<SocketAddr>,
    /// A node to look for, again and again; may be given several times.
    #[arg(long, env = "TOMBOLO_JOIN", value_name = "IP:PORT", value_delimiter = ',')]
    pub join: Vec<SocketAddr>,
    /// A list of nodes to look for, read again and again: dns:NAME (addresses, or SRV records if it begins with `_`),
    /// dns:NAME@SERVER:PORT, file:PATH (IP, IP:PORT, HOST or HOST:PORT a line), exec:COMMAND (the same, printed),
    /// ec2:tag=NAME=VALUE or ec2:group=NAME (and region=, endpoint=, port=, with commas between), s3:BUCKET/PREFIX
    /// (s3:gs://... and s3:az://... too; each node keeps one small object there), or auto (on EC2 the instances of
    /// this one's security groups); may be given several times.
    #[arg(long, env = "TOMBOLO_FIND", value_name = "KIND:WHAT")]
    pub find: Vec<String>,
    /// The same, and the list names every node that there should be: whoever it leaves out for half a minute, and who is out of reach,
    /// is given up at once, and nobody who is on it ever is.
    #[arg(long, env = "TOMBOLO_TRUTH", value_name = "KIND:WHAT")]
    pub truth: Vec<String>,
    /// Neither call out nor listen by multicast.
    #[arg(long, env = "TOMBOLO_NO_MULTICAST")]
    pub no_multicast: bool,
    /// What this machine shares the fate of: a rack, a site.
    #[arg(long, env = "TOMBOLO_ZONE")]
    pub zone: Option<String>,
    /// How many copies this node carries in relation to others, 0 to 1000; 0: none, but it serves clients [default: 100]
    #[arg(long, env = "TOMBOLO_WEIGHT", value_name = "N", value_parser = clap::value_parser!(u16).range(..=1000))]
    pub weight: Option<u16>,
    /// How many threads work on fragments [default: half of the processors, at most 8]
    #[arg(long, env = "TOMBOLO_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// How much memory the node's process may have in use: 512MiB, 2GiB; `none`: no ceiling [default: three quarters of what the
    /// machine has, or its control group]. Near it bounded tables on this node make room; at it writes are refused that take more. What is
    /// resident may be up to a third more than what is in use.
    #[arg(long, env = "TOMBOLO_MEMORY_MAX", value_name = "SIZE")]
    pub memory_max: Option<String>,
    /// How much the data directory may hold: 50GiB; `none`: no ceiling [default: none]. Near it bounded tables on this node make room;
    /// at it, and when less than 192 MiB are free, writes are refused that take more.
    #[arg(long, env = "TOMBOLO_DISC_MAX", value_name = "SIZE")]
    pub disc_max: Option<String>,
    /// Answer Prometheus at http://IP:PORT/metrics [default: nowhere]. Whoever reaches that address sees what is counted.
    #[arg(long, env = "TOMBOLO_HTTP", value_name = "IP:PORT")]
    pub http: Option<SocketAddr>,
    /// A node that is out of reach for so long is given up by the side that has the majority: 4h, 7d, never [default: 4h]. If it comes
    /// back, it is taken in again, and what it took meanwhile is merged.
    #[arg(long, env = "TOMBOLO_NODE_TIMEOUT", value_name = "D")]
    pub node_timeout: Option<String>,
    /// The same of a node that was stopped cleanly [default: never].
    #[arg(long, env = "TOMBOLO_STOPPED_TIMEOUT", value_name = "D")]
    pub stopped_timeout: Option<String>,
    /// Copies on a node that is out of reach for so long are made elsewhere, too, until it is back: 5m, 1h [default: 5m].
    #[arg(long, env = "TOMBOLO_REPLACE_AFTER", value_name = "D")]
    pub replace_after: Option<String>,
}

/// What to do with the secret.
#[derive(Subcommand)]
pub(crate) enum CookieCommand {
    /// A mark of each secret of this machine, to compare with those of others.
    Show {
        #[command(flatten)]
        up: Box<Up>,
    },
    /// First, on every machine: have a secret that comes next, which nodes accept from their next start on.
    Next {
        /// The one that was made on another machine.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        #[command(flatten)]
        up: Box<Up>,
    },
    /// Then, on every machine: make it the secret, and keep the one before for those that still use it.
    Turn {
        #[command(flatten)]
        up: Box<Up>,
    },
    /// At last, on every machine: accept the one before no more.
    Drop {
        #[command(flatten)]
        up: Box<Up>,
    },
}

/// Which conflicts, and what to do with them.
#[derive(Args)]
pub(crate) struct Conflicts {
    /// Of this table alone.
    pub table: Option<String>,
    /// As a JSON array; text as text, the rest in base64.
    #[arg(long, conflicts_with_all = ["restore", "forget"])]
    pub json: bool,
    /// Put this losing value back, over what is there now, and take it off the list.
    #[arg(long, value_name = "ID", conflicts_with = "forget")]
    pub restore: Option<String>,
    /// Drop this losing value for good; `all`: every one of the table.
    #[arg(long, value_name = "ID")]
    pub forget: Option<String>,
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
    /// Look at every inode, name and byte of a shared filesystem, which may be in use, and say what is not as it should be.
    Fsck(crate::fsck::Fsck),
    /// How things stand.
    Status {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Values that lost where a key was written on two sides of a cut: both values, who wrote them and when.
    Conflicts(Conflicts),
    /// When islands met: how many records each way, how many conflicts, how many seconds it took.
    Heals {
        /// As a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// What happened lately at all nodes in view: who came and went, cuts and heals, what had to go, who is short of what.
    Events {
        /// Go on printing what happens.
        #[arg(long, short)]
        follow: bool,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
        /// Of this node only.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// So many at most, the latest. A node keeps a thousand, and none of its earlier starts.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// What is counted at all nodes in view, in the form that Prometheus reads.
    Metrics,
    /// Why something is as it is, in a sentence or two: a node, a table, a fragment (TABLE/3), or a file of a filesystem that is mounted.
    Why {
        /// `node NAME`, `table NAME`, `TABLE/N` or a path; a bare name is a table's or a node's.
        #[arg(required = true, num_args = 1..=2, value_name = "OBJECT")]
        object: Vec<String>,
    },
    /// Nodes, islands, tables, rates and heals, live.
    Top {
        /// Print it once, and end.
        #[arg(long)]
        once: bool,
        /// How often it is looked again.
        #[arg(long, value_name = "D", default_value = "1s")]
        every: String,
    },
    /// Who there is: status, what is thought of each and why, when it was last seen, zone, load.
    Nodes {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// A map of all copies: which node holds what, who leads, how much there is of it.
    Fragments {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Wait until copies and leadership are spread evenly, and say how far that is. It is done without being asked.
    Rebalance(Rebalance),
    /// Say that a node which is away is gone for good: it is buried, and others take its place.
    Condemn {
        /// Its name or id.
        node: String,
        /// Even if the last copy of something may be on it.
        #[arg(long)]
        force: bool,
    },
    /// Take a node out for good: its copies move to others, then it ends.
    Leave {
        /// Its name or id [default: this node]
        node: Option<String>,
    },
    /// Take back that a node is gone, or leaves, while it is not buried yet.
    Admit {
        /// Its name or id.
        node: String,
    },
    /// Say that a node is waited for without end, however long it is away.
    Immortalize {
        /// Its name or id.
        node: String,
        /// Not any more.
        #[arg(long)]
        undo: bool,
    },
    /// Give a node another name; it keeps it when it starts again.
    RenameNode {
        /// Its name or id.
        node: String,
        /// What it is called from now on.
        new: String,
    },
    /// Plans on paper, for fleets of any size.
    #[command(subcommand)]
    Simulate(SimulateCommand),
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
        /// For so long: 500ms, 30s, 10m, 2h, 7d [default: as long as the table says].
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
    /// Print how many seconds a value has left to live; `none`: it lives for good.
    Ttl { table: String, key: OsString },
    /// Have a value live for so long from now on.
    Touch {
        table: String,
        key: OsString,
        /// For how long [default: as long as the table says].
        #[arg(long, value_name = "D")]
        ttl: Option<String>,
    },
    /// Have a value live for good.
    Persist { table: String, key: OsString },
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
    /// Write a table to a file or standard output, one JSON object a row; keys and values in base64.
    Export {
        table: String,
        /// Where to [default: standard output].
        file: Option<PathBuf>,
    },
    /// Put the rows of an export into a table, which is made if it is not there.
    Import {
        table: String,
        /// Where from [default: standard input].
        file: Option<PathBuf>,
        /// Leave keys alone that hold a value.
        #[arg(long)]
        if_absent: bool,
    },
    /// Write all tables and filesystems of the cluster to a file. What is written meanwhile may or may not be in it.
    Backup {
        /// Must not be there yet.
        file: PathBuf,
    },
    /// Bring a backup's tables and filesystems back into a cluster that has none of their names.
    Restore {
        file: PathBuf,
        /// Put its rows over those of tables that are there.
        #[arg(long)]
        overwrite: bool,
    },
    /// Print the options that `up` would start with here, as a config file, and where each comes from.
    Config(Up),
    /// Change the secret for another, one machine at a time and without a break.
    #[command(subcommand)]
    Cookie(CookieCommand),
    /// Look for what commonly goes wrong on a machine: secret, ports, firewall, multicast, clock, disc, FUSE.
    Doctor {
        /// As a JSON array.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        up: Up,
    },
    /// Measure this cluster, or a directory.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a script that completes commands and options in a shell: source it from the shell's start file.
    Completions { shell: clap_complete::Shell },
    /// Write the manual's pages to a directory: tombolo.1, tombolo-up.1 and so on.
    Man {
        /// Made if it is not there.
        dir: PathBuf,
    },
    /// Stop the node of --data cleanly.
    Stop,
}

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Reads and writes from inside the node of --data, in a table of its own that goes afterwards.
    Kv(Box<BenchKv>),
    /// How much of what is asked for each policy of eviction keeps, on a trace: hit ratios. Needs no node.
    Cache(crate::bench_cache::BenchCache),
    /// Files: create, stat, open, sequential and random IO, unlink, in a directory of its own that goes afterwards.
    Fs {
        dir: PathBuf,
        /// How many files are made.
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        files: u32,
        /// MiB written and read in one file.
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
        mib: u32,
        /// Threads that make files.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
        threads: u32,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub(crate) struct BenchKv {
    /// What is done: put, get, put-if-absent, or mixed (half reads, half puts).
    #[arg(long, value_enum, default_value_t = crate::bench::Op::Put)]
    pub op: crate::bench::Op,
    /// Clients at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub value_size: u32,
    /// How many different keys; they are put first where they are to be read.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub keys: u32,
    /// Seconds of load that are counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Seconds of load before them, in which leadership finds its place.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub warm: u32,
    /// In which table, which is made for it.
    #[arg(long, default_value = crate::bench::TABLE)]
    pub name: String,
    /// The table stays.
    #[arg(long)]
    pub keep: bool,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub table: Shape,
}

/// The options of a table that is made.
#[derive(Args)]
pub(crate) struct Shape {
    /// How many nodes hold each record.
    #[arg(long, default_value_t = 3)]
    pub copies: u16,
    /// Into how many slices it is cut.
    #[arg(long, default_value_t = 8)]
    pub fragments: u16,
    /// disc (in RAM and on disc), disc_only (keys in RAM, values on disc, for tables larger than the RAM) or ram.
    #[arg(long, default_value = "disc")]
    pub storage: String,
    /// interval (on disc within 100 ms) or sync (before it is acknowledged).
    #[arg(long, default_value = "interval")]
    pub durability: String,
    /// What becomes of a key that was written on both sides of a cut: latest (the later stays), keep-both (the other is put
    /// beside it, under KEY~conflict-VERSION), island:largest, island:oldest or island:NODE (that side's stays), max or min
    /// (values are big-endian 64-bit fields, each the greater or the smaller), sum (likewise; what was added on each side
    /// counts), union (values are sets of lines), function:NAME (of the program that embeds the node). What loses is listed by
    /// `tombolo conflicts`.
    #[arg(long, default_value = "latest")]
    pub on_conflict: String,
    /// Refuse writes while fewer copies than this are in sync: a number, or `majority` (then only one side of a cut takes
    /// writes).
    #[arg(long, default_value = "1", value_name = "N")]
    pub min_in_sync: String,
    /// Find keys by hash only: less memory and work; a scan walks the whole table.
    #[arg(long)]
    pub unordered: bool,
    /// Put its copies where those of this table are, fragment by fragment; it gets as many fragments and copies as that one:
    /// records under one key of both lie on the same nodes.
    #[arg(long, value_name = "TABLE")]
    pub beside: Option<String>,
    /// What is put without a time to live lives for so long: 500ms, 30s, 10m, 2h, 7d.
    #[arg(long, value_name = "D")]
    pub ttl: Option<String>,
    /// Hold so many records at most. Each fragment has its share of it.
    #[arg(long, value_name = "N")]
    pub max_records: Option<u64>,
    /// Hold so much at most, as in 64MiB: keys, values, and 480 bytes a record for what is kept with them.
    #[arg(long, value_name = "SIZE")]
    pub max_bytes: Option<String>,
    /// What those are counted over: cluster (each record once, however many copies it has) or node (all copies on one node; the
    /// fullest decides).
    #[arg(long, default_value = "cluster")]
    pub per: String,
    /// What goes when there is no room: reject (nothing: the write is refused), fifo, lru, sieve, s3-fifo, ttl-first (what expires
    /// next), function:NAME (of the program that embeds the node).
    #[arg(long, default_value = "reject", value_name = "POLICY")]
    pub evict: String,
}

#[derive(Args)]
pub(crate) struct Rebalance {
    /// Say what is to be moved, and go.
    #[arg(long, conflicts_with_all = ["pause", "resume", "rate"])]
    pub dry_run: bool,
    /// Even nothing out from now on; what lacks copies still gets them.
    #[arg(long, conflicts_with = "resume")]
    pub pause: bool,
    /// Go on with it.
    #[arg(long)]
    pub resume: bool,
    /// From now on a node takes in so much a second of copies that are made on it, 4MiB or more; `none`: as much as it can.
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<String>,
}

#[derive(Args)]
pub(crate) struct Mount {
    /// The filesystem's name; it is made on first use.
    #[arg(required_unless_present = "proc", conflicts_with = "proc")]
    pub fs: Option<String>,
    /// The directory to mount on; made if it is not there.
    #[arg(required_unless_present = "proc", conflicts_with = "proc")]
    pub dir: Option<PathBuf>,
    /// No filesystem, but the cluster itself: every node, table and fragment as files, on this directory.
    #[arg(long, value_name = "DIR")]
    pub proc: Option<PathBuf>,
    /// Options: ro, rw, allow_other, strict (ask for each name and attribute), relatime, noatime, cache=SIZE (how much may wait to be written),
    /// scrub=SIZE|off (how much is read a second to see whether all is well), uid=N, gid=N, noexec, nosuid, nodev, sync; and what stands in fstab for others.
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
pub(crate) enum SimulateCommand {
    /// How evenly copies are spread over a fleet, and what moves when a node joins, leaves, or a zone is lost.
    Placement(crate::simulate::Fleet),
}

#[derive(Subcommand)]
pub(crate) enum TableCommand {
    /// Make a table.
    Create {
        name: String,
        #[command(flatten)]
        shape: Shape,
    },
    /// All tables.
    List,
    /// One table: its options, and who leads, follows and holds how much of each fragment.
    Info {
        name: String,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Change a table while it is used.
    Alter(Alter),
    /// Remove a table and all records in it, on every node.
    Drop { name: String },
}

#[derive(Args)]
pub(crate) struct Alter {
    pub name: String,
    /// On how many nodes each record lies, 1 to 64.
    #[arg(long)]
    pub copies: Option<u16>,
    /// Into how many fragments it is cut: a multiple of what it is, or a divisor. They change group by group, while clients read
    /// and write; only while no node is missing.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub fragments: Option<u16>,
    /// Where records are kept, as for `table create`: copies come to it one after the other, while they are used.
    #[arg(long)]
    pub storage: Option<String>,
    /// When acknowledged writes are on disc: `interval` or `sync`.
    #[arg(long)]
    pub durability: Option<String>,
    /// Writes are taken with so many copies in sync or more: a number, or `majority`.
    #[arg(long)]
    pub min_in_sync: Option<String>,
    /// What becomes of keys that are written on two sides of a cut, as for `table create`.
    #[arg(long)]
    pub on_conflict: Option<String>,
    /// Put its copies where those of this table are, as for `table create`; "": no more.
    #[arg(long, value_name = "TABLE")]
    pub beside: Option<String>,
    /// What is put from now on without a time to live lives for so long; `none`: for good.
    #[arg(long, value_name = "D")]
    pub ttl: Option<String>,
    /// Hold so many records at most; `none`: any number. What is beyond goes, unless nothing is to be evicted.
    #[arg(long, value_name = "N")]
    pub max_records: Option<String>,
    /// Hold so much at most, as for `table create`; `none`: any amount.
    #[arg(long, value_name = "SIZE")]
    pub max_bytes: Option<String>,
    /// What those are counted over: cluster or node.
    #[arg(long)]
    pub per: Option<String>,
    /// What goes when there is no room, as for `table create`.
    #[arg(long, value_name = "POLICY")]
    pub evict: Option<String>,
}

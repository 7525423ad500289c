//! What happened, as a line for people.

use base::{FragmentId, TableId};
use node::{Grade, Notice};
use replica::Pressure;

fn source(sources: &[String], number: u16) -> &str {
    sources.get(usize::from(number)).map_or("a list of nodes", String::as_str)
}

/// How much it matters, a word for its kind, and a line for people.
pub(crate) type Line = (Grade, &'static str, String);

/// Writes it to the log.
pub(crate) fn log((grade, _, text): &Line) {
    match grade {
        Grade::Info => tracing::info!("{text}"),
        Grade::Warn => tracing::warn!("{text}"),
        Grade::Error => tracing::error!("{text}"),
    }
}

/// What is told of it; `None`: nothing, but to whoever looks for a fault.
pub(crate) fn describe(notice: &Notice, sources: &[String], table: impl Fn(TableId) -> String) -> Option<Line> {
    if let Some(line) = of_nodes(notice) {
        return Some(line);
    }
    Some(match notice {
        Notice::Evicted(table, n, oldest) => (
            Grade::Info,
            "evicted",
            format!(
                "table {table} is full: {n} records had to go here since this was said last (at most once a minute); the oldest left is {} s old",
                oldest / 1000
            ),
        ),
        Notice::SetAside(table, fragment) => (
            Grade::Warn,
            "set-aside",
            format!(
                "what this node had of fragment {} of {table}, before the number of its fragments changed, cannot be joined with what \
                 others have: it is kept on disc, apart, until they know all of it",
                fragment.index
            ),
        ),
        Notice::Unreadable(0) => return None,
        Notice::Unreadable(n) => (
            Grade::Error,
            "unreadable",
            format!(
                "{n} nodes or tables are described in a form that this program does not read, and are left out: run the \
                 version that wrote them"
            ),
        ),
        Notice::Copy(fragment, replica::Notice::Merged(heal)) => {
            (Grade::Info, "heal", merged(table(fragment.table), *fragment, heal))
        }
        Notice::Incredible(provider, gone, of) => (
            Grade::Warn,
            "provider",
            format!(
                "{} leaves out {gone} of {of} nodes: that is not believed, and nobody is given up for it",
                source(sources, *provider)
            ),
        ),
        Notice::Provider(provider, Some(why)) => {
            (Grade::Warn, "provider", format!("{}: {why}", source(sources, *provider)))
        }
        Notice::Provider(provider, None) => {
            (Grade::Info, "provider", format!("{} answers again", source(sources, *provider)))
        }
        Notice::Ledger(bytes) => (
            Grade::Warn,
            "conflicts",
            format!(
                "values that lost conflicts take {} MiB here: look at `tombolo conflicts`, and drop what is not needed with --forget",
                bytes >> 20
            ),
        ),
        Notice::Copy(fragment, notice) => {
            tracing::debug!(?fragment, "{notice:?}");
            return None;
        }
        _ => return None,
    })
}

/// A slow request.
pub(crate) fn slow(slow: &node::Slow, table: &str) -> Line {
    let text = format!(
        "slow {} {} in fragment {} of {table}: {} ms ({})",
        slow.what,
        slow.request,
        slow.fragment.place(),
        slow.took.as_ms(),
        slow.spent
    );
    (Grade::Warn, "slow", text)
}

/// The same of what concerns nodes.
fn of_nodes(notice: &Notice) -> Option<Line> {
    Some(match notice {
        Notice::MemberJoin(_, name) => (Grade::Info, "member-join", format!("{name} is in view")),
        Notice::MemberLeave(_, name, true) => (Grade::Info, "member-leave", format!("{name} has stopped")),
        Notice::MemberLeave(_, name, false) => (Grade::Warn, "member-leave", format!("{name} is out of view")),
        Notice::Flaps(_, name) => {
            (Grade::Warn, "flaps", format!("{name} comes and goes: look at its machine, its process or its network"))
        }
        Notice::Island(state, why) => (Grade::Info, "island", format!("the cluster is {state}: {why}")),
        Notice::Ready { peers } => (Grade::Info, "ready", format!("ready with {peers} peers")),
        Notice::WrongProtocol(addr, theirs) => (
            Grade::Warn,
            "protocol",
            format!(
                "{addr} has our cookie but speaks version {}, we {}: run the same major version on all nodes",
                version(*theirs),
                version(node::PROTOCOL)
            ),
        ),
        Notice::Clock(None, _) => {
            (Grade::Info, "clock", "this machine's clock is in step with the others' again".into())
        }
        Notice::Clock(Some(ahead), barred) => {
            let lead = if *barred { "it leads no fragment that another node can lead" } else { "set it right" };
            let text = format!("this machine's clock is {ahead} ms ahead of the others' (negative: behind): {lead}");
            (Grade::Warn, "clock", text)
        }
        Notice::Foreign(addr, senders) => (
            Grade::Info,
            "foreign",
            format!("packets of another cookie or group come from {addr} ({senders} senders so far); they are ignored"),
        ),
        Notice::Twin(addr) => (
            Grade::Error,
            "twin",
            format!("{addr} has this node's id: a data directory was copied; remove one of the two"),
        ),
        Notice::Buried(burial) => (Grade::Warn, "buried", format!("{} is buried: {}", burial.name, burial.why)),
        Notice::BuriedHere(burial) => (
            Grade::Warn,
            "buried",
            format!(
                "the other nodes had buried this one ({}): it joins them anew, and what it took meanwhile is merged with what they have",
                burial.why
            ),
        ),
        Notice::Returned(name) => (
            Grade::Warn,
            "returned",
            format!("{name}, which was buried, is back: what it took meanwhile is merged with what is here"),
        ),
        Notice::BurialHeld { names, why } => {
            (Grade::Warn, "burial-held", format!("{} would be buried, but {why}", names.join(", ")))
        }
        Notice::FormedApart(_, name) => (
            Grade::Warn,
            "formed-apart",
            format!(
                "{name} belongs to a cluster that was formed apart from this one, with the same secret: the two become one"
            ),
        ),
        _ => return None,
    })
}

fn version(protocol: u16) -> String {
    format!("{}.{}", protocol >> 8, protocol & 255)
}

fn merged(table: String, fragment: FragmentId, heal: &replica::Heal) -> String {
    let (index, took) = (fragment.index, heal.took.as_ms());
    format!(
        "islands met in fragment {index} of {table}: {} records taken over, {} entries given, {} conflicts, in {took} ms",
        heal.taken, heal.given, heal.conflicts
    )
}

/// What is told when a node comes to be short of something, or is not any more; `said`: what was told last.
pub(crate) fn shortage(of: &str, what: &str, said: Pressure, now: Pressure) -> Line {
    let (grade, then) = match (said, now) {
        (_, Pressure::Low) => (Grade::Info, "there is room again"),
        (_, Pressure::Full) => (Grade::Error, "this node takes no writes until there is room"),
        (Pressure::Full, _) => (Grade::Info, "writes are taken again"),
        (_, Pressure::Steady) => (Grade::Warn, "bounded tables on this node grow no more"),
        (_, Pressure::High) => (Grade::Warn, "bounded tables on this node make room"),
    };
    (grade, "shortage", format!("{of}: {what}; {then}"))
}

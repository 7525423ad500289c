//! What happened, as a line for people.

use node::Notice;
use replica::Pressure;

fn source(sources: &[String], number: u16) -> &str {
    sources.get(usize::from(number)).map_or("a list of nodes", String::as_str)
}

/// One line for people.
pub(crate) fn log(notice: &Notice, sources: &[String]) {
    match notice {
        Notice::MemberJoin(_, name) => tracing::info!("{name} is in view"),
        Notice::MemberLeave(_, name, true) => tracing::info!("{name} has stopped"),
        Notice::MemberLeave(_, name, false) => tracing::warn!("{name} is out of view"),
        Notice::Flaps(_, name) => {
            tracing::warn!("{name} comes and goes: look at its machine, its process or its network")
        }
        Notice::Island(state, why) => tracing::info!("the cluster is {state}: {why}"),
        Notice::Ready { peers } => tracing::info!("ready with {peers} peers"),
        Notice::WrongProtocol(addr, theirs) => tracing::warn!(
            "{addr} has our cookie but speaks version {}, we {}: run the same major version on all nodes",
            version(*theirs),
            version(node::PROTOCOL)
        ),
        Notice::Clock(None, _) => tracing::info!("this machine's clock is in step with the others' again"),
        Notice::Clock(Some(ahead), barred) => {
            let lead = if *barred { "it leads no fragment that another node can lead" } else { "set it right" };
            tracing::warn!("this machine's clock is {ahead} ms ahead of the others' (negative: behind): {lead}");
        }
        Notice::Evicted(table, n, oldest) => tracing::info!(
            "table {table} is full: {n} records had to go here since this was said last (at most once a minute); the oldest left is {} s old",
            oldest / 1000
        ),
        Notice::SetAside(table, fragment) => tracing::warn!(
            ?fragment,
            "what this node had of a fragment of {table}, before the number of its fragments changed, cannot be joined with what \
             others have: it is kept on disc, apart, until they know all of it"
        ),
        Notice::Unreadable(0) => {}
        Notice::Unreadable(n) => tracing::error!(
            "{n} nodes or tables are described in a form that this program does not read, and are left out: run the \
                 version that wrote them"
        ),
        Notice::Foreign(addr, senders) => tracing::info!(
            "packets of another cookie or group come from {addr} ({senders} senders so far); they are ignored"
        ),
        Notice::Twin(addr) => {
            tracing::error!("{addr} has this node's id: a data directory was copied; remove one of the two")
        }
        Notice::Copy(fragment, replica::Notice::Merged(heal)) => merged(*fragment, heal),
        Notice::Buried(burial) => tracing::warn!("{} is buried: {}", burial.name, burial.why),
        Notice::BuriedHere(burial) => tracing::warn!(
            "the other nodes had buried this one ({}): it joins them anew, and what it took meanwhile is merged with what they have",
            burial.why
        ),
        Notice::Returned(name) => {
            tracing::warn!("{name}, which was buried, is back: what it took meanwhile is merged with what is here");
        }
        Notice::BurialHeld { names, why } => tracing::warn!("{} would be buried, but {why}", names.join(", ")),
        Notice::Incredible(provider, gone, of) => tracing::warn!(
            "{} leaves out {gone} of {of} nodes: that is not believed, and nobody is given up for it",
            source(sources, *provider)
        ),
        Notice::Provider(provider, Some(why)) => tracing::warn!("{}: {why}", source(sources, *provider)),
        Notice::Provider(provider, None) => tracing::info!("{} answers again", source(sources, *provider)),
        Notice::FormedApart(_, name) => tracing::warn!(
            "{name} belongs to a cluster that was formed apart from this one, with the same secret: the two become one"
        ),
        Notice::Ledger(bytes) => tracing::warn!(
            "values that lost conflicts take {} MiB here: look at `tombolo conflicts`, and drop what is not needed with --forget",
            bytes >> 20
        ),
        Notice::Copy(fragment, notice) => tracing::debug!(?fragment, "{notice:?}"),
    }
}

fn version(protocol: u16) -> String {
    format!("{}.{}", protocol >> 8, protocol & 255)
}

fn merged(fragment: base::FragmentId, heal: &replica::Heal) {
    let (records, entries, conflicts, with) = (heal.taken, heal.given, heal.conflicts, &heal.with);
    let ms = heal.took.as_ms();
    tracing::info!(?fragment, ?with, records, entries, conflicts, ms, "islands met: records taken over, entries given");
}

/// Tells when a node comes to be short of something, or is not any more.
pub(crate) fn log_shortage(of: &str, what: &str, before: Pressure, now: Pressure) {
    match (before, now) {
        (Pressure::Steady, Pressure::High) | (Pressure::High, Pressure::Steady) => {}
        (_, Pressure::Low) => tracing::info!("{of}: there is room again: {what}"),
        (_, Pressure::Full) => {
            tracing::error!("{of}: {what}; this node takes no writes until there is room");
        }
        (Pressure::Full, _) => tracing::info!("{of}: {what}; writes are taken again"),
        _ => tracing::warn!("{of}: {what}; bounded tables on this node make room"),
    }
}

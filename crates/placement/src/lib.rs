//! Which nodes hold copies of what, and who leads: a pure function from what there is to a list of safe moves.
//!
//! Balanced means: of each table every node holds its share by weight, rounded up or down; so it does of all tables together, and of
//! leadership. No two copies of a fragment are in one zone while there are zones enough. Of all placements that
//! are balanced so, one is sought that moves little: what is where it may be stays.
//!
//! All of it is flows: copies run from fragments through zones to nodes, and what is out of balance is mended along shortest augmenting
//! paths (Ford and Fulkerson, 1956). What such a path cannot mend cannot be mended.

mod copies;
mod flow;
mod leads;
mod share;
mod steps;

use base::{FragmentId, NodeId};

/// A node that may hold copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Who.
    pub node: NodeId,
    /// Its share of copies, in relation to other weights; 0: it is to hold none.
    pub weight: u32,
    /// Copies of one fragment are put into different zones. Those without one are in a zone together.
    pub zone: Option<String>,
    /// It is away for the moment, and waited for, or full: what it holds stays there, and it gets nothing.
    pub away: bool,
    /// It can be given something to lead.
    pub leads: bool,
}

/// A copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Where. A node that is no machine of the picture counts for nothing: it is lost, or on its way out.
    pub node: NodeId,
    /// It has all that was acknowledged.
    pub in_sync: bool,
}

/// A fragment, and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Which.
    pub id: FragmentId,
    /// Its copies, those on their way in included.
    pub holders: Vec<Holder>,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// About how large a copy is.
    pub bytes: u64,
    /// Its leader is where it is written, and goes on as long as its copy stays.
    pub settled: bool,
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// How many copies there shall be of each fragment; with fewer machines, as many as there are.
    pub copies: usize,
    /// The table, by its place in the picture, whose fragments these are put beside: it has as many, and follows none itself.
    pub with: Option<usize>,
    /// Its copies do not move for balance's sake.
    pub fixed: bool,
    /// All of its fragments.
    pub fragments: Vec<Fragment>,
}

/// All there is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picture {
    /// Nodes that may hold copies.
    pub machines: Vec<Machine>,
    /// What they hold.
    pub tables: Vec<Table>,
}

/// How much is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aim {
    /// What lacks copies gets them, and copies leave nodes that go.
    Repair,
    /// And every node gets its share.
    Balance,
}

/// One thing that is done to a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A copy is made there.
    Add(NodeId),
    /// It leads from here on; it has a copy in sync.
    Lead(NodeId),
    /// The copy there goes; as many as there shall be are in sync elsewhere.
    Remove(NodeId),
}

/// A step of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Of what.
    pub fragment: FragmentId,
    /// What.
    pub step: Step,
    /// How many bytes it moves, about.
    pub bytes: u64,
    /// It can be done at once. Otherwise copies have to be in sync first, which earlier moves of this fragment make.
    pub safe_now: bool,
    /// The fragment has fewer copies than it shall have.
    pub is_repair: bool,
}

/// What is to be done, most urgent first; moves of one fragment in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// What is to be done.
    pub moves: Vec<Move>,
    /// Who leads in the end, of each table's fragments, as places among the machines.
    pub leaders: Vec<Vec<Option<usize>>>,
}

impl Plan {
    /// How many copies are made, and their bytes.
    pub fn copied(&self) -> (usize, u64) {
        let adds = self.moves.iter().filter(|m| matches!(m.step, Step::Add(_)));
        adds.fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.bytes))
    }
}

/// Tables that are placed as one: the first is the one that the others follow.
struct Group {
    tables: Vec<usize>,
    fragments: usize,
    /// How many copies of each there can be.
    copies: usize,
}

impl Group {
    fn weight(&self) -> usize {
        self.tables.len()
    }

    fn aim(&self, picture: &Picture, aim: Aim) -> Aim {
        let fixed = self.tables.first().is_some_and(|t| picture.tables[*t].fixed);
        if fixed { Aim::Repair } else { aim }
    }
}

/// What is to be done so that every fragment has its copies, and every node its share. Deterministic; done in any order that keeps
/// each fragment's own, and planned anew at any point in between, it comes to the same end.
pub fn plan(picture: &Picture, aim: Aim) -> Plan {
    let groups = groups(picture);
    let (quotas, mut ahead) = share::quotas(picture, &groups, aim);
    let mut placed: Vec<copies::Placed> = Vec::with_capacity(groups.len());
    let mut bytes = vec![0; picture.machines.len()];
    for (group, quota) in groups.iter().zip(&quotas) {
        let aim = group.aim(picture, aim);
        let so_far = copies::SoFar { bytes: &mut bytes, ahead: &mut ahead, bound: share::bound(&groups) };
        placed.push(copies::place(picture, group, quota, aim, so_far));
    }
    let leaders = leads::choose(picture, &groups, &placed, &quotas, aim);
    steps::steps(picture, &groups, &placed, &leaders)
}

fn groups(picture: &Picture) -> Vec<Group> {
    let able = picture.machines.iter().filter(|m| m.weight > 0 || m.away).count();
    let heads = picture.tables.iter().enumerate().filter(|(_, t)| t.with.is_none());
    let group = |(head, table): (usize, &Table)| {
        let fellows = picture.tables.iter().enumerate().filter(|(_, t)| t.with == Some(head)).map(|(i, _)| i);
        let tables = [head].into_iter().chain(fellows).collect();
        Group { tables, fragments: table.fragments.len(), copies: table.copies.min(able) }
    };
    heads.map(group).collect()
}

/// The place of each zone's name, and of each machine its zone's.
fn zones(picture: &Picture) -> (usize, Vec<usize>) {
    let mut names: Vec<&Option<String>> = picture.machines.iter().map(|m| &m.zone).collect();
    names.sort_unstable();
    names.dedup();
    let of = picture.machines.iter().map(|m| names.binary_search(&&m.zone).unwrap_or_default()).collect();
    (names.len(), of)
}

/// How many copies of one fragment each zone may hold: one, while there are zones enough that could take one now.
fn caps(picture: &Picture, zone: &[usize], zones: usize, copies: usize) -> Vec<usize> {
    let mut size = vec![0; zones];
    for (machine, zone) in picture.machines.iter().zip(zone) {
        size[*zone] += usize::from(machine.weight > 0 && !machine.away);
    }
    let fits = |cap: &usize| size.iter().map(|n| n.min(cap)).sum::<usize>() >= copies;
    let cap = (1..=copies.max(1)).find(fits).unwrap_or(copies.max(1));
    size.into_iter().map(|n| n.min(cap)).collect()
}

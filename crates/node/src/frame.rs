use crate::asking::{Question, Said};
use crate::balance::{Order, Told};
use crate::lifecycle::Burial;
use base::{FragmentId, NodeId};
use replica::{Answer, Changes, Msg, Read, Request, Rows, Since};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The version of the conversation between nodes, the major one in the upper byte. Nodes of different major versions do not talk,
/// and both say so; those of one pass over what they do not know of each other's (see [`wire::FORMAT`]).
pub const PROTOCOL: u16 = 0x0601;

/// The first frame each way on a new link, inside the encrypted stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the speaker.
    pub protocol: u16,
    /// Who speaks.
    pub node: NodeId,
    /// Its how-manieth start.
    pub incarnation: u64,
    /// How often it was buried, as far as it knows.
    pub life: u64,
    /// A label, for people.
    pub name: String,
    /// Where it takes connections; an unspecified IP means the one the connection came from.
    pub listen: SocketAddr,
    /// Its zone, if it has one.
    pub zone: Option<String>,
}

/// What nodes say to each other on a link, after their [`Hello`]s.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// Between copies of one fragment.
    Copy(FragmentId, Msg),
    /// You are to hold a copy of this fragment.
    Invite(FragmentId),
    /// A write, to the node that leads the fragment. Answered under the same number.
    Write(u64, FragmentId, Request),
    /// Its answer.
    Answer(u64, Answer),
    /// A read, to the node that leads the fragment.
    Read(u64, FragmentId, Read),
    /// Its rows; `None`: I do not lead.
    Rows(u64, Option<Vec<Rows>>),
    /// To a read: only a stand-in is here, and does not know.
    Elsewhere(u64),
    /// The number of my cluster.
    Cluster(u64),
    /// You were buried: join as one that comes anew.
    Buried(Burial),
    /// I was buried so often, as I know by now.
    Life(u64),
    /// I am stopping, on purpose.
    Bye,
    /// There is a rumour that you are gone: are you there?
    AreYouThere(u64),
    /// I am, in answer to that question.
    Here(u64),
    /// What changed in this fragment? Answered under the same number.
    AskChanges(u64, FragmentId, Since),
    /// This; `None`: not to be answered here.
    Changes(u64, Option<Changes>),
    /// To your process. Answered under the same number.
    Ask(u64, Question),
    /// Its answer.
    Said(u64, Said),
    /// I was told that this node is gone, and ask it; so should you.
    Doubted(NodeId),
    /// I have no copies of these any more.
    GaveAway(Vec<FragmentId>),
    /// What do you lead? Answered under the same number.
    AskLeads(u64),
    /// This; number 0: nobody asked.
    Leads(u64, Told),
    /// Do this with a fragment that you lead.
    Order(FragmentId, Order),
}

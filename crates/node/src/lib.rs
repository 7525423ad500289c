//! One node as one state machine: discovery, membership, copies and local clients, composed.
//!
//! `handle(now, input, effects)`, `deadline()`, `status()`. It owns no socket, thread, clock or file; sealing and opening
//! datagrams is arithmetic and happens here, with nonces from the node's own seeded generator.

mod asking;
mod balance;
mod bounds;
mod burial;
mod cluster;
mod copies;
mod departure;
mod facts;
mod follow;
mod fragments;
mod frame;
mod gateway;
#[cfg(test)]
mod golden;
mod graves;
mod io;
mod layout;
mod lifecycle;
mod map;
mod metrics;
mod node;
mod pace;
mod packets;
mod peers;
mod recut;
mod schema;
mod status;
mod tables;
mod trace;
mod turns;
mod view;
mod why;

pub use asking::{Grade, Happened, Mark as EventMark, Question, Said, Vitals};
pub use balance::{Order, Report, Told, WEIGHT};
pub use copies::{Glance, Task, Window};
pub use facts::{Fact, Facts, Known, Subject, segment};
pub use frame::{Frame, Hello, PROTOCOL};
pub use gateway::{ClientError, Op, OpReply};
pub use io::{Effect, Input, LinkId, Notice, OpId};
pub use layout::{Change, Layout};
pub use lifecycle::{Burial, Word};
pub use map::{Map, MapFragment, MapMove, MapNode, MapTable};
pub use metrics::{Sample, Value};
pub use node::{Config, Node};
pub use pace::COPY_RATE_MIN;
pub use schema::{Alteration, Durability, FragmentBy, Per, Storage, TableDef, TableOptions, sys_fragment, sys_table};
pub use status::{BuriedLine, FragmentLine, NodeLine, Status, TableInfo, TableLine};
pub use trace::{SLOW_AFTER, Slow};
pub use why::Object;

//! What makes this cluster this one: clusters of one secret that were formed apart become one when they meet, and say so.

use crate::frame::Frame;
use crate::gateway::Op;
use crate::io::{Effect, LinkId, Notice};
use crate::node::Node;
use crate::schema::{CLUSTER_KEY, sys_fragment};
use base::{NodeId, Now, Span};
use bytes::Bytes;
use rand::RngExt;
use replica::{Batch, Check, Copy, Write};

impl Node {
    /// Whoever leads the system table first gives the cluster a number.
    pub(crate) fn name_cluster(&mut self, now: Now, out: &mut Vec<Effect>) {
        let leads = self.copies.with(sys_fragment(), |c: &Copy| c.lead().is_some()).unwrap_or(false);
        if self.cluster.is_some() || !leads {
            return;
        }
        let number: u64 = self.rng.random::<u64>() | 1;
        let (key, value) = (Bytes::from_static(CLUSTER_KEY), Bytes::copy_from_slice(&number.to_be_bytes()));
        let checks = vec![Check::Absent(key.clone())];
        let batch = Batch { checks, writes: vec![Write::Put { key, value, ttl_ms: None }], sync: true };
        let op = self.next_internal();
        self.on_op(now, op, Op::Write(sys_fragment(), batch, Span::ms(5_000)), out);
    }

    /// Reads the number anew; tells everybody when there is one for the first time.
    pub(crate) fn read_cluster(&mut self) {
        let number = self.sys_record(CLUSTER_KEY).and_then(|r| r.value);
        let number = number.and_then(|v| Some(u64::from_be_bytes(v[..].try_into().ok()?)));
        self.say_cluster |= self.cluster.is_none() && number.is_some();
        self.cluster = number.or(self.cluster);
    }

    /// Tells all peers, when that is due.
    pub(crate) fn tell_cluster(&mut self, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.say_cluster) {
            let links: Vec<LinkId> = self.peers.links().collect();
            links.into_iter().for_each(|link| self.tell_cluster_to(link, out));
        }
    }

    pub(crate) fn tell_cluster_to(&self, link: LinkId, out: &mut Vec<Effect>) {
        out.extend(self.cluster.map(|number| Effect::Frame(link, Frame::Cluster(number))));
    }

    /// A peer's cluster; if it is another one, they are about to merge.
    pub(crate) fn cluster_told(&mut self, from: NodeId, number: u64, out: &mut Vec<Effect>) {
        let other = self.cluster.is_some_and(|mine| mine != number);
        if other && !self.roster.contains_key(&from) {
            out.push(Effect::Notice(Notice::FormedApart(from, self.name_of(from))));
        }
    }
}

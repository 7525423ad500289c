//! The database as its users see it: tables of a running node, from inside its process.
//!
//! Every call waits at most the database's time limit. A write whose fate is not known is [`Outcome::Unknown`], a value;
//! an [`Error`] always means that nothing was changed.

mod subscribe;

use base::{FragmentId, NodeId, Span};
use bytes::Bytes;
use node::{
    Alteration, ClientError, EventMark, Happened, Map, Object, Op, OpReply, Question, Said, Sample, Status, TableDef,
    TableInfo, TableOptions, Vitals, Word,
};
pub use replica::{Batch, Bump, Check, Heal, LedgerRow, Outcome, Range, Record, Refusal, Rows, Space, Tally, Write};
use runtime::Handle;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;
pub use subscribe::{BadPosition, Change, Position, Subscription};

/// How many bytes of rows one scan returns, about.
const SCAN_BYTES: usize = 4 * 1024 * 1024;
/// How soon something is tried again that met with a change.
const AGAIN: Duration = Duration::from_millis(20);
/// A fragment remembers heals in so many rows at most: one for each that it was made of.
const HEALS_ROWS: u32 = 10_000;

/// Why something was not done. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The node says why.
    #[error(transparent)]
    Node(#[from] ClientError),
    /// The node has ended.
    #[error("the node has stopped")]
    Ended,
    /// What became of making a table is not known.
    #[error("whether table {0:?} was made is not known; see `tombolo table list`")]
    Unknown(String),
}

impl Error {
    /// May the same call succeed later, without anybody changing anything?
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Error::Ended | Error::Unknown(_))
            || matches!(self, Error::Node(e) if matches!(e, ClientError::Unavailable { .. } | ClientError::Elsewhere { .. } | ClientError::Recut(_) | ClientError::Overloaded | ClientError::Stopping))
    }
}

/// A running node's database.
#[derive(Clone)]
pub struct Database {
    handle: Handle,
    wait: Span,
}

impl Database {
    /// The database of this node; each call waits at most `limit` for a leader and its answer.
    pub fn new(handle: Handle, limit: Duration) -> Database {
        Database { handle, wait: Span::ms(limit.as_millis() as u64) }
    }

    /// The node.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn limit(&self) -> Duration {
        Duration::from_nanos(self.wait.0)
    }

    pub(crate) async fn op(&self, op: Op) -> Result<OpReply, Error> {
        match self.handle.op(op).await {
            Some(OpReply::Error(e)) => Err(e.into()),
            Some(reply) => Ok(reply),
            None => Err(Error::Ended),
        }
    }

    /// Makes a table; `may_exist`: one of that name is as good.
    pub async fn create_table(&self, name: &str, options: TableOptions, may_exist: bool) -> Result<Table, Error> {
        match self.op(Op::CreateTable(name.into(), options, may_exist)).await? {
            OpReply::Table(def) => Ok(Table { db: self.clone(), def }),
            _ => Err(Error::Unknown(name.into())),
        }
    }

    /// Removes a table. `Unknown`: it may or may not be gone.
    pub async fn drop_table(&self, name: &str) -> Result<Outcome, Error> {
        match self.op(Op::DropTable(name.into())).await? {
            OpReply::Outcome(outcome) => Ok(outcome),
            _ => Err(Error::Ended),
        }
    }

    /// A table that is there.
    pub async fn table(&self, name: &str) -> Result<Table, Error> {
        match self.op(Op::Table(name.into())).await? {
            OpReply::Table(def) => Ok(Table { db: self.clone(), def }),
            _ => Err(Error::Ended),
        }
    }

    /// All tables.
    pub async fn tables(&self) -> Result<Vec<TableDef>, Error> {
        match self.op(Op::Tables).await? {
            OpReply::Tables(all) => Ok(all),
            _ => Err(Error::Ended),
        }
    }

    /// One table, fragment by fragment.
    pub async fn table_info(&self, name: &str) -> Result<TableInfo, Error> {
        match self.op(Op::TableInfo(name.into())).await? {
            OpReply::TableInfo(info) if info.table.max_bytes.is_none() && info.table.max_records.is_none() => Ok(*info),
            OpReply::TableInfo(mut info) => {
                // How it fares its leaders know.
                let map = self.map().await?;
                let table = map.tables.iter().find(|table| table.name == name);
                let tallies = table.into_iter().flat_map(|table| &table.fragments).filter_map(|f| f.tally);
                info.fill = tallies.reduce(Tally::and);
                Ok(*info)
            }
            _ => Err(Error::Ended),
        }
    }

    /// What the processes of all nodes in view use, by node name. Those that do not answer within a second are left out.
    pub async fn vitals(&self) -> Result<BTreeMap<String, Vitals>, Error> {
        let said = self.ask(Question::Vitals, None).await?.into_values();
        Ok(said
            .filter_map(|(name, said)| if let Said::Vitals(vitals) = said { Some((name, vitals)) } else { None })
            .collect())
    }

    /// What happened at each node in view since, at most so much of each, by node with its name. Nodes that do not answer within a
    /// second are left out.
    pub async fn happened(
        &self,
        since: &BTreeMap<NodeId, EventMark>,
        most: u32,
    ) -> Result<BTreeMap<NodeId, (String, Vec<Happened>)>, Error> {
        let said = self.ask(Question::Events(since.clone(), most), None).await?.into_iter();
        let events = |(node, (name, said))| if let Said::Events(all) = said { Some((node, (name, all))) } else { None };
        Ok(said.filter_map(events).collect())
    }

    /// What is to be counted at each node in view, by node with its name. Nodes that do not answer within a second are left out.
    pub async fn metrics(&self) -> Result<BTreeMap<NodeId, (String, Vec<Sample>)>, Error> {
        self.counted(None).await
    }

    /// The same of this node alone.
    pub async fn own_metrics(&self) -> Result<BTreeMap<NodeId, (String, Vec<Sample>)>, Error> {
        self.counted(Some(self.handle.me)).await
    }

    async fn counted(&self, alone: Option<NodeId>) -> Result<BTreeMap<NodeId, (String, Vec<Sample>)>, Error> {
        let said = self.ask(Question::Metrics, alone).await?.into_iter();
        let all = |(node, (name, said))| if let Said::Metrics(all) = said { Some((node, (name, all))) } else { None };
        Ok(said.filter_map(all).collect())
    }

    async fn ask(&self, question: Question, alone: Option<NodeId>) -> Result<BTreeMap<NodeId, (String, Said)>, Error> {
        match self.op(Op::Ask(question, alone)).await? {
            OpReply::Said(all) => Ok(all),
            _ => Err(Error::Ended),
        }
    }

    /// What one node's process says. `None`: it is not in view, or did not answer within a second.
    pub async fn ask_one(&self, node: NodeId, question: Question) -> Result<Option<Said>, Error> {
        Ok(self.ask(question, Some(node)).await?.into_values().next().map(|(_, said)| said))
    }

    /// Why something is as it is: a sentence or two.
    pub async fn why(&self, object: Object) -> Result<String, Error> {
        match self.op(Op::Why(object)).await? {
            OpReply::Text(text) => Ok(text),
            _ => Err(Error::Ended),
        }
    }

    /// Where all copies are, and what is to be moved. Nodes that do not answer within a second are left out.
    pub async fn map(&self) -> Result<Map, Error> {
        match self.op(Op::Map).await? {
            OpReply::Map(map) => Ok(*map),
            _ => Err(Error::Ended),
        }
    }

    /// From now on copies are not evened out, or again. What lacks copies gets them all the same.
    pub async fn pause_balance(&self, paused: bool) -> Result<Outcome, Error> {
        match self.op(Op::PauseBalance(paused)).await? {
            OpReply::Outcome(outcome) => Ok(outcome),
            _ => Err(Error::Ended),
        }
    }

    /// From now on a node takes in so many bytes a second of copies that are made on it, but not less than
    /// [`node::COPY_RATE_MIN`]; `None`: as many as it can.
    pub async fn copy_rate(&self, rate: Option<u64>) -> Result<Outcome, Error> {
        match self.op(Op::CopyRate(rate)).await? {
            OpReply::Outcome(outcome) => Ok(outcome),
            _ => Err(Error::Ended),
        }
    }

    /// Changes a table while it is used. A check that failed: somebody else changed it, again and again, at the same moment.
    pub async fn alter_table(&self, name: &str, change: Alteration) -> Result<Outcome, Error> {
        let begun = tokio::time::Instant::now();
        loop {
            match self.op(Op::AlterTable(name.into(), change.clone())).await? {
                // The definition goes on by itself while its fragments change.
                OpReply::Outcome(Outcome::Failed(Refusal::Check(_))) if begun.elapsed() < self.limit() => {
                    tokio::time::sleep(AGAIN).await;
                }
                OpReply::Outcome(outcome) => return Ok(outcome),
                _ => return Err(Error::Ended),
            }
        }
    }

    /// What an operator says of a node, which is named by its name or its id.
    pub async fn word(&self, node: &str, word: Word) -> Result<Outcome, Error> {
        match self.op(Op::Word(node.into(), word)).await? {
            OpReply::Outcome(outcome) => Ok(outcome),
            _ => Err(Error::Ended),
        }
    }

    /// The heals that all fragments remember, by table; `sys` is the cluster's own.
    pub async fn heals(&self) -> Result<Vec<(String, Heal)>, Error> {
        let mut all = Vec::new();
        for def in self.tables().await?.into_iter().chain([node::sys_table()]) {
            let table = Table { db: self.clone(), def };
            for fragment in table.now().all() {
                let heals = match table.heals(fragment).await {
                    // It was made into others meanwhile, which remember the same; they are asked next time.
                    Err(Error::Node(ClientError::Recut(_))) => continue,
                    heals => heals?,
                };
                all.extend(heals.into_iter().map(|heal| (table.def.name.clone(), heal)));
            }
        }
        Ok(all)
    }

    /// How things stand.
    pub async fn status(&self) -> Result<Status, Error> {
        match self.op(Op::Status).await? {
            OpReply::Status(status) => Ok(*status),
            _ => Err(Error::Ended),
        }
    }
}

/// One table.
#[derive(Clone)]
pub struct Table {
    db: Database,
    def: TableDef,
}

impl Table {
    /// Its definition, as it was when it was asked for.
    pub fn def(&self) -> &TableDef {
        &self.def
    }

    /// Its definition as it is by now, as far as its fragments go.
    pub fn now(&self) -> Cow<'_, TableDef> {
        self.db.handle.renewed(&self.def).map_or(Cow::Borrowed(&self.def), |def| Cow::Owned((*def).clone()))
    }

    /// The fragment that a key lies in now.
    pub fn fragment(&self, key: &[u8]) -> FragmentId {
        self.db.handle.fragment(&self.def, key)
    }

    /// A conditional batch; all its keys must lie in the fragment of `key`.
    pub async fn batch(&self, key: &[u8], batch: Batch) -> Result<Outcome, Error> {
        match self.db.op(Op::Write(self.fragment(key), batch, self.db.wait)).await? {
            OpReply::Outcome(outcome) => Ok(outcome),
            _ => Err(Error::Ended),
        }
    }

    /// Rows of the fragment of `key`, all ranges at one moment.
    pub async fn read(&self, key: &[u8], ranges: Vec<Range>) -> Result<Vec<Rows>, Error> {
        let fragment = self.fragment(key);
        let elsewhere =
            |range: &Range| range.space == Space::User && range.is_point() && self.fragment(&range.from) != fragment;
        if ranges.len() > 1 && ranges.iter().any(elsewhere) {
            return Err(ClientError::Parted(self.def.name.clone()).into());
        }
        self.read_fragment(fragment, ranges).await
    }

    async fn read_fragment(&self, fragment: FragmentId, ranges: Vec<Range>) -> Result<Vec<Rows>, Error> {
        if let Some(rows) = self.db.handle.read_here(fragment, &ranges) {
            return Ok(rows);
        }
        match self.db.op(Op::Read(fragment, ranges, self.db.wait)).await? {
            OpReply::Rows(rows) => Ok(rows),
            _ => Err(Error::Ended),
        }
    }

    /// The live record of one key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Record>, Error> {
        if let Some(found) = self.db.handle.get_here(self.fragment(key), key) {
            return Ok(found);
        }
        let rows = self.read(key, vec![Range::key(Bytes::copy_from_slice(key))]).await?;
        Ok(rows.into_iter().flat_map(|r| r.rows).next().map(|(_, record)| record))
    }

    /// The live record of one key as each node in view has it whose copy can answer for itself. Others are left out, and those that
    /// do not answer within a second.
    pub async fn copies(&self, fragment: FragmentId, key: Bytes) -> Result<Vec<Record>, Error> {
        let said = self.db.ask(Question::Record(fragment, key), None).await?.into_values();
        Ok(said.filter_map(|(_, said)| if let Said::Record(record) = said { record } else { None }).collect())
    }

    /// Up to `limit` values of one fragment that lost a conflict, from a place in the list on, each with its place; and where to
    /// go on, if there may be more. An answer is cut after about 4 MiB.
    pub async fn ledger(
        &self,
        fragment: FragmentId,
        from: Bytes,
        limit: u32,
    ) -> Result<(Vec<(Bytes, LedgerRow)>, Option<Bytes>), Error> {
        let (rows, next) = self.scan_space(Space::Ledger, fragment, from, limit).await?;
        let rule = &self.def.options.policy.default;
        let read = |(at, record): (Bytes, Record)| {
            let mut row = LedgerRow::read(&at, &record)?;
            row.lost.value = row.lost.value.map(|value| replica::shown(rule, &value));
            Some((at, row))
        };
        Ok((rows.into_iter().filter_map(read).collect(), next))
    }

    /// The heals that one fragment remembers, the oldest first.
    pub async fn heals(&self, fragment: FragmentId) -> Result<Vec<Heal>, Error> {
        let (rows, _) = self.scan_space(Space::Heals, fragment, Bytes::new(), HEALS_ROWS).await?;
        let mut all: Vec<Heal> = rows.iter().flat_map(|(_, row)| Heal::read(row)).collect();
        all.sort_unstable();
        Ok(all)
    }

    /// Follows the table from a position on; [`Position::default`] is the very beginning: all that is there comes first.
    pub fn subscribe(&self, from: Position) -> Subscription {
        Subscription::new(self.clone(), from)
    }

    /// Up to `limit` rows of one fragment from `from` on, in key order; and where to go on, if there may be more. An answer
    /// is cut after about 4 MiB. [`ClientError::Recut`]: the table has other fragments by now; see [`Table::now`].
    pub async fn scan_fragment(
        &self,
        fragment: FragmentId,
        from: Bytes,
        limit: u32,
    ) -> Result<(Vec<(Bytes, Record)>, Option<Bytes>), Error> {
        self.scan_space(Space::User, fragment, from, limit).await
    }

    async fn scan_space(
        &self,
        space: Space,
        fragment: FragmentId,
        from: Bytes,
        limit: u32,
    ) -> Result<(Vec<(Bytes, Record)>, Option<Bytes>), Error> {
        let range = Range { space, from, to: None, limit };
        let parts = self.read_fragment(fragment, vec![range]).await?;
        let Some(part) = parts.into_iter().next() else { return Ok((Vec::new(), None)) };
        let last = part.rows.last().filter(|_| part.more).map(|(key, _)| [key, &[0][..]].concat().into());
        Ok((part.rows, last))
    }

    /// Up to `limit` rows from `from` on, before `to`, in key order over all fragments, cut after about 4 MiB; and where to go
    /// on, if there may be more. Each fragment is read at one moment, the fragments at different ones.
    pub async fn scan(
        &self,
        from: Bytes,
        to: Option<Bytes>,
        limit: u32,
    ) -> Result<(Vec<(Bytes, Record)>, Option<Bytes>), Error> {
        let begun = tokio::time::Instant::now();
        loop {
            // While the fragments change a scan may meet some that are no more.
            match self.scan_once(from.clone(), to.clone(), limit).await {
                Err(Error::Node(ClientError::Recut(_))) if begun.elapsed() < self.db.limit() => {
                    tokio::time::sleep(AGAIN).await;
                }
                done => return done,
            }
        }
    }

    async fn scan_once(
        &self,
        from: Bytes,
        to: Option<Bytes>,
        limit: u32,
    ) -> Result<(Vec<(Bytes, Record)>, Option<Bytes>), Error> {
        let range = Range { space: Space::User, from, to, limit };
        let reads = self.now().all().map(|fragment| {
            let (table, range) = (self.clone(), range.clone());
            tokio::spawn(async move { table.read_fragment(fragment, vec![range]).await })
        });
        let reads: Vec<_> = reads.collect();
        let (mut rows, mut complete_to) = (Vec::new(), None::<Bytes>);
        for read in reads {
            for part in read.await.map_err(|_| Error::Ended)?? {
                if part.more {
                    // Beyond its last row, this fragment has more: nothing behind that is complete.
                    let last = part.rows.last().map(|(key, _)| key.clone());
                    complete_to = match (complete_to.take(), last) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                }
                rows.extend(part.rows);
            }
        }
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(last) = &complete_to {
            rows.retain(|(key, _)| key <= last);
        }
        let mut bytes = 0;
        let fit = rows.iter().take_while(|(key, record)| {
            let before = bytes;
            bytes += key.len() + record.value.as_ref().map_or(0, Bytes::len);
            before < SCAN_BYTES
        });
        let most = fit.count().min(limit as usize);
        if rows.len() > most {
            rows.truncate(most);
            complete_to = rows.last().map(|(key, _)| key.clone());
        }
        let next = complete_to.map(|last| [&last[..], &[0]].concat().into());
        Ok((rows, next))
    }
}

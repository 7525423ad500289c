//! Nodes are asked, and what they told is kept for a moment.

use crate::ProcError;
use crate::tree::{Tree, What};
use base::NodeId;
use client::Database;
use node::{Known, Question, Said, Subject};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What was told is looked at for so long before it is asked for again.
const FRESH: Duration = Duration::from_millis(100);
/// Where a node does not answer, what it told so recently may be looked at.
const STALE: Duration = Duration::from_secs(2);
/// So long another node has to answer, besides four times the way there and back,
const WAIT: Duration = Duration::from_millis(80);
/// which is taken to be no more than this together.
const WAY_MAX: Duration = Duration::from_millis(320);
/// One that did not is left alone for so long, unless it answers late.
const QUIET: Duration = Duration::from_secs(2);
/// So long this node has to answer.
const OWN_WAIT: Duration = Duration::from_secs(2);
/// What was not looked at for so long is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// How many subjects are remembered.
const REMEMBERED: usize = 8192;

/// What a node told of a subject.
#[derive(Debug)]
pub(crate) struct Told {
    pub tree: Tree,
    at: Instant,
}

type Remembered = HashMap<(NodeId, Subject), Arc<Told>>;

/// Whom to ask, and what was told.
pub(crate) struct Asker {
    db: Database,
    told: Mutex<Remembered>,
    /// Those that did not answer, and until when they are not asked.
    quiet: Mutex<HashMap<NodeId, Instant>>,
    /// When something was changed at a node: what was asked before then is old.
    changed: Mutex<HashMap<NodeId, Instant>>,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asker {
    pub(crate) fn new(db: Database) -> Arc<Asker> {
        Arc::new(Asker { db, told: Mutex::default(), quiet: Mutex::default(), changed: Mutex::default() })
    }

    pub(crate) fn me(&self) -> NodeId {
        self.db.handle().me
    }

    pub(crate) fn db(&self) -> &Database {
        &self.db
    }

    /// What is known of this node itself.
    pub(crate) async fn own(self: &Arc<Asker>) -> Result<Arc<Told>, ProcError> {
        self.facts(self.me(), Subject::Node).await
    }

    /// How long a node has to answer.
    async fn wait(self: &Arc<Asker>, node: NodeId) -> Duration {
        if node == self.me() {
            return OWN_WAIT;
        }
        let Ok(own) = Box::pin(self.own()).await else { return WAIT };
        let id = node.to_string();
        let roster = own.tree.at(["roster"]);
        let is = |tree: &Tree| matches!(tree.at(["id"]).map(|t| &t.what), Some(What::Leaf(Known::Text(text))) if *text == id);
        let name = match roster.map(|tree| &tree.what) {
            Some(What::Dir(nodes)) => nodes.iter().find(|(_, tree)| is(tree)).map(|(name, _)| name.clone()),
            _ => None,
        };
        let rtt = name.and_then(|name| own.tree.at(["peers", &name, "rtt"]).map(|tree| tree.what.clone()));
        match rtt {
            Some(What::Leaf(Known::Real(ms))) if ms.is_finite() && ms > 0.0 => {
                WAIT + Duration::from_micros((ms.min(1e4) * 4000.0) as u64).min(WAY_MAX)
            }
            _ => WAIT,
        }
    }

    /// One question to one node, on a task that goes on if the answer is late.
    pub(crate) async fn ask(self: &Arc<Asker>, node: NodeId, question: Question) -> Result<Said, ProcError> {
        if lock(&self.quiet).get(&node).is_some_and(|until| Instant::now() < *until) {
            return Err(ProcError::Unavailable);
        }
        let wait = self.wait(node).await;
        let (asker, asked) = (self.clone(), Instant::now());
        let answer = tokio::spawn(async move {
            let said = asker.db.ask_one(node, question.clone()).await.ok().flatten();
            if let Some(said) = &said {
                lock(&asker.quiet).remove(&node);
                asker.keep(node, (&question, asked), said);
            }
            said
        });
        match tokio::time::timeout(wait, answer).await {
            Ok(Ok(Some(said))) => Ok(said),
            // One that is not in view is known not to answer at once.
            Ok(_) if asked.elapsed() < WAIT => Err(ProcError::Unavailable),
            _ => {
                lock(&self.quiet).insert(node, Instant::now() + QUIET);
                Err(ProcError::Unavailable)
            }
        }
    }

    /// However late it comes, whoever asks next has it.
    fn keep(&self, node: NodeId, (question, asked): (&Question, Instant), said: &Said) {
        let (Question::Facts(subject), Said::Facts(facts)) = (question, said) else { return };
        let key = (node, subject.clone());
        if facts.is_empty() {
            // There is no such thing, and nothing to be remembered of it.
            lock(&self.told).remove(&key);
            return;
        }
        let mut tree = Tree::of(facts.clone(), SystemTime::now());
        let before = lock(&self.told).get(&key).cloned();
        if let Some(before) = &before {
            tree.since(&before.tree);
        }
        let mut told = lock(&self.told);
        if told.len() >= REMEMBERED {
            told.retain(|_, told| told.at.elapsed() < FORGET);
        }
        if told.len() >= REMEMBERED {
            let oldest = told.iter().min_by_key(|(_, told)| told.at).map(|(key, _)| key.clone());
            oldest.map(|key| told.remove(&key));
        }
        told.insert(key, Arc::new(Told { tree, at: asked }));
    }

    fn kept(&self, key: &(NodeId, Subject), most: Duration) -> Option<Arc<Told>> {
        lock(&self.told).get(key).filter(|told| told.at.elapsed() < most).cloned()
    }

    /// What a node knows of a subject, as it was at most a tenth of a second ago.
    pub(crate) async fn facts(self: &Arc<Asker>, node: NodeId, subject: Subject) -> Result<Arc<Told>, ProcError> {
        let key = (node, subject);
        let changed = lock(&self.changed).get(&node).copied();
        if let Some(told) = self.kept(&key, FRESH).filter(|told| changed.is_none_or(|at| told.at > at)) {
            return Ok(told);
        }
        match self.ask(node, Question::Facts(key.1.clone())).await {
            Ok(_) => self.kept(&key, FORGET).ok_or(ProcError::NotFound),
            Err(e) => self.kept(&key, STALE).ok_or(e),
        }
    }

    /// Something was changed there: it is asked anew.
    pub(crate) fn forget(&self, node: NodeId) {
        lock(&self.changed).insert(node, Instant::now());
    }
}

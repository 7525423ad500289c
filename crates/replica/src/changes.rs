//! What has changed since a reader last looked: the same delta by heads that copies sync by, for subscribers.

use crate::copy::{Copy, Role};
use crate::forget::Floor;
use crate::key::{self, Space};
use crate::mutant;
use crate::record::Record;
use base::{Heads, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A question of a subscriber: what is there beyond `have`? A long answer comes in parts: then `upto` and `after` are those
/// of the part before. A round is ended by copies that know as much as the
/// one that began it, or begun anew.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Since {
    /// What the subscriber has seen to the end.
    pub have: Heads,
    /// The round under way goes so far.
    pub upto: Option<Heads>,
    /// Its last record so far.
    pub after: Option<(Version, Bytes)>,
    /// Values are of no interest: empty ones are told in their place.
    pub bare: bool,
}

/// The newest record of each user's key that changed, tombstones too, each once: what was overwritten meanwhile is left out.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Changes {
    /// Keys (without the space) and records, in the order of their versions.
    pub rows: Vec<(Bytes, Record)>,
    /// What the subscriber has seen when the round is over. Until then it has seen for certain only what it had seen before
    /// *and* this knows: after a round that is given up, what another island had told may have to be told again.
    pub upto: Heads,
    /// The subscriber has not seen deletions that are forgotten by now: a new round begins with this, of all there is, and
    /// whatever it does not tell of is gone.
    pub anew: bool,
    /// Where the round goes on; `None`: it is over.
    pub after: Option<(Version, Bytes)>,
}

impl Copy {
    /// About `bytes` of what is committed beyond `since`; `None`: this copy is not in step with a leader, or does not know all
    /// that the round under way is to tell.
    pub fn changes(&self, since: &Since, bytes: usize) -> Option<Changes> {
        let (branch, commit) = match &self.role {
            Role::Leading(l) if l.ready => (l.branch, l.commit),
            Role::Following(f) if f.joined => (f.lead.branch, f.commit),
            _ => return None,
        };
        if self.config.stand_in {
            // It does not know what there is.
            return None;
        }
        // Before its first entry is committed, nothing that the branch builds on is.
        if commit == 0 {
            return None;
        }
        let heads = self.store.heads().clamped(branch, commit);
        // Something that was deleted, and forgotten, may be what the subscriber holds still. One that has seen nothing to the
        // end may have seen something in a round that was given up.
        let floor = self.store.floor();
        let first = since.have.is_empty() && since.upto.is_none() && *floor != Floor::default();
        let anew = (first || floor.is_beyond(&since.have, &heads)) && !mutant!(self, ChangesStale);
        let bare = since.bare;
        let since = if anew { &Since::default() } else { since };
        // What comes meanwhile is of the next round: it may lie before the place that this one has come to.
        let upto = since.upto.as_ref().filter(|_| !mutant!(self, ChangesMoving)).unwrap_or(&heads);
        if !upto.within(&heads) && !mutant!(self, ChangesShort) {
            return None;
        }
        let (mut rows, after) = if bare {
            self.store.bare_delta(&since.have, upto, since.after.clone(), bytes)
        } else {
            self.store.delta(&since.have, upto, since.after.clone(), bytes)?
        };
        rows.retain(|(key, _)| key::space_of(key) == Some(Space::User));
        let shown = |key: &Bytes, record| if bare { record } else { self.presented(key, record) };
        let rows = rows.into_iter().map(|(key, record)| (key.slice(1..), shown(&key, record))).collect();
        Some(Changes { rows, upto: upto.clone(), after, anew })
    }
}

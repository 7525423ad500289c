//! Keys and values of a filesystem's tables. Every key begins with an inode number, big-endian; a byte says what follows.
//!
//! | key after `ino` | value |
//! |---|---|
//! | `I` | [`Inode`]: type, mode, owner |
//! | `C` | [`Content`]: size, mtime, map: the commit of a file's data |
//! | `T` | a directory's mtime, and anything's ctime where no other record says it: two fields, merged by `max` |
//! | `A` | atime, when it was set |
//! | `F` | the directory that this one was merged into |
//! | `J` session | what the processes of one mount have locked of it: [`Lock`]s |
//! | `P` link | [`Place`]: the truth of one name |
//! | `D` name 0 ino link | [`Kind`]: the index of `P` in the directory |
//! | `K` ino | a directory in this one: counted for its number of links |
//! | `E` extent | bytes up to 64 KiB, and their checksum |
//! | `L` link | a name that was taken while there were others: [`Gone`] |
//! | `M` page | extents of 16 MiB of a file; never changed |
//! | `X` name | an extended attribute |
//!
//! Under inode 0: `U` ino (unlinked, not freed: [`Gone`], a line from each who removed it), `R` (up to which heal all was tidied),
//! `Y` ino (a conflict that was settled, [`Settled`]), `G` id (extents dropped, not freed), `S` session, `H` ino session (a mount
//! has it open), `N` allocator, `F` (the form of all these records), `V` (moves of directories, one at a time), `Q` session (a
//! mount has directories to itself; how often it wrote them down), `Z` session (which), `q` session ino (another asks for one), `W` session
//! (how many batches of a mount's acknowledged operations have landed).

use crate::fs::{Ino, Kind};
use base::Version;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What rarely changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inode {
    /// Its type.
    pub kind: Kind,
    /// Permission bits, 12 of them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a special file.
    pub rdev: u32,
    /// Where a symbolic link leads.
    pub target: Option<Bytes>,
    /// Nanoseconds since 1970 of the last change of this record.
    pub ctime: u64,
    /// Of its making.
    pub birth: u64,
    /// Changed when it had no name any more: that says nothing against its removal.
    pub after: bool,
}

/// Some bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// Where in the file they lie.
    pub at: u64,
    /// How many.
    pub len: u32,
    /// Under what number they are stored.
    pub id: u64,
    /// Where in the stored extent they begin.
    pub skip: u32,
    /// Stored as one `E` record, not in the blocks table.
    pub small: bool,
}

/// The commit of a file's data.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: u64,
    /// Of the last change of this record.
    pub ctime: u64,
    /// The newest extents, which lie above the pages; sorted, apart.
    pub extents: Vec<Extent>,
    /// Pages of 16 MiB: which, and under what number.
    pub pages: Vec<(u32, u64)>,
    /// See [`Inode::after`].
    pub after: bool,
    /// As it was read: it has no name. Not stored.
    #[serde(skip)]
    pub nameless: bool,
    /// Whoever changes it relies on locks that its mount has. Not stored.
    #[serde(skip)]
    pub locked: bool,
}

/// The truth of one name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The directory.
    pub parent: Ino,
    /// The name in it.
    pub name: Bytes,
    /// When it came there.
    pub ctime: u64,
    /// Of a directory: where it was before its parent changed.
    pub previous: Option<(Ino, Bytes)>,
}

/// Said by whoever takes a name of an inode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gone {
    /// Which link it was.
    pub link: u64,
    /// Where it was, if that is known.
    pub place: Option<Place>,
    /// What it saw of the inode: with anything newer, the other side of a cut wanted it kept.
    pub inode: Version,
    /// And of its bytes.
    pub content: Version,
    /// Nobody asked for it: it was like another of its name. Whoever has it open goes on.
    pub alike: bool,
}

impl Gone {
    /// As a line of a set.
    pub fn to_line(&self) -> Bytes {
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
    }

    /// All lines of a set; those that cannot be read are left out.
    pub fn read(value: &[u8]) -> Vec<Gone> {
        let nibble = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
        let byte = |pair: &[u8]| Some(nibble(pair[0])? << 4 | nibble(pair[1])?);
        let line = |line: &[u8]| {
            let bytes: Option<Vec<u8>> = line.chunks_exact(2).map(byte).collect();
            postcard::from_bytes(&bytes?).ok()
        };
        value.split(|c| *c == b'\n').filter_map(line).collect()
    }
}

/// A conflict between islands, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settled {
    /// Nanoseconds since 1970.
    pub at: u64,
    /// In words.
    pub what: String,
}

/// A mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// On which node.
    pub node: base::NodeId,
    /// In which start of it.
    pub incarnation: u64,
    /// It has looked at every `U` and `G` up to this stamp.
    pub seen: u64,
    /// After which heals.
    pub heals: u64,
}

/// A locked range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// Whose: a number of the kernel's.
    pub owner: u64,
    /// The process that asked for it.
    pub pid: u32,
    /// The first byte.
    pub start: u64,
    /// And the last.
    pub end: u64,
    /// Nobody else has it; otherwise nobody writes.
    pub write: bool,
    /// Wall nanoseconds since 1970 when it was given: of two that islands gave the earlier stays.
    pub since: u64,
}

/// Things dropped by a commit: extents (small or not) and pages of an inode.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Dropped {
    /// Whose.
    pub ino: Ino,
    /// Numbers of `E` records.
    pub small: Vec<u64>,
    /// Numbers of extents in the blocks table, and their length.
    pub blocks: Vec<(u64, u32)>,
    /// Numbers of `M` records.
    pub pages: Vec<u64>,
}

/// Encodes a value of this filesystem.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    // Plain data into memory: cannot fail; an empty value would be reported as damage.
    postcard::to_stdvec(value).unwrap_or_default().into()
}

/// Decodes one.
pub(crate) fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, crate::FsError> {
    postcard::from_bytes(bytes).map_err(|_| crate::FsError::Damaged("a record cannot be read"))
}

pub(crate) fn key(ino: Ino, kind: u8, rest: &[&[u8]]) -> Bytes {
    let mut key = BytesMut::with_capacity(32);
    key.put_u64(ino);
    key.put_u8(kind);
    rest.iter().for_each(|part| key.put_slice(part));
    key.freeze()
}

/// Whose record this is the key of; 0: nobody's.
pub(crate) fn ino_of(key: &Bytes) -> Ino {
    key.first_chunk::<8>().map_or(0, |ino| u64::from_be_bytes(*ino))
}

/// Between which keys all of an inode lies, in either table: from the first on, to before the second.
pub(crate) fn all_of(ino: Ino) -> (Bytes, Option<Bytes>) {
    let at = |ino: Ino| Bytes::copy_from_slice(&ino.to_be_bytes());
    (at(ino), ino.checked_add(1).map(at))
}

pub(crate) fn inode(ino: Ino) -> Bytes {
    key(ino, b'I', &[])
}

pub(crate) fn content(ino: Ino) -> Bytes {
    key(ino, b'C', &[])
}

pub(crate) fn times(ino: Ino) -> Bytes {
    key(ino, b'T', &[])
}

pub(crate) fn atime(ino: Ino) -> Bytes {
    key(ino, b'A', &[])
}

pub(crate) fn places(ino: Ino) -> Bytes {
    key(ino, b'P', &[])
}

pub(crate) fn place(ino: Ino, link: u64) -> Bytes {
    key(ino, b'P', &[&link.to_be_bytes()])
}

pub(crate) fn names(dir: Ino) -> Bytes {
    key(dir, b'D', &[])
}

pub(crate) fn name(dir: Ino, name: &[u8]) -> Bytes {
    key(dir, b'D', &[name, &[0]])
}

pub(crate) fn entry(dir: Ino, name: &[u8], ino: Ino, link: u64) -> Bytes {
    key(dir, b'D', &[name, &[0], &ino.to_be_bytes(), &link.to_be_bytes()])
}

/// Splits an entry's key into name, inode and link.
pub(crate) fn split_entry(key: &Bytes) -> Option<(Bytes, Ino, u64)> {
    let tail = key.len().checked_sub(17).filter(|at| *at >= 9)?;
    let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    Some((key.slice(9..tail), number(tail + 1)?, number(tail + 9)?))
}

/// The directories in one.
pub(crate) fn subdirs(dir: Ino) -> Bytes {
    key(dir, b'K', &[])
}

pub(crate) fn subdir(dir: Ino, ino: Ino) -> Bytes {
    key(dir, b'K', &[&ino.to_be_bytes()])
}

pub(crate) fn small(ino: Ino, id: u64) -> Bytes {
    key(ino, b'E', &[&id.to_be_bytes()])
}

pub(crate) fn page(ino: Ino, id: u64) -> Bytes {
    key(ino, b'M', &[&id.to_be_bytes()])
}

pub(crate) fn locks(ino: Ino) -> Bytes {
    key(ino, b'J', &[])
}

/// Is it the key of what a mount has locked?
pub(crate) fn is_lock(key: &Bytes) -> bool {
    ino_of(key) != 0 && key.get(8) == Some(&b'J')
}

pub(crate) fn lock_of(ino: Ino, session: u64) -> Bytes {
    key(ino, b'J', &[&session.to_be_bytes()])
}

pub(crate) fn xattr(ino: Ino, name: &[u8]) -> Bytes {
    key(ino, b'X', &[name])
}

/// One 64 KiB piece of an extent in the blocks table.
pub(crate) fn block(ino: Ino, id: u64, piece: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(20);
    key.put_u64(ino);
    key.put_u64(id);
    key.put_u32(piece);
    key.freeze()
}

pub(crate) fn orphans() -> Bytes {
    key(0, b'U', &[])
}

pub(crate) fn orphan(ino: Ino) -> Bytes {
    key(0, b'U', &[&ino.to_be_bytes()])
}

pub(crate) fn dropped_all() -> Bytes {
    key(0, b'G', &[])
}

pub(crate) fn dropped(id: u64) -> Bytes {
    key(0, b'G', &[&id.to_be_bytes()])
}

pub(crate) fn taken(ino: Ino, link: u64) -> Bytes {
    key(ino, b'L', &[&link.to_be_bytes()])
}

pub(crate) fn tidied() -> Bytes {
    key(0, b'R', &[])
}

pub(crate) fn settled(id: u64) -> Bytes {
    key(0, b'Y', &[&id.to_be_bytes()])
}

/// Between which keys lies what was settled: from the first on, to before the second.
pub fn all_settled() -> (Bytes, Bytes) {
    (key(0, b'Y', &[]), key(0, b'Y' + 1, &[]))
}

/// Reads one of those records, with its number.
pub fn read_settled(key: &Bytes, value: &[u8]) -> Option<(u64, Settled)> {
    let id = key.get(9..17).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes)?;
    Some((id, decode(value).ok()?))
}

pub(crate) fn merged(dir: Ino) -> Bytes {
    key(dir, b'F', &[])
}

pub(crate) fn sessions() -> Bytes {
    key(0, b'S', &[])
}

pub(crate) fn session(id: u64) -> Bytes {
    key(0, b'S', &[&id.to_be_bytes()])
}

pub(crate) fn holds() -> Bytes {
    key(0, b'H', &[])
}

pub(crate) fn holds_of(ino: Ino) -> Bytes {
    key(0, b'H', &[&ino.to_be_bytes()])
}

pub(crate) fn hold(ino: Ino, session: u64) -> Bytes {
    key(0, b'H', &[&ino.to_be_bytes(), &session.to_be_bytes()])
}

pub(crate) fn allocator(n: u32) -> Bytes {
    key(0, b'N', &[&n.to_be_bytes()])
}

pub(crate) fn delegations() -> Bytes {
    key(0, b'Q', &[])
}

pub(crate) fn delegation(session: u64) -> Bytes {
    key(0, b'Q', &[&session.to_be_bytes()])
}

/// What a mount has to itself: always written with [`delegation`], which is small, and says whether this is as it was.
pub(crate) fn scope(session: u64) -> Bytes {
    key(0, b'Z', &[&session.to_be_bytes()])
}

pub(crate) fn recalls_of(session: u64) -> Bytes {
    key(0, b'q', &[&session.to_be_bytes()])
}

pub(crate) fn recall(session: u64, dir: Ino) -> Bytes {
    key(0, b'q', &[&session.to_be_bytes(), &dir.to_be_bytes()])
}

pub(crate) fn markers() -> Bytes {
    key(0, b'W', &[])
}

pub(crate) fn marker(session: u64) -> Bytes {
    key(0, b'W', &[&session.to_be_bytes()])
}

/// The directories that a mount has to itself, a line each. Lines are sorted, as sets of lines that islands merge are.
pub(crate) fn encode_scope(mut dirs: Vec<Ino>) -> Bytes {
    dirs.sort_unstable();
    let lines: Vec<String> = dirs.into_iter().map(|dir| format!("{dir:016x}")).collect();
    lines.join("\n").into()
}

/// The inverse; what is no number is left out.
pub(crate) fn decode_scope(value: &[u8]) -> HashSet<Ino> {
    let lines = value.split(|c| *c == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter_map(|line| Ino::from_str_radix(line, 16).ok()).collect()
}

pub(crate) fn form() -> Bytes {
    key(0, b'F', &[])
}

pub(crate) fn moves() -> Bytes {
    key(0, b'V', &[])
}

/// Bytes with their checksum before them, so that damage is told from data.
pub(crate) fn checked(bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 8);
    out.put_slice(&blake3::hash(bytes).as_bytes()[..8]);
    out.put_slice(bytes);
    out.freeze()
}

/// The inverse of [`checked`].
pub(crate) fn unchecked(stored: &Bytes) -> Result<Bytes, crate::FsError> {
    let (sum, bytes) = stored.split_at_checked(8).ok_or(crate::FsError::Damaged("data without checksum"))?;
    if blake3::hash(bytes).as_bytes()[..8] != *sum {
        return Err(crate::FsError::Damaged("data whose checksum is wrong"));
    }
    Ok(stored.slice(8..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_split_as_they_were_put_together() {
        for name in [&b"a"[..], b"name with spaces", &[0xff; 255]] {
            let key = entry(7, name, u64::MAX, 3);
            assert_eq!(split_entry(&key), Some((Bytes::copy_from_slice(name), u64::MAX, 3)));
            assert!(key.starts_with(&super::name(7, name)));
        }
        assert_eq!(split_entry(&Bytes::from_static(b"short")), None);
    }

    #[test]
    fn lines_of_a_set_are_read_as_they_were_written() {
        let place = Place { parent: 1, name: Bytes::from_static(b"a\nb"), ctime: 5, previous: None };
        let one =
            Gone { link: 7, place: Some(place), inode: Version::default(), content: Version::default(), alike: false };
        let two = Gone { link: 8, place: None, ..one.clone() };
        let lines = [&one.to_line()[..], b"\n", &two.to_line()[..], b"\nno line"].concat();
        assert_eq!(Gone::read(&lines), [one, two]);
    }

    #[test]
    fn altered_data_is_noticed() {
        let stored = checked(b"bytes");
        assert_eq!(unchecked(&stored).expect("sound"), Bytes::from_static(b"bytes"));
        for i in 0..stored.len() {
            let mut bad = stored.to_vec();
            bad[i] ^= 1;
            assert!(unchecked(&bad.into()).is_err());
        }
        assert!(unchecked(&Bytes::from_static(b"1234567")).is_err());
    }
}

//! POSIX access control lists, as the kernel keeps them in extended attributes (`acl(5)`, `linux/posix_acl_xattr.h`). Pure.
//!
//! Who may do what the kernel decides; what is done here is to keep list and mode in step, and to let new inodes inherit.

use bytes::{BufMut, Bytes, BytesMut};

/// Name of the list that decides.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of a directory's list for what is made in it.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// `None`: these bytes are no list.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Acl> {
        let (version, rest) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return None;
        }
        let entry = |e: &[u8]| {
            let (tag, perm) = (u16::from_le_bytes([e[0], e[1]]), u16::from_le_bytes([e[2], e[3]]));
            Entry { tag, perm, id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]) }
        };
        let acl = Acl(rest.chunks_exact(8).map(entry).collect());
        [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| acl.find(*tag).is_some()).then_some(acl)
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(4 + 8 * self.0.len());
        out.put_u32_le(VERSION);
        for e in &self.0 {
            out.put_u16_le(e.tag);
            out.put_u16_le(e.perm);
            out.put_u32_le(e.id);
        }
        out.freeze()
    }

    fn find(&self, tag: u16) -> Option<&Entry> {
        self.0.iter().find(|e| e.tag == tag)
    }

    /// What the three classes of a mode stand for in this list: the group's is the mask, if there is one.
    fn classes(&mut self) -> [(Option<&mut Entry>, u32); 3] {
        let group = if self.find(MASK).is_some() { MASK } else { GROUP_OBJ };
        let (mut user, mut middle, mut other) = (None, None, None);
        for entry in &mut self.0 {
            match entry.tag {
                USER_OBJ => user = Some(entry),
                OTHER => other = Some(entry),
                tag if tag == group => middle = Some(entry),
                _ => {}
            }
        }
        [(user, 6), (middle, 3), (other, 0)]
    }

    /// Does it say no more than a mode does?
    pub(crate) fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The mode as this list has it.
    pub(crate) fn mode(&mut self, mode: u32) -> u32 {
        let said = self.classes().into_iter().map(|(e, shift)| u32::from(e.map_or(0, |e| e.perm & 7)) << shift);
        mode & !0o777 | said.sum::<u32>()
    }

    /// Follows a change of the mode.
    pub(crate) fn set_mode(&mut self, mode: u32) {
        for (entry, shift) in self.classes() {
            if let Some(entry) = entry {
                entry.perm = (mode >> shift & 7) as u16;
            }
        }
    }

    /// The list of something new in a directory that has this one as its default, and its mode. `posix_acl_create` of Linux.
    pub(crate) fn inherited(&self, mode: u32) -> (Acl, u32) {
        let mut acl = self.clone();
        for (entry, shift) in acl.classes() {
            if let Some(entry) = entry {
                entry.perm &= (mode >> shift & 7) as u16;
            }
        }
        let mode = acl.mode(mode);
        (acl, mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|(tag, perm, id)| Entry { tag: *tag, perm: *perm, id: *id }).collect())
    }

    #[test]
    fn bytes_are_read_as_they_were_written_and_others_refused() {
        let list = acl(&[(1, 7, u32::MAX), (2, 6, 33), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)]);
        assert_eq!(Acl::parse(&list.to_bytes()), Some(list));
        for bad in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0", b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff"] {
            assert_eq!(Acl::parse(bad), None);
        }
    }

    #[test]
    fn the_mask_is_the_group_of_the_mode() {
        let mut list = acl(&[(1, 6, 0), (2, 7, 33), (4, 5, 0), (16, 4, 0), (32, 1, 0)]);
        assert_eq!(list.mode(0o4777), 0o4641);
        list.set_mode(0o750);
        assert_eq!(list, acl(&[(1, 7, 0), (2, 7, 33), (4, 5, 0), (16, 5, 0), (32, 0, 0)]));
        let mut minimal = acl(&[(1, 6, 0), (4, 4, 0), (32, 0, 0)]);
        assert!(minimal.is_minimal() && minimal.mode(0) == 0o640);
    }

    #[test]
    fn what_is_new_gets_no_more_than_its_maker_asked_for() {
        let default = acl(&[(1, 7, 0), (2, 7, 33), (4, 7, 0), (16, 7, 0), (32, 5, 0)]);
        let (list, mode) = default.inherited(0o100644 & 0o7777);
        assert_eq!(mode, 0o644);
        assert_eq!(list, acl(&[(1, 6, 0), (2, 7, 33), (4, 7, 0), (16, 4, 0), (32, 4, 0)]));
    }
}

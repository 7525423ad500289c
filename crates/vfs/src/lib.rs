//! walkenfs: filesystem semantics over the database. No FUSE type, no errno.
//!
//! Three sentences carry it. **Extents never change; the inode's `C` record is the commit. Every operation on names is one
//! conditional batch. Nothing is freed until every mount and every copy has seen that it is gone.** `docs/walkenfs.md` has
//! the records and the operations; [`record`] names them.
//!
//! What other mounts change is told to this machine's kernel (`watch`), and what two islands made of one tree is made one tree
//! again (`tidy`, `settle`). Where a mount works alone it is acknowledged at once (`delegate`, `land`, `recall`, `salvage`). So far: one
//! locality per filesystem.

mod acl;
mod attrs;
mod check;
#[cfg(test)]
mod damage;
mod data;
mod delegate;
mod dir;
mod error;
mod fs;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod islands;
mod land;
mod locks;
mod map;
#[cfg(test)]
mod model;
mod names;
mod numbers;
mod overlay;
mod reap;
mod recall;
pub mod record;
mod salvage;
mod scrub;
mod settle;
mod space;
mod state;
mod tables;
mod tidy;
mod usage;
mod watch;

pub use attrs::SetXattr;
pub use check::Checked;
pub use dir::{Entry, Listing};
pub use error::{FsError, MountError};
pub use fs::{
    Attr, Caller, Fs, HandleId, Ino, Kind, MountOptions, New, Over, SetAttr, Usage, filesystems, table_names,
};
pub use locks::Wanted;
pub use space::Allocate;
pub use state::{Standing, State};
pub use watch::{Kernel, Mark};

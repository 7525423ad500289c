//! What other versions of this program say and wrote, and will understand: bytes of frames and of records of the system table.
//! Whoever changes them on purpose raises the versions ([`crate::PROTOCOL`], [`wire::FORMAT`]), and writes the file anew:
//! `GOLDEN=write cargo test -p node golden`.

use crate::frame::{Frame, Hello};
use crate::lifecycle::{Burial, Whole};
use crate::schema::{TableDef, TableOptions};
use base::{Ballot, BranchId, FragmentId, Heads, Hlc, NodeId, TableId, Version, WallMs};
use membership::{Mark, RosterEntry, RosterStatus};
use replica::{Batch, Check, Entry, Msg, Record, Request, SessionId, Write};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// One line of the file; and what it stands for is read from it as it was.
fn line<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) -> String {
    let bytes = wire::encode(value).expect("small");
    assert_eq!(&wire::decode::<T>(&bytes).expect("its own"), value);
    format!("{name} {}\n", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

fn records() -> String {
    let node = NodeId(0x0123_4567_89ab_cdef);
    let addr = "10.0.0.1:7474".parse().expect("an address");
    let (name, zone) = ("n1".to_string(), Some("cellar".to_string()));
    let status = RosterStatus::Up;
    let entry = RosterEntry { name: name.clone(), addr, zone, incarnation: 3, life: 1, status, weight: Some(50) };
    let burial =
        Burial { node, life: 1, name, addr, by: NodeId(2), at: WallMs(1_700_000_000_000), why: "it left".into() };
    let whole = Whole { now: [node].into(), before: Some([NodeId(2), node].into()), roster: [node].into() };
    let table = TableDef::new("t", TableOptions::default(), 2, vec![node, NodeId(2)]);
    let marks = (Mark::Immortal, Mark::Condemned { force: true }, Mark::Leaving);
    [
        line("roster", &entry),
        line("burial", &burial),
        line("whole", &whole),
        line("table", &table),
        line("marks", &marks),
    ]
    .concat()
}

fn frames() -> String {
    let node = NodeId(0x0123_4567_89ab_cdef);
    let listen = "[fe80::1]:7474".parse().expect("an address");
    let hello = Hello { protocol: 0x0501, node, incarnation: 3, life: 1, name: "n1".into(), listen, zone: None };
    let fragment = FragmentId { table: TableId(99), index: 5 };
    let branch = BranchId { node, n: 300 };
    let (ballot, version) = (Ballot { counter: 7, node }, Version { branch, seq: 70_000 });
    let heads = Heads::from_iter([version]);
    let record = Record { version, hlc: Hlc(1 << 50), expires: Some(WallMs(5)), value: Some("value".into()) };
    let entries = vec![Entry { seq: 8, sync: true, puts: vec![("key".into(), record)] }];
    let append = Msg::Append { ballot, session: 4, entries, commit: 7 };
    let staged = Heads::default();
    let join = Msg::Join { ballot, branch, session: 4, heads, staged, promised: ballot, stand_in: false };
    let writes = vec![Write::Put { key: "k".into(), value: "v".into(), ttl_ms: Some(9) }];
    let batch = Batch { checks: vec![Check::Absent("k".into())], writes, sync: true };
    let session = SessionId { node, incarnation: 3 };
    let request = Request { session, number: 5, done_through: 4, branches: vec![branch], batch };
    [
        line("hello", &hello),
        line("append", &Frame::Copy(fragment, append)),
        line("join", &Frame::Copy(fragment, join)),
        line("write", &Frame::Write(6, fragment, request)),
        line("invite", &Frame::Invite(fragment)),
        line("life", &Frame::Life(2)),
        line("bye", &Frame::Bye),
    ]
    .concat()
}

#[test]
fn golden_frames_and_records() {
    let text = frames() + &records();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/forms");
    if std::env::var_os("GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(path, &text).expect("written");
    }
    assert_eq!(std::fs::read_to_string(path).expect("there"), text);
}

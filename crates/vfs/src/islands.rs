//! What an attack on tidying and freeing came to, case by case.

use crate::fs::{Kind, New, Over, ROOT};
use crate::model::{World, tokens};
use crate::reap::Rounds;
use std::collections::BTreeSet;

fn file() -> New {
    New { kind: Kind::File, mode: 0o644, umask: 0, uid: 0, gid: 0, rdev: 0, target: None }
}

/// Both mounts look for what may be freed, often enough that each has seen what the other did.
async fn reap(world: &World) {
    let mut rounds = [Rounds::default(), Rounds::default()];
    for _ in 0..4 {
        for (mount, rounds) in world.mounts.iter().zip(&mut rounds) {
            mount.reap(rounds).await.expect("reaped");
        }
    }
}

/// A file with something in it.
async fn made(world: &mut World, name: &[u8]) -> u64 {
    let ino = world.mounts[0].make(ROOT, name, file()).await.expect("made").0.ino;
    world.write(0, ino).await.expect("written");
    ino
}

#[tokio::test(start_paused = true)]
async fn what_is_brought_back_is_not_freed_by_who_saw_it_removed() {
    let mut world = World::new(7).await;
    let ino = made(&mut world, b"f").await;
    world.cut(true);
    world.mounts[0].remove(ROOT, b"f", false).await.expect("removed");
    // Twice, so that something was given up later than that.
    world.write(1, ino).await.expect("written");
    world.write(1, ino).await.expect("written");
    reap(&world).await;
    world.cut(false);
    reap(&world).await;
    let tree = world.check().await.expect("sound");
    assert_eq!(tree.len(), 1, "{tree:?}");
}

#[tokio::test(start_paused = true)]
async fn of_names_that_were_taken_the_last_comes_back_and_no_older_one() {
    let mut world = World::new(7).await;
    let ino = made(&mut world, b"a").await;
    for name in [&b"b"[..], b"old"] {
        world.mounts[0].link(ino, ROOT, name).await.expect("linked");
    }
    world.mounts[0].remove(ROOT, b"old", false).await.expect("removed");
    world.write(0, ino).await.expect("written");
    world.cut(true);
    world.mounts[0].remove(ROOT, b"a", false).await.expect("removed");
    world.mounts[1].remove(ROOT, b"b", false).await.expect("removed");
    world.cut(false);
    world.mounts[0].tidy(true, drop).await.expect("tidied");
    let tree = world.check().await.expect("sound");
    assert!(tree.len() == 1 && !tree.contains_key("/old"), "{tree:?}");
}

#[tokio::test(start_paused = true)]
async fn versions_are_settled_when_their_bytes_have_come() {
    let mut world = World::new(7).await;
    let ino = made(&mut world, b"f").await;
    world.cut(true);
    for (mount, byte) in [(0, b'A'), (1, b'B')] {
        let fs = &world.mounts[mount];
        let (handle, _) = fs.open(ino, false).await.expect("opened");
        fs.write(handle, 0, &vec![byte; 200_000], false).await.expect("written");
        fs.flush(handle).await.expect("flushed");
        fs.release(handle).await;
    }
    // The names meet, the bytes do not yet.
    world.cut_table(0, false);
    let tidied = [world.mounts[0].tidy(true, drop).await, world.mounts[1].tidy(true, drop).await];
    assert!(tidied.iter().any(Result::is_err), "{tidied:?}");
    world.cut_table(1, false);
    reap(&world).await;
    let tree = world.check().await.expect("sound");
    assert_eq!(tokens(&tree), BTreeSet::from(["AAAAAAAA".into(), "BBBBBBBB".into()]), "{tree:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_a_file_open_that_was_made_alike_loses_nothing() {
    let world = World::new(7).await;
    world.cut(true);
    let mut handles = Vec::new();
    for mount in &world.mounts {
        let (log, _) = mount.make(ROOT, b"log", file()).await.expect("made");
        handles.push(mount.open_known(log.ino, true));
    }
    world.cut(false);
    reap(&world).await;
    assert_eq!(world.check().await.expect("sound").len(), 1, "they are alike");
    for (n, (mount, handle)) in world.mounts.iter().zip(&handles).enumerate() {
        mount.write(*handle, 0, format!("token {n}.").as_bytes(), false).await.expect("written");
        mount.fsync(*handle).await.expect("synced");
        mount.release(*handle).await;
    }
    reap(&world).await;
    let tree = world.check().await.expect("sound");
    assert_eq!(tokens(&tree).len(), 2, "{tree:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_mended_does_not_keep_the_rest_from_it() {
    let mut world = World::new(7).await;
    let ino = made(&mut world, b"f").await;
    let gone = client::Write::Delete { key: crate::record::inode(ino) };
    world.mounts[0].commit(Vec::new(), vec![gone], false).await.expect("deleted");
    world.mounts[0].tidy(true, drop).await.expect("tidied");
    assert!(world.tree(0).await.expect("a tree").is_empty());
    let left = world.mounts[0].fsck(true).await.expect("looked").left;
    assert!(left.iter().any(|what| what.contains("records of inode")), "{left:?}");
}

/// A name that is only half there is nobody's: what is made under it is another file.
#[tokio::test(start_paused = true)]
async fn moved_on_both_sides_it_is_in_one_place() {
    let mut world = World::new(7).await;
    made(&mut world, b"x").await;
    world.cut(true);
    world.mounts[0].rename(ROOT, b"x", ROOT, b"y", Over::Replace).await.expect("moved");
    world.mounts[1].rename(ROOT, b"x", ROOT, b"z", Over::Replace).await.expect("moved");
    world.cut(false);
    let there = [&b"y"[..], b"z"].map(|name| world.mounts[0].lookup(ROOT, name));
    let [y, z] = there;
    assert!(y.await.expect("looked up").is_ok() != z.await.expect("looked up").is_ok(), "before it is tidied, too");
    reap(&world).await;
    assert_eq!(world.check().await.expect("sound").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_filesystem_of_another_form_is_refused() {
    let world = World::new(7).await;
    let other = crate::fs::put(crate::record::form(), 99u64.to_be_bytes().to_vec().into());
    world.mounts[0].commit(Vec::new(), vec![other], false).await.expect("put");
    let said = world.mount(1).await.err().expect("refused").to_string();
    assert!(said.contains("shared") && said.contains("form 99"), "{said}");
}

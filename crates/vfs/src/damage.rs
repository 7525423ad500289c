//! Damage that is put in on purpose, and who finds and mends it.

use crate::fs::{Fs, Ino, Kind, ROOT, lock};
use crate::model::{World, new};
use crate::tidy::Walk;
use bytes::Bytes;
use client::{Batch, Range, Space};
use rand::RngExt;
use std::collections::BTreeSet;

/// A file with these bytes.
async fn file(fs: &Fs, bytes: &[u8]) -> Ino {
    let ino = fs.make(ROOT, b"file", new(Kind::File)).await.expect("made").0.ino;
    let (handle, _) = fs.open(ino, false).await.expect("opened");
    fs.write(handle, 0, bytes, false).await.expect("written");
    fs.flush(handle).await.expect("flushed");
    ino
}

/// Records that go missing are found, and what can be mended is; nothing else is touched.
#[tokio::test(start_paused = true)]
async fn damage_that_was_put_in_is_found_and_mended() {
    let mut kinds = BTreeSet::new();
    for seed in 1..40 {
        let mut world = World::new(seed).await;
        for _ in 0..60 {
            world.operate(0).await.expect("done");
        }
        let (fs, before) = (&world.mounts[0], world.check().await.expect("sound"));
        let range = Range { space: Space::User, from: ROOT.to_be_bytes().to_vec().into(), to: None, limit: 100_000 };
        let rows = fs.read_meta(vec![range]).await.expect("read").remove(0).rows;
        let mut keys: Vec<Bytes> = rows.into_iter().map(|(key, _)| key).collect();
        keys.retain(|key| matches!(key[8], b'D' | b'P' | b'K' | b'I') && key[..] != crate::record::inode(ROOT)[..]);
        let key = keys[world.rng.random_range(0..keys.len())].clone();
        let ino = u64::from_be_bytes(*key.first_chunk().expect("a number"));
        let is_gone = fs.get(crate::record::orphan(ino)).await.expect("read").is_some();
        if is_gone {
            continue;
        }
        fs.commit(Vec::new(), vec![client::Write::Delete { key: key.clone() }], false).await.expect("done");
        let found = fs.walk(Walk::new(false, true, true)).await.expect("walked").found;
        assert!(!found.is_empty(), "seed {seed}: {key:?} is missing, and nobody says so");
        kinds.insert(key[8]);
        if key[8] == b'I' {
            continue;
        }
        fs.tidy(true, drop).await.expect("tidied");
        assert_eq!(world.check().await.expect("sound"), before, "seed {seed}: {key:?}");
    }
    assert_eq!(kinds, BTreeSet::from(*b"DPKI"));
}

/// Bytes that are gone, or are others than were written, are found.
#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_what_was_written_are_found() {
    for large in [false, true] {
        let world = World::new(7).await;
        let fs = &world.mounts[0];
        let ino = file(fs, &vec![7; if large { 200_000 } else { 100 }]).await;
        assert_eq!(fs.fsck(false).await.expect("looked").left, Vec::<String>::new());
        let (content, _) = fs.content(ino).await.expect("there");
        let extent = content.extents[0];
        let (table, key) = match large {
            false => (&fs.meta, crate::record::small(ino, extent.id)),
            true => (&fs.blocks, crate::record::block(ino, extent.id, 1)),
        };
        let put = |value: Vec<u8>| client::Write::Put { key: key.clone(), value: value.into(), ttl_ms: None };
        for (write, says) in
            [(put(vec![1; 108]), "checksum"), (client::Write::Delete { key: key.clone() }, "not found")]
        {
            let batch = Batch { writes: vec![write], ..Batch::default() };
            table.batch(&ino.to_be_bytes(), batch).await.expect("put");
            let left = fs.fsck(true).await.expect("looked").left;
            assert!(left.len() == 1 && left[0].contains("file") && left[0].contains(says), "{left:?}");
            assert!(fs.read(ino, 0, 1 << 20).await.is_err());
        }
    }
}

/// Of two who write much of one file at once the one that is late names what it has stored, and not what it would have.
#[tokio::test(start_paused = true)]
async fn who_commits_late_finds_its_bytes() {
    for seed in 1..20 {
        let world = World::new(seed).await;
        let ino = world.mounts[0].make(ROOT, b"file", new(Kind::File)).await.expect("made").0.ino;
        let write = |side: usize| {
            let fs = world.mounts[side].clone();
            async move {
                let (handle, _) = fs.open(ino, false).await?;
                let (at, bytes) = (side as u64 * 300_000, vec![side as u8 + 1; 300_000]);
                fs.write(handle, at, &bytes, false).await?;
                fs.flush(handle).await
            }
        };
        let (one, two) = tokio::join!(write(0), write(1));
        assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
        let bytes = world.mounts[0].read(ino, 0, 600_000).await.expect("all of it is there");
        assert!(bytes[..300_000].iter().all(|b| *b == 1) && bytes[300_000..].iter().all(|b| *b == 2));
    }
}

/// What one copy has wrong is put right from the other, by whoever reads it.
#[tokio::test(start_paused = true)]
async fn what_one_copy_has_wrong_is_put_right_from_the_other() {
    for large in [false, true] {
        let world = World::new(7).await;
        let fs = &world.mounts[0];
        let bytes = vec![7; if large { 200_000 } else { 100 }];
        let ino = file(fs, &bytes).await;
        let extent = fs.content(ino).await.expect("there").0.extents[0];
        let (table, key) = match large {
            false => (0, crate::record::small(ino, extent.id)),
            true => (1, crate::record::block(ino, extent.id, 2)),
        };
        let spoil = |copies: &[usize]| {
            let mut pair = lock(&world.tables[table]);
            let leader = pair.leader(0);
            let row = pair.rows(leader, vec![Range::key(key.clone())]).remove(0).rows.remove(0).1;
            let bad = |copy: &usize| ((*copy, key.clone()), (row.version, Bytes::from_static(b"not what was written")));
            pair.rot.extend(copies.iter().map(bad));
        };
        spoil(&[0, 1]);
        assert!(fs.read(ino, 0, 1 << 20).await.is_err());
        let scrubbed = fs.scrub(u64::MAX).await.expect("looked");
        assert!(scrubbed.mended == 0 && scrubbed.found.len() == 1, "no copy has it: {scrubbed:?}");
        lock(&world.tables[table]).rot.clear();
        let leader = lock(&world.tables[table]).leader(0);
        spoil(&[leader]);
        assert!(fs.read(ino, 0, 1 << 20).await.is_err());
        let found = fs.fsck(false).await.expect("looked");
        assert!(found.mended == 0 && found.left.len() == 1, "who only looks mends nothing: {found:?}");
        let found = fs.fsck(true).await.expect("looked");
        assert!(found.mended == 1 && found.left.is_empty(), "{found:?}");
        assert_eq!(fs.read(ino, 0, 1 << 20).await.expect("read"), bytes);
    }
}

/// What is stored, and named by nothing for a day, is found, and goes; nothing else does.
#[tokio::test(start_paused = true)]
async fn what_nothing_names_is_found_and_goes() {
    let mut world = World::new(9).await;
    for _ in 0..60 {
        world.operate(0).await.expect("done");
    }
    let before = world.check().await.expect("sound");
    let fs = &world.mounts[0];
    let ino = fs.make(ROOT, b"file", new(Kind::File)).await.expect("made").0.ino;
    let put = |key: Bytes| client::Write::Put { key, value: crate::record::checked(b"left"), ttl_ms: None };
    let (small, page, block) =
        (crate::record::small(ino, 5), crate::record::page(ino, 6), [0, 1].map(|n| crate::record::block(ino, 7, n)));
    fs.commit(Vec::new(), vec![put(small.clone()), put(page.clone())], false).await.expect("put");
    let blocks = Batch { writes: block.iter().cloned().map(put).collect(), ..Batch::default() };
    fs.blocks.batch(&ino.to_be_bytes(), blocks).await.expect("put");
    // What was stored just now may be named any moment.
    assert_eq!(fs.fsck(false).await.expect("looked").left, Vec::<String>::new());
    world.is_today();
    fs.begin_session().await.expect("begun");
    fs.commit(Vec::new(), vec![put(crate::record::small(ino, 8))], false).await.expect("put");
    let found = fs.fsck(false).await.expect("looked");
    assert!(found.left.len() == 1 && found.left[0].contains("3 pieces"), "{found:?}");
    // One of them is to be freed anyway, by whoever minds that.
    let row = crate::record::Dropped { ino, small: vec![5], ..Default::default() };
    let to_free =
        client::Write::Put { key: crate::record::dropped(1), value: crate::record::encode(&row), ttl_ms: None };
    fs.commit(Vec::new(), vec![to_free], false).await.expect("put");
    let found = fs.fsck(true).await.expect("looked");
    assert!(found.mended == 2 && found.left.is_empty(), "{found:?}");
    for side in [0, 1, 0, 1] {
        world.reap(side).await.expect("reaped");
    }
    let fs = &world.mounts[0];
    for key in [small, page] {
        assert!(fs.get(key).await.expect("read").is_none());
    }
    let left = fs.blocks.read(&ino.to_be_bytes(), block.map(Range::key).into()).await.expect("read");
    assert!(left.iter().all(|rows| rows.rows.is_empty()));
    fs.remove(ROOT, b"file", false).await.expect("removed");
    assert_eq!(world.check().await.expect("sound"), before);
}

/// What is asked to be on disc is, in both tables, and what is there already is not put there again.
#[tokio::test(start_paused = true)]
async fn fsync_puts_on_disc_what_is_not_there_yet() {
    let world = World::new(7).await;
    let (one, two) = (&world.mounts[0], &world.mounts[1]);
    let ino = one.make(ROOT, b"file", new(Kind::File)).await.expect("made").0.ino;
    let handles = [one.open(ino, false).await.expect("opened").0, two.open(ino, false).await.expect("opened").0];
    let syncs = || [0, 1].map(|table: usize| std::mem::take(&mut lock(&world.tables[table]).syncs));
    syncs();
    one.write(handles[0], 0, &[1; 300_000], false).await.expect("taken");
    one.flush(handles[0]).await.expect("committed");
    one.fsync(handles[0]).await.expect("on disc");
    let [names, bytes] = syncs();
    assert!(names >= 1 && bytes >= 1, "the bytes were committed before, and may have been in memory alone");
    for n in 0..3 {
        one.write(handles[0], n * 50_000, b"some", false).await.expect("taken");
        one.fsync(handles[0]).await.expect("on disc");
    }
    assert_eq!(syncs(), [3, 0]);
    // Another mount's bytes are not on disc because this one's were.
    two.write(handles[1], 0, &[2; 100_000], false).await.expect("taken");
    two.flush(handles[1]).await.expect("committed");
    one.write(handles[0], 7, b"some", false).await.expect("taken");
    one.fsync(handles[0]).await.expect("on disc");
    assert_eq!(syncs(), [1, 1]);
}

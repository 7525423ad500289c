//! Histories of two mounts of one filesystem, many and by chance; and whether each rule is missed that is left out.

use crate::error::FsError;
use crate::fs::{Kind, ROOT, lock};
use crate::model::{Tree, World, new, tokens};
use crate::tidy::Walk;
use client::Range;
use rand::RngExt;
use std::collections::BTreeSet;

/// How many things were mended, or what is wrong.
async fn history(seed: u64) -> Result<usize, String> {
    let (mut world, mut mended) = (World::new(seed).await, 0);
    for _ in 0..world.rng.random_range(1..4) {
        for _ in 0..world.rng.random_range(5..25) {
            let side = world.rng.random_range(0..2);
            world.operate(side).await?;
        }
        let before = tokens(&world.check().await?);
        world.cut(true);
        for _ in 0..world.rng.random_range(2..40) {
            let side = world.rng.random_range(0..2);
            world.operate(side).await?;
        }
        let (one, two) = (tokens(&world.tree(0).await?), tokens(&world.tree(1).await?));
        world.cut(false);
        if world.rng.random_bool(0.5) {
            mended += world.tidy().await?;
        }
        for round in 0..6 {
            world.reap(round % 2).await?;
        }
        let after = world.check().await?;
        world.is_kept(&after)?;
        is_kept([&before, &before], [&one, &two], &after)?;
    }
    Ok(mended)
}

/// What the other side has seen it may have removed, or written over; all else stays.
fn is_kept(seen: [&BTreeSet<String>; 2], sides: [&BTreeSet<String>; 2], after: &Tree) -> Result<(), String> {
    let new = sides[0].difference(seen[0]).chain(sides[1].difference(seen[1]));
    let wanted: BTreeSet<&String> = new.chain(sides[0].intersection(sides[1])).collect();
    let have = tokens(after);
    let lost: Vec<_> = wanted.into_iter().filter(|t| !have.contains(*t)).collect();
    if lost.is_empty() { Ok(()) } else { Err(format!("{lost:?} of {sides:?} are lost: {after:#?}")) }
}

/// Mounts that have to themselves what they work in alone: whatever is taken from one that answers nobody, or changed beyond a cut,
/// nothing is lost. How many operations were acknowledged before they landed.
async fn history_alone(seed: u64) -> Result<usize, String> {
    let mut world = World::with(seed, true).await;
    let mut side = 0;
    for _ in 0..world.rng.random_range(1..4) {
        together(&mut world, &mut side).await?;
        apart(&mut world, &mut side).await?;
    }
    let early = world.mounts.iter().map(|fs| lock(&fs.delegations.overlay).last() as usize).sum();
    lock(&world.tables[0]).flaky = false;
    let (before, salvaged) = (world.check().await?, world.salvaged().await);
    for fs in &world.mounts {
        fs.unmount().await.map_err(|e| format!("unmounting: {e}"))?;
    }
    world.mounts[0] = world.mount(0).await.expect("mounted");
    world.mounts[1] = world.mount(1).await.expect("mounted");
    let (after, more) = (world.check().await?, world.salvaged().await);
    if after == before && more == salvaged {
        Ok(early)
    } else {
        Err(format!("{after:?} was {before:?} until unmounted"))
    }
}

/// While all is well each sees at once what the other was told is done, and all of that lands.
async fn together(world: &mut World, side: &mut usize) -> Result<(), String> {
    let salvaged = world.salvaged().await;
    world.shaken = false;
    lock(&world.tables[0]).flaky = true;
    for _ in 0..world.rng.random_range(10..60) {
        *side = if world.rng.random_bool(0.15) { 1 - *side } else { *side };
        world.operate(*side).await?;
        if world.rng.random_bool(0.1) && world.tree(*side).await? != world.tree(1 - *side).await? {
            return Err(format!("{:?} is not {:?}", world.tree(0).await?, world.tree(1).await?));
        }
        if world.rng.random_bool(0.1) {
            world.race().await?;
        }
        if world.rng.random_bool(0.05) {
            world.alone(*side).await?;
        }
        world.wait(10).await;
    }
    world.check().await?;
    if world.salvaged().await > salvaged {
        return Err("what was acknowledged did not land, and nobody was gone".into());
    }
    Ok(())
}

/// One is alone for a while, and then beyond a cut, or answers nobody.
async fn apart(world: &mut World, side: &mut usize) -> Result<(), String> {
    world.shaken = true;
    lock(&world.tables[0]).flaky = false;
    if world.rng.random_bool(0.3) {
        world.fill_up(*side).await?;
    }
    lock(&world.tables[0]).flaky = world.rng.random_bool(0.3);
    if world.rng.random_bool(0.3) {
        world.alone(*side).await?;
    }
    for _ in 0..world.rng.random_range(0..15) {
        world.operate(*side).await?;
        world.wait(20).await;
    }
    world.look().await?;
    if world.rng.random_bool(0.3) {
        world.cut(true)
    } else {
        world.freeze(*side, true)
    }
    for _ in 0..world.rng.random_range(2..40) {
        *side = if world.rng.random_bool(0.15) { 1 - *side } else { *side };
        world.operate(*side).await?;
        world.look().await?;
        world.wait(300).await;
    }
    if world.rng.random_bool(0.3) {
        // They meet with something on its way on both sides.
        (0..2).for_each(|side| world.freeze(side, true));
        for _ in 0..world.rng.random_range(2..8) {
            *side = 1 - *side;
            world.operate(*side).await?;
        }
    }
    let (one, two) = (tokens(&world.glance(0).await?), tokens(&world.glance(1).await?));
    world.cut(false);
    (0..2).for_each(|side| world.freeze(side, false));
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    for round in 0..6 {
        world.reap(round % 2).await?;
    }
    let after = world.check().await?;
    world.is_kept(&after)?;
    is_kept([&world.seen[1], &world.seen[0]], [&one, &two], &after)
}

/// Histories until one goes wrong.
fn run_all<F: Future<Output = Result<usize, String>>>(
    history: fn(u64) -> F,
    seeds: std::ops::Range<u64>,
) -> Result<usize, String> {
    let one = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(history(seed)).map_err(|why| format!("seed {seed}: {why}"))
    };
    seeds.map(one).try_fold(0, |sum, mended| Ok(sum + mended?))
}

fn run(seeds: std::ops::Range<u64>) -> Result<usize, String> {
    run_all(history, seeds)
}

/// The histories of both sides of a cut. Without a rule left out they are clean, or they would show nothing.
const TREES: std::ops::Range<u64> = 1..2000;
/// The histories of mounts that work alone.
const ALONE: std::ops::Range<u64> = 1..600;

/// Those that were asked for: `SEEDS=1000-9000 cargo test -p vfs --release trees`: others, and as many as one likes.
fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(seeds) = std::env::var("SEEDS") else { return usual };
    let (from, to) = seeds.split_once('-').expect("SEEDS=FROM-TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

#[test]
fn trees_of_mounts_that_work_alone_are_one_tree() {
    let seeds = seeds(ALONE);
    let early = run_all(history_alone, seeds.clone());
    // Without operations that are acknowledged before they land there is nothing to see.
    assert!(early.as_ref().is_ok_and(|n| *n as u64 >= 5 * (seeds.end - seeds.start)), "{early:?}");
}

/// Each rule of delegations that is left out is missed.
#[test]
fn no_rule_of_delegations_can_be_left_out() {
    let rules = ["recall", "salvage", "fresh", "early", "order"];
    let is_missed = |rule: &&'static str| {
        crate::tidy::LEFT_OUT.set(rule);
        run_all(history_alone, ALONE).is_err()
    };
    let not_missed: Vec<&&'static str> = rules.iter().filter(|rule| !is_missed(rule)).collect();
    assert_eq!(not_missed, Vec::<&&str>::new());
}

/// Two make the same; the batch of one is long on its way, and the other gets the directory to itself meanwhile. Who was told that it is
/// done?
async fn outrun() -> [bool; 2] {
    let world = World::with(1, true).await;
    let ms = std::time::Duration::from_millis;
    let dir = world.mounts[0].make(ROOT, b"d", new(Kind::Directory)).await.expect("made").0.ino;
    tokio::time::sleep(ms(1000)).await;
    lock(&world.tables[0]).slow.insert(1);
    let fast = async {
        world.warm(0, dir, vec![5; 4]).await;
        tokio::time::sleep(ms(8)).await;
        let done = world.mounts[0].make(dir, b"same", new(Kind::File)).await;
        assert!(!lock(&world.mounts[0].delegations.overlay).is_empty(), "it was acknowledged before it landed");
        done.is_ok()
    };
    let (one, two) = tokio::join!(fast, async { world.mounts[1].make(dir, b"same", new(Kind::File)).await.is_ok() });
    [one, two]
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_only_as_long_as_nobody_has_more_to_himself_than_it_saw() {
    assert_eq!(outrun().await, [true, false]);
    crate::tidy::LEFT_OUT.set("others");
    assert_eq!(outrun().await, [true, true], "without it both are told so");
}

/// Both sides of a cut make the same, and one of them gets the directory to itself there, of which the other knows nothing. What is
/// found when they have met?
async fn meet() -> Vec<String> {
    let world = World::with(1, true).await;
    let (one, two) = (&world.mounts[0], &world.mounts[1]);
    let dir = one.make(ROOT, b"d", new(Kind::Directory)).await.expect("made").0.ino;
    world.cut(true);
    two.make(dir, b"same", new(Kind::File)).await.expect("made");
    world.warm(0, dir, vec![5; 4]).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    world.freeze(0, true);
    one.make(dir, b"same", new(Kind::File)).await.expect("made");
    assert!(!lock(&one.delegations.overlay).is_empty(), "it was acknowledged before it landed");
    world.cut(false);
    let row = one.meta.read(&[0; 8], vec![Range::key(crate::record::delegation(one.session))]).await.expect("read");
    assert!(lock(&one.delegations.scope).is_mine(row[0].rows.first().map(|(_, row)| row)), "it has it still");
    one.land_all(false).await.expect("landed");
    two.walk(Walk::new(false, true, true)).await.expect("walked").found
}

#[tokio::test(start_paused = true)]
async fn what_lands_is_checked_again_though_the_directory_was_not_taken() {
    assert_eq!(meet().await, Vec::<String>::new());
    crate::tidy::LEFT_OUT.set("landing");
    assert_ne!(meet().await, Vec::<String>::new(), "without it one name is of two files");
}

#[test]
fn trees_that_were_changed_on_both_sides_of_a_cut_become_one() {
    let seeds = seeds(TREES);
    let mended = run(seeds.clone());
    // As many as there are histories at least: else they are too tame.
    assert!(mended.as_ref().is_ok_and(|n| *n as u64 >= seeds.end - seeds.start), "{mended:?}");
}

/// Each rule that is left out is missed.
#[test]
fn no_rule_of_tidying_can_be_left_out() {
    let rules = [
        "moved", "stray", "count", "named", "revive", "circle", "alike", "name", "merged", "entries", "emptied",
        "bytes",
    ];
    let is_missed = |rule: &&'static str| {
        crate::tidy::LEFT_OUT.set(rule);
        run(TREES).is_err()
    };
    let not_missed: Vec<&&'static str> = rules.iter().filter(|rule| !is_missed(rule)).collect();
    assert_eq!(not_missed, Vec::<&&str>::new());
}

/// Whoever asks whether something is on disc hears that it could not land, once; and it is not lost.
#[tokio::test(start_paused = true)]
async fn an_fsync_says_no_to_what_could_not_land() {
    let world = World::with(1, true).await;
    let second = std::time::Duration::from_secs(1);
    let (one, two) = (&world.mounts[0], &world.mounts[1]);
    let dir = one.make(ROOT, b"d", new(Kind::Directory)).await.expect("made").0.ino;
    for name in [b"1", b"2", b"3", b"4"] {
        one.make(dir, name, new(Kind::File)).await.expect("made");
    }
    tokio::time::sleep(second).await;
    world.freeze(0, true);
    let file = one.make(dir, b"same", new(Kind::File)).await.expect("acknowledged").0.ino;
    let handle = one.open_known(file, false);
    one.write(handle, 0, b"one's own", false).await.expect("taken");
    one.flush(handle).await.expect("acknowledged");
    // It takes the directory from one who does not answer, and is first.
    let other = two.make(dir, b"same", new(Kind::File)).await.expect("made").0.ino;
    let (written, _) = two.open(other, false).await.expect("opened");
    two.write(written, 0, b"the other's", false).await.expect("taken");
    two.fsync(written).await.expect("on disc");
    world.freeze(0, false);
    assert_eq!(one.fsync(handle).await, Err(FsError::Unavailable));
    assert_eq!(one.sync_names(dir).await, Err(FsError::Unavailable));
    assert_eq!(one.sync_names(dir).await, Ok(()), "it has been said");
    tokio::time::sleep(5 * second).await;
    let tree = world.check().await.expect("sound");
    assert_eq!(tree.get("/d/same").map(String::as_str), Some("the othe"));
    assert!(tree.iter().any(|(path, text)| path.starts_with("/d/same (conflict") && text == "one's ow"), "{tree:?}");
}

//! Chains that skip numbers: they go on by their blocks' parents, and nothing is skipped that a node only lacks or hides.

use crate::load;
use crate::node::{Fault, Hiding, Node, Recorded, Skipped, branch, skipping};
use crate::witnesses::{Told, chain, nodes, tip};
use chain::{Chain, MAX_SKIPPED, Rpc};
use ingest::Window;
use ingest::cursor::{StoredCursor, WrittenParts, encode, restore};
use std::sync::Arc;
use std::time::Duration;

/// A chain that skips some numbers.
fn told(chain: &Arc<Chain>, window: Window) -> Told {
    let mut told = Told::of(chain, Rpc::of(chain), window);
    told.consumer.skips = true;
    told
}

/// Blocks 0 to 9, and one block each of these numbers.
fn on_nine(numbers: impl IntoIterator<Item = u64>, fork: u8) -> Vec<Recorded> {
    skipping(&branch(&[], 10, 0), numbers, fork)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_a_chain_skips_are_passed_over_far_behind_its_head_and_at_it() {
    let blocks = on_nine((10..200).filter(|number| number % 7 > 1 && !(60..90).contains(number)), 0);
    let [first, second] = nodes([&blocks[..100], &blocks[..100]]).await;
    let mut told = told(&chain(&[&first, &second], "start_block: 0").await, Window::default());
    told.until(|told| told.tip() == Some(tip(&blocks[..100]))).await;
    for reached in 101..=blocks.len() {
        [&first, &second].iter().for_each(|node| node.set(&blocks[..reached]));
        told.until(|told| told.known.witnessed == Some(blocks[reached - 1].number)).await;
    }
    told.consumer.is_at(&blocks);
    assert!(told.consumer.removed.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_in_three_ways_that_its_chain_skips_a_number() {
    let blocks = on_nine([12, 13, 16, 17], 0);
    for skipped in [Skipped::Null, Skipped::Error, Skipped::Below] {
        let [first, second] = nodes([&blocks[..12], &blocks[..12]]).await;
        [&first, &second].iter().for_each(|node| node.script.lock().unwrap().skipped = skipped);
        let mut told = told(&chain(&[&first, &second], "start_block: 0").await, Window::default());
        told.until(|told| told.known.witnessed == Some(13)).await;
        [&first, &second].iter().for_each(|node| node.set(&blocks));
        told.until(|told| told.known.witnessed == Some(17)).await;
        told.consumer.is_at(&blocks);
    }
}

/// It has the blocks that there are, so that each poll brings one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_shows_a_head_far_above_all_blocks_costs_little() {
    let blocks = branch(&[], 40, 0);
    let [liar, honest] = nodes([&blocks[..20], &blocks[..20]]).await;
    liar.announce(5_000, tip(&blocks));
    let mut told = told(&chain(&[&liar, &honest], "start_block: 0").await, Window::default());
    for reached in 20..=blocks.len() {
        [&liar, &honest].iter().for_each(|node| node.set(&blocks[..reached]));
        told.until(|told| told.tip() == Some(&blocks[reached - 1].hash)).await;
    }
    let asked = honest.requests("eth_getBlockByNumber");
    assert!(asked < 2_000, "{asked} requests");
}

/// Of its node, and of a majority of three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_over_a_hole_is_followed_and_so_is_the_one_back() {
    let branches = [
        on_nine(10..14, 1),
        on_nine([10, 13, 14], 2),
        on_nine([12], 3),
        on_nine([10, 11, 14], 4),
        // Its tip is below the last one, and then above by some.
        on_nine([11, 13], 5),
        on_nine([16, 17], 6),
        on_nine(10..18, 7),
    ];
    for count in [1, 3] {
        let all: Vec<Node> = nodes::<3>([&branches[0]; 3]).await.into();
        let nodes: Vec<&Node> = all.iter().take(count).collect();
        let mut told = told(&chain(&nodes, "start_block: 0").await, Window::default());
        for blocks in &branches {
            for node in &nodes {
                node.set(blocks);
                node.script.lock().unwrap().final_behind = Some(blocks.len() - 8);
            }
            let last = blocks.last().unwrap();
            told.until(|told| told.tip() == Some(&last.hash) && told.known.witnessed == Some(last.number)).await;
            told.consumer.is_at(blocks);
            told.until(|told| told.known.finalized == Some(7)).await;
        }
    }
}

/// The others see another tip than ours, or none at its number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_with_a_hole_that_two_of_three_have_replaces_ours() {
    let (ours, theirs) = (on_nine([10, 12, 14], 1), on_nine([11, 13, 15], 2));
    for (ours, theirs) in [(&ours, &theirs), (&theirs, &ours)] {
        let [first, second, third] = nodes([ours, ours, ours]).await;
        let mut told = told(&chain(&[&first, &second, &third], "start_block: 0").await, Window::default());
        told.until(|told| told.known.witnessed == Some(ours.last().unwrap().number)).await;
        // The first one stays, and is named in the end.
        [&second, &third].iter().for_each(|node| node.set(theirs));
        told.until(|told| told.tip() == Some(tip(theirs)) && told.known.witnessed == Some(theirs.last().unwrap().number)).await;
        told.consumer.is_at(theirs);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deep_reorg_over_holes_is_followed() {
    let at = |fork: u8| skipping(&branch(&[], 40, 0), (40..120).filter(move |number| number % 5 != u64::from(fork)), fork);
    let (before, after) = (at(1), at(0));
    let [first, second, third] = nodes([&before, &before, &before]).await;
    let mut told = told(&chain(&[&first, &second, &third], "start_block: 0").await, Window::default());
    told.until(|told| told.known.witnessed == Some(119)).await;
    [&first, &second, &third].iter().for_each(|node| node.set(&after));
    told.until(|told| told.tip() == Some(tip(&after)) && told.known.witnessed == Some(119)).await;
    told.consumer.is_at(&after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_a_node_only_lacks_or_hides_is_never_skipped() {
    let blocks = branch(&[], 30, 0);
    for hides in [(9, Hiding::ByNumber), (10, Hiding::ByNumber), (12, Hiding::ByNumber), (28, Hiding::ByNumber)] {
        let [node] = nodes([&blocks[..10]]).await;
        node.script.lock().unwrap().hides = Some(hides);
        let mut told = Told::new(&chain(&[&node], "start_block: 0").await);
        told.until(|told| told.consumer.stack.len() >= 9).await;
        node.set(&blocks);
        told.until(|told| told.tip() == Some(tip(&blocks))).await;
        told.consumer.is_at(&blocks);
    }
    let [node] = nodes([&blocks[..10]]).await;
    let mut told = Told::new(&chain(&[&node], "start_block: 0").await);
    told.until(|told| told.tip() == Some(tip(&blocks[..10]))).await;
    node.script.lock().unwrap().hides = Some((12, Hiding::Wholly));
    node.set(&blocks);
    told.until(|told| told.tip() == Some(&blocks[11].hash)).await;
    told.is_quiet_for(&node, 60).await;
    node.script.lock().unwrap().hides = None;
    told.until(|told| told.tip() == Some(tip(&blocks))).await;
    told.consumer.is_at(&blocks);
}

/// What it shows stands on our tip, so it is published; the block that it skips is in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_invents_a_hole_is_never_witnessed_and_makes_way_for_the_majority() {
    let common = branch(&[], 10, 0);
    let (honest, invented) = (branch(&common, 11, 0), on_nine([12], 9));
    let [liar, one, two] = nodes([&common, &common, &common]).await;
    let mut told = told(&chain(&[&liar, &one, &two], "start_block: 0").await, Window::default());
    told.until(|told| told.known.witnessed == Some(9)).await;
    liar.set(&invented);
    told.until(|told| told.tip() == Some(tip(&invented))).await;
    assert_eq!(told.known.witnessed, Some(9));
    // Their head is in the hole that it has made.
    [&one, &two].iter().for_each(|node| node.set(&honest));
    told.until(|told| told.known.witnessed == Some(10)).await;
    told.consumer.is_at(&honest);
    assert_eq!(told.consumer.removed, [12]);
}

/// Nothing would contradict it later: the block above the one that it hides has its true hash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_that_no_root_proves_waits_for_a_second_word() {
    let rootless: Vec<_> = on_nine([12, 13], 0).into_iter().map(Recorded::without_roots).collect();
    let [first, second] = nodes([&rootless, &rootless]).await;
    second.fault(Fault::Null, usize::MAX);
    let urls = [&first.url, &second.url];
    let text =
        format!("- {{ name: it, chain_id: 7, rpc_urls: [{}, {}], start_block: 0, poll_interval_ms: 5 }}\n", urls[0], urls[1]);
    let chain = load(&text).await.unwrap();
    let rpc = Rpc::with_patience(&chain.name, &chain.rpc_urls, Some(chain.id), Duration::from_millis(200));
    let mut told = Told::of(&chain, rpc, Window::default());
    told.consumer.skips = true;
    told.until(|told| told.tip() == Some(&rootless[9].hash)).await;
    told.is_quiet_for(&first, 20).await;
    second.script.lock().unwrap().faults.clear();
    told.until(|told| told.known.witnessed == Some(13)).await;
    told.consumer.is_at(&rootless);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_goes_on_after_a_restart_above_below_and_beside_a_hole() {
    let before = on_nine([10, 13], 1);
    for after in [on_nine([10, 13, 17], 1), on_nine([10, 12], 2), on_nine([11, 14], 3), on_nine(10..15, 4)] {
        let [node] = nodes([&before]).await;
        let chain = chain(&[&node], "start_block: 0").await;
        let mut first = told(&chain, Window::default());
        first.until(|told| told.known.witnessed == Some(13)).await;
        let mut stored = StoredCursor::of_new_chain(chain.id);
        let records = encode(chain.id, 7, first.consumer.follower.window(), "", &mut WrittenParts::default());
        stored.take(chain.id, records);
        let (_, window, _) = restore(chain.id, &stored).unwrap();
        let mut second = told(&chain, window);
        second.consumer.stack = first.consumer.stack;
        node.set(&after);
        second.until(|told| told.tip() == Some(tip(&after)) && told.known.witnessed.is_some()).await;
        second.consumer.is_at(&after);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_is_to_begin_in_a_hole_begins_below_it() {
    let holes = [60..=95, 100..=105, 140..=145];
    let numbers = (0..400).filter(|number| !holes.iter().any(|hole| hole.contains(number)));
    let blocks = skipping(&[], numbers, 0);
    // Without tags it begins 256 below its head.
    for (rest, first) in [("start_block: 90", 59), ("start_block: 103", 99), ("", 139)] {
        let [node] = nodes([&blocks]).await;
        let mut told = told(&chain(&[&node], rest).await, Window::default());
        told.until(|told| told.tip() == Some(tip(&blocks))).await;
        assert_eq!(told.consumer.stack[0].0, first);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_that_is_too_wide_is_named_and_not_crossed() {
    let (widest, further) = (MAX_SKIPPED + 1, MAX_SKIPPED + 2);
    let blocks = on_nine([9 + widest, 9 + 2 * widest], 0);
    let [node] = nodes([&blocks]).await;
    let mut told = told(&chain(&[&node], "start_block: 0").await, Window::default());
    told.until(|told| told.tip() == Some(tip(&blocks))).await;
    node.set(&skipping(&blocks, [9 + 2 * widest + further, 9 + 2 * widest + further + 1], 0));
    let mut wait = told.consumer.follower.lasting_wait();
    told.is_quiet_for(&node, 700).await;
    assert!(wait.borrow_and_update().as_ref().is_some_and(|cause| cause.contains("ctrip chain restart")));
    node.set(&skipping(&blocks, [9 + 2 * widest + 1], 0));
    told.until(|told| told.tip().is_some_and(|tip| told.consumer.block(9 + 2 * widest + 1).is_some_and(|at| at.1 == tip)))
        .await;
    assert!(wait.has_changed().unwrap() && wait.borrow_and_update().is_none());
}

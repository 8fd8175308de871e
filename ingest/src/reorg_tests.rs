use super::*;
use crate::window::MIN_WINDOW_BLOCKS;
use proptest::prelude::*;
use std::collections::HashMap;

/// A block whose hash encodes its fork.
fn block(number: u64, fork: u64, parent: &Head) -> Head {
    Head { number, hash: hash(number, fork), parent_hash: parent.hash, timestamp: number * 12 }
}

fn hash(number: u64, fork: u64) -> B256 {
    B256::from(topics::U256::from(((number + 1) << 32) | fork))
}

const GENESIS: Head = Head { number: 0, hash: B256::repeat_byte(0xee), parent_hash: B256::ZERO, timestamp: 0 };

/// A node: its canonical chain from genesis. Like geth and anvil, it forgets orphaned blocks at once.
struct Node {
    chain: Vec<Head>,
    forks: u64,
    finalized: usize,
    /// Of so many blocks one stands above a hole of one to three numbers; 0 for none.
    hole_every: u64,
}

impl Node {
    fn new() -> Self {
        Self { chain: vec![GENESIS], forks: 0, finalized: 0, hole_every: 0 }
    }

    fn head(&self) -> Head {
        *self.chain.last().unwrap()
    }

    fn mine(&mut self, count: u64) {
        for _ in 0..count {
            let head = self.head();
            // At other places on each branch.
            let place = head.number + 3 * self.forks;
            let skipped = if self.hole_every > 0 && place.is_multiple_of(self.hole_every) { 1 + place % 3 } else { 0 };
            self.chain.push(block(head.number + 1 + skipped, self.forks, &head));
        }
    }

    /// Its block at this height, or the next one.
    fn from(&self, number: u64) -> Head {
        self.chain[self.chain.partition_point(|block| block.number < number)]
    }

    fn reorg(&mut self, depth: usize, count: u64) {
        self.chain.truncate(self.chain.len().saturating_sub(depth).max(self.finalized + 1));
        self.forks += 1;
        self.mine(count);
    }

    /// Makes all but the newest `depth` blocks final.
    fn finalize(&mut self, depth: usize) {
        self.finalized = self.finalized.max(self.chain.len().saturating_sub(depth + 1));
    }

    fn by_hash(&self) -> HashMap<B256, Head> {
        self.chain.iter().map(|head| (head.hash, *head)).collect()
    }
}

/// A consumer's view: a stack.
#[derive(Default)]
struct Consumer(Vec<Head>);

/// Follows `head` of the node to the end, as the follower does: far behind by number, near by walking back.
fn follow(node: &Node, head: Head, window: &mut Window, consumer: &mut Consumer, start: u64) -> Result<(), TooDeep> {
    let known = node.by_hash();
    loop {
        let next = window.tip().map_or(start, |tip| tip.number + 1);
        if window.tip().is_none() && head.number < next {
            return Ok(());
        }
        let is_ahead = head.number > next && matches!(reconcile(window, &[head]), Step::FetchParent(_));
        let mut branch = if is_ahead || window.tip().is_none() { vec![node.from(next)] } else { vec![head] };
        let removed = loop {
            match reconcile(window, &branch) {
                Step::Known => return Ok(()),
                Step::Extend => break vec![],
                Step::Rewind(removed) => break removed,
                Step::FetchParent(hash) => match known.get(&hash) {
                    Some(parent) => branch.push(*parent),
                    // A stale head's branch is gone: retry later.
                    None => return Ok(()),
                },
                // The follower asks the nodes for their block at that height, which clears a stale branch.
                Step::TooDeep(error) => {
                    let in_vain = node.chain.iter().any(|block| block.hash == error.ours.hash);
                    return if in_vain { Ok(()) } else { Err(error) };
                }
            }
        };
        if removed.last().is_some_and(|lowest| window.bottom() == Some(lowest)) {
            // The follower begins below.
            while let Some(lowest) = branch.last().filter(|lowest| lowest.number > start) {
                // A stale head's branch is gone: the follower begins below only what the nodes have at that height.
                let Some(below) = known.get(&lowest.parent_hash) else { return Ok(()) };
                branch.push(*below);
            }
        }
        for block in removed {
            assert_eq!(window.pop(), Some(block));
            assert_eq!(consumer.0.pop(), Some(block), "what is removed is not the tip");
        }
        for block in branch.into_iter().rev() {
            if let Some(tip) = consumer.0.last() {
                assert!(block.stands_on(tip), "what is added is not on the tip");
                assert!(node.hole_every > 0 || block.number == tip.number + 1, "{block:?} on {tip:?}");
            }
            consumer.0.push(block);
            window.push(block);
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Mine(u64),
    Reorg {
        depth: usize,
        count: u64,
    },
    /// A head from some blocks ago, which may be on a branch that is gone.
    StaleHead(usize),
    /// All but so many of the newest blocks become final, and the follower sees the tag.
    Finalize(usize),
    Poll,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1..6u64).prop_map(Event::Mine),
        1 => (20..60u64).prop_map(Event::Mine),
        3 => (1..12usize, 0..14u64).prop_map(|(depth, count)| Event::Reorg { depth, count }),
        2 => (0..20usize).prop_map(Event::StaleHead),
        2 => (0..9usize).prop_map(Event::Finalize),
        6 => Just(Event::Poll),
    ];
    proptest::collection::vec(event, 1..60)
}

proptest! {
    #[test]
    fn whatever_the_forks_history_is_a_stack_that_ends_at_the_nodes_chain(
        events in events(), start in 0..4u64, hole_every in prop_oneof![Just(0), 1..8u64],
    ) {
        let (node, mut window, mut consumer) = (Node::new(), Window::default(), Consumer::default());
        let mut node = Node { hole_every, ..node };
        let mut heads = vec![node.head()];
        for event in events {
            match event {
                Event::Mine(count) => node.mine(count),
                Event::Reorg { depth, count } => node.reorg(depth, count),
                Event::StaleHead(age) => {
                    let stale = heads[heads.len().saturating_sub(age + 1)];
                    if stale.number <= node.head().number {
                        follow(&node, stale, &mut window, &mut consumer, start).unwrap();
                    }
                }
                Event::Finalize(depth) => {
                    node.finalize(depth);
                    window.finalize(&node.chain[node.finalized]);
                }
                Event::Poll => follow(&node, node.head(), &mut window, &mut consumer, start).unwrap(),
            }
            heads.push(node.head());
        }
        // Mines once more, since a chain that only got shorter is not followed down.
        node.mine(80);
        follow(&node, node.head(), &mut window, &mut consumer, start).unwrap();
        // A branch that skips all that was published stands on a block below.
        let first = if hole_every == 0 { start } else { consumer.0[0].number };
        let first = node.chain.partition_point(|block| block.number < first);
        prop_assert!(node.chain[first].number <= node.from(start).number);
        prop_assert_eq!(&consumer.0[..], &node.chain[first..]);
        let remembered: Vec<Head> = window.iter().copied().collect();
        prop_assert!(remembered.len() >= MIN_WINDOW_BLOCKS.min(consumer.0.len()));
        prop_assert!(window.finalized().is_none_or(|number| window.at(number).is_some()));
        prop_assert_eq!(&remembered[..], &consumer.0[consumer.0.len() - remembered.len()..]);
    }
}

/// A window of blocks 10 to `tip` on fork 0, whole or with published blocks below it.
fn window(tip: u64, whole: bool) -> (Node, Window) {
    let mut node = Node::new();
    node.mine(tip);
    (Node { chain: node.chain.clone(), ..node }, Window::new(node.chain.into_iter().skip(10), whole, None))
}

#[test]
fn a_lagging_node_takes_nothing_back() {
    let (node, window) = window(20, false);
    for head in &node.chain {
        assert_eq!(reconcile(&window, &[*head]), Step::Known, "{}", head.number);
    }
}

#[test]
fn nothing_is_removed_before_the_ancestor_is_known() {
    let (mut node, window) = window(20, false);
    node.reorg(3, 4);
    let branch: Vec<Head> = node.chain.iter().rev().take(4).copied().collect();
    for known in 1..4 {
        assert_eq!(reconcile(&window, &branch[..known]), Step::FetchParent(branch[known].hash));
    }
    let removed: Vec<u64> = match reconcile(&window, &branch) {
        Step::Rewind(removed) => removed.iter().map(|block| block.number).collect(),
        other => panic!("{other:?}"),
    };
    assert_eq!(removed, [20, 19, 18]);
}

/// The chain 0 to 10, and blocks of a fork with these numbers on it.
fn skipping(fork: u64, numbers: &[u64]) -> Vec<Head> {
    let mut node = Node::new();
    node.mine(10);
    for number in numbers {
        let head = node.head();
        node.chain.push(block(*number, fork, &head));
    }
    node.chain
}

#[test]
fn a_branch_with_a_hole_and_one_without_replace_each_other() {
    let branches =
        [skipping(1, &[11, 12, 13]), skipping(2, &[13, 14]), skipping(3, &[11, 14]), skipping(4, &[14]), skipping(5, &[12])];
    for (ours, theirs) in branches.iter().flat_map(|ours| branches.iter().map(move |theirs| (ours, theirs))) {
        let window = Window::new(ours.clone(), true, None);
        let branch: Vec<Head> = theirs[11..].iter().rev().copied().collect();
        for known in 1..branch.len() {
            let step = if ours == theirs { Step::Known } else { Step::FetchParent(branch[known].hash) };
            assert_eq!(reconcile(&window, &branch[..known]), step);
        }
        let removed: Vec<Head> = ours[11..].iter().rev().copied().collect();
        let step = if ours == theirs { Step::Known } else { Step::Rewind(removed) };
        assert_eq!(reconcile(&window, &branch), step, "{ours:?} {theirs:?}");
    }
    // The parent alone says what a block stands on.
    let window = Window::new(skipping(1, &[11]), true, None);
    let on = |parent: &Head, number| reconcile(&window, &[block(number, 9, parent)]);
    let tip = window.tip().unwrap();
    assert_eq!((on(tip, 12), on(tip, 15)), (Step::Extend, Step::Extend));
    assert_eq!(on(&block(14, 8, tip), 15), Step::FetchParent(hash(14, 8)), "block 14 is missing");
    assert_eq!(on(tip, 13 + chain::MAX_SKIPPED), Step::FetchParent(tip.hash), "too far");
}

#[test]
fn a_branch_that_skips_what_is_final_halts_and_one_that_skips_all_that_was_published_replaces_it() {
    let theirs = skipping(3, &[30]);
    let ours = |from: usize| {
        let mut node = Node { chain: skipping(1, &[]), ..Node::new() };
        node.mine(8);
        Window::new(node.chain.into_iter().skip(from), true, None)
    };
    let branch = [theirs[11], theirs[10]];
    let whole = ours(12);
    assert_eq!(reconcile(&whole, &branch[..1]), Step::FetchParent(theirs[10].hash));
    assert_eq!(reconcile(&whole, &branch), Step::Rewind(whole.newest_first()));
    let mut window = ours(5);
    assert!(matches!(reconcile(&window, &branch[..1]), Step::Rewind(removed) if removed.len() == 8));
    window.finalize(&window.at(12).copied().unwrap());
    assert_eq!(reconcile(&window, &branch[..1]), Step::FetchParent(theirs[10].hash));
    assert!(matches!(
        reconcile(&window, &branch),
        Step::TooDeep(TooDeep { ours: BlockRef { number: 12, .. }, is_final: true, .. })
    ));
}

#[test]
fn a_branch_from_below_the_window_halts() {
    let (mut node, window) = window(20, false);
    node.reorg(11, 12);
    let branch: Vec<Head> = node.chain.iter().rev().take(12).copied().collect();
    assert!(matches!(reconcile(&window, &branch[..11]), Step::FetchParent(_)));
    assert!(matches!(reconcile(&window, &branch), Step::TooDeep(TooDeep { ours: BlockRef { number: 10, .. }, .. })));
}

/// It is as high as the block that stays, and no lagging node's.
#[test]
fn a_node_whose_head_takes_the_place_of_the_lowest_block_halts() {
    for (is_final, floor, depth, kind) in [(false, 10, 11, "the oldest block in the window"), (true, 15, 6, "final")] {
        let (mut node, mut window) = window(20, is_final);
        if is_final {
            window.finalize(&node.chain[15]);
        }
        node.reorg(depth, 1);
        let Step::TooDeep(error) = reconcile(&window, &[node.head()]) else { panic!("block {floor} is another") };
        assert_eq!((error.ours.number, error.theirs.hash, error.is_final), (floor, node.head().hash, is_final));
        assert!(error.to_string().ends_with(&format!("which is {kind}")), "{error}");
    }
}

#[test]
fn what_is_final_stays_and_a_branch_from_below_it_halts() {
    let (node, window) = window(20, true);
    for (depth, halts) in [(5, false), (6, true), (9, true)] {
        let (mut node, mut window) = (Node { chain: node.chain.clone(), ..node }, window.clone());
        window.finalize(&node.chain[15]);
        node.reorg(depth, 12);
        let branch: Vec<Head> = node.chain.iter().rev().take_while(|block| block.number >= 15).copied().collect();
        let step = (1..=branch.len()).map(|known| reconcile(&window, &branch[..known]));
        let step = step.into_iter().find(|step| !matches!(step, Step::FetchParent(_)));
        match step {
            Some(Step::Rewind(removed)) => assert!(!halts && removed.len() == depth, "depth {depth}"),
            Some(Step::TooDeep(TooDeep { ours, is_final: true, .. })) => assert!(halts && ours.number == 15, "depth {depth}"),
            other => panic!("depth {depth}: {other:?}"),
        }
    }
}

#[test]
fn a_block_is_final_only_if_it_is_ours() {
    let (mut node, mut window) = window(20, false);
    let (ours, below) = (node.chain[14], node.chain[12]);
    node.reorg(8, 8);
    window.finalize(&node.chain[15]);
    assert_eq!(window.finalized(), None, "the final block is on another branch");
    window.finalize(&block(99, 0, &ours));
    assert_eq!(window.finalized(), None, "nor was one published that is above the tip");
    window.finalize(&ours);
    window.finalize(&below);
    assert_eq!(window.finalized(), Some(14), "final is never less final");
}

#[test]
fn a_chain_that_does_not_finalise_is_remembered_down_to_its_last_final_block() {
    let mut node = Node::new();
    let mut window = Window::new([GENESIS], true, None);
    window.finalize(&GENESIS);
    for _ in 0..2 * MIN_WINDOW_BLOCKS {
        node.mine(1);
        window.push(node.head());
    }
    assert!(window.bottom() == Some(&GENESIS) && window.is_whole());
    window.finalize(&node.chain[100]);
    assert_eq!(window.bottom().map(|bottom| bottom.number), Some(100));
    assert!(!window.is_whole(), "blocks below it were published");
    window.finalize(&node.chain[2 * MIN_WINDOW_BLOCKS - 1]);
    assert_eq!(window.iter().count(), MIN_WINDOW_BLOCKS);
}

#[test]
fn a_chain_without_a_tag_is_remembered_as_deep_as_a_window_is_at_least() {
    let (mut node, mut window) = (Node::new(), Window::default());
    for _ in 0..2 * MIN_WINDOW_BLOCKS {
        node.mine(1);
        window.push(node.head());
    }
    assert_eq!((window.iter().count(), window.is_whole()), (MIN_WINDOW_BLOCKS, false));
}

#[test]
fn a_branch_from_below_the_first_block_ever_published_replaces_all() {
    let (mut node, window) = window(12, true);
    node.reorg(5, 6);
    let branch: Vec<Head> = node.chain.iter().rev().take_while(|block| block.number >= 10).copied().collect();
    assert!(matches!(reconcile(&window, &branch), Step::Rewind(removed) if removed.len() == 3));
}

#[test]
fn a_node_that_starts_over_below_all_that_is_remembered_waits() {
    let (_, window) = window(20, false);
    let mut other = Node::new();
    other.forks = 9;
    other.mine(5);
    assert_eq!(reconcile(&window, &[other.head()]), Step::Known);
}

#[test]
fn the_first_block_needs_nothing_below() {
    assert_eq!(reconcile(&Window::default(), &[GENESIS]), Step::Extend);
}

use super::*;
use crate::window::DEPTH;
use proptest::prelude::*;
use std::collections::HashMap;

/// A block whose hash says which fork made it.
fn block(number: u64, fork: u64, parent: &Head) -> Head {
    Head { number, hash: hash(number, fork), parent_hash: parent.hash, timestamp: number * 12 }
}

fn hash(number: u64, fork: u64) -> B256 {
    B256::from(topics::U256::from(((number + 1) << 32) | fork))
}

const GENESIS: Head = Head { number: 0, hash: B256::repeat_byte(0xee), parent_hash: B256::ZERO, timestamp: 0 };

/// A node: its canonical chain from genesis. Like geth and anvil it forgets orphaned blocks at once.
struct Node {
    chain: Vec<Head>,
    forks: u64,
}

impl Node {
    fn new() -> Self {
        Self { chain: vec![GENESIS], forks: 0 }
    }

    fn head(&self) -> Head {
        *self.chain.last().unwrap()
    }

    fn mine(&mut self, count: u64) {
        for _ in 0..count {
            let head = self.head();
            self.chain.push(block(head.number + 1, self.forks, &head));
        }
    }

    fn reorg(&mut self, depth: usize, count: u64) {
        self.chain.truncate(self.chain.len().saturating_sub(depth).max(1));
        self.forks += 1;
        self.mine(count);
    }

    fn by_hash(&self) -> HashMap<B256, Head> {
        self.chain.iter().map(|head| (head.hash, *head)).collect()
    }
}

/// What a consumer sees: a stack.
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
        let mut branch = if head.number > next || window.tip().is_none() {
            vec![node.chain[usize::try_from(next).unwrap()]]
        } else {
            vec![head]
        };
        let removed = loop {
            match reconcile(window, &branch) {
                Step::Known => return Ok(()),
                Step::Extend => break vec![],
                Step::Rewind(removed) => break removed,
                Step::FetchParent(hash) => match known.get(&hash) {
                    Some(parent) => branch.push(*parent),
                    // A stale head's branch is gone: ask again later.
                    None => return Ok(()),
                },
                Step::TooDeep(error) => return Err(error),
            }
        };
        for block in removed {
            assert_eq!(window.pop(), Some(block));
            assert_eq!(consumer.0.pop(), Some(block), "what is removed is not the tip");
        }
        for block in branch.into_iter().rev() {
            if let Some(tip) = consumer.0.last() {
                assert_eq!((block.parent_hash, block.number), (tip.hash, tip.number + 1), "what is added is not on the tip");
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
    Poll,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1..6u64).prop_map(Event::Mine),
        1 => (20..60u64).prop_map(Event::Mine),
        3 => (1..12usize, 0..14u64).prop_map(|(depth, count)| Event::Reorg { depth, count }),
        2 => (0..20usize).prop_map(Event::StaleHead),
        6 => Just(Event::Poll),
    ];
    proptest::collection::vec(event, 1..60)
}

proptest! {
    #[test]
    fn whatever_the_forks_history_is_a_stack_that_ends_at_the_nodes_chain(events in events(), start in 0..4u64) {
        let (mut node, mut window, mut consumer) = (Node::new(), Window::default(), Consumer::default());
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
                Event::Poll => follow(&node, node.head(), &mut window, &mut consumer, start).unwrap(),
            }
            heads.push(node.head());
        }
        // A last block, since a chain that only got shorter is not followed down.
        node.mine(80);
        follow(&node, node.head(), &mut window, &mut consumer, start).unwrap();
        let first = usize::try_from(start).unwrap();
        prop_assert_eq!(&consumer.0[..], &node.chain[first..]);
        prop_assert_eq!(window.iter().rev().copied().collect::<Vec<_>>(), consumer.0.iter().rev().take(DEPTH).copied().collect::<Vec<_>>());
    }
}

/// A window of blocks 10 to `tip` on fork 0, whole or with something below it.
fn window(tip: u64, whole: bool) -> (Node, Window) {
    let mut node = Node::new();
    node.mine(tip);
    (Node { chain: node.chain.clone(), forks: 0 }, Window::new(node.chain.into_iter().skip(10), whole))
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

#[test]
fn a_branch_from_below_the_window_halts() {
    let (mut node, window) = window(20, false);
    node.reorg(11, 12);
    let branch: Vec<Head> = node.chain.iter().rev().take(12).copied().collect();
    assert!(matches!(reconcile(&window, &branch[..11]), Step::FetchParent(_)));
    assert!(matches!(reconcile(&window, &branch), Step::TooDeep(TooDeep { ours: BlockRef { number: 10, .. }, .. })));
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

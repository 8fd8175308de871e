//! Several endpoints that do not all say the same: who is believed, and what is published meanwhile.

use crate::node::{Fault, Node, Recorded, branch, skipping};
use crate::{Consumer, load, polygon};
use chain::{BlockId, Chain, FetchOptions, Head, Heads, Rpc, fetch_block};
use ingest::records::{Change, FinalityTags};
use ingest::{Batch, BatchSizes, Follower, Window};
use std::sync::Arc;
use std::time::Duration;
use topics::{B256, U256};

const PATIENCE: Duration = Duration::from_secs(20);

/// A chain of these endpoints, in this order. Its blocks are made up, so none is proven.
pub async fn chain(nodes: &[&Node], rest: &str) -> Arc<Chain> {
    let urls: Vec<&str> = nodes.iter().map(|node| node.url.as_str()).collect();
    let urls = urls.join(", ");
    let text = format!("- {{ name: it, chain_id: 7, rpc_urls: [{urls}], verify: off, poll_interval_ms: 5, {rest} }}\n");
    load(&text).await.unwrap()
}

/// A chain of one endpoint.
async fn chain_of(node: &Node) -> Arc<Chain> {
    chain(&[node], "start_block: 0").await
}

pub async fn nodes<const N: usize>(chains: [&[Recorded]; N]) -> [Node; N] {
    let started = futures::future::join_all(chains.iter().map(|_| Node::start(7, true))).await;
    for (node, chain) in started.iter().zip(chains) {
        node.set(chain);
    }
    started.try_into().unwrap_or_else(|_| unreachable!())
}

/// A consumer that keeps all that ingest has told.
pub struct Told {
    rpc: Arc<Rpc>,
    pub consumer: Consumer,
    pub known: FinalityTags,
    /// The stack's hash at `known.witnessed`, each time that it was told.
    witnessed: Vec<(u64, String)>,
}

impl Told {
    pub fn new(chain: &Arc<Chain>) -> Self {
        Self::of(chain, Rpc::of(chain), Window::default())
    }

    pub fn of(chain: &Arc<Chain>, rpc: Rpc, window: Window) -> Self {
        let rpc = Arc::new(rpc);
        let follower = Follower::new(chain.clone(), rpc.clone(), Heads::of(chain), window, BatchSizes::default());
        Self { rpc, consumer: Consumer::of(follower), known: FinalityTags::default(), witnessed: vec![] }
    }

    async fn next(&mut self) {
        let next = tokio::time::timeout(PATIENCE, self.consumer.follower.next()).await;
        let Batch { changes, finality } = next.unwrap_or_else(|_| panic!("nothing more; {:?}", self.consumer.stack)).unwrap();
        if let [Change::Tags(head)] = &changes[..] {
            assert_eq!(self.consumer.stack.last().map(|(number, _)| *number), Some(head.number), "told of the tip");
            assert_ne!(finality, self.known, "no news");
        }
        self.consumer.take(changes);
        self.known = finality;
        for tag in [finality.safe, finality.finalized].into_iter().flatten() {
            assert!(self.consumer.block(tag).is_some(), "{tag} has a tag and is not there");
        }
        if let Some(number) = finality.witnessed {
            let block = self.consumer.block(number);
            self.witnessed.push(block.unwrap_or_else(|| panic!("{number} is witnessed and not there")).clone());
        }
    }

    pub async fn until(&mut self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            self.next().await;
        }
    }

    pub fn tip(&self) -> Option<&str> {
        self.consumer.stack.last().map(|(_, hash)| hash.as_str())
    }

    /// Nothing is told while this node is asked so many times.
    pub async fn is_quiet_for(&mut self, node: &Node, requests: usize) {
        self.is_quiet_while(node, "eth_getBlockByNumber", requests).await;
    }

    async fn is_quiet_while(&mut self, node: &Node, method: &str, requests: usize) {
        let before = node.requests(method);
        let asked = async {
            while node.requests(method) < before + requests {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            batch = self.consumer.follower.next() => panic!("told: {batch:?}"),
            () = asked => {}
        }
    }
}

pub fn tip(chain: &[Recorded]) -> &str {
    &chain.last().unwrap().hash
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_published_at_once_and_witnessed_as_soon_as_another_endpoint_has_it() {
    let blocks = branch(&[], 5, 0);
    let [first, second] = nodes([&blocks, &blocks[..3]]).await;
    let chain = chain(&[&first, &second], "start_block: 0").await;
    assert_eq!(chain.witnesses, 2);
    let mut told = Told::new(&chain);
    told.until(|told| told.tip() == Some(tip(&blocks))).await;
    told.until(|told| told.known.witnessed == Some(2)).await;
    assert_eq!(told.tip(), Some(tip(&blocks)), "the second endpoint has three blocks, and delays none");
    second.set(&blocks);
    told.until(|told| told.known.witnessed == Some(4)).await;
    assert_eq!((told.consumer.added, told.consumer.removed.len()), (5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_second_endpoint_that_answers_blocks_are_published_and_nothing_is_witnessed() {
    let blocks = branch(&[], 5, 0);
    let [first, second] = nodes([&blocks, &[]]).await;
    let chain = chain(&[&first, &second], "start_block: 0").await;
    let mut told = Told::new(&chain);
    told.until(|told| told.tip() == Some(tip(&blocks))).await;
    told.is_quiet_for(&first, 20).await;
    assert_eq!(told.known.witnessed, None);
    let alone = chain_of(&first).await;
    let mut alone = Told::new(&alone);
    alone.until(|told| told.tip() == Some(tip(&blocks))).await;
    assert_eq!(alone.known.witnessed, Some(4), "one endpoint is its own witness, in the block's own record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_that_the_first_endpoint_invents_is_never_witnessed_and_makes_way_for_the_majority() {
    let common = branch(&[], 5, 0);
    let (honest, invented) = (branch(&common, 8, 0), branch(&common, 30, 9));
    let [liar, one, two] = nodes([&common, &common, &common]).await;
    let chain = chain(&[&liar, &one, &two], "start_block: 0").await;
    let mut told = Told::new(&chain);
    told.until(|told| told.known.witnessed == Some(4)).await;
    liar.set(&invented[..6]);
    told.until(|told| told.tip() == Some(&invented[5].hash)).await;
    // The others go on, and so does the liar, which is always ahead.
    one.set(&honest);
    two.set(&honest);
    liar.set(&invented);
    told.until(|told| told.tip() == Some(tip(&honest)) && told.known.witnessed == Some(7)).await;
    told.consumer.is_at(&honest);
    for (number, hash) in &told.witnessed {
        assert_eq!(hash, &honest[usize::try_from(*number).unwrap()].hash, "block {number} was witnessed");
    }
    let removed = told.consumer.removed.len();
    assert!(removed > 0, "the invented blocks were not taken back");
    // It is asked last now, and nothing of its branch comes any more.
    let preferred = told.rpc.preferred().await.unwrap();
    assert!(!liar.url.contains(preferred.host()), "{} is still asked first", preferred.host());
    let longer = branch(&honest, 12, 0);
    one.set(&longer);
    two.set(&longer);
    told.until(|told| told.known.witnessed == Some(11)).await;
    told.consumer.is_at(&longer);
    assert_eq!(told.consumer.removed.len(), removed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_against_one_takes_nothing_back_and_confirms_nothing_until_one_of_them_follows() {
    let common = branch(&[], 5, 0);
    let (ours, theirs) = (branch(&common, 6, 1), branch(&common, 7, 2));
    let [first, second] = nodes([&ours, &theirs]).await;
    let chain = chain(&[&first, &second], "start_block: 0").await;
    let mut told = Told::new(&chain);
    told.until(|told| told.tip() == Some(tip(&ours)) && told.known.witnessed == Some(4)).await;
    told.is_quiet_for(&second, 20).await;
    first.set(&theirs);
    told.until(|told| told.known.witnessed == Some(6)).await;
    told.consumer.is_at(&theirs);
    assert_eq!(told.consumer.removed, [5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_is_followed_once_more_than_half_of_the_endpoints_have_made_it() {
    let common = branch(&[], 8, 0);
    let after = branch(&common[..5], 10, 3);
    let [first, second, third] = nodes([&common, &common, &common]).await;
    let chain = chain(&[&first, &second, &third], "start_block: 0").await;
    let mut told = Told::new(&chain);
    told.until(|told| told.known.witnessed == Some(7)).await;
    first.set(&after);
    told.is_quiet_for(&second, 20).await;
    third.set(&after);
    told.until(|told| told.known.witnessed == Some(9)).await;
    told.consumer.is_at(&after);
    assert_eq!(told.consumer.removed, [7, 6, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_witness_the_branch_of_the_first_endpoint_is_followed() {
    let common = branch(&[], 5, 0);
    let (ours, theirs) = (branch(&common, 6, 1), branch(&common, 8, 2));
    let [first, second] = nodes([&ours, &ours]).await;
    let chain = chain(&[&first, &second], "start_block: 0, witnesses: 1").await;
    let mut told = Told::new(&chain);
    told.until(|told| told.tip() == Some(tip(&ours))).await;
    assert_eq!(told.known.witnessed, Some(5));
    first.set(&theirs);
    told.until(|told| told.tip() == Some(tip(&theirs)) && told.known.witnessed == Some(7)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_needs_as_many_endpoints_as_a_block_and_its_hash_on_our_chain() {
    let blocks = branch(&[], 20, 0);
    let other = branch(&blocks[..5], 20, 4);
    let [without, high, low, elsewhere] = nodes([&blocks, &blocks, &blocks, &other]).await;
    let behind = |node: &Node, blocks| node.script.lock().unwrap().final_behind = Some(blocks);
    behind(&high, 3);
    behind(&elsewhere, 0);
    let chain = chain(&[&without, &high, &low, &elsewhere], "start_block: 0").await;
    let mut told = Told::new(&chain);
    told.until(|told| told.known.witnessed == Some(19)).await;
    told.is_quiet_for(&high, 10).await;
    assert_eq!(told.known.finalized, None, "one endpoint has it, one has none, and one is on another branch");
    // On a chain that stands still, a tag that moves is told.
    behind(&low, 9);
    told.until(|told| told.known.finalized == Some(10)).await;
    behind(&low, 1);
    told.until(|told| told.known.finalized == Some(16)).await;
    assert_eq!((told.consumer.added, told.consumer.removed.len()), (20, 0));
    assert_eq!(told.consumer.follower.window().finalized(), Some(16));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_begins_as_deep_below_its_head_as_a_reorg_may_go() {
    let blocks = branch(&[], 400, 0);
    for (start, finalized_behind, first) in
        [("", None, 143), ("", Some(20), 379), ("start_block: 390", Some(20), 379), ("start_block: 3", Some(20), 3)]
    {
        let [node] = nodes([&blocks]).await;
        node.script.lock().unwrap().final_behind = finalized_behind;
        let mut told = Told::new(&chain(&[&node], start).await);
        told.until(|told| told.tip() == Some(tip(&blocks))).await;
        assert_eq!(told.consumer.stack[0].0, first, "{start} {finalized_behind:?}");
    }
    // A node that holds less begins where it can.
    let [node] = nodes([&blocks[390..]]).await;
    let mut told = Told::new(&chain(&[&node], "start_block: 395").await);
    told.until(|told| told.tip() == Some(tip(&blocks))).await;
    assert!((390..=395).contains(&told.consumer.stack[0].0), "{:?}", told.consumer.stack[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_below_the_first_block_brings_every_block_that_money_may_have_moved_to() {
    let blocks = branch(&[], 40, 0);
    let after = branch(&blocks[..12], 41, 5);
    // It begins at block 30, since its node holds nothing below; the fork begins at 12.
    let [node] = nodes([&blocks[30..]]).await;
    let mut told = Told::new(&chain(&[&node], "").await);
    told.until(|told| told.tip() == Some(tip(&blocks))).await;
    let first = told.consumer.stack[0].0;
    assert!(first >= 30, "{first}");
    node.set(&after);
    told.until(|told| told.tip() == Some(tip(&after))).await;
    let begins = usize::try_from(told.consumer.stack[0].0).unwrap();
    assert!(begins <= 12, "block {begins} is the first, and the fork is at 12");
    told.consumer.is_at(&after[begins..]);
    assert_eq!(u64::try_from(told.consumer.removed.len()).unwrap(), 40 - first, "all that was published was taken back, once");
}

/// An endpoint has the block, but gives nothing of its content. Its hash proves none of it where a root does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_one_endpoint_alone_has_given_is_not_witnessed_by_its_hash() {
    let blocks = &polygon().1[..3];
    let (first, second) = (Node::start(137, false).await, Node::start(137, false).await);
    [&first, &second].into_iter().for_each(|node| node.set(blocks));
    second.fault(Fault::Null, usize::MAX);
    let text = format!(
        "- {{ name: it, chain_id: 137, rpc_urls: [{}, {}], start_block: {}, poll_interval_ms: 5 }}\n",
        first.url, second.url, blocks[0].number
    );
    let chain = load(&text).await.unwrap();
    let rpc = || Rpc::with_patience(&chain.name, &chain.rpc_urls, Some(chain.id), Duration::from_millis(200));
    let mut told = Told::of(&chain, rpc(), Window::default());
    told.until(|told| told.tip() == Some(tip(blocks))).await;
    told.is_quiet_while(&second, "eth_getBlockByHash", 1).await;
    assert_eq!(told.known.witnessed, None);
    // Nor is it after a restart.
    let window = told.consumer.follower.window().clone();
    assert_eq!(window.doubts().count(), 3);
    let stack = std::mem::take(&mut told.consumer.stack);
    let mut told = Told::of(&chain, rpc(), window);
    told.consumer.stack = stack;
    // The second one has been asked for the content of all three, and has shown its hashes meanwhile.
    told.is_quiet_while(&second, "eth_getBlockByHash", 4).await;
    second.script.lock().unwrap().faults.clear();
    told.until(|told| told.known.witnessed == Some(blocks[2].number)).await;
    assert_eq!(told.consumer.follower.window().doubts().count(), 0);
}

/// A liar's content under the true hash of a block, while the others were silent. Nobody contradicts that hash, so the lie stayed
/// for good, and `witnesses: 1` confirmed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_others_contradict_makes_way_for_theirs() {
    let blocks = &polygon().1[..4];
    let lies: Vec<Recorded> = blocks
        .iter()
        .cloned()
        .map(|block| if block.number == blocks[2].number { block.with_another_amount() } else { block })
        .collect();
    let started = futures::future::join_all((0..3).map(|_| Node::start(137, false))).await;
    let [liar, one, two] = started.try_into().unwrap_or_else(|_| unreachable!());
    liar.set(&lies);
    [&one, &two].into_iter().for_each(|node| {
        node.set(blocks);
        node.fault(Fault::Null, usize::MAX);
    });
    let chain_of = async |nodes: &[&Node], rest: &str| {
        let urls: Vec<&str> = nodes.iter().map(|node| node.url.as_str()).collect();
        let (urls, start) = (urls.join(", "), blocks[0].number);
        load(&format!(
            "- {{ name: it, chain_id: 137, rpc_urls: [{urls}], start_block: {start}, poll_interval_ms: 5, {rest} }}\n"
        ))
        .await
        .unwrap()
    };
    let impatient =
        |chain: &Chain| Rpc::with_patience(&chain.name, &chain.rpc_urls, Some(chain.id), Duration::from_millis(200));
    let chain = chain_of(&[&liar, &one, &two], "").await;
    let mut told = Told::of(&chain, impatient(&chain), Window::default());
    told.until(|told| told.tip() == Some(tip(blocks))).await;
    let window = told.consumer.follower.window().clone();
    let lie = told.consumer.contents[&blocks[2].number];

    [&one, &two].iter().for_each(|node| node.script.lock().unwrap().faults.clear());
    told.until(|told| told.known.witnessed == Some(blocks[3].number)).await;
    told.consumer.is_at(blocks);
    assert_eq!(told.consumer.removed, [blocks[3].number, blocks[2].number]);
    assert_ne!(told.consumer.contents[&blocks[2].number], lie);
    assert!(!liar.url.contains(told.rpc.preferred().await.unwrap().host()), "it is asked first");

    // The way out confirms no lie that another endpoint contradicts, and who is left decides.
    let told_from = |chain: &Arc<Chain>| {
        let mut told = Told::of(chain, impatient(chain), window.clone());
        told.consumer.stack = blocks.iter().map(|block| (block.number, block.hash.clone())).collect();
        told
    };
    let mut told = told_from(&chain_of(&[&liar, &one], "witnesses: 1").await);
    told.until(|told| told.known.witnessed == Some(blocks[1].number)).await;
    told.is_quiet_while(&one, "eth_getBlockByHash", 4).await;
    // Of two nobody knows which one is right, and a person is told.
    let mut told = told_from(&chain_of(&[&liar, &one], "").await);
    let mut wait = told.consumer.follower.lasting_wait();
    let is_named = |why: &Option<String>| why.as_deref().is_some_and(|why| why.contains("has other content"));
    let follow = async {
        loop {
            told.next().await;
        }
    };
    tokio::select! {
        () = follow => {}
        named = tokio::time::timeout(PATIENCE, wait.wait_for(is_named)) => drop(named.expect("it is not named")),
    }
    let mut told = told_from(&chain_of(&[&one], "witnesses: 1").await);
    told.until(|told| told.known.witnessed == Some(blocks[3].number)).await;
    assert_eq!(told.consumer.removed, [blocks[3].number, blocks[2].number]);
}

/// A liar says that a block of a true hash stands on one that it has invented. The others have that hash, and not what is below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lie_says_that_a_block_stands_on_is_not_witnessed_and_makes_way_with_it() {
    let blocks = branch(&[], 6, 0);
    let lies = [&branch(&blocks[..2], 3, 7), &blocks[3..]].concat();
    let mut parent_hash = B256::ZERO;
    let heads: Vec<Head> = lies
        .iter()
        .map(|block| {
            let hash = block.hash.parse().unwrap();
            Head {
                number: block.number,
                hash,
                parent_hash: std::mem::replace(&mut parent_hash, hash),
                timestamp: 1_700_000_000,
            }
        })
        .collect();
    let mut window = Window::new(heads.clone(), true, None);
    window.doubt(&heads[3], B256::repeat_byte(7));
    let [one, two] = nodes([&blocks, &blocks]).await;
    let chain = chain(&[&one, &two], "start_block: 0").await;
    let mut told = Told::of(&chain, Rpc::of(&chain), window);
    told.consumer.stack = lies.iter().map(|block| (block.number, block.hash.clone())).collect();
    told.until(|told| told.known.witnessed == Some(5)).await;
    told.consumer.is_at(&blocks);
    assert_eq!(told.consumer.removed, [5, 4, 3, 2]);
    assert!(!told.witnessed.contains(&(2, lies[2].hash.clone())), "{:?}", told.witnessed);
}

/// While the next block waited for room, nobody was asked for the content of the lowest one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_full_of_doubt_goes_on_once_another_endpoint_gives_the_content() {
    const BLOCKS: u64 = 65_536;
    let hash = |number: u64| B256::from(U256::from(number + 1) << 8);
    let head = |number: u64| Head {
        number,
        hash: hash(number),
        parent_hash: number.checked_sub(1).map(hash).unwrap_or_default(),
        timestamp: 1_700_000_000 + number,
    };
    let blocks = skipping(&branch(&[], 1, 0), [BLOCKS - 1, BLOCKS], 0);
    let [first, second] = nodes([&blocks, &blocks]).await;
    let chain = chain(&[&first, &second], "start_block: 0").await;
    let lowest = fetch_block(&Rpc::of(&chain), FetchOptions::of(&chain), BlockId::Hash(hash(0))).await.unwrap().unwrap();
    let mut window = Window::new((0..BLOCKS).map(head), true, None);
    window.doubt(&head(0), lowest.content_digest());
    let mut told = Told::of(&chain, Rpc::of(&chain), window);
    // All of the window: where the endpoints answer late, its blocks are witnessed step by step.
    told.consumer.stack = (0..BLOCKS).map(|number| (number, hash(number).to_string())).collect();
    told.until(|told| told.tip() == Some(tip(&blocks)) && told.known.witnessed == Some(BLOCKS)).await;
}

/// The only endpoint that gives its head and blocks keeps showing a long branch. Only a look shows that the other one is on it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_ends_when_the_other_endpoint_has_changed_its_mind() {
    let common = branch(&[], 8, 0);
    let after = branch(&common[..5], 12, 3);
    let [first, second] = nodes([&common, &common]).await;
    let chain = chain(&[&first, &second], "start_block: 0").await;
    second.script.lock().unwrap().no_latest = true;
    second.fault(Fault::Null, usize::MAX);
    let mut told = Told::new(&chain);
    told.until(|told| told.known.witnessed == Some(7)).await;
    first.set(&after);
    told.is_quiet_for(&first, 20).await;
    second.set(&after);
    told.until(|told| told.tip() == Some(tip(&after)) && told.known.witnessed == Some(11)).await;
}

/// Above all heads there is nobody to contradict, and the others' heads below the first block would pass for lagging ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_chain_begins_on_blocks_that_one_endpoint_alone_has_reached() {
    let (honest, invented) = (branch(&[], 400, 0), branch(&[], 6_000, 9));
    let [liar, one, two] = nodes([&invented[5_900..], &honest, &honest]).await;
    let mut told = Told::new(&chain(&[&liar, &one, &two], "").await);
    told.until(|told| told.tip() == Some(tip(&honest)) && told.known.witnessed == Some(399)).await;
    assert_eq!((told.consumer.stack[0].0, told.consumer.removed.len()), (143, 0));

    // The others are silent for now.
    let silent = nodes([&[], &[]]).await;
    let mut told = Told::new(&chain(&[&liar, &silent[0], &silent[1]], "").await);
    let mut wait = told.consumer.follower.lasting_wait();
    while !wait.borrow_and_update().as_ref().is_some_and(|wait| wait.contains("where the chain's head is")) {
        tokio::select! {
            changed = wait.changed() => changed.unwrap(),
            () = told.next() => panic!("it begins on one word: {:?}", told.consumer.stack),
        }
    }
    silent.iter().for_each(|node| node.set(&honest));
    told.until(|told| told.tip() == Some(tip(&honest)) && told.known.witnessed == Some(399)).await;
    assert_eq!((told.consumer.stack[0].0, told.consumer.removed.len()), (143, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endpoint_alone_stops_no_chain_by_a_timestamp_and_two_do() {
    let OddTip { common, mut told, .. } = OddTip::of_one_then_of_two(Recorded::in_nanoseconds).await;
    let refused = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(refused) = told.consumer.follower.next().await {
                return refused;
            }
        }
    });
    assert!(refused.await.unwrap().to_string().contains("Unix seconds"));
    told.consumer.is_at(&common);
}

/// All have the block's hash, and one alone says what is under it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endpoint_alone_stops_no_chain_by_content_under_a_true_hash() {
    let honest = branch(&[], 6, 0);
    let lies = [&honest[..5], &[honest[5].clone().in_nanoseconds()]].concat();
    let [liar, one, two] = nodes([&honest[..5], &honest[..5], &honest[..5]]).await;
    let chain = chain(&[&liar, &one, &two], "start_block: 0").await;
    let rpc = Rpc::with_patience(&chain.name, &chain.rpc_urls, Some(chain.id), Duration::from_millis(200));
    let mut told = Told::of(&chain, rpc, Window::default());
    told.until(|told| told.known.witnessed == Some(4)).await;
    liar.set(&lies);
    for node in [&one, &two] {
        node.fault(Fault::Null, usize::MAX);
        node.set(&honest);
    }
    told.is_quiet_while(&liar, "eth_getBlockByHash", 4).await;
    [&one, &two].iter().for_each(|node| node.script.lock().unwrap().faults.clear());
    told.until(|told| told.known.witnessed == Some(5)).await;
    told.consumer.is_at(&honest);
}

/// Its timestamp would expire all payments, and merchants be told, before others witness it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_with_a_timestamp_to_come_is_not_published_on_one_word() {
    // Our clock may be wrong.
    let OddTip { odd, mut told, .. } = OddTip::of_one_then_of_two(Recorded::ahead_of_time).await;
    told.until(|told| told.known.witnessed == Some(5)).await;
    told.consumer.is_at(&odd);
}

/// Two of three nodes whose tip is odd.
struct OddTip {
    common: Vec<Recorded>,
    odd: Vec<Recorded>,
    told: Told,
    _nodes: [Node; 3],
}

impl OddTip {
    /// While one node alone has an odd tip, nothing is published and others are asked first; then two have one.
    async fn of_one_then_of_two(make_odd: impl Fn(Recorded) -> Recorded) -> Self {
        let common = branch(&[], 5, 0);
        let honest = branch(&common, 9, 0);
        let odd = |fork| [&common[..], &[make_odd(branch(&common, 6, fork)[5].clone())]].concat();
        let nodes = nodes([&common, &common, &common]).await;
        let [liar, one, two] = &nodes;
        let chain = chain(&[liar, one, two], "start_block: 0").await;
        let mut told = Told::new(&chain);
        told.until(|told| told.known.witnessed == Some(4)).await;
        liar.set(&odd(9));
        told.is_quiet_for(one, 20).await;
        assert!(!liar.url.contains(told.rpc.preferred().await.unwrap().host()), "it is asked first");
        one.set(&honest);
        two.set(&honest);
        told.until(|told| told.known.witnessed == Some(8)).await;
        told.consumer.is_at(&honest);

        let mut told = Told::new(&chain);
        nodes.iter().for_each(|node| node.set(&common));
        told.until(|told| told.known.witnessed == Some(4)).await;
        let odd = odd(0);
        [liar, one].iter().for_each(|node| node.set(&odd));
        Self { common, odd, told, _nodes: nodes }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endpoint_halts_no_chain_by_a_deep_branch_while_the_others_are_silent() {
    let common = branch(&[], 20, 0);
    let (honest, invented) = (branch(&common, 22, 0), branch(&common[..5], 21, 9));
    let [liar, one, two] = nodes([&common, &common, &common]).await;
    [&liar, &one, &two].iter().for_each(|node| node.script.lock().unwrap().final_behind = Some(5));
    let mut told = Told::new(&chain(&[&liar, &one, &two], "start_block: 0").await);
    told.until(|told| told.known.witnessed == Some(19) && told.known.finalized == Some(14)).await;
    [&one, &two].iter().for_each(|node| node.set(&[]));
    liar.set(&invented);
    told.is_quiet_for(&liar, 12).await;
    [&one, &two].iter().for_each(|node| node.set(&honest));
    told.until(|told| told.known.witnessed == Some(21)).await;
    told.consumer.is_at(&honest);
}

/// It was walked down block by block at every look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_that_leaves_ours_far_below_costs_few_requests_and_is_followed_where_most_are_on_it() {
    let common = branch(&[], 250, 0);
    let after = branch(&common[..20], 252, 3);
    let [first, second, third] = nodes([&common, &common, &common]).await;
    let chain = chain(&[&first, &second, &third], "start_block: 0").await;
    let mut told = Told::new(&chain);
    told.until(|told| told.known.witnessed == Some(249)).await;
    let before = first.requests("eth_getBlockByHash") + first.requests("eth_getBlockByNumber");
    first.set(&after);
    told.is_quiet_for(&second, 20).await;
    let requests = first.requests("eth_getBlockByHash") + first.requests("eth_getBlockByNumber") - before;
    assert!(requests < 200, "{requests} requests to tell where its branch leaves ours");
    second.set(&after);
    told.until(|told| told.known.witnessed == Some(251)).await;
    told.consumer.is_at(&after);
    assert_eq!(told.consumer.removed, (20..250).rev().collect::<Vec<_>>());
}

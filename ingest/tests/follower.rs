//! The follower against a node that serves real blocks, through a real reorg and through faults: it always returns a stack of
//! proven blocks that ends at the node's chain.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod holes;
mod node;
mod witnesses;

use chain::{Chain, Chains, ChainsFile, Heads, Listing, Policy, ResolveError, Rpc, RpcError};
use futures::{SinkExt as _, StreamExt as _};
use ingest::records::Change;
use ingest::{BatchSizes, Follower, Window};
use node::{Fault, Node, Recorded, recorded};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_tungstenite::tungstenite::Message;
use topics::B256;

const ETHEREUM: &str = "eth-mainnet-17686110-17686112";
const POLYGON: &str = "polygon-13522175-13522230";

async fn chain(id: u64, nodes: &[&Node], start: u64) -> Arc<Chain> {
    let urls: Vec<&str> = nodes.iter().map(|node| node.url.as_str()).collect();
    let urls = urls.join(", ");
    let text = format!("- name: it\n  chain_id: {id}\n  rpc_urls: [{urls}]\n  start_block: {start}\n  poll_interval_ms: 5\n");
    load(&text).await.unwrap()
}

/// The only chain of a file with this text.
async fn load(text: &str) -> Result<Arc<Chain>, ResolveError> {
    Ok(Arc::new(file(text).resolve().await?.into_iter().next().unwrap()))
}

fn file(text: &str) -> ChainsFile {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("ctrip-follower-{}-{next}.yaml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let file = Chains::load(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// A consumer that checks that history is a stack.
struct Consumer {
    follower: Follower,
    /// Whether the chain may skip numbers.
    skips: bool,
    stack: Vec<(u64, String)>,
    added: usize,
    removed: Vec<u64>,
    logs: usize,
    /// Of the block added last at each height.
    contents: HashMap<u64, B256>,
}

impl Consumer {
    fn new(chain: &Arc<Chain>) -> Self {
        Self::of(Follower::new(
            chain.clone(),
            Arc::new(Rpc::of(chain)),
            Heads::of(chain),
            Window::default(),
            BatchSizes::default(),
        ))
    }

    fn of(follower: Follower) -> Self {
        Self { follower, skips: false, stack: vec![], added: 0, removed: vec![], logs: 0, contents: HashMap::new() }
    }

    async fn until(&mut self, tip: &Recorded) {
        while self.stack.last().is_none_or(|(_, hash)| *hash != tip.hash) {
            let batch = tokio::time::timeout(Duration::from_secs(20), self.follower.next()).await;
            self.take(batch.unwrap_or_else(|_| panic!("nothing more; at {:?}", self.stack.last())).unwrap().changes);
        }
    }

    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Removed(head, tip) => {
                    assert_eq!(self.stack.pop(), Some((head.number, head.hash.to_string())));
                    assert_eq!(tip, self.stack.last().map(|(number, _)| *number));
                    self.removed.push(head.number);
                }
                Change::Replayed(block) => panic!("{} is no past block", block.block.number),
                Change::Tags(head) => assert_eq!(self.stack.last(), Some(&(head.number, head.hash.to_string()))),
                Change::Added(block) => {
                    let head = block.block.head();
                    if let Some((number, hash)) = self.stack.last() {
                        assert_eq!(&head.parent_hash.to_string(), hash);
                        assert!(
                            head.number == number + 1 || self.skips && head.number > *number,
                            "{} on {number}",
                            head.number
                        );
                    }
                    self.stack.push((head.number, head.hash.to_string()));
                    self.added += 1;
                    self.logs += block.logs.len();
                    self.contents.insert(head.number, block.content_digest());
                }
            }
        }
    }

    fn block(&self, number: u64) -> Option<&(u64, String)> {
        self.stack.iter().find(|(height, _)| *height == number)
    }

    fn is_at(&self, chain: &[Recorded]) {
        let expected: Vec<(u64, String)> = chain.iter().map(|block| (block.number, block.hash.clone())).collect();
        assert_eq!(self.stack, expected);
    }
}

/// The recorded Polygon chain before and after its reorg at 13522194.
fn polygon() -> (Vec<Recorded>, Vec<Recorded>) {
    let blocks = recorded(POLYGON);
    let branch_to = |tip: &Recorded| {
        let mut branch = vec![tip.clone()];
        while let Some(parent) = blocks.iter().find(|block| block.hash == branch[0].parent) {
            branch.insert(0, parent.clone());
        }
        branch
    };
    let canonical = branch_to(blocks.last().unwrap());
    let orphan = blocks.iter().find(|block| canonical.iter().all(|other| other.hash != block.hash)).unwrap();
    (branch_to(orphan), canonical)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_reorg_is_one_removal_and_the_right_additions() {
    let (before, after) = polygon();
    assert_eq!((before.len(), after.len()), (20, 56));
    let node = Node::start(137, false).await;
    node.set(&before);
    let chain = chain(137, &[&node], 13_522_175).await;
    let mut consumer = Consumer::new(&chain);
    consumer.until(before.last().unwrap()).await;
    consumer.is_at(&before);

    for reached in 20..=after.len() {
        node.set(&after[..reached]);
        consumer.until(&after[reached - 1]).await;
    }
    consumer.is_at(&after);
    assert_eq!((consumer.removed, consumer.added), (vec![13_522_194], 57));
    // The first eight are fetched in parallel.
    assert!(node.requests("eth_getBlockReceipts") <= 8, "requested a method again that the node does not have");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_during_catch_up_is_seen_at_the_first_block_that_does_not_fit() {
    let (before, after) = polygon();
    let node = Node::start(137, false).await;
    node.set(&before);
    let chain = chain(137, &[&node], 13_522_175).await;
    let mut consumer = Consumer::new(&chain);
    consumer.until(before.last().unwrap()).await;
    node.set(&after);
    consumer.until(after.last().unwrap()).await;
    consumer.is_at(&after);
    assert_eq!((consumer.removed, consumer.added), (vec![13_522_194], 57));
}

/// The `finalized` tag moves with the head. The last block before a pause must carry the tag of its own time, or a payment that
/// waits for it would wait for the next block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_head_carries_fresh_finality_tags_however_soon_it_follows() {
    let (_, after) = polygon();
    let node = Node::start(137, false).await;
    node.script.lock().unwrap().final_behind = Some(2);
    let url = &node.url;
    let text =
        format!("- name: it\n  chain_id: 137\n  rpc_urls: [\"{url}\"]\n  start_block: 13522175\n  poll_interval_ms: 600000\n");
    let mut consumer = Consumer::new(&load(&text).await.unwrap());
    node.set(&after[..10]);
    consumer.until(&after[9]).await;
    for reached in 11..15 {
        node.set(&after[..reached]);
        let batch = consumer.follower.next().await.unwrap();
        assert_eq!(batch.finality.finalized, Some(after[reached - 3].number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_head_takes_nothing_back() {
    let (_, after) = polygon();
    let node = Node::start(137, false).await;
    let chain = chain(137, &[&node], 13_522_175).await;
    let mut consumer = Consumer::new(&chain);
    for reached in [30, 5, 31, 1, 40, 12, 56] {
        node.set(&after[..reached]);
        if reached >= 30 {
            consumer.until(&after[reached - 1]).await;
        } else {
            let idle = tokio::time::timeout(Duration::from_millis(100), consumer.follower.next()).await;
            assert!(idle.is_err(), "{idle:?}");
        }
    }
    consumer.is_at(&after);
    assert!(consumer.removed.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_a_node_loses_or_alters_anything() {
    let faults = [
        Fault::NoLogs,
        Fault::OneLogShort,
        Fault::OtherReceipt,
        Fault::Null,
        Fault::Http500,
        Fault::Html,
        Fault::Truncated,
        Fault::RateLimit,
        Fault::OtherParent,
    ];
    let blocks = Arc::new(recorded(ETHEREUM));
    let mut all: tokio::task::JoinSet<()> = faults.into_iter().map(|fault| suffer(fault, blocks.clone())).collect();
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
}

async fn suffer(fault: Fault, blocks: Arc<Vec<Recorded>>) {
    let logs = blocks.iter().map(Recorded::count_logs).sum::<usize>();
    let node = Node::start(1, true).await;
    node.set(&blocks[..1]);
    node.fault(fault, 5);
    let chain = chain(1, &[&node], 17_686_110).await;
    let mut consumer = Consumer::new(&chain);
    consumer.until(&blocks[0]).await;
    node.fault(fault, 3);
    node.set(&blocks);
    consumer.until(&blocks[2]).await;
    consumer.is_at(&blocks);
    assert_eq!((consumer.added, consumer.removed.len(), consumer.logs), (3, 0, logs), "{fault:?}");
    assert!(node.script.lock().unwrap().faults.iter().all(|(_, left)| *left == 0), "{fault:?} was not shown");
}

/// The time in which 20 blocks come: half of them a catch-up, the others one after the other.
async fn time_of_blocks(set: impl FnOnce(&mut node::Script)) -> Duration {
    let (_, after) = polygon();
    let node = Node::start(137, false).await;
    set(&mut node.script.lock().unwrap());
    node.script.lock().unwrap().latency = Duration::from_millis(20);
    node.set(&after[..10]);
    let chain = chain(137, &[&node], 13_522_175).await;
    let mut consumer = Consumer::new(&chain);
    let started = std::time::Instant::now();
    for reached in 10..=20 {
        node.set(&after[..reached]);
        consumer.until(&after[reached - 1]).await;
    }
    started.elapsed()
}

/// A deadline of ten seconds let no block through in a minute where three requests of ten hung; a back-off down to two requests
/// a second let half of them through where three of ten were refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_endpoint_that_hangs_or_refuses_three_times_of_ten_costs_three_times_the_time_at_most() {
    // Not even one call waited out until a fixed deadline.
    const SLACK: Duration = Duration::from_secs(3);
    // What else the machine does adds time and takes none away, so the least of each counts.
    let mut least = [Duration::MAX; 3];
    for _ in 0..3 {
        let clean = time_of_blocks(|_| ()).await;
        let hanging = time_of_blocks(|script| script.hangs = 3).await;
        let round = [clean, hanging, time_of_blocks(|script| script.refuses = 3).await];
        println!("20 blocks without faults, with 30 % that hang, with 30 % that are refused: {round:.1?}");
        for (least, time) in least.iter_mut().zip(round) {
            *least = time.min(*least);
        }
        let [clean, hanging, refusing] = least;
        if hanging.max(refusing) < clean * 3 + SLACK {
            return;
        }
    }
    panic!("{least:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_endpoint_takes_over_and_the_first_is_left_alone_for_a_while() {
    let blocks = recorded(ETHEREUM);
    let (broken, sound) = (Node::start(1, true).await, Node::start(1, true).await);
    for node in [&broken, &sound] {
        node.set(&blocks[..2]);
    }
    broken.fault(Fault::NoLogs, usize::MAX);
    let chain = chain(1, &[&broken, &sound], 17_686_110).await;
    let mut consumer = Consumer::new(&chain);
    consumer.until(&blocks[1]).await;
    let asked = broken.requests("eth_getBlockReceipts");
    assert!(asked > 0, "the first is not asked first");
    for node in [&broken, &sound] {
        node.set(&blocks);
    }
    consumer.until(&blocks[2]).await;
    consumer.is_at(&blocks);
    assert_eq!(broken.requests("eth_getBlockReceipts"), asked, "it is asked again though it lies");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preferred_endpoint_that_announces_heads_it_does_not_have_delays_nothing() {
    let blocks = recorded(ETHEREUM);
    let nobody = format!("0x{}", "24".repeat(32));
    // On our tip, at its height, with a parent that nobody has, and far above all others.
    let heads =
        [(17_686_111, &blocks[0].hash), (17_686_110, &blocks[0].parent), (17_686_111, &nobody), (99_999_999, &blocks[0].hash)];
    for (number, parent) in heads {
        let (ahead, sound) = (Node::start(1, true).await, Node::start(1, true).await);
        for node in [&ahead, &sound] {
            node.set(&blocks[..1]);
        }
        let chain = chain(1, &[&ahead, &sound], 17_686_110).await;
        let mut consumer = Consumer::new(&chain);
        consumer.until(&blocks[0]).await;
        ahead.announce(number, parent);
        sound.set(&blocks);
        consumer.until(&blocks[2]).await;
        consumer.is_at(&blocks);
    }
}

/// The URL of a websocket that announces heads without end and without pause.
async fn flood() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        for result in ["0x1", "0x2"] {
            let request: Value = serde_json::from_str(socket.next().await.unwrap().unwrap().to_text().unwrap()).unwrap();
            let answer = json!({ "jsonrpc": "2.0", "id": request["id"], "result": result });
            socket.send(Message::text(answer.to_string())).await.unwrap();
        }
        for number in 1_000_000_000_u64.. {
            let params = json!({ "subscription": "0x2", "result": { "number": format!("{number:#x}") } });
            let head = json!({ "jsonrpc": "2.0", "method": "eth_subscription", "params": params });
            if socket.send(Message::text(head.to_string())).await.is_err() {
                return;
            }
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_announcements_is_not_passed_on_to_the_node() {
    const SPAN: Duration = Duration::from_secs(2);
    let blocks = recorded(ETHEREUM);
    let node = Node::start(1, true).await;
    node.set(&blocks[..1]);
    let text = format!(
        "- name: it\n  chain_id: 1\n  rpc_url: {}\n  ws_urls: [\"{}\"]\n  start_block: 17686110\n  poll_interval_ms: 600000\n",
        node.url,
        flood().await
    );
    let mut consumer = Consumer::new(&load(&text).await.unwrap());
    consumer.until(&blocks[0]).await;
    let before = node.requests("eth_getBlockByNumber");
    let idle = tokio::time::timeout(SPAN, consumer.follower.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    let polls = node.requests("eth_getBlockByNumber") - before;
    // Each poll waits for 50 ms first.
    assert!((2..=41).contains(&polls), "{polls} polls of the head in {SPAN:?}");
    // The next regular poll is ten minutes away.
    node.set(&blocks);
    consumer.until(&blocks[2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_another_chain_is_never_used_and_a_chain_that_has_no_other_is_refused() {
    let blocks = recorded(ETHEREUM);
    let (other, sound) = (Node::start(137, true).await, Node::start(1, true).await);
    other.set(&polygon().1);
    sound.set(&blocks);
    let chain = chain(1, &[&other, &sound], 17_686_110).await;
    assert!(Rpc::of(&chain).refuse_wrong_chain().await.is_ok(), "one endpoint stops a chain");
    let mut consumer = Consumer::new(&chain);
    consumer.until(&blocks[2]).await;
    consumer.is_at(&blocks);
    let asked: Vec<String> = other.script.lock().unwrap().requests.keys().cloned().collect();
    assert!(asked.iter().all(|method| ["eth_chainId", "eth_blockNumber"].contains(&method.as_str())), "{asked:?}");
    let alone = self::chain(1, &[&other], 17_686_110).await;
    let refused = Rpc::of(&alone).refuse_wrong_chain().await.unwrap_err();
    assert!(matches!(refused, RpcError::WrongChain { expected, got, .. } if expected.0 == 1 && got.0 == 137), "{refused}");
    assert!(!format!("{refused} {refused:?}").contains("secret"), "{refused:?}");
}

#[tokio::test]
async fn an_error_names_the_host_and_never_the_key_in_the_url() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://user:secret@127.0.0.1:{port}/secret").parse().unwrap();
    let error = Rpc::new("it", &[url], None).chain_id().await.unwrap_err();
    let all = format!("{} {error:?}", base::error_chain(&error));
    assert!(all.contains(&format!("127.0.0.1:{port}")) && !all.contains("secret"), "{all}");
}

#[tokio::test]
async fn a_file_that_is_read_again_gives_one_id_to_one_chain() {
    let node = Node::start(137, true).await;
    let path = std::env::temp_dir().join(format!("ctrip-listing-{}.yaml", std::process::id()));
    let it = format!("- {{ name: it, rpc_url: \"{}\" }}", node.url);
    std::fs::write(&path, &it).unwrap();
    let (listing, _) = Listing::open(&path).await.unwrap();
    assert_eq!(listing.chains().by_name("it").unwrap().id.0, 137);
    std::fs::write(&path, format!("{it}\n- {{ name: local, chain_id: 137, rpc_url: \"{}\" }}", node.url)).unwrap();
    let left_out = listing.reload(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(listing.chains().iter().map(|chain| chain.name.as_str()).collect::<Vec<_>>(), ["local"]);
    assert_eq!(left_out.iter().map(ResolveError::chain).collect::<Vec<_>>(), ["it"], "as at a start");
}

#[tokio::test]
async fn a_chain_without_an_id_gets_its_nodes_and_that_ids_preset() {
    let node = Node::start(137, true).await;
    let chain = load(&format!("- name: it\n  rpc_url: {}", node.url)).await.unwrap();
    assert_eq!((chain.id.0, chain.policy), (137, Policy::Finalized));

    // Where the node is down, or is of a chain that the file has already, that entry is left out.
    let [down, up] = ["http://127.0.0.1:1", &node.url];
    let text = format!(
        "- {{ name: down, rpc_url: \"{down}\" }}\n- {{ name: twin, rpc_url: \"{up}\" }}\n- {{ name: it, chain_id: 137, rpc_url: \"{up}\" }}"
    );
    let (chains, left_out) = file(&text).resolve_known().await;
    assert_eq!(chains.iter().map(|chain| chain.name.as_str()).collect::<Vec<_>>(), ["it"]);
    assert_eq!(left_out.iter().map(ResolveError::chain).collect::<Vec<_>>(), ["down", "twin"]);

    assert_eq!(file(&text).only("it").resolve().await.unwrap().iter().count(), 1, "a command waits for another chain's node");

    let twice = format!("- name: it\n  rpc_url: {0}\n- name: other\n  rpc_url: {0}", node.url);
    assert!(matches!(load(&twice).await.unwrap_err(), ResolveError::SameId { id, .. } if id.0 == 137));
}

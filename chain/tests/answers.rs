//! Answers that fail for one block, one transaction, one batch or one moment: the chain goes on, with the same proof.

#![allow(clippy::unwrap_used, clippy::result_large_err, reason = "a test fails by panicking")]

mod node;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use chain::{BlockId, FetchError, FetchOptions, FetchedBlock, PartProof, Rpc, Verify, fetch_block, fetch_head};
use node::{AUTO, Answer, ETHEREUM, Node, ROOTS, head_hash, pool, recorded, unsupported};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use topics::B256;

const TRACED: FetchOptions = FetchOptions { verify: Verify::Auto, traces: true };

/// What a node says to a call for a trace: the method, and the trace of the transaction that it names.
type TraceAnswer = fn(&str, Option<&Value>) -> Option<Answer>;

/// A node with the newest block of `ETHEREUM` and its traces, some of which are answered by `odd`.
async fn traced(odd: TraceAnswer) -> Node {
    let (_, answer) = recorded(ETHEREUM);
    let traces = traces();
    Node::start(true, move |method, params| {
        let single = traces.iter().find(|trace| trace["txHash"] == params[0]);
        if let Some(answer) = odd(method, single) {
            return answer;
        }
        match method {
            "debug_traceBlockByHash" => Ok(json!(traces)),
            "debug_traceTransaction" => {
                assert_eq!(params[1]["tracer"], "callTracer");
                assert!(params[1]["timeout"].is_string(), "the node may work for nobody");
                Ok(single.unwrap()["result"].clone())
            }
            method => answer(method, params),
        }
    })
    .await
}

/// The traces of the newest block of `ETHEREUM`.
fn traces() -> Vec<Value> {
    let (lines, _) = recorded(ETHEREUM);
    let all = testdata::lines(&format!("{ETHEREUM}.traces")).unwrap();
    let of_block = all.into_iter().find(|line| line["hash"] == lines.last().unwrap()["hash"]).unwrap();
    of_block["result"].as_array().unwrap().clone()
}

async fn newest(nodes: &[&Node]) -> Result<FetchedBlock, FetchError> {
    let hash = head_hash(&recorded(ETHEREUM).0);
    fetch_block(&pool(nodes), TRACED, BlockId::Hash(hash)).await.map(Option::unwrap)
}

fn refused(code: i64, message: &str) -> Answer {
    Ok(json!({ "code": code, "message": message }))
}

/// Whether it is the trace of the first transaction with a transfer below its top frame, in the recorded block.
fn is_odd(trace: Option<&Value>) -> bool {
    static ODD: LazyLock<Value> = LazyLock::new(|| traces().iter().find(|one| has_transfer(one)).unwrap()["txHash"].clone());
    trace.is_some_and(|trace| trace["txHash"] == *ODD)
}

fn has_transfer(trace: &Value) -> bool {
    let calls = trace["result"]["calls"].as_array();
    calls.is_some_and(|calls| {
        calls.iter().any(|call| call["type"] == "CALL" && call["value"].as_str().is_some_and(|v| v != "0x0"))
    }) && trace["result"].get("error").is_none()
}

#[tokio::test]
async fn a_block_whose_trace_fails_is_traced_by_transaction_and_nothing_is_missing() {
    let whole = newest(&[&traced(|_, _| None).await]).await.unwrap();
    assert!(whole.is_traced() && whole.internal.as_ref().unwrap().len() > 20);
    let failures: [TraceAnswer; 4] = [
        |method, _| (method == "debug_traceBlockByHash").then(|| refused(-32000, "execution timeout")),
        |method, _| (method == "debug_traceBlockByHash").then(|| Ok(json!([{ "error": "execution timeout" }]))),
        |method, _| (method == "debug_traceBlockByHash").then(|| Err((StatusCode::BAD_GATEWAY, "too large").into_response())),
        |method, _| (method == "debug_traceBlockByHash").then(|| Ok(json!("[{\"result\":"))),
    ];
    for failure in failures {
        let fetched = newest(&[&traced(failure).await]).await.unwrap();
        assert!(fetched.is_traced(), "{:?}", fetched.untraced);
        assert_eq!(fetched.internal, whole.internal);
    }
}

/// Anyone can make a transaction whose trace is too large or too slow, for a quarter of a million gas.
#[tokio::test]
async fn a_transaction_that_nobody_can_trace_costs_its_own_transfers_and_no_other() {
    let whole = newest(&[&traced(|_, _| None).await]).await.unwrap().internal.unwrap();
    let odd: TraceAnswer =
        |method, trace| (method == "debug_traceBlockByHash" || is_odd(trace)).then(|| refused(-32000, "execution timeout"));
    let started = Instant::now();
    let (one, other) = (traced(odd).await, traced(odd).await);
    for nodes in [&[&one][..], &[&one, &other]] {
        let fetched = newest(nodes).await.unwrap();
        assert!(!fetched.is_traced() && fetched.untraced.as_ref().unwrap().contains("timeout"), "{:?}", fetched.untraced);
        let internal = fetched.internal.unwrap();
        assert!(internal.len() < whole.len() && internal.len() > 10);
        assert!(
            internal.iter().all(|transfer| whole.contains(transfer)),
            "a transfer has another number than in a whole trace"
        );
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // Another endpoint may be able to. Whoever of the two is asked first, both have to say the same of the rest.
    let able = traced(|_, _| None).await;
    assert!(newest(&[&one, &able]).await.unwrap().is_traced());
}

/// A node without a trace for now is asked again; one that never has one does not stop the chain.
#[tokio::test]
async fn a_block_without_any_trace_waits_a_while_and_is_published_as_not_traced() {
    let node = traced(|method, _| method.starts_with("debug_").then(|| refused(-32000, "missing trie node"))).await;
    let (rpc, hash) = (pool(&[&node]), head_hash(&recorded(ETHEREUM).0));
    let started = Instant::now();
    let fetched = loop {
        match fetch_block(&rpc, TRACED, BlockId::Hash(hash)).await {
            Ok(fetched) => break fetched.unwrap(),
            Err(error) => assert!(matches!(error, FetchError::Untraced { .. }), "{}", base::error_chain(&error)),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the chain stands still");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert!(started.elapsed() > Duration::from_secs(5), "it did not wait for the node at all");
    assert!(fetched.internal.as_ref().is_some_and(Vec::is_empty) && !fetched.is_traced());
    assert!(rpc.endpoints()[0].is_healthy(), "a block that can't be traced is no fault of the endpoint");
}

#[tokio::test]
async fn block_receipts_that_fail_for_one_block_come_one_by_one_and_prove_as_much() {
    let (lines, answer) = recorded(ETHEREUM);
    let hash = head_hash(&lines);
    let failures: [fn() -> Answer; 5] = [
        || refused(-32603, "internal error"),
        || refused(-32000, "block has too many receipts for me"),
        || Ok(json!([{ "odd": 1 }])),
        || Ok(Value::Null),
        || Err((StatusCode::INTERNAL_SERVER_ERROR, "oops").into_response()),
    ];
    for failure in failures {
        let answer = answer.clone();
        let node = Node::start(true, move |method, params| match method {
            "eth_getBlockReceipts" if params[0] == json!(hash) => failure(),
            method => answer(method, params),
        })
        .await;
        let rpc = pool(&[&node]);
        let fetched = fetch_block(&rpc, ROOTS, BlockId::Hash(hash)).await.unwrap().unwrap();
        assert_eq!(fetched.proof.receipts, PartProof::Root);
        assert!(fetched.logs.len() > 100 && rpc.endpoints()[0].is_healthy());
        let single = node.asked("eth_getTransactionReceipt");
        assert_eq!(single, fetched.block.transactions.len());
        // The next block is asked for as usual.
        fetch_block(&rpc, ROOTS, BlockId::Number(17_686_110)).await.unwrap().unwrap();
        assert_eq!(node.asked("eth_getTransactionReceipt"), single);
    }
}

/// What providers answer to a batch that is too large, and how many calls they take.
fn batch_limits() -> Vec<(usize, u16, Value)> {
    let error =
        |code: i64, message: &str| json!({ "jsonrpc": "2.0", "id": null, "error": { "code": code, "message": message } });
    vec![
        (3, 200, error(31, "Batch of more than 3 requests are not allowed on free tier, to use larger batch please upgrade")),
        (10, 200, error(-32007, "batch limit exceeded")),
        (20, 200, error(-32005, "batch size limit exceeded")),
        (20, 200, error(-32010, "The batch request was too large")),
        (99, 200, error(-32000, "batch limit 99 exceeded: 142 requests given")),
        (1, 200, error(-32600, "batch requests are not supported")),
        (10, 413, json!("too large")),
        (10, 400, json!("bad request")),
    ]
}

#[tokio::test]
async fn a_providers_batch_limit_is_learned() {
    let (lines, answer) = recorded(ETHEREUM);
    let hash = head_hash(&lines);
    for (most, status, body) in batch_limits() {
        let answer = answer.clone();
        let node = Node::start(true, move |method, params| match method {
            "eth_getBlockReceipts" => refused(-32603, "internal error"),
            method => answer(method, params),
        })
        .await;
        node.set(|transport| transport.batch_limit = Some((most, status, body.clone())));
        let rpc = pool(&[&node]);
        for learned in [false, true] {
            let before = node.refused_batches();
            let fetched = fetch_block(&rpc, ROOTS, BlockId::Hash(hash)).await.unwrap_or_else(|e| panic!("{body}: {e}"));
            assert!(fetched.unwrap().logs.len() > 100);
            let refused = node.refused_batches() - before;
            assert!(refused <= if learned { 0 } else { 7 }, "{most} {body}: {refused} batches refused, learned: {learned}");
        }
        assert!(rpc.endpoints()[0].is_healthy(), "{body}");
    }
}

/// The time in which the blocks come, one after the other, with a poll of the head before each.
async fn time_of_blocks(node: &Node, count: usize) -> Duration {
    let rpc = pool(&[node]);
    let started = Instant::now();
    for place in 0..count {
        let number = 17_686_110 + u64::try_from(place % 3).unwrap();
        loop {
            let came = fetch_head(&rpc, None).await.is_ok()
                && fetch_block(&rpc, ROOTS, BlockId::Number(number)).await.is_ok_and(|block| block.is_some());
            if came {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "only {place} blocks came");
        }
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_endpoint_that_hangs_or_refuses_three_times_of_ten_sets_the_pace_within_reason() {
    const BLOCKS: usize = 20;
    let (_, answer) = recorded(ETHEREUM);
    let node = Node::start(true, answer).await;
    // A node far away. On this machine the answers would take no time, and tests that run beside this one would.
    node.set(|transport| transport.slow = Duration::from_millis(50));
    let clean = time_of_blocks(&node, BLOCKS).await;
    node.set(|transport| transport.hang = 3);
    let hanging = time_of_blocks(&node, BLOCKS).await;
    node.set(|transport| (transport.hang, transport.refuse) = (0, 3));
    let refusing = time_of_blocks(&node, BLOCKS).await;
    // The machine may have become slower meanwhile.
    node.set(|transport| transport.refuse = 0);
    let clean = clean.max(time_of_blocks(&node, BLOCKS).await);
    println!("{BLOCKS} blocks: {clean:.1?}; 30 % hang: {hanging:.1?}; 30 % are refused: {refusing:.1?}");
    assert!(hanging < clean * 3, "{clean:?} {hanging:?}");
    assert!(refusing < clean * 3, "{clean:?} {refusing:?}");
}

/// Logs without receipts, which no root proves.
fn without_receipts(answer: impl Fn(&str, &Value) -> Answer) -> impl Fn(&str, &Value) -> Answer {
    move |method, params| match method {
        "eth_getBlockReceipts" => unsupported(),
        method => answer(method, params),
    }
}

async fn until_published(rpc: &Rpc, options: FetchOptions, hash: B256) -> (FetchedBlock, Duration) {
    let started = Instant::now();
    loop {
        match fetch_block(rpc, options, BlockId::Hash(hash)).await {
            Ok(fetched) => return (fetched.unwrap(), started.elapsed()),
            Err(error) => assert!(matches!(error, FetchError::Unconfirmed { .. }), "{}", base::error_chain(&error)),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "one endpoint's silence stops the chain");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Its null passed for agreement, and so did its silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_root_proves_waits_for_the_second_endpoint_but_not_for_ever() {
    let (lines, answer) = recorded(ETHEREUM);
    let hash = head_hash(&lines);
    let first = Node::start(true, without_receipts(answer.clone())).await;
    let (lagging, failing) = (
        Node::start(true, |_, _| Ok(Value::Null)).await,
        Node::start(true, |_, _| Err((StatusCode::BAD_GATEWAY, "down").into_response())).await,
    );
    let silent = |other: &Node| pool(&[&first, other]);
    let (lagging, failing) = (silent(&lagging), silent(&failing));
    let ((one, waited), (other, waited_too)) =
        tokio::join!(until_published(&lagging, AUTO, hash), until_published(&failing, AUTO, hash));
    for (fetched, waited) in [(one, waited), (other, waited_too)] {
        assert!(waited > Duration::from_secs(5), "it did not wait at all");
        assert!(fetched.on_one_word);
    }
    // Now that it is known to be silent, the next block does not wait as long.
    let (next, waited) = until_published(&failing, AUTO, hash).await;
    assert!(next.on_one_word && waited < Duration::from_secs(5), "{waited:?}");
    // One that agrees is enough, and a block that is proven asks nobody.
    let (twin, sound) = (Node::start(true, without_receipts(answer.clone())).await, Node::start(true, answer).await);
    let started = Instant::now();
    let slow = Node::start(true, |_, _| Ok(Value::Null)).await;
    slow.set(|transport| transport.slow = Duration::from_secs(8));
    let agreed = fetch_block(&pool(&[&first, &slow, &twin]), AUTO, BlockId::Hash(hash)).await.unwrap().unwrap();
    assert!(!agreed.on_one_word && started.elapsed() < Duration::from_secs(6), "a slow endpoint sets the pace");
    let proven = fetch_block(&pool(&[&sound, &slow]), AUTO, BlockId::Hash(hash)).await.unwrap().unwrap();
    assert!(!proven.on_one_word);
    assert!(fetch_block(&pool(&[&first]), AUTO, BlockId::Hash(hash)).await.unwrap().unwrap().on_one_word);
}

/// A lone liar could invent what contracts sent while the other endpoint is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_that_nobody_confirms_are_left_out_where_another_endpoint_could() {
    let hash = head_hash(&recorded(ETHEREUM).0);
    let (first, away) = (
        traced(|_, _| None).await,
        traced(|method, _| method.starts_with("debug_").then(|| Err((StatusCode::BAD_GATEWAY, "down").into_response()))).await,
    );
    let (fetched, waited) = until_published(&pool(&[&first, &away]), TRACED, hash).await;
    assert!(waited > Duration::from_secs(5), "it did not wait at all");
    assert!(!fetched.is_traced() && fetched.internal.unwrap().is_empty());
    // Where the other one has no tracer, this one is believed alone.
    let without = traced(|method, _| method.starts_with("debug_").then(unsupported)).await;
    let fetched = fetch_block(&pool(&[&first, &without]), TRACED, BlockId::Hash(hash)).await.unwrap().unwrap();
    assert!(fetched.is_traced() && !fetched.internal.unwrap().is_empty());
}

//! Answers that fail for one block, one transaction, one batch or one moment: the chain goes on, with the same proof.

#![allow(clippy::unwrap_used, clippy::result_large_err, reason = "a test fails by panicking")]

mod node;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use chain::{BlockId, FetchError, FetchOptions, FetchedBlock, PartProof, Verify, fetch_block, fetch_head};
use node::{
    Answer, ETHEREUM, Node, PATIENCE, ROOTS, TRACED, TraceAnswer, head_hash, impatient, is_odd, least_of_rounds, pool,
    recorded, refused, traced, until_published,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn newest(nodes: &[&Node]) -> Result<FetchedBlock, FetchError> {
    let hash = head_hash(&recorded(ETHEREUM).0);
    fetch_block(&pool(nodes), TRACED, BlockId::Hash(hash)).await.map(Option::unwrap)
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
    // Two other endpoints may be able to, one of which confirms the other.
    let (able, twin) = (traced(|_, _| None).await, traced(|_, _| None).await);
    assert!(newest(&[&one, &able, &twin]).await.unwrap().is_traced());
}

/// A node without a trace for now is asked again; one that never has one does not stop the chain.
#[tokio::test]
async fn a_block_without_any_trace_waits_a_while_and_is_published_as_not_traced() {
    let node = traced(|method, _| method.starts_with("debug_").then(|| refused(-32000, "missing trie node"))).await;
    let (rpc, hash) = (impatient(&[&node]), head_hash(&recorded(ETHEREUM).0));
    let fetched = until_published(&rpc, TRACED, hash, |error| matches!(error, FetchError::Untraced { .. })).await;
    assert!(fetched.internal.as_ref().is_some_and(Vec::is_empty) && !fetched.is_traced());
    assert!(rpc.endpoints()[0].is_healthy(), "a block that can't be traced is no fault of the endpoint");
}

/// A chain of four blocks a second fell behind for ever, since each block waited some twenty seconds for its traces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tracer_that_hangs_delays_a_fast_chain_once_and_then_as_little_as_its_blocks_take() {
    let node = Node::start(true, |method, params| {
        let number = params[0].as_str().and_then(|number| u64::from_str_radix(number.trim_start_matches("0x"), 16).ok());
        Ok(match method {
            "eth_getBlockByNumber" => quick_block(number.unwrap()),
            "eth_getBlockReceipts" => json!([{
                "transactionHash": word(1), "blockHash": word(number.unwrap()), "status": "0x1", "cumulativeGasUsed": "0x1", "logs": [],
            }]),
            _ => json!([{ "txHash": word(1), "result": { "type": "CALL", "from": address(1), "to": address(2), "value": "0x0" } }]),
        })
    })
    .await;
    let options = FetchOptions { verify: Verify::Off, ..TRACED };
    let rpc = impatient(&[&node]);
    let fetch = async |number| fetch_block(&rpc, options, BlockId::Number(number)).await.unwrap().unwrap();
    for number in 1..40 {
        let block = fetch(number).await;
        assert!(block.is_traced());
        rpc.record_published(&block.block.head());
    }
    node.set(|transport| transport.hides_traces = true);
    let started = Instant::now();
    assert!(!fetch(40).await.is_traced() && started.elapsed() >= PATIENCE, "it did not wait at all");
    // On a machine that is busy now and then.
    let mut is_quick = false;
    let mut next = 41..400;
    while !is_quick {
        let started = Instant::now();
        assert!(!fetch(next.next().expect("a block that waits less than the first")).await.is_traced());
        is_quick = started.elapsed() < PATIENCE;
    }
    node.set(|transport| transport.hides_traces = false);
    // Its answer may be late, now that little is waited for.
    while !fetch(next.next().unwrap()).await.is_traced() {}
}

fn word(number: u64) -> Value {
    json!(format!("0x{number:064x}"))
}

fn address(number: u64) -> Value {
    json!(format!("0x{number:040x}"))
}

/// A block of a chain that has four in a second. Its only transaction calls a contract.
fn quick_block(number: u64) -> Value {
    let transaction = json!({
        "hash": word(1), "type": "0x0", "nonce": "0x0", "gas": "0x1", "gasPrice": "0x1", "from": address(1), "to": address(2),
        "value": "0x0", "input": "0x01", "v": "0x1b", "r": "0x1", "s": "0x1",
    });
    json!({
        "number": format!("{number:#x}"), "hash": word(number), "parentHash": word(number - 1),
        "timestamp": format!("{:#x}", 1_700_000_000 + number / 4), "transactionsRoot": word(1), "receiptsRoot": word(2),
        "stateRoot": word(3), "sha3Uncles": word(4), "miner": address(0), "gasLimit": "0x1", "gasUsed": "0x1",
        "transactions": [transaction],
    })
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
        let single = node.asked_different("eth_getTransactionReceipt");
        assert_eq!(single, fetched.block.transactions.len());
        // The next block is asked for as usual.
        fetch_block(&rpc, ROOTS, BlockId::Number(17_686_110)).await.unwrap().unwrap();
        assert_eq!(node.asked_different("eth_getTransactionReceipt"), single);
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
    const BLOCKS: usize = 10;
    // One call that hangs until a fixed deadline would cost far more.
    const SLACK: Duration = Duration::from_secs(3);
    let (_, answer) = recorded(ETHEREUM);
    let node = Node::start(true, answer).await;
    // A node far away. On this machine the answers would take no time, and tests that run beside this one would.
    node.set(|transport| transport.slow = Duration::from_millis(50));
    let time_with = async |hang, refuse| {
        node.set(|transport| (transport.hang, transport.refuse) = (hang, refuse));
        time_of_blocks(&node, BLOCKS).await
    };
    let suffice = |[clean, hanging, refusing]: [Duration; 3]| hanging.max(refusing) < clean * 3 + SLACK;
    let round = async || [time_with(0, 0).await, time_with(3, 0).await, time_with(0, 3).await];
    let least = least_of_rounds(round, suffice).await;
    assert!(suffice(least), "{BLOCKS} blocks without faults, with 30 % that hang, with 30 % that are refused: {least:.1?}");
}

//! Endpoints that misbehave: which are asked, how often, and which are not trusted.

#![allow(clippy::unwrap_used, clippy::result_large_err, reason = "a test fails by panicking")]

mod node;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use chain::{BlockId, FetchError, FetchOptions, PartProof, Rpc, Verify, fetch_block, fetch_head, find_witnesses, look_at};
use node::{AUTO, ETHEREUM, Node, ROOTS, head_hash, pool, recorded, unsupported};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::{B256, ChainId};

#[tokio::test]
async fn a_block_and_its_receipts_are_one_request_whatever_the_order_of_the_answers() {
    let (lines, answer) = recorded(ETHEREUM);
    let node = Node::start(true, answer).await;
    let rpc = pool(&[&node]);
    for (asked, id) in (1..).zip([BlockId::Number(17_686_110), BlockId::Hash(head_hash(&lines))]) {
        let fetched = fetch_block(&rpc, ROOTS, id).await.unwrap().unwrap();
        assert!(fetched.statuses.len() > 100);
        // One request for the chain's id.
        assert_eq!(node.different_posts(), 1 + asked);
    }
}

/// `Retry-After: 60` at the second endpoint kept the chain waiting for a minute at each block that the first did not have yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_asks_for_a_pause_keeps_nobody_waiting_who_has_another_or_may_ask_later() {
    let lagging = Node::start(true, |method, _| Ok(if method == "eth_chainId" { json!("0x1") } else { Value::Null })).await;
    let limited = Node::start(true, |method, _| match method {
        "eth_getBlockByNumber" => Err((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "60")], "slow down").into_response()),
        _ => Ok(json!("0x1")),
    })
    .await;
    let rpc = pool(&[&lagging, &limited]);
    let started = Instant::now();
    for _ in 0..3 {
        assert!(fetch_head(&rpc, Some(BlockId::Number(17_686_112))).await.unwrap().is_none());
    }
    assert!(limited.asked("eth_getBlockByNumber") > 0);
    let alone = pool(&[&limited]);
    let error = fetch_head(&alone, Some(BlockId::Number(17_686_112))).await.unwrap_err();
    assert!(error.is_rate_limit(), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_endpoint_without_batches_is_asked_one_by_one() {
    let (_, answer) = recorded(ETHEREUM);
    let node = Node::start(false, answer).await;
    let fetched = fetch_block(&pool(&[&node]), ROOTS, BlockId::Number(17_686_110)).await.unwrap().unwrap();
    assert!(fetched.statuses.len() > 100);
}

#[tokio::test]
async fn receipts_of_another_block_after_a_reorg_are_fetched_again_and_no_endpoint_is_blamed() {
    let (lines, answer) = recorded(ETHEREUM);
    let other = lines[0]["receipts"].clone();
    let node = Node::start(true, move |method, params| match method {
        "eth_getBlockReceipts" if params[0].as_str().unwrap().len() < 20 => Ok(other.clone()),
        method => answer(method, params),
    })
    .await;
    let rpc = pool(&[&node]);
    let fetched = fetch_block(&rpc, ROOTS, BlockId::Number(17_686_112)).await.unwrap().unwrap();
    assert_eq!(fetched.block.number, 17_686_112);
    assert_eq!((node.asked_different("eth_getBlockReceipts"), node.asked_different("eth_getBlockByNumber")), (2, 1));
    assert!(rpc.endpoints()[0].is_healthy(), "its circuit is open");
}

#[tokio::test]
async fn without_block_receipts_those_of_transactions_with_value_come_in_batches() {
    let (lines, answer) = recorded(ETHEREUM);
    let node = Node::start(true, move |method, params| match method {
        "eth_getBlockReceipts" => unsupported(),
        method => answer(method, params),
    })
    .await;
    let rpc = pool(&[&node]);
    let fetched = fetch_block(&rpc, AUTO, BlockId::Hash(head_hash(&lines))).await.unwrap().unwrap();
    assert!(fetched.proof.gaps().count() > 0 && fetched.logs.len() > 100);
    let paying = node.asked("eth_getTransactionReceipt");
    let posts = node.different_posts();
    assert!(paying > 20 && posts <= 4 + paying.div_ceil(100), "{paying} receipts in {posts} requests");
}

#[tokio::test]
async fn logs_over_a_providers_limit_come_from_the_receipts_and_are_proven_by_root() {
    let (lines, answer) = recorded(ETHEREUM);
    let node = Node::start(true, move |method, params| match method {
        "eth_getBlockReceipts" => unsupported(),
        "eth_getLogs" => Ok(json!({ "code": -32005, "message": "query returned more than 10000 results" })),
        method => answer(method, params),
    })
    .await;
    let fetched = fetch_block(&pool(&[&node]), ROOTS, BlockId::Hash(head_hash(&lines))).await.unwrap().unwrap();
    assert!(fetched.logs.len() > 100);
}

#[tokio::test]
async fn a_lie_opens_the_circuit_and_the_next_endpoint_answers() {
    let (_, answer) = recorded(ETHEREUM);
    let truth = answer.clone();
    let liar = Node::start(true, move |method, params| match method {
        "eth_getBlockReceipts" => Ok(json!([])),
        method => answer(method, params),
    })
    .await;
    let honest = Node::start(true, truth).await;
    let rpc = pool(&[&liar, &honest]);
    for number in 17_686_110..=17_686_112 {
        assert!(fetch_block(&rpc, ROOTS, BlockId::Number(number)).await.unwrap().is_some());
    }
    // By number, then by hash in case an empty block had replaced it.
    assert_eq!(liar.asked_different("eth_getBlockReceipts"), 2, "it was asked again while its circuit was open");
    assert!(!rpc.endpoints()[0].is_healthy() && rpc.endpoints()[1].is_healthy());
}

#[tokio::test]
async fn a_storm_of_429_slows_requests_down_and_opens_no_circuit() {
    let (_, answer) = recorded(ETHEREUM);
    let mut refused = 0;
    let node = Node::start(true, move |method, params| {
        if method == "eth_getBlockByNumber" && refused < 6 {
            refused += 1;
            return Err((StatusCode::TOO_MANY_REQUESTS, [("Retry-After", "1")], "slow down").into_response());
        }
        answer(method, params)
    })
    .await;
    let rpc = pool(&[&node]);
    let started = Instant::now();
    let mut tries = 0;
    // The pool gives up after some rounds; its caller retries.
    let fetched = loop {
        tries += 1;
        match fetch_block(&rpc, ROOTS, BlockId::Number(17_686_110)).await {
            Ok(fetched) => break fetched,
            Err(error) => assert!(base::error_chain(&error).contains("429"), "{}", base::error_chain(&error)),
        }
        assert!(rpc.endpoints()[0].is_healthy(), "a rate limit was taken for a fault");
    };
    assert!(fetched.is_some() && tries <= 4);
    let (asked, took) = (node.asked("eth_getBlockByNumber"), started.elapsed());
    assert!(asked <= 8 && took >= Duration::from_secs(5), "{asked} requests in {took:?}: Retry-After was not honoured");
}

#[tokio::test]
async fn an_endpoint_that_lags_is_asked_after_one_that_does_not() {
    let (lines, answer) = recorded(ETHEREUM);
    let ahead = answer.clone();
    let behind = lines[0]["block"].clone();
    let lagging = Node::start(true, move |method, params| match (method, params[0].as_str()) {
        ("eth_getBlockByNumber", Some("latest")) => {
            let mut block = behind.clone();
            block["number"] = json!("0x10dde58");
            Ok(block)
        }
        ("eth_blockNumber", _) => Ok(json!("0x10dde58")),
        _ => answer(method, params),
    })
    .await;
    let newest = Node::start(true, ahead).await;
    let rpc = pool(&[&lagging, &newest]);
    let deadline = Instant::now() + Duration::from_secs(10);
    // The first poll asks the first endpoint of the file, and the other one's head in the background.
    while fetch_head(&rpc, None).await.unwrap().unwrap().number != 17_686_112 {
        assert!(Instant::now() < deadline, "the lagging endpoint is still preferred");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn logs_without_a_proof_by_root_need_two_endpoints_that_agree() {
    let (lines, answer) = recorded(ETHEREUM);
    let hash = head_hash(&lines);
    let without = |alter: bool| {
        let answer = answer.clone();
        move |method: &str, params: &Value| match method {
            "eth_getBlockReceipts" => unsupported(),
            "eth_getLogs" if alter => {
                let mut logs = answer(method, params)?;
                // The bloom does not cover the data, which contains the amount.
                logs[0]["data"] = json!(format!("0x{}", "42".repeat(32)));
                Ok(logs)
            }
            method => answer(method, params),
        }
    };
    let (liar, honest, twin) = (
        Node::start(true, without(true)).await,
        Node::start(true, without(false)).await,
        Node::start(true, without(false)).await,
    );
    let error = fetch_block(&pool(&[&liar, &honest]), AUTO, BlockId::Hash(hash)).await.unwrap_err();
    assert!(matches!(error, FetchError::Unproven { .. }), "{}", base::error_chain(&error));
    assert!(fetch_block(&pool(&[&twin, &honest]), AUTO, BlockId::Hash(hash)).await.unwrap().is_some());
    // Alone, it is trusted as far as the bloom goes.
    assert!(fetch_block(&pool(&[&liar]), AUTO, BlockId::Hash(hash)).await.unwrap().is_some());
}

/// A transaction whose hash can't be checked could have any payee and amount.
#[tokio::test]
async fn transactions_without_a_proof_by_root_need_two_endpoints_that_agree() {
    let (lines, answer) = recorded("misc");
    let line = lines.iter().find(|line| line["chainId"] == 42161).unwrap();
    let hash: B256 = line["hash"].as_str().unwrap().parse().unwrap();
    let with = |value: &'static str| {
        let answer = answer.clone();
        move |method: &str, params: &Value| {
            let mut reply = answer(method, params)?;
            if method == "eth_getBlockByHash" {
                // As after a hard fork of Arbitrum that adds a field to its own transaction.
                reply["transactions"][0]["fancy"] = json!("0x1");
                reply["transactions"][0]["value"] = json!(value);
            }
            Ok(reply)
        }
    };
    let (liar, honest, twin) = (
        Node::start(true, with("0xde0b6b3a7640000")).await,
        Node::start(true, with("0x1")).await,
        Node::start(true, with("0x1")).await,
    );
    let error = fetch_block(&pool(&[&liar, &honest]), AUTO, BlockId::Hash(hash)).await.unwrap_err();
    assert!(base::error_chain(&error).contains("the transactions"), "{}", base::error_chain(&error));
    let fetched = fetch_block(&pool(&[&twin, &honest]), AUTO, BlockId::Hash(hash)).await.unwrap().unwrap();
    assert!(matches!(fetched.proof.transactions, PartProof::Unproven(_)), "{:?}", fetched.proof);
}

#[tokio::test]
async fn endpoints_with_a_block_and_with_another_are_told_apart() {
    let (lines, answer) = recorded(ETHEREUM);
    let elsewhere = answer.clone();
    let node = Node::start(true, answer).await;
    let other = Node::start(true, move |method, params| {
        let mut block = elsewhere(method, params)?;
        if block.is_object() {
            block["hash"] = json!(B256::repeat_byte(7));
        }
        Ok(block)
    })
    .await;
    let silent = Node::start(true, |_, _| Ok(Value::Null)).await;
    let found = find_witnesses(&pool(&[&node, &other, &silent]), 17_686_112, head_hash(&lines)).await;
    assert_eq!((found.with.len(), found.against.len()), (1, 1));
}

/// Blocks 10, 11 and 13. The hash of a block has its number in all bytes.
#[tokio::test]
async fn an_endpoint_whose_chain_skips_a_height_has_no_block_there_and_one_whose_index_lags_has_it() {
    let word = |number: u8| json!(B256::repeat_byte(number));
    let head = move |number: u8, parent: u8| json!({ "number": format!("{number:#x}"), "hash": word(number), "parentHash": word(parent), "timestamp": "0x1" });
    let node = async |parent_of_last: u8| {
        let blocks = [head(10, 9), head(11, 10), head(12, 11), head(13, parent_of_last)];
        Node::start(true, move |_, params| {
            // Block 12 is not given by its number.
            let is_asked = |block: &&Value| params[0] == block["hash"] || params[0] == block["number"] && params[0] != "0xc";
            let block = if params[0] == "latest" { blocks.last() } else { blocks.iter().find(is_asked) };
            Ok(block.cloned().unwrap_or_default())
        })
        .await
    };
    let (skips, lacks) = (node(11).await, node(12).await);
    let pool = pool(&[&skips, &lacks]);
    let found = find_witnesses(&pool, 12, B256::repeat_byte(12)).await;
    let hosts =
        |endpoints: &[std::sync::Arc<chain::Endpoint>]| endpoints.iter().map(|e| e.host().to_owned()).collect::<Vec<_>>();
    let endpoints = pool.endpoints();
    assert_eq!((hosts(&found.with), hosts(&found.against)), (hosts(&endpoints[1..]), hosts(&endpoints[..1])));
    let [over, named] = [&endpoints[0], &endpoints[1]].map(|endpoint| look_at(endpoint, 12));
    assert_eq!(over.await.unwrap().map(|head| head.number), Some(13));
    assert_eq!(named.await.unwrap().map(|head| head.number), Some(12));
}

/// One has pruned its blocks but the last; one shows a head far above and keeps each request waiting.
#[tokio::test]
async fn an_endpoint_without_old_blocks_costs_few_requests_and_a_slow_one_not_forever() {
    let head = |number: u64| json!({ "number": format!("{number:#x}"), "hash": B256::repeat_byte(9), "parentHash": B256::ZERO, "timestamp": "0x1" });
    let latest = move |params: &Value| if params[0] == "latest" { head(1_000_000) } else { Value::Null };
    let pruned = Node::start(true, move |_, params| Ok(latest(params))).await;
    let pool = pool(&[&pruned]);
    assert_eq!(look_at(&pool.endpoints()[0], 12).await.unwrap(), None);
    assert!(pruned.posts() <= 5, "{} requests", pruned.posts());
    // Blocks 12 to 267 are skipped, so that all numbers are looked at.
    let hole = Node::start(true, move |_, params| {
        let is_above = params[0] == "latest" || params[0] == "0x10c";
        let above =
            json!({ "number": "0x10c", "hash": B256::repeat_byte(9), "parentHash": B256::repeat_byte(8), "timestamp": "0x1" });
        let below = json!({ "number": "0xb", "hash": B256::repeat_byte(8), "parentHash": B256::ZERO, "timestamp": "0x1" });
        Ok(if is_above {
            above
        } else if params[0] == json!(B256::repeat_byte(8)) {
            below
        } else {
            Value::Null
        })
    })
    .await;
    let pool = self::pool(&[&hole]);
    assert_eq!(look_at(&pool.endpoints()[0], 12).await.unwrap().map(|above| above.number), Some(268));
    assert!(hole.posts() <= 20, "{} requests", hole.posts());
    hole.set(|transport| transport.slow = Duration::from_millis(900));
    let started = Instant::now();
    assert!(look_at(&pool.endpoints()[0], 12).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_reorg_to_an_empty_block_between_two_calls_is_no_lie() {
    let (lines, answer) = recorded(ETHEREUM);
    let number = u64::from_str_radix(lines[1]["block"]["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    for still_has_it in [true, false] {
        let answer = answer.clone();
        let node = Node::start(true, move |method, params| match (method, params[0].as_str()) {
            // By number they belong to the empty block; by hash the node may still have the old ones.
            ("eth_getBlockReceipts", Some(id)) if id.len() < 66 => Ok(json!([])),
            ("eth_getBlockReceipts", _) if !still_has_it => Ok(Value::Null),
            _ => answer(method, params),
        })
        .await;
        let rpc = pool(&[&node]);
        let fetched = fetch_block(&rpc, AUTO, BlockId::Number(number)).await.unwrap();
        assert_eq!(fetched.is_some(), still_has_it);
        assert!(rpc.endpoints()[0].is_healthy(), "an honest endpoint was blamed");
    }
}

#[tokio::test]
async fn a_traced_chain_is_never_without_its_traces() {
    let blocks = testdata::lines("amsterdam-dev.blocks").unwrap();
    let traces = testdata::lines("misc.traces").unwrap();
    let odd = testdata::lines("misc.blocks").unwrap();
    let traced = FetchOptions { verify: Verify::Auto, traces: true, witnesses: 2 };
    let line = odd.iter().find(|line| line["chainId"] == 1 && line["number"] == 7_280_016).unwrap().clone();
    let trace = traces.iter().find(|trace| trace["hash"] == line["hash"]).unwrap()["result"].clone();
    let hash: B256 = line["hash"].as_str().unwrap().parse().unwrap();
    let served = |line: Value, trace: Option<Value>| {
        move |method: &str, _: &Value| match method {
            "eth_getBlockByHash" => Ok(line["block"].clone()),
            "eth_getBlockReceipts" => Ok(line["receipts"].clone()),
            "debug_traceBlockByHash" => trace.clone().map_or_else(unsupported, Ok),
            _ => unsupported(),
        }
    };
    let (without, with) = (
        Node::start(true, served(line.clone(), None)).await,
        Node::start(true, served(line.clone(), Some(trace.clone()))).await,
    );
    let error = fetch_block(&pool(&[&without]), traced, BlockId::Hash(hash)).await.unwrap_err();
    assert!(matches!(error, FetchError::NoTracer { .. }), "{}", base::error_chain(&error));
    let fetched = fetch_block(&pool(&[&without, &with]), traced, BlockId::Hash(hash)).await.unwrap().unwrap();
    assert!(fetched.internal.is_some_and(|internal| !internal.is_empty()));

    // Nothing proves traces, so a second endpoint must confirm them; alone, one is trusted.
    let mut invented = trace.clone();
    invented[0]["result"]["calls"] = json!([{ "type": "CALL", "from": invented[0]["result"]["to"].clone(),
        "to": "0x00000000000000000000000000000000000000aa", "value": "0xde0b6b3a7640000", "gas": "0x0", "gasUsed": "0x0", "input": "0x" }]);
    let (liar, twin) = (
        Node::start(true, served(line.clone(), Some(invented))).await,
        Node::start(true, served(line.clone(), Some(trace))).await,
    );
    assert!(fetch_block(&pool(&[&liar]), traced, BlockId::Hash(hash)).await.unwrap().is_some());
    for pair in [[&liar, &with], [&with, &liar]] {
        let error = fetch_block(&pool(&pair), traced, BlockId::Hash(hash)).await.unwrap_err();
        assert!(base::error_chain(&error).contains("what contracts sent"), "{}", base::error_chain(&error));
    }
    assert!(fetch_block(&pool(&[&with, &without, &twin]), traced, BlockId::Hash(hash)).await.unwrap().is_some());
    assert_eq!(twin.asked_different("debug_traceBlockByHash"), 1);

    // If the block logs its coin's transfers, no traces are requested.
    let line = blocks.iter().find(|line| line["number"] == 7).unwrap().clone();
    let hash: B256 = line["hash"].as_str().unwrap().parse().unwrap();
    let node = Node::start(true, served(line, None)).await;
    let fetched = fetch_block(&pool(&[&node]), traced, BlockId::Hash(hash)).await.unwrap().unwrap();
    assert!(fetched.internal.is_none() && fetched.logs_coin_transfers());
    assert_eq!(node.asked("debug_traceBlockByHash") + node.asked("trace_block"), 0);
}

#[tokio::test]
async fn all_endpoints_down_and_back_again() {
    let (_, answer) = recorded(ETHEREUM);
    let down = Arc::new(Mutex::new(true));
    let is_down = down.clone();
    let node = Node::start(true, move |method, params| {
        if *is_down.lock().unwrap() {
            return Err((StatusCode::BAD_GATEWAY, "<html>502</html>").into_response());
        }
        answer(method, params)
    })
    .await;
    let rpc = pool(&[&node]);
    for _ in 0..5 {
        assert!(fetch_head(&rpc, None).await.is_err());
    }
    let asked = node.asked("eth_getBlockByNumber");
    assert!(asked < 12, "{asked} requests to an endpoint that is down");
    *down.lock().unwrap() = false;
    let deadline = Instant::now() + Duration::from_secs(15);
    while fetch_head(&rpc, None).await.is_err() {
        assert!(Instant::now() < deadline, "it is back and is not asked");
    }
    assert!(rpc.endpoints()[0].is_healthy());
}

#[tokio::test]
async fn a_probe_finds_an_endpoints_capabilities() {
    let (_, answer) = recorded(ETHEREUM);
    let node = Node::start(true, answer).await;
    let probe = pool(&[&node]).probe().await.pop().unwrap();
    assert!(probe.batches && probe.block_receipts && probe.error.is_none());
    assert_eq!((probe.head, probe.safe, probe.tracer), (Some(17_686_112), None, None));
    let other = Rpc::new("it", &[node.url.parse().unwrap()], Some(ChainId(5)));
    assert!(other.probe().await.pop().unwrap().error.unwrap().contains("expected 5"));
}

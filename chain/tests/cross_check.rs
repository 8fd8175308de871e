//! What no root proves, and other endpoints must confirm: who agrees, who contradicts, who can't say.

#![allow(clippy::unwrap_used, clippy::result_large_err, reason = "a test fails by panicking")]

mod node;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use chain::{BlockId, FetchError, FetchOptions, FetchedBlock, ReceiptStatus, Rpc, fetch_block};
use node::{
    AUTO, Answer, ETHEREUM, Node, TRACED, head_hash, impatient, is_odd, least_of_rounds, pool, recorded, refused, traced,
    traces, unsupported, until_published,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn newest(rpc: &Rpc, options: FetchOptions) -> Result<FetchedBlock, FetchError> {
    fetch_block(rpc, options, BlockId::Hash(head_hash(&recorded(ETHEREUM).0))).await.map(Option::unwrap)
}

/// Fetches the newest block until as many endpoints as it takes have confirmed it: one that answers late on a busy machine has not.
async fn until_confirmed(rpc: &Rpc, options: FetchOptions) {
    let started = Instant::now();
    while !newest(rpc, options).await.is_ok_and(|fetched| !fetched.on_one_word) {
        assert!(started.elapsed() < Duration::from_secs(60), "nobody confirms it");
    }
}

fn is_unconfirmed(error: &FetchError) -> bool {
    matches!(error, FetchError::Unconfirmed { .. })
}

fn is_contradiction(error: &FetchError) -> bool {
    matches!(error, FetchError::Unproven { .. })
}

/// Logs without receipts, which no root proves.
fn without_receipts(answer: impl Fn(&str, &Value) -> Answer) -> impl Fn(&str, &Value) -> Answer {
    move |method, params| match method {
        "eth_getBlockReceipts" => unsupported(),
        method => answer(method, params),
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
    let (lagging, failing) = (impatient(&[&first, &lagging]), impatient(&[&first, &failing]));
    for silent in [&lagging, &failing] {
        assert!(until_published(silent, AUTO, hash, is_unconfirmed).await.on_one_word);
        // Now that it is known to be silent, the next block does not wait.
        assert!(newest(silent, AUTO).await.unwrap().on_one_word);
    }
    // One that agrees is enough, and a block that is proven asks nobody.
    let (twin, sound) = (Node::start(true, without_receipts(answer.clone())).await, Node::start(true, answer).await);
    let slow = Node::start(true, |_, _| Ok(Value::Null)).await;
    slow.set(|transport| transport.slow = Duration::from_secs(8));
    let time_with = async |nodes: &[&Node]| {
        let (rpc, started) = (pool(nodes), Instant::now());
        until_confirmed(&rpc, AUTO).await;
        started.elapsed()
    };
    let [without, with] = least_of_rounds(
        async || [time_with(&[&first, &twin]).await, time_with(&[&first, &slow, &twin]).await],
        |[without, with]| with < without + Duration::from_secs(4),
    )
    .await;
    assert!(with < without + Duration::from_secs(4), "a slow endpoint sets the pace: {with:.1?}, and {without:.1?} without it");
    let proven = newest(&pool(&[&sound, &slow]), AUTO).await.unwrap();
    assert!(!proven.on_one_word);
    assert!(newest(&pool(&[&first]), AUTO).await.unwrap().on_one_word);
}

/// A chain whose second endpoint was away for a moment left the traces of its next blocks out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_content_takes_nothing_from_the_time_for_traces() {
    let hash = head_hash(&recorded(ETHEREUM).0);
    let first = traced(|method, _| (method == "eth_getBlockReceipts").then(unsupported)).await;
    let away = Node::start(true, |method, _| match method {
        "debug_traceBlockByHash" => unsupported(),
        _ => Err((StatusCode::BAD_GATEWAY, "down").into_response()),
    })
    .await;
    let fetched = until_published(&impatient(&[&first, &away]), TRACED, hash, is_unconfirmed).await;
    assert!(fetched.on_one_word);
    // It is late if the machine is busy, and asked for once more.
    assert!(first.asked("debug_traceBlockByHash") <= 2, "the block was traced before its content was confirmed");
}

/// A lone liar could invent what contracts sent while the other endpoint is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_that_nobody_confirms_are_left_out_where_another_endpoint_could() {
    let hash = head_hash(&recorded(ETHEREUM).0);
    let (first, away) = (
        traced(|_, _| None).await,
        traced(|method, _| method.starts_with("debug_").then(|| Err((StatusCode::BAD_GATEWAY, "down").into_response()))).await,
    );
    let fetched = until_published(&impatient(&[&first, &away]), TRACED, hash, is_unconfirmed).await;
    assert!(!fetched.is_traced() && fetched.internal.unwrap().is_empty());
    // Where the other one has no tracer, this one is believed alone.
    let without = traced(|method, _| method.starts_with("debug_").then(unsupported)).await;
    let fetched = newest(&pool(&[&first, &without]), TRACED).await.unwrap();
    assert!(fetched.is_traced() && !fetched.internal.unwrap().is_empty());
}

/// Of two nobody knows which one is wrong, and the chain stood still for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tracers_that_contradict_each_other_cost_the_traces_and_not_the_chain() {
    let first = traced(|_, _| None).await;
    let wrong = traced(|method, _| (method == "debug_traceBlockByHash").then(|| Ok(without_calls()))).await;
    let hash = head_hash(&recorded(ETHEREUM).0);
    let fetched = until_published(&impatient(&[&first, &wrong]), TRACED, hash, is_contradiction).await;
    assert!(!fetched.is_traced() && fetched.internal.unwrap().is_empty());
}

/// The traces of the newest block, without what contracts sent.
fn without_calls() -> Value {
    let mut traces = traces();
    for trace in &mut traces {
        trace["result"].as_object_mut().unwrap().remove("calls");
    }
    json!(traces)
}

/// The first endpoint can trace all, and nobody confirms what it says of a transaction that the second can't trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_that_the_second_endpoint_could_not_make_are_not_confirmed() {
    let (first, third) = (traced(|_, _| None).await, traced(|_, _| None).await);
    let second = traced(|method, trace| {
        (method == "debug_traceBlockByHash" || is_odd(trace)).then(|| refused(-32000, "execution timeout"))
    })
    .await;
    let whole = newest(&pool(&[&first]), TRACED).await.unwrap().internal.unwrap();
    for nodes in [[&first, &second], [&second, &first]] {
        let fetched = newest(&pool(&nodes), TRACED).await.unwrap();
        assert!(!fetched.is_traced(), "nobody has confirmed what the odd transaction sent");
        let internal = fetched.internal.unwrap();
        let left_out: Vec<_> = whole.iter().filter(|transfer| !internal.contains(transfer)).collect();
        assert!(!left_out.is_empty() && !internal.is_empty());
        let odd = left_out[0].transaction_hash;
        assert!(left_out.iter().all(|transfer| transfer.transaction_hash == odd), "it costs its own transfers and no other");
        assert!(internal.iter().all(|transfer| transfer.transaction_hash != odd));
    }
    let fetched = newest(&pool(&[&first, &second, &third]), TRACED).await.unwrap();
    assert!(fetched.is_traced());
    assert_eq!(fetched.internal.unwrap(), whole);
}

/// The logs of every block, the first one with another amount, which no bloom shows.
fn with_another_amount(answer: impl Fn(&str, &Value) -> Answer) -> impl Fn(&str, &Value) -> Answer {
    let answer = without_receipts(answer);
    move |method, params| {
        let mut result = answer(method, params);
        if let ("eth_getLogs", Ok(logs)) = (method, &mut result) {
            logs[0]["data"] = json!(format!("0x{}", "77".repeat(32)));
        }
        result
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_contradicts_two_holds_no_block_up_and_is_named() {
    let (_, answer) = recorded(ETHEREUM);
    let honest = newest(&pool(&[&Node::start(true, answer.clone()).await]), AUTO).await.unwrap();
    let same =
        |fetched: FetchedBlock| fetched.logs.iter().map(|log| &log.log.data).eq(honest.logs.iter().map(|log| &log.log.data));
    let (one, two) =
        (Node::start(true, without_receipts(answer.clone())).await, Node::start(true, without_receipts(answer.clone())).await);
    let liar = Node::start(true, with_another_amount(answer)).await;
    // It answers last, so that the contradiction comes before the agreement.
    two.set(|transport| transport.slow = Duration::from_millis(300));
    assert!(same(newest(&pool(&[&one, &liar, &two]), AUTO).await.unwrap()), "one liar holds the block up");
    // Where it gives the block itself, both others contradict it.
    let rpc = pool(&[&liar, &one, &two]);
    let error = newest(&rpc, AUTO).await.unwrap_err();
    assert!(is_contradiction(&error), "{}", base::error_chain(&error));
    assert!(liar.url.contains(rpc.endpoints()[0].host()) && !error.to_string().contains(" or "), "{error}");
    assert!(!liar.url.contains(rpc.preferred().await.unwrap().host()), "it is asked first again");
    assert!(same(newest(&rpc, AUTO).await.unwrap()));
    // Of two nobody knows which one lies.
    let error = newest(&pool(&[&one, &liar]), AUTO).await.unwrap_err();
    assert!(is_contradiction(&error), "{}", base::error_chain(&error));
}

/// Two words were enough, however many the operator had asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_three_witnesses_are_asked_for_two_confirm_nothing() {
    let (_, answer) = recorded(ETHEREUM);
    let [one, two, three] = [
        Node::start(true, without_receipts(answer.clone())).await,
        Node::start(true, without_receipts(answer.clone())).await,
        Node::start(true, without_receipts(answer)).await,
    ];
    let three_words = FetchOptions { witnesses: 3, ..AUTO };
    assert!(newest(&pool(&[&one, &two]), three_words).await.unwrap().on_one_word);
    until_confirmed(&pool(&[&one, &two, &three]), three_words).await;
    let (first, second) = (traced(|_, _| None).await, traced(|_, _| None).await);
    let away =
        traced(|method, _| method.starts_with("debug_").then(|| Err((StatusCode::BAD_GATEWAY, "down").into_response()))).await;
    let rpc = impatient(&[&first, &second, &away]);
    assert!(newest(&rpc, TRACED).await.unwrap().is_traced());
    let options = FetchOptions { witnesses: 3, ..TRACED };
    let fetched = until_published(&rpc, options, head_hash(&recorded(ETHEREUM).0), is_unconfirmed).await;
    assert!(!fetched.is_traced() && fetched.internal.unwrap().is_empty());
    let without = traced(|method, _| method.starts_with("debug_").then(unsupported)).await;
    assert!(newest(&pool(&[&first, &second, &without]), options).await.unwrap().is_traced(), "it can't say");
}

/// It was held against the endpoint that had traced the block: so the one that had given the content confirmed it itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_not_confirmed_by_the_endpoint_that_gave_it() {
    let (_, answer) = recorded(ETHEREUM);
    // It has no tracer, so the other one traces the block.
    let liar = Node::start(true, with_another_amount(answer)).await;
    let honest = traced(|method, _| (method == "eth_getBlockReceipts").then(unsupported)).await;
    let error = newest(&pool(&[&liar, &honest]), TRACED).await.unwrap_err();
    assert!(is_contradiction(&error), "{}", base::error_chain(&error));
}

/// Whether a transfer of the coin has failed, one endpoint says and the other does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_the_second_endpoint_does_not_tell_is_not_confirmed() {
    let (_, answer) = recorded(ETHEREUM);
    let (first, sound) = (Node::start(true, without_receipts(answer.clone())).await, Node::start(true, answer.clone()).await);
    let answer = without_receipts(answer);
    let silent = Node::start(true, move |method, params| {
        let mut result = answer(method, params);
        if let ("eth_getTransactionReceipt", Ok(receipt)) = (method, &mut result) {
            receipt.as_object_mut().unwrap().remove("status");
        }
        result
    })
    .await;
    let error = newest(&pool(&[&first, &silent]), AUTO).await.unwrap_err();
    assert!(
        is_unconfirmed(&error) && base::error_chain(&error).contains("which transactions failed"),
        "{}",
        base::error_chain(&error)
    );
    // Where it gives the block itself, every transfer of the coin would be lost.
    let rpc = pool(&[&silent, &sound]);
    let error = newest(&rpc, AUTO).await.unwrap_err();
    assert!(is_contradiction(&error), "{}", base::error_chain(&error));
    let fetched = newest(&rpc, AUTO).await.unwrap();
    assert!(fetched.statuses.iter().all(|status| *status != ReceiptStatus::Unknown));
}

use super::{FIRST, LOGS, Prepared};
use chain::{Block, FetchedBlock, Receipt, Receipts, Verify};
use serde_json::{Value, json};

fn ask(chain: &Prepared, method: &str, params: Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": "a", "method": method, "params": params }).to_string();
    serde_json::from_slice(&chain.answer(body.as_bytes())).unwrap()
}

fn result(chain: &Prepared, method: &str, params: Value) -> Value {
    ask(chain, method, params)["result"].take()
}

fn number(place: u64) -> String {
    format!("{:#x}", FIRST + place)
}

#[test]
fn a_bench_measures_true_blocks_and_not_ones_that_fail_or_skip_their_proof() {
    let chain = Prepared::new(20);
    let mut parent = None;
    for (place, hash) in (0..20).zip(chain.hashes()) {
        let block = result(&chain, "eth_getBlockByNumber", json!([number(place), true]));
        assert_eq!(block, result(&chain, "eth_getBlockByHash", json!([hash, true])));
        let receipts = result(&chain, "eth_getBlockReceipts", json!([hash]));
        assert_eq!(receipts, result(&chain, "eth_getBlockReceipts", json!([number(place)])));
        assert_eq!(receipts, result(&chain, "eth_getBlockReceipts", json!([{ "blockHash": hash }])));
        let size = block.to_string().len() + receipts.to_string().len();
        assert!((400_000..550_000).contains(&size), "{size} bytes");

        let block = Block::parse(&block.to_string()).unwrap();
        assert_eq!((block.number, block.hash.to_string().as_str()), (FIRST + place, hash));
        assert!(parent.is_none_or(|parent| parent == block.parent_hash));
        parent = Some(block.hash);
        let receipts: Vec<Receipt> = serde_json::from_value(receipts).unwrap();
        let fetched = FetchedBlock::new(block, Receipts::All(receipts), Verify::Roots).unwrap();
        assert_eq!((fetched.statuses.len(), fetched.logs.len() as u64), (150, LOGS));
    }
}

#[test]
fn a_client_finds_what_a_node_has() {
    let chain = Prepared::new(100);
    assert_eq!(result(&chain, "eth_chainId", json!([])), "0x1");
    assert_eq!(result(&chain, "eth_blockNumber", json!([])), number(99));
    for (tag, place) in [("latest", 99), ("safe", 67), ("finalized", 35)] {
        assert_eq!(result(&chain, "eth_getBlockByNumber", json!([tag, false]))["number"], number(place));
    }
    let block = result(&chain, "eth_getBlockByNumber", json!([number(3), false]));
    let full = result(&chain, "eth_getBlockByNumber", json!([number(3), true]));
    assert_eq!(block["transactions"][149], full["transactions"][149]["hash"]);
    assert_eq!(result(&chain, "eth_getBlockByNumber", json!([number(100), true])), Value::Null);
    assert_eq!(result(&chain, "eth_getBlockReceipts", json!([format!("0x{}", "00".repeat(32))])), Value::Null);
    assert_eq!(ask(&chain, "eth_getLogs", json!([{}]))["error"]["code"], -32601);
}

#[test]
fn a_batch_is_answered_in_order_and_nonsense_with_an_error() {
    let chain = Prepared::new(2);
    let batch = json!([
        { "jsonrpc": "2.0", "id": 7, "method": "eth_getBlockByNumber", "params": [number(1), true] },
        { "jsonrpc": "2.0", "id": 8, "method": "eth_chainId" },
    ]);
    let answers: Value = serde_json::from_slice(&chain.answer(format!(" {batch}").as_bytes())).unwrap();
    assert_eq!((&answers[0]["id"], &answers[0]["result"]["number"]), (&json!(7), &json!(number(1))));
    assert_eq!(answers[1], json!({ "jsonrpc": "2.0", "id": 8, "result": "0x1" }));
    let error: Value = serde_json::from_slice(&chain.answer(b"<html>")).unwrap();
    assert_eq!(error["error"]["code"], -32700);
}

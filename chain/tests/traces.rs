//! What contracts moved, from real traces in both forms, is what their frames say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chain::{Block, FetchedBlock, InternalTransfer, Receipts, Tracer, Verify, internal_transfers};
use serde_json::{Value, json};

struct Traced {
    name: String,
    fetched: FetchedBlock,
    frames: Vec<Value>,
}

fn traced() -> Vec<Traced> {
    let mut all = Vec::new();
    for file in ["eth-mainnet-17686110-17686112", "misc", "amsterdam-dev"] {
        let traces = testdata::lines(&format!("{file}.traces")).unwrap();
        for line in testdata::lines(&format!("{file}.blocks")).unwrap() {
            let of_block = |trace: &&Value| trace["hash"] == line["hash"] && trace["format"] == "callTracer";
            let Some(trace) = traces.iter().find(of_block) else { continue };
            let block = Block::parse(&line["block"].to_string()).unwrap();
            let receipts = Receipts::All(serde_json::from_value(line["receipts"].clone()).unwrap());
            let fetched = FetchedBlock::new(block, receipts, Verify::Auto).unwrap();
            let name = format!("{}:{}", line["chainId"], line["number"]);
            all.push(Traced { name, fetched, frames: trace["result"].as_array().unwrap().clone() });
        }
    }
    assert!(all.len() > 30, "{}", all.len());
    all
}

impl Traced {
    fn read(&self, tracer: Tracer, answer: &Value) -> Result<Vec<InternalTransfer>, String> {
        internal_transfers(&self.fetched.block, &self.fetched.statuses, tracer, &answer.to_string())
            .map_err(|error| runtime::chain_of(&error))
    }

    fn as_trace_block(&self) -> Value {
        let mut flat = Vec::new();
        for entry in &self.frames {
            flatten(&entry["result"], &mut vec![], &entry["txHash"], &mut flat);
        }
        flat.push(json!({ "type": "reward", "action": { "author": entry_author(), "value": "0x1" }, "traceAddress": [] }));
        flat.iter_mut().for_each(|entry| entry["blockHash"] = json!(self.fetched.block.hash));
        json!(flat)
    }
}

fn entry_author() -> String {
    format!("0x{}", "0c".repeat(20))
}

/// As Erigon writes it. It leaves out calls of precompiled contracts without value, as here those of 0x1 to 0x4.
fn flatten(frame: &Value, place: &mut Vec<usize>, transaction: &Value, flat: &mut Vec<Value>) {
    let kind = frame["type"].as_str().unwrap();
    let (kind, action, result) = match kind {
        "CREATE" | "CREATE2" => (
            "create",
            json!({ "from": frame["from"], "value": frame["value"], "init": "0x" }),
            json!({ "address": frame["to"], "code": "0x" }),
        ),
        "SELFDESTRUCT" => (
            "suicide",
            json!({ "address": frame["from"], "refundAddress": frame["to"], "balance": frame["value"] }),
            Value::Null,
        ),
        other => (
            "call",
            json!({ "callType": other.to_lowercase(), "from": frame["from"], "to": frame["to"], "value": frame["value"], "input": "0x" }),
            json!({ "output": "0x" }),
        ),
    };
    let mut entry =
        json!({ "type": kind, "action": action, "result": result, "traceAddress": place, "transactionHash": transaction });
    if frame.get("error").is_some() {
        entry["error"] = frame["error"].clone();
        entry["result"] = Value::Null;
    }
    flat.push(entry);
    let mut shown = 0;
    for call in frame["calls"].as_array().into_iter().flatten() {
        let to = call["to"].as_str().unwrap_or_default();
        let is_precompile = to.len() == 42 && to[2..41].bytes().all(|digit| digit == b'0');
        if is_precompile && call["value"].as_str().is_none_or(|value| value == "0x0") {
            continue;
        }
        place.push(shown);
        flatten(call, place, transaction, flat);
        place.pop();
        shown += 1;
    }
}

/// (transaction, from, to, value), by the rules and without our reader.
fn expected(frames: &[Value], statuses: &[Value]) -> Vec<(String, String, String, String)> {
    fn walk(frame: &Value, is_top: bool, transaction: &str, out: &mut Vec<(String, String, String, String)>) {
        if frame.get("error").is_some() {
            return;
        }
        let text = |field: &str| frame[field].as_str().unwrap_or("0x0").to_lowercase();
        let moves = ["CALL", "CREATE", "CREATE2", "SELFDESTRUCT"].contains(&frame["type"].as_str().unwrap());
        let own = is_top && frame["type"] == "CALL";
        if moves && !own && text("value") != "0x0" && text("from") != text("to") {
            out.push((transaction.to_owned(), text("from"), text("to"), text("value")));
        }
        for call in frame["calls"].as_array().into_iter().flatten() {
            walk(call, false, transaction, out);
        }
    }
    assert_eq!(frames.len(), statuses.len());
    let mut out = Vec::new();
    for entry in frames {
        walk(&entry["result"], true, entry["txHash"].as_str().unwrap(), &mut out);
    }
    out
}

#[test]
fn both_tracers_give_exactly_what_the_frames_moved() {
    let (mut moved, mut reverted) = (0, 0);
    for traced in traced() {
        let calls = traced.read(Tracer::CallTracer, &json!(traced.frames)).unwrap_or_else(|e| panic!("{}: {e}", traced.name));
        let statuses = vec![Value::Null; traced.frames.len()];
        let found: Vec<_> = calls
            .iter()
            .map(|t| {
                (t.transaction_hash.to_string(), format!("{:#x}", t.from), format!("{:#x}", t.to), format!("{:#x}", t.value))
            })
            .collect();
        assert_eq!(found, expected(&traced.frames, &statuses), "{}", traced.name);
        let flat = traced.read(Tracer::TraceBlock, &traced.as_trace_block()).unwrap_or_else(|e| panic!("{}: {e}", traced.name));
        assert_eq!(flat, calls, "{}: the two tracers differ", traced.name);
        moved += calls.len();
        reverted += traced.frames.iter().filter(|entry| entry.to_string().contains("\"error\"")).count();
    }
    assert!(moved > 200 && reverted > 10, "{moved} transfers, {reverted} reverts: is the test data all there?");
}

#[test]
fn a_trace_that_contradicts_its_block_is_refused() {
    let all = traced();
    let mainnet = &all[0];
    let refused = |change: &dyn Fn(&mut Vec<Value>), what: &str| {
        let mut frames = mainnet.frames.clone();
        change(&mut frames);
        let error = mainnet.read(Tracer::CallTracer, &json!(frames)).unwrap_err();
        assert!(error.contains(what), "expected {what:?}, got: {error}");
    };
    refused(&|frames| drop(frames.pop()), "none");
    refused(&|frames| frames.push(frames[0].clone()), "the number of traces");
    refused(&|frames| frames.swap(3, 4), "the hash");
    refused(&|frames| frames[2]["result"]["value"] = json!("0x1234"), "the value");
    refused(&|frames| frames[2]["result"]["error"] = json!("execution reverted"), "how it ended");
    refused(&|frames| frames[2]["result"]["to"] = json!(entry_author()), "the recipient");
    refused(&|frames| frames[2] = json!({ "txHash": frames[2]["txHash"], "error": "execution timeout" }), "execution timeout");

    let mut flat = mainnet.as_trace_block();
    flat[0]["blockHash"] = json!(format!("0x{}", "11".repeat(32)));
    assert!(mainnet.read(Tracer::TraceBlock, &flat).unwrap_err().contains("the trace's block"));
    let whole = json!(mainnet.frames).to_string();
    let cut =
        internal_transfers(&mainnet.fetched.block, &mainnet.fetched.statuses, Tracer::CallTracer, &whole[..whole.len() / 2]);
    assert!(cut.is_err());
}

/// The EVM allows 1024 calls in one another, and whoever makes so many must not stop a chain.
#[test]
fn deep_calls_are_read_and_endless_ones_refused() {
    let all = traced();
    let mainnet = &all[0];
    let deepened = |depth: usize| {
        let call = r#"{"type":"CALL","from":"0x0101010101010101010101010101010101010101","to":"0x0202020202020202020202020202020202020202","value":"0x1","calls":["#;
        let deep = format!("{}{}", call.repeat(depth), "]}".repeat(depth));
        let mut frames = mainnet.frames.clone();
        let place = frames.iter().position(|entry| entry["result"].get("error").is_none()).unwrap();
        frames[place]["result"]["calls"] = json!(["DEEP"]);
        let answer = json!(frames).to_string().replace("\"DEEP\"", &deep);
        internal_transfers(&mainnet.fetched.block, &mainnet.fetched.statuses, Tracer::CallTracer, &answer)
    };
    let flat = mainnet.read(Tracer::CallTracer, &json!(mainnet.frames)).unwrap().len();
    assert!(deepened(1024).unwrap().len() >= 1024.max(flat));
    assert!(deepened(200_000).is_err());
}

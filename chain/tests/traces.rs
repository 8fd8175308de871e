//! Both trace formats yield the transfers that an independent walk over the recorded traces finds; traces that do not fit their
//! block are refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chain::{Block, FetchedBlock, InternalTransfer, Receipts, TraceError, Tracer, Verify, internal_transfers};
use serde_json::{Value, json};
use std::collections::HashMap;

fn lines(file: &str) -> Vec<Value> {
    testdata::lines(file).unwrap()
}

struct Traced {
    name: String,
    fetched: FetchedBlock,
    /// The answer of `debug_traceBlockByHash`.
    calls: Value,
}

impl Traced {
    fn read(&self, tracer: Tracer, answer: &Value) -> Result<Vec<InternalTransfer>, TraceError> {
        internal_transfers(&self.fetched.block, &self.fetched.statuses, tracer, &answer.to_string())
    }

    fn flat(&self) -> Value {
        let traces = self.calls.as_array().unwrap().iter().enumerate();
        let mut items = Vec::new();
        for (position, trace) in traces {
            let place = json!({
                "transactionHash": trace["txHash"],
                "transactionPosition": position,
                "blockHash": self.fetched.block.hash,
                "blockNumber": self.fetched.block.number,
            });
            flatten(&trace["result"], &place, &mut Vec::new(), &mut items);
        }
        // As before the merge, and on some chains today.
        items.push(json!({
            "type": "reward", "blockHash": self.fetched.block.hash, "subtraces": 0, "traceAddress": [], "transactionHash": null,
            "action": { "author": Value::Null, "rewardType": "block", "value": "0x1bc16d674ec80000" }, "result": null,
        }));
        Value::Array(items)
    }
}

/// Converts the frames of callTracer to Parity's list.
fn flatten(frame: &Value, place: &Value, address: &mut Vec<usize>, out: &mut Vec<Value>) {
    let calls = frame["calls"].as_array().cloned().unwrap_or_default();
    let kind = frame["type"].as_str().unwrap().to_lowercase();
    let mut item = place.clone();
    let (name, action, result) = match kind.as_str() {
        "create" | "create2" => (
            "create",
            json!({ "from": frame["from"], "value": frame["value"], "init": frame["input"], "creationMethod": kind, "gas": "0x1" }),
            json!({ "address": frame["to"], "code": frame["output"], "gasUsed": "0x1" }),
        ),
        "selfdestruct" => (
            "suicide",
            json!({ "address": frame["from"], "refundAddress": frame["to"], "balance": frame["value"] }),
            Value::Null,
        ),
        call => {
            let value = frame.get("value").cloned().unwrap_or(json!("0x0"));
            let action =
                json!({ "callType": call, "from": frame["from"], "to": frame["to"], "value": value, "input": frame["input"] });
            ("call", action, json!({ "output": frame["output"], "gasUsed": "0x1" }))
        }
    };
    item["type"] = json!(name);
    item["action"] = action;
    item["traceAddress"] = json!(address);
    item["subtraces"] = json!(calls.len());
    match frame.get("error") {
        Some(error) => item["error"] = error.clone(),
        None => item["result"] = result,
    }
    out.push(item);
    for (index, call) in calls.iter().enumerate() {
        address.push(index);
        flatten(call, place, address, out);
        address.pop();
    }
}

fn traced() -> Vec<Traced> {
    let mut all = Vec::new();
    for file in ["amsterdam-dev", "eth-mainnet-17686110-17686112", "misc"] {
        let mut blocks: HashMap<String, Value> =
            lines(&format!("{file}.blocks")).into_iter().map(|line| (line["hash"].to_string(), line)).collect();
        for mut line in lines(&format!("{file}.traces")).into_iter().filter(|line| line["format"] == "callTracer") {
            let name = format!("{}:{}", line["chainId"], line["number"]);
            let mut recorded = blocks.remove(&line["hash"].to_string()).unwrap_or_else(|| panic!("no block {name}"));
            let block = Block::parse(&recorded["block"].to_string()).unwrap();
            let receipts = Receipts::All(serde_json::from_value(recorded["receipts"].take()).unwrap());
            let fetched = FetchedBlock::new(block, receipts, Verify::Auto).unwrap();
            all.push(Traced { name, fetched, calls: line["result"].take() });
        }
    }
    all
}

fn block(name: &str) -> Traced {
    traced().into_iter().find(|traced| traced.name == name).unwrap()
}

/// (transaction, frame, from, to, value), found by the rules in the JSON, without the code under test.
type Moved = (String, u32, String, String, String);

fn expected(calls: &Value) -> Vec<Moved> {
    fn walk(frame: &Value, top: bool, hash: &str, next: &mut u32, out: &mut Vec<Moved>) {
        if frame.get("error").is_some() {
            return;
        }
        let text = |name: &str| frame[name].as_str().unwrap_or("0x0").to_lowercase();
        let kind = text("type");
        let created = kind.starts_with("create");
        let moves =
            (kind == "call" || created || kind == "selfdestruct") && text("value") != "0x0" && text("from") != text("to");
        if moves && (!top || created) {
            let place = if top { 0 } else { *next };
            *next += u32::from(!top);
            out.push((hash.to_owned(), place, text("from"), text("to"), text("value")));
        }
        for call in frame["calls"].as_array().into_iter().flatten() {
            walk(call, false, hash, next, out);
        }
    }
    let mut out = Vec::new();
    for trace in calls.as_array().unwrap() {
        walk(&trace["result"], true, trace["txHash"].as_str().unwrap(), &mut 1, &mut out);
    }
    out
}

fn told(transfers: &[InternalTransfer]) -> Vec<Moved> {
    let text = |transfer: &InternalTransfer| {
        (
            transfer.transaction_hash.to_string(),
            transfer.frame,
            format!("{:#x}", transfer.from),
            format!("{:#x}", transfer.to),
            format!("{:#x}", transfer.value),
        )
    };
    transfers.iter().map(text).collect()
}

#[test]
fn coin_is_neither_missed_nor_invented_by_either_tracer() {
    let (mut transfers, mut reverted, mut blocks) = (0, 0, 0);
    for traced in traced() {
        let expected = expected(&traced.calls);
        let calls = traced.read(Tracer::CallTracer, &traced.calls).unwrap_or_else(|e| panic!("{}: {e}", traced.name));
        assert_eq!(told(&calls), expected, "{}", traced.name);
        let flat = traced.read(Tracer::TraceBlock, &traced.flat()).unwrap_or_else(|e| panic!("{}: {e}", traced.name));
        assert_eq!(flat, calls, "{}", traced.name);
        for transfer in &calls {
            let place = usize::try_from(transfer.transaction_index).unwrap();
            assert_eq!(traced.fetched.block.transactions[place].hash, transfer.transaction_hash);
        }
        transfers += calls.len();
        reverted += traced.calls.to_string().matches("\"error\"").count();
        blocks += 1;
    }
    println!("{transfers} transfers in {blocks} blocks, {reverted} failed frames");
    assert!(transfers > 250 && reverted > 15 && blocks > 30, "{transfers} {reverted} {blocks}");
}

#[test]
fn a_frame_is_numbered_alike_whatever_a_tracer_leaves_out() {
    fn without_nothing(frame: &mut Value) {
        let Some(calls) = frame.get_mut("calls").and_then(Value::as_array_mut) else { return };
        // As a tracer that does not list precompiles, or calls that move nothing and call nothing.
        calls.retain(|call| call.get("calls").is_some() || call["value"].as_str().is_some_and(|value| value != "0x0"));
        calls.iter_mut().for_each(without_nothing);
    }
    let mut left_out = 0;
    for mut traced in traced() {
        let whole = traced.read(Tracer::CallTracer, &traced.calls).unwrap();
        let before = traced.calls.to_string().len();
        traced.calls.as_array_mut().unwrap().iter_mut().for_each(|trace| without_nothing(&mut trace["result"]));
        left_out += before - traced.calls.to_string().len();
        assert_eq!(traced.read(Tracer::CallTracer, &traced.calls).unwrap(), whole, "{}", traced.name);
        assert_eq!(traced.read(Tracer::TraceBlock, &traced.flat()).unwrap(), whole, "{}", traced.name);
    }
    assert!(left_out > 100_000, "{left_out}");
}

#[test]
fn the_order_of_the_list_and_of_the_fields_does_not_matter() {
    let traced = block("1337:16");
    let whole = traced.read(Tracer::CallTracer, &traced.calls).unwrap();
    // reth lists a self-destruct before the calls that preceded it.
    let mut flat = traced.flat();
    let items = flat.as_array_mut().unwrap();
    items.sort_by_key(|item| (item["transactionPosition"].as_u64().unwrap_or(u64::MAX), item["type"] != "suicide"));
    assert_eq!(traced.read(Tracer::TraceBlock, &flat).unwrap(), whole);
    // geth writes `error` and `calls` before `type` and `value`; serde_json sorts them; others have them last.
    fn last(frame: &Value) -> String {
        let calls: Vec<String> = frame["calls"].as_array().into_iter().flatten().map(last).collect();
        let mut fields: Vec<String> = frame
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "calls")
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        fields.reverse();
        fields.push(format!("\"calls\":[{}]", calls.join(",")));
        format!("{{{}}}", fields.join(","))
    }
    let traces: Vec<String> =
        traced.calls.as_array().unwrap().iter().map(|trace| format!("{{\"result\":{}}}", last(&trace["result"]))).collect();
    let answer = format!("[{}]", traces.join(","));
    let read = internal_transfers(&traced.fetched.block, &traced.fetched.statuses, Tracer::CallTracer, &answer).unwrap();
    assert_eq!(read, whole);
}

/// Asserts that the altered answer is refused.
fn refused(traced: &Traced, tracer: Tracer, answer: &Value, what: &str, alter: impl FnOnce(&mut Value)) {
    let mut altered = answer.clone();
    alter(&mut altered);
    assert_ne!(&altered, answer, "{what}");
    assert!(traced.read(tracer, &altered).is_err(), "{what} is taken");
}

#[test]
fn traces_of_other_transactions_or_too_few_are_refused() {
    let traced = block("1:17686110");
    let calls = traced.calls.clone();
    let tracer = Tracer::CallTracer;
    refused(&traced, tracer, &calls, "a missing trace", |a| drop(a.as_array_mut().unwrap().remove(7)));
    refused(&traced, tracer, &calls, "no trace", |a| *a = json!([]));
    refused(&traced, tracer, &calls, "a trace twice", |a| {
        let again = a[7].clone();
        a.as_array_mut().unwrap().insert(7, again);
    });
    refused(&traced, tracer, &calls, "another order", |a| a.as_array_mut().unwrap().swap(3, 4));
    refused(&traced, tracer, &calls, "another hash", |a| a[3]["txHash"] = a[4]["txHash"].clone());
    refused(&traced, tracer, &calls, "a failed trace", |a| {
        a[3] = json!({ "txHash": a[3]["txHash"], "error": "execution timeout" })
    });
    refused(&traced, tracer, &calls, "no frame", |a| a[3] = json!({ "txHash": a[3]["txHash"] }));
    let receives = calls
        .as_array()
        .unwrap()
        .iter()
        .position(|t| t["result"]["value"] != "0x0" && t["result"].get("error").is_none())
        .unwrap();
    refused(&traced, tracer, &calls, "another value", |a| a[receives]["result"]["value"] = json!("0x1"));
    refused(&traced, tracer, &calls, "another payer", |a| a[receives]["result"]["from"] = a[receives]["result"]["to"].clone());
    refused(&traced, tracer, &calls, "another payee", |a| a[receives]["result"]["to"] = a[receives]["result"]["from"].clone());
    refused(&traced, tracer, &calls, "another kind", |a| a[receives]["result"]["type"] = json!("DELEGATECALL"));
    refused(&traced, tracer, &calls, "a success that failed", |a| a[receives]["result"]["error"] = json!("out of gas"));
    let failed = calls.as_array().unwrap().iter().position(|t| t["result"].get("error").is_some()).unwrap();
    refused(&traced, tracer, &calls, "a failure that succeeded", |a| {
        drop(a[failed]["result"].as_object_mut().unwrap().remove("error"))
    });
    // Old nodes leave hashes out; then the order counts.
    let mut nameless = calls.clone();
    nameless.as_array_mut().unwrap().iter_mut().for_each(|trace| *trace = json!({ "result": trace["result"] }));
    assert_eq!(traced.read(tracer, &nameless).unwrap(), traced.read(tracer, &calls).unwrap());
    refused(&traced, tracer, &nameless, "another order without hashes", |a| a.as_array_mut().unwrap().swap(3, 4));
}

#[test]
fn a_flat_trace_of_another_block_or_with_holes_is_refused() {
    let traced = block("1:17686110");
    let flat = traced.flat();
    let tracer = Tracer::TraceBlock;
    let at = |address: Value| flat.as_array().unwrap().iter().position(|item| item["traceAddress"] == address).unwrap();
    let (inner, leaf) = (at(json!([0])), at(json!([0, 0])));
    refused(&traced, tracer, &flat, "another block", |a| a[5]["blockHash"] = json!("0x".to_owned() + &"11".repeat(32)));
    refused(&traced, tracer, &flat, "no block", |a| a[5]["blockHash"] = Value::Null);
    refused(&traced, tracer, &flat, "no transaction", |a| a[inner]["transactionHash"] = Value::Null);
    refused(&traced, tracer, &flat, "another position", |a| a[inner]["transactionPosition"] = json!(1000));
    refused(&traced, tracer, &flat, "a missing top frame", |a| drop(a.as_array_mut().unwrap().remove(0)));
    refused(&traced, tracer, &flat, "a missing inner frame", |a| drop(a.as_array_mut().unwrap().remove(inner)));
    refused(&traced, tracer, &flat, "a missing leaf", |a| drop(a.as_array_mut().unwrap().remove(leaf)));
    refused(&traced, tracer, &flat, "a frame twice", |a| {
        let again = a[leaf].clone();
        a.as_array_mut().unwrap().insert(leaf, again);
    });
    let last = traced.fetched.block.transactions.last().unwrap().hash;
    refused(&traced, tracer, &flat, "a missing transaction", |a| {
        a.as_array_mut().unwrap().retain(|item| item["transactionHash"] != json!(last));
    });
}

#[test]
fn a_truncated_answer_is_an_error_wherever_it_is_cut() {
    let traced = block("1337:26");
    for (tracer, answer) in [(Tracer::CallTracer, traced.calls.clone()), (Tracer::TraceBlock, traced.flat())] {
        let whole = answer.to_string();
        for length in 0..whole.len() {
            let cut = internal_transfers(&traced.fetched.block, &traced.fetched.statuses, tracer, &whole[..length]);
            assert!(matches!(cut, Err(TraceError::Malformed(_))), "{tracer:?} cut at {length}");
        }
    }
    for odd in ["null", "{}", "[null]", "[[]]", "[{}]", "[{\"result\":null}]", "\"0x\"", "[1]", "[] []"] {
        for tracer in [Tracer::CallTracer, Tracer::TraceBlock] {
            assert!(internal_transfers(&traced.fetched.block, &traced.fetched.statuses, tracer, odd).is_err(), "{odd}");
        }
    }
}

#[test]
fn value_in_a_frame_of_an_unknown_kind_is_refused() {
    let traced = block("1337:8");
    let place = traced.calls.as_array().unwrap().iter().position(|trace| trace["result"].get("calls").is_some()).unwrap();
    refused(&traced, Tracer::CallTracer, &traced.calls, "value in a new kind", |a| {
        a[place]["result"]["calls"][0]["type"] = json!("PAY");
    });
    // Without a value it does no harm.
    let mut idle = traced.calls.clone();
    let calls = idle[place]["result"]["calls"].as_array_mut().unwrap();
    calls.push(json!({ "type": "NEWCALL", "from": calls[0]["from"], "to": calls[0]["to"], "value": "0x0" }));
    assert_eq!(traced.read(Tracer::CallTracer, &idle).unwrap(), traced.read(Tracer::CallTracer, &traced.calls).unwrap());
}

/// Anyone can deploy contracts that call one another 1,024 deep. That must not stop a chain, and a deeper answer must not crash
/// the process.
#[test]
fn calls_as_deep_as_the_evm_allows_are_read_and_deeper_ones_refused() {
    let traced = block("1337:2");
    let (one, two) = ("0x1111111111111111111111111111111111111111", "0x2222222222222222222222222222222222222222");
    let nested = |depth: usize| {
        let open = format!("{{\"from\":\"{one}\",\"to\":\"{two}\",\"value\":\"0x1\",\"type\":\"CALL\",\"calls\":[");
        open.repeat(depth) + &"]}".repeat(depth)
    };
    let answer = |depth: usize| {
        let mut traces: Vec<String> = traced.calls.as_array().unwrap().iter().map(Value::to_string).collect();
        traces[0] = traces[0].replacen("\"from\"", &format!("\"calls\":[{}],\"from\"", nested(depth)), 1);
        format!("[{}]", traces.join(","))
    };
    let read = |answer: &str| internal_transfers(&traced.fetched.block, &traced.fetched.statuses, Tracer::CallTracer, answer);
    // On a thread with as little stack as a runtime's.
    std::thread::scope(|scope| {
        let small = std::thread::Builder::new().stack_size(512 * 1024);
        let deep = small.spawn_scoped(scope, || {
            assert_eq!(read(&answer(1024)).unwrap().len(), 1024);
            assert!(matches!(read(&answer(100_000)), Err(TraceError::Malformed(_))));
        });
        deep.unwrap().join().unwrap();
    });
}

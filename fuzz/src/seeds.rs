//! Inputs that fuzzing begins with, made of `testdata`.

use anyhow::{Context as _, Result};
use chain::{Block, FetchedBlock, Receipts, Verify};
use ingest::Window;
use ingest::cursor::{WrittenParts, encode};
use ingest::records::{Change, FinalityTags, records};
use prost::Message as _;
use serde_json::Value;
use topics::{ChainId, frame, wire};

/// Real inputs, from which mutations reach further than from nothing.
#[derive(Debug, Default)]
pub struct Seeds {
    /// For [`rpc`](crate::rpc).
    pub rpc: Vec<Vec<u8>>,
    /// For [`record`](crate::record).
    pub record: Vec<Vec<u8>>,
    /// For [`body`](crate::body).
    pub body: Vec<Vec<u8>>,
}

/// Bodies that are accepted, and some that are nearly.
const BODIES: [&str; 12] = [
    r#"{"chain":"anvil","amount":"1000000000000000"}"#,
    r#"{"chain_id":31337,"amount":7.0,"token":"USDX","expires_in":60,"external_id":"order-17","confirmations":3}"#,
    r#"{"chain":"anvil","chain_id":31337,"amount":1,"token_contract_address":"0x5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f"}"#,
    r#"{"chain":"anvil","amount":1,"metadata":{"a":[1,2.5,-1e10,null,true,"\ud83d\ude00"],"b":{"c":{"d":{}}}},"token":null}"#,
    r#"{"chain":"anvil","amount":9,"underpaid_tolerance":"1","overpaid_tolerance":0,"accept_late":true}"#,
    r#"{"payments":[{"chain":"anvil","amount":1,"idempotency_key":"k-1"},{"chain":"anvil","amount":2},7,[],{"a":1}]}"#,
    r#"{"payments":[{"chain":"anvil","amount":115792089237316195423570985008687907853269984665640564039457584007913129639935}]}"#,
    r#"{"url":"https://shop.example/hooks","events":["payment.*","deposit.detected"],"description":"north"}"#,
    r#"{"url":"https://[::1]:8443/","events":[]}"#,
    r#"{"event_id":"evt_0198c5a27b1e7c3a9d1f3b2a1c0d9e8f_1"}"#,
    r#"{"from":"2026-11-28T08:07:44Z","before":"2026-11-29T00:00:00+02:00","cursor":"1700000000000000_0198c5a2-7b1e-7c3a-9d1f-3b2a1c0d9e8f"}"#,
    r#"{"failed":true,"external_id":"customer-7","metadata":{"shop":"north"}}"#,
];

/// Makes the seeds of all targets.
///
/// # Errors
/// If the test data is missing.
pub fn seeds() -> Result<Seeds> {
    let mut seeds = Seeds { body: BODIES.iter().map(|body| body.as_bytes().to_vec()).collect(), ..Seeds::default() };
    for file in ["amsterdam-dev", "misc"] {
        let traces = testdata::lines(&format!("{file}.traces"))?;
        for line in testdata::lines(&format!("{file}.blocks"))? {
            let trace = traces.iter().find(|trace| trace["hash"] == line["hash"]).map(|trace| trace["result"].clone());
            let (block, outcome) = (&line["block"], line.get("receipts").or(line.get("logs")).context("receipts or logs")?);
            let answer = format!("{block}\n{outcome}\n{}", trace.unwrap_or_default());
            // Larger seeds only slow each try down.
            if answer.len() > 64 * 1024 {
                continue;
            }
            seeds.rpc.push(answer.into_bytes());
            seeds.rpc.push(
                format!(r#"[{{"jsonrpc":"2.0","id":0,"result":{block}}},{{"jsonrpc":"2.0","id":1,"result":{outcome}}}]"#)
                    .into_bytes(),
            );
            seeds.record.extend(framed_records(block, outcome)?);
        }
    }
    let event = wire::PaymentEvent { payment_id: "a".to_owned(), ..Default::default() };
    seeds.record.push(frame::wrap(7, &event.encode_to_vec()));
    Ok(seeds)
}

/// The framed records of a block.
fn framed_records(block: &Value, outcome: &Value) -> Result<Vec<Vec<u8>>> {
    let block = Block::parse(&block.to_string())?;
    let Ok(receipts) = serde_json::from_value(outcome.clone()) else { return Ok(Vec::new()) };
    let mut window = Window::default();
    window.push(block.head());
    let Ok(fetched) = FetchedBlock::new(block, Receipts::All(receipts), Verify::Off) else { return Ok(Vec::new()) };
    let (block, logs) = records(
        ChainId(1),
        1,
        Change::Added(Box::new(fetched)),
        FinalityTags { safe: Some(1), finalized: Some(2), witnessed: Some(1) },
    );
    let (block, logs) = (block.encode_to_vec(), logs.encode_to_vec());
    let cursor = encode(ChainId(1), 1, &window, "", &mut WrittenParts::default());
    let cursor = cursor.into_iter().filter_map(|(_, record)| record).map(|record| record.encode_to_vec());
    Ok([block, logs].into_iter().chain(cursor).map(|message| frame::wrap(7, &message)).collect())
}

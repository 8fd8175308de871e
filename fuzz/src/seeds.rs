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
}

/// Makes the seeds of both targets.
///
/// # Errors
/// If the test data is missing.
pub fn seeds() -> Result<Seeds> {
    let mut seeds = Seeds::default();
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

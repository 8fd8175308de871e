//! A chain that skips numbers, through all roles and a backfill; and one whose node hides a block.

use anyhow::{Context as _, Result, ensure};
use e2e::replay::{Recorded, serve};
use e2e::{Lab, Plan, eventually, records};
use reqwest::Method;
use serde_json::{Value, json};
use topics::wire;
use wire::block_record::Kind;

const CHAIN: u64 = 900_001;
const OTHER: u64 = 900_002;
const HEAD: u64 = 600;
const FIRST: u64 = 300;
/// Without tags.
const LAST_FINAL: u64 = HEAD - 256;

fn is_skipped(number: u64) -> bool {
    [48..53, 70..76, 98..104, 298..303, LAST_FINAL - 2..LAST_FINAL + 3, 400..405, HEAD - 3..HEAD]
        .into_iter()
        .any(|hole| hole.contains(&number))
}

/// Empty blocks of these numbers, each on the one before, which no root proves.
fn blocks(chain_id: u64, numbers: impl Iterator<Item = u64>) -> Vec<Recorded> {
    let word = |number: u64| format!("0x{number:064x}");
    let mut parent = word(0);
    let block = |number: u64| {
        let hash = word(chain_id + number);
        let block = json!({
            "number": format!("{number:#x}"), "hash": hash, "parentHash": std::mem::replace(&mut parent, hash.clone()),
            "timestamp": format!("{:#x}", 1_700_000_000 + number), "transactionsRoot": word(1), "receiptsRoot": word(2),
            "stateRoot": word(3), "sha3Uncles": word(4), "miner": format!("0x{:040x}", 0), "gasLimit": "0x1", "gasUsed": "0x0",
            "transactions": [],
        });
        Recorded { chain_id, block, receipts: Vec::new() }
    };
    numbers.map(block).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_skips_numbers_is_matched_confirmed_and_backfilled() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let url = serve(CHAIN, blocks(CHAIN, (0..=HEAD).filter(|number| !is_skipped(*number)))).await?;
    let mut all = blocks(OTHER, 0..=HEAD);
    // Its child is there, and stands on it.
    all.remove(200);
    let hiding = serve(OTHER, all).await?;
    let entry = |name, id, url, start| {
        format!(
            "- {{ name: {name}, chain_id: {id}, rpc_url: \"{url}\", verify: off, start_block: {start}, poll_interval_ms: 50 }}\n"
        )
    };
    lab.write_chains(&(entry("holes", CHAIN, &url, FIRST) + &entry("hiding", OTHER, &hiding, 190)))?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let processed = async |place: usize, number: u64| {
        eventually("the chain to be processed", || async {
            let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
            let chains = health.pointer("/components/chains").and_then(Value::as_array).cloned().unwrap_or_default();
            Ok(chains.get(place).and_then(|chain| chain["processed"].as_u64()).filter(|processed| *processed >= number))
        })
        .await
    };
    ensure!(processed(0, HEAD).await? == HEAD && processed(1, 199).await? == 199);

    // It begins and ends in holes.
    lab.ctrip(&["backfill", "--chain", "holes", "--from", "50", "--to", "101"])?;
    for from in ["195", "200"] {
        let mut backfill = lab.spawn_with(&["backfill", "--chain", "hiding", "--from", from, "--to", "205"])?;
        eventually("a block to be missing", || async { Ok(backfill.log().contains("no node has block 200").then_some(())) })
            .await?;
        backfill.kill()?;
    }
    let all: Vec<wire::BlockRecord> = records(&lab).await?;
    let numbers = |chain: u64, kind: Kind| {
        let ours = all.iter().filter(move |block| block.chain_id == chain && block.kind() == kind);
        ours.map(|block| block.number).collect::<Vec<_>>()
    };
    let expected = |from: u64, to: u64| (from..=to).filter(|number| !is_skipped(*number)).collect::<Vec<_>>();
    ensure!(numbers(CHAIN, Kind::Added) == expected(297, HEAD), "{:?}", numbers(CHAIN, Kind::Added));
    ensure!(numbers(CHAIN, Kind::Replayed) == expected(50, 101), "{:?}", numbers(CHAIN, Kind::Replayed));
    ensure!(numbers(OTHER, Kind::Added).last() == Some(&199), "a block was skipped");
    ensure!(numbers(OTHER, Kind::Replayed) == expected(195, 199), "{:?}", numbers(OTHER, Kind::Replayed));
    let matched: Vec<wire::MatchesRecord> = records(&lab).await?;
    let last = matched.iter().rfind(|record| record.chain_id == CHAIN && record.sequence != 0).context("a match")?;
    ensure!((last.number, last.witnessed_number) == (HEAD, Some(HEAD)));

    // What was applied stands up to the block below that hole.
    eventually("a restart", async || Ok(lab.ctrip(&["chain", "restart", "holes", "--execute"]).ok())).await?;
    let all: Vec<wire::BlockRecord> = records(&lab).await?;
    let begins = all.iter().find(|block| block.kind() == Kind::Replayed && block.sequence != 0).context("a beginning")?;
    ensure!((begins.chain_id, begins.number) == (CHAIN, LAST_FINAL - 3));
    up.check()
}

//! Real blocks, served by a small RPC, through ingest and detector: the matches are those of the receipts and of an independent
//! parser.

use anyhow::{Context as _, Result, ensure};
use e2e::replay::{Recorded, recorded, serve};
use e2e::{Lab, Plan, quantity};
use runtime::kafka::Publisher;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use topics::{Address, Message as _, Topic, U256, wire};

const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
const SYSTEM: &str = "0xfffffffffffffffffffffffffffffffffffffffe";

/// A transfer, as text so that a difference is readable: block, transaction, log index or `value`, token or `coin`, from,
/// to, amount.
type Credit = (String, String, String, String, String, String, U256);

#[tokio::test(flavor = "multi_thread")]
async fn the_matches_of_real_blocks_are_the_transfers_in_their_receipts() -> Result<()> {
    let mut chains = vec![recorded("eth-mainnet-17686110-17686112")?, recorded("amsterdam-dev")?];
    let odd = recorded("misc")?;
    // Of the odd blocks, those with a status in every receipt, each as a chain of its own. (25 is Cronos, whose blocks lack
    // receipts.)
    let with_status = |b: &Recorded| b.chain_id != 25 && b.receipts.iter().all(|r| r["status"].is_string());
    chains.extend(odd.into_iter().filter(with_status).map(|block| vec![block]));

    let lab = Lab::start(Plan::default()).await?;
    let mut yaml = String::new();
    for (blocks, place) in chains.iter().zip(1_u64..) {
        let first = blocks.first().context("a block")?;
        let start = quantity(&first.block["number"])?;
        // Ids of their own: the three mainnet blocks and block 17,000,000 do not follow one another.
        let id = 900_000 + place;
        let url = serve(id, blocks.clone()).await?;
        writeln!(
            yaml,
            "- {{ name: chain{id}, chain_id: {id}, rpc_url: \"{url}\", confirmations: 1, start_block: {start}, poll_interval_ms: 50 }}"
        )?;
    }
    lab.write_chains(&yaml)?;

    let expected: BTreeSet<Credit> = chains.iter().flatten().flat_map(credits).collect();
    watch(&lab, expected.iter().map(|credit| credit.5.parse()).collect::<Result<BTreeSet<Address>, _>>()?).await?;
    let _ingest = lab.spawn("ingest")?;
    let _detector = lab.spawn("detector")?;
    let blocks: usize = chains.iter().map(Vec::len).sum();
    let matches = e2e::eventually("all blocks to be matched", || async {
        Ok(Some(matches(&lab).await?).filter(|records| records.len() >= blocks))
    })
    .await?;
    ensure!(matches.len() == blocks, "{} records of {blocks} blocks", matches.len());

    let matched: Vec<Credit> = matches.iter().flat_map(|record| record.transfers.iter().map(|t| credit(record, t))).collect();
    let distinct: BTreeSet<Credit> = matched.iter().cloned().collect();
    ensure!(distinct.len() == matched.len(), "a transfer was matched twice");
    let missing: Vec<_> = expected.difference(&distinct).take(5).collect();
    let invented: Vec<_> = distinct.difference(&expected).take(5).collect();
    ensure!(missing.is_empty() && invented.is_empty(), "missing {missing:#?}, invented {invented:#?}");
    ensure!(matched.len() > 900, "only {} transfers: is the test data all there?", matched.len());
    check_oracle(&distinct)?;
    check_amsterdam(&distinct)
}

/// The transfers in the receipts, by the rules and without our decoder.
fn credits(recorded: &Recorded) -> Vec<Credit> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let word = |word: &str| format!("0x{}", word.get(24..).unwrap_or_default());
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<U256>().ok()).unwrap_or_default();
    let block = text(&recorded.block["hash"]);
    let mut credits = Vec::new();
    let mut native = false;
    for log in recorded.receipts.iter().flat_map(|receipt| receipt["logs"].as_array().into_iter().flatten()) {
        let topics: Vec<String> = log["topics"].as_array().into_iter().flatten().map(text).collect();
        let data = text(&log["data"]);
        let words: Vec<String> =
            data.trim_start_matches("0x").as_bytes().chunks(64).map(|w| String::from_utf8_lossy(w).into()).collect();
        // Both parties are indexed, or neither; in both cases addresses have twelve leading zero bytes.
        let (from, to, amount) = match (topics.as_slice(), words.as_slice()) {
            ([first, from, to], [amount]) if first == TRANSFER => (from.replace("0x", ""), to.replace("0x", ""), amount),
            ([first], [from, to, amount]) if first == TRANSFER => (from.clone(), to.clone(), amount),
            _ => continue,
        };
        if amount.len() != 64 || ![&from, &to].iter().all(|word| word.len() == 64 && word.starts_with(&"0".repeat(24))) {
            continue;
        }
        let (from, to) = (word(&from), word(&to));
        let amount = U256::from_str_radix(amount, 16).unwrap_or_default();
        let emitter = text(&log["address"]);
        native |= emitter == SYSTEM;
        let token = if emitter == SYSTEM { "coin".to_owned() } else { emitter };
        let index = number(&log["logIndex"]).to_string();
        credits.push((block.clone(), text(&log["transactionHash"]), index, token, from, to, amount));
    }
    let transactions = recorded.block["transactions"].as_array().into_iter().flatten();
    for (transaction, receipt) in transactions.zip(&recorded.receipts).filter(|_| !native) {
        if receipt["status"] == "0x1" && transaction["to"].is_string() {
            let value = number(&transaction["value"]);
            let (from, to) = (text(&transaction["from"]), text(&transaction["to"]));
            credits.push((block.clone(), text(&transaction["hash"]), "value".to_owned(), "coin".to_owned(), from, to, value));
        }
    }
    credits.retain(|credit| credit.4 != credit.5 && !credit.6.is_zero());
    credits
}

fn credit(record: &wire::MatchesRecord, t: &wire::matches_record::Transfer) -> Credit {
    use wire::matches_record::Source;
    let hex = |bytes: &[u8]| alloy::hex::encode_prefixed(bytes);
    let index = if t.source() == Source::Transaction { "value".to_owned() } else { t.index.to_string() };
    let token = if t.token.is_empty() { "coin".to_owned() } else { hex(&t.token) };
    let amount = U256::from_be_slice(&t.amount);
    (hex(&record.hash), hex(&t.transaction_hash), index, token, hex(&t.from), hex(&t.to), amount)
}

/// Every transfer of `token-transfers-oracle`, which another program parsed, is matched.
fn check_oracle(matched: &BTreeSet<Credit>) -> Result<()> {
    let mut checked = 0;
    for block in testdata::lines("token-transfers-oracle")? {
        for transfer in block["tokenTransfers"].as_array().context("tokenTransfers")?.iter().filter(|t| t["erc20"].is_object())
        {
            let text = |field: &str| transfer[field].as_str().unwrap_or_default().to_lowercase();
            let amount: U256 = text("value").parse().unwrap_or_default();
            if amount.is_zero() || text("fromAddress") == text("toAddress") {
                continue;
            }
            let found = matched.iter().any(|(block, tx, _, token, from, to, value)| {
                (block, tx, token, from, to, *value)
                    == (
                        &text("blockHash"),
                        &text("transactionHash"),
                        &text("tokenAddress"),
                        &text("fromAddress"),
                        &text("toAddress"),
                        amount,
                    )
            });
            ensure!(found, "the oracle's transfer is not among the matches: {transfer}");
            checked += 1;
        }
    }
    ensure!(checked > 100, "only {checked} transfers in the oracle");
    Ok(())
}

/// The coin credits of the Amsterdam chain are those of its oracle, each once.
fn check_amsterdam(matched: &BTreeSet<Credit>) -> Result<()> {
    let oracle = testdata::json("amsterdam-dev.transfers.json")?;
    let mut credits: BTreeMap<(String, String, String, U256), i64> = BTreeMap::new();
    let mut blocks = BTreeSet::new();
    for transfer in oracle["transfers"].as_array().context("transfers")? {
        let text = |field: &str| transfer[field].as_str().unwrap_or_default().to_lowercase();
        blocks.insert(text("blockHash"));
        *credits.entry((text("tx"), text("from"), text("to"), text("value").parse()?)).or_default() += 1;
    }
    for (block, tx, _, token, from, to, amount) in matched {
        if token == "coin" && blocks.contains(block) {
            *credits.entry((tx.clone(), from.clone(), to.clone(), *amount)).or_default() -= 1;
        }
    }
    credits.retain(|_, count| *count != 0);
    ensure!(credits.is_empty(), "oracle and matches differ (positive: missing): {credits:#?}");
    Ok(())
}

async fn watch(lab: &Lab, addresses: BTreeSet<Address>) -> Result<()> {
    let kafka = lab.kafka().await?;
    let publisher = Publisher::open(&kafka, Duration::from_secs(10))?;
    let intents: Vec<(String, Vec<u8>)> = addresses
        .into_iter()
        .map(|address| wire::PaymentIntent { address: address.to_vec().into(), ..Default::default() })
        .map(|intent| (intent.key(), kafka.encode(&intent)))
        .collect();
    publisher.publish(Topic::Intents, &intents).await.into_iter().collect::<Result<()>>()
}

async fn matches(lab: &Lab) -> Result<Vec<wire::MatchesRecord>> {
    e2e::records(lab).await
}

//! Coin that arrives without a transfer is credited once, with its amount; an invented credit is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chain::{Block, Credit, CreditSource, PartProof, Receipts, Verify, prove};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use topics::{ChainId, U256};

fn lines(file: &str) -> Vec<Value> {
    testdata::lines(&format!("{file}.blocks")).unwrap()
}

fn block(file: &str, number: u64) -> Value {
    lines(file).into_iter().find(|line| line["number"] == number).unwrap()
}

fn withdrawals_part(line: &Value) -> Result<PartProof, String> {
    let block = Block::parse(&line["block"].to_string()).unwrap();
    let receipts = Receipts::All(serde_json::from_value(line["receipts"].clone()).unwrap());
    prove(&block, &receipts, Verify::Auto).map(|proof| proof.withdrawals).map_err(|error| error.what)
}

fn credits(line: &Value) -> Vec<Credit> {
    Block::parse(&line["block"].to_string()).unwrap().credits(ChainId(line["chainId"].as_u64().unwrap()))
}

#[test]
fn withdrawals_are_credited_in_wei_and_as_the_balances_say() {
    let oracle = testdata::json("amsterdam-dev.transfers.json").unwrap();
    let mut expected: BTreeMap<u64, Vec<(String, String)>> = BTreeMap::new();
    for entry in oracle["withdrawals"].as_array().unwrap() {
        let text = |field: &str| entry[field].as_str().unwrap().to_owned();
        expected.entry(entry["block"].as_u64().unwrap()).or_default().push((text("to"), text("value")));
    }
    let mut found = BTreeMap::new();
    for line in lines("amsterdam-dev") {
        let credits = credits(&line);
        assert!(credits.iter().all(|credit| credit.source == CreditSource::Withdrawal && credit.transaction_hash.is_none()));
        let credits: Vec<_> = credits.iter().map(|credit| (format!("{:#x}", credit.to), credit.value.to_string())).collect();
        if !credits.is_empty() {
            found.insert(line["number"].as_u64().unwrap(), credits);
        }
        assert_eq!(withdrawals_part(&line), Ok(PartProof::Root));
    }
    assert_eq!(found, expected);

    let mainnet = block("misc", 19_807_080);
    let credits = credits(&mainnet);
    assert_eq!(credits.len(), 16);
    assert_eq!((credits[0].index, credits[0].value), (0x2a4_c96b, U256::from(0x11a_0834_u64) * U256::from(1_000_000_000)));
}

#[test]
fn an_invented_or_missing_withdrawal_is_refused() {
    let line = block("misc", 19_807_080);
    for field in ["amount", "address", "index", "validatorIndex"] {
        let mut altered = line.clone();
        let text = altered["block"]["withdrawals"][3][field].as_str().unwrap().to_owned();
        let last = if text.ends_with('1') { '2' } else { '1' };
        altered["block"]["withdrawals"][3][field] = json!(format!("{}{last}", &text[..text.len() - 1]));
        assert_eq!(withdrawals_part(&altered), Err("the withdrawals".to_owned()), "{field}");
    }
    let mut fewer = line.clone();
    fewer["block"]["withdrawals"].as_array_mut().unwrap().pop();
    assert_eq!(withdrawals_part(&fewer), Err("the withdrawals".to_owned()));
    fewer["block"]["withdrawals"] = json!([]);
    assert_eq!(withdrawals_part(&fewer), Err("the withdrawals".to_owned()));
}

#[test]
fn withdrawals_that_a_node_leaves_out_are_a_proof_gap_and_no_error() {
    let mut line = block("misc", 19_807_080);
    line["block"].as_object_mut().unwrap().remove("withdrawals");
    assert!(matches!(withdrawals_part(&line), Ok(PartProof::Unproven(_))));
    assert_eq!(credits(&line), []);
    let block = Block::parse(&line["block"].to_string()).unwrap();
    let receipts = Receipts::All(serde_json::from_value(line["receipts"].clone()).unwrap());
    assert_eq!(prove(&block, &receipts, Verify::Roots).unwrap().gaps().count(), 1);
    // One that can't be read whole is not credited, and is a gap.
    let mut odd = self::block("misc", 19_807_080);
    odd["block"]["withdrawals"][3]["amount"] = Value::Null;
    assert!(matches!(withdrawals_part(&odd), Ok(PartProof::Unproven(_))));
    assert_eq!(credits(&odd).len(), 15);
    odd["block"]["withdrawals"] = json!({ "new": 1 });
    assert!(matches!(withdrawals_part(&odd), Ok(PartProof::Unproven(_))));
    assert_eq!(credits(&odd), []);
}

#[test]
fn withdrawals_under_no_root_are_a_proof_gap_and_none_are_proven_with_a_list_and_without_one() {
    let mut line = block("misc", 17_000_000);
    assert_eq!(withdrawals_part(&line), Ok(PartProof::Root));
    line["block"]["withdrawals"] = json!([]);
    assert_eq!(withdrawals_part(&line), Ok(PartProof::Root));
    line["block"]["withdrawals"] = block("misc", 19_807_080)["block"]["withdrawals"].clone();
    assert_eq!(withdrawals_part(&line), Ok(PartProof::Unproven("withdrawals without a root".to_owned())));
    let mut none = lines("amsterdam-dev").into_iter().find(|line| line["block"]["withdrawals"] == json!([])).unwrap();
    none["block"].as_object_mut().unwrap().remove("withdrawals");
    assert_eq!(withdrawals_part(&none), Ok(PartProof::Root), "the root is that of none");
    // A chain with a header of its own may have another root there.
    let mut other = block("misc", 19_807_080);
    other["block"]["fancyRoot"] = json!("0x01");
    other["block"]["withdrawalsRoot"] = json!(format!("0x{}", "11".repeat(32)));
    assert_eq!(withdrawals_part(&other), Err("the withdrawals".to_owned()));
    other["block"]["withdrawals"] = json!([]);
    let gap = "withdrawals under a root of the chain's own".to_owned();
    assert_eq!(withdrawals_part(&other), Ok(PartProof::Unproven(gap)));
}

#[test]
fn what_an_l2_mints_for_a_deposit_is_its_senders_even_if_the_deposit_fails() {
    let mut found = Vec::new();
    for line in lines("misc") {
        let credits = credits(&line);
        found.extend(credits.iter().filter(|credit| credit.source == CreditSource::Deposit).map(|credit| {
            (line["number"].as_u64().unwrap(), format!("{:#x}", credit.to), format!("{:#x}", credit.value), credit.index)
        }));
        if line["number"] == 77_976 {
            assert_eq!(json!(credits[0].transaction_hash.unwrap()), line["block"]["transactions"][1]["hash"]);
        }
    }
    assert_eq!(found, [(77_976, "0xe8a3ecea7d6a688ee903173024225357ddf29e93".to_owned(), "0x44227f2b5c8800".to_owned(), 1)]);
}

#[test]
fn the_op_stack_reuses_the_withdrawals_root_and_gnosis_pays_a_token() {
    // Of deposits alone, and of others too.
    for number in [77_976, 2_000_000] {
        let mut isthmus = block("misc", number);
        isthmus["block"]["withdrawalsRoot"] = json!(format!("0x{}", "12".repeat(32)));
        for withdrawals in [json!([]), Value::Null] {
            isthmus["block"]["withdrawals"] = withdrawals;
            let parsed = Block::parse(&isthmus["block"].to_string()).unwrap();
            let hash = json!(parsed.header_hash().unwrap());
            let renamed = isthmus.to_string().replace(isthmus["block"]["hash"].as_str().unwrap(), hash.as_str().unwrap());
            assert_eq!(withdrawals_part(&serde_json::from_str(&renamed).unwrap()), Ok(PartProof::Root));
        }
    }

    let mut gnosis = block("misc", 19_807_080);
    gnosis["chainId"] = json!(100);
    assert_eq!(credits(&gnosis), []);
}

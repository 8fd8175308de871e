//! Every rule of a payment's life, on real chains: many payments in one lab, each with its expected course.

use alloy::hex;
use alloy::primitives::{Address, B256, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Node, PAYER, Payment, Plan, events, eventually, quantity};
use payments::{DepositAddress, store};
use reqwest::Method;
use serde_json::{Value, json};
use topics::wire::PaymentEvent;
use uuid::Uuid;

const DUSD: &str = "DUSD";

/// A payment with its expected end, and its expected events after `payment.created`.
struct Case {
    name: &'static str,
    payment: Payment,
    end: (&'static str, &'static str, &'static str),
    events: &'static [&'static str],
}

struct Field {
    lab: Lab,
    api: Api,
    /// Another chain, with the same token at the same address.
    other: Node,
    fee_token: Address,
    /// A token that no chain lists.
    fake: Address,
}

impl Field {
    async fn start() -> Result<Self> {
        let lab = Lab::start(Plan { confirmations: 2, ..Plan::default() }).await?;
        let other = Node::start_with(&lab.stack, &["--chain-id", "31338", "--slots-in-an-epoch", "1"]).await?;
        let token = other.deploy("Token").await?;
        ensure!(token == lab.node.token, "the tokens are at different addresses");
        let fee_token = lab.node.deploy("FeeToken").await?;
        let fake = lab.node.deploy("Token").await?;
        let chains = format!(
            "- name: anvil
  chain_id: 31337
  rpc_url: {}
  confirmations: 2
  tiers: [{{ from: 0.000000000000001, confirmations: 4 }}]
  poll_interval_ms: 20
  start_block: 0
  tokens:
    - {{ symbol: {DUSD}, address: \"{token}\", decimals: 6 }}
    - {{ symbol: FUSD, address: \"{fee_token}\", decimals: 6 }}
- name: other
  chain_id: 31338
  rpc_url: {}
  finality: finalized
  poll_interval_ms: 20
  start_block: 0
  tokens:
    - {{ symbol: {DUSD}, address: \"{token}\", decimals: 6 }}
",
            lab.node.url, other.url
        );
        lab.write_chains(&chains)?;
        let api = lab.merchant("shop")?;
        Ok(Self { lab, api, other, fee_token, fake })
    }

    async fn coin(&self, amount: u64, more: Value) -> Result<Payment> {
        self.ask(json!({ "chain": "anvil", "amount": amount }), more).await
    }

    async fn token(&self, amount: u64, more: Value) -> Result<Payment> {
        self.ask(json!({ "chain": "anvil", "token": DUSD, "amount": amount }), more).await
    }

    async fn ask(&self, mut body: Value, more: Value) -> Result<Payment> {
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        self.api.create_surely(body).await
    }

    async fn pay(&self, payment: &Payment, amount: u64) -> Result<u64> {
        let hash = self.lab.node.pay(payment.address()?, U256::from(amount)).await?;
        mined(&self.lab.node, hash).await
    }

    async fn pay_token(&self, payment: &Payment, amount: u64) -> Result<u64> {
        let hash = self.lab.node.pay_token(payment.address()?, U256::from(amount)).await?;
        mined(&self.lab.node, hash).await
    }

    /// A static address, with its intent where the API's repair task publishes it.
    async fn static_address(&self) -> Result<DepositAddress> {
        let database = self.lab.database().await?;
        let row = database.query_one("SELECT merchant_id, xpub FROM payments LIMIT 1", &[]).await?;
        let address = DepositAddress {
            id: Uuid::new_v4(),
            merchant: row.get(0),
            external_id: Some("customer 7".to_owned()),
            metadata: None,
            address: Address::from(rand::random::<[u8; 20]>()),
            xpub: row.get(1),
            address_index: 1_000_000,
            created_at: 0,
            asked_by: None,
        };
        let pool = runtime::db::pool(&self.lab.env["DATABASE_URL"], 1)?;
        let client = pool.get().await?;
        store::insert_addresses(&client, std::slice::from_ref(&address), Uuid::nil()).await?;
        eventually("the address's intent to be acknowledged", || async {
            let waiting = client.query("SELECT FROM unacknowledged_intents WHERE payment_id = $1", &[&address.id]).await?;
            Ok(waiting.is_empty().then_some(()))
        })
        .await?;
        Ok(address)
    }
}

/// The number of a transaction's block.
async fn mined(node: &Node, hash: B256) -> Result<u64> {
    let receipt = eventually("a receipt", || node.receipt(hash)).await?;
    ensure!(receipt["status"] == "0x1", "{receipt}");
    quantity(&receipt["blockNumber"])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_a_payments_life_holds_on_real_chains() -> Result<()> {
    let field = Field::start().await?;
    let mut up = field.lab.spawn("up")?;
    field.api.ready(&mut up).await?;
    let (api, node) = (&field.api, &field.lab.node);
    let mut cases = Vec::new();
    let mut case = |name, payment: &Payment, end, events| cases.push(Case { name, payment: payment.clone(), end, events });

    // The signing node below has the key of the first addresses.
    let nothing = field.coin(100, json!({})).await?;
    case("no money moves", &nothing, ("pending", "", "0"), &[]);
    let parts = field.token(100, json!({})).await?;
    case("parts add up", &parts, ("confirmed", "", "100"), &["underpaid", "detected", "confirmed"]);
    let batched = field.token(100, json!({})).await?;
    case("two in one transaction", &batched, ("confirmed", "", "100"), &["underpaid", "detected", "confirmed"]);
    let crowded = field.token(100, json!({})).await?;
    case("three in one block", &crowded, ("confirmed", "", "100"), &["underpaid", "underpaid", "detected", "confirmed"]);
    let less = field.token(100, json!({ "underpaid_tolerance": 5 })).await?;
    case("a little less", &less, ("confirmed", "", "95"), &["detected", "confirmed"]);
    let more = field.token(100, json!({ "overpaid_tolerance": 5 })).await?;
    case("a little more", &more, ("confirmed", "", "105"), &["detected", "confirmed"]);
    let much = field.token(100, json!({ "overpaid_tolerance": 5 })).await?;
    case("too much", &much, ("confirmed", "overpaid", "106"), &["detected", "overpaid", "confirmed"]);
    let wrong_token = field.token(100, json!({})).await?;
    case("the wrong token", &wrong_token, ("pending", "", "0"), &["unexpected_transfer"]);
    let wrong_chain = field.token(100, json!({})).await?;
    case("the wrong chain", &wrong_chain, ("pending", "", "0"), &["unexpected_transfer"]);
    let faked = field.token(100, json!({})).await?;
    case("a fake token", &faked, ("pending", "", "0"), &[]);
    let cancelled = field.coin(100, json!({})).await?;
    case("cancelled", &cancelled, ("cancelled", "late", "100"), &["cancelled", "late"]);
    let again = field.coin(100, json!({})).await?;
    case("paid again", &again, ("confirmed", "overpaid", "101"), &["detected", "confirmed", "overpaid"]);
    let fee = field.ask(json!({ "chain": "anvil", "token": "FUSD", "amount": 90 }), json!({})).await?;
    case("a fee on the transfer", &fee, ("confirmed", "", "90"), &["detected", "confirmed"]);
    let moved = field.coin(100, json!({ "confirmations": 5 })).await?;
    case("moved by a reorg", &moved, ("confirmed", "", "100"), &["detected", "reverted", "detected", "confirmed"]);
    let changed = field.coin(100, json!({ "confirmations": 5 })).await?;
    case("changed by a reorg", &changed, ("pending", "underpaid", "70"), &["detected", "reverted", "underpaid"]);
    let shallow = field.coin(10, json!({ "confirmations": 1 })).await?;
    case("a policy of its own", &shallow, ("confirmed", "", "10"), &["detected", "confirmed"]);
    let tiered = field.coin(2_000, json!({})).await?;
    case("a policy by amount", &tiered, ("confirmed", "", "2000"), &["detected", "confirmed"]);
    let finalized = field.ask(json!({ "chain": "other", "amount": 10 }), json!({})).await?;
    case("confirmed by finality", &finalized, ("confirmed", "", "10"), &["detected", "confirmed"]);
    let late = field.coin(100, json!({ "expires_in": 60 })).await?;
    case("late", &late, ("expired", "late", "100"), &["expired", "late"]);
    let accepted = field.coin(100, json!({ "expires_in": 60, "accept_late": true })).await?;
    case("late and accepted", &accepted, ("confirmed", "", "100"), &["expired", "late", "detected", "confirmed"]);
    let customer = field.static_address().await?;

    // Payments that the reorg removes come before anything that must stay.
    field.pay(&moved, 100).await?;
    field.pay(&changed, 100).await?;
    api.until(moved.id(), "detected").await?;
    api.until(changed.id(), "detected").await?;
    let pays = |payment: &Payment, amount: &str| json!([{ "from": PAYER, "to": payment.text("address"), "value": amount }, 1]);
    node.call("anvil_reorg", json!([2, [pays(&moved, "0x64"), pays(&changed, "0x46")]])).await?;
    node.mine(4).await?;
    api.until(moved.id(), "confirmed").await?;

    let (status, answer) = api.request(Method::POST, &format!("/api/v1/payments/{}/cancel", cancelled.id()), None, &[]).await?;
    ensure!(status.is_success(), "{answer}");
    field.pay(&cancelled, 100).await?;
    field.pay_token(&parts, 60).await?;
    field.pay_token(&parts, 40).await?;
    let batcher = node.deploy("Twice").await?;
    mined(node, node.pay_token(batcher, U256::from(100)).await?).await?;
    let mut data = keccak256("pay(address,address,uint256,uint256)")[..4].to_vec();
    for address in [node.token, batched.address()?] {
        data.extend(address.into_word());
    }
    for amount in [60, 40_u64] {
        data.extend(U256::from(amount).to_be_bytes::<32>());
    }
    let twice =
        node.send(json!({ "from": PAYER, "to": batcher, "data": hex::encode_prefixed(data), "gas": "0x40000" })).await?;
    mined(node, twice).await?;
    node.call("evm_setAutomine", json!([false])).await?;
    for amount in [30, 30, 40_u64] {
        node.pay_token(crowded.address()?, U256::from(amount)).await?;
    }
    node.mine(1).await?;
    node.call("evm_setAutomine", json!([true])).await?;
    field.pay_token(&less, 95).await?;
    field.pay_token(&more, 105).await?;
    field.pay_token(&much, 106).await?;
    field.pay(&wrong_token, 100).await?;
    mined(&field.other, field.other.pay_token(wrong_chain.address()?, U256::from(100)).await?).await?;
    mined(node, node.pay_with(field.fake, faked.address()?, U256::from(100)).await?).await?;
    field.pay(&nothing, 0).await?;
    field.pay_token(&nothing, 0).await?;
    to_itself(&field.lab, nothing.address()?).await?;
    mined(node, node.pay_with(field.fee_token, fee.address()?, U256::from(100)).await?).await?;
    field.pay(&again, 100).await?;
    node.mine(1).await?;
    api.until(again.id(), "confirmed").await?;
    field.pay(&again, 1).await?;
    let at_once = field.pay(&shallow, 10).await?;
    let deeper = field.pay(&tiered, 2_000).await?;
    mined(&field.other, field.other.pay(finalized.address()?, U256::from(10)).await?).await?;

    // Deposits: in the coin, above a tier and below, and in the token on the other chain. The fake token makes none.
    let small = mined(node, node.pay(customer.address, U256::from(10)).await?).await?;
    let large = mined(node, node.pay(customer.address, U256::from(5_000)).await?).await?;
    mined(node, node.pay_with(field.fake, customer.address, U256::from(10)).await?).await?;
    mined(&field.other, field.other.pay_token(customer.address, U256::from(30)).await?).await?;
    field.other.mine(3).await?;

    // The chain's clock, not ours, passes the expiry.
    node.call("evm_increaseTime", json!([120])).await?;
    node.mine(1).await?;
    for payment in [&late, &accepted] {
        api.until(payment.id(), "expired").await?;
        field.pay(payment, 100).await?;
    }
    node.mine(3).await?;

    let told = settle(&field, &cases, &customer).await?;
    up.check()?;
    unexpected(&field, &told, &wrong_token, &wrong_chain)?;
    beside(api, [&wrong_token, &wrong_chain, &faked]).await?;
    found(api, &again).await?;
    let shown = api.get(faked.id()).await?;
    ensure!(shown.0["transfers"][0]["listed"] == false && shown.0["transfers"][0]["amount"] == "100", "{}", shown.0);
    let paged = pages(api, &format!("/api/v1/payments/{}/transfers", again.id())).await?;
    let shown = api.get(again.id()).await?;
    ensure!(paged.len() == 2 && shown.0["transfers"] == json!(paged), "{paged:?}, and beside the payment {}", shown.0);
    let uncredited = pages(api, &format!("/api/v1/addresses/{}/transfers", customer.id)).await?;
    ensure!(uncredited.len() == 1 && uncredited[0]["listed"] == false && uncredited[0]["amount"] == "10", "{uncredited:?}");
    ensure!(confirmed_by(&told, shallow.id())? == at_once, "one confirmation is the block itself");
    ensure!(confirmed_by(&told, tiered.id())? == deeper + 3, "four confirmations, as the tier has it");
    deposits(&told, &customer, (small, large))
}

/// A list of transfers, one a page.
async fn pages(api: &Api, path: &str) -> Result<Vec<Value>> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = api.request(Method::GET, &format!("{path}?limit=1{cursor}"), None, &[]).await?;
        ensure!(status.is_success(), "{status} {page}");
        all.extend(page["data"].as_array().context("a page")?.iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else {
            return Ok(all);
        };
        cursor = format!("&cursor={next}");
    }
}

/// Sends coin from a payment's address to itself. A node with the mnemonic of our xpub has the key: an impersonated sender
/// would not do, since such a transaction's hash proves nothing.
async fn to_itself(lab: &Lab, address: Address) -> Result<()> {
    let mnemonic = format!("{}about", "abandon ".repeat(11));
    let signer = Node::start_with(&lab.stack, &["--mnemonic", &mnemonic]).await?;
    let transaction = json!({
        "from": address, "to": address, "value": "0x64", "gas": "0x5208", "gasPrice": "0x77359400", "nonce": "0x0",
    });
    let signed = signer.call("eth_signTransaction", json!([transaction])).await?;
    lab.node.call("anvil_setBalance", json!([address, "0xde0b6b3a7640000"])).await?;
    let hash: B256 = lab.node.call("eth_sendRawTransaction", json!([signed])).await?.as_str().context("a hash")?.parse()?;
    mined(&lab.node, hash).await.map(drop)
}

/// Waits until each payment and each deposit has its expected end and events; returns all events.
async fn settle(field: &Field, cases: &[Case], customer: &DepositAddress) -> Result<Vec<PaymentEvent>> {
    let settled = eventually("every payment to end as it must", || async {
        let told = events(&field.lab).await?;
        Ok(differences(field, cases, customer, &told).await?.is_empty().then_some(told))
    });
    match settled.await {
        Ok(told) => Ok(told),
        Err(error) => Err(error.context(differences(field, cases, customer, &events(&field.lab).await?).await?)),
    }
}

async fn differences(field: &Field, cases: &[Case], customer: &DepositAddress, told: &[PaymentEvent]) -> Result<String> {
    let mut differences = String::new();
    let id = customer.id.to_string();
    let confirmed = told.iter().filter(|e| e.deposit_address_id == id && e.r#type == "deposit.confirmed").count();
    if confirmed < 3 {
        differences.push_str(&format!("{confirmed} deposits are confirmed, expected 3\n"));
    }
    for Case { name, payment, end, events } in cases {
        let now = field.api.get(payment.id()).await?;
        let is = (now.status(), now.text("exception"), now.text("amount_received"));
        let kinds: Vec<&str> = told.iter().filter(|e| e.payment_id == payment.id()).map(|e| e.r#type.as_str()).collect();
        let expected: Vec<String> = std::iter::once(&"created").chain(*events).map(|kind| format!("payment.{kind}")).collect();
        if is != *end || kinds != expected {
            differences.push_str(&format!("{name}: {is:?} {kinds:?}, expected {end:?} {expected:?}\n"));
        }
    }
    Ok(differences)
}

/// The event tells support what arrived, where, and from whom.
fn unexpected(field: &Field, told: &[PaymentEvent], token: &Payment, chain: &Payment) -> Result<()> {
    let of = |payment: &Payment| {
        let event = told.iter().find(|e| e.payment_id == payment.id() && e.r#type == "payment.unexpected_transfer");
        event.and_then(|event| Some((event.clone(), event.transfer.clone()?))).context("no unexpected transfer")
    };
    let payer: Address = PAYER.parse()?;
    let (event, coin) = of(token)?;
    ensure!((coin.chain.as_str(), coin.token.as_str(), coin.decimals, coin.chain_id) == ("anvil", "", 18, 31337), "{coin:?}");
    ensure!(coin.amount.as_ref() == [100] && coin.from == payer.as_slice() && !coin.credited, "{coin:?}");
    ensure!(coin.transaction_hash.len() == 32 && coin.block_hash.len() == 32 && coin.token_address.is_empty(), "{coin:?}");
    ensure!((event.token.as_str(), event.chain.as_str()) == (DUSD, "anvil"), "what was asked for: {event:?}");
    let (event, elsewhere) = of(chain)?;
    let named = (elsewhere.chain.as_str(), elsewhere.token.as_str(), elsewhere.decimals, elsewhere.chain_id);
    ensure!(named == ("other", DUSD, 6, 31338), "{elsewhere:?}");
    ensure!(elsewhere.token_address == field.lab.node.token.as_slice(), "{elsewhere:?}");
    ensure!(event.block.is_some_and(|block| block.chain_id == 31338), "the block is of the chain where it arrived");
    Ok(())
}

/// Transfers that are not credited are counted beside the payment, but for those of unlisted tokens, and are confirmed once they are
/// deep enough.
async fn beside(api: &Api, payments: [&Payment; 3]) -> Result<()> {
    for (payment, unexpected) in payments.into_iter().zip([1, 1, 0]) {
        let shown = api.get(payment.id()).await?.0;
        let transfer = &shown["transfers"][0];
        ensure!(shown["unexpected_transfers"] == unexpected && shown["exception"].is_null(), "{shown}");
        ensure!(transfer["credited"] == false && transfer["confirmed"] == true, "{shown}");
        ensure!(
            json!(pages(api, &format!("/api/v1/payments/{}/transfers", payment.id())).await?) == shown["transfers"],
            "{shown}"
        );
    }
    Ok(())
}

/// A payment is found by its exception and by the hash of each of its transactions.
async fn found(api: &Api, payment: &Payment) -> Result<()> {
    let shown = api.get(payment.id()).await?.0;
    let hashes =
        shown["transfers"].as_array().context("transfers")?.iter().filter_map(|transfer| transfer["transaction_hash"].as_str());
    let filters = hashes.map(|hash| format!("transaction_hash={hash}")).chain(["exception=overpaid&chain=anvil".to_owned()]);
    for filter in filters {
        let (_, page) = api.request(Method::GET, &format!("/api/v1/payments?{filter}"), None, &[]).await?;
        let ids: Vec<&str> = page["data"].as_array().context("a page")?.iter().filter_map(|one| one["id"].as_str()).collect();
        ensure!(ids.contains(&payment.id()) && ids.len() <= 2, "{filter}: {page}");
    }
    let (_, none) = api.request(Method::GET, &format!("/api/v1/payments?transaction_hash={}", B256::ZERO), None, &[]).await?;
    ensure!(none["data"] == json!([]), "{none}");
    let (status, _) = api.request(Method::GET, "/api/v1/payments?exception=odd", None, &[]).await?;
    ensure!(status == 422, "{status}");
    Ok(())
}

/// The number of the block that confirmed a payment.
fn confirmed_by(told: &[PaymentEvent], id: &str) -> Result<u64> {
    let event = told.iter().find(|e| e.payment_id == id && e.r#type.ends_with(".confirmed"));
    Ok(event.and_then(|event| event.block.as_ref()).with_context(|| format!("{id} is not confirmed"))?.number)
}

fn deposits(told: &[PaymentEvent], customer: &DepositAddress, (small, large): (u64, u64)) -> Result<()> {
    let id = customer.id.to_string();
    let of: Vec<&PaymentEvent> = told.iter().filter(|e| e.deposit_address_id == id).collect();
    let mut found = Vec::new();
    for amount in [10, 5_000, 30_u64] {
        let wire = topics::Amount::from(amount).to_wire();
        let deposit: Vec<&&PaymentEvent> = of.iter().filter(|e| e.amount == wire).collect();
        let kinds: Vec<&str> = deposit.iter().map(|e| e.r#type.as_str()).collect();
        ensure!(kinds == ["deposit.detected", "deposit.confirmed"], "{amount}: {kinds:?}");
        let first = deposit.first().context("an event")?;
        ensure!((first.sequence, first.expires_at, first.external_id.as_str()) == (1, 0, "customer 7"), "{first:?}");
        ensure!(first.amount_received == wire && first.address == customer.address.as_slice(), "{first:?}");
        found.push(*first);
    }
    ensure!(of.len() == 6, "three deposits, and none of a fake: {of:?}");
    ensure!(confirmed_by(told, &found[0].payment_id)? == small + 1, "two confirmations");
    ensure!(confirmed_by(told, &found[1].payment_id)? == large + 3, "four, as the tier has it");
    ensure!((found[2].chain.as_str(), found[2].token.as_str()) == ("other", DUSD), "{:?}", found[2]);
    Ok(())
}

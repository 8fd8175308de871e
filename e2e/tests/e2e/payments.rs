//! The life of payments, end to end.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, PAYER, Payment, Plan, Process, events, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use topics::U256;
use uuid::Uuid;

struct Running {
    lab: Lab,
    api: Api,
    process: Process,
}

async fn running() -> Result<Running> {
    let lab = Lab::start(Plan::default()).await?;
    let (process, api) = lab.serve("up", "shop").await?;
    Ok(Running { lab, api, process })
}

#[tokio::test]
async fn coin_and_token_are_detected_and_confirmed_and_told_once() -> Result<()> {
    let Running { lab, api, mut process } = running().await?;
    let coin = api.coin(1_000).await?;
    let token = api.create(json!({ "chain_id": 31337, "token": "DUSD", "amount": 2_500_000 })).await?;
    lab.node.pay(coin.address()?, coin.amount()?).await?;
    lab.node.pay_token(token.address()?, token.amount()?).await?;
    api.until(token.id(), "detected").await?;
    lab.node.mine(2).await?;
    for payment in [&coin, &token] {
        let confirmed = api.until(payment.id(), "confirmed").await?;
        ensure!(confirmed.text("amount_received") == payment.text("amount"), "{}", confirmed.0);
        ensure!(confirmed.0["transfers"].as_array().is_some_and(|t| t.len() == 1), "{}", confirmed.0);
    }
    e2e::eventually("six events", || async { Ok((events(&lab).await?.len() >= 6).then_some(())) }).await?;
    // What it would tell twice it has told when it has ended.
    ensure!(process.terminate()?.success(), "{}", process.tail());
    let seen = events(&lab).await?;
    ensure!(seen.len() == 6, "{seen:?}");
    for payment in [&coin, &token] {
        let kinds: Vec<&str> = seen.iter().filter(|e| e.payment_id == payment.id()).map(|e| e.r#type.as_str()).collect();
        ensure!(kinds == ["payment.created", "payment.detected", "payment.confirmed"], "{kinds:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_part_is_not_the_whole_and_a_reverted_transaction_pays_nothing() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let payment = api.create(json!({ "chain": "anvil", "token": "DUSD", "amount": 100 })).await?;
    let too_much = U256::MAX;
    // More than the payer has: the transaction is mined, and reverts.
    let hash = lab.node.pay_token(payment.address()?, too_much).await?;
    let receipt = e2e::eventually("the receipt", || lab.node.receipt(hash)).await?;
    ensure!(receipt["status"] == "0x0", "it should have reverted: {receipt}");
    lab.node.pay_token(payment.address()?, U256::from(40)).await?;
    let part = e2e::eventually("the part", || async {
        Ok(Some(api.get(payment.id()).await?).filter(|p| p.text("amount_received") == "40"))
    })
    .await?;
    ensure!(part.status() == "pending" && part.text("exception") == "underpaid", "{}", part.0);
    lab.node.pay_token(payment.address()?, U256::from(60)).await?;
    lab.node.mine(3).await?;
    let whole = api.until(payment.id(), "confirmed").await?;
    ensure!(whole.text("amount_received") == "100" && whole.0["exception"].is_null(), "{}", whole.0);
    Ok(())
}

#[tokio::test]
async fn another_asset_is_reported_and_an_unpaid_payment_expires_by_chain_time() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let mistaken = api.create(json!({ "chain": "anvil", "token": "DUSD", "amount": 100 })).await?;
    let forgotten = api.create(json!({ "chain": "anvil", "amount": 100, "expires_in": 60 })).await?;
    lab.node.pay(mistaken.address()?, U256::from(100)).await?;
    e2e::eventually("the unexpected transfer", || async {
        let seen = events(&lab).await?;
        Ok(seen.iter().any(|e| e.payment_id == mistaken.id() && e.r#type == "payment.unexpected_transfer").then_some(()))
    })
    .await?;
    let mistaken = api.get(mistaken.id()).await?;
    ensure!(mistaken.status() == "pending" && mistaken.text("amount_received") == "0", "{}", mistaken.0);
    // The chain's clock, not ours, passes the expiry.
    lab.node.call("evm_increaseTime", json!([120])).await?;
    lab.node.mine(1).await?;
    api.until(forgotten.id(), "expired").await?;
    lab.node.pay(forgotten.address()?, U256::from(100)).await?;
    e2e::eventually("the late transfer", || async {
        Ok(Some(api.get(forgotten.id()).await?).filter(|p| p.text("exception") == "late" && p.status() == "expired"))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn bad_input_is_told_which_field_and_what_was_expected() -> Result<()> {
    let Running { lab: _lab, api, process: _process } = running().await?;
    let cases: &[(Value, &str)] = &[
        (json!({ "chain": "nowhere", "amount": 1 }), "chain"),
        (json!({ "chain_id": 5, "amount": 1 }), "chain_id"),
        (json!({ "chain": "anvil" }), "amount"),
        (json!({ "chain": "anvil", "amount": 0 }), "amount"),
        (json!({ "chain": "anvil", "amount": "-1" }), "amount"),
        (json!({ "chain": "anvil", "amount": "1.5" }), "amount"),
        (json!({ "chain": "anvil", "amount": 1.5 }), "amount"),
        (json!({ "chain": "anvil", "amount": 1, "token": "NONE" }), "token"),
        (json!({ "chain": "anvil", "amount": 1, "token_contract_address": "0x12" }), "token_contract_address"),
        (json!({ "chain": "anvil", "amount": 1, "expires_in": -1 }), "expires_in"),
        (json!({ "chain": "anvil", "amount": 1, "colour": "red" }), "colour"),
    ];
    for (body, field) in cases {
        let (status, answer) = api.request(Method::POST, "/api/v1/payments", Some(body.clone()), &[]).await?;
        ensure!(status == StatusCode::UNPROCESSABLE_ENTITY, "{body}: {status} {answer}");
        let named = answer["errors"].as_array().is_some_and(|errors| errors.iter().any(|error| error["field"] == *field));
        ensure!(named, "{body}: expected the field {field} to be named, got {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_sees_its_own_payments_and_nothing_else() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let other = lab.merchant("other shop")?;
    let payment = api.coin(5).await?;
    let path = format!("/api/v1/payments/{}", payment.id());
    for (method, path) in [(Method::GET, path.clone()), (Method::POST, format!("{path}/cancel"))] {
        let (status, _) = other.request(method, &path, None, &[]).await?;
        ensure!(status == StatusCode::NOT_FOUND, "another merchant's {path}: {status}");
    }
    let (status, list) = other.request(Method::GET, "/api/v1/payments", None, &[]).await?;
    ensure!(status.is_success() && list["data"] == json!([]), "{list}");
    let (status, _) = api.with_key("ctrip_wrong").request(Method::GET, &path, None, &[]).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "a wrong key: {status}");
    let (status, cancelled) = api.request(Method::POST, &format!("{path}/cancel/"), None, &[]).await?;
    ensure!(status.is_success() && cancelled["status"] == "cancelled", "{status} {cancelled}");
    let (status, again) = api.request(Method::POST, &format!("{path}/cancel"), None, &[]).await?;
    ensure!(status == StatusCode::OK && again == cancelled, "a second time: {status} {again}");
    let (_, events) = api.request(Method::GET, &format!("{path}/events"), None, &[]).await?;
    ensure!(events["data"].as_array().is_some_and(|all| all.len() == 2), "it is cancelled once: {events}");
    ensure!(events["data"][1]["amount_decimal"] == cancelled["amount_decimal"], "{events}");
    ensure!(events["data"][1]["payment_uri"] == cancelled["payment_uri"], "{events}");
    Ok(())
}

#[tokio::test]
async fn an_idempotency_key_gives_the_first_answer_again() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let headers = [("Idempotency-Key", "order-1")];
    let body = json!({ "chain": "anvil", "amount": 7 });
    let again = || api.request(Method::POST, "/api/v1/payments", Some(body.clone()), &headers);
    let answers = futures::future::try_join_all((0..8).map(|_| again())).await?;
    // Requests during the first one were told to retry.
    let (made, in_flight): (Vec<_>, Vec<_>) = answers.iter().partition(|(status, _)| *status == StatusCode::CREATED);
    ensure!(in_flight.iter().all(|(status, _)| *status == StatusCode::CONFLICT), "{answers:?}");
    let (_, first) = made.first().context("an answer")?;
    ensure!(made.iter().all(|(_, answer)| answer == first), "{answers:?}");
    // Later changes of the payment do not change the first answer.
    let id = first["id"].as_str().context("id")?;
    let (status, _) = api.request(Method::POST, &format!("/api/v1/payments/{id}/cancel"), None, &[]).await?;
    ensure!(status.is_success(), "{status}");
    // Nor are they read: a stranger's thousands of transfers would keep other creates waiting.
    let mut db = lab.database().await?;
    let unread = db.transaction().await?;
    unread.batch_execute("LOCK TABLE transfers IN ACCESS EXCLUSIVE MODE").await?;
    let (status, replayed) = again().await?;
    unread.rollback().await?;
    ensure!(status == StatusCode::CREATED && replayed == *first, "{status} {replayed}, first {first}");
    let other = json!({ "chain": "anvil", "amount": 8 });
    let (status, answer) = api.request(Method::POST, "/api/v1/payments", Some(other), &headers).await?;
    ensure!(status == StatusCode::CONFLICT, "{status} {answer}");
    // A retry shows no address that Kafka does not have: nobody would see what is paid to it.
    let unacknowledged = "INSERT INTO unacknowledged_intents (payment_id, intent) VALUES ($1, '')";
    db.execute(unacknowledged, &[&id.parse::<Uuid>()?]).await?;
    let (status, answer) = again().await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status} {answer}");
    Ok(())
}

/// Nobody would learn its address, and its index would be a gap in the account.
#[tokio::test]
async fn no_payment_is_made_for_a_client_that_left_while_a_connection_was_waited_for() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("API_DATABASE_CONNECTIONS".to_owned(), "6".to_owned());
    let (_process, api) = lab.serve("api", "shop").await?;
    let mut db = lab.database().await?;
    let lock = db.transaction().await?;
    lock.batch_execute("LOCK TABLE payments").await?;
    // Of two merchants: one holds half of the connections at most.
    let other = lab.merchant("other shop")?;
    let read = |place: usize| {
        let api = if place.is_multiple_of(2) { api.clone() } else { other.clone() };
        tokio::spawn(async move { api.request(Method::GET, "/api/v1/payments", None, &[]).await })
    };
    let reads: Vec<_> = (0..6).map(read).collect();
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE relation = 'payments'::regclass AND mode = 'AccessShareLock' AND NOT granted";
    eventually("all connections to wait", async || {
        Ok((lock.query_one(waiting, &[]).await?.get::<_, i64>(0) == 6).then_some(()))
    })
    .await?;
    ensure!(tokio::time::timeout(Duration::from_millis(500), api.coin(5)).await.is_err(), "no connection was left");
    lock.rollback().await?;
    for read in reads {
        ensure!(read.await??.0 == StatusCode::OK);
    }
    ensure!(api.coin(7).await?.0["address_index"] == 0, "an index was used up for nobody");
    let made: i64 = db.query_one("SELECT count(*) FROM payments", &[]).await?.get(0);
    ensure!(made == 1, "{made} payments");
    Ok(())
}

/// Another writer may commit between the statements of one read.
#[tokio::test]
async fn a_reply_shows_one_moment_of_its_payment_and_its_chain() -> Result<()> {
    let Running { lab, api, mut process } = running().await?;
    let payment = api.coin(5).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    api.until(payment.id(), "detected").await?;
    // Nobody else writes.
    ensure!(process.terminate()?.success(), "{}", process.tail());
    let (_server, api) = lab.serve("api", "shop").await?;
    let before = api.get(payment.id()).await?;
    let (mut db, looks) = (lab.database().await?, lab.database().await?);
    // A payment by its id is read a second time, alone, when the first takes long: both of that moment.
    for (path, shown, reads) in [("", "/status", 2), ("?limit=1", "/data/0/status", 1)] {
        let path =
            if path.is_empty() { format!("/api/v1/payments/{}", payment.id()) } else { format!("/api/v1/payments{path}") };
        let lock = db.transaction().await?;
        lock.batch_execute("LOCK TABLE chain_heads IN ACCESS EXCLUSIVE MODE").await?;
        let reading = tokio::spawn({
            let (api, path) = (api.clone(), path.clone());
            async move { api.request(Method::GET, &path, None, &[]).await }
        });
        eventually("the read to wait for the chain's head", async || {
            // The API looks at the heads for itself as well.
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                               AND query LIKE '%finalized_number FROM chain_heads%'";
            Ok((looks.query_one(waiting, &[]).await?.get::<_, i64>(0) == reads).then_some(()))
        })
        .await?;
        let change = "UPDATE chain_heads SET number = number + 10, witnessed_number = witnessed_number + 10;
                      UPDATE payments SET cancelled = true";
        lock.batch_execute(change).await?;
        lock.commit().await?;
        let (status, reply) = reading.await??;
        let confirmations = shown.replace("status", "confirmations");
        ensure!(status.is_success() && reply.pointer(shown) == Some(&before.0["status"]), "{status} {reply}");
        ensure!(
            reply.pointer(&confirmations) == Some(&before.0["confirmations"]),
            "of another moment: {reply}, and {}",
            before.0
        );
        let back = "UPDATE chain_heads SET number = number - 10, witnessed_number = witnessed_number - 10;
                    UPDATE payments SET cancelled = false";
        db.batch_execute(back).await?;
    }
    Ok(())
}

#[tokio::test]
async fn sigterm_drains_and_stops_and_what_was_created_is_there_afterwards() -> Result<()> {
    let Running { lab, api, mut process } = running().await?;
    let payment = api.coin(5).await?;
    let status = process.terminate()?;
    ensure!(status.success(), "{status}:\n{}", process.tail());
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    let mut again = lab.spawn("up")?;
    api.ready(&mut again).await?;
    api.until(payment.id(), "confirmed").await?;
    Ok(())
}

#[tokio::test]
async fn nobody_is_asked_to_pay_on_a_chain_before_ingest_has_begun_it() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chains = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    lab.write_chains(&chains.replace("  start_block: 0\n", ""))?;
    let (_server, api) = lab.serve("api", "early").await?;
    let body = json!({ "chain": "anvil", "amount": 5 });
    let (status, answer) = api.request(Method::POST, "/api/v1/payments", Some(body.clone()), &[]).await?;
    ensure!(
        status == StatusCode::SERVICE_UNAVAILABLE && answer["detail"].as_str().is_some_and(|d| d.contains("31337")),
        "{answer}"
    );
    let _roles = ["ingest", "detector", "confirmer"].map(|role| lab.spawn(role)).into_iter().collect::<Result<Vec<_>>>()?;
    let payment = api.create_surely(body).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(2).await?;
    api.until(payment.id(), "confirmed").await?;
    Ok(())
}

/// They contain it.
#[tokio::test]
async fn events_of_a_payment_wait_until_kafka_has_its_address() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut server, api) = lab.serve("api", "shop").await?;
    let (hidden, shown) = (api.coin(1).await?, api.coin(2).await?);
    // It would publish the intent again.
    ensure!(server.terminate()?.success(), "{}", server.tail());
    let (db, id) = (lab.database().await?, hidden.id().parse::<Uuid>()?);
    db.execute("INSERT INTO unacknowledged_intents (payment_id, intent) VALUES ($1, '') ON CONFLICT DO NOTHING", &[&id])
        .await?;
    let _confirmer = lab.spawn("confirmer")?;
    let told =
        async |payment: &Payment| Ok(events(&lab).await?.iter().any(|event| event.payment_id == payment.id()).then_some(()));
    e2e::eventually("the other payment's event", async || told(&shown).await).await?;
    ensure!(told(&hidden).await?.is_none(), "an address that Kafka does not have was told");
    db.execute("DELETE FROM unacknowledged_intents WHERE payment_id = $1", &[&id]).await?;
    e2e::eventually("its event", async || told(&hidden).await).await
}

/// Such as a wallet that is a contract, or an exchange that pays many at once.
#[tokio::test]
async fn coin_that_a_contract_sends_is_seen_where_blocks_are_traced() -> Result<()> {
    // Sends what it gets to the address in its call data.
    const FORWARDER: &str = "0x695f5f5f5f345f355af1005f52600a6016f3";
    let lab = Lab::start(Plan::default()).await?;
    let chains = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    lab.write_chains(&chains.replace("  start_block: 0\n", "  start_block: 0\n  traces: true\n"))?;
    let (_process, api) = lab.serve("up", "shop").await?;
    let hash = lab.node.send(json!({ "from": PAYER, "data": FORWARDER, "gas": "0x30000" })).await?;
    let receipt = e2e::eventually("the contract", || lab.node.receipt(hash)).await?;
    let payment = api.coin(1_000).await?;
    let to = alloy::hex::encode_prefixed(payment.address()?.into_word());
    let sends = json!({ "from": PAYER, "to": receipt["contractAddress"], "value": "0x3e8", "data": to, "gas": "0x30000" });
    lab.node.send(sends).await?;
    lab.node.mine(3).await?;
    let confirmed = api.until(payment.id(), "confirmed").await?;
    let transfers = confirmed.0["transfers"].as_array().context("transfers")?;
    ensure!(transfers.len() == 1 && transfers[0]["amount"] == "1000" && transfers[0]["source"] == "trace", "{}", confirmed.0);
    Ok(())
}

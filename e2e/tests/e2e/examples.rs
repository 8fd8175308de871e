//! The consumer examples, in Python, Java and Rust, read a lab's topics and agree with Postgres. All that they use of ours is
//! the schemas or the `topics` crate.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, Row, built, events, ledger, root};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;

/// A lab with a payment of each kind: paid in the coin, paid in parts, paid in the token, cancelled, open.
async fn busy() -> Result<Lab> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut ctrip, api) = lab.serve("up", "shop").await?;
    let coin = api.coin(12_345_678_901_234_567).await?;
    let parts = api.coin(3_000).await?;
    let token = api.create(json!({ "chain": "anvil", "token": e2e::TOKEN_SYMBOL, "amount": "1500000" })).await?;
    let open = api.coin(5).await?;
    let cancelled = api.coin(6).await?;
    api.request(reqwest::Method::POST, &format!("/api/v1/payments/{}/cancel", cancelled.id()), None, &[]).await?;
    lab.node.pay(coin.address()?, coin.amount()?).await?;
    lab.node.pay(parts.address()?, topics::U256::from(1_000)).await?;
    lab.node.pay(parts.address()?, topics::U256::from(2_500)).await?;
    lab.node.pay_token(token.address()?, token.amount()?).await?;
    lab.node.mine(3).await?;
    for payment in [&coin, &parts, &token] {
        api.until(payment.id(), "confirmed").await?;
    }
    api.until(cancelled.id(), "cancelled").await?;
    api.until(open.id(), "pending").await?;
    published(&lab).await?;
    // All its records are committed now, which is what an example reads.
    ensure!(ctrip.terminate()?.success(), "ctrip up:\n{}", ctrip.tail());
    Ok(lab)
}

/// Waits until the outbox is empty.
async fn published(lab: &Lab) -> Result<()> {
    let database = lab.database().await?;
    e2e::eventually("the outbox to be empty", || async {
        let left: i64 = database.query_one("SELECT count(*) FROM outbox", &[]).await?.get(0);
        Ok((left == 0).then_some(()))
    })
    .await
}

/// An example's output: events by payment, the table, and everything else.
struct Seen {
    events: BTreeMap<String, Vec<Value>>,
    table: BTreeMap<String, Value>,
    rest: Vec<Value>,
}

fn run(command: &mut Command, lab: &Lab) -> Result<Seen> {
    let output = command.envs(&lab.env).output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let mut seen = Seen { events: BTreeMap::new(), table: BTreeMap::new(), rest: Vec::new() };
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| format!("{command:?}: {line}"))?;
        let payment = line["payment_id"].as_str().unwrap_or_default().to_owned();
        match line["topic"].as_str() {
            Some("payment.events") => seen.events.entry(payment).or_default().push(line),
            Some("payment.state") => {
                ensure!(seen.table.insert(payment, line).is_none(), "a payment twice in the table: {text}")
            }
            _ => seen.rest.push(line),
        }
    }
    Ok(seen)
}

fn says(line: &Value, row: &Row) -> bool {
    line["status"] == row.status.as_str()
        && line["amount"] == row.amount.as_str()
        && line["amount_received"] == row.received.as_str()
        && line["sequence"] == row.sequence
}

/// The table equals Postgres, and the events of each payment are complete, in order, and end in Postgres's state.
async fn agrees(seen: &Seen, lab: &Lab) -> Result<()> {
    let ledger = ledger(lab).await?;
    ensure!(ledger.len() == 5, "{} payments", ledger.len());
    ensure!(ledger.keys().eq(seen.table.keys()) && ledger.keys().eq(seen.events.keys()), "other payments: {:?}", seen.table);
    for (payment, row) in &ledger {
        ensure!(says(&seen.table[payment], row), "the table has {}, Postgres {row:?}", seen.table[payment]);
        let events = &seen.events[payment];
        let numbers: Vec<_> = events.iter().filter_map(|event| event["sequence"].as_i64()).collect();
        ensure!(numbers == (1..=row.sequence).collect::<Vec<_>>(), "{payment}: events {numbers:?}, Postgres {row:?}");
        ensure!(events.last().is_some_and(|last| says(last, row)), "{payment}: {events:?}, Postgres {row:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_in_any_language_sees_what_postgres_has() -> Result<()> {
    let lab = busy().await?;

    let python = run(Command::new(root().join("examples/python/run")).arg(root().join("examples/python/consume.py")), &lab)?;
    agrees(&python, &lab).await.context("Python")?;
    let head = usize::try_from(lab.node.head().await?)?;
    ensure!(python.rest.len() == head + 1, "{} blocks, the head is {head}", python.rest.len());

    let java = run(&mut Command::new(root().join("examples/java/run")), &lab)?;
    agrees(&java, &lab).await.context("Java")?;

    let rust = run(&mut Command::new(built("consume")?), &lab)?;
    agrees(&rust, &lab).await.context("Rust")?;

    // kcat cannot decode; it sees every event under its payment's key.
    let kcat = run(&mut Command::new(root().join("examples/kcat/run")), &lab)?;
    let events: BTreeMap<_, _> = kcat.events.iter().map(|(payment, events)| (payment.clone(), events.len())).collect();
    let expected: BTreeMap<_, _> = rust.events.iter().map(|(payment, events)| (payment.clone(), events.len())).collect();
    ensure!(events == expected, "kcat: {events:?}, expected {expected:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_merchant_gets_its_own_events_and_no_others() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut ctrip = lab.spawn("up")?;
    let (ours, theirs) = (lab.merchant("ours")?, lab.merchant("theirs")?);
    ours.ready(&mut ctrip).await?;
    let mut payments = Vec::new();
    for amount in 1..=20 {
        payments.push(ours.coin(amount).await?.id().to_owned());
        theirs.coin(amount).await?;
    }
    published(&lab).await?;
    let all = e2e::eventually("all events", || async {
        let all = events(&lab).await?;
        Ok((all.len() == 40).then_some(all))
    })
    .await?;
    let merchant = all.iter().find(|event| event.payment_id == payments[0]).context("an event of ours")?.merchant_id.clone();

    let forward = || -> Result<()> {
        let mut command = Command::new(built("forward")?);
        let output = command.args(["--create", "--to-end", &merchant]).envs(&lab.env).output()?;
        ensure!(output.status.success(), "forward: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    forward()?;
    // A second run forwards nothing twice.
    forward()?;
    let copies = run(Command::new(built("consume")?).arg(format!("merchant.{merchant}.events")), &lab)?;
    payments.sort();
    ensure!(copies.events.keys().eq(&payments), "forwarded {:?}, made {payments:?}", copies.events);
    for events in copies.events.values() {
        ensure!(matches!(events.as_slice(), [one] if one["merchant_id"] == merchant.as_str()), "{events:?}");
    }
    Ok(())
}

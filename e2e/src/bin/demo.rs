//! `make demo`: payments are created, paid, taken back by a reorg, paid again, confirmed and swept, on the real parts.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, Process, events};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};
use topics::{Address, Amount, U256};

const CONFIRMATIONS: u32 = 3;
/// Nobody has its key.
const TREASURY: Address = Address::repeat_byte(0x7e);
const EVENTS_OF_DINNER: [&str; 5] = ["created", "detected", "reverted", "detected", "confirmed"];

#[tokio::main]
async fn main() {
    if let Err(error) = run().await {
        eprintln!("\ndemo: failed: {error:#}");
        std::process::exit(1);
    }
}

async fn run() -> Result<()> {
    say("a database, topics, a chain of its own (anvil) and a small ERC-20 on it");
    let lab = Lab::start(Plan { confirmations: CONFIRMATIONS, treasury: Some(TREASURY), ..Plan::default() }).await?;
    say("ctrip up: api, ingest, detector, confirmer, webhooks and sweeper in one process");
    let mut ctrip = lab.spawn("up")?;
    println!("  its log: {}", ctrip.log.display());
    let outcome = show(&lab, &mut ctrip).await;
    ctrip.check()?;
    outcome.with_context(|| format!("see {}", ctrip.log.display()))?;
    let status = ctrip.terminate()?;
    ensure!(status.success(), "ctrip up ended with {status} after SIGTERM");
    println!(
        "\nEverything was confirmed, and the coin is at the treasury. The log of ctrip: {}; of the parts: dev/.data/logs",
        ctrip.log.display()
    );
    println!("`make up` leaves it running for you to try.");
    Ok(())
}

fn say(what: &str) {
    println!("• {what}");
}

async fn show(lab: &Lab, ctrip: &mut Process) -> Result<()> {
    let api = lab.merchant("demo")?;
    api.ready(ctrip).await?;
    say("two payments in the chain's coin, two in the token");
    let ether = "1000000000000000000";
    let mut table = Table::new(&api);
    for body in [
        json!({ "chain": "anvil", "amount": ether, "external_id": "coffee" }),
        json!({ "chain": "anvil", "amount": "2500000000000000", "external_id": "tea" }),
        json!({ "chain": "anvil", "token": e2e::TOKEN_SYMBOL, "amount": "1500000", "external_id": "cake" }),
        json!({ "chain": "anvil", "token": e2e::TOKEN_SYMBOL, "amount": "42000000", "external_id": "dinner" }),
    ] {
        table.payments.push(api.create(body).await?);
    }
    let [coffee, tea, cake, dinner] = table.payments.as_slice() else { unreachable!("four were made") };
    let (coffee, tea, cake, dinner) = (coffee.clone(), tea.clone(), cake.clone(), dinner.clone());
    table.show().await?;

    say("three are paid");
    lab.node.pay(coffee.address()?, coffee.amount()?).await?;
    lab.node.pay_token(cake.address()?, cake.amount()?).await?;
    lab.node.pay(tea.address()?, tea.amount()?).await?;
    lab.node.mine(u64::from(CONFIRMATIONS)).await?;
    for payment in [&coffee, &cake, &tea] {
        table.until(ctrip, payment, "confirmed").await?;
    }

    say("dinner is paid, and a reorg removes the block");
    lab.node.pay_token(dinner.address()?, dinner.amount()?).await?;
    table.until(ctrip, &dinner, "detected").await?;
    lab.node.reorg(1).await?;
    table.until(ctrip, &dinner, "pending").await?;

    say("dinner is paid again");
    lab.node.pay_token(dinner.address()?, dinner.amount()?).await?;
    table.until(ctrip, &dinner, "detected").await?;
    lab.node.mine(u64::from(CONFIRMATIONS)).await?;
    table.until(ctrip, &dinner, "confirmed").await?;

    say(&format!(
        "coffee and tea, which are coin, are swept to the treasury, {TREASURY}: first one of them, and the other once that is final"
    ));
    table.until_settled(lab, ctrip, [&coffee, &tea]).await?;
    tail(lab, &["sweep", "status"])?;
    let balance = lab.node.balance(TREASURY).await?;
    println!("  the treasury has {} ETH", Amount::new(balance).to_decimal(18));
    let paid = coffee.amount()? + tea.amount()?;
    ensure!(balance < paid && balance > paid * U256::from(3) / U256::from(4), "{paid} was paid, and {balance} is there");

    print_events(lab, &[("coffee", &coffee), ("tea", &tea), ("cake", &cake), ("dinner", &dinner)]).await?;
    say("the same for people: what became of dinner, and one record as JSON");
    let of_dinner = ["tail", "payment.events", "--from", "beginning", "--filter", "external_id=dinner"];
    let lines = tail(lab, &[&of_dinner[..], &["--limit", "5"]].concat())?;
    let fits = lines.iter().zip(EVENTS_OF_DINNER).all(|(line, kind)| line.contains(&format!("payment.{kind}")));
    ensure!(lines.len() == EVENTS_OF_DINNER.len() && fits, "ctrip tail showed {lines:?}");
    tail(lab, &[&of_dinner[..], &["--filter", "type=payment.reverted", "--json=pretty", "--limit", "1"]].concat())?;
    Ok(())
}

/// Prints a command with its output, and returns the lines.
fn tail(lab: &Lab, arguments: &[&str]) -> Result<Vec<String>> {
    println!("  $ ctrip {}", arguments.join(" "));
    let output = lab.ctrip(arguments)?;
    for line in output.lines() {
        println!("  {line}");
    }
    Ok(output.lines().map(str::to_owned).collect())
}

async fn print_events(lab: &Lab, payments: &[(&str, &Payment)]) -> Result<()> {
    say("payment.events, as a read_committed consumer sees it");
    let expected = |name: &str| -> &[&str] {
        match name {
            "dinner" => &EVENTS_OF_DINNER,
            "cake" => &["created", "detected", "confirmed"],
            _ => &["created", "detected", "confirmed", "settled"],
        }
    };
    // The outbox is a few milliseconds behind the API.
    let wanted: usize = payments.iter().map(|(name, _)| expected(name).len()).sum();
    let seen = e2e::eventually("the last event in Kafka", || async {
        Ok(Some(events(lab).await?).filter(|seen| seen.len() >= wanted))
    })
    .await?;
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in &seen {
        let received = Amount::new(U256::from_be_slice(&event.amount_received));
        let block = event.block.as_ref().map(|block| format!("block {}", block.number)).unwrap_or_default();
        println!("  {:<8} {:<18} received {:<20} {:<9} {}", event.external_id, event.r#type, received, block, event.id);
        let kind = event.r#type.trim_start_matches("payment.").to_owned();
        kinds.entry(event.external_id.clone()).or_default().push(kind);
    }
    for (name, _) in payments {
        let kinds = kinds.get(*name).cloned().unwrap_or_default();
        ensure!(kinds == expected(name), "{name}: expected the events {:?}, saw {kinds:?}", expected(name));
    }
    Ok(())
}

/// The table of payments, printed whenever one has changed; on a terminal in place.
struct Table<'a> {
    api: &'a Api,
    payments: Vec<Payment>,
    shown: String,
    /// Something else was printed below it, so that it cannot be overwritten.
    left: bool,
}

impl<'a> Table<'a> {
    fn new(api: &'a Api) -> Self {
        Self { api, payments: Vec::new(), shown: String::new(), left: true }
    }

    async fn show(&mut self) -> Result<()> {
        let mut text = format!(
            "  {:<8} {:<6} {:>20} {:>20}  {:<10} {}\n",
            "payment", "asset", "amount", "received", "status", "confirmations"
        );
        for payment in &mut self.payments {
            *payment = self.api.get(payment.id()).await?;
            let asset = if payment.text("token").is_empty() { "coin" } else { payment.text("token") };
            text += &format!(
                "  {:<8} {:<6} {:>20} {:>20}  {:<10} {} of {}\n",
                payment.text("external_id"),
                asset,
                payment.text("amount"),
                payment.text("amount_received"),
                payment.status(),
                payment.0["confirmations"],
                payment.0["confirmations_required"],
            );
        }
        if text != self.shown {
            let mut out = std::io::stdout().lock();
            if out.is_terminal() && !self.left {
                write!(out, "\x1b[{}A\x1b[J", self.shown.lines().count())?;
            }
            write!(out, "{text}")?;
            out.flush()?;
            self.shown = text;
            self.left = false;
        }
        Ok(())
    }

    /// Mines until these are settled. The table is shown when one is.
    async fn until_settled(&mut self, lab: &Lab, ctrip: &mut Process, payments: [&Payment; 2]) -> Result<()> {
        let started = Instant::now();
        let mut left = payments.to_vec();
        while !left.is_empty() {
            ensure!(started.elapsed() < Duration::from_secs(120), "coffee and tea were not swept within two minutes");
            ctrip.check()?;
            lab.node.mine(5).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let before = left.len();
            for payment in std::mem::take(&mut left) {
                if self.api.get(payment.id()).await?.status() != "settled" {
                    left.push(payment);
                }
            }
            if left.len() < before {
                self.left = true;
                self.show().await?;
            }
        }
        Ok(())
    }

    async fn until(&mut self, ctrip: &mut Process, payment: &Payment, status: &str) -> Result<()> {
        let started = Instant::now();
        self.left = true;
        loop {
            ctrip.check()?;
            self.show().await?;
            if self.payments.iter().any(|p| p.id() == payment.id() && p.status() == status) {
                return Ok(());
            }
            let name = payment.text("external_id");
            ensure!(started.elapsed() < Duration::from_secs(60), "{name} did not become {status} within a minute");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

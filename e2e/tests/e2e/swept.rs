//! Money from payments to the treasury, by all of cTrip: what was paid is at the treasury once, whatever dies.

use crate::sweeper::{FINAL, told};
use alloy::primitives::{Address, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, Process, eventually};
use reqwest::Method;
use rustix::fs::inotify;
use rustix::io::Errno;
use serde_json::json;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;
use topics::Amount;
use topics::wire::SweepEvent;
use uuid::Uuid;

const COIN: u64 = 100_000_000_000_000_000;
const KILLS: usize = 6;

struct Shop {
    lab: Lab,
    up: Process,
    api: Api,
    treasury: Address,
    /// What each address has got.
    received: BTreeMap<Address, U256>,
}

impl Shop {
    async fn pay(&mut self, address: Address, amount: u64) -> Result<()> {
        self.lab.node.pay(address, U256::from(amount)).await?;
        *self.received.entry(address).or_default() += U256::from(amount);
        Ok(())
    }

    /// Statuses of these deposits and payments, and how many have each.
    async fn statuses(&self, payments: &[Payment], places: &[String]) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for payment in payments {
            *counts.entry(self.api.get(payment.id()).await?.status().to_owned()).or_default() += 1;
        }
        for place in places {
            let (_, page) = self.api.request(Method::GET, &format!("/api/v1/addresses/{place}/deposits"), None, &[]).await?;
            for deposit in page["data"].as_array().into_iter().flatten() {
                *counts.entry(deposit["status"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// What each address has got is at the treasury, has paid for gas, or is there still, and that is little; by the chain.
    async fn check(&self) -> Result<()> {
        let told = told(&self.lab).await?.into_values();
        let finals: Vec<SweepEvent> = told.filter(|event| event.r#type == "sweep.final").collect();
        let units = |wire: &[u8]| -> Result<U256> { Ok(Amount::from_wire(wire)?.units()) };
        let (mut moved, mut fees) = (BTreeMap::<Address, U256>::new(), BTreeMap::<Address, U256>::new());
        for event in &finals {
            let sender = Address::from_slice(&event.sender);
            for one in &event.moved {
                *moved.entry(Address::from_slice(&one.address)).or_default() += units(&one.amount)?;
            }
            *fees.entry(sender).or_default() += units(event.fee.as_deref().context("a fee")?)?;
        }
        for (address, received) in &self.received {
            let stays = self.lab.node.balance(*address).await?;
            let [moved, fee] = [&moved, &fees].map(|sums| sums.get(address).copied().unwrap_or_default());
            ensure!(
                moved + fee + stays == *received,
                "{address}: {received} came, {moved} left, {fee} was gas, {stays} is there"
            );
            ensure!(stays * U256::from(4) <= *received, "{address}: {stays} of {received} is there still");
            let sent = self.lab.node.sent(*address).await?;
            let told = finals.iter().filter(|event| event.sender == address.as_slice()).count();
            ensure!(usize::try_from(sent)? == told, "{address} has sent {sent}, of which {told} are told");
        }
        let there = self.lab.node.balance(self.treasury).await?;
        let sum: U256 = moved.values().sum();
        ensure!(there == sum, "the treasury has {there}, and {sum} was moved");
        Ok(())
    }
}

/// Payments of one address each, and static addresses that are paid thrice, before and after they were swept.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_was_paid_in_coin_is_at_the_treasury_once_whenever_ctrip_is_killed() -> Result<()> {
    let treasury = Address::from_word(keccak256(Uuid::new_v4()));
    let lab = Lab::start(Plan { treasury: Some(treasury), ..Plan::default() }).await?;
    let (up, api) = lab.serve("up", "shop").await?;
    let mut shop = Shop { lab, up, api, treasury, received: BTreeMap::new() };
    let payments: Vec<Payment> = futures::future::try_join_all((1..=30).map(|part| shop.api.coin(part * COIN / 10))).await?;
    let (mut places, mut addresses) = (Vec::<String>::new(), Vec::<Address>::new());
    for place in 0..4 {
        let body = Some(json!({ "external_id": place.to_string() }));
        let (_, made) = shop.api.request(Method::POST, "/api/v1/addresses", body, &[]).await?;
        let text = |field: &str| made[field].as_str().map(str::to_owned).context("an address");
        places.push(text("id")?);
        addresses.push(text("address")?.parse()?);
    }
    for (round, paid) in (1..).zip(payments.chunks(10)) {
        for address in &addresses {
            shop.pay(*address, round * COIN).await?;
        }
        for payment in paid {
            shop.pay(payment.address()?, payment.text("amount").parse()?).await?;
        }
        // The first sweep goes alone, until it is final.
        shop.lab.node.mine(if round == 1 { FINAL } else { 5 }).await?;
        for _ in 0..KILLS / 2 {
            tokio::time::sleep(Duration::from_millis(rand::random_range(300..2_500))).await;
            shop.lab.node.mine(5).await?;
            if round > 1 {
                shop.up.kill()?;
                shop.up = shop.lab.spawn("up")?;
            }
        }
    }
    shop.api.ready(&mut shop.up).await?;
    let all = payments.len() + 3 * places.len();
    let settled = eventually("all to be settled", async || {
        shop.lab.node.mine(10).await?;
        let statuses = shop.statuses(&payments, &places).await?;
        Ok((statuses == BTreeMap::from([("settled".to_owned(), all)])).then_some(()))
    });
    if let Err(error) = settled.await {
        let (statuses, status) = (shop.statuses(&payments, &places).await?, shop.lab.ctrip(&["sweep", "status"])?);
        return Err(error.context(format!("{statuses:?}\n{status}\n{}", shop.lab.ctrip(&["sweep", "plan"])?)));
    }
    shop.check().await?;
    let metric = async |name| shop.up.metric(name, &[("chain", "anvil")]).await;
    ensure!(metric("sweep_gas_used").await? == 21_000.0 && metric("gas_price_wei").await? > 0.0);
    ensure!((metric("sweep_oldest_seconds").await?, metric("sweeps_set_aside").await?) == (0.0, 0.0));
    shop.up.check()
}

/// How often a file is opened, by whomever.
struct Opens(OwnedFd);

impl Opens {
    fn of(path: &str) -> Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, path, inotify::WatchFlags::OPEN)?;
        Ok(Self(watch))
    }

    /// Since it was last asked.
    fn count(&self) -> Result<usize> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut count = 0;
        loop {
            match events.next() {
                Ok(_) => count += 1,
                Err(Errno::AGAIN) => return Ok(count),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// All have the variable that names the file, as a deployment may have it that sets one environment for all.
#[tokio::test(flavor = "multi_thread")]
async fn no_role_but_the_sweeper_opens_the_file_of_mnemonics_and_no_log_has_a_word_of_it() -> Result<()> {
    let lab = Lab::start(Plan { treasury: Some(Address::repeat_byte(0x7e)), ..Plan::default() }).await?;
    let opens = Opens::of(&lab.env["CTRIP_MNEMONIC_FILE"])?;
    let (mut gateway, api) = lab.serve("api", "shop").await?;
    let mut others: Vec<Process> =
        ["ingest", "detector", "confirmer", "webhooks"].into_iter().map(|role| lab.spawn(role)).collect::<Result<_>>()?;
    let payment = api.coin(COIN).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;
    gateway.check()?;
    others.iter_mut().try_for_each(Process::check)?;
    lab.ctrip(&["sweep", "plan"])?;
    ensure!(opens.count()? == 0, "a role without business with keys has opened the file");

    let mut sweeper = lab.spawn("sweeper")?;
    eventually("the sweeper to open it", async || Ok((opens.count()? > 0).then_some(()))).await?;
    eventually("the payment to be settled", async || {
        lab.node.mine(10).await?;
        Ok((api.get(payment.id()).await?.status() == "settled").then_some(()))
    })
    .await?;
    sweeper.check()?;
    for process in others.iter().chain([&gateway, &sweeper]) {
        let log = process.log();
        ensure!(!log.contains("abandon"), "{}", process.log.display());
    }
    Ok(())
}

//! Sweeps of coin, planned from transfers in a real Postgres, and made on a real node.

use super::asked::REFUSES;
use super::books::{Books, COIN, CONFIRMATIONS, HEAD, Paid, TREASURY, settings};
use super::rig::{CHAIN, HIGH_BASE_FEE, PACE, Rig};
use alloy::primitives::{Address, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use sweeper::engine::fold::drop_outgoing;
use sweeper::keys::Signer as _;
use sweeper::plan::ledger::{Of, holdings, ripe};
use sweeper::plan::rules::{self, Hold, Holding, Terms, Verdict};
use sweeper::plan::{Settings, Waits, admin, look, moved, store};
use topics::ChainId;
use uuid::Uuid;

/// A plan over a million addresses takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The address has what has arrived, to the last wei: a sweep that asked for more would not be mined.
#[tokio::test]
async fn coin_leaves_a_static_address_as_often_as_it_comes_and_dust_goes_with_the_next_sweep() -> Result<()> {
    let mut rig = Rig::start().await?;
    let address = rig.key.address();
    let (mut treasury, mut arrived) = (U256::ZERO, 0);
    let books = Books::open(&rig).await?;
    let of = books.static_address(address, "own").await?;
    for round in 0..3_u64 {
        let block = HEAD + 20 * i64::try_from(round)?;
        let payment = books.payment(address, "own", Some(of)).await?;
        books.pay(Some(payment), Some(of), Paid::credited(block - CONFIRMATIONS + 1, 3 * COIN)).await?;
        // Dust makes no deposit, and is in the balance all the same.
        let dust = Paid { credited: None, below_minimum: true, ..Paid::credited(block - CONFIRMATIONS, 7) };
        books.pay(None, Some(of), dust).await?;
        arrived += 3 * COIN + 7;
        books.set_head(block).await?;
        let before = rig.balance(address).await?;
        rig.set_balance(address, if round == 0 { arrived } else { before.to::<u128>() + 3 * COIN + 7 }).await?;
        let now = 1_000_000 + 100 * round;
        let turn = books.queue_due(now).await?;
        ensure!(turn.queued == 1 && turn.waits.is_none() && turn.to_drop.is_empty(), "{turn:?}");
        for again in 0..3 {
            let turn = books.queue_due(now + 40 + again).await?;
            ensure!(turn.queued == 0, "{turn:?}");
        }
        let (_, outgoing) = books.last().await?;
        ensure!(moved(&rig.pool.get().await?, outgoing).await?.is_empty(), "nothing has left yet");
        if round == 1 {
            // It is raised, and what it asks for is there still.
            rig.turn(usize::MAX).await?;
            for _ in 0..8 {
                rig.turn_at(HIGH_BASE_FEE).await?;
            }
        }
        rig.settle().await?;
        ensure!(books.sweeps().await?.iter().all(|sweep| *sweep == ("final".to_owned(), false)), "{:?}", books.sweeps().await?);
        let db = rig.pool.get().await?;
        let moved_first = moved(&db, outgoing).await?;
        let [one] = moved_first[..] else { anyhow::bail!("{moved_first:?}") };
        treasury += one.amount;
        ensure!(one.address == address && one.token.is_none() && one.total == U256::from(arrived), "{one:?} of {arrived}");
        ensure!(rig.balance(TREASURY).await? == treasury, "{} at the treasury, not {treasury}", rig.balance(TREASURY).await?);
        let (dust, reserve) = (rig.balance(address).await?, settings().terms.reserve());
        ensure!(one.remains == dust, "{one:?} of which {dust} is there");
        ensure!(dust < reserve && before + U256::from(3 * COIN + 7) > dust, "{dust} stays of {reserve}");
        // To the last wei: what the ledger takes for its own the chain has.
        let looked = look(&db, CHAIN, &settings()).await?.context("a head")?;
        ensure!(looked.len() == 1 && looked[0].0.available() == dust && !looked[0].0.is_under_way, "{looked:?} of {dust}");
        ensure!(U256::from(arrived) - treasury <= reserve * U256::from(round + 2), "dust is never left behind twice");
        ensure!(moved(&db, outgoing).await? == moved_first, "whoever asks again hears the same");
    }
    ensure!(books.sweeps().await?.len() == 3);
    rig.check(0).await
}

/// Each kind of money, on an address of its own, and all of them by the index and by the whole tables.
#[tokio::test]
async fn what_may_leave_is_what_is_confirmed_and_ours_stray_money_too_and_no_token_that_anyone_can_make() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let deep = HEAD - CONFIRMATIONS + 1;
    let paid = Paid::credited(deep, 50 * COIN);
    let own = "own";
    let token = Some(Address::repeat_byte(5));
    let cases: [(&str, &str, &[Paid], u128); 14] = [
        ("confirmed", own, &[paid], 50),
        ("a part of it", own, &[paid, Paid { block: deep + 1, ..paid }], 50),
        ("not deep enough", own, &[Paid { block: deep + 1, ..paid }], 0),
        ("deep, and not confirmed by its payment", own, &[Paid { credited: Some(false), ..paid }], 0),
        ("unexpected, and deep", own, &[Paid { credited: None, ..paid }], 50),
        ("unexpected, and not deep", own, &[Paid { credited: None, block: deep + 1, ..paid }], 0),
        ("below the minimum", own, &[Paid { credited: None, below_minimum: true, ..paid }], 50),
        ("so much that it has to be final", own, &[Paid { amount: 100 * COIN, ..paid }], 0),
        ("so much, and final", own, &[Paid { amount: 100 * COIN, block: 900, ..paid }], 100),
        ("taken back", own, &[Paid { removed: true, ..paid }], 0),
        ("in a listed token", own, &[Paid { credited: None, token, ..paid }], 0),
        ("in a token that anyone made", own, &[Paid { credited: None, token, listed: false, ..paid }], 0),
        ("on another chain", own, &[Paid { credited: None, chain: ChainId(5), ..paid }], 0),
        ("at a merchant's own account", "theirs", &[paid], 0),
    ];
    let mut expected: BTreeMap<Address, (u8, u128, Option<Uuid>)> = BTreeMap::new();
    for (place, (_, account, transfers, coins)) in (1_u8..).zip(cases) {
        // Once at a payment's own address, once at a static one.
        for of_static in [false, true] {
            let address = Address::repeat_byte(if of_static { 0x80 + place } else { place });
            let of = if of_static { Some(books.static_address(address, account).await?) } else { None };
            for paid in transfers {
                let has_no_payment = of_static && (paid.below_minimum || !paid.listed);
                let known = expected.get(&address).and_then(|(_, _, payment)| *payment);
                let payment = match known.filter(|_| !of_static) {
                    None if has_no_payment => None,
                    None => Some(books.payment(address, account, of).await?),
                    known => known,
                };
                books.pay(payment, of, *paid).await?;
                expected.insert(address, (place, coins * COIN, payment));
            }
        }
    }
    let db = rig.pool.get().await?;
    let settings = settings();
    let ripe = ripe(&db, CHAIN, &settings).await?.context("a head")?;
    let addresses: Vec<Address> = expected.keys().copied().collect();
    let by_key =
        |found: Vec<Holding>| -> BTreeMap<Address, _> { found.into_iter().map(|holding| (holding.address, holding)).collect() };
    let whole = by_key(holdings(&db, CHAIN, &settings, &ripe, Of::AtLeast(U256::ZERO)).await?);
    let indexed = by_key(holdings(&db, CHAIN, &settings, &ripe, Of::These(&addresses)).await?);
    ensure!(whole == indexed, "{whole:#?}\n{indexed:#?}");
    for (address, (place, coins, _)) in &expected {
        let (name, ..) = cases[usize::from(*place) - 1];
        let found = whole.get(address).map_or(U256::ZERO, |holding| holding.arrived);
        ensure!(found == U256::from(*coins), "{name} at {address}: {found}");
    }
    // Only what is final, where that is asked for.
    let last = Settings { is_final_only: true, ..settings.clone() };
    let swept: Vec<_> = books.verdicts(&last).await?.into_values().filter(|v| matches!(v, Verdict::Sweep(_))).collect();
    ensure!(swept.len() == 2, "{swept:?}");

    // The first sweep to a treasury goes alone; the others follow when it is final.
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    ensure!(books.queue_due(1_000_040).await?.queued == 0);
    books.end_sweeps().await?;
    let queued = books.queue_due(1_000_100).await?.queued;
    let worth = expected.values().filter(|(_, coins, _)| *coins > 0).count();
    ensure!(queued == worth - 1, "{queued} of {worth}");
    let twice = "SELECT count(*) FROM (SELECT sender FROM outgoing GROUP BY sender HAVING count(*) > 1) AS twice";
    ensure!(db.query_one(twice, &[]).await?.get::<_, i64>(0) == 0, "an address pays twice");

    // What was not deep enough is looked at again when it is, and a backfill's when all are looked at.
    books.set_head(HEAD + 1).await?;
    let later = books.queue_due(1_000_200).await?.queued;
    // Not the one of which a part is under way.
    ensure!(later == 4, "{later}");
    let old = Address::repeat_byte(0xee);
    let payment = books.payment(old, own, None).await?;
    books.pay(Some(payment), None, Paid::credited(3, 60 * COIN)).await?;
    ensure!(books.queue_due(1_000_300).await?.queued == 0, "its block was looked at before");
    store::look_at_all(&db, Some(CHAIN)).await?;
    ensure!(books.queue_due(1_000_400).await?.queued == 1, "the money of a backfill stays for ever");
    Ok(())
}

#[tokio::test]
async fn what_is_held_stays_and_a_treasury_that_cannot_be_is_refused() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let (one, two) = (Address::repeat_byte(1), Address::repeat_byte(2));
    for address in [one, two] {
        books.paid(address).await?;
    }
    let db = rig.pool.get().await?;
    let any = Hold { chain: None, address: None, token: None, merchant: None };
    let held = async |hold: Hold| -> Result<usize> {
        let id = admin::hold(&mut rig.pool.get().await?, &hold, "a test").await?;
        ensure!(admin::hold(&mut rig.pool.get().await?, &hold, "another reason").await? == id, "one hold of a kind");
        let count = books.verdicts(&settings()).await?.values().filter(|verdict| **verdict == Verdict::Held).count();
        ensure!(admin::release(&db, id).await? && !admin::release(&db, id).await?);
        Ok(count)
    };
    ensure!(held(any).await? == 2);
    ensure!(held(Hold { chain: Some(CHAIN), token: Some(None), ..any }).await? == 2);
    ensure!(held(Hold { token: Some(Some(one)), ..any }).await? == 0);
    ensure!(held(Hold { address: Some(one), ..any }).await? == 1);
    ensure!(held(Hold { merchant: Some(books.merchant), address: Some(two), ..any }).await? == 1);
    ensure!(held(Hold { chain: Some(ChainId(5)), ..any }).await? == 0);

    let hold = admin::hold(&mut rig.pool.get().await?, &any, "all").await?;
    ensure!(books.queue_due(1_000_000).await?.queued == 0);
    admin::release(&db, hold).await?;
    let given_out = Settings { treasury: Some(two), ..settings() };
    let turn = books.turn(&given_out, 1_000_001).await?;
    ensure!(turn.queued == 0 && turn.waits == Some(Waits::TreasuryGivenOut(two)), "{turn:?}");
    let none = Settings { treasury: None, ..settings() };
    ensure!(books.turn(&none, 1_000_001).await?.queued == 0);
    ensure!(books.queue_due(1_000_002).await?.queued == 1, "what was held is forgotten");
    Ok(())
}

/// Two planners of two processes, over and over.
#[tokio::test]
async fn two_planners_at_once_queue_each_address_once() -> Result<()> {
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    for place in 0..40_u64 {
        books.paid(Address::from_word(keccak256(place.to_be_bytes()))).await?;
    }
    let db = rig.pool.get().await?;
    let mut queued = 0;
    for round in 0..30_u64 {
        let now = 1_000_000 + 40 * round;
        let (one, other) = futures::future::join(books.queue_due(now), books.queue_due(now)).await;
        // One that has read what the other one wrote meanwhile tries again.
        queued += one.map_or(0, |turn| turn.queued) + other.map_or(0, |turn| turn.queued);
        books.end_sweeps().await?;
    }
    let sweeps: i64 = db.query_one("SELECT count(DISTINCT address) FROM sweeps", &[]).await?.get(0);
    let all: i64 = db.query_one("SELECT count(*) FROM outgoing", &[]).await?.get(0);
    ensure!((queued, sweeps, all) == (40, 40, 40), "{queued} queued, {sweeps} addresses, {all} transactions");
    Ok(())
}

#[tokio::test]
async fn money_that_a_reorg_takes_back_after_it_was_planned_is_planned_anew_and_is_not_set_aside() -> Result<()> {
    let mut rig = Rig::start().await?;
    let address = rig.key.address();
    let books = Books::open(&rig).await?;
    let payment = books.payment(address, "own", None).await?;
    books.pay(Some(payment), None, Paid { credited: None, ..Paid::credited(5, COIN / 2) }).await?;
    let taken = books.pay(Some(payment), None, Paid::credited(900, COIN)).await?;
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    books.remove(taken).await?;
    // The chain has half a coin there, and the sweep wants one and a half.
    rig.set_balance(address, COIN / 2).await?;
    rig.turn(usize::MAX).await?;
    let turn = books.queue_due(1_000_001).await?;
    let (_, outgoing) = books.last().await?;
    ensure!(turn.to_drop == [outgoing], "{turn:?}");
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;
    rig.settle().await?;
    ensure!(books.sweeps().await? == [("dropped".to_owned(), false)], "{:?}", books.sweeps().await?);
    ensure!(moved(&rig.pool.get().await?, outgoing).await?.is_empty());
    ensure!(rig.balance(TREASURY).await?.is_zero());
    // It comes again in another block. What the cancel has cost is known.
    books.pay(Some(payment), None, Paid::credited(960, COIN)).await?;
    let rest = rig.balance(address).await?.to::<u128>();
    rig.set_balance(address, rest + COIN).await?;
    ensure!(books.queue_due(1_000_100).await?.queued == 1);
    rig.settle().await?;
    let (_, outgoing) = books.last().await?;
    let moved = moved(&rig.pool.get().await?, outgoing).await?;
    ensure!(moved.len() == 1 && rig.balance(TREASURY).await? == moved[0].amount, "{moved:?}");
    ensure!(moved[0].total == U256::from(COIN + COIN / 2), "{moved:?}");
    ensure!(moved[0].amount + settings().terms.reserve() == U256::from(rest + COIN), "{moved:?} of {rest}");
    rig.check(0).await
}

/// Planned while gas costs 1 gwei, and dearer before it is signed.
#[tokio::test]
async fn a_sweep_that_gas_is_too_dear_for_is_planned_anew_and_paid_from_its_own_address() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (address, gwei) = (rig.key.address(), 1_000_000_000);
    let at = |price: u128| {
        let terms = Terms { max_fee: rules::max_fee(Some(price), PACE.max_fee), ..settings().terms };
        Settings { price: Some(price), terms, ..settings() }
    };
    let books = Books::open(&rig).await?;
    books.paid(address).await?;
    rig.set_balance(address, COIN).await?;
    ensure!(books.turn(&at(gwei), 1_000_000).await?.queued == 1);
    let (_, outgoing) = books.last().await?;
    rig.turn_at(HIGH_BASE_FEE).await?;
    ensure!(rig.states().await? == [("queued".to_owned(), 1)], "{:?}", rig.states().await?);
    ensure!(books.turn(&at(gwei), 1_000_001).await?.to_drop.is_empty(), "it would be no better");
    let turn = books.turn(&at(20 * gwei), 1_000_002).await?;
    ensure!(turn.to_drop == [outgoing] && turn.queued == 0, "{turn:?}");
    drop_outgoing(&rig.pool, outgoing, &PACE).await?;
    ensure!(books.sweeps().await? == [("dropped".to_owned(), false)], "{:?}", books.sweeps().await?);
    let turn = books.turn(&at(20 * gwei), 1_000_100).await?;
    ensure!(turn.queued == 1 && turn.to_drop.is_empty(), "{turn:?}");
    let (_, outgoing) = books.last().await?;
    // Dearer than it leaves for that: what was signed stays as it is, and is mined when gas is cheap again.
    for _ in 0..12 {
        rig.turn_at("0x174876e800").await?;
    }
    let most = "SELECT max(cap)::text FROM outgoing_attempts WHERE NOT cancels";
    let most = rig.pool.get().await?.query_one(most, &[]).await?.get::<_, Option<String>>(0);
    ensure!(most.is_none_or(|cap| cap.parse::<u128>().is_ok_and(|cap| cap <= 80 * gwei)), "it costs more than is there");
    rig.settle().await?;
    let moved = moved(&rig.pool.get().await?, outgoing).await?;
    ensure!(moved.len() == 1 && rig.balance(TREASURY).await? == moved[0].amount, "{moved:?}");
    let left = U256::from(COIN) - moved[0].amount;
    ensure!(left == at(20 * gwei).terms.reserve(), "{left} was left for its gas");
    rig.check(0).await
}

#[tokio::test]
async fn an_address_whose_sweep_failed_waits_for_a_person() -> Result<()> {
    let mut rig = Rig::start().await?;
    let address = rig.key.address();
    rig.set_code(TREASURY, REFUSES).await?;
    let books = Books::open(&rig).await?;
    books.paid(address).await?;
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    // It is mined before it is dropped.
    rig.pool.get().await?.execute("UPDATE sweeps SET replan = true", &[]).await?;
    rig.set_balance(address, COIN).await?;
    rig.settle().await?;
    ensure!(books.sweeps().await? == [("failed".to_owned(), true)], "{:?}", books.sweeps().await?);
    let db = rig.pool.get().await?;
    store::look_at_all(&db, None).await?;
    ensure!(books.queue_due(1_000_100).await?.queued == 0, "it is tried again and again, and burns gas each time");
    ensure!(books.verdicts(&settings()).await?.values().all(|verdict| *verdict == Verdict::SetAside));
    let (sweep, outgoing) = books.last().await?;
    let (listed, all) = admin::unfinished(&db, Some(CHAIN), 10).await?;
    ensure!(listed.len() == 1 && all == 1 && listed[0].id == sweep && listed[0].is_set_aside, "{listed:?}");
    ensure!(moved(&db, outgoing).await?.is_empty());
    rig.set_code(TREASURY, "0x").await?;
    ensure!(admin::retry(&db, Some(sweep), None).await? == 1);
    ensure!(books.queue_due(1_000_200).await?.queued == 1, "what failed frees what it held");
    rig.settle().await?;
    let (_, outgoing) = books.last().await?;
    let moved = moved(&db, outgoing).await?;
    ensure!(moved.len() == 1 && moved[0].total == U256::from(COIN), "{moved:?}");
    ensure!(rig.balance(TREASURY).await? == moved[0].amount);
    Ok(())
}

#[tokio::test]
async fn an_operator_sees_what_would_be_swept_and_why_not_and_decides_about_it() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (address, poor) = (rig.key.address(), Address::repeat_byte(2));
    let refused = String::from_utf8(rig.lab.output(&["sweep", "plan"])?.stderr)?;
    ensure!(refused.contains("no chain has a treasury"), "{refused}");
    let chains = std::fs::read_to_string(&rig.lab.env["CHAINS_FILE"])?;
    rig.lab.write_chains(&chains.replace("  tokens:", &format!("  treasury: \"{TREASURY}\"\n  max_fee: 500\n  tokens:")))?;
    let books = Books::open(&rig).await?;
    let installation = "INSERT INTO installation (id, own_account) VALUES (gen_random_uuid(), 'own')";
    rig.pool.get().await?.execute(installation, &[]).await?;
    for (address, amount) in [(address, 2 * COIN), (poor, 5)] {
        let payment = books.payment(address, "own", None).await?;
        books.pay(Some(payment), None, Paid::credited(5, amount)).await?;
    }
    let listed = chains.split("address: \"").nth(1).and_then(|rest| rest.split('"').next()).context("the lab's token")?;
    let token = Paid { credited: None, token: Some(listed.parse()?), ..Paid::credited(5, 1_500_000) };
    let payment = books.payment(Address::repeat_byte(3), "own", None).await?;
    books.pay(Some(payment), None, token).await?;
    let json = |arguments: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&rig.lab.ctrip(arguments)?)?) };
    let of = |shown: &Value, what: &str| {
        let coin = shown[0]["coin"].as_array().cloned().unwrap_or_default();
        coin.iter().find(|row| row["what"] == what).map_or(Value::Null, |row| row["addresses"].clone())
    };
    let shown = json(&["sweep", "plan", "anvil", "--json"])?;
    ensure!(of(&shown, "to be swept") == 1 && of(&shown, "not worth its gas") == 1, "{shown}");
    ensure!(shown[0]["tokens"][0]["amount_decimal"] == "1.5" && shown[0]["tokens"][0]["swept"] == false, "{shown}");
    // Estimated by the node, and a quarter more.
    ensure!(shown[0]["gas_limit"] == 26_250 && shown[0]["fee_now"].is_string() && shown[0]["waits"].is_null(), "{shown}");
    let text = rig.lab.ctrip(&["sweep", "plan", "--addresses"])?;
    ensure!(text.contains(&address.to_string()) && text.contains("tokens are not swept yet"), "{text}");

    let held = rig.lab.ctrip(&["sweep", "hold", "--merchant", "shop", "--asset", "coin", "--reason", "a dispute"])?;
    ensure!(held.starts_with("hold 1: the coin, merchant"), "{held}");
    ensure!(of(&json(&["sweep", "plan", "--json"])?, "held") == 1);
    let status = rig.lab.ctrip(&["sweep", "status"])?;
    ensure!(status.contains("a dispute"), "{status}");
    let nothing = rig.lab.output(&["sweep", "hold", "--reason", "nothing"])?;
    ensure!(!nothing.status.success() && String::from_utf8(nothing.stderr)?.contains("--all"));
    rig.lab.ctrip(&["sweep", "release", "1"])?;
    ensure!(!rig.lab.output(&["sweep", "release", "1"])?.status.success(), "it is over");

    // A treasury that takes nothing is told before anything is sent there.
    rig.set_code(TREASURY, REFUSES).await?;
    let shown = json(&["sweep", "plan", "--json"])?;
    ensure!(shown[0]["waits"].as_str().is_some_and(|waits| waits.contains("takes no coin")), "{shown}");
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    let status = json(&["sweep", "status", "anvil", "--json"])?;
    ensure!(status["unfinished"][0]["address"] == address.to_string() && status["sweeps"][0]["state"] == "open", "{status}");
    rig.set_balance(address, 2 * COIN).await?;
    rig.settle().await?;
    let json = |arguments: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&rig.lab.ctrip(arguments)?)?) };
    let status = json(&["sweep", "status", "--json"])?;
    ensure!(status["unfinished"][0]["set_aside"] == true && status["unfinished"][0]["state"] == "failed", "{status}");
    let id = status["unfinished"][0]["id"].as_str().context("an id")?.to_owned();
    ensure!(rig.lab.ctrip(&["sweep", "status"])?.contains("ctrip sweep retry"));
    rig.lab.ctrip(&["sweep", "retry", &id])?;
    ensure!(!rig.lab.output(&["sweep", "retry", &id])?.status.success(), "nothing is set aside any more");
    rig.lab.ctrip(&["sweep", "run", "anvil"])?;
    ensure!(of(&json(&["sweep", "plan", "--json"])?, "to be swept") == 1);
    Ok(())
}

/// `CTRIP_SWEEP_ADDRESSES=1000000` measures as many as a large shop has.
#[tokio::test]
async fn a_plan_over_many_addresses_takes_seconds_and_a_turn_looks_at_few_of_them() -> Result<()> {
    let addresses: i64 = std::env::var("CTRIP_SWEEP_ADDRESSES").ok().map_or(Ok(20_000), |text| text.parse())?;
    let rig = Rig::start().await?;
    let books = Books::open(&rig).await?;
    let db = rig.pool.get().await?;
    let address = "substring(sha256(n::text::bytea) FROM 1 FOR 20)";
    let id = "md5(n::text)::uuid";
    for sql in [
        format!(
            "INSERT INTO payments (id, merchant_id, chain_id, chain, decimals, address, xpub, address_index, amount,
                 confirmations_required, status, sequence, created_at, expires_at, updated_at)
             SELECT {id}, '{}', 31337, 'anvil', 18, {address}, 'own', n, 1, 1, 'confirmed', 1, 1, 2, 1
             FROM generate_series(1, {addresses}) AS n",
            books.merchant
        ),
        format!(
            "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number, block_timestamp,
                 transaction_index, sender, amount, credited, listed)
             SELECT 31337, sha256((n / 20)::text::bytea), sha256(n::text::bytea), 'transaction', 0, {id}, n % 800, 1, 0,
                 {address}, 1000000000000000000, true, true
             FROM generate_series(1, {addresses}) AS n"
        ),
        format!(
            "INSERT INTO payment_parts (payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited, due,
                 confirmed)
             SELECT {id}, 31337, sha256((n / 20)::text::bytea), n % 800, 1, 1, 1000000000000000000, n % 800, 1000000000000000000
             FROM generate_series(1, {addresses}) AS n"
        ),
        "ANALYZE".to_owned(),
    ] {
        db.batch_execute(&sql).await?;
    }
    let began = Instant::now();
    let swept = books.verdicts(&settings()).await?.values().filter(|verdict| matches!(verdict, Verdict::Sweep(_))).count();
    let planned = began.elapsed();
    ensure!(i64::try_from(swept)? == addresses, "{swept} of {addresses}");
    let began = Instant::now();
    ensure!(books.queue_due(1_000_000).await?.queued == 1);
    let first = began.elapsed();
    books.end_sweeps().await?;
    let (mut queued, began) = (0, Instant::now());
    for turn in 0..6 {
        queued += books.queue_due(1_000_100 + turn).await?.queued;
    }
    let per_second = f64::from(u32::try_from(queued)?) / began.elapsed().as_secs_f64();
    println!(
        "{addresses} addresses: planned in {planned:.1?}, all made candidates in {first:.1?}, {per_second:.0} queued a second"
    );
    ensure!(queued > 2_000 && planned < PATIENCE, "{queued} queued, planned in {planned:?}");
    let read: i64 = db
        .query_one("SELECT coalesce(sum(seq_scan), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'transfers'", &[])
        .await?
        .get(0);
    ensure!(read < 6, "each turn reads all transfers: {read} times");
    Ok(())
}

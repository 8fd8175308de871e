//! Blows at random points lose and double nothing, and stop nothing for good: `kill -9`, pauses as of a machine that is moved, and
//! the loss of all consumer groups. The chain is fresh, begins at its head, and forks below that within its first seconds.
//!
//! `CTRIP_BLOWS` makes a run longer than CI's.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, KafkaAdmin, Lab, Payment, Plan, Process, events, ledger, records};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::{Address, U256, wire};

/// At least; payments go on while blows do.
const PAYMENTS: u64 = 200;
const BLOWS: u32 = 12;
const CONFIRMATIONS: u32 = 3;
/// The first reorg comes after so many payments, and goes below the block that the chain began with.
const FIRST_REORG: u64 = 4;
const FIRST_REORG_DEPTH: u64 = 7;
/// Longer than a transaction may take, and than a member's session.
const LONG_PAUSE_S: u64 = 18;

const ROLES: [&str; 4] = ["api", "ingest", "detector", "confirmer"];

#[derive(Clone, Copy, Debug)]
enum Machine {
    First,
    Second,
}

/// A role on a machine, whichever process runs it.
type Seat<'r> = (Machine, &'r str);

impl Machine {
    fn seats<'r>(self, roles: &[&'r str]) -> Vec<Seat<'r>> {
        roles.iter().map(|role| (self, *role)).collect()
    }

    fn spawn(self, lab: &Lab, role: &str) -> Result<Process> {
        match self {
            Self::First => lab.spawn(role),
            Self::Second => Ok(lab.spawn_beside(role)?.0),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill,
    Pause(Duration),
    /// Kills all roles and deletes their groups.
    LoseGroups,
}

impl Blow {
    /// Each kind comes in the shortest run.
    fn random(index: u32, random: &mut StdRng) -> Self {
        match index {
            4 => Self::Pause(Duration::from_secs(LONG_PAUSE_S)),
            8 => Self::LoseGroups,
            _ if index < BLOWS => Self::Kill,
            _ => match random.random_range(0..10) {
                0..6 => Self::Kill,
                6..9 => Self::Pause(Duration::from_millis(random.random_range(5_000..40_000))),
                _ => Self::LoseGroups,
            },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blows_to_single_roles_lose_and_double_nothing() -> Result<()> {
    survive(&Machine::First.seats(&ROLES)).await.map(drop)
}

/// As on two machines: each ingest fences the other in turn, detectors and confirmers share the partitions, and one relay leads.
#[tokio::test(flavor = "multi_thread")]
async fn blows_to_two_of_each_role_lose_and_double_nothing() -> Result<()> {
    let lab = survive(&[Machine::First.seats(&ROLES), Machine::Second.seats(&ROLES)].concat()).await?;
    let said = |role: &str, text: &str| -> Result<usize> {
        Ok(std::fs::read_to_string(lab.dir.join(format!("{role}.log")))?.matches(text).count())
    };
    ensure!(said("ingest", "another process runs as this instance")? > 0, "no ingest was fenced by the other");
    ensure!(said("confirmer", "the relay is the leader")? > 1, "no relay has followed another");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn blows_to_the_whole_of_ctrip_up_lose_and_double_nothing() -> Result<()> {
    survive(&Machine::First.seats(&["up"])).await.map(drop)
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

async fn survive(seats: &[Seat<'_>]) -> Result<Arc<Lab>> {
    let seed = variable("CTRIP_SEED").unwrap_or_else(rand::random::<u64>);
    println!("CTRIP_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let lab = Arc::new(Lab::start(Plan { confirmations: CONFIRMATIONS, ..Plan::default() }).await?);
    begin_at_the_head(&lab).await?;
    let mut processes = seats.iter().map(|(machine, role)| machine.spawn(&lab, role)).collect::<Result<Vec<Process>>>()?;
    let api = lab.merchant("crash")?;
    api.ready(processes.first_mut().context("a process")?).await?;

    let over = CancellationToken::new();
    let paying = tokio::spawn(pay(lab.clone(), api.clone(), random.random(), over.clone()));
    let first = random.random_range(0..processes.len());
    for index in 0..variable("CTRIP_BLOWS").unwrap_or(BLOWS) {
        tokio::time::sleep(Duration::from_millis(random.random_range(300..2500))).await;
        // Each in turn, so that none is spared.
        let victim = (first + usize::try_from(index)?) % processes.len();
        let blow = Blow::random(index, &mut random);
        strike(&lab, seats, &mut processes, victim, blow).await.with_context(|| format!("blow {index}, {blow:?}"))?;
    }
    over.cancel();
    let payments = paying.await??;
    println!("{} payments", payments.len());
    lab.node.mine(u64::from(CONFIRMATIONS)).await?;

    let balances = balances(&lab, &payments).await?;
    let settled = e2e::eventually("Postgres to agree with the chain", || async {
        let rows = ledger(&lab).await?;
        let agree = payments.iter().all(|payment| {
            rows.get(payment.id()).is_some_and(|row| {
                row.received == balances[payment.id()].to_string() && row.status == verdict(payment, &balances)
            })
        });
        Ok(agree.then_some(()))
    });
    if let Err(error) = settled.await {
        for process in &mut processes {
            process.check()?;
        }
        let rows = ledger(&lab).await?;
        let off: Vec<String> = payments
            .iter()
            .filter(|payment| rows.get(payment.id()).map(|row| row.status.as_str()) != Some(verdict(payment, &balances)))
            .map(|payment| format!("{} {:?}, on the chain {}", payment.id(), rows.get(payment.id()), balances[payment.id()]))
            .collect();
        let few = off.get(..5.min(off.len())).unwrap_or_default();
        return Err(error).context(format!("{} payments are off, logs in {}: {few:#?}", off.len(), lab.dir.display()));
    }
    end_and_check(&lab, &mut processes, &payments).await?;
    Ok(lab)
}

/// Ends all roles. Each event and each block of these payments was told once, and in order.
async fn end_and_check(lab: &Lab, processes: &mut [Process], payments: &[Payment]) -> Result<()> {
    all_are_told(lab).await?;
    // What a role would write twice it has written when it has ended.
    for process in processes {
        ensure!(process.terminate()?.success(), "{}", process.tail());
    }
    check_events(lab, payments).await?;
    check_blocks(lab).await
}

/// Waits until all blocks are matched, and all events are in Kafka.
async fn all_are_told(lab: &Lab) -> Result<()> {
    let db = lab.database().await?;
    e2e::eventually("all blocks to be matched, and all events to be in Kafka", || async {
        let (blocks, matches) =
            (records::<wire::BlockRecord>(lab).await?.len(), records::<wire::MatchesRecord>(lab).await?.len());
        let waiting: i64 = db.query_one("SELECT count(*) FROM outbox", &[]).await?.get(0);
        Ok((waiting == 0 && blocks == matches).then_some(()))
    })
    .await
}

/// Drops `start_block` from chains.yaml.
async fn begin_at_the_head(lab: &Lab) -> Result<()> {
    // Beside the token's block.
    lab.node.mine(3).await?;
    let yaml = std::fs::read_to_string(&lab.env["CHAINS_FILE"])?;
    let (with, without) = ("  start_block: 0\n", "");
    ensure!(yaml.contains(with), "{yaml}");
    lab.write_chains(&yaml.replace(with, without))
}

async fn strike(lab: &Lab, seats: &[Seat<'_>], processes: &mut [Process], victim: usize, blow: Blow) -> Result<()> {
    let (process, (machine, role)) = (processes.get_mut(victim).context("a victim")?, seats[victim]);
    println!("{blow:?}: {role} of the {machine:?} machine");
    match blow {
        Blow::Kill => {
            process.kill()?;
            *process = machine.spawn(lab, role)?;
        }
        Blow::Pause(pause) => process.pause(pause).await?,
        Blow::LoseGroups => {
            processes.iter_mut().try_for_each(Process::kill)?;
            let admin = KafkaAdmin::of(lab)?;
            for group in ["detector", "outbox"] {
                admin.delete_group(group).await?;
            }
            for (process, (machine, role)) in processes.iter_mut().zip(seats) {
                *process = machine.spawn(lab, role)?;
            }
        }
    }
    Ok(())
}

/// Creates payments and pays them one after the other, every third in the token, with a reorg now and then.
async fn pay(lab: Arc<Lab>, api: Api, seed: u64, over: CancellationToken) -> Result<Vec<Payment>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut payments = Vec::new();
    for i in 0.. {
        if i >= PAYMENTS && over.is_cancelled() {
            break;
        }
        let token = (i % 3 == 0).then_some(e2e::TOKEN_SYMBOL);
        let amount = random.random_range(1_000..1_000_000_u64);
        let body = json!({ "chain": "anvil", "token": token, "amount": amount, "external_id": i.to_string() });
        let payment = api.create_surely(body).await?;
        let (to, amount) = (payment.address()?, U256::from(amount));
        let hash = match token {
            None => lab.node.pay(to, amount).await?,
            Some(_) => lab.node.pay_token(to, amount).await?,
        };
        payments.push(payment);
        let depth = if i == FIRST_REORG { FIRST_REORG_DEPTH } else { random.random_range(1..4) };
        if i == FIRST_REORG || i % 50 == 49 {
            // anvil loses blocks when a reorg comes while it mines.
            e2e::eventually("the last payment's block", || lab.node.receipt(hash)).await?;
            lab.node.reorg(depth).await?;
        }
        // Slower once there are enough.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..if i < PAYMENTS { 120 } else { 1000 }))).await;
    }
    Ok(payments)
}

/// The balance of each address on the chain, which is the oracle.
async fn balances(lab: &Lab, payments: &[Payment]) -> Result<BTreeMap<String, U256>> {
    let mut balances = BTreeMap::new();
    for payment in payments {
        let address: Address = payment.address()?;
        let balance = if payment.text("token").is_empty() {
            lab.node.balance(address).await?
        } else {
            let data = format!("0x70a08231{}", alloy::hex::encode(address.into_word()));
            let answer = lab.node.call("eth_call", json!([{ "to": lab.node.token, "data": data }, "latest"])).await?;
            answer.as_str().context("a balance")?.parse()?
        };
        balances.insert(payment.id().to_owned(), balance);
    }
    Ok(balances)
}

/// An address was paid once, in full, or a reorg took the payment away.
fn verdict(payment: &Payment, balances: &BTreeMap<String, U256>) -> &'static str {
    if balances[payment.id()].is_zero() { "pending" } else { "confirmed" }
}

async fn check_events(lab: &Lab, payments: &[Payment]) -> Result<()> {
    let rows = ledger(lab).await?;
    let seen = events(lab).await?;
    let ids: HashSet<&str> = seen.iter().map(|event| event.id.as_str()).collect();
    ensure!(ids.len() == seen.len(), "{} events have {} ids: some are there twice", seen.len(), ids.len());
    let mut by_payment: BTreeMap<&str, Vec<&wire::PaymentEvent>> = BTreeMap::new();
    for event in &seen {
        by_payment.entry(&event.payment_id).or_default().push(event);
    }
    for payment in payments {
        let row = &rows[payment.id()];
        let events = by_payment.get(payment.id()).map(Vec::as_slice).unwrap_or_default();
        let sequences: Vec<i64> = events.iter().filter_map(|event| i64::try_from(event.sequence).ok()).collect();
        let expected: Vec<i64> = (1..=row.sequence).collect();
        ensure!(sequences == expected, "payment {}: events {sequences:?}, expected {expected:?}", payment.id());
        let last = events.last().context("no events")?;
        ensure!(
            last.status == row.status,
            "payment {}: the last event says {}, Postgres {}",
            payment.id(),
            last.status,
            row.status
        );
        let kinds: Vec<&str> = events.iter().map(|event| event.r#type.trim_start_matches("payment.")).collect();
        if !kinds.contains(&"reverted") {
            // A block that a reorg removed before ingest saw it has left no trace.
            let expected: &[&str] = if row.status == "pending" { &["created"] } else { &["created", "detected", "confirmed"] };
            ensure!(kinds == expected, "payment {}: {kinds:?}", payment.id());
        }
    }
    let unacknowledged = lab.database().await?.query_one("SELECT count(*) FROM unacknowledged_intents", &[]).await?;
    ensure!(unacknowledged.get::<_, i64>(0) == 0, "intents that Kafka does not have");
    Ok(())
}

/// The chain topics are a stack, without gaps and duplicates.
async fn check_blocks(lab: &Lab) -> Result<()> {
    let blocks: Vec<wire::BlockRecord> = records(lab).await?;
    let logs: Vec<wire::LogsRecord> = records(lab).await?;
    let matches: Vec<wire::MatchesRecord> = records(lab).await?;
    let mut stack: Vec<&wire::BlockRecord> = Vec::new();
    for (block, sequence) in blocks.iter().zip(1..) {
        ensure!(block.sequence == sequence, "chain.blocks: sequence {} where {sequence} should be", block.sequence);
        if block.kind() == wire::block_record::Kind::Removed {
            let head = stack.pop().context("a block was removed that was never added")?;
            ensure!(head.hash == block.hash, "block {} was removed, and was not the head", block.number);
        } else if block.kind() == wire::block_record::Kind::Tags {
            let at_head = stack.last().is_some_and(|head| head.hash == block.hash);
            ensure!(at_head, "more was told of block {}, which is not the head", block.number);
        } else {
            let fits = stack.last().is_none_or(|head| head.hash == block.parent_hash && head.number + 1 == block.number);
            ensure!(fits, "block {} was added on something else than its parent", block.number);
            stack.push(block);
        }
    }
    let head = lab.node.head().await?;
    ensure!(stack.last().map(|block| block.number) == Some(head), "the stack ends elsewhere than the chain, {head}");
    let steps = |s: u64, h: &[u8]| (s, h.to_vec());
    let of_blocks: Vec<_> = blocks.iter().map(|r| steps(r.sequence, &r.hash)).collect();
    ensure!(
        of_blocks == logs.iter().map(|r| steps(r.sequence, &r.hash)).collect::<Vec<_>>(),
        "chain.logs differs from chain.blocks"
    );
    ensure!(
        of_blocks == matches.iter().map(|r| steps(r.sequence, &r.hash)).collect::<Vec<_>>(),
        "chain.matches differs from chain.blocks"
    );
    Ok(())
}

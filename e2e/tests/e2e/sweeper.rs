//! The role `sweeper`, the real binary: what it sends is sent once, whenever it is killed and whatever the database has lost.

mod lost;

use ::sweeper::engine::content::Content;
use ::sweeper::engine::fold::drop_outgoing;
use ::sweeper::engine::outgoing::{Kind, Pace};
use ::sweeper::engine::rows::LaneId;
use ::sweeper::engine::store::{NewOutgoing, queue};
use alloy::primitives::{Address, Bytes, U256, keccak256};
use anyhow::{Context as _, Result, ensure};
use deadpool_postgres::Pool;
use e2e::{Api, Backup, Extent, Fault, Lab, Lacks, MNEMONIC, Plan, Process, Proxy, eventually, records, write_mnemonic};
use runtime::db;
use runtime::kafka::Publisher;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};
use topics::wire::SweepEvent;
use topics::{Amount, ChainId, Message as _, Topic};
use uuid::Uuid;

const PAID: u64 = 1_000_000_000_000_000_000;
/// What stays for gas, at the highest price.
const DUST: u64 = 11_000_000_000_000_000;
const PACE: Pace = Pace { max_fee: 1, raise: 100, resend_after: 1, stuck_after: 1, raise_after: 1 };
/// Blocks until one is final, on anvil.
pub const FINAL: u64 = 66;

/// Puts the tables to what they were before anything was signed.
const QUEUED_AGAIN: &str = "BEGIN; DELETE FROM outgoing_attempts;
    UPDATE outgoing SET state = 'queued', nonce = NULL, due_at = 0, mined_hash = NULL, block_hash = NULL, block_number = NULL,
        succeeded = NULL, announced = NULL;
    DELETE FROM outgoing_nonces; COMMIT";

/// What `sweep.events` tells, by its ids. What comes twice says the same.
pub async fn told(lab: &Lab) -> Result<BTreeMap<String, SweepEvent>> {
    let mut told = BTreeMap::new();
    for event in records::<SweepEvent>(lab).await? {
        let before = told.entry(event.id.clone()).or_insert_with(|| event.clone());
        ensure!(*before == event, "{} was told in two ways: {before:?} {event:?}", event.id);
    }
    Ok(told)
}

/// Writes to `sweep.events`.
pub async fn tell(lab: &Lab, events: &[SweepEvent]) -> Result<()> {
    let kafka = lab.kafka().await?;
    let records: Vec<_> = events.iter().map(|event| (event.key(), kafka.encode(event))).collect();
    let publisher = Publisher::open(&kafka, Duration::from_secs(20))?;
    publisher.publish(Topic::Sweeps, &records).await.into_iter().collect()
}

/// A lab with all other roles, and the treasury.
struct Sweeping {
    lab: Lab,
    up: Process,
    api: Api,
    treasury: Address,
}

impl Sweeping {
    async fn start() -> Result<Self> {
        Self::start_with(Plan::default()).await
    }

    async fn start_with(plan: Plan) -> Result<Self> {
        let treasury = plan.treasury.unwrap_or_else(|| Address::from_word(keccak256(Uuid::new_v4())));
        let mut lab = Lab::start(plan).await?;
        if plan.treasury.is_none() {
            // So much that nothing is planned but what a test queues.
            let chains = fs::read_to_string(&lab.env["CHAINS_FILE"])?;
            lab.write_chains(&format!("{chains}  treasury: \"{treasury}\"\n  sweep_minimum: 1000000\n"))?;
        }
        let (up, api) = lab.serve("up", "sweeps").await?;
        if plan.treasury.is_none() {
            // Only now, so that its `ctrip up` has no keys.
            let words = write_mnemonic(&lab.dir, "mnemonic", MNEMONIC, 0o600)?;
            lab.env.insert("CTRIP_MNEMONIC_FILE".to_owned(), words);
        }
        Ok(Self { lab, up, api, treasury })
    }

    fn sweeper(&self) -> Result<Process> {
        self.lab.spawn("sweeper")
    }

    /// Two of them, as on two machines.
    fn two(&self) -> Result<[Process; 2]> {
        Ok([self.sweeper()?, self.lab.spawn_beside("sweeper")?.0])
    }

    /// Until a sweeper has compared the database with the topic.
    async fn until_compared(&self) -> Result<()> {
        eventually("a sweeper to begin", async || {
            let db = self.pool()?.get().await?;
            Ok(db.query_opt("SELECT FROM outgoing_restored", &[]).await?.map(drop))
        })
        .await
    }

    fn pool(&self) -> Result<Pool> {
        db::pool(&self.lab.env["DATABASE_URL"], 2)
    }

    /// Deposit addresses with coin in them.
    async fn paid(&self, count: usize) -> Result<Vec<Address>> {
        let mut addresses = Vec::new();
        for _ in 0..count {
            let payment = self.api.coin(PAID).await?;
            self.lab.node.pay(payment.address()?, payment.amount()?).await?;
            addresses.push(payment.address()?);
        }
        Ok(addresses)
    }

    /// Queues what an address has, but for its gas.
    async fn queue(&self, sender: Address) -> Result<Uuid> {
        self.queue_to(self.treasury, sender).await
    }

    async fn queue_to(&self, recipient: Address, sender: Address) -> Result<Uuid> {
        let id = Uuid::new_v4();
        let value = U256::from(PAID - DUST);
        let to = Some(recipient);
        let content = Content { to, value, data: Bytes::new(), gas_limit: 21_000, authorizations: Vec::new() };
        let idempotency_key = format!("sweep:{id}");
        let (lane, request_hash) = (LaneId { chain: ChainId(31337), sender }, keccak256(&idempotency_key));
        let new = NewOutgoing { id: Uuid::new_v4(), kind: Kind::Sweep, lane, content, idempotency_key, request_hash };
        queue(&self.pool()?.get().await?, &new).await?;
        Ok(id)
    }

    async fn states(&self) -> Result<BTreeMap<String, i64>> {
        let db = self.pool()?.get().await?;
        let rows = db.query("SELECT state, count(*) FROM outgoing GROUP BY state", &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Mines until so many are in blocks.
    async fn until_mined(&self, count: i64) -> Result<()> {
        eventually("all to be in a block", async || {
            self.lab.node.mine(1).await?;
            Ok((self.states().await?.get("mined") == Some(&count)).then_some(()))
        })
        .await
    }

    /// Mines until so many are final, and all of them are told.
    async fn until_final(&self, count: usize) -> Result<Vec<SweepEvent>> {
        let told = eventually("all sweeps to be told as final", async || {
            self.lab.node.mine(2).await?;
            let finals: Vec<SweepEvent> =
                records::<SweepEvent>(&self.lab).await?.into_iter().filter(|event| event.r#type == "sweep.final").collect();
            let ids: BTreeSet<&String> = finals.iter().map(|event| &event.id).collect();
            Ok((ids.len() >= count).then_some(finals))
        });
        match told.await {
            Ok(finals) => Ok(finals),
            Err(error) => Err(error.context(format!("{:?}", self.states().await?))),
        }
    }

    /// Each was sent once: by the treasury's balance and by what the chain counts of each sender.
    async fn check(&self, senders: &[Address]) -> Result<()> {
        let balance = self.lab.node.balance(self.treasury).await?;
        ensure!(balance == U256::from(PAID - DUST) * U256::from(senders.len()), "the treasury has {balance}");
        for sender in senders {
            let count = self.lab.node.sent(*sender).await?;
            ensure!(count == 1, "{sender} has sent {count}");
        }
        let mut signed: BTreeMap<Vec<u8>, BTreeSet<u64>> = BTreeMap::new();
        for event in told(&self.lab).await?.into_values().filter(|event| event.r#type == "sweep.signed") {
            signed.entry(event.sender.to_vec()).or_default().insert(event.nonce);
        }
        ensure!(signed.len() == senders.len() && signed.values().all(|nonces| nonces.len() == 1), "{signed:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_is_sent_once_and_told_when_it_is_final_whenever_the_sweeper_is_killed() -> Result<()> {
    let mut sweeping = Sweeping::start().await?;
    let mut senders = sweeping.paid(3).await?;
    for sender in &senders {
        sweeping.queue(*sender).await?;
    }
    // At its first start it waits for what others may have on their way.
    let mut sweeper = sweeping.sweeper()?;
    sweeping.until_compared().await?;
    sweeper.kill()?;
    for _ in 0..8 {
        let mut sweeper = sweeping.sweeper()?;
        let more = sweeping.paid(1).await?;
        sweeping.queue(more[0]).await?;
        senders.extend(more);
        tokio::time::sleep(Duration::from_millis(rand::random_range(300..2_500))).await;
        sweeping.lab.node.mine(1).await?;
        sweeper.kill()?;
    }
    // Two at once do no harm.
    let [mut one, mut other] = sweeping.two()?;
    sweeping.lab.node.mine(FINAL).await?;
    let finals = sweeping.until_final(senders.len()).await?;
    for event in &finals {
        let moved = event.moved.first().context("what was moved")?;
        let amount = U256::from(PAID - DUST);
        let fee = Amount::from_wire(event.fee.as_ref().context("a fee")?)?.units();
        let units = |wire: &[u8]| Amount::from_wire(wire).map(Amount::units);
        // No plan says what else was there.
        let said = (units(&moved.amount)?, units(&moved.total)?);
        ensure!(moved.address == event.sender && said == (amount, amount + fee), "{event:?}");
        ensure!(fee > U256::ZERO && fee < U256::from(DUST) && event.gas_used == Some(21_000), "{event:?}");
        let block = event.block.as_ref().context("a block")?;
        ensure!(block.timestamp > 0 && block.timestamp == event.occurred_at, "{event:?}");
    }
    sweeping.check(&senders).await?;
    one.check()?;
    other.check()?;
    sweeping.up.check()
}

/// One of them is emptied by hand before anything is planned.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_come_is_swept_to_the_treasury_of_chains_yaml() -> Result<()> {
    let treasury = Some(Address::from_word(keccak256(Uuid::new_v4())));
    // Its `ctrip up` has the keys.
    let mut sweeping = Sweeping::start_with(Plan { treasury, ..Plan::default() }).await?;
    let empty = sweeping.paid(1).await?;
    sweeping.lab.node.call("anvil_setBalance", json!([empty[0], "0x0"])).await?;
    let senders = sweeping.paid(2).await?;
    let finals = sweeping.until_final(2).await?;
    let swept: BTreeSet<Vec<u8>> = finals.iter().map(|event| event.sender.to_vec()).collect();
    ensure!(swept == senders.iter().map(|sender| sender.to_vec()).collect(), "{finals:?}");
    let balance = sweeping.lab.node.balance(sweeping.treasury).await?;
    ensure!(balance > U256::from(2 * (PAID - DUST)) && balance < U256::from(2 * PAID), "the treasury has {balance}");
    let status = sweeping.lab.ctrip(&["sweep", "status"])?;
    ensure!(status.contains(&empty[0].to_string()) && status.contains("have less than"), "{status}");
    sweeping.up.check()
}

/// Half of what it loses was queued when the backup was made, of the other half it knows nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_restored_to_before_its_sweeps_sends_none_of_them_again() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let senders = sweeping.paid(6).await?;
    for sender in &senders[..3] {
        sweeping.queue(*sender).await?;
    }
    let backup = Backup::take(&sweeping.lab)?;
    for sender in &senders[3..] {
        sweeping.queue(*sender).await?;
    }
    let mut sweeper = sweeping.sweeper()?;
    sweeping.until_mined(6).await?;
    // It runs on, and finds another database behind its connections.
    backup.restore(&sweeping.lab).await?;
    sweeping.lab.node.mine(FINAL).await?;
    sweeping.until_final(senders.len()).await?;
    sweeping.check(&senders).await?;
    sweeper.check()?;
    let limited = "SELECT count(*) FROM outgoing WHERE max_fee IS NOT NULL";
    let limited: i64 = sweeping.pool()?.get().await?.query_one(limited, &[]).await?.get(0);
    ensure!(limited == 3, "{limited} that it knew nothing of are raised no further than their addresses can pay");

    // And once more, while none runs: two put the same back. What became of each is known at once, though no block was read on.
    sweeper.kill()?;
    backup.restore(&sweeping.lab).await?;
    let mut two = sweeping.two()?;
    eventually("the rows to be final again", async || {
        Ok((sweeping.states().await.ok().and_then(|states| states.get("final").copied()) == Some(6)).then_some(()))
    })
    .await?;
    sweeping.check(&senders).await?;
    two.iter_mut().try_for_each(Process::check)?;

    // Rows are put into the tables of before: the database is the same, and knows less.
    let db = sweeping.pool()?.get().await?;
    db.batch_execute(QUEUED_AGAIN).await?;
    eventually("the rows to be final once more", async || {
        sweeping.lab.node.mine(1).await?;
        Ok((sweeping.states().await.ok().and_then(|states| states.get("final").copied()) == Some(6)).then_some(()))
    })
    .await?;
    sweeping.check(&senders).await?;
    two.iter_mut().try_for_each(Process::check)
}

/// Its sender has no key here, so it is queued until it is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_unsigned_stays_dropped_in_a_database_from_before() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let sweep = sweeping.queue(Address::repeat_byte(7)).await?;
    let backup = Backup::take(&sweeping.lab)?;
    let mut sweeper = sweeping.sweeper()?;
    sweeping.until_compared().await?;
    let id = async || -> Result<Uuid> {
        let db = sweeping.pool()?.get().await?;
        let key = format!("sweep:{sweep}");
        Ok(db.query_one("SELECT id FROM outgoing WHERE idempotency_key = $1", &[&key]).await?.get(0))
    };
    drop_outgoing(&sweeping.pool()?, id().await?, &PACE).await?;
    eventually("it to be told", async || {
        let events = records::<SweepEvent>(&sweeping.lab).await?;
        Ok(events.iter().any(|event| event.r#type == "sweep.dropped").then_some(()))
    })
    .await?;
    sweeper.kill()?;
    backup.restore(&sweeping.lab).await?;
    ensure!(sweeping.states().await? == BTreeMap::from([("queued".to_owned(), 1)]));
    let mut sweeper = sweeping.sweeper()?;
    eventually("it to be dropped again", async || {
        let states = sweeping.states().await.unwrap_or_default();
        Ok((states == BTreeMap::from([("dropped".to_owned(), 1)])).then_some(()))
    })
    .await?;
    sweeper.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_contradicts_a_row_freezes_its_sender_and_no_other() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let senders = sweeping.paid(2).await?;
    let mut sweeper = sweeping.sweeper()?;
    sweeping.queue(senders[0]).await?;
    sweeping.lab.node.mine(1).await?;
    let signed = eventually("a record", async || {
        sweeping.lab.node.mine(1).await?;
        Ok(records::<SweepEvent>(&sweeping.lab).await?.into_iter().next())
    })
    .await?;
    sweeper.kill()?;
    // The same bytes for another transaction; and what Postgres can't keep.
    let forged = SweepEvent { transaction_id: Uuid::new_v4().to_string(), ..signed.clone() };
    let events = [
        forged.clone(),
        SweepEvent { transaction_id: "a\0b".to_owned(), ..signed.clone() },
        SweepEvent { idempotency_key: "a\0b".to_owned(), ..signed.clone() },
        SweepEvent { idempotency_key: "a".repeat(9_000), ..signed.clone() },
        SweepEvent { occurred_at: u64::MAX, ..signed },
    ];
    tell(&sweeping.lab, &events).await?;
    sweeping.paid(1).await?;
    for sender in &senders {
        sweeping.queue(*sender).await?;
    }
    let _sweeper = sweeping.sweeper()?;
    let db = sweeping.pool()?.get().await?;
    eventually("the other to be sent", async || {
        sweeping.lab.node.mine(1).await?;
        let sql = "SELECT FROM outgoing WHERE sender = $1 AND state <> 'queued'";
        Ok(db.query_opt(sql, &[&senders[1].as_slice()]).await?.map(drop))
    })
    .await?;
    let queued = db.query("SELECT FROM outgoing WHERE sender = $1 AND state = 'queued'", &[&senders[0].as_slice()]).await?;
    let frozen = db.query("SELECT sender FROM outgoing_lanes WHERE frozen IS NOT NULL", &[]).await?;
    ensure!(queued.len() == 1 && frozen.len() == 1 && frozen[0].get::<_, &[u8]>(0) == senders[0].as_slice());
    let aside = sweeping.lab.ctrip(&["set-aside"])?;
    ensure!(aside.contains(&forged.transaction_id), "{aside}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_others_can_read_and_another_mnemonic_are_refused() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let open = write_mnemonic(&sweeping.lab.dir, "open", MNEMONIC, 0o644)?;
    let refused = sweeping.lab.output(&["sweeper", "--mnemonic-file", &open])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("chmod 600") && !said.contains("abandon"), "{said}");
    let other = "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong";
    let other = write_mnemonic(&sweeping.lab.dir, "other", other, 0o600)?;
    let mut process = sweeping.lab.spawn_with(&["sweeper", "--mnemonic-file", &other])?;
    // It waits, so that `ctrip up` goes on, and does not get as far as to compare anything.
    eventually("it to say so", async || Ok(process.log().contains("the mnemonic is not that of CTRIP_XPUB").then_some(())))
        .await?;
    process.check()?;
    // Nobody but root reads words out of its memory, nor finds them in a core.
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id()))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit of cores")?;
    ensure!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
    let memory = format!("/proc/{}/mem", process.id());
    ensure!(fs::metadata(&memory)?.uid() == 0 || fs::File::open(&memory).is_err(), "{memory} can be read");
    let compared = sweeping.pool()?.get().await?.query_opt("SELECT FROM outgoing_restored", &[]).await?;
    ensure!(compared.is_none() && !process.log().contains("zoo"), "{}", process.log());
    Ok(())
}

/// Whoever has the login of the role can write such a row.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_pays_somebody_else_is_not_signed_and_others_are() -> Result<()> {
    let sweeping = Sweeping::start().await?;
    let senders = sweeping.paid(2).await?;
    let thief = Address::repeat_byte(6);
    sweeping.queue_to(thief, senders[0]).await?;
    sweeping.queue(senders[1]).await?;
    let mut sweeper = sweeping.sweeper()?;
    sweeping.until_mined(1).await?;
    let db = sweeping.pool()?.get().await?;
    let told = eventually("it to be told", async || {
        let sql = "SELECT told, (SELECT count(*) FROM outgoing_attempts a WHERE a.outgoing = o.id) FROM outgoing o
                   WHERE recipient = $1 AND told IS NOT NULL";
        let row = db.query_opt(sql, &[&thief.as_slice()]).await?;
        Ok(row.map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1))))
    })
    .await?;
    ensure!(told == ("not allowed".to_owned(), 0), "{told:?}");
    ensure!(sweeper.log().contains("it does not go to the treasury"), "{}", sweeper.tail());
    sweeper.check()
}

/// Each request to a node is waited for, some seconds each.
#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_sweep_is_told_while_nodes_hang() -> Result<()> {
    let mut sweeping = Sweeping::start().await?;
    let senders = sweeping.paid(1).await?;
    sweeping.queue(senders[0]).await?;
    let mut sweeper = sweeping.sweeper()?;
    sweeping.until_mined(1).await?;
    sweeper.kill()?;
    // So that there is something to plan.
    sweeping.lab.ctrip(&["sweep", "run"])?;
    let proxy = Proxy::start(&sweeping.lab.node.url, Lacks::default()).await?;
    proxy.make(Fault::Silence, Extent::Always);
    let chains = fs::read_to_string(&sweeping.lab.env["CHAINS_FILE"])?.replace(&sweeping.lab.node.url, &proxy.url);
    let file = sweeping.lab.dir.join("silent.yaml");
    fs::write(&file, chains)?;
    let whole = sweeping.lab.env.insert("CHAINS_FILE".to_owned(), file.display().to_string());
    let mut sweeper = sweeping.sweeper()?;
    sweeping.lab.env.extend(whole.map(|whole| ("CHAINS_FILE".to_owned(), whole)));
    eventually("a node to be asked", async || Ok((proxy.made(Fault::Silence) > 0).then_some(()))).await?;
    let asked = Instant::now();
    sweeping.lab.node.mine(FINAL).await?;
    sweeping.until_final(1).await?;
    // The first request is given up after ten, and others follow.
    ensure!(asked.elapsed() < Duration::from_secs(9), "it took {:?}", asked.elapsed());
    sweeping.check(&senders).await?;
    sweeper.check()
}

//! One chain's fault stops one chain: it is set aside, named with the command that helps, and goes on where it left off.

use crate::hanging;
use anyhow::{Context as _, Result, ensure};
use chain::Listing;
use confirmer::fold::FOLDING;
use confirmer::returning;
use e2e::{Api, KafkaAdmin, Lab, Node, Payment, Plan, Process, eventually, records};
use prost::Message as _;
use reqwest::{Method, StatusCode};
use runtime::kafka::Publisher;
use runtime::{Span, db};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::wire::matches_record::Kind;
use topics::{B256, ChainId, Message as _, Topic, frame, wire};
use uuid::Uuid;

const CHAIN: &str = "31337";
const OTHER: u64 = 31338;
/// anvil calls every block final that is this far below its head.
const FINAL_BELOW: u64 = 64;

/// A lab with a second chain, `other`.
struct TwoChains {
    lab: Lab,
    other: Node,
}

impl TwoChains {
    async fn start() -> Result<Self> {
        let lab = Lab::start(Plan::default()).await?;
        let other = Node::start_with(&lab.stack, &["--chain-id", &OTHER.to_string()]).await?;
        let this = Self { lab, other };
        this.list_both()?;
        Ok(this)
    }

    fn list_both(&self) -> Result<()> {
        let first = format!("{}{}", chain("anvil", CHAIN, &self.lab.node.url), self.only_other());
        self.lab.write_chains(&first)
    }

    fn only_other(&self) -> String {
        chain("other", &OTHER.to_string(), &self.other.url)
    }

    async fn pay(&self, api: &Api, name: &str) -> Result<Payment> {
        let order = json!({ "chain": name, "amount": "1000", "expires_in": 86_400 });
        let payment = api.create_surely(order).await?;
        self.pay_to(&payment, name).await?;
        Ok(payment)
    }

    async fn pay_to(&self, payment: &Payment, name: &str) -> Result<()> {
        let node = if name == "anvil" { &self.lab.node } else { &self.other };
        let hash = node.pay(payment.address()?, payment.amount()?).await?;
        eventually("the receipt", || node.receipt(hash)).await?;
        node.mine(3).await
    }
}

fn chain(name: &str, id: &str, url: &str) -> String {
    format!(
        "- {{ name: {name}, chain_id: {id}, rpc_url: \"{url}\", confirmations: 3, start_block: 0, poll_interval_ms: 20 }}\n"
    )
}

/// The chain's entry in /health, once it is halted or goes on.
async fn until_halted(api: &Api, name: &str, halted: bool) -> Result<Value> {
    eventually(&format!("{name} to be halted: {halted}"), || async {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        let chains = health.pointer("/components/chains").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(chains.into_iter().find(|chain| chain["chain"] == name && chain["halted"].is_string() == halted))
    })
    .await
}

fn spawn(lab: &Lab, roles: &[&str]) -> Result<Vec<Process>> {
    roles.iter().map(|role| lab.spawn(role)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_were_deleted_before_they_were_matched_set_their_chain_aside_until_a_backfill_brings_them() -> Result<()> {
    let chains = TwoChains::start().await?;
    let lab = &chains.lab;
    let mut roles = spawn(lab, &["api", "ingest", "confirmer"])?;
    let mut detector = lab.spawn("detector")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut roles[0]).await?;
    api.until(chains.pay(&api, "anvil").await?.id(), "confirmed").await?;
    let missed = api.create_surely(json!({ "chain": "anvil", "amount": "1000", "expires_in": 86_400 })).await?;
    detector.kill()?;
    chains.pay_to(&missed, "anvil").await?;
    let admin = KafkaAdmin::of(lab)?;
    until_published(&roles[1], lab.node.head().await?).await?;
    // Retention takes what was published until now.
    for topic in [Topic::Blocks, Topic::Logs] {
        admin.delete_before(topic, CHAIN, admin.end(topic, CHAIN)?).await?;
    }
    lab.node.mine(FINAL_BELOW + 10).await?;

    let mut detector = lab.spawn("detector")?;
    let halted = until_halted(&api, "anvil", true).await?;
    let cause = halted["halted"].as_str().context("a cause")?.to_owned();
    let command = cause.split('`').nth(1).context("a command")?.to_owned();
    ensure!(command.starts_with("ctrip backfill --chain 31337 --from "), "{cause}");
    api.until(chains.pay(&api, "other").await?.id(), "confirmed").await?;
    ensure!(api.get(missed.id()).await?.status() == "pending", "paid in a block that nobody has matched");
    until_counted(&detector, "detector_chain").await?;

    lab.ctrip(&command.split(' ').skip(1).collect::<Vec<_>>())?;
    api.until(missed.id(), "confirmed").await?;
    until_halted(&api, "anvil", false).await?;
    api.until(chains.pay(&api, "anvil").await?.id(), "confirmed").await?;
    // What the command has brought before, it brings again.
    let end = admin.end(Topic::Blocks, CHAIN)?;
    lab.ctrip(&command.split(' ').skip(1).collect::<Vec<_>>())?;
    ensure!(admin.end(Topic::Blocks, CHAIN)? > end, "nothing was replayed");
    detector.check()?;
    roles.iter_mut().try_for_each(Process::check)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_nobody_can_read_sets_its_chain_aside_only_if_a_block_is_missing() -> Result<()> {
    let chains = TwoChains::start().await?;
    let lab = &chains.lab;
    let mut roles = spawn(lab, &["api", "confirmer", "detector"])?;
    let mut ingest = lab.spawn("ingest")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut roles[0]).await?;
    let publisher = Publisher::open(&lab.kafka().await?, Duration::from_secs(10))?;
    let publish = async |key: &str, records: [(Topic, Vec<u8>); 2]| {
        for (topic, value) in records {
            publisher.publish(topic, &[(key.to_owned(), value)]).await.into_iter().collect::<Result<Vec<()>>>()?;
        }
        Ok::<_, anyhow::Error>(())
    };
    api.until(chains.pay(&api, "anvil").await?.id(), "confirmed").await?;
    ingest.terminate()?;

    let last = records::<wire::BlockRecord>(lab).await?.into_iter().rfind(|block| block.chain_id == 31337);
    let last = last.context("a block")?;
    let junk = || b"junk".to_vec();
    publish(&OTHER.to_string(), [(Topic::Blocks, junk()), (Topic::Logs, junk())]).await?;
    let missed = api.create_surely(json!({ "chain": "anvil", "amount": "1000", "expires_in": 86_400 })).await?;
    let head = wire::BlockRecord { sequence: last.sequence + 1, number: last.number + 1, ..wire::BlockRecord::default() };
    let head = wire::BlockRecord { chain_id: 31337, hash: vec![9; 32].into(), parent_hash: last.hash.clone(), ..head };
    let logs = wire::LogsRecord { chain_id: 31337, sequence: head.sequence, hash: head.hash.clone(), ..Default::default() };
    let mut block = frame::encode(1, &head);
    // A transaction that has fewer bytes than it says.
    block.extend([0x62, 0x7f]);
    publish(CHAIN, [(Topic::Blocks, block), (Topic::Logs, frame::encode(1, &logs))]).await?;
    let halted = until_halted(&api, "anvil", true).await?;
    ensure!(halted["halted"].as_str().is_some_and(|cause| cause.contains("can't be matched")), "{halted}");
    // A new beginning whose logs are another block's.
    let marker =
        wire::BlockRecord { chain_id: 31337, sequence: last.sequence + 2, hash: vec![8; 32].into(), ..Default::default() };
    let marker = wire::BlockRecord { kind: wire::block_record::Kind::Replayed.into(), ..marker };
    let logs = wire::LogsRecord { chain_id: 31337, sequence: marker.sequence, hash: vec![7; 32].into(), ..Default::default() };
    publish(CHAIN, [(Topic::Blocks, frame::encode(1, &marker)), (Topic::Logs, frame::encode(1, &logs))]).await?;
    // The chain's own next block has the sequence of the one that can't be read, so it is missing.
    chains.pay_to(&missed, "anvil").await?;
    lab.node.mine(FINAL_BELOW + 10).await?;
    let mut ingest = lab.spawn("ingest")?;
    api.until(chains.pay(&api, "other").await?.id(), "confirmed").await?;
    let command = eventually("the backfill to be named", || async {
        let halted = until_halted(&api, "anvil", true).await?;
        let command = halted["halted"].as_str().and_then(|cause| cause.split('`').nth(1)).map(str::to_owned);
        // Until a block is there after the gap, nothing can be named.
        Ok(command.filter(|command| command.starts_with("ctrip backfill ")))
    });
    let command = command.await?;
    ensure!(api.get(missed.id()).await?.status() == "pending", "paid in a block that nobody has matched");
    lab.ctrip(&command.split(' ').skip(1).collect::<Vec<_>>())?;
    api.until(missed.id(), "confirmed").await?;
    until_halted(&api, "anvil", false).await?;
    ingest.check()?;
    roles.iter_mut().try_for_each(Process::check)
}

async fn until_counted(process: &Process, kind: &str) -> Result<()> {
    eventually("a metric to tell it", || async {
        Ok((process.metric("set_aside_items", &[("kind", kind)]).await? >= 1.0).then_some(()))
    })
    .await
}

async fn until_published(ingest: &Process, head: u64) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "a short chain")]
    let head = head as f64;
    eventually("ingest at the head", || async {
        Ok((ingest.metric("chain_head_block", &[("chain", "anvil")]).await? >= head).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_whose_timestamps_are_not_seconds_is_refused_and_the_others_go_on() -> Result<()> {
    let chains = TwoChains::start().await?;
    let lab = &chains.lab;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let waiting = api.create_surely(json!({ "chain": "anvil", "amount": "1000", "expires_in": 86_400 })).await?;
    api.until(chains.pay(&api, "other").await?.id(), "confirmed").await?;
    // In nanoseconds.
    lab.node.call("evm_setNextBlockTimestamp", json!([1_790_000_000_000_000_000_u64])).await?;
    lab.node.mine(1).await?;
    let halted = until_halted(&api, "anvil", true).await?;
    ensure!(halted["halted"].as_str().is_some_and(|cause| cause.contains("Unix seconds")), "{halted}");
    api.until(chains.pay(&api, "other").await?.id(), "confirmed").await?;
    ensure!(api.get(waiting.id()).await?.status() == "pending", "a timestamp that is none has expired a payment");
    up.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_leaves_the_file_waits_where_it_was_and_begins_anew_when_asked() -> Result<()> {
    let chains = TwoChains::start().await?;
    let lab = &chains.lab;
    let mut roles = spawn(lab, &["api", "ingest", "detector"])?;
    let mut confirmer = lab.spawn("confirmer")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut roles[0]).await?;
    api.until(chains.pay(&api, "anvil").await?.id(), "confirmed").await?;
    confirmer.kill()?;
    let unread = chains.pay(&api, "anvil").await?;
    let others = chains.pay(&api, "other").await?;

    // The chain leaves the file with matches unread: its neighbours go on.
    lab.write_chains(&chains.only_other())?;
    confirmer = lab.spawn("confirmer")?;
    api.until(others.id(), "confirmed").await?;
    let halted = until_halted(&api, "anvil", true).await?;
    ensure!(halted["halted"].as_str().is_some_and(|cause| cause.contains("chain forget 31337")), "{halted}");
    ensure!(api.get(unread.id()).await?.status() == "pending", "credited without the chain's policy");
    until_counted(&confirmer, "confirmer_chain").await?;

    // It comes back, and goes on where it was.
    confirmer.kill()?;
    chains.list_both()?;
    confirmer = lab.spawn("confirmer")?;
    api.until(unread.id(), "confirmed").await?;
    until_halted(&api, "anvil", false).await?;

    // Forgotten, it does not go on by itself, for its records do not follow; restarted, it begins anew.
    confirmer.kill()?;
    lab.write_chains(&chains.only_other())?;
    confirmer = lab.spawn("confirmer")?;
    let forgotten = chains.pay(&api, "anvil").await?;
    until_halted(&api, "anvil", true).await?;
    // Among what is forgotten are the removals of a reorg. It takes the last payment along.
    lab.node.reorg(8).await?;
    chains.pay_to(&forgotten, "anvil").await?;
    until_matched(lab).await?;
    let refused = lab.ctrip(&["chain", "forget", CHAIN]).err().context("forgotten without --execute")?;
    ensure!(format!("{refused:#}").contains("--execute"), "{refused:#}");
    lab.ctrip(&["chain", "forget", CHAIN, "--execute"])?;
    confirmer.kill()?;
    chains.list_both()?;
    confirmer = lab.spawn("confirmer")?;
    lab.node.mine(1).await?;
    // What the API knows may be from before it was forgotten.
    let db = lab.database().await?;
    eventually("the chain to be set aside again", async || {
        Ok(db.query_opt("SELECT FROM set_aside WHERE item = $1", &[&CHAIN]).await?.map(drop))
    })
    .await?;
    let refused = lab.ctrip(&["chain", "restart", "anvil"]).err().context("restarted without --execute")?;
    ensure!(format!("{refused:#}").contains("--execute"), "{refused:#}");
    eventually("a restart", async || Ok(lab.ctrip(&["chain", "restart", "anvil", "--execute"]).ok())).await?;
    // A running ingest notices with the next block, and a confirmer that has tried in vain just now within seconds.
    lab.node.mine(1).await?;
    // The chain's start_block is 0: what was forgotten comes again.
    api.until(forgotten.id(), "confirmed").await?;
    until_halted(&api, "anvil", false).await?;
    // Its reorg has left no credit.
    api.until(unread.id(), "pending").await?;
    ensure!(api.get(unread.id()).await?.text("amount_received") == "0", "credited by a block that is not on the chain");
    api.until(chains.pay(&api, "anvil").await?.id(), "confirmed").await?;
    confirmer.check()?;
    roles.iter_mut().try_for_each(Process::check)
}

fn hash(number: u64) -> Vec<u8> {
    B256::left_padding_from(&number.to_be_bytes()).to_vec()
}

/// A block on the one before it.
fn matches(sequence: u64, kind: Kind, number: u64) -> wire::MatchesRecord {
    wire::MatchesRecord {
        chain_id: 31337,
        sequence,
        kind: kind.into(),
        number,
        hash: hash(number).into(),
        parent_hash: hash(number - 1).into(),
        timestamp: 1_000 + number,
        ..Default::default()
    }
}

/// Publishes records of a chain. The stage's offset moves from one place to the other.
async fn pass_over(lab: &Lab, records: &[wire::MatchesRecord], from: i64, next: i64) -> Result<()> {
    let kafka = lab.kafka().await?;
    let records: Vec<_> = records.iter().map(|record| (record.key(), kafka.encode(record))).collect();
    for outcome in Publisher::open(&kafka, Duration::from_secs(10))?.publish(Topic::Matches, &records).await {
        outcome?;
    }
    let topic = lab.settings()?.topic_name(Topic::Matches);
    let span = Span { topic, partition: Topic::Matches.partition_of(CHAIN), from, next, ..Span::default() };
    Ok(FOLDING.claim(&db::pool(&lab.env["DATABASE_URL"], 1)?.get().await?, &span).await?)
}

/// Sets the chain aside from its first record on, and waits until it is back. Returns its head.
async fn bring_back(lab: &Lab) -> Result<Option<u64>> {
    bring_back_from(lab, 0).await
}

/// Sets the chain aside from this offset on, and waits until it is back. Returns its head.
async fn bring_back_from(lab: &Lab, offset: i64) -> Result<Option<u64>> {
    let (kafka, pool) = (lab.kafka().await?, db::pool(&lab.env["DATABASE_URL"], 2)?);
    let client = pool.get().await?;
    let (topic, partition) = (lab.settings()?.topic_name(Topic::Matches), Topic::Matches.partition_of(CHAIN));
    FOLDING.set_aside(&client, (&topic, partition), CHAIN, offset, "a test").await?;

    let (listing, stop) = (Listing::open(&lab.settings()?.chains_file).await?.0, CancellationToken::new());
    let (stopped, catching_up, handle) = (stop.clone(), pool.clone(), Handle::current());
    let catch_up = tokio::task::spawn_blocking(move || returning::catch_up(&kafka, &catching_up, &listing, &handle, &stopped));
    eventually("the chain to be back", async || {
        Ok(FOLDING.set_aside_in(&client, &topic, partition).await?.is_empty().then_some(()))
    })
    .await?;
    stop.cancel();
    catch_up.await??;
    let heads = payments::store::head_numbers(&client, &[ChainId(31337)]).await?;
    Ok(heads.get(&ChainId(31337)).copied())
}

/// A replayed block that pays an address of nobody.
fn paid(number: u64) -> wire::MatchesRecord {
    let transfer = wire::matches_record::Transfer {
        transaction_hash: hash(1).into(),
        source: wire::matches_record::Source::Transaction.into(),
        from: vec![1; 20].into(),
        to: vec![2; 20].into(),
        amount: vec![70].into(),
        ..Default::default()
    };
    wire::MatchesRecord { transfers: vec![transfer], ..matches(0, Kind::Replayed, number) }
}

/// Numbers of the blocks that have paid an address of nobody.
async fn orphaned(lab: &Lab) -> Result<Vec<i64>> {
    let rows = lab.database().await?.query("SELECT block_number FROM orphan_transfers", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A record beyond the stage's offset is the stage's: applied here as well, it would contradict the chain's head.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_comes_back_stops_at_the_offset_of_the_stage() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let records: Vec<_> = (1..=6).map(|sequence| matches(sequence, Kind::Added, 10 + sequence)).collect();
    pass_over(&lab, &records, 0, 3).await?;
    // It is behind all that the stage has passed over.
    hanging::leave_open(&lab, &hanging::place(&lab))?;
    let head = bring_back(&lab).await?;
    ensure!(head == Some(13), "the head is {head:?}, and the stage goes on after block 13");
    // Where retention has deleted what waited, the next one is the stage's all the same.
    let lab = Lab::start(Plan::default()).await?;
    pass_over(&lab, &records, 0, 3).await?;
    KafkaAdmin::of(&lab)?.delete_before(Topic::Matches, CHAIN, 3).await?;
    let head = bring_back(&lab).await?;
    ensure!(head.is_none(), "the head is {head:?}, and the stage has applied nothing");
    Ok(())
}

/// What a backfill has brought behind a fault is part of no order, and nobody would bring it again.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_blocks_that_wait_behind_a_fault_are_applied_before_the_chain_begins_anew() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let half = wire::MatchesRecord { part: 1, parts: 2, ..matches(3, Kind::Added, 13) };
    let stray = wire::MatchesRecord { parent_hash: hash(99).into(), ..matches(4, Kind::Added, 14) };
    let anew = matches(9, Kind::Replayed, 11);
    let records = [matches(1, Kind::Added, 11), matches(2, Kind::Added, 12), half, stray, paid(5), paid(12), anew];
    pass_over(&lab, &records, 0, 7).await?;
    // Read again, the new beginning says nothing new.
    for time in ["first", "second"] {
        let head = bring_back(&lab).await?;
        ensure!(head == Some(11), "the {time} time the head is {head:?}, and what was applied up to block 11 stands");
        // Nobody has the address. What lies above the block that stands is taken back.
        let kept = orphaned(&lab).await?;
        ensure!(kept == [5], "the {time} time {kept:?}");
    }
    Ok(())
}

/// Kafka has lost the end of the topic, and nobody knows from where on it is read. However much a backfill brings before the record that
/// tells, the chain goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_block_that_left_the_chain_is_passed_over_however_many_come_before_what_tells_so() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let many = (0..20_000).map(|number| matches(0, Kind::Replayed, 1_000 + number));
    let (live, anew, next) = (matches(1, Kind::Added, 11), matches(30, Kind::Replayed, 6), matches(31, Kind::Added, 12));
    let records: Vec<_> = [live, paid(7)].into_iter().chain(many).chain([anew, next]).collect();
    let count = i64::try_from(records.len())?;
    pass_over(&lab, &records, 0, count).await?;
    ensure!(bring_back(&lab).await? == Some(12));
    ensure!(orphaned(&lab).await?.is_empty(), "it has left the chain");
    let client = lab.database().await?;
    client.execute(payments::store::ON_RETURN.note, &[&vec![CHAIN]]).await?;
    ensure!(bring_back_from(&lab, 1).await? == Some(12));
    ensure!(orphaned(&lab).await?.is_empty(), "it was credited again");
    Ok(())
}

/// As above; what tells so is read with it at first, and then not, since a record that comes later is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_block_that_left_the_chain_is_passed_over_though_a_later_record_is_refused_at_first() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let below = wire::MatchesRecord { witnessed_number: Some(12), ..matches(2, Kind::Added, 12) };
    let other = |record| wire::MatchesRecord { hash: hash(99).into(), ..record };
    let next = |record| wire::MatchesRecord { parent_hash: hash(99).into(), ..record };
    let (removed, branch) = (matches(3, Kind::Removed, 12), other(matches(4, Kind::Added, 12)));
    let records = [matches(1, Kind::Added, 11), below, paid(12), removed, branch, next(matches(5, Kind::Added, 13)), paid(5)];
    pass_over(&lab, &records, 0, 7).await?;
    ensure!(bring_back(&lab).await? == Some(13));
    let replayed = [other(matches(0, Kind::Replayed, 12)), next(matches(0, Kind::Replayed, 13))];
    let after_gap = [&[matches(9, Kind::Added, 14)][..], &replayed].concat();
    pass_over(&lab, &after_gap, 7, 10).await?;
    lab.database().await?.execute(payments::store::ON_RETURN.note, &[&vec![CHAIN]]).await?;
    ensure!(bring_back_from(&lab, 2).await? == Some(14));
    ensure!(orphaned(&lab).await? == [5], "{:?}", orphaned(&lab).await?);
    Ok(())
}

/// Only records of tags are missing: the next block is matched at once, and a backfill comes behind it. Others may come behind that.
#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_behind_a_gap_says_again_what_is_in_doubt_and_its_chain_goes_on() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let below = wire::MatchesRecord { witnessed_number: Some(11), ..matches(1, Kind::Added, 11) };
    let doubted = [matches(2, Kind::Added, 12), matches(3, Kind::Added, 13)];
    let after = [matches(9, Kind::Added, 14), matches(10, Kind::Added, 15)];
    let replayed = (11..=13).map(|number| matches(0, Kind::Replayed, number));
    let others = [paid(5), matches(0, Kind::Replayed, 11)];
    let records: Vec<_> = [below].into_iter().chain(doubted).chain(after).chain(replayed).chain(others).collect();
    pass_over(&lab, &records, 0, 10).await?;
    let head = bring_back(&lab).await?;
    ensure!(head == Some(15), "the head is {head:?}");
    Ok(())
}

/// Waits until what was published of the first chain is matched, and passed over by the confirmer.
async fn until_matched(lab: &Lab) -> Result<()> {
    let (head, db) = (lab.node.head().await?, lab.database().await?);
    let admin = KafkaAdmin::of(lab)?;
    let partition = Topic::Matches.partition_of(CHAIN);
    eventually("the matches to be passed over", || async {
        let matches: Vec<topics::wire::MatchesRecord> = e2e::records(lab).await?;
        let matched = matches.iter().any(|record| record.chain_id == 31337 && record.number == head);
        let sql = "SELECT next_offset FROM stage_offsets WHERE stage = 'confirmer' AND partition = $1";
        let next = db.query_opt(sql, &[&partition]).await?.map(|row| row.get::<_, i64>(0));
        // The last offset of the partition is the marker of a transaction.
        Ok((matched && next.is_some_and(|next| next + 1 >= admin.end(Topic::Matches, CHAIN).unwrap_or(i64::MAX))).then_some(()))
    })
    .await
}

#[tokio::test]
async fn an_intent_that_cant_be_read_is_named_and_keeps_no_other_from_kafka() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut server, api) = lab.serve("api", "shop").await?;
    let (broken, whole) = (api.coin(1).await?, api.coin(2).await?);
    let db = lab.database().await?;
    let unacknowledged = async || {
        let rows = db.query("SELECT payment_id::text FROM unacknowledged_intents", &[]).await?;
        anyhow::Ok(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>())
    };
    eventually("no intent to be left", async || Ok(unacknowledged().await?.is_empty().then_some(()))).await?;
    let intents = records::<wire::PaymentIntent>(&lab).await?;
    let intent = intents.iter().find(|intent| intent.payment_id == whole.id()).context("its intent")?;
    let ids = [broken.id().parse::<Uuid>()?, whole.id().parse()?];
    let intents = [vec![0xff; 9], intent.encode_to_vec()];
    let overdue = "INSERT INTO unacknowledged_intents (payment_id, intent, created_at)
                   SELECT *, now() - interval '1 hour' FROM unnest($1::uuid[], $2::bytea[])";
    db.execute(overdue, &[&ids.as_slice(), &intents.as_slice()]).await?;
    eventually("the other intent to be published again", async || Ok((unacknowledged().await? == [broken.id()]).then_some(())))
        .await?;
    ensure!(api.get(whole.id()).await?.address()? == whole.address()?);
    let (status, answer) = api.request(Method::GET, &format!("/api/v1/payments/{}", broken.id()), None, &[]).await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status} {answer}");
    let (status, page) = api.request(Method::GET, "/api/v1/payments", None, &[]).await?;
    let shown: Vec<_> = page["data"].as_array().into_iter().flatten().map(|payment| payment["id"].as_str()).collect();
    ensure!(status.is_success() && shown == [Some(whole.id())], "{status} {page}");

    let stages = async || {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        anyhow::Ok(health["components"]["set_aside"].as_array().map_or(0, Vec::len))
    };
    eventually("/health to count it", async || Ok((stages().await? == 1).then_some(()))).await?;
    eventually("the metric to count it", async || {
        Ok((server.metric("set_aside_items", &[("kind", "intent")]).await? == 1.0).then_some(()))
    })
    .await?;
    let named = lab.ctrip(&["set-aside"])?;
    ensure!(named.contains(broken.id()) && named.contains("`ctrip intents republish`"), "{named}");
    lab.ctrip(&["intents", "republish"])?;
    ensure!(api.get(broken.id()).await?.address()? == broken.address()?, "it was made again from its payment");
    eventually("/health to be well again", async || Ok((stages().await? == 0).then_some(()))).await?;
    server.check()
}

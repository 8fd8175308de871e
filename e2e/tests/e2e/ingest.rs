//! Whatever nodes and providers do wrong, ingest publishes every block and log once and in order.

use anyhow::{Context as _, Result, ensure};
use e2e::{Extent, Fault, HistoryReader, Lab, Lacks, Node, Plan, Rig, write_chains};
use std::time::{Duration, Instant};

const SOUND: Lacks = Lacks { batches: false, block_receipts: false };
const BARE: Lacks = Lacks { batches: true, block_receipts: true };
/// False answers that a proof detects.
const LIES: [Fault; 4] = [Fault::EmptyLogs, Fault::LogMissing, Fault::ReceiptAltered, Fault::WrongParent];
/// Answers of a provider over its rate limit.
const LIMITS: [Fault; 3] = [Fault::TooManyRequests(None), Fault::TooManyRequests(Some(1)), Fault::LimitExceeded];

/// All faults of an endpoint that accepts connections. A silence lasts until the client times out, so there are few.
fn matrix() -> Vec<(Fault, Extent)> {
    let times = Extent::Times;
    let seconds = |seconds| Extent::For(Duration::from_secs(seconds));
    vec![
        // For a duration and not a number of times: an empty list by number is requested again by hash, and only then a lie.
        (Fault::EmptyLogs, seconds(1)),
        (Fault::LogMissing, times(3)),
        (Fault::ReceiptAltered, times(3)),
        (Fault::WrongParent, seconds(1)),
        (Fault::OtherBlocksReceipts, times(3)),
        (Fault::NullBlock, seconds(1)),
        (Fault::BreaksOff, times(5)),
        (Fault::Truncated, times(5)),
        (Fault::Malformed, times(5)),
        (Fault::Html, times(5)),
        (Fault::ServerError, times(5)),
        (Fault::RangeError, times(3)),
        (Fault::Behind(3), seconds(2)),
        (Fault::Silence, times(2)),
        (Fault::TooManyRequests(None), times(6)),
        (Fault::TooManyRequests(Some(1)), times(6)),
        (Fault::LimitExceeded, times(6)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_the_only_endpoint_loses_doubles_or_misorders_a_block() -> Result<()> {
    let mut rig = Rig::start(&[SOUND]).await?;
    rig.traffic().await?;
    rig.arrive().await?;
    for (fault, extent) in matrix() {
        let started = Instant::now();
        let unproven = unproven(&rig).await?;
        rig.endpoint().make(fault, extent);
        until_over(&rig, fault).await?;
        rig.arrive().await.with_context(|| format!("after {fault:?}"))?;
        let caught = self::unproven(&rig).await? > unproven;
        ensure!(caught || !LIES.contains(&fault), "{fault:?} was not told in chain_unproven_answers_total");
        println!("{fault:?}: {} times, {:.1?}", rig.endpoint().made(fault), started.elapsed());
        if LIMITS.contains(&fault) {
            // Its reduced request rate would stay low for a while.
            rig.restart()?;
        }
    }
    ensure!(rig.endpoint().asked("batch") > 0, "batches were to be had and not used");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_endpoint_does_not_keep_ingest_from_the_head_that_a_sound_one_has() -> Result<()> {
    let mut rig = Rig::start(&[SOUND, SOUND]).await?;
    rig.traffic().await?;
    rig.arrive().await?;
    for (fault, _) in matrix() {
        let started = Instant::now();
        rig.endpoint().make(fault, Extent::Always);
        rig.traffic().await?;
        rig.arrive().await.with_context(|| format!("with {fault:?}"))?;
        e2e::eventually("the fault", || async { Ok((rig.endpoint().made(fault) > 0).then_some(())) }).await?;
        println!("{fault:?}: {} times, {:.1?}", rig.endpoint().made(fault), started.elapsed());
        rig.endpoint().heal();
        // Without a restart ingest would avoid the endpoint for a while, and not meet the next fault.
        rig.restart()?;
        rig.traffic().await?;
        rig.arrive().await.with_context(|| format!("restarted after {fault:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_logs_without_receipts_is_seen_by_the_bloom_or_by_a_second_endpoint() -> Result<()> {
    let mut rig = Rig::start(&[BARE, SOUND]).await?;
    rig.traffic().await?;
    rig.arrive().await?;
    let of_logs = [
        Fault::EmptyLogs,
        Fault::LogMissing,
        Fault::ReceiptAltered,
        Fault::OtherBlocksReceipts,
        Fault::RangeError,
        Fault::NullBlock,
        Fault::Html,
    ];
    for fault in of_logs {
        let started = Instant::now();
        // Once: afterwards ingest prefers the other endpoint.
        rig.endpoint().make(fault, Extent::Times(1));
        until_over(&rig, fault).await?;
        rig.arrive().await.with_context(|| format!("after {fault:?}"))?;
        println!("{fault:?}: {} times, {:.1?}", rig.endpoint().made(fault), started.elapsed());
        rig.restart()?;
        rig.traffic().await?;
        rig.arrive().await?;
    }
    ensure!(rig.endpoint().asked("eth_getLogs") > 0, "logs were never asked for");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_changes_between_two_calls_is_published_from_one_branch_alone() -> Result<()> {
    for lacks in [SOUND, BARE] {
        let mut rig = Rig::start(&[lacks]).await?;
        rig.traffic().await?;
        rig.arrive().await?;
        for _ in 0..3 {
            // So far behind that ingest requests blocks by number.
            rig.endpoint().make(Fault::Behind(100), Extent::Always);
            rig.traffic().await?;
            rig.pay_blocks(3).await?;
            let fault = Fault::Reorg(5);
            let before = rig.endpoint().made(fault);
            rig.endpoint().make(fault, Extent::Times(1));
            e2e::eventually("the change", || async { Ok((rig.endpoint().made(fault) > before).then_some(())) }).await?;
            e2e::eventually("its end", || async { Ok((!rig.endpoint().is_faulty()).then_some(())) }).await?;
            rig.traffic().await?;
            rig.arrive().await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_endpoints_down_the_role_lives_other_chains_go_on_and_so_does_it_afterwards() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let other = Node::start_with(&lab.stack, &["--chain-id", "31338"]).await?;
    let yaml = format!(
        "- {{ name: other, chain_id: 31338, rpc_url: \"{}\", confirmations: 1, start_block: 0, poll_interval_ms: 20 }}\n",
        other.url
    );
    let mut rig = Rig::on(lab, &[SOUND, SOUND], &yaml).await?;
    let others = HistoryReader::new(31338);
    rig.traffic().await?;
    let before = rig.arrive().await?;
    for endpoint in &mut rig.endpoints {
        endpoint.close().await?;
    }
    let (down, refused) = (Instant::now(), errors(&rig).await?);
    let age = rig.ingest.metric("chain_head_age_seconds", &[("chain", "anvil")]).await?;
    rig.traffic().await?;
    let mut open = 0.0_f64;
    // Until the back-off of both has grown from 250 ms to its longest, 10 s: three errors open a circuit, six more double it.
    while errors(&rig).await? < refused + 18.0 {
        ensure!(down.elapsed() < Duration::from_secs(60), "{} errors in a minute", errors(&rig).await? - refused);
        other.mine(1).await?;
        let head = other.head_hash().await?;
        e2e::eventually("the other chain's head", || async {
            Ok(Some(others.read(&rig.lab).await?).filter(|history| history.tip().as_ref() == Some(&head)))
        })
        .await?;
        rig.ingest.check()?;
        // The sum of both circuits, 2 for an open one.
        open = open.max(rig.ingest.metric("rpc_endpoint_state", &[("chain", "anvil")]).await?);
    }
    // It is measured with each request, so it is as old as the longest back-off.
    let older = rig.ingest.metric("chain_head_age_seconds", &[("chain", "anvil")]).await? - age;
    ensure!(older > down.elapsed().as_secs_f64() - 15.0, "the head is {older} s older after {:?}", down.elapsed());
    ensure!(open > 2.0, "no metric tells that both endpoints are down (rpc_endpoint_state adds up to {open})");
    let meanwhile = rig.history().await?;
    ensure!(meanwhile.added == before.added, "blocks without an endpoint");
    for endpoint in &mut rig.endpoints {
        endpoint.open().await?;
    }
    let back = Instant::now();
    rig.arrive().await?;
    println!("at the head {:.1?} after the endpoints were back", back.elapsed());
    rig.traffic().await?;
    rig.arrive().await?;
    others.read(&rig.lab).await?.check(&other.url, 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_another_chain_is_left_out_and_a_chain_that_has_no_other_stops_nobody() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        endpoints.push(e2e::Proxy::start(&lab.node.url, SOUND).await?);
    }
    endpoints[0].make(Fault::ChainId(5), Extent::Always);
    // Nobody knows the id of the last one.
    let others = format!(
        "- {{ name: elsewhere, chain_id: 31338, rpc_url: \"{}\" }}\n- {{ name: nobody, rpc_url: \"http://127.0.0.1:1\" }}\n",
        lab.node.url
    );
    write_chains(&lab, &endpoints, &others)?;
    let ingest = lab.spawn("ingest")?;
    let head = lab.node.head_hash().await?;
    let history = HistoryReader::new(31337);
    e2e::eventually("the chain of the other endpoint", || async {
        Ok((history.read(&lab).await?.tip().as_ref() == Some(&head)).then_some(()))
    })
    .await?;
    e2e::eventually("a chain without an endpoint is told", || async {
        let halted = ingest.metric("chain_halted", &[("chain", "elsewhere")]).await.ok();
        let said = ingest.tail();
        let named = ["of chain 5; expected 31337", "of chain 31337; expected 31338", "nobody has no chain_id"];
        Ok((halted == Some(1.0) && named.iter().all(|cause| said.contains(cause))).then_some(()))
    })
    .await?;
    ensure!(HistoryReader::new(31338).read(&lab).await?.steps.is_empty(), "it published another chain's blocks");
    Ok(())
}

/// Makes payments until the fault was injected as often or as long as requested; and then some more.
async fn until_over(rig: &Rig, fault: Fault) -> Result<()> {
    let started = Instant::now();
    while rig.endpoint().is_faulty() {
        rig.traffic().await?;
        ensure!(started.elapsed() < Duration::from_secs(60), "{fault:?} was made {} times", rig.endpoint().made(fault));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(rig.endpoint().made(fault) > 0, "{fault:?} was not made");
    rig.traffic().await
}

async fn errors(rig: &Rig) -> Result<f64> {
    rig.ingest.metric("rpc_requests_total", &[("chain", "anvil"), ("outcome", "error")]).await
}

async fn unproven(rig: &Rig) -> Result<f64> {
    // A new process does not serve metrics yet.
    e2e::eventually("metrics", || async {
        Ok(rig.ingest.metric("chain_unproven_answers_total", &[("chain", "anvil")]).await.ok())
    })
    .await
}

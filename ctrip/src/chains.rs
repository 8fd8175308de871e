//! Commands about chains: trying their endpoints, bringing their past, letting them go on.

use anyhow::{Context as _, bail};
use chain::{Chain, Chains, HeadsError, Hearing, LAGS, Probe, Trial};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ingest::Request;
use runtime::Settings;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Tries every endpoint and prints what it can do and what it proves; URLs, which carry keys, are not shown.
///
/// # Errors
/// When a chain has no endpoint that can be used, or an endpoint or a websocket of another chain.
pub async fn check(settings: Settings, only: Option<&str>) -> anyhow::Result<()> {
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    if let Some(name) = only {
        chains.named(name)?;
    }
    let mut wrong = Vec::new();
    for chain in chains.iter().filter(|chain| only.is_none_or(|name| chain.name == name)) {
        let (trials, hearings) = tokio::join!(chain::check(chain), chain::check_websockets(chain));
        print(chain, &trials, &hearings);
        if trials.iter().all(|trial| trial.verdict.is_err()) {
            wrong.push(format!("{} has no usable endpoint", chain.name));
        }
        // Neither would be listened to; but whoever wrote it there meant something else.
        let others = trials.iter().filter(|trial| trial.probe.chain_id.is_some_and(|id| id != chain.id));
        let endpoints = others.map(|trial| format!("{} of {} is of another chain", trial.probe.endpoint, chain.name));
        let others = hearings.iter().filter(|hearing| matches!(hearing.verdict, Err(HeadsError::WrongChain { .. })));
        let sockets = others.map(|hearing| format!("websocket {} of {} is of another chain", hearing.endpoint, chain.name));
        wrong.extend(endpoints.chain(sockets));
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn print(chain: &Chain, trials: &[Trial], hearings: &[Hearing]) {
    let newest = trials.iter().filter_map(|trial| trial.probe.head).max();
    let mut rows = vec![Probe::columns()];
    rows.extend(trials.iter().map(|trial| trial.probe.cells(newest)));
    println!("{} (chain id {})", chain.name, chain.id);
    print!("{}", chain::table(&rows));
    for Trial { probe, verdict } in trials {
        let lag = probe.lag(newest).filter(|lag| *lag > LAGS);
        let behind = lag.map(|lag| format!(", but {lag} blocks behind the newest, so asked last")).unwrap_or_default();
        match verdict {
            Ok(proof) => println!("  {}: usable{behind}; {proof}", probe.endpoint),
            Err(cause) => println!("  {}: not usable: {cause}", probe.endpoint),
        }
    }
    for Hearing { endpoint, verdict } in hearings {
        match verdict {
            Ok(head) => println!("  websocket {endpoint}: usable; tells new heads, and is at block {head}"),
            Err(cause) => println!("  websocket {endpoint}: not usable: {}", runtime::chain_of(cause)),
        }
    }
    let usable = trials.iter().filter(|trial| trial.verdict.is_ok()).count();
    let heard = hearings.iter().filter(|hearing| hearing.verdict.is_ok()).count();
    let sockets = match hearings.len() {
        0 => format!("no websocket, so a new block is seen within {:?}", chain.poll_interval),
        all => format!("{heard} of {all} websockets usable"),
    };
    println!("{}: {usable} of {} endpoints usable, {sockets}\n", chain.name, trials.len());
}

/// Brings a past range, with a progress bar on a terminal and a line now and then elsewhere.
pub async fn backfill(settings: Settings, request: Request) -> anyhow::Result<()> {
    let blocks = request.to.saturating_sub(request.from).saturating_add(1);
    let style = "{msg} {wide_bar} {human_pos}/{human_len} blocks, {per_sec}, {eta} left";
    let bar = ProgressBar::with_draw_target(Some(blocks), ProgressDrawTarget::stderr_with_hz(5))
        .with_style(ProgressStyle::with_template(style).context("the progress bar")?)
        .with_message(request.chain.clone());
    let stop = CancellationToken::new();
    let (shown, last) = (bar.clone(), Mutex::new(Instant::now()));
    let started = std::sync::OnceLock::new();
    let progress = move |done: u64| {
        // What was there already is no rate.
        if started.set(done).is_ok() {
            shown.reset_elapsed();
            shown.set_position(done);
            shown.reset_eta();
        }
        shown.set_position(done);
        if shown.is_hidden()
            && let Ok(mut last) = last.lock()
            && (last.elapsed() > TOLD_EVERY || done == blocks)
        {
            *last = Instant::now();
            eprintln!("{done} of {blocks} blocks, {:.0} a second, {:.0?} left", shown.per_sec(), shown.eta());
        }
    };
    let (range, stopped) = (format!("{} to {}", request.from, request.to), stop.clone());
    let work = ingest::backfill(&settings, request, stop.clone(), progress);
    tokio::pin!(work);
    tokio::select! {
        outcome = &mut work => outcome?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("listening for signals")?;
            stop.cancel();
            work.await?;
        }
    }
    bar.abandon();
    if stopped.is_cancelled() {
        bail!("interrupted; the same command goes on where it stopped");
    }
    println!("blocks {range} are in the topics");
    Ok(())
}

/// Tells why a chain halted and what would be taken back; with that number given, lets it go on.
pub async fn resume(settings: Settings, chain: &str, take_back: u64) -> anyhow::Result<()> {
    let (found, goes_on) = ingest::resume(&settings, chain, take_back).await?;
    println!("{chain} halted: {}", found.halted);
    println!("last block published: {}", found.tip);
    println!("last one that the nodes have too: {}", found.common);
    println!("blocks to take back: {}", found.take_back);
    if !goes_on {
        bail!(
            "not resumed: payments in those blocks would be taken back; if that is right, run it again with --take-back {}",
            found.take_back
        );
    }
    println!("resumed: a running ingest goes on within seconds");
    Ok(())
}

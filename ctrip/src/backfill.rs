//! `ctrip backfill`: brings a past range of a chain into the topics.

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ingest::BackfillRequest;
use runtime::Settings;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often to report progress where there is no terminal.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Runs the backfill, with a progress bar on a terminal and a line per [`REPORT_INTERVAL`] elsewhere.
pub async fn run(settings: Settings, request: BackfillRequest) -> anyhow::Result<()> {
    let blocks = request.to.saturating_sub(request.from).saturating_add(1);
    let style = "{msg} {wide_bar} {human_pos}/{human_len} blocks, {per_sec}, {eta} left";
    let bar = ProgressBar::with_draw_target(Some(blocks), ProgressDrawTarget::stderr_with_hz(5))
        .with_style(ProgressStyle::with_template(style).context("the progress bar")?)
        .with_message(request.chain.clone());
    let stop = CancellationToken::new();
    let (shown, last) = (bar.clone(), Mutex::new(Instant::now()));
    let started = Arc::new(OnceLock::new());
    let before = Arc::clone(&started);
    let progress = move |done: u64| {
        // Blocks of an earlier run do not count for the rate.
        if started.set(done).is_ok() {
            shown.reset_elapsed();
            shown.set_position(done);
            shown.reset_eta();
        }
        shown.set_position(done);
        if shown.is_hidden()
            && let Ok(mut last) = last.lock()
            && (last.elapsed() > REPORT_INTERVAL || done == blocks)
        {
            *last = Instant::now();
            eprintln!("{done} of {blocks} blocks, {:.0} per second, {:.0?} left", shown.per_sec(), shown.eta());
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
        bail!("interrupted; the same command without --again continues where it stopped");
    }
    if before.get() == Some(&blocks) {
        println!("blocks {range} were published by an earlier run, and are not published again; --again does that");
    } else {
        println!("blocks {range} are in the topics");
    }
    Ok(())
}

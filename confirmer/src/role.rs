//! Runs the role's stages until one ends: the comparison of Postgres with the topics, and once that is through, the folds of
//! `chain.matches` and `sweep.events`, what the latter settles, the return of chains that were set aside, and the relay of the outbox.
//! What emits events wakes the relay.

use crate::aside::{self, Faults};
use crate::fold::{Batch, FOLDING};
use crate::relay;
use crate::returning;
use crate::{settle, sweeps};
use base::locked;
use chain::Listing;
use deadpool_postgres::Pool;
use recovery::Recovery;
use runtime::db::{self, CommitMode};
use runtime::{Failure, Kafka, Settings, stage};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Runs until `stop`.
///
/// # Errors
/// When the configuration is wrong, or a stage halts.
pub async fn run(settings: Settings, kafka: Kafka, listing: Listing, stop: CancellationToken) -> anyhow::Result<()> {
    let recovery = Recovery::new(kafka.clone(), &settings)?;
    let pool = db::generic_plan_pool(&settings.database_url, 6, CommitMode::Synchronous, Some(recovery.gate()))?;
    let (wake, woken) = channel();
    // A stage's body is run again after each failure, with the one receiver there is.
    let woken = Mutex::new(woken);

    let mut stages = JoinSet::new();
    stages.spawn(recovery.clone().run(stop.clone()));
    // Nothing is folded before Postgres has what the topics have.
    tokio::select! {
        () = recovery.gate().opened() => {}
        Some(ended) = stages.join_next() => return ended?,
    }
    let settled = wake.clone();
    let (folding_kafka, folding_pool, listed, handle) = (kafka.clone(), pool.clone(), listing.clone(), Handle::current());
    stages.spawn(stage::run(FOLDING.stage, stop.clone(), move |stop| {
        follow(&folding_kafka, &folding_pool, &listed, &handle, &wake, stop)
    }));
    let (aside_kafka, aside_pool, handle) = (kafka.clone(), pool.clone(), Handle::current());
    stages.spawn(stage::run("confirmer-aside", stop.clone(), move |stop| {
        returning::catch_up(&aside_kafka, &aside_pool, &listing, &handle, stop)
    }));
    let (sweeps_kafka, sweeps_pool, handle) = (kafka.clone(), pool.clone(), Handle::current());
    stages.spawn(stage::run(sweeps::FOLDING.stage, stop.clone(), move |stop| {
        sweeps::follow(&sweeps_kafka, &sweeps_pool, &handle, stop)
    }));
    let (settling_pool, handle) = (pool.clone(), Handle::current());
    stages.spawn(stage::run("settle", stop.clone(), move |stop| settle::run(&settling_pool, &handle, &settled, stop)));
    let handle = Handle::current();
    stages.spawn(stage::run("outbox", stop.clone(), move |stop| {
        let woken = locked(&woken);
        relay::run(&kafka, &pool, &recovery, &handle, &woken, stop)
    }));
    stage::all_ended(stages, "confirmer", &stop).await
}

fn follow(
    kafka: &Kafka,
    pool: &Pool,
    listing: &Listing,
    handle: &Handle,
    wake: &Sender<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    FOLDING.follow(kafka, pool, handle, stop, |spans| {
        let chains = listing.chains();
        for (span, records) in spans {
            let mut faults = Faults::new();
            let records = records.iter().filter_map(|record| aside::read(record, &mut faults).transpose());
            let records = records.collect::<Result<_, _>>()?;
            if handle.block_on(aside::apply(pool, &chains, &Batch { span: span.clone(), records }, faults))? > 0 {
                // The receiver is gone only when the role ends.
                let _ = wake.send(());
            }
        }
        Ok(())
    })
}

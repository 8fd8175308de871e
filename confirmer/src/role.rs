//! Runs the role's two stages until one ends: the fold of `chain.matches` and the relay of the outbox. The fold wakes the relay
//! after each batch that emitted events.

use crate::fold::{self, Batch, FOLDING};
use crate::relay;
use anyhow::anyhow;
use chain::Chains;
use deadpool_postgres::Pool;
use runtime::db::{self, CommitMode};
use runtime::kafka::Record;
use runtime::{Failure, Kafka, Settings, stage};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use topics::{Matches, frame, wire};

/// Runs until `stop`.
///
/// # Errors
/// When the configuration is wrong, or a stage halts.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    let kafka = Kafka::connect(&settings).await?;
    let pool = db::generic_plan_pool(&settings.database_url, 4, CommitMode::Synchronous)?;
    let (wake, woken) = channel();
    // A stage's body is run again after each failure, with the one receiver there is.
    let woken = Mutex::new(woken);

    let mut stages = JoinSet::new();
    let (folding_kafka, folding_pool, handle) = (kafka.clone(), pool.clone(), Handle::current());
    stages.spawn(stage::run(FOLDING.stage, stop.clone(), move |stop| {
        follow(&folding_kafka, &folding_pool, &chains, &handle, &wake, stop)
    }));
    let handle = Handle::current();
    stages.spawn(stage::run("outbox", stop.clone(), move |stop| {
        let woken = woken.lock().map_err(|_| Failure::Halt(anyhow!("the relay panicked in an earlier run")))?;
        relay::run(&kafka, &pool, &handle, &woken, stop)
    }));
    while let Some(ended) = stages.join_next().await {
        ended??;
        if !stop.is_cancelled() {
            anyhow::bail!("a stage of the confirmer ended by itself");
        }
    }
    Ok(())
}

fn follow(
    kafka: &Kafka,
    pool: &Pool,
    chains: &Chains,
    handle: &Handle,
    wake: &Sender<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    FOLDING.follow(kafka, pool, handle, stop, |spans| {
        for (span, records) in spans {
            let records = records.iter().map(|record| decode(record)).collect::<Result<_, _>>()?;
            if handle.block_on(fold::apply(pool, chains, &Batch { span: *span, records }))? > 0 {
                // The receiver is gone only when the role ends.
                let _ = wake.send(());
            }
        }
        Ok(())
    })
}

/// A record that can't be decoded halts the stage: skipping it would break the chain's order.
fn decode(record: &Record<'_>) -> Result<Matches, Failure> {
    let place = || FOLDING.place(record);
    let decoded: wire::MatchesRecord = frame::decode(record.payload()).map_err(|e| Failure::halt(e).context(place()))?;
    Matches::try_from(&decoded).map_err(|e| Failure::halt(e).context(place()))
}

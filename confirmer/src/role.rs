use crate::fold::{self, Batch, FOLDING};
use crate::relay;
use anyhow::anyhow;
use chain::Chains;
use deadpool_postgres::Pool;
use runtime::db::{self, Commits};
use runtime::kafka::Record;
use runtime::{Failure, Kafka, Settings, stage};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use topics::{Matches, frame, wire};

/// The role: `chain.matches` into payments, and their events to Kafka.
///
/// # Errors
/// When the configuration is wrong, or a stage halts.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    let kafka = Kafka::connect(&settings).await?;
    let pool = db::pool_of_ranges(&settings.database_url, 4, Commits::Last)?;
    let (call, called) = channel();
    // A stage's body runs again and again, the receiver lives once.
    let called = Mutex::new(called);

    let mut stages = JoinSet::new();
    let (folding_kafka, folding_pool, handle) = (kafka.clone(), pool.clone(), Handle::current());
    stages.spawn(stage::run(FOLDING.stage, stop.clone(), move |stop| {
        follow(&folding_kafka, &folding_pool, &chains, &handle, &call, stop)
    }));
    let handle = Handle::current();
    stages.spawn(stage::run("outbox", stop.clone(), move |stop| {
        let called = called.lock().map_err(|_| Failure::Halt(anyhow!("the relay panicked before")))?;
        relay::run(&kafka, &pool, &handle, &called, stop)
    }));
    while let Some(ended) = stages.join_next().await {
        ended??;
        if !stop.is_cancelled() {
            anyhow::bail!("a stage of the confirmer ended without being asked to");
        }
    }
    Ok(())
}

fn follow(
    kafka: &Kafka,
    pool: &Pool,
    chains: &Chains,
    handle: &Handle,
    call: &Sender<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    FOLDING.follow(kafka, pool, handle, stop, |spans| {
        for (span, records) in spans {
            let records = records.iter().map(|record| decode(record)).collect::<Result<_, _>>()?;
            if handle.block_on(fold::apply(pool, chains, &Batch { span: *span, records }))? > 0 {
                // The relay is gone only when the role ends.
                let _ = call.send(());
            }
        }
        Ok(())
    })
}

/// A record left out would break the chain's order, so what can't be read stops the stage.
fn decode(record: &Record<'_>) -> Result<Matches, Failure> {
    let place = || FOLDING.place(record);
    let decoded: wire::MatchesRecord = frame::decode(record.payload()).map_err(|e| Failure::halt(e).context(place()))?;
    Matches::try_from(&decoded).map_err(|e| Failure::halt(e).context(place()))
}

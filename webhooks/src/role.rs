use crate::clients::Clients;
use crate::engine::Engine;
use crate::fanout;
use crate::guard::{Guard, System};
use anyhow::Context as _;
use runtime::db::{self, Commits};
use runtime::{Kafka, Settings, stage};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// One for each lane, one for who ends what is pending, and one for the fan-out.
const CONNECTIONS: usize = 5;

/// The role: `payment.events` into deliveries, and deliveries to merchants' endpoints.
///
/// # Errors
/// When the configuration is wrong, or a stage halts.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let guard = Guard::of(&settings);
    let clients = Clients::new(&guard, Arc::new(System)).context("the HTTP client of webhooks")?;
    let kafka = Kafka::connect(&settings).await?;
    // An offset goes with its deliveries; and what is not known to have arrived is sent again.
    let pool = db::pool_of_ranges(&settings.database_url, CONNECTIONS, Commits::MayBeUndone)?;
    let call = Arc::new(Notify::new());

    let mut stages = JoinSet::new();
    let engine = Engine::new(pool.clone(), clients, guard, settings.instance.clone());
    let (handle, called) = (Handle::current(), Arc::clone(&call));
    stages.spawn(stage::run("webhook-engine", stop.clone(), move |stop| handle.block_on(engine.run(&called, stop))));
    let handle = Handle::current();
    stages.spawn(stage::run(fanout::FOLDING.stage, stop.clone(), move |stop| fanout::run(&kafka, &pool, &handle, &call, stop)));
    while let Some(ended) = stages.join_next().await {
        ended??;
        if !stop.is_cancelled() {
            anyhow::bail!("a stage of the webhooks ended without being asked to");
        }
    }
    Ok(())
}

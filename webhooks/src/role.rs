//! The role: the fan-out and the engine, each a stage, on one pool.

use crate::clients::Clients;
use crate::engine::Engine;
use crate::fanout;
use crate::fronts::Fronts;
use crate::ssrf::{Guard, SystemResolver};
use anyhow::Context as _;
use runtime::db::{self, CommitMode};
use runtime::{Kafka, Settings, compared, stage};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// One per lane, one for each task beside them (what is pending for disabled endpoints and what waits, the backlog, the fronts),
/// one for the fan-out.
const POOL_SIZE: usize = 7;

/// Turns `payment.events` into deliveries, and sends those to merchants' endpoints, until `stop`.
///
/// # Errors
/// When the configuration is invalid, or a stage halts.
pub async fn run(settings: Settings, kafka: Kafka, stop: CancellationToken) -> anyhow::Result<()> {
    let guard = Guard::of(&settings);
    let clients = Clients::new(&guard, Arc::new(SystemResolver::default())).context("creating the HTTP client of webhooks")?;
    // A crash undoes whole transactions: offsets go with their deliveries, and a delivery not known to have arrived is retried.
    let pool = db::generic_plan_pool(&settings.database_url, POOL_SIZE, CommitMode::Asynchronous, None)?;
    // Of another installation's topics, or with another's database, it would send events that are not ours.
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = compared::await_comparison("webhooks", &kafka, &pool, fanout::FOLDING.topic) => {}
    }
    let fronts = Arc::new(Fronts::default());

    let mut stages = JoinSet::new();
    let engine = Engine::new(pool.clone(), clients, guard, settings.instance.clone(), Arc::clone(&fronts));
    let handle = Handle::current();
    stages.spawn(stage::run("webhook-engine", stop.clone(), move |stop| handle.block_on(engine.run(stop))));
    let handle = Handle::current();
    stages
        .spawn(stage::run(fanout::FOLDING.stage, stop.clone(), move |stop| fanout::run(&kafka, &pool, &handle, &fronts, stop)));
    stage::all_ended(stages, "webhooks", &stop).await
}

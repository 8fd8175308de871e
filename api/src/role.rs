use crate::account::{Account, Accounts};
use crate::app::{App, Parts};
use crate::batch::{self, Maker};
use crate::catalog::Catalog;
use crate::feed::Feed;
use crate::flight::Flights;
use crate::halts::Halts;
use crate::heads::Heads;
use crate::health::Health;
use crate::housekeeping;
use crate::intents::{self, Intents};
use crate::keys::Keys;
use crate::nodes::Nodes;
use crate::server;
use anyhow::{Context as _, bail};
use axum::extract::Request;
use axum::{Router, ServiceExt};
use deadpool_postgres::Pool;
use runtime::{Kafka, Settings, db};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_http::normalize_path::NormalizePath;
use wallet::AccountXpub;
use webhooks::Guard;

const CONNECTIONS: usize = 16;
/// Requests that are on their way at the stop have this long; the process has 10 s.
const DRAINED_WITHIN: Duration = Duration::from_secs(8);
const POOL_OBSERVED_EVERY: Duration = Duration::from_secs(2);

/// The account key that addresses are derived from.
///
/// # Errors
/// When `CTRIP_XPUB` is missing or is no account xpub.
pub fn xpub(settings: &Settings) -> anyhow::Result<AccountXpub> {
    let Some(text) = settings.xpub.as_deref().filter(|text| !text.is_empty()) else {
        bail!(
            "CTRIP_XPUB is not set, and deposit addresses are derived from it. `ctrip wallet new --out FILE` makes a wallet and \
             prints its account xpub; any other wallet's at m/44'/60'/0' does as well"
        );
    };
    AccountXpub::parse(text).context("CTRIP_XPUB")
}

/// The role: serves the API on `API_LISTEN` until `stop`, then finishes what is on its way.
///
/// # Errors
/// When the configuration is wrong, a part can't be reached at the start, or a task ends that should not.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let xpub = xpub(&settings)?;
    let catalog = Catalog(chain::Chains::load(&settings.chains_file)?.resolve().await?.into_iter().collect());
    let kafka = Kafka::connect(&settings).await?;
    let pool = db::pool(&settings.database_url, CONNECTIONS)?;
    let account = Account::register(xpub, &pool).await?;
    let halts = Halts::default();
    let health = Health::new(&settings.schema_registry_url, Nodes::new(&catalog), halts.clone())?;
    let heads = Heads::new(halts.clone());
    heads.read(&pool).await.map_err(|failure| anyhow::anyhow!("reading the chains' heads: {failure}"))?;
    let listener =
        TcpListener::bind(settings.api_listen).await.with_context(|| format!("API_LISTEN {}", settings.api_listen))?;

    let (intents, acknowledged) = Intents::open(kafka.clone())?;
    let (requests, queue) = mpsc::channel(batch::QUEUE);
    let maker = Maker { pool: pool.clone(), intents: intents.clone() };
    let keys = Arc::new(Keys::new(NonZeroU32::new(settings.api_rate_limit)));
    // The tasks end in the order of the data's way: the server at `stop`, the batcher when the server has dropped its
    // sender, `forget` when nobody publishes any more.
    let mut tasks = JoinSet::new();
    tasks.spawn(batch::run(maker, queue));
    tasks.spawn(intents::forget(pool.clone(), acknowledged));
    tasks.spawn(intents::repair(pool.clone(), intents.clone(), stop.clone()));
    tasks.spawn(halts.follow(kafka.clone(), stop.clone()));
    let feed = Feed::new(stop.clone());
    tasks.spawn(feed.clone().read(kafka));
    tasks.spawn(heads.clone().follow(pool.clone(), stop.clone()));
    tasks.spawn(housekeeping::run(pool.clone(), settings.history_keep_days, stop.clone()));
    tasks.spawn(Arc::clone(&keys).write_uses(pool.clone(), stop.clone()));
    tasks.spawn(observe(pool.clone(), stop.clone()));
    let app = App::new(Parts {
        pool,
        catalog,
        keys,
        accounts: Accounts::new(account),
        intents,
        requests,
        health,
        heads,
        feed,
        flights: Flights::default(),
        guard: Guard::of(&settings),
    });
    tracing::info!("the API listens on http://{}", listener.local_addr()?);
    let service = server::service(app).context("the OpenAPI document")?;
    tasks.spawn(serve(listener, service, stop.clone()));

    tokio::select! {
        () = stop.cancelled() => {}
        Some(ended) = tasks.join_next() => {
            ended.context("a task of the API")?;
            if !stop.is_cancelled() {
                bail!("a task of the API ended without being asked to");
            }
        }
    }
    let drained = tokio::time::timeout(DRAINED_WITHIN, async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task of the API")?;
        }
        anyhow::Ok(())
    });
    match drained.await {
        Ok(outcome) => outcome,
        Err(_) => {
            tracing::warn!("connections were still open {DRAINED_WITHIN:?} after the stop and are cut off");
            Ok(())
        }
    }
}

async fn serve(listener: TcpListener, service: NormalizePath<Router>, stop: CancellationToken) {
    let service = ServiceExt::<Request>::into_make_service(service);
    let served = axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await;
    // axum retries what fails, so this is for the type.
    if let Err(error) = served {
        tracing::error!("serving HTTP: {error}");
    }
}

async fn observe(pool: Pool, stop: CancellationToken) {
    while !stop.is_cancelled() {
        db::observe(&pool, "api");
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(POOL_OBSERVED_EVERY) => {}
        }
    }
}

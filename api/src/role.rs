//! Wires the parts of the API and runs them until `stop`.

use crate::app::{App, Parts};
use crate::chains::availability::Availability;
use crate::chains::halts::Halts;
use crate::chains::nodes::Nodes;
use crate::create::batcher::Batcher;
use crate::create::idempotency::InFlightKeys;
use crate::create::intents::{self, Intents};
use crate::create::queue::MAX_QUEUED_REQUESTS;
use crate::event_feed::{EventFeed, StreamLimits};
use crate::health_checks::HealthChecks;
use crate::heavy_work::HeavyWork;
use crate::housekeeping;
use crate::http::body_budget::BodyBudget;
use crate::http::share::Shares;
use crate::read::Reads;
use crate::read_queue::MAX_READ_REQUESTS;
use crate::routes;
use crate::routes::payment_reads::ReadBatcher;
use anyhow::{Context as _, bail};
use axum::Router;
use axum::body::Body;
use chain::Listing;
use deadpool_postgres::Pool;
use merchants::KeyCache;
use merchants::accounts::{self, Account, Accounts};
use recovery::Recovery;
use runtime::db::{Bounds, Replica};
use runtime::http::{self, Limits, Timeouts};
use runtime::{Kafka, Registry, Settings, db};
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tower_http::normalize_path::NormalizePath;
use uuid::Uuid;
use wallet::AccountXpub;
use webhooks::Guard;

/// For keys that were never seen, which anyone can invent.
const MAX_LOOK_UP_CONNECTIONS: usize = 2;
const LISTEN_BACKLOG: u32 = 1024;
/// For requests in flight at the stop; the process has 10 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
const POOL_METRICS_INTERVAL: Duration = Duration::from_secs(2);

/// The account key that addresses are derived from.
///
/// # Errors
/// When `CTRIP_XPUB` is missing or is not an account xpub.
pub fn xpub(settings: &Settings) -> anyhow::Result<AccountXpub> {
    let Some(text) = settings.xpub.as_deref().filter(|text| !text.is_empty()) else {
        bail!(
            "CTRIP_XPUB is not set, and deposit addresses are derived from it. `ctrip wallet new --out FILE` makes a wallet and \
             prints its account xpub; any other wallet's at m/44'/60'/0' does as well"
        );
    };
    AccountXpub::parse(text).context("CTRIP_XPUB")
}

/// Takes `API_LISTEN`, before anything else is touched. Nobody can connect yet.
///
/// # Errors
/// When another process listens there.
pub fn bind(settings: &Settings) -> anyhow::Result<TcpSocket> {
    let address = settings.api_listen;
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        io::Result::Ok(socket)
    };
    bind().with_context(|| format!("API_LISTEN {address}; stop what listens there, or set API_LISTEN to another address"))
}

/// Serves the API on a socket of [`bind`] until `stop`, then finishes the requests in flight.
///
/// # Errors
/// When the configuration is wrong, a dependency can't be reached at the start, or a task ends before `stop`.
pub async fn run(
    settings: Settings,
    kafka: Kafka,
    listing: Listing,
    socket: TcpSocket,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let xpub = xpub(&settings)?;
    let (halts, cursors) = (Halts::default(), kafka.clone());
    let known = halts.clone();
    let reading = tokio::task::spawn_blocking(move || known.read(&cursors));
    // Nothing is created before Postgres has what the topics have.
    let recovery = Recovery::new(kafka.clone(), &settings)?;
    let mut recovering = tokio::spawn(recovery.clone().run(stop.clone()));
    tokio::select! {
        () = recovery.gate().opened() => {}
        ended = &mut recovering => return ended.context("comparing Postgres with the topics")?,
    }
    let installation = recovery.installation().await?;
    let bounds = bounds(&settings);
    let limited = |connections| db::bounded_pool(&settings.database_url, Bounds { connections, ..bounds }, recovery.gate());
    let (pool, look_up_pool) = (limited(bounds.connections)?, limited(MAX_LOOK_UP_CONNECTIONS)?);
    let housekeeping_pool = db::gated_pool(&settings.database_url, 1, recovery.gate())?;
    let replica = settings.database_read_url.as_deref().map(|url| {
        let max_lag = Duration::from_millis(settings.database_read_max_lag_ms);
        Ok::<_, anyhow::Error>((Replica::new(url, bounds, max_lag, &Uuid::new_v4().to_string())?, limited(1)?))
    });
    let replica = replica.transpose()?;
    let account = Account::register(xpub, &pool).await?;
    account.expect_next(&pool).await?;
    recovery.note_own_account(&account, settings.xpub_replaces.as_deref()).await.context("CTRIP_XPUB")?;
    let availability = Availability::new(halts.clone(), kafka.topic_prefix());
    availability.poll(&pool).await.map_err(|failure| failure.context("reading the chains' heads"))?;
    // A transaction that hangs must not hold up the start for ever.
    if let Err(failure) = reading.await.context("reading chain.cursors")? {
        tracing::warn!("chains that have halted are not known yet: reading chain.cursors: {failure}");
    }
    let listener = socket.listen(LISTEN_BACKLOG).with_context(|| format!("API_LISTEN {}", settings.api_listen))?;

    let (intents, acknowledged) = Intents::open(kafka.clone())?;
    let (registry, nodes) = (Registry::new(&settings)?, Nodes::new(listing.clone()));
    let health = HealthChecks::new(registry, pool.clone(), intents.clone(), recovery, nodes, kafka.clone());
    let (create_requests, queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
    let batcher = Batcher { pool: pool.clone(), intents: intents.clone(), installation };
    let keys = Arc::new(KeyCache::new(pool.clone(), look_up_pool, NonZeroU32::new(settings.api_rate_limit)));
    keys.fill().await.map_err(|failure| failure.context("reading the API keys"))?;
    // The tasks end in the order of the data flow: the server at `stop`, the batchers when the server has dropped their
    // senders, `forget` when all publishers are gone.
    let mut tasks = JoinSet::new();
    tasks.spawn(batcher.run(queue));
    tasks.spawn(intents::forget(pool.clone(), acknowledged));
    tasks.spawn(intents::repair(pool.clone(), intents.clone(), stop.clone()));
    tasks.spawn(halts.clone().run(kafka.clone(), stop.clone()));
    let limits = limits(&settings);
    let event_feed = EventFeed::new(StreamLimits::within(limits.connections), stop.clone());
    tasks.spawn(event_feed.clone().run(kafka));
    tasks.spawn(availability.clone().run(pool.clone(), stop.clone()));
    tasks.spawn(housekeeping::run(housekeeping_pool, settings.history_keep_days, stop.clone()));
    tasks.spawn(Arc::clone(&keys).write_last_uses(stop.clone()));
    let accounts = Accounts::new(account);
    tasks.spawn(accounts::derive_ahead(accounts.clone(), stop.clone()));
    tasks.spawn(observe_pool(pool.clone(), stop.clone()));
    if let Some((replica, primary)) = replica.clone() {
        tasks.spawn(replica.follow(primary, stop.clone()));
    }
    let reads = Reads { pool: pool.clone(), replica: replica.map(|(replica, _)| replica), intents: intents.clone() };
    let shares = Shares::of(bounds.connections);
    let (read_requests, read_queue) = mpsc::channel(MAX_READ_REQUESTS);
    let read_batcher = ReadBatcher { reads: reads.clone(), listing: listing.clone(), share: shares.for_all() };
    tasks.spawn(read_batcher.run(read_queue));
    let app = App::new(Parts {
        pool,
        reads,
        listing,
        keys,
        accounts,
        installation,
        intents,
        create_requests,
        read_requests,
        health,
        availability,
        event_feed,
        in_flight_keys: InFlightKeys::default(),
        guard: Guard::of(&settings),
        shares,
        body_budget: BodyBudget::default(),
        heavy_work: HeavyWork::default(),
    });
    tracing::info!("the API listens on http://{}", listener.local_addr()?);
    let service = routes::service(app).context("the OpenAPI document")?;
    tasks.spawn(serve(listener, limits, service, stop.clone()));

    tokio::select! {
        () = stop.cancelled() => {}
        ended = &mut recovering => {
            ended.context("comparing Postgres with the topics")??;
            if !stop.is_cancelled() {
                bail!("comparing Postgres with the topics ended before the stop");
            }
        }
        Some(ended) = tasks.join_next() => {
            ended.context("a task of the API")?;
            if !stop.is_cancelled() {
                bail!("a task of the API ended before the stop");
            }
        }
    }
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task of the API")?;
        }
        anyhow::Ok(())
    });
    match drained.await {
        Ok(outcome) => outcome,
        Err(_) => {
            tracing::warn!("closing the connections that are still open {DRAIN_TIMEOUT:?} after the stop");
            Ok(())
        }
    }
}

fn bounds(settings: &Settings) -> Bounds {
    Bounds {
        connections: usize::from(settings.api_database_connections),
        wait: Duration::from_millis(settings.api_database_wait_ms),
        statement: Duration::from_millis(settings.api_statement_timeout_ms),
    }
}

fn limits(settings: &Settings) -> Limits {
    let number = |connections: u32| usize::try_from(connections).unwrap_or(usize::MAX);
    let wanted = number(settings.api_max_connections);
    // The other files are for Kafka, Postgres, nodes and webhooks.
    let connections = wanted.min(http::raise_open_files() / 2).max(1);
    if connections < wanted {
        tracing::warn!(
            "the API has at most {connections} connections, and not API_MAX_CONNECTIONS={wanted}: the process may open no more \
             files (ulimit -n)"
        );
    }
    Limits {
        server: "api",
        connections,
        connections_per_address: number(settings.api_max_connections_per_address),
        trusted_proxies: settings.api_trusted_proxies.clone(),
        timeouts: Timeouts::default(),
    }
}

async fn serve(listener: TcpListener, limits: Limits, service: NormalizePath<Router>, stop: CancellationToken) {
    let answer = move |request: http::Request| {
        let answered = service.clone().oneshot(request.map(Body::new));
        async move { answered.await.unwrap_or_else(|never| match never {}) }
    };
    http::serve(listener, limits, answer, stop).await;
}

async fn observe_pool(pool: Pool, stop: CancellationToken) {
    while !stop.is_cancelled() {
        db::observe(&pool, "api");
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(POOL_METRICS_INTERVAL) => {}
        }
    }
}

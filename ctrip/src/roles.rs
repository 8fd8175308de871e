//! `ctrip up`, `ctrip api` and the other roles: runs them in this process until a signal, or until one of them ends.

use crate::dependencies;
use crate::instance_lock::InstanceLock;
use crate::listing::{self, Watch};
use anyhow::{Context as _, anyhow, bail};
use chain::{Chains, Listing};
use runtime::{Kafka, Settings, db, exporter, kafka, stage};
use std::fmt;
use std::path::PathBuf;
use std::process;
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long roles may take to finish their batches after the first signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// 128 + SIGINT, as shells report it.
const EXIT_INTERRUPTED: i32 = 130;

/// A part of the pipeline that runs by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Api,
    Ingest,
    Detector,
    Confirmer,
    Webhooks,
    /// The one that opens the file of mnemonics.
    Sweeper {
        mnemonic_file: PathBuf,
    },
}

impl Role {
    /// All that need no key.
    const KEYLESS: [Self; 5] = [Self::Api, Self::Ingest, Self::Detector, Self::Confirmer, Self::Webhooks];

    async fn run(self, settings: Settings, kafka: Kafka, taken: Taken, stop: CancellationToken) -> anyhow::Result<()> {
        let Taken { socket, listing, _lock } = taken;
        let listing = listing.context("CHAINS_FILE");
        match self {
            Self::Api => api::run(settings, kafka, listing?, socket.context("API_LISTEN")?, stop).await,
            Self::Ingest => ingest::run(settings, kafka, listing?, stop).await,
            Self::Detector => detector::run(kafka, stop).await,
            Self::Confirmer => confirmer::run(settings, kafka, listing?, stop).await,
            Self::Webhooks => webhooks::run(settings, kafka, stop).await,
            Self::Sweeper { mnemonic_file } => sweeper::run(settings, kafka, listing?, &mnemonic_file, stop).await,
        }
    }

    /// Whether it reads the chains file.
    fn uses_chains(&self) -> bool {
        match self {
            Self::Api | Self::Ingest | Self::Confirmer | Self::Sweeper { .. } => true,
            Self::Detector | Self::Webhooks => false,
        }
    }

    /// Whether it has business with Postgres, and so a login.
    fn uses_postgres(&self) -> bool {
        match self {
            Self::Api | Self::Confirmer | Self::Webhooks | Self::Sweeper { .. } => true,
            Self::Ingest | Self::Detector => false,
        }
    }

    /// The lock that no other process on this machine may hold. The API has a port instead.
    fn lock(&self, settings: &Settings) -> anyhow::Result<Option<InstanceLock>> {
        let Settings { kafka_brokers, topic_prefix, instance, .. } = settings;
        match self {
            Self::Api => Ok(None),
            // It has one producer per chain, whatever the instance.
            Self::Ingest => InstanceLock::take(&self.to_string(), &[kafka_brokers, topic_prefix]).map(Some),
            Self::Detector | Self::Confirmer | Self::Webhooks | Self::Sweeper { .. } => {
                InstanceLock::take(&self.to_string(), &[kafka_brokers, topic_prefix, instance]).map(Some)
            }
        }
    }

    /// Checks the configuration, which no retry mends, before a port is bound or a connection is opened.
    fn check(&self, settings: &Settings) -> anyhow::Result<()> {
        match self {
            Self::Api => drop(api::xpub(settings)?),
            Self::Sweeper { mnemonic_file } => sweeper::check(mnemonic_file)?,
            Self::Ingest | Self::Detector | Self::Confirmer | Self::Webhooks => {}
        }
        if self.uses_chains() {
            Chains::load(&settings.chains_file)?;
        }
        Ok(())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Api => "api",
            Self::Ingest => "ingest",
            Self::Detector => "detector",
            Self::Confirmer => "confirmer",
            Self::Webhooks => "webhooks",
            Self::Sweeper { .. } => "sweeper",
        })
    }
}

/// What a role has taken before anything else is touched: a second start by mistake ends here, and disturbs nobody.
struct Taken {
    /// Of the API.
    socket: Option<TcpSocket>,
    /// Of the roles that read the chains file, once it is read.
    listing: Option<Listing>,
    /// Held until the role has ended.
    _lock: Option<InstanceLock>,
}

impl Taken {
    fn of(role: &Role, settings: &Settings) -> anyhow::Result<Self> {
        let socket = (*role == Role::Api).then(|| api::bind(settings)).transpose()?;
        Ok(Self { socket, listing: None, _lock: role.lock(settings)? })
    }
}

/// Runs all roles, after the migrations and `topics apply`; the sweeper, if it is given keys.
pub fn up(settings: Settings, mnemonic_file: Option<PathBuf>) -> anyhow::Result<()> {
    let sweeper = mnemonic_file.map(|mnemonic_file| Role::Sweeper { mnemonic_file });
    process(&Role::KEYLESS.into_iter().chain(sweeper).collect::<Vec<_>>(), settings, true)
}

/// Runs one role.
pub fn alone(role: Role, settings: Settings) -> anyhow::Result<()> {
    process(&[role], settings, false)
}

fn process(roles: &[Role], settings: Settings, prepare: bool) -> anyhow::Result<()> {
    for role in roles {
        role.check(&settings)?;
    }
    let tokio = tokio::runtime::Runtime::new().context("the async runtime")?;
    let outcome = tokio.block_on(supervise(roles, settings, prepare));
    // A thread that hangs in a call of a C library must not block the exit.
    tokio.shutdown_background();
    outcome
}

async fn supervise(roles: &[Role], settings: Settings, prepare: bool) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // From now on it ends no role, not even one that has nothing to read again.
    let hangups = signal(SignalKind::hangup()).context("listening for signals")?;
    let taken = roles.iter().map(|role| Ok((role.clone(), Taken::of(role, &settings)?))).collect::<anyhow::Result<Vec<_>>>()?;
    exporter::serve(settings.metrics_listen)?;
    let stop = CancellationToken::new();
    let ready = async {
        dependencies::await_ready(&settings, prepare || roles.iter().any(Role::uses_postgres)).await?;
        if prepare {
            db::migrate(&settings.database_url).await?;
            kafka::apply(&settings).await?;
        }
        let uses_chains = roles.iter().any(Role::uses_chains);
        let watch =
            if uses_chains { Some(Watch::open(&settings.chains_file, roles.contains(&Role::Ingest)).await?) } else { None };
        anyhow::Ok((Kafka::connect(&settings).await?, watch))
    };
    let (kafka, watch) = tokio::select! {
        ready = ready => ready?,
        () = signals.next() => return Ok(()),
    };

    let mut running = JoinSet::new();
    for (role, taken) in taken {
        let (settings, kafka, stop) = (settings.clone(), kafka.clone(), stop.clone());
        let taken = Taken { listing: watch.as_ref().map(Watch::listing), ..taken };
        running.spawn(async move {
            let name = role.to_string();
            (name, role.run(settings, kafka, taken, stop).await)
        });
    }
    if let Some(watch) = watch {
        let watching = tokio::spawn(watch.run(hangups, stop.clone()));
        tokio::spawn(async move {
            if let Err(error) = watching.await {
                tracing::error!("the chains file is not looked after any more: {error}");
                stage::waits(listing::FILE, &format!("SIGHUP does nothing, and no token is asked for; restart: {error}"));
            }
        });
    }
    let ended = tokio::select! {
        () = signals.next() => None,
        ended = running.join_next() => ended,
    };
    // A role that ends by itself is a failure, whatever it returns: the pipeline is incomplete without it.
    let cause = ended.map(|ended| match ended {
        Ok((role, Ok(()))) => anyhow!("{role} ended by itself"),
        Ok((role, Err(error))) => error.context(role),
        Err(panic) => anyhow!(panic).context("a role panicked"),
    });
    if let Some(cause) = &cause {
        tracing::error!("stopping: {cause:#}");
    }
    stop.cancel();
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(SHUTDOWN_TIMEOUT, wind_down(&mut running)) => stopped,
        () = signals.next() => process::exit(EXIT_INTERRUPTED),
    };
    match (cause, stopped) {
        (Some(cause), _) => Err(cause),
        (None, Ok(outcome)) => outcome,
        (None, Err(_)) => {
            bail!("not all roles stopped within {SHUTDOWN_TIMEOUT:?}; the next start resumes from what was committed")
        }
    }
}

async fn wind_down(running: &mut JoinSet<(String, anyhow::Result<()>)>) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = match ended {
            Ok((role, ended)) => ended.context(role),
            Err(panic) => Err(anyhow!(panic).context("a role panicked")),
        };
        if let Err(error) = ended {
            // Each error is logged, the first one is returned.
            tracing::error!("while stopping: {error:#}");
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: stopping");
    }
}

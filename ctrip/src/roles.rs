//! Running roles in this process until a signal, or until one of them ends.

use crate::parts;
use anyhow::{Context as _, anyhow, bail};
use runtime::{Settings, db, kafka, metrics};
use std::fmt;
use std::process;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a role has to finish what it is at, after the first signal.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// As shells say it of a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// A part of the pipeline that runs by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// HTTP in, payments out.
    Api,
    /// Chain to topics.
    Ingest,
    /// Topics to matches.
    Detector,
    /// Matches to payments.
    Confirmer,
    /// Payment events to merchants' endpoints.
    Webhooks,
}

impl Role {
    const ALL: [Self; 5] = [Self::Api, Self::Ingest, Self::Detector, Self::Confirmer, Self::Webhooks];

    async fn run(self, settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
        match self {
            Self::Api => api::run(settings, stop).await,
            Self::Ingest => ingest::run(settings, stop).await,
            Self::Detector => detector::run(settings, stop).await,
            Self::Confirmer => confirmer::run(settings, stop).await,
            Self::Webhooks => webhooks::run(settings, stop).await,
        }
    }

    /// Configuration that no retry mends, looked at before a port is bound or a part is touched.
    fn check(self, settings: &Settings) -> anyhow::Result<()> {
        match self {
            Self::Api => {
                api::xpub(settings)?;
                check_chains(settings)
            }
            Self::Ingest | Self::Confirmer => check_chains(settings),
            Self::Detector | Self::Webhooks => Ok(()),
        }
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
        })
    }
}

fn check_chains(settings: &Settings) -> anyhow::Result<()> {
    chain::Chains::load(&settings.chains_file)?;
    Ok(())
}

/// All roles, after the database and the topics are brought to this version.
pub fn up(settings: Settings) -> anyhow::Result<()> {
    process(&Role::ALL, settings, true)
}

/// One role.
pub fn alone(role: Role, settings: Settings) -> anyhow::Result<()> {
    process(&[role], settings, false)
}

fn process(roles: &[Role], settings: Settings, prepare: bool) -> anyhow::Result<()> {
    for role in roles {
        role.check(&settings)?;
    }
    let tokio = tokio::runtime::Runtime::new().context("the async runtime")?;
    let outcome = tokio.block_on(supervise(roles, settings, prepare));
    // A thread that hangs in a C library's call must not hang the exit.
    tokio.shutdown_background();
    outcome
}

async fn supervise(roles: &[Role], settings: Settings, prepare: bool) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    metrics::serve(settings.metrics_listen)?;
    let stop = CancellationToken::new();
    let ready = async {
        parts::reachable(&settings).await?;
        if prepare {
            db::migrate(&settings.database_url).await?;
            kafka::apply(&settings).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ready = ready => ready?,
        () = signals.next() => return Ok(()),
    }

    let mut running = JoinSet::new();
    for role in roles.iter().copied() {
        let (settings, stop) = (settings.clone(), stop.clone());
        running.spawn(async move { (role, role.run(settings, stop).await) });
    }
    let ended = tokio::select! {
        () = signals.next() => None,
        ended = running.join_next() => ended,
    };
    // One that ends by itself is a failure, whatever it says: the pipeline is not whole without it.
    let cause = ended.map(|ended| match ended {
        Ok((role, Ok(()))) => anyhow!("{role} ended without being asked to"),
        Ok((role, Err(error))) => error.context(role.to_string()),
        Err(panic) => anyhow!(panic).context("a role panicked"),
    });
    if let Some(cause) = &cause {
        tracing::error!("stopping: {cause:#}");
    }
    stop.cancel();
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(STOPS_WITHIN, wind_down(&mut running)) => stopped,
        () = signals.next() => process::exit(INTERRUPTED),
    };
    match (cause, stopped) {
        (Some(cause), _) => Err(cause),
        (None, Ok(outcome)) => outcome,
        (None, Err(_)) => {
            bail!("not all roles stopped within {STOPS_WITHIN:?}; what they were at is taken up at the next start")
        }
    }
}

async fn wind_down(running: &mut JoinSet<(Role, anyhow::Result<()>)>) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = match ended {
            Ok((role, ended)) => ended.context(role.to_string()),
            Err(panic) => Err(anyhow!(panic).context("a role panicked")),
        };
        if let Err(error) = ended {
            // Each is told, the first one decides.
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

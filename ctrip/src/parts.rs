//! Waiting for the parts that a role runs on, which are often started together with it.

use anyhow::{Context as _, bail};
use runtime::{Settings, chain_of};
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(5);

/// Why a part does not answer.
enum Away {
    /// It may come.
    Yet(String),
    /// It is there, and refuses.
    Refused(anyhow::Error),
}

/// Returns when Postgres, Kafka and the registry answer.
///
/// # Errors
/// When one does not within a minute, or refuses us.
pub async fn reachable(settings: &Settings) -> anyhow::Result<()> {
    let postgres = wait("Postgres (DATABASE_URL)", || postgres(&settings.database_url));
    let kafka = wait("Kafka (KAFKA_BROKERS)", || kafka(&settings.kafka_brokers));
    let registry = wait("the schema registry (SCHEMA_REGISTRY_URL)", || registry(&settings.schema_registry_url));
    tokio::try_join!(postgres, kafka, registry)?;
    Ok(())
}

async fn wait<F: Future<Output = Result<(), Away>>>(part: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<()> {
    let (started, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        let cause = match tokio::time::timeout(ATTEMPT, ask()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Away::Refused(error))) => return Err(error.context(part.to_owned())),
            Ok(Err(Away::Yet(cause))) => cause,
            Err(_) => format!("no answer in {ATTEMPT:?}"),
        };
        if started.elapsed() + pause > PATIENCE {
            bail!("{part} did not answer for {PATIENCE:?}: {cause}");
        }
        tracing::warn!("{part} does not answer yet, trying again in {pause:.1?}: {cause}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn postgres(url: &str) -> Result<(), Away> {
    let config: tokio_postgres::Config =
        url.parse().context("expected postgres://user:password@host:port/database").map_err(Away::Refused)?;
    match config.connect(NoTls).await {
        Ok(_) => Ok(()),
        Err(error) => match error.code() {
            // It is starting or stopping, or full; anything else that it says, it will say again.
            Some(&SqlState::CANNOT_CONNECT_NOW | &SqlState::TOO_MANY_CONNECTIONS | &SqlState::ADMIN_SHUTDOWN) | None => {
                Err(Away::Yet(chain_of(&error)))
            }
            Some(_) => Err(Away::Refused(error.into())),
        },
    }
}

/// One broker that accepts connections is enough to find the others.
async fn kafka(brokers: &str) -> Result<(), Away> {
    let mut last = "KAFKA_BROKERS is empty; expected host:port".to_owned();
    for broker in brokers.split(',').map(str::trim).filter(|broker| !broker.is_empty()) {
        match TcpStream::connect(broker).await {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("{broker}: {error}"),
        }
    }
    Err(Away::Yet(last))
}

async fn registry(url: &str) -> Result<(), Away> {
    let answer = reqwest::get(format!("{}/subjects", url.trim_end_matches('/'))).await;
    match answer.and_then(reqwest::Response::error_for_status) {
        Ok(_) => Ok(()),
        Err(error) => Err(Away::Yet(chain_of(&error))),
    }
}

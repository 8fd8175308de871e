//! Waiting for Postgres, Kafka and the registry, which often start together with a role.

use anyhow::{anyhow, bail};
use base::error_chain;
use runtime::kafka::{self, Unusable};
use runtime::{Registry, RegistryError, Settings, db};
use std::future::Future;
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

const TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A process that was paused in an attempt has not waited that long.
const MIN_ATTEMPTS: u32 = 3;
const MIN_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Why an attempt failed.
enum NotReady {
    /// A retry may succeed.
    Unreachable(String),
    /// It answers, and refuses us.
    Refused(anyhow::Error),
}

/// Returns once all three answer, Postgres where it is used.
///
/// # Errors
/// When one does not answer within a minute, or refuses us.
pub async fn await_ready(settings: &Settings, with_postgres: bool) -> anyhow::Result<()> {
    let client = Registry::new(settings)?;
    let postgres = async {
        if with_postgres { wait("Postgres (DATABASE_URL)", || postgres(&settings.database_url)).await } else { Ok(()) }
    };
    let kafka = wait("Kafka (KAFKA_BROKERS)", || kafka(settings));
    let registry = wait("the schema registry (SCHEMA_REGISTRY_URL)", || registry(&client));
    tokio::try_join!(postgres, kafka, registry)?;
    Ok(())
}

async fn wait<F: Future<Output = Result<(), NotReady>>>(name: &str, mut attempt: impl FnMut() -> F) -> anyhow::Result<()> {
    let (started, mut delay, mut attempts) = (Instant::now(), MIN_DELAY, 0);
    loop {
        attempts += 1;
        let cause = match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(NotReady::Refused(error))) => return Err(error.context(name.to_owned())),
            Ok(Err(NotReady::Unreachable(cause))) => cause,
            Err(_) => format!("no answer within {ATTEMPT_TIMEOUT:?}"),
        };
        if attempts >= MIN_ATTEMPTS && started.elapsed() + delay > TIMEOUT {
            bail!("{name} did not answer for {TIMEOUT:?}: {cause}");
        }
        tracing::warn!("{name} does not answer yet, retrying in {delay:.1?}: {cause}");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(MAX_DELAY);
    }
}

async fn postgres(url: &str) -> Result<(), NotReady> {
    let primary = db::Primary::of(url).map_err(NotReady::Refused)?;
    let problem = async {
        if primary.shares_sessions().await? {
            let pooler = "a pooler in transaction mode stands in front of it. Locks, settings and prepared statements of cTrip belong to a \
                          session: set `pool_mode = session`, or name the server itself";
            return Ok(Some(pooler.to_owned()));
        }
        db::contradicting_history(&primary).await
    };
    match problem.await {
        Ok(None) => Ok(()),
        Ok(Some(problem)) => Err(NotReady::Refused(anyhow!(problem))),
        Err(error) if db::refuses_tls(&error) => Err(NotReady::Refused(anyhow::Error::new(error).context(
            "no TLS with it: sslmode in DATABASE_URL says whether the server speaks TLS, and sslrootcert has to name the authority that signed \
             its certificate, which for verify-full has to be of the host in the URL",
        ))),
        Err(error) => match error.code() {
            // It is starting, stopping or full. Any other error would come again.
            Some(&SqlState::CANNOT_CONNECT_NOW | &SqlState::TOO_MANY_CONNECTIONS | &SqlState::ADMIN_SHUTDOWN) | None => {
                Err(NotReady::Unreachable(format!("{}: {}", db::hosts(url), error_chain(&error))))
            }
            Some(&SqlState::PROTOCOL_VIOLATION) => Err(NotReady::Refused(
                anyhow::Error::new(error)
                    .context("PgBouncer needs `pool_mode = session` and `ignore_startup_parameters = options`"),
            )),
            Some(_) => Err(NotReady::Refused(error.into())),
        },
    }
}

/// One broker that answers is enough: it names the others.
async fn kafka(settings: &Settings) -> Result<(), NotReady> {
    kafka::probe(settings).await.map_err(|error| match error {
        Unusable::Unreachable(cause) => NotReady::Unreachable(cause),
        Unusable::Refused(error) => NotReady::Refused(error),
    })
}

async fn registry(client: &Registry) -> Result<(), NotReady> {
    client.ping().await.map_err(|error| match error {
        RegistryError::Unavailable(cause) => NotReady::Unreachable(cause),
        error @ RegistryError::Permanent(_) => NotReady::Refused(error.into()),
    })
}

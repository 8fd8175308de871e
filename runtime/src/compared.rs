//! Which topics a database was compared with. `api` and `confirmer` compare (the crate `recovery`) before they write anything, and
//! refuse another installation's. A role that has Postgres and does not compare waits for that: topics of another `TOPIC_PREFIX` or
//! cluster, or another's database, look like its own.

use crate::db::{self, OwnConnection};
use crate::failure::Failure;
use crate::kafka::{Backlog, Kafka};
use crate::stage::Notice;
use anyhow::anyhow;
use deadpool_postgres::{GenericClient, Pool};
use std::fmt;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use topics::Topic;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Roles that start together wait for each other so long, and that is nothing to tell.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// A `payment.intents` among all that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentsTopic {
    /// With `TOPIC_PREFIX`.
    pub name: String,
    /// Kafka's id of the cluster that has it. Unknown where the brokers give none.
    pub cluster: Option<String>,
}

impl IntentsTopic {
    /// The one that `TOPIC_PREFIX` and `KAFKA_BROKERS` lead to. Kafka is asked for `seen`, which the role may see. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer, or has no such topic.
    pub fn reached(kafka: &Kafka, backlog: &Backlog, seen: Topic) -> Result<Self, Failure> {
        Ok(Self { name: kafka.name(Topic::Intents), cluster: backlog.cluster_id(seen)? })
    }

    /// Whether they are two. What is unknown of a cluster tells nothing.
    pub fn differs_from(&self, other: &Self) -> bool {
        self.name != other.name || self.is_in_another_cluster_than(other)
    }

    /// Whether offsets that are known of one say nothing of the other, although they have one name.
    pub fn is_in_another_cluster_than(&self, other: &Self) -> bool {
        matches!((&self.cluster, &other.cluster), (Some(cluster), Some(other)) if cluster != other)
    }

    /// Whether this one, which does not differ, is known better than the other.
    pub const fn says_more_than(&self, other: &Self) -> bool {
        self.cluster.is_some() && other.cluster.is_none()
    }
}

impl fmt::Display for IntentsTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in the cluster {}", self.name, self.cluster.as_deref().unwrap_or("without an id"))
    }
}

/// The `payment.intents` that the database was compared with last, to its end.
///
/// # Errors
/// When the database fails.
pub async fn compared_topic(db: &impl GenericClient) -> Result<Option<IntentsTopic>, Failure> {
    let select = db.prepare_cached("SELECT compared, compared_cluster FROM installation").await?;
    let row = db.query_opt(&select, &[]).await?;
    Ok(row.and_then(|row| Some(IntentsTopic { name: row.get::<_, Option<String>>(0)?, cluster: row.get(1) })))
}

/// Refuses a database that was not compared with the topics that this process reaches. `seen` is one that the role may see.
/// Blocks.
///
/// # Errors
/// When it was not, or Kafka or the database fails.
pub fn refuse_others(kafka: &Kafka, handle: &Handle, db: &impl GenericClient, seen: Topic) -> Result<(), Failure> {
    let reached = IntentsTopic::reached(kafka, &Backlog::open(kafka)?, seen)?;
    let compared = handle.block_on(compared_topic(db))?;
    why_to_wait(&reached, compared.as_ref()).map_or(Ok(()), |cause| Err(Failure::Retry(anyhow!(cause))))
}

/// Waits until the database was compared with the topics that this process reaches. `seen` is one that the role may see.
pub async fn await_comparison(role: &str, kafka: &Kafka, pool: &Pool, seen: Topic) {
    let (started, mut notice) = (Instant::now(), Notice::of(format!("{role}: topics")));
    // One client for all looks, until one fails.
    let mut client = None;
    loop {
        let wait = match look(kafka, client.take(), pool, seen).await {
            Ok((kept, reached, compared)) => {
                client = Some(kept);
                why_to_wait(&reached, compared.as_ref())
            }
            Err(failure) => Some(failure.to_string()),
        };
        let Some(cause) = wait else { return };
        if started.elapsed() > MAX_WAIT {
            notice.show(Some(cause));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The topic that is reached, and the one that was compared, with the client that was asked.
async fn look(
    kafka: &Kafka,
    client: Option<Backlog>,
    pool: &Pool,
    seen: Topic,
) -> Result<(Backlog, IntentsTopic, Option<IntentsTopic>), Failure> {
    let kafka = kafka.clone();
    let reached = tokio::task::spawn_blocking(move || {
        let client = client.map_or_else(|| Backlog::open(&kafka), Ok)?;
        let reached = IntentsTopic::reached(&kafka, &client, seen)?;
        Ok::<_, Failure>((client, reached))
    });
    let (client, reached) = reached.await.map_err(|panic| Failure::Retry(anyhow!(panic)))??;
    // Not one that was used before: another database may have taken the place of the one behind it.
    let compared = async { compared_topic(&*OwnConnection::open(pool).await?.db()?).await };
    let compared = db::answered(LOOK_TIMEOUT, compared).await?;
    Ok((client, reached, compared))
}

fn why_to_wait(reached: &IntentsTopic, compared: Option<&IntentsTopic>) -> Option<String> {
    let last = match compared {
        Some(compared) if !reached.differs_from(compared) => return None,
        Some(compared) => format!("it was compared with {compared} last"),
        None => "it was compared with none".to_owned(),
    };
    Some(format!(
        "Postgres was not compared with {reached}, and {last}: nothing is done before `api` or `confirmer` has compared them, which \
         refuse another installation's. Start one of them with the same settings; or correct TOPIC_PREFIX, KAFKA_BROKERS or \
         DATABASE_URL"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str, cluster: Option<&str>) -> IntentsTopic {
        IntentsTopic { name: name.to_owned(), cluster: cluster.map(str::to_owned) }
    }

    #[test]
    fn one_name_in_two_clusters_is_two_topics() {
        let known = topic("payment.intents", Some("ours"));
        assert!(known.differs_from(&topic("payment.intents", Some("staging"))));
        assert!(known.differs_from(&topic("test.payment.intents", Some("ours"))));
        assert!(!known.differs_from(&known.clone()));
        let unknown = topic("payment.intents", None);
        assert!(!known.differs_from(&unknown) && !unknown.differs_from(&known) && !unknown.differs_from(&unknown));
        assert!(known.says_more_than(&unknown) && !unknown.says_more_than(&known) && !unknown.says_more_than(&unknown));
    }

    #[test]
    fn a_role_waits_for_topics_that_nobody_has_compared_and_names_them() {
        let reached = topic("payment.intents", Some("staging"));
        assert_eq!(why_to_wait(&reached, Some(&reached)), None);
        assert_eq!(why_to_wait(&reached, Some(&topic("payment.intents", None))), None);
        for (compared, named) in [
            (None, "with none"),
            (Some(topic("payment.intents", Some("ours"))), "cluster ours"),
            (Some(topic("test.payment.intents", Some("staging"))), "test.payment.intents"),
        ] {
            let cause = why_to_wait(&reached, compared.as_ref()).expect("others");
            assert!(cause.contains(named) && cause.contains("cluster staging") && cause.contains("KAFKA_BROKERS"), "{cause}");
        }
    }
}

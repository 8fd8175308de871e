//! `ctrip intents`: brings `payment.intents` and Postgres together by hand.

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use recovery::installation;
use recovery::republish;
use runtime::compared::{IntentsTopic, compared_topic};
use runtime::kafka::Backlog;
use runtime::{Kafka, Settings, db, set_aside};
use topics::Topic;
use uuid::Uuid;

#[derive(Subcommand)]
pub enum IntentsCommand {
    /// Publish the intents of all payments and static addresses in Postgres again, the newest first. Safe at any time
    Republish,
    /// Make this database that of an installation whose own was lost: at its next start it gets what the topics have
    Adopt {
        /// The installation's id, as the refused start prints it
        installation: Uuid,
    },
    /// Forget what `set-aside` lists of a payment or static address: that it can't be restored, or its intent not be published.
    /// Changes nothing else
    Forget {
        /// The payment's id, or the static address's, as `set-aside` prints it
        id: String,
    },
}

pub async fn run(settings: &Settings, command: IntentsCommand) -> anyhow::Result<()> {
    match command {
        IntentsCommand::Republish => {
            let kafka = Kafka::connect(settings).await?;
            let pool = db::pool(&settings.database_url, 1)?;
            let compared = compared_topic(&pool.get().await.context("Postgres (DATABASE_URL)")?).await?;
            let topic = kafka.name(Topic::Intents);
            let reached = {
                let kafka = kafka.clone();
                let reached = move || IntentsTopic::reached(&kafka, &Backlog::open(&kafka)?, Topic::Intents);
                tokio::task::spawn_blocking(reached).await??
            };
            ensure!(
                compared.is_some_and(|compared| !reached.differs_from(&compared)),
                "{topic} was not compared with this database yet, and may be another installation's (TOPIC_PREFIX, KAFKA_BROKERS, \
                 DATABASE_URL): the API and the confirmer compare them when they start, and publish the intents that it lacks"
            );
            let count = republish::republish(&kafka, &pool).await?;
            println!("published {count} intents");
        }
        IntentsCommand::Adopt { installation: id } => {
            installation::adopt(&settings.database_url, id).await?;
            println!("this database is that of installation {id}");
        }
        IntentsCommand::Forget { id } => {
            let pool = db::pool(&settings.database_url, 1)?;
            let db = pool.get().await.context("Postgres (DATABASE_URL)")?;
            let topic = settings.topic_name(Topic::Intents);
            let mut forgotten = 0;
            for stage in [recovery::RESTORING.stage, republish::REPAIRING, republish::REPUBLISHING] {
                forgotten += set_aside::forget(&db, stage, &topic, std::slice::from_ref(&id)).await?;
            }
            ensure!(forgotten > 0, "nothing of {id} is set aside; `ctrip set-aside` lists what is");
            println!("forgotten");
        }
    }
    Ok(())
}

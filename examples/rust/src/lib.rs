//! What both examples share: a consumer with the settings that the topics ask for. Everything of cTrip that they use is the
//! `topics` crate.

use anyhow::{Context as _, Result};
use rdkafka::ClientConfig;

/// A variable of the environment that has to be there.
///
/// # Errors
/// When it is not.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("the variable {name} is not set"))
}

/// A topic as it is called where TOPIC_PREFIX is set.
pub fn prefixed(name: &str) -> String {
    format!("{}{name}", std::env::var("TOPIC_PREFIX").unwrap_or_default())
}

/// For a consumer in `group`, from KAFKA_BROKERS. It commits nothing by itself.
///
/// # Errors
/// When KAFKA_BROKERS is not set.
pub fn consumer(group: &str) -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", variable("KAFKA_BROKERS")?)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // Or records of transactions that were taken back are read as well.
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    Ok(config)
}

//! Kafka clients with the settings that the topics ask for, from the environment.

use anyhow::{Context as _, Result};
use rdkafka::ClientConfig;

/// A required environment variable.
///
/// # Errors
/// When it is not set.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("the variable {name} is not set"))
}

/// A topic's name with TOPIC_PREFIX, if it is set.
pub fn prefixed(name: &str) -> String {
    format!("{}{name}", std::env::var("TOPIC_PREFIX").unwrap_or_default())
}

/// The configuration of a client of KAFKA_BROKERS. More settings of librdkafka, such as a login, are lines `name=value` of the
/// file that KAFKA_PROPERTIES names, if it is set.
///
/// # Errors
/// When KAFKA_BROKERS is not set, or the file can't be read.
pub fn client() -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", variable("KAFKA_BROKERS")?);
    if let Ok(file) = std::env::var("KAFKA_PROPERTIES") {
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line.split_once('=').with_context(|| format!("{file}: expected name=value, got {line}"))?;
            config.set(name.trim(), value.trim());
        }
    }
    Ok(config)
}

/// The configuration of a consumer in `group`, which commits nothing by itself.
///
/// # Errors
/// As [`client`].
pub fn consumer(group: &str) -> Result<ClientConfig> {
    let mut config = client()?;
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // The default also reads records of aborted transactions.
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    Ok(config)
}

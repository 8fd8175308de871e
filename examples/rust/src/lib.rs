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

/// A client of KAFKA_BROKERS, with what else librdkafka is to be told, as for a login: lines `name=value` in the file
/// KAFKA_PROPERTIES, if it is set.
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

/// For a consumer in `group`. It commits nothing by itself.
///
/// # Errors
/// As [`client`].
pub fn consumer(group: &str) -> Result<ClientConfig> {
    let mut config = client()?;
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // Or records of transactions that were taken back are read as well.
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    Ok(config)
}

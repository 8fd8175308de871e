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

/// The connection's variables, which `ctrip` reads as well: as librdkafka names its settings. Those with passwords may name a file:
/// KAFKA_SASL_PASSWORD_FILE.
const CONNECTION: [&str; 8] = [
    "SECURITY_PROTOCOL",
    "SASL_MECHANISM",
    "SASL_USERNAME",
    "SASL_PASSWORD",
    "SSL_CA_LOCATION",
    "SSL_CERTIFICATE_LOCATION",
    "SSL_KEY_LOCATION",
    "SSL_KEY_PASSWORD",
];

/// The configuration of a client of KAFKA_BROKERS. More settings of librdkafka are lines `name=value` of the file that KAFKA_PROPERTIES
/// names, if it is set. Where both are set, the variable counts.
///
/// # Errors
/// When KAFKA_BROKERS is not set, or a file can't be read.
pub fn client() -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", variable("KAFKA_BROKERS")?);
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let read = |file: &str| std::fs::read_to_string(file).with_context(|| file.to_owned());
    if let Some(file) = set("KAFKA_PROPERTIES") {
        let text = read(&file)?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line.split_once('=').with_context(|| format!("{file}: expected name=value, got {line}"))?;
            config.set(name.trim(), value.trim());
        }
    }
    for name in CONNECTION {
        let key = name.to_lowercase().replace('_', ".");
        if let Some(value) = set(&format!("KAFKA_{name}")) {
            config.set(key, value);
        } else if let Some(file) = set(&format!("KAFKA_{name}_FILE")) {
            config.set(key, read(&file)?.trim_end());
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

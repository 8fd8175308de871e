//! Whether Kafka can be used: one question to a broker, with the TLS and the login of the process.

use super::client::client_config;
use super::heard::Heard;
use crate::settings::Settings;
use anyhow::anyhow;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use std::time::{Duration, Instant};
use topics::Topic;

/// How long one question waits before the callbacks are looked at.
const STEP: Duration = Duration::from_millis(250);
/// More than are due after one.
const CALLBACKS: usize = 64;
/// More than a broker takes that is well.
const PATIENCE: Duration = Duration::from_secs(4);

/// Why Kafka can't be used.
#[derive(Debug)]
pub enum Unusable {
    /// A retry may succeed.
    Unreachable(String),
    /// A broker answers, and refuses us, or we refuse it.
    Refused(anyhow::Error),
}

/// Refuses settings that librdkafka does not take. Its own error would show their values.
///
/// # Errors
/// When it does not take one.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    client_config(settings, "check").create_native_config().map(drop).map_err(without_value)
}

fn without_value(error: KafkaError) -> anyhow::Error {
    match error {
        KafkaError::ClientConfig(_, cause, key, _) => anyhow!("{key}: {cause} (KAFKA_… variables, or KAFKA_PROPERTIES)"),
        other => anyhow!(other).context("the connection to Kafka"),
    }
}

/// Asks a broker for metadata.
///
/// # Errors
/// When none answers within some seconds, or one refuses.
pub async fn probe(settings: &Settings) -> Result<(), Unusable> {
    let settings = settings.clone();
    let probed = tokio::task::spawn_blocking(move || ask(&settings, PATIENCE)).await;
    probed.unwrap_or_else(|panic| Err(Unusable::Unreachable(panic.to_string())))
}

fn ask(settings: &Settings, patience: Duration) -> Result<(), Unusable> {
    if settings.kafka_brokers.split(',').all(|broker| broker.trim().is_empty()) {
        return Err(Unusable::Refused(anyhow!("KAFKA_BROKERS is empty; expected host:port")));
    }
    let heard = Heard::new(settings.kafka.kafka_sasl_username.as_deref(), false);
    let client: BaseConsumer<Heard> = client_config(settings, "probe")
        .set_log_level(RDKafkaLogLevel::Info)
        .create_with_context(heard.clone())
        .map_err(|error| Unusable::Refused(without_value(error)))?;
    let topic = settings.topic_name(Topic::Intents);
    // Of several one that answers is enough, whatever another says before it.
    let is_sole = !settings.kafka_brokers.contains(',');
    let started = Instant::now();
    loop {
        let Err(error) = client.fetch_metadata(Some(&topic), STEP) else { return Ok(()) };
        // Each poll runs one callback.
        for _ in 0..CALLBACKS {
            drop(client.poll(Duration::ZERO));
        }
        let is_over = started.elapsed() > patience;
        if let Some(refusal) = heard.refusal().filter(|_| is_sole || is_over) {
            return Err(Unusable::Refused(refusal));
        }
        if is_over {
            let cause = heard.last().unwrap_or_else(|| error.to_string());
            // That is how a port with TLS, or with a login, answers one that speaks another protocol.
            let hint =
                if cause.contains("APIVERSION_QUERY") { "; is KAFKA_SECURITY_PROTOCOL what the port speaks?" } else { "" };
            return Err(Unusable::Unreachable(format!("{cause}{hint}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::Cli;
    use clap::Parser as _;

    #[test]
    fn a_setting_that_librdkafka_does_not_know_is_named_without_its_value() {
        let mut settings = Cli::parse_from(["ctrip"]).settings;
        check(&settings).unwrap();
        settings.kafka.connection = vec![("sasl.passwrod".to_owned(), "hunter2".into())];
        let refused = format!("{:#}", check(&settings).unwrap_err());
        assert!(refused.contains("sasl.passwrod") && !refused.contains("hunter2"), "{refused}");
    }
}

//! How the process reaches Kafka: TLS and SASL. Every client of ours gets these settings, and no other has them.

use super::secret::{Env, Secret, secret};
use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a line of `KAFKA_PROPERTIES` may set: the connection. All else belongs to the guarantees of cTrip.
const PROPERTIES: [&str; 7] = ["sasl.", "ssl.", "enable.sasl.", "enable.ssl.", "security.", "socket.", "https."];

/// Flags of the connection to Kafka, named as librdkafka's settings are.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KafkaSettings {
    /// How the brokers are spoken to
    #[arg(long, env = "KAFKA_SECURITY_PROTOCOL", value_enum, ignore_case = true, default_value = "plaintext", global = true)]
    pub kafka_security_protocol: SecurityProtocol,
    /// How the process logs in
    #[arg(long, env = "KAFKA_SASL_MECHANISM", value_enum, ignore_case = true, global = true)]
    pub kafka_sasl_mechanism: Option<SaslMechanism>,
    /// The user that the process logs in as; its password is in `KAFKA_SASL_PASSWORD` or the file `KAFKA_SASL_PASSWORD_FILE`
    #[arg(long, env = "KAFKA_SASL_USERNAME", global = true)]
    pub kafka_sasl_username: Option<String>,
    /// Certificates (PEM) of the authorities that may have signed a broker's; the system's if left out
    #[arg(long, env = "KAFKA_SSL_CA_LOCATION", global = true)]
    pub kafka_ssl_ca_location: Option<PathBuf>,
    /// Certificate (PEM) of the process, for brokers that ask for one
    #[arg(long, env = "KAFKA_SSL_CERTIFICATE_LOCATION", global = true)]
    pub kafka_ssl_certificate_location: Option<PathBuf>,
    /// Key (PEM) of that certificate; its password is in `KAFKA_SSL_KEY_PASSWORD` or the file `KAFKA_SSL_KEY_PASSWORD_FILE`
    #[arg(long, env = "KAFKA_SSL_KEY_LOCATION", global = true)]
    pub kafka_ssl_key_location: Option<PathBuf>,
    /// File of further settings of librdkafka about the connection, one `name=value` a line
    #[arg(long, env = "KAFKA_PROPERTIES", global = true)]
    pub kafka_properties: Option<PathBuf>,
    /// All of the above for librdkafka, with the passwords.
    #[arg(skip)]
    pub(crate) connection: Vec<(String, Secret)>,
}

/// librdkafka's `security.protocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SecurityProtocol {
    #[default]
    Plaintext,
    Ssl,
    #[value(name = "sasl_plaintext")]
    SaslPlaintext,
    #[value(name = "sasl_ssl")]
    SaslSsl,
}

/// librdkafka's `sasl.mechanism`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SaslMechanism {
    #[value(name = "PLAIN")]
    Plain,
    #[value(name = "SCRAM-SHA-256")]
    ScramSha256,
    #[value(name = "SCRAM-SHA-512")]
    ScramSha512,
}

fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl KafkaSettings {
    /// Reads the passwords and the file, and refuses settings that contradict each other.
    ///
    /// # Errors
    /// When they do, or a file can't be read.
    pub fn complete(&mut self, env: Env<'_>) -> anyhow::Result<()> {
        let password = secret(env, "KAFKA_SASL_PASSWORD")?;
        let key_password = secret(env, "KAFKA_SSL_KEY_PASSWORD")?;
        let further = self.kafka_properties.as_deref().map(properties).transpose()?.unwrap_or_default();
        let text = |value: Option<String>| value.map(Secret::from);
        let path = |value: &Option<PathBuf>| value.as_ref().map(|path| Secret::from(path.display().to_string()));
        let ours = [
            ("KAFKA_SASL_MECHANISM", "sasl.mechanism", text(self.kafka_sasl_mechanism.as_ref().map(name_of))),
            ("KAFKA_SASL_USERNAME", "sasl.username", text(self.kafka_sasl_username.clone())),
            ("KAFKA_SASL_PASSWORD", "sasl.password", password),
            ("KAFKA_SSL_CA_LOCATION", "ssl.ca.location", path(&self.kafka_ssl_ca_location)),
            ("KAFKA_SSL_CERTIFICATE_LOCATION", "ssl.certificate.location", path(&self.kafka_ssl_certificate_location)),
            ("KAFKA_SSL_KEY_LOCATION", "ssl.key.location", path(&self.kafka_ssl_key_location)),
            ("KAFKA_SSL_KEY_PASSWORD", "ssl.key.password", key_password),
        ];
        let set = |name: &str| ours.iter().any(|(_, key, value)| *key == name && value.is_some());
        let has = |name: &str| set(name) || further.iter().any(|(key, _)| key == name);
        let protocol = self.kafka_security_protocol;
        let (is_sasl, is_tls) = match protocol {
            SecurityProtocol::Plaintext => (false, false),
            SecurityProtocol::Ssl => (false, true),
            SecurityProtocol::SaslPlaintext => (true, false),
            SecurityProtocol::SaslSsl => (true, true),
        };
        for (variable, key, _) in ours.iter().filter(|(_, _, value)| value.is_some()) {
            let counts = if key.starts_with("sasl.") { is_sasl } else { is_tls };
            let wanted = if key.starts_with("sasl.") { "sasl_ssl or sasl_plaintext" } else { "ssl or sasl_ssl" };
            let protocol = name_of(&protocol);
            ensure!(counts, "{variable} is set, and KAFKA_SECURITY_PROTOCOL is {protocol}; expected {wanted}");
        }
        ensure!(
            !is_sasl || has("sasl.mechanism"),
            "KAFKA_SASL_MECHANISM is missing; expected PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
        );
        if self.kafka_sasl_mechanism.is_some() {
            ensure!(has("sasl.username"), "KAFKA_SASL_USERNAME is missing");
            ensure!(has("sasl.password"), "KAFKA_SASL_PASSWORD is missing, and KAFKA_SASL_PASSWORD_FILE as well");
        }
        let both = has("ssl.certificate.location") == has("ssl.key.location");
        ensure!(both, "of KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION one is missing; expected both or none");
        for (variable, _, file) in ours.iter().filter(|(_, key, _)| key.ends_with(".location")) {
            if let Some(path) = file {
                File::open(&**path).with_context(|| format!("{variable}: {}", &**path))?;
            }
        }
        self.connection = vec![("security.protocol".to_owned(), name_of(&protocol).into())];
        // The last of two counts: the variable.
        self.connection.extend(further);
        self.connection.extend(ours.into_iter().filter_map(|(_, key, value)| Some((key.to_owned(), value?))));
        Ok(())
    }
}

/// The lines of the file. An error names the line and no value.
fn properties(path: &Path) -> anyhow::Result<Vec<(String, Secret)>> {
    let failed = || format!("KAFKA_PROPERTIES: {}", path.display());
    let text = std::fs::read_to_string(path).with_context(failed)?;
    let mut settings = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').with_context(|| format!("{}:{number}: expected name=value", failed()))?;
        let key = key.trim();
        ensure!(
            PROPERTIES.iter().any(|known| key.starts_with(known)) && key != "security.protocol",
            "{}:{number}: {key} can't be set here; expected a setting that begins with {}",
            failed(),
            PROPERTIES.join(", ")
        );
        // Two names of one setting would count by chance.
        let key = if key == "sasl.mechanisms" { "sasl.mechanism" } else { key };
        settings.push((key.to_owned(), value.trim().into()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(mut settings: KafkaSettings, set: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let env = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        settings.complete(&env).map_err(|error| format!("{error:#}"))?;
        Ok(settings.connection.into_iter().map(|(key, value)| (key, value.to_string())).collect())
    }

    fn scram() -> KafkaSettings {
        KafkaSettings {
            kafka_security_protocol: SecurityProtocol::SaslSsl,
            kafka_sasl_mechanism: Some(SaslMechanism::ScramSha512),
            kafka_sasl_username: Some("ingest".to_owned()),
            ..KafkaSettings::default()
        }
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn the_settings_of_librdkafka_follow_from_the_variables() {
        assert_eq!(completed(KafkaSettings::default(), &[]).unwrap(), [pair("security.protocol", "plaintext")]);
        let expected = [
            pair("security.protocol", "sasl_ssl"),
            pair("sasl.mechanism", "SCRAM-SHA-512"),
            pair("sasl.username", "ingest"),
            pair("sasl.password", "hunter2"),
        ];
        assert_eq!(completed(scram(), &[("KAFKA_SASL_PASSWORD", "hunter2")]).unwrap(), expected);
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_by_name() {
        let refused = |settings: KafkaSettings, set: &[(&str, &str)], named: [&str; 2]| {
            let error = completed(settings, set).unwrap_err();
            assert!(named.iter().all(|name| error.contains(name)) && !error.contains("hunter2"), "{error}");
        };
        let password = [("KAFKA_SASL_PASSWORD", "hunter2")];
        // A password that would be sent to nobody: the operator believes in a login that there is not.
        refused(KafkaSettings::default(), &password, ["KAFKA_SASL_PASSWORD", "KAFKA_SECURITY_PROTOCOL"]);
        refused(scram(), &[], ["KAFKA_SASL_PASSWORD", "KAFKA_SASL_PASSWORD_FILE"]);
        refused(KafkaSettings { kafka_sasl_mechanism: None, ..scram() }, &password, ["KAFKA_SASL_MECHANISM", "PLAIN"]);
        refused(KafkaSettings { kafka_sasl_username: None, ..scram() }, &password, ["KAFKA_SASL_USERNAME", "missing"]);
        let nowhere = || Some(PathBuf::from("/nowhere"));
        refused(
            KafkaSettings { kafka_ssl_ca_location: nowhere(), ..scram() },
            &password,
            ["KAFKA_SSL_CA_LOCATION", "/nowhere"],
        );
        let certificate = KafkaSettings { kafka_ssl_certificate_location: nowhere(), ..scram() };
        refused(certificate, &password, ["KAFKA_SSL_CERTIFICATE_LOCATION", "KAFKA_SSL_KEY_LOCATION"]);
    }

    #[test]
    fn a_file_of_further_settings_is_about_the_connection_alone() {
        let path = std::env::temp_dir().join(format!("ctrip-properties-{}", std::process::id()));
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let settings = KafkaSettings { kafka_properties: Some(path.clone()), ..scram() };
            completed(settings, &[("KAFKA_SASL_PASSWORD", "hunter2")])
        };
        let settings = with("# a proxy\nssl.endpoint.identification.algorithm = none\n\nsasl.username=other\n").unwrap();
        assert!(settings.contains(&pair("ssl.endpoint.identification.algorithm", "none")), "{settings:?}");
        assert_eq!(settings.iter().rfind(|(key, _)| key == "sasl.username"), Some(&pair("sasl.username", "ingest")));
        let settings = with("sasl.mechanisms=PLAIN").unwrap();
        let mechanisms: Vec<_> = settings.iter().filter(|(key, _)| key.starts_with("sasl.mech")).collect();
        assert_eq!(mechanisms, [&pair("sasl.mechanism", "PLAIN"), &pair("sasl.mechanism", "SCRAM-SHA-512")], "the last counts");
        for (text, named) in [
            ("ssl.ca.location", ":1: expected name=value"),
            ("\nacks=0", ":2: acks"),
            ("security.protocol=ssl", "security.protocol"),
        ] {
            let error = with(text).unwrap_err();
            assert!(error.contains("KAFKA_PROPERTIES") && error.contains(named), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}

//! The settings that all roles share, from flags and the environment. The names are public.

mod kafka;
mod registry;
mod secret;

pub use kafka::{KafkaSettings, SaslMechanism, SecurityProtocol};
pub(crate) use registry::Login;
pub use registry::RegistrySettings;
pub use secret::Secret;

use anyhow::ensure;
use clap::ArgMatches;
use clap::parser::ValueSource;
use ipnet::IpNet;
use secret::{Env, from_file};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use topics::Topic;

/// Flags of every subcommand. The doc comments are their `--help`.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Postgres, the system of record; or `DATABASE_URL_FILE`, a file that holds the URL
    #[arg(
        long,
        env = "DATABASE_URL",
        default_value = "postgres://ctrip@127.0.0.1:5432/ctrip",
        global = true,
        hide_env_values = true
    )]
    pub database_url: Secret,
    /// A replica of the database, for the API's lists and reads; the primary where it lags, fails or lacks something. Or
    /// `DATABASE_READ_URL_FILE`
    #[arg(long, env = "DATABASE_READ_URL", global = true, hide_env_values = true)]
    pub database_read_url: Option<Secret>,
    /// Milliseconds by which the replica may lag
    #[arg(
        long,
        env = "DATABASE_READ_MAX_LAG_MS",
        default_value_t = 2_000,
        global = true,
        value_parser = clap::value_parser!(u64).range(200..=600_000)
    )]
    pub database_read_max_lag_ms: u64,
    /// Kafka brokers, `host:port`, comma-separated
    #[arg(long, env = "KAFKA_BROKERS", default_value = "127.0.0.1:9092", global = true)]
    pub kafka_brokers: String,
    #[command(flatten)]
    pub kafka: KafkaSettings,
    /// A schema registry's Confluent-compatible API: `http` or `https`, with `user:password@` for basic authentication. Several
    /// URLs of one registry, comma-separated, are tried in order. Or `SCHEMA_REGISTRY_URL_FILE`
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_URL",
        default_value = "http://127.0.0.1:8081/apis/ccompat/v7",
        global = true,
        hide_env_values = true
    )]
    pub schema_registry_url: Secret,
    #[command(flatten)]
    pub registry: RegistrySettings,
    /// Prefix of every topic, consumer group and transactional id
    #[arg(long, env = "TOPIC_PREFIX", default_value = "", global = true)]
    pub topic_prefix: String,
    /// Replication factor of the topics that `topics apply` creates; the broker's default if left out
    #[arg(long, env = "TOPIC_REPLICATION", global = true)]
    pub topic_replication: Option<i32>,
    /// The configuration of the chains, their endpoints and tokens
    #[arg(long, env = "CHAINS_FILE", default_value = "chains.yaml", global = true)]
    pub chains_file: PathBuf,
    /// Account xpub at m/44'/60'/0'; payment i is paid to /0/i
    #[arg(long, env = "CTRIP_XPUB", global = true, hide_env_values = true)]
    pub xpub: Option<String>,
    /// Fingerprint of the account that CTRIP_XPUB takes the place of; without it another xpub than before is refused
    #[arg(long, env = "CTRIP_XPUB_REPLACES", global = true)]
    pub xpub_replaces: Option<String>,
    /// Address that the API listens on
    #[arg(long, env = "API_LISTEN", default_value = "127.0.0.1:8000", global = true)]
    pub api_listen: SocketAddr,
    /// Rate limit of a key, in requests per second and instance of the API, unless the key has its own; 0 is no limit
    #[arg(long, env = "API_RATE_LIMIT", default_value_t = 10_000, global = true)]
    pub api_rate_limit: u32,
    /// Connections of the API to Postgres, and as many to the replica
    #[arg(
        long,
        env = "API_DATABASE_CONNECTIONS",
        default_value_t = 16,
        global = true,
        value_parser = clap::value_parser!(u16).range(6..=1_000)
    )]
    pub api_database_connections: u16,
    /// Milliseconds that a request waits for one of them
    #[arg(
        long,
        env = "API_DATABASE_WAIT_MS",
        default_value_t = 5_000,
        global = true,
        value_parser = clap::value_parser!(u64).range(100..=5_000)
    )]
    pub api_database_wait_ms: u64,
    /// Milliseconds that a statement of the API may take, unless Postgres has a `statement_timeout` for it
    #[arg(
        long,
        env = "API_STATEMENT_TIMEOUT_MS",
        default_value_t = 10_000,
        global = true,
        value_parser = clap::value_parser!(u64).range(1_000..=20_000)
    )]
    pub api_statement_timeout_ms: u64,
    /// Connections that the API keeps open; at most half of the files that the process may open
    #[arg(long, env = "API_MAX_CONNECTIONS", default_value_t = 10_000, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub api_max_connections: u32,
    /// Connections of one address; those of a trusted proxy have no limit of their own
    #[arg(
        long,
        env = "API_MAX_CONNECTIONS_PER_ADDRESS",
        default_value_t = 512,
        global = true,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub api_max_connections_per_address: u32,
    /// Networks or addresses of the proxies in front of the API, comma-separated: the `X-Forwarded-For` of these is believed
    #[arg(long, env = "API_TRUSTED_PROXIES", global = true, value_delimiter = ',', value_parser = network)]
    pub api_trusted_proxies: Vec<IpNet>,
    /// Blocks that ingest fetches at the same time, of each chain
    #[arg(
        long,
        env = "INGEST_PARALLEL_FETCHES",
        default_value_t = 8,
        global = true,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    pub ingest_parallel_fetches: u16,
    /// Blocks of a chain that ingest writes in one Kafka transaction, at most
    #[arg(
        long,
        env = "INGEST_BATCH_BLOCKS",
        default_value_t = 64,
        global = true,
        value_parser = clap::value_parser!(u16).range(1..=1_024)
    )]
    pub ingest_batch_blocks: u16,
    /// Days to keep the history of payments, rounded to whole months; forever if left out
    #[arg(long, env = "HISTORY_KEEP_DAYS", global = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub history_keep_days: Option<u32>,
    /// Networks or addresses outside the public Internet that webhooks may go to, such as `10.1.0.0/16`, comma-separated
    #[arg(long, env = "WEBHOOK_ALLOW_NETWORKS", global = true, value_delimiter = ',', value_parser = network)]
    pub webhook_allow_networks: Vec<IpNet>,
    /// Let webhooks go to http URLs, and not only to https
    #[arg(long, env = "WEBHOOK_ALLOW_HTTP", global = true)]
    pub webhook_allow_http: bool,
    /// Address that serves `/metrics`
    #[arg(long, env = "METRICS_LISTEN", default_value = "127.0.0.1:9100", global = true)]
    pub metrics_listen: SocketAddr,
    /// Name of this instance of a role, stable across restarts: it is the consumer's static membership and part of the
    /// transactional ids. No two live processes of a role may share one
    #[arg(long, env = "CTRIP_INSTANCE", default_value = "0", global = true)]
    pub instance: String,
}

impl Settings {
    /// Adds what no flag gives, the secrets, from variables and the files that their `…_FILE` twins name. `matches` are those that these
    /// settings were made from.
    ///
    /// # Errors
    /// When a secret is given twice or in a flag, a file can't be read, or settings contradict each other.
    pub fn complete(&mut self, matches: &ArgMatches) -> anyhow::Result<()> {
        self.complete_with(matches, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn complete_with(&mut self, matches: &ArgMatches, env: Env<'_>) -> anyhow::Result<()> {
        let mut read_url = self.database_read_url.take().unwrap_or_default();
        let urls = [
            ("database_url", "DATABASE_URL", &mut self.database_url),
            ("database_read_url", "DATABASE_READ_URL", &mut read_url),
            ("schema_registry_url", "SCHEMA_REGISTRY_URL", &mut self.schema_registry_url),
        ];
        for (id, name, url) in urls {
            let source = matches.value_source(id);
            let flag = format!("--{}", id.replace('_', "-"));
            ensure!(
                source != Some(ValueSource::CommandLine) || !has_password(url),
                "{flag} holds a password, which every user of the machine sees in the list of processes; expected it in {name}, or in the \
                 file that {name}_FILE names"
            );
            if let Some(found) = from_file(env, name)? {
                ensure!(
                    matches!(source, None | Some(ValueSource::DefaultValue)),
                    "{name} (or {flag}) and {name}_FILE are both set; expected one of them"
                );
                *url = found;
            }
        }
        self.database_read_url = Some(read_url).filter(|url| !url.is_empty());
        self.kafka.complete(env)?;
        self.registry.complete(env)
    }

    /// The topic's name with the prefix.
    pub fn topic_name(&self, topic: Topic) -> String {
        format!("{}{}", self.topic_prefix, topic.name())
    }
}

/// Variables that no flag sets and nobody is shown; a file may hold each (`…_FILE`).
pub const SECRETS: [&str; 4] =
    ["KAFKA_SASL_PASSWORD", "KAFKA_SSL_KEY_PASSWORD", "SCHEMA_REGISTRY_PASSWORD", "SCHEMA_REGISTRY_TOKEN"];
/// Variables of URLs, which may hold a password; a file may hold each.
pub const URLS: [&str; 3] = ["DATABASE_URL", "DATABASE_READ_URL", "SCHEMA_REGISTRY_URL"];

/// A URL, or a list of some, as it may be shown: where one holds a password, what is behind the last user.
pub fn without_password(url: &str) -> String {
    match url.rsplit_once('@') {
        _ if !has_password(url) => url.to_owned(),
        Some((_, host)) if !host.contains("password=") => format!("***@{host}"),
        _ => "***".to_owned(),
    }
}

fn has_password(url: &str) -> bool {
    let has_user_and_password = |url: &str| {
        url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'))
    };
    url.contains("password=") || has_user_and_password(url) || url.split(',').any(has_user_and_password)
}

/// Parses a network; an address alone is a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(address).ok_or_else(|| "expected a network like 10.1.0.0/16, or an address".to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};

    /// A command that has the settings and nothing else.
    #[derive(Debug, Parser)]
    pub(crate) struct Cli {
        #[command(flatten)]
        pub(crate) settings: Settings,
    }

    fn completed(arguments: &[&str], set: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let matches = Cli::command().try_get_matches_from(std::iter::once(&"ctrip").chain(arguments))?;
        let mut settings = Cli::from_arg_matches(&matches)?.settings;
        let env = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        settings.complete_with(&matches, &env)?;
        Ok(settings)
    }

    #[test]
    fn a_url_with_a_password_is_no_argument_and_comes_from_a_file() {
        for url in ["postgres://ctrip:hunter2@db/ctrip", "postgres://ctrip:hunt,hunter2@db/ctrip", "host=db password=hunter2"] {
            for flag in ["--database-url", "--database-read-url"] {
                let refused = completed(&[flag, url], &[]).unwrap_err().to_string();
                assert!(refused.contains("_URL_FILE") && !refused.contains("hunter2"), "{refused}");
            }
        }
        let urls = "https://one/,https://user:hunter2@two/";
        assert!(completed(&["--schema-registry-url", urls], &[]).is_err());
        let path = std::env::temp_dir().join(format!("ctrip-url-{}", std::process::id()));
        std::fs::write(&path, "postgres://ctrip:hunter2@db/ctrip\n").unwrap();
        let file = [("DATABASE_URL_FILE", path.to_str().unwrap()), ("DATABASE_READ_URL_FILE", path.to_str().unwrap())];
        let settings = completed(&[], &file).unwrap();
        assert_eq!(&*settings.database_url, "postgres://ctrip:hunter2@db/ctrip");
        assert_eq!(settings.database_read_url, Some(settings.database_url.clone()));
        assert!(!format!("{settings:?}").contains("hunter2"));
        let both = completed(&["--database-url", "postgres://ctrip@one:1,two:2/ctrip"], &file).unwrap_err().to_string();
        assert!(both.contains("DATABASE_URL (or --database-url) and DATABASE_URL_FILE"), "{both}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://ctrip@db/ctrip", "postgres://ctrip@db/ctrip"),
            ("postgres://ctrip:hunt@er,2@one,two/ctrip?sslmode=require", "***@one,two/ctrip?sslmode=require"),
            ("postgres://ctrip@db/ctrip?password=hunter2", "***"),
            ("host=db user=ctrip@x password=hunter2", "***"),
            ("host=db user=ctrip", "host=db user=ctrip"),
            ("https://one/,https://user:hunter2@two/,https://user:hunter2@three/", "***@three/"),
            ("https://user:hunter2@two/,https://three/", "***@two/,https://three/"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn a_number_out_of_range_is_refused_by_name() {
        let parse = |flag: &str, value: &str| Cli::try_parse_from(["ctrip", flag, value]);
        for (flag, good, bad) in [
            ("--database-read-max-lag-ms", "200", "199"),
            ("--api-database-connections", "1000", "5"),
            ("--api-database-wait-ms", "100", "5001"),
            ("--api-statement-timeout-ms", "20000", "20001"),
            ("--ingest-parallel-fetches", "256", "0"),
            ("--ingest-batch-blocks", "1", "1025"),
        ] {
            assert!(parse(flag, good).is_ok(), "{flag}");
            let refused = parse(flag, bad).unwrap_err().to_string();
            assert!(refused.contains(flag) && refused.contains("is not in"), "{refused}");
        }
    }

    #[test]
    fn a_network_may_be_one_address() {
        assert_eq!(network("127.0.0.1"), network("127.0.0.1/32"));
        assert_eq!(network("::1"), network("::1/128"));
        assert!(network("10.1.0.0/16").is_ok() && network("10.1").unwrap_err().contains("10.1.0.0/16"));
    }
}

//! One isolated cTrip: a database, topics, a chain and a key of its own.

use crate::client::Api;
use crate::geth::Fork;
use crate::node::{Node, TOKEN_SYMBOL};
use crate::process::{Process, built, free_port};
use crate::stack::{Stack, connect, root};
use crate::topic_log::Reader;
use anyhow::{Context as _, Result};
use rdkafka::config::ClientConfig;
use runtime::{Kafka, KafkaSettings, RegistrySettings, SaslMechanism, SecurityProtocol, Settings};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use topics::Address;

/// BIP-39's test mnemonic, which everybody knows.
pub const MNEMONIC: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

/// The first account of [`MNEMONIC`].
pub const XPUB: &str =
    "xpub6DCoCpSuQZB2jawqnGMEPS63ePKWkwWPH4TU45Q7LPXWuNd8TMtVxRrgjtEshuqpK3mdhaWHPFsBngh5GFZaM6si3yZdUsT8ddYM3PwnATt";

/// One isolated cTrip.
pub struct Lab {
    /// The stack it runs on.
    pub stack: Stack,
    /// The node of its chain.
    pub node: Node,
    /// Environment of its processes.
    pub env: BTreeMap<String, String>,
    /// Folder of chains.yaml and logs, under `target/lab`. It stays after the test, to be read after a failure.
    pub dir: PathBuf,
    binary: PathBuf,
    pub(crate) reader: Arc<Mutex<Reader>>,
}

/// How a lab's chain behaves.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Confirmations that a payment needs.
    pub confirmations: u32,
    /// Seconds between blocks; `None` mines one block per transaction.
    pub block_time: Option<u64>,
    /// Where coin is swept to, by an `up` or `sweeper` that has the keys; `None`: nothing is.
    pub treasury: Option<Address>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { confirmations: 3, block_time: None, treasury: None }
    }
}

/// Writes a file of mnemonics with these permissions; returns its path.
///
/// # Errors
/// When it can't be written, or is there.
pub fn write_mnemonic(dir: &Path, name: &str, words: &str, mode: u32) -> Result<String> {
    let path = dir.join(name);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
    file.write_all(words.as_bytes())?;
    Ok(path.display().to_string())
}

impl Lab {
    /// Replaces `chains.yaml`. By a rename, since a process that is just starting may be reading it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_chains(&self, yaml: &str) -> Result<()> {
        let file = &self.env["CHAINS_FILE"];
        let new = format!("{file}.new");
        std::fs::write(&new, yaml)?;
        Ok(std::fs::rename(new, file)?)
    }

    /// Makes a database, topics, and a chain with a token, on the stack that `dev/stack` runs.
    ///
    /// # Errors
    /// When the stack is not up, or a step fails.
    pub async fn start(plan: Plan) -> Result<Self> {
        Self::on(Stack::attach()?, plan).await
    }

    /// [`start`](Self::start) on a given stack.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn on(stack: Stack, plan: Plan) -> Result<Self> {
        let lab = Self::without_topics_on(stack, plan).await?;
        lab.ctrip(&["topics", "apply"])?;
        Ok(lab)
    }

    /// [`start`](Self::start) without topics, for tests of the database: 57 partitions less for Kafka.
    ///
    /// # Errors
    /// When the stack is not up, or a step fails.
    pub async fn without_topics() -> Result<Self> {
        Self::without_topics_on(Stack::attach()?, Plan::default()).await
    }

    /// [`start`](Self::start) on geth instead of anvil. `None` where it can't be had.
    ///
    /// # Errors
    /// When the stack is not up, or a step fails.
    pub async fn on_geth(fork: Fork) -> Result<Option<Self>> {
        let (name, dir) = Self::place()?;
        let Some(node) = Node::geth(&dir, fork).await? else { return Ok(None) };
        let lab = Self::around(node, Stack::attach()?, Plan::default(), &name, dir).await?;
        lab.ctrip(&["topics", "apply"])?;
        Ok(Some(lab))
    }

    async fn without_topics_on(stack: Stack, plan: Plan) -> Result<Self> {
        let (name, dir) = Self::place()?;
        let node = Node::start(&stack, plan.block_time).await?;
        Self::around(node, stack, plan, &name, dir).await
    }

    /// A name of its own, and the folder for it.
    fn place() -> Result<(String, PathBuf)> {
        let name = format!("lab_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let dir = root().join("target/lab").join(&name);
        std::fs::create_dir_all(&dir)?;
        Ok((name, dir))
    }

    async fn around(node: Node, stack: Stack, plan: Plan, name: &str, dir: PathBuf) -> Result<Self> {
        let token = node.deploy("Token").await?;
        let database_url = stack.create_migrated(name).await?;
        let chains_file = dir.join("chains.yaml");
        let mut chains = format!(
            "- name: anvil\n  chain_id: 31337\n  rpc_url: {}\n  confirmations: {}\n  poll_interval_ms: 100\n  start_block: 0\n  tokens:\n    - {{ symbol: {TOKEN_SYMBOL}, address: \"{token}\", decimals: 6 }}\n",
            node.url, plan.confirmations
        );
        if let Some(treasury) = plan.treasury {
            chains += &format!("  treasury: \"{treasury}\"\n");
        }
        std::fs::write(&chains_file, chains)?;
        let mut env = stack.connection();
        let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
        set("DATABASE_URL", database_url);
        set("TOPIC_PREFIX", format!("{name}."));
        set("CHAINS_FILE", chains_file.display().to_string());
        set("CTRIP_XPUB", XPUB.to_owned());
        set("API_LISTEN", format!("127.0.0.1:{}", free_port()?));
        set("METRICS_LISTEN", format!("127.0.0.1:{}", free_port()?));
        set("RUST_BACKTRACE", "0".to_owned());
        if plan.treasury.is_some() {
            set("CTRIP_MNEMONIC_FILE", write_mnemonic(&dir, "mnemonic", MNEMONIC, 0o600)?);
        }
        let reader = Arc::new(Mutex::new(Reader::new(kafka_connection(&env), &env["TOPIC_PREFIX"])));
        Ok(Self { stack, node, env, dir, binary: built("ctrip")?, reader })
    }

    /// Runs `ctrip` to its end and returns its standard output.
    ///
    /// # Errors
    /// When it fails; the error has its standard error.
    pub fn ctrip(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        anyhow::ensure!(
            output.status.success(),
            "ctrip {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Runs `ctrip` to its end, whether it succeeds or fails.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().context("ctrip")
    }

    /// A command of `ctrip`, for tests that read its output while it runs.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env_remove("RUST_LOG").envs(&self.env);
        command
    }

    /// Starts a role, or `up`, which logs into the lab's folder.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(&self, role: &str) -> Result<Process> {
        self.spawn_with(&[role])
    }

    /// Starts a role as a second machine would, beside the first one's: with another instance, API address and folder for temporary
    /// files, where the lock of a machine is. Returns the URL of its API too.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn_beside(&self, role: &str) -> Result<(Process, String)> {
        let mut env = self.env.clone();
        env.insert("TMPDIR".to_owned(), self.dir.display().to_string());
        env.insert("CTRIP_INSTANCE".to_owned(), "second".to_owned());
        env.insert("API_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?));
        env.insert("METRICS_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?));
        let url = format!("http://{}", env["API_LISTEN"]);
        Ok((Process::spawn(&self.binary, &[role], &env, &self.dir)?, url))
    }

    /// Starts `ctrip` with arguments, the first of which is the subcommand.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn_with(&self, arguments: &[&str]) -> Result<Process> {
        let role = arguments.first().copied().unwrap_or_default();
        let mut env = self.env.clone();
        if role != "up" && role != "api" {
            // Each process has its own metrics.
            env.insert("METRICS_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?));
        }
        Process::spawn(&self.binary, arguments, &env, &self.dir)
    }

    /// Starts a role that has the API, and waits until it serves a new merchant.
    ///
    /// # Errors
    /// When the process cannot be started, or is not ready within a minute.
    pub async fn serve(&self, role: &str, merchant: &str) -> Result<(Process, Api)> {
        let mut process = self.spawn(role)?;
        let api = self.merchant(merchant)?;
        api.ready(&mut process).await?;
        Ok((process, api))
    }

    /// A client of the API for a new merchant, with a key of its own.
    ///
    /// # Errors
    /// When the key cannot be created.
    pub fn merchant(&self, name: &str) -> Result<Api> {
        let key = self.ctrip(&["keys", "create", name])?;
        Api::new(format!("http://{}", self.env["API_LISTEN"]), key)
    }

    /// What a client of rdkafka needs to reach the lab's Kafka.
    pub fn kafka_connection(&self) -> ClientConfig {
        kafka_connection(&self.env)
    }

    /// The settings of the lab's processes.
    ///
    /// # Errors
    /// When an address is malformed.
    pub fn settings(&self) -> Result<Settings> {
        let secrets = |name: &str| self.env.get(name).cloned();
        let (mut kafka, mut registry) = (KafkaSettings::default(), RegistrySettings::default());
        if self.env.contains_key("KAFKA_SECURITY_PROTOCOL") {
            kafka.kafka_security_protocol = SecurityProtocol::SaslSsl;
            kafka.kafka_sasl_mechanism = Some(SaslMechanism::ScramSha512);
            kafka.kafka_sasl_username = secrets("KAFKA_SASL_USERNAME");
            kafka.kafka_ssl_ca_location = secrets("KAFKA_SSL_CA_LOCATION").map(PathBuf::from);
            registry.schema_registry_ca_location = secrets("SCHEMA_REGISTRY_CA_LOCATION").map(PathBuf::from);
        }
        kafka.complete(&secrets)?;
        registry.complete(&secrets)?;
        Ok(Settings {
            database_url: self.env["DATABASE_URL"].clone().into(),
            database_read_url: None,
            database_read_max_lag_ms: 2_000,
            kafka_brokers: self.env["KAFKA_BROKERS"].clone(),
            kafka,
            schema_registry_url: self.env["SCHEMA_REGISTRY_URL"].clone().into(),
            registry,
            topic_prefix: self.env["TOPIC_PREFIX"].clone(),
            topic_replication: None,
            chains_file: PathBuf::from(&self.env["CHAINS_FILE"]),
            xpub: Some(XPUB.to_owned()),
            xpub_replaces: None,
            api_rate_limit: 0,
            api_database_connections: 16,
            api_database_wait_ms: 5_000,
            api_statement_timeout_ms: 10_000,
            ingest_parallel_fetches: 8,
            ingest_batch_blocks: 64,
            api_max_connections: 1000,
            api_max_connections_per_address: 1000,
            api_trusted_proxies: Vec::new(),
            api_listen: self.env["API_LISTEN"].parse()?,
            history_keep_days: None,
            webhook_allow_networks: Vec::new(),
            webhook_allow_http: false,
            metrics_listen: self.env["METRICS_LISTEN"].parse()?,
            instance: "lab".to_owned(),
        })
    }

    /// Kafka as the lab's processes see it.
    ///
    /// # Errors
    /// When the schema registry does not respond.
    pub async fn kafka(&self) -> Result<Kafka> {
        Kafka::connect(&self.settings()?).await
    }

    /// Opens a connection to the lab's database.
    ///
    /// # Errors
    /// When Postgres refuses it.
    pub async fn database(&self) -> Result<tokio_postgres::Client> {
        connect(&self.env["DATABASE_URL"]).await
    }

    /// Notes that the topics were compared with the database, as `api` and `confirmer` do. A lab in which `webhooks` runs without
    /// them needs it.
    ///
    /// # Errors
    /// When Postgres refuses it.
    pub async fn note_compared(&self, database: &tokio_postgres::Client) -> Result<()> {
        let compared = format!("{}{}", self.env["TOPIC_PREFIX"], topics::Topic::Intents);
        let sql = "INSERT INTO installation (id, compared) VALUES (gen_random_uuid(), $1)";
        database.execute(sql, &[&compared]).await?;
        Ok(())
    }
}

/// The settings of librdkafka that these variables name.
fn kafka_connection(env: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &env["KAFKA_BROKERS"]);
    for (name, value) in env {
        let key = name.strip_prefix("KAFKA_").filter(|key| *key != "BROKERS" && *key != "SASL_BROKERS");
        if let Some(key) = key {
            config.set(key.to_lowercase().replace('_', "."), value);
        }
    }
    config
}

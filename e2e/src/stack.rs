//! The stack that `dev/stack` runs: Kafka, a schema registry, Postgres and an EVM node.

use crate::process::{built, run};
use anyhow::{Context as _, Result, ensure};
use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tokio::sync::OnceCell;
use tokio_postgres::NoTls;

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The exit code of `dev/stack` for a part that can't be had here.
const SKIPPED: i32 = 3;

/// The path that `dev/stack` prints of a part, made or downloaded if it is missing. `None` where it can't be had, which the
/// test run then says.
pub(crate) fn optional_part(part: &str) -> Result<Option<PathBuf>> {
    let output = Command::new(root().join("dev/stack")).arg(part).output().context("dev/stack")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(SKIPPED) {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // libtest keeps back what a test that passes prints with `eprintln!`.
        writeln!(std::io::stderr(), "SKIPPED {test}: {}", said.trim())?;
        return Ok(None);
    }
    ensure!(output.status.success(), "dev/stack {part}: {said}");
    Ok(Some(PathBuf::from(String::from_utf8(output.stdout)?.trim())))
}

/// A running stack, as `dev/stack env` describes it.
#[derive(Clone, Debug)]
pub struct Stack {
    env: HashMap<String, String>,
    data: Option<PathBuf>,
    /// Its parts may be killed.
    own: bool,
}

impl Stack {
    /// Attaches to the stack that `make test` started: the one in `CTRIP_STACK_DATA`, or else the checkout's.
    ///
    /// # Errors
    /// When none was started.
    pub fn attach() -> Result<Self> {
        static SHARED: OnceLock<Stack> = OnceLock::new();
        if let Some(stack) = SHARED.get() {
            return Ok(stack.clone());
        }
        let stack = Self::describe(std::env::var_os("CTRIP_STACK_DATA").map(PathBuf::from), false)?;
        Ok(SHARED.get_or_init(|| stack).clone())
    }

    /// Starts a stack of its own, for tests that kill its parts; with `CTRIP_STACK_SECURE=yes` a [`secure`](Self::secure) one.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn own(data: &Path) -> Result<Self> {
        let is_secure = std::env::var("CTRIP_STACK_SECURE").is_ok_and(|value| value == "yes");
        Self::start(data, if is_secure { &["up", "--secure"] } else { &["up"] })
    }

    /// Starts a stack of its own with TLS, logins and ACLs.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn secure(data: &Path) -> Result<Self> {
        Self::start(data, &["up", "--secure"])
    }

    /// Writes Kafka's tools into a folder, and returns the environment in which a shell finds them, and Postgres'.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn kafka_tools(&self, folder: &Path) -> Result<[(&'static str, String); 3]> {
        let tools = [
            ("kafka-acls.sh", "AclCommand"),
            ("kafka-log-dirs.sh", "LogDirsCommand"),
            ("kafka-topics.sh", "TopicCommand"),
            ("kafka-transactions.sh", "TransactionsCommand"),
        ];
        for (name, class) in tools {
            let tool = folder.join(name);
            let java = r#"exec "$JAVA" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$KAFKA_HOME/*""#;
            std::fs::write(&tool, format!("#!/bin/sh\n{java} org.apache.kafka.tools.{class} \"$@\"\n"))?;
            std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755))?;
        }
        let path = format!("{}:{}:{}", folder.display(), self.get("PG_BIN")?, std::env::var("PATH")?);
        Ok([("PATH", path), ("JAVA", self.get("JAVA")?.to_owned()), ("KAFKA_HOME", self.get("KAFKA_HOME")?.to_owned())])
    }

    fn start(data: &Path, up: &[&str]) -> Result<Self> {
        let stack = Self { env: HashMap::new(), data: Some(data.to_owned()), own: true };
        stack.run_with(up)?;
        Self::describe(Some(data.to_owned()), true)
    }

    fn describe(data: Option<PathBuf>, own: bool) -> Result<Self> {
        let mut stack = Self { env: HashMap::new(), data, own };
        let output = stack.run("env")?;
        stack.env = output.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Ok(stack)
    }

    /// Starts the parts that do not run.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn up(&self) -> Result<()> {
        self.run("up").map(drop)
    }

    /// Stops all parts and removes their data.
    ///
    /// # Errors
    /// When a part does not stop.
    pub fn purge(&self) -> Result<()> {
        self.run_with(&["down", "--purge"]).map(drop)
    }

    /// Copies the logs of its parts to `target/lab/NAME`, for whoever looks into a failure.
    ///
    /// # Errors
    /// When a file can't be copied.
    pub fn keep_logs(&self, name: &str) -> Result<()> {
        let to = root().join("target/lab").join(name);
        std::fs::create_dir_all(&to)?;
        for log in std::fs::read_dir(self.data.as_ref().context("a stack without a data directory")?.join("logs"))? {
            let log = log?;
            std::fs::copy(log.path(), to.join(log.file_name()))?;
        }
        println!("the logs of Kafka and the other parts are in {}", to.display());
        Ok(())
    }

    /// Kills a part with `kill -9`: `kafka`, `postgres`, `registry` or `anvil`.
    ///
    /// # Errors
    /// When the part does not run, or the stack is the shared one.
    pub fn kill(&self, part: &str) -> Result<()> {
        let data = self.data.as_ref().filter(|_| self.own);
        let data = data.context("the parts of the shared stack are not killed; start one with Stack::own")?;
        let pid = std::fs::read_to_string(data.join(format!("{part}.pid")))?;
        let pid = pid.lines().next().unwrap_or_default().trim().to_owned();
        ensure!(Command::new("kill").args(["-9", &pid]).status()?.success(), "kill -9 {pid} ({part})");
        Ok(())
    }

    /// Looks up a variable of `dev/stack env`.
    ///
    /// # Errors
    /// When it is not set.
    pub fn get(&self, name: &str) -> Result<&str> {
        self.env.get(name).map(String::as_str).with_context(|| format!("dev/stack env has no {name}"))
    }

    /// The variables with which cTrip reaches the stack, as its administrator.
    pub fn connection(&self) -> BTreeMap<String, String> {
        let is_ctrips = |name: &str| {
            name == "DATABASE_URL"
                || name == "KAFKA_BROKERS"
                || name != "KAFKA_SASL_BROKERS"
                    && ["KAFKA_SECURITY_", "KAFKA_SASL_", "KAFKA_SSL_", "SCHEMA_REGISTRY_"]
                        .iter()
                        .any(|start| name.starts_with(start))
        };
        self.env.iter().filter(|(name, _)| is_ctrips(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// A connection to the server that may create, rename and drop databases.
    ///
    /// # Errors
    /// When Postgres refuses.
    pub async fn admin(&self) -> Result<tokio_postgres::Client> {
        connect(self.get("DATABASE_URL")?).await
    }

    /// Creates an empty database and returns its URL.
    ///
    /// # Errors
    /// When Postgres refuses.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        self.create_from("template1", name).await
    }

    /// Creates a database with cTrip's tables and returns its URL. On the shared stack it is a copy of the first one, since a
    /// migration costs ten times as much.
    ///
    /// # Errors
    /// When Postgres refuses, or the migration fails.
    pub async fn create_migrated(&self, name: &str) -> Result<String> {
        static FIRST: OnceCell<String> = OnceCell::const_new();
        if self.own {
            return self.migrate(name).await;
        }
        let first = async || {
            let first = format!("migrated_{name}");
            self.migrate(&first).await.map(|_| first)
        };
        self.create_from(FIRST.get_or_try_init(first).await?, name).await
    }

    async fn migrate(&self, name: &str) -> Result<String> {
        let url = self.create_database(name).await?;
        run(Command::new(built("ctrip")?).arg("migrate").env_remove("RUST_LOG").env("DATABASE_URL", &url))?;
        Ok(url)
    }

    async fn create_from(&self, template: &str, name: &str) -> Result<String> {
        let url = self.get("DATABASE_URL")?;
        connect(url).await?.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await?;
        let (place, options) = url.find('?').map_or((url, ""), |query| url.split_at(query));
        let (server, _) = place.rsplit_once('/').context("DATABASE_URL names no database")?;
        Ok(format!("{server}/{name}{options}"))
    }

    fn run(&self, command: &str) -> Result<String> {
        self.run_with(&[command])
    }

    fn run_with(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(root().join("dev/stack"));
        command.args(arguments);
        if self.own {
            // A killed broker comes back soon. A session that is shorter still fences it on a busy machine, and the
            // coordinators of its transactions may not come back.
            command.env("KAFKA_SESSION_MS", "6000");
        }
        if let Some(data) = &self.data {
            command.arg("--data").arg(data);
        }
        let output = command.output().context("dev/stack")?;
        ensure!(output.status.success(), "dev/stack {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

pub(crate) async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    if url.contains("sslmode=") {
        return Ok(runtime::db::Primary::of(url)?.open().await.context("Postgres")?.0);
    }
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("Postgres")?;
    // The task ends with the client; the client's next call returns an error of the connection.
    tokio::spawn(connection);
    Ok(client)
}

//! Postgres servers of a test's own: a primary and its standby, for failovers.

use crate::network::Network;
use crate::process::{free_port, run};
use crate::stack::{Stack, connect};
use crate::wait::eventually;
use anyhow::{Context as _, Result, ensure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A running server. Dropping it kills it and removes its data.
pub struct PostgresServer {
    child: Child,
    /// In /var/tmp, which the user `postgres` can reach: the server does not run as root.
    home: TempDir,
    bin: PathBuf,
    /// Its host, if that is not this one.
    network: Option<Network>,
    /// Where it listens.
    pub port: u16,
}

impl PostgresServer {
    /// Makes and starts a primary that streams to standbys, with the stack's programs.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn primary(stack: &Stack) -> Result<Self> {
        Self::primary_on(stack, None).await
    }

    /// [`primary`](Self::primary), on a host that can vanish.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn primary_on(stack: &Stack, network: Option<Network>) -> Result<Self> {
        let (home, bin) = (home()?, PathBuf::from(stack.get("PG_BIN")?));
        let initdb = ["-U", "ctrip", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"];
        run(as_postgres(&bin.join("initdb")).args(initdb).arg(data(&home)))?;
        let mut rules = std::fs::OpenOptions::new().append(true).open(data(&home).join("pg_hba.conf"))?;
        rules.write_all(b"host all all 0.0.0.0/0 trust\n")?;
        Self::start(home, bin, network).await
    }

    /// Makes and starts a standby of this server.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn standby(&self) -> Result<Self> {
        let home = home()?;
        let from = ["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "-U", "ctrip", "-p"];
        let mut command = as_postgres(&self.bin.join("pg_basebackup"));
        let socket = self.home.path();
        run(command.args(from).arg(self.port.to_string()).arg("-h").arg(socket).arg("-D").arg(data(&home)))?;
        Self::start(home, self.bin.clone(), None).await
    }

    async fn start(home: TempDir, bin: PathBuf, network: Option<Network>) -> Result<Self> {
        let port = free_port()?;
        let mut command = as_postgres(&bin.join("postgres"));
        if let Some(network) = &network {
            command = network.on_the_server(&command);
        }
        let (host, socket) = (host(network.as_ref()), home.path().display());
        command.arg("-D").arg(data(&home)).arg("-p").arg(port.to_string());
        command.arg("-c").arg(format!("listen_addresses={host}")).arg("-c").arg(format!("unix_socket_directories={socket}"));
        command.args(["-c", "max_connections=100"]);
        let log = std::fs::File::create(home.path().join("log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("postgres")?;
        let server = Self { child, home, bin, network, port };
        let url = server.url("postgres");
        eventually("a Postgres server", || async { Ok(connect(&url).await.ok()) })
            .await
            .with_context(|| std::fs::read_to_string(server.home.path().join("log")).unwrap_or_default())?;
        Ok(server)
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://ctrip@{}:{}/{database}", host(self.network.as_ref()), self.port)
    }

    /// The URL of one of its databases by the server's socket, which leads there when its host has vanished.
    pub fn socket_url(&self, database: &str) -> String {
        let socket = self.home.path().display().to_string().replace('/', "%2F");
        format!("postgres://ctrip@{socket}:{}/{database}", self.port)
    }

    /// Lets the server's host vanish: what is sent to it and by it arrives nowhere, and nobody says so.
    ///
    /// # Errors
    /// When it has no host of its own.
    pub fn vanish(&self) -> Result<()> {
        self.network.as_ref().context("the server is on this host")?.cut()
    }

    /// Lets every process of the server stand still: its host accepts connections, and nobody answers.
    ///
    /// # Errors
    /// When `kill` fails.
    pub fn stand_still(&self) -> Result<()> {
        self.signal("-STOP")
    }

    /// Lets a server that stands still go on.
    ///
    /// # Errors
    /// When `kill` fails.
    pub fn go_on(&self) -> Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let parent = self.child.id().to_string();
        run(Command::new("kill").arg(signal).arg(&parent))?;
        // Its sessions are processes of their own, and one that goes on may end at once.
        run(Command::new("pkill").args([signal, "-P", &parent]))
    }

    /// Makes a standby the primary.
    ///
    /// # Errors
    /// When it does not become one.
    pub async fn promote(&self) -> Result<()> {
        let promoted = connect(&self.url("postgres")).await?.query_one("SELECT pg_promote()", &[]).await?;
        ensure!(promoted.get::<_, bool>(0), "the standby is not promoted");
        Ok(())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // SIGQUIT ends its sessions too, and SIGCONT lets those end that stand still.
        let group = self.child.id().to_string();
        let _ = Command::new("pkill").args(["-CONT", "-P", &group]).status();
        let _ = Command::new("kill").args(["-CONT", &group]).status();
        let _ = Command::new("kill").args(["-QUIT", &group]).status();
        let _ = self.child.wait();
    }
}

fn host(network: Option<&Network>) -> String {
    network.map_or_else(|| "127.0.0.1".to_owned(), Network::address)
}

fn data(home: &TempDir) -> PathBuf {
    home.path().join("data")
}

fn home() -> Result<TempDir> {
    let home = tempfile::Builder::new().prefix("ctrip-e2e-pg-").tempdir_in("/var/tmp")?;
    if is_root() {
        run(Command::new("chown").arg("postgres:").arg(home.path()))?;
    }
    Ok(home)
}

/// A program as the user `postgres`, if this is root, as which Postgres refuses to run.
fn as_postgres(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

//! Postgres servers of a test's own: a primary and its standby, for failovers.

use crate::process::{free_port, run};
use crate::stack::{Stack, connect};
use crate::wait::eventually;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A running server. Dropping it kills it and removes its data.
pub struct PostgresServer {
    child: Child,
    /// In /var/tmp, which the user `postgres` can reach: the server does not run as root.
    home: TempDir,
    bin: PathBuf,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

impl PostgresServer {
    /// Makes and starts a primary that streams to standbys, with the stack's programs.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn primary(stack: &Stack) -> Result<Self> {
        let (home, bin) = (home()?, PathBuf::from(stack.get("PG_BIN")?));
        let initdb = ["-U", "ctrip", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"];
        run(as_postgres(&bin.join("initdb")).args(initdb).arg(data(&home)))?;
        Self::start(home, bin).await
    }

    /// Makes and starts a standby of this server.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn standby(&self) -> Result<Self> {
        let home = home()?;
        let from = ["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "-h", "127.0.0.1", "-U", "ctrip", "-p"];
        let mut command = as_postgres(&self.bin.join("pg_basebackup"));
        run(command.args(from).arg(self.port.to_string()).arg("-D").arg(data(&home)))?;
        Self::start(home, self.bin.clone()).await
    }

    async fn start(home: TempDir, bin: PathBuf) -> Result<Self> {
        let port = free_port()?;
        let mut command = as_postgres(&bin.join("postgres"));
        command.arg("-D").arg(data(&home)).arg("-p").arg(port.to_string());
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=100"]);
        let log = std::fs::File::create(home.path().join("log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("postgres")?;
        let server = Self { child, home, bin, port };
        let url = server.url("postgres");
        eventually("a Postgres server", || async { Ok(connect(&url).await.ok()) })
            .await
            .with_context(|| std::fs::read_to_string(server.home.path().join("log")).unwrap_or_default())?;
        Ok(server)
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://ctrip@127.0.0.1:{}/{database}", self.port)
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

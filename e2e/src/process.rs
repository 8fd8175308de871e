//! Processes of `ctrip` under test: their logs, metrics and ends.

use crate::http::plain_http;
use anyhow::{Context as _, Result, ensure};
use base::locked;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Returns a port that nothing listens on now, for another process; this one takes the [listener](free_listener).
///
/// # Errors
/// When no port is free.
pub fn free_port() -> Result<u16> {
    Ok(free_listener()?.local_addr()?.port())
}

/// Listens on a port that nothing else listens on. It lies below the ephemeral range, so no outgoing connection takes it, and is
/// handed out once per process. A child that another thread forks has a copy of the listener until it runs its program, so a port that
/// was let go may be taken for a moment.
///
/// # Errors
/// When no port is free.
pub(crate) fn free_listener() -> Result<TcpListener> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random_range(0..RANGE)));
    const FIRST: u16 = 10_000;
    const RANGE: u16 = 10_000;
    for _ in 0..RANGE {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            listener.set_nonblocking(true)?;
            return Ok(listener);
        }
    }
    anyhow::bail!("no free port from {FIRST} on")
}

/// The logs of the processes that were started, each with the thread that did. Each test has a thread of its own.
static LOGS: Mutex<Vec<(ThreadId, PathBuf)>> = Mutex::new(Vec::new());

/// The ends of the logs of all processes that this thread has started: what a test that waits in vain has to show, since nobody has
/// its logs once CI is over.
pub(crate) fn tails_of_this_thread() -> String {
    let thread = std::thread::current().id();
    let logs: Vec<_> = locked(&LOGS).iter().filter(|(of, _)| *of == thread).map(|(_, log)| log.clone()).collect();
    logs.iter().map(|log| format!("\n{}:\n{}", log.display(), tail(log))).collect()
}

/// The last 30 lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.split_at(lines.len().saturating_sub(30)).1.join("\n")
}

/// A running `ctrip`. Dropping it kills the process.
pub struct Process {
    child: Child,
    /// The subcommand.
    pub role: String,
    /// Path of its log.
    pub log: PathBuf,
    metrics: String,
}

impl Process {
    pub(crate) fn spawn(binary: &Path, arguments: &[&str], env: &BTreeMap<String, String>, dir: &Path) -> Result<Self> {
        let role = arguments.first().copied().unwrap_or_default();
        let log = dir.join(format!("{role}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let started = (std::thread::current().id(), log.clone());
        let mut logs = locked(&LOGS);
        if !logs.contains(&started) {
            logs.push(started);
        }
        drop(logs);
        let child = Command::new(binary)
            .args(arguments)
            .envs(env)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("ctrip {role}"))?;
        let metrics = format!("http://{}/metrics", env.get("METRICS_LISTEN").map_or("", String::as_str));
        Ok(Self { child, role: role.to_owned(), log, metrics })
    }

    /// Sums a metric over all series that have these labels; 0 when there are none yet.
    ///
    /// # Errors
    /// When the process does not serve its metrics.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let text = plain_http().build()?.get(&self.metrics).send().await?.error_for_status()?.text().await?;
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let of_name = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let matching = of_name.filter(|line| labels.iter().all(|label| line.contains(label)));
        Ok(matching.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    /// When it has not ended after 20 s.
    pub async fn end(&mut self) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(started.elapsed() < Duration::from_secs(20), "ctrip {} still runs:\n{}", self.role, self.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with `kill -9`.
    ///
    /// # Errors
    /// When it had ended by itself before, which is a bug.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("ctrip {} had ended by itself ({status}):\n{}", self.role, self.tail());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it for a while, as a machine's pause does, and lets it go on.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub async fn pause(&mut self, pause: Duration) -> Result<()> {
        self.check()?;
        self.signal("STOP")?;
        tokio::time::sleep(pause).await;
        self.signal("CONT")
    }

    /// Sends a signal by its name, such as `HUP`.
    ///
    /// # Errors
    /// When it had ended.
    pub fn signal(&self, name: &str) -> Result<()> {
        ensure!(Command::new("kill").args(["-s", name, &self.id().to_string()]).status()?.success(), "kill -s {name}");
        Ok(())
    }

    /// Sends SIGTERM and returns how the process ended.
    ///
    /// # Errors
    /// When it does not end within 12 s.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(started.elapsed() < Duration::from_secs(12), "ctrip {} did not stop:\n{}", self.role, self.tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks that it runs.
    ///
    /// # Errors
    /// When it has ended; the error has the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("ctrip {} ended ({status}):\n{}", self.role, self.tail()),
        }
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last 30 lines of its log.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory of a process now (`VmRSS`) or at its peak (`VmHWM`), in MB of 10^6 bytes.
///
/// # Errors
/// When there is no such process.
pub fn memory_mb(process: u32, which: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':')).context("no such memory")?;
    let kib: f64 = value.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Runs a program to its end. The error has its standard error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Finds a program of the workspace that was built beside the running test, demo or bench, whatever `CARGO_TARGET_DIR` is.
///
/// # Errors
/// When it was not built.
pub fn built(name: &str) -> Result<PathBuf> {
    let running = std::env::current_exe()?;
    let folders = running.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside this program: run `cargo build --workspace --bins` first, as `make` does"))
}

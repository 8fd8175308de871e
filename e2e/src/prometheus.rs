//! Debian's Prometheus: promtool, and a server that scrapes one process.

use crate::http::plain_http;
use crate::process::free_port;
use crate::stack::{optional_part, root};
use anyhow::{Context as _, Result, ensure};
use reqwest::Url;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The path of promtool. `None` where it can't be had, which the test run then says.
///
/// # Errors
/// When it can't be downloaded.
pub fn promtool() -> Result<Option<PathBuf>> {
    optional_part("promtool")
}

/// A server with the rules of deploy/prometheus. Dropping it kills the process.
pub struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    /// Starts one that scrapes an address each second, as the job that the rules ask for.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(promtool: &Path, target: &str, folder: &Path) -> Result<Self> {
        let config = folder.join("prometheus.yml");
        let rules = root().join("deploy/prometheus/rules.yml");
        let scrape = format!("{{ job_name: ctrip, static_configs: [{{ targets: [\"{target}\"] }}] }}");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{:?}]\nscrape_configs: [{scrape}]\n",
            rules.display().to_string()
        );
        std::fs::write(&config, text)?;
        let log = std::fs::File::create(folder.join("prometheus.log"))?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let child = Command::new(promtool.with_file_name("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("prometheus")?;
        Ok(Self { child, url: format!("http://{listen}/api/v1") })
    }

    /// What its API answers to a path with these parameters, or `None` while it does not listen.
    ///
    /// # Errors
    /// When it refuses the question.
    pub async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Option<Value>> {
        let url = Url::parse_with_params(&format!("{}/{path}", self.url), parameters)?;
        let Ok(response) = plain_http().build()?.get(url).send().await else { return Ok(None) };
        let answer: Value = response.json().await?;
        ensure!(answer["status"] == "success", "{parameters:?}: {answer}");
        Ok(Some(answer["data"].clone()))
    }

    /// How many series a query has now.
    ///
    /// # Errors
    /// When the query is refused.
    pub async fn series(&self, query: &str) -> Result<usize> {
        let data = self.ask("query", &[("query", query)]).await?.unwrap_or_default();
        Ok(data["result"].as_array().map_or(0, Vec::len))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

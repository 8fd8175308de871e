//! deploy/prometheus: the alerts of rules.yml, what rules_test.yml fires, and what prometheus.yml scrapes.

use crate::{promql, read};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// A rule that tells of something.
pub struct Alert {
    pub name: String,
    pub expr: String,
    pub severity: String,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct File<T> {
    #[serde(alias = "groups", alias = "tests")]
    parts: Vec<T>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Test {
    promql_expr_test: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    exp_samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    labels: String,
}

fn parts<T: for<'de> Deserialize<'de>>(path: &str) -> Vec<T> {
    let file: File<T> = serde_norway::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    file.parts
}

pub fn alerts() -> Vec<Alert> {
    let groups: Vec<Group> = parts("deploy/prometheus/rules.yml");
    let rules = groups.into_iter().flat_map(|group| group.rules);
    let alert = |Rule { alert, expr, mut labels, annotations }| Alert {
        severity: labels.remove("severity").unwrap_or_default(),
        name: alert,
        expr,
        annotations,
    };
    rules.map(alert).collect()
}

/// The alerts that a test expects to fire, each with its severity.
pub fn fired() -> BTreeSet<(String, String)> {
    let tests: Vec<Test> = parts("deploy/prometheus/rules_test.yml");
    let samples = tests.into_iter().flat_map(|test| test.promql_expr_test).flat_map(|asked| asked.exp_samples);
    let value = |labels: &str, name| promql::label(labels, name).unwrap_or_else(|| panic!("{labels} has no {name}"));
    samples.map(|Sample { labels }| (value(&labels, "alertname"), value(&labels, "severity"))).collect()
}

#[derive(Deserialize)]
struct Config {
    scrape_configs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    static_configs: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    targets: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// Where the metrics of each role are asked for.
pub fn targets() -> BTreeMap<String, String> {
    let path = "deploy/prometheus/prometheus.yml";
    let config: Config = serde_norway::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let targets = config.scrape_configs.into_iter().flat_map(|job| job.static_configs);
    targets.map(|Target { targets, mut labels }| (labels.remove("role").unwrap_or_default(), targets.join(" "))).collect()
}

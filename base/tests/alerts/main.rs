//! The alerts of deploy/prometheus and the dashboards of deploy/grafana, held to their word: each alert has a runbook and fires
//! in a test, each metric that is asked for is in the code, and the dashboards are those that are made here.

mod dashboards;
mod grafana;
mod markdown;
mod promql;
mod rules;

use base::metrics::{ALL, Kind};
use promql::{Selector, selectors};
use rules::{Alert, alerts, fired};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const RUNBOOKS: &str = "docs/runbooks";
const SECTIONS: [&str; 4] = ["Meaning", "Impact", "Diagnosis", "Mitigation"];
/// What Prometheus adds to each series, those of deploy/prometheus/prometheus.yml, and the bound of a histogram's bucket.
const ADDED_LABELS: [&str; 4] = ["job", "instance", "role", "le"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("base is a folder of the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Why a selector finds nothing, whatever happens.
fn fault(Selector { metric, labels }: &Selector) -> Option<String> {
    // Prometheus' own, and those of the node exporter.
    if metric == "up" || metric.starts_with("node_") {
        return None;
    }
    let Some(known) = ALL.iter().find(|known| match known.kind {
        Kind::Histogram => ["_bucket", "_count", "_sum"].iter().any(|part| metric.strip_suffix(part) == Some(known.name)),
        Kind::Counter | Kind::Gauge => metric == known.name,
    }) else {
        return Some(format!("no metric is called {metric}"));
    };
    let unknown =
        labels.iter().find(|label| !known.labels.contains(&label.as_str()) && !ADDED_LABELS.contains(&label.as_str()));
    unknown.map(|label| format!("{metric} has no label {label}"))
}

#[test]
fn each_alert_has_a_runbook_and_each_runbook_an_alert() {
    let alerts = alerts();
    let pages: BTreeSet<String> = fs::read_dir(root().join(RUNBOOKS))
        .expect(RUNBOOKS)
        .flatten()
        .map(|entry| entry.file_name().into_string().expect("a name"))
        .collect();
    let names: BTreeSet<String> = alerts.iter().map(|alert| format!("{}.md", alert.name)).collect();
    assert_eq!(names, pages, "alerts of rules.yml, and pages of {RUNBOOKS}");
    let index = read("docs/runbook.md");
    for Alert { name, annotations, severity, .. } in &alerts {
        let path = format!("{RUNBOOKS}/{name}.md");
        let page = read(&path);
        assert_eq!(markdown::headings(&page, 1), [name.as_str()], "{path}");
        assert_eq!(markdown::headings(&page, 2), SECTIONS, "{path}");
        assert!(index.contains(&format!("(runbooks/{name}.md)")), "docs/runbook.md leads nobody to {path}");
        assert_eq!(annotations.get("runbook_url"), Some(&path), "{name}");
        for needed in ["summary", "description"] {
            assert!(annotations.contains_key(needed), "{name} has no {needed}");
        }
        assert!(["critical", "warning", "info"].contains(&severity.as_str()), "{name} has the severity {severity}");
    }
}

#[test]
fn each_alert_fires_in_a_test_of_the_rules() {
    let alerts = alerts();
    let expected: BTreeSet<_> = alerts.iter().map(|alert| (alert.name.clone(), alert.severity.clone())).collect();
    assert_eq!(expected.len(), alerts.len(), "two alerts have one name");
    assert_eq!(expected, fired(), "alerts of rules.yml, and those that rules_test.yml fires");
}

#[test]
fn alerts_and_dashboards_ask_for_metrics_that_there_are() {
    let asked = alerts().into_iter().map(|alert| (alert.name, alert.expr));
    let shown = dashboards::all().into_iter().flat_map(|dashboard| dashboard.queries());
    let mut faults = Vec::new();
    for (place, query) in asked.chain(shown) {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty(), "{place} asks for no metric: {query}");
        // Other programs have metrics of these names too.
        let everybodys =
            selectors.iter().filter(|s| !s.metric.starts_with("node_") && !s.labels.iter().any(|label| label == "job"));
        faults.extend(everybodys.map(|selector| format!("{place}: {} of any job", selector.metric)));
        faults.extend(selectors.iter().filter_map(fault).map(|fault| format!("{place}: {fault}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn links_of_the_runbooks_lead_somewhere() {
    let pages = fs::read_dir(root().join(RUNBOOKS)).expect(RUNBOOKS).flatten().map(|entry| entry.path());
    let mut broken = Vec::new();
    for page in pages.chain([root().join("docs/runbook.md")]) {
        let text = fs::read_to_string(&page).expect("a page");
        for link in markdown::links(&text).into_iter().filter(|link| !link.starts_with("https://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().expect("a folder").join(file) };
            let leads =
                fs::read_to_string(target).is_ok_and(|text| anchor.is_empty() || markdown::anchors(&text).contains(anchor));
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_dashboards_are_those_that_are_made_here() {
    let folder = root().join("deploy/grafana");
    let dashboards = dashboards::all();
    let is_asked = std::env::var_os("CTRIP_WRITE_DASHBOARDS").is_some();
    let mut names = BTreeSet::new();
    for dashboard in &dashboards {
        let (name, made) = (format!("{}.json", dashboard.uid), dashboard.json());
        if is_asked {
            fs::create_dir_all(&folder).expect("deploy/grafana");
            fs::write(folder.join(&name), &made).expect("a dashboard");
        }
        let kept = fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(
            made == kept,
            "deploy/grafana/{name} is not what is made of base/tests/alerts/dashboards.rs; `make dashboards` writes it"
        );
        names.insert(name);
    }
    let kept: BTreeSet<String> = fs::read_dir(&folder)
        .expect("deploy/grafana")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".json"))
        .collect();
    assert_eq!(names, kept, "the dashboards of deploy/grafana");
}

#[test]
fn each_role_has_a_unit_whose_metrics_prometheus_scrapes() {
    let units: BTreeMap<String, String> = fs::read_dir(root().join("deploy/systemd"))
        .expect("deploy/systemd")
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("ctrip-")?.strip_suffix(".service")?.to_owned()))
        .map(|role| (role.clone(), read(&format!("deploy/systemd/ctrip-{role}.service"))))
        .collect();
    for (role, unit) in &units {
        assert!(
            unit.contains(&format!("\nExecStart=/usr/local/bin/ctrip {role}\n")),
            "ctrip-{role}.service runs something else"
        );
    }
    let listens = |unit: &String| Some(unit.split_once("METRICS_LISTEN=")?.1.lines().next()?.to_owned());
    let listen: BTreeMap<String, String> =
        units.iter().map(|(role, unit)| (role.clone(), listens(unit).expect("METRICS_LISTEN"))).collect();
    assert_eq!(listen, rules::targets(), "METRICS_LISTEN of deploy/systemd, and the targets of prometheus.yml");
}

//! docs/metrics.md is generated from the list in the code.

#[test]
fn the_documented_metrics_are_those_of_the_code() {
    let documented = include_str!("../../docs/metrics.md");
    let table = documented.split_once("| metric").map(|(_, table)| format!("| metric{table}"));
    assert_eq!(table.as_deref(), Some(base::metrics::reference().as_str()), "run `ctrip metrics` and paste it");
}

#[test]
fn a_metric_has_one_name() {
    let mut names: Vec<&str> = base::metrics::ALL.iter().map(|metric| metric.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), base::metrics::ALL.len());
}

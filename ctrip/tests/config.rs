//! `ctrip config` as an operator runs it: flags, the environment and a file of variables, in this order.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use serde_json::Value;
use std::process::{Command, Output};

fn config(file: &str, arguments: &[&str], set: &[(&str, &str)]) -> Output {
    let name = format!("ctrip-env-{}-{}", std::process::id(), uuid::Uuid::now_v7());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctrip"));
    command.env_clear().args(["config", "--json", "--env-file"]).arg(&path).args(arguments).envs(set.iter().copied());
    let output = command.output().unwrap();
    std::fs::remove_file(path).unwrap();
    output
}

#[test]
fn a_flag_counts_before_the_environment_and_that_before_the_file() {
    let file = "API_LISTEN=127.0.0.1:1\nMETRICS_LISTEN=127.0.0.1:1\nTOPIC_PREFIX=file.\nDATABASE_URL='postgres://u:hunter2@db/ctrip'\n";
    let output = config(file, &["--api-listen", "127.0.0.1:3"], &[("API_LISTEN", "127.0.0.1:2"), ("TOPIC_PREFIX", "set.")]);
    assert!(output.status.success(), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let setting = settings.iter().find(|setting| setting["name"] == name).unwrap();
        (setting["value"].as_str().unwrap().to_owned(), setting["source"].as_str().unwrap().to_owned())
    };
    let expected = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(of("API_LISTEN"), expected("127.0.0.1:3", "flag"));
    assert_eq!(of("TOPIC_PREFIX"), expected("set.", "environment"));
    assert_eq!(of("METRICS_LISTEN"), expected("127.0.0.1:1", "env file"));
    assert_eq!(of("DATABASE_URL"), expected("***@db/ctrip", "env file"));
    assert_eq!(of("KAFKA_BROKERS"), expected("127.0.0.1:9092", "default"));
}

#[test]
fn settings_that_contradict_each_other_are_shown_and_refused() {
    let output = config("", &[], &[("KAFKA_SASL_PASSWORD", "hunter2")]);
    let (shown, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(!output.status.success() && shown.contains("KAFKA_SASL_PASSWORD") && !shown.contains("hunter2"), "{shown}");
    assert!(error.contains("KAFKA_SASL_PASSWORD is set") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_ends_the_command_by_name() {
    let output = config("TOPIC_PREFIX=a.\nDATABASE_URL=hunter2 'x\n", &[], &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("after TOPIC_PREFIX") && !error.contains("hunter2"), "{error}");
}

//! `ctrip config`: the settings in force, and where each comes from. What may be secret is not shown.

use crate::env_file::EnvFile;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use runtime::settings::{SECRETS, URLS, without_password};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;

/// In place of what is not shown.
const HIDDEN: &str = "***";
/// Variables that no flag has.
const OTHERS: [&str; 2] = ["RUST_LOG", "LOG_FORMAT"];
/// The file of words is a flag of some commands alone.
const MNEMONIC_FILE: &str = "CTRIP_MNEMONIC_FILE";

#[derive(clap::Args)]
pub struct ConfigArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    name: String,
    /// `None` where it is not set.
    value: Option<String>,
    source: &'static str,
}

#[derive(Debug, Serialize)]
struct Config {
    env_file: Option<PathBuf>,
    settings: Vec<Setting>,
    /// Variables of the file that are no settings: what the chains file names, or a mistake.
    others_in_env_file: Vec<String>,
}

/// Prints the settings. `command` is untouched by what the process has, `matches` are those that it was started with.
///
/// # Errors
/// When they can't be written as JSON.
pub fn run(command: &Command, matches: &ArgMatches, file: EnvFile, arguments: &ConfigArguments) -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let config = config(command, matches, file, &env);
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&config)?),
        false => print!("{}", table(&config)),
    }
    Ok(())
}

fn config(command: &Command, matches: &ArgMatches, file: EnvFile, env: &dyn Fn(&str) -> Option<String>) -> Config {
    let source_of = |name: &str| if file.names.contains(name) { "env file" } else { "environment" };
    let mut settings = Vec::new();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
        let id = arg.get_id().as_str();
        let by_file = format!("{name}_FILE");
        if URLS.contains(&name) && env(&by_file).is_some() {
            settings.push(Setting { name: by_file.clone(), value: env(&by_file), source: source_of(&by_file) });
            continue;
        }
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => source_of(name),
            Some(_) => "default",
            None => "not set",
        };
        let raw = matches.get_raw(id).map(|values| values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","));
        let value = match arg.is_hide_env_values_set() {
            true if URLS.contains(&name) => raw.map(|url| without_password(&url)),
            true => raw.map(|_| HIDDEN.to_owned()),
            false => raw,
        };
        settings.push(Setting { name: name.to_owned(), value, source });
    }
    let from_variable = |name: &str, is_shown: bool| {
        let value = env(name);
        let source = if value.is_some() { source_of(name) } else { "not set" };
        let value = value.map(|value| if is_shown { value } else { HIDDEN.to_owned() });
        Setting { name: name.to_owned(), value, source }
    };
    for name in SECRETS {
        let by_file = format!("{name}_FILE");
        settings.push(if env(&by_file).is_some() { from_variable(&by_file, true) } else { from_variable(name, false) });
    }
    settings.push(from_variable(MNEMONIC_FILE, false));
    settings.extend(OTHERS.map(|name| from_variable(name, true)));
    let is_known = |name: &String| settings.iter().any(|setting| setting.name == *name);
    let others_in_env_file = file.names.iter().filter(|name| !is_known(name)).cloned().collect();
    Config { env_file: file.path, settings, others_in_env_file }
}

fn table(config: &Config) -> String {
    let mut text = String::new();
    let shown = |setting: &Setting| setting.value.clone().unwrap_or_else(|| "-".to_owned());
    let names = config.settings.iter().map(|setting| setting.name.len()).max().unwrap_or_default();
    let values = config.settings.iter().map(|setting| shown(setting).chars().count()).max().unwrap_or_default().min(60);
    for setting in &config.settings {
        _ = writeln!(text, "{:names$}  {:values$}  {}", setting.name, shown(setting), setting.source);
    }
    match &config.env_file {
        Some(path) => _ = writeln!(text, "\nenv file: {}", path.display()),
        None => text.push_str("\nenv file: none; --env-file names one, or .env beside the binary is read\n"),
    }
    if !config.others_in_env_file.is_empty() {
        let others = config.others_in_env_file.join(", ");
        _ = writeln!(text, "it sets what is no setting, and is used only where the chains file names it: {others}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::CommandFactory as _;
    use std::collections::BTreeSet;

    #[test]
    fn each_setting_says_where_it_comes_from_and_no_secret_is_shown() {
        let command = Cli::command();
        let line = "ctrip config --kafka-brokers one:1 --database-url postgres://ctrip@db/ctrip --xpub xpub-of-ours";
        let matches = command.clone().try_get_matches_from(line.split(' ')).unwrap();
        let set = [
            ("KAFKA_SASL_PASSWORD", "hunter2"),
            ("SCHEMA_REGISTRY_TOKEN_FILE", "/etc/token"),
            ("SCHEMA_REGISTRY_URL_FILE", "/etc/url"),
            ("CTRIP_MNEMONIC_FILE", "/etc/hunter2"),
            ("LOG_FORMAT", "json"),
        ];
        let env = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let names = ["LOG_FORMAT", "NODE_KEY"].map(str::to_owned);
        let file = EnvFile { path: Some("/etc/ctrip.env".into()), names: BTreeSet::from(names) };
        let config = config(&command, &matches, file, &env);
        let of = |name: &str| {
            let setting = config.settings.iter().find(|setting| setting.name == name).unwrap();
            (setting.value.as_deref(), setting.source)
        };
        assert_eq!(of("KAFKA_BROKERS"), (Some("one:1"), "flag"));
        assert_eq!(of("DATABASE_URL"), (Some("postgres://ctrip@db/ctrip"), "flag"));
        assert_eq!(of("CTRIP_XPUB"), (Some("***"), "flag"));
        assert_eq!(of("SCHEMA_REGISTRY_URL_FILE"), (Some("/etc/url"), "environment"));
        assert_eq!(of("SCHEMA_REGISTRY_TOKEN_FILE"), (Some("/etc/token"), "environment"));
        assert_eq!(of("KAFKA_SASL_PASSWORD"), (Some("***"), "environment"));
        assert_eq!(of("LOG_FORMAT"), (Some("json"), "env file"));
        assert_eq!(of("HISTORY_KEEP_DAYS"), (None, "not set"));
        assert_eq!(config.others_in_env_file, ["NODE_KEY"]);
        let shown = table(&config);
        assert!(!shown.contains("hunter2") && shown.contains("NODE_KEY") && shown.contains("/etc/ctrip.env"), "{shown}");
    }

    /// A variable that docs and code have, and this command does not, would be looked for in vain.
    #[test]
    fn no_setting_of_the_documents_is_missing() {
        let command = Cli::command();
        let matches = command.clone().try_get_matches_from(["ctrip", "config"]).unwrap();
        let config = config(&command, &matches, EnvFile::default(), &|_| None);
        let page = include_str!("../../docs/operations.md");
        let tables = page.lines().filter(|line| line.starts_with("| `"));
        let cells = tables.filter_map(|line| line.split('|').nth(1));
        let words = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
        let is_variable = |word: &&str| word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let named: BTreeSet<&str> = words.filter(is_variable).collect();
        assert!(named.len() > 20, "{named:?}");
        let missing: Vec<_> =
            named.iter().filter(|name| !config.settings.iter().any(|setting| setting.name == **name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}

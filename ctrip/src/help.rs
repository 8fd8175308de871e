//! `--help` of a command has the settings that it uses, and not those of all roles. An empty variable sets nothing.

use clap::builder::Resettable;
use clap::{Arg, Command};
use std::ffi::OsStr;

/// What the settings are listed under, below a command's own options.
const HEADING: &str = "Settings";

/// Hides from each command's help the settings that it does not use. They are accepted all the same. Empty variables are passed over.
pub fn trim(mut command: Command) -> Command {
    // Gives each command the settings of all.
    command.build();
    trim_at(command, "")
}

fn trim_at(command: Command, path: &str) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| without_empty(arg, is_empty));
    let trimmed = command.mut_args(|arg| match arg.is_global_set() {
        true if arg.get_id() == "env_file" => arg,
        true if uses(path, arg.get_id().as_str()) => arg.help_heading(HEADING),
        true => arg.hide(true),
        false => arg,
    });
    trimmed.mut_subcommands(|command| {
        let path = format!("{path} {}", command.get_name());
        trim_at(command, path.trim_start())
    })
}

fn without_empty(arg: Arg, is_empty: impl Fn(&OsStr) -> bool) -> Arg {
    match arg.get_env().is_some_and(is_empty) {
        true => arg.env(Resettable::Reset),
        false => arg,
    }
}

/// Whether the command at `path` uses a setting, by its name in [`runtime::Settings`].
fn uses(path: &str, setting: &str) -> bool {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| setting.starts_with(beginning));
    match path.split(' ').next().unwrap_or_default() {
        "up" | "api" | "ingest" | "detector" | "confirmer" | "webhooks" | "sweeper" | "config" => true,
        "" | "help" | "metrics" => false,
        "wallet" => path == "wallet address" && setting == "xpub",
        "merchants" | "keys" | "migrate" => begins(&["database"]),
        "set-aside" => begins(&["database", "topic_prefix"]),
        "check" => begins(&["chains"]),
        "sweep" => begins(&["chains", "database"]),
        "topics" => begins(&["kafka", "schema", "topic"]),
        _ => !begins(&["api", "webhook", "metrics", "history", "xpub", "instance"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::{CommandFactory as _, FromArgMatches as _};

    fn help(path: &[&str]) -> String {
        let mut command = trim(Cli::command());
        let found = path.iter().fold(&mut command, |command, name| command.find_subcommand_mut(name).unwrap());
        found.render_long_help().to_string()
    }

    #[test]
    fn the_help_of_a_command_has_the_settings_that_it_uses() {
        let cases: [(&[&str], &[&str], &[&str]); 6] = [
            (&[], &["keys", "backfill"], &["--kafka-brokers", "--xpub"]),
            (&["wallet", "new"], &["--out"], &["--database-url", "--xpub"]),
            (&["wallet", "address"], &["--index", "--xpub"], &["--kafka-brokers"]),
            (&["keys", "create"], &["--rate-limit", "--database-url"], &["--kafka-brokers", "--chains-file"]),
            (&["backfill"], &["--from", "--kafka-brokers", "--chains-file"], &["--api-listen", "--webhook-allow-http"]),
            (&["up"], &["--kafka-brokers", "--api-listen", "--webhook-allow-http", "--xpub"], &[]),
        ];
        for (path, there, hidden) in cases {
            let text = help(path);
            assert!(there.iter().all(|word| text.contains(word)), "{path:?}: {text}");
            assert!(!hidden.iter().any(|word| text.contains(word)), "{path:?}: {text}");
        }
    }

    #[test]
    fn a_setting_that_the_help_hides_is_accepted_before_and_after_the_command() {
        for line in ["ctrip --kafka-brokers x:1 keys list", "ctrip keys list --kafka-brokers x:1"] {
            let matches = trim(Cli::command()).try_get_matches_from(line.split(' ')).unwrap();
            assert_eq!(Cli::from_arg_matches(&matches).unwrap().settings.kafka_brokers, "x:1", "{line}");
        }
    }

    #[test]
    fn an_empty_variable_sets_nothing() {
        let arg = || Arg::new("xpub").env("CTRIP_XPUB");
        assert!(without_empty(arg(), |name| name == "CTRIP_XPUB").get_env().is_none());
        assert!(without_empty(arg(), |_| false).get_env().is_some());
    }

    #[test]
    fn accept_late_needs_no_value() {
        for (given, parses) in [("--accept-late", true), ("--accept-late false", true), ("--accept-late maybe", false)] {
            let line = format!("ctrip merchants update shop {given}");
            assert_eq!(trim(Cli::command()).try_get_matches_from(line.split(' ')).is_ok(), parses, "{given}");
        }
    }
}

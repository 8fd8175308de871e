//! Variables from a file: `--env-file`, or `.env` beside the binary. A variable of the process counts before one of the file, and a flag
//! before both.

use anyhow::{Context as _, anyhow};
use clap::Command;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a file has set, by its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFile {
    /// `None` where there is none.
    pub path: Option<PathBuf>,
    pub names: BTreeSet<String>,
}

/// Reads the file that the arguments of the process name, or the one beside the binary if it is there, into the process's
/// variables. Before anything reads those, and before there are threads.
///
/// # Errors
/// When the file that is named is not there, or a line of one can't be read. No error shows a value.
pub fn load(command: &Command) -> anyhow::Result<EnvFile> {
    // Of all other arguments the real parse says what is wrong with them.
    let named = command.clone().ignore_errors(true).disable_help_flag(true).disable_version_flag(true);
    let named = named.try_get_matches().ok().and_then(|matches| matches.get_one::<PathBuf>("env_file").cloned());
    let path = match named {
        Some(path) => path,
        None => match beside_binary().filter(|path| path.is_file()) {
            Some(path) => path,
            None => return Ok(EnvFile::default()),
        },
    };
    let text = std::fs::read_to_string(&path).with_context(|| format!("the file of variables {}", path.display()))?;
    // Editors on Windows begin with it.
    let text = text.trim_start_matches('\u{feff}');
    let variables = read(&path, text)?;
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let names = variables.iter().map(|(name, _)| name.clone()).filter(|name| !is_set(name)).collect();
    dotenvy::from_read(text.as_bytes()).map_err(|_| anyhow!("{}: it can't be read", path.display()))?;
    Ok(EnvFile { path: Some(path), names })
}

/// `.env` in the folder of the binary.
fn beside_binary() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.join(".env"))
}

/// The variables of a file, in its order.
fn read(path: &Path, text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for entry in dotenvy::from_read_iter(text.as_bytes()) {
        // The error would show the line, and what is secret in it.
        let (name, value) = entry.map_err(|_| {
            let expected = "expected NAME=value, or NAME='value' where it has spaces, $ or #";
            match variables.last() {
                Some((name, _)) => anyhow!("{}: what comes after {name} can't be read; {expected}", path.display()),
                None => anyhow!("{}: its first variable can't be read; {expected}", path.display()),
            }
        })?;
        // The first would count, and who appends a line believes that the last does.
        anyhow::ensure!(variables.iter().all(|(before, _)| *before != name), "{}: {name} is set twice", path.display());
        variables.push((name, value));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        let read = read(Path::new("/etc/ctrip.env"), text).map_err(|error| error.to_string())?;
        Ok(read.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn a_line_that_cannot_be_read_is_refused_and_not_shown() {
        assert_eq!(names("# all\nexport A=1\n\nB='two words'\n").unwrap(), ["A", "B"]);
        assert_eq!(names("").unwrap(), Vec::<String>::new());
        let wrong = names("A=1\nB=hunter2 hunter3 'x\n").unwrap_err();
        assert!(wrong.contains("/etc/ctrip.env") && wrong.contains("after A") && !wrong.contains("hunter2"), "{wrong}");
        let first = names("hunter2 is it\n").unwrap_err();
        assert!(first.contains("first variable") && !first.contains("hunter2"), "{first}");
        let twice = names("A=hunter2\nB=1\nA=3\n").unwrap_err();
        assert!(twice.contains("A is set twice") && !twice.contains("hunter2"), "{twice}");
    }
}

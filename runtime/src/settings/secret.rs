//! Values that no log, error or `/health` shows, and where they come from: a variable, or the file that its `…_FILE` twin names.
//! Never a flag, since every user of the machine sees those in the list of processes.

use anyhow::{Context as _, bail, ensure};
use std::fmt;
use std::ops::Deref;

/// A password, a token, or a URL that may hold one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The variables of the process; a test has its own.
pub type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// A secret from its variable or its file.
pub(super) fn secret(env: Env<'_>, name: &str) -> anyhow::Result<Option<Secret>> {
    match (env(name), from_file(env, name)?) {
        (Some(_), Some(_)) => bail!("{name} and {name}_FILE are both set; expected one of them"),
        (value, file) => Ok(value.map(Secret).or(file)),
    }
}

/// A secret from the file that its `…_FILE` variable names, if that is set.
pub(super) fn from_file(env: Env<'_>, name: &str) -> anyhow::Result<Option<Secret>> {
    let Some(path) = env(&format!("{name}_FILE")) else { return Ok(None) };
    let text = std::fs::read_to_string(&path).with_context(|| format!("{name}_FILE: {path}"))?;
    // Editors and `echo` end a file with a line break.
    let value = text.trim_end_matches(['\r', '\n']);
    ensure!(!value.is_empty(), "{name}_FILE: {path} is empty");
    Ok(Some(value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_from_a_variable_or_a_file_and_never_from_both() {
        let folder = std::env::temp_dir().join(format!("ctrip-secret-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("password").display().to_string();
        std::fs::write(&path, "from the file \r\n").unwrap();
        let get = |set: &[(&str, &str)]| {
            let env = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            secret(&env, "PASSWORD").map(|found| found.map(|secret| secret.to_string()))
        };
        assert_eq!(get(&[]).unwrap(), None);
        assert_eq!(get(&[("PASSWORD", "direct")]).unwrap().as_deref(), Some("direct"));
        assert_eq!(get(&[("PASSWORD_FILE", &path)]).unwrap().as_deref(), Some("from the file "));
        let both = get(&[("PASSWORD", "direct"), ("PASSWORD_FILE", &path)]).unwrap_err().to_string();
        assert!(both.contains("PASSWORD and PASSWORD_FILE") && !both.contains("direct"), "{both}");
        let missing = format!("{:#}", get(&[("PASSWORD_FILE", "/nowhere")]).unwrap_err());
        assert!(missing.contains("PASSWORD_FILE: /nowhere"), "{missing}");
        std::fs::write(&path, "\n").unwrap();
        assert!(get(&[("PASSWORD_FILE", &path)]).unwrap_err().to_string().contains("is empty"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn no_debug_output_shows_a_secret() {
        assert_eq!(format!("{:?}", vec![("sasl.password", Secret::from("hunter2"))]), r#"[("sasl.password", ***)]"#);
    }
}

//! How the process reaches the schema registry.

use super::secret::{Env, Secret, secret};
use anyhow::ensure;
use std::path::PathBuf;

/// Flags of the connection to the registry, beside its URL.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RegistrySettings {
    /// Certificates (PEM) of the authorities that may have signed the registry's, beside the system's
    #[arg(long, env = "SCHEMA_REGISTRY_CA_LOCATION", global = true)]
    pub schema_registry_ca_location: Option<PathBuf>,
    /// The user of basic authentication; its password is in `SCHEMA_REGISTRY_PASSWORD` or the file `SCHEMA_REGISTRY_PASSWORD_FILE`.
    /// A token for bearer authentication is in `SCHEMA_REGISTRY_TOKEN` or the file `SCHEMA_REGISTRY_TOKEN_FILE`
    #[arg(long, env = "SCHEMA_REGISTRY_USERNAME", global = true)]
    pub schema_registry_username: Option<String>,
    #[arg(skip)]
    pub(crate) login: Login,
}

/// What each request shows.
#[derive(Clone, Debug, Default)]
pub(crate) enum Login {
    /// Nothing but what the URL has.
    #[default]
    None,
    Basic(String, Secret),
    Bearer(Secret),
}

impl RegistrySettings {
    /// Reads the secrets, and refuses settings that contradict each other.
    ///
    /// # Errors
    /// When they do, or a file can't be read.
    pub fn complete(&mut self, env: Env<'_>) -> anyhow::Result<()> {
        let (password, token) = (secret(env, "SCHEMA_REGISTRY_PASSWORD")?, secret(env, "SCHEMA_REGISTRY_TOKEN")?);
        let user = self.schema_registry_username.clone();
        ensure!(
            user.is_some() == password.is_some(),
            "of SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_PASSWORD (or SCHEMA_REGISTRY_PASSWORD_FILE) one is missing; expected both or none"
        );
        ensure!(
            user.is_none() || token.is_none(),
            "SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_TOKEN (or SCHEMA_REGISTRY_TOKEN_FILE) are both set; expected one of them"
        );
        self.login = match (user, password, token) {
            (Some(user), Some(password), _) => Login::Basic(user, password),
            (_, _, Some(token)) => Login::Bearer(token),
            _ => Login::None,
        };
        Ok(())
    }
}

//! Node URLs with environment variables in them. Their keys never reach logs or errors.

use std::fmt;
use std::str::FromStr;

/// The URL of a node. It often contains a provider's key, so `Display` and `Debug` show only the host.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeUrl {
    url: reqwest::Url,
    host: String,
    group: Option<String>,
}

impl NodeUrl {
    /// The full URL, key included. Not for logs.
    pub(crate) fn url(&self) -> &reqwest::Url {
        &self.url
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What tells witnesses apart: the `group` in `chains.yaml`, or host and port. Endpoints of one provider are one witness.
    pub fn provider(&self) -> &str {
        self.group.as_deref().unwrap_or(&self.host)
    }

    pub(super) fn in_group(self, group: Option<String>) -> Self {
        Self { group, ..self }
    }

    pub(super) fn is_http(&self) -> bool {
        matches!(self.url.scheme(), "http" | "https")
    }

    pub(super) fn is_websocket(&self) -> bool {
        matches!(self.url.scheme(), "ws" | "wss")
    }
}

impl FromStr for NodeUrl {
    type Err = String;

    /// Parses a URL in which `${NAME}` and `${NAME:-default}` stand for environment variables. An error shows neither the URL
    /// nor a variable's value.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = expand(text, |name| std::env::var(name).ok())?;
        let url: reqwest::Url =
            text.parse().map_err(|error| format!("expected a URL like https://host/path, but after expansion: {error}"))?;
        let name = url.host_str().ok_or("expected a URL with a host")?;
        let host = match url.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        Ok(Self { url, host, group: None })
    }
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)
    }
}

impl fmt::Debug for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeUrl({})", self.host)
    }
}

/// Expands variables as a shell does: if there is a default, an empty variable counts as unset.
fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (inside, after) = after.split_once('}').ok_or("expected } after ${")?;
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let value = variable(name).filter(|value| default.is_none() || !value.is_empty());
        let value = value
            .or(default.map(str::to_owned))
            .ok_or_else(|| format!("the environment variable {name} is not set; set it, or write ${{{name}:-default}}"))?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, |name| match name {
            "KEY" => Some("secret".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_stand_for_their_values() {
        assert_eq!(expanded("https://node/${KEY}/x").unwrap(), "https://node/secret/x");
        assert_eq!(expanded("${ABSENT:-http://127.0.0.1:8545}").unwrap(), "http://127.0.0.1:8545");
        assert_eq!(expanded("${EMPTY:-http://a}${KEY}").unwrap(), "http://asecret");
        assert_eq!(expanded("http://plain/$x").unwrap(), "http://plain/$x");
    }

    #[test]
    fn an_unset_variable_is_named() {
        assert!(expanded("https://node/${ABSENT}").unwrap_err().contains("ABSENT is not set"));
        assert!(expanded("https://node/${KEY").unwrap_err().contains("expected }"));
    }

    #[test]
    fn a_key_in_a_url_is_never_shown() {
        let url: NodeUrl = "https://user:hunter2@node.example:8443/v3/hunter2?key=hunter2".parse().unwrap();
        assert_eq!(format!("{url}"), "node.example:8443");
        assert!(!format!("{url:?}").contains("hunter2"));
        assert!(!"hunter2".parse::<NodeUrl>().unwrap_err().contains("hunter2"));
    }
}

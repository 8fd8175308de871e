//! The rule: which URLs and addresses a message may go to.

use super::networks::{GLOBAL, SPECIAL};
use ipnet::IpNet;
use reqwest::Url;
use runtime::Settings;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const MAX_URL_BYTES: usize = 2048;

/// Why a message must not go to a URL. Merchants read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("expected an absolute URL of at most {MAX_URL_BYTES} bytes")]
    Malformed,
    #[error("expected https, got {0}; the operator may allow http with WEBHOOK_ALLOW_HTTP")]
    Scheme(String),
    /// A user or password in a URL would be stored and shown.
    #[error("expected no user and no password in the URL")]
    Credentials,
    #[error("expected a port from 1 to 65535")]
    Port,
    #[error("{0} is not on the public Internet; the operator may allow it with WEBHOOK_ALLOW_NETWORKS")]
    Address(IpAddr),
    /// `localhost` and names under it.
    #[error("{0} is this machine; the operator may allow 127.0.0.1 with WEBHOOK_ALLOW_NETWORKS")]
    Local(String),
    /// The name resolves to nothing, or to an address that is not public. One text for both, and without the address, so that
    /// merchants can't find out which names the internal network has.
    #[error("{0} has no address, or one that is not on the public Internet")]
    Name(String),
}

/// The rule, with the exceptions that the settings allow.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    networks: Vec<IpNet>,
    http: bool,
}

impl Guard {
    /// `networks` are allowed although they are not public; `http` allows that scheme beside https.
    pub fn new(networks: Vec<IpNet>, http: bool) -> Self {
        Self { networks, http }
    }

    /// The guard with the exceptions of the settings.
    pub fn of(settings: &Settings) -> Self {
        Self::new(settings.webhook_allow_networks.clone(), settings.webhook_allow_http)
    }

    /// Whether a message may go to this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        // A connection to ::ffff:127.0.0.1 goes to 127.0.0.1.
        let address = address.to_canonical();
        let public = match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(_) => GLOBAL.as_ref().is_some_and(|global| global.contains(&address)),
        };
        let special = SPECIAL.iter().any(|network| network.contains(&address));
        (public && !special) || self.networks.iter().any(|network| network.contains(&address))
    }

    /// Parses a URL and checks all but its name, which is checked when it is resolved. A literal address is checked in any
    /// spelling.
    ///
    /// # Errors
    /// When a message must not go to the URL.
    pub fn check_url(&self, text: &str) -> Result<Url, GuardError> {
        if text.len() > MAX_URL_BYTES || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(GuardError::Malformed);
        }
        let url = Url::parse(text).map_err(|_| GuardError::Malformed)?;
        if url.scheme() != "https" && !(self.http && url.scheme() == "http") {
            return Err(GuardError::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(GuardError::Credentials);
        }
        if url.port() == Some(0) {
            return Err(GuardError::Port);
        }
        // The parser has normalised every spelling of an IPv4 address (hexadecimal, octal, short, one number).
        let host = url.host_str().ok_or(GuardError::Malformed)?;
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) if self.allows(address) => Ok(url),
            Ok(address) => Err(GuardError::Address(address)),
            Err(_) => {
                let name = host.trim_end_matches('.');
                let local = name == "localhost" || name.ends_with(".localhost");
                let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                if local && !loopback.iter().any(|address| self.allows(*address)) {
                    return Err(GuardError::Local(host.to_owned()));
                }
                Ok(url)
            }
        }
    }

    /// The addresses of a name, if there are some and all of them are allowed; one that is not refuses them all.
    pub(super) fn check_resolved(&self, name: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, GuardError> {
        if !addresses.is_empty() && addresses.iter().all(|address| self.allows(address.ip())) {
            Ok(addresses)
        } else {
            Err(GuardError::Name(name.to_owned()))
        }
    }
}

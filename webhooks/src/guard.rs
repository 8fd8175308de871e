//! Where no message goes to: anything that is not the public Internet, unless a setting names its network.
//!
//! A name is looked at where its addresses are used: [`Checked`] resolves it for the one connection that is about to be made, so
//! a name that answers differently the next time gains nothing. A literal address is resolved by nobody, so
//! [`Guard::check_url`] looks at it, before each request. Redirects are not followed and no proxy is asked
//! ([`Clients`](crate::clients::Clients)).

use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use runtime::Settings;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

/// Of IPv4, what is special (IANA's registry), and the address of Azure's host agent, which looks public and is not.
const SPECIAL_V4: [&str; 18] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];
/// Of IPv6 all is special but this …
const GLOBAL_V6: &str = "2000::/3";
/// … without Teredo and other protocols, documentation, and 6to4, in which an IPv4 address hides.
const SPECIAL_V6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

static SPECIAL: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| SPECIAL_V4.iter().chain(&SPECIAL_V6).filter_map(|text| text.parse().ok()).collect());
static GLOBAL: LazyLock<Option<IpNet>> = LazyLock::new(|| GLOBAL_V6.parse().ok());

const LONGEST_URL: usize = 2048;

/// Why a message does not go there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No URL at all.
    #[error("expected an absolute URL of at most {LONGEST_URL} bytes")]
    Malformed,
    /// Another scheme.
    #[error("expected https, got {0}")]
    Scheme(String),
    /// A name or password in it would be kept and shown.
    #[error("expected no user and no password in the URL")]
    Credentials,
    /// No port of anybody.
    #[error("expected a port from 1 to 65535")]
    Port,
    /// An address that is not public.
    #[error("{0} is not on the public Internet")]
    Address(IpAddr),
    /// A name of this machine.
    #[error("{0} is this machine")]
    Local(String),
    /// A name that points to an address that is not public. The address is told to nobody: merchants read this, and are not
    /// to look names of the inner network up with it.
    #[error("{0} resolves to an address that is not on the public Internet")]
    Name(String),
}

/// The rule, with what the settings allow beside it.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    networks: Vec<IpNet>,
    http: bool,
}

impl Guard {
    /// With networks that are allowed although they are not public, and maybe `http`.
    pub fn new(networks: Vec<IpNet>, http: bool) -> Self {
        Self { networks, http }
    }

    /// As the settings say.
    pub fn of(settings: &Settings) -> Self {
        Self::new(settings.webhook_allow_networks.clone(), settings.webhook_allow_http)
    }

    /// Whether a message may go to this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        // ::ffff:127.0.0.1 is connected to as 127.0.0.1.
        let address = address.to_canonical();
        let public = match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(_) => GLOBAL.as_ref().is_some_and(|global| global.contains(&address)),
        };
        let special = SPECIAL.iter().any(|network| network.contains(&address));
        (public && !special) || self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether a message may go to this URL as far as it tells: an address in any spelling is looked at, a name is when it is
    /// resolved.
    ///
    /// # Errors
    /// When it may not.
    pub fn check_url(&self, text: &str) -> Result<Url, Refused> {
        if text.len() > LONGEST_URL || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(Refused::Malformed);
        }
        let url = Url::parse(text).map_err(|_| Refused::Malformed)?;
        if url.scheme() != "https" && !(self.http && url.scheme() == "http") {
            return Err(Refused::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Credentials);
        }
        if url.port() == Some(0) {
            return Err(Refused::Port);
        }
        // The parser has brought every spelling of an IPv4 address (hexadecimal, octal, short, one number) to the usual one.
        let host = url.host_str().ok_or(Refused::Malformed)?;
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) if self.allows(address) => Ok(url),
            Ok(address) => Err(Refused::Address(address)),
            Err(_) => {
                let name = host.trim_end_matches('.');
                let local = name == "localhost" || name.ends_with(".localhost");
                let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                if local && !loopback.iter().any(|address| self.allows(*address)) {
                    return Err(Refused::Local(host.to_owned()));
                }
                Ok(url)
            }
        }
    }

    /// Addresses that a name has for a connection: all of them may be connected to, or none is.
    fn check_name(&self, name: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if addresses.iter().all(|address| self.allows(address.ip())) {
            Ok(addresses)
        } else {
            Err(Refused::Name(name.to_owned()))
        }
    }
}

/// Asks another resolver, and lets its answer pass only if the guard does.
pub struct Checked {
    guard: Guard,
    names: Arc<dyn Resolve>,
}

impl Checked {
    /// With another resolver behind it.
    pub fn new(guard: Guard, names: Arc<dyn Resolve>) -> Self {
        Self { guard, names }
    }
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let text = name.as_str().to_owned();
        let (guard, asked) = (self.guard.clone(), self.names.resolve(name));
        Box::pin(async move {
            let checked = guard.check_name(&text, asked.await?.collect())?;
            Ok(Box::new(checked.into_iter()) as Addrs)
        })
    }
}

/// The system's resolver.
pub struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;

//! Whose request it is, as limits count: the address that has connected, or the one for which a trusted proxy has.

use hyper::HeaderMap;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The address that sent a request. Of IPv6 it is the network of 64 bits, since a client has all of its addresses. `None` if it is
/// a trusted proxy's that names nobody: limiting that would shut out everyone behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub Option<IpAddr>);

impl ClientAddress {
    /// Each proxy appends the address that has connected to it. So the list is believed from the right, as far as trusted
    /// proxies wrote it: the first address that is not one of theirs is the client's. What is left of it anyone can send.
    pub(super) fn new(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        if !is_trusted(peer, trusted) {
            return Self(Some(network(peer)));
        }
        let lists = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let hops = lists.flat_map(|list| list.as_bytes().rsplit(|byte| *byte == b','));
        let client = hops.map(hop).find(|hop| hop.is_none_or(|address| !is_trusted(address, trusted)));
        Self(client.flatten().map(network))
    }
}

/// Whether the address is one of the networks'.
pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address.to_canonical()))
}

/// The address that limits count by.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Some proxies write the port, too. Bytes that are no text spoil the hop that they are in, and no other.
fn hop(bytes: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(bytes).ok()?.trim();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn of(peer: &str, forwarded: &[impl AsRef<[u8]>]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for list in forwarded {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(list.as_ref()).unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        ClientAddress::new(peer.parse().unwrap(), &headers, &trusted).0.map(|address| address.to_string())
    }

    #[test]
    fn only_what_trusted_proxies_wrote_is_believed() {
        let is = |address: &str| Some(address.to_owned());
        assert_eq!(of("203.0.113.7", &["198.51.100.1"]), is("203.0.113.7"), "no proxy of ours");
        assert_eq!(of("10.0.0.1", &["198.51.100.1"]), is("198.51.100.1"));
        assert_eq!(of("10.0.0.1", &["1.1.1.1, 198.51.100.1,10.2.0.9"]), is("198.51.100.1"), "1.1.1.1 is the client's word");
        assert_eq!(of("10.0.0.1", &["1.1.1.1", "198.51.100.1, 10.2.0.9"]), is("198.51.100.1"), "the lines are one list");
        assert_eq!(of("::ffff:10.0.0.1", &["::ffff:198.51.100.1"]), is("198.51.100.1"));
        assert_eq!(of("10.0.0.1", &["198.51.100.1:4711"]), is("198.51.100.1"));
        assert_eq!(of("fd00::1", &["[2001:db8:1:2:3::4]:443"]), is("2001:db8:1:2::"));
        assert_eq!(of("10.0.0.1", &[b"\xff, 198.51.100.1"]), is("198.51.100.1"), "the client's word again");
        assert_eq!(of("10.0.0.1", &[&b"\xff"[..], b"198.51.100.1"]), is("198.51.100.1"));
    }

    #[test]
    fn a_proxy_that_names_nobody_is_nobody() {
        for forwarded in [&[][..], &[""], &["unknown"], &["198.51.100.1, unknown"], &["10.0.0.2, 10.0.0.3"]] {
            assert_eq!(of("10.0.0.1", forwarded), None, "{forwarded:?}");
        }
    }

    #[test]
    fn all_addresses_of_a_clients_network_are_one() {
        let alone = |peer| of(peer, &[""; 0]);
        assert_eq!(alone("2001:db8::1"), alone("2001:db8::ffff:2"));
        assert_ne!(alone("2001:db8::1"), alone("2001:db8:0:1::1"));
    }
}

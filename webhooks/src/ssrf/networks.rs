//! Networks that are not the public Internet, after the registries of IANA.

use ipnet::IpNet;
use std::sync::LazyLock;

/// IANA's special-purpose networks, and the address of Azure's host agent, which looks public and is not.
pub const SPECIAL_V4: [&str; 18] = [
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
/// All of IPv6 is special, except for this …
pub const GLOBAL_V6: &str = "2000::/3";
/// … without Teredo and other protocol assignments, documentation, and 6to4, in which an IPv4 address hides.
pub const SPECIAL_V6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

pub static SPECIAL: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| SPECIAL_V4.iter().chain(&SPECIAL_V6).filter_map(|text| text.parse().ok()).collect());
pub static GLOBAL: LazyLock<Option<IpNet>> = LazyLock::new(|| GLOBAL_V6.parse().ok());

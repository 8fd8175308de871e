//! Hostile URLs and DNS rebinding against the guard and the HTTP clients, and the table of networks.

use super::networks::{SPECIAL, SPECIAL_V4, SPECIAL_V6};
use super::{Guard, GuardError, SystemResolver};
use crate::clients::Clients;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use uuid::Uuid;

/// Hostile to a server that fetches them: internal addresses in every spelling, and URLs that no endpoint has.
const HOSTILE: [&str; 40] = [
    "http://127.0.0.1:PORT/",
    "http://127.0.0.2:PORT/",
    "http://127.1:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7f.0.0.1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://017700000001:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.0.0.1%2e:PORT/",
    "http://１２７.０.０.１:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST.:PORT/",
    "http://inner.localhost:PORT/",
    "http://[::1]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[2001:0:7f00:1::]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[ff02::1]:PORT/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://168.63.129.16/machine?comp=goalstate",
    "http://100.100.100.200/latest/meta-data/",
    "http://10.0.0.1:PORT/",
    "http://172.31.255.255:PORT/",
    "http://192.168.1.1:PORT/",
    "http://224.0.0.1:PORT/",
    "http://user:password@127.0.0.1:PORT/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:PORT/_GET",
];

/// A resolver that gives another answer each time, as a hostile name server does.
struct Rebinding {
    answers: Vec<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Resolve for Rebinding {
    fn resolve(&self, _: Name) -> Resolving {
        let place = self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers.get(place).or(self.answers.last()).cloned().unwrap_or_default();
        Box::pin(async move { Ok(Box::new(answer.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs) })
    }
}

fn names(answers: &[&[&str]]) -> Arc<Rebinding> {
    let answers = answers.iter().map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
    Arc::new(Rebinding { answers, asked: AtomicUsize::new(0) })
}

/// A server that counts its connections and responds to each with 204.
async fn server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        }
    });
    (port, connections)
}

/// As an attempt does it: check the URL, then send the request.
async fn get(guard: &Guard, names: Arc<dyn Resolve>, url: &str) -> Result<u16, String> {
    let url = guard.check_url(url).map_err(|refused| refused.to_string())?;
    let answer = Clients::new(guard, names)
        .unwrap()
        .client_for(Uuid::nil())
        .get(url)
        .send()
        .await
        .map_err(|error| base::error_chain(&error))?;
    Ok(answer.status().as_u16())
}

#[tokio::test]
async fn no_hostile_url_is_connected_to() {
    let (port, connections) = server().await;
    let guard = Guard::new(Vec::new(), true);
    for url in HOSTILE {
        let url = url.replace("PORT", &port.to_string());
        let refused = get(&guard, Arc::new(SystemResolver::default()), &url).await.unwrap_err();
        // Nor did it only fail to answer.
        let causes = ["public Internet", "is this machine", "expected https", "no user and no password"];
        assert!(causes.iter().any(|cause| refused.contains(cause)), "{url}: {refused}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    // The same server is reached once its network is allowed, so it was the guard that refused.
    let allowing = Guard::new(vec!["127.0.0.0/8".parse().unwrap()], true);
    for url in
        ["http://127.0.0.1:PORT/", "http://0x7f000001:PORT/", "http://localhost:PORT/", "http://[::ffff:127.0.0.1]:PORT/"]
    {
        let url = url.replace("PORT", &port.to_string());
        assert_eq!(get(&allowing, Arc::new(SystemResolver::default()), &url).await, Ok(204), "{url}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_name_that_rebinds_is_not_connected_to() {
    let (port, connections) = server().await;
    let guard = Guard::new(Vec::new(), true);
    let url = format!("http://rebind.example:{port}/");
    let hostile: [&[&str]; 8] = [
        &["127.0.0.1"],
        &["::1"],
        &["::ffff:127.0.0.1"],
        &["10.0.0.1"],
        &["169.254.169.254"],
        &["fd00::1"],
        // One public address among them is no reason to connect.
        &["127.0.0.1", "93.184.216.34"],
        &["93.184.216.34", "127.0.0.1"],
    ];
    for answer in hostile {
        let refused = get(&guard, names(&[answer]), &url).await.unwrap_err();
        assert!(refused.contains("not on the public Internet"), "{answer:?}: {refused}");
        assert!(!refused.contains(answer[0]), "the error gives the internal address away: {refused}");
    }
    // Each connection resolves the name anew, and that answer is the one that is checked.
    let rebinding = names(&[&["127.0.0.1"], &["10.0.0.1"]]);
    let allowing = Guard::new(vec!["127.0.0.0/8".parse().unwrap()], true);
    assert_eq!(get(&allowing, rebinding.clone(), &url).await, Ok(204));
    assert!(get(&allowing, rebinding.clone(), &url).await.is_err());
    assert_eq!(rebinding.asked.load(Ordering::SeqCst), 2);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// Otherwise a merchant could try which names the internal network has.
#[tokio::test]
async fn a_name_that_is_internal_and_one_that_is_not_there_have_one_text() {
    let guard = Guard::new(Vec::new(), true);
    let url = "http://db.internal.example/";
    let internal = get(&guard, names(&[&["10.0.0.1"]]), url).await.unwrap_err();
    let empty = get(&guard, names(&[&[]]), url).await.unwrap_err();
    let missing = get(&guard, Arc::new(Missing), url).await.unwrap_err();
    assert!(internal.contains("db.internal.example has no address, or one"), "{internal}");
    assert!(internal == empty && internal == missing, "{internal}\n{empty}\n{missing}");
}

/// Knows no name.
struct Missing;

impl Resolve for Missing {
    fn resolve(&self, _: Name) -> Resolving {
        Box::pin(async { Err("failed to lookup address information: Name or service not known".into()) })
    }
}

#[test]
fn public_addresses_are_allowed_and_special_ones_are_not() {
    let guard = Guard::default();
    for public in [
        "1.1.1.1",
        "93.184.216.34",
        "172.15.0.1",
        "172.32.0.1",
        "100.63.0.1",
        "100.128.0.1",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
    ] {
        assert!(guard.allows(public.parse().unwrap()), "{public}");
    }
    for special in [
        "0.1.2.3",
        "10.1.2.3",
        "100.64.0.1",
        "127.9.9.9",
        "169.254.1.1",
        "172.16.0.1",
        "192.0.0.192",
        "192.168.0.1",
        "198.19.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::1.1.1.1",
        "64:ff9b::101:101",
        "100::1",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff0e::1",
        "2001::1",
        "2001:db8::1",
        "2002:101:101::1",
        "3fff::1",
        "::ffff:10.0.0.1",
    ] {
        assert!(!guard.allows(special.parse().unwrap()), "{special}");
    }
    assert_eq!(SPECIAL.len(), SPECIAL_V4.len() + SPECIAL_V6.len(), "a network of the table does not parse");
}

#[test]
fn https_is_required_unless_http_is_allowed() {
    let https = Guard::default();
    assert_eq!(https.check_url("http://shop.example/hook"), Err(GuardError::Scheme("http".into())));
    assert!(https.check_url("https://shop.example/hook").is_ok());
    assert!(Guard::new(Vec::new(), true).check_url("http://shop.example/hook").is_ok());
    for bad in ["", "shop.example", "https://", "https:// shop.example", "https://u@shop.example", "https://shop.example:0/"] {
        assert!(https.check_url(bad).is_err(), "{bad}");
    }
    let long = |bytes: usize| https.check_url(&format!("https://shop.example/{}", "a".repeat(bytes - 21)));
    assert!(long(2048).is_ok() && long(2049) == Err(GuardError::Malformed));
}

/// A parser would encode them, or leave them out.
#[test]
fn a_url_with_a_space_or_a_control_character_is_refused() {
    for odd in [' ', '\t', '\n', '\u{1}', '\u{7f}', '\u{a0}', '\u{2028}'] {
        let url = format!("https://shop.example/a{odd}b");
        assert_eq!(Guard::default().check_url(&url), Err(GuardError::Malformed), "{odd:?}");
    }
}

/// Before a look-up: the resolver's answer about it would tell nothing of the setting.
#[test]
fn a_name_of_this_machine_is_refused_with_the_setting_that_allows_it() {
    for name in ["localhost", "inner.localhost", "localhost.", "LocalHost"] {
        let refused = Guard::default().check_url(&format!("https://{name}/")).unwrap_err();
        assert_eq!(refused, GuardError::Local(name.to_lowercase()));
        for network in ["127.0.0.1/32", "::1/128"] {
            assert!(Guard::new(vec![network.parse().unwrap()], false).check_url(&format!("https://{name}/")).is_ok());
        }
    }
    for name in ["localhost.example", "mylocalhost"] {
        assert!(Guard::default().check_url(&format!("https://{name}/")).is_ok(), "{name}");
    }
}

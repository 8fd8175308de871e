//! Anyone on the Internet: slow sockets, invented keys, streams without end. Nobody else may notice.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

const SLOW_SOCKETS: usize = 5000;
/// Some have the healthy client's address, more than an address may have.
const OF_ITS_ADDRESS: usize = 600;
const OF_ANOTHER_ADDRESS: usize = 500;

/// A socket that holds on to the server in the way that its number says.
async fn hold(mut socket: TcpStream, number: usize, key: Arc<str>) -> std::io::Result<()> {
    let pause = || tokio::time::sleep(Duration::from_secs(3));
    match number % 5 {
        // A head that never ends.
        0 => {
            socket.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n").await?;
            loop {
                socket.write_all(b"a: b\r\n").await?;
                pause().await;
            }
        }
        // A body that never ends.
        1 => {
            let head = "POST /api/v1/payments HTTP/1.1\r\nHost: x\r\nContent-Length: 60000";
            socket.write_all(format!("{head}\r\nX-Api-Key: {key}\r\n\r\n").as_bytes()).await?;
            loop {
                socket.write_all(b" ").await?;
                pause().await;
            }
        }
        // A reply that is not read.
        2 => {
            socket.write_all("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20).as_bytes()).await?;
            loop {
                socket.writable().await?;
                pause().await;
            }
        }
        // A request, and no other.
        3 => {
            socket.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            while socket.read(&mut [0; 1024]).await? > 0 {}
            Ok(())
        }
        // Nothing at all.
        _ => {
            socket.read_u8().await?;
            Ok(())
        }
    }
}

/// Holds a socket for as long as the server lets it, and then the next.
async fn hold_always(server: SocketAddr, number: usize, key: Arc<str>, open: Arc<AtomicUsize>) {
    let last = match number.checked_sub(OF_ITS_ADDRESS) {
        None => 1,
        Some(others) => 2 + others / OF_ANOTHER_ADDRESS,
    };
    let from = Ipv4Addr::new(127, 0, 0, u8::try_from(last).unwrap_or(u8::MAX));
    loop {
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            // A client that reads nothing would fill the machine's memory with buffers.
            socket.set_recv_buffer_size(4096)?;
            socket.bind(SocketAddr::from((from, 0)))?;
            socket.connect(server).await
        };
        if let Ok(socket) = connect.await {
            open.fetch_add(1, Ordering::Relaxed);
            // However the server ends it.
            let _ = hold(socket, number, Arc::clone(&key)).await;
            open.fetch_sub(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Reads a payment for a while, and returns the median time; each request has to be answered, and right. (A create waits for Kafka
/// most of the time.)
async fn median(api: &Api, payment: &Payment) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..60 {
        let began = Instant::now();
        let read = api.get(payment.id()).await?;
        took.push(began.elapsed());
        ensure!(read.0 == payment.0, "{}", read.0);
        // One that connects anew.
        ensure!(reqwest::get(format!("{}/livez", api.url)).await?.status().is_success());
    }
    took.sort_unstable();
    Ok(took[took.len() / 2])
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_slow_sockets_and_a_body_of_800_000_fields_cost_a_client_nothing() -> Result<()> {
    let files = runtime::http::raise_open_files();
    ensure!(files > SLOW_SOCKETS + 500, "this test needs more open files than {files} (ulimit -Hn)");
    let lab = Lab::start(Plan::default()).await?;
    let (mut process, api) = lab.serve("api", "shop").await?;
    let payment = api.create_surely(json!({ "chain": "anvil", "amount": 7 })).await?;
    let before = median(&api, &payment).await?;

    let (server, key, open) = (lab.env["API_LISTEN"].parse()?, Arc::from(api.key.as_str()), Arc::new(AtomicUsize::new(0)));
    let mut sockets = JoinSet::new();
    for number in 0..SLOW_SOCKETS {
        sockets.spawn(hold_always(server, number, Arc::clone(&key), Arc::clone(&open)));
    }
    let most = SLOW_SOCKETS - OF_ITS_ADDRESS;
    eventually("the sockets to be open", async || Ok((open.load(Ordering::Relaxed) >= most).then_some(()))).await?;
    let fields: Vec<String> = (0..800_000).map(|n| format!("\"{n:x}\":0")).collect();
    let large = async {
        let request = e2e::plain_http().build()?.post(format!("{}/api/v1/payments/batch", api.url));
        let answer = request.header("X-Api-Key", &api.key).body(format!("{{{}}}", fields.join(","))).send().await?;
        ensure!(answer.status() == StatusCode::BAD_REQUEST, "{}", answer.status());
        Ok(())
    };
    let (during, ()) = tokio::try_join!(median(&api, &payment), large)?;
    // Wide enough for a machine that has other work by now.
    ensure!(during < before * 5 + Duration::from_millis(200), "{before:?} before, {during:?} beside slow sockets");
    let evicted = process.metric("http_connections_closed_total", &[("server", "api"), ("cause", "evicted")]).await?;
    ensure!(evicted > 0.0, "its own address has more than its share");
    let open = process.metric("http_connections", &[("server", "api")]).await?;
    println!("{before:?} before, {during:?} beside {open} connections");
    drop(sockets);
    process.check()
}

/// With locks, each look-up and each probe takes as long as the test likes.
#[tokio::test]
async fn invented_keys_and_probes_take_no_connection_that_others_need() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("API_TRUSTED_PROXIES".to_owned(), "127.0.0.1".to_owned());
    let (mut process, api) = lab.serve("api", "shop").await?;
    let http = reqwest::Client::new();
    let request = |key: &str, from: &str| {
        let request = http.get(format!("{}/api/v1/payments", api.url)).header("X-Api-Key", key);
        request.header("X-Forwarded-For", from)
    };
    let ask = |key: &str, from: &str| request(key, from).send();
    ensure!(ask(&api.key, "192.0.2.1").await?.status() == StatusCode::OK);
    // Each address has its own attempts; a key that is known and one that was refused before cost none.
    let first = ask("invented", "198.51.100.7").await?;
    ensure!(first.status() == StatusCode::UNAUTHORIZED);
    // Faster than attempts are given back.
    let mut refused = None;
    for number in 0..1_000 {
        let answer = ask(&format!("invented-{number}"), "198.51.100.7").await?;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.context("of a thousand attempts none was refused")?;
    ensure!(refused.headers().get("retry-after").context("Retry-After")?.to_str()? == "1");
    let problem: Value = refused.json().await?;
    ensure!(problem["type"] == "urn:ctrip:problem:too-many-unknown-keys", "{problem}");
    ensure!(ask("another", "198.51.100.8").await?.status() == StatusCode::UNAUTHORIZED);
    ensure!(ask(&api.key, "198.51.100.7").await?.status() == StatusCode::OK);

    // A transaction sees what the others do as it was when it first looked, so another one looks.
    let (mut db, looks) = (lab.database().await?, lab.database().await?);
    let lock = db.transaction().await?;
    lock.batch_execute("LOCK TABLE orphan_transfers IN ACCESS EXCLUSIVE MODE; SAVEPOINT probes").await?;
    let mut probes = JoinSet::new();
    for _ in 0..40 {
        let probe = http.get(format!("{}/health", api.url));
        probes.spawn(async move {
            // One that waits for too long is answered. There are as many at any time.
            while let Some(probe) = probe.try_clone() {
                let _ = probe.send().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let waiting = async |count: i64| {
        eventually("look-ups, or a probe, that wait", async || {
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
            Ok((looks.query_one(waiting, &[]).await?.get::<_, i64>(0) >= count).then_some(()))
        })
        .await
    };
    waiting(1).await?;
    // An answer is believed for some seconds. On a machine that takes longer than that, other keys are tried.
    for tries in 1.. {
        let own = lab.ctrip(&["keys", "create", "shop"])?;
        let unknown = format!("unknown-{tries}");
        ensure!(ask(&own, "192.0.2.1").await?.status() == StatusCode::OK);
        ensure!(ask(&unknown, "198.51.100.8").await?.status() == StatusCode::UNAUTHORIZED);
        lock.batch_execute("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await?;
        let in_time = async |key: &str, from: &str| match tokio::time::timeout(Duration::from_secs(4), ask(key, from)).await {
            Ok(Ok(answer)) => Some(answer.status()),
            _ => None,
        };
        let is_remembered = in_time(&unknown, "198.51.100.8").await == Some(StatusCode::UNAUTHORIZED);
        let mut flood = JoinSet::new();
        for number in 0..60 {
            let asks = request(&format!("flood-{own}-{number}"), &format!("203.0.113.{number}"));
            flood.spawn(async move {
                loop {
                    let status = asks.try_clone().context("a body")?.send().await?.status();
                    if status != StatusCode::SERVICE_UNAVAILABLE {
                        return anyhow::Ok(status);
                    }
                }
            });
        }
        waiting(3).await?;
        let mut answered = Vec::new();
        for _ in 0..3 {
            let answers = futures::future::join_all((0..10).map(|_| in_time(&own, "192.0.2.1"))).await;
            answered.push(answers.into_iter().filter(|status| *status == Some(StatusCode::OK)).count());
        }
        lock.batch_execute("ROLLBACK TO probes").await?;
        while let Some(status) = flood.join_next().await {
            ensure!(status?? == StatusCode::UNAUTHORIZED);
        }
        if is_remembered && answered == [10; 3] {
            break;
        }
        ensure!(tries < 5, "{answered:?} of 10 were answered; the key that does not work was remembered: {is_remembered}");
    }
    drop(probes);
    lock.rollback().await?;
    process.check()
}

/// Postgres goes on with the statement of a client that has left.
#[tokio::test]
async fn requests_that_are_hung_up_take_no_more_than_their_merchants_share_until_their_statements_end() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.insert("API_DATABASE_CONNECTIONS".to_owned(), "6".to_owned());
    let (mut process, api) = lab.serve("api", "shop").await?;
    let other = lab.merchant("other shop")?;
    for (api, path) in [(&api, "/api/v1/payments"), (&other, "/api/v1/webhooks")] {
        let (status, answer) = api.request(Method::GET, path, None, &[]).await?;
        ensure!(status == StatusCode::OK, "{status} {answer}");
    }
    let (mut db, looks) = (lab.database().await?, lab.database().await?);
    let lock = db.transaction().await?;
    lock.batch_execute("LOCK TABLE payments IN ACCESS EXCLUSIVE MODE").await?;
    let waiting = async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'payments'::regclass AND NOT granted";
        anyhow::Ok(looks.query_one(waiting, &[]).await?.get::<_, i64>(0))
    };
    for round in 0..4 {
        let left = (0..6)
            .map(|_| tokio::time::timeout(Duration::from_millis(300), api.request(Method::GET, "/api/v1/payments", None, &[])));
        ensure!(futures::future::join_all(left).await.iter().all(Result::is_err), "none of them has an answer");
        let now = waiting().await?;
        ensure!(now == 3, "round {round}: {now} statements of a merchant that has left, and it has half of 6 connections");
        let own = other.request(Method::GET, "/api/v1/webhooks", None, &[]);
        let (status, answer) =
            tokio::time::timeout(Duration::from_secs(3), own).await.context("it waits for a stranger's")??;
        ensure!(status == StatusCode::OK, "{status} {answer}");
    }
    lock.rollback().await?;
    let (status, answer) = api.request(Method::GET, "/api/v1/payments", None, &[]).await?;
    ensure!(status == StatusCode::OK, "{status} {answer}");
    process.check()
}

#[tokio::test]
async fn a_key_has_so_many_streams_and_they_end_when_it_is_revoked() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    // Half of them may be streams, an eighth of that is a key's.
    lab.env.insert("API_MAX_CONNECTIONS".to_owned(), "64".to_owned());
    let (mut process, api) = lab.serve("api", "shop").await?;
    let payment = api.coin(1).await?;
    let reader = lab.ctrip(&["keys", "create", "shop", "--scope", "read"])?;
    let http = reqwest::Client::new();
    let open = |key: &str| {
        let request = http.get(format!("{}/api/v1/payments/{}/events", api.url, payment.id()));
        request.header("X-Api-Key", key).header("Accept", "text/event-stream").send()
    };
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = open(&reader).await?;
        ensure!(stream.status() == StatusCode::OK, "{}", stream.status());
        let first = stream.chunk().await?.context("the first event")?;
        ensure!(String::from_utf8_lossy(&first).contains("payment.created"), "{first:?}");
        streams.push(stream);
    }
    let refused = open(&reader).await?;
    ensure!(refused.status() == StatusCode::TOO_MANY_REQUESTS && refused.headers().contains_key("retry-after"));
    let problem: Value = refused.json().await?;
    ensure!(problem["type"] == "urn:ctrip:problem:too-many-streams", "{problem}");
    ensure!(open(&api.key).await?.status() == StatusCode::OK, "another key of the merchant");
    drop(streams.pop());
    eventually("room for another", async || Ok((open(&reader).await?.status() == StatusCode::OK).then_some(()))).await?;

    lab.ctrip(&["keys", "revoke", &reader])?;
    for mut stream in streams {
        tokio::time::timeout(Duration::from_secs(30), async { while let Ok(Some(_)) = stream.chunk().await {} })
            .await
            .context("a stream of a revoked key goes on")?;
    }
    let (status, answer) = api.request(Method::GET, "/api/v1/payments", None, &[]).await?;
    ensure!(status == StatusCode::OK, "the other key: {status} {answer}");
    process.check()
}

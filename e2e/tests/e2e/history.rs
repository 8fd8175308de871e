//! The history of a payment with its causes, listed and streamed.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, Lab, Payment, Plan, Process};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::Duration;

struct Running {
    lab: Lab,
    api: Api,
    process: Process,
}

async fn running() -> Result<Running> {
    let lab = Lab::start(Plan::default()).await?;
    let (process, api) = lab.serve("up", "shop").await?;
    Ok(Running { lab, api, process })
}

async fn listed(api: &Api, payment: &str, query: &str) -> Result<Value> {
    let (status, page) = api.request(Method::GET, &format!("/api/v1/payments/{payment}/events{query}"), None, &[]).await?;
    ensure!(status.is_success(), "{status} {page}");
    Ok(page)
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

/// A stream of server-sent events.
struct Stream {
    answer: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(api: &Api, payment: &str, last: Option<&str>) -> Result<Self> {
        let mut request = e2e::plain_http()
            .build()?
            .get(format!("{}/api/v1/payments/{payment}/events", api.url))
            .header("X-Api-Key", &api.key)
            .header("Accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let answer = request.send().await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        ensure!(answer.headers()["content-type"] == "text/event-stream", "{:?}", answer.headers());
        Ok(Self { answer, text: String::new() })
    }

    /// The next event; `None` when the server ends the stream. Keep-alive comments are skipped.
    async fn next(&mut self) -> Result<Option<Value>> {
        tokio::time::timeout(Duration::from_secs(30), self.read()).await.context("no event for 30 s")?
    }

    async fn read(&mut self) -> Result<Option<Value>> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let (id, kind, data) = (field("id:"), field("event:"), field("data:"));
                let event = data.map(serde_json::from_str::<Value>).transpose()?;
                if let Some(event) = &event {
                    ensure!(event["id"].as_str() == id && event["type"].as_str() == kind, "{block}");
                }
                self.text = rest.to_owned();
                if event.is_some() {
                    return Ok(event);
                }
            }
            match self.answer.chunk().await? {
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk)?),
                None => return Ok(None),
            }
        }
    }

    async fn expect(&mut self, kind: &str) -> Result<Value> {
        let event = self.next().await?.with_context(|| format!("the stream ended before {kind}"))?;
        ensure!(event["type"] == kind, "expected {kind}, got {event}");
        Ok(event)
    }
}

async fn pay(lab: &Lab, payment: &Payment) -> Result<String> {
    Ok(lab.node.pay(payment.address()?, payment.amount()?).await?.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_kept_in_order_with_its_cause() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let second = api.with_key(&lab.ctrip(&["keys", "create", "shop"])?);

    let paid = api.coin(1_000).await?;
    let transaction = pay(&lab, &paid).await?;
    lab.node.mine(2).await?;
    api.until(paid.id(), "confirmed").await?;
    let page = listed(&api, paid.id(), "").await?;
    let events = page["data"].as_array().context("events")?;
    ensure!(kinds(events) == ["payment.created", "payment.detected", "payment.confirmed"], "{page}");
    let [created, detected, confirmed] = events.as_slice() else { anyhow::bail!("{page}") };
    ensure!(created["cause"]["kind"] == "request" && created["cause"]["api_key"] == api.key_id(), "{created}");
    ensure!(created["status"] == "pending" && created["amount_received"] == "0", "{created}");
    ensure!(detected["cause"]["kind"] == "transfer" && detected["cause"]["api_key"].is_null(), "{detected}");
    let transfer = &detected["cause"]["transfer"];
    ensure!(transfer["transaction_hash"] == transaction && transfer["amount"] == "1000", "{detected}");
    ensure!(detected["status"] == "detected" && detected["amount_received"] == "1000", "{detected}");
    let (paid_in, confirmed_by) = (&detected["cause"]["block"]["number"], &confirmed["cause"]["block"]["number"]);
    ensure!(confirmed_by.as_u64() == paid_in.as_u64().map(|number| number + 2), "{confirmed} after {detected}");
    ensure!(confirmed["cause"]["block"]["hash"] == lab.node.head_hash().await?, "{confirmed}");

    // The same events in pages.
    let (mut cursor, mut paged) = (String::new(), Vec::new());
    loop {
        let page = listed(&api, paid.id(), &format!("?limit=1{cursor}")).await?;
        paged.extend(page["data"].as_array().context("a page")?.clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    ensure!(&paged == events, "{paged:?} for {events:?}");

    // The cause names the key, of several that a merchant has.
    let cancelled = api.coin(5).await?;
    let (status, _) = second.request(Method::POST, &format!("/api/v1/payments/{}/cancel", cancelled.id()), None, &[]).await?;
    ensure!(status.is_success(), "{status}");
    let page = listed(&api, cancelled.id(), "").await?;
    ensure!(page["data"][1]["type"] == "payment.cancelled", "{page}");
    ensure!(page["data"][1]["cause"]["api_key"] == second.key_id(), "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_off_in_the_middle_misses_nothing_and_repeats_nothing() -> Result<()> {
    let Running { lab, api, mut process } = running().await?;
    let payment = api.coin(1_000).await?;
    let mut stream = Stream::open(&api, payment.id(), None).await?;
    stream.expect("payment.created").await?;
    pay(&lab, &payment).await?;
    let detected = stream.expect("payment.detected").await?;
    drop(stream);

    // While no client listens.
    lab.node.mine(2).await?;
    api.until(payment.id(), "confirmed").await?;
    let last = detected["id"].as_str();
    let mut stream = Stream::open(&api, payment.id(), last).await?;
    let confirmed = stream.expect("payment.confirmed").await?;
    ensure!(confirmed["sequence"] == 3, "{confirmed}");
    // Live again: a reorg takes it back, and the stream continues after a final state.
    lab.node.reorg(3).await?;
    let mut seen = vec![confirmed];
    while seen.last().is_some_and(|event| event["status"] != "pending") {
        seen.push(stream.next().await?.context("the stream ended")?);
    }
    let sequences: Vec<u64> = seen.iter().filter_map(|event| event["sequence"].as_u64()).collect();
    ensure!(sequences == (3..3 + sequences.len() as u64).collect::<Vec<_>>(), "{sequences:?}");
    ensure!(kinds(&seen).contains(&"payment.reverted"), "{seen:?}");
    let all = listed(&api, payment.id(), "").await?;
    ensure!(all["data"].as_array().is_some_and(|all| all.ends_with(&seen)), "{all} against {seen:?}");

    // The stream ends at the stop, and does not delay it.
    process.terminate()?;
    ensure!(stream.next().await?.is_none(), "an event out of nowhere");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_merchant_finds_no_history() -> Result<()> {
    let Running { lab, api, process: _process } = running().await?;
    let other = lab.merchant("other shop")?;
    let payment = api.coin(1_000).await?;
    let path = format!("/api/v1/payments/{}/events", payment.id());
    for headers in [&[][..], &[("Accept", "text/event-stream")][..]] {
        let (status, answer) = other.request(Method::GET, &path, None, headers).await?;
        ensure!(status == StatusCode::NOT_FOUND, "another merchant's history: {status} {answer}");
        let (status, answer) = api.with_key("ctrip_wrong").request(Method::GET, &path, None, headers).await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "a wrong key: {status} {answer}");
    }
    Ok(())
}

/// Partitions are created months ahead and dropped when they are old, by any number of instances at once; events that came
/// before their month's partition move into it.
#[tokio::test(flavor = "multi_thread")]
async fn months_of_history_are_made_and_dropped_and_no_event_is_lost_in_between() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let db = lab.database().await?;
    let pool = runtime::db::pool(&lab.env["DATABASE_URL"], 4)?;
    let count = async |days: i32| -> Result<i64> {
        let sql = "SELECT count(*) FROM payment_events WHERE recorded_at BETWEEN now() - make_interval(days => $1 + 1)
                   AND now() - make_interval(days => $1 - 1)";
        Ok(db.query_one(sql, &[&days]).await?.get(0))
    };
    for days in [0, 100, 400] {
        let sql = "INSERT INTO payment_events (payment_id, sequence, recorded_at, record)
                   VALUES (gen_random_uuid(), 1, now() - make_interval(days => $1), '')";
        db.execute(sql, &[&days]).await?;
    }
    for days in [100, 400] {
        let sql = "SELECT make_payment_events_partition(now() - make_interval(days => $1))";
        ensure!(db.query_one(sql, &[&days]).await?.get::<_, bool>(0), "{days}");
        ensure!(!db.query_one(sql, &[&days]).await?.get::<_, bool>(0), "made twice");
        ensure!(count(days).await? == 1, "the event of {days} days ago is lost");
    }
    let rest: i64 = db.query_one("SELECT count(*) FROM payment_events_rest", &[]).await?.get(0);
    ensure!(rest == 0, "{rest} events did not move");

    let (mut one, mut other, mut third) = (pool.get().await?, pool.get().await?, pool.get().await?);
    let dropped = payments::history::roll_partitions(&mut one, None).await?;
    ensure!(dropped == 0 && count(400).await? == 1, "kept for ever unless told otherwise");
    let (first, second, last) = tokio::join!(
        payments::history::roll_partitions(&mut one, Some(200)),
        payments::history::roll_partitions(&mut other, Some(200)),
        payments::history::roll_partitions(&mut third, Some(200)),
    );
    let dropped = first? + second? + last?;
    ensure!(dropped == 1, "{dropped} months dropped");
    ensure!((count(0).await?, count(100).await?, count(400).await?) == (1, 1, 0));
    // The partitions of the next months exist before they begin.
    let sql =
        "SELECT to_regclass('payment_events_' || to_char((now() + $1 * interval '1 month') AT TIME ZONE 'UTC', 'YYYY_MM'))
               IS NOT NULL";
    for months in 0..=2_i32 {
        ensure!(db.query_one(sql, &[&f64::from(months)]).await?.get::<_, bool>(0), "{months} months ahead");
    }
    Ok(())
}

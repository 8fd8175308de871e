//! Webhooks as a merchant's server receives them.

use crate::api::batch;
use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::Listener;
use e2e::{Api, Lab, Plan, Process, events, eventually, root};
use futures::future::try_join_all;
use futures::{StreamExt as _, stream};
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::Method;
use runtime::kafka::TransactionalProducer;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;
use topics::{Address, Topic, U256, wire};

/// A received message.
#[derive(Clone, Debug)]
pub struct Message {
    headers: BTreeMap<String, String>,
    body: String,
    pub at: Instant,
}

impl Message {
    pub fn id(&self) -> &str {
        self.headers.get("webhook-id").map(String::as_str).unwrap_or_default()
    }

    fn json(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.body)?)
    }
}

/// A merchant's server. The path chooses its behaviour: `/well/…`, `/slow/…`, `/gone/…`, `/moved/…`, `/busy/…`, `/silent/…`,
/// `/endless/…`, and `/broken/…`, which returns 500 until it is mended.
#[derive(Clone)]
pub struct Receiver {
    pub url: String,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    messages: Mutex<HashMap<String, Vec<Message>>>,
    mended: Mutex<bool>,
}

impl Receiver {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok(Self::on(listener, url))
    }

    /// Starts with a certificate for `localhost`; also returns the authority that signed it, as PEM.
    async fn start_tls() -> Result<(Self, String)> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let (authority, issuer) = (params.self_signed(&key)?, Issuer::new(params, &key));
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)?;
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://localhost:{}", tcp.local_addr()?.port());
        Ok((Self::on(Tls { tcp, acceptor: Arc::new(config).into() }, url), authority.pem()))
    }

    fn on<L: Listener<Addr: std::fmt::Debug>>(listener: L, url: String) -> Self {
        let receiver = Self { url, inner: Arc::default() };
        let routes = Router::new().route("/{kind}/{name}", post(Self::receive)).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        receiver
    }

    async fn receive(
        State(receiver): State<Self>,
        Path((kind, name)): Path<(String, String)>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Response {
        let text = |value: &axum::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let message = Message { headers, body: String::from_utf8_lossy(&body).into_owned(), at: Instant::now() };
        if let Ok(mut messages) = receiver.inner.messages.lock() {
            messages.entry(format!("{kind}/{name}")).or_default().push(message);
        }
        let mended = receiver.inner.mended.lock().is_ok_and(|mended| *mended);
        match kind.as_str() {
            "slow" => tokio::time::sleep(Duration::from_secs(5)).await,
            "silent" => std::future::pending().await,
            _ => {}
        }
        match kind.as_str() {
            "gone" => StatusCode::GONE.into_response(),
            "moved" => (StatusCode::FOUND, [("location", format!("{}/well/behind", receiver.url))]).into_response(),
            "busy" => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3600")], "later").into_response(),
            "endless" => {
                let body = stream::iter([Ok::<_, Infallible>("well")]).chain(stream::pending());
                Body::from_stream(body).into_response()
            }
            "broken" if !mended => (StatusCode::INTERNAL_SERVER_ERROR, "x".repeat(5000)).into_response(),
            _ => StatusCode::NO_CONTENT.into_response(),
        }
    }

    pub fn at(&self, path: &str) -> Vec<Message> {
        self.inner.messages.lock().map(|messages| messages.get(path).cloned().unwrap_or_default()).unwrap_or_default()
    }

    pub async fn until(&self, path: &str, count: usize) -> Result<Vec<Message>> {
        let what = format!("{count} messages at {path}");
        let found = eventually(&what, || async { Ok(Some(self.at(path)).filter(|found| found.len() >= count)) });
        found.await.with_context(|| format!("{} came", self.at(path).len()))
    }

    fn mend(&self) {
        if let Ok(mut mended) = self.inner.mended.lock() {
            *mended = true;
        }
    }
}

/// TLS on TCP. A connection whose handshake fails is dropped.
struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.tcp).await;
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

pub struct Running {
    pub lab: Lab,
    pub api: Api,
    pub receiver: Receiver,
    /// Killed when dropped.
    _processes: Vec<Process>,
}

/// Starts roles, each as a process of its own, so that one can be killed.
pub async fn running(roles: &[&str]) -> Result<Running> {
    running_with(roles, &[("WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8"), ("WEBHOOK_ALLOW_HTTP", "true")]).await
}

async fn running_with(roles: &[&str], env: &[(&str, &str)]) -> Result<Running> {
    let mut lab = Lab::start(Plan::default()).await?;
    lab.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let mut processes = roles.iter().map(|role| lab.spawn(role)).collect::<Result<Vec<_>>>()?;
    let api = lab.merchant("shop")?;
    api.ready(&mut processes[0]).await?;
    Ok(Running { lab, api, receiver: Receiver::start().await?, _processes: processes })
}

async fn call(api: &Api, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
    let (status, answer) = api.request(method.clone(), &format!("/api/v1/webhooks{path}"), body, &[]).await?;
    ensure!(status.is_success(), "{method} {path}: {status} {answer}");
    Ok(answer)
}

/// Creates an endpoint at our server; returns its id and secret.
pub async fn hook(running: &Running, path: &str, events: &[&str]) -> Result<(String, String)> {
    let body = json!({ "url": format!("{}/{path}", running.receiver.url), "events": events });
    let made = call(&running.api, Method::POST, "", Some(body)).await?;
    let text = |field: &str| made[field].as_str().map(str::to_owned).with_context(|| made.to_string());
    Ok((text("id")?, text("secret")?))
}

/// The verdicts of the reference library on messages.
fn verify(messages: &[(&str, &Message)]) -> Result<Vec<String>> {
    let environment =
        Command::new(root().join("e2e/python/environment")).arg(root().join("e2e/python/webhooks.txt")).output()?;
    ensure!(environment.status.success(), "{}", String::from_utf8_lossy(&environment.stderr));
    let python = std::path::Path::new(String::from_utf8(environment.stdout)?.trim()).join("bin/python");
    let mut child = Command::new(python)
        .arg(root().join("e2e/python/verify_webhooks.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    for (secret, message) in messages {
        writeln!(input, "{}", json!({ "secret": secret, "headers": message.headers, "body": message.body }))?;
    }
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "verify_webhooks.py");
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// The verdict of the function in docs/webhooks.md on a message.
fn verify_as_documented(secret: &str, message: &Message) -> Result<bool> {
    let page = std::fs::read_to_string(root().join("docs/webhooks.md"))?;
    let code =
        page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).context("no Python in docs/webhooks.md")?;
    let run =
        "import json, sys\nasked = json.load(sys.stdin)\nverify(asked['secret'], asked['headers'], asked['body'].encode())\n";
    let mut child =
        Command::new("python3").args(["-c", &format!("{code}\n{run}")]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let asked = json!({ "secret": secret, "headers": message.headers, "body": message.body });
    child.stdin.take().context("stdin")?.write_all(asked.to_string().as_bytes())?;
    Ok(child.wait()?.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_library_verifies_every_message_also_while_a_secret_rotates() -> Result<()> {
    let running = running(&["up"]).await?;
    let Running { lab, api, receiver, .. } = &running;
    let (id, secret) = hook(&running, "well/all", &[]).await?;
    hook(&running, "well/some", &["payment.confirmed"]).await?;
    let payment = api.create(json!({ "chain": "anvil", "amount": "1000", "metadata": { "n": 1e300 } })).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;
    let messages = receiver.until("well/all", 3).await?;

    // Ids, order and content are those of the topic.
    let told = events(lab).await?;
    let told: Vec<&str> = told.iter().filter(|e| e.payment_id == payment.id()).map(|event| event.id.as_str()).collect();
    let ids: Vec<&str> = messages.iter().map(Message::id).collect();
    ensure!(ids == told, "{ids:?} for {told:?}");
    let last = messages[2].json()?;
    ensure!(last["type"] == "payment.confirmed" && last["data"]["amount_received"] == "1000", "{last}");
    ensure!(last["data"]["event_id"] == ids[2] && last["data"]["payment_id"] == payment.id(), "{last}");
    let some = receiver.until("well/some", 1).await?;
    ensure!(some.len() == 1 && some[0].json()? == last, "{some:?}");

    // Both secrets verify during a rotation; another's never does.
    let rotated = call(api, Method::POST, &format!("/{id}/rotate"), None).await?;
    let new = rotated["secret"].as_str().context("secret")?;
    ensure!(new != secret && rotated["old_secret_until"].is_string(), "{rotated}");
    let ping = call(api, Method::POST, &format!("/{id}/ping"), None).await?;
    let messages = receiver.until("well/all", 4).await?;
    ensure!(ping["event_id"] == messages[3].id(), "{ping} {:?}", messages[3]);
    let stranger = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let mut asked: Vec<(&str, &Message)> = messages.iter().map(|message| (secret.as_str(), message)).collect();
    asked.extend([(new, &messages[3]), (new, &messages[0]), (stranger, &messages[0])]);
    let mut changed = messages[0].clone();
    changed.body = changed.body.replace("1000", "1001");
    asked.push((&secret, &changed));
    let verdicts = verify(&asked)?;
    let expected = [
        "payment.created",
        "payment.detected",
        "payment.confirmed",
        "webhook.ping",
        "webhook.ping",
        "refused",
        "refused",
        "refused",
    ];
    ensure!(verdicts == expected, "{verdicts:?}");
    ensure!(verify_as_documented(&secret, &messages[0])? && verify_as_documented(new, &messages[3])?, "docs/webhooks.md");
    ensure!(!verify_as_documented(stranger, &messages[0])? && !verify_as_documented(&secret, &changed)?, "docs/webhooks.md");
    // The message has the fields that the page shows, and no others.
    let page = std::fs::read_to_string(root().join("docs/webhooks.md"))?;
    let shown =
        page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).context("no JSON in docs/webhooks.md")?;
    let (shown, sent) = (serde_json::from_str::<Value>(shown)?, messages[2].json()?);
    let names = |value: &Value| value.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
    ensure!(names(&shown) == names(&sent) && names(&shown["data"]) == names(&sent["data"]), "docs/webhooks.md: {sent}");

    // And the API lists the deliveries.
    let page = call(api, Method::GET, &format!("/{id}/deliveries?limit=3"), None).await?;
    let newest = &page["data"][0];
    ensure!(newest["type"] == "webhook.ping" && page["next_cursor"].is_string(), "{page}");
    let delivered = eventually("the ping to be settled", || async {
        let page = call(api, Method::GET, &format!("/{id}/deliveries?state=delivered"), None).await?;
        Ok(Some(page["data"].clone()).filter(|all| all.as_array().is_some_and(|all| all.len() == 4)))
    });
    let delivered = delivered.await?;
    ensure!(delivered[0]["attempts"][0]["status"] == 204 && delivered[0]["body"]["type"] == "webhook.ping", "{delivered}");
    Ok(())
}

/// With each merchant's payments, static address and endpoint for all events.
#[tokio::test(flavor = "multi_thread")]
async fn no_merchant_gets_the_events_of_another() -> Result<()> {
    let ours = running(&["up"]).await?;
    let theirs = ours.lab.merchant("other shop")?;
    hook(&ours, "well/ours", &[]).await?;
    let body = json!({ "url": format!("{}/well/theirs", ours.receiver.url) });
    call(&theirs, Method::POST, "", Some(body)).await?;
    for (api, external_id) in [(&ours.api, "ours"), (&theirs, "theirs")] {
        let payment = api.create(json!({ "chain": "anvil", "amount": "1000", "external_id": external_id })).await?;
        let customer = json!({ "external_id": external_id });
        let (status, customer) = api.request(Method::POST, "/api/v1/addresses", Some(customer), &[]).await?;
        ensure!(status.is_success(), "{status} {customer}");
        let customer: Address = customer["address"].as_str().context("address")?.parse()?;
        for to in [payment.address()?, customer] {
            ours.lab.node.pay(to, U256::from(1000)).await?;
        }
    }
    ours.lab.node.mine(3).await?;
    for name in ["ours", "theirs"] {
        // A payment has three events, and a deposit two.
        let messages = ours.receiver.until(&format!("well/{name}"), 5).await?;
        for message in messages {
            ensure!(message.json()?["data"]["external_id"] == name, "at the endpoint of {name}: {message:?}");
        }
    }
    // Nor is a delivery kept for later.
    let sql = "SELECT count(*) FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id
               LEFT JOIN payments p ON p.id = d.payment_id WHERE p.merchant_id IS DISTINCT FROM e.merchant_id";
    let strange: i64 = ours.lab.database().await?.query_one(sql, &[]).await?.get(0);
    ensure!(strange == 0, "{strange} deliveries of another merchant's payments");
    Ok(())
}

/// After a broker's power cut Postgres has applied records that the topics do not have any more.
#[tokio::test(flavor = "multi_thread")]
async fn stages_that_are_beyond_the_end_of_their_topic_go_back_and_do_nothing_twice() -> Result<()> {
    let Running { lab, api, receiver, _processes: mut processes } = running(&["up"]).await?;
    let hooked = json!({ "url": format!("{}/well/all", receiver.url), "events": ["payment.confirmed"] });
    call(&api, Method::POST, "", Some(hooked)).await?;
    let pay = async || -> Result<_> {
        let payment = api.create_surely(json!({ "chain": "anvil", "amount": "1000" })).await?;
        lab.node.pay(payment.address()?, payment.amount()?).await?;
        lab.node.mine(3).await?;
        api.until(payment.id(), "confirmed").await
    };
    let first = pay().await?;
    receiver.until("well/all", 1).await?;
    ensure!(processes[0].terminate()?.success(), "{}", processes[0].tail());
    let beyond = "UPDATE stage_offsets SET next_offset = next_offset + 10, last_offset = last_offset + 10";
    ensure!(lab.database().await?.execute(beyond, &[]).await? >= 2);

    processes[0] = lab.spawn("up")?;
    let second = pay().await.with_context(|| processes[0].tail())?;
    receiver.until("well/all", 2).await?;
    let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
    ensure!(health.pointer("/components/set_aside").and_then(Value::as_array).is_some_and(Vec::is_empty), "{health}");
    for payment in [&first, &second] {
        ensure!(api.get(payment.id()).await?.text("amount_received") == "1000", "credited twice");
    }
    let told = events(&lab).await?;
    let ids: HashSet<&str> = told.iter().map(|event| event.id.as_str()).collect();
    ensure!(told.len() == 6 && ids.len() == 6 && receiver.at("well/all").len() == 2, "{told:?}");
    processes[0].check()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_a_slow_and_a_leaving_endpoint_delay_nobody_else() -> Result<()> {
    let running = running(&["up"]).await?;
    let Running { api, receiver, .. } = &running;
    let sick = ["silent/1", "silent/2", "slow/1", "slow/2", "moved/1", "broken/1", "busy/1", "gone/1", "endless/1"];
    let mut ids = HashMap::new();
    for path in sick {
        ids.insert(path, hook(&running, path, &["payment.*"]).await?.0);
    }
    let healthy = ["well/1", "well/2", "well/3"];
    for path in healthy {
        hook(&running, path, &["payment.*"]).await?;
    }
    hook(&running, "well/operator", &["webhook.*"]).await?;
    let orders: Vec<Value> = (0..60).map(|_| json!({ "chain": "anvil", "amount": "7" })).collect();
    let (status, _) = batch(api, &orders, &[]).await?;
    ensure!(status.is_success(), "{status}");
    // Silent endpoints hold their sockets for 15 s.
    let started = receiver.until("silent/1", 1).await?[0].at;
    for path in healthy {
        let messages = receiver.until(path, 60).await?;
        let last = messages.iter().map(|message| message.at).max().context("no messages")?;
        let waited = last.saturating_duration_since(started);
        ensure!(waited < Duration::from_secs(12), "{path} waited {waited:?} beside sick endpoints");
    }

    // A redirect is not followed, a 503 pauses the endpoint, and 410 disables it, which other endpoints are told.
    let told = receiver.until("well/operator", 1).await?;
    let told = told[0].json()?;
    ensure!(told["type"] == "webhook.disabled" && told["data"]["webhook_id"] == ids["gone/1"], "{told}");
    let gone = call(api, Method::GET, &format!("/{}", ids["gone/1"]), None).await?;
    ensure!(gone["enabled"] == false && gone["disabled_reason"] == "gone", "{gone}");
    eventually("nothing to wait for an endpoint that is gone", || async {
        let page = call(api, Method::GET, &format!("/{}/deliveries?state=pending", ids["gone/1"]), None).await?;
        Ok((page["data"] == json!([])).then_some(()))
    })
    .await?;
    // A response counts even if its body never ends.
    eventually("what was answered at once", || async {
        let page = call(api, Method::GET, &format!("/{}/deliveries?state=delivered", ids["endless/1"]), None).await?;
        let attempt = &page["data"][0]["attempts"][0];
        Ok((attempt["status"] == 200 && attempt["reply"] == "well").then_some(()))
    })
    .await?;
    let busy = call(api, Method::GET, &format!("/{}", ids["busy/1"]), None).await?;
    ensure!(busy["paused_until"].is_string() && busy["failing_since"].is_string(), "{busy}");
    // Eight requests per endpoint are in flight, and then none for an hour.
    ensure!(receiver.at("busy/1").len() <= 8, "{} messages for one that wants peace", receiver.at("busy/1").len());
    ensure!(receiver.at("well/behind").is_empty(), "a redirect was followed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_asked_for_and_looked_at() -> Result<()> {
    let (secure, authority) = Receiver::start_tls().await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), authority)?;
    let trusted = file.path().display().to_string();
    // `localhost` may be ::1 as well, and a name is refused if one of its addresses is.
    let env = [("WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8,::1/128"), ("SSL_CERT_FILE", trusted.as_str())];
    let running = running_with(&["up"], &env).await?;
    let other = secure.url.replace("localhost", "127.0.0.1");
    let running = Running { receiver: secure, ..running };
    hook(&running, "well/all", &[]).await?;
    let body = json!({ "url": format!("{other}/well/other") });
    let made = call(&running.api, Method::POST, "", Some(body)).await?;
    running.api.coin(1).await?;
    running.receiver.until("well/all", 1).await?;
    let path = format!("/{}/deliveries", made["id"].as_str().context("id")?);
    let refused = eventually("an attempt that failed", || async {
        let page = call(&running.api, Method::GET, &path, None).await?;
        Ok(Some(page["data"][0]["attempts"][0].clone()).filter(Value::is_object))
    });
    let refused = refused.await?;
    // The certificate is for another name.
    ensure!(refused["status"].is_null() && refused["error"].as_str().is_some_and(|e| e.contains("certificate")), "{refused}");
    ensure!(running.receiver.at("well/other").is_empty(), "a message went to somebody with another's certificate");
    Ok(())
}

/// The life of an endpoint: it breaks, is inspected, mended, and gets what it missed; it fails for five days, is disabled,
/// and gets what it missed after all.
#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_shown_and_sent_again() -> Result<()> {
    let running = running(&["up"]).await?;
    let Running { lab, api, receiver, .. } = &running;
    let (id, _) = hook(&running, "broken/1", &["payment.*", "webhook.ping"]).await?;
    hook(&running, "well/operator", &["webhook.disabled"]).await?;
    let deliveries = |query: &'static str| {
        let path = format!("/{id}/deliveries{query}");
        async move { call(api, Method::GET, &path, None).await }
    };
    let first = api.coin(1).await?;
    let failed = eventually("an attempt that failed", || async {
        let page = deliveries("?state=pending").await?;
        Ok(Some(page["data"][0].clone()).filter(|first| first["attempts"][0]["status"] == 500))
    });
    let failed = failed.await?;
    ensure!(failed["attempts"][0]["reply"].as_str().is_some_and(|reply| reply == "x".repeat(1024)), "{failed}");

    // A later event of the payment waits for it.
    let cancel = format!("/api/v1/payments/{}/cancel", first.id());
    let (status, answer) = api.request(Method::POST, &cancel, None, &[]).await?;
    ensure!(status.is_success(), "{status} {answer}");
    eventually("the later event to wait for the first", || async {
        let page = deliveries("?state=pending").await?;
        let (later, first) = (&page["data"][0], &page["data"][1]);
        let waits = later["type"] == "payment.cancelled" && later["next_attempt"] == first["next_attempt"];
        Ok((waits && later["attempts"] == json!([])).then_some(()))
    })
    .await?;

    // Five days of failures.
    let db = lab.database().await?;
    db.execute("UPDATE webhook_endpoints SET failing_since = now() - interval '5 days' WHERE failing_since IS NOT NULL", &[])
        .await?;
    let again = json!({ "event_id": failed["event_id"] });
    let redelivered = call(api, Method::POST, &format!("/{id}/redeliver"), Some(again.clone())).await?;
    ensure!(redelivered["deliveries"] == 1, "{redelivered}");
    let told = receiver.until("well/operator", 1).await?[0].json()?;
    ensure!(told["data"] == json!({ "webhook_id": id, "reason": "failing" }), "{told}");
    let disabled = call(api, Method::GET, &format!("/{id}"), None).await?;
    ensure!(disabled["enabled"] == false && disabled["disabled_reason"] == "failing", "{disabled}");
    let (status, refused) = api.request(Method::POST, &format!("/api/v1/webhooks/{id}/redeliver"), Some(again), &[]).await?;
    ensure!(status == StatusCode::CONFLICT, "{status} {refused}");

    // Events in the meantime are kept for it.
    api.coin(2).await?;
    eventually("an event kept for a disabled endpoint", || async {
        let page = deliveries("?state=failed").await?;
        Ok(page["data"].as_array().filter(|all| all.len() == 3).map(drop))
    })
    .await?;
    let before = receiver.at("broken/1").len();
    receiver.mend();
    let enabled = call(api, Method::PATCH, &format!("/{id}"), Some(json!({ "enabled": true }))).await?;
    ensure!(enabled["enabled"] == true && enabled["failing_since"].is_null(), "{enabled}");
    let redelivered = call(api, Method::POST, &format!("/{id}/redeliver"), Some(json!({ "failed": true }))).await?;
    ensure!(redelivered["deliveries"] == 3, "{redelivered}");
    let messages = receiver.until("broken/1", before + 3).await?;
    ensure!(messages[before..].iter().any(|message| Some(message.id()) == failed["event_id"].as_str()), "{messages:?}");

    // A time range includes delivered events.
    let range = json!({ "from": "2020-01-01T00:00:00Z", "before": "2120-01-01T00:00:00Z" });
    eventually("all to be settled", || async {
        let page = deliveries("?state=delivered").await?;
        Ok(page["data"].as_array().filter(|all| all.len() == 3).map(drop))
    })
    .await?;
    let redelivered = call(api, Method::POST, &format!("/{id}/redeliver"), Some(range)).await?;
    ensure!(redelivered["deliveries"] == 3, "{redelivered}");
    let messages = receiver.until("broken/1", before + 6).await?;
    let ids: HashSet<&str> = messages.iter().map(Message::id).collect();
    ensure!(ids.len() == 3, "an id changed with a redelivery: {messages:?}");

    call(api, Method::DELETE, &format!("/{id}"), None).await?;
    let (status, _) = api.request(Method::GET, &format!("/api/v1/webhooks/{id}"), None, &[]).await?;
    ensure!(status == StatusCode::NOT_FOUND, "{status}");
    Ok(())
}

fn sender(lab: &mut Lab, instance: usize) -> Result<Process> {
    lab.env.insert("CTRIP_INSTANCE".to_owned(), instance.to_string());
    lab.spawn("webhooks")
}

/// `kill -9` between any two steps: a delivery that was claimed, sent or answered and not settled is sent again, by one of
/// two instances. 5,000 events, two per payment.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sender_sends_again_rather_than_never_and_keeps_the_order() -> Result<()> {
    let payments = 2_500;
    let mut running = running(&["api", "confirmer"]).await?;
    let mut senders = [sender(&mut running.lab, 0)?, sender(&mut running.lab, 1)?];
    let paths = ["well/1", "well/2", "well/3"];
    for path in paths {
        hook(&running, path, &[]).await?;
    }
    let api = running.api.clone();
    let made = tokio::spawn(async move {
        let orders = vec![json!({ "chain": "anvil", "amount": "7" }); payments];
        for orders in orders.chunks(100) {
            let (_, made) = batch(&api, orders, &[]).await?;
            let ids = made["data"].as_array().context("a batch")?.iter().filter_map(|one| one["payment"]["id"].as_str());
            let ids: Vec<String> = ids.map(str::to_owned).collect();
            ensure!(ids.len() == orders.len(), "{made}");
            let api = &api;
            try_join_all(ids.iter().map(|id| async move {
                let path = format!("/api/v1/payments/{id}/cancel");
                let (status, answer) = api.request(Method::POST, &path, None, &[]).await?;
                ensure!(status.is_success(), "{status} {answer}");
                Ok(())
            }))
            .await?;
        }
        Ok(())
    });
    let arrived = |receiver: &Receiver| paths.iter().map(|path| receiver.at(path).len()).sum::<usize>();
    let all = payments * 2 * paths.len();
    let mut kills = 0;
    let mut next = 0;
    while next < all * 4 / 5 {
        next = arrived(&running.receiver) + rand::rng().random_range(1..=all / 10);
        let (receiver, at) = (running.receiver.clone(), next.min(all));
        eventually("messages", || async { Ok(Some(arrived(&receiver)).filter(|count| *count >= at)) }).await?;
        let victim = rand::rng().random_range(0..senders.len());
        senders[victim].kill()?;
        kills += 1;
        senders[victim] = sender(&mut running.lab, victim)?;
    }
    made.await??;
    ensure!(kills >= 5, "{kills} kills");

    let told = eventually("all events in Kafka", || async {
        Ok(Some(events(&running.lab).await?).filter(|told| told.len() >= payments * 2))
    });
    let told = told.await?;
    for path in paths {
        let wanted: HashSet<&str> = told.iter().map(|event| event.id.as_str()).collect();
        ensure!(wanted.len() == payments * 2, "{} events", wanted.len());
        let messages = eventually("every event at every endpoint", || async {
            let messages = running.receiver.at(path);
            let ids: HashSet<&str> = messages.iter().map(Message::id).collect();
            Ok((ids.len() >= wanted.len()).then(|| messages.clone()))
        });
        let messages = messages.await?;
        let (mut seen, mut last) = (HashSet::new(), HashMap::<String, u64>::new());
        for message in &messages {
            ensure!(wanted.contains(message.id()), "{path}: an event that never happened: {message:?}");
            let body = message.json()?;
            ensure!(body["data"]["event_id"] == message.id(), "{path}: {message:?}");
            if seen.insert(message.id()) {
                let payment = body["data"]["payment_id"].as_str().context("payment_id")?.to_owned();
                let sequence = body["data"]["sequence"].as_u64().context("sequence")?;
                let before = last.insert(payment, sequence).unwrap_or(0);
                ensure!(before + 1 == sequence, "{path}: {sequence} came after {before}: {message:?}");
            }
        }
        eprintln!("{path}: {} messages for {} events, {kills} kills", messages.len(), wanted.len());
    }
    Ok(())
}

#[tokio::test]
async fn no_inner_address_is_taken_for_an_endpoint() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (_process, api) = lab.serve("api", "shop").await?;
    for url in [
        "http://shop.example/",
        "https://127.0.0.1/",
        "https://0x7f.1/",
        "https://[::1]/",
        "https://localhost/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://u:p@shop.example/",
        "ftp://shop.example/",
        "shop.example",
        "",
    ] {
        let (status, answer) = api.request(Method::POST, "/api/v1/webhooks", Some(json!({ "url": url })), &[]).await?;
        ensure!(
            status == StatusCode::UNPROCESSABLE_ENTITY && answer["errors"][0]["field"] == "url",
            "{url}: {status} {answer}"
        );
    }
    let made = call(&api, Method::POST, "", Some(json!({ "url": "https://shop.example/hook" }))).await?;
    let path = format!("/{}", made["id"].as_str().context("id")?);
    let twin = json!({ "url": "https://SHOP.example:443/a/../hook#x", "events": ["payment.confirmed"] });
    let (status, answer) = api.request(Method::POST, "/api/v1/webhooks", Some(twin), &[]).await?;
    ensure!(
        status == StatusCode::CONFLICT && answer.to_string().contains(&path[1..]),
        "each event would come twice: {status} {answer}"
    );
    let other = call(&api, Method::POST, "", Some(json!({ "url": "https://shop.example/other" }))).await?;
    let url = json!({ "url": "https://shop.example/hook" });
    for (id, expected) in [(&made["id"], StatusCode::OK), (&other["id"], StatusCode::CONFLICT)] {
        let path = format!("/api/v1/webhooks/{}", id.as_str().context("id")?);
        let (status, answer) = api.request(Method::PATCH, &path, Some(url.clone()), &[]).await?;
        ensure!(status == expected, "{status} {answer}");
    }
    let (status, _) = api
        .request(Method::PATCH, &format!("/api/v1/webhooks{path}"), Some(json!({ "url": "https://127.0.0.1/" })), &[])
        .await?;
    ensure!(status == StatusCode::UNPROCESSABLE_ENTITY, "{status}");
    // The secret is shown once, when it is created.
    let shown = call(&api, Method::GET, &path, None).await?.to_string() + &call(&api, Method::GET, "", None).await?.to_string();
    ensure!(!shown.contains("whsec_"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn deliveries_of_long_ago_are_removed_and_no_others() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let api = lab.merchant("shop")?;
    let db = lab.database().await?;
    db.batch_execute(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret)
         SELECT gen_random_uuid(), id, 'https://shop.example/', 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' FROM merchants;
         -- Deleted some time ago, and just now.
         INSERT INTO webhook_endpoints (id, merchant_id, url, secret, enabled, disabled_at, disabled_reason, deleted_at)
         SELECT gen_random_uuid(), id, ago, 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA', false, now(), 'asked', now() - ago::interval
         FROM merchants, unnest('{2 hours,0 hours}'::text[]) AS ago;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state)
         SELECT id, 'deleted', 'webhook.ping', 'pending' FROM webhook_endpoints WHERE deleted_at IS NOT NULL;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state, created_at)
         SELECT id, state || age, 'webhook.ping', state, now() - make_interval(days => age)
         FROM webhook_endpoints, unnest('{pending,delivered,failed}'::text[]) AS state, unnest('{89,91}'::integer[]) AS age
         WHERE deleted_at IS NULL;
         INSERT INTO webhook_messages (event_id, merchant_id, body, created_at)
         SELECT DISTINCT event_id, merchant_id, '{}', d.created_at FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = endpoint_id;
         INSERT INTO webhook_messages (event_id, merchant_id, body, created_at)
         SELECT event, id, '{}', now() - make_interval(days => 91) FROM merchants, unnest('{unused,waiting}'::text[]) AS event;
         INSERT INTO webhook_backlog (merchant_id, event_id, type, payment_id, sequence, written_ms)
         SELECT id, 'waiting', 'payment.created', id, 1, 1 FROM merchants;
         INSERT INTO webhook_attempts (delivery_id, number, took_ms) SELECT id, 1, 1 FROM webhook_deliveries",
    )
    .await?;
    let mut process = lab.spawn("api")?;
    api.ready(&mut process).await?;
    let kept = eventually("old deliveries to be gone", || async {
        let sql =
            "SELECT array_agg(event_id ORDER BY event_id) FROM webhook_deliveries JOIN webhook_attempts ON id = delivery_id";
        let kept: Vec<String> = db.query_one(sql, &[]).await?.get(0);
        Ok(Some(kept).filter(|kept| kept.len() < 5))
    });
    let kept = kept.await?;
    let sql = "SELECT array_agg(url ORDER BY url) FROM webhook_endpoints";
    let endpoints = eventually("the endpoint that was deleted to be gone", || async {
        let endpoints: Vec<String> = db.query_one(sql, &[]).await?.get(0);
        Ok(Some(endpoints).filter(|endpoints| endpoints.len() < 3))
    });
    ensure!(endpoints.await? == ["0 hours", "https://shop.example/"], "endpoints");
    ensure!(kept == ["delivered89", "failed89", "pending89", "pending91"], "{kept:?}");
    // Their messages as well, and no others. What was of a deleted endpoint alone is young.
    let sql = "SELECT array_agg(event_id ORDER BY event_id) FROM webhook_messages";
    let messages = eventually("messages without a delivery to be gone", || async {
        let messages: Vec<String> = db.query_one(sql, &[]).await?.get(0);
        Ok(Some(messages).filter(|messages| messages.len() < 7))
    });
    let expected = ["deleted", "delivered89", "failed89", "pending89", "pending91", "waiting"];
    let messages = messages.await?;
    ensure!(messages == expected, "{messages:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_message_can_tell_is_set_aside_and_the_others_arrive() -> Result<()> {
    let running = running(&["up"]).await?;
    let Running { lab, api, receiver, .. } = &running;
    hook(&running, "well/all", &["payment.created"]).await?;
    let first = api.create(json!({ "chain": "anvil", "amount": "1" })).await?;
    receiver.until("well/all", 1).await?;
    // In nanoseconds, as a chain's stored records may have it.
    let event = events(lab).await?.into_iter().find(|event| event.payment_id == first.id()).context("its event")?;
    let untold = format!("evt_{}_2", event.payment_id.replace('-', ""));
    let nanoseconds =
        wire::PaymentEvent { id: untold.clone(), sequence: 2, occurred_at: 1_790_000_000_000_000_000, ..event.clone() };
    // The database has no room for them.
    let long = wire::PaymentEvent { id: format!("evt_long{}", "9".repeat(3000)), sequence: 3, ..event.clone() };
    let unstorable = wire::PaymentEvent { id: "evt_nul\0".to_owned(), sequence: 4, ..event.clone() };
    // Under another payment's id it would be told with that one's message.
    let foreign = wire::PaymentEvent { id: format!("{untold}7"), sequence: 6, ..event.clone() };
    let bad =
        [nanoseconds, long, unstorable, foreign, wire::PaymentEvent { r#type: "payment.\0".to_owned(), sequence: 5, ..event }];
    let kafka = lab.kafka().await?;
    let written = tokio::task::spawn_blocking(move || {
        let producer = TransactionalProducer::open(&kafka, "test")?;
        let transaction = producer.begin()?;
        for event in &bad {
            transaction.send(Topic::Events, &event.payment_id, &kafka.encode(event))?;
        }
        transaction.commit()
    });
    written.await??;
    let aside = eventually("the event to be set aside", || async {
        let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
        Ok(health.pointer("/components/set_aside/0").cloned())
    });
    let aside = aside.await?;
    ensure!(aside["stage"] == "webhooks" && !aside.to_string().contains(&untold), "anyone may read it: {aside}");
    ensure!(aside["cause"].as_str().is_some_and(|cause| cause.contains("`ctrip set-aside`")), "{aside}");
    let listed = lab.ctrip(&["set-aside"])?;
    let all = [untold.as_str(), "evt_long9", "evt_nul", "as its payment and sequence say", "type: the character U+0000"];
    ensure!(all.iter().all(|part| listed.contains(part)) && listed.contains("ctrip tail payment.events --from"), "{listed}");
    let later = api.create(json!({ "chain": "anvil", "amount": "1" })).await?;
    let messages = receiver.until("well/all", 2).await?;
    ensure!(messages.len() == 2 && messages[1].json()?["data"]["payment_id"] == later.id(), "{messages:?}");
    Ok(())
}

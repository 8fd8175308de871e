//! Every endpoint of the API's own document, with every kind of key. A new endpoint fails the test until it is described
//! here.

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{Api, Lab, Payment, Plan, Process};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Public endpoints. None of them returns a merchant's data.
const PUBLIC: &[&str] = &["/livez", "/readyz", "/health", "/openapi.json", "/docs", "/docs/{file}"];

/// An operation of the document.
#[derive(Debug, Clone)]
struct Operation {
    method: Method,
    path: String,
}

impl Operation {
    /// The path with the id of one of the victim's resources.
    fn of(&self, victim: &Scene) -> Result<String> {
        match self.path.as_str() {
            path if path.starts_with("/api/v1/payments/{id}") => Ok(path.replace("{id}", victim.payment.id())),
            path if path.starts_with("/api/v1/addresses/{id}") => Ok(path.replace("{id}", victim.address.id())),
            path if path.starts_with("/api/v1/webhooks/{id}") => Ok(path.replace("{id}", victim.webhook.id())),
            path if !path.contains('{') => Ok(path.to_owned()),
            other => bail!("{other}: say in this test what is asked for there"),
        }
    }

    fn body(&self) -> Result<Option<Value>> {
        let order = json!({ "chain": "anvil", "amount": 7 });
        match (&self.method, self.path.as_str()) {
            (&Method::GET | &Method::HEAD, _) | (&Method::POST, "/api/v1/payments/{id}/cancel") => Ok(None),
            (&Method::POST, "/api/v1/payments") => Ok(Some(order)),
            (&Method::POST, "/api/v1/addresses") => Ok(Some(json!({ "external_id": "anyone" }))),
            (&Method::POST, "/api/v1/payments/batch") => Ok(Some(json!({ "payments": [order] }))),
            (&Method::POST, "/api/v1/webhooks") => Ok(Some(json!({ "url": "https://anyone.example/" }))),
            (&Method::PATCH, "/api/v1/webhooks/{id}") => Ok(Some(json!({ "events": ["payment.*"] }))),
            (&Method::POST, "/api/v1/webhooks/{id}/redeliver") => Ok(Some(json!({ "failed": true }))),
            (&Method::DELETE, "/api/v1/webhooks/{id}")
            | (&Method::POST, "/api/v1/webhooks/{id}/rotate" | "/api/v1/webhooks/{id}/ping") => Ok(None),
            (method, path) => bail!("{method} {path}: say in this test what is sent there"),
        }
    }

    fn reads(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    async fn ask(&self, api: &Api, victim: &Scene) -> Result<(StatusCode, Value)> {
        api.request(self.method.clone(), &self.of(victim)?, self.body()?, &[]).await
    }
}

async fn operations(api: &Api) -> Result<(Vec<Operation>, Vec<Operation>)> {
    let (_, document) = api.request(Method::GET, "/openapi.json", None, &[]).await?;
    let paths = document["paths"].as_object().context("paths")?;
    let mut all = Vec::new();
    for (path, item) in paths {
        for method in item.as_object().context("operations")?.keys() {
            let method: Method = method.to_uppercase().parse()?;
            if method == Method::GET {
                all.push(Operation { method: Method::HEAD, path: path.clone() });
            }
            all.push(Operation { method, path: path.clone() });
        }
    }
    let (public, protected): (Vec<_>, Vec<_>) = all.into_iter().partition(|of| PUBLIC.contains(&of.path.as_str()));
    ensure!(protected.len() > 8 && public.len() > 6, "a document of too little: {protected:?} {public:?}");
    ensure!(protected.iter().all(|of| of.path.starts_with("/api/v1/")), "{protected:?}");
    Ok((public, protected))
}

struct Scene {
    lab: Lab,
    victim: Api,
    payment: Payment,
    /// A static address.
    address: Payment,
    webhook: Payment,
    _process: Process,
}

async fn scene() -> Result<Scene> {
    let lab = Lab::start(Plan::default()).await?;
    let (process, victim) = lab.serve("api", "victim").await?;
    // The document's example of an address is the account's first.
    lab.merchant("first")?.coin(1).await?;
    let order =
        json!({ "chain": "anvil", "amount": 7, "external_id": "victims-order", "metadata": { "note": "victims-note" } });
    let headers = [("Idempotency-Key", "victims-key")];
    let (_, made) = victim.request(Method::POST, "/api/v1/payments", Some(order), &headers).await?;
    let customer = json!({ "external_id": "victims-customer" });
    let (_, address) = victim.request(Method::POST, "/api/v1/addresses", Some(customer), &[]).await?;
    let webhook = json!({ "url": "https://victim.example/", "description": "victims-webhook" });
    let (_, webhook) = victim.request(Method::POST, "/api/v1/webhooks", Some(webhook), &[]).await?;
    let (payment, address, webhook) = (Payment(made), Payment(address), Payment(webhook));
    Ok(Scene { lab, victim, payment, address, webhook, _process: process })
}

impl Scene {
    /// Whether an answer contains any of the victim's data.
    fn tells(&self, answer: &Value) -> bool {
        let text = answer.to_string().to_lowercase();
        let addresses = [&self.payment, &self.address].map(|of| of.text("address").to_lowercase());
        let secrets = addresses.iter().map(String::as_str).chain([
            "victims-order",
            "victims-note",
            "victims-customer",
            "victims-webhook",
        ]);
        secrets.into_iter().any(|secret| text.contains(secret))
    }
}

#[tokio::test]
async fn no_endpoint_answers_a_key_that_does_not_work() -> Result<()> {
    let scene = scene().await?;
    let (_, protected) = operations(&scene.victim).await?;
    let revoked = scene.lab.ctrip(&["keys", "create", "victim"])?;
    scene.lab.ctrip(&["keys", "revoke", &revoked])?;
    let ended = scene.lab.ctrip(&["keys", "create", "victim"])?;
    scene.lab.ctrip(&["keys", "rotate", &ended, "--grace", "0"])?;
    let garbage = format!("ctrip_{}", "0".repeat(64));
    for (kind, key) in [("none", ""), ("garbage", &garbage), ("revoked", &revoked), ("ended", &ended), ("id", "victim")] {
        let api = scene.victim.with_key(key);
        for operation in &protected {
            let (status, answer) = operation.ask(&api, &scene).await?;
            ensure!(status == StatusCode::UNAUTHORIZED && !scene.tells(&answer), "{kind} {operation:?}: {status} {answer}");
        }
    }
    ensure!(scene.victim.get(scene.payment.id()).await?.status() == "pending", "it was changed");
    Ok(())
}

#[tokio::test]
async fn a_key_that_may_read_sees_everything_of_its_merchant_and_changes_nothing() -> Result<()> {
    let scene = scene().await?;
    let (_, protected) = operations(&scene.victim).await?;
    let reader = scene.victim.with_key(&scene.lab.ctrip(&["keys", "create", "victim", "--scope", "read"])?);
    for operation in &protected {
        let (status, answer) = operation.ask(&reader, &scene).await?;
        if operation.reads() {
            ensure!(status.is_success(), "{operation:?}: {status} {answer}");
        } else {
            ensure!(status == StatusCode::FORBIDDEN, "{operation:?}: {status} {answer}");
            ensure!(answer["type"] == "urn:ctrip:problem:insufficient-scope", "{answer}");
        }
    }
    let (_, list) = reader.request(Method::GET, "/api/v1/payments", None, &[]).await?;
    ensure!(list["data"].as_array().is_some_and(|all| all.len() == 1 && all[0]["status"] == "pending"), "{list}");
    Ok(())
}

#[tokio::test]
async fn no_endpoint_gives_another_merchants_data() -> Result<()> {
    let scene = scene().await?;
    let (public, protected) = operations(&scene.victim).await?;
    let other = scene.lab.merchant("other")?;
    for operation in &protected {
        let (status, answer) = operation.ask(&other, &scene).await?;
        let expected = if operation.path.contains("{id}") { status == StatusCode::NOT_FOUND } else { status.is_success() };
        ensure!(expected && !scene.tells(&answer), "{operation:?}: {status} {answer}");
    }
    for operation in public.iter().filter(|operation| !operation.path.contains('{')) {
        let (_, answer) = operation.ask(&other.with_key(""), &scene).await?;
        ensure!(!scene.tells(&answer), "{operation:?}: {answer}");
    }
    // With data from the victim's own answers: filters, a cursor, an idempotency key.
    scene.victim.coin(8).await?;
    let (_, page) = scene.victim.request(Method::GET, "/api/v1/payments?limit=1", None, &[]).await?;
    let cursor = page["next_cursor"].as_str().context("a cursor")?;
    let address = scene.payment.text("address");
    for query in [format!("cursor={cursor}"), format!("address={address}"), "external_id=victims-order".to_owned()] {
        let (status, list) = other.request(Method::GET, &format!("/api/v1/payments?{query}"), None, &[]).await?;
        ensure!(status.is_success() && !scene.tells(&list), "{query}: {status} {list}");
    }
    let order = json!({ "chain": "anvil", "amount": 7 });
    let headers = [("Idempotency-Key", "victims-key")];
    let (status, made) = other.request(Method::POST, "/api/v1/payments", Some(order), &headers).await?;
    ensure!(status == StatusCode::CREATED && made["id"] != scene.payment.id() && !scene.tells(&made), "{status} {made}");
    let customer = json!({ "external_id": "victims-customer" });
    let (status, theirs) = other.request(Method::POST, "/api/v1/addresses", Some(customer), &[]).await?;
    let differs = theirs["address"] != scene.address.text("address") && theirs["id"] != scene.address.id();
    ensure!(status == StatusCode::CREATED && differs, "{status} {theirs}");
    ensure!(scene.victim.get(scene.payment.id()).await?.status() == "pending", "it was changed");
    let path = format!("/api/v1/webhooks/{}", scene.webhook.id());
    let (status, webhook) = scene.victim.request(Method::GET, &path, None, &[]).await?;
    ensure!(status.is_success() && webhook["events"] == json!([]), "it was changed: {status} {webhook}");
    Ok(())
}

#[tokio::test]
async fn a_key_that_may_write_does_everything() -> Result<()> {
    let scene = scene().await?;
    let (_, mut protected) = operations(&scene.victim).await?;
    // Operations that change the payment, or delete the webhook, come last.
    protected.sort_by_key(|operation| operation.path.ends_with("/cancel") || operation.method == Method::DELETE);
    for operation in &protected {
        let (status, answer) = operation.ask(&scene.victim, &scene).await?;
        ensure!(status.is_success(), "{operation:?}: {status} {answer}");
    }
    ensure!(scene.victim.get(scene.payment.id()).await?.status() == "cancelled");
    Ok(())
}

//! The API as a merchant's program uses it.

use crate::http::plain_http;
use crate::process::Process;
use crate::wait::eventually;
use anyhow::{Context as _, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use topics::{Address, U256};

/// A client of the API with a merchant's key.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    /// Base URL.
    pub url: String,
    /// The merchant's key; an empty one is not sent.
    pub key: String,
}

/// A payment as the API returns it.
#[derive(Clone, Debug)]
pub struct Payment(pub Value);

impl Payment {
    /// A field's text; empty when the field is null or missing.
    pub fn text(&self, field: &str) -> &str {
        self.0.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// The field `id`.
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// The field `status`.
    pub fn status(&self) -> &str {
        self.text("status")
    }

    /// The address to pay to.
    ///
    /// # Errors
    /// When the API returned no address.
    pub fn address(&self) -> Result<Address> {
        Ok(self.text("address").parse()?)
    }

    /// The amount to pay, in base units.
    ///
    /// # Errors
    /// When the API returned no amount.
    pub fn amount(&self) -> Result<U256> {
        Ok(self.text("amount").parse()?)
    }
}

impl Api {
    pub(crate) fn new(url: String, key: String) -> Result<Self> {
        let http = plain_http().timeout(std::time::Duration::from_secs(30)).build()?;
        Ok(Self { http, url, key })
    }

    /// The same API with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// The public id of the merchant's key.
    pub fn key_id(&self) -> String {
        use sha2::Digest as _;
        hex::encode(&sha2::Sha256::digest(self.key.as_bytes())[..8])
    }

    /// Sends any request; returns the status and the JSON.
    ///
    /// # Errors
    /// When there is no response.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if !self.key.is_empty() {
            request = request.header("X-Api-Key", &self.key);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Sends a POST with a body, or a GET without one, at the least cost for the client; returns the text.
    ///
    /// # Errors
    /// When there is no response, or its status is not 2xx.
    pub async fn text(&self, path: &str, body: Option<&str>) -> Result<String> {
        let url = format!("{}{path}", self.url);
        let request = match body {
            Some(body) => self.http.post(url).header("Content-Type", "application/json").body(body.to_owned()),
            None => self.http.get(url),
        };
        let response = request.header("X-Api-Key", &self.key).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        anyhow::ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(text)
    }

    /// Waits until the API, which `process` serves, is ready.
    ///
    /// # Errors
    /// When it is not ready within a minute.
    pub async fn ready(&self, process: &mut Process) -> Result<()> {
        let ready = eventually("the API to be ready", || async {
            let answer = self.request(Method::GET, "/readyz", None, &[]).await;
            Ok(answer.ok().filter(|(status, _)| status.is_success()).map(drop))
        });
        let outcome = ready.await;
        process.check()?;
        outcome
    }

    /// Creates a payment.
    ///
    /// # Errors
    /// When the API returns anything but 201.
    pub async fn create(&self, body: Value) -> Result<Payment> {
        let (status, answer) = self.request(Method::POST, "/api/v1/payments", Some(body), &[]).await?;
        anyhow::ensure!(status == StatusCode::CREATED, "create: {status} {answer}");
        Ok(Payment(answer))
    }

    /// Creates a payment as a careful merchant does: with an idempotency key, and with retries until the API returns it.
    ///
    /// # Errors
    /// When the API refuses, or returns nothing for a minute.
    pub async fn create_surely(&self, body: Value) -> Result<Payment> {
        let key = uuid::Uuid::new_v4().to_string();
        eventually("a payment to be created", || async {
            let headers = [("Idempotency-Key", key.as_str())];
            match self.request(Method::POST, "/api/v1/payments", Some(body.clone()), &headers).await {
                Ok((StatusCode::CREATED, answer)) => Ok(Some(Payment(answer))),
                Ok((status, answer))
                    if status.is_client_error() && answer["type"] != "urn:ctrip:problem:idempotency-key-in-flight" =>
                {
                    anyhow::bail!("create: {status} {answer}")
                }
                // The API is down, asks for a retry, or still works on the request before.
                Ok(_) | Err(_) => Ok(None),
            }
        })
        .await
    }

    /// Creates a payment in the coin.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn coin(&self, amount: u64) -> Result<Payment> {
        self.create(json!({ "chain": "anvil", "amount": amount.to_string() })).await
    }

    /// Gets a payment.
    ///
    /// # Errors
    /// When the API does not return it.
    pub async fn get(&self, id: &str) -> Result<Payment> {
        let (status, answer) = self.request(Method::GET, &format!("/api/v1/payments/{id}"), None, &[]).await?;
        anyhow::ensure!(status.is_success(), "get {id}: {status} {answer}");
        Ok(Payment(answer))
    }

    /// Waits until a payment has a status.
    ///
    /// # Errors
    /// When a minute has passed; the error shows the payment.
    pub async fn until(&self, id: &str, status: &str) -> Result<Payment> {
        let what = format!("payment {id} to be {status}");
        let outcome = eventually(&what, || async { Ok(self.get(id).await.ok().filter(|payment| payment.status() == status)) });
        match outcome.await {
            Ok(payment) => Ok(payment),
            Err(error) => {
                let now = self.get(id).await.map(|payment| payment.0.to_string());
                Err(error).with_context(|| format!("it is {now:?}"))
            }
        }
    }
}

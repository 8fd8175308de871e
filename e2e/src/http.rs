//! HTTP without TLS, in which a test, its node and cTrip speak, and the numbers of its JSON-RPC.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A client that reads none of the system's certificate authorities, as each client of reqwest does otherwise.
pub fn plain_http() -> reqwest::ClientBuilder {
    reqwest::Client::builder().tls_certs_only([])
}

/// A number as JSON-RPC has it.
///
/// # Errors
/// When it is none.
pub fn quantity(value: &Value) -> Result<u64> {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).with_context(|| format!("{value} is no quantity"))?;
    Ok(u64::from_str_radix(digits, 16)?)
}

//! HTTP without TLS, in which a test, its node and cTrip speak.

/// A client that reads none of the system's certificate authorities, as each client of reqwest does otherwise.
pub fn plain_http() -> reqwest::ClientBuilder {
    reqwest::Client::builder().tls_certs_only([])
}
